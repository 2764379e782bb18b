//! Who may talk to a member: inbound is denied unless a rule opens it or it answers.
//!
//! * What this member sends opens a flow, if the outbound rules let it (without any, it may reach
//!   everybody); what comes back on it is let in, and so are ICMP errors about it from the same peer.
//! * With outbound rules, an echo reply or ICMP error goes out that is about what this peer sent and was
//!   let in, or if a rule lets this member send echoes there: neither carries bytes past the rules.
//! * What a peer sends otherwise needs a [`Rule`] that names the whole 32-byte key of the session
//!   that the packet came through, or a label of which the peer has shown a certificate; the
//!   protocol; and the port if the rule has one.
//! * When a peer loses a label, the flows that only this label allowed stop in both directions.
//! * Fragments, IPv4 options, IPv6 extension headers and other protocols pass neither way.
//! * What would pass is counted against the member's [`Caps`], so that what is denied costs it none.
//!
//! Both ends enforce their rules: the sender's outbound rules before a packet is sealed, the
//! receiver's inbound rules before it reaches the member.
//!
//! A flow table that is full never locks an allowed peer out: rules are asked again for each packet
//! without a flow.

mod flow;
mod meter;
mod packet;
mod rules;

use std::net::IpAddr;

pub use flow::FLOWS_MAX;
use flow::{FlowKey, FlowTable, Side, Standing};
use meter::Meter;
pub use packet::{Original, Packet, PacketError, Ports, Protocol, TcpFlags, Transport};
use rules::RuleSet;
pub use rules::{Caps, Party, Policy, Rule, Who};

use crate::identity::PublicKey;

/// What the firewall decided about a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It passes.
    Pass,
    /// No rule lets it through and no flow expects it; or it is of a kind that never leaves a link.
    Deny,
    /// It might pass, but the member has used up what it may send or receive.
    Cap,
}

/// The firewall of one member.
pub struct Firewall {
    ingress: RuleSet,
    egress: Option<RuleSet>,
    flows: FlowTable,
    evictions: u64,
    inbound: Meter,
    outbound: Meter,
}

impl Firewall {
    /// A firewall that lets through what `policy` says. `keys` are random and secret.
    #[must_use]
    pub fn new(policy: &Policy, keys: [u64; 2]) -> Self {
        Self {
            ingress: RuleSet::new(&policy.ingress),
            egress: policy.egress.as_deref().map(RuleSet::new),
            flows: FlowTable::new(keys),
            evictions: 0,
            inbound: Meter::new(policy.caps),
            outbound: Meter::new(policy.caps),
        }
    }

    /// Lets flows in that `rules` say from now on, and no new ones else.
    pub fn set_rules(&mut self, rules: &[Rule]) {
        self.ingress = RuleSet::new(rules);
    }

    /// Judges a packet that this member sends to the peer `to`, and expects its answers.
    pub fn outbound(&mut self, now_ns: u64, to: Party<'_>, packet: &Packet) -> Verdict {
        self.outbound_frame(now_ns, to, packet, 1)
    }

    /// Judges a super-frame that will be cut into so many packets of one flow.
    pub fn outbound_frame(
        &mut self,
        now_ns: u64,
        to: Party<'_>,
        frame: &Packet,
        packets: usize,
    ) -> Verdict {
        match self.judge_outbound(now_ns, to, frame) {
            Verdict::Pass if !self.outbound.take(now_ns, packets, frame.len) => Verdict::Cap,
            verdict => verdict,
        }
    }

    /// Judges a packet that came through the session of the peer `from`.
    pub fn inbound(&mut self, now_ns: u64, from: Party<'_>, packet: &Packet) -> Verdict {
        self.inbound_frame(now_ns, from, packet, 1)
    }

    /// The same for a super-frame that stands for so many packets.
    pub fn inbound_frame(
        &mut self,
        now_ns: u64,
        from: Party<'_>,
        frame: &Packet,
        packets: usize,
    ) -> Verdict {
        match self.judge_inbound(now_ns, from, frame) {
            Verdict::Pass if !self.inbound.take(now_ns, packets, frame.len) => Verdict::Cap,
            verdict => verdict,
        }
    }

    /// Judges one more packet, of so many bytes, that differs from the one before in nothing that the
    /// rules or its flow look at.
    pub fn inbound_more(&mut self, now_ns: u64, bytes: usize) -> Verdict {
        if self.inbound.take(now_ns, 1, bytes) { Verdict::Pass } else { Verdict::Cap }
    }

    /// Whether a packet of a peer's is of a flow that passes now. Changes nothing.
    pub fn expects(&mut self, now_ns: u64, from: &PublicKey, packet: &Packet) -> bool {
        let key = match packet.transport {
            Transport::Error(original) => original.map(|original| quoted_flow(&original, from)),
            _ => flow_of(packet, Side::Peer, from).map(|(key, _)| key),
        };
        let standing = key.and_then(|key| self.flows.standing(now_ns, &key));
        matches!(standing, Some(Standing::Open(_)))
    }

    /// Takes note that `peer` has no labels any more but those: the flows that they don't allow stop.
    /// It looks at the whole table, and labels change seldom.
    pub fn relabel(&mut self, peer: Party<'_>) {
        let Self { ingress, egress, flows, .. } = self;
        flows.revoke(peer.key, |opened_by, key| {
            let port = |port| if key.protocol == Protocol::Icmp { None } else { Some(port) };
            match opened_by {
                Side::Peer => ingress.allow(peer, key.protocol, port(key.local_port)),
                Side::Local => {
                    let port = port(key.remote_port);
                    egress.as_ref().is_none_or(|rules| rules.allow(peer, key.protocol, port))
                }
            }
        });
    }

    /// Whether outbound rules name labels, so that a peer's have to be known before it is sent to.
    #[must_use]
    pub fn needs_labels_to_send(&self) -> bool {
        self.egress.as_ref().is_some_and(RuleSet::has_labels)
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

    fn judge_outbound(&mut self, now_ns: u64, to: Party<'_>, packet: &Packet) -> Verdict {
        let Some((key, flags)) = flow_of(packet, Side::Local, to.key) else {
            return self.judge_answer(now_ns, to, packet);
        };
        let opens = flags.is_some_and(TcpFlags::opens)
            || matches!(packet.transport, Transport::EchoRequest(_));
        match self.flows.touch(now_ns, &key, Side::Local, flags) {
            Some(Standing::Open(Side::Local)) => return Verdict::Pass,
            // A new connection on the ports of an old one that the peer had opened is this side's.
            Some(Standing::Open(Side::Peer)) if !opens => return Verdict::Pass,
            Some(Standing::Revoked(Side::Peer)) if !opens => return Verdict::Deny,
            Some(_) | None => {}
        }
        // Answers pass without a rule: the packet that they answer has opened the flow, or opened it
        // again if it had to give way to others.
        let port = (key.protocol != Protocol::Icmp).then_some(key.remote_port);
        if self.egress.as_ref().is_some_and(|rules| !rules.allow(to, key.protocol, port)) {
            return Verdict::Deny;
        }
        self.evictions += u64::from(self.flows.insert(now_ns, &key, Side::Local, flags));
        Verdict::Pass
    }

    /// Judges what this side sends outside of flows of its own: answers to echoes, and errors.
    fn judge_answer(&mut self, now_ns: u64, to: Party<'_>, packet: &Packet) -> Verdict {
        let about = match packet.transport {
            Transport::EchoReply(identifier) => {
                let ends = (packet.source, packet.destination);
                Some(echo_flow(to.key, ends, identifier))
            }
            Transport::Error(original) => original.map(|it| quoted_flow(&it.reversed(), to.key)),
            _ => return Verdict::Deny,
        };
        let Some(egress) = &self.egress else { return Verdict::Pass };
        let standing = about.and_then(|key| self.flows.standing(now_ns, &key));
        let is_about_a_flow = matches!(standing, Some(Standing::Open(_)));
        pass_if(is_about_a_flow || egress.allow(to, Protocol::Icmp, None))
    }

    fn judge_inbound(&mut self, now_ns: u64, from: Party<'_>, packet: &Packet) -> Verdict {
        match packet.transport {
            Transport::Tcp { ports, flags } => {
                self.inbound_flow(now_ns, from, packet, (ports.destination, Some(flags)))
            }
            Transport::Udp(ports) => {
                self.inbound_flow(now_ns, from, packet, (ports.destination, None))
            }
            Transport::EchoRequest(identifier) => {
                self.inbound_echo(now_ns, from, packet, identifier)
            }
            Transport::EchoReply(_) => {
                let flow = flow_of(packet, Side::Peer, from.key);
                pass_if(flow.is_some_and(|(key, flags)| {
                    let standing = self.flows.touch(now_ns, &key, Side::Peer, flags);
                    matches!(standing, Some(Standing::Open(_)))
                }))
            }
            Transport::Error(Some(original)) => {
                let key = quoted_flow(&original, from.key);
                let expected = original.source == packet.destination;
                let standing = self.flows.standing(now_ns, &key);
                pass_if(expected && matches!(standing, Some(Standing::Open(_))))
            }
            Transport::Error(None) | Transport::OtherIcmp => Verdict::Deny,
        }
    }

    fn inbound_echo(
        &mut self,
        now_ns: u64,
        from: Party<'_>,
        packet: &Packet,
        identifier: u16,
    ) -> Verdict {
        if !self.ingress.allow(from, Protocol::Icmp, None) {
            return Verdict::Deny;
        }
        // Without outbound rules the reply needs no flow.
        if self.egress.is_some() {
            let key = echo_flow(from.key, (packet.destination, packet.source), identifier);
            if self.flows.touch(now_ns, &key, Side::Peer, None).is_none() {
                self.evictions += u64::from(self.flows.insert(now_ns, &key, Side::Peer, None));
            }
        }
        Verdict::Pass
    }

    fn inbound_flow(
        &mut self,
        now_ns: u64,
        from: Party<'_>,
        packet: &Packet,
        (port, flags): (u16, Option<TcpFlags>),
    ) -> Verdict {
        let Some((key, _)) = flow_of(packet, Side::Peer, from.key) else { return Verdict::Deny };
        // A peer may not open a connection on the ports of a flow that this side opened.
        let opens = flags.is_some_and(TcpFlags::opens);
        let standing = self.flows.standing(now_ns, &key);
        if let Some(Standing::Open(opener)) = standing
            && !(opens && opener == Side::Local)
        {
            self.flows.touch(now_ns, &key, Side::Peer, flags);
            return Verdict::Pass;
        }
        if !self.ingress.allow(from, key.protocol, Some(port)) {
            return Verdict::Deny;
        }
        // With a flow of this side's on the same ports, the rule lets the packet in and no more.
        if !matches!(standing, Some(Standing::Open(_) | Standing::Revoked(Side::Local))) {
            self.evictions += u64::from(self.flows.insert(now_ns, &key, Side::Peer, flags));
        }
        Verdict::Pass
    }
}

fn pass_if(passes: bool) -> Verdict {
    if passes { Verdict::Pass } else { Verdict::Deny }
}

/// The flow that a packet of `sender` belongs to, if its kind has flows. An echo reply of this side
/// has none: it answers what a rule let in.
fn flow_of(packet: &Packet, sender: Side, peer: &PublicKey) -> Option<(FlowKey, Option<TcpFlags>)> {
    let (local, remote) = match sender {
        Side::Local => (packet.source, packet.destination),
        Side::Peer => (packet.destination, packet.source),
    };
    let (protocol, ports, flags) = match (packet.transport, sender) {
        (Transport::Tcp { ports, flags }, _) => (Protocol::Tcp, ports, Some(flags)),
        (Transport::Udp(ports), _) => (Protocol::Udp, ports, None),
        (Transport::EchoRequest(identifier), Side::Local)
        | (Transport::EchoReply(identifier), Side::Peer) => {
            return Some((echo_flow(peer, (local, remote), identifier), None));
        }
        _ => return None,
    };
    let (local_port, remote_port) = match sender {
        Side::Local => (ports.source, ports.destination),
        Side::Peer => (ports.destination, ports.source),
    };
    Some((FlowKey { peer: *peer, protocol, local, remote, local_port, remote_port }, flags))
}

/// The flow of echoes with `peer` between this side's address and the other's, whoever asks.
fn echo_flow(peer: &PublicKey, (local, remote): (IpAddr, IpAddr), identifier: u16) -> FlowKey {
    FlowKey {
        peer: *peer,
        protocol: Protocol::Icmp,
        local,
        remote,
        local_port: identifier,
        remote_port: identifier,
    }
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
