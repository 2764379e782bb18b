//! Plots, epochs, challenges, equivocation.

use hypha_chain::client::Receipt;
use hypha_chain::contracts::{Capacity, Registry};
use hypha_chain::key::Key;
use hypha_chain::message::{PulseAnswer, Reader, sign};
use hypha_chain::tree::{Extent, ExtentKind, Plot};
use hypha_chain::{B256, Bytes};
use ring::digest::{Context, SHA256};

use crate::grid::{CHAIN_ID, Content, Grid, WINDOW, event, key, tokens, verdict};

/// A plot of equal extents that all hold the same bytes: zeros.
pub(crate) struct Disk {
    plot: Plot,
    bytes_len: u64,
    levels: Vec<Vec<B256>>,
}

fn sha(parts: &[&[u8]]) -> B256 {
    let mut context = Context::new(&SHA256);
    for part in parts {
        context.update(part);
    }
    B256::from_slice(context.finish().as_ref())
}

impl Disk {
    pub(crate) fn of_a_tebibyte() -> Self {
        Self::new(1024, 1 << 30)
    }

    pub(crate) fn new(extents: u64, bytes_len: u64) -> Self {
        let zeros = [0; 1024];
        let count = bytes_len.div_ceil(1024);
        let leaves = (0..count).map(|index| {
            let len = (bytes_len - index * 1024).min(1024) as usize;
            sha(&[&[0], &index.to_be_bytes(), &zeros[..len]])
        });
        let mut levels: Vec<Vec<B256>> = vec![leaves.collect()];
        while levels.last().unwrap().len() > 1 {
            let next = levels.last().unwrap().chunks(2).map(|pair| match pair {
                [left, right] => sha(&[&[1], left.as_slice(), right.as_slice()]),
                alone => alone[0],
            });
            let next = next.collect();
            levels.push(next);
        }
        let top = levels.last().unwrap()[0];
        let root = sha(&[&[2], &bytes_len.to_be_bytes(), top.as_slice()]);
        let extent = |id| Extent { kind: ExtentKind::Filler, id, bytes_len, root };
        let plot = Plot::new((0..extents).map(extent).collect()).unwrap();
        Self { plot, bytes_len, levels }
    }

    /// The root of an extent's audit tree.
    pub(crate) fn extent_root(&self) -> B256 {
        self.plot.path(0).unwrap().extent.root
    }
}

/// What a node that has everything answers.
pub(crate) fn answer_to(disk: &Disk, offset: u64) -> Capacity::Answer {
    let way = disk.plot.path(offset).unwrap();
    let index = (offset - way.start) / 1024;
    let mut at = index as usize;
    let mut path = Vec::new();
    for level in &disk.levels {
        path.extend(level.get(at ^ 1));
        at >>= 1;
    }
    let len = (disk.bytes_len - index * 1024).min(1024) as usize;
    Capacity::Answer { way: (&way).into(), leaf: Bytes::from(vec![0; len]), path }
}

pub(crate) fn commit(grid: &mut Grid, signer: &Key, node: u32, disk: &Disk) -> Receipt {
    let capacity = grid.suite.capacity;
    grid.must(signer, capacity, Capacity::drawSaltCall { node });
    let (root, len) = (disk.plot.root(), disk.plot.bytes_len());
    grid.must(signer, capacity, Capacity::commitPlotCall { node, root, bytesLen: len })
}

/// A farm with a node that has a plot, and a challenger.
fn challenged() -> (Grid, Disk, Key, Capacity::Challenge) {
    let mut grid = Grid::new();
    grid.farm(&key(1));
    grid.node(&key(1), 1, &key(10));
    let disk = Disk::new(7, 100_000);
    commit(&mut grid, &key(10), 1, &disk);
    let challenger = key(3);
    grid.fund(&challenger, tokens(10));
    let it = challenge(&mut grid, &challenger);
    (grid, disk, challenger, it)
}

fn challenge(grid: &mut Grid, challenger: &Key) -> Capacity::Challenge {
    let capacity = grid.suite.capacity;
    let receipt = grid.must(challenger, capacity, Capacity::challengeCall { node: 1 });
    event::<Capacity::Challenged>(&receipt).challenge
}

#[test]
fn an_honest_node_answers_every_challenge_and_gets_the_bonds() {
    let (mut grid, disk, challenger, mut it) = challenged();
    let before = grid.balance(key(1).address());
    for _ in 0..9 {
        let shown = answer_to(&disk, it.offset);
        let call = Capacity::answerCall { it, shown };
        grid.must(&key(10), grid.suite.capacity, call.clone());
        grid.refuses(&key(10), grid.suite.capacity, call, "Unknown");
        it = challenge(&mut grid, &challenger);
    }
    assert_eq!(grid.balance(key(1).address()), before + tokens(9));
}

#[test]
fn an_answer_that_is_not_the_drawn_bytes_is_refused() {
    let (mut grid, disk, _, it) = challenged();
    let capacity = grid.suite.capacity;
    let right = answer_to(&disk, it.offset);
    let mut wrong: Vec<Capacity::Answer> = Vec::new();
    for change in 0..6 {
        let mut shown = right.clone();
        match change {
            0 => shown.leaf = Bytes::from(vec![1; right.leaf.len()]),
            1 => shown.leaf = Bytes::from(vec![0; right.leaf.len() - 1]),
            2 => shown.path[0] = B256::repeat_byte(1),
            3 => shown.path.push(B256::ZERO),
            4 => shown.way.extent.id += 1,
            _ => shown.way.sides ^= alloy_primitives::U256::from(1),
        }
        wrong.push(shown);
    }
    // Another place of the same plot, rightly proven.
    wrong.push(answer_to(&disk, (it.offset + 2048) % 700_000));
    for shown in wrong {
        let call = Capacity::answerCall { it: it.clone(), shown };
        assert!(grid.send(&key(10), capacity, call).is_err());
    }
    grid.must(&key(10), capacity, Capacity::answerCall { it, shown: right });
}

#[test]
fn a_node_that_does_not_answer_in_time_loses_stake_to_the_challenger() {
    let (mut grid, disk, challenger, it) = challenged();
    let (capacity, registry) = (grid.suite.capacity, grid.suite.registry);
    grid.refuses(&key(3), capacity, Capacity::expireCall { it: it.clone() }, "TooEarly");
    grid.advance(3601);
    let late = Capacity::answerCall { it: it.clone(), shown: answer_to(&disk, it.offset) };
    grid.refuses(&key(10), capacity, late, "TooLate");
    let (before, supply) = (grid.balance(challenger.address()), grid.supply());
    grid.must(&key(5), capacity, Capacity::expireCall { it });
    // 5 % of 1000: a tenth of it to the challenger with its bond, the rest burned.
    assert_eq!(grid.balance(challenger.address()), before + tokens(6));
    assert_eq!(grid.supply(), supply - tokens(45));
    assert_eq!(grid.view(registry, Registry::stakeOfCall { node: 1 }), tokens(950));
}

/// Else that would be a way out of the fortnight that stake takes to leave, with evidence on its way.
#[test]
fn an_owner_who_challenges_himself_to_save_stake_burns_nine_tenths_of_it() {
    let (mut grid, _, challenger, first) = challenged();
    grid.fund(&challenger, tokens(100));
    let mut all = vec![first];
    all.extend((0..60).map(|_| challenge(&mut grid, &challenger)));
    grid.advance(3601);
    let before = grid.balance(challenger.address());
    let bonds = tokens(all.len() as u128);
    for it in all {
        grid.must(&challenger, grid.suite.capacity, Capacity::expireCall { it });
    }
    let stake = grid.view(grid.suite.registry, Registry::stakeOfCall { node: 1 });
    assert!(stake < tokens(50), "{stake}");
    let saved = grid.balance(challenger.address()) - before - bonds;
    assert!(saved <= tokens(100), "{saved}");
}

/// A plot of an extent of filler and a bundle of a user's shards, and what is left when that is deleted.
fn with_shards() -> [Plot; 2] {
    let extent =
        |kind, id, root| Extent { kind, id, bytes_len: 5000, root: B256::repeat_byte(root) };
    let filler = extent(ExtentKind::Filler, 1, 1);
    let both = Plot::new(vec![filler, extent(ExtentKind::User, 7, 2)]).unwrap();
    [both, Plot::new(vec![filler]).unwrap()]
}

#[test]
fn a_byte_that_a_user_has_deleted_costs_a_node_nothing_once_it_has_committed_to_what_is_left() {
    let mut grid = Grid::new();
    grid.farm(&key(1));
    grid.node(&key(1), 1, &key(10));
    let (capacity, challenger) = (grid.suite.capacity, key(3));
    let [both, left] = with_shards();
    let commit = |plot: &Plot| {
        let (root, bytes_len) = (plot.root(), plot.bytes_len());
        Capacity::commitPlotCall { node: 1, root, bytesLen: bytes_len }
    };
    grid.must(&key(10), capacity, Capacity::drawSaltCall { node: 1 });
    grid.must(&key(10), capacity, commit(&both));
    grid.fund(&challenger, tokens(100));
    // One that draws filler, and two that draw a user's byte.
    let (mut filler, mut users) = (None, Vec::new());
    while filler.is_none() || users.len() < 2 {
        let it = challenge(&mut grid, &challenger);
        if it.offset < 5000 { filler = Some(it) } else { users.push(it) }
    }
    let release = |it: &Capacity::Challenge, offset| Capacity::releaseCall {
        it: it.clone(),
        way: (&both.path(offset).unwrap()).into(),
    };
    let [first, second] = [users[0].clone(), users[1].clone()];
    // Not while it is committed to, and only as what it is.
    grid.refuses(&key(10), capacity, release(&first, first.offset), "WrongAnswer");
    grid.must(&key(10), capacity, commit(&left));
    let it = filler.unwrap();
    grid.refuses(&key(10), capacity, release(&it, it.offset), "WrongAnswer");
    grid.refuses(&key(10), capacity, release(&it, first.offset), "WrongAnswer");
    // A challenger must not have its bond back where the node could answer.
    grid.refuses(&challenger, capacity, release(&first, first.offset), "NotTheNode");
    let mut lie = release(&first, first.offset);
    lie.way.extent.id += 1;
    grid.refuses(&key(10), capacity, lie, "WrongAnswer");
    let before = grid.balance(challenger.address());
    let done = grid.must(&key(10), capacity, release(&first, first.offset));
    assert_eq!(event::<Capacity::Released>(&done).id, first.id);
    assert_eq!(grid.balance(challenger.address()), before + tokens(1));
    grid.refuses(&key(10), capacity, release(&first, first.offset), "Unknown");
    grid.advance(3601);
    grid.refuses(&challenger, capacity, Capacity::expireCall { it: first }, "Unknown");
    let stake = |grid: &Grid| grid.view(grid.suite.registry, Registry::stakeOfCall { node: 1 });
    assert_eq!(stake(&grid), tokens(1000));
    // In time, as any answer.
    grid.refuses(&key(10), capacity, release(&second, second.offset), "TooLate");
    grid.must(&challenger, capacity, Capacity::expireCall { it: second });
    assert_eq!(stake(&grid), tokens(950));
}

#[test]
fn a_changed_challenge_is_unknown() {
    let (mut grid, disk, _, it) = challenged();
    let mut other = it.clone();
    other.offset = (other.offset + 5000) % 700_000;
    let shown = answer_to(&disk, other.offset);
    let call = Capacity::answerCall { it: other, shown };
    grid.refuses(&key(10), grid.suite.capacity, call, "Unknown");
}

#[test]
fn nothing_can_be_plotted_before_the_salt_is_drawn_and_it_is_drawn_once() {
    let mut grid = Grid::new();
    grid.farm(&key(1));
    grid.node(&key(1), 1, &key(10));
    let capacity = grid.suite.capacity;
    let plot = Capacity::commitPlotCall { node: 1, root: B256::repeat_byte(1), bytesLen: 5 };
    grid.refuses(&key(10), capacity, plot.clone(), "NoSalt");
    grid.refuses(&key(11), capacity, Capacity::drawSaltCall { node: 1 }, "NotTheNode");
    grid.must(&key(10), capacity, Capacity::drawSaltCall { node: 1 });
    let salt = grid.view(capacity, Capacity::plotSaltCall(1));
    grid.must(&key(1), capacity, Capacity::drawSaltCall { node: 1 });
    assert_eq!(grid.view(capacity, Capacity::plotSaltCall(1)), salt);
    grid.must(&key(10), capacity, plot);
}

#[test]
fn two_answers_to_one_pulse_cost_all_stake_also_after_the_key_was_changed() {
    let mut grid = Grid::new();
    grid.farm(&key(1));
    grid.node(&key(1), 1, &key(10));
    let capacity = grid.suite.capacity;
    let domain = Reader::Capacity.domain(CHAIN_ID, capacity);
    let signed = |answer: u8, pulse: u64, signer: &Key| -> Bytes {
        let message = PulseAnswer { node: 1, pulse, answer: B256::repeat_byte(answer) };
        sign(&message, &domain, signer).to_bytes().into()
    };
    let call = |answers: [u8; 2], first: Bytes, second: Bytes| Capacity::equivocationCall {
        node: 1,
        pulse: 8,
        answers: answers.map(B256::repeat_byte),
        first,
        second,
    };
    let owner = key(10);
    let same = call([1, 1], signed(1, 8, &owner), signed(1, 8, &owner));
    grid.refuses(&key(3), capacity, same, "NoContradiction");
    let other_pulse = call([1, 2], signed(1, 8, &owner), signed(2, 9, &owner));
    grid.refuses(&key(3), capacity, other_pulse, "NotTheNode");
    let stranger = call([1, 2], signed(1, 8, &owner), signed(2, 8, &key(11)));
    grid.refuses(&key(3), capacity, stranger, "NotTheNode");
    let domain = Reader::Registry.domain(CHAIN_ID, grid.suite.registry);
    let message = hypha_chain::message::RotateKey { node: 1, meshKey: B256::repeat_byte(6) };
    let rotate = Registry::rotateKeyCall {
        node: 1,
        mesh: Registry::MeshKey {
            key: B256::repeat_byte(6),
            signatureR: B256::ZERO,
            signatureS: B256::ZERO,
        },
        signature: sign(&message, &domain, &key(12)).to_bytes().into(),
    };
    grid.must(&key(1), grid.suite.registry, rotate);
    let proof = call([1, 2], signed(1, 8, &owner), signed(2, 8, &owner));
    grid.must(&key(3), capacity, proof.clone());
    assert_eq!(grid.balance(key(3).address()), tokens(100));
    grid.refuses(&key(3), capacity, proof, "NoContradiction");
}

#[test]
fn an_extent_that_is_counted_twice_costs_all_stake() {
    let mut grid = Grid::new();
    grid.farm(&key(1));
    grid.node(&key(1), 1, &key(10));
    let capacity = grid.suite.capacity;
    let extent = |id, root| Extent {
        kind: ExtentKind::Filler,
        id,
        bytes_len: 10,
        root: B256::repeat_byte(root),
    };
    let plot = Plot::new(vec![extent(1, 1), extent(2, 2), extent(1, 3)]).unwrap();
    grid.must(&key(10), capacity, Capacity::drawSaltCall { node: 1 });
    let call = Capacity::commitPlotCall { node: 1, root: plot.root(), bytesLen: plot.bytes_len() };
    grid.must(&key(10), capacity, call);
    let at = |offset| (&plot.path(offset).unwrap()).into();
    let honest = Capacity::duplicateCall { node: 1, first: at(0), second: at(10) };
    grid.refuses(&key(3), capacity, honest, "NoContradiction");
    let same_place = Capacity::duplicateCall { node: 1, first: at(0), second: at(5) };
    grid.refuses(&key(3), capacity, same_place, "NoContradiction");
    let twice = Capacity::duplicateCall { node: 1, first: at(0), second: at(20) };
    grid.must(&key(3), capacity, twice);
    assert_eq!(grid.balance(key(3).address()), tokens(100));
}

#[test]
fn an_epoch_is_posted_once_by_an_aggregator_after_its_end() {
    let mut grid = Grid::new();
    let capacity = grid.suite.capacity;
    let call = |epoch| Capacity::postEpochCall {
        epoch,
        verdictRoot: B256::repeat_byte(1),
        rewardRoot: B256::repeat_byte(2),
        data: B256::ZERO,
    };
    grid.advance(3601);
    grid.refuses(&key(2), capacity, call(0), "NotAggregator");
    grid.aggregator(&key(2));
    grid.refuses(&key(2), capacity, call(1), "TooEarly");
    grid.must(&key(2), capacity, call(0));
    grid.refuses(&key(2), capacity, call(0), "EpochTaken");
    grid.advance(26 * 3600);
    grid.refuses(&key(2), capacity, call(1), "WrongEpoch");
    grid.must(&key(2), capacity, Capacity::resignCall {});
    grid.refuses(&key(2), capacity, call(20), "NotAggregator");
    grid.refuses(&key(2), capacity, Capacity::withdrawBondCall {}, "TooEarly");
    grid.advance(3 * 24 * 3600);
    let before = grid.balance(key(2).address());
    grid.must(&key(2), capacity, Capacity::withdrawBondCall {});
    assert_eq!(grid.balance(key(2).address()), before + tokens(1000));
}

#[test]
fn a_node_is_proven_by_a_final_epoch_only_and_never_ahead_of_it() {
    let mut grid = Grid::new();
    grid.farm(&key(1));
    grid.node(&key(1), 1, &key(10));
    grid.aggregator(&key(2));
    let capacity = grid.suite.capacity;
    let end = grid.start() + 3600;
    let content = Content::new([verdict(1, end + 1_000_000)], &[0]);
    let posted = grid.post(&key(2), 0, &content);
    let call = Capacity::proveCall { proof: content.proof(&posted, 1) };
    grid.refuses(&key(5), capacity, call.clone(), "NotFinal");
    grid.advance(WINDOW);
    let mut other = call.clone();
    other.proof.verdict.answered = 7;
    grid.refuses(&key(5), capacity, other, "NotInEpoch");
    let mut other = call.clone();
    other.proof.posted.rewardRoot = B256::repeat_byte(1);
    grid.refuses(&key(5), capacity, other, "UnknownEpoch");
    grid.must(&key(5), capacity, call.clone());
    assert_eq!(grid.view(capacity, Capacity::provenUntilCall(1)), end);
    grid.refuses(&key(5), capacity, call, "NotProvenLater");
}

#[test]
fn an_epoch_whose_data_is_withheld_is_void_and_costs_its_poster_the_bond() {
    let mut grid = Grid::new();
    grid.aggregator(&key(2));
    grid.fund(&key(3), tokens(10));
    let capacity = grid.suite.capacity;
    let content = Content::new([verdict(1, 5)], &[0]);
    let posted = grid.post(&key(2), 0, &content);
    let demand = Capacity::demandCall { posted, tree: 0, index: 0 };
    let receipt = grid.must(&key(3), capacity, demand);
    let demanded = event::<Capacity::Demanded>(&receipt);
    let void = Capacity::voidWithheldCall { it: demanded.demand, posted: demanded.posted.clone() };
    grid.refuses(&key(5), capacity, void.clone(), "TooEarly");
    grid.advance(3601);
    grid.must(&key(5), capacity, void);
    // A tenth of the poster's bond, and its own back.
    assert_eq!(grid.balance(key(3).address()), tokens(110));
    let final_call = Capacity::requireFinalCall { posted: demanded.posted };
    let said = grid.try_call(key(3).address(), capacity, &final_call).unwrap_err();
    assert!(said.contains("UnknownEpoch"), "{said}");
    // Somebody else may post it then.
    grid.aggregator(&key(4));
    grid.post(&key(4), 0, &content);
}

#[test]
fn a_demand_is_answered_with_the_leaf_or_with_where_the_tree_ends() {
    let mut grid = Grid::new();
    grid.aggregator(&key(2));
    grid.fund(&key(3), tokens(10));
    let capacity = grid.suite.capacity;
    let content = Content::new((1..=5).map(|node| verdict(node, 5)), &[1, 2, 3]);
    let mut posted = grid.post(&key(2), 0, &content);
    // A leaf, the last leaf instead of one beyond, and one of the other tree.
    for (tree, asked, shown) in [(0, 2, 2), (0, 99, 4), (1, 1, 1)] {
        let call = Capacity::demandCall { posted: posted.clone(), tree, index: asked };
        let receipt = grid.must(&key(3), capacity, call);
        let demanded = event::<Capacity::Demanded>(&receipt);
        let (leaf, tree) = match tree {
            0 => (crate::grid::verdict_leaf(&content.leaves[shown as usize]), &content.verdicts),
            _ => (crate::grid::reward_leaf(shown as u32 + 1, 2), &content.rewards),
        };
        let answer = Capacity::answerDemandCall {
            it: demanded.demand,
            posted: demanded.posted,
            count: tree.count(),
            leaf: leaf.into(),
            path: tree.path(shown).unwrap(),
        };
        let mut wrong = answer.clone();
        wrong.leaf = Bytes::from(vec![1, 2, 3]);
        grid.refuses(&key(6), capacity, wrong, "WrongAnswer");
        let receipt = grid.must(&key(6), capacity, answer);
        posted = event::<Capacity::DemandAnswered>(&receipt).posted;
    }
    assert_eq!(grid.balance(key(6).address()), tokens(3));
    grid.advance(WINDOW);
    grid.must(&key(6), capacity, Capacity::requireFinalCall { posted });
}

/// Each demand and each answer changes what the chain keeps of an epoch. Who could so make an answer come
/// too late again and again would take any aggregator's bond.
#[test]
fn an_answer_counts_whatever_others_demand_meanwhile() {
    let mut grid = Grid::new();
    grid.aggregator(&key(2));
    grid.fund(&key(3), tokens(10));
    let capacity = grid.suite.capacity;
    let content = Content::new((1..=5).map(|node| verdict(node, 5)), &[1]);
    let posted = grid.post(&key(2), 0, &content);
    let demand = |index| Capacity::demandCall { posted: posted.clone(), tree: 0, index };
    let answer = |it: Capacity::Demand| Capacity::answerDemandCall {
        posted: posted.clone(),
        count: content.verdicts.count(),
        leaf: crate::grid::verdict_leaf(&content.leaves[it.index as usize]).into(),
        path: content.verdicts.path(it.index).unwrap(),
        it,
    };
    let mut demands = Vec::new();
    for index in 0..5 {
        let receipt = grid.must(&key(3), capacity, demand(index));
        let it = event::<Capacity::Demanded>(&receipt);
        assert_eq!(it.posted.openDemands, index as u32 + 1);
        demands.push(it.demand);
    }
    let last = demands.pop().unwrap();
    for it in demands {
        grid.must(&key(2), capacity, answer(it));
    }
    grid.advance(WINDOW);
    let is_final = Capacity::requireFinalCall { posted: posted.clone() };
    // Nobody makes an epoch final by handing in a record without demands.
    grid.refuses(&key(2), capacity, is_final.clone(), "NotFinal");
    let receipt = grid.must(&key(2), capacity, answer(last));
    assert_eq!(event::<Capacity::DemandAnswered>(&receipt).posted.openDemands, 0);
    grid.must(&key(2), capacity, is_final);
}

#[test]
fn the_audit_tree_of_zeros_has_the_root_that_its_document_defines() {
    // docs/audit-tree.md's definition, for one leaf: root = H(2 | len | H(0 | 0 | bytes)).
    let leaf = sha(&[&[0], &0_u64.to_be_bytes(), &[0; 10]]);
    let root = sha(&[&[2], &10_u64.to_be_bytes(), leaf.as_slice()]);
    assert_eq!(Disk::new(1, 10).extent_root(), root);
}
