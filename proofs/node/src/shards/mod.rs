//! Users' shards in a plot: those that a shard server of this host keeps in folders that are named here.
//!
//! ```text
//!   Keeper    a thread at the lowest priority: looks at indexes, reads shards, tells
//!      └── stock   one store: which shards there are, and in which bundles they are
//!             └── format   a bundle's file      reading   drawn bytes, for pulses and challenges
//! ```
//!
//! The server owns its folder. Nothing here locks it, writes to it or asks the server: shards are written
//! once, never changed, and may be gone at any moment. So every byte that is shown was compared with a
//! hash that was kept when it was first read.
//!
//! Ten terabytes are ten million shards. Each an entry of its own, a plot's tree would take gigabytes; so
//! shards of one store are proven in *bundles* of up to 64 MiB, one behind the other.

pub mod format;
mod keeper;
mod reading;
mod stock;

use std::path::PathBuf;

pub use keeper::{Event, Keeper, Progress};
pub use reading::Reading;
use storage_vdev::Uuid;
use storage_vdev::disk::{DiskError, Look};

/// The most bytes of a bundle.
pub const BUNDLE_BYTES_MAX: u64 = 64 << 20;
/// The most shards of a bundle.
const MEMBERS_MAX: usize = 1 << 14;
/// The most slots of one store that are looked at; each takes 20 bytes of memory.
const SLOTS_MAX: u32 = 1 << 25;
/// The most bundles of all stores in a plot.
const LISTED_MAX: usize = 1 << 19;

/// A folder of a shard server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folder {
    /// Which.
    pub path: PathBuf,
    /// Whose reservation its shards are said to belong to; 0 for none. A shard server knows volumes and
    /// their writers' keys and no reservations: this is its operator's word.
    pub reservation: u64,
}

/// How often what is done, all in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// From one look at an index to the next, at least; fifty times as long as the look took.
    pub pass_ns: u64,
    /// How long a shard must have been there before it is read: most that die, die young.
    pub settle_ns: u64,
    /// How often a bundle that is less than half full is made anew with what has come.
    pub partial_ns: u64,
    /// How often a bundle is compared with its hashes.
    pub compare_ns: u64,
    /// How long a bundle's hashes are kept when it is no more: a challenge has an hour.
    pub keep_ns: u64,
    /// The most bytes of a bundle, [`BUNDLE_BYTES_MAX`] at most.
    pub bundle_bytes: u64,
}

impl Pace {
    /// With plots that are committed to so often: ten minutes are the standard.
    #[must_use]
    pub fn with_plots_every(commit_ns: u64) -> Self {
        Self {
            pass_ns: commit_ns / 120,
            settle_ns: commit_ns,
            partial_ns: commit_ns,
            compare_ns: commit_ns / 20,
            keep_ns: commit_ns.saturating_mul(12),
            bundle_bytes: BUNDLE_BYTES_MAX,
        }
    }
}

/// Why folders can't be a node's.
#[derive(Debug, thiserror::Error)]
pub enum ShardsError {
    /// It is no shard server's.
    #[error("{}: it is no folder of a shard server (`hypha storage serve` makes one): {source}", path.display())]
    Folder {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: DiskError,
    },
    /// Two that are one, or a copy.
    #[error("{} and {} are the same shard server's store, or a copy of it: name one", first.display(), second.display())]
    Twice {
        /// The one.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
}

/// Checks that folders are shard servers', each another one.
///
/// # Errors
/// [`ShardsError`].
pub fn check(folders: &[Folder]) -> Result<(), ShardsError> {
    let mut stores: Vec<(Uuid, &PathBuf)> = Vec::new();
    for Folder { path, .. } in folders {
        let look = Look::open(path);
        let look = look.map_err(|source| ShardsError::Folder { path: path.clone(), source })?;
        if let Some((_, first)) = stores.iter().find(|(store, _)| *store == look.node()) {
            let (first, second) = ((*first).clone(), path.clone());
            return Err(ShardsError::Twice { first, second });
        }
        stores.push((look.node(), path));
    }
    Ok(())
}
