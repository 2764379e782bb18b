//! A node's own answer to a pulse, on its way to its witnesses.

use std::collections::BTreeMap;

use hypha_chain::{B256, keccak256};

use super::{Action, Moment, Participant, RESEND_NS};
use crate::network::message::{Message, PulseDraw, PulseOpening, digest_of, signed};
use crate::wire::{Opening, SignedCommitment};

/// What a node has sent, and to whom it must be sent again.
pub(super) struct Answering {
    witnesses: Vec<u32>,
    commitment: Option<Vec<u8>>,
    /// What each witness has drawn, and the opening once it is made.
    draws: BTreeMap<u32, (B256, Option<Vec<u8>>)>,
    resend_ns: u64,
    /// After that, no witness takes the commitment any more.
    ends_ns: u64,
}

impl Answering {
    pub(super) fn new(witnesses: Vec<u32>, ends_ns: u64) -> Self {
        Self { witnesses, commitment: None, draws: BTreeMap::new(), resend_ns: 0, ends_ns }
    }

    pub(super) fn due_ns(&self) -> Option<u64> {
        let waits = self.commitment.is_some() && self.draws.len() < self.witnesses.len();
        (waits && self.resend_ns <= self.ends_ns).then_some(self.resend_ns)
    }
}

impl Participant {
    /// The work of a pulse is done: its commitment goes to all witnesses. It must have been stored
    /// before, if it could be lost: another one for the same pulse costs all stake, and is refused
    /// here.
    pub fn on_commitment(&mut self, commitment: &SignedCommitment, moment: &Moment) -> Vec<Action> {
        let pulse = commitment.commitment.pulse;
        let Some(ongoing) = self.ongoing.get_mut(&pulse) else { return Vec::new() };
        let answering = &mut ongoing.answering;
        if answering.commitment.is_some() || commitment.commitment.node != self.binding.node {
            return Vec::new();
        }
        answering.commitment = Some(Message::Commitment(commitment.encode()).encode());
        answering.resend_ns = moment.now_ns;
        let mut out = Vec::new();
        self.tick_answering(pulse, moment.now_ns, &mut out);
        out
    }

    /// What a witness has drawn is opened: it is sent to it.
    pub fn on_opened(&mut self, pulse: u64, witness: u32, opening: &Opening) -> Vec<Action> {
        let node = self.binding.node;
        let drawn =
            self.ongoing.get_mut(&pulse).and_then(|it| it.answering.draws.get_mut(&witness));
        let Some((_, kept)) = drawn else { return Vec::new() };
        let opening = opening.encode();
        let hash = keccak256(&opening);
        let message = PulseOpening { node, pulse, witness, opening: hash };
        let signature = signed(&message, &self.binding, &self.key);
        let bytes = Message::Opening { node, pulse, witness, opening, signature }.encode();
        *kept = Some(bytes.clone());
        vec![Action::Send { to: witness, bytes }]
    }

    /// A witness draws. Only the first draw of each is opened.
    pub(super) fn on_draw(
        &mut self,
        from: u32,
        message: &Message,
        moment: &Moment,
        out: &mut Vec<Action>,
    ) {
        let Message::Draw { node, pulse, witness, draw, signature } = message else { return };
        let Some(ongoing) = self.ongoing.get_mut(pulse) else { return };
        let answering = &mut ongoing.answering;
        let awaited = *node == self.binding.node
            && answering.commitment.is_some()
            && answering.witnesses.contains(witness);
        let Some(member) = ongoing.roster.member(*witness).filter(|_| awaited) else { return };
        if let Some((known, opening)) = answering.draws.get(witness) {
            // The opening was lost. It is long, and anybody may have sent this.
            if let Some(bytes) = opening.as_ref().filter(|_| known == draw)
                && self.gossip.may_cost(from, bytes.len() as u64, moment.now_ns)
            {
                out.push(Action::Send { to: *witness, bytes: bytes.clone() });
            }
            return;
        }
        let signed = PulseDraw { node: *node, pulse: *pulse, witness: *witness, draw: *draw };
        if signature.recover(&digest_of(&signed, &self.binding)) != Some(member.signer) {
            return;
        }
        answering.draws.insert(*witness, (*draw, None));
        out.push(Action::Open { pulse: *pulse, witness: *witness, draw: *draw });
    }

    /// Sends the commitment to all who have not drawn yet.
    pub(super) fn tick_answering(&mut self, pulse: u64, now_ns: u64, out: &mut Vec<Action>) {
        let Some(ongoing) = self.ongoing.get_mut(&pulse) else { return };
        let answering = &mut ongoing.answering;
        if now_ns < answering.resend_ns || answering.resend_ns > answering.ends_ns {
            return;
        }
        let Some(bytes) = answering.commitment.as_ref() else { return };
        answering.resend_ns = now_ns + RESEND_NS;
        for witness in &answering.witnesses {
            if !answering.draws.contains_key(witness) {
                out.push(Action::Send { to: *witness, bytes: bytes.clone() });
            }
        }
    }
}
