//! The proposer: carries one edit after the other to a set of acceptors.
//!
//! An edit runs in attempts. Each takes a ballot that was never used, asks the nodes to promise it,
//! and takes the value with the highest ballot among those that promised; that needs a majority of
//! every set of acceptors *which this value names*. Then it has the edit's result accepted by
//! majorities of the sets before and after. An attempt that meets a higher ballot or silence is
//! followed by another one, later, with a higher ballot.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use bytes::Bytes;

use super::acceptor::LEAP_MAX;
use super::{Applicant, Decision, Edit, Members, RecordError, Refusal, RegisterKey, VolumeRecord};
use crate::keys::{Uuid, VolumeKey};
use crate::node::{AcceptorId, Ballot, NodeError, NodeIndex, RegisterRequest, RegisterResponse};

/// Bits of a message's name that hold the node's index.
const NODE_BITS: u32 = 8;

/// The longest back-off is the first one, doubled this often.
const BACKOFF_DOUBLINGS: u32 = 6;

/// How patient a proposer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// How long nodes have to answer, per phase of an attempt.
    pub answer_ns: u64,
    /// The mean pause before the second attempt; doubled for each one after.
    pub backoff_ns: u64,
    /// The most attempts.
    pub attempts: u32,
}

impl Default for Timing {
    fn default() -> Self {
        Self { answer_ns: 1_000_000_000, backoff_ns: 10_000_000, attempts: 16 }
    }
}

/// A committed record: a majority has it, and everything that comes later builds on it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Committed {
    /// The record.
    pub record: VolumeRecord,
    /// If this edit wrote it: when the edit was started, which is what a [`Lease`](super::Lease)
    /// counts from. `None` if the record was fine as it was, and no lease was renewed.
    pub changed_ns: Option<u64>,
    /// For [`verify_evidence`](super::verify_evidence): the value, and receipts of those that
    /// accepted it. Empty if the acceptors sign nothing.
    pub evidence: Vec<Bytes>,
}

/// Why an edit did not end in a commit.
#[derive(Debug, Clone, PartialEq, Eq, Hash, thiserror::Error)]
pub enum ChangeError {
    /// The newest record doesn't allow it. Nothing was changed.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Too few acceptors answered.
    #[error("{answered} of {asked} register nodes answered: too few to decide{}", doubt(*.in_doubt))]
    Unreachable {
        /// How many answered in the last attempt.
        answered: usize,
        /// How many were asked.
        asked: usize,
        /// The change may have happened, or may yet.
        in_doubt: bool,
    },
    /// Others changed the register all the time.
    #[error("the register is in use by others: gave up after {attempts} attempts{}", doubt(*.in_doubt))]
    Contended {
        /// How many.
        attempts: u32,
        /// The change may have happened, or may yet.
        in_doubt: bool,
    },
    /// Two nodes have the same acceptor: one is a copy of the other, and neither can be believed.
    #[error("nodes {} and {} are copies of one another", .nodes.0, .nodes.1)]
    Duplicate {
        /// The nodes.
        nodes: (NodeIndex, NodeIndex),
    },
    /// What the nodes keep can't be read with this key.
    #[error(transparent)]
    Record(RecordError),
}

fn doubt(in_doubt: bool) -> &'static str {
    if in_doubt { "; the change may have happened or not" } else { "" }
}

/// What to do next for a [`Proposer`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Send this, and call [`Proposer::answer`] with what comes back.
    Send {
        /// The message's name.
        message: u64,
        /// To whom.
        node: NodeIndex,
        /// What.
        request: RegisterRequest,
    },
    /// Wait for an answer, but not longer than this.
    Wait {
        /// When to poll again at the latest.
        until_ns: u64,
    },
    /// The edit has ended.
    Done(Box<Result<Committed, ChangeError>>),
    /// There is no edit.
    Idle,
}

/// A proposer is busy with another edit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the register is being changed already")]
pub struct Busy;

/// Changes a volume's register. One for each opening: it makes sure that no ballot is used twice.
#[derive(Debug, Clone)]
pub struct Proposer {
    register: Uuid,
    key: RegisterKey,
    id: [u8; 16],
    timing: Timing,
    random: u64,
    nodes: Vec<NodeIndex>,
    /// The highest counter that was used or seen.
    counter: u64,
    /// Names rounds, so that late answers are told apart.
    rounds: u64,
    outbox: VecDeque<(u64, NodeIndex, RegisterRequest)>,
    run: Option<(Run, Phase)>,
}

/// One edit under way.
#[derive(Debug, Clone, Hash)]
struct Run {
    edit: Edit,
    change: Ballot,
    started_ns: u64,
    attempt: u32,
    /// The most attempts.
    attempts: u32,
    in_doubt: bool,
}

#[derive(Debug, Clone, Hash)]
enum Phase {
    Pausing { until_ns: u64 },
    Asking(Box<Round>),
    Ended(Box<Result<Committed, ChangeError>>),
}

/// One question to all nodes, and their answers so far.
#[derive(Debug, Clone, Hash)]
struct Round {
    number: u64,
    ballot: Ballot,
    until_ns: u64,
    pending: Vec<NodeIndex>,
    asked: usize,
    answered: usize,
    rejected: usize,
    unreadable: Vec<RecordError>,
    /// Who promised this ballot.
    promised: Vec<(NodeIndex, AcceptorId)>,
    goal: Goal,
}

#[derive(Debug, Clone, Hash)]
enum Goal {
    Promises { found: Option<Box<(Ballot, VolumeRecord)>> },
    Acceptance(Box<Proposal>),
}

#[derive(Debug, Clone, Hash)]
struct Proposal {
    record: VolumeRecord,
    value: Bytes,
    /// The acceptors that the value before named.
    before: Option<Members>,
    /// What to answer instead of success when the record, an unchanged one, is committed.
    refusal: Option<Refusal>,
    accepted: Vec<(AcceptorId, Bytes)>,
}

impl Proposer {
    /// A proposer for the volume `register` over the acceptors of `nodes`. `random` is fresh for
    /// each opening; it names the proposer and spreads its attempts.
    #[must_use]
    pub fn new(
        register: Uuid,
        volume_key: &VolumeKey,
        nodes: Vec<NodeIndex>,
        random: [u8; 24],
        timing: Timing,
    ) -> Self {
        let (id, seed) = random.split_first_chunk().map_or(([0; 16], &[][..]), |(id, s)| (*id, s));
        Self {
            register,
            key: RegisterKey::new(volume_key, register),
            id,
            timing,
            random: seed.first_chunk().map_or(1, |seed| u64::from_le_bytes(*seed)),
            nodes,
            counter: 0,
            rounds: 0,
            outbox: VecDeque::new(),
            run: None,
        }
    }

    /// The proposer's name: [`VolumeRecord::opener`] of the epochs that it takes.
    #[must_use]
    pub fn id(&self) -> [u8; 16] {
        self.id
    }

    /// The nodes to ask from the next edit on: all that may have an acceptor of this register.
    pub fn set_nodes(&mut self, nodes: Vec<NodeIndex>) {
        self.nodes = nodes;
    }

    /// Begins an edit.
    ///
    /// # Errors
    ///
    /// [`Busy`] if the last one has not ended.
    pub fn start(&mut self, edit: Edit, now_ns: u64) -> Result<(), Busy> {
        if self.run.is_some() {
            return Err(Busy);
        }
        let change = Ballot { counter: self.counter.saturating_add(1), proposer: self.id };
        let phase = Phase::Pausing { until_ns: now_ns };
        let attempts = self.timing.attempts;
        let run = Run { edit, change, started_ns: now_ns, attempt: 0, attempts, in_doubt: false };
        self.run = Some((run, phase));
        Ok(())
    }

    /// The edit that has begun is given up after so many attempts: it is not worth it that others
    /// wait for it.
    pub fn limit_attempts(&mut self, attempts: u32) {
        if let Some((run, _)) = &mut self.run {
            run.attempts = run.attempts.min(attempts);
        }
    }

    /// What to do next.
    pub fn poll(&mut self, now_ns: u64) -> Step {
        loop {
            if let Some((message, node, request)) = self.outbox.pop_front() {
                return Step::Send { message, node, request };
            }
            let Some((mut run, phase)) = self.run.take() else { return Step::Idle };
            let until_ns = phase.until_ns();
            if now_ns < until_ns {
                self.run = Some((run, phase));
                return Step::Wait { until_ns };
            }
            let phase = match phase {
                Phase::Ended(result) => return Step::Done(result),
                Phase::Pausing { .. } => self.prepare(now_ns),
                Phase::Asking(round) => self.next_attempt(&mut run, &round, now_ns),
            };
            self.run = Some((run, phase));
        }
    }

    /// The answer to `message`. Late and unknown ones are ignored.
    pub fn answer(
        &mut self,
        message: u64,
        result: Result<RegisterResponse, NodeError>,
        now_ns: u64,
    ) {
        let node = (message & ((1 << NODE_BITS) - 1)) as NodeIndex;
        let Some((mut run, phase)) = self.run.take() else { return };
        let phase = match phase {
            Phase::Asking(mut round)
                if round.number == message >> NODE_BITS && round.pending.contains(&node) =>
            {
                round.pending.retain(|pending| *pending != node);
                self.take(&mut run, round, (node, result), now_ns)
            }
            other => other,
        };
        self.run = Some((run, phase));
    }

    fn prepare(&mut self, now_ns: u64) -> Phase {
        self.counter = self.counter.saturating_add(1);
        let ballot = Ballot { counter: self.counter, proposer: self.id };
        let mut round = Round {
            number: 0,
            ballot,
            until_ns: 0,
            pending: vec![],
            asked: 0,
            answered: 0,
            rejected: 0,
            unreadable: vec![],
            promised: vec![],
            goal: Goal::Promises { found: None },
        };
        let targets = self.nodes.clone();
        self.ask(&mut round, targets, &RegisterRequest::Prepare { ballot }, now_ns);
        Phase::Asking(Box::new(round))
    }

    /// Starts a round of questions.
    fn ask(
        &mut self,
        round: &mut Round,
        targets: Vec<NodeIndex>,
        request: &RegisterRequest,
        now_ns: u64,
    ) {
        self.rounds += 1;
        round.number = self.rounds;
        round.until_ns = now_ns.saturating_add(self.timing.answer_ns);
        (round.asked, round.answered, round.rejected) = (targets.len(), 0, 0);
        self.outbox.clear();
        for node in &targets {
            let message = (self.rounds << NODE_BITS) | u64::from(*node);
            self.outbox.push_back((message, *node, request.clone()));
        }
        round.pending = targets;
    }

    /// Takes one answer into account.
    fn take(
        &mut self,
        run: &mut Run,
        mut round: Box<Round>,
        (node, result): (NodeIndex, Result<RegisterResponse, NodeError>),
        now_ns: u64,
    ) -> Phase {
        round.answered += usize::from(!matches!(result, Err(NodeError::Unavailable)));
        match result {
            Ok(RegisterResponse::Rejected { promised }) if self.is_sane(promised, &round) => {
                self.counter = self.counter.max(promised.counter);
                round.rejected += 1;
            }
            Ok(RegisterResponse::Promised { acceptor, accepted }) => {
                if let Some(phase) = self.promise(&mut round, node, acceptor, accepted) {
                    return phase;
                }
            }
            Ok(RegisterResponse::Accepted { acceptor, receipt }) => {
                if let Some(phase) = accept(&mut round, node, acceptor, receipt) {
                    return phase;
                }
            }
            // An answer that makes no sense is worth no more than none.
            Ok(RegisterResponse::Rejected { .. }) | Err(_) => {}
        }
        let chosen = match &round.goal {
            Goal::Promises { .. } => self.choose(run, &round, now_ns),
            Goal::Acceptance(proposal) => proposal.committed(run),
        };
        if let Some(phase) = chosen {
            return phase;
        }
        if round.pending.is_empty() || 2 * round.rejected > round.asked {
            return self.next_attempt(run, &round, now_ns);
        }
        Phase::Asking(round)
    }

    fn is_sane(&self, promised: Ballot, round: &Round) -> bool {
        promised > round.ballot && promised.counter - round.ballot.counter <= LEAP_MAX
    }

    /// Counts a promise; a phase if the edit ends with it.
    fn promise(
        &self,
        round: &mut Round,
        node: NodeIndex,
        acceptor: AcceptorId,
        accepted: Option<(Ballot, Bytes)>,
    ) -> Option<Phase> {
        let ballot = round.ballot;
        let Goal::Promises { found } = &mut round.goal else { return None };
        if let Some((at, value)) = accepted {
            match VolumeRecord::open(&value, &self.key, self.register) {
                Ok((record, signed))
                    if signed == at && at <= ballot && !record.members.current.is_empty() =>
                {
                    if found.as_ref().is_none_or(|found| found.0 < at) {
                        *found = Some(Box::new((at, record)));
                    }
                }
                // Shown under a ballot that it never had: this acceptor lies.
                Ok(_) => {
                    round.unreadable.push(RecordError::Forged);
                    return None;
                }
                Err(error) => {
                    round.unreadable.push(error);
                    return None;
                }
            }
        }
        identify(&mut round.promised, node, acceptor)
    }

    /// Goes on to the second phase, if the promises are enough.
    fn choose(&mut self, run: &mut Run, round: &Round, now_ns: u64) -> Option<Phase> {
        let Goal::Promises { found } = &round.goal else { return None };
        let promised = |id: &AcceptorId| round.promised.iter().any(|(_, promised)| promised == id);
        let has = |node: &NodeIndex| round.promised.iter().any(|(at, _)| at == node);
        let current = found.as_ref().map(|found| &found.1);
        if !run.edit.needs().iter().all(has) && current.is_none_or(|c| c.change != run.change) {
            return None;
        }
        match current {
            Some(record) if !record.members.have_majority(promised) => return None,
            None if run.edit.needs().is_empty() && !self.nodes.iter().all(has) => return None,
            _ => {}
        }
        let by = Applicant {
            register: self.register,
            proposer: self.id,
            change: run.change,
            acceptors: &round.promised,
        };
        let (record, refusal) = match (run.edit.apply(current, &by), current) {
            (Ok(Decision::Write(record)), _) => (*record, None),
            (Ok(Decision::Keep), Some(current)) => (current.clone(), None),
            // What forbids the edit must itself be committed: else it may vanish, and an earlier
            // attempt of this very edit may win after all.
            (Err(refusal), Some(current)) => (current.clone(), Some(refusal)),
            (Err(refusal), None) => return Some(ended(Err(refusal.into()))),
            (Ok(Decision::Keep), None) => return Some(ended(Err(Refusal::NotFound.into()))),
        };
        run.in_doubt |= record.change == run.change;
        let before = current.map(|current| current.members.clone());
        Some(self.propose(round, record, before, refusal, now_ns))
    }

    fn propose(
        &mut self,
        round: &Round,
        record: VolumeRecord,
        before: Option<Members>,
        refusal: Option<Refusal>,
        now_ns: u64,
    ) -> Phase {
        let is_member = |id: &AcceptorId| {
            record.members.contains(id) || before.as_ref().is_some_and(|set| set.contains(id))
        };
        let may_count = |node: &&NodeIndex| {
            round.promised.iter().find(|(at, _)| at == *node).is_none_or(|(_, id)| is_member(id))
        };
        let targets = self.nodes.iter().filter(may_count).copied().collect();
        let value = Bytes::from(record.encode(&self.key, round.ballot));
        let request = RegisterRequest::Accept { ballot: round.ballot, value: value.clone() };
        let proposal = Proposal { record, value, before, refusal, accepted: vec![] };
        let mut round = Round { goal: Goal::Acceptance(Box::new(proposal)), ..round.clone() };
        self.ask(&mut round, targets, &request, now_ns);
        Phase::Asking(Box::new(round))
    }

    /// The phase after an attempt that failed.
    fn next_attempt(&mut self, run: &mut Run, round: &Round, now_ns: u64) -> Phase {
        self.outbox.clear();
        run.attempt += 1;
        if 2 * round.unreadable.len() > self.nodes.len() || run.attempt >= run.attempts {
            return ended(Err(self.give_up(run, round)));
        }
        // A first rejection says that the counter was too low, not that somebody is in the way.
        if run.attempt == 1 && round.rejected > 0 {
            return Phase::Pausing { until_ns: now_ns };
        }
        let mean = self.timing.backoff_ns << (run.attempt - 1).min(BACKOFF_DOUBLINGS);
        let pause = mean / 2 + self.random() % mean.max(1);
        Phase::Pausing { until_ns: now_ns.saturating_add(pause) }
    }

    fn give_up(&self, run: &Run, round: &Round) -> ChangeError {
        let in_doubt = run.in_doubt;
        match round.unreadable.first() {
            Some(error) if !in_doubt => ChangeError::Record(*error),
            _ if round.rejected > 0 => ChangeError::Contended { attempts: run.attempt, in_doubt },
            _ => {
                let (answered, asked) = (round.answered, self.nodes.len());
                ChangeError::Unreachable { answered, asked, in_doubt }
            }
        }
    }

    /// SplitMix64 (Steele, Lea, Flood 2014): spreads attempts, protects nothing.
    fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.random ^ (self.random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

impl Phase {
    fn until_ns(&self) -> u64 {
        match self {
            Self::Pausing { until_ns } => *until_ns,
            Self::Asking(round) => round.until_ns,
            Self::Ended(_) => 0,
        }
    }
}

impl Proposal {
    fn committed(&self, run: &Run) -> Option<Phase> {
        let has = |id: &AcceptorId| self.accepted.iter().any(|(accepted, _)| accepted == id);
        let enough = |members: &Members| members.have_majority(has);
        if !enough(&self.record.members) || !self.before.as_ref().is_none_or(enough) {
            return None;
        }
        if let Some(refusal) = &self.refusal {
            return Some(ended(Err(refusal.clone().into())));
        }
        let receipts = self.accepted.iter().map(|(_, receipt)| receipt);
        let receipts: Vec<Bytes> =
            receipts.filter(|receipt| !receipt.is_empty()).cloned().collect();
        let value = Some(self.value.clone()).filter(|_| !receipts.is_empty());
        Some(ended(Ok(Committed {
            record: self.record.clone(),
            changed_ns: (self.record.change == run.change).then_some(run.started_ns),
            evidence: value.into_iter().chain(receipts).collect(),
        })))
    }
}

/// Counts an acceptance; a phase if the edit ends with it.
fn accept(
    round: &mut Round,
    node: NodeIndex,
    acceptor: AcceptorId,
    receipt: Bytes,
) -> Option<Phase> {
    let Goal::Acceptance(proposal) = &mut round.goal else { return None };
    if round.promised.iter().any(|(at, id)| *at == node && *id != acceptor) {
        // It lost its state between the two phases, and its promise with it.
        return None;
    }
    if let Some(ended) = identify(&mut round.promised, node, acceptor) {
        return Some(ended);
    }
    proposal.accepted.push((acceptor, receipt));
    None
}

/// Notes whose acceptor `node` has; ends the edit if another node has the same.
fn identify(
    known: &mut Vec<(NodeIndex, AcceptorId)>,
    node: NodeIndex,
    acceptor: AcceptorId,
) -> Option<Phase> {
    if let Some((other, _)) = known.iter().find(|(at, id)| *at != node && *id == acceptor) {
        return Some(ended(Err(ChangeError::Duplicate { nodes: (*other, node) })));
    }
    if !known.contains(&(node, acceptor)) {
        known.push((node, acceptor));
    }
    None
}

fn ended(result: Result<Committed, ChangeError>) -> Phase {
    Phase::Ended(Box::new(result))
}
