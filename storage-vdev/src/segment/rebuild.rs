//! Bringing back a shard from others, without any key.

use bytes::Bytes;

use super::head::ShardHead;
use super::shape::CHUNK_BYTES;
use super::shard::Shard;
use crate::codec::{Codec, CodecError};

/// Why a shard can't be rebuilt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RebuildError {
    /// No shard to rebuild from.
    #[error("no shard of the segment is left")]
    NoSource,
    /// Two sources have different common parts, or the same index.
    #[error("shards that are not of one segment")]
    Mixed,
    /// The segment's code has no such shard, or the codec is another.
    #[error("the segment has no such shard, or the codec is not its own")]
    Shape,
    /// Too few intact copies of a chunk.
    #[error("chunk {chunk} is intact in {found} shards and it takes {needed}")]
    TooFew {
        /// The chunk.
        chunk: usize,
        /// How many have it.
        found: usize,
        /// k.
        needed: usize,
    },
    /// No source has an intact table.
    #[error("the entry table is damaged in every shard")]
    Table,
    /// The codec's own refusal.
    #[error(transparent)]
    Codec(#[from] CodecError),
}

/// Rebuilds shard `wanted`, for slot `slot`, chunk by chunk from whichever `sources` have the chunk
/// intact (a damaged copy of the shard itself may be among them). The result has the original's
/// bytes but for slot, generation and what follows from them in its head.
///
/// What a source says under a good checksum is believed here; see [`super::find_liars`].
///
/// # Errors
/// The sources are not of one segment, or not enough.
pub fn rebuild_shard(
    codec: &Codec,
    sources: &[Shard],
    (wanted, slot): (u8, u8),
    generation: u32,
) -> Result<[Bytes; 3], RebuildError> {
    let segment = *check_sources(codec, sources)?;
    if wanted >= segment.shape.shards() {
        return Err(RebuildError::Shape);
    }
    let table = sources.iter().find_map(Shard::intact_table).ok_or(RebuildError::Table)?;
    let mut units = vec![0; segment.units_bytes()];
    let mut chunk_crcs = Vec::with_capacity(segment.chunks());
    for (chunk, out) in units.chunks_mut(CHUNK_BYTES).enumerate() {
        rebuild_chunk(codec, sources, (chunk, wanted), out)?;
        chunk_crcs.push(crc32c::crc32c(out));
    }
    let audit_root = [0; 32];
    let head = ShardHead { segment, shard: wanted, slot, generation, audit_root, chunk_crcs };
    Ok([Bytes::copy_from_slice(&head.to_bytes()), Bytes::from(units), table])
}

/// The common part of all `sources`, which must be shards of one segment of this codec's shape.
pub(super) fn check_sources<'a>(
    codec: &Codec,
    sources: &'a [Shard],
) -> Result<&'a super::SegmentHeader, RebuildError> {
    let segment = sources.first().ok_or(RebuildError::NoSource)?.segment();
    let mut seen = 0u32;
    for source in sources {
        let bit = 1 << source.head().shard;
        if source.segment() != segment || seen & bit != 0 {
            return Err(RebuildError::Mixed);
        }
        seen |= bit;
    }
    let (data_shards, parity_shards) = (codec.data_shards(), codec.parity_shards());
    let shape = segment.shape;
    let same = usize::from(shape.data_shards()) == data_shards
        && usize::from(shape.parity_shards()) == parity_shards;
    if same { Ok(segment) } else { Err(RebuildError::Shape) }
}

fn rebuild_chunk(
    codec: &Codec,
    sources: &[Shard],
    (chunk, wanted): (usize, u8),
    out: &mut [u8],
) -> Result<(), RebuildError> {
    let intact = sources
        .iter()
        .filter_map(|source| source.intact_chunk(chunk).map(|bytes| (source.head().shard, bytes)));
    let mut intact: Vec<(u8, &[u8])> = intact.collect();
    if let Some((_, own)) = intact.iter().find(|(shard, _)| *shard == wanted) {
        out.copy_from_slice(own);
        return Ok(());
    }
    let (found, needed) = (intact.len(), codec.data_shards());
    if found < needed {
        return Err(RebuildError::TooFew { chunk, found, needed });
    }
    intact.truncate(needed);
    Ok(codec.reconstruct(&intact, &mut [(wanted, out)])?)
}
