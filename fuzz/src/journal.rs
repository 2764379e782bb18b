//! Opening a volume, with the replay of its journal, against any stores at all.
//!
//! A volume of 2 + 1 shards has content in its stripes and in its journal, all of it flushed. The
//! input damages the stores: it flips, wipes, copies and cuts, moves valid journal records about,
//! repairs their checksums, and rolls stores back. While no more stores are damaged than may be
//! lost, the volume must open and read as it was. Beyond that it may refuse; what it does return
//! must be what was once written there. It may also refuse a store of a clone that the key's owner
//! opened: nothing tells which of the two histories is the older one.

use std::collections::BTreeSet;
use std::sync::OnceLock;

use storage_vdev::sim::{Image, Rng, SimDisk, SimStore};
use storage_vdev::{BLOCK_BYTES, Geometry, Options, Randomness, StoreFile, Volume, VolumeKey};

use crate::bytes::Input;

const DATA_SHARDS: u8 = 2;
const PARITY_SHARDS: u8 = 1;
const STORES: usize = (DATA_SHARDS + PARITY_SHARDS) as usize;
const BLOCKS: usize = 24;

/// The undamaged volume.
struct Base {
    /// Its stores now, and as they were before the last writes.
    newest: Vec<Image>,
    older: Vec<Image>,
    /// Its stores after another continuation of `older`: a clone that somebody opened.
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
        let disk = SimDisk::new(STORES);
        let mut rng = Rng::new(1);
        let content = vec![0; BLOCKS * BLOCK_BYTES];
        let zero = vec![0; BLOCK_BYTES];
        let history = (0..BLOCKS).map(|block| (block, zero.clone())).collect();
        let none = Vec::new;
        let mut base = Self { newest: none(), older: none(), forked: none(), content, history };
        let mut volume = fresh_open(&disk, &mut rng);
        // Some of it reaches the stripes; the rest stays in the journal, as after a crash.
        base.write(&mut volume, &mut rng, 12);
        assert!(volume.close().is_ok());
        let mut volume = fresh_open(&disk, &mut rng);
        base.write(&mut volume, &mut rng, 4);
        base.older = images(&disk);
        base.write(&mut volume, &mut rng, 4);
        base.newest = images(&disk);
        let (content, clone) = (base.content.clone(), SimDisk::new(STORES));
        for (store, image) in base.older.iter().enumerate() {
            clone.set_image(store, image.clone());
        }
        let mut volume = fresh_open(&clone, &mut rng);
        base.write(&mut volume, &mut rng, 4);
        base.forked = images(&clone);
        base.content = content;
        base
    }

    fn write(&mut self, volume: &mut Volume<SimStore>, rng: &mut Rng, count: u32) {
        for _ in 0..count {
            let block = rng.below(BLOCKS as u64) as usize;
            let mut bytes = vec![0; BLOCK_BYTES];
            rng.fill(&mut bytes);
            volume.submit_write(1, (block * BLOCK_BYTES) as u64, &bytes);
            volume.submit_flush(2);
            while let Some(done) = volume.poll() {
                assert_eq!(done.result, Ok(()), "an undamaged volume takes every write");
            }
            let place = self.content.iter_mut().skip(block * BLOCK_BYTES);
            place.zip(&bytes).for_each(|(to, from)| *to = *from);
            self.history.insert((block, bytes));
        }
    }
}

fn images(disk: &SimDisk) -> Vec<Image> {
    (0..STORES).map(|store| disk.image(store)).collect()
}

fn options() -> Options {
    let size = (BLOCKS * BLOCK_BYTES) as u64;
    let geometry = Geometry::new(DATA_SHARDS, PARITY_SHARDS, size)
        .and_then(|geometry| geometry.with_journal_bytes(storage_vdev::JOURNAL_BYTES_MIN));
    let geometry = match geometry {
        Ok(geometry) => geometry,
        Err(error) => panic!("the shape was chosen to be right: {error}"),
    };
    Options { geometry, key: VolumeKey::new(&[7; 32]), create: true }
}

fn randomness(rng: &mut Rng) -> Randomness {
    let mut random = Randomness { salt: [0; 32], uuid: [0; 16] };
    rng.fill(&mut random.salt);
    rng.fill(&mut random.uuid);
    random
}

fn fresh_open(disk: &SimDisk, rng: &mut Rng) -> Volume<SimStore> {
    match Volume::open_or_create(disk.stores(), &options(), &randomness(rng)) {
        Ok(volume) => volume,
        Err(error) => panic!("an undamaged volume opens: {error}"),
    }
}

/// Damages the stores and opens the volume. The input is a list of changes: a byte that names one
/// (modulo 8), a byte that names its file (store modulo 3; from 3 modulo 6 on: the journal), then
/// what it needs, numbers little-endian, blocks of 4 KiB.
///
/// 0. exclusive-or: offset (2 and a byte for the block), mask (1)
/// 1. wipe: block (1), blocks (1)
/// 2. copy blocks within the file: from (1), to (1), how many (1)
/// 3. cut the file: block (1)
/// 4. lose the store
/// 5. repair the checksum of the journal record at a block (1)
/// 6. take the file of another store: which (1)
/// 7. roll the store back to before the last writes
/// 8. take the store of a clone that was opened and written to
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
    let disk = SimDisk::new(STORES);
    for (store, image) in images.into_iter().enumerate() {
        disk.set_image(store, image);
    }
    let options = Options { create: false, ..options() };
    let opened = Volume::open_or_create(disk.stores(), &options, &randomness(&mut Rng::new(2)));
    let within_limit = damaged <= usize::from(PARITY_SHARDS) && !has_clone;
    let mut volume = match opened {
        Ok(volume) => volume,
        Err(error) => {
            assert!(!within_limit, "{damaged} stores damaged, and it does not open: {error}");
            return false;
        }
    };
    let mut as_it_was = true;
    for (block, wanted) in base.content.chunks(BLOCK_BYTES).enumerate() {
        volume.submit_read(1, (block * BLOCK_BYTES) as u64, vec![0xaa; BLOCK_BYTES]);
        let Some(done) = volume.poll() else { panic!("a read completes") };
        as_it_was &= done.result.is_ok() && done.buffer == wanted;
        if within_limit {
            assert!(as_it_was, "block {block} after damage to {damaged} stores: {:?}", done.result);
        } else if done.result.is_ok() {
            let known = base.history.contains(&(block, done.buffer));
            assert!(known, "block {block} reads as nobody ever wrote it");
        }
    }
    as_it_was && damaged > 0
}

fn change(base: &Base, images: &mut [Image], input: &mut Input<'_>) {
    let (kind, target) = (input.byte() % 9, usize::from(input.byte()));
    let store = target % STORES;
    let file =
        if (target / STORES).is_multiple_of(2) { StoreFile::Shard } else { StoreFile::Journal };
    let other = images.get((store + 1) % STORES).cloned().unwrap_or_default();
    let Some(image) = images.get_mut(store) else { return };
    match kind {
        4 => *image = Image::default(),
        6 => {
            let mut other = other;
            if let Some(bytes) = other.file_mut(file) {
                image.set_file(file, std::mem::take(bytes));
            }
        }
        7 => *image = base.older.get(store).cloned().unwrap_or_default(),
        8 => *image = base.forked.get(store).cloned().unwrap_or_default(),
        _ => {
            let Some(bytes) = image.file_mut(file) else { return };
            change_file(kind, bytes, input);
        }
    }
}

fn change_file(kind: u8, bytes: &mut Vec<u8>, input: &mut Input<'_>) {
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
