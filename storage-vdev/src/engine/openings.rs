//! Which opening wrote a segment: the keys that open it, and its objects' names.

use std::sync::Arc;

use super::superblock::PastOpening;
use crate::keys::{SegmentKeys, Uuid, VolumeKey};
use crate::node::ObjectKey;

/// All openings whose segments are still there.
#[derive(Debug, Default)]
pub(super) struct Openings {
    list: Vec<(PastOpening, Arc<SegmentKeys>)>,
}

impl Openings {
    /// The openings of a superblock. `key_of` gives the key of this volume, or of a clone's base.
    pub(super) fn new(
        openings: &[PastOpening],
        key_of: impl Fn(Uuid) -> Option<VolumeKey>,
    ) -> Option<Self> {
        let with_keys = |past: &PastOpening| {
            let keys = SegmentKeys::derive(&key_of(past.uuid)?, past.uuid, past.opening);
            Some((*past, Arc::new(keys)))
        };
        Some(Self { list: openings.iter().map(with_keys).collect::<Option<_>>()? })
    }

    /// One more opening, whose segments come behind all others'.
    pub(super) fn push(&mut self, past: PastOpening, keys: Arc<SegmentKeys>) {
        self.list.push((past, keys));
    }

    /// As a superblock has them.
    pub(super) fn list(&self) -> Vec<PastOpening> {
        self.list.iter().map(|(past, _)| *past).collect()
    }

    /// The opening that wrote segment `sequence`.
    pub(super) fn of(&self, sequence: u64) -> Option<(&PastOpening, &Arc<SegmentKeys>)> {
        let after = self.list.partition_point(|(past, _)| past.first_sequence <= sequence);
        let (past, keys) = self.list.get(after.checked_sub(1)?)?;
        Some((past, keys))
    }

    /// The name of a shard's object.
    pub(super) fn object(&self, sequence: u64, shard: u8) -> Option<ObjectKey> {
        let (past, _) = self.of(sequence)?;
        Some(ObjectKey { volume: past.uuid, epoch: past.opening.epoch, sequence, shard })
    }

    /// Forgets openings, except the last one, of which no segment is left.
    pub(super) fn prune(&mut self, has_segments: impl Fn(std::ops::Range<u64>) -> bool) {
        let ends: Vec<u64> =
            self.list.iter().skip(1).map(|(past, _)| past.first_sequence).collect();
        let mut ends = ends.into_iter();
        self.list.retain(|(past, _)| match ends.next() {
            Some(end) => has_segments(past.first_sequence..end),
            None => true,
        });
    }
}
