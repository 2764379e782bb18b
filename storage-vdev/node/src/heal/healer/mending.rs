//! The second half of a pass: segments under way, and whether they are still wanted.

use bytes::Bytes;
use storage_vdev::engine::Outline;
use storage_vdev::node::{NodeError, NodeIndex, OBJECT_BYTES_MAX, ObjectKey, Request, Response};
use storage_vdev::segment::{HEAD_BYTES, ShardHead};

use super::super::repair::{Identity, Rebuilt, Repair, Step};
use super::super::report::{SpareShard, Verdict};
use super::super::search::{Search, newest};
use super::super::survey::is_live;
use super::{Active, Freshness, Healer, LIST_LIMIT, Phase, Storing, What};

/// So long a list of superblocks counts as new where volumes have no lease.
const FRESH_NS_MIN: u64 = 1_000_000_000;

/// So often in a row the nodes are asked for newer superblocks; if they take too long each time,
/// the pass ends.
const REFRESHES_MAX: u32 = 8;

impl Healer {
    pub(super) fn has_room(&self) -> bool {
        self.active.len() < self.policy.parallel.max(1)
    }

    /// Starts segments as far as the limits allow; false if nothing was started.
    pub(super) fn mend(&mut self, now_ns: u64) -> bool {
        if self.queue.is_empty() && self.active.is_empty() && self.waiting.is_empty() {
            self.phase = Phase::Done;
            return false;
        }
        if self.release_or_refresh(now_ns) {
            return true;
        }
        if !self.has_room() || self.queue.is_empty() || !self.bucket.is_open(now_ns) {
            return false;
        }
        let Some(sequence) = self.queue.pop_front() else { return false };
        self.start(sequence);
        true
    }

    fn start(&mut self, sequence: u64) {
        let key = self.key(sequence, 0);
        let Some(listed) = self.segments.get(&sequence) else { return };
        let shape = self.manifest.shape;
        let missing = (0..shape.shards()).filter(|shard| listed.mask() >> shard & 1 == 0);
        let taken: Vec<NodeIndex> = listed.holders.iter().map(|(_, node)| *node).collect();
        let mut placeless = missing.map(|shard| self.target(sequence, shard, &taken).is_none());
        if !self.is_live(sequence, key.epoch) {
            return self.report.judge(sequence, Verdict::Skipped);
        }
        // Nothing is read for shards that have nowhere to go, or not yet.
        let can_be_had = listed.shards() >= shape.data_shards();
        if can_be_had && !self.policy.scrub && placeless.all(|placeless| placeless) {
            return self.report.judge(sequence, Verdict::Unplaced);
        }
        let identity = Identity { volume: key.volume, shape, sequence, epoch: key.epoch };
        let threshold = self.policy.threshold(shape);
        let active = Active {
            repair: Repair::new(identity, &listed.holders, threshold, self.policy.scrub),
            ready: Vec::new(),
            storing: Vec::new(),
            taken,
            complete: true,
            unplaced: false,
        };
        self.active.insert(sequence, active);
        self.step(sequence);
    }

    fn is_live(&self, sequence: u64, epoch: u64) -> bool {
        self.found.as_ref().is_some_and(|found| is_live(&found.outline, sequence, epoch))
    }

    fn step(&mut self, sequence: u64) {
        let Some(active) = self.active.get_mut(&sequence) else { return };
        match active.repair.step(&self.codec) {
            Step::Wait => {}
            Step::Read(wanted) => {
                let head = self.segments.get(&sequence).and_then(|listed| listed.head);
                let bytes = head.map_or(OBJECT_BYTES_MAX as u64, |(_, bytes)| bytes);
                for (shard, node) in wanted {
                    self.bucket.take(bytes);
                    let key = self.key(sequence, shard);
                    self.get(node, What::Read { sequence, shard }, key, u32::MAX);
                }
            }
            Step::Store { rebuilt, complete } => {
                active.complete = complete;
                active.ready = rebuilt;
            }
            Step::Done(verdict) => self.finish(sequence, verdict),
        }
    }

    fn finish(&mut self, sequence: u64, verdict: Verdict) {
        let Some(active) = self.active.remove(&sequence) else { return };
        let (damaged, lying) = active.repair.accused();
        for node in damaged {
            *self.report.damaged.entry(node).or_default() += 1;
        }
        for node in lying {
            *self.report.lying.entry(node).or_default() += 1;
        }
        self.report.judge(sequence, verdict);
    }

    pub(super) fn read(
        &mut self,
        sequence: u64,
        (shard, node): (u8, NodeIndex),
        result: Result<Response, NodeError>,
    ) {
        if let Ok(Response::Bytes(bytes)) = &result {
            self.report.bytes_moved += bytes.len() as u64;
        }
        // A node gives nothing out as a whole that it finds damaged. In parts it does, and all
        // but the damaged chunk is of use.
        if result == Err(NodeError::Corrupt) {
            let (key, len) = (self.key(sequence, shard), HEAD_BYTES as u32);
            return self.get(node, What::SalvageHead { sequence, shard }, key, len);
        }
        if let Some(active) = self.active.get_mut(&sequence) {
            active.repair.read((shard, node), result);
            self.step(sequence);
        }
    }

    /// The head of a damaged shard has come: the rest follows.
    pub(super) fn salvage_head(
        &mut self,
        sequence: u64,
        (shard, node): (u8, NodeIndex),
        result: Result<Response, NodeError>,
    ) {
        let head = match &result {
            Ok(Response::Bytes(bytes)) => ShardHead::parse(bytes).ok(),
            _ => None,
        };
        let rest = head.and_then(|head| head.segment.object_bytes().checked_sub(HEAD_BYTES));
        let (Ok(Response::Bytes(head)), Some(rest)) = (result, rest) else {
            return self.read(sequence, (shard, node), Err(NodeError::NotFound));
        };
        self.salvaged.insert((sequence, shard, node), head);
        let (key, offset, len) = (self.key(sequence, shard), HEAD_BYTES as u32, rest as u32);
        let request = Request::Get { key, offset, len };
        self.ask(node, What::SalvageRest { sequence, shard }, request);
    }

    /// The rest of a damaged shard has come.
    pub(super) fn salvage_rest(
        &mut self,
        sequence: u64,
        (shard, node): (u8, NodeIndex),
        result: Result<Response, NodeError>,
    ) {
        let head = self.salvaged.remove(&(sequence, shard, node));
        let result = match (head, result) {
            (Some(head), Ok(Response::Bytes(rest))) => {
                Ok(Response::Bytes(Bytes::from([head, rest].concat())))
            }
            _ => Err(NodeError::NotFound),
        };
        self.read(sequence, (shard, node), result);
    }

    /// The node to take a shard: its slot's, unless that one has been given up or was tried; then
    /// a spare that has nothing of the segment.
    fn target(&self, sequence: u64, shard: u8, taken: &[NodeIndex]) -> Option<NodeIndex> {
        let slot = usize::from(self.manifest.shape.slot_of(sequence, shard));
        let own = self.manifest.slots.get(slot).copied()?;
        let is_given_up = |node: &NodeIndex| self.policy.given_up.contains(node);
        let is_silent = |node: &NodeIndex| self.report.silent.contains(node);
        if !is_given_up(&own) {
            // A node that doesn't answer most likely still has the shard.
            return (!is_silent(&own)).then_some(own);
        }
        self.spare(own, taken)
    }

    fn spare(&self, own: NodeIndex, taken: &[NodeIndex]) -> Option<NodeIndex> {
        let spares = self.manifest.spares.iter().copied();
        spares.into_iter().find(|node| {
            *node != own
                && !self.policy.given_up.contains(node)
                && !self.report.silent.contains(node)
                && !taken.contains(node)
        })
    }

    /// Stores what is ready, or makes sure first that it is still wanted.
    fn release_or_refresh(&mut self, now_ns: u64) -> bool {
        if self.active.values().all(|active| active.ready.is_empty()) {
            return false;
        }
        let Freshness::Since(since_ns) = self.freshness else { return false };
        let lease_ns = self.found.as_ref().map_or(0, |found| found.outline.lease_ns);
        // Whatever is deleted was announced a lease before: half of it is left for the storing.
        let fresh_ns = (lease_ns / 2).max(FRESH_NS_MIN);
        if now_ns <= since_ns.saturating_add(fresh_ns) {
            self.refreshes = 0;
            self.release();
            return true;
        }
        self.refreshes += 1;
        if self.refreshes > REFRESHES_MAX {
            self.give_up();
            return false;
        }
        let Some(after) = self.found.as_ref().map(|found| found.outline.key()) else {
            return false;
        };
        self.newer.clear();
        self.newer_answers = 0;
        self.freshness = Freshness::Listing(now_ns);
        for node in self.nodes() {
            if !self.report.silent.contains(&node) {
                self.list_newer(node, after);
            }
        }
        true
    }

    fn list_newer(&mut self, node: NodeIndex, after: ObjectKey) {
        let (volume, after) = (self.manifest.volume, Some(after));
        self.ask(node, What::ListNewer, Request::List { volume, after, limit: LIST_LIMIT });
    }

    pub(super) fn listed_newer(&mut self, node: NodeIndex, result: Result<Response, NodeError>) {
        let Ok(Response::Keys(keys)) = result else { return };
        let volume = self.manifest.volume;
        for key in keys.iter().filter(|key| key.volume == volume) {
            if Outline::version_of(key).is_some() {
                self.newer.entry(*key).or_default().insert(node);
            }
        }
        match keys.last() {
            Some(last) if keys.len() >= LIST_LIMIT.into() && keys.is_sorted() => {
                self.list_newer(node, *last);
            }
            _ => self.newer_answers += 1,
        }
    }

    /// Goes on when the question for newer superblocks has been answered.
    pub(super) fn check_freshness(&mut self) {
        let is_waiting = |healer: &Self, wanted: fn(&What) -> bool| {
            healer.waiting.values().any(|(_, what)| wanted(what))
        };
        match self.freshness {
            Freshness::Listing(since_ns) if !is_waiting(self, |w| *w == What::ListNewer) => {
                // With more than m missing, a newer superblock could be theirs alone.
                let missing = self.manifest.nodes.len() - self.newer_answers;
                if missing > usize::from(self.manifest.shape.parity_shards()) {
                    return self.give_up();
                }
                if self.newer.is_empty() {
                    self.freshness = Freshness::Since(since_ns);
                    return;
                }
                self.search = Search::default();
                self.freshness = Freshness::Reading(since_ns);
                for (key, node) in newest(&self.newer) {
                    self.get(node, What::Superblock(key), key, u32::MAX);
                }
            }
            Freshness::Reading(since_ns)
                if !is_waiting(self, |what| matches!(what, What::Superblock(_))) =>
            {
                let Some(found) = self.search.choose(&self.manifest) else {
                    return self.give_up();
                };
                self.go_by(found);
                self.freshness = Freshness::Since(since_ns);
            }
            _ => {}
        }
    }

    /// Ends the pass: what it goes by may be out of date. The next one will know.
    fn give_up(&mut self) {
        let left: Vec<u64> = self.active.keys().copied().chain(self.queue.drain(..)).collect();
        self.active.clear();
        left.iter().for_each(|sequence| self.report.judge(*sequence, Verdict::Skipped));
        self.phase = Phase::Done;
    }

    /// Stores all shards that are ready and whose segments are still wanted.
    fn release(&mut self) {
        let ready: Vec<u64> = self
            .active
            .iter()
            .filter(|(_, active)| !active.ready.is_empty())
            .map(|(sequence, _)| *sequence)
            .collect();
        for sequence in ready {
            let Some(active) = self.active.get_mut(&sequence) else { continue };
            let epoch = active.repair.epoch();
            let rebuilt = std::mem::take(&mut active.ready);
            if !self.is_live(sequence, epoch) {
                self.finish(sequence, Verdict::Skipped);
                continue;
            }
            for rebuilt in rebuilt {
                let taken = self.active.get(&sequence).map(|active| active.taken.clone());
                let node = self.target(sequence, rebuilt.shard, &taken.unwrap_or_default());
                self.store(sequence, rebuilt, node);
            }
            self.finish_if_stored(sequence);
        }
    }

    fn store(&mut self, sequence: u64, rebuilt: Rebuilt, node: Option<NodeIndex>) {
        let key = self.key(sequence, rebuilt.shard);
        let Some(active) = self.active.get_mut(&sequence) else { return };
        let Some(node) = node else {
            active.unplaced = true;
            return;
        };
        active.taken.push(node);
        let (parts, shard) = (rebuilt.parts.to_vec(), rebuilt.shard);
        self.bucket.take(rebuilt.bytes());
        self.report.bytes_moved += rebuilt.bytes();
        active.storing.push(Storing { rebuilt, node });
        let epoch = self.manifest.superblock.0;
        self.ask(node, What::Store { sequence, shard }, Request::Restore { epoch, key, parts });
    }

    pub(super) fn stored(
        &mut self,
        sequence: u64,
        (shard, node): (u8, NodeIndex),
        result: &Result<Response, NodeError>,
    ) {
        let Some(active) = self.active.get_mut(&sequence) else { return };
        let is_it = |storing: &Storing| (storing.rebuilt.shard, storing.node) == (shard, node);
        let Some(place) = active.storing.iter().position(is_it) else { return };
        let Storing { rebuilt, .. } = active.storing.swap_remove(place);
        let taken = active.taken.clone();
        match result {
            Ok(Response::Done) => {
                self.report.shards_restored += 1;
                if self.manifest.spares.contains(&node) {
                    self.report.on_spares.push(SpareShard { sequence, shard, node });
                }
            }
            Err(NodeError::EpochStale { .. }) => {
                self.report.fenced_off = true;
                return self.give_up();
            }
            // It may have happened, and the node is likely to come back.
            Err(NodeError::Unavailable) => self.store(sequence, rebuilt, None),
            _ => {
                let spare = self.spare(node, &taken);
                self.store(sequence, rebuilt, spare);
            }
        }
        self.finish_if_stored(sequence);
    }

    fn finish_if_stored(&mut self, sequence: u64) {
        let Some(active) = self.active.get(&sequence) else { return };
        if active.storing.is_empty() {
            let verdict = match (active.complete, active.unplaced) {
                (false, _) => Verdict::Lost,
                (true, true) => Verdict::Unplaced,
                (true, false) => Verdict::Repaired,
            };
            self.finish(sequence, verdict);
        }
    }
}
