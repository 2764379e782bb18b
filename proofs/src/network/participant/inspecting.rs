//! Extents of other nodes, made again: one of a node that this one watches, now and then; and those that
//! others have found false, if this one is drawn to inspect them. One at a time, in the background.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use hypha_chain::B256;
use hypha_chain::tree::ExtentPath;

use super::{Action, Moment, Ongoing, Participant};
use crate::network::schedule::{Pulse, day_at};
use crate::network::statement::{Content, Finding, Inspection};
use crate::network::witness::{Duty, WITNESSES, drawn};
use crate::regenerate::Regeneration;
use crate::store::PlotRecord;
use crate::verifier::Claim;
use crate::wire::Opening;
use crate::{disk, draw, ram};

/// How many inspections wait at most.
const QUEUE_MAX: usize = 32;
/// Work that has not ended after this is taken to be lost, in nanoseconds.
const LOST_NS: u64 = 6 * 3_600_000_000_000;
/// How long a false extent is held against its node, and a false finding against its author.
const MONTH_NS: u64 = 30 * 86_400_000_000_000;

/// What an extent is made again for.
enum Purpose {
    /// To see whether a node that was watched has what it shows.
    Watch { pulse: u64, way: ExtentPath },
    /// To say whether a finding of an author is right.
    Inspect { pulse: u64, author: u32 },
}

struct Task {
    node: u32,
    is_table: bool,
    purpose: Purpose,
}

/// What is made again, and what is to be.
#[derive(Default)]
pub(super) struct Inspecting {
    running: Option<(Task, u64)>,
    queue: VecDeque<(Task, Box<Regeneration>)>,
    /// By pulse, node and whether it is a table; with the author.
    findings: BTreeMap<(u64, u32, bool), (u32, Finding)>,
    inspected: BTreeSet<(u64, u32, bool)>,
    /// Authors of false findings, and until when nothing is done for them.
    slanderers: BTreeMap<u32, u64>,
    /// What an ended task has led to, for the next tick.
    done: Vec<Action>,
}

impl Inspecting {
    /// Forgets pulses before this one.
    pub(super) fn keep_from(&mut self, pulse: u64) {
        self.findings.retain(|(it, ..), _| *it >= pulse);
        self.inspected.retain(|(it, ..)| *it >= pulse);
    }

    pub(super) fn has_work(&self) -> bool {
        !self.done.is_empty() || self.running.is_none() && !self.queue.is_empty()
    }

    fn is_idle(&self) -> bool {
        self.running.is_none() && self.queue.is_empty()
    }
}

impl Participant {
    /// Whether an extent that was to be made again was what it is said to be. A false one is held
    /// against its node for a month: this node's verdicts say that nothing of that kind is proven, and
    /// all hear of it.
    pub fn on_regenerated(&mut self, node: u32, is_table: bool, is_true: bool, moment: &Moment) {
        let until = moment.now_ns.saturating_add(MONTH_NS);
        if !is_true {
            self.distrusted.insert((node, is_table), until);
        }
        let is_it = |(task, _): &mut (Task, u64)| (task.node, task.is_table) == (node, is_table);
        let Some((task, _)) = self.inspecting.running.take_if(is_it) else { return };
        let content = match task.purpose {
            Purpose::Watch { .. } if is_true => return,
            Purpose::Watch { pulse, way } => Content::False(Finding { node, pulse, is_table, way }),
            Purpose::Inspect { pulse, author } => {
                if is_true {
                    self.inspecting.slanderers.insert(author, until);
                }
                Content::Inspected(Inspection { node, pulse, isTable: is_table, isTrue: is_true })
            }
        };
        let mut done = std::mem::take(&mut self.inspecting.done);
        self.say(content, moment, &mut done);
        self.inspecting.done.append(&mut done);
    }

    /// Hands out what has ended and what is next.
    pub(super) fn tick_inspecting(&mut self, moment: &Moment, out: &mut Vec<Action>) {
        out.append(&mut self.inspecting.done);
        self.inspecting.slanderers.retain(|_, until| moment.now_ns < *until);
        let lost = |(_, since): &mut (Task, u64)| moment.now_ns.saturating_sub(*since) > LOST_NS;
        self.inspecting.running.take_if(lost);
        if self.inspecting.running.is_none()
            && let Some((task, job)) = self.inspecting.queue.pop_front()
        {
            out.push(Action::Regenerate { node: task.node, is_table: task.is_table, job });
            self.inspecting.running = Some((task, moment.now_ns));
        }
    }

    /// A checked finding: whoever is drawn by the pulse behind it makes the extent again.
    pub(super) fn on_finding(&mut self, author: u32, finding: &Finding, moment: &Moment) {
        let place = (finding.pulse, finding.node, finding.is_table);
        let kept = self.inspecting.findings.entry(place);
        kept.or_insert_with(|| (author, finding.clone()));
        let next = self.epochs.range(finding.pulse.saturating_add(1)..).next();
        if let Some(pulse) = next.and_then(|(pulse, epoch)| self.pulse(*pulse, *epoch)) {
            self.inspect(&pulse, place, moment);
        }
    }

    /// A pulse draws who inspects what was found in the pulse before it.
    pub(super) fn draw_inspectors(&mut self, pulse: &Pulse, moment: &Moment) {
        let Some((before, _)) = self.epochs.range(..pulse.challenge.pulse).next_back() else {
            return;
        };
        let places = (*before, 0, false)..=(*before, u32::MAX, true);
        let places: Vec<_> = self.inspecting.findings.range(places).map(|(it, _)| *it).collect();
        for place in places {
            self.inspect(pulse, place, moment);
        }
    }

    fn inspect(&mut self, pulse: &Pulse, place: (u64, u32, bool), moment: &Moment) {
        let (found_in, node, is_table) = place;
        let number = pulse.challenge.pulse;
        let Some((author, finding)) = self.inspecting.findings.get(&place).cloned() else { return };
        let Some(roster) = self.rosters.get(&pulse.epoch) else { return };
        let inspectors = drawn(roster, &pulse.challenge, Duty::Inspector, node);
        let slander = self.inspecting.slanderers.get(&author);
        if !inspectors.contains(&self.binding.node)
            || slander.is_some_and(|until| moment.now_ns < *until)
            || self.inspecting.queue.len() >= QUEUE_MAX
            || self.inspecting.inspected.contains(&(number, node, is_table))
        {
            return;
        }
        let Some(job) = self.inspection_job(found_in, &finding) else { return };
        self.inspecting.inspected.insert((number, node, is_table));
        let purpose = Purpose::Inspect { pulse: number, author };
        self.inspecting.queue.push_back((Task { node, is_table, purpose }, Box::new(job)));
    }

    /// The extent of a finding, if the node had committed to it.
    fn inspection_job(&self, found_in: u64, finding: &Finding) -> Option<Regeneration> {
        let epoch = *self.epochs.get(&found_in)?;
        let (roster, binding) = (self.rosters.get(&epoch)?, self.binding_of(finding.node));
        let way = &finding.way;
        if finding.is_table {
            let day = day_at(self.pulse(found_in, epoch)?.timestamp);
            let (table, _) = self.tables.get(&(day, finding.node))?;
            return Regeneration::of_table(
                &binding,
                (day, self.salts.get(&day)?),
                table,
                way.start,
                way,
            )
            .ok();
        }
        let member = roster.member(finding.node)?;
        let (salt, known) = (member.salt?, self.plots.get(&finding.node));
        // It may have committed to another plot since.
        let plots: Vec<PlotRecord> =
            known.into_iter().flatten().filter_map(|(_, plot)| *plot).chain(member.plot).collect();
        let job = |plot| Regeneration::of_filler(&binding, &salt, plot, way.start, way).ok();
        plots.iter().find_map(job)
    }

    fn pulse(&self, number: u64, epoch: u32) -> Option<Pulse> {
        self.pulses.get(&epoch)?.iter().find(|it| it.challenge.pulse == number).copied()
    }

    /// Now and then, has a part of what was shown made again: of a table or of filler, drawn.
    pub(super) fn regenerate(
        &mut self,
        pulse: u64,
        judged: (&Claim, &B256),
        opening: &[u8],
        moment: &Moment,
    ) {
        if moment.now_ns < self.next_regeneration_ns || !self.inspecting.is_idle() {
            return;
        }
        let node = judged.0.binding.node;
        if !is_picked(node, moment) {
            return;
        }
        let (Some(ongoing), Ok(opening)) = (self.ongoing.get(&pulse), Opening::decode(opening))
        else {
            return;
        };
        let is_table = draw(&moment.fresh("kind", 0), 0, 0, 2) == 1;
        let job = if is_table {
            self.table_job(ongoing, judged, &opening, moment)
        } else {
            Self::filler_job(ongoing, &self.settings.rules, judged.0, &opening, moment)
        };
        let Some((job, way)) = job else { return };
        self.next_regeneration_ns = moment.now_ns.saturating_add(self.settings.regenerate_ns);
        let purpose = Purpose::Watch { pulse, way };
        self.inspecting.queue.push_back((Task { node, is_table, purpose }, Box::new(job)));
    }

    fn filler_job(
        ongoing: &Ongoing,
        rules: &crate::Rules,
        claim: &Claim,
        opening: &Opening,
        moment: &Moment,
    ) -> Option<(Regeneration, ExtentPath)> {
        let salt = ongoing.roster.member(claim.binding.node)?.salt?;
        let plot = claim.plot?;
        let context = claim.binding.pulse(&ongoing.pulse.challenge);
        let offsets = disk::offsets(&context, rules, plot.bytes_len);
        let at = draw(&moment.fresh("leaf", 0), 0, 0, offsets.len() as u64) as usize;
        let (offset, shown) = (*offsets.get(at)?, opening.leaves.get(at)?);
        // A user's shard can't be made again: another time then.
        let job = Regeneration::of_filler(&claim.binding, &salt, &plot, offset, &shown.way).ok()?;
        Some((job, shown.way.clone()))
    }

    fn table_job(
        &self,
        ongoing: &Ongoing,
        (claim, drawn): (&Claim, &B256),
        opening: &Opening,
        moment: &Moment,
    ) -> Option<(Regeneration, ExtentPath)> {
        let day = day_at(ongoing.pulse.timestamp);
        let (salt, table) = (self.salts.get(&day)?, claim.table?);
        let steps = ram::drawn(drawn, &self.settings.rules);
        let at = draw(&moment.fresh("step", 0), 0, 0, steps.len() as u64) as usize;
        let way = &opening.steps.get(at)?.label.way;
        // The way says where its block begins; whether it is the table's is checked.
        let job =
            Regeneration::of_table(&claim.binding, (day, salt), &table, way.start, way).ok()?;
        Some((job, way.clone()))
    }
}

/// Whether a node that is watched is the one whose extent is made again: by chance, one of those that a
/// witness has as a rule, since who opens last must not escape by that.
fn is_picked(node: u32, moment: &Moment) -> bool {
    draw(&moment.fresh("whom", node.into()), 0, 0, WITNESSES as u64) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moment(number: u64) -> Moment {
        let random = hypha_chain::keccak256(number.to_be_bytes());
        Moment { now_ns: 1, random }
    }

    #[test]
    fn one_in_seven_is_picked_whoever_it_is_and_whenever_it_opens() {
        let moments = 0..7000;
        for node in [1, 2, 99_999] {
            let picked = moments.clone().filter(|number| is_picked(node, &moment(*number)));
            let picked = picked.count();
            assert!((850..1150).contains(&picked), "node {node}: {picked} of 7000");
        }
        // Of the seven that a witness has in a pulse, the place in the order says nothing.
        let mut by_place = [0_u32; WITNESSES];
        let mut none = 0;
        for pulse in 0..3000 {
            let first = (0..WITNESSES)
                .find(|place| is_picked(1 + *place as u32, &moment(pulse * 10 + *place as u64)));
            match first.and_then(|place| by_place.get_mut(place)) {
                Some(count) => *count += 1,
                None => none += 1,
            }
        }
        // (6/7)^7 of all pulses pass without; the first is picked in a seventh, not in all.
        assert!((900..1150).contains(&none), "{none} of 3000 without");
        assert!(by_place.iter().all(|count| (120..500).contains(count)), "{by_place:?}");
    }
}
