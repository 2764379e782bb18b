//! The nodes of a volume in directories of this host, inside the process that has the volume open.
//!
//! A request is queued when it is submitted, and all that are queued are carried out together inside
//! `poll`, with one sync per file that has something to be made durable. After [`DirNodes::open`]
//! the only system calls are `pread64`, `pwrite64`, `fdatasync` and `fallocate` on descriptors that
//! are open by then.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use crate::disk::DiskStore;
use crate::files::{DirectoryError, NodeFile, NodeFiles, RealFile, open_directory};
use crate::keys::Uuid;
use crate::node::{NODES_MAX, NodeCompletion, NodeError, NodeIndex, Nodes, Request, Response, Tag};
use crate::service::{Grants, Handled, NodeOpenError, NodeOptions, NodeService, Ticket};

/// Why directories can't be the nodes of a volume. Nothing was changed in them.
#[derive(Debug, thiserror::Error)]
pub enum DirNodesError {
    /// More than [`NODES_MAX`].
    #[error("a volume has at most {NODES_MAX} nodes")]
    TooMany,
    /// The same directory was given twice: losing it would lose two shards.
    #[error("{} and {} are the same directory", first.display(), second.display())]
    Same {
        /// One.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
    /// Another process has it open.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The system has no more threads or descriptors for them.
    #[error("no resources for the storage nodes: {0}")]
    System(#[from] std::io::Error),
}

/// A node of this process.
#[derive(Debug)]
pub struct LocalNode<F> {
    name: String,
    /// `None`: it can't be used.
    service: Option<NodeService<DiskStore<F>, F>>,
    queue: VecDeque<(Tag, Request)>,
    waiting: Vec<(Ticket, Tag)>,
}

impl<F: NodeFile> LocalNode<F> {
    /// A node over files that are open.
    ///
    /// # Errors
    /// [`NodeOpenError`].
    pub fn open(
        name: String,
        files: NodeFiles<F>,
        options: &NodeOptions,
    ) -> Result<Self, NodeOpenError> {
        let (service, recovery) = NodeService::open(files, options)?;
        if recovery.damaged_slots + recovery.superseded > 0 {
            tracing::warn!(node = name, ?recovery, "some objects of the node are lost");
        }
        let service = Some(service);
        Ok(Self { name, service, queue: VecDeque::new(), waiting: Vec::new() })
    }

    /// A node that can't be used: whatever it is asked is answered [`NodeError::Unavailable`].
    #[must_use]
    pub fn unavailable(name: String) -> Self {
        Self { name, service: None, queue: VecDeque::new(), waiting: Vec::new() }
    }

    /// How to name it to a person.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The service, to be looked after; `None` if the node can't be used.
    pub fn service(&mut self) -> Option<&mut NodeService<DiskStore<F>, F>> {
        self.service.as_mut()
    }

    /// Its own name, 16 random bytes; `None` if it can't be used.
    #[must_use]
    pub fn identity(&self) -> Option<Uuid> {
        self.service.as_ref().map(NodeService::node)
    }

    /// Answers a read of part of an object at once, if no disk has to be waited for. Nothing may be
    /// queued.
    #[must_use]
    pub fn answer_cached(&mut self, request: &Request) -> Option<Response> {
        let Request::Get { key, offset, len } = request else { return None };
        let service = self.service.as_mut()?;
        service.disk().get_cached(key, *offset, *len).map(Response::Bytes)
    }

    /// Queues a request.
    pub fn submit(&mut self, tag: Tag, request: Request) {
        self.queue.push_back((tag, request));
    }

    /// Carries out what is queued, syncs once, and hands each answer to `done`.
    pub fn run(&mut self, mut done: impl FnMut(NodeCompletion)) {
        let Some(service) = &mut self.service else {
            for (tag, _) in self.queue.drain(..) {
                done(NodeCompletion { tag, result: Err(NodeError::Unavailable) });
            }
            return;
        };
        let owner = Grants::all();
        let mut deleted = false;
        for (tag, request) in self.queue.drain(..) {
            deleted |= matches!(request, Request::Delete { .. });
            match service.handle(&owner, request) {
                Handled::Done(result) => done(NodeCompletion { tag, result }),
                Handled::AfterSync(ticket) => self.waiting.push((ticket, tag)),
            }
        }
        if self.waiting.is_empty() {
            return;
        }
        let quick = service.sync_journals();
        answer(&mut self.waiting, quick, &mut done);
        if !self.waiting.is_empty() {
            let rest = service.sync();
            answer(&mut self.waiting, rest, &mut done);
        }
        for (_, tag) in self.waiting.drain(..) {
            done(NodeCompletion { tag, result: Err(NodeError::Failed) });
        }
        if deleted {
            // A piece at a time: there is nobody who would do it while nothing is asked.
            service.tidy();
        }
    }
}

/// Hands answers to those who wait for them; both are in the order of the tickets.
fn answer(
    waiting: &mut Vec<(Ticket, Tag)>,
    answers: Vec<(Ticket, Result<Response, NodeError>)>,
    done: &mut impl FnMut(NodeCompletion),
) {
    let mut answers = answers.into_iter().peekable();
    waiting.retain(|(ticket, tag)| match answers.next_if(|(answered, _)| answered == ticket) {
        Some((_, result)) => {
            done(NodeCompletion { tag: *tag, result });
            false
        }
        None => true,
    });
}

/// Directories of this host as the nodes of a volume.
#[derive(Debug)]
pub struct DirNodes {
    nodes: Vec<LocalNode<RealFile>>,
    busy: u64,
    done: VecDeque<NodeCompletion>,
}

impl DirNodes {
    /// Opens the nodes in `directories`, in this order, each locked as long as the value lives.
    ///
    /// `options` says for each how it is opened; with `create` in them, missing ones are made. One
    /// that can't be used counts as unavailable; [`DirNodes::unavailable`] tells which. Call it
    /// before the process confines itself.
    ///
    /// # Errors
    /// [`DirNodesError`].
    pub fn open(
        directories: &[PathBuf],
        options: impl Fn(usize) -> NodeOptions,
    ) -> Result<Self, DirNodesError> {
        if directories.len() > NODES_MAX {
            return Err(DirNodesError::TooMany);
        }
        check_distinct(directories)?;
        let mut nodes = Vec::with_capacity(directories.len());
        for (index, path) in directories.iter().enumerate() {
            nodes.push(open_node(path, &options(index))?);
        }
        Ok(Self { nodes, busy: 0, done: VecDeque::new() })
    }

    /// The nodes that can't be used.
    pub fn unavailable(&self) -> impl Iterator<Item = NodeIndex> {
        let broken = (0..).zip(&self.nodes).filter(|(_, node)| node.service.is_none());
        broken.map(|(index, _)| index)
    }

    /// A node's own name; `None` if it can't be used.
    #[must_use]
    pub fn identity(&self, node: NodeIndex) -> Option<Uuid> {
        self.nodes.get(usize::from(node))?.identity()
    }

    /// One of the nodes, to be scrubbed or looked after.
    pub fn node(&mut self, node: NodeIndex) -> Option<&mut LocalNode<RealFile>> {
        self.nodes.get_mut(usize::from(node))
    }
}

/// Opens one directory as a node; one that is broken is no error, one in use is.
///
/// # Errors
/// [`DirectoryError::InUse`].
pub fn open_node(
    path: &Path,
    options: &NodeOptions,
) -> Result<LocalNode<RealFile>, DirectoryError> {
    let name = path.display().to_string();
    let files = match open_directory(path, options.create.is_some()) {
        Ok(files) => files,
        Err(error @ DirectoryError::InUse { .. }) => return Err(error),
        Err(error) => {
            tracing::warn!(%error, "a storage node can't be used");
            return Ok(LocalNode::unavailable(name));
        }
    };
    Ok(LocalNode::open(name.clone(), files, options).unwrap_or_else(|error| {
        tracing::warn!(node = name, %error, "a storage node can't be used");
        LocalNode::unavailable(name)
    }))
}

/// Refuses two names of one directory, made or still to be made.
///
/// # Errors
/// [`DirNodesError::Same`].
pub fn check_distinct(directories: &[PathBuf]) -> Result<(), DirNodesError> {
    let mut seen: Vec<(&PathBuf, PathBuf)> = Vec::with_capacity(directories.len());
    for path in directories {
        let real = real_path(path);
        if let Some((first, _)) = seen.iter().find(|(_, other)| *other == real) {
            return Err(DirNodesError::Same { first: (*first).clone(), second: path.clone() });
        }
        seen.push((path, real));
    }
    Ok(())
}

/// The path without links, as far as it exists.
fn real_path(path: &Path) -> PathBuf {
    if let Ok(real) = path.canonicalize() {
        return real;
    }
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) if !parent.as_os_str().is_empty() => {
            real_path(parent).join(name)
        }
        (_, Some(name)) => std::env::current_dir().unwrap_or_default().join(name),
        _ => path.to_path_buf(),
    }
}

impl Nodes for DirNodes {
    fn count(&self) -> usize {
        self.nodes.len()
    }

    fn name(&self, node: NodeIndex) -> String {
        self.nodes.get(usize::from(node)).map(|node| node.name.clone()).unwrap_or_default()
    }

    fn submit(&mut self, node: NodeIndex, tag: Tag, request: Request) {
        match self.nodes.get_mut(usize::from(node)) {
            Some(target) => {
                target.submit(tag, request);
                self.busy |= 1 << node;
            }
            None => {
                let result = Err(NodeError::Unavailable);
                self.done.push_back(NodeCompletion { tag, result });
            }
        }
    }

    fn poll(&mut self, _now_ns: u64) -> Option<NodeCompletion> {
        while self.done.is_empty() && self.busy != 0 {
            let index = self.busy.trailing_zeros();
            self.busy &= self.busy - 1;
            if let Some(node) = self.nodes.get_mut(index as usize) {
                node.run(|completion| self.done.push_back(completion));
            }
        }
        self.done.pop_front()
    }

    fn ready_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn deadline_ns(&self) -> Option<u64> {
        None
    }
}
