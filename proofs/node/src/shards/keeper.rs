//! The thread that looks after shards: at nice 19, from which the kernel derives the lowest best-effort
//! I/O priority, at rest half of the time, and standing still while a pulse is answered.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use hypha_chain::B256;
use hypha_chain::tree::Extent;
use storage_vdev::disk::{DiskError, Look};

use super::reading::{Place, Reading};
use super::stock::{Rotten, Stock};
use super::{Folder, LISTED_MAX, Pace};
use crate::clock::{monotonic_ns, random_u64};

/// How long the thread sleeps at once.
const TICK: Duration = Duration::from_millis(50);
/// A look at an index takes this part of the time at most.
const PASS_SHARE: u64 = 50;
/// So many bundles are made before what has changed is told.
const BUNDLES_AT_ONCE: usize = 16;
const NICE_LOWEST: i32 = 19;

/// What has happened.
#[derive(Debug)]
pub enum Event {
    /// Other shards than before are proven.
    Changed {
        /// Bytes that are proven now.
        proven: u64,
        /// Bytes that were proven and are gone.
        lost: u64,
    },
    /// A shard is not what its server says that it is. It is left out.
    Rotten {
        /// The server's folder.
        folder: PathBuf,
        /// The shard: volume, epoch, sequence, and which of a segment's shards.
        shard: String,
    },
    /// A folder can't be read. It is tried again.
    Failed {
        /// Which.
        folder: PathBuf,
        /// Why.
        error: String,
    },
    /// It can be read again.
    Back {
        /// Which.
        folder: PathBuf,
    },
    /// There are more shards than are proven.
    Full {
        /// In this folder.
        folder: PathBuf,
    },
}

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of shards in bundles.
    pub proven: u64,
    /// Bytes of all objects in the servers' folders.
    pub stored: u64,
    /// Bytes that were read to be proven.
    pub hashed: u64,
    /// Whether all folders were looked through once: before, nothing is known.
    pub is_ready: bool,
}

#[derive(Default)]
struct Control {
    stop: AtomicBool,
    pause: AtomicBool,
    hashed: AtomicU64,
}

/// The thread.
pub struct Keeper {
    control: Arc<Control>,
    reading: Reading,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    /// Starts. `cache` is where hashes are kept; `tell` is called by the thread for each event.
    ///
    /// # Errors
    /// No thread can be made.
    pub fn start(
        folders: Vec<Folder>,
        cache: PathBuf,
        pace: Pace,
        tell: impl Fn(Event) + Send + 'static,
    ) -> io::Result<Self> {
        let (control, reading) = (Arc::new(Control::default()), Reading::default());
        let tended = folders.into_iter().map(|folder| Tended {
            path: Arc::from(folder.path.as_path()),
            folder,
            stock: None,
            state: State::Unknown,
            is_full: false,
            is_not_kept: false,
        });
        let work = Work {
            control: Arc::clone(&control),
            reading: reading.clone(),
            tended: tended.collect(),
            cache,
            pace,
            lost: 0,
            next_compare_ns: monotonic_ns().saturating_add(pace.compare_ns),
        };
        let named = thread::Builder::new().name("shards".to_owned());
        let thread = named.spawn(move || work.run(&tell))?;
        Ok(Self { control, reading, thread: Some(thread) })
    }

    /// The bundles, as a plot lists them.
    #[must_use]
    pub fn listed(&self) -> Vec<Extent> {
        self.reading.lock().listed.clone()
    }

    /// Where they can be read.
    #[must_use]
    pub fn reading(&self) -> Reading {
        self.reading.clone()
    }

    /// Whether nothing is read for now.
    pub fn pause(&self, pause: bool) {
        self.control.pause.store(pause, Ordering::Release);
    }

    /// How far it is.
    #[must_use]
    pub fn progress(&self) -> Progress {
        let shared = self.reading.lock();
        Progress {
            proven: shared.listed.iter().map(|extent| extent.bytes_len).sum(),
            stored: shared.stored_bytes,
            hashed: self.control.hashed.load(Ordering::Relaxed),
            is_ready: shared.is_ready,
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.control.stop.store(true, Ordering::Release);
        // One that panicked has printed why.
        self.thread.take().map(JoinHandle::join);
    }
}

impl Control {
    fn stops(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// Waits while a pulse is answered. Returns whether to go on.
    fn go_on(&self) -> bool {
        while self.pause.load(Ordering::Acquire) && !self.stops() {
            thread::sleep(TICK);
        }
        !self.stops()
    }

    fn rest(&self, ns: u64) {
        let until = monotonic_ns().saturating_add(ns);
        while !self.stops() {
            let left = until.saturating_sub(monotonic_ns());
            if left == 0 {
                return;
            }
            thread::sleep(Duration::from_nanos(left).min(TICK));
        }
    }
}

/// What is known of a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// It was not looked at yet.
    Unknown,
    /// It is there.
    Up,
    /// It can't be read, which was told.
    Down,
}

struct Tended {
    folder: Folder,
    path: Arc<Path>,
    stock: Option<Stock>,
    state: State,
    is_full: bool,
    /// The hashes over what has come can't be kept, which was told.
    is_not_kept: bool,
}

struct Work {
    control: Arc<Control>,
    reading: Reading,
    tended: Vec<Tended>,
    cache: PathBuf,
    pace: Pace,
    /// Bytes that are gone, and were not told yet.
    lost: u64,
    next_compare_ns: u64,
}

impl Work {
    fn run(mut self, tell: &impl Fn(Event)) {
        // The priority of this thread alone. Without it all still works.
        if let Err(error) = rustix::process::setpriority_process(None, NICE_LOWEST) {
            tracing::warn!("shards are read at this process' priority: {error}");
        }
        while self.control.go_on() {
            let began_ns = monotonic_ns();
            let mut look_ns = 0;
            for at in 0..self.tended.len() {
                let turned = self.turn(at, &mut look_ns, tell);
                self.settle(at, turned, tell);
            }
            if self.control.stops() {
                return;
            }
            self.publish(true, tell);
            let wait_ns = self.pace.pass_ns.max(look_ns.saturating_mul(PASS_SHARE));
            self.compare_until(began_ns.saturating_add(wait_ns), tell);
        }
    }

    /// Tells what a folder's turn has come to, if that is new.
    fn settle(&mut self, at: usize, turned: Result<(), DiskError>, tell: &impl Fn(Event)) {
        let Some(it) = self.tended.get_mut(at) else { return };
        let folder = it.folder.path.clone();
        match turned {
            Ok(()) if it.state == State::Down => tell(Event::Back { folder }),
            Err(error) if it.state != State::Down => {
                // What can't be read can't be shown.
                let proven = it.stock.iter().flat_map(Stock::listed);
                self.lost += proven.map(|extent| extent.bytes_len).sum::<u64>();
                it.state = State::Down;
                return tell(Event::Failed { folder, error: error.to_string() });
            }
            Err(_) => return,
            Ok(()) => {}
        }
        it.state = State::Up;
        let is_full = it.stock.as_ref().is_some_and(Stock::is_full);
        if is_full && !it.is_full {
            tell(Event::Full { folder: it.folder.path.clone() });
        }
        it.is_full = is_full;
    }

    /// Looks at a folder, and puts what has come into bundles.
    fn turn(
        &mut self,
        at: usize,
        look_ns: &mut u64,
        tell: &impl Fn(Event),
    ) -> Result<(), DiskError> {
        loop {
            let (pace, control) = (self.pace, Arc::clone(&self.control));
            let Some(it) = self.tended.get_mut(at) else { return Ok(()) };
            let now_ns = monotonic_ns();
            let look = Look::open(&it.path)?;
            let stock = match &mut it.stock {
                Some(stock) if stock.store() == look.node() => stock,
                // At the start, or when the server was made anew.
                place => {
                    let until_ns = now_ns.saturating_add(pace.keep_ns);
                    place.insert(Stock::open(&it.folder, look.node(), &self.cache, until_ns)?)
                }
            };
            if !stock.pass(&look, &pace, now_ns, || control.go_on())? {
                return Ok(());
            }
            *look_ns += monotonic_ns() - now_ns;
            self.lost += stock.take_lost();
            let runs = stock.runs(&pace, now_ns);
            it.state = if it.state == State::Unknown { State::Up } else { it.state };
            for (number, run) in runs.iter().enumerate() {
                if !self.seal(at, run, tell)? {
                    return Ok(());
                }
                if number % BUNDLES_AT_ONCE == BUNDLES_AT_ONCE - 1 {
                    self.publish(false, tell);
                }
            }
            let stock = self.tended.get(at).and_then(|it| it.stock.as_ref());
            let has_more =
                stock.is_some_and(|it| it.is_torn() || it.is_behind() && !runs.is_empty());
            if !has_more || !control.go_on() {
                return Ok(());
            }
        }
    }

    /// Puts a run of shards into a bundle. Returns whether to go on.
    fn seal(
        &mut self,
        at: usize,
        run: &[(storage_vdev::node::ObjectKey, u32)],
        tell: &impl Fn(Event),
    ) -> Result<bool, DiskError> {
        if !self.control.go_on() {
            return Ok(false);
        }
        let Some(it) = self.tended.get_mut(at) else { return Ok(false) };
        let Some(stock) = &mut it.stock else { return Ok(false) };
        let before_ns = monotonic_ns();
        // A descriptor of its own: its reads are direct.
        let look = Look::open(&it.path)?;
        let until_ns = before_ns.saturating_add(self.pace.keep_ns);
        let control = Arc::clone(&self.control);
        let sealed = stock.seal(&look, run, (before_ns, until_ns), || control.go_on());
        let (rotten, bytes) = match sealed {
            Ok(sealed) => sealed,
            // What was kept before can be shown all the same.
            Err(error) if !std::mem::replace(&mut it.is_not_kept, true) => {
                let (folder, error) = (it.folder.path.clone(), error.to_string());
                tell(Event::Failed { folder, error });
                return Ok(false);
            }
            Err(_) => return Ok(false),
        };
        it.is_not_kept = false;
        self.control.hashed.fetch_add(bytes, Ordering::Relaxed);
        for Rotten { key, .. } in rotten {
            let volume: String = key.volume.iter().map(|byte| format!("{byte:02x}")).collect();
            let (epoch, sequence, shard) = (key.epoch, key.sequence, key.shard);
            let shard = format!("volume {volume}, epoch {epoch}, segment {sequence}, {shard}");
            tell(Event::Rotten { folder: it.folder.path.clone(), shard });
        }
        self.control.rest(monotonic_ns() - before_ns);
        Ok(!self.control.stops())
    }

    /// Says what is there. `all` if every folder was looked at since the start.
    fn publish(&mut self, all: bool, tell: &impl Fn(Event)) {
        let up = self.tended.iter().filter(|it| it.state == State::Up);
        let (mut listed, mut roots) = (Vec::new(), BTreeSet::new());
        let (mut places, mut stored) = (Vec::new(), 0_u64);
        for it in up {
            let Some(stock) = &it.stock else { continue };
            stored = stored.saturating_add(stock.stored_bytes());
            // Equal bytes count once: one root at two places of a plot costs all stake.
            listed.extend(stock.listed().filter(|extent| roots.insert(extent.root)));
            let place = |file| Place { folder: Arc::clone(&it.path), file };
            places.extend(stock.shown().map(|(root, file)| (root, place(file))));
        }
        listed.truncate(LISTED_MAX);
        let proven = listed.iter().map(|extent: &Extent| extent.bytes_len).sum();
        let mut shared = self.reading.lock();
        let is_same = shared.listed == listed;
        shared.listed = listed;
        shared.places = places.into_iter().collect();
        shared.stored_bytes = stored;
        let (was_ready, is_ready) = (shared.is_ready, shared.is_ready || all);
        shared.is_ready = is_ready;
        drop(shared);
        if is_ready && !(is_same && was_ready) {
            tell(Event::Changed { proven, lost: std::mem::take(&mut self.lost) });
        }
    }

    /// Compares bundles with their hashes until then: those that a drawn byte was not found in at once,
    /// drawn ones now and then.
    fn compare_until(&mut self, until_ns: u64, tell: &impl Fn(Event)) {
        while self.control.go_on() {
            let now_ns = monotonic_ns();
            let doubted = self.reading.lock().doubts.pop();
            let is_due = now_ns >= self.next_compare_ns;
            if let Some(root) = doubted.or_else(|| is_due.then(|| self.drawn()).flatten()) {
                if !self.compare(&root, now_ns, tell) {
                    // What is left of it is put into another.
                    return;
                }
                self.next_compare_ns = now_ns.saturating_add(self.pace.compare_ns);
            }
            let left = until_ns.saturating_sub(monotonic_ns());
            if left == 0 {
                return;
            }
            self.control.rest(left.min(TICK.as_nanos() as u64));
        }
    }

    fn drawn(&self) -> Option<B256> {
        let shared = self.reading.lock();
        let at = random_u64().checked_rem(shared.listed.len() as u64)?;
        shared.listed.get(at as usize).map(|extent| extent.root)
    }

    /// Whether a bundle is what its hashes are over.
    fn compare(&mut self, root: &B256, now_ns: u64, tell: &impl Fn(Event)) -> bool {
        let until_ns = now_ns.saturating_add(self.pace.keep_ns);
        let (mut is_whole, control) = (true, Arc::clone(&self.control));
        for it in self.tended.iter_mut().filter(|it| it.state == State::Up) {
            let (Some(stock), Ok(look)) = (&mut it.stock, Look::open(&it.path)) else { continue };
            if look.node() == stock.store() {
                is_whole &= stock.verify(&look, root, (now_ns, until_ns), || control.go_on());
            }
            self.lost += stock.take_lost();
        }
        if !is_whole {
            self.publish(true, tell);
        }
        is_whole
    }
}
