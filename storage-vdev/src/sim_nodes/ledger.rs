//! Whether a key and a nonce were ever used for two contents.
//!
//! Every ciphertext of a volume reaches a node as a shard or as a journal record. A shard's units are
//! sealed under keys of its opening (the salt names it) with its segment's sequence number in each
//! nonce, a record under the record's number. So two shards of one opening, sequence and place must
//! be the same bytes, whatever was crashed, restored or opened twice in between.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};

use crate::fields::u32_at;
use crate::geometry::BLOCK_BYTES;
use crate::node::{Request, SUPERBLOCK_SHARD};
use crate::segment::{HEAD_BYTES, ShardHead};

/// The place of a record in the ledger; shards have numbers below it.
const RECORD: u8 = 0xfe;
const RECORD_MAGIC: &[u8] = b"HJRN";

/// A key and a nonce that were used for two contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reuse {
    /// The epoch of the opening.
    pub epoch: u64,
    /// The sequence number of the segment, or the number of the record.
    pub sequence: u64,
    /// The shard; `None`: a journal record.
    pub shard: Option<u8>,
}

/// What was ever sealed.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    seals: BTreeMap<([u8; 32], u64, u8), (u32, u32)>,
    reuse: Option<Reuse>,
}

impl Ledger {
    /// How many different shards and records there were.
    #[must_use]
    pub fn seals(&self) -> usize {
        self.seals.len()
    }

    /// The first key and nonce that were used twice.
    #[must_use]
    pub fn reuse(&self) -> Option<Reuse> {
        self.reuse
    }

    /// Notes what a request seals.
    pub(super) fn see(&mut self, request: &Request) {
        match request {
            Request::Put { key, parts } | Request::Restore { key, parts, .. }
                if key.shard != SUPERBLOCK_SHARD =>
            {
                self.see_shard(&concat(parts));
            }
            Request::JournalAppend { parts, .. } => self.see_records(&concat(parts)),
            _ => {}
        }
    }

    fn see_shard(&mut self, object: &[u8]) {
        let Ok(head) = ShardHead::parse(object) else { return };
        let content = object.get(HEAD_BYTES..).unwrap_or_default();
        let segment = &head.segment;
        let key = (segment.opening.salt, segment.sequence, head.shard);
        self.enter(key, segment.opening.epoch, content);
    }

    fn see_records(&mut self, mut bytes: &[u8]) {
        while bytes.starts_with(RECORD_MAGIC) {
            let blocks = u32_at(bytes, 12).unwrap_or(0) as usize;
            let Some((record, rest)) = bytes.split_at_checked((blocks + 1) * BLOCK_BYTES) else {
                return;
            };
            let number = |at: usize| {
                let field = record.get(at..).and_then(|rest| rest.first_chunk());
                field.copied().map_or(0, u64::from_le_bytes)
            };
            let salt = record.get(48..).and_then(|rest| rest.first_chunk()).copied();
            self.enter((salt.unwrap_or_default(), number(32), RECORD), number(40), record);
            bytes = rest;
        }
    }

    fn enter(&mut self, key: ([u8; 32], u64, u8), epoch: u64, content: &[u8]) {
        let print = (crc32c::crc32c(content), content.len() as u32);
        let (_, sequence, place) = key;
        if *self.seals.entry(key).or_insert(print) != print {
            let shard = (place != RECORD).then_some(place);
            self.reuse.get_or_insert(Reuse { epoch, sequence, shard });
        }
    }
}

fn concat(parts: &[Bytes]) -> Bytes {
    match parts {
        [one] => one.clone(),
        parts => {
            let mut all = BytesMut::new();
            parts.iter().for_each(|part| all.extend_from_slice(part));
            all.freeze()
        }
    }
}
