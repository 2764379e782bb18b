//! The nodes of a volume in directories of this host, each with a thread of its own.
//!
//! A sync of one directory doesn't wait for that of another, and the volume's engine waits for
//! none: completions come over a channel, and an eventfd says so. Used where a process may have
//! threads: NBD, vhost-user, the commands. What comes to a node while it syncs is one batch
//! afterwards: group commit.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, eventfd};
use storage_vdev::Uuid;
use storage_vdev::dir_nodes::{DirNodesError, LocalNode, check_distinct, open_node};
use storage_vdev::files::NodeFile;
use storage_vdev::node::{NODES_MAX, NodeCompletion, NodeError, NodeIndex, Nodes, Request, Tag};
use storage_vdev::service::NodeOptions;

/// Nodes of this process, each with a thread.
#[derive(Debug)]
pub struct ThreadNodes {
    workers: Vec<Worker>,
    completions: Receiver<NodeCompletion>,
    /// For answers that no thread gives.
    answer: Sender<NodeCompletion>,
    ready: Arc<OwnedFd>,
}

#[derive(Debug)]
struct Worker {
    name: String,
    identity: Option<Uuid>,
    /// `None` once it is told to end.
    requests: Option<Sender<(Tag, Request)>>,
    thread: Option<JoinHandle<()>>,
}

impl ThreadNodes {
    /// Opens the nodes in `directories` as [`storage_vdev::dir_nodes::DirNodes::open`] does.
    ///
    /// # Errors
    /// [`DirNodesError`], with [`DirNodesError::System`] if there can be no more threads or
    /// descriptors.
    pub fn open(
        directories: &[PathBuf],
        options: impl Fn(usize) -> NodeOptions,
    ) -> Result<Self, DirNodesError> {
        if directories.len() > NODES_MAX {
            return Err(DirNodesError::TooMany);
        }
        check_distinct(directories)?;
        let open = |(index, path): (usize, &PathBuf)| open_node(path, &options(index));
        let nodes = directories.iter().enumerate().map(open).collect::<Result<Vec<_>, _>>()?;
        Ok(Self::start(nodes)?)
    }

    /// Gives each of `nodes` a thread.
    ///
    /// # Errors
    /// There can be no more threads or descriptors.
    pub fn start<F>(nodes: Vec<LocalNode<F>>) -> io::Result<Self>
    where
        F: NodeFile + Send + 'static,
    {
        let ready = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let (answer, completions) = channel();
        let mut this = Self { workers: Vec::new(), completions, answer, ready };
        for (index, node) in nodes.into_iter().enumerate() {
            let (requests, queue) = channel();
            let (name, identity) = (node.name().to_owned(), node.identity());
            let (answer, ready) = (this.answer.clone(), this.ready.clone());
            let thread = std::thread::Builder::new()
                .name(format!("node-{index}"))
                .spawn(move || work(node, &queue, &answer, &ready))?;
            let (requests, thread) = (Some(requests), Some(thread));
            this.workers.push(Worker { name, identity, requests, thread });
        }
        Ok(this)
    }

    /// A node's own name; `None` if it can't be used.
    #[must_use]
    pub fn identity(&self, node: NodeIndex) -> Option<Uuid> {
        self.workers.get(usize::from(node))?.identity
    }

    /// The eventfd behind [`Nodes::ready_fd`]: writing to it wakes whoever waits for the nodes.
    #[must_use]
    pub fn waker(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.ready)
    }

    /// The nodes that can't be used.
    pub fn unavailable(&self) -> impl Iterator<Item = NodeIndex> {
        let broken = (0..).zip(&self.workers).filter(|(_, worker)| worker.identity.is_none());
        broken.map(|(index, _)| index)
    }
}

/// What a node's thread does: batch after batch, until nobody can ask any more.
fn work<F: NodeFile>(
    mut node: LocalNode<F>,
    queue: &Receiver<(Tag, Request)>,
    answer: &Sender<NodeCompletion>,
    ready: &OwnedFd,
) {
    while let Ok((tag, request)) = queue.recv() {
        node.submit(tag, request);
        for (tag, request) in queue.try_iter() {
            node.submit(tag, request);
        }
        node.run(|completion| {
            // Nobody is told when the other end is gone, and nobody needs to be.
            if answer.send(completion).is_ok() {
                announce(ready);
            }
        });
    }
}

/// Makes the descriptor readable.
fn announce(ready: &OwnedFd) {
    match rustix::io::write(ready, &1_u64.to_ne_bytes()) {
        // A counter that is full is readable.
        Ok(_) | Err(rustix::io::Errno::AGAIN) => {}
        Err(error) => tracing::error!(%error, "an answer can't be announced"),
    }
}

impl Nodes for ThreadNodes {
    fn count(&self) -> usize {
        self.workers.len()
    }

    fn name(&self, node: NodeIndex) -> String {
        self.workers.get(usize::from(node)).map(|worker| worker.name.clone()).unwrap_or_default()
    }

    fn submit(&mut self, node: NodeIndex, tag: Tag, request: Request) {
        let requests =
            self.workers.get(usize::from(node)).and_then(|worker| worker.requests.as_ref());
        let sent = requests.is_some_and(|requests| requests.send((tag, request)).is_ok());
        if !sent {
            let result = Err(NodeError::Unavailable);
            // The other end is in this very value.
            if self.answer.send(NodeCompletion { tag, result }).is_ok() {
                announce(&self.ready);
            }
        }
    }

    fn poll(&mut self, _now_ns: u64) -> Option<NodeCompletion> {
        if let Ok(completion) = self.completions.try_recv() {
            return Some(completion);
        }
        // First the descriptor, then the channel: an answer that comes in between is announced.
        let mut counter = [0; 8];
        match rustix::io::read(&*self.ready, &mut counter) {
            Ok(_) | Err(rustix::io::Errno::AGAIN) => {}
            Err(error) => tracing::error!(%error, "announcements can't be read"),
        }
        self.completions.try_recv().ok()
    }

    fn ready_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.ready.as_fd())
    }

    fn deadline_ns(&self) -> Option<u64> {
        None
    }
}

impl Drop for ThreadNodes {
    /// Waits until the threads have ended, so that the directories are free afterwards. What was
    /// submitted before is carried out.
    fn drop(&mut self) {
        for worker in &mut self.workers {
            worker.requests = None;
        }
        for worker in &mut self.workers {
            let ended = worker.thread.take().map(JoinHandle::join);
            if let Some(Err(_)) = ended {
                tracing::error!(node = worker.name, "the thread of a node has panicked");
            }
        }
    }
}
