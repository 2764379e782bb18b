//! What a volume asks of the nodes that keep its shards, its journal copies and its register.
//!
//! A *node* is one failure domain: a shard server, or a directory of this host. It offers up to
//! three services: objects (written once), a journal head (an append-only log per volume) and a
//! register acceptor. [`Nodes`] is the seam below a volume: requests go out with a tag, completions
//! come back in any order. Directories, sockets and the simulation implement it.

use std::fmt;
use std::os::fd::BorrowedFd;

use bytes::Bytes;

use crate::keys::Uuid;

/// A node's place in the volume's list of nodes.
pub type NodeIndex = u8;

/// The most nodes that a volume may have: members and spares.
pub const NODES_MAX: usize = 64;

/// The most bytes of one object: a shard with its head.
pub const OBJECT_BYTES_MAX: usize = 4 << 20;

/// The most bytes that one request may carry or ask for.
pub const TRANSFER_BYTES_MAX: usize = OBJECT_BYTES_MAX;

/// The most bytes of a register's value.
pub const REGISTER_BYTES_MAX: usize = 4096;

/// The `shard` of an [`ObjectKey`] that names a superblock; its sequence is the version.
pub const SUPERBLOCK_SHARD: u8 = 0xff;

/// The name of an object. No key is ever used for two different contents: the epoch is in it, and a
/// writer uses each sequence number once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    /// The volume.
    pub volume: Uuid,
    /// The epoch of the opening that wrote it.
    pub epoch: u64,
    /// The segment's sequence number, or a superblock's version.
    pub sequence: u64,
    /// Which shard of the segment, or [`SUPERBLOCK_SHARD`].
    pub shard: u8,
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("v/")?;
        self.volume.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        write!(f, "/{:016x}/{:016x}/{:02x}", self.epoch, self.sequence, self.shard)
    }
}

impl ObjectKey {
    /// Reads what `Display` writes, and nothing else.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        let mut parts = name.strip_prefix("v/")?.split('/');
        let mut number = |digits: usize| -> Option<u128> {
            let part = parts.next().filter(|part| part.len() == digits)?;
            u128::from_str_radix(part, 16).ok()
        };
        let volume = number(32)?.to_be_bytes();
        let (epoch, sequence) = (number(16)? as u64, number(16)? as u64);
        let key = Self { volume, epoch, sequence, shard: number(2)? as u8 };
        (key.to_string() == name).then_some(key)
    }
}

/// A ballot of the register's consensus: totally ordered, never used by two proposers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ballot {
    /// Counts up.
    pub counter: u64,
    /// Who proposes: random, fresh for each opening.
    pub proposer: [u8; 16],
}

/// The leaf of a [`Request::Audit`] that asks for the root: no object has so many.
pub const AUDIT_ROOT: u32 = u32::MAX;

/// What a node is asked to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Stores an object, durably. Storing the same bytes again is a success. The key's epoch must
    /// not be below the fence: an earlier opening's objects come back by [`Request::Restore`].
    /// Answer: [`Response::Done`].
    Put {
        /// Its name.
        key: ObjectKey,
        /// Its bytes, in parts that follow each other.
        parts: Vec<Bytes>,
    },
    /// Stores an object that an earlier opening had written (or was about to write): what recovery
    /// and repair rebuild. Like [`Request::Put`], but the fence is asked about `epoch` instead of
    /// the key's own, which may be older. Answer: [`Response::Done`].
    Restore {
        /// The epoch of who rebuilds: at least the key's.
        epoch: u64,
        /// Its name.
        key: ObjectKey,
        /// Its bytes, in parts that follow each other.
        parts: Vec<Bytes>,
    },
    /// Reads a range of an object. Answer: [`Response::Bytes`], exactly `len` of them, or up to the
    /// object's end if `len` is `u32::MAX`.
    Get {
        /// Its name.
        key: ObjectKey,
        /// The first byte.
        offset: u32,
        /// How many bytes.
        len: u32,
    },
    /// Names of the volume's objects in order, after `after`. Answer: [`Response::Keys`].
    List {
        /// The volume.
        volume: Uuid,
        /// Where the last answer ended.
        after: Option<ObjectKey>,
        /// The most names.
        limit: u16,
    },
    /// Removes objects; one that isn't there counts as removed. Refused to a stale epoch.
    /// Answer: [`Response::Done`].
    Delete {
        /// The epoch of the writer that deletes.
        epoch: u64,
        /// Their names, all of one volume.
        keys: Vec<ObjectKey>,
    },
    /// Opens the volume's journal head and makes it if there is none, or if what there is has rotted
    /// so that nothing of it can be read. With a capacity of 0: gives it up, for a volume that is
    /// removed; its room is free then.
    /// Answer: [`Response::Journal`].
    JournalOpen {
        /// The volume.
        volume: Uuid,
        /// The writer's epoch; lower ones than the fence are refused.
        epoch: u64,
        /// How many bytes between start and end it must have room for.
        capacity: u64,
    },
    /// Appends to the journal, durably. Answer: [`Response::Done`].
    JournalAppend {
        /// The volume.
        volume: Uuid,
        /// The writer's epoch.
        epoch: u64,
        /// Where: must be the journal's end, else [`NodeError::Conflict`].
        position: u64,
        /// What, in parts that follow each other.
        parts: Vec<Bytes>,
    },
    /// Reads from the journal. Answer: [`Response::Bytes`], shorter if the journal ends.
    JournalRead {
        /// The volume.
        volume: Uuid,
        /// The first byte, not before the journal's start.
        position: u64,
        /// The most bytes.
        len: u32,
    },
    /// Where the journal starts and ends, without opening it. Answer: [`Response::Journal`].
    JournalState {
        /// The volume.
        volume: Uuid,
    },
    /// Forgets what lies before `start`; behind the end, it empties the journal and the next append
    /// is at `start`. Need not be durable at once unless `start` is behind the end.
    /// Answer: [`Response::Done`].
    JournalTrim {
        /// The volume.
        volume: Uuid,
        /// The writer's epoch.
        epoch: u64,
        /// The first byte that is still needed.
        start: u64,
    },
    /// From now on only `epoch` and later ones may write. Durable. Answer: [`Response::Fenced`].
    Fence {
        /// The volume.
        volume: Uuid,
        /// The least epoch that may still write.
        epoch: u64,
        /// What acceptors of the register said when it took the epoch over; see `docs/keys.md`.
        evidence: Vec<Bytes>,
    },
    /// A message to the node's register acceptor. Answer: [`Response::Register`].
    Register {
        /// The register: a volume's uuid.
        register: Uuid,
        /// The message.
        message: RegisterRequest,
    },
    /// Opens a leaf of an object's audit tree, or says its root. Answer: [`Response::Bytes`]:
    /// `docs/audit-tree.md` has the layouts.
    Audit {
        /// The object.
        key: ObjectKey,
        /// Which leaf of 1 KiB; [`AUDIT_ROOT`]: the root.
        leaf: u32,
        /// The challenge that entitles to the answer.
        challenge: [u8; 32],
    },
    /// How full the node is. Answer: [`Response::Capacity`].
    Capacity,
}

/// A message to an acceptor (CASPaxos, Rystsov 2018).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RegisterRequest {
    /// Promise to accept nothing below this ballot.
    Prepare {
        /// The ballot.
        ballot: Ballot,
    },
    /// Accept this value.
    Accept {
        /// The ballot.
        ballot: Ballot,
        /// The value, at most [`REGISTER_BYTES_MAX`].
        value: Bytes,
    },
}

/// Who an acceptor is: the public half of its receipt key, or random bytes if it signs nothing. It is
/// made with the acceptor's state and lost with it, so a node that lost what it promised answers
/// under another name and no longer counts.
pub type AcceptorId = [u8; 32];

/// An acceptor's answer, given when its promise is durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RegisterResponse {
    /// Promised. What was accepted last, if anything.
    Promised {
        /// Who promises.
        acceptor: AcceptorId,
        /// The ballot and the value.
        accepted: Option<(Ballot, Bytes)>,
    },
    /// Accepted, with the acceptor's receipt (empty from acceptors that sign nothing).
    Accepted {
        /// Who accepted.
        acceptor: AcceptorId,
        /// Evidence for a [`Request::Fence`].
        receipt: Bytes,
    },
    /// A higher ballot was promised already.
    Rejected {
        /// That ballot.
        promised: Ballot,
    },
}

/// What a node answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Response {
    /// It is done, and durable where that was promised.
    Done,
    /// Bytes.
    Bytes(Bytes),
    /// Names.
    Keys(Vec<ObjectKey>),
    /// A journal's extent.
    Journal {
        /// The first byte that is kept.
        start: u64,
        /// Where the next append goes.
        end: u64,
        /// The epoch that wrote last.
        epoch: u64,
    },
    /// The fence stands; the least epoch that could write before.
    Fenced {
        /// 0 if there was no fence.
        previous: u64,
    },
    /// The acceptor's answer.
    Register(RegisterResponse),
    /// How full a node is.
    Capacity {
        /// Bytes in all.
        total_bytes: u64,
        /// Bytes left.
        free_bytes: u64,
    },
}

/// Why a node refused or failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NodeError {
    /// Another opening has taken the volume over.
    #[error("EPOCH_STALE: epoch {current} has taken over")]
    EpochStale {
        /// The epoch of the fence.
        current: u64,
    },
    /// Another content is stored under this key.
    #[error("another object has this key")]
    Exists,
    /// There is no such object, journal or leaf.
    #[error("not found")]
    NotFound,
    /// The range is not inside the object, or before the journal's start.
    #[error("out of range")]
    Range,
    /// The append is not at the journal's end.
    #[error("the journal ends at {end}")]
    Conflict {
        /// Where it ends.
        end: u64,
    },
    /// No room; nothing was changed.
    #[error("no space left")]
    NoSpace,
    /// The tenant's quota is used up; nothing was changed.
    #[error("the quota is used up")]
    Quota,
    /// The stored bytes don't fit their checksum.
    #[error("the stored bytes are damaged")]
    Corrupt,
    /// The session has no right to do this.
    #[error("not authorised")]
    Denied,
    /// The request can't be served by this node, or makes no sense.
    #[error("not supported, or malformed")]
    Unsupported,
    /// The node can't be reached. What it had been asked may have happened or not.
    #[error("the node can't be reached")]
    Unavailable,
    /// The node's disk failed: what it had been asked may have happened or not.
    #[error("the node's disk failed")]
    Failed,
}

/// The caller's name for a request to a node, unique among all that are outstanding.
pub type Tag = u64;

/// A finished request to a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeCompletion {
    /// The tag it was submitted with.
    pub tag: Tag,
    /// Its answer.
    pub result: Result<Response, NodeError>,
}

/// The nodes of a volume. Requests to one node are carried out in the order of their submission as
/// far as one depends on the other (an append behind an append); across nodes there is no order.
pub trait Nodes {
    /// How many nodes there are; their indexes are below it.
    fn count(&self) -> usize;

    /// How to name a node to a person: a path, an address.
    fn name(&self, node: NodeIndex) -> String;

    /// Starts `request`. Never blocks for long; the completion comes from [`Nodes::poll`], exactly
    /// once, whatever happens to the node ([`NodeError::Unavailable`] when it is gone).
    fn submit(&mut self, node: NodeIndex, tag: Tag, request: Request);

    /// The next completion, if there is one by now.
    fn poll(&mut self, now_ns: u64) -> Option<NodeCompletion>;

    /// A descriptor that is readable when [`Nodes::poll`] may have something; `None` if everything
    /// is done inside `poll`.
    fn ready_fd(&self) -> Option<BorrowedFd<'_>>;

    /// When `poll` wants to be called even if nothing happens (CLOCK_BOOTTIME nanoseconds).
    fn deadline_ns(&self) -> Option<u64>;
}
