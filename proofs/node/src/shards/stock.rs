//! The shards of one store: which there are, and in which bundles they are proven.
//!
//! ```text
//!            first seen          settled           read, and its checksum fits
//!   (no slot) ──────► Waiting ────────────► (a run) ──────────────────────► In a bundle
//!                        ▲   ▲                │ it does not fit                │
//!                        │   └── Doubted ◄────┘ (twice: Rotten, and told)      │
//!                        └── Torn ◄──────── a neighbour in the bundle is gone ─┘
//! ```
//!
//! A slot of another object begins anew, whatever it was. Only this type's owner changes it, on one thread.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use hypha_chain::B256;
use hypha_chain::tree::{Extent, ExtentKind};
use hypha_proofs::store::ExtentTree;
use storage_vdev::Uuid;
use storage_vdev::disk::{LOOK_SLOTS, Look, Seen};
use storage_vdev::node::ObjectKey;

use super::format::{Bundle, FILE_BYTES_MAX, Member};
use super::{Folder, MEMBERS_MAX, Pace, SLOTS_MAX};
use crate::direct::DirectReader;
use crate::filler::shelf::{read_at_most, write_whole};

/// So many shards are put into bundles after one pass over the index.
const CANDIDATES_MAX: usize = 1 << 16;
/// Space on a disk is counted in blocks.
const BLOCK_BYTES: u64 = 4096;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// Not proven yet, and seen since then, in seconds.
    Waiting(u32),
    /// Its bytes were not what its checksum says, at that time.
    Doubted(u32),
    /// They weren't a second time.
    Rotten,
    /// What it was in is no bundle any more: it is the first to be put into another.
    Torn,
    /// In this bundle.
    In(u32),
}

#[derive(Debug, Clone, Copy)]
struct Known {
    block: u32,
    len: u32,
    crc: u32,
    standing: Standing,
}

/// A bundle that is proven.
#[derive(Debug, Clone, Copy)]
struct Sealed {
    root: B256,
    bytes_len: u64,
    members: usize,
}

impl Sealed {
    /// Whether it is to be made anew with what comes.
    fn is_small(&self, pace: &Pace) -> bool {
        self.bytes_len < pace.bundle_bytes / 2 && self.members < MEMBERS_MAX / 2
    }
}

/// A shard that the disk has lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rotten {
    pub(super) key: ObjectKey,
}

/// The shards of one store.
pub(super) struct Stock {
    folder: Folder,
    store: Uuid,
    cache: PathBuf,
    /// By slot.
    known: Vec<Option<Known>>,
    bundles: BTreeMap<u32, Sealed>,
    /// Bundles that are no more, but that a challenge may still ask for; and until when.
    over: BTreeMap<u32, (B256, u64)>,
    next: u32,
    candidates: Vec<(ObjectKey, u32)>,
    fresh_bytes: u64,
    is_urgent: bool,
    next_partial_ns: u64,
    /// Bytes of all objects, whole blocks.
    stored_bytes: u64,
    /// Bytes that were proven and are gone, since this was last asked.
    lost_bytes: u64,
    is_full: bool,
    /// There was more to be put into bundles than one pass takes.
    is_behind: bool,
}

/// What one pass over the index goes by.
struct Pass<'a> {
    pace: &'a Pace,
    now_ns: u64,
    small: BTreeSet<u32>,
    torn: BTreeSet<u32>,
}

impl Stock {
    /// Reads what is kept of a store. What is damaged is removed, and hashed again.
    pub(super) fn open(
        folder: &Folder,
        store: Uuid,
        cache: &Path,
        until_ns: u64,
    ) -> io::Result<Self> {
        let name: String = store.iter().map(|byte| format!("{byte:02x}")).collect();
        let cache = cache.join(name);
        fs::create_dir_all(&cache)?;
        let mut stock = Self {
            folder: folder.clone(),
            store,
            cache,
            known: Vec::new(),
            bundles: BTreeMap::new(),
            over: BTreeMap::new(),
            next: 0,
            candidates: Vec::new(),
            fresh_bytes: 0,
            is_urgent: false,
            next_partial_ns: 0,
            stored_bytes: 0,
            lost_bytes: 0,
            is_full: false,
            is_behind: false,
        };
        let mut numbers = Vec::new();
        for entry in fs::read_dir(&stock.cache)? {
            let entry = entry?;
            match entry.file_name().to_str().and_then(parse_number) {
                Some(number) => numbers.push(number),
                // Written when the process ended; what is not ours stays.
                None if entry.path().extension().is_some_and(|it| it == "part") => {
                    fs::remove_file(entry.path())?;
                }
                None => {}
            }
        }
        numbers.sort_unstable();
        for number in numbers {
            stock.next = number.saturating_add(1);
            match stock.bundle(number) {
                Ok(bundle) => stock.insert(number, &bundle, until_ns),
                Err(error) => {
                    tracing::warn!(number, %error, "shards are hashed again");
                    fs::remove_file(stock.path(number))?;
                }
            }
        }
        Ok(stock)
    }

    pub(super) fn store(&self) -> Uuid {
        self.store
    }

    /// The bundles, as a plot lists them.
    pub(super) fn listed(&self) -> impl Iterator<Item = Extent> + '_ {
        self.bundles.values().map(|bundle| Extent {
            kind: ExtentKind::User,
            id: self.folder.reservation,
            bytes_len: bundle.bytes_len,
            root: bundle.root,
        })
    }

    /// All bundles whose bytes may be asked for: those that are proven, and those that were.
    pub(super) fn shown(&self) -> impl Iterator<Item = (B256, PathBuf)> + '_ {
        let proven = self.bundles.iter().map(|(number, it)| (it.root, *number));
        let over = self.over.iter().map(|(number, (root, _))| (*root, *number));
        // Of two with one root the proven one counts: what follows takes the place of what came before.
        over.chain(proven).map(|(root, number)| (root, self.path(number)))
    }

    /// Bytes of all objects, proven or not.
    pub(super) fn stored_bytes(&self) -> u64 {
        self.stored_bytes
    }

    /// Whether the store has more objects than are looked at.
    pub(super) fn is_full(&self) -> bool {
        self.is_full
    }

    /// Bytes that were proven and are gone, since this was last asked.
    pub(super) fn take_lost(&mut self) -> u64 {
        std::mem::take(&mut self.lost_bytes)
    }

    /// Looks through the whole index. Returns whether it got to the end before `go_on` said no.
    pub(super) fn pass(
        &mut self,
        look: &Look,
        pace: &Pace,
        now_ns: u64,
        mut go_on: impl FnMut() -> bool,
    ) -> io::Result<bool> {
        self.candidates.clear();
        (self.fresh_bytes, self.is_urgent, self.stored_bytes) = (0, false, 0);
        let small = self.bundles.iter().filter(|(_, it)| it.is_small(pace));
        let small = small.map(|(number, _)| *number).collect();
        let mut pass = Pass { pace, now_ns, small, torn: BTreeSet::new() };
        let mut end = 0;
        (self.is_full, self.is_behind) = (false, false);
        while let Some(step) = look.step(end)? {
            if !go_on() {
                return Ok(false);
            }
            if end >= SLOTS_MAX {
                self.is_full = true;
                break;
            }
            for (slot, seen) in (end..).zip(&step) {
                self.compare(slot, seen.as_ref(), &mut pass);
            }
            end += LOOK_SLOTS;
        }
        for slot in end..self.known.len() as u32 {
            self.compare(slot, None, &mut pass);
        }
        self.known.truncate(end as usize);
        self.tear(&pass.torn, now_ns.saturating_add(pace.keep_ns));
        self.forget(now_ns)?;
        Ok(true)
    }

    fn compare(&mut self, slot: u32, seen: Option<&Seen>, pass: &mut Pass<'_>) {
        let at = slot as usize;
        if at >= self.known.len() {
            self.known.resize(at + 1, None);
        }
        let Some(place) = self.known.get_mut(at) else { return };
        // An empty object has no byte to be drawn.
        let seen = seen.filter(|it| it.len > 0);
        let now = seen.map(|it| (it.block, it.len, it.crc));
        if place.as_ref().map(|it| (it.block, it.len, it.crc)) != now {
            if let Some(Known { standing: Standing::In(number), len, .. }) = *place {
                pass.torn.insert(number);
                self.lost_bytes += u64::from(len);
            }
            let standing = Standing::Waiting(seconds(pass.now_ns));
            *place = now.map(|(block, len, crc)| Known { block, len, crc, standing });
        }
        let (Some(known), Some(seen)) = (*place, seen) else { return };
        self.stored_bytes += u64::from(known.len).next_multiple_of(BLOCK_BYTES);
        let is_candidate = match known.standing {
            Standing::Waiting(since) | Standing::Doubted(since) => {
                let settled =
                    seconds(pass.now_ns).saturating_sub(since) >= seconds(pass.pace.settle_ns);
                self.fresh_bytes += if settled { u64::from(known.len) } else { 0 };
                settled
            }
            Standing::Torn => {
                self.is_urgent = true;
                true
            }
            Standing::In(number) => pass.small.contains(&number),
            Standing::Rotten => false,
        };
        if is_candidate && self.candidates.len() < CANDIDATES_MAX {
            self.candidates.push((seen.key, slot));
        } else if is_candidate {
            self.is_behind = true;
        }
    }

    /// Whether shards wait because what they were in is no bundle any more: the next pass finds them.
    pub(super) fn is_torn(&self) -> bool {
        let is_torn = |it: &Option<Known>| it.is_some_and(|it| it.standing == Standing::Torn);
        self.known.iter().any(is_torn)
    }

    /// Whether there was more to be put into bundles than one pass takes.
    pub(super) fn is_behind(&self) -> bool {
        self.is_behind
    }

    /// What to put into bundles after a pass, each a run of shards of about [`Pace::bundle_bytes`]. A last run
    /// that is small waits for more to come, for a while.
    pub(super) fn runs(&mut self, pace: &Pace, now_ns: u64) -> Vec<Vec<(ObjectKey, u32)>> {
        let is_whole = self.fresh_bytes >= pace.bundle_bytes;
        let is_due = self.fresh_bytes > 0 && now_ns >= self.next_partial_ns;
        if !(is_whole || is_due || self.is_urgent) {
            return Vec::new();
        }
        self.next_partial_ns = now_ns.saturating_add(pace.partial_ns);
        let mut candidates = std::mem::take(&mut self.candidates);
        // Shards of one volume, of about one time: they go together.
        candidates.sort_unstable();
        let mut runs: Vec<Vec<(ObjectKey, u32)>> = Vec::new();
        let mut bytes = u64::MAX;
        for candidate in candidates {
            let Some(known) = self.known(candidate.1) else { continue };
            let members = runs.last().map_or(0, Vec::len);
            bytes = bytes.saturating_add(u64::from(known.len));
            if bytes > pace.bundle_bytes || members >= MEMBERS_MAX {
                runs.push(Vec::new());
                bytes = u64::from(known.len);
            }
            if let Some(run) = runs.last_mut() {
                run.push(candidate);
            }
        }
        runs
    }

    /// Reads a run of shards, and keeps the hashes over them: when this returns, they are on the disk.
    /// Shards that are not what their checksum says are left out; those that were left out before, too,
    /// are returned, with how many bytes were read.
    pub(super) fn seal(
        &mut self,
        look: &Look,
        run: &[(ObjectKey, u32)],
        (now_ns, until_ns): (u64, u64),
        mut go_on: impl FnMut() -> bool,
    ) -> io::Result<(Vec<Rotten>, u64)> {
        let mut reader = DirectReader::new(look.file());
        let (mut bytes, mut members) = (Vec::new(), Vec::new());
        let (mut before, mut rotten) = (BTreeSet::new(), Vec::new());
        for (key, slot) in run {
            let Some(Known { block, len, crc, standing }) = self.known(*slot) else { continue };
            if !go_on() {
                return Ok((rotten, bytes.len() as u64));
            }
            if let Standing::In(number) = standing {
                before.insert(number);
            }
            let member = Member { slot: *slot, block, len, crc };
            if append(&mut reader, &member, &mut bytes) {
                members.push(member);
            } else if let Standing::Doubted(_) = standing {
                self.stand(*slot, Standing::Rotten);
                rotten.push(Rotten { key: *key });
            } else {
                self.stand(*slot, Standing::Doubted(seconds(now_ns)));
            }
        }
        if !members.is_empty() {
            let bundle = Bundle { store: self.store, members, tree: ExtentTree::of(&bytes) };
            let number = self.next;
            let path = self.path(number);
            let named = |error| io::Error::other(format!("{}: {error}", path.display()));
            write_whole(&path, &bundle.encode()).map_err(named)?;
            self.next = number.saturating_add(1);
            self.insert(number, &bundle, until_ns);
        }
        self.tear(&before, until_ns);
        Ok((rotten, bytes.len() as u64))
    }

    /// Reads a bundle with this root, and gives it up if it is not what it was; what of it is lost is
    /// found when the rest is put into another. Returns whether it is whole.
    pub(super) fn verify(
        &mut self,
        look: &Look,
        root: &B256,
        (now_ns, until_ns): (u64, u64),
        mut go_on: impl FnMut() -> bool,
    ) -> bool {
        let found = self.bundles.iter().find(|(_, it)| it.root == *root);
        let Some(number) = found.map(|(number, _)| *number) else { return true };
        let is_whole = self.bundle(number).is_ok_and(|bundle| {
            let mut reader = DirectReader::new(look.file());
            let mut bytes = Vec::new();
            for member in &bundle.members {
                if !go_on() {
                    return true;
                }
                if !append(&mut reader, member, &mut bytes) {
                    self.stand(member.slot, Standing::Doubted(seconds(now_ns)));
                    self.lost_bytes += u64::from(member.len);
                }
            }
            ExtentTree::of(&bytes) == bundle.tree
        });
        if !is_whole {
            self.tear(&BTreeSet::from([number]), until_ns);
        }
        is_whole
    }

    /// A bundle's file.
    fn bundle(&self, number: u32) -> io::Result<Bundle> {
        let bundle = read_bundle(&self.path(number))?;
        let is_ours = bundle.store == self.store;
        let is_inside = bundle.members.iter().all(|member| member.slot < SLOTS_MAX);
        if is_ours && is_inside { Ok(bundle) } else { Err(io::ErrorKind::InvalidData.into()) }
    }

    fn insert(&mut self, number: u32, bundle: &Bundle, until_ns: u64) {
        let (root, bytes_len) = (bundle.tree.root(), bundle.tree.bytes_len());
        let sealed = Sealed { root, bytes_len, members: bundle.members.len() };
        self.bundles.insert(number, sealed);
        let mut before = BTreeSet::new();
        for Member { slot, block, len, crc } in &bundle.members {
            let at = *slot as usize;
            if at >= self.known.len() {
                self.known.resize(at + 1, None);
            }
            let standing = Standing::In(number);
            let known = Known { block: *block, len: *len, crc: *crc, standing };
            let old = self.known.get_mut(at).and_then(|place| place.replace(known));
            if let Some(Known { standing: Standing::In(old), .. }) = old {
                before.insert(old);
            }
        }
        before.remove(&number);
        self.tear(&before, until_ns);
    }

    /// Bundles that are no more. Shards that are left of them are the first to be put into others.
    fn tear(&mut self, torn: &BTreeSet<u32>, until_ns: u64) {
        if torn.is_empty() {
            return;
        }
        for number in torn {
            if let Some(bundle) = self.bundles.remove(number) {
                self.over.insert(*number, (bundle.root, until_ns));
            }
        }
        for known in self.known.iter_mut().flatten() {
            if matches!(known.standing, Standing::In(number) if torn.contains(&number)) {
                known.standing = Standing::Torn;
            }
        }
    }

    /// Removes what nobody can ask for any more.
    fn forget(&mut self, now_ns: u64) -> io::Result<()> {
        let due = self.over.iter().filter(|(_, (_, until))| *until <= now_ns);
        let due: Vec<u32> = due.map(|(number, _)| *number).collect();
        for number in due {
            self.over.remove(&number);
            fs::remove_file(self.path(number))?;
        }
        Ok(())
    }

    fn known(&self, slot: u32) -> Option<Known> {
        self.known.get(slot as usize).copied().flatten()
    }

    fn stand(&mut self, slot: u32, standing: Standing) {
        if let Some(known) = self.known.get_mut(slot as usize).and_then(Option::as_mut) {
            known.standing = standing;
        }
    }

    fn path(&self, number: u32) -> PathBuf {
        self.cache.join(format!("{number:010}"))
    }
}

/// Reads a bundle's file.
pub(super) fn read_bundle(path: &Path) -> io::Result<Bundle> {
    let bytes = read_at_most(path, FILE_BYTES_MAX)?;
    Bundle::decode(&bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// Appends a shard's bytes, if they are there and are what its checksum says.
fn append(reader: &mut DirectReader<'_>, member: &Member, bytes: &mut Vec<u8>) -> bool {
    let before = bytes.len();
    let is_read = reader.append(member.range(), bytes).is_ok();
    let is_it = bytes.get(before..).is_some_and(|read| crc32c::crc32c(read) == member.crc);
    if !(is_read && is_it) {
        bytes.truncate(before);
    }
    is_read && is_it
}

/// Shards are many, and a second is exact enough.
fn seconds(ns: u64) -> u32 {
    u32::try_from(ns / 1_000_000_000).unwrap_or(u32::MAX)
}

fn parse_number(name: &str) -> Option<u32> {
    let is_number = name.len() == 10 && name.bytes().all(|byte| byte.is_ascii_digit());
    name.parse().ok().filter(|_| is_number)
}
