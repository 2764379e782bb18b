//! A witness's side of a pulse: challenge, draw, verdict.

use hypha_chain::key::{Key, Signature};
use hypha_chain::message::{Reader, RunClaim, digest, sign};
use hypha_chain::{Address, B256};

use crate::binding::Binding;
use crate::cpu::{self, SegmentError};
use crate::disk::{self, DiskError};
use crate::prover::{pulse_answer, run_claim};
use crate::ram::{self, StepError};
use crate::store::PlotRecord;
use crate::wire::{Commitment, Opening, SignedCommitment, WireError};
use crate::{Challenge, Rules};

mod typed {
    alloy_sol_types::sol! {
        /// What one witness found of one node in one pulse; signed for Capacity.
        #[derive(Debug, PartialEq, Eq)]
        struct PulseVerdict {
            uint32 node; uint64 pulse; uint16 threads; uint32 memMiB; uint64 diskMiB;
            uint16 fillerDraws;
        }
    }
}

pub use typed::PulseVerdict;

/// What a node claims, as the chain and the day's table records say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// Who it is.
    pub binding: Binding,
    /// The address of its chain key.
    pub signer: Address,
    /// Chains that are asked for, one for each unit; 0 if it claims none. It may answer with more, and then
    /// proves those.
    pub threads: u16,
    /// Its table of the day.
    pub table: Option<PlotRecord>,
    /// Its committed plot.
    pub plot: Option<PlotRecord>,
}

/// Why a message is not taken. The pulse goes on: whoever sent it may not be the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Not a message.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// Another node or pulse.
    #[error("the commitment is of node {node} and pulse {pulse}")]
    Other {
        /// The node that it names.
        node: u32,
        /// The pulse that it names.
        pulse: u64,
    },
    /// Not the node's key.
    #[error("the commitment is not signed by the node")]
    Signature,
    /// The deadline is over.
    #[error("the message came {0} ns after its deadline")]
    Late(u64),
    /// Not now.
    #[error("nothing of that kind is awaited")]
    NotAwaited,
}

/// Why something is not proven.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// No commitment, or no opening, in time.
    #[error("no answer in time")]
    Missed,
    /// The commitment has not all that the node claims.
    #[error("the commitment has not all that the node claims")]
    Incomplete,
    /// The opening has another number of parts than were drawn.
    #[error("the opening has another number of parts than were drawn")]
    Count,
    /// A chain.
    #[error(transparent)]
    Cpu(#[from] SegmentError),
    /// A segment that the node has not signed.
    #[error("an opened segment is not signed by the node")]
    Unsigned,
    /// The walk.
    #[error(transparent)]
    Ram(#[from] StepError),
    /// The disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

/// What a pulse came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// What is proven; a resource with a fault counts nothing, and chains and walk count as
    /// [`Rules::timely`] says.
    pub verdict: PulseVerdict,
    /// Why something is not.
    pub faults: Vec<Fault>,
    /// False segments that the node has signed: `Disputes.falseSegment` takes all its stake for one.
    pub evidence: Vec<(RunClaim, Signature)>,
}

enum Phase {
    Sent,
    Drawn { commitment: Commitment, draw: B256, at_ns: u64 },
    Done,
}

/// One witness, one node, one pulse.
pub struct Verifier {
    rules: Rules,
    claim: Claim,
    challenge: Challenge,
    sent_ns: u64,
    phase: Phase,
}

impl Verifier {
    /// Begins when the pulse does.
    #[must_use]
    pub fn new(rules: Rules, claim: Claim, challenge: Challenge, now_ns: u64) -> Self {
        Self { rules, claim, challenge, sent_ns: now_ns, phase: Phase::Sent }
    }

    /// Takes the node's commitment and returns the draw to send. `random` must be fresh: whoever knows
    /// it before the commitment can cheat.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn on_commitment(
        &mut self,
        bytes: &[u8],
        now_ns: u64,
        random: B256,
    ) -> Result<B256, Refusal> {
        if !matches!(self.phase, Phase::Sent) {
            return Err(Refusal::NotAwaited);
        }
        in_time(self.sent_ns, self.rules.commit_ns, now_ns)?;
        let SignedCommitment { commitment, signature } = SignedCommitment::decode(bytes)?;
        let (node, pulse) = (commitment.node, commitment.pulse);
        if (node, pulse) != (self.claim.binding.node, self.challenge.pulse) {
            return Err(Refusal::Other { node, pulse });
        }
        let binding = &self.claim.binding;
        let domain = Reader::Capacity.domain(binding.chain_id, binding.capacity);
        let signed = digest(&pulse_answer(&commitment), &domain);
        if signature.recover(&signed) != Some(self.claim.signer) {
            return Err(Refusal::Signature);
        }
        self.phase = Phase::Drawn { commitment, draw: random, at_ns: now_ns };
        Ok(random)
    }

    /// Takes the opening of what was drawn, and judges.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn on_opening(&mut self, bytes: &[u8], now_ns: u64) -> Result<Outcome, Refusal> {
        let Phase::Drawn { commitment, draw, at_ns } = &self.phase else {
            return Err(Refusal::NotAwaited);
        };
        in_time(*at_ns, self.rules.open_ns, now_ns)?;
        let opening = Opening::decode(bytes)?;
        let mut outcome = self.judge(commitment, draw, &opening);
        let took_ns = at_ns.saturating_sub(self.sent_ns);
        let timely = |amount: u64| self.rules.timely(took_ns, amount);
        let (threads, mem_mib) = (outcome.verdict.threads, outcome.verdict.memMiB);
        outcome.verdict.threads = u16::try_from(timely(threads.into())).unwrap_or(threads);
        outcome.verdict.memMiB = u32::try_from(timely(mem_mib.into())).unwrap_or(mem_mib);
        self.phase = Phase::Done;
        Ok(outcome)
    }

    /// What the pulse came to if a deadline is over; otherwise `None`.
    pub fn on_time(&mut self, now_ns: u64) -> Option<Outcome> {
        let late = match &self.phase {
            Phase::Sent => in_time(self.sent_ns, self.rules.commit_ns, now_ns).is_err(),
            Phase::Drawn { at_ns, .. } => in_time(*at_ns, self.rules.open_ns, now_ns).is_err(),
            Phase::Done => false,
        };
        if !late {
            return None;
        }
        self.phase = Phase::Done;
        Some(Outcome { verdict: self.nothing(), faults: vec![Fault::Missed], evidence: Vec::new() })
    }

    fn nothing(&self) -> PulseVerdict {
        let (node, pulse) = (self.claim.binding.node, self.challenge.pulse);
        PulseVerdict { node, pulse, threads: 0, memMiB: 0, diskMiB: 0, fillerDraws: 0 }
    }

    fn judge(&self, commitment: &Commitment, draw: &B256, opening: &Opening) -> Outcome {
        let mut verdict = self.nothing();
        let (mut faults, mut evidence) = (Vec::new(), Vec::new());
        let pulse = self.claim.binding.pulse(&self.challenge);
        match self.check_cpu(&pulse, (commitment, draw), opening, &mut evidence) {
            Ok(threads) => verdict.threads = threads,
            Err(fault) => faults.push(fault),
        }
        match self.check_ram(&pulse, (commitment, draw), opening) {
            Ok(mib) => verdict.memMiB = mib,
            Err(fault) => faults.push(fault),
        }
        match self.check_disk(&pulse, commitment, opening) {
            Ok((mib, filler)) => (verdict.diskMiB, verdict.fillerDraws) = (mib, filler),
            Err(fault) => faults.push(fault),
        }
        Outcome { verdict, faults, evidence }
    }

    fn check_cpu(
        &self,
        pulse: &B256,
        drawn_of: (&Commitment, &B256),
        opening: &Opening,
        evidence: &mut Vec<(RunClaim, Signature)>,
    ) -> Result<u16, Fault> {
        let (commitment, draw) = drawn_of;
        let threads = commitment.threads.len() as u16;
        if threads < self.claim.threads {
            return Err(Fault::Incomplete);
        }
        let drawn = cpu::drawn(draw, &self.rules, threads);
        if drawn.len() != opening.segments.len() {
            return Err(Fault::Count);
        }
        let binding = &self.claim.binding;
        let domain = Reader::Disputes.domain(binding.chain_id, binding.disputes);
        let mut result = Ok(threads);
        for (place, (segment, signature)) in drawn.into_iter().zip(&opening.segments) {
            let claim = run_claim(binding, pulse, place, segment);
            if signature.recover(&digest(&claim, &domain)) != Some(self.claim.signer) {
                return Err(Fault::Unsigned);
            }
            let root = commitment.threads.get(usize::from(place.0)).ok_or(Fault::Count)?;
            match segment.check(pulse, &self.rules, root, place) {
                Ok(()) => {}
                Err(error) => {
                    if matches!(error, SegmentError::False { .. }) {
                        evidence.push((claim, *signature));
                    }
                    result = result.and(Err(error.into()));
                }
            }
        }
        result
    }

    fn check_ram(
        &self,
        pulse: &B256,
        drawn_of: (&Commitment, &B256),
        opening: &Opening,
    ) -> Result<u32, Fault> {
        let (commitment, draw) = drawn_of;
        let Some(table) = &self.claim.table else {
            return if opening.steps.is_empty() { Ok(0) } else { Err(Fault::Count) };
        };
        let root = commitment.walk.as_ref().ok_or(Fault::Incomplete)?;
        let drawn = ram::drawn(draw, &self.rules);
        if drawn.len() != opening.steps.len() {
            return Err(Fault::Count);
        }
        for (step, shown) in drawn.into_iter().zip(&opening.steps) {
            shown.check(pulse, &self.rules, (root, table), step)?;
        }
        Ok(u32::try_from(table.bytes_len >> 20).unwrap_or(u32::MAX))
    }

    fn check_disk(
        &self,
        pulse: &B256,
        commitment: &Commitment,
        opening: &Opening,
    ) -> Result<(u64, u16), Fault> {
        let Some(plot) = &self.claim.plot else {
            return if opening.leaves.is_empty() { Ok((0, 0)) } else { Err(Fault::Count) };
        };
        let committed = commitment.disk.as_ref().ok_or(Fault::Incomplete)?;
        let filler = disk::check(pulse, &self.rules, plot, committed, &opening.leaves)?;
        Ok((plot.bytes_len >> 20, filler as u16))
    }
}

impl Outcome {
    /// The witness's signature over its verdict.
    #[must_use]
    pub fn sign(&self, binding: &Binding, witness: &Key) -> Signature {
        let domain = Reader::Capacity.domain(binding.chain_id, binding.capacity);
        sign(&self.verdict, &domain, witness)
    }
}

/// Who signed a verdict; `None` if nobody can have.
#[must_use]
pub fn witness_of(
    verdict: &PulseVerdict,
    binding: &Binding,
    signature: &Signature,
) -> Option<Address> {
    let domain = Reader::Capacity.domain(binding.chain_id, binding.capacity);
    signature.recover(&digest(verdict, &domain))
}

fn in_time(from_ns: u64, allowed_ns: u64, now_ns: u64) -> Result<(), Refusal> {
    match now_ns.saturating_sub(from_ns).saturating_sub(allowed_ns) {
        0 => Ok(()),
        late => Err(Refusal::Late(late)),
    }
}
