//! Whether a posted epoch is what its statements come to: what a node votes by when it is drawn for an
//! appeal, and what anybody can find out before there is one.
//!
//! An epoch is judged by the statements that its aggregator shows with it, so that nobody is wrong for
//! what reached it late; left out may only be what the judge itself did not have in time.

use hypha_chain::U256;
use hypha_chain::contracts::Capacity;

use super::epoch::{Difference, EpochData};
use super::ledger::{CloseError, Closing, Ledger, Terms};
use super::pool::{Pool, Range};

/// How long after an epoch's end statements still count, in seconds: who judges remembers then which
/// it has ([`Known::at`]).
pub const SETTLE_SECS: u64 = 600;
/// How long after an epoch's end it is closed and posted, in seconds: what reached a judge in time has
/// reached an aggregator by then.
pub const POST_SECS: u64 = 1200;
/// Seats of a jury in the mean, as Capacity has it.
pub const JURY: u64 = 256;

/// Which statements a node had [`SETTLE_SECS`] after an epoch's end: their numbers, ascending.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Known(pub Vec<u128>);

/// What is wrong with a posted epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Objection {
    /// The data are not those whose hash or roots were posted.
    OtherData,
    /// The shown statements are not those that the data name.
    OtherStatements,
    /// A statement that was known in time was left out, with its number.
    LeftOut(u128),
    /// Out of the shown statements comes something else.
    Differs(Difference),
    /// The epoch can't be closed at all with what is known here.
    Unclosed(CloseError),
    /// Nobody serves the data, or the numbers of the statements.
    Withheld,
    /// Nobody shows a statement that the data name.
    Unshown(u128),
    /// It goes on from an epoch that was objected to.
    After(u32),
    /// A later epoch was posted before it, and stands: that one says that nothing was said in this.
    TooLate(u32),
}

/// What was posted for an epoch, as `Capacity.EpochPosted` tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Posted {
    /// The root of the nodes' leaves.
    pub verdict_root: hypha_chain::B256,
    /// The root of the farms' leaves.
    pub reward_root: hypha_chain::B256,
    /// Over all data.
    pub data: hypha_chain::B256,
}

impl Posted {
    /// What is to be posted for an epoch; `None` without a node.
    #[must_use]
    pub fn of(data: &EpochData) -> Option<Self> {
        let post = data.post()?;
        let (verdict_root, reward_root) = (post.verdictRoot, post.rewardRoot);
        Some(Self { verdict_root, reward_root, data: post.data })
    }
}

impl Known {
    /// What a pool holds now.
    #[must_use]
    pub fn at(pool: &Pool) -> Self {
        Self(pool.ids(Range::ALL).collect())
    }

    /// The first statement that another pool lacks, and that nothing takes the place of.
    fn missing(&self, ours: &Pool, shown: &Pool) -> Option<u128> {
        let lacks = |id: &&u128| {
            let statement = ours.get(**id);
            // Two contradictions by the author are enough: then neither counts.
            statement.is_some_and(|it| shown.wants(it) && shown.get(**id).is_none())
        };
        self.0.iter().find(lacks).copied()
    }
}

impl Ledger {
    /// Everything that is wrong with a posted epoch: nothing, if it is what it should be.
    ///
    /// `closing` has the statements that the aggregator shows, whose authors and signatures were
    /// checked; `ours` and `known` are one's own pool, and what it held in time.
    #[must_use]
    pub fn objections(
        &self,
        terms: &Terms,
        closing: &Closing<'_>,
        (posted, theirs): (&Posted, &EpochData),
        (ours, known): (&Pool, &Known),
    ) -> Vec<Objection> {
        let mut found = Vec::new();
        if Posted::of(theirs) != Some(*posted) {
            found.push(Objection::OtherData);
        }
        if closing.pool.digest() != theirs.statements {
            found.push(Objection::OtherStatements);
        }
        found.extend(known.missing(ours, closing.pool).map(Objection::LeftOut));
        match self.close(terms, closing) {
            Ok(made) => found.extend(made.differences(theirs).map(Objection::Differs)),
            Err(error) => found.push(Objection::Unclosed(error)),
        }
        found
    }
}

/// A jury, as `Capacity.seat` drew it: of each node's share of all weight its share of [`JURY`] seats, of
/// which a broken one is drawn whole or not at all. So it makes no difference, in the mean, among how many
/// nodes a stake is divided, and each node's seats follow from its own weight alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Jury {
    /// The appeal.
    pub id: u64,
    /// What it is drawn by.
    pub seed: [u8; 20],
    /// What all nodes weigh at the epoch's end: `Registry.totalWeight`.
    pub weight: u128,
}

impl From<&Capacity::Seated> for Jury {
    fn from(event: &Capacity::Seated) -> Self {
        Self { id: event.id, seed: event.seed.0, weight: event.weight.to() }
    }
}

impl Jury {
    /// The seats of a node, as `Capacity.seatsOf` says: none, and its vote is refused.
    ///
    /// `weight` is the node's at the epoch's end: `Registry.weightOf` now, since it may have lost some, or
    /// [`Member::juror_weight`](super::roster::Member::juror_weight) of what it is now.
    #[must_use]
    pub fn seats_of(&self, node: u32, weight: u128) -> u128 {
        if self.weight == 0 {
            return 0;
        }
        let all = U256::from(self.weight);
        let share = U256::from(JURY) * U256::from(weight);
        let mut bytes = b"hypha juror".to_vec();
        bytes.extend(self.seed);
        bytes.extend(self.id.to_be_bytes());
        bytes.extend(node.to_be_bytes());
        let draw = U256::from_be_bytes(hypha_chain::keccak256(bytes).0);
        let is_drawn = draw % all < share % all;
        u128::try_from(share / all).unwrap_or(u128::MAX).saturating_add(is_drawn.into())
    }
}
