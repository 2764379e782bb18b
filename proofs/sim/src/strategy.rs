//! Who takes part: honest machines, and every cheater as code that answers the real verifier.

use fastrand::Rng;
use hypha_proofs::Challenge;
use hypha_proofs::network::ledger::Weights;
use hypha_proofs::prover::sign_answer;

use crate::hardware::{Hardware, Load, SECOND};
use crate::liar::{Lie, Parts, Reply, leaves, states, walk};
use crate::machine::{Claims, Filling, LEAVES, Machine, RULES, THREADS, challenge};

/// Labels of a standard extent of filler.
const EXTENT_LABELS: f64 = (1_u64 << 25) as f64;
/// How soon a machine that is rented when the pulse is known has booted: the fastest that there is.
const BOOT_NS: u64 = 6 * SECOND;

/// How a node, or several that are one in truth, play.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Strategy {
    /// It has what it claims, and answers with the real prover.
    Honest(Claims),
    /// It has lost a sector, has not noticed, and answers without its disk once it does.
    LostSector,
    /// So many identities that each claim the whole of one machine.
    Sybils(u32),
    /// Two nodes over one disk: the second one commits to the first one's extents.
    SharedDisk,
    /// It has dropped so many thousandths of its filler.
    Missing(u32),
    /// The same, but it keeps some labels of lower layers and makes missing leaves again in time.
    Rebuilding {
        /// Thousandths of the leaves that it has dropped.
        dropped: u32,
        /// Labels to make for one leaf, and the longest chain of them, against an extent's.
        work: f64,
        /// The longest chain of them, likewise.
        depth: f64,
        /// What it makes them on.
        hardware: Hardware,
        /// Whether the cost is that of the real graph, and not of the design's.
        real: bool,
    },
    /// It claims so many per cent more units than are proposed for its hardware, and computes them all.
    Claiming(u32, Hardware),
    /// It leaves out so many of 60 segments of each chain.
    Skipping(u64),
    /// It shows the chains of the pulse before, computed at leisure.
    Precomputed,
    /// It sends its answer to the pulse before again, under the new number.
    Replayed,
    /// So many thousandths of its table are on flash.
    OnFlash(u32),
    /// So many thousandths of its table are nowhere.
    ShortTable(u32),
    /// It rents the machine when it knows of the pulse.
    Rented,
    /// Its filler is made of a cheap hash, of which it keeps nothing.
    CheapFiller,
    /// The same, said to be a user's data.
    SelfDealing,
    /// It produces the embedded chain's blocks, knows each pulse beforehand, and answers for so many
    /// machines with one.
    Foreseeing(u32),
    /// The same, but pulses are of drand's rounds, which it learns when everybody does.
    Drand(u32),
}

/// One answer, and when it is ready after its node heard of the pulse.
pub struct Played<'a> {
    /// Which of the identities.
    pub machine: &'a Machine,
    /// The answer; `None` if there is none.
    pub reply: Option<Reply<'a>>,
    /// When, in nanoseconds.
    pub ready_ns: u64,
}

/// A strategy with its machines.
pub struct Player {
    strategy: Strategy,
    machines: Vec<Machine>,
    /// Which leaves, labels or segments are not there.
    missing: Vec<bool>,
    seed: u64,
}

impl Strategy {
    /// What it claims.
    #[must_use]
    pub fn claims(&self) -> Claims {
        match self {
            Self::Honest(claims) => *claims,
            Self::LostSector | Self::Sybils(_) | Self::Rented => Claims::ALL,
            Self::Foreseeing(_) | Self::Drand(_) => Claims::ALL,
            Self::SharedDisk
            | Self::Missing(_)
            | Self::Rebuilding { .. }
            | Self::CheapFiller
            | Self::SelfDealing => Claims::DISK,
            Self::Claiming(..) | Self::Skipping(_) | Self::Precomputed | Self::Replayed => {
                Claims::CPU
            }
            Self::OnFlash(_) | Self::ShortTable(_) => Claims::MEM,
        }
    }

    /// How many units each of its nodes claims.
    #[must_use]
    pub fn units(&self) -> u16 {
        let Claims { cpu, mem, .. } = self.claims();
        match self {
            Self::Claiming(more, hardware) => {
                let all = u32::from(hardware.units(0)) * (100 + more);
                u16::try_from(all.div_ceil(100)).unwrap_or(u16::MAX)
            }
            _ if cpu => Hardware::USUAL.units(mem.into()),
            _ => 0,
        }
    }

    /// Whether it has what it claims and claims what is proposed.
    #[must_use]
    pub fn is_honest(&self) -> bool {
        matches!(self, Self::Honest(_) | Self::LostSector | Self::Claiming(0, _))
    }

    /// How many nodes it poses as.
    #[must_use]
    pub fn identities(&self) -> u32 {
        match self {
            Self::Sybils(count) | Self::Foreseeing(count) | Self::Drand(count) => *count,
            Self::SharedDisk => 2,
            _ => 1,
        }
    }

    /// What it has of what one of its identities claims; 0 for nothing worth counting. Flash in the place of
    /// memory counts as what it would earn as a disk.
    #[must_use]
    pub fn has(&self) -> f64 {
        let without = |thousandths: u32| 1.0 - f64::from(thousandths) / 1000.0;
        match self {
            Self::Missing(gone) | Self::ShortTable(gone) => without(*gone),
            Self::OnFlash(part) => {
                let Weights { mem_mib, disk_mib, .. } = Weights::STANDARD;
                without(*part) + (1.0 - without(*part)) * disk_mib as f64 / mem_mib as f64
            }
            Self::Rebuilding { dropped, .. } => without(*dropped),
            Self::Skipping(skipped) => 1.0 - *skipped as f64 / RULES.segments as f64,
            Self::Replayed | Self::Precomputed | Self::Rented => 0.0,
            Self::CheapFiller | Self::SelfDealing => 0.0,
            _ => 1.0,
        }
    }

    /// What it is called in tables.
    #[must_use]
    pub fn name(&self) -> String {
        let percent = |thousandths: &u32| f64::from(*thousandths) / 10.0;
        match self {
            Self::Honest(Claims::ALL) => "honest".to_owned(),
            Self::Honest(_) => "honest, one resource".to_owned(),
            Self::LostSector => "honest, a sector lost".to_owned(),
            Self::Sybils(count) => format!("{count} identities on one box"),
            Self::SharedDisk => "one disk for two nodes".to_owned(),
            Self::Missing(gone) => format!("{} % of the disk missing", percent(gone)),
            Self::Rebuilding { dropped, hardware, real, .. } => {
                let graph = if *real { "" } else { ", the design's graph" };
                let cores = hardware.cores;
                format!("{} % dropped, made again on {cores} cores{graph}", percent(dropped))
            }
            Self::Claiming(more, hardware) => {
                let (units, proposed) = (self.units(), hardware.units(0));
                let of = if *more == 0 { String::new() } else { format!(", {proposed} proposed") };
                let Hardware { cores, hash_ns, .. } = hardware;
                format!("{units} units on {cores} threads{of}, {hash_ns} ns a hash")
            }
            Self::Skipping(skipped) => format!("{skipped} of 60 segments skipped"),
            Self::Precomputed => "chains computed beforehand".to_owned(),
            Self::Replayed => "the last answer again".to_owned(),
            Self::OnFlash(part) => format!("{} % of the table on flash", percent(part)),
            Self::ShortTable(gone) => format!("{} % of the table missing", percent(gone)),
            Self::Rented => "rented at the pulse".to_owned(),
            Self::CheapFiller => "cheap bytes as filler".to_owned(),
            Self::SelfDealing => "cheap bytes as a user's".to_owned(),
            Self::Foreseeing(count) => {
                format!("the producer as {count} nodes, embedded chain without drand")
            }
            Self::Drand(count) => format!("the producer as {count} nodes, rounds of drand"),
        }
    }
}

impl Player {
    /// The machines of a strategy, their nodes numbered from `node` on.
    #[must_use]
    pub fn new(strategy: Strategy, node: u32, seed: u64) -> Self {
        let filling = match strategy {
            Strategy::CheapFiller => Filling::Cheap,
            Strategy::SelfDealing => Filling::CheapUser,
            _ => Filling::Own,
        };
        let one = |index: u32| {
            let shared = strategy == Strategy::SharedDisk && index > 0;
            let filling = if shared { Filling::Of(node) } else { filling };
            Machine::new(node + index, strategy.claims(), filling)
        };
        let mut rng = Rng::with_seed(seed);
        // As many as are said, at places that chance chooses.
        let (gone, all) = match strategy {
            Strategy::Missing(gone) => (gone as usize * LEAVES / 1000, LEAVES),
            Strategy::Rebuilding { dropped, .. } => (dropped as usize * LEAVES / 1000, LEAVES),
            Strategy::LostSector => (1, LEAVES),
            Strategy::Skipping(skipped) => (skipped as usize, RULES.segments as usize),
            Strategy::ShortTable(gone) | Strategy::OnFlash(gone) => (gone as usize, 1000),
            _ => (0, 0),
        };
        let mut missing: Vec<bool> = (0..all).map(|at| at < gone).collect();
        rng.shuffle(&mut missing);
        Self { strategy, machines: (0..strategy.identities()).map(one).collect(), missing, seed }
    }

    /// The question of a pulse to these machines.
    #[must_use]
    pub fn challenge(&self, pulse: u64) -> Challenge {
        challenge(self.seed, pulse)
    }

    /// All identities' answers to a pulse.
    #[must_use]
    pub fn play(&self, pulse: u64) -> Vec<Played<'_>> {
        let challenge = self.challenge(pulse);
        let machines = self.machines.iter().enumerate();
        machines.map(|(index, machine)| self.play_one(index as u32, machine, &challenge)).collect()
    }

    /// The answer of its first identity to any challenge; `None` if it has no machine.
    #[must_use]
    pub fn answer(&self, challenge: &Challenge) -> Option<Played<'_>> {
        Some(self.play_one(0, self.machine()?, challenge))
    }

    /// Its first identity's machine.
    #[must_use]
    pub fn machine(&self) -> Option<&Machine> {
        self.machines.first()
    }

    fn play_one<'a>(&self, index: u32, machine: &'a Machine, it: &Challenge) -> Played<'a> {
        let pulse = machine.binding.pulse(it);
        let (usual, units) = (Hardware::USUAL, u32::from(self.strategy.units()));
        let (walks, reads) =
            (u32::from(machine.claims.mem), if machine.claims.disk { 64 } else { 0 });
        let load = Load { chains: units, walks, reads, ..Load::default() };
        let honest = usual.pulse_ns(&load);
        let (reply, ready_ns) = match self.strategy {
            Strategy::Honest(_) | Strategy::SharedDisk => (truth(machine, it, |_| false), honest),
            // What they are is not looked at in a pulse: the prover reads what it is asked for.
            Strategy::CheapFiller | Strategy::SelfDealing => {
                (truth(machine, it, |_| false), honest)
            }
            Strategy::LostSector => (truth(machine, it, |at| self.is_missing(at)), honest),
            Strategy::Sybils(_) | Strategy::Drand(_) => {
                // One after the other; the box has memory and disk for the first.
                let count = index + 1;
                let load = Load { chains: units * count, walks: walks * count, ..load };
                let gone = |_| index > 0;
                (Some(self.lie(machine, it, gone)), usual.pulse_ns(&load))
            }
            Strategy::Missing(_) => (Some(self.lie(machine, it, |at| self.is_missing(at))), honest),
            Strategy::Rebuilding { work, depth, hardware, .. } => {
                let (shown, rebuilt) = leaves(machine, it, |at| self.is_missing(at));
                drop(shown);
                let load = Load {
                    chains: hardware.cores,
                    labels: f64::from(rebuilt) * work * EXTENT_LABELS,
                    labels_in_a_row: if rebuilt > 0 { depth * EXTENT_LABELS } else { 0.0 },
                    ..Load::default()
                };
                (truth(machine, it, |_| false), hardware.pulse_ns(&load))
            }
            Strategy::Claiming(_, hardware) => {
                (truth(machine, it, |_| false), hardware.pulse_ns(&load))
            }
            Strategy::Skipping(_) => {
                let skips = |index: u64| self.is_missing(index as usize);
                let chains = (0..THREADS).map(|thread| states(&pulse, thread, skips)).collect();
                (Some(lie(machine, it, Parts { chains, ..Parts::default() })), honest)
            }
            Strategy::Precomputed => {
                let before = machine.binding.pulse(&self.challenge(it.pulse.wrapping_sub(1)));
                let none = |_| false;
                let chains = (0..THREADS).map(|thread| states(&before, thread, none)).collect();
                (Some(lie(machine, it, Parts { chains, ..Parts::default() })), 0)
            }
            Strategy::Replayed => {
                (replayed(machine, &self.challenge(it.pulse.wrapping_sub(1)), it), 0)
            }
            Strategy::OnFlash(part) => {
                let load = Load { on_flash: f64::from(part) / 1000.0, ..load };
                (truth(machine, it, |_| false), usual.pulse_ns(&load))
            }
            Strategy::ShortTable(_) => {
                let gone = |label: u64| self.is_missing((label % 1000) as usize);
                let states = walk(&pulse, &machine.labels, gone);
                (Some(lie(machine, it, Parts { walk: Some(states), ..Parts::default() })), honest)
            }
            Strategy::Rented => (truth(machine, it, |_| false), BOOT_NS + honest),
            Strategy::Foreseeing(_) => (truth(machine, it, |_| false), 0),
        };
        Played { machine, reply, ready_ns }
    }

    fn is_missing(&self, at: usize) -> bool {
        self.missing.get(at).copied().unwrap_or(false)
    }

    /// All chains computed; of memory and disk, what is not `gone`.
    fn lie<'a>(
        &self,
        machine: &'a Machine,
        it: &Challenge,
        gone: impl Fn(usize) -> bool,
    ) -> Reply<'a> {
        let pulse = machine.binding.pulse(it);
        let chains = (0..machine.threads()).map(|thread| states(&pulse, thread, |_| false));
        let states = || walk(&pulse, &machine.labels, |_| gone(0));
        let parts = Parts {
            chains: chains.collect(),
            walk: machine.claims.mem.then(states),
            leaves: machine.claims.disk.then(|| leaves(machine, it, &gone).0),
        };
        lie(machine, it, parts)
    }
}

fn lie<'a>(machine: &'a Machine, it: &Challenge, parts: Parts) -> Reply<'a> {
    Reply::Lie(Box::new(Lie::new(machine, it, parts)))
}

/// What the real prover makes of what is there. If the disk has lost what was drawn, it proves the rest.
fn truth<'a>(
    machine: &'a Machine,
    it: &Challenge,
    gone: impl Fn(usize) -> bool,
) -> Option<Reply<'a>> {
    let work = |prover: &hypha_proofs::prover::Prover<'_>| {
        let mut work = prover.begin(it).ok()?;
        work.chains.iter_mut().for_each(|chain| while chain.advance(u64::MAX) > 0 {});
        if let Some(walk) = &mut work.walk {
            while walk.advance(&machine.table, u64::MAX) > 0 {}
        }
        Some(work)
    };
    let mut prover = machine.prover();
    let done = work(&prover)?;
    let groups = machine.read(&done, gone);
    if let Ok(answer) = prover.commit(it, done, &groups) {
        return Some(Reply::True(Box::new(answer), machine));
    }
    prover.store = None;
    let answer = prover.commit(it, work(&prover)?, &[]).ok()?;
    Some(Reply::True(Box::new(answer), machine))
}

fn replayed<'a>(machine: &'a Machine, before: &Challenge, it: &Challenge) -> Option<Reply<'a>> {
    let reply = truth(machine, before, |_| false)?;
    let mut signed = reply.commitment();
    signed.commitment.pulse = it.pulse;
    signed.signature = sign_answer(&machine.binding, &signed.commitment, &machine.key);
    Some(Reply::Again(Box::new(reply), signed))
}
