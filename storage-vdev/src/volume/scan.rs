//! Reading the stripe map from the slot headers of the believed shards.
//!
//! Each shard has the newest version of a stripe unless it is damaged or being rebuilt, so the
//! newest one on any shard is the one. That the versions found are the committed ones, all of them
//! and no other, the superblock's sum proves.
//!
//! If it doesn't, a store may have brought back what a crashed checkpoint left on it and the volume
//! never committed. Such a version is on no more stores than may be lost: the shards that hold one
//! are left out, a few at a time, until the sum fits. Those are then lost.

use std::collections::{BTreeMap, btree_map::Entry};

use super::open::OpenError;
use super::select::Selection;
use crate::geometry::{Geometry, SLOT_HEADER_BYTES};
use crate::keys::{KeyRing, Opening};
use crate::map::{Mapping, StripeMap};
use crate::shards::ShardSet;
use crate::slot::SlotHeader;
use crate::store::{Store, StoreFile};
use crate::superblock::Superblock;

const CHUNK_HEADERS: u32 = 1024;
/// How many ways to leave shards out are tried: all pairs of 32 shards, and many triples.
const TRIES_MAX: usize = 4096;

/// What the slot headers say.
#[derive(Debug)]
pub(super) struct Scan {
    pub(super) map: StripeMap,
    /// Headers (shard, slot) that a checkpoint wrote and didn't commit.
    pub(super) uncommitted: Vec<(usize, u32)>,
    /// The highest sequence number seen.
    pub(super) last_sequence: u64,
    /// Believed shards that turned out to hold versions which the volume never had.
    pub(super) left_out: u32,
}

/// A version of a stripe, with the shards that have a header of it.
#[derive(Debug, Clone, Copy)]
struct Version {
    mapping: Mapping,
    lost: u128,
    epoch: u64,
}

impl Version {
    /// How new it is. Two versions of a stripe are the same one only if all of this is equal.
    fn age(&self) -> (u64, u64, u32) {
        (self.epoch, self.mapping.sequence, self.mapping.keys)
    }
}

/// All versions of all stripes that may have been committed.
#[derive(Debug, Default)]
struct Versions {
    newest: BTreeMap<u64, Version>,
    /// The others: old headers stay in slots that were given back. Few, for slots are.
    older: BTreeMap<(u64, (u64, u64, u32)), Version>,
}

impl Versions {
    fn add(&mut self, stripe: u64, version: Version) {
        let newest = match self.newest.entry(stripe) {
            Entry::Vacant(entry) => {
                entry.insert(version);
                return;
            }
            Entry::Occupied(entry) => entry.into_mut(),
        };
        let older =
            if newest.age() < version.age() { std::mem::replace(newest, version) } else { version };
        let present = older.mapping.present;
        if older.age() == newest.age() {
            newest.mapping.present |= present;
        } else {
            let known = self.older.entry((stripe, older.age())).or_insert(older);
            known.mapping.present |= present;
        }
    }

    /// The newest version of a stripe that a shard outside of `left_out` has.
    fn without(&self, stripe: u64, left_out: u32) -> Option<Version> {
        let newest = self.newest.get(&stripe);
        let mut older = self
            .older
            .range((stripe, (0, 0, 0))..=(stripe, (u64::MAX, u64::MAX, u32::MAX)))
            .map(|(_, version)| version);
        newest
            .filter(|newest| newest.mapping.present & !left_out != 0)
            .or_else(|| older.rfind(|version| version.mapping.present & !left_out != 0))
            .copied()
    }
}

/// The committed version of each stripe.
pub(super) fn scan<S: Store>(
    shards: &ShardSet<S>,
    selection: &Selection,
    keys: &mut KeyRing,
) -> Result<Scan, OpenError> {
    let newest = &selection.newest;
    let geometry = &newest.geometry;
    let mut versions = Versions::default();
    let mut uncommitted = Vec::new();
    let mut last_sequence = newest.committed;
    for shard in shards.usable_in(selection.believed()) {
        each_header(shards, shard, geometry, keys, |header, (keys, opening)| {
            last_sequence = last_sequence.max(header.sequence);
            if !may_be_committed(&header, opening, newest) {
                uncommitted.push((shard, header.slot));
                return;
            }
            let SlotHeader { sequence, slot, zero, lost, .. } = header;
            let mapping = Mapping { sequence, slot, keys, present: 1 << shard, zero };
            versions.add(header.stripe, Version { mapping, lost, epoch: opening.epoch });
        });
    }
    let mut map = StripeMap::new(keys.map_key(), geometry);
    for (stripe, version) in &versions.newest {
        map.set(*stripe, version.mapping, version.lost, keys);
    }
    let mut left_out = 0;
    if (map.mapped(), map.sum()) != (newest.mapped, newest.map_sum) {
        let damaged = OpenError::MapDamaged { found: map.mapped(), expected: newest.mapped };
        left_out = liars(&versions, selection, &map, keys).ok_or(damaged)?;
        map = StripeMap::new(keys.map_key(), geometry);
        for stripe in versions.newest.keys() {
            if let Some(Version { mut mapping, lost, .. }) = versions.without(*stripe, left_out) {
                mapping.present &= !left_out;
                map.set(*stripe, mapping, lost, keys);
            }
        }
        uncommitted.retain(|(shard, _)| left_out >> shard & 1 == 0);
    }
    Ok(Scan { map, uncommitted, last_sequence, left_out })
}

/// Whether a header may be of a version that `newest` commits: it is no later than the last one,
/// and of no other opening that is as new or newer.
fn may_be_committed(header: &SlotHeader, opening: Opening, newest: &Superblock) -> bool {
    let of_history = opening.epoch < newest.opening.epoch || opening == newest.opening;
    of_history && header.sequence <= newest.committed
}

/// The shards without which the sum fits, as few as possible. Only those come into question that
/// hold the newest version of some stripe together with few others.
fn liars(
    versions: &Versions,
    selection: &Selection,
    map: &StripeMap,
    keys: &KeyRing,
) -> Option<u32> {
    let newest = &selection.newest;
    let believed = selection.believed();
    let lost = (newest.geometry.all_shards() & !believed).count_ones();
    let tolerated = u32::from(newest.geometry.parity_shards()).checked_sub(lost)?;
    let doubtful: Vec<(u64, Mapping, u128)> = versions
        .newest
        .iter()
        .filter(|(_, version)| version.mapping.present.count_ones() <= tolerated)
        .map(|(stripe, version)| {
            let term = map.term(*stripe, &version.mapping, keys);
            (*stripe, version.mapping, term)
        })
        .collect();
    let suspects = doubtful.iter().fold(0, |mask, (_, mapping, _)| mask | mapping.present);
    let fits = |left_out: &u32| {
        let (mut mapped, mut sum) = (map.mapped(), map.sum());
        for (stripe, mapping, term) in &doubtful {
            if mapping.present & !left_out != 0 {
                continue;
            }
            sum = sum.wrapping_sub(*term);
            match versions.without(*stripe, *left_out) {
                Some(version) => sum = sum.wrapping_add(map.term(*stripe, &version.mapping, keys)),
                None => mapped -= 1,
            }
        }
        (mapped, sum) == (newest.mapped, newest.map_sum)
    };
    (1..=tolerated).flat_map(|size| subsets(suspects, size)).take(TRIES_MAX).find(fits)
}

/// The subsets of `mask` with `size` members, in the order of their numbers.
fn subsets(mask: u32, size: u32) -> impl Iterator<Item = u32> {
    let members: Vec<u32> = (0..u32::BITS).filter(|bit| mask >> bit & 1 == 1).collect();
    let count = members.len() as u32;
    // Numbers with `size` bits, each the next larger one (Gosper's hack); bit i is member i.
    let first = (size <= count).then(|| (1u64 << size) - 1);
    let next = move |number: &u64| {
        let (lowest, ripple) =
            (number & number.wrapping_neg(), number + (number & number.wrapping_neg()));
        let number = (((ripple ^ number) >> 2) / lowest) | ripple;
        (number < 1 << count).then_some(number)
    };
    std::iter::successors(first, next).map(move |number| {
        let chosen = members.iter().enumerate().filter(|(index, _)| number >> index & 1 == 1);
        chosen.fold(0, |mask, (_, bit)| mask | 1 << bit)
    })
}

/// Calls `visit` with each authentic header of a shard, the number of its keys and their opening.
fn each_header<S: Store>(
    shards: &ShardSet<S>,
    shard: usize,
    geometry: &Geometry,
    keys: &mut KeyRing,
    mut visit: impl FnMut(SlotHeader, (u32, Opening)),
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
                Ok(Some((header, index))) => {
                    if let Some(keys) = keys.get(index) {
                        visit(header, (index, keys.opening));
                    }
                }
                Ok(None) => {}
                Err(error) => tracing::debug!(shard, slot, ?error, "slot header ignored"),
            }
        }
    }
}
