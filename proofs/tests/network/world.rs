//! A network in memory: participants with small machines, and lines that lose, delay and reorder. All
//! follows from one seed.

use std::collections::BTreeMap;
use std::sync::Arc;

use fastrand::Rng;
use hypha_chain::key::Key;
use hypha_chain::tree::ExtentKind;
use hypha_chain::{Address, B256, U256, keccak256};
use hypha_proofs::Rules;
use hypha_proofs::binding::Binding;
use hypha_proofs::label::{FILLER_LAYERS, LABEL_BYTES, fill};
use hypha_proofs::network::message::Message;
use hypha_proofs::network::participant::{Action, Evidence, Moment, Participant, Settings};
use hypha_proofs::network::roster::{Caps, Member, Roster};
use hypha_proofs::network::schedule::{Pulse, Round, Schedule, day_at};
use hypha_proofs::network::statement::{Content, Statement};
use hypha_proofs::prover::{Answer, Prover, sign_answer};
use hypha_proofs::ram::Table;
use hypha_proofs::store::{ExtentTree, Store};
use hypha_proofs::verifier::Claim;
use hypha_proofs::wire::SignedCommitment;

use crate::queue::Queue;

pub(crate) const RULES: Rules = Rules {
    segments: 3,
    walk_steps: 40,
    cpu_draws: 2,
    walk_draws: 2,
    disk_draws: 4,
    filler_bytes: MIB as u64,
    block_bytes: MIB as u64,
    ..Rules::STANDARD
};
pub(crate) const START: u64 = 1_800_000_000;
pub(crate) const SECOND: u64 = 1_000_000_000;
pub(crate) const TOKEN: u128 = 1_000_000_000_000_000_000;
const MIB: usize = 1 << 20;

pub(crate) fn schedule() -> Schedule {
    Schedule {
        chain_id: 31337,
        capacity: Address::repeat_byte(2),
        start_secs: START,
        round_secs: 1,
        mean_secs: 600,
        quiet_secs: 30,
    }
}

pub(crate) fn settings() -> Settings {
    Settings { rules: RULES, statements_max: 10_000, ..Settings::standard(schedule()) }
}

pub(crate) fn binding(node: u32) -> Binding {
    Binding {
        chain_id: 31337,
        registry: Address::repeat_byte(1),
        capacity: Address::repeat_byte(2),
        disputes: Address::repeat_byte(3),
        node,
    }
}

pub(crate) fn salt(node: u32) -> B256 {
    keccak256([b"salt".as_slice(), &node.to_be_bytes()].concat())
}

pub(crate) fn key(node: u32) -> Key {
    Key::from_bytes(&keccak256(node.to_be_bytes()).0).unwrap()
}

/// A pulse of an epoch, some minutes after its beginning.
pub(crate) fn pulse(epoch: u32, number: u64) -> Pulse {
    let timestamp = START + u64::from(epoch) * 3600 + number * 60 + 1;
    let round = Round { number: timestamp - START, timestamp, entropy: keccak256("entropy") };
    let seed = schedule().seed(&round);
    Pulse { challenge: hypha_proofs::Challenge { pulse: round.number, seed }, epoch, timestamp }
}

/// What is answered to whoever wants a piece of something.
pub(crate) type Lie = fn(B256, u32) -> Vec<Message>;

/// How a node behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manner {
    Honest,
    /// It never answers a pulse, but watches others.
    Idle,
    /// It says and hears nothing.
    Silent,
    /// Its commitments come after the deadline.
    Late,
    /// Its table is another than it announced.
    Forgetful,
    /// It keeps cheap bytes instead of filler.
    Cheap,
}

/// What a node has.
pub(crate) struct Machine {
    pub(crate) table: Table,
    store: Store,
    extents: Vec<Vec<u8>>,
}

impl Machine {
    /// One MiB of table, and two of disk: one of filler, one of a user.
    fn new(node: u32) -> &'static Self {
        let bytes = |part: u8| {
            let mut rng = Rng::with_seed(u64::from(node) << 8 | u64::from(part));
            (0..MIB / 8).flat_map(|_| rng.u64(..).to_be_bytes()).collect::<Vec<u8>>()
        };
        Self::of([bytes(1), bytes(2), bytes(3)])
    }

    /// The same, but with true filler.
    fn with_filler(node: u32) -> &'static Self {
        let context = binding(node).filler(0, 0, &salt(node));
        let filler = fill(context, FILLER_LAYERS, (MIB / LABEL_BYTES) as u64).unwrap();
        let machine = Self::new(node);
        let table = machine.extents[1].clone();
        Self::of([filler, machine.extents[1].clone(), table])
    }

    fn of([filler, shard, block]: [Vec<u8>; 3]) -> &'static Self {
        let extents = vec![filler, shard];
        let kinds = [ExtentKind::Filler, ExtentKind::User];
        let trees = extents.iter().zip(kinds).zip(0..);
        let trees = trees.map(|((bytes, kind), id)| (kind, id, ExtentTree::of(bytes))).collect();
        let table = Table::new(vec![block]).unwrap();
        // Tests end before that matters.
        Box::leak(Box::new(Self { table, store: Store::new(trees).unwrap(), extents }))
    }

    fn answer(
        &'static self,
        claim: &Claim,
        challenge: &hypha_proofs::Challenge,
    ) -> Answer<'static> {
        let prover = Prover {
            binding: claim.binding,
            rules: RULES,
            threads: claim.threads,
            table: claim.table.map(|_| &self.table),
            store: claim.plot.map(|_| &self.store),
        };
        let mut work = prover.begin(challenge).unwrap();
        work.chains.iter_mut().for_each(|chain| assert_eq!(chain.advance(u64::MAX), 0));
        if let Some(walk) = &mut work.walk {
            assert_eq!(walk.advance(&self.table, u64::MAX), 0);
        }
        let read = |read: &hypha_proofs::store::Read| {
            self.extents[read.extent][read.range.start as usize..read.range.end as usize].to_vec()
        };
        let groups: Vec<Vec<u8>> = work.reads.iter().map(read).collect();
        prover.commit(challenge, work, &groups).unwrap()
    }
}

/// A node of the network.
pub(crate) struct Peer {
    pub(crate) participant: Participant,
    pub(crate) manner: Manner,
    machine: &'static Machine,
    answers: BTreeMap<u64, Answer<'static>>,
    pub(crate) said: Vec<Statement>,
    pub(crate) evidence: Vec<Evidence>,
    pub(crate) sent_bytes: u64,
    /// What it was given by its hash, and by whom.
    pub(crate) fetched: Vec<(B256, u32, Vec<u8>)>,
}

enum Event {
    Message { from: u32, bytes: Vec<u8> },
    Committed { pulse: u64 },
    Regenerated { of: u32, is_table: bool, is_true: bool },
    Tick,
}

pub(crate) struct World {
    pub(crate) seed: u64,
    pub(crate) rng: Rng,
    pub(crate) now_ns: u64,
    pub(crate) peers: BTreeMap<u32, Peer>,
    queue: Queue<Event>,
    /// Of 1000 messages, so many are lost.
    pub(crate) lost_per_mille: u32,
    pub(crate) settings: Settings,
    /// A node whose line is so many times slower than the others'.
    pub(crate) slow: Option<(u32, u64)>,
    /// Whether the chain has drawn salts.
    salted: bool,
    /// When each node's line has nothing left to bring.
    lines: BTreeMap<u32, u64>,
    /// Who says of everything that it is made again that it is what it is not.
    pub(crate) slanderers: Vec<u32>,
    made_again: BTreeMap<(u32, bool), bool>,
    /// Who answers whoever wants a piece with something of its own; nothing, if that is empty.
    pub(crate) liars: BTreeMap<u32, Lie>,
    /// Nobody compares what it has with others' any more.
    pub(crate) no_comparing: bool,
    /// Whether messages are kept, and those that were.
    pub(crate) record: bool,
    pub(crate) recorded: Vec<Vec<u8>>,
}

pub(crate) fn member(node: u32, farm: u32, machine: Option<&Machine>) -> Member {
    Member {
        node,
        farm,
        signer: key(node).address(),
        stake: U256::from(1000 * TOKEN),
        since_secs: START - 86_400 * 30,
        claimed: Caps { cores: 2, mem_mib: 1, ssd_mib: 0, hdd_mib: 2, mbps: 100 },
        reserved: Caps::default(),
        plot: machine.map(|machine| machine.store.record()),
        salt: None,
        place: None,
    }
}

impl World {
    /// Nodes 1 to `count`, each with a farm of its own.
    pub(crate) fn new(count: u32, seed: u64) -> Self {
        let peers = (1..=count).map(|node| {
            let participant = Participant::new(binding(node), Arc::new(key(node)), settings());
            let peer = Peer {
                participant,
                manner: Manner::Honest,
                machine: Machine::new(node),
                answers: BTreeMap::new(),
                said: Vec::new(),
                evidence: Vec::new(),
                sent_bytes: 0,
                fetched: Vec::new(),
            };
            (node, peer)
        });
        Self {
            seed,
            rng: Rng::with_seed(seed),
            now_ns: SECOND,
            peers: peers.collect(),
            queue: Queue::new(),
            lost_per_mille: 0,
            settings: settings(),
            slow: None,
            salted: false,
            lines: BTreeMap::new(),
            slanderers: Vec::new(),
            made_again: BTreeMap::new(),
            liars: BTreeMap::new(),
            no_comparing: false,
            record: false,
            recorded: Vec::new(),
        }
    }

    /// All have filler that was made as it should be, but some cheap bytes; and its salts are known.
    pub(crate) fn plot(&mut self, cheap: &[u32]) {
        for (node, peer) in &mut self.peers {
            if cheap.contains(node) {
                peer.manner = Manner::Cheap;
            } else {
                peer.machine = Machine::with_filler(*node);
            }
        }
        self.salted = true;
    }

    /// All begin anew, with the settings as they are now.
    pub(crate) fn rebuild(&mut self) {
        for (node, peer) in &mut self.peers {
            peer.participant =
                Participant::new(binding(*node), Arc::new(key(*node)), self.settings);
        }
    }

    /// A node begins anew in epoch 0 and knows nothing, but behaves well.
    pub(crate) fn restart(&mut self, node: u32, roster: &Arc<Roster>) {
        let peer = self.peers.get_mut(&node).unwrap();
        peer.participant = Participant::new(binding(node), Arc::new(key(node)), self.settings);
        peer.manner = Manner::Honest;
        peer.participant.on_epoch(0, Arc::clone(roster));
        self.queue.at(node, self.now_ns, Event::Tick);
    }

    /// A node says something to another, whatever it is.
    pub(crate) fn say(&mut self, author: u32, to: u32, content: Content) {
        self.forge(author, author, to, content);
    }

    /// The same, but signed by another.
    pub(crate) fn forge(&mut self, author: u32, signer: u32, to: u32, content: Content) {
        let statement = Statement::new(author, content, &binding(author), &key(signer));
        self.send(signer, to, Message::Statements(vec![statement]).encode());
    }

    /// A node sends a witness another commitment for a pulse that it has answered.
    pub(crate) fn commit_again(&mut self, node: u32, witness: u32, pulse: &Pulse, walk: B256) {
        let answer = &self.peers[&node].answers[&pulse.challenge.pulse];
        let mut commitment = answer.commitment(&key(node)).commitment;
        commitment.walk = Some(walk);
        let signature = sign_answer(&binding(node), &commitment, &key(node));
        let bytes = SignedCommitment { commitment, signature }.encode();
        self.send(node, witness, Message::Commitment(bytes).encode());
    }

    pub(crate) fn roster(&self, farm_of: impl Fn(u32) -> u32) -> Arc<Roster> {
        let members = self.peers.iter();
        let members = members.map(|(node, peer)| {
            let salt = self.salted.then(|| salt(*node));
            Member { salt, ..member(*node, farm_of(*node), Some(peer.machine)) }
        });
        Arc::new(Roster::new(members.collect(), START).unwrap())
    }

    /// An epoch begins, and all announce their tables.
    pub(crate) fn epoch(&mut self, epoch: u32, roster: &Arc<Roster>) {
        for node in self.nodes() {
            let moment = self.moment();
            let peer = self.peers.get_mut(&node).unwrap();
            peer.participant.on_epoch(epoch, Arc::clone(roster));
            let mut table = peer.machine.table.record();
            if peer.manner == Manner::Forgetful {
                table.root = B256::ZERO;
            }
            let day = day_at(schedule().epoch_end(epoch) - 1);
            let actions = peer.participant.on_table(day, table, &moment);
            self.act(node, actions);
            self.queue.at(node, self.now_ns, Event::Tick);
        }
        self.run(3 * SECOND);
    }

    /// A pulse reaches all nodes within 0.2 s.
    pub(crate) fn pulse(&mut self, pulse: &Pulse) {
        for node in self.nodes() {
            let mut moment = self.moment();
            moment.now_ns += self.rng.u64(..SECOND / 5);
            let peer = self.peers.get_mut(&node).unwrap();
            let actions = peer.participant.on_pulse(pulse, &moment);
            self.act(node, actions);
        }
    }

    pub(crate) fn nodes(&self) -> Vec<u32> {
        self.peers.keys().copied().collect()
    }

    fn moment(&mut self) -> Moment {
        let random = std::array::from_fn(|_| self.rng.u8(..));
        Moment { now_ns: self.now_ns, random: B256::new(random) }
    }

    /// Sends something as if it came from a node.
    pub(crate) fn send(&mut self, from: u32, to: u32, bytes: Vec<u8>) {
        let compares = matches!(Message::decode(&bytes), Ok(Message::Summary(..)));
        if self.no_comparing && compares {
            return;
        }
        if self.rng.u32(..1000) >= self.lost_per_mille {
            if self.record {
                self.recorded.push(bytes.clone());
            }
            // Up to 40 ms on the way, then a line of a hundred Mbit/s with all else that comes.
            let comes = self.now_ns + self.rng.u64(1_000_000..40_000_000);
            let slower = self.slow.filter(|(node, _)| *node == to).map_or(1, |(_, times)| times);
            let line = self.lines.entry(to).or_default();
            *line = (*line).max(comes) + bytes.len() as u64 * 80 * slower;
            let at = *line;
            self.queue.at(to, at, Event::Message { from, bytes });
        }
    }

    fn act(&mut self, node: u32, actions: Vec<Action>) {
        for action in actions {
            let peer = self.peers.get_mut(&node).unwrap();
            match action {
                Action::Send { to, bytes } => {
                    peer.sent_bytes += bytes.len() as u64;
                    self.send(node, to, bytes);
                }
                Action::Work { challenge, claim } => {
                    if peer.manner == Manner::Idle {
                        continue;
                    }
                    let answer = peer.machine.answer(&claim, &challenge);
                    peer.answers.insert(challenge.pulse, answer);
                    let late = peer.manner == Manner::Late;
                    let takes = if late { 6 * SECOND } else { self.rng.u64(SECOND..4 * SECOND) };
                    let event = Event::Committed { pulse: challenge.pulse };
                    self.queue.at(node, self.now_ns + takes, event);
                }
                Action::Open { pulse, witness, draw } => {
                    let opening = peer.answers[&pulse].open(&draw, &key(node)).unwrap();
                    let actions = peer.participant.on_opened(pulse, witness, &opening);
                    self.act(node, actions);
                }
                Action::Said(statement) => peer.said.push(statement),
                Action::Evidence(evidence) => peer.evidence.push(*evidence),
                Action::Fetched { hash, from, bytes } => peer.fetched.push((hash, from, bytes)),
                Action::Regenerate { node: of, is_table, mut job } => {
                    // It takes long, and each machine has one extent of filler.
                    let is_true = *self.made_again.entry((of, is_table)).or_insert_with(|| {
                        assert_eq!(job.advance(u64::MAX), 0);
                        job.finish().unwrap()
                    });
                    let is_true = is_true != self.slanderers.contains(&node);
                    let event = Event::Regenerated { of, is_table, is_true };
                    self.queue.at(node, self.now_ns + SECOND, event);
                }
            }
        }
        let wakes = self.peers[&node].participant.wakes_ns();
        self.queue.at(node, wakes.max(self.now_ns + 1), Event::Tick);
    }

    /// Time goes on.
    pub(crate) fn run(&mut self, for_ns: u64) {
        let until = self.now_ns + for_ns;
        while let Some((at, node, event)) = self.queue.next(until) {
            self.now_ns = self.now_ns.max(at);
            let moment = self.moment();
            let peer = self.peers.get_mut(&node).unwrap();
            if peer.manner == Manner::Silent {
                continue;
            }
            let lie = self.liars.get(&node).copied();
            let actions = match event {
                Event::Message { from, bytes }
                    if let (Some(lie), Ok(Message::WantPiece { hash, offset })) =
                        (lie, Message::decode(&bytes)) =>
                {
                    for message in lie(hash, offset) {
                        self.send(node, from, message.encode());
                    }
                    continue;
                }
                Event::Message { from, bytes } => {
                    peer.participant.on_message(from, &bytes, &moment)
                }
                Event::Committed { pulse } => {
                    let commitment = peer.answers[&pulse].commitment(&key(node));
                    peer.participant.on_commitment(&commitment, &moment)
                }
                // An earlier tick may have done it already.
                Event::Regenerated { of, is_table, is_true } => {
                    peer.participant.on_regenerated(of, is_table, is_true, &moment);
                    Vec::new()
                }
                Event::Tick if peer.participant.wakes_ns() > self.now_ns => continue,
                Event::Tick => {
                    let actions = peer.participant.on_tick(&moment);
                    let wakes = peer.participant.wakes_ns();
                    assert!(wakes > moment.now_ns, "seed {}: node {node} spins", self.seed);
                    actions
                }
            };
            self.act(node, actions);
        }
        self.now_ns = until;
    }
}
