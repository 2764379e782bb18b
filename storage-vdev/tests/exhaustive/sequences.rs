//! The sequences, the crashes and the outcomes.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use storage_vdev::engine::{Command, Policy};
use storage_vdev::files::sim::{SimDisk, Which};

use crate::machine::{BLOCKS, NODES, Open, open};
use crate::oracle::Oracle;

const THREADS: usize = 2;
const SECTORS: usize = BLOCKS * 8;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operation {
    WriteA,
    WriteB,
    Flush,
    Fua,
    Trim,
    Zero,
    Snapshot,
}

const ALL: [Operation; 7] = [
    Operation::WriteA,
    Operation::WriteB,
    Operation::Flush,
    Operation::Fua,
    Operation::Trim,
    Operation::Zero,
    Operation::Snapshot,
];

/// Carries one out. `None`: a disk stopped before it was acknowledged.
fn carry_out(open: &mut Open, oracle: &mut Oracle, operation: Operation) -> Option<()> {
    let covers = oracle.submitted();
    let write = |oracle: &mut Oracle, first: usize, count: usize| {
        let (change, data) = oracle.write(first, count);
        (change, data, (first * 512) as u64)
    };
    match operation {
        Operation::WriteA => {
            let (_, data, at) = write(oracle, 0, 8);
            open.request(|volume| volume.submit_write(1, at, &data))?.unwrap();
        }
        Operation::WriteB => {
            // A whole block and a part of the next one.
            let (_, data, at) = write(oracle, 8, 11);
            open.request(|volume| volume.submit_write(1, at, &data))?.unwrap();
        }
        Operation::Fua => {
            let (change, data, at) = write(oracle, 4, 6);
            open.request(|volume| volume.submit_write_fua(1, at, &data))?.unwrap();
            oracle.flushed(change + 1);
        }
        Operation::Flush => {
            open.request(|volume| volume.submit_flush(1))?.unwrap();
            oracle.flushed(covers);
        }
        Operation::Trim => {
            oracle.zero(0, 16);
            open.request(|volume| volume.submit_discard(1, 0, 16 * 512))?.unwrap();
        }
        Operation::Zero => {
            oracle.zero(9, 13);
            open.request(|volume| volume.submit_write_zeroes(1, 9 * 512, 13 * 512))?.unwrap();
        }
        Operation::Snapshot => {
            let name = format!("s{}", oracle.snapshots.len());
            let newest = oracle.newest();
            open.command(Command::Snapshot { name: name.clone(), unix_time: 0 })?.unwrap();
            oracle.snapshots.insert(name, newest);
            oracle.flushed(covers);
        }
    }
    Some(())
}

/// How far a run came.
struct Ran {
    disks: Vec<SimDisk>,
    oracle: Oracle,
    /// How many operations each disk had done before the last operation, and at the end.
    before: Vec<u64>,
    after: Vec<u64>,
}

fn counts(disks: &[SimDisk]) -> Vec<u64> {
    disks.iter().map(SimDisk::operations).collect()
}

/// Runs the sequence on copies of `made`; one disk stops at an operation, if that is given.
fn run(
    made: &[SimDisk],
    policy: Policy,
    sequence: &[Operation],
    crash: Option<(usize, u64)>,
) -> Ran {
    let disks: Vec<SimDisk> = made.iter().map(SimDisk::copy).collect();
    if let Some((disk, at)) = crash {
        disks[disk].crash_at(Some(at));
    }
    let mut ran = Ran {
        oracle: Oracle::new(SECTORS),
        before: counts(&disks),
        after: Vec::new(),
        disks: disks.clone(),
    };
    let opened = open(&disks, policy, 2).map(|opened| opened.unwrap());
    let rest = || {
        let mut host = opened?;
        for (number, operation) in sequence.iter().enumerate() {
            if number + 1 == sequence.len() {
                ran.before = counts(&disks);
            }
            carry_out(&mut host, &mut ran.oracle, *operation)?;
            host.settle()?;
        }
        Some(())
    };
    let ended = rest();
    assert_eq!(ended.is_some(), crash.is_none(), "a disk stops if it is to");
    ran.after = counts(&disks);
    ran
}

/// What is left of the pages that were not synced.
#[derive(Debug, Clone, Copy)]
enum Left {
    None,
    All,
    Without(usize),
    Only(usize),
}

impl Ran {
    /// The pages that were not synced, of all disks.
    fn pages(&self) -> Vec<(usize, Which, u64)> {
        let mut pages: Vec<_> = (0..)
            .zip(&self.disks)
            .flat_map(|(disk, one)| {
                one.unsettled().into_iter().map(move |(which, sector)| (disk, which, sector / 8))
            })
            .collect();
        pages.dedup();
        pages
    }

    /// The disks after the crash.
    fn left(&self, pages: &[(usize, Which, u64)], left: Left) -> Vec<SimDisk> {
        let one = |disk: usize| {
            let copy = self.disks[disk].copy();
            copy.crash_with(|which, sector, versions| {
                let page = (disk, which, sector / 8);
                let is = |index: usize| pages.get(index) == Some(&page);
                let keep = match left {
                    Left::None => false,
                    Left::All => true,
                    Left::Without(index) => !is(index),
                    Left::Only(index) => is(index),
                };
                if keep { versions - 1 } else { 0 }
            });
            copy
        };
        (0..NODES).map(one).collect()
    }

    /// Opens what is left, and compares.
    fn check(&self, policy: Policy, disks: &[SimDisk], lost: Option<usize>) -> Result<(), String> {
        let mut disks = disks.to_vec();
        if let Some(lost) = lost {
            disks[lost] = SimDisk::new(0);
        }
        let opened = open(&disks, policy, 3).ok_or("a disk stops")?;
        let mut host = opened.map_err(|error| error.to_string())?;
        let content = host.content().ok_or("a disk stops")?.map_err(|error| error.to_string())?;
        let mut oracle = self.oracle.clone();
        oracle.check_crash(&content)?;
        for (name, stamps) in &self.oracle.snapshots {
            let back = Command::Rollback { name: name.clone() };
            let done = host.command(back).ok_or("a disk stops")?;
            done.map_err(|error| format!("{name}: {error}"))?;
            let content = host.content().ok_or("a disk stops")?;
            oracle.check_exact(stamps, &content.map_err(|error| error.to_string())?)?;
        }
        Ok(())
    }
}

fn parameter(name: &str, usual: usize) -> usize {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(usual)
}

/// All sequences of one to `longest` operations.
fn sequences(longest: usize) -> Vec<Vec<Operation>> {
    let mut all: Vec<Vec<Operation>> = vec![Vec::new()];
    let mut from = 0;
    for _ in 0..longest {
        let end = all.len();
        for index in from..end {
            for operation in ALL {
                let mut next = all[index].clone();
                next.push(operation);
                all.push(next);
            }
        }
        from = end;
    }
    all.remove(0);
    all
}

#[derive(Default)]
struct Counts {
    crashes: AtomicU64,
    outcomes: AtomicU64,
}

/// Tries every crash of one sequence.
fn try_sequence(made: &[SimDisk], policy: Policy, sequence: &[Operation], counts: &Counts) {
    let whole = run(made, policy, sequence, None);
    let one_by_one = sequence.len() <= parameter("HYPHA_PAGES", 3);
    for disk in 0..NODES {
        for at in whole.before[disk]..=whole.after[disk] {
            // Behind the last operation of all, the machine simply stops.
            let ended = at == whole.after[disk];
            if ended && disk > 0 {
                continue;
            }
            let crashed = (!ended).then(|| run(made, policy, sequence, Some((disk, at))));
            let ran = crashed.as_ref().unwrap_or(&whole);
            counts.crashes.fetch_add(1, Ordering::Relaxed);
            let pages = ran.pages();
            let mut outcomes = vec![Left::None, Left::All];
            if one_by_one && pages.len() > 1 {
                outcomes
                    .extend((0..pages.len()).flat_map(|one| [Left::Without(one), Left::Only(one)]));
            }
            for left in outcomes {
                counts.outcomes.fetch_add(1, Ordering::Relaxed);
                let disks = ran.left(&pages, left);
                ran.check(policy, &disks, None).unwrap_or_else(|error| {
                    panic!("{policy:?}, {sequence:?}, disk {disk} stops at {at}, {left:?}: {error}")
                });
            }
        }
    }
}

fn try_all(policy: Policy, longest: usize) {
    let blank: Vec<SimDisk> = (0..NODES).map(|node| SimDisk::new(node as u64)).collect();
    let mut host = open(&blank, policy, 1).unwrap().unwrap();
    host.settle().unwrap();
    host.request(|volume| volume.submit_close(1)).unwrap().unwrap();
    drop(host);
    let disks = Mutex::new(blank);
    let all = Mutex::new(sequences(longest).into_iter());
    let counts = Counts::default();
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                let made: Vec<SimDisk> = disks.lock().unwrap().iter().map(SimDisk::copy).collect();
                loop {
                    let next = all.lock().unwrap().next();
                    let Some(sequence) = next else { return };
                    try_sequence(&made, policy, &sequence, &counts);
                }
            });
        }
    });
    println!(
        "{policy:?}: {} sequences of up to {longest} operations, {} crashes, {} outcomes",
        sequences(longest).len(),
        counts.crashes.into_inner(),
        counts.outcomes.into_inner()
    );
}

#[test]
fn no_crash_of_a_short_sequence_loses_a_flush_or_mixes_the_order() {
    try_all(Policy::Quorum, parameter("HYPHA_OPERATIONS", 3));
}

#[test]
fn no_crash_of_a_short_sequence_on_a_sealed_volume_loses_a_flush() {
    try_all(Policy::Sealed, parameter("HYPHA_OPERATIONS", 2));
}

#[test]
fn making_a_volume_can_be_interrupted_anywhere() {
    let blank: Vec<SimDisk> = (0..NODES).map(|node| SimDisk::new(node as u64)).collect();
    let whole = {
        let disks: Vec<SimDisk> = blank.iter().map(SimDisk::copy).collect();
        open(&disks, Policy::Quorum, 1).unwrap().unwrap();
        counts(&disks)
    };
    let mut outcomes = 0;
    for disk in 0..NODES {
        for at in 0..whole[disk] {
            let disks: Vec<SimDisk> = blank.iter().map(SimDisk::copy).collect();
            disks[disk].crash_at(Some(at));
            assert!(open(&disks, Policy::Quorum, 1).is_none(), "the disk stops");
            let oracle = Oracle::new(SECTORS);
            let ran = Ran { disks, oracle, before: Vec::new(), after: Vec::new() };
            let pages = ran.pages();
            for left in [Left::None, Left::All] {
                outcomes += 1;
                let checked = ran.check(Policy::Quorum, &ran.left(&pages, left), None);
                checked
                    .unwrap_or_else(|error| panic!("disk {disk} stops at {at}, {left:?}: {error}"));
            }
        }
    }
    println!("{outcomes} outcomes of crashes while a volume is made");
}
