//! How a volume is made and opened, and why that may be refused.

use crate::geometry::{BLOCK_BYTES, SHARDS_MAX};
use crate::keys::{Uuid, VolumeKey};
use crate::node::{NODES_MAX, NodeError};

/// When a flush is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Policy {
    /// When it is durable on the one journal head that is local: lost with this host.
    Local,
    /// When it is durable on m + 1 journal heads in different failure domains: it survives the
    /// loss of any m.
    Quorum,
    /// When it is in a segment on all its nodes.
    Sealed,
}

/// What is known of a node of the volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeInfo {
    /// What tells it from all others, whatever its address.
    pub id: [u8; 16],
    /// Its name for people: a path, an address. At most 255 bytes.
    pub name: String,
    /// Its failure domain: two nodes of one domain are lost together. At most 255 bytes.
    pub domain: String,
    /// Whether it keeps shards.
    pub objects: bool,
    /// Whether it keeps a journal head.
    pub journal: bool,
    /// Whether it is an acceptor of the register.
    pub register: bool,
    /// Whether it is on this host: the head of [`Policy::Local`] is on such a node.
    pub local: bool,
}

/// How a volume is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Create {
    /// How many data shards a segment has (*k*).
    pub data_shards: u8,
    /// How many parity shards (*m*): any so many nodes may be lost.
    pub parity_shards: u8,
    /// The volume's size, a multiple of 4096.
    pub size_bytes: u64,
    /// When a flush is answered.
    pub policy: Policy,
    /// Whether fewer failure domains than the policy wants will do. Status says so then.
    pub allow_degraded: bool,
    /// Whether two shards of a segment may lie in one failure domain.
    pub shared_domains: bool,
    /// The bytes of each journal head, at least [`JOURNAL_BYTES_MIN`].
    pub journal_bytes: u64,
    /// How long an opening holds the volume without renewing; unused without a register.
    pub lease_ns: u64,
}

/// The least bytes of a journal head.
pub const JOURNAL_BYTES_MIN: u64 = 256 << 10;

/// What is to happen if somebody else holds the volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TakeOver {
    /// Refuse, and say who.
    Refuse,
    /// Wait until its lease has run out, then take over.
    Wait,
}

/// What volume is to be opened, and how.
#[derive(Debug, Clone)]
pub struct OpenOptions {
    /// The volume; a fresh random one if it is to be made.
    pub uuid: Uuid,
    /// Its key.
    pub key: VolumeKey,
    /// The nodes, in the order of their indexes.
    pub nodes: Vec<NodeInfo>,
    /// How it is made if the nodes hold no volume; `None`: it isn't.
    pub create: Option<Create>,
    /// What the volume that is made (with `create`) begins as; `None`: as zeroes.
    pub base: Option<CloneOf>,
    /// Whether it is an error if there is one already (with `create`).
    pub must_be_new: bool,
    /// Who opens it: an id of this process's own, and a name for people.
    pub holder: Holder,
    /// Whether openings are kept apart by the register. Without it the caller proves by other
    /// means (a lock on each directory) that nobody else has the volume open.
    pub register: bool,
    /// What is to happen if somebody else holds the volume.
    pub take_over: TakeOver,
    /// Whether the volume may be opened though all its journal heads are gone: what was flushed
    /// and in no segment yet is lost then.
    pub accept_loss: bool,
    /// What it may use.
    pub limits: Limits,
}

/// A snapshot of another volume on the same nodes. It must be marked as a clone's base already
/// ([`super::Command::PinSnapshot`]), and the new volume has the other's k and m.
#[derive(Debug, Clone)]
pub struct CloneOf {
    /// The other volume.
    pub uuid: Uuid,
    /// Its key; the clone keeps it, sealed under its own.
    pub key: VolumeKey,
    /// The snapshot's name.
    pub snapshot: String,
}

/// Who holds a volume open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Random, of this process.
    pub id: [u8; 16],
    /// A name for people: host and process. At most 255 bytes.
    pub name: String,
}

/// What a volume may use. None of it is part of the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The most bytes of blocks kept after a read.
    pub cache_bytes: usize,
    /// The most bytes of written blocks in memory that are in no committed segment.
    pub unsealed_bytes: usize,
    /// The most blocks of a segment; smaller ones need less memory. At most 1024 (4096 if k > 8).
    pub segment_blocks: usize,
    /// The most bytes of map pages in memory.
    pub map_bytes: usize,
    /// The most bytes per second that repair and scrub may read; 0: no limit.
    pub repair_bytes_per_second: u64,
}

impl Limits {
    /// What fits a VMM whose memory counts: about 3 MiB at the most.
    pub const SMALL: Self = Self {
        cache_bytes: 256 << 10,
        unsealed_bytes: 2 << 20,
        segment_blocks: 128,
        map_bytes: 256 << 10,
        repair_bytes_per_second: 64 << 20,
    };
    /// What fits a server of volumes.
    pub const LARGE: Self = Self {
        cache_bytes: 64 << 20,
        unsealed_bytes: 64 << 20,
        segment_blocks: 1024,
        map_bytes: 64 << 20,
        repair_bytes_per_second: 0,
    };

    /// How much memory of shards that are stored is kept for the next ones. Small volumes keep none.
    pub(super) fn spare_bytes(&self) -> usize {
        if self.unsealed_bytes < 16 << 20 { 0 } else { self.unsealed_bytes / 2 }
    }
}

/// Fresh random bytes for one open, from a cryptographic source; never given twice.
#[derive(Clone)]
pub struct Randomness {
    /// The salt of this opening's keys.
    pub salt: [u8; 32],
    /// The name of this opening as a proposer of the register.
    pub proposer: [u8; 24],
}

/// Why a volume can't be made or opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The shape is impossible.
    #[error(
        "{data} data and {parity} parity shards: at least 1 and 0 are needed, and at most \
         {SHARDS_MAX} together"
    )]
    Shards {
        /// Data shards.
        data: u8,
        /// Parity shards.
        parity: u8,
    },
    /// The size is zero, no multiple of a block, or too large.
    #[error("a volume of {size_bytes} bytes: the size must be a multiple of {BLOCK_BYTES}")]
    Size {
        /// The size that was asked for.
        size_bytes: u64,
    },
    /// The journal's size is out of range.
    #[error("a journal of {journal_bytes} bytes: {JOURNAL_BYTES_MIN} is the least")]
    Journal {
        /// The size that was asked for.
        journal_bytes: u64,
    },
    /// Too few nodes, or too many.
    #[error("{found} nodes were given; {wanted} are needed (at most {NODES_MAX})")]
    NodeCount {
        /// How many that keep shards.
        found: usize,
        /// How many are needed.
        wanted: usize,
    },
    /// Two nodes have one id.
    #[error("{first} and {second} are the same node")]
    SameNode {
        /// The one.
        first: String,
        /// The other.
        second: String,
    },
    /// Two shards would lie in one failure domain.
    #[error("{first} and {second} are in one failure domain ({domain})")]
    SameDomain {
        /// The one.
        first: String,
        /// The other.
        second: String,
        /// The domain.
        domain: String,
    },
    /// The policy wants more journal heads in different failure domains than there are.
    #[error(
        "the policy wants {wanted} journal heads in different failure domains: there are {found}"
    )]
    TooFewHeads {
        /// How many there are.
        found: usize,
        /// How many are needed.
        wanted: usize,
    },
    /// A clone's base has no such snapshot, or it isn't marked as a clone's.
    #[error("there is no snapshot {0:?} that is marked as the base of a clone")]
    NoSnapshot(String),
    /// There is no volume, and none was to be made.
    #[error("there is no volume on these nodes")]
    NotFound,
    /// There is a volume already, and a new one was to be made.
    #[error("there is a volume on these nodes already")]
    Exists,
    /// The volume was written by another version of the format.
    #[error("{0}")]
    Version(String),
    /// The key is another volume's.
    #[error("the volume key is wrong")]
    WrongKey,
    /// The volume has another shape than was asked for.
    #[error("the volume is {found} and not {wanted}")]
    Shape {
        /// What is there.
        found: String,
        /// What was asked for.
        wanted: String,
    },
    /// Somebody else has the volume open.
    #[error("the volume is in use by {holder} (epoch {epoch})")]
    InUse {
        /// The holder's name.
        holder: String,
        /// Its epoch.
        epoch: u64,
    },
    /// Another opening overtook this one.
    #[error("EPOCH_STALE: epoch {epoch} has taken the volume over")]
    Stale {
        /// The other's epoch.
        epoch: u64,
    },
    /// Too few nodes answer to open the volume safely.
    #[error("{reachable} of {nodes} nodes answer and {wanted} must ({reason})")]
    TooFewNodes {
        /// How many answer.
        reachable: usize,
        /// Of how many.
        nodes: usize,
        /// How many must.
        wanted: usize,
        /// The first of the others' errors.
        reason: NodeError,
    },
    /// No superblock is left, or not the newest one.
    #[error("no node has the volume's superblock (version {version})")]
    SuperblockLost {
        /// The version that is wanted.
        version: u64,
    },
    /// The journal heads are gone, and with them perhaps flushed writes.
    #[error("no journal head of the volume can be read: flushed writes may be lost with them")]
    JournalLost,
    /// The map or the metadata can't be read.
    #[error("the volume's map is lost: too few shards of segment {segment} are left")]
    MapLost {
        /// The segment.
        segment: u64,
    },
    /// More nodes than may be lost don't answer, or have forgotten the last opening: they were
    /// replaced or rolled back.
    #[error(
        "{lost} of {slots} nodes are gone or have forgotten the volume's last opening, and {spare} \
         may: the newest writes may be lost with them"
    )]
    Forgotten {
        /// How many that hold a slot.
        lost: usize,
        /// Of how many.
        slots: usize,
        /// How many may be lost (*m*).
        spare: usize,
    },
    /// The register can't be changed.
    #[error("{0}")]
    Register(String),
    /// Enough nodes answer, and too few of them are those that the register names.
    #[error(
        "{answered} of {asked} register nodes answer, but most of those that hold the volume's \
         register are not among them: they were lost or replaced"
    )]
    RegisterReplaced {
        /// How many answer.
        answered: usize,
        /// Of how many.
        asked: usize,
    },
    /// The register names an epoch that somebody had before.
    #[error(
        "the register has gone back to an earlier state: it gives out epoch {epoch}, and nodes were \
         fenced with {fence} before"
    )]
    RegisterRolledBack {
        /// The epoch that it gave this opening.
        epoch: u64,
        /// The highest fence.
        fence: u64,
    },
    /// Nodes have newer superblocks than the register can have left unnamed.
    #[error(
        "the register has gone back to an earlier state: it names superblock {version}, and \
         superblock {found} is there"
    )]
    RegisterForgot {
        /// The version that the register names.
        version: u64,
        /// The version that was found.
        found: u64,
    },
    /// No acceptor knows the volume, and nodes do.
    #[error("the volume's register is lost: no node has it, and nodes were fenced with {fence}")]
    RegisterLost {
        /// The highest fence.
        fence: u64,
    },
    /// The nodes have no room to open the volume.
    #[error("no space left on the volume's nodes")]
    NoSpace,
}
