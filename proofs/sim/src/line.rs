//! A node's line, measured by real challengers in memory: honest nodes, and those that want more measured
//! than there is. What comes in to the node shares its line, one piece after the other; all else arrives
//! after some milliseconds.
//!
//! A cheater runs the real participant with a clock of its own, drops or holds back what it sends, and has
//! friends among the challengers. These tell it their burst by another way than the line, before the pulse
//! for all that anyone knows, and swear that they waited a microsecond.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::sync::Arc;

use fastrand::Rng;
use hypha_chain::{B256, U256, keccak256};
use hypha_proofs::Challenge;
use hypha_proofs::network::bandwidth::{BURST_NS, mbps};
use hypha_proofs::network::message::Message;
use hypha_proofs::network::participant::{Action, Moment, Participant, Settings};
use hypha_proofs::network::roster::{Caps, Member, Roster, RosterError};
use hypha_proofs::network::schedule::Pulse;
use hypha_proofs::network::statement::{BandwidthVerdict, Content};
use hypha_proofs::network::witness::{CHALLENGERS, Duty, drawn};

use crate::hardware::{MS, SECOND};
use crate::machine::{binding, key_of};
use crate::network::TOKEN;
use crate::world::{START_SECS, settings};

/// The node that is measured.
const NODE: u32 = 1;
/// All nodes: ten of the others are drawn.
const NODES: u32 = 16;
/// The shortest waits that the ledger leaves out, of ten.
const LEFT_OUT: usize = 3;
/// What the line brings, in Mbit/s.
const LINE_MBPS: u32 = 100;

/// How a node has its line measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conduct {
    /// As it is, with a claim of so many times the line.
    Plain(u32),
    /// The challengers begin one after the other, each with the whole line for itself; it claims four
    /// times the line.
    OneByOne,
    /// So many of the ten are its friends. If these are more than are left out, of the others only as many
    /// begin as are needed for more than half. It claims three times the line, or eight times.
    Friends(usize),
    /// Honest, and so many of the ten say nothing.
    Denied(usize),
}

/// One node and those who measure it.
struct Bench {
    rng: Rng,
    now_ns: u64,
    participants: BTreeMap<u32, Participant>,
    /// When, in which order, for whom.
    queue: BinaryHeap<Reverse<(u64, u64, u32)>>,
    /// By that order. What is not there is a tick of the node's clock.
    messages: BTreeMap<u64, (u32, Vec<u8>)>,
    order: u64,
    /// When the line has nothing left to bring.
    line_ns: u64,
    friends: BTreeSet<u32>,
    /// Who is not asked for a burst yet, in reverse, and what they are asked with.
    held: Vec<u32>,
    ready: Vec<u8>,
    /// Whether each is asked only when the burst before is whole.
    one_by_one: bool,
    /// Pieces that are still to come from each.
    pieces: BTreeMap<u32, usize>,
    /// Whether the receipt is given as soon as all are whole that were asked.
    hurries: bool,
    said: Vec<BandwidthVerdict>,
}

impl Conduct {
    /// All that are played.
    #[must_use]
    pub fn all() -> Vec<Self> {
        let mut all = vec![Self::Plain(1), Self::Plain(4), Self::OneByOne];
        all.extend((1..=5).map(Self::Friends));
        all.extend((1..=4).map(Self::Denied));
        all
    }

    /// What it is called in tables.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Plain(1) => "honest".to_owned(),
            Self::Plain(times) => format!("claims {times} times the line"),
            Self::OneByOne => "has challengers begin one after the other".to_owned(),
            Self::Friends(count) => format!("{count} of ten challengers are its friends"),
            Self::Denied(count) => format!("honest, {count} of ten challengers say nothing"),
        }
    }

    fn claimed_mbps(&self) -> u32 {
        LINE_MBPS
            * match self {
                Self::Plain(times) => *times,
                Self::OneByOne => 4,
                Self::Friends(count) => {
                    if *count > LEFT_OUT {
                        8
                    } else {
                        3
                    }
                }
                Self::Denied(_) => 1,
            }
    }
}

/// What is measured of the line, the mean of so many pulses, of what it is. A measurement that fails is 0.
///
/// # Errors
/// None, if there are no more nodes than a roster can have.
pub fn measured(conduct: Conduct, pulses: u64, seed: u64) -> Result<f64, RosterError> {
    let mut sum = 0.0;
    for pulse in 0..pulses {
        let found = Bench::measure(conduct, seed.wrapping_add(pulse))?;
        sum += f64::from(found.unwrap_or(0)) / f64::from(LINE_MBPS);
    }
    Ok(sum / pulses.max(1) as f64)
}

impl Bench {
    fn measure(conduct: Conduct, seed: u64) -> Result<Option<u32>, RosterError> {
        let claimed = conduct.claimed_mbps();
        let members = (1..=NODES).map(|node| member(node, claimed)).collect();
        let roster = Arc::new(Roster::new(members, START_SECS)?);
        let challenge = Challenge { pulse: 1, seed: keccak256(seed.to_be_bytes()) };
        let challengers = drawn(&roster, &challenge, Duty::Challenger, NODE);
        let mut bench = Self::new(&roster, seed);
        bench.held = challengers.clone();
        match conduct {
            Conduct::Friends(count) => {
                bench.friends = challengers.iter().take(count).copied().collect();
                if count > LEFT_OUT {
                    bench.held.truncate(challengers.len() / 2 + 1);
                }
                bench.hurries = true;
            }
            Conduct::Denied(count) => bench.held.truncate(challengers.len().saturating_sub(count)),
            Conduct::OneByOne => bench.one_by_one = true,
            Conduct::Plain(_) => {}
        }
        bench.held.reverse();
        bench.run(&Pulse { challenge, epoch: 0, timestamp: START_SECS + 1 });
        let lines: Vec<&BandwidthVerdict> = bench.said.iter().collect();
        Ok(mbps(&lines, challengers.len(), claimed))
    }

    fn new(roster: &Arc<Roster>, seed: u64) -> Self {
        let settings = Settings { measured_per_mille: 1000, ..settings() };
        let participants = (1..=NODES).map(|node| {
            let mut it = Participant::new(binding(node), Arc::new(key_of(node)), settings);
            it.on_epoch(0, Arc::clone(roster));
            (node, it)
        });
        Self {
            rng: Rng::with_seed(seed),
            now_ns: SECOND,
            participants: participants.collect(),
            queue: BinaryHeap::new(),
            messages: BTreeMap::new(),
            order: 0,
            line_ns: 0,
            friends: BTreeSet::new(),
            held: Vec::new(),
            ready: Vec::new(),
            one_by_one: false,
            pieces: BTreeMap::new(),
            hurries: false,
            said: Vec::new(),
        }
    }

    fn run(&mut self, pulse: &Pulse) {
        let moment = self.moment(0);
        for participant in self.participants.values_mut() {
            participant.on_pulse(pulse, &moment);
        }
        // The line is measured when the other deadlines are over; nothing else is looked at here.
        let rules = settings().rules;
        self.now_ns += rules.commit_ns + rules.open_ns;
        self.tick(0);
        let ends_ns = self.now_ns + 2 * BURST_NS;
        while let Some(Reverse((at_ns, order, to))) = self.queue.pop()
            && at_ns <= ends_ns
        {
            self.now_ns = at_ns;
            match self.messages.remove(&order) {
                Some((from, bytes)) => self.deliver(from, to, &bytes),
                None => self.tick(0),
            }
        }
    }

    fn deliver(&mut self, from: u32, to: u32, bytes: &[u8]) {
        let moment = self.moment(0);
        let participant = self.participants.get_mut(&to);
        let actions = participant.map(|it| it.on_message(from, bytes, &moment));
        self.act(to, actions.unwrap_or_default());
        if to != NODE {
            return;
        }
        match Message::decode(bytes) {
            Ok(Message::Head { chunks, .. }) => _ = self.pieces.insert(from, chunks.len()),
            Ok(Message::Chunk { .. }) => self.on_piece(from),
            _ => {}
        }
        self.wake_later();
    }

    /// A piece has come in.
    fn on_piece(&mut self, from: u32) {
        let Some(left) = self.pieces.get_mut(&from) else { return };
        *left = left.saturating_sub(1);
        if *left > 0 {
            return;
        }
        if self.one_by_one {
            self.ask();
        }
        let all = self.held.is_empty() && self.pieces.values().all(|left| *left == 0);
        let asked = self.pieces.len() > CHALLENGERS / 2;
        if self.hurries && all && asked {
            self.tick(BURST_NS);
        }
    }

    /// Asks the next one for its burst.
    fn ask(&mut self) {
        if let Some(next) = self.held.pop() {
            self.send(NODE, next, self.ready.clone());
        }
    }

    /// The node looks at its clock, which a cheater may have put forward.
    fn tick(&mut self, ahead_ns: u64) {
        let moment = self.moment(ahead_ns);
        let participant = self.participants.get_mut(&NODE);
        let actions = participant.map(|it| it.on_tick(&moment));
        self.act(NODE, actions.unwrap_or_default());
        self.wake_later();
    }

    /// The node's clock ticks when it is due next, as far as is known now.
    fn wake_later(&mut self) {
        let wakes = self.participants.get(&NODE).map_or(u64::MAX, Participant::wakes_ns);
        self.order += 1;
        self.queue.push(Reverse((wakes.max(self.now_ns + MS), self.order, NODE)));
    }

    fn moment(&mut self, ahead_ns: u64) -> Moment {
        let random = std::array::from_fn(|_| self.rng.u8(..));
        Moment { now_ns: self.now_ns + ahead_ns, random: B256::new(random) }
    }

    fn act(&mut self, node: u32, actions: Vec<Action>) {
        for action in actions {
            match action {
                // The same to all: it is kept, and sent to each when it is to begin.
                Action::Send { bytes, .. } if is_ready(&bytes) => {
                    let begins = self.ready.is_empty();
                    self.ready = bytes;
                    let first = if self.one_by_one { 1 } else { self.held.len() };
                    (0..if begins { first } else { 0 }).for_each(|_| self.ask());
                }
                Action::Send { to, bytes } if node == NODE || to == NODE => {
                    self.send(node, to, bytes);
                }
                Action::Said(statement) => {
                    if let Content::Bandwidth(mut line) = statement.content {
                        if self.friends.contains(&statement.author) {
                            line.micros = 1;
                        }
                        self.said.push(line);
                    }
                }
                _ => {}
            }
        }
    }

    fn send(&mut self, from: u32, to: u32, bytes: Vec<u8>) {
        let mut at_ns = self.now_ns;
        // Friends know each other's bytes.
        if !self.friends.contains(&from) && !self.friends.contains(&to) {
            at_ns += self.rng.u64(5 * MS..20 * MS);
            if to == NODE {
                at_ns = at_ns.max(self.line_ns) + bytes.len() as u64 * 8000 / u64::from(LINE_MBPS);
                self.line_ns = at_ns;
            }
        }
        self.order += 1;
        self.messages.insert(self.order, (from, bytes));
        self.queue.push(Reverse((at_ns, self.order, to)));
    }
}

fn is_ready(bytes: &[u8]) -> bool {
    matches!(Message::decode(bytes), Ok(Message::Ready { .. }))
}

/// A node with nothing but a line.
fn member(node: u32, mbps: u32) -> Member {
    Member {
        node,
        farm: node,
        signer: key_of(node).address(),
        stake: U256::from(100 * TOKEN),
        since_secs: START_SECS - 30 * 86_400,
        claimed: Caps { mbps, ..Caps::default() },
        reserved: Caps::default(),
        plot: None,
        salt: None,
        place: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(conduct: Conduct) -> f64 {
        measured(conduct, 2, 1).unwrap()
    }

    #[test]
    fn who_is_alone_gets_no_more_measured_than_there_is() {
        for conduct in [Conduct::Plain(1), Conduct::Plain(4), Conduct::OneByOne] {
            let measured = of(conduct);
            assert!((0.85..=1.0).contains(&measured), "{conduct:?}: {measured}");
        }
    }

    #[test]
    fn up_to_three_friends_gain_no_more_than_what_they_say_to_have_sent() {
        for friends in 1..=5 {
            let measured = of(Conduct::Friends(friends));
            let others = (10 - friends) as f64;
            // Six of ten must confirm, and the three shortest waits are left out.
            let most = (10.0 / others).max(3.0 / (6 - friends) as f64 * 10.0 / 7.0);
            // How near the played attack comes to the bound is not asserted.
            assert!(measured > 0.0 && measured <= most, "{friends}: {measured} of {most}");
        }
    }

    #[test]
    fn who_of_ten_says_nothing_costs_a_seventh_up_to_four() {
        for count in 1..=4 {
            let denied = of(Conduct::Denied(count));
            let left = 1.0 - count as f64 / 7.0;
            assert!((0.85 * left..=1.0).contains(&denied), "{count}: {denied}");
        }
        assert!(of(Conduct::Denied(5)).abs() < f64::EPSILON, "not more than half");
    }
}
