//! Threads at the lowest priority that make extents, compare them with their hashes, and give them up.
//!
//! They run at nice 19, from which the kernel derives the lowest best-effort I/O priority too, and stand
//! still while a pulse is answered.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use hypha_chain::B256;
use hypha_proofs::label::{FILLER_LAYERS, Fill, LABEL_BYTES};
use hypha_proofs::store::ExtentTree;

use super::shelf::Kept;
use super::{Filler, Slot, Step};
use crate::clock::{monotonic_ns, random_u64, thread_cpu_ns};

/// Labels between two looks at what is asked for: about 30 ms.
const PORTION: u64 = 1 << 16;
/// How long a thread that has nothing to do sleeps at most.
const REST: Duration = Duration::from_secs(2);
/// Comparing takes a processor no more than this part of the time: what is asked of proving in all is a
/// thousandth, and the pulses need most of that.
const COMPARING: u64 = 5000;
/// How long nothing is made after a disk has failed.
const FAILED_NS: u64 = 30_000_000_000;
const NICE_LOWEST: i32 = 19;

/// What has happened.
#[derive(Debug)]
pub enum Event {
    /// Extents are there that were not.
    Grown,
    /// Extents are gone: the plot must be committed to anew.
    Shrunk,
    /// An extent was not what it was, and is gone.
    Rotten {
        /// Its file.
        path: PathBuf,
    },
    /// A disk failed. It is tried again.
    Failed {
        /// The folder.
        folder: PathBuf,
        /// Why.
        error: io::Error,
    },
}

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of filler that are there.
    pub kept: u64,
    /// Bytes that there should be.
    pub wanted: u64,
    /// Bytes made by this process so far, unfinished extents counted in part.
    pub made: u64,
}

/// How the threads work.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// How many threads make extents.
    pub threads: u16,
    /// How often one extent is compared with its hashes, in nanoseconds; less often if that takes long.
    pub compare_ns: u64,
}

struct Shared {
    filler: Mutex<Filler>,
    changed: Condvar,
    wanted: AtomicU64,
    stop: AtomicBool,
    pause: AtomicBool,
    labels: AtomicU64,
    next_compare_ns: AtomicU64,
    quiet_until_ns: AtomicU64,
    compare_ns: u64,
}

/// The threads, and what they work on.
pub struct Plotter {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Plotter {
    /// Starts. `tell` is called by the threads for each event.
    ///
    /// # Errors
    /// No thread can be made.
    pub fn start(
        filler: Filler,
        pace: Pace,
        tell: impl Fn(Event) + Clone + Send + 'static,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            wanted: AtomicU64::new(filler.bytes_len()),
            filler: Mutex::new(filler),
            changed: Condvar::new(),
            stop: AtomicBool::new(false),
            pause: AtomicBool::new(false),
            labels: AtomicU64::new(0),
            next_compare_ns: AtomicU64::new(monotonic_ns().saturating_add(pace.compare_ns)),
            quiet_until_ns: AtomicU64::new(0),
            compare_ns: pace.compare_ns,
        });
        let mut plotter = Self { shared, threads: Vec::new() };
        for number in 0..pace.threads.max(1) {
            let (shared, tell) = (Arc::clone(&plotter.shared), tell.clone());
            let named = thread::Builder::new().name(format!("filler {number}"));
            plotter.threads.push(named.spawn(move || work(&shared, &tell))?);
        }
        Ok(plotter)
    }

    /// What is there.
    pub fn filler(&self) -> MutexGuard<'_, Filler> {
        self.shared.lock()
    }

    /// Says how many bytes there should be. What is too much is gone when this returns, but for what a
    /// disk refuses to remove, which is told as an event and tried again.
    pub fn want(&self, bytes: u64, tell: &impl Fn(Event)) {
        self.shared.wanted.store(bytes, Ordering::Release);
        let mut filler = self.shared.lock();
        let mut shrunk = false;
        while let Ok(Step::Remove(slot)) = filler.next(bytes) {
            shrunk = true;
            remove(&mut filler, slot, tell);
        }
        drop(filler);
        if shrunk {
            tell(Event::Shrunk);
        }
        self.shared.changed.notify_all();
    }

    /// Whether nothing is made or compared for now.
    pub fn pause(&self, pause: bool) {
        self.shared.pause.store(pause, Ordering::Release);
    }

    /// How far it is.
    #[must_use]
    pub fn progress(&self) -> Progress {
        Progress {
            kept: self.shared.lock().bytes_len(),
            wanted: self.shared.wanted.load(Ordering::Acquire),
            made: self.shared.labels.load(Ordering::Relaxed) * LABEL_BYTES as u64
                / u64::from(FILLER_LAYERS),
        }
    }
}

impl Drop for Plotter {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.changed.notify_all();
        for thread in self.threads.drain(..) {
            // One that panicked has printed why.
            _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Filler> {
        // Each change of it is one step: whoever panicked has left it whole.
        self.filler.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stops(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// Waits while a pulse is answered.
    fn wait_for_pulse(&self) {
        while self.pause.load(Ordering::Acquire) && !self.stops() {
            thread::sleep(Duration::from_millis(20));
        }
    }
}

fn work(shared: &Shared, tell: &impl Fn(Event)) {
    // The priority of this thread alone. Without it all still works.
    if let Err(error) = rustix::process::setpriority_process(None, NICE_LOWEST) {
        tracing::warn!("filler is made at this process' priority: {error}");
    }
    while !shared.stops() {
        shared.wait_for_pulse();
        let mut filler = shared.lock();
        let now_ns = monotonic_ns();
        let quiet = now_ns < shared.quiet_until_ns.load(Ordering::Acquire);
        let step = filler.next(shared.wanted.load(Ordering::Acquire));
        match step {
            Ok(Step::Remove(slot)) => {
                remove(&mut filler, slot, tell);
                drop(filler);
                tell(Event::Shrunk);
            }
            Ok(Step::Make(slot)) if !quiet => {
                filler.begin(slot);
                drop(filler);
                make(shared, slot, tell);
            }
            _ if shared.is_compare_due(now_ns) => {
                drop(filler);
                let cpu_ns = thread_cpu_ns();
                compare(shared, tell);
                shared.compared(monotonic_ns(), thread_cpu_ns().saturating_sub(cpu_ns));
            }
            _ => {
                // Poisoned by a panic elsewhere, which changes nothing here.
                drop(shared.changed.wait_timeout(filler, REST).map_err(|_| ()));
            }
        }
    }
}

impl Shared {
    fn is_compare_due(&self, now_ns: u64) -> bool {
        let due = self.next_compare_ns.load(Ordering::Acquire);
        if now_ns < due {
            return false;
        }
        // Of several threads one takes it.
        let next = now_ns.saturating_add(self.compare_ns);
        let taken =
            self.next_compare_ns.compare_exchange(due, next, Ordering::AcqRel, Ordering::Acquire);
        taken.is_ok()
    }

    /// One extent was compared, which took so much of a processor's time.
    fn compared(&self, now_ns: u64, cpu_ns: u64) {
        let next = now_ns.saturating_add(cpu_ns.saturating_mul(COMPARING));
        self.next_compare_ns.fetch_max(next, Ordering::AcqRel);
    }
}

fn remove(filler: &mut Filler, slot: Slot, tell: &impl Fn(Event)) {
    if let Err(error) = filler.remove(slot) {
        let folder = filler.files(slot).map(|files| files.folder().to_owned()).unwrap_or_default();
        tell(Event::Failed { folder, error });
    }
}

/// Makes one extent, unless it is not wanted any more before it is done.
fn make(shared: &Shared, slot: Slot, tell: &impl Fn(Event)) {
    let (files, extent_bytes) = {
        let filler = shared.lock();
        (filler.files(slot).cloned(), filler.extent_bytes())
    };
    let kept = files.as_ref().and_then(|files| {
        let bytes = fill(shared, slot, files.context(slot.1), extent_bytes)?;
        match files.write(slot.1, &bytes, &ExtentTree::of(&bytes)) {
            Ok(kept) => Some(kept),
            Err(error) => {
                let until = monotonic_ns().saturating_add(FAILED_NS);
                shared.quiet_until_ns.store(until, Ordering::Release);
                tell(Event::Failed { folder: files.folder().to_owned(), error });
                None
            }
        }
    });
    let made = kept.is_some();
    shared.lock().end(slot, kept);
    if made {
        tell(Event::Grown);
    }
}

fn fill(shared: &Shared, slot: Slot, context: B256, extent_bytes: u64) -> Option<Vec<u8>> {
    let mut fill = Fill::new(context, FILLER_LAYERS, extent_bytes / LABEL_BYTES as u64).ok()?;
    loop {
        let left = fill.advance(PORTION);
        shared.labels.fetch_add(PORTION, Ordering::Relaxed);
        if left == 0 {
            return fill.finish();
        }
        shared.wait_for_pulse();
        let filler = shared.lock();
        let too_much = filler.exceeds(shared.wanted.load(Ordering::Acquire));
        // Others may have filled the disk meanwhile: then it is looked at what to give up.
        if shared.stops() || too_much || !filler.has_room(slot).unwrap_or(false) {
            return None;
        }
    }
}

/// Compares one drawn extent with its hashes.
fn compare(shared: &Shared, tell: &impl Fn(Event)) {
    let (slot, kept, files) = {
        let filler = shared.lock();
        let all: Vec<(Slot, Kept)> = filler.slots().collect();
        let at = random_u64().checked_rem(all.len() as u64).unwrap_or(0);
        let Some((slot, kept)) = all.get(at as usize).copied() else { return };
        let Some(files) = filler.files(slot).cloned() else { return };
        (slot, kept, files)
    };
    // If it was given up meanwhile, it is not there, which is no news.
    if matches!(files.is_whole(slot.1, &kept, None), Ok(false)) {
        remove(&mut shared.lock(), slot, tell);
        tell(Event::Rotten { path: files.path(slot.1) });
        tell(Event::Shrunk);
    }
}

/// Compares one 64 KiB of each extent with its hashes, and gives up those that differ. For the start,
/// when nothing is known of what happened to the disks.
///
/// # Errors
/// The disk refuses to remove.
pub fn sample(filler: &mut Filler) -> io::Result<Vec<PathBuf>> {
    let mut rotten = Vec::new();
    let all: Vec<(Slot, Kept)> = filler.slots().collect();
    for (slot, kept) in all {
        let Some(files) = filler.files(slot).cloned() else { continue };
        let group = random_u64() as usize;
        if !files.is_whole(slot.1, &kept, Some(group)).unwrap_or(false) {
            filler.remove(slot)?;
            rotten.push(files.path(slot.1));
        }
    }
    Ok(rotten)
}
