//! The superblock: where everything else begins.
//!
//! Each version is an object of its own on every node, and is never changed. It starts with what
//! somebody without the key needs (whose it is, how new it is, up to which segment it reaches); all
//! of it is under a MAC of the opening that wrote it. `docs/storage-format.md` draws it.

use super::options::{NodeInfo, Policy};
use super::record::ChainEnd;
use crate::extent_map::{ROOT_BYTES, Root};
use crate::fields::{Reader, u32_at};
use crate::geometry::{BLOCK_BYTES, SHARDS_MAX};
use crate::keys::{Opening, Uuid, VolumeKey, keys_for};
use crate::node::{NODES_MAX, NodeIndex, ObjectKey, SUPERBLOCK_SHARD};
use crate::segment::{Link, Shape};

const MAGIC: [u8; 8] = *b"HYPHASUP";
/// The version of the whole format.
pub(crate) const VERSION: u16 = 2;
const CODE_REED_SOLOMON: u8 = 1;
const MAC_BYTES: usize = 32;
const CRC_BYTES: usize = 4;
/// Superblocks sort behind all segments of their epoch.
const KEY_BASE: u64 = 1 << 63;
const FLAG_CLOSED: u16 = 1;
const FLAG_ALLOW_DEGRADED: u16 = 2;
const FLAG_SHARED_DOMAINS: u16 = 4;
/// The most bytes of a superblock.
pub(super) const SUPERBLOCK_BYTES_MAX: usize = 1 << 20;
const NAME_BYTES_MAX: usize = 255;

/// An opening that segments which are still there were written under.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PastOpening {
    /// Segments from this one on are its own, until the next one's.
    pub(super) first_sequence: u64,
    /// The volume that it was an opening of: this one's, or a clone's base.
    pub(super) uuid: Uuid,
    pub(super) opening: Opening,
}

/// A root that is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Snapshot {
    pub(super) name: String,
    pub(super) root: Root,
    pub(super) size_bytes: u64,
    /// The last segment that it may need.
    pub(super) frontier: u64,
    pub(super) unix_time: u64,
    pub(super) has_clone: bool,
}

/// A segment whose shards are to be deleted, once nobody can read by an older superblock any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DeleteIntent {
    pub(super) sequence: u64,
    pub(super) epoch: u64,
}

/// What a clone stands on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Base {
    pub(super) uuid: Uuid,
    /// The base's key, sealed under the clone's (see `docs/keys.md`).
    pub(super) wrapped_key: Vec<u8>,
}

/// Where the journal starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct JournalAnchor {
    /// The nodes with the volume's journal heads.
    pub(super) heads: Vec<NodeIndex>,
    /// The first byte that counts.
    pub(super) position: u64,
    /// What the first record there must say.
    pub(super) chain: ChainEnd,
}

/// All that an opening must know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Superblock {
    pub(super) uuid: Uuid,
    pub(super) shape: Shape,
    /// Counts superblocks over all openings.
    pub(super) version: u64,
    /// Who wrote it.
    pub(super) opening: Opening,
    pub(super) size_bytes: u64,
    pub(super) policy: Policy,
    pub(super) allow_degraded: bool,
    pub(super) shared_domains: bool,
    /// The volume was closed in good order: there is nothing to recover.
    pub(super) closed: bool,
    pub(super) journal_bytes: u64,
    pub(super) lease_ns: u64,
    /// The map, and the last segment that is in it.
    pub(super) root: Root,
    pub(super) frontier: Link,
    /// The last write in it.
    pub(super) frontier_write: u64,
    pub(super) journal: JournalAnchor,
    pub(super) nodes: Vec<NodeInfo>,
    pub(super) slots: Vec<NodeIndex>,
    /// In the order of their first segments; the last one is `opening`.
    pub(super) openings: Vec<PastOpening>,
    pub(super) snapshots: Vec<Snapshot>,
    pub(super) deletes: Vec<DeleteIntent>,
    /// The volumes whose segments this one reads, if it is a clone: its base comes last.
    pub(super) bases: Vec<Base>,
}

/// Why bytes are not a superblock of this volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum SuperblockError {
    #[error("the superblock is damaged")]
    Corrupt,
    #[error("the volume has format version {0}, and this build reads version {VERSION}")]
    Version(u16),
    #[error("the superblock was not written with this volume's key")]
    Forged,
}

/// The name of a superblock's object.
pub(super) fn superblock_key(volume: Uuid, epoch: u64, version: u64) -> ObjectKey {
    ObjectKey { volume, epoch, sequence: KEY_BASE + version, shard: SUPERBLOCK_SHARD }
}

/// A name that all superblocks of an epoch, and none of its segments, sort behind.
pub(super) fn before_superblocks(volume: Uuid, epoch: u64) -> ObjectKey {
    ObjectKey { volume, epoch, sequence: KEY_BASE - 1, shard: u8::MAX }
}

/// The version of the superblock with this name; `None` if it names a shard.
pub(super) fn version_of(key: &ObjectKey) -> Option<u64> {
    key.sequence.checked_sub(KEY_BASE).filter(|_| key.shard == SUPERBLOCK_SHARD)
}

impl Superblock {
    /// Its object's name.
    pub(super) fn key(&self) -> ObjectKey {
        superblock_key(self.uuid, self.opening.epoch, self.version)
    }

    /// Its bytes.
    pub(super) fn encode(&self, volume_key: &VolumeKey) -> Vec<u8> {
        let mut out = Vec::with_capacity(1024);
        let flags = [
            (self.closed, FLAG_CLOSED),
            (self.allow_degraded, FLAG_ALLOW_DEGRADED),
            (self.shared_domains, FLAG_SHARED_DOMAINS),
        ];
        let flags = flags.iter().filter(|flag| flag.0).fold(0, |all, flag| all | flag.1);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend([CODE_REED_SOLOMON, self.shape.data_shards(), self.shape.parity_shards()]);
        out.push(policy_number(self.policy));
        out.extend_from_slice(&u16::to_le_bytes(flags));
        out.extend_from_slice(&self.uuid);
        put_u64(&mut out, &[self.version]);
        put_opening(&mut out, &self.opening);
        put_u64(&mut out, &[self.frontier.sequence]);
        out.extend_from_slice(&self.frontier.tag);
        put_u64(&mut out, &[self.frontier_write, self.size_bytes, self.journal_bytes]);
        put_u64(&mut out, &[self.lease_ns]);
        out.extend_from_slice(&self.root.to_bytes());
        put_u64(&mut out, &[self.journal.position, self.journal.chain.sequence]);
        out.extend_from_slice(&self.journal.chain.tag);
        put_list(&mut out, &self.journal.heads, |out, head| out.push(*head));
        put_list(&mut out, &self.nodes, put_node);
        put_list(&mut out, &self.slots, |out, slot| out.push(*slot));
        put_list(&mut out, &self.openings, |out, past| {
            put_u64(out, &[past.first_sequence]);
            out.extend_from_slice(&past.uuid);
            put_opening(out, &past.opening);
        });
        put_list(&mut out, &self.snapshots, |out, snapshot| {
            put_text(out, &snapshot.name);
            out.extend_from_slice(&snapshot.root.to_bytes());
            put_u64(out, &[snapshot.size_bytes, snapshot.frontier, snapshot.unix_time]);
            out.push(u8::from(snapshot.has_clone));
        });
        put_list(&mut out, &self.deletes, |out, intent| {
            put_u64(out, &[intent.sequence, intent.epoch]);
        });
        put_list(&mut out, &self.bases, |out, base| {
            out.extend_from_slice(&base.uuid);
            put_list(out, &base.wrapped_key, |out, byte| out.push(*byte));
        });
        let mac = keys_for(volume_key, self.uuid, self.opening).superblock_mac(&out);
        out.extend_from_slice(&mac);
        let crc = crc32c::crc32c(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads a superblock and checks its CRC, version and MAC, in this order.
    pub(super) fn parse(bytes: &[u8], volume_key: &VolumeKey) -> Result<Self, SuperblockError> {
        let (superblock, signed, mac) = Self::parse_unproven(bytes)?;
        let keys = keys_for(volume_key, superblock.uuid, superblock.opening);
        if keys.superblock_is_authentic(signed, mac) {
            Ok(superblock)
        } else {
            Err(SuperblockError::Forged)
        }
    }

    /// Reads a superblock without the key: checks its CRC and version, and returns what the MAC is
    /// over and the MAC.
    pub(super) fn parse_unproven(bytes: &[u8]) -> Result<(Self, &[u8], &[u8]), SuperblockError> {
        let end = bytes.len().checked_sub(CRC_BYTES).ok_or(SuperblockError::Corrupt)?;
        let body = end.checked_sub(MAC_BYTES).ok_or(SuperblockError::Corrupt)?;
        let signed = bytes.get(..body).ok_or(SuperblockError::Corrupt)?;
        let mac = bytes.get(body..end).ok_or(SuperblockError::Corrupt)?;
        let crc = crc32c::crc32c(bytes.get(..end).unwrap_or_default());
        if !bytes.starts_with(&MAGIC)
            || u32_at(bytes, end) != Some(crc)
            || bytes.len() > SUPERBLOCK_BYTES_MAX
        {
            return Err(SuperblockError::Corrupt);
        }
        let mut fields = Reader::new(signed.get(MAGIC.len()..).unwrap_or_default());
        let version = fields.u16().ok_or(SuperblockError::Corrupt)?;
        if version != VERSION {
            return Err(SuperblockError::Version(version));
        }
        let superblock = Self::read(&mut fields).ok_or(SuperblockError::Corrupt)?;
        Ok((superblock, signed, mac))
    }

    fn read(fields: &mut Reader<'_>) -> Option<Self> {
        let [code, data_shards, parity_shards, policy] = fields.bytes()?;
        let flags = fields.u16()?;
        let superblock = Self {
            shape: Shape::new(data_shards, parity_shards).ok()?,
            policy: policy_of(policy)?,
            closed: flags & FLAG_CLOSED != 0,
            allow_degraded: flags & FLAG_ALLOW_DEGRADED != 0,
            shared_domains: flags & FLAG_SHARED_DOMAINS != 0,
            uuid: fields.bytes()?,
            version: fields.u64()?,
            opening: read_opening(fields)?,
            frontier: Link { sequence: fields.u64()?, tag: fields.bytes()? },
            frontier_write: fields.u64()?,
            size_bytes: fields.u64()?,
            journal_bytes: fields.u64()?,
            lease_ns: fields.u64()?,
            root: read_root(fields)?,
            journal: JournalAnchor {
                position: fields.u64()?,
                chain: ChainEnd { sequence: fields.u64()?, tag: fields.bytes()? },
                heads: read_list(fields, |fields| fields.bytes::<1>().map(|[head]| head))?,
            },
            nodes: read_list(fields, read_node)?,
            slots: read_list(fields, |fields| fields.bytes::<1>().map(|[slot]| slot))?,
            openings: read_list(fields, |fields| {
                let (first_sequence, uuid) = (fields.u64()?, fields.bytes()?);
                Some(PastOpening { first_sequence, uuid, opening: read_opening(fields)? })
            })?,
            snapshots: read_list(fields, read_snapshot)?,
            deletes: read_list(fields, |fields| {
                Some(DeleteIntent { sequence: fields.u64()?, epoch: fields.u64()? })
            })?,
            bases: read_list(fields, |fields| {
                let uuid = fields.bytes()?;
                let wrapped_key = read_list(fields, |fields| fields.bytes::<1>().map(|[b]| b))?;
                Some(Base { uuid, wrapped_key })
            })?,
        };
        let known = code == CODE_REED_SOLOMON
            && flags & !(FLAG_CLOSED | FLAG_ALLOW_DEGRADED | FLAG_SHARED_DOMAINS) == 0;
        (known && superblock.is_sound()).then_some(superblock)
    }

    fn is_sound(&self) -> bool {
        let is_node = |node: &NodeIndex| usize::from(*node) < self.nodes.len();
        let shards = usize::from(self.shape.shards());
        let ascending = self.openings.is_sorted_by(|a, b| a.first_sequence <= b.first_sequence);
        self.nodes.len() <= NODES_MAX
            && shards <= SHARDS_MAX.into()
            && self.slots.len() == shards
            && self.slots.iter().all(is_node)
            && self.journal.heads.iter().all(is_node)
            && self.size_bytes > 0
            && self.size_bytes.is_multiple_of(BLOCK_BYTES as u64)
            && ascending
            && self.openings.last().is_some_and(|last| last.opening == self.opening)
    }
}

fn policy_number(policy: Policy) -> u8 {
    match policy {
        Policy::Local => 0,
        Policy::Quorum => 1,
        Policy::Sealed => 2,
    }
}

fn policy_of(number: u8) -> Option<Policy> {
    [Policy::Local, Policy::Quorum, Policy::Sealed].get(usize::from(number)).copied()
}

fn put_u64(out: &mut Vec<u8>, numbers: &[u64]) {
    numbers.iter().for_each(|number| out.extend_from_slice(&number.to_le_bytes()));
}

fn put_opening(out: &mut Vec<u8>, opening: &Opening) {
    put_u64(out, &[opening.epoch]);
    out.extend_from_slice(&opening.salt);
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    let bytes = text.as_bytes();
    let bytes = bytes.get(..NAME_BYTES_MAX).unwrap_or(bytes);
    out.push(bytes.len() as u8);
    out.extend_from_slice(bytes);
}

fn put_node(out: &mut Vec<u8>, node: &NodeInfo) {
    out.extend_from_slice(&node.id);
    let services = [node.objects, node.journal, node.register, node.local];
    out.push((0..).zip(services).fold(0, |all, (bit, has)| all | u8::from(has) << bit));
    put_text(out, &node.name);
    put_text(out, &node.domain);
}

fn put_list<T>(out: &mut Vec<u8>, items: &[T], put: impl Fn(&mut Vec<u8>, &T)) {
    out.extend_from_slice(&(items.len() as u32).to_le_bytes());
    items.iter().for_each(|item| put(out, item));
}

fn read_opening(fields: &mut Reader<'_>) -> Option<Opening> {
    Some(Opening { epoch: fields.u64()?, salt: fields.bytes()? })
}

fn read_root(fields: &mut Reader<'_>) -> Option<Root> {
    Root::from_bytes(&fields.bytes::<ROOT_BYTES>()?).ok()
}

fn read_text(fields: &mut Reader<'_>) -> Option<String> {
    let [len] = fields.bytes()?;
    let bytes: Vec<u8> =
        (0..len).map(|_| fields.bytes::<1>().map(|[byte]| byte)).collect::<Option<_>>()?;
    // A name that was cut may end inside a character.
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

fn read_node(fields: &mut Reader<'_>) -> Option<NodeInfo> {
    let id = fields.bytes()?;
    let [services] = fields.bytes()?;
    let has = |bit: u8| services >> bit & 1 == 1;
    Some(NodeInfo {
        id,
        objects: has(0),
        journal: has(1),
        register: has(2),
        local: has(3),
        name: read_text(fields)?,
        domain: read_text(fields)?,
    })
    .filter(|_| services < 16)
}

fn read_snapshot(fields: &mut Reader<'_>) -> Option<Snapshot> {
    Some(Snapshot {
        name: read_text(fields)?,
        root: read_root(fields)?,
        size_bytes: fields.u64()?,
        frontier: fields.u64()?,
        unix_time: fields.u64()?,
        has_clone: fields.bytes()? == [1],
    })
}

/// The items are as many as there are bytes for: a count costs no memory by itself.
fn read_list<T>(
    fields: &mut Reader<'_>,
    read: impl Fn(&mut Reader<'_>) -> Option<T>,
) -> Option<Vec<T>> {
    let count = fields.u32()?;
    let mut items = Vec::new();
    for _ in 0..count {
        items.push(read(fields)?);
    }
    Some(items)
}

#[cfg(test)]
mod tests;
