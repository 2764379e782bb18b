//! What this node finds against others goes to the contracts.

use hypha_chain::contracts::{Capacity, Disputes};
use hypha_proofs::network::participant::Evidence;
use hypha_proofs::network::statement::{Content, Statement};
use hypha_proofs::verifier::PulseVerdict;
use serde_json::json;

use super::core::Core;
use super::sending::Ticket;
use crate::clock::monotonic_ns;
use crate::metrics::add;

impl Core<'_> {
    pub(super) fn on_evidence(&mut self, evidence: &Evidence) {
        add(&self.metrics.evidence, 1);
        match evidence {
            Evidence::Answers(both) => {
                let [first, second] = both.as_ref();
                let (node, pulse) = (first.commitment.node, first.commitment.pulse);
                let text = format!("node {node} has given two answers to pulse {pulse}");
                self.teller.tell("evidence", text, json!({"node": node, "pulse": pulse}));
                let call = Capacity::equivocationCall {
                    node,
                    pulse,
                    answers: [first.commitment.answer(), second.commitment.answer()],
                    first: first.signature.to_bytes().into(),
                    second: second.signature.to_bytes().into(),
                };
                let (ticket, to) = (Ticket::Equivocation(node), self.config.suite.capacity);
                self.sending.send(ticket, to, &call, monotonic_ns());
            }
            Evidence::Segment { claim, signature } => {
                let text = format!("node {} has signed a false segment", claim.node);
                let fields = json!({"node": claim.node, "start": claim.start, "end": claim.end});
                self.teller.tell("evidence", text, fields);
                let call = Disputes::falseSegmentCall {
                    claim: claim.into(),
                    signature: signature.to_bytes().into(),
                };
                let (ticket, to) = (Ticket::FalseSegment(claim.node), self.config.suite.disputes);
                self.sending.send(ticket, to, &call, monotonic_ns());
            }
            Evidence::Statements(both) => {
                let [first, second] = both.as_ref();
                let witness = first.author;
                let text = format!("node {witness} has said two things about one");
                self.teller.tell("evidence", text, json!({"node": witness}));
                if let Some(call) = false_witness(first, second) {
                    let (ticket, to) = (Ticket::FalseWitness(witness), self.config.suite.capacity);
                    self.sending.send(ticket, to, &call, monotonic_ns());
                }
            }
        }
    }
}

/// What costs a witness its stake: two verdicts on one node and pulse.
fn false_witness(first: &Statement, second: &Statement) -> Option<Capacity::falseWitnessCall> {
    let (Content::Verdict(one), Content::Verdict(other)) = (&first.content, &second.content) else {
        return None;
    };
    let found = |it: &PulseVerdict| Capacity::Found {
        threads: it.threads,
        memMiB: it.memMiB,
        diskMiB: it.diskMiB,
        fillerDraws: it.fillerDraws,
    };
    Some(Capacity::falseWitnessCall {
        witness: first.author,
        node: one.node,
        pulse: one.pulse,
        found: [found(one), found(other)],
        first: first.signature.to_bytes().into(),
        second: second.signature.to_bytes().into(),
    })
}
