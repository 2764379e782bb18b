//! Opening a volume, with the replay of its journal, against any nodes at all.
//!
//! A volume of 2 + 1 shards has content in its segments and in its journal, all of it flushed. The
//! input damages the nodes: it flips, wipes, copies and cuts, moves valid journal records about,
//! repairs their checksums, and rolls nodes back. While no more nodes are damaged than may be lost,
//! the volume must open and read as it was. Beyond that it may refuse; what it does return must be
//! what was once written there. It may also refuse a node of a clone that the key's owner opened:
//! without a register nothing tells which of the two histories is the older one.

mod nodes;

use std::collections::BTreeSet;
use std::sync::OnceLock;

use storage_vdev::engine::{
    Completion, Create, Holder, Limits, NodeInfo, OpenError, OpenOptions, Policy, Randomness,
    TakeOver, Volume,
};
use storage_vdev::files::sim::Rng;
use storage_vdev::{BLOCK_BYTES, JOURNAL_BYTES_MIN, VolumeKey};

use crate::bytes::Input;
use nodes::{Host, Image};

const DATA_SHARDS: u8 = 2;
const PARITY_SHARDS: u8 = 1;
const NODES: usize = (DATA_SHARDS + PARITY_SHARDS) as usize;
const BLOCKS: usize = 24;
/// How often a request may wait for a time before it counts as stuck.
const WAITS_MAX: usize = 1000;

/// The undamaged volume.
struct Base {
    /// Its nodes now, and as they were before the last writes.
    newest: Vec<Image>,
    older: Vec<Image>,
    /// Its nodes after another continuation of `older`: a clone that somebody opened.
    forked: Vec<Image>,
    /// Its content.
    content: Vec<u8>,
    /// Whatever was written, with the number of its block.
    history: BTreeSet<(usize, Vec<u8>)>,
}

fn base() -> &'static Base {
    static BASE: OnceLock<Base> = OnceLock::new();
    BASE.get_or_init(Base::make)
}

impl Base {
    fn make() -> Self {
        let mut rng = Rng::new(1);
        let zero = vec![0; BLOCK_BYTES];
        let mut base = Self {
            newest: vec![Image::default(); NODES],
            older: Vec::new(),
            forked: Vec::new(),
            content: vec![0; BLOCKS * BLOCK_BYTES],
            history: (0..BLOCKS).map(|block| (block, zero.clone())).collect(),
        };
        // Some of it reaches segments; the rest stays in the journal, as after a crash.
        base.newest = base.write(base.newest.clone(), &mut rng, 14);
        base.older = base.write(base.newest.clone(), &mut rng, 4);
        base.newest = base.write(base.older.clone(), &mut rng, 4);
        let content = base.content.clone();
        base.forked = base.write(base.older.clone(), &mut rng, 4);
        base.content = content;
        base
    }

    /// Opens the volume, writes, and crashes.
    fn write(&mut self, images: Vec<Image>, rng: &mut Rng, count: u32) -> Vec<Image> {
        let mut volume = match open(images, true, rng) {
            Ok(volume) => volume,
            Err(error) => panic!("an undamaged volume opens: {error}"),
        };
        for _ in 0..count {
            let block = rng.below(BLOCKS as u64) as usize;
            let mut bytes = vec![0; BLOCK_BYTES];
            rng.fill(&mut bytes);
            volume.submit_write_fua(1, (block * BLOCK_BYTES) as u64, &bytes);
            let done = finish(&mut volume);
            assert!(done.result.is_ok(), "an undamaged volume takes every write: {done:?}");
            let place = self.content.iter_mut().skip(block * BLOCK_BYTES);
            place.zip(&bytes).for_each(|(to, from)| *to = *from);
            self.history.insert((block, bytes));
        }
        volume.into_nodes().images
    }
}

fn options(create: bool) -> OpenOptions {
    let create = create.then_some(Create {
        data_shards: DATA_SHARDS,
        parity_shards: PARITY_SHARDS,
        size_bytes: (BLOCKS * BLOCK_BYTES) as u64,
        policy: Policy::Quorum,
        allow_degraded: false,
        shared_domains: false,
        journal_bytes: JOURNAL_BYTES_MIN,
        lease_ns: 0,
    });
    let node = |index: usize| NodeInfo {
        id: [index as u8 + 1; 16],
        name: index.to_string(),
        domain: index.to_string(),
        objects: true,
        journal: true,
        register: false,
        local: true,
    };
    OpenOptions {
        uuid: [5; 16],
        key: VolumeKey::new(&[7; 32]),
        nodes: (0..NODES).map(node).collect(),
        create,
        must_be_new: false,
        holder: Holder { id: [1; 16], name: String::new() },
        register: false,
        take_over: TakeOver::Refuse,
        accept_loss: false,
        base: None,
        limits: Limits { segment_blocks: 8, cache_bytes: 0, ..Limits::SMALL },
    }
}

fn open(images: Vec<Image>, create: bool, rng: &mut Rng) -> Result<Volume<Host>, OpenError> {
    let mut random = Randomness { salt: [0; 32], proposer: [0; 24] };
    rng.fill(&mut random.salt);
    let mut opening = Volume::open(Host::new(images), options(create), random);
    let mut now_ns = 0;
    for _ in 0..WAITS_MAX {
        if let Some(result) = opening.poll(now_ns) {
            return result;
        }
        now_ns = opening.deadline_ns().unwrap_or(now_ns).max(now_ns + 1);
    }
    panic!("opening never ends");
}

fn finish(volume: &mut Volume<Host>) -> Completion {
    let mut now_ns = 0;
    for _ in 0..WAITS_MAX {
        if let Some(done) = volume.poll(now_ns) {
            return done;
        }
        now_ns = volume.deadline_ns().unwrap_or(now_ns).max(now_ns + 1);
    }
    panic!("a request never ends");
}

/// Damages the nodes and opens the volume. The input is a list of changes: a byte that names one
/// (modulo 9), a byte that names its target (node modulo 3; from 3 modulo 6 on its journal, else
/// one of its objects), then what it needs, numbers little-endian, blocks of 4 KiB.
///
/// 0. exclusive-or: block (1), offset (2), mask (1)
/// 1. wipe: block (1), blocks (1)
/// 2. copy blocks within the target: from (1), to (1), how many (1)
/// 3. cut the target: block (1)
/// 4. lose the node
/// 5. repair the checksum of the journal record at a block (1)
/// 6. take the target of another node
/// 7. roll the node back to before the last writes
/// 8. take the node of a clone that was opened and written to
///
/// True if the volume opened and read as it was, in spite of a change.
///
/// # Panics
/// A promise is broken.
pub fn check(data: &[u8]) -> bool {
    let base = base();
    let mut images = base.newest.clone();
    let mut input = Input(data);
    let mut has_clone = false;
    for _ in 0..32 {
        if input.is_empty() {
            break;
        }
        change(base, &mut images, &mut input);
        has_clone |= images.iter().zip(&base.forked).any(|(now, clone)| now == clone);
    }
    let damaged = images.iter().zip(&base.newest).filter(|(now, then)| now != then).count();
    let within_limit = damaged <= usize::from(PARITY_SHARDS) && !has_clone;
    let mut volume = match open(images, false, &mut Rng::new(2)) {
        Ok(volume) => volume,
        Err(error) => {
            assert!(!within_limit, "{damaged} nodes damaged, and it does not open: {error}");
            return false;
        }
    };
    let mut as_it_was = true;
    for (block, wanted) in base.content.chunks(BLOCK_BYTES).enumerate() {
        volume.submit_read(1, (block * BLOCK_BYTES) as u64, vec![0xaa; BLOCK_BYTES]);
        let done = finish(&mut volume);
        as_it_was &= done.result.is_ok() && done.buffer == wanted;
        if within_limit {
            assert!(as_it_was, "block {block} after damage to {damaged} nodes: {:?}", done.result);
        } else if done.result.is_ok() {
            let known = base.history.contains(&(block, done.buffer));
            assert!(known, "block {block} reads as nobody ever wrote it");
        }
    }
    as_it_was && damaged > 0
}

fn change(base: &Base, images: &mut [Image], input: &mut Input<'_>) {
    let (kind, target) = (input.byte() % 9, usize::from(input.byte()));
    let node = target % NODES;
    let in_journal = !(target / NODES).is_multiple_of(2);
    let nth = target / (2 * NODES);
    let other = images.get((node + 1) % NODES).cloned().unwrap_or_default();
    let Some(image) = images.get_mut(node) else { return };
    match kind {
        4 => *image = Image::default(),
        6 if in_journal => image.journal = other.journal,
        6 => image.objects = other.objects,
        7 => *image = base.older.get(node).cloned().unwrap_or_default(),
        8 => *image = base.forked.get(node).cloned().unwrap_or_default(),
        _ => {
            let objects = image.objects.len().max(1);
            let bytes = if in_journal {
                image.journal.as_mut().map(|(_, bytes)| bytes)
            } else {
                image.objects.values_mut().nth(nth % objects)
            };
            bytes.into_iter().for_each(|bytes| change_bytes(kind, bytes, input));
        }
    }
}

fn change_bytes(kind: u8, bytes: &mut Vec<u8>, input: &mut Input<'_>) {
    let at = usize::from(input.byte()) * BLOCK_BYTES;
    match kind {
        0 => {
            let (offset, mask) = (usize::from(input.u16()) % BLOCK_BYTES, input.byte());
            bytes.iter_mut().skip(at + offset).take(1).for_each(|byte| *byte ^= mask);
        }
        1 => {
            let len = usize::from(input.byte()) * BLOCK_BYTES;
            bytes.iter_mut().skip(at).take(len).for_each(|byte| *byte = 0);
        }
        2 => {
            let to = usize::from(input.byte()) * BLOCK_BYTES;
            let len = usize::from(input.byte()) * BLOCK_BYTES;
            let piece: Vec<u8> = bytes.iter().skip(at).take(len).copied().collect();
            let place = bytes.iter_mut().skip(to);
            place.zip(piece).for_each(|(byte, new)| *byte = new);
        }
        3 => bytes.truncate(at),
        _ => {
            let Some(header) = bytes.get_mut(at..at + BLOCK_BYTES) else { return };
            let (fields, sum) = header.split_at_mut(BLOCK_BYTES - 4);
            sum.copy_from_slice(&crc32c::crc32c(fields).to_le_bytes());
        }
    }
}
