//! Which stores are believed: reads their superblocks and picks the newest state that they agree on.

use std::fmt;
use std::io;

use super::open::OpenError;
use crate::geometry::{Geometry, SUPERBLOCK_BYTES};
use crate::journal::replay::walk;
use crate::keys::{KeyRing, VolumeKey};
use crate::shards::ShardSet;
use crate::store::{Store, StoreFile};
use crate::superblock::{Superblock, SuperblockError};

/// A store that holds nothing that can be believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LostShard {
    /// Its index.
    pub shard: usize,
    /// The store's name.
    pub name: String,
    /// Why.
    pub reason: Reason,
}

/// Why a store is taken as lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// There is no shard file.
    Missing,
    /// The store can't be opened or read.
    Unreadable(io::ErrorKind),
    /// The shard file is too short.
    Truncated,
    /// No superblock is whole.
    Corrupt,
    /// A superblock is whole, but not signed with the volume's key.
    Forged,
    /// It is of another volume, or another shard of this one.
    Foreign,
    /// It is older than the others: it was rolled back, or missed what they were given.
    Stale,
    /// It says that it has another version of the format, and the others don't.
    Version(u16),
    /// It holds versions of stripes that the volume never had.
    Contradictory,
}

impl fmt::Display for LostShard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, .. } = self;
        match self.reason {
            Reason::Missing => write!(f, "{name} is missing"),
            Reason::Unreadable(kind) => write!(f, "{name} can't be read ({kind})"),
            Reason::Truncated => write!(f, "{name} is truncated"),
            Reason::Corrupt => write!(f, "{name} is corrupt"),
            Reason::Forged => write!(f, "{name} is not signed with this key"),
            Reason::Foreign => write!(f, "{name} is of another volume or shard"),
            Reason::Stale => write!(f, "{name} is older than the others"),
            Reason::Version(version) => write!(f, "{name} has format version {version}"),
            Reason::Contradictory => write!(f, "{name} contradicts the others"),
        }
    }
}

/// What is on the stores.
#[derive(Debug)]
pub(super) enum Found {
    /// No store has ever held a volume that was served.
    Nothing,
    /// A volume.
    Volume(Box<Selection>),
}

/// The state of a volume that its stores agree on.
#[derive(Debug)]
pub(super) struct Selection {
    /// The newest superblock (with the shard index of one of its holders).
    pub(super) newest: Superblock,
    /// For each shard its own superblock, or why it is lost.
    pub(super) shards: Vec<Result<Superblock, Reason>>,
}

impl Selection {
    /// The shards that are believed.
    pub(super) fn believed(&self) -> u32 {
        let believed = self.shards.iter().enumerate().filter(|(_, shard)| shard.is_ok());
        believed.fold(0, |mask, (index, _)| mask | 1 << index)
    }

    /// Takes the shards of a mask as lost, because of what they hold.
    pub(super) fn leave_out<S: Store>(&mut self, shards: &ShardSet<S>, mask: u32) {
        for (shard, own) in self.shards.iter_mut().enumerate() {
            if mask >> shard & 1 == 1 {
                let lost =
                    LostShard { shard, name: shards.name(shard), reason: Reason::Contradictory };
                tracing::warn!(shard = %lost, "shard taken as lost; repair will bring it back");
                *own = Err(lost.reason);
            }
        }
    }
}

/// Looks at all stores and changes nothing.
pub(super) fn select<S: Store>(
    shards: &ShardSet<S>,
    geometry: &Geometry,
    key: &VolumeKey,
) -> Result<Found, OpenError> {
    let found: Vec<_> = (0..shards.len()).map(|shard| inspect(shards, shard, key)).collect();
    let Some(newest) = newest(shards, &found, key)? else {
        return nothing(shards, &found, geometry);
    };
    let is_new = newest.generation == 1;
    let others_missing = found.iter().all(|shard| matches!(shard, Ok(_) | Err(Reason::Missing)));
    let all_there = found.iter().all(Result::is_ok);
    if is_new && others_missing && !all_there {
        // Creation crashed: the first opening, which comes before the first write, never happened.
        return Ok(Found::Nothing);
    }
    if !same_shape(&newest.geometry, geometry) {
        return Err(OpenError::Shape { found: newest.geometry, wanted: *geometry });
    }
    let file_bytes = newest.geometry.shard_file_bytes();
    let judge = |(index, own): (usize, &Result<Superblock, Reason>)| {
        let own = (*own)?;
        if own.uuid != newest.uuid || usize::from(own.shard) != index {
            return Err(Reason::Foreign);
        }
        if !newest.follows(&own) {
            return Err(Reason::Stale);
        }
        match shards.file_len(index, StoreFile::Shard) {
            Ok(Some(len)) if len >= file_bytes => Ok(own),
            _ => Err(Reason::Truncated),
        }
    };
    let judged: Vec<_> = found.iter().enumerate().map(judge).collect();
    too_many_lost(shards, &judged, geometry)?;
    Ok(Found::Volume(Box::new(Selection { newest, shards: judged })))
}

fn same_shape(found: &Geometry, wanted: &Geometry) -> bool {
    let shape = |g: &Geometry| (g.data_shards(), g.parity_shards(), g.size_bytes());
    shape(found) == shape(wanted)
}

/// The newest superblock on one store, if it is authentic.
fn inspect<S: Store>(
    shards: &ShardSet<S>,
    shard: usize,
    key: &VolumeKey,
) -> Result<Superblock, Reason> {
    if let Some(fault) = shards.fault(shard) {
        return Err(Reason::Unreadable(fault.kind));
    }
    match shards.file_len(shard, StoreFile::Shard) {
        Ok(Some(_)) => {}
        Ok(None) => return Err(Reason::Missing),
        Err(error) => return Err(Reason::Unreadable(error.kind())),
    }
    let mut best: Result<Superblock, Reason> = Err(Reason::Truncated);
    for generation in 0..2 {
        let mut bytes = vec![0; SUPERBLOCK_BYTES];
        let offset = Geometry::superblock_offset(generation);
        if !shards.read(shard, StoreFile::Shard, offset, &mut bytes) {
            continue;
        }
        let found = Superblock::parse(&bytes, key).map_err(|error| match error {
            SuperblockError::Version(version) => Reason::Version(version),
            SuperblockError::Forged => Reason::Forged,
            SuperblockError::Blank | SuperblockError::Corrupt => Reason::Corrupt,
        });
        let better = match (&found, &best) {
            (Ok(superblock), Ok(other)) => superblock.age() > other.age(),
            (Ok(_), Err(_)) => true,
            (Err(_), Ok(_)) => false,
            // What is whole says more than what isn't.
            (Err(reason), Err(_)) => *reason != Reason::Corrupt || best == Err(Reason::Truncated),
        };
        if better {
            best = found;
        }
    }
    best
}

/// The newest superblock of the volume that most stores are of.
fn newest<S: Store>(
    shards: &ShardSet<S>,
    found: &[Result<Superblock, Reason>],
    key: &VolumeKey,
) -> Result<Option<Superblock>, OpenError> {
    let authentic: Vec<&Superblock> = found.iter().flatten().collect();
    let votes = |like: &dyn Fn(&Superblock) -> bool| authentic.iter().filter(|s| like(s)).count();
    let weight = |candidate: &Superblock| {
        let of_volume = votes(&|other| other.uuid == candidate.uuid);
        let of_opening =
            votes(&|other| other.uuid == candidate.uuid && other.opening == candidate.opening);
        (of_volume, candidate.age(), of_opening)
    };
    let Some(newest) = authentic.iter().max_by_key(|candidate| weight(candidate)) else {
        return Ok(None);
    };
    let siblings = authentic.iter().filter(|other| other.is_sibling(newest));
    let mut siblings: Vec<_> = siblings.map(|sibling| (weight(sibling).2, **sibling)).collect();
    siblings.sort_by_key(|(holders, sibling)| (*holders, sibling.opening));
    siblings.dedup_by_key(|(_, sibling)| sibling.opening);
    if siblings.len() > 1 {
        return served(shards, &siblings, key).map(Some);
    }
    let rival = authentic.iter().find(|other| {
        weight(other) == weight(newest)
            && (other.uuid, other.opening) != (newest.uuid, newest.opening)
    });
    match rival {
        Some(_) => Err(OpenError::Diverged),
        None => Ok(Some(**newest)),
    }
}

/// Which of several openings that found the same state was served; the others crashed before all
/// stores knew of them, and were hidden from it. `siblings` come with how many stores hold them,
/// the fewest first.
///
/// Only an opening that reached all its stores writes to the journal, and what was acknowledged is
/// still on a copy that tells the truth: the one with records is it. If none has any, all are alike.
/// If several have, the volume was opened twice, and the one with more stores goes on.
fn served<S: Store>(
    shards: &ShardSet<S>,
    siblings: &[(usize, Superblock)],
    key: &VolumeKey,
) -> Result<Superblock, OpenError> {
    let has_records = |sibling: &Superblock| {
        let mut keys = KeyRing::new(key, sibling.uuid);
        let replay = walk(shards, sibling, 0, &mut keys);
        replay.is_some_and(|replay| {
            replay.records.iter().any(|record| record.opening == sibling.opening)
        })
    };
    let mut written = siblings.iter().rev().filter(|(_, sibling)| has_records(sibling));
    match (written.next(), written.next()) {
        (Some((one, _)), Some((other, _))) if one == other => Err(OpenError::Diverged),
        (Some((_, sibling)), _) => Ok(*sibling),
        (None, _) => siblings.last().map(|(_, sibling)| *sibling).ok_or(OpenError::Diverged),
    }
}

fn nothing<S: Store>(
    shards: &ShardSet<S>,
    found: &[Result<Superblock, Reason>],
    geometry: &Geometry,
) -> Result<Found, OpenError> {
    other_version(shards, found, geometry)?;
    if found.contains(&Err(Reason::Forged)) {
        return Err(OpenError::WrongKey);
    }
    if found.iter().all(|shard| *shard == Err(Reason::Missing)) {
        return Ok(Found::Nothing);
    }
    Err(OpenError::TooManyLost { lost: lost_shards(shards, found), tolerated: 0 })
}

/// An error if more stores than may be lost say that they have another version of the format. One
/// that says so needs no key for it, and stops nobody.
fn other_version<S: Store>(
    shards: &ShardSet<S>,
    judged: &[Result<Superblock, Reason>],
    geometry: &Geometry,
) -> Result<(), OpenError> {
    let mut others = judged.iter().enumerate().filter_map(|(shard, own)| match own {
        Err(Reason::Version(version)) => Some((shard, *version)),
        _ => None,
    });
    match others.nth(usize::from(geometry.parity_shards())) {
        Some((shard, version)) => Err(OpenError::Version { store: shards.name(shard), version }),
        None => Ok(()),
    }
}

fn lost_shards<S: Store>(
    shards: &ShardSet<S>,
    judged: &[Result<Superblock, Reason>],
) -> Vec<LostShard> {
    let lost = judged.iter().enumerate().filter_map(|(shard, own)| {
        let reason = own.err()?;
        Some(LostShard { shard, name: shards.name(shard), reason })
    });
    lost.collect()
}

fn too_many_lost<S: Store>(
    shards: &ShardSet<S>,
    judged: &[Result<Superblock, Reason>],
    geometry: &Geometry,
) -> Result<(), OpenError> {
    other_version(shards, judged, geometry)?;
    let lost = lost_shards(shards, judged);
    let tolerated = usize::from(geometry.parity_shards());
    if lost.len() > tolerated {
        return Err(OpenError::TooManyLost { lost, tolerated });
    }
    for shard in lost {
        tracing::warn!(%shard, "shard taken as lost; repair will bring it back");
    }
    Ok(())
}
