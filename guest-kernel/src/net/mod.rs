//! The network: a virtio card, smoltcp on top of it, and sockets to await.
//!
//! The stack runs when the loop polls it: once when a wait has returned (frames in), once when the
//! tasks have run (frames out). What a task writes to a socket therefore leaves with the next wait,
//! in the same exit that fetches the peer's answer.

pub mod names;
pub mod nic;
mod offload;
pub mod tcp;
pub mod udp;

use alloc::collections::VecDeque;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::RefCell;

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::socket::tcp as smol_tcp;
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, IpAddress, IpCidr, Ipv6Address};

use crate::runtime::Driver;
use nic::Nic;

/// Why a socket can't do what it was asked to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NetError {
    /// The peer (or its host) refused or reset the connection, or it timed out.
    Reset,
    /// This side has closed the connection for writing.
    Closed,
    /// There is no address of the family that the peer's address needs.
    Unaddressable,
    /// The port is in use.
    PortInUse,
}

impl core::fmt::Display for NetError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Reset => "the connection was refused or reset",
            Self::Closed => "the connection is closed",
            Self::Unaddressable => "no local address can reach the peer",
            Self::PortInUse => "the port is in use",
        })
    }
}

impl core::error::Error for NetError {}

/// The router's address as far as the stack has to name one: the card is the only other end of its
/// link and answers for whatever address it is asked about.
const ROUTER: Ipv6Address = Ipv6Address::new(0x400, 0, 0, 0, 0, 0, 0, 0);
/// The first port for connections that this side opens (RFC 6335 §6).
const EPHEMERAL_PORT_FIRST: u16 = 49_152;
/// How many closed connections may linger in TIME-WAIT; the oldest gives way. Each holds the
/// buffers of a socket.
const LINGERING_MAX: usize = 32;

/// A network card with its stack. Clones are handles of the same one.
#[derive(Clone)]
pub struct Net {
    inner: Rc<RefCell<Inner>>,
}

struct Inner {
    nic: Nic,
    interface: Interface,
    sockets: SocketSet<'static>,
    /// Connections that their owners have dropped and that still say goodbye.
    closing: VecDeque<SocketHandle>,
    next_port: u16,
}

impl Net {
    /// A stack with `addresses` on `nic`; every address that they cover is on-link, and the card is
    /// the router to the others (those of IPv4 outside of the mesh, 64:ff9b::/96). `seed` feeds
    /// initial sequence numbers and port choice: it must not be guessable.
    #[must_use]
    pub fn new(mut nic: Nic, addresses: &[IpCidr], seed: u64, now_ns: u64) -> Self {
        let mut config = Config::new(nic.mac().into());
        config.random_seed = seed;
        let mut interface = Interface::new(config, &mut nic, instant(now_ns));
        interface.update_ip_addrs(|own| {
            // The stack has room for a fixed number; the VMM gives a card at most two.
            own.extend(addresses.iter().copied().take(own.capacity()));
        });
        // Never refused: there is room for a route, and this is the first.
        _ = interface.routes_mut().add_default_ipv6_route(ROUTER);
        let ports = u64::from(u16::MAX - EPHEMERAL_PORT_FIRST) + 1;
        let next_port = EPHEMERAL_PORT_FIRST + (seed.rotate_left(32) % ports) as u16;
        let sockets = SocketSet::new(Vec::new());
        let closing = VecDeque::new();
        Self { inner: Rc::new(RefCell::new(Inner { nic, interface, sockets, closing, next_port })) }
    }

    /// The card's hardware address.
    #[must_use]
    pub fn mac(&self) -> EthernetAddress {
        self.inner.borrow().nic.mac()
    }

    /// The card's addresses.
    #[must_use]
    pub fn addresses(&self) -> Vec<IpCidr> {
        self.inner.borrow().interface.ip_addrs().to_vec()
    }

    /// How many sockets the stack holds, those that say goodbye included.
    #[must_use]
    pub fn socket_count(&self) -> usize {
        self.inner.borrow().sockets.iter().count()
    }
}

impl Driver for Net {
    fn poll(&self, now_ns: u64) {
        let inner = &mut *self.inner.borrow_mut();
        inner.nic.begin();
        // The stack's poll ends when the card has nothing more to give; only a wait adds to that.
        inner.interface.poll(instant(now_ns), &mut inner.nic, &mut inner.sockets);
        inner.bury();
        inner.nic.end();
    }

    fn deadline_ns(&self, now_ns: u64) -> Option<u64> {
        let inner = &mut *self.inner.borrow_mut();
        let at = inner.interface.poll_at(instant(now_ns), &inner.sockets)?;
        Some(u64::try_from(at.total_micros()).unwrap_or(0).saturating_mul(1_000))
    }
}

impl Inner {
    fn tcp(&mut self, handle: SocketHandle) -> &mut smol_tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    fn ephemeral_port(&mut self) -> u16 {
        let port = self.next_port;
        self.next_port = port.checked_add(1).unwrap_or(EPHEMERAL_PORT_FIRST);
        port
    }

    /// Forgets connections whose goodbye is over, and the oldest TIME-WAIT beyond the limit.
    fn bury(&mut self) {
        let (sockets, mut lingering) = (&mut self.sockets, 0);
        let mut kept = VecDeque::with_capacity(self.closing.len());
        // Newest first, so that the oldest are the ones over the limit.
        while let Some(handle) = self.closing.pop_back() {
            let state = sockets.get_mut::<smol_tcp::Socket<'_>>(handle).state();
            lingering += usize::from(state == smol_tcp::State::TimeWait);
            let over = state == smol_tcp::State::TimeWait && lingering > LINGERING_MAX;
            if state == smol_tcp::State::Closed || over {
                sockets.remove(handle);
            } else {
                kept.push_front(handle);
            }
        }
        self.closing = kept;
    }
}

/// smoltcp counts microseconds: rounded down, so that a deadline is never seen too early.
fn instant(now_ns: u64) -> Instant {
    Instant::from_micros(i64::try_from(now_ns / 1_000).unwrap_or(i64::MAX))
}

/// Whether `address` is one of `own`.
fn is_local(own: &[IpCidr], address: &IpAddress) -> bool {
    own.iter().any(|cidr| cidr.address() == *address)
}
