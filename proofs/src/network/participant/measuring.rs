//! Bandwidth within a pulse: this node's line, and the lines that it is drawn to measure.

use std::collections::BTreeMap;

use hypha_chain::keccak256;

use super::{Action, Moment, Participant, Settings};
use crate::Rules;
use crate::network::bandwidth::{Burst, Sink, burst_bytes};
use crate::network::message::{BurstHead, BurstReady, Message, Receipt, digest_of, signed};
use crate::network::roster::Roster;
use crate::network::schedule::Pulse;
use crate::network::statement::{BandwidthVerdict, Content};
use crate::network::witness::{Duty, drawn, is_measured};

/// Lines that one challenger measures in one pulse at most: a burst may have 8 MiB.
const BURSTS_MAX: usize = 64;

/// What is measured in a pulse.
pub(super) struct Measuring {
    /// Who measures this node, if it is to be measured and has not said yet that it is ready.
    waiting: Option<Vec<u32>>,
    sink: Option<Sink>,
    bursts: BTreeMap<u32, (Burst, u32)>,
}

impl Measuring {
    pub(super) fn new(settings: &Settings, roster: &Roster, pulse: &Pulse, me: u32) -> Self {
        let measured = is_measured(&pulse.challenge, me, settings.measured_per_mille);
        let waiting = measured.then(|| drawn(roster, &pulse.challenge, Duty::Challenger, me));
        let waiting = waiting.filter(|challengers| !challengers.is_empty());
        Self { waiting, sink: None, bursts: BTreeMap::new() }
    }

    /// When something is to be done: the line is measured once the other work is.
    pub(super) fn due_ns(&self, began_ns: u64, rules: &Rules) -> Option<u64> {
        let ready = self.waiting.as_ref().map(|_| began_ns + rules.commit_ns + rules.open_ns);
        ready.or_else(|| self.sink.as_ref()?.due_ns())
    }
}

impl Participant {
    pub(super) fn tick_measuring(&mut self, pulse: u64, moment: &Moment, out: &mut Vec<Action>) {
        let rules = self.settings.rules;
        let Some(ongoing) = self.ongoing.get_mut(&pulse) else { return };
        let due = ongoing.measuring.due_ns(ongoing.began_ns, &rules);
        if due.is_none_or(|due| moment.now_ns < due) {
            return;
        }
        let Some(challengers) = ongoing.measuring.waiting.take() else {
            self.give_receipt(pulse, moment, out);
            return;
        };
        let node = self.binding.node;
        let signature = signed(&BurstReady { node, pulse }, &self.binding, &self.key);
        let bytes = Message::Ready { node, pulse, signature }.encode();
        for challenger in &challengers {
            out.push(Action::Send { to: *challenger, bytes: bytes.clone() });
        }
        ongoing.measuring.sink = Some(Sink::new((node, pulse), challengers, moment.now_ns));
    }

    /// A node says that it is ready: the burst goes out at once.
    pub(super) fn on_ready(&mut self, message: &Message, moment: &Moment, out: &mut Vec<Action>) {
        let Message::Ready { node, pulse, signature } = message else { return };
        let (node, pulse, me) = (*node, *pulse, self.binding.node);
        let Some(ongoing) = self.ongoing.get_mut(&pulse) else { return };
        let challenge = &ongoing.pulse.challenge;
        let bursts = &mut ongoing.measuring.bursts;
        let known = bursts.contains_key(&node) || bursts.len() >= BURSTS_MAX;
        let Some(member) = ongoing.roster.member(node).filter(|_| !known) else { return };
        let challengers = drawn(&ongoing.roster, challenge, Duty::Challenger, node);
        let signer = signature.recover(&digest_of(&BurstReady { node, pulse }, &self.binding));
        if !is_measured(challenge, node, self.settings.measured_per_mille)
            || !challengers.contains(&me)
            || signer != Some(member.signer)
        {
            return;
        }
        let len = burst_bytes(member.claimed.mbps, challengers.len());
        let random = moment.fresh("burst", node.into());
        let mut burst = Burst::new(&random, len, (node, pulse, me), moment.now_ns);
        let chunks = burst.announced();
        let hash = keccak256(chunks.concat());
        let head = BurstHead { node, pulse, challenger: me, chunks: hash };
        let signature = signed(&head, &self.binding, &self.key);
        let head = Message::Head { node, pulse, challenger: me, chunks, signature };
        out.push(Action::Send { to: node, bytes: head.encode() });
        for (index, bytes) in (0..).zip(burst.take()) {
            let chunk = Message::Chunk { pulse, challenger: me, index, bytes };
            out.push(Action::Send { to: node, bytes: chunk.encode() });
        }
        bursts.insert(node, (burst, len as u32));
    }

    pub(super) fn on_head(&mut self, message: &Message) {
        let Message::Head { node, pulse, challenger, chunks, signature } = message else { return };
        let Some(ongoing) = self.ongoing.get_mut(pulse) else { return };
        let Some(sink) = ongoing.measuring.sink.as_mut() else { return };
        let head = BurstHead {
            node: *node,
            pulse: *pulse,
            challenger: *challenger,
            chunks: keccak256(chunks.concat()),
        };
        let drawn = *node == self.binding.node && sink.challengers().contains(challenger);
        let Some(member) = ongoing.roster.member(*challenger).filter(|_| drawn) else { return };
        if signature.recover(&digest_of(&head, &self.binding)) == Some(member.signer) {
            sink.on_head(*challenger, chunks.clone());
        }
    }

    pub(super) fn on_chunk(
        &mut self,
        pulse: u64,
        (challenger, index): (u32, u16),
        bytes: &[u8],
        moment: &Moment,
        out: &mut Vec<Action>,
    ) {
        let ongoing = self.ongoing.get_mut(&pulse);
        let Some(sink) = ongoing.and_then(|it| it.measuring.sink.as_mut()) else { return };
        sink.on_chunk(challenger, index, bytes, moment.now_ns);
        self.give_receipt(pulse, moment, out);
    }

    fn give_receipt(&mut self, pulse: u64, moment: &Moment, out: &mut Vec<Action>) {
        let ongoing = self.ongoing.get_mut(&pulse);
        let Some(sink) = ongoing.and_then(|it| it.measuring.sink.as_mut()) else { return };
        let Some(entries) = sink.receipt(moment.now_ns) else { return };
        let receipt = Receipt::new(&self.binding, pulse, entries, &self.key);
        let bytes = Message::Receipt(receipt).encode();
        for challenger in sink.challengers() {
            out.push(Action::Send { to: *challenger, bytes: bytes.clone() });
        }
    }

    pub(super) fn on_receipt(&mut self, receipt: &Receipt, moment: &Moment, out: &mut Vec<Action>) {
        let (node, pulse, me) = (receipt.node, receipt.pulse, self.binding.node);
        let Some(ongoing) = self.ongoing.get_mut(&pulse) else { return };
        let Some(member) = ongoing.roster.member(node) else { return };
        let Some((burst, len)) = ongoing.measuring.bursts.get_mut(&node) else { return };
        let Some((_, hash)) = receipt.entries.iter().find(|(id, _)| *id == me) else { return };
        if receipt.signature.recover(&receipt.digest(&self.binding)) != Some(member.signer) {
            return;
        }
        let Some(micros) = burst.on_receipt(hash, moment.now_ns) else { return };
        let receipt = receipt.hash();
        let line = BandwidthVerdict { node, pulse, receipt, bytesLen: *len, micros };
        self.say(Content::Bandwidth(line), moment, out);
    }
}
