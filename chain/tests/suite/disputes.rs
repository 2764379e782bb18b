//! Frauds that one transaction shows, and runs that are bisected.

use hypha_chain::client::Receipt;
use hypha_chain::contracts::{Capacity, Disputes, Registry};
use hypha_chain::key::Key;
use hypha_chain::message::{Checkpoints, Reader, RunClaim, sign};
use hypha_chain::tree::root_of;
use hypha_chain::{B256, Bytes, U256, keccak256};
use ring::digest::{SHA256, digest};

use crate::grid::{CHAIN_ID, Content, Grid, event, key, tokens, verdict};

/// A segment of the chain: 1000 hashes.
pub(crate) fn segment(mut state: B256) -> B256 {
    for _ in 0..1000 {
        state = B256::from_slice(digest(&SHA256, state.as_slice()).as_ref());
    }
    state
}

/// Checkpoints of a node of which two neighbours are known.
pub(crate) struct Run {
    count: u64,
    index: u64,
    states: [B256; 2],
    paths: [Vec<B256>; 2],
    root: B256,
}

impl Run {
    /// A run whose next state is not the one that follows. `index` must be even: then the two are
    /// siblings, and the rest of the tree may be anything.
    pub(crate) fn with_a_lie(count: u64, index: u64) -> Self {
        Self::new(count, index & !1, B256::repeat_byte(0xee))
    }

    fn new(count: u64, index: u64, next: B256) -> Self {
        let states = [B256::repeat_byte(0x33), next];
        let leaf = |index: u64, state: &B256| [&index.to_be_bytes(), state.as_slice()].concat();
        let hash = |leaf: &[u8]| keccak256([&[0], leaf].concat());
        let leaves = [leaf(index, &states[0]), leaf(index + 1, &states[1])];
        let above: Vec<B256> =
            (1..count.ilog2()).map(|level| keccak256(level.to_be_bytes())).collect();
        let path = |sibling: &[u8]| [vec![hash(sibling)], above.clone()].concat();
        let paths = [path(&leaves[1]), path(&leaves[0])];
        let root = root_of(&leaves[0], index, count, &paths[0]).unwrap();
        assert_eq!(root_of(&leaves[1], index + 1, count, &paths[1]), Some(root));
        Self { count, index, states, paths, root }
    }

    /// Reports it as a fraud of a node.
    pub(crate) fn report(
        &self,
        grid: &mut Grid,
        reporter: &Key,
        node: u32,
        signer: &Key,
    ) -> Result<Receipt, String> {
        let domain = Reader::Disputes.domain(CHAIN_ID, grid.suite.disputes);
        let message = Checkpoints { node, pulse: 5, thread: 3, count: self.count, root: self.root };
        let call = Disputes::segmentFraudCall {
            run: Disputes::Checkpoints {
                node,
                pulse: 5,
                thread: 3,
                count: self.count,
                root: self.root,
            },
            signature: sign(&message, &domain, signer).to_bytes().into(),
            index: self.index,
            states: self.states,
            first: self.paths[0].clone(),
            second: self.paths[1].clone(),
        };
        grid.send(reporter, grid.suite.disputes, call)
    }
}

fn grid() -> Grid {
    let mut grid = Grid::new();
    grid.farm(&key(1));
    grid.node(&key(1), 1, &key(10));
    grid.fund(&key(3), tokens(100));
    grid
}

#[test]
fn a_segment_that_does_not_follow_costs_all_stake() {
    let mut grid = grid();
    let before = grid.balance(key(3).address());
    Run::with_a_lie(1 << 10, 77).report(&mut grid, &key(3), 1, &key(10)).unwrap();
    assert_eq!(grid.balance(key(3).address()), before + tokens(100));
    assert_eq!(grid.view(grid.suite.registry, Registry::stakeOfCall { node: 1 }), U256::ZERO);
}

#[test]
fn an_honest_run_or_a_strangers_signature_is_no_fraud() {
    let mut grid = grid();
    let honest = Run::new(1 << 10, 4, segment(B256::repeat_byte(0x33)));
    let said = honest.report(&mut grid, &key(3), 1, &key(10)).unwrap_err();
    assert!(said.contains("NoFraud"), "{said}");
    let run = Run::with_a_lie(1 << 10, 4);
    let said = run.report(&mut grid, &key(3), 1, &key(12)).unwrap_err();
    assert!(said.contains("NotSignedByNode"), "{said}");
}

#[test]
fn a_verdict_that_cannot_be_true_voids_its_epoch() {
    let mut grid = grid();
    grid.aggregator(&key(2));
    let disputes = grid.suite.disputes;
    let end = grid.start() + 3600;
    let mut wrong = verdict(1, end);
    wrong.answered = 2;
    // Honest; more answers than pulses; a node that is not there; proven in the future.
    let leaves = [verdict(1, end), wrong, verdict(3, end), verdict(1, end + 3 * 3600 + 1)];
    for (epoch, leaf) in (0..).zip(leaves) {
        let node = if leaf.node == 3 { 3 } else { 1 };
        let filler = (1..node).map(|node| verdict(node, end));
        let content = Content::new(filler.chain([leaf]), &[0]);
        let posted = grid.post(&key(2), epoch, &content);
        let path = content.proof(&posted, node);
        let call = Disputes::malformedVerdictCall { proof: convert(&path) };
        if epoch == 0 {
            grid.refuses(&key(3), disputes, call, "NoFraud");
        } else {
            grid.must(&key(3), disputes, call);
            grid.must(&key(2), grid.suite.capacity, Capacity::joinCall {});
        }
    }
}

fn convert(path: &Capacity::VerdictPath) -> Disputes::VerdictPath {
    let caps = &path.verdict.caps;
    Disputes::VerdictPath {
        posted: Disputes::Epoch {
            epoch: path.posted.epoch,
            postedAt: path.posted.postedAt,
            openDemands: path.posted.openDemands,
            aggregator: path.posted.aggregator,
            verdictRoot: path.posted.verdictRoot,
            rewardRoot: path.posted.rewardRoot,
        },
        verdict: Disputes::Verdict {
            node: path.verdict.node,
            provenUntil: path.verdict.provenUntil,
            pulses: path.verdict.pulses,
            answered: path.verdict.answered,
            caps: Disputes::Caps {
                cores: caps.cores,
                memMiB: caps.memMiB,
                ssdMiB: caps.ssdMiB,
                hddMiB: caps.hddMiB,
                mbps: caps.mbps,
            },
        },
        count: path.count,
        path: path.path.clone(),
    }
}

/// A run of segments, right or with a lie from one of them on.
struct Machine {
    states: Vec<B256>,
}

impl Machine {
    fn new(segments: usize, lie_at: Option<usize>) -> Self {
        let mut states = vec![B256::repeat_byte(0x44)];
        for at in 0..segments {
            let mut next = segment(states[at]);
            if lie_at == Some(at) {
                next = B256::repeat_byte(0xbb);
            }
            states.push(next);
        }
        Self { states }
    }

    /// What a node signs of it, and a signature.
    fn claim(&self, grid: &Grid, signer: &Key) -> (Disputes::RunClaim, Bytes) {
        let domain = Reader::Disputes.domain(CHAIN_ID, grid.suite.disputes);
        let (start, end) = (self.states[0], *self.states.last().unwrap());
        let segments = self.states.len() as u64 - 1;
        let message = RunClaim { node: 1, verifier: 1, segments, start, end };
        let signature = sign(&message, &domain, signer).to_bytes().into();
        (Disputes::RunClaim { node: 1, verifier: 1, segments, start, end }, signature)
    }

    /// Reports it as one false segment.
    fn report(&self, grid: &mut Grid, reporter: &Key, signer: &Key) -> Result<Receipt, String> {
        let (claim, signature) = self.claim(grid, signer);
        let call = Disputes::falseSegmentCall { claim, signature };
        grid.send(reporter, grid.suite.disputes, call)
    }

    fn open(&self, grid: &mut Grid, challenger: &Key) -> Result<Disputes::Dispute, String> {
        self.open_with_receipt(grid, challenger).map(|(it, _)| it)
    }

    fn open_with_receipt(
        &self,
        grid: &mut Grid,
        challenger: &Key,
    ) -> Result<(Disputes::Dispute, Receipt), String> {
        let (claim, signature) = self.claim(grid, &key(10));
        let call = Disputes::openDisputeCall { claim, signature };
        let receipt = grid.send(challenger, grid.suite.disputes, call)?;
        Ok((event::<Disputes::Opened>(&receipt).dispute, receipt))
    }

    /// The states between the parts.
    fn mids(&self, it: &Disputes::Dispute) -> Vec<B256> {
        let (low, length) = (it.low as usize, (it.high - it.low) as usize);
        let parts = length.min(16);
        (1..parts).map(|part| self.states[low + length * part / parts]).collect()
    }
}

/// Plays a dispute down to one segment; `truth` is what the challenger computed.
fn play(grid: &mut Grid, claimed: &Machine, truth: &Machine) -> Disputes::Dispute {
    let disputes = grid.suite.disputes;
    let mut it = claimed.open(grid, &key(3)).unwrap();
    while it.turn != 3 {
        let mids = claimed.mids(&it);
        let call = Disputes::bisectCall { it: it.clone(), mids: mids.clone() };
        let receipt = grid.must(&key(10), disputes, call);
        it = event::<Disputes::Bisected>(&receipt).dispute;
        let right = truth.mids(&it);
        let part = mids.iter().zip(&right).position(|(a, b)| a != b).unwrap_or(mids.len());
        let call = Disputes::pickCall { it: it.clone(), mids, part: U256::from(part) };
        let receipt = grid.must(&key(3), disputes, call);
        it = event::<Disputes::Picked>(&receipt).dispute;
    }
    it
}

#[test]
fn a_lie_in_a_long_run_is_found_and_its_node_has_nothing_to_show() {
    let mut grid = grid();
    let truth = Machine::new(300, None);
    for lie_at in [0, 1, 17, 150, 298, 299] {
        let claimed = Machine::new(300, Some(lie_at));
        let mut grid = self::grid();
        let it = play(&mut grid, &claimed, &truth);
        assert_eq!((it.low, it.high), (lie_at as u64, lie_at as u64 + 1));
        let disputes = grid.suite.disputes;
        let finish = Disputes::finishCall { it: it.clone(), proof: Bytes::new() };
        grid.refuses(&key(10), disputes, finish, "NotProven");
        grid.advance(3601);
        let before = grid.balance(key(3).address());
        grid.must(&key(3), disputes, Disputes::timeoutCall { it });
        assert_eq!(grid.balance(key(3).address()), before + tokens(105));
    }
    // A challenger of the truth picks anything and loses its bond.
    let it = play(&mut grid, &truth, &Machine::new(300, Some(250)));
    let before = grid.balance(key(1).address());
    let finish = Disputes::finishCall { it, proof: Bytes::new() };
    grid.must(&key(5), grid.suite.disputes, finish);
    assert_eq!(grid.balance(key(1).address()), before + tokens(5));
}

#[test]
fn who_does_not_move_in_time_loses() {
    let mut grid = grid();
    let disputes = grid.suite.disputes;
    let run = Machine::new(40, None);
    let it = run.open(&mut grid, &key(3)).unwrap();
    let timeout = Disputes::timeoutCall { it: it.clone() };
    grid.refuses(&key(3), disputes, timeout, "TooEarly");
    let mids = run.mids(&it);
    let early = Disputes::pickCall { it: it.clone(), mids: mids.clone(), part: U256::ZERO };
    grid.refuses(&key(3), disputes, early, "NotYourTurn");
    let short = Disputes::bisectCall { it: it.clone(), mids: mids[1..].to_vec() };
    grid.refuses(&key(10), disputes, short, "WrongMids");
    let call = Disputes::bisectCall { it: it.clone(), mids: mids.clone() };
    grid.refuses(&key(11), disputes, call.clone(), "NotTheNode");
    let receipt = grid.must(&key(1), disputes, call);
    let it = event::<Disputes::Bisected>(&receipt).dispute;
    let pick = Disputes::pickCall { it: it.clone(), mids, part: U256::ZERO };
    grid.refuses(&key(4), disputes, pick.clone(), "NotTheChallenger");
    grid.advance(3601);
    grid.refuses(&key(3), disputes, pick, "TooLate");
    let before = grid.balance(key(1).address());
    grid.must(&key(5), disputes, Disputes::timeoutCall { it: it.clone() });
    assert_eq!(grid.balance(key(1).address()), before + tokens(5));
    grid.refuses(&key(5), disputes, Disputes::timeoutCall { it }, "Unknown");
}

/// Nodes sign one segment at a time, in every pulse, and whoever has seen that could else open a dispute
/// that an honest node loses by not looking for an hour.
#[test]
fn a_signed_segment_is_judged_at_once_and_a_true_one_costs_its_node_nothing() {
    let mut grid = grid();
    let (truth, lie) = (Machine::new(1, None), Machine::new(1, Some(0)));
    for run in [&truth, &lie] {
        let said = run.open(&mut grid, &key(3)).unwrap_err();
        assert!(said.contains("JudgedAtOnce"), "{said}");
    }
    let stake = |grid: &Grid| grid.view(grid.suite.registry, Registry::stakeOfCall { node: 1 });
    for (run, signer, refusal) in [
        (&truth, 10, "NoFraud"),
        (&lie, 12, "NotSignedByNode"),
        (&Machine::new(2, Some(1)), 10, "NoSingleSegment"),
    ] {
        let said = run.report(&mut grid, &key(3), &key(signer)).unwrap_err();
        assert!(said.contains(refusal), "{said}");
    }
    assert_eq!(stake(&grid), tokens(1000));
    let before = grid.balance(key(3).address());
    lie.report(&mut grid, &key(3), &key(10)).unwrap();
    assert_eq!(grid.balance(key(3).address()), before + tokens(100));
    assert_eq!(stake(&grid), U256::ZERO);
    let said = lie.report(&mut grid, &key(3), &key(10)).unwrap_err();
    assert!(said.contains("NoFraud"), "{said}");
}

pub(crate) fn measure(grid: &mut Grid, challenger: &Key, measured: &mut Vec<(&'static str, u64)>) {
    let disputes = grid.suite.disputes;
    let lie = Machine::new(1, Some(0));
    let receipt = lie.report(&mut self::grid(), challenger, &key(10)).unwrap();
    measured.push(("false segment, 1000 steps", receipt.gas_used));
    // Node 1 lost its stake in the test before; the moves cost the same.
    let run = Machine::new(64, None);
    let (it, receipt) = run.open_with_receipt(grid, challenger).unwrap();
    measured.push(("dispute: open", receipt.gas_used));
    let mids = run.mids(&it);
    let receipt = grid.must(&key(10), disputes, Disputes::bisectCall { it, mids: mids.clone() });
    measured.push(("dispute: bisect in 16", receipt.gas_used));
    let it = event::<Disputes::Bisected>(&receipt).dispute;
    let call = Disputes::pickCall { it, mids, part: U256::from(3) };
    measured.push(("dispute: pick", grid.must(challenger, disputes, call).gas_used));
}
