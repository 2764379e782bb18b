//! The bytes of a shard's head. Integers are little-endian; whatever is reserved is zero.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::shape::{CHUNKS_MAX, HEAD_BYTES};

/// The first bytes of each shard.
pub(super) const COMMON_MAGIC: [u8; 8] = *b"HYPHASEG";

/// The first bytes of a shard's own part.
pub(super) const OWN_MAGIC: [u8; 8] = *b"HYPHASHD";

/// The version of this format.
pub(super) const VERSION: u16 = 2;

/// Systematic Reed-Solomon over GF(2^8) mod 0x11D with the matrix `V * inv(V_top)`, `V[r][c] = r^c`.
pub(super) const CODE_REED_SOLOMON: u8 = 1;

/// The part of the head that all shards of a segment have in common.
#[derive(Debug, Clone, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct Common {
    pub(super) bound: Bound,
    /// GCM tag of the table; `bound` is authenticated with it.
    pub(super) tag: [u8; 16],
    /// CRC-32C of the encrypted table.
    pub(super) table_crc: U32,
    /// CRC-32C of all before.
    pub(super) crc: U32,
}

/// What the table's tag authenticates beside the table.
#[derive(Debug, Clone, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct Bound {
    pub(super) magic: [u8; 8],
    pub(super) version: U16,
    pub(super) code: u8,
    pub(super) data_shards: u8,
    pub(super) parity_shards: u8,
    pub(super) reserved: [u8; 3],
    pub(super) uuid: [u8; 16],
    pub(super) epoch: U64,
    pub(super) salt: [u8; 32],
    pub(super) sequence: U64,
    pub(super) link_sequence: U64,
    pub(super) link_tag: [u8; 16],
    pub(super) first_write: U64,
    pub(super) last_write: U64,
    pub(super) blocks: U16,
    pub(super) reserved_too: [u8; 2],
    pub(super) table_bytes: U32,
    pub(super) reserved_tail: [u8; 104],
}

/// The part of the head that only this shard has. No key is needed to make it.
#[derive(Debug, Clone, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct Own {
    pub(super) magic: [u8; 8],
    pub(super) version: U16,
    pub(super) shard: u8,
    pub(super) slot: u8,
    /// 0 as first written; repair counts up.
    pub(super) generation: U32,
    /// Root of the SHA-256 tree over the units; zero: not built.
    pub(super) audit_root: [u8; 32],
    /// CRC-32C of each chunk of the units; zero behind the last.
    pub(super) chunk_crcs: [U32; CHUNKS_MAX],
    pub(super) reserved: [u8; 76],
    /// CRC-32C of the own part before this field, continued from the common part's CRC, so that
    /// an own part under another segment's common part is found.
    pub(super) crc: U32,
}

const _: () = assert!(size_of::<Bound>() == 232);
const _: () = assert!(size_of::<Common>() == 256);
const _: () = assert!(size_of::<Own>() == 256);
const _: () = assert!(size_of::<Common>() + size_of::<Own>() == HEAD_BYTES);
