//! The nodes of a volume in directories of this host, each with a thread of its own.
//!
//! A sync of one directory doesn't wait for that of another, and the volume's engine waits for
//! none: completions come over a channel, and an eventfd says so. Used where a process may have
//! threads: NBD, vhost-user, the commands. What comes to a node while it syncs is one batch
//! afterwards: group commit.
//!
//! A read that a node without anything to do can serve from the page cache costs less than waking
//! its thread and being woken by it: it is done where it is submitted.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, eventfd};
use storage_vdev::Uuid;
use storage_vdev::dir_nodes::{DirNodesError, LocalNode, check_distinct, open_node};
use storage_vdev::files::NodeFile;
use storage_vdev::node::{
    NODES_MAX, NodeCompletion, NodeError, NodeIndex, Nodes, Request, Response, Tag,
};
use storage_vdev::service::NodeOptions;

/// Nodes of this process, each with a thread.
#[derive(Debug)]
pub struct ThreadNodes {
    workers: Vec<Worker>,
    completions: Receiver<(NodeIndex, NodeCompletion)>,
    answer: Sender<(NodeIndex, NodeCompletion)>,
    /// Answers that no thread gives.
    done: VecDeque<NodeCompletion>,
    ready: Arc<OwnedFd>,
}

/// [`LocalNode::answer_cached`] of a node that is shared with its thread.
type ReadCached = Box<dyn Fn(&Request) -> Option<Response> + Send>;

struct Worker {
    name: String,
    identity: Option<Uuid>,
    read_cached: ReadCached,
    /// How many requests its thread has not answered.
    under_way: usize,
    /// `None` once it is told to end.
    requests: Option<Sender<(Tag, Request)>>,
    thread: Option<JoinHandle<()>>,
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker").field("name", &self.name).finish_non_exhaustive()
    }
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
        let done = VecDeque::new();
        let mut this = Self { workers: Vec::new(), completions, answer, done, ready };
        for (index, node) in (0..).zip(nodes) {
            let (requests, queue) = channel();
            let (name, identity) = (node.name().to_owned(), node.identity());
            let (answer, ready) = (this.answer.clone(), this.ready.clone());
            let node = Arc::new(Mutex::new(node));
            let read_cached = {
                let node = Arc::clone(&node);
                Box::new(move |request: &Request| node.lock().ok()?.answer_cached(request))
            };
            let thread = std::thread::Builder::new()
                .name(format!("node-{index}"))
                .spawn(move || work((index, &node), &queue, &answer, &ready))?;
            let (requests, thread) = (Some(requests), Some(thread));
            this.workers.push(Worker {
                name,
                identity,
                read_cached,
                under_way: 0,
                requests,
                thread,
            });
        }
        Ok(this)
    }

    /// A node's own name; `None` if it can't be used.
    #[must_use]
    pub fn identity(&self, node: NodeIndex) -> Option<Uuid> {
        self.workers.get(usize::from(node))?.identity
    }

    /// Gives an answer without the node's thread.
    fn answer_here(&mut self, completion: NodeCompletion) {
        if self.done.is_empty() {
            announce(&self.ready);
        }
        self.done.push_back(completion);
    }

    /// The next answer of a thread.
    fn take(&mut self) -> Option<NodeCompletion> {
        let (node, completion) = self.completions.try_recv().ok()?;
        let worker = self.workers.get_mut(usize::from(node))?;
        worker.under_way = worker.under_way.saturating_sub(1);
        Some(completion)
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
    (index, node): (NodeIndex, &Mutex<LocalNode<F>>),
    queue: &Receiver<(Tag, Request)>,
    answer: &Sender<(NodeIndex, NodeCompletion)>,
    ready: &OwnedFd,
) {
    while let Ok((tag, request)) = queue.recv() {
        // Who shares it only reads: a panic there has left nothing half done.
        let mut node = node.lock().unwrap_or_else(PoisonError::into_inner);
        node.submit(tag, request);
        for (tag, request) in queue.try_iter() {
            node.submit(tag, request);
        }
        node.run(|completion| {
            // Nobody is told when the other end is gone, and nobody needs to be.
            if answer.send((index, completion)).is_ok() {
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
        let worker = self.workers.get_mut(usize::from(node));
        // Behind a request of before, a read goes to the thread, so that it sees what that does.
        let idle = worker.as_deref().filter(|worker| worker.under_way == 0);
        if let Some(response) = idle.and_then(|worker| (worker.read_cached)(&request)) {
            return self.answer_here(NodeCompletion { tag, result: Ok(response) });
        }
        let sent = worker.is_some_and(|worker| {
            let requests = worker.requests.as_ref();
            let sent = requests.is_some_and(|requests| requests.send((tag, request)).is_ok());
            worker.under_way += usize::from(sent);
            sent
        });
        if !sent {
            self.answer_here(NodeCompletion { tag, result: Err(NodeError::Unavailable) });
        }
    }

    fn poll(&mut self, _now_ns: u64) -> Option<NodeCompletion> {
        if let Some(completion) = self.done.pop_front().or_else(|| self.take()) {
            return Some(completion);
        }
        // First the descriptor, then the channel: an answer that comes in between is announced.
        let mut counter = [0; 8];
        match rustix::io::read(&*self.ready, &mut counter) {
            Ok(_) | Err(rustix::io::Errno::AGAIN) => {}
            Err(error) => tracing::error!(%error, "announcements can't be read"),
        }
        self.take()
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
