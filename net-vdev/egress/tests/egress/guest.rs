//! A member with smoltcp's stack, behind a path that loses and reorders packets from a seed.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp;
use smoltcp::time::Instant;
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr, IpEndpoint};

use crate::world::{MEMBER, World};

/// How bad the path is, in packets of a thousand.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Path {
    pub(crate) lost: u64,
    pub(crate) reordered: u64,
    pub(crate) duplicated: u64,
}

struct Queues {
    inbound: VecDeque<Vec<u8>>,
    outbound: Vec<Vec<u8>>,
}

struct Received(Vec<u8>);

struct Sending<'a>(&'a mut Vec<Vec<u8>>);

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut packet = vec![0; len];
        let result = f(&mut packet);
        self.0.push(packet);
        result
    }
}

impl Device for Queues {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sending<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Received, Sending<'_>)> {
        let packet = self.inbound.pop_front()?;
        Some((Received(packet), Sending(&mut self.outbound)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Sending<'_>> {
        Some(Sending(&mut self.outbound))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = 1400;
        capabilities
    }
}

pub(crate) struct Guest {
    pub(crate) world: World,
    queues: Queues,
    interface: Interface,
    sockets: SocketSet<'static>,
    path: Path,
    random: u64,
    seed: u64,
    held: Vec<(u64, bool, Vec<u8>)>,
}

impl Guest {
    pub(crate) fn new(world: World, path: Path, seed: u64) -> Self {
        let mut queues = Queues { inbound: VecDeque::new(), outbound: Vec::new() };
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut interface = Interface::new(config, &mut queues, Instant::from_micros(0));
        interface.update_ip_addrs(|addresses| {
            addresses.push(IpCidr::new(IpAddress::Ipv6(MEMBER.address()), 7)).unwrap();
        });
        interface.routes_mut().add_default_ipv6_route(MEMBER.address()).unwrap();
        let sockets = SocketSet::new(Vec::new());
        Self { world, queues, interface, sockets, path, random: seed | 1, seed, held: Vec::new() }
    }

    pub(crate) fn connect(&mut self, to: SocketAddr, port: u16) -> SocketHandle {
        let buffer = || tcp::SocketBuffer::new(vec![0; 200_000]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        let IpAddr::V6(ip) = to.ip() else { panic!("{to} is IPv4") };
        let to = IpEndpoint::new(IpAddress::Ipv6(ip), to.port());
        socket.connect(self.interface.context(), to, port).unwrap();
        self.sockets.add(socket)
    }

    pub(crate) fn socket(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    fn chance(&mut self, of_thousand: u64) -> bool {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % 1000 < of_thousand
    }

    /// Puts a packet on the path.
    fn pass(&mut self, outward: bool, packet: Vec<u8>) {
        if self.chance(self.path.lost) {
            return;
        }
        let mut delay_ns = 500_000;
        if self.chance(self.path.reordered) {
            delay_ns += 3_000_000;
        }
        if self.chance(self.path.duplicated) {
            self.held.push((self.world.now_ns + 2 * delay_ns, outward, packet.clone()));
        }
        self.held.push((self.world.now_ns + delay_ns, outward, packet));
    }

    /// Goes on for a millisecond.
    pub(crate) fn step(&mut self) {
        self.world.now_ns += 1_000_000;
        let now_ns = self.world.now_ns;
        let (arrived, held): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.held).into_iter().partition(|(at_ns, ..)| *at_ns <= now_ns);
        self.held = held;
        for (_, outward, packet) in arrived {
            if outward { self.world.send(&packet) } else { self.queues.inbound.push_back(packet) }
        }
        let now = Instant::from_micros((now_ns / 1000) as i64);
        self.interface.poll(now, &mut self.queues, &mut self.sockets);
        for packet in std::mem::take(&mut self.queues.outbound) {
            self.pass(true, packet);
        }
        for packet in self.world.turn() {
            self.pass(false, packet);
        }
    }

    /// The ICMP messages among what is on its way to the member.
    pub(crate) fn take_icmp(&mut self) -> Vec<Vec<u8>> {
        let packets = self.held.iter().filter(|(_, outward, packet)| !outward && packet[6] == 58);
        packets.map(|(.., packet)| packet.clone()).collect()
    }

    /// Goes on until `done`; panics with the seed if that takes longer than it may.
    pub(crate) fn until(
        &mut self,
        milliseconds: u64,
        what: &str,
        mut done: impl FnMut(&mut Self) -> bool,
    ) {
        for _ in 0..milliseconds {
            if done(self) {
                return;
            }
            self.step();
        }
        panic!("seed {}: not {what} in {milliseconds} ms", self.seed);
    }
}
