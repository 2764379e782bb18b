//! The journal: the same records on several nodes, its *heads*.
//!
//! All heads get the same bytes at the same positions, one append at a time. A flush counts when
//! every head of the set has it, and the set has one head more than may be lost, so any one that is
//! left has all of it. A head that fails is not asked again: the batch that the journal was for is
//! sealed into a segment, and only when that is committed and a superblock names another set is the
//! journal used again.

use std::collections::VecDeque;
use std::rc::Rc;

use bytes::Bytes;

use super::executor::join_all;
use super::options::Policy;
use super::overlay::{Batch, BatchId, Group};
use super::place::{choose_heads, heads_wanted};
use super::record::{ChainEnd, seal_group};
use super::request::RequestError;
use super::state::Engine;
use super::superblock::JournalAnchor;
use crate::geometry::BLOCK_BYTES;
use crate::keys::{EpochKeys, Uuid};
use crate::node::{NodeError, NodeIndex, Request, Response};

/// How long a head may take to append.
const APPEND_NS_MAX: u64 = 2_000_000_000;

/// How long a head may take to open or to empty.
const OPEN_NS_MAX: u64 = 10_000_000_000;

/// How long a node that can't keep a journal head is not asked for one.
const HEADLESS_NS: u64 = 30_000_000_000;

/// The journal as the writer sees it.
#[derive(Debug)]
pub(super) struct Journal {
    pub(super) heads: Vec<NodeIndex>,
    capacity: u64,
    /// The first byte that is still needed, and where the next append goes.
    start: u64,
    end: u64,
    pub(super) chain: ChainEnd,
    /// Where the groups end, and their last writes.
    groups: VecDeque<(u64, u64)>,
    /// A head failed: nothing is appended until there is another set.
    broken: bool,
}

/// A group on its way to the heads.
pub(super) struct Append {
    batch: BatchId,
    last_write: u64,
    position: u64,
    bytes: Bytes,
}

impl Journal {
    /// An empty journal on `heads`, whose next record goes to `position`.
    pub(super) fn new(
        heads: Vec<NodeIndex>,
        capacity: u64,
        position: u64,
        chain: ChainEnd,
    ) -> Self {
        let broken = heads.is_empty();
        let groups = VecDeque::new();
        Self { heads, capacity, start: position, end: position, chain, groups, broken }
    }

    /// Whether anything may be appended.
    pub(super) fn is_usable(&self) -> bool {
        !self.broken
    }

    /// Nothing may be appended any more, until there is another set.
    pub(super) fn give_up(&mut self) {
        self.broken = true;
    }

    /// Whether so many more bytes fit.
    pub(super) fn has_room(&self, bytes: usize) -> bool {
        self.end - self.start + bytes as u64 <= self.capacity
    }

    /// How many bytes wait for their segments.
    pub(super) fn used_bytes(&self) -> u64 {
        self.end - self.start
    }

    /// Where the next append goes.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// Seals a group for the place behind the last one.
    pub(super) fn append(
        &mut self,
        group: &Group,
        batch: &Batch,
        keys: &EpochKeys,
        uuid: Uuid,
    ) -> Append {
        let bytes = Bytes::from(seal_group(group, batch, (keys, uuid), &mut self.chain));
        let position = self.end;
        self.end += bytes.len() as u64;
        self.groups.push_back((self.end, group.last_write));
        Append { batch: group.batch, last_write: group.last_write, position, bytes }
    }

    /// The segments have everything up to `last_write`: says from where on the journal is still
    /// needed, if that has changed.
    pub(super) fn trim(&mut self, last_write: u64) -> Option<u64> {
        let before = self.start;
        while let Some((end, _)) = self.groups.pop_front_if(|(_, write)| *write <= last_write) {
            self.start = end;
        }
        (self.start != before).then_some(self.start)
    }
}

impl Engine {
    /// Appends a group to all heads.
    pub(super) async fn append(self: &Rc<Self>, append: Append) {
        let Append { batch, last_write, position, bytes } = append;
        let len = bytes.len() as u64;
        let asked = self.with(|state| {
            let (volume, epoch) = (state.superblock.uuid, state.epoch());
            let ask = |head: &NodeIndex| {
                let parts = vec![bytes.clone()];
                (*head, Request::JournalAppend { volume, epoch, position, parts })
            };
            state.journal.heads.iter().map(ask).collect::<Vec<_>>()
        });
        let copies = asked.len() as u64;
        let answers = asked.into_iter().map(|(head, request)| {
            let engine = Rc::clone(self);
            async move { engine.ask(head, request, APPEND_NS_MAX).await }
        });
        let answers = join_all(answers).await;
        answers.iter().for_each(|answer| self.check_fence(answer));
        let failed = answers.iter().find_map(|answer| answer.as_ref().err());
        self.with(|state| match failed {
            None => {
                state.counters.journal_bytes += copies * len;
                state.overlay.set_journaled(batch, last_write);
            }
            Some(error) => {
                tracing::warn!(%error, "a journal head failed: its records go into a segment");
                state.journal.give_up();
            }
        });
        let local = self.with(|state| state.superblock.policy == Policy::Local);
        if failed.is_some() {
            self.close_batch();
        }
        if failed.is_some() || local {
            self.events.upkeep.announce(&self.runtime);
        }
    }

    /// Opens journals on as many nodes as the policy wants, behind everything that is on them and
    /// behind `end`. None, if there are too few: each flush seals a segment then.
    pub(super) async fn open_heads(self: &Rc<Self>, end: u64) -> JournalAnchor {
        let policy = self.with(|state| state.superblock.policy);
        loop {
            let now_ns = self.runtime.now_ns();
            let (heads, requests) = self.with(|state| {
                let wanted = heads_wanted(policy, state.shape);
                let now = &state.superblock.journal.heads;
                let mut heads = choose_heads(&state.nodes, policy, (wanted, now), now_ns);
                if heads.len() < wanted && !state.superblock.allow_degraded {
                    heads.clear();
                }
                let (volume, epoch) = (state.superblock.uuid, state.epoch());
                let capacity = state.superblock.journal_bytes;
                (heads, Request::JournalOpen { volume, epoch, capacity })
            });
            let asks = heads.iter().map(|head| self.ask(*head, requests.clone(), OPEN_NS_MAX));
            let mut position = end;
            let mut failed = false;
            for (head, answer) in heads.iter().zip(join_all(asks).await) {
                self.check_fence(&answer);
                match answer {
                    Ok(Response::Journal { end, .. }) => position = position.max(end),
                    answer => {
                        self.head_failed(*head, answer.err().unwrap_or(NodeError::Unsupported));
                        failed = true;
                    }
                }
            }
            if !failed {
                let position = position.next_multiple_of(BLOCK_BYTES as u64);
                let chain = self.with(|state| state.journal.chain);
                return JournalAnchor { heads, position, chain };
            }
        }
    }

    /// A node can't open a journal. It may be of use for shards all the same: no room, a ring that
    /// can't be made, are no reason to go without what else it has.
    fn head_failed(&self, head: NodeIndex, error: NodeError) {
        let is_gone = matches!(error, NodeError::Unavailable | NodeError::Failed);
        if is_gone {
            return self.node_down(head, error);
        }
        tracing::warn!(head, %error, "a node can't keep a journal head");
        let until_ns = self.runtime.now_ns().saturating_add(HEADLESS_NS);
        self.with(|state| state.nodes.refuse_head(head, until_ns));
    }

    /// A durable superblock has the anchor: empties the heads, and appends from there on.
    pub(super) async fn begin_journal(self: &Rc<Self>, anchor: JournalAnchor) {
        let JournalAnchor { heads, position, chain } = anchor;
        let (volume, epoch) = self.with(|state| (state.superblock.uuid, state.epoch()));
        let request = Request::JournalTrim { volume, epoch, start: position };
        let asks = heads.iter().map(|head| self.ask(*head, request.clone(), OPEN_NS_MAX));
        let answers = join_all(asks).await;
        answers.iter().for_each(|answer| self.check_fence(answer));
        self.with(|state| {
            let capacity = state.superblock.journal_bytes;
            state.journal = Journal::new(heads, capacity, position, chain);
            if answers.iter().any(Result::is_err) {
                state.journal.give_up();
            }
        });
        self.events.flush.announce(&self.runtime);
    }

    /// Puts the journal on other heads, when everything that the old ones had is in segments.
    pub(super) async fn replace_heads(self: &Rc<Self>) -> Result<(), RequestError> {
        // Nothing more goes to the old ones: the chain goes on where it is now.
        self.with(|state| state.journal.give_up());
        self.close_batch();
        let last_write = self.with(|state| {
            let open = state.overlay.open_batch();
            open.first_write - 1
        });
        self.written_through(last_write).await?;
        let end = self.with(|state| state.journal.end());
        let anchor = self.open_heads(end).await;
        if anchor.heads.is_empty() {
            return Ok(());
        }
        self.update_superblock(|_, next| next.journal = anchor.clone()).await?;
        self.begin_journal(anchor).await;
        Ok(())
    }

    /// Tells the heads what is no longer needed.
    pub(super) fn trim_journal(self: &Rc<Self>) {
        let requests = self.with(|state| {
            let last_write = state.log.frontier_write;
            let Some(start) = state.journal.trim(last_write) else { return Vec::new() };
            let (volume, epoch) = (state.superblock.uuid, state.epoch());
            let request = Request::JournalTrim { volume, epoch, start };
            let usable = state.journal.heads.iter().filter(|head| state.nodes.is_usable(**head));
            usable.map(|head| (*head, request.clone())).collect()
        });
        for (head, request) in requests {
            // A hint: nobody waits for the answer, and the next trim says it again.
            drop(self.runtime.call(head, request));
        }
    }
}
