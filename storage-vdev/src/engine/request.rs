//! What is asked of a volume, and what comes back.

use crate::geometry::SECTOR_BYTES;

/// The caller's name for a request, unique among those not yet completed.
pub type RequestId = u64;

/// A finished request.
#[derive(Debug, PartialEq, Eq)]
pub struct Completion {
    /// The id that it was submitted with.
    pub id: RequestId,
    /// How it ended.
    pub result: Result<Output, RequestError>,
    /// A read's buffer, filled if `result` is `Ok`; empty for other requests.
    pub buffer: Vec<u8>,
}

/// What a request that succeeded gives back besides a read's buffer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Nothing more.
    Done,
    /// What [`super::Volume::submit_block_status`] found: extents that follow each other from the
    /// first byte that was asked for. They may end before the last one; ask again from there.
    Extents(Vec<Extent>),
    /// The snapshots, oldest first.
    Snapshots(Vec<SnapshotInfo>),
    /// What a scrub or a repair did.
    Report(Report),
}

/// A run of bytes that are all stored, or all not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// How many bytes, a multiple of the sector.
    pub len: u64,
    /// Whether anything is stored; if not, it reads as zeroes.
    pub allocated: bool,
}

/// A snapshot, as listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// Its name, unique in the volume.
    pub name: String,
    /// The volume's size then.
    pub size_bytes: u64,
    /// When it was made, seconds since 1970, as the caller said.
    pub unix_time: u64,
    /// Whether a clone stands on it: it can't be deleted then.
    pub has_clone: bool,
}

/// What repair or scrub found and did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Report {
    /// Segments that were looked at.
    pub segments: u64,
    /// Shards that were missing or damaged.
    pub shards_bad: u64,
    /// Shards that were made again.
    pub shards_rebuilt: u64,
    /// Segments of which too few shards are left.
    pub segments_lost: u64,
}

/// Something that a volume is told to do beside its blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Keeps the volume's content as it is now, under a name. Output: `Done`.
    Snapshot {
        /// The name: 1 to 64 bytes.
        name: String,
        /// Seconds since 1970, for people.
        unix_time: u64,
    },
    /// Forgets a snapshot; what only it held becomes free. Output: `Done`.
    DeleteSnapshot {
        /// Its name.
        name: String,
    },
    /// Marks a snapshot as the base of a clone (or not any more). Output: `Done`.
    PinSnapshot {
        /// Its name.
        name: String,
        /// Whether a clone stands on it.
        has_clone: bool,
    },
    /// Makes the volume what it was when the snapshot was made. Output: `Done`.
    Rollback {
        /// Its name.
        name: String,
    },
    /// The snapshots. Output: `Snapshots`.
    ListSnapshots,
    /// Makes the volume larger. Output: `Done`.
    Grow {
        /// The new size.
        size_bytes: u64,
    },
    /// Makes every missing shard again, however few are missing. Output: `Report`.
    Repair,
    /// Reads and verifies every shard, and repairs what is damaged. Output: `Report`.
    Scrub,
    /// Writes the map and what it needs, so that the next open is quick. Output: `Done`.
    Checkpoint,
    /// Empties segments that are mostly dead, until none is left that is worth it. Output: `Done`.
    Collect,
    /// Puts a slot's shards on another node from now on. Output: `Done` (repair fills it).
    Replace {
        /// The slot (which shard of each segment).
        slot: u8,
        /// The node that takes it, an index of the volume's nodes.
        node: u8,
    },
}

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// Not a whole number of sectors, or not inside the volume.
    #[error("{len} bytes at {offset} are not whole sectors inside the volume")]
    Range {
        /// The first byte.
        offset: u64,
        /// How many bytes.
        len: u64,
    },
    /// Too many shards of a segment are lost or damaged.
    #[error("the data is lost: too few shards of segment {segment} are left")]
    Lost {
        /// The segment's sequence number.
        segment: u64,
    },
    /// The nodes have no room. Nothing is lost; it goes on when there is room again.
    #[error("no space left on the volume's nodes")]
    NoSpace,
    /// Too few nodes can be reached. Nothing is lost that was flushed.
    #[error("too few of the volume's nodes can be reached")]
    Unavailable,
    /// Another opening has taken the volume over.
    #[error("EPOCH_STALE: epoch {epoch} has taken the volume over")]
    Stale {
        /// The other's epoch.
        epoch: u64,
    },
    /// The lease ran out and could not be renewed.
    #[error("the volume's lease ran out and could not be renewed")]
    LeaseExpired,
    /// The volume was closed.
    #[error("the volume is closed")]
    Closed,
    /// The volume was opened for reading only.
    #[error("the volume is open for reading only")]
    ReadOnly,
    /// There is no snapshot of this name.
    #[error("there is no snapshot {0:?}")]
    NoSnapshot(String),
    /// There is a snapshot of this name.
    #[error("there is a snapshot {0:?} already")]
    SnapshotExists(String),
    /// A clone stands on the snapshot.
    #[error("a clone stands on snapshot {0:?}")]
    SnapshotInUse(String),
    /// What a command asks for can't be.
    #[error("{0}")]
    Refused(&'static str),
}

/// Checks that a request is of whole sectors and inside `size_bytes`.
pub(crate) fn check_range(offset: u64, len: u64, size_bytes: u64) -> Result<(), RequestError> {
    let end = offset.checked_add(len);
    let inside = end.is_some_and(|end| end <= size_bytes);
    let whole = offset.is_multiple_of(SECTOR_BYTES) && len.is_multiple_of(SECTOR_BYTES);
    if inside && whole { Ok(()) } else { Err(RequestError::Range { offset, len }) }
}
