//! Opening: look at everything, decide, and only then change anything.
//!
//! 1. Read the superblocks; the newest one that enough stores follow says what the volume is.
//! 2. Read the slot headers; the newest committed version of each stripe makes the map.
//! 3. Walk the journal copies; replay what is in them into the overlay.
//! 4. From here on write: make lost stores anew, bring every store to the newest superblock,
//!    complete the journal copies.
//! 5. Write the superblock of this opening, with the next epoch and a fresh salt.
//! 6. Erase the headers that a crashed checkpoint left.
//!
//! A crash anywhere in 4 and 5 leaves what step 1 found, or what step 5 made. All stores are at
//! one generation before the next is written, so a store is never more than one behind.

use std::collections::{BTreeSet, VecDeque};

use super::read::Decoded;
use super::scan::scan;
use super::select::{Found, LostShard, Reason, Selection, select};
use super::{RequestError, Volume};
use crate::codec::stripe::Codec;
use crate::dir::DirError;
use crate::geometry::{Geometry, SLOT_HEADER_BYTES, SUPERBLOCK_BYTES, TAG_BYTES};
use crate::journal::Journal;
use crate::journal::replay::{CopyRepair, walk};
use crate::keys::{KeyRing, Opening, Uuid, VolumeKey};
use crate::overlay::Overlay;
use crate::shards::{Fault, Operation, ShardSet};
use crate::store::{Store, StoreFile};
use crate::superblock::{JournalAnchor, Superblock};

/// What volume is to be opened.
#[derive(Debug, Clone)]
pub struct Options {
    /// Its shape. The journal's size counts only when the volume is made.
    pub geometry: Geometry,
    /// Its key.
    pub key: VolumeKey,
    /// Whether it is made if none of the stores holds anything.
    pub create: bool,
}

/// Fresh random bytes for one open, from a cryptographic source; never given twice.
#[derive(Clone)]
pub struct Randomness {
    /// The salt of this opening's keys.
    pub salt: [u8; 32],
    /// The uuid, if the volume is made.
    pub uuid: Uuid,
}

/// Why a volume can't be opened. Nothing was changed, unless the error is `Create` or `Stopped`.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The directories are refused.
    #[error(transparent)]
    Directory(#[from] DirError),
    /// The number of stores isn't k + m.
    #[error("{found} directories were given and the volume has {wanted} shards")]
    StoreCount {
        /// How many were given.
        found: usize,
        /// How many shards there are.
        wanted: usize,
    },
    /// A store was written by a newer (or older) build.
    #[error("{store} has format version {version}, and this build reads version 1")]
    Version {
        /// The store's name.
        store: String,
        /// The version found.
        version: u16,
    },
    /// The key is another volume's.
    #[error("the volume key is wrong")]
    WrongKey,
    /// There is no volume, and none was to be made.
    #[error("there is no volume in these directories")]
    NotFound,
    /// The volume has another shape than was asked for.
    #[error(
        "the volume has {}+{} shards and {} bytes, not {}+{} shards and {} bytes",
        found.data_shards(), found.parity_shards(), found.size_bytes(),
        wanted.data_shards(), wanted.parity_shards(), wanted.size_bytes()
    )]
    Shape {
        /// What is there.
        found: Geometry,
        /// What was asked for.
        wanted: Geometry,
    },
    /// More stores are lost than there are parity shards.
    #[error("{} directories are lost and {tolerated} may be: {}", lost.len(), Listed(lost))]
    TooManyLost {
        /// Which, and why.
        lost: Vec<LostShard>,
        /// How many may be lost.
        tolerated: usize,
    },
    /// The stores hold two states that both claim to be the newest.
    #[error(
        "the directories hold two histories of the volume, or two volumes: some were opened \
         without the others"
    )]
    Diverged,
    /// Slot headers are lost, or old ones came back, on more stores than may be.
    #[error("stripe headers are lost on too many directories ({found} of {expected} found)")]
    MapDamaged {
        /// Stripes found.
        found: u64,
        /// Stripes that the superblock counts.
        expected: u64,
    },
    /// Journal records that were durable are gone on more stores than may be.
    #[error("the journal is lost on too many directories")]
    JournalLost,
    /// A new volume could not be made.
    #[error("the volume could not be made in {store}")]
    Create {
        /// The store that failed.
        store: String,
    },
    /// Too many stores failed while the volume was being opened.
    #[error("too many directories failed while the volume was being opened")]
    Stopped(#[source] RequestError),
}

struct Listed<'a>(&'a [LostShard]);

impl std::fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (position, lost) in self.0.iter().enumerate() {
            write!(f, "{}{lost}", if position == 0 { "" } else { "; " })?;
        }
        Ok(())
    }
}

impl<S: Store> Volume<S> {
    /// Opens the volume on `stores` (one for each shard, in shard order), or makes it.
    ///
    /// A store that is lost, for whatever [`Reason`], is made anew and filled by
    /// [`Volume::repair_step`], as long as no more than *m* are.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open_or_create(
        stores: Vec<S>,
        options: &Options,
        random: &Randomness,
    ) -> Result<Self, OpenError> {
        let wanted = options.geometry.shards();
        if stores.len() != wanted {
            return Err(OpenError::StoreCount { found: stores.len(), wanted });
        }
        let mut shards = ShardSet::new(stores);
        let found = match select(&shards, &options.geometry, &options.key)? {
            Found::Nothing if options.create => {
                create(&mut shards, options, random)?;
                select(&shards, &options.geometry, &options.key)?
            }
            found => found,
        };
        match found {
            Found::Nothing => Err(OpenError::NotFound),
            Found::Volume(selection) => open(shards, *selection, options, random),
        }
    }
}

/// Makes the shard files. The first superblock is in a file before it has its name.
fn create<S: Store>(
    shards: &mut ShardSet<S>,
    options: &Options,
    random: &Randomness,
) -> Result<(), OpenError> {
    let geometry = options.geometry;
    let never = Opening { epoch: 0, salt: [0; 32] };
    let first = Superblock {
        geometry,
        uuid: random.uuid,
        shard: 0,
        generation: 1,
        opening: Opening { epoch: 1, salt: random.salt },
        parent: never,
        parent_generation: 0,
        committed: 0,
        mapped: 0,
        map_sum: 0,
        journal: JournalAnchor { offset: 0, sequence: 1, tag: [0; TAG_BYTES] },
        journal_epoch_start: 1,
        journal_epoch_tag: [0; TAG_BYTES],
        members: geometry.all_shards(),
    };
    for shard in 0..shards.len() {
        let superblock = Superblock { shard: shard as u8, ..first }.encode(&options.key);
        let mut head = vec![0; SUPERBLOCK_BYTES];
        head.extend_from_slice(&superblock);
        if !shards.create(shard, StoreFile::Shard, geometry.shard_file_bytes(), &head) {
            return Err(OpenError::Create { store: shards.name(shard) });
        }
    }
    Ok(())
}

fn open<S: Store>(
    mut shards: ShardSet<S>,
    mut selection: Selection,
    options: &Options,
    random: &Randomness,
) -> Result<Volume<S>, OpenError> {
    let newest = selection.newest;
    let geometry = newest.geometry;
    let mut keys = KeyRing::new(&options.key, newest.uuid);
    let found = scan(&shards, &selection, &mut keys)?;
    selection.leave_out(&shards, found.left_out);
    for (shard, own) in selection.shards.iter().enumerate() {
        if let Err(Reason::Unreadable(kind)) = own {
            shards.give_up(shard, Fault { operation: Operation::Open, kind: *kind });
        }
    }
    let copies = journal_copies(&shards, &geometry);
    let replay = walk(&shards, &newest, copies, &mut keys).ok_or(OpenError::JournalLost)?;
    let opening = Opening { epoch: newest.opening.epoch + 1, salt: random.salt };
    let own = keys.add(opening);
    make_lost_stores(&mut shards, &selection);
    make_journals(&mut shards, &geometry, copies);
    let mut volume = Volume {
        geometry,
        codec: Codec::new(&geometry),
        keys,
        opening: own,
        shards,
        superblock: newest,
        journal: Journal::new(&geometry, replay.head, copies),
        overlay: Overlay::new(geometry.stripe_blocks()),
        next_sequence: found.last_sequence + 1,
        map: found.map,
        checkpoint: None,
        retired: Vec::new(),
        degraded: BTreeSet::new(),
        rebuild_wanted: false,
        lost: BTreeSet::new(),
        scrub_next: None,
        decoded: None::<Decoded>,
        units: Vec::new(),
        completions: VecDeque::new(),
        waiting_flushes: Vec::new(),
        stopped: false,
    };
    volume.level(&selection, &replay.repairs);
    volume.superblock = Superblock {
        generation: newest.generation + 1,
        opening,
        parent: newest.opening,
        parent_generation: newest.generation,
        journal_epoch_start: replay.head.sequence,
        journal_epoch_tag: replay.head.tag,
        members: volume.shards.usable(),
        ..newest
    };
    volume.write_superblocks(u32::MAX);
    volume.check_stores().map_err(OpenError::Stopped)?;
    volume.erase(&found.uncommitted);
    volume.check_stores().map_err(OpenError::Stopped)?;
    volume.find_degraded();
    for record in &replay.records {
        volume.replay(record);
    }
    Ok(volume)
}

/// The shards that are to hold a journal copy: the first m + 1 that work.
fn journal_copies<S: Store>(shards: &ShardSet<S>, geometry: &Geometry) -> u32 {
    let count = usize::from(geometry.parity_shards()) + 1;
    shards.usable_in(u32::MAX).take(count).fold(0, |mask, shard| mask | 1 << shard)
}

/// Empties the shard files of lost stores. They say nothing until they get a superblock.
fn make_lost_stores<S: Store>(shards: &mut ShardSet<S>, selection: &Selection) {
    let len = selection.newest.geometry.shard_file_bytes();
    for (shard, own) in selection.shards.iter().enumerate() {
        match own {
            Ok(_) | Err(Reason::Unreadable(_)) => continue,
            Err(Reason::Foreign | Reason::Forged | Reason::Version(_)) => {
                shards.set_aside(shard);
            }
            Err(_) => {}
        }
        shards.create(shard, StoreFile::Shard, len, &[]);
    }
}

/// Makes the journal files that are missing, written all over, so that a flush later writes data
/// only and no allocation.
fn make_journals<S: Store>(shards: &mut ShardSet<S>, geometry: &Geometry, copies: u32) {
    static CHUNK: [u8; 64 << 10] = [0; 64 << 10];
    let len = geometry.journal_bytes();
    for shard in shards.usable_in(copies) {
        if matches!(shards.file_len(shard, StoreFile::Journal), Ok(Some(found)) if found == len) {
            continue;
        }
        shards.create(shard, StoreFile::Journal, len, &[]);
        let mut offset = 0;
        while offset < len {
            let count = (len - offset).min(CHUNK.len() as u64);
            let zeroes = CHUNK.get(..count as usize).unwrap_or_default();
            if !shards.write(shard, StoreFile::Journal, offset, zeroes) {
                break;
            }
            offset += count;
        }
        shards.sync(1 << shard, StoreFile::Journal);
    }
}

impl<S: Store> Volume<S> {
    /// Brings all stores to the state that was found, and makes it durable.
    fn level(&mut self, selection: &Selection, repairs: &[CopyRepair]) {
        for CopyRepair { offset, bytes, lacking } in repairs {
            for shard in self.shards.usable_in(*lacking) {
                self.shards.write(shard, StoreFile::Journal, *offset, bytes);
            }
        }
        let behind = |own: &Result<Superblock, Reason>| {
            let newest = (selection.newest.generation, selection.newest.opening);
            own.is_ok_and(|own| (own.generation, own.opening) != newest)
        };
        let laggards = selection.shards.iter().enumerate().filter(|(_, own)| behind(own));
        let laggards = laggards.fold(0, |mask, (shard, _)| mask | 1 << shard);
        self.write_superblocks(laggards);
        // Also what was found: a process that was killed leaves writes in the page cache that were
        // never synced, and the next superblock builds on them.
        self.shards.sync(self.journal.copies(), StoreFile::Journal);
        self.shards.sync(u32::MAX, StoreFile::Shard);
    }

    /// Erases headers that a crashed checkpoint left, before a superblock could seem to commit them.
    ///
    /// Only now that a superblock of this opening is durable: the one that commits them may be on a
    /// store that can't be reached, or hides it. If it came back with nothing newer around, the
    /// volume would be what it says.
    fn erase(&mut self, uncommitted: &[(usize, u32)]) {
        for (shard, slot) in uncommitted {
            let offset = self.geometry.header_offset(*slot);
            self.shards.write(*shard, StoreFile::Shard, offset, &[0; SLOT_HEADER_BYTES]);
        }
        if !uncommitted.is_empty() {
            self.shards.sync(u32::MAX, StoreFile::Shard);
        }
    }

    fn find_degraded(&mut self) {
        let all = self.geometry.all_shards();
        let degraded = self.map.range(0, u64::MAX).filter(|(_, mapping)| mapping.present != all);
        self.degraded = degraded.map(|(stripe, _)| stripe).collect();
        self.rebuild_wanted = !self.degraded.is_empty();
    }
}

impl std::fmt::Debug for Randomness {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Randomness(..)")
    }
}
