//! Clearing up after earlier openings: their superblocks, and segments that they had put somewhere
//! and never committed. Such shards are void from this opening's first superblock on; all that they
//! cost is room.

use std::collections::BTreeSet;
use std::rc::Rc;

use super::request::RequestError;
use super::state::{Engine, State};
use super::superblock::{Superblock, superblock_key, version_of};
use crate::keys::Uuid;
use crate::node::{NodeIndex, ObjectKey, Request, Response};

/// How many names are asked for at once.
const LIST_MAX: u16 = 512;
/// How long a node may take to list or to delete.
const ANSWER_NS_MAX: u64 = 10_000_000_000;

/// Sweeps once, a lease after the opening: whoever held the volume before reads nothing any more.
pub(super) async fn sweeper(engine: Rc<Engine>, before: Superblock) {
    let start_ns = engine.runtime.now_ns().saturating_add(before.lease_ns);
    engine.runtime.sleep_until(start_ns).await;
    let nodes = engine.with(|state| state.keepers());
    for node in nodes {
        let swept = if before.closed {
            engine.forget_before(node, &before).await
        } else {
            engine.sweep(node).await
        };
        if let Err(error) = swept {
            // The next opening sweeps again.
            tracing::debug!(node, %error, "a node was not swept");
        }
    }
}

/// Looks once what the nodes that had forgotten the last opening still have: what they lack is to be
/// made again, and whoever asks how the volume is should hear of it before it is read.
pub(super) async fn stocktaker(engine: Rc<Engine>, nodes: Vec<NodeIndex>, behind: u64) {
    for node in nodes {
        match engine.names_on(node).await {
            Ok(names) => engine.with(|state| state.mark_missing(node, &names, behind)),
            Err(error) => tracing::debug!(node, %error, "a node was not looked through"),
        }
    }
    engine.events.upkeep.announce(&engine.runtime);
}

impl State {
    /// The shards of segments before `behind` that should be on the node and are not.
    fn mark_missing(&mut self, node: NodeIndex, names: &BTreeSet<ObjectKey>, behind: u64) {
        let mut lost = Vec::new();
        for (sequence, segment) in self.map.usage().from(0).filter(|(at, _)| *at < behind) {
            let here = (0..self.shape.shards()).filter(|shard| {
                segment.present >> shard & 1 == 1 && self.nodes.holder(sequence, *shard) == node
            });
            let is_lost = |shard: &u8| {
                self.openings.object(sequence, *shard).is_some_and(|key| !names.contains(&key))
            };
            let missing = here.filter(is_lost).fold(0, |all, shard| all | 1u32 << shard);
            if missing != 0 {
                lost.push((sequence, segment.present & !missing));
            }
        }
        for (sequence, present) in lost {
            self.map.usage_mut().set_present(sequence, present);
            self.repair_wanted = true;
        }
    }

    /// Whether an object means nothing any more, or never did.
    fn is_void(&self, key: &ObjectKey) -> bool {
        if key.volume != self.superblock.uuid || key.epoch >= self.epoch() {
            return false;
        }
        if version_of(key).is_some() {
            return true;
        }
        let owner = self.openings.of(key.sequence);
        let own = owner
            .is_some_and(|(past, _)| past.uuid == key.volume && past.opening.epoch == key.epoch);
        // The table has every segment that anything may need, unless it has lost count.
        let usage = self.map.usage();
        usage.errors() == 0 && (!own || usage.get(key.sequence).is_none())
    }
}

impl Engine {
    /// After a clean end only the superblocks are left over.
    async fn forget_before(
        &self,
        node: NodeIndex,
        before: &Superblock,
    ) -> Result<(), RequestError> {
        let versions = before.version.saturating_sub(1).max(1)..=before.version;
        let key = |version| superblock_key(before.uuid, before.opening.epoch, version);
        let keys = versions.map(key).collect();
        self.delete_void(node, keys).await
    }

    /// All names of this volume's objects on a node, and of its bases'.
    async fn names_on(&self, node: NodeIndex) -> Result<BTreeSet<ObjectKey>, RequestError> {
        let volumes: BTreeSet<Uuid> =
            self.with(|state| state.openings.list().iter().map(|past| past.uuid).collect());
        let mut names = BTreeSet::new();
        for volume in volumes {
            let mut after = None;
            loop {
                let keys = self.list_some(node, volume, after).await?;
                names.extend(keys.iter().copied());
                match keys.last() {
                    Some(last) if keys.len() >= usize::from(LIST_MAX) => after = Some(*last),
                    _ => break,
                }
            }
        }
        Ok(names)
    }

    async fn list_some(
        &self,
        node: NodeIndex,
        volume: Uuid,
        after: Option<ObjectKey>,
    ) -> Result<Vec<ObjectKey>, RequestError> {
        self.check_running()?;
        let request = Request::List { volume, after, limit: LIST_MAX };
        match self.ask(node, request, ANSWER_NS_MAX).await {
            Ok(Response::Keys(keys)) => Ok(keys),
            _ => Err(RequestError::Unavailable),
        }
    }

    /// Goes through all names on a node, and deletes what is void.
    async fn sweep(&self, node: NodeIndex) -> Result<(), RequestError> {
        let volume = self.uuid();
        let mut after = None;
        loop {
            let keys = self.list_some(node, volume, after).await?;
            let void: Vec<ObjectKey> =
                self.with(|state| keys.iter().filter(|key| state.is_void(key)).copied().collect());
            if !void.is_empty() {
                self.delete_void(node, void).await?;
            }
            match keys.last() {
                Some(last) if keys.len() >= usize::from(LIST_MAX) => after = Some(*last),
                _ => return Ok(()),
            }
        }
    }

    async fn delete_void(&self, node: NodeIndex, keys: Vec<ObjectKey>) -> Result<(), RequestError> {
        self.check_running()?;
        let epoch = self.with(|state| state.epoch());
        let answer = self.ask(node, Request::Delete { epoch, keys }, ANSWER_NS_MAX).await;
        self.check_fence(&answer);
        answer.map(|_| ()).map_err(|_| RequestError::Unavailable)
    }
}
