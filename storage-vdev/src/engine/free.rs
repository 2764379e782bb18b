//! Freeing segments that nothing needs: who still needs one, what a superblock announces, and the
//! deletion of the shards.
//!
//! A segment goes through these steps. Nothing of it is live in a checkpoint whose superblock is
//! durable; no snapshot needs it; a durable superblock announces its deletion, and from then on
//! the table of segments doesn't have it; one lease later its shards are deleted; the next
//! superblock no longer names it. After a crash anywhere between it is found dead again, or
//! announced, and deleting what is not there is no error.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

use super::executor::{Either, either, join_all};
use super::read::LostSegment;
use super::request::RequestError;
use super::state::{Engine, State};
use super::superblock::{DeleteIntent, Snapshot, Superblock};
use crate::extent_map::{Location, MapError, PageAddress, Pins, Root};
use crate::node::{NodeIndex, ObjectKey, Request};
use crate::segment::{HEAD_BYTES, Place, UNIT_BYTES};

/// How long a node may take to delete objects.
const DELETE_NS_MAX: u64 = 10_000_000_000;
/// How often deletions are looked after if nothing happens.
const TICK_NS: u64 = 1_000_000_000;
/// The most segments that a superblock announces. Beyond, shards on nodes that are down for long
/// stay there until a scrub finds them.
const INTENTS_MAX: usize = 4096;
/// The most objects that one request deletes.
const KEYS_MAX: usize = 256;

/// A segment whose shards are to be deleted.
#[derive(Debug, Clone, Copy)]
struct Doomed {
    intent: DeleteIntent,
    /// Since when a durable superblock says so.
    announced_ns: Option<u64>,
    /// The shards that are not known to be gone.
    left: u32,
    /// About how many bytes each of them has; 0 if that isn't known.
    shard_bytes: i64,
    /// The table of segments that the last superblock names doesn't have it.
    unlisted: bool,
}

/// What a snapshot needs.
#[derive(Debug)]
struct SnapshotPins {
    root: Root,
    pins: Pins,
}

/// Segments that are to go, and those that may not.
#[derive(Debug, Default)]
pub(super) struct Freeing {
    doomed: VecDeque<Doomed>,
    snapshots: Vec<SnapshotPins>,
    /// Segments that a snapshot was found to need, and where its table is: it needs them as long
    /// as it is there.
    held: BTreeMap<u64, Location>,
}

/// Pages that are wanted to know whether a snapshot needs a segment.
struct WantedPins {
    /// Which snapshot's.
    root: Root,
    pages: Vec<(PageAddress, Location)>,
}

impl Freeing {
    /// What a superblock says.
    fn new(superblock: &Superblock, now_ns: u64) -> Self {
        let doomed = superblock.deletes.iter().map(|intent| Doomed {
            intent: *intent,
            announced_ns: Some(now_ns),
            left: all_shards(superblock.shape.shards()),
            shard_bytes: 0,
            unlisted: false,
        });
        let mut freeing = Self { doomed: doomed.collect(), ..Self::default() };
        freeing.set_snapshots(&superblock.snapshots);
        freeing
    }

    /// What the next superblock says.
    pub(super) fn intents(&self) -> Vec<DeleteIntent> {
        self.doomed.iter().map(|doomed| doomed.intent).collect()
    }

    /// Whether a segment of this range is still to be deleted: its opening must be known.
    pub(super) fn has_any(&self, range: &std::ops::Range<u64>) -> bool {
        self.doomed.iter().any(|doomed| range.contains(&doomed.intent.sequence))
    }

    /// There are other snapshots than before.
    pub(super) fn set_snapshots(&mut self, snapshots: &[Snapshot]) {
        let is_kept = |root: &Root| snapshots.iter().any(|kept| kept.root == *root);
        self.snapshots.retain(|old| is_kept(&old.root));
        for snapshot in snapshots {
            if !self.snapshots.iter().any(|known| known.root == snapshot.root) {
                let (root, pins) = (snapshot.root, Pins::new(&snapshot.root));
                self.snapshots.push(SnapshotPins { root, pins });
            }
        }
        let kept = &self.snapshots;
        self.held.retain(|_, table| kept.iter().any(|one| one.root.usage == Some(*table)));
    }

    /// Whether a snapshot is known to need the segment.
    pub(super) fn is_held(&self, sequence: u64) -> bool {
        self.held.contains_key(&sequence)
    }

    /// How many dead segments are known to be held.
    pub(super) fn held_len(&self) -> usize {
        self.held.len()
    }

    /// Whether a snapshot needs the segment, if that can be said.
    fn is_pinned(&mut self, sequence: u64) -> Result<bool, (Root, MapError)> {
        if self.held.contains_key(&sequence) {
            return Ok(true);
        }
        for SnapshotPins { root, pins } in &mut self.snapshots {
            let live = pins.live(sequence).map_err(|error| (*root, error))?;
            if live > 0
                && let Some(table) = root.usage
            {
                self.held.insert(sequence, table);
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether something may be deleted at `now_ns`.
    fn due(&self, now_ns: u64, lease_ns: u64) -> bool {
        self.doomed.iter().any(|doomed| doomed.is_due(now_ns, lease_ns))
    }
}

impl Doomed {
    fn is_due(&self, now_ns: u64, lease_ns: u64) -> bool {
        self.announced_ns.is_some_and(|since_ns| now_ns >= since_ns.saturating_add(lease_ns))
    }
}

fn all_shards(shards: u8) -> u32 {
    (0..shards).fold(0, |all, shard| all | 1 << shard)
}

impl State {
    /// Goes on with the deletions that the superblock announces.
    pub(super) fn resume_freeing(&mut self, now_ns: u64) {
        self.freeing = Freeing::new(&self.superblock, now_ns);
        for intent in &self.superblock.deletes {
            self.map.usage_mut().remove(intent.sequence);
        }
    }

    /// How long an announced deletion waits: nobody who may still read needs the segment then.
    fn deletion_delay_ns(&self) -> u64 {
        if self.lease.is_some() { self.superblock.lease_ns } else { 0 }
    }

    /// Whether shards are still to be deleted on nodes that are up.
    pub(super) fn is_deleting(&self) -> bool {
        let shards = || 0..self.shape.shards();
        self.freeing.doomed.iter().any(|doomed| {
            shards().any(|shard| {
                let holder = self.nodes.holder(doomed.intent.sequence, shard);
                doomed.left >> shard & 1 == 1 && self.nodes.is_usable(holder)
            })
        })
    }

    /// Whether this volume wrote the segment, and not a clone's base.
    pub(super) fn is_own(&self, sequence: u64) -> bool {
        self.openings.of(sequence).is_some_and(|(past, _)| past.uuid == self.superblock.uuid)
    }

    /// Announces the deletion of segments in the next superblock. The table has them no more.
    fn doom(&mut self, dead: &[u64]) -> bool {
        let before = self.freeing.doomed.len();
        for sequence in dead {
            let Some((past, _)) = self.openings.of(*sequence) else { continue };
            let (uuid, epoch) = (past.uuid, past.opening.epoch);
            let blocks = self.map.usage().get(*sequence).map_or(0, |segment| segment.blocks);
            if !self.map.usage_mut().remove(*sequence) {
                // A roll-back brought it back to life.
                continue;
            }
            // What a clone's base wrote is the base's to delete.
            if uuid != self.superblock.uuid || self.freeing.has_any(&(*sequence..*sequence + 1)) {
                continue;
            }
            let units = usize::from(self.shape.rows(blocks)) * UNIT_BYTES;
            self.freeing.doomed.push_back(Doomed {
                intent: DeleteIntent { sequence: *sequence, epoch },
                announced_ns: None,
                left: all_shards(self.shape.shards()),
                shard_bytes: (units + HEAD_BYTES) as i64,
                unlisted: false,
            });
        }
        self.freeing.doomed.len() > before
    }

    /// What is to be deleted now on each node that is up.
    fn due_deletions(&mut self, now_ns: u64) -> Vec<(NodeIndex, Vec<ObjectKey>)> {
        let delay_ns = self.deletion_delay_ns();
        let mut requests: BTreeMap<NodeIndex, Vec<ObjectKey>> = BTreeMap::new();
        for doomed in self.freeing.doomed.iter().filter(|one| one.is_due(now_ns, delay_ns)) {
            let sequence = doomed.intent.sequence;
            for shard in (0..self.shape.shards()).filter(|shard| doomed.left >> shard & 1 == 1) {
                let node = self.nodes.holder(sequence, shard);
                let keys = requests.entry(node).or_default();
                if keys.len() < KEYS_MAX && self.nodes.is_usable(node) {
                    let (volume, epoch) = (self.superblock.uuid, doomed.intent.epoch);
                    keys.push(ObjectKey { volume, epoch, sequence, shard });
                }
            }
        }
        requests.into_iter().filter(|(_, keys)| !keys.is_empty()).collect()
    }

    /// Objects are gone from a node.
    fn note_deleted(&mut self, node: NodeIndex, keys: &[ObjectKey]) {
        for key in keys {
            let is = |one: &&mut Doomed| one.intent.sequence == key.sequence;
            if let Some(doomed) = self.freeing.doomed.iter_mut().find(is) {
                doomed.left &= !(1 << key.shard);
                self.nodes.note_used(node, -doomed.shard_bytes);
            }
        }
        self.forget_deleted();
    }

    /// Forgets deletions that are done and that no stored table needs to be told of.
    fn forget_deleted(&mut self) {
        self.freeing.doomed.retain(|doomed| doomed.left != 0 || !doomed.unlisted);
        while self.freeing.doomed.len() > INTENTS_MAX {
            self.freeing.doomed.pop_front();
        }
        let (freeing, usage) = (&self.freeing, self.map.usage());
        self.openings.prune(|range| {
            let stored = usage.from(range.start).next();
            stored.is_some_and(|(sequence, _)| sequence < range.end) || freeing.has_any(&range)
        });
    }
}

impl Engine {
    /// Stores the map and a changed superblock, and frees what nothing needs then.
    pub(super) async fn checkpoint_and_free(
        self: &Rc<Self>,
        change: impl FnOnce(&mut State, &mut Superblock),
    ) -> Result<(), RequestError> {
        // What is doomed by now is not in the table that this stores.
        let doomed: BTreeSet<u64> = self.with(|state| {
            state.freeing.doomed.iter().map(|doomed| doomed.intent.sequence).collect()
        });
        let dead = self.checkpoint(change).await?;
        self.with(|state| {
            for one in &mut state.freeing.doomed {
                one.unlisted |= doomed.contains(&one.intent.sequence);
            }
            state.forget_deleted();
        });
        self.free(dead).await
    }

    /// Announces the deletion of segments that a durable root doesn't need, unless a snapshot does.
    pub(super) async fn free(self: &Rc<Self>, mut dead: Vec<u64>) -> Result<(), RequestError> {
        self.with(|state| {
            let State { freeing, superblock, .. } = state;
            freeing.set_snapshots(&superblock.snapshots);
        });
        if self.with(|state| state.map.usage().errors()) > 0 {
            tracing::error!("the map and the table of segments disagree: nothing is deleted");
            return Ok(());
        }
        let mut free = Vec::with_capacity(dead.len());
        for sequence in dead.drain(..) {
            if !self.is_pinned(sequence).await? {
                free.push(sequence);
            }
        }
        if self.with(|state| state.doom(&free)) {
            self.update_superblock(|_, _| {}).await?;
            let now_ns = self.runtime.now_ns();
            self.with(|state| {
                let announced: BTreeSet<u64> =
                    state.superblock.deletes.iter().map(|intent| intent.sequence).collect();
                for doomed in &mut state.freeing.doomed {
                    if announced.contains(&doomed.intent.sequence) {
                        doomed.announced_ns.get_or_insert(now_ns);
                    }
                }
            });
            self.events.upkeep.announce(&self.runtime);
        }
        Ok(())
    }

    /// Whether a snapshot needs the segment.
    pub(super) async fn is_pinned(self: &Rc<Self>, sequence: u64) -> Result<bool, RequestError> {
        loop {
            let wanted = match self.with(|state| state.freeing.is_pinned(sequence)) {
                Ok(pinned) => return Ok(pinned),
                Err((root, MapError::Missing(pages))) => WantedPins { root, pages },
                Err((_, error)) => {
                    tracing::error!(%error, "a snapshot's table of segments is damaged");
                    return Err(RequestError::Refused("a snapshot's table is damaged"));
                }
            };
            self.load_pins(wanted).await?;
        }
    }

    async fn load_pins(self: &Rc<Self>, wanted: WantedPins) -> Result<(), RequestError> {
        let WantedPins { root, pages } = wanted;
        let reads = pages
            .iter()
            .map(|(address, location)| self.read_location(*location, Place::Meta(address.word())));
        let read = join_all(reads).await;
        for ((address, location), page) in pages.into_iter().zip(read) {
            let page = page.map_err(|LostSegment(segment)| RequestError::Lost { segment })?;
            let inserted = self.with(|state| {
                let mut snapshots = state.freeing.snapshots.iter_mut();
                // It may have been deleted meanwhile.
                let pins = snapshots.find(|one| one.root == root).map(|one| &mut one.pins);
                pins.map_or(Ok(()), |pins| pins.insert_page(address, location, &page))
            });
            inserted.map_err(|_| RequestError::Refused("a snapshot's table is damaged"))?;
        }
        Ok(())
    }

    /// Deletes what is due, node by node.
    async fn delete_due(self: &Rc<Self>) {
        let now_ns = self.runtime.now_ns();
        let (epoch, requests) = self.with(|state| (state.epoch(), state.due_deletions(now_ns)));
        let asked = requests.into_iter().map(|(node, keys)| async move {
            let request = Request::Delete { epoch, keys: keys.clone() };
            (node, keys, self.ask(node, request, DELETE_NS_MAX).await)
        });
        for (node, keys, answer) in join_all(asked).await {
            self.check_fence(&answer);
            match answer {
                Ok(_) => {
                    self.with(|state| state.note_deleted(node, &keys));
                    self.events.queue.announce(&self.runtime);
                }
                Err(error) => tracing::debug!(node, %error, "shards could not be deleted yet"),
            }
        }
    }
}

/// Carries announced deletions out, for ever.
pub(super) async fn deleter(engine: Rc<Engine>) {
    while engine.check_running().is_ok() {
        let now_ns = engine.runtime.now_ns();
        let due = engine.with(|state| {
            let delay_ns = state.deletion_delay_ns();
            state.freeing.due(now_ns, delay_ns)
        });
        let before = engine.with(|state| state.freeing.doomed.len());
        if due {
            engine.delete_due().await;
        }
        let after = engine.with(|state| state.freeing.doomed.len());
        if due && after < before {
            continue;
        }
        let tick_ns = match after {
            0 => u64::MAX,
            _ => engine.runtime.now_ns().saturating_add(TICK_NS),
        };
        let mut woken = false;
        let news = || {
            // The first look is before anything happened.
            let was = std::mem::replace(&mut woken, true);
            (was || engine.check_running().is_err()).then_some(())
        };
        let news = engine.events.upkeep.until(&engine.runtime, news);
        match either(news, engine.runtime.sleep_until(tick_ns)).await {
            Either::First(()) | Either::Second(()) => {}
        }
    }
}
