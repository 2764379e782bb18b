//! What a node does with a request: who may, which epoch may, and where it is kept.
//!
//! [`NodeService`] is one failure domain: objects in a [`ShardStore`], journal heads and promises in
//! two files. It has no thread, no clock and no randomness. [`NodeService::handle`] does what a
//! request asks for; what must be durable before it is answered gets a [`Ticket`], and one
//! [`NodeService::sync`] answers all tickets: group commit.

use std::collections::BTreeMap;

use crate::disk::{DiskError, DiskOptions, DiskStore, Recovery};
use crate::files::{NodeFile, NodeFiles};
use crate::keys::Uuid;
use crate::node::{AcceptorId, NodeError, Request, Response};
use crate::register::{ACCEPTORS_MAX, AcceptorKey, Members};

mod carry;
mod grants;
mod journal;
mod meta;
mod store;

pub use grants::{Grant, Grants, Rights, WriterKey};
pub use journal::{CAPACITY as JOURNAL_CAPACITY, JournalError};
pub use meta::{MetaError, NodeIdentity, VOLUMES_MAX, identity_in};
pub use store::{Capabilities, Capacity, ShardStore};

use journal::Journals;
use meta::Meta;

/// The caller's receipt for an answer that comes with the next [`NodeService::sync`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// What became of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Handled {
    /// The answer.
    Done(Result<Response, NodeError>),
    /// The answer comes with the next sync.
    AfterSync(Ticket),
}

/// Why a node can't be opened. Nothing of what it held was changed.
#[derive(Debug, thiserror::Error)]
pub enum NodeOpenError {
    /// Its objects.
    #[error(transparent)]
    Objects(#[from] DiskError),
    /// Its journals.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// Its promises.
    #[error(transparent)]
    Meta(#[from] MetaError),
    /// The objects and the promises are of different nodes.
    #[error("the files objects and meta are of different nodes")]
    Mixed,
    /// The library refuses the seed of the acceptor's key.
    #[error("the key of the node's acceptor can't be used")]
    AcceptorKey,
}

/// How a node is opened.
#[derive(Debug, Clone)]
pub struct NodeOptions {
    /// The most bytes of objects. A node that is smaller grows; none shrinks.
    pub capacity_bytes: u64,
    /// Who the node is if it is to be made: random bytes.
    pub create: Option<NodeIdentity>,
}

/// What has to be durable before an answer is true.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum After {
    Objects,
    Journal,
    Meta,
    /// Everything that was written so far, so that who was told of a fence sees nothing from
    /// before it vanish.
    All,
}

#[derive(Debug)]
struct Waiting {
    ticket: Ticket,
    after: After,
    response: Response,
}

/// What a request comes to: an answer, now or after a sync.
enum Outcome {
    Now(Response),
    Later(After, Response),
}

/// A node: a failure domain with objects, journal heads and register acceptors.
#[derive(Debug)]
pub struct NodeService<S, F> {
    objects: S,
    journals: Journals<F>,
    meta: Meta<F>,
    acceptor: AcceptorKey,
    waiting: Vec<Waiting>,
    tickets: u64,
    /// The most bytes of a tenant; who is not in it has `quota_bytes`.
    quotas: BTreeMap<WriterKey, u64>,
    quota_bytes: Option<u64>,
}

impl<F: NodeFile> NodeService<DiskStore<F>, F> {
    /// Opens the node in `files`, or makes it there if they are blank and the options say so.
    ///
    /// # Errors
    /// [`NodeOpenError`].
    pub fn open(
        mut files: NodeFiles<F>,
        options: &NodeOptions,
    ) -> Result<(Self, Recovery), NodeOpenError> {
        let capacity_bytes = options.capacity_bytes;
        let is_new = Meta::is_blank(&mut files.meta)?;
        // Objects are made last. If they are there, promises have been, too.
        let existing = DiskOptions { capacity_bytes, create: None };
        let create = options.create.as_ref();
        if !is_new {
            let meta = Meta::open(files.meta, None)?;
            let node = meta.identity().node;
            let unused = meta.volumes().next().is_none() && meta.damaged() == 0;
            let create = create.map(|_| node).filter(|_| unused);
            let (objects, recovery) =
                DiskStore::open(files.objects, &DiskOptions { capacity_bytes, create })?;
            if *objects.node() != node {
                return Err(NodeOpenError::Mixed);
            }
            return Ok((Self::assemble(objects, files.journal, meta)?, recovery));
        }
        if !DiskStore::is_blank(&mut files.objects).map_err(DiskError::from)? {
            DiskStore::open(files.objects, &existing)?;
            return Err(MetaError::Missing.into());
        }
        let identity = create.ok_or(MetaError::Missing)?;
        let meta = Meta::open(files.meta, Some(identity))?;
        let new = DiskOptions { capacity_bytes, create: Some(identity.node) };
        let (objects, recovery) = DiskStore::open(files.objects, &new)?;
        Ok((Self::assemble(objects, files.journal, meta)?, recovery))
    }

    /// The disk of objects, to be scrubbed.
    pub fn disk(&mut self) -> &mut DiskStore<F> {
        &mut self.objects
    }
}

impl<S: ShardStore, F: NodeFile> NodeService<S, F> {
    /// A node whose objects are somewhere else; its journals and promises are in `journal` and
    /// `meta`, made if they are blank and `create` says who the node is.
    ///
    /// # Errors
    /// [`NodeOpenError`].
    pub fn with_store(
        objects: S,
        journal: F,
        meta: F,
        create: Option<&NodeIdentity>,
    ) -> Result<Self, NodeOpenError> {
        let meta = Meta::open(meta, create)?;
        Self::assemble(objects, journal, meta)
    }

    fn assemble(objects: S, journal: F, meta: Meta<F>) -> Result<Self, NodeOpenError> {
        let journals = Journals::open(journal, meta.identity().node)?;
        let seed = &meta.identity().acceptor_seed;
        let acceptor = AcceptorKey::signing(seed).ok_or(NodeOpenError::AcceptorKey)?;
        Ok(Self {
            objects,
            journals,
            meta,
            acceptor,
            waiting: Vec::new(),
            tickets: 0,
            quotas: BTreeMap::new(),
            quota_bytes: None,
        })
    }

    /// Limits the bytes of each tenant: `bytes` for those of `tenants`, `others` for all others
    /// (`None`: no limit). The node's owner has no limit.
    pub fn set_quotas(&mut self, tenants: BTreeMap<WriterKey, u64>, others: Option<u64>) {
        self.quotas = tenants;
        self.quota_bytes = others;
    }

    /// The node's name.
    #[must_use]
    pub fn node(&self) -> Uuid {
        self.meta.identity().node
    }

    /// The volumes that the node keeps promises to.
    pub fn volumes(&self) -> impl Iterator<Item = Uuid> {
        self.meta.volumes().map(|(volume, _)| *volume)
    }

    /// The identity of the node's acceptors: the public half of what they sign receipts with.
    #[must_use]
    pub fn acceptor_id(&self) -> AcceptorId {
        self.acceptor.id()
    }

    /// What the store of its objects can do.
    #[must_use]
    pub fn capabilities(&self) -> Capabilities {
        self.objects.capabilities()
    }

    /// The store of its objects.
    pub fn objects(&mut self) -> &mut S {
        &mut self.objects
    }

    /// Does a little of what can wait until nobody waits ([`ShardStore::tidy`]); whether there may be
    /// more.
    pub fn tidy(&mut self) -> bool {
        self.objects.tidy()
    }

    /// Whether somebody waits for a sync.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Pins a volume's writer key if none is pinned, and the acceptors of its register if none are:
    /// what an owner's card said. Durable with the next sync.
    ///
    /// # Errors
    /// [`NodeError::Denied`] if another writer key is pinned; [`NodeError::Unsupported`] if there
    /// are more acceptors than a register has.
    pub fn introduce(
        &mut self,
        volume: &Uuid,
        writer: WriterKey,
        acceptors: &[AcceptorId],
    ) -> Result<(), NodeError> {
        if acceptors.len() > ACCEPTORS_MAX {
            return Err(NodeError::Unsupported);
        }
        let mut record = self.meta.load(volume)?;
        if *record.writer.get_or_insert(writer) != writer {
            return Err(NodeError::Denied);
        }
        if record.members.current.is_empty() {
            record.members = Members { current: acceptors.to_vec(), next: Vec::new() };
        }
        self.meta.store(volume, &record)
    }

    /// Does what `request` asks for, as far as `grants` allow it.
    pub fn handle(&mut self, grants: &Grants, request: Request) -> Handled {
        match self.carry_out(grants, request) {
            Ok(Outcome::Now(response)) => Handled::Done(Ok(response)),
            Err(error) => Handled::Done(Err(error)),
            Ok(Outcome::Later(after, response)) => {
                let ticket = Ticket(self.tickets);
                self.tickets += 1;
                self.waiting.push(Waiting { ticket, after, response });
                Handled::AfterSync(ticket)
            }
        }
    }

    /// Makes everything durable and answers whoever waits for that, in the order of the tickets.
    pub fn sync(&mut self) -> Vec<(Ticket, Result<Response, NodeError>)> {
        let mut answers = self.sync_journals();
        // Promises that came along with objects: their writer's key.
        let meta = self.meta.sync();
        let (objects, journal) = (self.objects.sync(), self.journals.sync());
        for waiting in self.waiting.drain(..) {
            let result = match waiting.after {
                After::Objects => objects.and(meta),
                After::All => objects.and(journal).and(meta),
                After::Journal => journal.and(meta),
                After::Meta => meta,
            };
            answers.push((waiting.ticket, result.map(|()| waiting.response)));
        }
        answers.sort_unstable_by_key(|(ticket, _)| *ticket);
        answers
    }

    /// Makes durable what is quick to: journals and promises, so that a FLUSH need not wait until
    /// the disk has taken the shards that were put beside it. Answers whoever waits for that only.
    pub fn sync_journals(&mut self) -> Vec<(Ticket, Result<Response, NodeError>)> {
        let is_quick =
            |waiting: &mut Waiting| matches!(waiting.after, After::Journal | After::Meta);
        let quick: Vec<Waiting> = self.waiting.extract_if(.., is_quick).collect();
        if quick.is_empty() {
            return Vec::new();
        }
        let meta = self.meta.sync();
        let journal = self.journals.sync();
        let answer = |waiting: Waiting| {
            let journal = if waiting.after == After::Journal { journal } else { Ok(()) };
            (waiting.ticket, journal.and(meta).map(|()| waiting.response))
        };
        quick.into_iter().map(answer).collect()
    }
}
