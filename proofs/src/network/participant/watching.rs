//! Other nodes' answers, if this one is drawn to watch them.

use super::{Action, Evidence, Moment, Ongoing, Participant};
use crate::network::message::{Message, PulseDraw, PulseOpening, digest_of, signed};
use crate::network::statement::Content;
use crate::network::witness::{Duty, drawn};
use crate::verifier::{Claim, Outcome, Verifier};
use crate::wire::SignedCommitment;
use hypha_chain::keccak256;
use hypha_chain::message::Reader;

/// Nodes that one witness watches in one pulse at most. Seven are usual; it takes most of the
/// network's stake to be drawn for so many.
const WATCHED_MAX: usize = 4096;

/// A node that is watched in a pulse.
pub(super) struct Watched {
    claim: Claim,
    verifier: Verifier,
    commitment: SignedCommitment,
    /// The encoded draw, to be sent again.
    draw: Vec<u8>,
    drawn: hypha_chain::B256,
}

impl Participant {
    pub(super) fn on_their_commitment(
        &mut self,
        bytes: &[u8],
        moment: &Moment,
        out: &mut Vec<Action>,
    ) {
        let Ok(commitment) = SignedCommitment::decode(bytes) else { return };
        let (node, pulse) = (commitment.commitment.node, commitment.commitment.pulse);
        let Some(ongoing) = self.ongoing.get(&pulse) else { return };
        if let Some(watched) = ongoing.watched.get(&node) {
            if watched.commitment.commitment == commitment.commitment {
                // The draw was lost.
                out.push(Action::Send { to: node, bytes: watched.draw.clone() });
            } else if self.is_answer_of(&commitment, ongoing) {
                let both = Box::new([watched.commitment.clone(), commitment]);
                out.push(Action::Evidence(Box::new(Evidence::Answers(both))));
            }
            return;
        }
        let me = self.binding.node;
        let witnesses = drawn(&ongoing.roster, &ongoing.pulse.challenge, Duty::Witness, node);
        if ongoing.watched.len() >= WATCHED_MAX || !witnesses.contains(&me) {
            return;
        }
        let claim = self.claim_of(&ongoing.roster, &ongoing.pulse, node, ongoing.began_ns);
        let Some(claim) = claim else { return };
        let challenge = ongoing.pulse.challenge;
        let mut verifier = Verifier::new(self.settings.rules, claim, challenge, ongoing.began_ns);
        let random = moment.fresh("draw", node.into());
        let Ok(drawn) = verifier.on_commitment(bytes, moment.now_ns, random) else { return };
        let message = PulseDraw { node, pulse, witness: me, draw: drawn };
        let signature = signed(&message, &self.binding, &self.key);
        let message = Message::Draw { node, pulse, witness: me, draw: drawn, signature };
        let draw = message.encode();
        out.push(Action::Send { to: node, bytes: draw.clone() });
        let watched = Watched { claim, verifier, commitment, draw, drawn };
        if let Some(ongoing) = self.ongoing.get_mut(&pulse) {
            ongoing.watched.insert(node, watched);
        }
    }

    pub(super) fn on_their_opening(
        &mut self,
        message: &Message,
        moment: &Moment,
        out: &mut Vec<Action>,
    ) {
        let Message::Opening { node, pulse, witness, opening, signature } = message else { return };
        let binding = self.binding;
        let Some(ongoing) = self.ongoing.get_mut(pulse) else { return };
        let Some(watched) = ongoing.watched.get_mut(node) else { return };
        let signed = PulseOpening {
            node: *node,
            pulse: *pulse,
            witness: *witness,
            opening: keccak256(opening),
        };
        let mine = *witness == binding.node;
        let signer = signature.recover(&digest_of(&signed, &binding));
        if !mine || signer != Some(watched.claim.signer) {
            return;
        }
        let Ok(outcome) = watched.verifier.on_opening(opening, moment.now_ns) else { return };
        let (claim, drawn) = (watched.claim, watched.drawn);
        self.judge(&claim, outcome, moment, out);
        self.regenerate(*pulse, (&claim, &drawn), opening, moment);
    }

    fn judge(&mut self, claim: &Claim, outcome: Outcome, moment: &Moment, out: &mut Vec<Action>) {
        let Outcome { mut verdict, evidence, .. } = outcome;
        for (claim, signature) in evidence {
            let evidence = Evidence::Segment { claim, signature };
            out.push(Action::Evidence(Box::new(evidence)));
        }
        if self.distrusted.contains_key(&(claim.binding.node, true)) {
            verdict.memMiB = 0;
        }
        if self.distrusted.contains_key(&(claim.binding.node, false)) {
            (verdict.diskMiB, verdict.fillerDraws) = (0, 0);
        }
        self.say(Content::Verdict(verdict), moment, out);
    }

    /// Whether a commitment is signed by the node that it names.
    fn is_answer_of(&self, it: &SignedCommitment, ongoing: &Ongoing) -> bool {
        let domain = Reader::Capacity.domain(self.binding.chain_id, self.binding.capacity);
        let message = crate::prover::pulse_answer(&it.commitment);
        let digest = hypha_chain::message::digest(&message, &domain);
        let member = ongoing.roster.member(it.commitment.node);
        member.is_some_and(|member| it.signature.recover(&digest) == Some(member.signer))
    }
}
