//! Days on the chain in small: who is challenged, disputed, demanded of and paid, in the real contracts.

use hypha_chain::contracts::{Capacity, Disputes};
use hypha_chain::tree::ExtentKind;
use hypha_chain::{B256, U256, keccak256};
use hypha_proofs::network::epoch::{EpochData, RewardLeaf, VerdictLeaf};
use hypha_proofs::network::ledger::Ledger;
use hypha_proofs::network::roster::Caps;
use hypha_proofs::store::{ExtentTree, Store};
use hypha_proofs::verifier::Verifier;

use crate::contracts::{Grid, GridError, WINDOW_SECS, event, holder, leaf_at};
use crate::machine::{Claims, Filling, Machine, RULES, key_of};
use crate::network::EMISSION;
use crate::strategy::{Player, Strategy};

/// Bytes of an extent of the plot that gas is measured with: sixteen levels, and ten above.
const EXTENT_BYTES: usize = 1 << 26;
/// Farms of the tree that is claimed from: seventeen levels.
const FARMS: u32 = 1 << 17;
/// Nodes that a thief adds in the last minutes of the epoch that it posts.
const SWAMP: u32 = 100;

/// Gas of what a network does, and what cheaters on the chain win and lose.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Court {
    /// Posting an epoch, in a ring that is full.
    pub post: u64,
    /// A challenge, in the mean.
    pub challenge: u64,
    /// Its answer, in the mean: 1 KiB, 26 levels.
    pub answer: u64,
    /// A challenge that is not answered.
    pub expire: u64,
    /// A claim of rewards.
    pub claim: u64,
    /// Showing a false segment.
    pub dispute: u64,
    /// What a node at the default stake loses for a missing leaf, in tokens.
    pub lost_for_leaf: f64,
    /// And for a false segment.
    pub lost_for_segment: f64,
    /// What the challenger of that gets.
    pub reporter: f64,
    /// What an aggregator loses that withholds its data.
    pub lost_for_withholding: f64,
    /// What an aggregator takes that gives its own farm all that may be minted, after a day, if nobody
    /// appeals.
    pub stolen: f64,
    /// The same, if somebody does, and one honest node votes against a hundred new ones of the thief's.
    pub stolen_after_appeal: f64,
    /// The seats of the one, and of all the others.
    pub seats: (u128, u128),
    /// Gas of an appeal with one vote, and its decision.
    pub appeal: u64,
}

/// Plays it all, with so many challenges.
///
/// # Errors
/// [`GridError`]: a contract did not do what it should.
pub fn hold(challenges: u32) -> Result<Court, GridError> {
    let mut court = Court::default();
    disks(&mut court, challenges)?;
    segments(&mut court)?;
    epochs(&mut court)?;
    court.stolen = thief(&mut court, false)?;
    court.stolen_after_appeal = thief(&mut court, true)?;
    Ok(court)
}

/// The default stake of the node that all of these are: 16 threads, 64 GiB, 4 TiB.
fn default_stake() -> U256 {
    Caps { cores: 16, mem_mib: 65_536, ssd_mib: 0, hdd_mib: 4 << 20, mbps: 0 }.stake()
}

/// An honest disk answers, one without its bytes does not.
fn disks(court: &mut Court, challenges: u32) -> Result<(), GridError> {
    let mut grid = Grid::new()?;
    let farm = grid.farm(key_of(90).address())?;
    let machine = Machine::new(1, Claims::DISK, Filling::Own);
    grid.node(farm, 1, default_stake())?;
    let extent = vec![7; EXTENT_BYTES];
    let tree = ExtentTree::of(&extent);
    let extents = (0..1024).map(|id| (ExtentKind::Filler, id, tree.clone())).collect();
    let store = Store::new(extents).ok_or(GridError::Missing("plot"))?;
    grid.plot(&machine.key, 1, &store)?;
    let (mut asked, mut answered) = (0, 0);
    for number in 0..=challenges.max(1) {
        let (it, gas) = grid.challenge(1)?;
        let shown = Capacity::Answer::from(&leaf_at(&store, &extent, it.offset)?);
        let capacity = grid.suite.capacity;
        let call = Capacity::answerCall { it, shown };
        let answer = grid.send(&machine.key, capacity, &call)?.gas_used;
        // The first ones touch accounts that had nothing yet.
        if number > 0 {
            (asked, answered) = (asked + gas, answered + answer);
        }
    }
    court.challenge = asked / u64::from(challenges.max(1));
    court.answer = answered / u64::from(challenges.max(1));
    let (it, _) = grid.challenge(1)?;
    let before = grid.stake(1)?;
    grid.advance(3601)?;
    let capacity = grid.suite.capacity;
    court.expire = grid.send(&holder(), capacity, &Capacity::expireCall { it })?.gas_used;
    court.lost_for_leaf = before - grid.stake(1)?;
    Ok(())
}

/// A node that skipped segments, and has signed one of them to a witness.
fn segments(court: &mut Court) -> Result<(), GridError> {
    let mut grid = Grid::new()?;
    let farm = grid.farm(key_of(90).address())?;
    let player = Player::new(Strategy::Skipping(30), 1, 1);
    let played = player.play(1).pop().ok_or(GridError::Missing("answer"))?;
    grid.node(farm, 1, default_stake())?;
    let reply = played.reply.ok_or(GridError::Missing("answer"))?;
    let mut verifier = Verifier::new(RULES, played.machine.claim(), player.challenge(1), 0);
    let draw = verifier.on_commitment(&reply.commitment().encode(), 1, keccak256("a draw"));
    let draw = draw.map_err(|_| GridError::Missing("draw"))?;
    let opening = reply.open(&draw).ok_or(GridError::Missing("opening"))?;
    let outcome = verifier.on_opening(&opening.encode(), 2);
    let evidence = outcome.ok().and_then(|it| it.evidence.into_iter().next());
    let (claim, signature) = evidence.ok_or(GridError::Missing("evidence"))?;
    let call = Disputes::falseSegmentCall {
        claim: (&claim).into(),
        signature: signature.to_bytes().into(),
    };
    let disputes = grid.suite.disputes;
    let (stake, before) = (grid.stake(1)?, grid.tokens(holder().address())?);
    court.dispute = grid.send(&holder(), disputes, &call)?.gas_used;
    court.lost_for_segment = stake - grid.stake(1)?;
    court.reporter = grid.tokens(holder().address())? - before;
    Ok(())
}

fn data(epoch: u32, ends: u64, nodes: u32, rewards: Vec<RewardLeaf>) -> EpochData {
    let leaf = |node| VerdictLeaf {
        node,
        proven_until: ends,
        pulses: 1,
        answered: 1,
        caps: Caps { cores: 16, mem_mib: 65_536, ssd_mib: 0, hdd_mib: 4 << 20, mbps: 0 },
    };
    let verdicts = (1..=nodes).map(leaf).collect();
    EpochData { epoch, verdicts, rewards, statements: B256::ZERO, ledger: Ledger::default() }
}

fn posted(grid: &mut Grid, data: &EpochData) -> Result<(Capacity::Epoch, u64), GridError> {
    let call = data.post().ok_or(GridError::Missing("leaf"))?;
    let capacity = grid.suite.capacity;
    let receipt = grid.send(&holder(), capacity, &call)?;
    Ok((event::<Capacity::EpochPosted>(&receipt)?.posted, receipt.gas_used))
}

/// A day of posts, a claim, and an aggregator that withholds.
fn epochs(court: &mut Court) -> Result<(), GridError> {
    let mut grid = Grid::new()?;
    let farm = grid.farm(key_of(90).address())?;
    grid.node(farm, 1, default_stake())?;
    let (capacity, rewards) = (grid.suite.capacity, grid.suite.rewards);
    grid.send(&holder(), capacity, &Capacity::joinCall {})?;
    for epoch in 0..25 {
        let ends = grid.end_of(epoch)?;
        let leaves = vec![RewardLeaf { farm, cumulative: EMISSION }];
        court.post = posted(&mut grid, &data(epoch, ends, 1, leaves))?.1;
    }
    for (round, epoch) in [(1, 25), (2, 40)] {
        let ends = grid.end_of(epoch)?;
        let leaf = |farm| RewardLeaf { farm, cumulative: round * EMISSION / u128::from(FARMS) };
        let data = data(epoch, ends, 1, (1..=FARMS).map(leaf).collect());
        let (epoch, _) = posted(&mut grid, &data)?;
        grid.advance(WINDOW_SECS)?;
        let call = data.claim(farm, &epoch).ok_or(GridError::Missing("farm"))?;
        court.claim = grid.send(&holder(), rewards, &call)?.gas_used;
    }
    let ends = grid.end_of(50)?;
    let (epoch, _) =
        posted(&mut grid, &data(50, ends, 1, vec![RewardLeaf { farm, cumulative: 1 }]))?;
    let call = Capacity::demandCall { posted: epoch, tree: 0, index: 0 };
    let demanded = event::<Capacity::Demanded>(&grid.send(&holder(), capacity, &call)?)?;
    grid.advance(3601)?;
    let before = grid.tokens(capacity)?;
    let call = Capacity::voidWithheldCall { it: demanded.demand, posted: demanded.posted };
    grid.send(&holder(), capacity, &call)?;
    // The demand's own bond goes back as well.
    court.lost_for_withholding = before - grid.tokens(capacity)? - 1.0;
    Ok(())
}

/// An aggregator posts that its own farm has earned everything, and shows each leaf to whoever demands
/// it. That it is not what the verdicts come to, only a jury can say. Returns what it has in the end.
fn thief(court: &mut Court, is_appealed: bool) -> Result<f64, GridError> {
    let mut grid = Grid::new()?;
    let thief = key_of(91).address();
    let farm = grid.farm(thief)?;
    grid.node(farm, 1, default_stake())?;
    let (capacity, rewards) = (grid.suite.capacity, grid.suite.rewards);
    grid.send(&holder(), capacity, &Capacity::joinCall {})?;
    let hours = 24;
    grid.end_of(hours - 2)?;
    if is_appealed {
        grid.advance(3600 - 2 * u64::from(SWAMP))?;
        (2..2 + SWAMP).try_for_each(|node| grid.node(farm, node, default_stake()))?;
    }
    let ends = grid.end_of(hours - 1)?;
    let leaves = vec![RewardLeaf { farm, cumulative: u128::from(hours) * EMISSION }];
    let data = data(hours - 1, ends, 1, leaves);
    let (epoch, _) = posted(&mut grid, &data)?;
    let call = Capacity::demandCall { posted: epoch, tree: 1, index: 0 };
    let demanded = event::<Capacity::Demanded>(&grid.send(&holder(), capacity, &call)?)?;
    let (count, leaf, path) = data.demanded(1, 0).ok_or(GridError::Missing("leaf"))?;
    let it = demanded.demand;
    let leaf = leaf.into();
    let answer = Capacity::answerDemandCall { it, posted: demanded.posted, count, leaf, path };
    let answered = grid.send(&holder(), capacity, &answer)?;
    let mut epoch = event::<Capacity::DemandAnswered>(&answered)?.posted;
    if is_appealed {
        epoch = appealed(court, &mut grid, epoch)?;
    }
    grid.advance(WINDOW_SECS)?;
    let call = data.claim(farm, &epoch).ok_or(GridError::Missing("farm"))?;
    match grid.send(&holder(), rewards, &call) {
        Ok(_) | Err(GridError::Refused(_)) => grid.tokens(thief),
        Err(error) => Err(error),
    }
}

/// An appeal that all vote on who have seats: the honest node 1 against what was posted, the others for
/// it. Returns the epoch's record then.
fn appealed(
    court: &mut Court,
    grid: &mut Grid,
    posted: Capacity::Epoch,
) -> Result<Capacity::Epoch, GridError> {
    let capacity = grid.suite.capacity;
    let opened = grid.send(&holder(), capacity, &Capacity::appealCall { posted })?;
    let Capacity::Demanded { demand: it, posted, .. } = event(&opened)?;
    let (aggregator, at) = (posted.aggregator, posted.postedAt);
    let call = Capacity::seatCall { it: it.clone(), postedAt: at, aggregator };
    let seated = grid.send(&holder(), capacity, &call)?;
    court.appeal = opened.gas_used + seated.gas_used;
    for node in 1..2 + SWAMP {
        let seats = grid.seats(&it, node)?;
        if seats == 0 {
            continue;
        }
        let is_true = node > 1;
        let call =
            Capacity::voteCall { it: it.clone(), postedAt: at, aggregator, node, isTrue: is_true };
        let voted = grid.send(&key_of(node), capacity, &call)?;
        if is_true {
            court.seats.1 += seats;
        } else {
            court.seats.0 += seats;
            court.appeal += voted.gas_used;
        }
    }
    grid.advance(3601)?;
    let call = Capacity::decideCall { it, posted: posted.clone() };
    court.appeal += grid.send(&holder(), capacity, &call)?.gas_used;
    Ok(posted)
}

impl Court {
    /// Gas of a node in a day, in a network of so many: an epoch an hour, a challenge a day to one node
    /// of a thousand, and a claim a month by each farm of twenty nodes.
    #[must_use]
    pub fn gas_of_node_and_day(&self, nodes: u32) -> f64 {
        let posts = 24.0 * self.post as f64 / f64::from(nodes.max(1));
        let challenges = (self.challenge + self.answer) as f64 / 1000.0;
        posts + challenges + self.claim as f64 / 20.0 / 30.0
    }
}
