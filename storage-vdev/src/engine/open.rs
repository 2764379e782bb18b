//! Opening a volume: look at everything, take it over, recover, and only then serve.
//!
//! 1. The epoch: from the register, or one more than anything on the nodes says.
//! 2. Fence: from here on no earlier opening can write. All nodes but m must answer.
//! 3. The newest superblock, and the map that it names.
//! 4. Segments and journal records that were durable beyond it ([`super::recover`]).
//! 5. What the journal had is sealed into segments under this opening's keys.
//! 6. A superblock of this opening, which voids everything else. Then the journal is emptied.
//!
//! A crash anywhere before 6 leaves what 3 and 4 found; this opening's segments mean nothing then.

use std::collections::{BTreeSet, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

use super::cache::Cache;
use super::clone::clone_of;
use super::find::{find_newest, get_named};
use super::flush::Flushes;
use super::free::Freeing;
use super::heads::Journal;
use super::log::{Log, WINDOW};
use super::nodes::NodeTable;
use super::openings::Openings;
use super::options::{Create, JOURNAL_BYTES_MIN, OpenError, OpenOptions, Randomness};
use super::overlay::Overlay;
use super::place::{check_nodes, choose_heads, heads_wanted, match_nodes, place_slots};
use super::record::ChainEnd;
use super::recover::{journal_suffices, map_error};
use super::state::{Engine, State};
use super::status::Counters;
use super::superblock::{JournalAnchor, PastOpening, Superblock};
use super::sweep::{stocktaker, sweeper};
use super::take::{Tenure, fence, fence_blank, take_volume};
use super::tasks;
use crate::codec::Codec;
use crate::extent_map::{BLOCKS_MAX, Map, MapError, Root};
use crate::geometry::BLOCK_BYTES;
use crate::keys::{Opening, keys_for};
use crate::node::{NodeError, NodeIndex};
use crate::segment::{Buffers, Link, Shape};

/// Opens or makes the volume.
pub(super) async fn open(
    engine: &Rc<Engine>,
    options: OpenOptions,
    random: Randomness,
) -> Result<(), OpenError> {
    check_nodes(&options.nodes)?;
    if let Some(create) = &options.create {
        check_create(create, &options)?;
    }
    let mut tenure = take_volume(engine, &options, &random).await?;
    fence(engine, &options, &mut tenure).await?;
    let found = match tenure.named {
        Some(named) if named.version > 0 => {
            let nodes = keepers(&options);
            let wanted = (&options.key, named);
            Some(get_named(&engine.runtime, &nodes, options.uuid, wanted).await?)
        }
        Some(_) => None,
        None => {
            let nodes = keepers(&options);
            find_newest(&engine.runtime, &nodes, options.uuid, &options.key).await?.superblock
        }
    };
    let opening = Opening { epoch: tenure.epoch, salt: random.salt };
    match (found, &options.create) {
        (Some(_), Some(_)) if options.must_be_new => Err(OpenError::Exists),
        (Some(superblock), create) => {
            check_shape(&superblock, create.as_ref())?;
            resume(engine, &options, superblock, (opening, tenure)).await
        }
        (None, Some(create)) => begin(engine, &options, create, (opening, tenure)).await,
        (None, None) => Err(OpenError::NotFound),
    }
}

pub(super) fn keepers(options: &OpenOptions) -> Vec<NodeIndex> {
    let nodes = (0..).zip(&options.nodes).filter(|(_, node)| node.objects);
    nodes.map(|(node, _)| node).collect()
}

fn check_create(create: &Create, options: &OpenOptions) -> Result<(), OpenError> {
    let Create { data_shards: data, parity_shards: parity, size_bytes, journal_bytes, .. } =
        *create;
    let shape = Shape::new(data, parity).map_err(|_| OpenError::Shards { data, parity })?;
    let blocks = size_bytes / BLOCK_BYTES as u64;
    if !size_bytes.is_multiple_of(BLOCK_BYTES as u64) || blocks == 0 || blocks > BLOCKS_MAX {
        return Err(OpenError::Size { size_bytes });
    }
    if journal_bytes < JOURNAL_BYTES_MIN || !journal_bytes.is_multiple_of(BLOCK_BYTES as u64) {
        return Err(OpenError::Journal { journal_bytes });
    }
    let slots = place_slots(shape, &options.nodes, create.shared_domains)?;
    let nodes = NodeTable::new(shape, options.nodes.clone(), slots);
    let wanted = heads_wanted(create.policy, shape);
    let found = choose_heads(&nodes, create.policy, (wanted, &[]), 0).len();
    if found < wanted && !(create.allow_degraded && found > 0) {
        return Err(OpenError::TooFewHeads { found, wanted });
    }
    Ok(())
}

pub(super) fn check_shape(
    superblock: &Superblock,
    create: Option<&Create>,
) -> Result<(), OpenError> {
    let Some(create) = create else { return Ok(()) };
    let text = |data: u8, parity: u8, size: u64| format!("{data}+{parity} shards, {size} bytes");
    let shape = superblock.shape;
    let found = text(shape.data_shards(), shape.parity_shards(), superblock.size_bytes);
    let wanted = text(create.data_shards, create.parity_shards, create.size_bytes);
    if found == wanted { Ok(()) } else { Err(OpenError::Shape { found, wanted }) }
}

pub(super) fn too_few(
    reachable: usize,
    nodes: usize,
    (wanted, reason): (usize, Option<NodeError>),
) -> OpenError {
    let reason = reason.unwrap_or(NodeError::Unavailable);
    OpenError::TooFewNodes { reachable, nodes, wanted, reason }
}

/// Makes the volume.
async fn begin(
    engine: &Rc<Engine>,
    options: &OpenOptions,
    create: &Create,
    (opening, tenure): (Opening, Tenure),
) -> Result<(), OpenError> {
    if let Some(of) = &options.base {
        let deaf: Vec<NodeIndex> = tenure.deaf.iter().map(|(node, _)| *node).collect();
        let begun = clone_of(engine, options, (create, of), (opening, &deaf)).await?;
        return start(engine, options, begun, (opening, tenure)).await;
    }
    let Create { data_shards: data, parity_shards: parity, size_bytes, .. } = *create;
    let shape = Shape::new(data, parity).map_err(|_| OpenError::Shards { data, parity })?;
    let chain = ChainEnd { sequence: 1, tag: [0; 16] };
    let superblock = Superblock {
        uuid: options.uuid,
        shape,
        version: 0,
        opening,
        size_bytes,
        policy: create.policy,
        allow_degraded: create.allow_degraded,
        shared_domains: create.shared_domains,
        closed: true,
        journal_bytes: create.journal_bytes,
        lease_ns: create.lease_ns,
        root: Root::empty(size_bytes / BLOCK_BYTES as u64),
        frontier: Link::default(),
        frontier_write: 0,
        journal: JournalAnchor { heads: Vec::new(), position: 0, chain },
        nodes: options.nodes.clone(),
        slots: place_slots(shape, &options.nodes, create.shared_domains)?,
        openings: Vec::new(),
        snapshots: Vec::new(),
        deletes: Vec::new(),
        bases: Vec::new(),
    };
    start(engine, options, (superblock, Vec::new()), (opening, tenure)).await
}

/// Goes on with a volume that is there.
async fn resume(
    engine: &Rc<Engine>,
    options: &OpenOptions,
    mut superblock: Superblock,
    (opening, tenure): (Opening, Tenure),
) -> Result<(), OpenError> {
    let deaf: Vec<NodeIndex> = tenure.deaf.iter().map(|(node, _)| *node).collect();
    let matched = match_nodes(&superblock, &options.nodes, &deaf, !options.register);
    check_nodes(&matched.nodes)?;
    superblock.nodes = matched.nodes;
    superblock.slots = matched.slots;
    superblock.journal.heads = matched.heads;
    start(engine, options, (superblock, matched.fresh), (opening, tenure)).await
}

/// From a superblock to a volume that serves.
async fn start(
    engine: &Rc<Engine>,
    options: &OpenOptions,
    (superblock, fresh): (Superblock, Vec<u8>),
    (opening, tenure): (Opening, Tenure),
) -> Result<(), OpenError> {
    let is_new = superblock.version == 0;
    let (deaf, blank) = (tenure.deaf.clone(), tenure.blank.clone());
    engine.begin(first_state(options, superblock.clone(), (opening, tenure))?);
    engine.with(|state| state.count_nodes(&deaf, is_new))?;
    if !is_new && !options.accept_loss {
        engine.with(|state| state.count_forgetful(&blank))?;
    }
    load_usage(engine).await?;
    let now_ns = engine.runtime.now_ns();
    engine.with(|state| state.resume_freeing(now_ns));
    let recovered = (superblock.frontier, superblock.frontier_write);
    let (frontier, last_write) =
        if is_new { recovered } else { engine.roll_forward(&superblock).await? };
    engine.with(|state| fresh.iter().for_each(|slot| state.empty_slot(*slot)));
    let old_keys = keys_for(&options.key, superblock.uuid, superblock.opening);
    let replay = engine.read_journal(&superblock, (&old_keys, last_write)).await;
    if !journal_suffices(&superblock, replay.read) && !options.accept_loss {
        return Err(OpenError::JournalLost);
    }
    engine.with(|state| state.take_log(opening, (frontier, last_write)));
    tasks::spawn_writers(engine);
    engine.replay(replay.groups).await?;
    engine.close_batch();
    let last_write = engine.with(|state| state.overlay.last_write());
    engine.written_through(last_write).await.map_err(|error| map_error(&error))?;
    let anchor = engine.open_heads(replay.end).await;
    let dirty = engine.with(|state| state.map.is_dirty());
    let name = |state: &mut State, next: &mut Superblock| {
        next.journal = anchor.clone();
        next.closed = false;
        if !dirty {
            next.frontier = state.log.frontier;
            next.frontier_write = state.log.frontier_write;
        }
    };
    if dirty {
        engine.checkpoint(name).await.map_err(|error| map_error(&error))?;
    } else {
        engine.update_superblock(name).await.map_err(|error| map_error(&error))?;
    }
    fence_blank(engine, &blank).await;
    engine.begin_journal(anchor).await;
    tasks::spawn_servers(engine);
    if !blank.is_empty() {
        let behind = frontier.sequence + 1;
        engine.runtime.spawn(stocktaker(Rc::clone(engine), blank, behind));
    }
    if !is_new {
        engine.runtime.spawn(sweeper(Rc::clone(engine), superblock));
    }
    Ok(())
}

async fn load_usage(engine: &Rc<Engine>) -> Result<(), OpenError> {
    loop {
        match engine.with(|state| state.map.load_usage()) {
            Ok(()) => return Ok(()),
            Err(MapError::Missing(pages)) => {
                engine.load_pages(pages).await.map_err(|error| map_error(&error))?;
            }
            Err(_) => return Err(OpenError::MapLost { segment: 0 }),
        }
    }
}

fn first_state(
    options: &OpenOptions,
    superblock: Superblock,
    (opening, tenure): (Opening, Tenure),
) -> Result<State, OpenError> {
    let shape = superblock.shape;
    let lost = || OpenError::MapLost { segment: 0 };
    let blocks = superblock.size_bytes / BLOCK_BYTES as u64;
    let keys = keys_for(&options.key, superblock.uuid, opening);
    let codec = Arc::new(Codec::new(shape.data_shards(), shape.parity_shards()));
    let log = Log::new(
        Arc::clone(keys.segment()),
        (Arc::clone(&codec), shape),
        (superblock.frontier, superblock.frontier_write),
        superblock.frontier.sequence + 1,
        Buffers::new(options.limits.spare_bytes()),
    );
    let key_of = |uuid| superblock.key_of(uuid, &options.key);
    let map = Map::from_root(&superblock.root, blocks, options.limits.map_bytes);
    Ok(State {
        shape,
        codec,
        volume_key: options.key.clone(),
        keys,
        openings: Openings::new(&superblock.openings, key_of).ok_or_else(lost)?,
        limits: options.limits,
        nodes: NodeTable::new(shape, superblock.nodes.clone(), superblock.slots.clone()),
        given: options.nodes.len(),
        overlay: Overlay::new(1, 2, superblock.frontier_write),
        to_seal: VecDeque::new(),
        log,
        journal: Journal::new(Vec::new(), 0, 0, ChainEnd { sequence: 1, tag: [0; 16] }),
        map: map.map_err(|_| lost())?,
        applying: false,
        freezing: false,
        cache: Cache::new(options.limits.cache_bytes),
        size_bytes: superblock.size_bytes,
        superblock,
        superblock_busy: false,
        lease: tenure.lease,
        evidence: tenure.evidence,
        acceptors_due: true,
        proposer: tenure.proposer,
        queue: VecDeque::new(),
        queue_busy: false,
        flushes: Flushes::default(),
        commands: VecDeque::new(),
        closing: false,
        closer: None,
        released: false,
        held: false,
        freeing: Freeing::default(),
        gc_rests_until: 0,
        open_since_ns: None,
        repair_wanted: true,
        repair: None,
        scrub: None,
        hopeless: BTreeSet::new(),
        counters: Counters::default(),
        probe_at_bytes: 0,
    })
}

impl State {
    /// Notes which nodes don't answer, and refuses if they are too many.
    fn count_nodes(
        &mut self,
        deaf: &[(NodeIndex, NodeError)],
        is_new: bool,
    ) -> Result<(), OpenError> {
        for (node, error) in deaf {
            self.nodes.set_down(*node, *error, 0, false);
        }
        for node in self.given..self.nodes.len() {
            let node = NodeIndex::try_from(node).unwrap_or(NodeIndex::MAX);
            self.nodes.set_down(node, NodeError::Unavailable, 0, true);
        }
        let keepers = self.keepers();
        let reachable = keepers.iter().filter(|node| self.nodes.is_usable(**node)).count();
        let wanted = if is_new { keepers.len() } else { self.copies_needed() };
        if reachable < wanted {
            let reason = deaf.first().map(|(_, error)| *error);
            return Err(too_few(reachable, keepers.len(), (wanted, reason)));
        }
        Ok(())
    }

    /// Refuses if more slots than may be lost are on nodes that are down or `blank`: a segment that
    /// they had between them would seem never to have been finished, and the volume would be that
    /// of an earlier time. With no more, whatever was durable has left a shard on one of the others.
    /// Behind the superblock of a volume that was closed there is nothing that could be missed, and
    /// a healer may have filled the blank nodes.
    fn count_forgetful(&mut self, blank: &[NodeIndex]) -> Result<(), OpenError> {
        for node in blank {
            self.nodes.set_blank(*node);
        }
        let is_lost = |node: &&NodeIndex| blank.contains(node) || !self.nodes.is_usable(**node);
        let (lost, slots) =
            (self.nodes.slots().iter().filter(is_lost).count(), self.nodes.slots().len());
        let spare = usize::from(self.shape.parity_shards());
        let is_complete = self.superblock.closed;
        if lost > spare && !is_complete {
            Err(OpenError::Forgotten { lost, slots, spare })
        } else {
            Ok(())
        }
    }

    /// A new node has the slot: it has none of its shards yet.
    pub(super) fn empty_slot(&mut self, slot: u8) {
        let shape = self.shape;
        let bit = |sequence: u64| 1u32 << shape.shard_in(sequence, slot);
        let all = self.map.usage().from(0).filter(|(sequence, segment)| {
            segment.blocks > 0 && segment.present & bit(*sequence) != 0
        });
        let all: Vec<(u64, u32)> = all.map(|(sequence, one)| (sequence, one.present)).collect();
        for (sequence, present) in all {
            self.map.usage_mut().set_present(sequence, present & !bit(sequence));
        }
        self.log.empty_slot(|sequence| !bit(sequence));
        self.repair_wanted = true;
    }

    /// The log of this opening, behind what was recovered.
    fn take_log(&mut self, opening: Opening, (frontier, last_write): (Link, u64)) {
        let first_sequence = frontier.sequence + WINDOW;
        let keys = Arc::clone(self.keys.segment());
        let past = PastOpening { first_sequence, uuid: self.superblock.uuid, opening };
        self.openings.push(past, Arc::clone(&keys));
        let code = (Arc::clone(&self.codec), self.shape);
        let buffers = self.log.buffers();
        self.log = Log::new(keys, code, (frontier, last_write), first_sequence, buffers);
        let blocks_max = self.limits.unsealed_bytes / BLOCK_BYTES;
        self.overlay = Overlay::new(usize::from(self.segment_blocks()), blocks_max, last_write);
    }
}
