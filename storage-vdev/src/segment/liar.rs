//! Shards that lie: bytes under a good checksum that are not what was written.
//!
//! With the key, a block is proven by its tag, so any k true units of a row bring back the block and
//! prove it, whatever the others say ([`recover_unit`]). Without the key the only proof is that
//! shards agree: k shards always do, k + 1 show that one lies, and from k + 2 on the odd one out can
//! be named ([`find_liars`]).

use super::rebuild::{RebuildError, check_sources};
use super::shape::{CHUNK_BYTES, UNIT_BYTES};
use super::shard::Shard;
use super::table::{Place, open_unit};
use crate::codec::Codec;
use crate::keys::SegmentKeys;

/// The most subsets of the sources that are tried for one row.
const TRIES_MAX: usize = 1024;

/// A block that was brought back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovered {
    /// Its 4096 bytes, proven by its tag.
    pub block: Vec<u8>,
    /// A bit for each source that contradicts those from which the block came. They lie, unless
    /// several of the others lie together: only the block is proven.
    pub suspects: u32,
}

/// Why a row tells nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RowError {
    /// Fewer than k sources, or sources that are no units of different shards.
    #[error("fewer than {needed} usable units of the row")]
    TooFew {
        /// k.
        needed: usize,
    },
    /// No tried subset of the sources proves the block.
    #[error("more units of the row are wrong than can be told apart")]
    NotRecoverable,
    /// The shards contradict each other, and none can be blamed.
    #[error("shards contradict each other and no majority says which is right")]
    Undecided,
    /// Not shards of one segment.
    #[error(transparent)]
    Sources(#[from] RebuildError),
}

/// Brings back block `index` of segment `sequence`, which is `place`, from `sources`: units of its
/// row with the indexes of their shards, k or more. Tries the shard that has the block, then
/// subsets of k of the others, at most 1024: each single liar is found with as many tries as there
/// are sources, several as far as the bound goes.
///
/// # Errors
/// Too few sources, or no subset of those tried proves the block.
pub fn recover_unit(
    codec: &Codec,
    keys: &SegmentKeys,
    (sequence, index): (u64, u16),
    place: Place,
    sources: &[(u8, &[u8])],
) -> Result<Recovered, RowError> {
    let needed = codec.data_shards();
    let wanted = (usize::from(index) % needed) as u8;
    if sources.iter().any(|(_, unit)| unit.len() != UNIT_BYTES) {
        return Err(RowError::TooFew { needed });
    }
    let mut unit = Vec::with_capacity(UNIT_BYTES);
    let mut wanted_lies = 0;
    if let Some((_, direct)) = sources.iter().find(|(shard, _)| *shard == wanted) {
        unit.extend_from_slice(direct);
        if open_unit(keys, (sequence, index), place, &mut unit).is_ok() {
            return Ok(Recovered { block: unit, suspects: 0 });
        }
        wanted_lies = 1 << wanted;
    }
    let others: Vec<(u8, &[u8])> =
        sources.iter().copied().filter(|(shard, _)| *shard != wanted).collect();
    if others.len() < needed {
        let too_few = wanted_lies == 0;
        return Err(if too_few { RowError::TooFew { needed } } else { RowError::NotRecoverable });
    }
    for chosen in subsets(others.len(), needed).take(TRIES_MAX) {
        let from = pick(&others, chosen);
        unit.clear();
        unit.resize(UNIT_BYTES, 0);
        codec
            .reconstruct(&from, &mut [(wanted, unit.as_mut_slice())])
            .map_err(RebuildError::Codec)?;
        if open_unit(keys, (sequence, index), place, &mut unit).is_ok() {
            let suspects = contradicting(codec, &from, &others)? | wanted_lies;
            return Ok(Recovered { block: unit, suspects });
        }
    }
    Err(RowError::NotRecoverable)
}

/// A bit for each of `shards` that lies, found without any key by comparing all of them: 0 if they
/// agree. Damaged chunks don't take part. With n shards of a row at hand, up to (n - k) / 2 liars
/// are named. k shards always agree: a lie among them can't be seen without the key.
///
/// # Errors
/// They contradict each other and too few are at hand to say who lies, or they are not of one
/// segment.
pub fn find_liars(codec: &Codec, shards: &[Shard]) -> Result<u32, RowError> {
    let segment = check_sources(codec, shards)?;
    let mut liars = 0;
    for chunk in 0..segment.chunks() {
        liars |= liars_in_chunk(codec, shards, chunk, liars)?;
    }
    Ok(liars)
}

fn liars_in_chunk(
    codec: &Codec,
    shards: &[Shard],
    chunk: usize,
    known: u32,
) -> Result<u32, RowError> {
    let needed = codec.data_shards();
    let mut liars = 0;
    loop {
        let present = shards.iter().filter(|shard| (known | liars) >> shard.head().shard & 1 == 0);
        let present: Vec<(u8, &[u8])> = present
            .filter_map(|shard| shard.intact_chunk(chunk).map(|bytes| (shard.head().shard, bytes)))
            .collect();
        if present.len() <= needed {
            // What is left can't contradict itself; whether that is because liars were named or
            // because chunks are damaged makes no difference.
            return Ok(liars);
        }
        let (base, rest) = present.split_at(needed);
        let Some(row) = first_difference(codec, base, rest)? else { return Ok(liars) };
        let units = present.iter().filter_map(|(shard, bytes)| {
            bytes.chunks_exact(UNIT_BYTES).nth(row).map(|unit| (*shard, unit))
        });
        liars |= name_liars(codec, &units.collect::<Vec<_>>())?;
    }
}

/// The first row of the chunk in which `rest` is not what `base` (k shards) makes it.
fn first_difference(
    codec: &Codec,
    base: &[(u8, &[u8])],
    rest: &[(u8, &[u8])],
) -> Result<Option<usize>, RebuildError> {
    let len = base.first().map_or(0, |(_, bytes)| bytes.len());
    let mut made = vec![vec![0; len.min(CHUNK_BYTES)]; rest.len()];
    let wanted = rest.iter().zip(&mut made);
    let mut wanted: Vec<(u8, &mut [u8])> =
        wanted.map(|((shard, _), made)| (*shard, made.as_mut_slice())).collect();
    codec.reconstruct(base, &mut wanted)?;
    let rows = rest.iter().zip(&made).filter_map(|((_, bytes), made)| {
        let pairs = bytes.chunks(UNIT_BYTES).zip(made.chunks(UNIT_BYTES));
        pairs.enumerate().find(|(_, (said, made))| said != made).map(|(row, _)| row)
    });
    Ok(rows.min())
}

/// The shards of a row of units that don't fit the only code word that is near enough to be right.
fn name_liars(codec: &Codec, units: &[(u8, &[u8])]) -> Result<u32, RowError> {
    let needed = codec.data_shards();
    let liars_max = (units.len() - needed.min(units.len())) / 2;
    for chosen in subsets(units.len(), needed).take(TRIES_MAX) {
        let liars = contradicting(codec, &pick(units, chosen), units)?;
        if liars.count_ones() as usize <= liars_max {
            return Ok(liars);
        }
    }
    Err(RowError::Undecided)
}

/// A bit for each of `all` that is not what `base` (k of them) makes it.
fn contradicting(
    codec: &Codec,
    base: &[(u8, &[u8])],
    all: &[(u8, &[u8])],
) -> Result<u32, RebuildError> {
    let mut liars = 0;
    let mut made = vec![0; UNIT_BYTES];
    for (shard, unit) in all {
        if base.iter().any(|(other, _)| other == shard) {
            continue;
        }
        codec.reconstruct(base, &mut [(*shard, made.as_mut_slice())])?;
        if made != *unit {
            liars |= 1 << shard;
        }
    }
    Ok(liars)
}

fn pick<'a>(units: &[(u8, &'a [u8])], chosen: u32) -> Vec<(u8, &'a [u8])> {
    (0..).zip(units).filter(|(bit, _)| chosen >> bit & 1 == 1).map(|(_, unit)| *unit).collect()
}

/// Subsets of `count` of `of` things as bits. First the cyclic ones, of which there are `of` and
/// which leave out each thing once or more; then all, in ascending order of their bits.
fn subsets(of: usize, count: usize) -> impl Iterator<Item = u32> {
    let all = if of >= 32 { u32::MAX } else { (1 << of) - 1 };
    let first = if count >= 32 { u32::MAX } else { (1u32 << count) - 1 };
    let turned = move |turn: usize| {
        let wide = u64::from(first) << turn;
        (wide | wide >> of) as u32 & all
    };
    let cyclic = (0..if count < of { of } else { 1 }).map(turned);
    let next = move |set: &u32| {
        // Gosper's hack: the next number with as many bits.
        let set = u64::from(*set);
        let low = set & set.wrapping_neg();
        let ripple = set + low;
        let next = (((ripple ^ set) >> 2) / low.max(1)) | ripple;
        u32::try_from(next).ok().filter(|next| next & !all == 0)
    };
    cyclic.chain(std::iter::successors(Some(first), next).skip(1).filter(move |_| count < of))
}
