//! A pass over a volume, as a state machine: requests out, answers in.

mod mending;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use bytes::Bytes;
use storage_vdev::codec::Codec;
use storage_vdev::node::{NodeError, NodeIndex, ObjectKey, Request, Response, Tag};
use storage_vdev::segment::{HEAD_BYTES, ShardHead};

use super::bucket::Bucket;
use super::manifest::Manifest;
use super::pass::Policy;
use super::repair::{Rebuilt, Repair};
use super::report::{Progress, Report, Verdict};
use super::search::{Found, Search, newest};
use super::survey::{Listed, Survey, is_void};

/// How many names are listed at a time.
const LIST_LIMIT: u16 = 4096;

/// How many heads are read at a time.
const HEADS_AT_ONCE: usize = 64;

/// A request that is to be carried out; its answer comes back with the tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// Names the request.
    pub tag: Tag,
    /// Whom: a place in the manifest's list.
    pub node: NodeIndex,
    /// What.
    pub request: Request,
}

/// What an answer is to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    List,
    /// A list of what is newer than the superblock that we go by.
    ListNewer,
    Superblock(ObjectKey),
    StoreSuperblock,
    Head {
        sequence: u64,
        holder: usize,
    },
    Read {
        sequence: u64,
        shard: u8,
    },
    /// The head of a shard that its node finds damaged.
    SalvageHead {
        sequence: u64,
        shard: u8,
    },
    /// What follows the head.
    SalvageRest {
        sequence: u64,
        shard: u8,
    },
    Store {
        sequence: u64,
        shard: u8,
    },
}

/// Where the pass is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Listing,
    ReadingSuperblocks,
    ReadingHeads,
    Mending,
    Done,
}

/// Whether the superblock is known to be the newest one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Freshness {
    /// Asked for at this time, and answered.
    Since(u64),
    /// Nodes are being asked for newer ones since this time.
    Listing(u64),
    /// There are newer ones, which are being read.
    Reading(u64),
}

/// A segment that is being mended.
#[derive(Debug)]
struct Active {
    repair: Repair,
    /// Rebuilt, and waiting for certainty that the segment is still wanted.
    ready: Vec<Rebuilt>,
    /// On its way to a node.
    storing: Vec<Storing>,
    /// Nodes that have or were asked to take one of its shards.
    taken: Vec<NodeIndex>,
    /// Whether everything that is missing could be rebuilt.
    complete: bool,
    /// Whether a shard found no node.
    unplaced: bool,
}

/// A shard that was rebuilt, and the node that is asked to take it.
#[derive(Debug)]
struct Storing {
    rebuilt: Rebuilt,
    node: NodeIndex,
}

/// One pass over one volume. Carry out what [`Healer::next`] asks for, give the answers to
/// [`Healer::complete`], and come back at [`Healer::deadline_ns`], until [`Healer::report`] has one.
#[derive(Debug)]
pub struct Healer {
    manifest: Manifest,
    policy: Policy,
    codec: Codec,
    bucket: Bucket,
    phase: Phase,
    next_tag: Tag,
    outbox: VecDeque<Asked>,
    waiting: HashMap<Tag, (NodeIndex, What)>,
    survey: Survey,
    search: Search,
    found: Option<Found>,
    freshness: Freshness,
    /// Superblocks that turned up since.
    newer: BTreeMap<ObjectKey, BTreeSet<NodeIndex>>,
    /// How many nodes have said what is newer.
    newer_answers: usize,
    /// How often they were asked in a row.
    refreshes: u32,
    /// Heads of damaged shards whose rest is on its way.
    salvaged: HashMap<(u64, u8, NodeIndex), Bytes>,
    segments: BTreeMap<u64, Listed>,
    heads: VecDeque<u64>,
    queue: VecDeque<u64>,
    active: BTreeMap<u64, Active>,
    /// Segments to look at in all.
    planned: u64,
    /// When mending began.
    mending_ns: u64,
    report: Report,
}

impl Healer {
    /// Begins a pass over the manifest's volume.
    #[must_use]
    pub fn new(manifest: Manifest, policy: Policy, now_ns: u64) -> Self {
        let shape = manifest.shape;
        let bucket = Bucket::new(policy.bytes_per_second, now_ns);
        let mut healer = Self {
            codec: Codec::new(shape.data_shards(), shape.parity_shards()),
            manifest,
            policy,
            bucket,
            phase: Phase::Listing,
            next_tag: 1,
            outbox: VecDeque::new(),
            waiting: HashMap::new(),
            survey: Survey::default(),
            search: Search::default(),
            found: None,
            freshness: Freshness::Since(now_ns),
            newer: BTreeMap::new(),
            newer_answers: 0,
            refreshes: 0,
            salvaged: HashMap::new(),
            segments: BTreeMap::new(),
            heads: VecDeque::new(),
            queue: VecDeque::new(),
            active: BTreeMap::new(),
            planned: 0,
            mending_ns: now_ns,
            report: Report::default(),
        };
        for node in healer.nodes() {
            healer.list(node, None);
        }
        healer
    }

    /// The next request to carry out, if there is one by now.
    pub fn next(&mut self, now_ns: u64) -> Option<Asked> {
        loop {
            if let Some(asked) = self.outbox.pop_front() {
                return Some(asked);
            }
            if !self.advance(now_ns) {
                return None;
            }
        }
    }

    /// When [`Healer::next`] has something again though nothing was answered: the bandwidth limit.
    #[must_use]
    pub fn deadline_ns(&self) -> Option<u64> {
        let waits = self.phase == Phase::Mending && !self.queue.is_empty();
        self.bucket.opens_ns().filter(|_| waits && self.has_room())
    }

    /// What the pass has found and done, once it is through.
    #[must_use]
    pub fn report(&self) -> Option<&Report> {
        (self.phase == Phase::Done && self.waiting.is_empty() && self.outbox.is_empty())
            .then_some(&self.report)
    }

    /// How far it is.
    #[must_use]
    pub fn progress(&self, now_ns: u64) -> Progress {
        let segments_done = self.report.verdicts.values().sum::<u64>();
        let elapsed = u128::from(now_ns.saturating_sub(self.mending_ns));
        let left = u128::from(self.planned.saturating_sub(segments_done));
        let eta = (elapsed * left).checked_div(u128::from(segments_done));
        Progress {
            surveyed: matches!(self.phase, Phase::Mending | Phase::Done),
            segments_done,
            segments: self.planned,
            bytes_moved: self.report.bytes_moved,
            eta_ns: eta.map(|eta| u64::try_from(eta).unwrap_or(u64::MAX)),
        }
    }

    /// The manifest, with the superblock that the pass went by as the newest one known.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The answer to a request. Answers to none are ignored.
    pub fn complete(&mut self, tag: Tag, result: Result<Response, NodeError>) {
        let Some((node, what)) = self.waiting.remove(&tag) else { return };
        match what {
            What::List => self.listed(node, result),
            What::ListNewer => self.listed_newer(node, result),
            What::Superblock(key) => {
                if let Ok(Response::Bytes(bytes)) = result {
                    self.report.bytes_moved += bytes.len() as u64;
                    self.search.note(key, node, bytes);
                }
            }
            What::StoreSuperblock => {
                self.report.superblocks_restored += u64::from(result == Ok(Response::Done));
            }
            What::Head { sequence, holder } => self.head(sequence, holder, result),
            What::Read { sequence, shard } => self.read(sequence, (shard, node), result),
            What::SalvageHead { sequence, shard } => {
                self.salvage_head(sequence, (shard, node), result);
            }
            What::SalvageRest { sequence, shard } => {
                self.salvage_rest(sequence, (shard, node), result);
            }
            What::Store { sequence, shard } => self.stored(sequence, (shard, node), &result),
        }
        self.check_freshness();
    }

    fn nodes(&self) -> std::ops::Range<NodeIndex> {
        0..self.manifest.nodes.len() as NodeIndex
    }

    fn ask(&mut self, node: NodeIndex, what: What, request: Request) {
        let tag = self.next_tag;
        self.next_tag += 1;
        self.waiting.insert(tag, (node, what));
        self.outbox.push_back(Asked { tag, node, request });
    }

    fn list(&mut self, node: NodeIndex, after: Option<ObjectKey>) {
        let volume = self.manifest.volume;
        self.ask(node, What::List, Request::List { volume, after, limit: LIST_LIMIT });
    }

    fn get(&mut self, node: NodeIndex, what: What, key: ObjectKey, len: u32) {
        self.ask(node, what, Request::Get { key, offset: 0, len });
    }

    /// Goes on if nothing is left to wait for; false if there is nothing to do now.
    fn advance(&mut self, now_ns: u64) -> bool {
        match self.phase {
            Phase::Listing if self.waiting.is_empty() => {
                for (key, node) in newest(&self.survey.superblocks) {
                    self.get(node, What::Superblock(key), key, u32::MAX);
                }
                self.phase = Phase::ReadingSuperblocks;
            }
            Phase::ReadingSuperblocks if self.waiting.is_empty() => self.begin(),
            Phase::ReadingHeads if self.waiting.is_empty() && self.heads.is_empty() => {
                self.plan(now_ns);
            }
            Phase::ReadingHeads => return self.read_heads(),
            Phase::Mending => return self.mend(now_ns),
            Phase::Listing | Phase::ReadingSuperblocks | Phase::Done => return false,
        }
        true
    }

    fn listed(&mut self, node: NodeIndex, result: Result<Response, NodeError>) {
        let Ok(Response::Keys(keys)) = result else {
            self.report.silent.push(node);
            return;
        };
        let ours: Vec<ObjectKey> =
            keys.into_iter().filter(|key| key.volume == self.manifest.volume).collect();
        let last = ours.last().copied().filter(|_| ours.len() >= LIST_LIMIT.into());
        // A node whose list doesn't ascend would be listed for ever.
        let ascends = ours.is_sorted();
        self.survey.note(node, self.manifest.shape, &ours);
        if let Some(last) = last.filter(|_| ascends) {
            self.list(node, Some(last));
        }
    }

    /// Chooses the superblock to go by, restores its copies and sees what is in scope.
    fn begin(&mut self) {
        let Some(found) = self.search.choose(&self.manifest) else {
            self.phase = Phase::Done;
            return;
        };
        self.restore_superblocks(&found);
        let (segments, beyond) = self.survey.in_scope(&found.outline);
        self.go_by(found);
        self.report.uncommitted = beyond;
        self.segments = segments;
        let shards = self.manifest.shape.shards();
        let degraded = self.segments.values().any(|listed| listed.shards() < shards);
        if degraded || self.policy.scrub {
            self.heads = self.segments.keys().copied().collect();
            self.phase = Phase::ReadingHeads;
            return;
        }
        for sequence in self.segments.keys() {
            self.report.judge(*sequence, Verdict::Whole);
        }
        self.planned = self.segments.len() as u64;
        self.phase = Phase::Done;
    }

    fn go_by(&mut self, found: Found) {
        let outline = &found.outline;
        self.manifest.superblock = (outline.epoch, outline.version);
        self.report.superblock = Some(self.manifest.superblock);
        // Slots may have moved since the manifest was written.
        let place = |id| self.manifest.nodes.iter().position(|node| node.id == id);
        for (slot, node) in self.manifest.slots.iter_mut().zip(&outline.slots) {
            let place = outline.nodes.get(usize::from(*node)).and_then(|id| place(*id));
            *slot = place.map_or(*slot, |place| place as NodeIndex);
        }
        self.found = Some(found);
    }

    fn restore_superblocks(&mut self, found: &Found) {
        let key = found.outline.key();
        for node in self.nodes() {
            let is_spare = self.manifest.spares.contains(&node);
            if is_spare || self.report.silent.contains(&node) || found.holders.contains(&node) {
                continue;
            }
            let (epoch, parts) = (found.outline.epoch, vec![found.bytes.clone()]);
            self.ask(node, What::StoreSuperblock, Request::Restore { epoch, key, parts });
        }
    }

    fn key(&self, sequence: u64, shard: u8) -> ObjectKey {
        let volume = self.manifest.volume;
        let opening = self.found.as_ref().and_then(|found| found.outline.opening_of(sequence));
        let epoch = opening.map_or(0, |(_, epoch)| epoch);
        ObjectKey { volume, epoch, sequence, shard }
    }

    fn read_heads(&mut self) -> bool {
        let room = HEADS_AT_ONCE.saturating_sub(self.waiting.len());
        let batch: Vec<u64> = self.heads.drain(..room.min(self.heads.len())).collect();
        batch.iter().for_each(|sequence| self.read_head(*sequence, 0));
        !batch.is_empty()
    }

    fn read_head(&mut self, sequence: u64, holder: usize) {
        let Some(listed) = self.segments.get(&sequence) else { return };
        let Some((shard, node)) = listed.holders.get(holder).copied() else { return };
        let key = self.key(sequence, shard);
        self.get(node, What::Head { sequence, holder }, key, HEAD_BYTES as u32);
    }

    fn head(&mut self, sequence: u64, holder: usize, result: Result<Response, NodeError>) {
        let head = result.ok().and_then(|response| match response {
            Response::Bytes(bytes) => ShardHead::parse(&bytes).ok(),
            _ => None,
        });
        let segment = head
            .map(|head| head.segment)
            .filter(|segment| segment.sequence == sequence && segment.shape == self.manifest.shape);
        match (segment, self.segments.get_mut(&sequence)) {
            (Some(segment), Some(listed)) => {
                listed.head = Some((segment.link.sequence, segment.object_bytes() as u64));
            }
            _ => self.read_head(sequence, holder + 1),
        }
    }

    /// Puts what is to be looked at into order: what is nearest to its limit comes first.
    fn plan(&mut self, now_ns: u64) {
        let shape = self.manifest.shape;
        let threshold = self.policy.threshold(shape);
        let mut order = Vec::new();
        let Some(found) = &self.found else { return };
        for (sequence, listed) in &self.segments {
            let alive = listed.shards();
            if alive < shape.shards() && is_void(&self.segments, &found.outline, *sequence) {
                self.report.judge(*sequence, Verdict::Void);
            } else if self.policy.scrub || alive < shape.data_shards() {
                order.push((alive, *sequence));
            } else if alive == shape.shards() {
                self.report.judge(*sequence, Verdict::Whole);
            } else if alive > threshold {
                self.report.judge(*sequence, Verdict::Deferred);
            } else {
                order.push((alive, *sequence));
            }
        }
        order.sort_unstable();
        self.queue = order.into_iter().map(|(_, sequence)| sequence).collect();
        self.planned = self.segments.len() as u64;
        self.mending_ns = now_ns;
        self.phase = Phase::Mending;
    }
}
