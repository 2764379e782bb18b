//! The seam below a node's objects: a disk of ours, a Redis, an object store.

use bytes::Bytes;

use crate::keys::Uuid;
use crate::node::{NodeError, ObjectKey};

/// How full a store is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Bytes in all.
    pub total_bytes: u64,
    /// Bytes left.
    pub free_bytes: u64,
}

/// What a store can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// Whether what [`ShardStore::sync`] acknowledged outlives a power cut.
    pub durable: bool,
    /// Whether a range of an object is read without reading all of it.
    pub ranged: bool,
}

/// Where objects lie. A put or a delete counts when the next [`ShardStore::sync`] has succeeded;
/// until then a crash may or may not undo it, never half of it.
pub trait ShardStore {
    /// Stores an object of at most [`crate::node::OBJECT_BYTES_MAX`] bytes, whose parts follow each
    /// other. The same bytes under the same key again are a success.
    ///
    /// # Errors
    /// [`NodeError::Exists`], [`NodeError::NoSpace`] (nothing was changed), [`NodeError::Failed`],
    /// [`NodeError::Unavailable`].
    fn put(&mut self, key: &ObjectKey, parts: &[Bytes]) -> Result<(), NodeError>;

    /// `len` bytes from `offset`, or all behind `offset` if `len` is `u32::MAX`.
    ///
    /// # Errors
    /// [`NodeError::NotFound`], [`NodeError::Range`], [`NodeError::Corrupt`],
    /// [`NodeError::Failed`], [`NodeError::Unavailable`].
    fn get(&mut self, key: &ObjectKey, offset: u32, len: u32) -> Result<Bytes, NodeError>;

    /// The names of a volume's objects behind `after`, in order, at most `limit`.
    ///
    /// # Errors
    /// [`NodeError::Failed`], [`NodeError::Unavailable`].
    fn list(
        &mut self,
        volume: &Uuid,
        after: Option<&ObjectKey>,
        limit: u16,
    ) -> Result<Vec<ObjectKey>, NodeError>;

    /// Removes an object; one that isn't there counts as removed.
    ///
    /// # Errors
    /// [`NodeError::Failed`], [`NodeError::Unavailable`].
    fn delete(&mut self, key: &ObjectKey) -> Result<(), NodeError>;

    /// Makes durable what was put and deleted.
    ///
    /// # Errors
    /// [`NodeError::Failed`] or [`NodeError::Unavailable`]: each put and delete since the last
    /// success may have happened or not.
    fn sync(&mut self) -> Result<(), NodeError>;

    /// Does a little of what can wait until nobody waits: gives room back. Whether there may be more.
    fn tidy(&mut self) -> bool {
        false
    }

    /// How full it is.
    ///
    /// # Errors
    /// [`NodeError::Failed`], [`NodeError::Unavailable`].
    fn capacity(&mut self) -> Result<Capacity, NodeError>;

    /// What it can do.
    fn capabilities(&self) -> Capabilities;

    /// The bytes that a volume's objects take, for the tenant's quota. A store that keeps no
    /// account says 0, and the quota then counts what passed since the start only.
    fn used_bytes(&self, volume: &Uuid) -> u64;
}
