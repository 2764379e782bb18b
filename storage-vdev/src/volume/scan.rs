//! Reading the stripe map from the slot headers of the believed shards.

use std::collections::BTreeMap;

use super::open::OpenError;
use super::select::Selection;
use crate::geometry::{Geometry, SLOT_HEADER_BYTES};
use crate::keys::KeyRing;
use crate::map::{Mapping, StripeMap};
use crate::shards::ShardSet;
use crate::slot::SlotHeader;
use crate::store::{Store, StoreFile};

const CHUNK_HEADERS: u32 = 1024;

/// What the slot headers say.
#[derive(Debug)]
pub(super) struct Scan {
    pub(super) map: StripeMap,
    /// Headers (shard, slot) that a checkpoint wrote and didn't commit.
    pub(super) uncommitted: Vec<(usize, u32)>,
    /// The highest sequence number seen.
    pub(super) last_sequence: u64,
}

/// The newest committed version of each stripe, over all believed shards.
///
/// Each shard has the newest version unless it is damaged or being rebuilt, so the newest one on
/// any shard is the one. That it is, the superblock's sum proves: with more damage than may be, the
/// newest one might be gone everywhere.
pub(super) fn scan<S: Store>(
    shards: &ShardSet<S>,
    selection: &Selection,
    keys: &mut KeyRing,
) -> Result<Scan, OpenError> {
    let newest = &selection.newest;
    let geometry = &newest.geometry;
    let mut stripes: BTreeMap<u64, (Mapping, u128)> = BTreeMap::new();
    let mut uncommitted = Vec::new();
    let mut last_sequence = newest.committed;
    for shard in shards.usable_in(selection.believed()) {
        each_header(shards, shard, geometry, keys, |header, keys| {
            last_sequence = last_sequence.max(header.sequence);
            if header.sequence > newest.committed {
                uncommitted.push((shard, header.slot));
                return;
            }
            let SlotHeader { sequence, slot, zero, lost, .. } = header;
            let mapping = Mapping { sequence, slot, keys, present: 1 << shard, zero };
            let entry = stripes.entry(header.stripe).or_insert((mapping, lost));
            if entry.0.sequence < sequence {
                *entry = (mapping, lost);
            } else if (entry.0.sequence, entry.0.slot) == (sequence, slot) {
                entry.0.present |= 1 << shard;
            }
        });
    }
    let mut map = StripeMap::new(keys.map_key(), geometry);
    for (stripe, (mapping, lost)) in stripes {
        map.set(stripe, mapping, lost);
    }
    if (map.mapped(), map.sum()) != (newest.mapped, newest.map_sum) {
        return Err(OpenError::MapDamaged { found: map.mapped(), expected: newest.mapped });
    }
    Ok(Scan { map, uncommitted, last_sequence })
}

/// Calls `visit` with each authentic header of a shard and the number of its keys.
fn each_header<S: Store>(
    shards: &ShardSet<S>,
    shard: usize,
    geometry: &Geometry,
    keys: &mut KeyRing,
    mut visit: impl FnMut(SlotHeader, u32),
) {
    let slots = geometry.slots();
    for first in (0..slots).step_by(CHUNK_HEADERS as usize) {
        let count = CHUNK_HEADERS.min(slots - first);
        let mut bytes = vec![0; count as usize * SLOT_HEADER_BYTES];
        let offset = geometry.header_offset(first);
        if !shards.read(shard, StoreFile::Shard, offset, &mut bytes) {
            // Perhaps only a part can't be read: look at each header by itself.
            for (slot, header) in (first..).zip(bytes.chunks_exact_mut(SLOT_HEADER_BYTES)) {
                let offset = geometry.header_offset(slot);
                if !shards.read(shard, StoreFile::Shard, offset, header) {
                    header.fill(0);
                }
            }
        }
        for (slot, header) in (first..).zip(bytes.chunks_exact(SLOT_HEADER_BYTES)) {
            match SlotHeader::parse(header, (shard as u8, slot), geometry, keys) {
                Ok(Some((header, keys))) => visit(header, keys),
                Ok(None) => {}
                Err(error) => tracing::debug!(shard, slot, ?error, "slot header ignored"),
            }
        }
    }
}
