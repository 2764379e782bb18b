//! Who may talk to a member: inbound is denied unless a rule opens it or it answers.
//!
//! * What this member sends opens a flow; what comes back on it is let in, and so are ICMP errors
//!   about it from the same peer.
//! * What a peer sends otherwise needs a [`Rule`] that names the whole 32-byte key of the session
//!   that the packet came through, the protocol, and the port if the rule has one.
//! * Fragments, IPv4 options, IPv6 extension headers and other protocols pass neither way.
//!
//! A flow table that is full never locks an allowed peer out: rules are asked again for each packet
//! without a flow.

mod flow;
mod packet;

use std::collections::BTreeSet;

pub use flow::FLOWS_MAX;
use flow::{FlowKey, FlowTable, Side};
pub use packet::{Original, Packet, PacketError, Ports, Protocol, TcpFlags, Transport};

use crate::identity::PublicKey;

/// Lets the flows in that `from` opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    /// The whole key of the peer.
    pub from: PublicKey,
    /// The protocol.
    pub protocol: Protocol,
    /// The destination port, or `None` for all of them; of no meaning for ICMP.
    pub port: Option<u16>,
}

/// What the firewall decided about a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It passes.
    Pass,
    /// No rule lets it in and no flow expects it; or it is of a kind that never leaves a link.
    Deny,
}

/// The firewall of one member.
pub struct Firewall {
    rules: BTreeSet<Rule>,
    flows: FlowTable,
    evictions: u64,
}

impl Firewall {
    /// A firewall that lets in what `rules` say. `keys` are random and secret.
    #[must_use]
    pub fn new(rules: &[Rule], keys: [u64; 2]) -> Self {
        let mut firewall =
            Self { rules: BTreeSet::new(), flows: FlowTable::new(keys), evictions: 0 };
        firewall.set_rules(rules);
        firewall
    }

    /// Lets in what `rules` say from now on, and no new flow else.
    pub fn set_rules(&mut self, rules: &[Rule]) {
        let normal = |rule: &Rule| match rule.protocol {
            Protocol::Icmp => Rule { port: None, ..*rule },
            Protocol::Tcp | Protocol::Udp => *rule,
        };
        self.rules = rules.iter().map(normal).collect();
    }

    /// Judges a packet that this member sends to the peer `to`, and expects its answers.
    pub fn outbound(&mut self, now_ns: u64, to: &PublicKey, packet: &Packet) -> Verdict {
        let Some((key, flags)) = flow_of(packet, Side::Local, to) else {
            return match packet.transport {
                Transport::OtherIcmp => Verdict::Deny,
                _ => Verdict::Pass,
            };
        };
        let opens = flags.is_some_and(TcpFlags::opens);
        let opener = self.flows.touch(now_ns, &key, Side::Local, flags);
        // A new connection on the ports of an old one that the peer had opened is this side's now.
        if opener.is_none() || (opens && opener == Some(Side::Peer)) {
            self.evictions += u64::from(self.flows.insert(now_ns, &key, Side::Local, flags));
        }
        Verdict::Pass
    }

    /// Judges a packet that came through the session of the peer `from`.
    pub fn inbound(&mut self, now_ns: u64, from: &PublicKey, packet: &Packet) -> Verdict {
        match packet.transport {
            Transport::Tcp { ports, flags } => {
                self.inbound_flow(now_ns, from, packet, ports.destination, Some(flags))
            }
            Transport::Udp(ports) => {
                self.inbound_flow(now_ns, from, packet, ports.destination, None)
            }
            Transport::EchoRequest(_) => self.ruled(from, Protocol::Icmp, None),
            Transport::EchoReply(_) => {
                let flow = flow_of(packet, Side::Peer, from);
                pass_if(flow.is_some_and(|(key, flags)| {
                    self.flows.touch(now_ns, &key, Side::Peer, flags).is_some()
                }))
            }
            Transport::Error(Some(original)) => {
                let key = quoted_flow(&original, from);
                let expected = original.source == packet.destination;
                pass_if(expected && self.flows.opener(now_ns, &key).is_some())
            }
            Transport::Error(None) | Transport::OtherIcmp => Verdict::Deny,
        }
    }

    /// How many slots for flows are in memory; never more than [`FLOWS_MAX`].
    #[must_use]
    pub fn flow_capacity(&self) -> usize {
        self.flows.capacity()
    }

    /// How many living flows had to give way to others.
    #[must_use]
    pub fn evictions(&self) -> u64 {
        self.evictions
    }

    fn inbound_flow(
        &mut self,
        now_ns: u64,
        from: &PublicKey,
        packet: &Packet,
        port: u16,
        flags: Option<TcpFlags>,
    ) -> Verdict {
        let Some((key, _)) = flow_of(packet, Side::Peer, from) else { return Verdict::Deny };
        // A peer may not open a connection on the ports of a flow that this side opened.
        let opens = flags.is_some_and(TcpFlags::opens);
        let opener = self.flows.opener(now_ns, &key);
        if opener.is_some() && !(opens && opener == Some(Side::Local)) {
            self.flows.touch(now_ns, &key, Side::Peer, flags);
            return Verdict::Pass;
        }
        let verdict = self.ruled(from, key.protocol, Some(port));
        if verdict == Verdict::Pass && opener.is_none() {
            self.evictions += u64::from(self.flows.insert(now_ns, &key, Side::Peer, flags));
        }
        verdict
    }

    fn ruled(&self, from: &PublicKey, protocol: Protocol, port: Option<u16>) -> Verdict {
        let rule = |port| Rule { from: *from, protocol, port };
        pass_if(self.rules.contains(&rule(None)) || self.rules.contains(&rule(port)))
    }
}

fn pass_if(passes: bool) -> Verdict {
    if passes { Verdict::Pass } else { Verdict::Deny }
}

/// The flow that a packet of `sender` belongs to, if its kind has flows. An echo reply of this side
/// has none: it answers what a rule let in.
fn flow_of(packet: &Packet, sender: Side, peer: &PublicKey) -> Option<(FlowKey, Option<TcpFlags>)> {
    let (protocol, ports, flags) = match (packet.transport, sender) {
        (Transport::Tcp { ports, flags }, _) => (Protocol::Tcp, ports, Some(flags)),
        (Transport::Udp(ports), _) => (Protocol::Udp, ports, None),
        (Transport::EchoRequest(identifier), Side::Local)
        | (Transport::EchoReply(identifier), Side::Peer) => {
            (Protocol::Icmp, Ports { source: identifier, destination: identifier }, None)
        }
        _ => return None,
    };
    let (local, remote, local_port, remote_port) = match sender {
        Side::Local => (packet.source, packet.destination, ports.source, ports.destination),
        Side::Peer => (packet.destination, packet.source, ports.destination, ports.source),
    };
    Some((FlowKey { peer: *peer, protocol, local, remote, local_port, remote_port }, flags))
}

/// The flow of the packet that an ICMP error from `peer` quotes: this side must have sent it.
fn quoted_flow(original: &Original, peer: &PublicKey) -> FlowKey {
    FlowKey {
        peer: *peer,
        protocol: original.protocol,
        local: original.source,
        remote: original.destination,
        local_port: original.ports.source,
        remote_port: original.ports.destination,
    }
}
