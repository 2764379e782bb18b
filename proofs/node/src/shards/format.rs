//! What is kept of a bundle of shards, so that it isn't hashed again (`docs/proof-node.md`, "Users'
//! shards"). Integers are big-endian; the file ends with the SHA-256 of all before.

use std::ops::Range;

use hypha_chain::B256;
use hypha_proofs::store::{ExtentTree, GROUP_BYTES};
use storage_vdev::Uuid;
use storage_vdev::disk::Seen;
use storage_vdev::node::OBJECT_BYTES_MAX;

use super::{BUNDLE_BYTES_MAX, MEMBERS_MAX};
use crate::filler::format::{FormatError, opened, sealed};

const MAGIC: &[u8; 16] = b"hypha shards 1\n\0";
const MEMBER_BYTES: usize = 16;
const HASH_BYTES: usize = 32;
/// The most bytes of such a file.
pub const FILE_BYTES_MAX: u64 = (16 + 16 + 4 + 8 + HASH_BYTES) as u64
    + MEMBERS_MAX as u64 * MEMBER_BYTES as u64
    + BUNDLE_BYTES_MAX.div_ceil(GROUP_BYTES as u64) * HASH_BYTES as u64;

/// One shard of a bundle, as the server's index names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// Its slot in the index.
    pub slot: u32,
    /// Its first block.
    pub block: u32,
    /// Its bytes.
    pub len: u32,
    /// The CRC-32C of its bytes.
    pub crc: u32,
}

impl Member {
    /// Where its bytes are in the server's file.
    #[must_use]
    pub fn range(&self) -> Range<u64> {
        let start = Seen::offset_of(self.block);
        start..start + u64::from(self.len)
    }
}

/// A bundle: shards of one store, one after the other, and the hashes over all of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundle {
    /// Whose shards.
    pub store: Uuid,
    /// Which, in their order.
    pub members: Vec<Member>,
    /// The tree over their bytes.
    pub tree: ExtentTree,
}

impl Bundle {
    /// The ranges of the server's file that a range of the bundle's bytes is made of.
    #[must_use]
    pub fn places(&self, range: &Range<u64>) -> Vec<Range<u64>> {
        let mut start = 0;
        let mut places = Vec::new();
        for member in &self.members {
            let end = start + u64::from(member.len);
            let part = range.start.max(start)..range.end.min(end);
            if part.start < part.end {
                let at = member.range().start;
                places.push(at + (part.start - start)..at + (part.end - start));
            }
            start = end;
        }
        places
    }

    /// Its file.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.extend(self.store);
        out.extend((self.members.len() as u32).to_be_bytes());
        for Member { slot, block, len, crc } in &self.members {
            out.extend([slot, block, len, crc].into_iter().flat_map(|field| field.to_be_bytes()));
        }
        out.extend(self.tree.bytes_len().to_be_bytes());
        out.extend(self.tree.groups().iter().flatten());
        sealed(out)
    }

    /// Reads its file.
    ///
    /// # Errors
    /// [`FormatError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let body = opened(bytes, MAGIC)?;
        let (store, body) = body.split_first_chunk().ok_or(FormatError::Length)?;
        let (count, body) = body.split_first_chunk().ok_or(FormatError::Length)?;
        let count = u32::from_be_bytes(*count) as usize;
        if count > MEMBERS_MAX {
            return Err(FormatError::Length);
        }
        let (listed, body) =
            body.split_at_checked(count * MEMBER_BYTES).ok_or(FormatError::Length)?;
        let members: Vec<Member> =
            listed.as_chunks::<MEMBER_BYTES>().0.iter().map(member).collect();
        let (len, groups) = body.split_first_chunk().ok_or(FormatError::Length)?;
        let len = u64::from_be_bytes(*len);
        let sum: u64 = members.iter().map(|member| u64::from(member.len)).sum();
        let is_sound = |it: &Member| it.len > 0 && it.len as usize <= OBJECT_BYTES_MAX;
        let (groups, rest) = groups.as_chunks::<HASH_BYTES>();
        if sum != len || len > BUNDLE_BYTES_MAX || !rest.is_empty() || !members.iter().all(is_sound)
        {
            return Err(FormatError::Length);
        }
        let groups = groups.iter().copied().map(B256::new).collect();
        let tree = ExtentTree::from_groups(len, groups).ok_or(FormatError::Length)?;
        Ok(Self { store: *store, members, tree })
    }
}

fn member(bytes: &[u8; MEMBER_BYTES]) -> Member {
    let mut fields = bytes.as_chunks::<4>().0.iter().map(|field| u32::from_be_bytes(*field));
    let mut next = || fields.next().unwrap_or_default();
    Member { slot: next(), block: next(), len: next(), crc: next() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle() -> Bundle {
        let members = (0..3).map(|slot| Member { slot, block: 100 * slot, len: 70_000, crc: 9 });
        let tree = ExtentTree::of(&vec![5; 210_000]);
        Bundle { store: [7; 16], members: members.collect(), tree }
    }

    #[test]
    fn a_bundle_is_read_as_it_was_written_and_every_change_is_noticed() {
        let bytes = bundle().encode();
        assert_eq!(Bundle::decode(&bytes), Ok(bundle()));
        assert!(bytes.len() as u64 <= FILE_BYTES_MAX);
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 0x20;
            assert!(Bundle::decode(&changed).is_err(), "byte {at}");
            assert!(Bundle::decode(&bytes[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn a_right_sum_over_nonsense_is_refused() {
        let mut wrong = bundle();
        wrong.members[1].len += 1;
        assert_eq!(Bundle::decode(&wrong.encode()), Err(FormatError::Length));
        wrong.members[0].len = 0;
        wrong.members[1].len = 140_000;
        assert_eq!(Bundle::decode(&wrong.encode()), Err(FormatError::Length));
        for body in [vec![255; 16 + 4], vec![255; 400], vec![0; 16 + 4 + 8]] {
            let bytes = sealed([MAGIC.as_slice(), &body].concat());
            assert_eq!(Bundle::decode(&bytes), Err(FormatError::Length), "{}", body.len());
        }
    }

    #[test]
    fn a_range_of_a_bundle_is_where_its_shards_are() {
        let at = |slot: u32| Seen::offset_of(100 * slot);
        let places = bundle().places(&(65_536..131_072));
        assert_eq!(places, [at(0) + 65_536..at(0) + 70_000, at(1)..at(1) + 61_072]);
        let second = bundle().places(&(70_000..140_000));
        assert_eq!((second.len(), second[0].clone()), (1, at(1)..at(1) + 70_000));
        let last = bundle().places(&(209_999..300_000));
        assert_eq!((last.len(), last[0].clone()), (1, at(2) + 69_999..at(2) + 70_000));
        assert_eq!(bundle().places(&(5..5)), []);
    }
}
