//! A model check of the very code: every order of deliveries, losses and time-outs, up to a bound.
//!
//! A world is the acceptors, the openers with their proposers, and the messages that were sent and
//! have not arrived. One step delivers a message and its answer, or delivers it and loses the
//! answer, or lets an opener run out of patience. A message may stay under way for ever, which is a
//! loss. An answer need not be delayed: receiving one only makes its opener send, and what it sends
//! may be delayed. A crash of an acceptor between its disk and its answer is a lost answer.
//!
//! A ghost keeps what each ballot's acceptors accepted, and so what was chosen. Checked at each step:
//!
//! * chosen values form one history: a later ballot has the same version with the same bytes, or a
//!   later version;
//! * no epoch has two openers;
//! * what a proposer calls committed was chosen, and is not older than what had been committed when
//!   its edit began;
//! * an edit that was refused is never chosen.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use super::*;
use crate::register::{AcceptorKey, AcceptorState, Holder, SuperblockRef, Transition};

const REGISTER: Uuid = [7; 16];
const LEASE_NS: u64 = 1_000;

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Mail {
    opener: usize,
    message: u64,
    node: NodeIndex,
    ballot: Ballot,
    /// The value, for the second phase.
    value: Option<Bytes>,
}

#[derive(Debug, Clone)]
struct Opener {
    proposer: Proposer,
    /// The edits still to come, last first.
    script: Vec<Edit>,
    /// The highest version that had been committed when the present edit began.
    floor: u64,
}

/// What has happened, for the checks alone.
#[derive(Debug, Clone, Default, Hash)]
struct Ghost {
    accepts: BTreeMap<Ballot, (Bytes, BTreeSet<AcceptorId>)>,
    chosen: BTreeMap<Ballot, Bytes>,
    committed_version: u64,
    refused: BTreeSet<Ballot>,
}

#[derive(Debug, Clone)]
struct World {
    acceptors: Vec<AcceptorState>,
    openers: Vec<Opener>,
    net: BTreeSet<Mail>,
    ghost: Ghost,
    /// How often an acceptor may still lose its memory and keep its name.
    amnesias: usize,
}

#[derive(Debug, Clone, Copy)]
enum Event {
    Deliver { mail: usize, answer_lost: bool },
    TimeOut { opener: usize },
    Forget { node: usize },
}

type Verdict = Result<(), String>;

fn acceptor_id(node: usize) -> AcceptorId {
    [node as u8 + 1; 32]
}

fn key() -> VolumeKey {
    VolumeKey::new(&[3; 32])
}

fn first_record() -> VolumeRecord {
    VolumeRecord {
        register: REGISTER,
        version: 1,
        epoch: 1,
        change: Ballot { counter: 1, proposer: [0; 16] },
        opener: [0; 16],
        holder: Holder::default(),
        lease_ns: LEASE_NS,
        released: false,
        superblock: SuperblockRef::default(),
        members: Members { current: (0..3).map(acceptor_id).collect(), next: vec![] },
    }
}

fn proposer(number: u8, attempts: u32) -> Proposer {
    let mut random = [0; 24];
    random[0] = number;
    let timing = Timing { answer_ns: 1, backoff_ns: 0, attempts };
    Proposer::new(REGISTER, &key(), vec![0, 1, 2], random, timing)
}

fn take_over(number: u8) -> Edit {
    let holder = Holder { id: [number; 16], name: format!("host {number}") };
    Edit::TakeOver { expected_version: 1, holder, lease_ns: LEASE_NS }
}

fn superblock(epoch: u64, version: u64) -> Edit {
    let superblock = SuperblockRef { version, epoch, sha256: [version as u8; 32] };
    Edit::Superblock { epoch, superblock }
}

impl World {
    /// Three acceptors that have the first record; each script begins with its last edit.
    fn new(scripts: Vec<Vec<Edit>>, attempts: u32) -> Self {
        let mut proposers: Vec<Proposer> =
            (0..scripts.len()).map(|number| proposer(number as u8 + 1, attempts)).collect();
        // The ballots in use are known: the attempt that would find them out adds nothing.
        proposers.iter_mut().for_each(|proposer| proposer.counter = 1);
        let value = Bytes::from(first_record().encode(&proposers[0].key, first_record().change));
        let ballot = first_record().change;
        let request = RegisterRequest::Accept { ballot, value: value.clone() };
        let accepted = |node| {
            let key = AcceptorKey::silent(acceptor_id(node));
            AcceptorState::default().step(&key, &REGISTER, &request).unwrap().next.unwrap()
        };
        let ghost = Ghost {
            accepts: [(ballot, (value.clone(), (0..3).map(acceptor_id).collect()))].into(),
            chosen: [(ballot, value)].into(),
            committed_version: 1,
            refused: BTreeSet::new(),
        };
        let openers = proposers.into_iter().zip(scripts);
        let openers = openers.map(|(proposer, script)| Opener { proposer, script, floor: 1 });
        let mut world = Self {
            acceptors: (0..3).map(accepted).collect(),
            openers: openers.collect(),
            net: BTreeSet::new(),
            ghost,
            amnesias: 0,
        };
        for opener in 0..world.openers.len() {
            world.advance(opener, 0).unwrap();
        }
        world
    }

    fn events(&self) -> Vec<Event> {
        let mut events = vec![];
        for (mail, letter) in self.net.iter().enumerate() {
            events.push(Event::Deliver { mail, answer_lost: false });
            if self.openers[letter.opener].awaits(letter) {
                events.push(Event::Deliver { mail, answer_lost: true });
            }
        }
        for (opener, state) in self.openers.iter().enumerate() {
            if state.proposer.run.is_some() {
                events.push(Event::TimeOut { opener });
            }
        }
        if self.amnesias > 0 {
            events.extend((0..self.acceptors.len()).map(|node| Event::Forget { node }));
        }
        events
    }

    fn step(&mut self, event: Event) -> Verdict {
        match event {
            Event::Deliver { mail, answer_lost } => {
                let letter = self.net.iter().nth(mail).unwrap().clone();
                self.net.remove(&letter);
                self.deliver(&letter, answer_lost)?;
            }
            Event::TimeOut { opener } => self.advance(opener, 1)?,
            Event::Forget { node } => {
                self.amnesias -= 1;
                self.acceptors[node] = AcceptorState::default();
            }
        }
        self.forget_mail_without_effect();
        Ok(())
    }

    fn deliver(&mut self, letter: &Mail, answer_lost: bool) -> Verdict {
        let node = usize::from(letter.node);
        let request = letter.request();
        let key = AcceptorKey::silent(acceptor_id(node));
        let Transition { next, response } =
            self.acceptors[node].step(&key, &REGISTER, &request).unwrap();
        if let Some(next) = next {
            self.acceptors[node] = next;
        }
        if let (Some(value), RegisterResponse::Accepted { acceptor, .. }) =
            (&letter.value, &response)
        {
            self.note_acceptance(letter.ballot, value, *acceptor)?;
        }
        if answer_lost {
            return Ok(());
        }
        let opener = &mut self.openers[letter.opener];
        opener.proposer.answer(letter.message, Ok(response), 0);
        self.advance(letter.opener, 0)
    }

    /// Lets an opener do what it can at `now_ns`, and sets its clock back to 0 after.
    fn advance(&mut self, index: usize, now_ns: u64) -> Verdict {
        loop {
            let opener = &mut self.openers[index];
            if opener.proposer.run.is_none() {
                let Some(edit) = opener.script.pop() else { break };
                opener.floor = self.ghost.committed_version;
                opener.proposer.start(edit, now_ns).unwrap();
            }
            let change = opener.proposer.run.as_ref().map(|(run, _)| run.change);
            match opener.proposer.poll(now_ns) {
                Step::Send { message, node, request } => {
                    self.net.insert(Mail::new(index, message, node, request));
                }
                Step::Wait { .. } | Step::Idle => break,
                Step::Done(result) => self.note_result(index, change, *result)?,
            }
        }
        let proposer = &mut self.openers[index].proposer;
        proposer.random = 0;
        if let Some((run, Phase::Asking(round))) = &mut proposer.run {
            (run.started_ns, round.until_ns) = (0, 1);
        }
        Ok(())
    }

    /// Drops messages that change nothing and whose answers nobody waits for.
    fn forget_mail_without_effect(&mut self) {
        let (acceptors, openers) = (&self.acceptors, &self.openers);
        // An acceptor that may yet forget may yet take any of them.
        if self.amnesias > 0 {
            return;
        }
        self.net.retain(|letter| {
            openers[letter.opener].awaits(letter)
                || letter.ballot >= acceptors[usize::from(letter.node)].promised()
        });
    }

    fn note_acceptance(&mut self, ballot: Ballot, value: &Bytes, by: AcceptorId) -> Verdict {
        let entry = self.ghost.accepts.entry(ballot).or_insert_with(|| (value.clone(), [].into()));
        if entry.0 != *value {
            return Err(format!("ballot {ballot:?} has two values"));
        }
        entry.1.insert(by);
        if 2 * entry.1.len() <= 3 || self.ghost.chosen.contains_key(&ballot) {
            return Ok(());
        }
        let (new, _) = VolumeRecord::parse(value).unwrap();
        for (other_ballot, other) in &self.ghost.chosen {
            let (old, _) = VolumeRecord::parse(other).unwrap();
            let (old, new) = if *other_ballot < ballot { (&old, &new) } else { (&new, &old) };
            let follows = old.version < new.version && old.epoch <= new.epoch || old == new;
            if !follows || (old.epoch == new.epoch && old.opener != new.opener) {
                return Err(format!("chosen: {old:?}, then {new:?}"));
            }
        }
        if self.ghost.refused.contains(&new.change) {
            return Err(format!("refused, and chosen after all: {new:?}"));
        }
        self.ghost.chosen.insert(ballot, value.clone());
        Ok(())
    }

    fn note_result(
        &mut self,
        index: usize,
        change: Option<Ballot>,
        result: Result<Committed, ChangeError>,
    ) -> Verdict {
        let opener = &self.openers[index];
        match result {
            Ok(Committed { record, changed_ns, .. }) => {
                let is_it = |value: &Bytes| VolumeRecord::parse(value).unwrap().0 == record;
                if !self.ghost.chosen.values().any(is_it) {
                    return Err(format!("called committed, but not chosen: {record:?}"));
                }
                if record.version < opener.floor + u64::from(changed_ns.is_some()) {
                    return Err(format!("older than what was committed before: {record:?}"));
                }
                self.ghost.committed_version = self.ghost.committed_version.max(record.version);
            }
            Err(ChangeError::Refused(_)) => {
                let mut chosen = self.ghost.chosen.values();
                let change = change.ok_or("an edit without a name")?;
                let happened =
                    |value: &Bytes| VolumeRecord::parse(value).unwrap().0.change == change;
                if chosen.any(happened) {
                    return Err(format!("refused, and chosen before: {change:?}"));
                }
                self.ghost.refused.insert(change);
            }
            Err(ChangeError::Unreachable { .. } | ChangeError::Contended { .. }) => {}
            Err(error) => return Err(format!("unexpected: {error}")),
        }
        if self.openers[index].script.is_empty() {
            self.openers[index].floor = 0;
        }
        Ok(())
    }

    /// What tells this world from others. Acceptors are interchangeable: worlds that differ in their
    /// order only have the same fingerprint.
    fn fingerprint(&self) -> (u64, u64) {
        let mut columns: Vec<u64> =
            (0..self.acceptors.len()).map(|node| self.column(node)).collect();
        columns.sort_unstable();
        let mut hasher = DefaultHasher::new();
        columns.hash(&mut hasher);
        (self.ghost.committed_version, &self.ghost.refused, self.amnesias).hash(&mut hasher);
        for (ballot, value) in &self.ghost.chosen {
            (ballot, tag(value)).hash(&mut hasher);
        }
        for Opener { proposer, script, floor } in &self.openers {
            (proposer.counter, proposer.rounds, script.len(), floor).hash(&mut hasher);
            let Some((run, phase)) = &proposer.run else { continue };
            (run.change, run.attempt, run.in_doubt).hash(&mut hasher);
            if let Phase::Asking(round) = phase {
                (round.number, round.ballot, round.answered, round.rejected).hash(&mut hasher);
                match &round.goal {
                    Goal::Promises { found } => found.hash(&mut hasher),
                    Goal::Acceptance(proposal) => {
                        (tag(&proposal.value), &proposal.refusal).hash(&mut hasher);
                    }
                }
            }
        }
        let first = hasher.finish();
        (columns, first).hash(&mut hasher);
        (first, hasher.finish())
    }

    /// All that concerns one acceptor, without its name.
    fn column(&self, node: usize) -> u64 {
        let mut hasher = DefaultHasher::new();
        let acceptor = &self.acceptors[node];
        let accepted = acceptor.accepted().map(|(ballot, value)| (ballot, tag(value)));
        (acceptor.promised(), accepted).hash(&mut hasher);
        for letter in self.net.iter().filter(|letter| usize::from(letter.node) == node) {
            let value = letter.value.as_ref().map(tag);
            (letter.opener, letter.message >> NODE_BITS, letter.ballot, value).hash(&mut hasher);
        }
        for (ballot, (value, by)) in &self.ghost.accepts {
            (ballot, tag(value), by.contains(&acceptor_id(node))).hash(&mut hasher);
        }
        for opener in &self.openers {
            let Some((_, Phase::Asking(round))) = &opener.proposer.run else { continue };
            let accepted = match &round.goal {
                Goal::Promises { .. } => false,
                Goal::Acceptance(proposal) => {
                    proposal.accepted.iter().any(|(id, _)| *id == acceptor_id(node))
                }
            };
            let promised = round.promised.iter().any(|(at, _)| usize::from(*at) == node);
            let pending = round.pending.iter().any(|at| usize::from(*at) == node);
            (promised, pending, accepted).hash(&mut hasher);
        }
        hasher.finish()
    }
}

/// The checksum at the end of a value: enough to tell the few values of a world apart.
fn tag(value: &Bytes) -> [u8; 4] {
    value.last_chunk().copied().unwrap_or_default()
}

impl Opener {
    /// Whether the proposer would take an answer to `letter` into account.
    fn awaits(&self, letter: &Mail) -> bool {
        matches!(&self.proposer.run, Some((_, Phase::Asking(round)))
            if round.number == letter.message >> NODE_BITS && round.pending.contains(&letter.node))
    }
}

impl Mail {
    fn new(opener: usize, message: u64, node: NodeIndex, request: RegisterRequest) -> Self {
        let (ballot, value) = match request {
            RegisterRequest::Prepare { ballot } => (ballot, None),
            RegisterRequest::Accept { ballot, value } => (ballot, Some(value)),
        };
        Self { opener, message, node, ballot, value }
    }

    fn request(&self) -> RegisterRequest {
        let ballot = self.ballot;
        match self.value.clone() {
            None => RegisterRequest::Prepare { ballot },
            Some(value) => RegisterRequest::Accept { ballot, value },
        }
    }
}

/// What an exploration saw.
#[derive(Debug, Default)]
struct Explored {
    states: usize,
    events: usize,
    /// Worlds in which all openers had ended.
    ends: usize,
    /// The most versions that were chosen in one world.
    versions: usize,
    violation: Option<String>,
}

/// Visits every state that can be reached within `states_max` states; stops at a violation.
fn explore(start: World, states_max: usize) -> Explored {
    let mut seen = HashSet::from([start.fingerprint()]);
    let mut stack = vec![start];
    let mut explored = Explored { states: 1, ..Explored::default() };
    while let Some(world) = stack.pop() {
        let events = world.events();
        let running = world.openers.iter().any(|opener| opener.proposer.run.is_some());
        explored.ends += usize::from(!running);
        explored.versions = explored.versions.max(world.ghost.chosen.len());
        for event in events {
            explored.events += 1;
            let mut next = world.clone();
            if let Err(violation) = next.step(event) {
                explored.violation = Some(violation);
                return explored;
            }
            if seen.insert(next.fingerprint()) {
                explored.states += 1;
                assert!(explored.states <= states_max, "more than {states_max} states");
                stack.push(next);
            }
        }
    }
    explored
}

fn assert_safe(name: &str, world: World, states_max: usize) {
    let explored = explore(world, states_max);
    println!("{name}: {explored:?}");
    assert_eq!(explored.violation, None);
    assert!(explored.ends > 0 && explored.versions > 1, "the model went nowhere");
}

#[test]
fn two_openers_at_once_never_both_hold() {
    let scripts = vec![vec![take_over(1)], vec![take_over(2)]];
    assert_safe("two openers, one attempt each", World::new(scripts, 1), 100_000);
}

#[test]
fn a_reader_sees_what_was_committed_before_it_began() {
    let scripts = vec![vec![take_over(1)], vec![Edit::Read]];
    assert_safe("an opener and a reader", World::new(scripts, 1), 100_000);
}

#[test]
#[ignore = "minutes: cargo test --release -p storage-vdev --lib register -- --ignored --nocapture"]
fn two_openers_that_try_again_never_both_hold() {
    let scripts = vec![vec![take_over(1)], vec![take_over(2)]];
    assert_safe("two openers, two attempts each", World::new(scripts, 2), 50_000_000);
}

#[test]
#[ignore = "minutes: cargo test --release -p storage-vdev --lib register -- --ignored --nocapture"]
fn three_openers_at_once_never_both_hold() {
    let scripts = vec![vec![take_over(1)], vec![take_over(2)], vec![take_over(3)]];
    assert_safe("three openers, one attempt each", World::new(scripts, 1), 50_000_000);
}

#[test]
#[ignore = "minutes: cargo test --release -p storage-vdev --lib register -- --ignored --nocapture"]
fn an_opener_that_goes_on_working_meets_another() {
    let scripts = vec![vec![superblock(2, 1), take_over(1)], vec![take_over(2)]];
    assert_safe("an opener with a superblock, and another", World::new(scripts, 1), 50_000_000);
}

#[test]
fn an_acceptor_that_forgets_and_keeps_its_name_is_found_out_by_this_check() {
    let scripts = vec![vec![take_over(1)], vec![take_over(2)]];
    let mut world = World::new(scripts, 1);
    world.amnesias = 1;
    let explored = explore(world, 1_000_000);
    println!("an acceptor that forgets: {explored:?}");
    let violation = explored.violation.expect("the check has no teeth");
    assert!(violation.starts_with("chosen:"), "{violation}");
}
