//! One pulse's work on this machine: chains side by side on all processors, a thread for the walk and one for
//! the disks, all at the same time; then the commitment, and openings for as long as witnesses ask.

use std::collections::{BTreeSet, BinaryHeap};
use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use hypha_chain::B256;
use hypha_chain::key::Key;
use hypha_chain::tree::Extent;
use hypha_proofs::cpu::ChainRun;
use hypha_proofs::prover::{Answer, Prover, ProverError, Work};
use hypha_proofs::ram::{Table, WalkRun};
use hypha_proofs::store::{Read, Store};
use hypha_proofs::verifier::Claim;
use hypha_proofs::wire::{Opening, SignedCommitment};
use hypha_proofs::{Challenge, Rules, disk};

use crate::clock::{monotonic_ns, process_cpu_ns};
use crate::reading::Reading;

/// Segments between two looks at the clock: about 20 ms.
const SEGMENTS: u64 = 200;
/// Steps of the walk between two looks at the clock.
const STEPS: u64 = 1 << 14;

/// Why a pulse is not answered, or not all of it.
#[derive(Debug, thiserror::Error)]
pub enum WorkError {
    /// The work is more than this machine does in time.
    #[error("the work of the pulse was not done in time")]
    Late,
    /// It can't be.
    #[error(transparent)]
    Prover(#[from] ProverError),
    /// A thread can't be made, or has panicked.
    #[error("a thread of the pulse has failed")]
    Thread,
}

/// All that a pulse is answered with.
pub struct Task {
    /// What is asked.
    pub challenge: Challenge,
    /// What must be answered.
    pub claim: Claim,
    /// How much work that is.
    pub rules: Rules,
    /// When the pulse began, on the monotonic clock.
    pub began_ns: u64,
    /// The day's table.
    pub table: Option<Arc<Table>>,
    /// The extents of the claimed plot, if they are known.
    pub extents: Option<Vec<Extent>>,
    /// Where extents are read.
    pub reading: Reading,
    /// The node's key.
    pub key: Arc<Key>,
}

/// A witness has drawn.
#[derive(Debug, Clone, Copy)]
pub struct Draw {
    /// Who.
    pub witness: u32,
    /// What.
    pub draw: B256,
}

/// What comes of a pulse.
pub enum Outcome {
    /// The work is done.
    Committed {
        /// What witnesses are sent once it is on the disk.
        commitment: SignedCommitment,
        /// How long it took, in nanoseconds.
        took_ns: u64,
        /// What was not proven, and why.
        lost: Vec<String>,
    },
    /// What a witness has drawn.
    Opened {
        /// Who.
        witness: u32,
        /// Its opening.
        opening: Opening,
    },
    /// It is over, or was given up.
    Over {
        /// Processor time of this process meanwhile, in nanoseconds.
        cpu_ns: u64,
        /// Why it was given up.
        error: Option<WorkError>,
    },
}

/// Does all of it; `tell` is told what comes of it. Ends when the pulse is over, or nobody can draw any
/// more.
pub fn run(task: &Task, draws: &Receiver<Draw>, tell: impl Fn(Outcome)) {
    let before = process_cpu_ns();
    let error = answer(task, draws, &tell).err();
    tell(Outcome::Over { cpu_ns: process_cpu_ns().saturating_sub(before), error });
}

fn answer(task: &Task, draws: &Receiver<Draw>, tell: &impl Fn(Outcome)) -> Result<(), WorkError> {
    let mut lost = Vec::new();
    let pulse = task.claim.binding.pulse(&task.challenge);
    let table = task.claim.table.and_then(|wanted| {
        let table = task.table.as_deref().filter(|table| table.record() == wanted);
        if table.is_none() {
            lost.push("memory: the day's table is not there".to_owned());
        }
        table
    });
    let prover = Prover {
        binding: task.claim.binding,
        rules: task.rules,
        threads: task.claim.threads,
        table,
        store: None,
    };
    let Work { chains, walk, .. } = prover.begin(&task.challenge)?;
    let until = task.began_ns.saturating_add(task.rules.commit_ns);
    let done = thread::scope(|scope| {
        let chains = scope.spawn(move || take_chains(chains, until));
        let walk = walk.zip(table);
        let walk = walk.map(|(run, table)| scope.spawn(move || take_walk(run, table, until)));
        let disk = scope.spawn(|| task.disk(&pulse));
        let chains = chains.join().map_err(|_| WorkError::Thread)??;
        let walk = walk.map(|it| it.join().map_err(|_| WorkError::Thread)?).transpose()?;
        let disk = disk.join().map_err(|_| WorkError::Thread)?;
        Ok::<_, WorkError>((chains, walk, disk))
    });
    let (chains, walk, disk) = done?;
    let disk = disk.unwrap_or_else(|error| {
        lost.push(format!("disk: {error}"));
        None
    });
    let (store, (reads, groups)) =
        disk.map_or_else(Default::default, |it| (Some(it.store), (it.reads, it.groups)));
    let prover = Prover { store: store.as_ref(), ..prover };
    let work = Work { chains, walk, reads };
    let answer = prover.commit(&task.challenge, work, &groups)?;
    let took_ns = monotonic_ns().saturating_sub(task.began_ns);
    if took_ns > task.rules.commit_ns {
        return Err(WorkError::Late);
    }
    tell(Outcome::Committed { commitment: answer.commitment(&task.key), took_ns, lost });
    open(task, &answer, draws, tell);
    Ok(())
}

/// Opens what witnesses draw, until the last can have drawn.
fn open(task: &Task, answer: &Answer<'_>, draws: &Receiver<Draw>, tell: &impl Fn(Outcome)) {
    let ends = task.began_ns.saturating_add(task.rules.commit_ns + task.rules.open_ns);
    loop {
        let left = Duration::from_nanos(ends.saturating_sub(monotonic_ns()));
        match draws.recv_timeout(left) {
            Ok(Draw { witness, draw }) => {
                if let Some(opening) = answer.open(&draw, &task.key) {
                    tell(Outcome::Opened { witness, opening });
                }
            }
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// Computes chains side by side, on as many threads as there are processors: it is always the one with most
/// left that goes on, so all end at about the same time, however many there are.
fn take_chains(runs: Vec<ChainRun>, until_ns: u64) -> Result<Vec<ChainRun>, WorkError> {
    let count = runs.len();
    let mut done: Vec<Option<ChainRun>> = runs.into_iter().map(Some).collect();
    // What is left of each that nobody computes, and which it is.
    let waiting: BinaryHeap<(u64, usize)> = (0..count).map(|number| (u64::MAX, number)).collect();
    let shared = Mutex::new((waiting, &mut done));
    let go_on = || {
        let lock = || shared.lock().unwrap_or_else(PoisonError::into_inner);
        let take = || {
            let mut kept = lock();
            let (_, number) = kept.0.pop()?;
            Some((number, kept.1.get_mut(number)?.take()?))
        };
        while let Some((number, mut run)) = take() {
            let left = run.advance(SEGMENTS);
            let mut kept = lock();
            if let Some(place) = kept.1.get_mut(number) {
                *place = Some(run);
            }
            if left > 0 {
                if monotonic_ns() >= until_ns {
                    return Err(WorkError::Late);
                }
                kept.0.push((left, number));
            }
        }
        Ok(())
    };
    let processors = thread::available_parallelism().map_or(count, usize::from);
    thread::scope(|scope| {
        let go_on = &go_on;
        let all: Vec<_> = (0..processors.min(count)).map(|_| scope.spawn(go_on)).collect();
        all.into_iter().try_for_each(|it| it.join().map_err(|_| WorkError::Thread)?)
    })?;
    done.into_iter().collect::<Option<_>>().ok_or(WorkError::Thread)
}

fn take_walk(mut run: WalkRun, table: &Table, until_ns: u64) -> Result<WalkRun, WorkError> {
    while run.advance(table, STEPS) > 0 {
        if monotonic_ns() >= until_ns {
            return Err(WorkError::Late);
        }
    }
    Ok(run)
}

/// What a pulse has drawn of the disks.
struct Drawn {
    store: Store,
    reads: Vec<Read>,
    groups: Vec<Vec<u8>>,
}

impl Task {
    /// Reads what is drawn of the claimed plot, with the hashes of the extents that it lies in. `None` if
    /// no plot is claimed.
    fn disk(&self, pulse: &B256) -> io::Result<Option<Drawn>> {
        let Some(wanted) = self.claim.plot else { return Ok(None) };
        let of_plot = |store: &Store| store.record() == wanted;
        let store = self.extents.clone().and_then(Store::listed).filter(of_plot);
        let (Some(mut store), Some(extents)) = (store, &self.extents) else {
            return Err(io::Error::other("the committed plot is not known here"));
        };
        let gone = || io::Error::new(io::ErrorKind::NotFound, "a drawn extent is not there");
        let offsets = disk::offsets(pulse, &self.rules, wanted.bytes_len);
        let reads = offsets.into_iter().map(|offset| store.locate(offset).ok_or_else(gone));
        let reads: Vec<Read> = reads.collect::<Result<_, _>>()?;
        let mut loaded = BTreeSet::new();
        let mut groups = Vec::with_capacity(reads.len());
        for read in &reads {
            let extent = extents.get(read.extent).ok_or_else(gone)?;
            if loaded.insert(read.extent) && !store.load(read.extent, self.reading.tree(extent)?) {
                return Err(gone());
            }
            let group = self.reading.read(extent, &read.range).and_then(|group| {
                // What the disk has lost is to cost the disk's part of the answer, and not all of it.
                store.open(read.offset, &group).map_err(io::Error::other).map(|_| group)
            });
            groups.push(group.inspect_err(|_| self.reading.doubt(extent))?);
        }
        Ok(Some(Drawn { store, reads, groups }))
    }
}
