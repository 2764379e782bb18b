//! A volume that this process has open, driven by the calling thread.

use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use storage_vdev::engine::{
    Command, OpenError, OpenOptions, Opening, Output, Randomness, RequestError, RequestId, Status,
    Volume,
};
use storage_vdev::node::{NodeError, NodeIndex, Nodes, Request, Response, Tag};

use crate::clock;

/// How often whoever waits is told how far it is.
const TICK: Duration = Duration::from_millis(200);

/// An open volume and who drives it.
pub struct Session<N> {
    volume: Volume<N>,
    next_id: RequestId,
}

impl<N: Nodes> Session<N> {
    /// Opens the volume and waits until it is open. `waiting` is called now and then.
    ///
    /// # Errors
    /// The volume's reason.
    pub fn open(
        nodes: N,
        options: OpenOptions,
        random: Randomness,
        mut waiting: impl FnMut(),
    ) -> Result<Self, OpenError> {
        let mut opening: Opening<N> = Volume::open(nodes, options, random);
        loop {
            if let Some(opened) = opening.poll(clock::boot_ns()) {
                return opened.map(|volume| Self { volume, next_id: 0 });
            }
            wait(opening.ready_fd(), opening.deadline_ns());
            waiting();
        }
    }

    /// The volume.
    pub fn volume(&self) -> &Volume<N> {
        &self.volume
    }

    /// Gives the volume away, to a face.
    pub fn into_volume(self) -> Volume<N> {
        self.volume
    }

    /// Does what `command` says and waits for it. `waiting` sees the volume's state now and then.
    ///
    /// # Errors
    /// The volume's reason.
    pub fn command(
        &mut self,
        command: Command,
        waiting: impl FnMut(&Status),
    ) -> Result<Output, RequestError> {
        let id = self.id();
        self.volume.submit_command(id, command);
        self.finish(id, waiting)
    }

    /// Makes everything durable and gives the volume up.
    ///
    /// # Errors
    /// What was not flushed may be lost.
    pub fn close(mut self) -> Result<(), RequestError> {
        let id = self.id();
        self.volume.submit_close(id);
        self.finish(id, |_| {}).map(|_| ())
    }

    fn id(&mut self) -> RequestId {
        self.next_id += 1;
        self.next_id
    }

    fn finish(
        &mut self,
        id: RequestId,
        mut waiting: impl FnMut(&Status),
    ) -> Result<Output, RequestError> {
        loop {
            while let Some(completion) = self.volume.poll(clock::boot_ns()) {
                if completion.id == id {
                    return completion.result;
                }
            }
            wait(self.volume.ready_fd(), self.volume.deadline_ns());
            waiting(&self.volume.status());
        }
    }
}

/// Waits until the descriptor is readable or the deadline passes, and no longer than a tick.
pub(crate) fn wait(ready: Option<std::os::fd::BorrowedFd<'_>>, deadline_ns: Option<u64>) {
    let left = deadline_ns
        .map_or(TICK, |at| Duration::from_nanos(at.saturating_sub(clock::boot_ns())).min(TICK));
    let timeout = Timespec { tv_sec: 0, tv_nsec: i64::from(left.subsec_nanos()) };
    let mut sources: Vec<PollFd<'_>> =
        ready.into_iter().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
    // An interrupted wait is a short one.
    _ = poll(&mut sources, Some(&timeout));
}

/// Nodes that are asked one thing at a time, without a volume.
pub struct Exchange<N> {
    nodes: N,
    next_tag: Tag,
}

impl<N: Nodes> Exchange<N> {
    /// Asks `nodes`.
    pub fn new(nodes: N) -> Self {
        Self { nodes, next_tag: 0 }
    }

    /// The nodes.
    pub fn nodes(&self) -> &N {
        &self.nodes
    }

    /// Asks a node and waits for its answer.
    ///
    /// # Errors
    /// The node's.
    pub fn ask(&mut self, node: NodeIndex, request: Request) -> Result<Response, NodeError> {
        self.next_tag += 1;
        let tag = self.next_tag;
        self.nodes.submit(node, tag, request);
        loop {
            while let Some(completion) = self.nodes.poll(clock::boot_ns()) {
                if completion.tag == tag {
                    return completion.result;
                }
            }
            wait(self.nodes.ready_fd(), self.nodes.deadline_ns());
        }
    }
}
