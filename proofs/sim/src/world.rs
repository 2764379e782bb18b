//! Some tens of nodes in memory, each a real participant: pulses, draws, openings, verdicts and gossip
//! over lines that delay, reorder and lose, machines that crash, and cheaters among them. Nothing is
//! sampled here; what it cannot show is how many nodes there are in large.

use std::collections::BTreeMap;
use std::sync::Arc;

use fastrand::Rng;
use hypha_chain::{B256, U256, keccak256};
use hypha_proofs::Challenge;
use hypha_proofs::network::participant::{Action, Evidence, Moment, Participant, Settings};
use hypha_proofs::network::roster::{Caps, Member, Roster, RosterError};
use hypha_proofs::network::schedule::{Pulse, Round, Schedule};
use hypha_proofs::network::statement::Content;

use crate::arena::{Faults, Line};
use crate::hardware::{MS, SECOND};
use crate::liar::Reply;
use crate::machine::{CHAIN_ID, Claims, DAY, RULES, THREADS, key_of, salt, suite};
use crate::network::TOKEN;
use crate::queue::Queue;
use crate::strategy::{Player, Strategy};

/// The first second of epoch 0.
pub(crate) const START_SECS: u64 = 1_800_000_000;
/// How long a pulse is watched, in nanoseconds: until all verdicts have gone round.
const WATCHED_NS: u64 = 25 * SECOND;

/// What messages are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Traffic {
    /// Commitments and draws.
    Pulse,
    /// Openings.
    Opening,
    /// Statements.
    Statement,
    /// Comparing of pools.
    Compare,
    /// Bursts.
    Burst,
}

/// What one node found of another in a pulse.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// Who says it.
    pub witness: u32,
    /// Of whom.
    pub node: u32,
    /// What of it is proven.
    pub proven: Claims,
}

/// What came of some pulses.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Story {
    /// For each pulse, what is in the pool of a node that was there all the time.
    pub pulses: Vec<Vec<Found>>,
    /// Pieces of evidence, by whom they are against; contradictions of statements under 0.
    pub evidence: BTreeMap<u32, u32>,
    /// Extents and blocks that were made again: whose, and whether they were true.
    pub made_again: Vec<(u32, bool)>,
    /// Bytes sent by all.
    pub bytes: BTreeMap<Traffic, u64>,
    /// Statements that were made.
    pub statements: u64,
    /// Over all that was sent, in its order.
    pub trace: B256,
}

enum Event {
    Pulse(Pulse),
    Message { from: u32, bytes: Vec<u8> },
    Done { pulse: u64 },
    Tick,
}

struct Peer<'a> {
    player: &'a Player,
    participant: Participant,
    replies: BTreeMap<u64, Reply<'a>>,
    line: Line,
    /// Whether it is up.
    up: bool,
}

/// A network of participants.
pub struct World<'a> {
    rng: Rng,
    now_ns: u64,
    peers: BTreeMap<u32, Peer<'a>>,
    queue: Queue<Event>,
    faults: Faults,
    story: Story,
}

/// The machines of a world: node 1 and on, one for each strategy.
#[must_use]
pub fn players(strategies: &[Strategy], seed: u64) -> Vec<Player> {
    strategies.iter().zip(1..).map(|(strategy, node)| Player::new(*strategy, node, seed)).collect()
}

pub(crate) fn settings() -> Settings {
    let schedule = Schedule {
        chain_id: CHAIN_ID,
        capacity: suite().capacity,
        start_secs: START_SECS,
        round_secs: 1,
        mean_secs: 600,
        quiet_secs: 30,
    };
    Settings { rules: RULES, statements_max: 100_000, ..Settings::standard(schedule) }
}

impl<'a> World<'a> {
    /// All have announced their tables, and pulse `number` comes some minutes later each.
    ///
    /// # Errors
    /// None, if there are no more nodes than a roster can have.
    pub fn play(
        players: &'a [Player],
        faults: &Faults,
        pulses: u64,
        seed: u64,
    ) -> Result<Story, RosterError> {
        let mut rng = Rng::with_seed(seed);
        let mut peers = BTreeMap::new();
        for player in players {
            let Some(machine) = player.machine() else { continue };
            let key = Arc::new(key_of(machine.binding.node));
            let participant = Participant::new(machine.binding, key, settings());
            let slow = rng.u32(..1000) < faults.slow;
            let line = if slow { Line::SLOW } else { Line::USUAL };
            let peer = Peer { player, participant, replies: BTreeMap::new(), line, up: true };
            peers.insert(machine.binding.node, peer);
        }
        let mut world = Self {
            rng,
            now_ns: SECOND,
            peers,
            queue: Queue::new(),
            faults: *faults,
            story: Story::default(),
        };
        world.begin()?;
        for number in 0..pulses {
            world.pulse(number);
        }
        Ok(world.story)
    }

    fn begin(&mut self) -> Result<(), RosterError> {
        let members = self.peers.values().filter_map(|peer| member(peer.player)).collect();
        let roster = Arc::new(Roster::new(members, START_SECS)?);
        // Machines have their tables for that day.
        let day = DAY;
        for node in self.nodes() {
            let moment = self.moment();
            let Some(peer) = self.peers.get_mut(&node) else { continue };
            peer.participant.on_epoch(0, Arc::clone(&roster));
            peer.participant.on_day(day, salt());
            let Some(table) = peer.player.machine().map(|it| it.table.record()) else { continue };
            let actions = peer.participant.on_table(day, table, &moment);
            self.act(node, actions);
            self.queue.at(node, self.now_ns, Event::Tick);
        }
        self.run(10 * SECOND);
        self.story.bytes.clear();
        self.story.statements = 0;
        Ok(())
    }

    fn pulse(&mut self, number: u64) {
        let timestamp = START_SECS + 1 + number * 60;
        let entropy = keccak256(self.rng.u64(..).to_be_bytes());
        let round = Round { number: timestamp - START_SECS, timestamp, entropy };
        let challenge = Challenge { pulse: round.number, seed: settings().schedule.seed(&round) };
        let pulse = Pulse { challenge, epoch: 0, timestamp };
        for node in self.nodes() {
            let (down, heard_ns) =
                (self.rng.u32(..10_000) < self.faults.down, self.rng.u64(..self.faults.hears_ns));
            // The first one is there all the time: what it has heard is the story.
            if let Some(peer) = self.peers.get_mut(&node) {
                peer.up = !down || node == 1;
            }
            self.queue.at(node, self.now_ns + heard_ns, Event::Pulse(pulse));
        }
        self.run(WATCHED_NS);
        let found = self.peers.get(&1).map(|peer| found(&peer.participant, &pulse));
        self.story.pulses.push(found.unwrap_or_default());
        self.now_ns += 60 * SECOND - WATCHED_NS;
    }

    fn nodes(&self) -> Vec<u32> {
        self.peers.keys().copied().collect()
    }

    fn moment(&mut self) -> Moment {
        let random = std::array::from_fn(|_| self.rng.u8(..));
        Moment { now_ns: self.now_ns, random: B256::new(random) }
    }

    fn send(&mut self, from: u32, to: u32, bytes: Vec<u8>) {
        *self.story.bytes.entry(traffic(&bytes)).or_default() += bytes.len() as u64;
        let order = self.queue.planned.to_be_bytes();
        self.story.trace = keccak256([&self.story.trace[..], &order, &bytes].concat());
        let Some(line) = self.peers.get(&from).map(|peer| peer.line) else { return };
        if self.rng.u32(..1000) < line.lost {
            return;
        }
        let on_the_wire = bytes.len() as u64 * SECOND / line.bytes_per_sec;
        let delay = on_the_wire + self.rng.u64(line.delay_ns.0..line.delay_ns.1);
        self.queue.at(to, self.now_ns + delay, Event::Message { from, bytes });
    }

    fn act(&mut self, node: u32, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Send { to, bytes } => self.send(node, to, bytes),
                Action::Work { challenge, .. } => self.work(node, &challenge),
                Action::Open { pulse, witness, draw } => {
                    let Some(peer) = self.peers.get_mut(&node) else { continue };
                    let opening = peer.replies.get(&pulse).and_then(|reply| reply.open(&draw));
                    let Some(opening) = opening else { continue };
                    let actions = peer.participant.on_opened(pulse, witness, &opening);
                    self.act(node, actions);
                }
                Action::Said(_) => self.story.statements += 1,
                // Epochs are not posted here, so nothing is wanted of them.
                Action::Fetched { .. } => {}
                Action::Evidence(evidence) => {
                    let against = match *evidence {
                        Evidence::Segment { claim, .. } => claim.node,
                        Evidence::Answers(both) => both[0].commitment.node,
                        Evidence::Statements(_) => 0,
                    };
                    *self.story.evidence.entry(against).or_default() += 1;
                }
                Action::Regenerate { node: of, is_table, mut job } => {
                    while job.advance(u64::MAX) > 0 {}
                    let is_true = job.finish().unwrap_or(false);
                    self.story.made_again.push((of, is_true));
                    let moment = self.moment();
                    let Some(peer) = self.peers.get_mut(&node) else { continue };
                    peer.participant.on_regenerated(of, is_table, is_true, &moment);
                }
            }
        }
        let wakes = self.peers.get(&node).map(|peer| peer.participant.wakes_ns());
        let wakes = wakes.unwrap_or(u64::MAX).max(self.now_ns + MS);
        self.queue.at(node, wakes, Event::Tick);
    }

    fn work(&mut self, node: u32, challenge: &Challenge) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let player: &'a Player = peer.player;
        let Some(played) = player.answer(challenge) else { return };
        if let Some(reply) = played.reply {
            peer.replies.insert(challenge.pulse, reply);
            let done = Event::Done { pulse: challenge.pulse };
            self.queue.at(node, self.now_ns + played.ready_ns, done);
        }
    }

    fn run(&mut self, for_ns: u64) {
        let until = self.now_ns + for_ns;
        while let Some((at, node, event)) = self.queue.next(until) {
            self.now_ns = self.now_ns.max(at);
            let moment = self.moment();
            let Some(peer) = self.peers.get_mut(&node).filter(|peer| peer.up) else { continue };
            let actions = match event {
                Event::Pulse(pulse) => peer.participant.on_pulse(&pulse, &moment),
                Event::Message { from, bytes } => {
                    peer.participant.on_message(from, &bytes, &moment)
                }
                Event::Done { pulse } => match peer.replies.get(&pulse) {
                    Some(reply) => peer.participant.on_commitment(&reply.commitment(), &moment),
                    None => continue,
                },
                // An earlier tick may have done it already.
                Event::Tick if peer.participant.wakes_ns() > self.now_ns => continue,
                Event::Tick => peer.participant.on_tick(&moment),
            };
            self.act(node, actions);
        }
        self.now_ns = until;
    }
}

/// What a node's pool has of a pulse.
fn found(participant: &Participant, pulse: &Pulse) -> Vec<Found> {
    let Some(pool) = participant.pool(pulse.epoch) else { return Vec::new() };
    let of_pulse = pool.clear().filter_map(|statement| match &statement.content {
        Content::Verdict(verdict) if verdict.pulse == pulse.challenge.pulse => {
            let proven = Claims {
                cpu: verdict.threads > 0,
                mem: verdict.memMiB > 0,
                disk: verdict.fillerDraws > 0,
            };
            Some(Found { witness: statement.author, node: verdict.node, proven })
        }
        _ => None,
    });
    of_pulse.collect()
}

/// What a message is for, by its kind.
fn traffic(bytes: &[u8]) -> Traffic {
    match bytes.get(1) {
        Some(0 | 1) => Traffic::Pulse,
        Some(2) => Traffic::Opening,
        Some(3) => Traffic::Statement,
        Some(4..=6) => Traffic::Compare,
        _ => Traffic::Burst,
    }
}

fn member(player: &Player) -> Option<Member> {
    let machine = player.machine()?;
    let claims = machine.claims;
    let claimed = Caps {
        cores: if claims.cpu { THREADS } else { 0 },
        mem_mib: u32::from(claims.mem),
        ssd_mib: 0,
        hdd_mib: u64::from(claims.disk),
        mbps: 10,
    };
    Some(Member {
        node: machine.binding.node,
        farm: machine.binding.node,
        signer: machine.key.address(),
        stake: U256::from(100 * TOKEN),
        since_secs: START_SECS - 30 * 86_400,
        claimed,
        reserved: Caps::default(),
        plot: claims.disk.then(|| machine.store.record()),
        salt: Some(salt()),
        place: None,
    })
}
