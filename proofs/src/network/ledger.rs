//! From an epoch's statements to what each node is worth and each farm has earned.
//!
//! A witness counts with what it says, a quorum of them with what each of it says at least; nothing is
//! averaged, so that two liars of seven change nothing. All is integer arithmetic: the emission is
//! shared to its last unit, and what can't be shared waits for the next epoch.

use std::collections::{BTreeMap, BTreeSet};

use hypha_chain::U256;

use super::bandwidth;
use super::epoch::{EpochData, RewardLeaf, VerdictLeaf};
use super::pool::Pool;
use super::roster::{Caps, Member, Roster};
use super::schedule::{DAY_SECS, EPOCH_SECS, Pulse};
use super::statement::{BandwidthVerdict, Content, Subject};
use super::witness::{Duty, drawn, is_measured, quorum};
use crate::verifier::PulseVerdict;
use crate::wire::{Input, WireError};

/// Epochs in which new capacity comes to count in full: seven days.
pub const RAMP_EPOCHS: u64 = 168;
/// Filler comes to count once this part of it has been proven for [`RAMP_EPOCHS`]: until then somebody has
/// made an extent of it again. The rest is for hours that were not answered, and for draws that differ.
const WAITED: (u64, u64) = (7, 8);
/// A measured bandwidth counts for so many epochs: thirty days.
const MEASURED_EPOCHS: u32 = 720;
/// A resource that inspectors found false counts nothing for so many epochs: thirty days.
pub const FALSE_EPOCHS: u32 = 720;
/// Bytes of a node's record.
pub(super) const RECORD_BYTES: usize = 8 + 4 + 4 + 4 + 4 + 8 + 2 * 8 * RESOURCES;
/// Processors, memory, disks, bandwidth.
const RESOURCES: usize = 4;
/// Where disks are among them.
const DISK: usize = 2;

/// What is the same in all epochs of a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// `Rewards.emission`: of an hour, in the token's smallest unit.
    pub emission: u128,
    /// `Rewards.cap`: of all time.
    pub cap: u128,
    /// Drawn bytes of a plot in a pulse, as `Rules` have it.
    pub disk_draws: u32,
    /// Of how many nodes in 1000 a pulse measures the bandwidth.
    pub measured_per_mille: u32,
    /// What capacities are worth.
    pub weights: Weights,
}

/// What a unit of each resource is worth against the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Weights {
    /// Of a logical processor.
    pub core: u64,
    /// Of a MiB of memory.
    pub mem_mib: u64,
    /// Of a MiB of disk. Which kind of disk it is, no pulse shows.
    pub disk_mib: u64,
    /// Of a Mbit/s.
    pub mbps: u64,
}

impl Weights {
    /// In the proportion of the stakes that the Registry asks for: a processor, four GiB, a fifth of
    /// a TiB; and a Gbit/s as a processor.
    pub const STANDARD: Self =
        Self { core: 1 << 22, mem_mib: 1 << 10, disk_mib: 20, mbps: (1 << 22) / 1000 };

    fn of(&self) -> [u64; RESOURCES] {
        [self.core, self.mem_mib, self.disk_mib, self.mbps]
    }
}

/// What one epoch leaves to the next.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ledger {
    /// The epoch that comes next.
    pub next: u32,
    /// Emission of earlier hours that nobody has earned: hours without a pulse, and what was left of a
    /// division.
    pub carry: u128,
    /// From node 1 on.
    nodes: Vec<Record>,
    /// What each farm has earned, from farm 1 on.
    farms: Vec<u128>,
}

/// What is kept of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Record {
    /// The end of the last epoch that it was proven in.
    proven_until: u64,
    /// Its last measured bandwidth, and when that was.
    mbps: u32,
    mbps_epoch: u32,
    /// Until which epoch its filler, and its tables, count nothing, since they were found false.
    false_filler: u32,
    false_table: u32,
    /// How long its filler has been there, in 1/168 of a MiB: it vests when that is nearly all of it.
    waited: u64,
    /// What of it counts, in 1/168 of a unit; of disks, filler.
    vested: [u64; RESOURCES],
    /// What it proved last.
    proven: [u64; RESOURCES],
}

/// What an epoch is closed with.
#[derive(Debug, Clone, Copy)]
pub struct Closing<'a> {
    /// Its number.
    pub epoch: u32,
    /// When it is over, in seconds since 1970.
    pub ends_secs: u64,
    /// All nodes and all farms that the Registry has then.
    pub counts: (u32, u32),
    /// Who took part.
    pub roster: &'a Roster,
    /// All its pulses.
    pub pulses: &'a [Pulse],
    /// Its statements, whose signatures were checked.
    pub pool: &'a Pool,
}

/// Why an epoch can't be closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CloseError {
    /// Epochs are closed one after the other.
    #[error("epoch {next} comes next, not {given}")]
    Order {
        /// The one that comes next.
        next: u32,
        /// The one that was to be closed.
        given: u32,
    },
    /// The Registry forgets nobody, so the counts were read too early.
    #[error("the Registry has fewer nodes or farms than before, or than take part")]
    Counts,
}

/// What a quorum found of a node in one pulse.
#[derive(Debug, Clone, Copy, Default)]
struct Proven {
    cores: u64,
    mem_mib: u64,
    disk_mib: u64,
    /// Of that, filler.
    idle_mib: u64,
}

/// What an epoch's pulses came to.
struct Results {
    /// How many pulses count.
    pulses: u16,
    /// For each member of the roster, what it proved in each pulse that counts and that it answered.
    proven: Vec<Vec<Proven>>,
    /// For each member that was measured, with what result.
    measured: BTreeMap<u32, Option<u32>>,
    /// Nodes whose filler, or (true) whose table, inspectors have found false.
    found_false: BTreeSet<(u32, bool)>,
}

impl Ledger {
    /// What of all emission a farm has earned, in the token's smallest unit.
    #[must_use]
    pub fn earned(&self, farm: u32) -> u128 {
        let index = farm.wrapping_sub(1) as usize;
        self.farms.get(index).copied().unwrap_or(0)
    }

    /// What all farms have earned.
    #[must_use]
    pub fn issued(&self) -> u128 {
        self.farms.iter().sum()
    }

    /// Goes on to an epoch without those before it: nothing was posted for them, so nobody has earned
    /// anything in them, and their emission waits.
    #[must_use]
    pub fn skip(&self, terms: &Terms, to: u32) -> Self {
        let hours = u128::from(to.saturating_sub(self.next));
        let most = terms.cap.saturating_sub(self.issued()).max(self.carry);
        let carry = self.carry.saturating_add(terms.emission.saturating_mul(hours)).min(most);
        Self { next: to.max(self.next), carry, ..self.clone() }
    }

    /// Closes an epoch. Everyone who has the same ledger, roster, pulses and statements makes the same
    /// of it.
    ///
    /// # Errors
    /// [`CloseError`].
    pub fn close(&self, terms: &Terms, closing: &Closing<'_>) -> Result<EpochData, CloseError> {
        let (nodes, farms) = (closing.counts.0 as usize, closing.counts.1 as usize);
        if closing.epoch != self.next {
            return Err(CloseError::Order { next: self.next, given: closing.epoch });
        }
        let last = closing.roster.members().last().map_or(0, |member| member.node as usize);
        let farm = closing.roster.members().iter().map(|it| it.farm as usize).max().unwrap_or(0);
        if nodes < self.nodes.len().max(last) || farms < self.farms.len().max(farm) {
            return Err(CloseError::Counts);
        }
        let mut next = self.clone();
        next.next = self.next.saturating_add(1);
        next.nodes.resize(nodes, Record::default());
        next.farms.resize(farms, 0);
        let mut results = self.results(terms, closing);
        let blank = (1_u32..).zip(&next.nodes);
        let blank = blank.map(|(node, record)| VerdictLeaf {
            node,
            proven_until: record.proven_until,
            ..VerdictLeaf::default()
        });
        let mut verdicts: Vec<VerdictLeaf> = blank.collect();
        let mut points = Vec::with_capacity(closing.roster.members().len());
        for (member, proven) in closing.roster.members().iter().zip(&mut results.proven) {
            let index = member.node.wrapping_sub(1) as usize;
            let (Some(record), Some(leaf)) = (next.nodes.get_mut(index), verdicts.get_mut(index))
            else {
                continue;
            };
            record.measure(results.measured.get(&member.node).copied(), closing.epoch);
            let is_false = |is_table| results.found_false.contains(&(member.node, is_table));
            record.distrust(is_false(false), is_false(true), closing.epoch, proven);
            (leaf.pulses, leaf.answered) = (results.pulses, proven.len() as u16);
            if !proven.is_empty() {
                record.proven_until = closing.ends_secs;
                leaf.caps = record.caps(member, proven);
            }
            leaf.proven_until = record.proven_until;
            if results.pulses > 0 {
                record.vest(&leaf.caps, median(proven, |it| it.idle_mib), &member.claimed);
            }
            points.push((member.farm, record.points(member, proven, &terms.weights)));
        }
        next.share(terms, &points);
        let rewards = (1_u32..).zip(&next.farms);
        let rewards = rewards.map(|(farm, sum)| RewardLeaf { farm, cumulative: *sum }).collect();
        let statements = closing.pool.digest();
        Ok(EpochData { epoch: closing.epoch, verdicts, rewards, statements, ledger: next })
    }

    /// Adds an hour's emission to what is there, and shares it.
    fn share(&mut self, terms: &Terms, points: &[(u32, u128)]) {
        let issued = self.issued();
        let left = terms.cap.saturating_sub(issued).saturating_sub(self.carry);
        let pot = self.carry.saturating_add(terms.emission.min(left));
        let all = points.iter().fold(U256::ZERO, |sum, (_, points)| sum + U256::from(*points));
        let mut paid = 0;
        if !all.is_zero() {
            for (farm, points) in points {
                let share = U256::from(pot) * U256::from(*points) / all;
                // No more than the pot, which has 128 bits.
                let share = u128::try_from(share).unwrap_or(0);
                if let Some(sum) = self.farms.get_mut(farm.wrapping_sub(1) as usize) {
                    *sum += share;
                    paid += share;
                }
            }
        }
        self.carry = pot - paid;
    }

    fn results(&self, terms: &Terms, closing: &Closing<'_>) -> Results {
        let members = closing.roster.members();
        let said = Said::of(closing.pool);
        let mut results = Results {
            pulses: 0,
            proven: vec![Vec::new(); members.len()],
            measured: BTreeMap::new(),
            found_false: BTreeSet::new(),
        };
        let starts = closing.ends_secs.saturating_sub(EPOCH_SECS);
        for pulse in closing.pulses {
            results.found_false.extend(said.found_false(closing.roster, pulse));
            let found: Vec<Option<Proven>> = members
                .iter()
                .map(|member| said.proven(closing.roster, pulse, member, terms.disk_draws))
                .collect();
            if !self.counts(members, &found, starts) {
                continue;
            }
            results.pulses = results.pulses.saturating_add(1);
            for (all, found) in results.proven.iter_mut().zip(found) {
                all.extend(found);
            }
            for member in members {
                if is_measured(&pulse.challenge, member.node, terms.measured_per_mille) {
                    let mbps = said.mbps(closing.roster, pulse, member);
                    results.measured.insert(member.node, mbps);
                }
            }
        }
        results
    }

    /// Whether a pulse counts: two thirds of those answered that were proven within a day. If nobody
    /// was, any answer will do.
    fn counts(&self, members: &[Member], found: &[Option<Proven>], starts: u64) -> bool {
        let recent = |member: &Member| {
            let record = self.nodes.get(member.node.wrapping_sub(1) as usize);
            record.is_some_and(|it| {
                it.proven_until > 0 && it.proven_until.saturating_add(DAY_SECS) >= starts
            })
        };
        let expected = members.iter().zip(found).filter(|(member, _)| recent(member));
        let (mut all, mut answered) = (0_u64, 0_u64);
        for (_, found) in expected {
            all += 1;
            answered += u64::from(found.is_some());
        }
        if all == 0 { found.iter().any(Option::is_some) } else { answered * 3 >= all * 2 }
    }

    pub(super) fn put(&self, out: &mut Vec<u8>) {
        out.extend(self.next.to_be_bytes());
        out.extend(self.carry.to_be_bytes());
        out.extend((self.nodes.len() as u32).to_be_bytes());
        for record in &self.nodes {
            out.extend(record.proven_until.to_be_bytes());
            out.extend(record.mbps.to_be_bytes());
            out.extend(record.mbps_epoch.to_be_bytes());
            out.extend(record.false_filler.to_be_bytes());
            out.extend(record.false_table.to_be_bytes());
            out.extend(record.waited.to_be_bytes());
            let counts = record.vested.iter().chain(&record.proven);
            counts.for_each(|count| out.extend(count.to_be_bytes()));
        }
        out.extend((self.farms.len() as u32).to_be_bytes());
        self.farms.iter().for_each(|sum| out.extend(sum.to_be_bytes()));
    }

    pub(super) fn read(input: &mut Input<'_>) -> Result<Self, WireError> {
        let (next, carry) = (input.u32()?, u128::from_be_bytes(input.array()?));
        let count = input.counted(RECORD_BYTES)?;
        let nodes = (0..count).map(|_| Record::read(input)).collect::<Result<_, _>>()?;
        let count = input.counted(16)?;
        let farms = (0..count)
            .map(|_| input.array().map(u128::from_be_bytes))
            .collect::<Result<Vec<_>, _>>()?;
        // Half of what a sum can hold: more than any cap, and one more hour still fits.
        let all = farms.iter().try_fold(carry, |sum, farm| sum.checked_add(*farm));
        if all.is_none_or(|all| all > u128::MAX / 2) {
            return Err(WireError::Length);
        }
        Ok(Self { next, carry, nodes, farms })
    }
}

impl Record {
    fn read(input: &mut Input<'_>) -> Result<Self, WireError> {
        let (proven_until, mbps, mbps_epoch) = (input.u64()?, input.u32()?, input.u32()?);
        let (false_filler, false_table, waited) = (input.u32()?, input.u32()?, input.u64()?);
        let mut counts = [[0; RESOURCES]; 2];
        for count in counts.iter_mut().flatten() {
            *count = input.u64()?;
        }
        let [vested, proven] = counts;
        let measured = Self { proven_until, mbps, mbps_epoch, ..Self::default() };
        Ok(Self { false_filler, false_table, waited, vested, proven, ..measured })
    }

    /// What a measurement changes. One that failed halves what counts; an old one is forgotten.
    fn measure(&mut self, result: Option<Option<u32>>, epoch: u32) {
        match result {
            Some(Some(mbps)) => (self.mbps, self.mbps_epoch) = (mbps, epoch),
            Some(None) => (self.mbps, self.mbps_epoch) = (self.mbps / 2, epoch),
            None if epoch.saturating_sub(self.mbps_epoch) > MEASURED_EPOCHS => self.mbps = 0,
            None => {}
        }
    }

    /// Takes what counts nothing out of what was proven; what was found false now begins anew
    /// afterwards.
    fn distrust(&mut self, filler: bool, table: bool, epoch: u32, proven: &mut [Proven]) {
        let [_, memory, disk, _] = &mut self.vested;
        if filler {
            (self.false_filler, *disk) = (epoch.saturating_add(FALSE_EPOCHS), 0);
            self.waited = 0;
        }
        if table {
            (self.false_table, *memory) = (epoch.saturating_add(FALSE_EPOCHS), 0);
        }
        for it in proven {
            if epoch < self.false_filler {
                (it.disk_mib, it.idle_mib) = (0, 0);
            }
            if epoch < self.false_table {
                it.mem_mib = 0;
            }
        }
    }

    /// What the leaf says that the node proved: of each resource the lower median of what it proved
    /// in its answers, and what is reserved stands as claimed.
    fn caps(&self, member: &Member, proven: &[Proven]) -> Caps {
        let (claimed, reserved) = (&member.claimed, &member.reserved);
        let cores = median(proven, |it| it.cores) + u64::from(reserved.cores);
        let mem_mib = median(proven, |it| it.mem_mib) + u64::from(reserved.mem_mib);
        let disk_mib = median(proven, |it| it.disk_mib);
        // Flash is what can't be the spinning disks that are claimed: no pulse tells them apart.
        let ssd_mib = disk_mib.saturating_sub(claimed.hdd_mib).min(claimed.ssd_mib);
        Caps {
            cores: u16::try_from(cores).unwrap_or(u16::MAX),
            mem_mib: u32::try_from(mem_mib).unwrap_or(u32::MAX),
            ssd_mib,
            hdd_mib: disk_mib - ssd_mib,
            mbps: self.mbps,
        }
    }

    /// New capacity comes to count over seven days, and goes as it came if it is not proven. Filler, which
    /// no pulse shows to be filler, has to be there for as long before.
    fn vest(&mut self, caps: &Caps, filler_mib: u64, claimed: &Caps) {
        let mut proven = caps.resources();
        // A user's data earns nothing, so it does not vest for filler that may come in its place.
        proven[DISK] = filler_mib;
        let (part, whole) = WAITED;
        let kept = self.vested.iter_mut().zip(&mut self.proven);
        let resources = proven.into_iter().zip(claimed.resources()).enumerate();
        for ((vested, last), (resource, (proven, claimed))) in kept.zip(resources) {
            let proven = proven.min(claimed);
            let mut may_grow = true;
            if resource == DISK {
                self.waited = ramp(self.waited, *last, proven);
                let all = u128::from(proven) * u128::from(RAMP_EPOCHS);
                may_grow = u128::from(self.waited) * u128::from(whole) >= all * u128::from(part);
            }
            let next = ramp(*vested, *last, proven);
            *vested = if may_grow { next } else { next.min(*vested) };
            if proven > 0 {
                *last = proven;
            }
        }
    }

    /// What the node's answers are worth.
    fn points(&self, member: &Member, proven: &[Proven], weights: &Weights) -> u128 {
        if member.stake < member.claimed.stake() {
            return 0;
        }
        let claimed = member.claimed.resources();
        let reserved = member.reserved.resources();
        let free: Vec<u64> =
            claimed.iter().zip(reserved).map(|(all, used)| all.saturating_sub(used)).collect();
        let line = u64::from(self.mbps).min(u64::from(member.claimed.mbps));
        let line = line.saturating_sub(member.reserved.mbps.into());
        let mut sum = 0_u128;
        for it in proven {
            let idle = [it.cores, it.mem_mib, it.idle_mib, line];
            let each = idle.iter().zip(&free).zip(self.vested.iter().zip(weights.of()));
            for ((idle, free), (vested, weight)) in each {
                let counts = idle.min(free).saturating_mul(RAMP_EPOCHS).min(*vested);
                sum += u128::from(counts) * u128::from(weight);
            }
        }
        sum
    }
}

impl Caps {
    fn resources(&self) -> [u64; RESOURCES] {
        let disk_mib = self.ssd_mib.saturating_add(self.hdd_mib);
        [self.cores.into(), self.mem_mib.into(), disk_mib, self.mbps.into()]
    }

    /// The stake that the Registry asks for such a claim, in the token's smallest unit.
    #[must_use]
    pub fn stake(&self) -> U256 {
        let disk_mib = u128::from(self.ssd_mib) + u128::from(self.hdd_mib);
        // In quarters of a token: 10 a node, 1 a core, a quarter a GiB, 5 a TiB.
        let quarters = 40
            + u128::from(self.cores) * 4
            + u128::from(self.mem_mib).div_ceil(1 << 10)
            + disk_mib.div_ceil(1 << 20) * 20;
        U256::from(quarters) * U256::from(250_000_000_000_000_000_u64)
    }
}

/// An epoch's statements by pulse and node.
struct Said<'a> {
    verdicts: BTreeMap<(u64, u32), Vec<(u32, &'a PulseVerdict)>>,
    lines: BTreeMap<(u64, u32), Vec<(u32, &'a BandwidthVerdict)>>,
    /// By pulse, node and whether it is a table: who found it false.
    found_false: BTreeMap<(u64, u32, bool), Vec<u32>>,
}

impl<'a> Said<'a> {
    fn of(pool: &'a Pool) -> Self {
        let mut said = Self {
            verdicts: BTreeMap::new(),
            lines: BTreeMap::new(),
            found_false: BTreeMap::new(),
        };
        for statement in pool.clear() {
            let Subject { node, when, author, .. } = statement.subject();
            match &statement.content {
                Content::Verdict(it) => {
                    said.verdicts.entry((when, node)).or_default().push((author, it));
                }
                Content::Bandwidth(it) => {
                    said.lines.entry((when, node)).or_default().push((author, it));
                }
                Content::Inspected(it) if !it.isTrue => {
                    said.found_false.entry((when, node, it.isTable)).or_default().push(author);
                }
                Content::Table(_) | Content::False(_) | Content::Inspected(_) => {}
            }
        }
        said
    }

    /// What a quorum of a node's witnesses found at least; `None` if that is nothing.
    fn proven(
        &self,
        roster: &Roster,
        pulse: &Pulse,
        member: &Member,
        disk_draws: u32,
    ) -> Option<Proven> {
        let verdicts = self.verdicts.get(&(pulse.challenge.pulse, member.node))?;
        let witnesses = drawn(roster, &pulse.challenge, Duty::Witness, member.node);
        let quorum = quorum(witnesses.len())?;
        let verdicts = verdicts.iter().filter(|(author, _)| witnesses.contains(author));
        let verdicts: Vec<&PulseVerdict> = verdicts.map(|(_, verdict)| *verdict).collect();
        let at_least = |of: &dyn Fn(&PulseVerdict) -> u64| {
            let mut values: Vec<u64> = verdicts.iter().map(|verdict| of(verdict)).collect();
            values.sort_unstable_by(|a, b| b.cmp(a));
            values.get(quorum - 1).copied().unwrap_or(0)
        };
        let idle = |it: &PulseVerdict| {
            let draws = u32::from(it.fillerDraws).min(disk_draws);
            let part = u128::from(it.diskMiB) * u128::from(draws) / u128::from(disk_draws.max(1));
            u64::try_from(part).unwrap_or(u64::MAX)
        };
        let proven = Proven {
            cores: at_least(&|it| it.threads.into()),
            mem_mib: at_least(&|it| it.memMiB.into()),
            disk_mib: at_least(&|it| it.diskMiB),
            idle_mib: at_least(&idle),
        };
        let something = proven.cores > 0 || proven.mem_mib > 0 || proven.disk_mib > 0;
        // All may be reserved: then it is enough that a quorum was answered.
        let answered = something || !member.is_asked() && verdicts.len() >= quorum;
        answered.then_some(proven)
    }

    /// Whose filler or table a quorum of the inspectors of a pulse found false.
    fn found_false(&self, roster: &Roster, pulse: &Pulse) -> Vec<(u32, bool)> {
        let number = pulse.challenge.pulse;
        let said = self.found_false.range((number, 0, false)..=(number, u32::MAX, true));
        let found = said.filter(|((_, node, _), authors)| {
            let inspectors = drawn(roster, &pulse.challenge, Duty::Inspector, *node);
            let agree = authors.iter().filter(|author| inspectors.contains(author)).count();
            quorum(inspectors.len()).is_some_and(|quorum| agree >= quorum)
        });
        found.map(|((_, node, is_table), _)| (*node, *is_table)).collect()
    }

    /// What a node's challengers measured together; `None` if too few agree.
    fn mbps(&self, roster: &Roster, pulse: &Pulse, member: &Member) -> Option<u32> {
        let lines = self.lines.get(&(pulse.challenge.pulse, member.node))?;
        let challengers = drawn(roster, &pulse.challenge, Duty::Challenger, member.node);
        let lines = lines.iter().filter(|(author, _)| challengers.contains(author));
        let lines: Vec<&BandwidthVerdict> = lines.map(|(_, line)| *line).collect();
        bandwidth::mbps(&lines, challengers.len(), member.claimed.mbps)
    }
}

/// An hour on the way to what is proven now: up by 1/168 of that, or down by 1/168 of what was proven last.
fn ramp(counts: u64, last: u64, proven: u64) -> u64 {
    let full = proven.saturating_mul(RAMP_EPOCHS);
    if full < counts {
        counts.saturating_sub(last).max(full)
    } else {
        counts.saturating_add(proven).min(full)
    }
}

/// The lower median of a value; 0 of nothing.
fn median(proven: &[Proven], of: impl Fn(&Proven) -> u64) -> u64 {
    let mut values: Vec<u64> = proven.iter().map(of).collect();
    values.sort_unstable();
    let middle = values.len().saturating_sub(1) / 2;
    values.get(middle).copied().unwrap_or(0)
}
