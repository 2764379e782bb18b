//! What a daemon waits for, and which of it has something: a turn asks the kernel only about that, as
//! each question costs as much as sealing a packet.

use std::os::fd::AsFd;

use net_vdev::socket::Socket;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::Timespec;

use super::{Daemon, NodeError};
use crate::clock::boot_ns;
use crate::discovery::Discovery;
use crate::exit::Exit;
use crate::interfaces::Interfaces;
use crate::tun::Tun;

/// Where something may come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// UDP sockets.
    Network,
    /// The host's card.
    Card,
    /// Sockets of the way out.
    Exit,
    /// Those who ask the node, or tell it something.
    Orders,
    /// The kernel's news about interfaces.
    Interfaces,
    /// The socket for nodes of local networks.
    Discovery,
    /// Cards of VMs.
    Uplink,
    /// TCP connections.
    Stream,
}

const SOURCES: usize = Source::Stream as usize + 1;

/// What the kernel said about each kind of source.
pub(super) struct Ready([PollFlags; SOURCES]);

impl Ready {
    /// Whether it has something, be it an error.
    pub(super) fn has(&self, source: Source) -> bool {
        !self.of(source).is_empty()
    }

    /// Whether an error waits there.
    pub(super) fn has_error(&self, source: Source) -> bool {
        self.of(source).contains(PollFlags::ERR)
    }

    fn of(&self, source: Source) -> PollFlags {
        self.0.get(source as usize).copied().unwrap_or(PollFlags::empty())
    }
}

impl Daemon {
    /// Waits until there is something to do; half a second at most, to see `stop`.
    pub(super) fn wait(&self) -> Result<Ready, NodeError> {
        const LONGEST_NS: u64 = 500_000_000;
        const ERRAND_NS: u64 = 20_000_000;
        let now_ns = boot_ns();
        let longest_ns = if self.errands.is_empty() { LONGEST_NS } else { ERRAND_NS };
        let exit_ns = self.outside.exit.as_ref().and_then(|exit| exit.next_deadline(now_ns));
        let due_ns = [self.core.next_deadline(), exit_ns].into_iter().flatten().min();
        let due_ns = due_ns.map_or(longest_ns, |it| it.saturating_sub(now_ns));
        let nanoseconds = i64::try_from(due_ns.min(longest_ns)).unwrap_or(0);
        let timeout = Timespec { tv_sec: 0, tv_nsec: nanoseconds };
        let (sources, mut entries) = self.watched(now_ns);
        match poll(&mut entries, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(NodeError::Poll(error.into())),
        }
        let mut ready = Ready([PollFlags::empty(); SOURCES]);
        for (source, entry) in sources.iter().zip(&entries) {
            if let Some(flags) = ready.0.get_mut(*source as usize) {
                *flags |= entry.revents();
            }
        }
        Ok(ready)
    }

    /// All that may have something, and what kind each is.
    fn watched(&self, now_ns: u64) -> (Vec<Source>, Vec<PollFd<'_>>) {
        let outside = &self.outside;
        let udp = outside.udp.iter().map(|it| (Source::Network, Socket::as_fd(it)));
        let card = outside.tun.iter().map(|it| (Source::Card, Tun::as_fd(it)));
        let exit = outside.exit.iter().map(|it| (Source::Exit, Exit::as_fd(it)));
        let interfaces = self.interfaces.iter();
        let interfaces = interfaces.map(|it| (Source::Interfaces, Interfaces::as_fd(it)));
        let discovery = self.discovery.iter();
        let discovery = discovery.map(|it| (Source::Discovery, Discovery::as_fd(it)));
        let orders = [(Source::Orders, self.orders.as_fd())];
        let uplinks = [(Source::Uplink, self.uplinks.as_fd())];
        let read = udp.chain(card).chain(exit).chain(interfaces).chain(discovery);
        let read = read.chain(orders).chain(uplinks);
        let read = read.map(|(source, fd)| (source, PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        let streams = outside.streams.poll_fds(now_ns).map(|entry| (Source::Stream, entry));
        read.chain(streams).unzip()
    }
}
