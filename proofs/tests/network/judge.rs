//! Posted epochs, judged by each node itself: with data and statements from peers of whom some lie.

use std::collections::BTreeMap;
use std::sync::Arc;

use hypha_chain::{B256, keccak256};
use hypha_proofs::network::audit::{Objection, Posted};
use hypha_proofs::network::epoch::{Difference, EpochData};
use hypha_proofs::network::judge::{Closed, Judge, Judgement, Settings};
use hypha_proofs::network::ledger::{Closing, Ledger, Terms, Weights};
use hypha_proofs::network::message::{CHUNK_BYTES, Message};
use hypha_proofs::network::pool::{Pool, Range};
use hypha_proofs::network::roster::Roster;

use crate::world::{Lie, Manner, RULES, SECOND, START, TOKEN, World, pulse, schedule, settings};

const NODES: u32 = 10;
const WINDOW: u64 = 6 * 3600;
const PATIENCE: u64 = 60;

fn terms() -> Terms {
    Terms {
        emission: 1000 * TOKEN,
        cap: 1_000_000 * TOKEN,
        disk_draws: RULES.disk_draws,
        measured_per_mille: settings().measured_per_mille,
        weights: Weights::STANDARD,
    }
}

fn judge() -> Judge {
    Judge::new(Settings {
        terms: terms(),
        schedule: schedule(),
        window_secs: WINDOW,
        patience_ns: PATIENCE * SECOND,
        statements_max: 10_000,
    })
}

/// A network whose nodes judge.
struct Court {
    world: World,
    roster: Arc<Roster>,
    judges: BTreeMap<u32, Judge>,
}

impl Court {
    /// An epoch with a pulse, which these nodes heard nothing of; and it is over.
    fn new(seed: u64, away: &[u32]) -> Self {
        let mut world = World::new(NODES, seed);
        for node in away {
            world.peers.get_mut(node).unwrap().manner = Manner::Silent;
        }
        let roster = world.roster(|node| node);
        world.epoch(0, &roster);
        world.pulse(&pulse(0, 0));
        world.run(25 * SECOND);
        // Whoever was away is told nothing but what it asks for.
        world.no_comparing = true;
        for node in away {
            world.restart(*node, &roster);
            world.peers.get_mut(node).unwrap().participant.on_past_pulse(&pulse(0, 0));
        }
        let judges = (1..=NODES).map(|node| (node, judge())).collect();
        let mut court = Self { world, roster, judges };
        for node in 1..=NODES {
            // Who was away can't say what was known in time.
            court.ends(node, 0, !away.contains(&node));
        }
        court.run(11);
        court
    }

    fn ends(&mut self, node: u32, epoch: u32, is_seen: bool) {
        let now = self.world.now_ns;
        let settles = is_seen.then_some(now + 5 * SECOND);
        let judge = self.judges.get_mut(&node).unwrap();
        judge.on_ended(epoch, (NODES, NODES), settles, now + 10 * SECOND);
    }

    fn now_secs(&self) -> u64 {
        START + self.world.now_ns / SECOND
    }

    /// Time goes on, and all do what is due.
    fn run(&mut self, secs: u64) {
        for _ in 0..secs {
            self.world.run(SECOND);
            let (now_ns, now_secs) = (self.world.now_ns, self.now_secs());
            for (node, judge) in &mut self.judges {
                let peer = self.world.peers.get_mut(node).unwrap();
                for (hash, _, bytes) in std::mem::take(&mut peer.fetched) {
                    judge.on_fetched(&hash, bytes, &mut peer.participant);
                }
                judge.tend(&mut peer.participant, now_ns, now_secs);
            }
        }
    }

    /// What a node makes of the next epoch.
    fn next(&mut self, node: u32) -> Option<Arc<Closed>> {
        let peer = self.world.peers.get_mut(&node).unwrap();
        self.judges.get_mut(&node).unwrap().next(0, &mut peer.participant, self.world.now_ns)
    }

    fn serve(&mut self, node: u32, closed: &Closed) {
        let participant = &mut self.world.peers.get_mut(&node).unwrap().participant;
        participant.serve(closed.data.epoch, closed.blobs());
    }

    fn post(&mut self, posted: Posted, epoch: u32) {
        let (now_ns, now_secs) = (self.world.now_ns, self.now_secs());
        for judge in self.judges.values_mut() {
            judge.on_posted(epoch, posted, now_secs, now_ns);
        }
    }

    fn void(&mut self, epoch: u32) {
        for (node, judge) in &mut self.judges {
            let peer = self.world.peers.get_mut(node).unwrap();
            judge.on_voided(epoch, &mut peer.participant, self.world.now_ns);
        }
    }

    fn judgement(&self, node: u32, epoch: u32) -> &Judgement {
        self.judges[&node].judgement(epoch).unwrap()
    }

    fn all_are(&self, wanted: &Judgement) {
        for node in 1..=NODES {
            assert_eq!(self.judgement(node, 0), wanted, "node {node}");
        }
    }

    /// The epoch of some of the statements only.
    fn without(&self, left_out: usize) -> Closed {
        let participant = &self.world.peers[&1].participant;
        let all = participant.pool(0).unwrap();
        let mut pool = Pool::new(10_000);
        all.clear().skip(left_out).for_each(|it| _ = pool.add(it.clone()));
        let closing = Closing {
            epoch: 0,
            ends_secs: START + 3600,
            counts: (NODES, NODES),
            roster: &self.roster,
            pulses: participant.pulses(0),
            pool: &pool,
        };
        let data = Ledger::default().close(&terms(), &closing).unwrap();
        Closed { before: B256::ZERO, data, numbers: pool.ids(Range::ALL).collect() }
    }
}

fn of(data: &EpochData) -> Posted {
    Posted::of(data).unwrap()
}

/// Pays farm 3 more.
fn forged(closed: &Closed) -> Closed {
    let mut forged = closed.clone();
    forged.data.rewards[2].cumulative += TOKEN;
    forged
}

#[test]
fn who_has_made_the_same_needs_nothing_of_anybody() {
    let mut court = Court::new(30, &[]);
    let made = court.next(1).unwrap();
    court.world.record = true;
    court.post(of(&made.data), 0);
    court.run(2);
    court.all_are(&Judgement::True);
    let asks = |bytes: &Vec<u8>| matches!(Message::decode(bytes), Ok(Message::WantPiece { .. }));
    assert_eq!(court.world.recorded.iter().filter(|it| asks(it)).count(), 0);
    // The next one goes on from it.
    assert_eq!((court.judges[&4].newest(), court.next(4)), (Some(0), None));
    (1..=NODES).for_each(|node| court.ends(node, 1, true));
    court.run(11);
    assert_eq!(court.next(4), None, "an epoch without a pulse has nothing to say");
}

#[test]
fn who_was_away_fetches_data_and_statements_and_judges_by_them() {
    let mut court = Court::new(31, &[9]);
    let made = court.next(1).unwrap();
    assert!(made.data.has_pulses());
    court.post(of(&made.data), 0);
    court.run(30);
    court.all_are(&Judgement::True);
    assert_eq!(court.judges[&9].data(0), Some(&made.data));
    // It serves now what it has fetched, and a false one would have been found out as well.
    let mut court = Court::new(31, &[9]);
    let false_one = forged(&court.next(1).unwrap());
    court.serve(1, &false_one);
    court.post(of(&false_one.data), 0);
    court.run(30);
    for node in 1..=NODES {
        let Judgement::False(found) = court.judgement(node, 0) else { panic!("node {node}") };
        let [Objection::Differs(Difference::Reward { ours, theirs })] = found[..] else {
            panic!("node {node}: {found:?}")
        };
        assert_eq!((ours.farm, theirs.cumulative - ours.cumulative), (3, TOKEN));
        assert_eq!(court.next(node), None, "nothing is built on it");
    }
}

#[test]
fn an_epoch_of_fewer_statements_is_true_but_to_who_knew_more_in_time() {
    let mut court = Court::new(32, &[9]);
    let some = court.without(3);
    assert_ne!(some.data.statements, court.next(1).unwrap().data.statements);
    court.serve(1, &some);
    court.post(of(&some.data), 0);
    court.run(30);
    assert_eq!(court.judgement(9, 0), &Judgement::True);
    assert_eq!(court.judges[&9].data(0), Some(&some.data), "it goes on from what was posted");
    for node in 1..=8 {
        let Judgement::False(found) = court.judgement(node, 0) else { panic!("node {node}") };
        assert!(found.iter().all(|it| matches!(it, Objection::LeftOut(_))), "{found:?}");
        assert_eq!(found.len(), 1);
    }
}

#[test]
fn what_was_known_in_time_counts_after_a_restart_too() {
    let mut court = Court::new(42, &[]);
    let some = court.without(3);
    let noted = court.judges.get_mut(&5).unwrap().settled();
    let [(0, known)] = noted[..] else { panic!("{} epochs", noted.len()) };
    let known = known.clone();
    assert!(court.judges.get_mut(&5).unwrap().settled().is_empty(), "it is told once");
    // Both begin anew, and have heard all statements again; one has kept what it knew.
    for node in [5, 6] {
        let mut again = judge();
        if node == 5 {
            again.remember(0, known.clone());
        }
        again.on_ended(0, (NODES, NODES), None, court.world.now_ns);
        court.judges.insert(node, again);
    }
    court.serve(1, &some);
    court.post(of(&some.data), 0);
    court.run(30);
    let Judgement::False(found) = court.judgement(5, 0) else { panic!("it was left out") };
    assert!(matches!(found[..], [Objection::LeftOut(_)]), "{found:?}");
    assert_eq!(court.judgement(6, 0), &Judgement::True);
}

#[test]
fn an_end_that_was_seen_late_settles_in_what_is_left_of_its_time() {
    let mut court = Court::new(43, &[9]);
    let some = court.without(3);
    // Node 8 has restarted: it has all statements, and the epoch is not long over.
    let mut again = judge();
    let now_ns = court.world.now_ns;
    again.on_ended(0, (NODES, NODES), None, now_ns + 3 * SECOND);
    again.settles(0, now_ns + SECOND);
    court.judges.insert(8, again);
    court.serve(1, &some);
    court.post(of(&some.data), 0);
    court.run(30);
    assert!(matches!(court.judgement(8, 0), Judgement::False(_)));
    assert_eq!(court.judgement(9, 0), &Judgement::True);
}

/// Peers that answer with something else than what is wanted.
fn liars() -> [(u32, Lie); 6] {
    [
        (2, |_, _| Vec::new()),
        // Right in size, wrong in content, for as long as anybody listens.
        (3, |hash, offset| vec![Message::Piece { hash, offset, total: 100, bytes: vec![7; 100] }]),
        (4, |hash, offset| {
            vec![Message::Piece { hash, offset, total: u32::MAX, bytes: vec![7; CHUNK_BYTES] }]
        }),
        (5, |hash, offset| vec![Message::Piece { hash, offset, total: 1000, bytes: vec![7; 1] }]),
        (6, |hash, _| vec![Message::Piece { hash, offset: 9, total: 90, bytes: vec![7; 81] }]),
        (7, |hash, offset| {
            let other = keccak256(hash);
            let wrong = Message::Piece { hash: other, offset, total: 10, bytes: vec![7; 10] };
            let none = Message::Piece { hash, offset, total: 0, bytes: Vec::new() };
            vec![wrong, none, Message::Commitment(vec![1])]
        }),
    ]
}

#[test]
fn peers_that_lie_or_say_nothing_cost_time_and_nothing_else() {
    for seed in [33, 34] {
        let mut court = Court::new(seed, &[9]);
        court.world.liars = liars().into_iter().collect();
        court.world.lost_per_mille = 100;
        let made = court.next(1).unwrap();
        court.post(of(&made.data), 0);
        court.run(PATIENCE - 5);
        assert_eq!(court.judgement(9, 0), &Judgement::True, "seed {seed}");
        assert_eq!(court.judges[&9].data(0), Some(&made.data));
    }
}

#[test]
fn what_nobody_serves_is_objected_to_when_it_was_waited_for() {
    let mut court = Court::new(35, &[9]);
    let false_one = forged(&court.next(1).unwrap());
    court.post(of(&false_one.data), 0);
    court.run(PATIENCE - 2);
    court.all_are(&Judgement::Open);
    court.run(3);
    court.all_are(&Judgement::False(vec![Objection::Withheld]));
    // A hash of something that is no epoch's data, or another's.
    court.void(0);
    let rubbish = b"this is no epoch".to_vec();
    let posted = Posted { data: keccak256(&rubbish), ..of(&false_one.data) };
    court.world.peers.get_mut(&5).unwrap().participant.serve(0, vec![rubbish]);
    court.post(posted, 0);
    court.run(30);
    court.all_are(&Judgement::False(vec![Objection::OtherData]));
    court.void(0);
    let mut other = false_one.clone();
    other.data.epoch = 1;
    court.serve(6, &other);
    court.post(of(&other.data), 0);
    court.run(30);
    court.all_are(&Judgement::False(vec![Objection::OtherData]));
}

#[test]
fn a_statement_that_nobody_shows_is_objected_to() {
    let mut court = Court::new(36, &[]);
    let mut made = Closed::clone(&court.next(1).unwrap());
    let invented = made.numbers[0] ^ 1;
    made.numbers[0] = invented;
    made.numbers.sort_unstable();
    let numbers: Vec<u8> = made.numbers.iter().flat_map(|it| it.to_be_bytes()).collect();
    made.data.statements = keccak256(&numbers);
    court.serve(1, &made);
    court.post(of(&made.data), 0);
    court.run(PATIENCE + 2);
    court.all_are(&Judgement::False(vec![Objection::Unshown(invented)]));
}

#[test]
fn a_voided_epoch_is_posted_again_and_judged_anew() {
    let mut court = Court::new(37, &[]);
    let made = court.next(1).unwrap();
    let false_one = forged(&made);
    court.serve(2, &false_one);
    court.post(of(&false_one.data), 0);
    court.run(20);
    assert!(matches!(court.judgement(5, 0), Judgement::False(_)));
    // Another goes on from it.
    let mut after = made.data.clone();
    after.epoch = 1;
    (1..=NODES).for_each(|node| court.ends(node, 1, true));
    court.post(of(&after), 1);
    court.run(12);
    let after_0 = Judgement::False(vec![Objection::After(0)]);
    assert_eq!(court.judgement(5, 1), &after_0);
    court.void(0);
    court.run(1);
    court.post(of(&made.data), 0);
    court.run(2);
    let too_late = Judgement::False(vec![Objection::TooLate(1)]);
    assert_eq!(court.judgement(5, 0), &too_late, "the other says that nothing was said in it");
    court.void(1);
    court.run(2);
    court.all_are(&Judgement::True);
    assert_eq!(court.judges[&5].data(0), Some(&made.data));
}

#[test]
fn who_comes_late_has_no_opinion_until_an_epoch_is_final() {
    let mut court = Court::new(38, &[]);
    let made = court.next(1).unwrap();
    court.post(of(&made.data), 0);
    court.run(2);
    court.all_are(&Judgement::True);
    // Node 9 has no ledger, and of these epochs neither rosters nor statements.
    court.judges.insert(9, judge());
    let peer = court.world.peers.get_mut(&9).unwrap();
    peer.participant.on_epoch(20, Arc::clone(&court.roster));
    assert!(peer.participant.pool(0).is_none());
    let (now_ns, posted_at) = (court.world.now_ns, court.now_secs() - 10);
    let late = court.judges.get_mut(&9).unwrap();
    assert!(late.has_ledger(), "nothing was posted yet");
    late.on_posted(0, of(&made.data), posted_at, now_ns);
    late.on_ended(20, (NODES, NODES), None, now_ns);
    court.run(5);
    let late = &court.judges[&9];
    assert_eq!((late.judgement(0), late.has_ledger()), (Some(&Judgement::Open), false));
    // Somebody demands a leaf: it is not final yet.
    court.judges.get_mut(&9).unwrap().on_demands(0, true);
    court.world.now_ns += WINDOW * SECOND;
    court.run(5);
    assert_eq!(court.judgement(9, 0), &Judgement::Open);
    court.judges.get_mut(&9).unwrap().on_demands(0, false);
    court.run(5);
    assert_eq!(court.judgement(9, 0), &Judgement::Settled);
    assert_eq!(court.judges[&9].data(0), Some(&made.data));
    assert!(court.judges[&9].has_ledger());
}

#[test]
fn what_is_final_is_gone_on_from_whatever_it_is() {
    let mut court = Court::new(39, &[]);
    let false_one = forged(&court.next(1).unwrap());
    court.serve(2, &false_one);
    court.post(of(&false_one.data), 0);
    court.run(20);
    assert!(matches!(court.judgement(5, 0), Judgement::False(_)));
    court.world.now_ns += WINDOW * SECOND;
    court.run(5);
    court.all_are(&Judgement::Settled);
    assert_eq!(court.judges[&5].data(0), Some(&false_one.data));
}

#[test]
fn what_was_kept_is_gone_on_from_after_a_restart() {
    let mut court = Court::new(40, &[]);
    let made = court.next(1).unwrap();
    court.post(of(&made.data), 0);
    court.run(2);
    let mut again = judge();
    let now_ns = court.world.now_ns;
    let participant = &mut court.world.peers.get_mut(&5).unwrap().participant;
    again.restore(Closed::clone(&made), participant);
    again.on_posted(0, of(&made.data), START, now_ns);
    again.tend(participant, now_ns, START);
    assert_eq!(again.judgement(0), Some(&Judgement::True), "without waiting for statements");
    // Data that are not those that stand are not taken for them.
    let mut again = judge();
    again.restore(forged(&made), participant);
    again.on_posted(0, of(&made.data), START, now_ns);
    again.tend(participant, now_ns, START);
    assert_eq!((again.judgement(0), again.newest()), (Some(&Judgement::Open), None));
}

#[test]
fn pieces_are_served_only_so_fast() {
    let mut court = Court::new(41, &[]);
    let blob: Vec<u8> = (0..8 << 20).map(|at: u32| at as u8).collect();
    let hash = keccak256(&blob);
    court.world.peers.get_mut(&2).unwrap().participant.serve(0, vec![blob]);
    let before = court.world.peers[&2].sent_bytes;
    for round in 0..1000 {
        let message = Message::WantPiece { hash, offset: round % 128 * CHUNK_BYTES as u32 };
        court.world.send(7, 2, message.encode());
    }
    court.world.send(7, 2, Message::WantPiece { hash, offset: u32::MAX }.encode());
    court.run(1);
    let sent = court.world.peers[&2].sent_bytes - before;
    assert!((1 << 20..6 << 20).contains(&sent), "{sent} bytes were got out of it");
}
