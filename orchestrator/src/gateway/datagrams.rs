//! UDP through a gateway: each client of a door is a flow with a port of the gateway's own, so that
//! the workload's answers find back.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};

use mesh_egress::udp_packet;
use net_vdev::firewall::{Packet, Transport};
use net_vdev::wire::MTU;

use super::config::Target;

/// How many flows there are at most; who was silent for longest gives way.
const FLOWS_MAX: usize = 1024;
/// How long a flow may be silent (RFC 4787 §4.3 asks for two minutes).
const SILENCE_NS: u64 = 120_000_000_000;
/// How many datagrams are taken from one socket before the others have their turn.
const PER_TURN_MAX: usize = 64;
const HEADERS_BYTES: usize = 48;
const PORTS: std::ops::RangeInclusive<u16> = 16384..=65535;

/// A flow: whose it is, and where it leads.
struct Flow {
    door: SocketAddr,
    client: SocketAddr,
    target: Target,
    moved_ns: u64,
}

/// The flows of all doors.
pub(super) struct Flows {
    own: Ipv6Addr,
    by_port: BTreeMap<u16, Flow>,
    ports: BTreeMap<(SocketAddr, SocketAddr), u16>,
    next_port: u16,
    buffer: Vec<u8>,
}

impl Flows {
    pub(super) fn new(own: Ipv6Addr) -> Self {
        let (by_port, ports) = (BTreeMap::new(), BTreeMap::new());
        Self { own, by_port, ports, next_port: *PORTS.start(), buffer: vec![0; 65_536] }
    }

    /// Takes what clients sent to a door; `send` hands packets to the mesh. Whether there was any.
    pub(super) fn take(
        &mut self,
        now_ns: u64,
        (door, socket): (SocketAddr, &UdpSocket),
        target: Target,
        send: &mut dyn FnMut(&[u8]),
    ) -> bool {
        for count in 0..PER_TURN_MAX {
            let (len, client) = match socket.recv_from(&mut self.buffer) {
                Ok(received) => received,
                Err(error) => {
                    if error.kind() != io::ErrorKind::WouldBlock {
                        tracing::debug!(%error, %door, "receiving from a client");
                    }
                    return count > 0;
                }
            };
            let port = self.port(now_ns, door, client, target);
            let payload = self.buffer.get(..len).unwrap_or_default();
            let (from, to) = ((self.own, port).into(), (target.address, target.port).into());
            // What the mesh does not carry whole it does not carry.
            if let Some(packet) = udp_packet(from, to, payload).filter(|it| it.len() <= MTU) {
                send(&packet);
            }
        }
        true
    }

    /// The gateway's port of a client's flow.
    fn port(&mut self, now_ns: u64, door: SocketAddr, client: SocketAddr, target: Target) -> u16 {
        if let Some(port) = self.ports.get(&(door, client)).copied()
            && let Some(flow) = self.by_port.get_mut(&port)
        {
            flow.moved_ns = now_ns;
            flow.target = target;
            return port;
        }
        if self.by_port.len() >= FLOWS_MAX {
            let oldest = self.by_port.iter().min_by_key(|(_, flow)| flow.moved_ns);
            if let Some((port, _)) = oldest.map(|(port, flow)| (*port, flow.moved_ns)) {
                self.remove(port);
            }
        }
        // There are more ports than flows.
        let mut port = self.next_port;
        while self.by_port.contains_key(&port) {
            port = after(port);
        }
        self.next_port = after(port);
        self.by_port.insert(port, Flow { door, client, target, moved_ns: now_ns });
        self.ports.insert((door, client), port);
        port
    }

    fn remove(&mut self, port: u16) {
        if let Some(flow) = self.by_port.remove(&port) {
            self.ports.remove(&(flow.door, flow.client));
        }
    }

    /// A packet of UDP came from the mesh: the door and the client that it is for, and its payload.
    pub(super) fn answer<'a>(
        &mut self,
        now_ns: u64,
        bytes: &'a [u8],
    ) -> Option<(SocketAddr, SocketAddr, &'a [u8])> {
        let packet = Packet::parse(bytes).ok()?;
        let Transport::Udp(ports) = packet.transport else { return None };
        let flow = self.by_port.get_mut(&ports.destination)?;
        let is_targets =
            packet.source == IpAddr::V6(flow.target.address) && ports.source == flow.target.port;
        flow.moved_ns = if is_targets { now_ns } else { flow.moved_ns };
        let payload = bytes.get(HEADERS_BYTES..packet.len).filter(|_| is_targets)?;
        Some((flow.door, flow.client, payload))
    }

    /// Forgets flows that are silent for too long, and those of doors that are gone.
    pub(super) fn expire(&mut self, now_ns: u64, is_door: impl Fn(&SocketAddr) -> bool) {
        let is_over = |flow: &Flow| {
            now_ns.saturating_sub(flow.moved_ns) >= SILENCE_NS || !is_door(&flow.door)
        };
        let over = self.by_port.iter().filter(|(_, flow)| is_over(flow));
        let over: Vec<u16> = over.map(|(port, _)| *port).collect();
        over.into_iter().for_each(|port| self.remove(port));
    }
}

fn after(port: u16) -> u16 {
    port.checked_add(1).unwrap_or(*PORTS.start())
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const OWN: Ipv6Addr = Ipv6Addr::new(0x400, 0, 0, 0, 0, 0, 0, 1);
    const WORKLOAD: Ipv6Addr = Ipv6Addr::new(0x400, 0, 0, 0, 0, 0, 0, 2);

    fn target() -> Target {
        Target { address: WORKLOAD, port: 53, proxy_protocol: false }
    }

    #[test]
    fn answers_of_the_workload_find_the_client_and_others_do_not() {
        let mut flows = Flows::new(OWN);
        let door = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let (at, of) = (door.local_addr().unwrap(), client.local_addr().unwrap());
        client.send_to(b"question", at).unwrap();
        door.set_nonblocking(true).unwrap();
        let mut sent = Vec::new();
        assert!(flows.take(1, (at, &door), target(), &mut |packet| sent.push(packet.to_vec())));
        let [packet] = sent.try_into().unwrap();
        assert_eq!(&packet[48..], b"question");
        let own_port = u16::from_be_bytes([packet[40], packet[41]]);
        let answer = |from: (Ipv6Addr, u16), port| {
            udp_packet(from.into(), (OWN, port).into(), b"answer").unwrap()
        };
        let right = answer((WORKLOAD, 53), own_port);
        assert_eq!(flows.answer(2, &right), Some((at, of, &b"answer"[..])));
        for wrong in [
            answer((WORKLOAD, 54), own_port),
            answer((OWN, 53), own_port),
            answer((WORKLOAD, 53), own_port + 1),
        ] {
            assert_eq!(flows.answer(2, &wrong), None);
        }
        flows.expire(2 + SILENCE_NS, |_| true);
        assert_eq!(flows.answer(3, &right), None);
    }

    #[test]
    fn a_flood_of_clients_keeps_its_number_and_the_newest() {
        let mut flows = Flows::new(OWN);
        let door: SocketAddr = "127.0.0.1:53".parse().unwrap();
        for number in 0..3 * FLOWS_MAX as u64 {
            let client = SocketAddr::from((Ipv4Addr::from_bits(number as u32), 9));
            flows.port(number, door, client, target());
            assert!(flows.by_port.len() <= FLOWS_MAX && flows.ports.len() == flows.by_port.len());
        }
        flows.expire(u64::MAX / 2, |_| true);
        assert_eq!((flows.by_port.len(), flows.ports.len()), (0, 0));
    }
}
