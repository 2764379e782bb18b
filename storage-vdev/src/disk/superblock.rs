//! The superblock: whose store it is, and how large.

use std::io;

use super::{BLOCK, CAPACITY_MAX};
use crate::fields::{Reader, Writer, is_blank};
use crate::files::NodeFile;
use crate::keys::Uuid;

const MAGIC: &[u8; 8] = b"HYPHOBJS";
const VERSION: u16 = 1;
/// It fills a sector, so that it is written as a whole.
pub(super) const BYTES: usize = 512;

/// What a superblock says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Superblock {
    /// The node.
    pub(super) node: Uuid,
    /// Counts superblocks; the copy at block `generation % 2` is the one.
    pub(super) generation: u64,
    /// Blocks of extents.
    pub(super) blocks: u64,
}

/// What is at a superblock's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    Blank,
    Damaged,
    OtherVersion(u16),
    Good(Superblock),
}

/// Where a copy lies in the file.
pub(super) fn copy_at(copy: u64) -> u64 {
    copy * BLOCK as u64
}

impl Superblock {
    pub(super) fn write(&self, file: &mut impl NodeFile) -> io::Result<()> {
        let mut bytes = [0; BYTES];
        Writer::new(&mut bytes)
            .put(MAGIC)
            .put(&VERSION.to_le_bytes())
            .put(&[0; 6])
            .put(&self.node)
            .put(&self.generation.to_le_bytes())
            .put(&self.blocks.to_le_bytes());
        let (content, crc) = bytes.split_at_mut(BYTES - 4);
        crc.copy_from_slice(&crc32c::crc32c(content).to_le_bytes());
        file.write_at(copy_at(self.generation % 2), &bytes)?;
        file.sync()
    }

    pub(super) fn read(file: &mut impl NodeFile, copy: u64) -> io::Result<Found> {
        let mut bytes = [0; BYTES];
        let at = copy_at(copy);
        if file.size()? < at + BYTES as u64 {
            return Ok(Found::Blank);
        }
        file.read_at(at, &mut bytes)?;
        Ok(Self::parse(&bytes))
    }

    /// What the bytes at a copy's place are.
    pub(super) fn parse(bytes: &[u8; BYTES]) -> Found {
        if is_blank(bytes) {
            return Found::Blank;
        }
        let (content, crc) = bytes.split_at(BYTES - 4);
        let mut fields = Reader::new(content);
        let magic = fields.bytes();
        if magic != Some(*MAGIC) || crc32c::crc32c(content).to_le_bytes() != *crc {
            return Found::Damaged;
        }
        let read = |mut fields: Reader<'_>| {
            let version = fields.u16()?;
            if version != VERSION {
                return Some(Found::OtherVersion(version));
            }
            let _zero: [u8; 6] = fields.bytes()?;
            let (node, generation, blocks) = (fields.bytes()?, fields.u64()?, fields.u64()?);
            let fits = blocks > 0 && blocks <= CAPACITY_MAX / BLOCK as u64;
            fits.then_some(Found::Good(Self { node, generation, blocks }))
        };
        read(fields).unwrap_or(Found::Damaged)
    }
}
