//! Checkpoints: the map into segments, and superblocks that name its root.

use std::rc::Rc;

use bytes::Bytes;

use super::executor::join_all;
use super::find::sha256;
use super::log::OwnSegment;
use super::request::RequestError;
use super::state::{Engine, State};
use super::superblock::{Superblock, superblock_key};
use crate::extent_map::{MapError, Page, PageAddress};
use crate::node::{NodeError, NodeIndex, Request};
use crate::register::SuperblockRef;

/// How long a node may take to put a superblock.
const PUT_NS_MAX: u64 = 10_000_000_000;
const RETRY_NS: u64 = 500_000_000;

/// A page that a checkpoint has to store.
type NextPage = (PageAddress, Box<Page>);

impl Engine {
    /// Stores the map as it is now, and a superblock that begins with it. What is committed
    /// meanwhile comes behind. Returns the segments that nothing in the new root needs.
    pub(super) async fn checkpoint(
        self: &Rc<Self>,
        change: impl FnOnce(&mut State, &mut Superblock),
    ) -> Result<Vec<u64>, RequestError> {
        self.lock_superblock().await?;
        let result = self.checkpoint_locked(|_| {}, change).await;
        self.unlock_superblock();
        result
    }

    /// Puts another map in the place of the volume's, and stores that.
    pub(super) async fn checkpoint_from(
        self: &Rc<Self>,
        replace: impl FnMut(&mut State),
    ) -> Result<Vec<u64>, RequestError> {
        self.lock_superblock().await?;
        let result = self.checkpoint_locked(replace, |_, _| {}).await;
        self.unlock_superblock();
        result
    }

    async fn checkpoint_locked(
        self: &Rc<Self>,
        mut before: impl FnMut(&mut State),
        change: impl FnOnce(&mut State, &mut Superblock),
    ) -> Result<Vec<u64>, RequestError> {
        let (frontier, frontier_write) = loop {
            let frozen = self.between_segments(|state| {
                before(state);
                let frontier = (state.log.frontier, state.log.frontier_write);
                state.map.freeze().map(|()| frontier)
            });
            match frozen.await? {
                Ok(frontier) => break frontier,
                Err(MapError::Missing(pages)) => self.load_pages(pages).await?,
                Err(error) => return Err(unusable(&error)),
            }
        };
        let stored = self.store_pages().await;
        let root = self.with(|state| state.map.frozen_root());
        let (Ok(()), Some(root)) = (&stored, root) else {
            self.with(|state| state.map.abort_checkpoint());
            return Err(stored.err().unwrap_or(RequestError::Refused("the map has no root")));
        };
        let put = self.put_superblock(|state, next| {
            next.root = root;
            next.frontier = frontier;
            next.frontier_write = frontier_write;
            change(state, next);
        });
        if let Err(error) = put.await {
            self.with(|state| state.map.abort_checkpoint());
            return Err(error);
        }
        self.with(|state| {
            state.counters.checkpoints += 1;
            state.map.finish_checkpoint().map_err(|error| unusable(&error))
        })
    }

    /// Puts the frozen pages into segments of the engine's own, and waits until they are committed.
    async fn store_pages(self: &Rc<Self>) -> Result<(), RequestError> {
        let mut last = None;
        let mut next = self.with(|state| state.map.next_page()).map_err(|e| unusable(&e))?;
        while let Some(first) = next {
            self.log_room().await?;
            let mut left: Result<Option<NextPage>, MapError> = Ok(None);
            last = Some(self.write_own(|state, own| left = fill(state, own, first)));
            next = left.map_err(|error| unusable(&error))?;
        }
        match last {
            Some(sequence) => self.committed(sequence).await,
            None => Ok(()),
        }
    }

    /// Writes a superblock with another content, the root as it is.
    pub(super) async fn update_superblock(
        self: &Rc<Self>,
        change: impl FnOnce(&mut State, &mut Superblock),
    ) -> Result<(), RequestError> {
        self.lock_superblock().await?;
        let result = self.put_superblock(change).await;
        self.unlock_superblock();
        result
    }

    async fn lock_superblock(&self) -> Result<(), RequestError> {
        let free = || match self.check_running() {
            Err(error) => Some(Err(error)),
            Ok(()) => self
                .with(|state| !std::mem::replace(&mut state.superblock_busy, true))
                .then_some(Ok(())),
        };
        self.events.superblock.until(&self.runtime, free).await
    }

    fn unlock_superblock(&self) {
        self.with(|state| state.superblock_busy = false);
        self.events.superblock.announce(&self.runtime);
    }

    /// Puts the next version on all nodes that are up, until enough have it; names it in the
    /// register; deletes the version before the last one.
    async fn put_superblock(
        self: &Rc<Self>,
        change: impl FnOnce(&mut State, &mut Superblock),
    ) -> Result<(), RequestError> {
        let (next, bytes) = self.with(|state| {
            let mut next = state.superblock.clone();
            next.version += 1;
            next.opening = state.keys.opening;
            next.openings = state.openings.list();
            next.slots = state.nodes.slots().to_vec();
            next.nodes = state.nodes.iter().map(|(_, node)| node.info.clone()).collect();
            next.size_bytes = state.size_bytes;
            next.deletes = state.freeing.intents();
            change(state, &mut next);
            let bytes = Bytes::from(next.encode(&state.volume_key));
            (next, bytes)
        });
        while !self.put_copies(&next, &bytes).await? {
            let again_ns = self.runtime.now_ns().saturating_add(RETRY_NS);
            self.runtime.sleep_until(again_ns).await;
        }
        let (version, epoch) = (next.version, next.opening.epoch);
        let named = SuperblockRef { version, epoch, sha256: sha256(&bytes) };
        self.register_superblock(named).await?;
        self.with(|state| state.superblock = next);
        self.forget_superblocks(version);
        Ok(())
    }

    /// Whether enough nodes have it now.
    async fn put_copies(
        self: &Rc<Self>,
        superblock: &Superblock,
        bytes: &Bytes,
    ) -> Result<bool, RequestError> {
        self.check_running()?;
        let key = superblock.key();
        let nodes = self.with(|state| state.keepers());
        let puts = nodes.iter().map(|node| {
            let request = Request::Put { key, parts: vec![bytes.clone()] };
            self.ask(*node, request, PUT_NS_MAX)
        });
        let answers = join_all(puts).await;
        answers.iter().for_each(|answer| self.check_fence(answer));
        self.check_running()?;
        let copies = answers.iter().filter(|answer| answer.is_ok()).count();
        let full = answers.iter().any(|answer| *answer == Err(NodeError::NoSpace));
        let enough = copies >= self.with(|state| state.copies_needed());
        if !enough {
            tracing::warn!(copies, full, "too few nodes have the new superblock");
        }
        Ok(enough)
    }

    /// Deletes old superblocks of this opening; nobody waits for it.
    fn forget_superblocks(self: &Rc<Self>, version: u64) {
        let (nodes, epoch, uuid) =
            self.with(|state| (state.keepers(), state.epoch(), state.superblock.uuid));
        let Some(old) = version.checked_sub(2).filter(|old| *old > 0) else { return };
        for node in nodes {
            let keys = vec![superblock_key(uuid, epoch, old)];
            if self.with(|state| state.nodes.is_usable(node)) {
                drop(self.runtime.call(node, Request::Delete { epoch, keys }));
            }
        }
    }
}

impl State {
    /// The nodes that keep objects.
    pub(super) fn keepers(&self) -> Vec<NodeIndex> {
        self.nodes.iter().filter(|(_, node)| node.info.objects).map(|(node, _)| node).collect()
    }

    /// How many nodes must have a superblock: whichever m are lost, one that has it is left; and
    /// when m are lost already, those that are left.
    pub(super) fn copies_needed(&self) -> usize {
        let parity = usize::from(self.shape.parity_shards());
        self.keepers().len().saturating_sub(parity).max(1)
    }
}

/// Fills a segment with pages; returns the one that didn't fit.
fn fill(
    state: &mut State,
    own: &mut OwnSegment,
    first: NextPage,
) -> Result<Option<NextPage>, MapError> {
    let mut page = first;
    loop {
        match own.push_page(page.0, &page.1[..]) {
            Some(location) => state.map.placed(location)?,
            None => return Ok(Some(page)),
        }
        match state.map.next_page()? {
            Some(next) => page = next,
            None => return Ok(None),
        }
    }
}

fn unusable(error: &MapError) -> RequestError {
    tracing::error!(%error, "the map can't be stored");
    RequestError::Refused("the volume's map can't be stored")
}
