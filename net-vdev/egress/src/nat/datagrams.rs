//! UDP and ICMP echo.

use std::net::{IpAddr, SocketAddr};

use net_vdev::firewall::Ports;
use net_vdev::offload::VirtioNetHeader;
use net_vdev::wire::MTU;

use super::flows::{Carried, Ends, Flow};
use super::{Deliver, Nat, Outbound, consequence};
use crate::counters::DropReason;
use crate::packet::{self, UDP_BYTES};
use crate::sockets::{Kind, SocketError, Sockets};

/// RFC 6146 §4: five minutes for UDP, one for ICMP.
const UDP_IDLE_NS: u64 = 300_000_000_000;
const ECHO_IDLE_NS: u64 = 60_000_000_000;
/// How many datagrams of one flow are taken in one turn.
const DATAGRAMS_PER_TURN: usize = 64;
const ECHO_REQUEST_V4: u8 = 8;
const ECHO_REPLY_V4: u8 = 0;
const ECHO_REPLY_V6: u8 = 129;

/// When a flow was idle for too long.
pub(super) fn idle_at_ns(flow: &Flow) -> u64 {
    let idle_ns = match flow.carried {
        Carried::Echo => ECHO_IDLE_NS,
        Carried::Udp | Carried::Tcp(_) => UDP_IDLE_NS,
    };
    flow.touched_ns.saturating_add(idle_ns)
}

impl Nat {
    /// A datagram of a member's.
    pub(super) fn take_datagram(
        &mut self,
        now_ns: u64,
        sockets: &mut impl Sockets,
        outbound: &Outbound<'_>,
        ports: Ports,
    ) -> Result<(), DropReason> {
        outbound.check(packet::UDP)?;
        let datagram = outbound.transport();
        // The firewall's parser has seen that this is within the packet.
        let len = datagram.get(4..6).and_then(<[u8]>::first_chunk::<2>);
        let len = usize::from(len.map_or(0, |bytes| u16::from_be_bytes(*bytes)));
        let payload = datagram.get(UDP_BYTES..len).ok_or(DropReason::Malformed)?;
        if ports.destination == 0 || ports.source == 0 {
            return Err(DropReason::Malformed);
        }
        let ends = outbound.ends(packet::UDP, ports.source, ports.destination);
        let place = match self.table.find(&ends) {
            Some(place) => place,
            None => self.open_datagrams(now_ns, sockets, outbound, ends)?,
        };
        self.send(now_ns, sockets, outbound, place, payload)
    }

    /// An echo request of a member's.
    pub(super) fn take_echo(
        &mut self,
        now_ns: u64,
        sockets: &mut impl Sockets,
        outbound: &Outbound<'_>,
        identifier: u16,
    ) -> Result<(), DropReason> {
        let is_ipv6 = outbound.packet.source.is_ipv6();
        outbound.check(if is_ipv6 { packet::ICMPV6 } else { packet::ICMP })?;
        let ends = outbound.ends(packet::ICMP, identifier, 0);
        let place = match self.table.find(&ends) {
            Some(place) => place,
            None => self.open_datagrams(now_ns, sockets, outbound, ends)?,
        };
        let mut message = outbound.transport().to_vec();
        // The kernel puts the socket's own identifier in, and computes the checksum.
        packet::put(&mut message, 0, &[ECHO_REQUEST_V4, 0, 0, 0]);
        self.send(now_ns, sockets, outbound, place, &message)
    }

    fn open_datagrams(
        &mut self,
        now_ns: u64,
        sockets: &mut impl Sockets,
        outbound: &Outbound<'_>,
        ends: Ends,
    ) -> Result<usize, DropReason> {
        self.admit(now_ns, sockets, outbound, &ends, 0)?;
        let token = self.table.next_token();
        let to = SocketAddr::new(IpAddr::V4(outbound.to), ends.outer.port());
        let port = self.table.port(&ends);
        let (kind, carried) = if ends.protocol == packet::UDP {
            (Kind::Udp { port }, Carried::Udp)
        } else {
            (Kind::Echo, Carried::Echo)
        };
        let mut opened = sockets.open(token, kind, to);
        if opened.is_err() && port.is_some() {
            // Another program has the port by now, to the same place.
            opened = sockets.open(token, Kind::Udp { port: None }, to);
        }
        if let Err(error) = opened {
            let (reason, trouble) = consequence(error);
            if let Some(trouble) = trouble {
                self.tell_trouble(trouble, outbound);
            }
            return Err(reason);
        }
        if ends.protocol == packet::UDP
            && let Some(port) = sockets.port(token)
        {
            self.table.use_port(&ends, port);
        }
        let place = self.table.insert(now_ns, ends, token, carried);
        self.counters.flows += 1;
        if let Some(flow) = self.table.get(place) {
            let due_ns = idle_at_ns(flow);
            self.table.arm(place, due_ns);
        }
        Ok(place)
    }

    fn send(
        &mut self,
        now_ns: u64,
        sockets: &mut impl Sockets,
        outbound: &Outbound<'_>,
        place: usize,
        payload: &[u8],
    ) -> Result<(), DropReason> {
        let Some(flow) = self.table.get_mut(place) else { return Ok(()) };
        flow.touched_ns = now_ns;
        let token = flow.token;
        let mut outcome = sockets.send(token, payload);
        if let Err(SocketError::Refused | SocketError::Unreachable) = outcome {
            // The error is about an earlier datagram; this one was not sent yet.
            let (_, trouble) = consequence(SocketError::Refused);
            if let Some(trouble) = trouble {
                self.tell_trouble(trouble, outbound);
            }
            outcome = sockets.send(token, payload);
        }
        match outcome {
            Ok(_) => {
                self.counters.bytes_out += payload.len() as u64;
                Ok(())
            }
            Err(error) => {
                let (reason, trouble) = consequence(error);
                if let Some(trouble) = trouble {
                    self.tell_trouble(trouble, outbound);
                }
                Err(reason)
            }
        }
    }

    /// Takes what came in on a flow of datagrams.
    pub(super) fn flush_datagrams(
        &mut self,
        now_ns: u64,
        sockets: &mut impl Sockets,
        place: usize,
        deliver: &mut Deliver<'_>,
    ) {
        let Some(flow) = self.table.get_mut(place) else { return };
        let (token, ends) = (flow.token, flow.ends);
        let is_echo = matches!(flow.carried, Carried::Echo);
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut taken = 0;
        while taken < DATAGRAMS_PER_TURN {
            taken += 1;
            match sockets.receive(token, &mut buffer) {
                Ok(len) => {
                    let datagram = buffer.get(..len).unwrap_or_default();
                    let packet = if is_echo {
                        reply(&ends, datagram)
                    } else {
                        packet::udp(ends.outer, ends.inner, datagram)
                    };
                    self.answer(now_ns, place, packet, deliver);
                }
                Err(SocketError::WouldBlock) => break,
                Err(error) => {
                    let (_, trouble) = consequence(error);
                    let notice = trouble.and_then(|trouble| {
                        let about = packet::udp(ends.inner, ends.outer, &[])?;
                        packet::trouble(trouble, ends.outer.ip(), ends.inner.ip(), &about)
                    });
                    self.counters.drop(DropReason::Refused);
                    self.notify(ends.member, notice.filter(|_| !is_echo));
                    if matches!(error, SocketError::Broken | SocketError::Exhausted) {
                        self.remove(sockets, place);
                        break;
                    }
                }
            }
        }
        self.buffer = buffer;
        if taken == DATAGRAMS_PER_TURN {
            self.table.mark(place);
        }
    }

    fn answer(
        &mut self,
        now_ns: u64,
        place: usize,
        packet: Option<Vec<u8>>,
        deliver: &mut Deliver<'_>,
    ) {
        let Some(packet) = packet.filter(|packet| packet.len() <= MTU) else {
            // The mesh carries no fragments of IP.
            return self.counters.drop(DropReason::TooLarge);
        };
        let Some(flow) = self.table.get_mut(place) else { return };
        flow.touched_ns = now_ns;
        let member = flow.ends.member;
        let Some(member) = self.table.member(member) else { return };
        if !member.into.take(now_ns, packet.len(), 1) {
            return self.counters.drop(DropReason::OverCap);
        }
        self.counters.packets_in += 1;
        self.counters.bytes_in += packet.len() as u64;
        deliver(&member.key, &VirtioNetHeader::default(), &packet);
    }
}

/// An echo reply as its member knows it; `None` if the message is none.
fn reply(ends: &Ends, message: &[u8]) -> Option<Vec<u8>> {
    let ([kind, code, _, _, _, _, rest @ ..], data) = message.split_first_chunk::<8>()?;
    if (*kind, *code) != (ECHO_REPLY_V4, 0) {
        return None;
    }
    let is_ipv6 = ends.inner.is_ipv6();
    let (protocol, kind) =
        if is_ipv6 { (packet::ICMPV6, ECHO_REPLY_V6) } else { (packet::ICMP, ECHO_REPLY_V4) };
    let mut frame = Vec::with_capacity(packet::IPV6_BYTES + message.len());
    packet::begin(&mut frame, ends.outer.ip(), ends.inner.ip(), protocol);
    frame.extend_from_slice(&[kind, 0, 0, 0]);
    frame.extend_from_slice(&ends.inner.port().to_be_bytes());
    frame.extend_from_slice(rest);
    frame.extend_from_slice(data);
    packet::seal(&mut frame)?;
    Some(frame)
}
