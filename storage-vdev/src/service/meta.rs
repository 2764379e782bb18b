//! What a node has promised: fences, acceptor states, pinned keys, and where the journals lie.
//!
//! An entry of 32 KiB per volume holds four copies of its record: generation g is written twice
//! into the pair g mod 2, so that a torn write leaves the generation before, and one rotten copy
//! forgets nothing. What is forgotten here would be a broken promise: where no copy of an entry can
//! be read the node refuses every volume that it doesn't know.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use zeroize::Zeroizing;

use super::grants::WriterKey;
use super::journal::{CAPACITY, RINGS_AT, ring_bytes};
use crate::fields::{Reader, Writer, is_blank};
use crate::files::{NodeFile, is_full};
use crate::keys::Uuid;
use crate::node::{NodeError, REGISTER_BYTES_MAX};
use crate::register::{ACCEPTORS_MAX, Members};

const HEADER_MAGIC: &[u8; 8] = b"HYPHMETA";
const RECORD_MAGIC: &[u8; 4] = b"HYPM";
const VERSION: u16 = 1;
const SECTOR: usize = 512;
/// Two copies of the header, each in a page of its own.
const HEADER_PAGE: u64 = 4096;
const ENTRIES_AT: u64 = 2 * HEADER_PAGE;
const COPY_BYTES: usize = 8192;
const ENTRY_BYTES: usize = 4 * COPY_BYTES;
const FIXED_BYTES: usize = 120;
/// An acceptor's state: a value and less than a hundred bytes around it.
const ACCEPTOR_BYTES_MAX: usize = REGISTER_BYTES_MAX + 100;

/// Numbers that count up from 1 never get there.
const COUNTER_END: u64 = 1 << 62;

const WITH_WRITER: u16 = 1;
const WITH_RING: u16 = 2;

const _: () = assert!(FIXED_BYTES + 64 * ACCEPTORS_MAX + ACCEPTOR_BYTES_MAX + 4 <= COPY_BYTES);

/// The most volumes that a node keeps promises to.
pub const VOLUMES_MAX: usize = 1 << 16;

/// Who a node is: drawn once, when it is made.
#[derive(Clone)]
pub struct NodeIdentity {
    /// Its name.
    pub node: Uuid,
    /// The secret seed of the key that its acceptors sign receipts with.
    pub acceptor_seed: Zeroizing<[u8; 32]>,
}

impl std::fmt::Debug for NodeIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeIdentity").field("node", &self.node).finish_non_exhaustive()
    }
}

/// Where a journal lies in its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RingPlace {
    /// Its first byte.
    pub(super) at: u64,
    /// How many bytes of journal it holds.
    pub(super) capacity: u64,
    /// Counts the rings of the node: two that lie in one place, one after the other, differ in it.
    pub(super) id: u64,
}

impl RingPlace {
    /// Whether a ring can be like that.
    fn is_sound(&self) -> bool {
        CAPACITY.contains(&self.capacity)
            && self.capacity.is_multiple_of(HEADER_PAGE)
            && (RINGS_AT..COUNTER_END).contains(&self.at)
            && self.at.is_multiple_of(HEADER_PAGE)
            && self.id < COUNTER_END
    }
}

/// What a node keeps for a volume, without what is seldom needed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) fence: u64,
    pub(super) writer: Option<WriterKey>,
    pub(super) ring: Option<RingPlace>,
    /// The register's acceptors whose receipts are evidence for a fence; none: none is asked for.
    pub(super) members: Members,
    /// The acceptor's state, as the register writes it; empty if it never promised anything.
    pub(super) acceptor: Vec<u8>,
}

/// The part of a record that is kept in memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) fence: u64,
    pub(super) writer: Option<WriterKey>,
    pub(super) ring: Option<RingPlace>,
    index: usize,
    generation: u64,
}

/// Why the promises of a node can't be read. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum MetaError {
    /// There are none.
    #[error("the node's promises (the file meta) are missing")]
    Missing,
    /// Both headers are damaged.
    #[error("the header of the node's promises (the file meta) is damaged")]
    Damaged,
    /// Another Hypha made them.
    #[error("the file meta has format version {0}, which this Hypha doesn't know")]
    Version(u16),
    /// The file can't be used.
    #[error("can't use the file meta: {0}")]
    Io(#[from] io::Error),
}

/// The file `meta`.
#[derive(Debug)]
pub(super) struct Meta<F> {
    file: F,
    identity: NodeIdentity,
    volumes: BTreeMap<Uuid, Known>,
    /// How many entries were ever used.
    entries: usize,
    /// Entries of which no copy can be read.
    damaged: usize,
    /// Volumes whose newest generation is still to be synced.
    young: Vec<Uuid>,
    failed: bool,
}

impl<F: NodeFile> Meta<F> {
    /// Whether `file` holds nothing yet.
    pub(super) fn is_blank(file: &mut F) -> Result<bool, MetaError> {
        let headers = [read_header(file, 0)?, read_header(file, 1)?];
        Ok(headers.iter().all(|header| matches!(header, Header::Blank)))
    }

    /// Reads the promises in `file`, or makes the file if it is blank and an identity is given.
    pub(super) fn open(mut file: F, create: Option<&NodeIdentity>) -> Result<Self, MetaError> {
        // What a process before us wrote and didn't sync counts from here on.
        file.sync()?;
        let identity = match [read_header(&mut file, 0)?, read_header(&mut file, 1)?] {
            [Header::Good(identity), _] | [_, Header::Good(identity)] => identity,
            [Header::Blank, Header::Blank] => {
                let identity = create.ok_or(MetaError::Missing)?;
                write_headers(&mut file, identity)?;
                identity.clone()
            }
            [Header::Version(version), _] | [_, Header::Version(version)] => {
                return Err(MetaError::Version(version));
            }
            _ => return Err(MetaError::Damaged),
        };
        let mut meta = Self {
            file,
            identity,
            volumes: BTreeMap::new(),
            entries: 0,
            damaged: 0,
            young: Vec::new(),
            failed: false,
        };
        meta.read_entries()?;
        Ok(meta)
    }

    pub(super) fn identity(&self) -> &NodeIdentity {
        &self.identity
    }

    pub(super) fn damaged(&self) -> usize {
        self.damaged
    }

    /// Whether something is written and not synced.
    pub(super) fn is_dirty(&self) -> bool {
        !self.young.is_empty()
    }

    pub(super) fn volumes(&self) -> impl Iterator<Item = (&Uuid, &Known)> {
        self.volumes.iter()
    }

    /// Where the rings lie: first byte and end.
    pub(super) fn places(&self) -> impl Iterator<Item = (u64, u64)> {
        let rings = self.volumes.values().filter_map(|known| known.ring);
        rings.map(|ring| (ring.at, ring.at.saturating_add(ring_bytes(ring.capacity))))
    }

    /// A number for a ring that no ring of a volume has.
    pub(super) fn next_ring(&self) -> u64 {
        let rings = self.volumes.values().filter_map(|known| known.ring);
        rings.map(|ring| ring.id).max().unwrap_or(0) + 1
    }

    /// What is known of a volume.
    ///
    /// Fails with [`NodeError::Corrupt`] if the node can't know whether it promised it something.
    pub(super) fn get(&self, volume: &Uuid) -> Result<Known, NodeError> {
        match self.volumes.get(volume) {
            Some(known) => Ok(*known),
            None if self.damaged > 0 => Err(NodeError::Corrupt),
            None => Ok(Known::default()),
        }
    }

    /// The whole record of a volume.
    pub(super) fn load(&mut self, volume: &Uuid) -> Result<Record, NodeError> {
        if self.failed {
            return Err(NodeError::Failed);
        }
        let known = self.get(volume)?;
        if known.generation == 0 {
            return Ok(Record::default());
        }
        for copy in 0..2 {
            let mut bytes = [0; COPY_BYTES];
            let at = copy_at(known.index, known.generation, copy);
            if self.file.read_at(at, &mut bytes).is_err() {
                continue;
            }
            match parse(&bytes, &self.identity.node, known.index) {
                Some(found) if found.volume == *volume && found.generation == known.generation => {
                    return Ok(found.record);
                }
                _ => {}
            }
        }
        Err(NodeError::Corrupt)
    }

    /// Changes the record of a volume. It counts when [`Meta::sync`] has succeeded.
    pub(super) fn store(&mut self, volume: &Uuid, record: &Record) -> Result<(), NodeError> {
        if self.failed {
            return Err(NodeError::Failed);
        }
        let mut known = self.get(volume)?;
        if known.generation == 0 {
            if self.entries >= VOLUMES_MAX {
                return Err(NodeError::NoSpace);
            }
            // The first record fits into a sector, so that a crash leaves it whole or blank, and an
            // entry that is neither is known to be damaged.
            let small = Record { acceptor: Vec::new(), members: Members::default(), ..*record };
            let at = (ENTRIES_AT + (self.entries * ENTRY_BYTES) as u64, ENTRY_BYTES as u64);
            self.file.allocate(at.0, at.1).map_err(|error| self.judge(&error))?;
            // No copy of an entry is read behind the file's end, whatever allocation does.
            self.file
                .write_at(at.0 + at.1 - SECTOR as u64, &[0; SECTOR])
                .map_err(|error| self.judge(&error))?;
            known.index = self.entries;
            self.write(volume, &small, &mut known)?;
            self.entries += 1;
            self.sync()?;
            if small == *record {
                return Ok(());
            }
        }
        if self.young.contains(volume) {
            // The pair that this generation goes to holds the newest one that is durable.
            self.sync()?;
        }
        self.write(volume, record, &mut known)
    }

    fn write(
        &mut self,
        volume: &Uuid,
        record: &Record,
        known: &mut Known,
    ) -> Result<(), NodeError> {
        let generation = known.generation + 1;
        let bytes = encode(volume, generation, record, &self.identity.node, known.index);
        for copy in 0..2 {
            let at = copy_at(known.index, generation, copy);
            self.file.write_at(at, &bytes).map_err(|error| self.judge(&error))?;
        }
        self.young.push(*volume);
        known.generation = generation;
        (known.fence, known.writer, known.ring) = (record.fence, record.writer, record.ring);
        self.volumes.insert(*volume, *known);
        Ok(())
    }

    /// Makes durable what was stored.
    pub(super) fn sync(&mut self) -> Result<(), NodeError> {
        if self.failed {
            return Err(NodeError::Failed);
        }
        if self.young.is_empty() {
            return Ok(());
        }
        if let Err(error) = self.file.sync() {
            tracing::error!(%error, "promises can't be synced");
            self.failed = true;
            return Err(NodeError::Failed);
        }
        self.young.clear();
        Ok(())
    }

    fn judge(&mut self, error: &io::Error) -> NodeError {
        if is_full(error) {
            return NodeError::NoSpace;
        }
        tracing::error!(%error, "promises can't be written");
        self.failed = true;
        NodeError::Failed
    }

    fn read_entries(&mut self) -> Result<(), MetaError> {
        let len = self.file.size()?;
        let mut entry = vec![0; ENTRY_BYTES];
        let mut mended = false;
        for index in 0..VOLUMES_MAX {
            let at = ENTRIES_AT + (index * ENTRY_BYTES) as u64;
            if at >= len {
                break;
            }
            let end = at + ENTRY_BYTES as u64;
            if end > len {
                // A copy of the file may have lost the zeroes at its end.
                self.file.write_at(end - SECTOR as u64, &[0; SECTOR])?;
                mended = true;
            }
            self.file.read_at(at, &mut entry)?;
            if is_blank(&entry) {
                continue;
            }
            self.entries = index + 1;
            let found = entry
                .chunks(COPY_BYTES)
                .filter_map(|copy| parse(copy, &self.identity.node, index))
                .max_by_key(|found| found.generation);
            match found {
                Some(found) => mended |= self.learn(index, &found)?,
                None => self.damaged += 1,
            }
        }
        if mended {
            self.file.sync()?;
        }
        Ok(())
    }

    /// Takes a record over, and writes its copies again: after a crash or rot there may be only one.
    fn learn(&mut self, index: usize, found: &Found) -> Result<bool, MetaError> {
        let mut mended = false;
        let node = self.identity.node;
        let bytes = encode(&found.volume, found.generation, &found.record, &node, index);
        for copy in 0..2 {
            let at = copy_at(index, found.generation, copy);
            let mut on_disk = vec![0; bytes.len()];
            self.file.read_at(at, &mut on_disk)?;
            if on_disk != bytes {
                self.file.write_at(at, &bytes)?;
                mended = true;
            }
        }
        let Record { fence, writer, ring, .. } = found.record;
        let generation = found.generation;
        self.volumes.insert(found.volume, Known { fence, writer, ring, index, generation });
        Ok(mended)
    }
}

fn copy_at(index: usize, generation: u64, copy: u64) -> u64 {
    ENTRIES_AT + (index * ENTRY_BYTES) as u64 + (generation % 2 * 2 + copy) * COPY_BYTES as u64
}

enum Header {
    Blank,
    Damaged,
    Version(u16),
    Good(NodeIdentity),
}

fn write_headers(file: &mut impl NodeFile, identity: &NodeIdentity) -> io::Result<()> {
    let mut bytes = Zeroizing::new([0; SECTOR]);
    Writer::new(&mut bytes[..])
        .put(HEADER_MAGIC)
        .put(&VERSION.to_le_bytes())
        .put(&[0; 6])
        .put(&identity.node)
        .put(&identity.acceptor_seed[..]);
    let (content, crc) = bytes.split_at_mut(SECTOR - 4);
    crc.copy_from_slice(&crc32c::crc32c(content).to_le_bytes());
    file.write_at(0, &bytes[..])?;
    file.write_at(HEADER_PAGE, &bytes[..])?;
    file.sync()
}

fn read_header(file: &mut impl NodeFile, copy: u64) -> io::Result<Header> {
    let mut bytes = Zeroizing::new([0; SECTOR]);
    if file.size()? < copy * HEADER_PAGE + SECTOR as u64 {
        return Ok(Header::Blank);
    }
    file.read_at(copy * HEADER_PAGE, &mut bytes[..])?;
    if is_blank(&bytes[..]) {
        return Ok(Header::Blank);
    }
    Ok(parse_header(&bytes[..]).unwrap_or(Header::Damaged))
}

/// The name of the node whose promises are in the file at `path`, read without its lock: it is
/// drawn when the node is made and never changed. `None` if neither copy of the header is whole.
///
/// # Errors
/// The file can't be read.
pub fn identity_in(path: &Path) -> io::Result<Option<Uuid>> {
    let file = std::fs::File::open(path)?;
    for copy in 0..2 {
        // The seed of the acceptors' key stands beside the name.
        let mut bytes = Zeroizing::new([0; SECTOR]);
        match file.read_exact_at(&mut bytes[..], copy * HEADER_PAGE) {
            Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => return Err(error),
            _ => {}
        }
        if let Some(Header::Good(identity)) = parse_header(&bytes[..]) {
            return Ok(Some(identity.node));
        }
    }
    Ok(None)
}

fn parse_header(bytes: &[u8]) -> Option<Header> {
    let (content, crc) = bytes.split_last_chunk::<4>()?;
    let mut fields = Reader::new(content);
    let crc = crc32c::crc32c(content) == u32::from_le_bytes(*crc);
    if fields.bytes() != Some(*HEADER_MAGIC) || !crc {
        return None;
    }
    let version = fields.u16()?;
    if version != VERSION {
        return Some(Header::Version(version));
    }
    let _zero: [u8; 6] = fields.bytes()?;
    let node = fields.bytes()?;
    Some(Header::Good(NodeIdentity { node, acceptor_seed: Zeroizing::new(fields.bytes()?) }))
}

struct Found {
    volume: Uuid,
    generation: u64,
    record: Record,
}

fn checksum(node: &Uuid, index: usize, bytes: &[u8]) -> u32 {
    let crc = crc32c::crc32c_append(crc32c::crc32c(node), &(index as u64).to_le_bytes());
    crc32c::crc32c_append(crc, bytes)
}

/// The bytes of a copy, in whole sectors.
fn encode(volume: &Uuid, generation: u64, record: &Record, node: &Uuid, index: usize) -> Vec<u8> {
    let Record { fence, writer, ring, members, acceptor } = record;
    let ids: Vec<u8> = members.sets().flatten().flatten().copied().collect();
    let len = FIXED_BYTES + ids.len() + acceptor.len() + 4;
    let flags =
        if writer.is_some() { WITH_WRITER } else { 0 } | if ring.is_some() { WITH_RING } else { 0 };
    let place = ring.unwrap_or(RingPlace { at: 0, capacity: 0, id: 0 });
    // Sets and states longer than a copy holds are refused before.
    let count = |set: &[_]| u8::try_from(set.len()).unwrap_or(u8::MAX);
    let mut bytes = vec![0; len.next_multiple_of(SECTOR)];
    Writer::new(&mut bytes)
        .put(RECORD_MAGIC)
        .put(&VERSION.to_le_bytes())
        .put(&flags.to_le_bytes())
        .put(&(len as u32).to_le_bytes())
        .put(&[0; 4])
        .put(volume)
        .put(&generation.to_le_bytes())
        .put(&fence.to_le_bytes())
        .put(&writer.unwrap_or_default())
        .put(&place.at.to_le_bytes())
        .put(&place.capacity.to_le_bytes())
        .put(&place.id.to_le_bytes())
        .put(&[count(&members.current), count(&members.next), 0, 0, 0, 0, 0, 0])
        .put(&(acceptor.len() as u32).to_le_bytes())
        .put(&[0; 4])
        .put(&ids)
        .put(acceptor);
    let (content, rest) = bytes.split_at_mut(len - 4);
    let crc = checksum(node, index, content).to_le_bytes();
    Writer::new(rest).put(&crc);
    bytes
}

fn parse(bytes: &[u8], node: &Uuid, index: usize) -> Option<Found> {
    let mut fields = Reader::new(bytes);
    let known = fields.bytes() == Some(*RECORD_MAGIC) && fields.u16() == Some(VERSION);
    let flags = fields.u16()?;
    let len = fields.u32()? as usize;
    let (content, crc) = bytes.get(..len)?.split_last_chunk::<4>()?;
    if !known || checksum(node, index, content) != u32::from_le_bytes(*crc) {
        return None;
    }
    let _zero = fields.u32()?;
    let volume = fields.bytes()?;
    let (generation, fence) = (fields.u64()?, fields.u64()?);
    let writer = Some(fields.bytes()?).filter(|_| flags & WITH_WRITER != 0);
    let place = RingPlace { at: fields.u64()?, capacity: fields.u64()?, id: fields.u64()? };
    let ring = Some(place).filter(|_| flags & WITH_RING != 0);
    let [current, next, ..] = fields.bytes::<8>()?;
    let acceptor_len = fields.u32()? as usize;
    let _zero = fields.u32()?;
    let mut ids = |count: u8| (0..count).map(|_| fields.bytes()).collect::<Option<Vec<_>>>();
    let members = Members { current: ids(current)?, next: ids(next)? };
    let acceptor = content.get(content.len().checked_sub(acceptor_len)?..)?.to_vec();
    let expected = FIXED_BYTES + 32 * (usize::from(current) + usize::from(next)) + acceptor_len + 4;
    let sets_fit = usize::from(current.max(next)) <= ACCEPTORS_MAX;
    let fits = expected == len
        && sets_fit
        && acceptor_len <= ACCEPTOR_BYTES_MAX
        && (1..COUNTER_END).contains(&generation)
        && ring.is_none_or(|ring| ring.is_sound());
    let record = Record { fence, writer, ring, members, acceptor };
    fits.then_some(Found { volume, generation, record })
}
