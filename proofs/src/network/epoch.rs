//! What is posted for an epoch: a leaf per node, a leaf per farm, and what the next epoch goes on from.

use hypha_chain::contracts::{Capacity, Rewards};
use hypha_chain::tree::Tree;
use hypha_chain::{B256, keccak256};

use super::ledger::{Ledger, RECORD_BYTES};
use super::roster::Caps;
use crate::wire::{Input, WireError};

/// The bytes of a verdict leaf.
pub const VERDICT_BYTES: usize = 42;
/// The bytes of a reward leaf.
pub const REWARD_BYTES: usize = 20;
/// What an epoch's data begin with. 1 had no filler that waits.
const DATA_VERSION: u8 = 2;
/// The most bytes of an epoch's data: four million nodes and farms.
const DATA_BYTES_MAX: usize = 1 << 30;

/// What an epoch says about a node. Leaf `node - 1` of the verdict tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VerdictLeaf {
    /// Which node.
    pub node: u32,
    /// The end of the last epoch that it was proven in, in seconds since 1970; 0 for never.
    pub proven_until: u64,
    /// Pulses of the epoch that count.
    pub pulses: u16,
    /// How many of them the node answered.
    pub answered: u16,
    /// What it proved.
    pub caps: Caps,
}

/// What a farm has earned since the start. Leaf `farm - 1` of the reward tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RewardLeaf {
    /// Which farm.
    pub farm: u32,
    /// In the token's smallest unit.
    pub cumulative: u128,
}

/// All that is known of an epoch when it is over. Whoever has the same statements has the same data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EpochData {
    /// Its number.
    pub epoch: u32,
    /// A leaf for each node of the Registry, from node 1 on.
    pub verdicts: Vec<VerdictLeaf>,
    /// A leaf for each farm of the Registry, from farm 1 on.
    pub rewards: Vec<RewardLeaf>,
    /// Over the numbers of the statements that all this was made of (`Pool::digest`).
    pub statements: B256,
    /// What the next epoch goes on from.
    pub ledger: Ledger,
}

/// Where somebody's data of an epoch differs from one's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Difference {
    /// Another epoch, or another number of leaves: nodes or farms are missing.
    Shape,
    /// A node's leaf; leaf `node - 1` of the verdict tree can be demanded.
    Verdict {
        /// One's own.
        ours: VerdictLeaf,
        /// The other.
        theirs: VerdictLeaf,
    },
    /// A farm's leaf.
    Reward {
        /// One's own.
        ours: RewardLeaf,
        /// The other.
        theirs: RewardLeaf,
    },
    /// The leaves are the same, what the next epoch goes on from is not.
    Ledger,
    /// Made of other statements. If nothing else differs, nothing depended on them.
    Statements,
}

impl VerdictLeaf {
    /// As it is in the tree.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(VERDICT_BYTES);
        out.extend(self.node.to_be_bytes());
        out.extend(self.proven_until.to_be_bytes());
        out.extend(self.pulses.to_be_bytes());
        out.extend(self.answered.to_be_bytes());
        out.extend(self.caps.cores.to_be_bytes());
        out.extend(self.caps.mem_mib.to_be_bytes());
        out.extend(self.caps.ssd_mib.to_be_bytes());
        out.extend(self.caps.hdd_mib.to_be_bytes());
        out.extend(self.caps.mbps.to_be_bytes());
        out
    }

    fn read(input: &mut Input<'_>) -> Result<Self, WireError> {
        let (node, proven_until) = (input.u32()?, input.u64()?);
        let pulses = u16::from_be_bytes(input.array()?);
        let answered = u16::from_be_bytes(input.array()?);
        let caps = Caps {
            cores: u16::from_be_bytes(input.array()?),
            mem_mib: input.u32()?,
            ssd_mib: input.u64()?,
            hdd_mib: input.u64()?,
            mbps: input.u32()?,
        };
        Ok(Self { node, proven_until, pulses, answered, caps })
    }

    /// As the contracts take it.
    #[must_use]
    pub fn to_contract(&self) -> Capacity::Verdict {
        let caps = &self.caps;
        Capacity::Verdict {
            node: self.node,
            provenUntil: self.proven_until,
            pulses: self.pulses,
            answered: self.answered,
            caps: Capacity::Caps {
                cores: caps.cores,
                memMiB: caps.mem_mib,
                ssdMiB: caps.ssd_mib,
                hddMiB: caps.hdd_mib,
                mbps: caps.mbps,
            },
        }
    }
}

impl RewardLeaf {
    /// As it is in the tree.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        [self.farm.to_be_bytes().as_slice(), &self.cumulative.to_be_bytes()].concat()
    }
}

impl EpochData {
    /// The tree over the nodes' leaves; `None` without a node.
    #[must_use]
    pub fn verdict_tree(&self) -> Option<Tree> {
        let leaves: Vec<Vec<u8>> = self.verdicts.iter().map(VerdictLeaf::encode).collect();
        Tree::new(leaves.iter().map(Vec::as_slice))
    }

    /// The tree over the farms' leaves; `None` without a farm.
    #[must_use]
    pub fn reward_tree(&self) -> Option<Tree> {
        let leaves: Vec<Vec<u8>> = self.rewards.iter().map(RewardLeaf::encode).collect();
        Tree::new(leaves.iter().map(Vec::as_slice))
    }

    /// The transaction that posts the epoch; `None` without a node.
    #[must_use]
    pub fn post(&self) -> Option<Capacity::postEpochCall> {
        Some(Capacity::postEpochCall {
            epoch: self.epoch,
            verdictRoot: self.verdict_tree()?.root(),
            rewardRoot: self.reward_tree()?.root(),
            data: self.hash(),
        })
    }

    /// The transaction by which a farm claims what this epoch says that it has earned; `None` if the
    /// epoch has no such farm.
    #[must_use]
    pub fn claim(&self, farm: u32, posted: &Capacity::Epoch) -> Option<Rewards::claimCall> {
        let index = farm.checked_sub(1)?;
        let leaf = self.rewards.get(index as usize)?;
        let tree = self.reward_tree()?;
        Some(Rewards::claimCall {
            farm,
            cumulative: leaf.cumulative,
            posted: Rewards::Epoch {
                epoch: posted.epoch,
                postedAt: posted.postedAt,
                openDemands: posted.openDemands,
                aggregator: posted.aggregator,
                verdictRoot: posted.verdictRoot,
                rewardRoot: posted.rewardRoot,
            },
            count: tree.count(),
            path: tree.path(index.into())?,
        })
    }

    /// A node's verdict with its way to the posted epoch, for `Capacity.prove` and others; `None` if
    /// the epoch has no such node.
    #[must_use]
    pub fn proof(&self, node: u32, posted: &Capacity::Epoch) -> Option<Capacity::VerdictPath> {
        let index = node.checked_sub(1)?;
        let tree = self.verdict_tree()?;
        Some(Capacity::VerdictPath {
            posted: posted.clone(),
            verdict: self.verdicts.get(index as usize)?.to_contract(),
            count: tree.count(),
            path: tree.path(index.into())?,
        })
    }

    /// The answer to a demand for a leaf: the tree's leaf count, the leaf and its path, as
    /// `Capacity.answerDemand` takes them. A leaf behind the end is answered with the last.
    #[must_use]
    pub fn demanded(&self, tree: u8, index: u64) -> Option<(u64, Vec<u8>, Vec<B256>)> {
        let (tree, leaves): (Tree, Vec<Vec<u8>>) = match tree {
            0 => (self.verdict_tree()?, self.verdicts.iter().map(VerdictLeaf::encode).collect()),
            1 => (self.reward_tree()?, self.rewards.iter().map(RewardLeaf::encode).collect()),
            // An appeal: no leaf answers that.
            _ => return None,
        };
        let index = index.min(tree.count() - 1);
        let leaf = leaves.get(usize::try_from(index).ok()?)?.clone();
        Some((tree.count(), leaf, tree.path(index)?))
    }

    /// Whether there is anything to post: a pulse that counts.
    #[must_use]
    pub fn has_pulses(&self) -> bool {
        self.verdicts.iter().any(|leaf| leaf.pulses > 0)
    }

    /// The most bytes of the data of an epoch with so many nodes and farms in the Registry.
    #[must_use]
    pub fn bytes_max(nodes: u32, farms: u32) -> usize {
        let (nodes, farms) = (nodes as usize, farms as usize);
        let each = nodes * (VERDICT_BYTES + RECORD_BYTES) + farms * (REWARD_BYTES + 16);
        (128 + each).min(DATA_BYTES_MAX)
    }

    /// The hash that is posted with the roots: of the whole data as it is served.
    #[must_use]
    pub fn hash(&self) -> B256 {
        keccak256(self.encode())
    }

    /// As it is kept and served.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![DATA_VERSION];
        out.extend(self.epoch.to_be_bytes());
        out.extend(self.statements);
        out.extend((self.verdicts.len() as u32).to_be_bytes());
        self.verdicts.iter().for_each(|leaf| out.extend(leaf.encode()));
        out.extend((self.rewards.len() as u32).to_be_bytes());
        self.rewards.iter().for_each(|leaf| out.extend(leaf.encode()));
        self.ledger.put(&mut out);
        out
    }

    /// Reads one.
    ///
    /// # Errors
    /// [`WireError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut input = Input::of_version(DATA_VERSION, bytes, DATA_BYTES_MAX)?;
        let (epoch, statements) = (input.u32()?, input.hash()?);
        let count = input.counted(VERDICT_BYTES)?;
        let verdicts =
            (0..count).map(|_| VerdictLeaf::read(&mut input)).collect::<Result<_, _>>()?;
        let count = input.counted(REWARD_BYTES)?;
        let rewards = (0..count)
            .map(|_| {
                let (farm, cumulative) = (input.u32()?, u128::from_be_bytes(input.array()?));
                Ok(RewardLeaf { farm, cumulative })
            })
            .collect::<Result<_, WireError>>()?;
        let ledger = Ledger::read(&mut input)?;
        input.end()?;
        Ok(Self { epoch, verdicts, rewards, statements, ledger })
    }

    /// All places where somebody else's data of the same epoch differs.
    pub fn differences<'a>(&'a self, theirs: &'a Self) -> impl Iterator<Item = Difference> + 'a {
        let shape = self.epoch != theirs.epoch
            || self.verdicts.len() != theirs.verdicts.len()
            || self.rewards.len() != theirs.rewards.len();
        let verdicts = self.verdicts.iter().zip(&theirs.verdicts);
        let verdicts = verdicts.filter(|(ours, theirs)| ours != theirs);
        let rewards = self.rewards.iter().zip(&theirs.rewards);
        let rewards = rewards.filter(|(ours, theirs)| ours != theirs);
        let ledger = (self.ledger != theirs.ledger).then_some(Difference::Ledger);
        let statements = (self.statements != theirs.statements).then_some(Difference::Statements);
        let verdict = |(ours, theirs): (&VerdictLeaf, &VerdictLeaf)| Difference::Verdict {
            ours: *ours,
            theirs: *theirs,
        };
        let reward = |(ours, theirs): (&RewardLeaf, &RewardLeaf)| Difference::Reward {
            ours: *ours,
            theirs: *theirs,
        };
        let shape = shape.then_some(Difference::Shape).into_iter();
        shape
            .chain(verdicts.map(verdict))
            .chain(rewards.map(reward))
            .chain(ledger)
            .chain(statements)
    }
}
