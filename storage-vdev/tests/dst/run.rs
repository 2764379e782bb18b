//! One run: a volume that is written, flushed, crashed, opened again and mended, and an oracle.

use storage_vdev::engine::{Command, OpenError, OpenOptions, Policy, RequestError};
use storage_vdev::files::sim::Rng;
use storage_vdev::sim_nodes::{Network, Shared, world};

use crate::faults::{Climate, Storm};
use crate::host::{Ended, Fair, Host, Shape, open};
use crate::oracle::{Oracle, SECTOR, stamps_of};

const SECTORS_PER_BLOCK: usize = 8;
const CAPACITY: u64 = 64 << 20;

/// What a run is to do.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) shape: Shape,
    pub(crate) network: Network,
    pub(crate) climate: Climate,
    /// The most damaged nodes at a time.
    pub(crate) budget: usize,
    /// Openings.
    pub(crate) rounds: usize,
    /// Bursts of requests in each.
    pub(crate) bursts: usize,
}

/// What a run came to, for the counts.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Outcome {
    pub(crate) trace: u64,
    pub(crate) openings: u64,
    pub(crate) host_crashes: u64,
    pub(crate) mends: u64,
    pub(crate) requests: u64,
    pub(crate) seals: u64,
    pub(crate) faults: u64,
}

pub(crate) struct Run {
    pub(crate) world: Shared,
    pub(crate) plan: Plan,
    pub(crate) rng: Rng,
    pub(crate) storm: Storm,
    pub(crate) oracle: Oracle,
    pub(crate) outcome: Outcome,
    snapshots: u64,
    created: bool,
}

/// Prints what was done to the nodes if the run fails.
pub(crate) struct Report {
    world: Shared,
    title: String,
}

impl Report {
    pub(crate) fn new(world: &Shared, title: String) -> Self {
        Self { world: world.clone(), title }
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        if std::thread::panicking() || std::env::var_os("HYPHA_SEED").is_some() {
            let log = self.world.try_borrow().map(|world| world.log().join("\n"));
            println!("{}\n{}", self.title, log.unwrap_or_default());
        }
    }
}

impl Run {
    pub(crate) fn new(seed: u64, plan: Plan) -> Self {
        let world = world(seed, plan.shape.nodes(), CAPACITY, plan.network);
        let mut rng = Rng::new(seed ^ 0x0001_5eed);
        let storm = Storm {
            rng: Rng::new(rng.next_u64()),
            climate: plan.climate,
            budget: plan.budget,
            damaged: std::collections::BTreeSet::new(),
            full: std::collections::BTreeMap::new(),
            register: plan.shape.register,
            faults: 0,
        };
        let oracle = Oracle::new(plan.shape.blocks * SECTORS_PER_BLOCK);
        let outcome = Outcome::default();
        Self { world, plan, rng, storm, oracle, outcome, snapshots: 0, created: false }
    }

    /// Everything that the plan says.
    pub(crate) fn go(&mut self) {
        for _ in 0..self.plan.rounds {
            self.round();
        }
        self.mend();
        let world = self.world.borrow();
        assert_eq!(world.ledger().reuse(), None, "a key and a nonce were used twice");
        self.outcome.trace = world.trace();
        self.outcome.seals = world.ledger().seals() as u64;
        self.outcome.faults = self.storm.faults;
    }

    fn options(&self) -> OpenOptions {
        self.plan.shape.options(1, !self.created)
    }

    fn note(&self, line: &str) {
        self.world.borrow_mut().note(line);
    }

    /// An opening, with whatever happens until the host crashes or closes the volume.
    fn round(&mut self) {
        let Some(mut host) = self.open_in_storm() else { return };
        match self.serve(&mut host) {
            Ok(()) => {}
            Err(Ended::Crashed) => self.outcome.host_crashes += 1,
            // Nothing was lost by that: the next opening is checked for it.
            Err(Ended::Failed(RequestError::NoSpace)) if self.plan.climate.full > 0 => {
                self.note("the host gives up, because nodes are full");
                self.outcome.host_crashes += 1;
            }
            Err(Ended::Failed(error)) => self.failed(&error),
        }
    }

    /// A request failed though the faults are within the budget.
    fn failed(&self, error: &RequestError) {
        let storm = &self.storm.damaged;
        panic!("a request failed with only nodes {storm:?} damaged: {error}");
    }

    /// Opens while things go wrong; an opening may fail then, but not once they have stopped.
    fn open_in_storm(&mut self) -> Option<Host> {
        let options = self.options();
        let mut rng = Rng::new(self.rng.next_u64());
        self.outcome.openings += 1;
        self.note("the volume is opened");
        let opened = match open(&self.world, options, &mut rng, &mut self.storm) {
            None => {
                self.outcome.host_crashes += 1;
                return None;
            }
            Some(Ok(host)) => Ok(host),
            Some(Err(error)) => {
                self.note(&format!("it can't be opened: {error}"));
                self.open_fair()
            }
        };
        let mut host = opened.unwrap_or_else(|error| {
            panic!("can't be opened with nodes {:?} damaged: {error}", self.storm.damaged)
        });
        self.created = true;
        self.verify(&mut host).then_some(host)
    }

    /// Opens while nothing new goes wrong.
    fn open_fair(&mut self) -> Result<Host, OpenError> {
        // Everything that goes wrong has to have been noticed once.
        let later_ns = self.world.borrow().now_ns() + 20_000_000_000;
        self.world.borrow_mut().run_until(later_ns);
        if !self.created {
            // To be made, it needs all nodes.
            self.storm.clear(&self.world);
        }
        self.storm.make_room(&self.world, true);
        let opened = self.open_now(false);
        match opened {
            Err(OpenError::JournalLost) if self.may_lose_journal() => {
                self.note("the only journal is gone, and that is accepted");
                self.open_now(true)
            }
            // It is not gone, but can't be reached.
            Err(OpenError::JournalLost) if self.plan.shape.policy == Policy::Local => {
                self.storm.clear(&self.world);
                self.open_now(false)
            }
            opened => opened,
        }
    }

    fn open_now(&mut self, accept_loss: bool) -> Result<Host, OpenError> {
        let options = OpenOptions { accept_loss, ..self.options() };
        let mut rng = Rng::new(self.rng.next_u64());
        self.outcome.openings += 1;
        self.note("the volume is opened in fair weather");
        open(&self.world, options, &mut rng, &mut Fair).expect("the host does not crash")
    }

    /// Whether flushes were durable on one node alone, and that has lost or damaged something.
    fn may_lose_journal(&self) -> bool {
        let local = self.plan.shape.policy == Policy::Local;
        local && self.plan.climate.losses && self.storm.damaged.contains(&0)
    }

    /// A volume as it was opened is checked for what it must still have.
    fn check_opened(&mut self, content: &[u8]) {
        if self.may_lose_journal() {
            self.oracle.forgive_flushes();
        }
        self.oracle.check_crash(content).unwrap_or_else(|error| panic!("{error}"));
    }

    /// Checks the whole volume against the oracle; `false`: the host crashed meanwhile.
    fn verify(&mut self, host: &mut Host) -> bool {
        self.follow_size(host);
        match host.content(&mut self.storm) {
            Ok(content) => {
                self.check_opened(&content);
                true
            }
            Err(Ended::Crashed) => false,
            Err(Ended::Failed(error)) => {
                self.failed(&error);
                false
            }
        }
    }

    fn follow_size(&mut self, host: &Host) {
        let sectors = usize::try_from(host.volume.size_bytes()).unwrap() / SECTOR;
        assert!(sectors >= self.oracle.sectors(), "the volume has become smaller");
        self.oracle.grow(sectors);
    }

    fn serve(&mut self, host: &mut Host) -> Result<(), Ended> {
        for _ in 0..self.plan.bursts {
            let action = self.rng.below(100);
            if action > 92 {
                self.note(&format!("action {action}"));
            }
            match action {
                0..=79 => self.burst(host)?,
                80..=86 => {
                    let until_ns = self.world.borrow().now_ns() + self.rng.below(4_000_000_000);
                    host.run(&mut self.oracle, &mut self.storm, Some(until_ns))?;
                }
                87..=92 => self.snapshot_or_back(host)?,
                93 => self.grow(host)?,
                94..=95 => host.command(&mut self.oracle, &mut self.storm, Command::Checkpoint)?,
                96..=97 => host.command(&mut self.oracle, &mut self.storm, Command::Collect)?,
                98 => host.command(&mut self.oracle, &mut self.storm, Command::Repair)?,
                _ => host.command(&mut self.oracle, &mut self.storm, Command::Scrub)?,
            }
        }
        if self.rng.below(3) == 0 {
            self.note("the volume is closed");
            return host.close(&mut self.oracle, &mut self.storm);
        }
        self.outcome.host_crashes += 1;
        Ok(())
    }

    /// Some requests at once, and then all of their completions.
    fn burst(&mut self, host: &mut Host) -> Result<(), Ended> {
        for _ in 0..1 + self.rng.below(6) {
            self.outcome.requests += 1;
            let range = self.range();
            match self.rng.below(20) {
                0..=8 => host.write(&mut self.oracle, range, false),
                9..=10 => host.write(&mut self.oracle, range, true),
                11..=12 => host.zero(&mut self.oracle, range),
                13..=15 => host.flush(&self.oracle),
                _ => host.read(&self.oracle, range.0, range.1),
            }
        }
        host.run(&mut self.oracle, &mut self.storm, None)
    }

    /// A range of sectors: mostly whole blocks, now and then many.
    fn range(&mut self) -> (usize, usize) {
        let sectors = self.oracle.sectors();
        let blocks = sectors / SECTORS_PER_BLOCK;
        let below = |rng: &mut Rng, bound: usize| rng.below(bound as u64) as usize;
        let rng = &mut self.rng;
        match rng.below(10) {
            0..=2 => {
                let first = below(rng, sectors);
                (first, 1 + below(rng, (sectors - first).min(20)))
            }
            3 => {
                let first = below(rng, blocks);
                let count = 1 + below(rng, (blocks - first).min(30));
                (first * SECTORS_PER_BLOCK, count * SECTORS_PER_BLOCK)
            }
            _ => {
                // Some blocks are hotter than others.
                let hot = if rng.below(2) == 0 { blocks } else { blocks.min(6) };
                let first = below(rng, hot);
                let count = 1 + below(rng, (blocks - first).min(4));
                (first * SECTORS_PER_BLOCK, count * SECTORS_PER_BLOCK)
            }
        }
    }

    fn snapshot_or_back(&mut self, host: &mut Host) -> Result<(), Ended> {
        let names: Vec<String> = self.oracle.snapshots.keys().cloned().collect();
        let pick =
            (!names.is_empty()).then(|| names[self.rng.below(names.len() as u64) as usize].clone());
        let (oracle, storm) = (&mut self.oracle, &mut self.storm);
        match (self.rng.below(3), pick) {
            (0, Some(name)) => {
                let change = oracle.roll_back(&name);
                host.command(oracle, storm, Command::Rollback { name })?;
                oracle.done(change);
                oracle.flushed(change + 1);
            }
            (1, Some(name)) if names.len() > 2 => {
                oracle.snapshots.remove(&name);
                host.command(oracle, storm, Command::DeleteSnapshot { name })?;
            }
            _ => {
                self.snapshots += 1;
                let name = format!("s{}", self.snapshots);
                let stamps = oracle.newest();
                let covers = oracle.submitted();
                let command = Command::Snapshot { name: name.clone(), unix_time: 0 };
                host.command(oracle, storm, command)?;
                oracle.snapshots.insert(name, stamps);
                oracle.flushed(covers);
            }
        }
        Ok(())
    }

    fn grow(&mut self, host: &mut Host) -> Result<(), Ended> {
        let size_bytes = host.volume.size_bytes() + (1 + self.rng.below(600)) * 4096;
        if size_bytes > 4 << 20 {
            return Ok(());
        }
        host.command(&mut self.oracle, &mut self.storm, Command::Grow { size_bytes })?;
        self.follow_size(host);
        Ok(())
    }

    /// All nodes are put in order, and the volume puts on them what they should have: from then on
    /// any m may be damaged again.
    pub(crate) fn mend(&mut self) {
        self.storm.clear(&self.world);
        let mut fair = Fair;
        let opened = self.open_fair();
        let mut host =
            opened.unwrap_or_else(|error| panic!("can't be opened to be mended: {error}"));
        self.created = true;
        self.follow_size(&host);
        let content = host.content(&mut fair).unwrap();
        self.check_opened(&content);
        // Closed, so that nothing is only in the journal of a node that had been damaged.
        host.close(&mut self.oracle, &mut fair).unwrap();
        drop(host);
        let mut host = self.open_fair().unwrap();
        host.command(&mut self.oracle, &mut fair, Command::Scrub).unwrap();
        // A node that seemed to be down just then is probed, and repaired when it is up.
        let all = (Some(u32::from(self.plan.shape.m)), 0, false);
        let mended = |host: &Host| {
            let status = host.status();
            (status.redundancy, status.segments_degraded, status.policy_degraded) == all
        };
        for _ in 0..12 {
            if mended(&host) {
                break;
            }
            let until_ns = self.world.borrow().now_ns() + 5_000_000_000;
            host.run(&mut self.oracle, &mut fair, Some(until_ns)).unwrap();
            host.command(&mut self.oracle, &mut fair, Command::Repair).unwrap();
        }
        assert!(mended(&host), "not mended after a minute: {:?}", host.status());
        let content = host.content(&mut fair).unwrap();
        self.oracle.check_crash(&content).unwrap_or_else(|error| panic!("{error}"));
        self.check_snapshots(&mut host);
        self.storm.damaged.clear();
        self.outcome.mends += 1;
        host.close(&mut self.oracle, &mut fair).unwrap();
    }

    /// Rolls back to a snapshot and forth again, and compares all of it.
    fn check_snapshots(&mut self, host: &mut Host) {
        let Some((name, expected)) = self.oracle.snapshots.iter().next_back() else { return };
        let (name, expected) = (name.clone(), expected.clone());
        let mut fair = Fair;
        let change = self.oracle.roll_back(&name);
        host.command(&mut self.oracle, &mut fair, Command::Rollback { name }).unwrap();
        self.oracle.done(change);
        self.oracle.flushed(change + 1);
        let content = host.content(&mut fair).unwrap();
        let mut expected = expected;
        expected.resize(content.len() / SECTOR, 0);
        self.oracle.check_exact(&expected, &content).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(stamps_of(&content).unwrap(), self.oracle.newest());
    }
}
