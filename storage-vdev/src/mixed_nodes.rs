//! Nodes of two kinds as the nodes of one volume: some on this host, some behind sockets.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::epoll;

use crate::node::{NodeCompletion, NodeIndex, Nodes, Request, Tag};
use crate::wire::SocketNodes;

/// Of which kind a node is, and its number among those of its kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Home {
    /// It is on this host.
    Local(NodeIndex),
    /// It is a shard server.
    Remote(NodeIndex),
}

/// The nodes of a volume, wherever they are. `L` is how those of this host are asked: inside this
/// process, or by threads of their own.
pub struct MixedNodes<L> {
    local: L,
    remote: Option<SocketNodes>,
    homes: Vec<Home>,
    /// Both kinds' descriptors in one, if both have one.
    both: Option<OwnedFd>,
}

impl<L: Nodes> MixedNodes<L> {
    /// The nodes in the order of `homes`. `remote` is `None` if all are local.
    ///
    /// # Errors
    /// The system has no descriptor to give.
    pub fn new(local: L, remote: Option<SocketNodes>, homes: Vec<Home>) -> io::Result<Self> {
        let fds = (local.ready_fd(), remote.as_ref().and_then(Nodes::ready_fd));
        let both = match fds {
            (Some(local), Some(remote)) => {
                let both = epoll::create(epoll::CreateFlags::CLOEXEC)?;
                for fd in [local, remote] {
                    epoll::add(&both, fd, epoll::EventData::new_u64(0), epoll::EventFlags::IN)?;
                }
                Some(both)
            }
            _ => None,
        };
        Ok(Self { local, remote, homes, both })
    }

    /// The local ones.
    #[must_use]
    pub fn local(&self) -> &L {
        &self.local
    }

    /// Where each node is, by its index.
    #[must_use]
    pub fn homes(&self) -> &[Home] {
        &self.homes
    }

    /// Whether all nodes are on this host.
    #[must_use]
    pub fn is_local(&self) -> bool {
        self.remote.is_none()
    }
}

impl<L: Nodes> Nodes for MixedNodes<L> {
    fn count(&self) -> usize {
        self.homes.len()
    }

    fn name(&self, node: NodeIndex) -> String {
        match (self.homes.get(usize::from(node)), &self.remote) {
            (Some(Home::Local(number)), _) => self.local.name(*number),
            (Some(Home::Remote(number)), Some(remote)) => remote.name(*number),
            _ => String::new(),
        }
    }

    fn submit(&mut self, node: NodeIndex, tag: Tag, request: Request) {
        match (self.homes.get(usize::from(node)), &mut self.remote) {
            (Some(Home::Remote(number)), Some(remote)) => remote.submit(*number, tag, request),
            (Some(Home::Local(number)), _) => self.local.submit(*number, tag, request),
            // There is no such node, which is for the local ones to say.
            _ => self.local.submit(NodeIndex::MAX, tag, request),
        }
    }

    fn poll(&mut self, now_ns: u64) -> Option<NodeCompletion> {
        self.local.poll(now_ns).or_else(|| self.remote.as_mut()?.poll(now_ns))
    }

    fn ready_fd(&self) -> Option<BorrowedFd<'_>> {
        let either = || self.local.ready_fd().or_else(|| self.remote.as_ref()?.ready_fd());
        self.both.as_ref().map(OwnedFd::as_fd).or_else(either)
    }

    fn deadline_ns(&self) -> Option<u64> {
        let remote = self.remote.as_ref().and_then(Nodes::deadline_ns);
        [self.local.deadline_ns(), remote].into_iter().flatten().min()
    }
}
