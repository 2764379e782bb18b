//! What an endpoint counts.

/// Why a packet or datagram was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum DropReason {
    /// From this member: a packet that the firewall can't judge (fragment, extension, protocol).
    OutboundMalformed,
    /// From this member: larger than the mesh's MTU.
    OutboundOversize,
    /// From this member: the source is not one of its own addresses.
    OutboundSource,
    /// From this member: no peer has the destination address.
    OutboundNoRoute,
    /// From this member: of a kind that never leaves a link.
    OutboundDenied,
    /// From this member: more than its caps let pass.
    OutboundCap,
    /// From this member: nobody knows where the peer is.
    OutboundNoEndpoint,
    /// From this member: too many packets wait for the peer's handshake; the oldest went.
    OutboundWaiting,
    /// From this member: the peer did not answer the handshake.
    OutboundUnanswered,
    /// From this member: the transmit queue is full.
    OutboundQueue,
    /// Not a datagram of this version.
    Wire,
    /// A handshake message for somebody else.
    HandshakeMac,
    /// Too many handshake messages.
    HandshakeRate,
    /// A handshake message that does not verify.
    HandshakeForged,
    /// An initiation that is not newer than the last one.
    HandshakeReplayed,
    /// An initiation under a key that is no peer's.
    HandshakeStranger,
    /// A response to no handshake that is under way.
    HandshakeUnasked,
    /// An initiation that gave way to this side's own.
    HandshakeCrossed,
    /// A cookie that answers no initiation of this side's.
    HandshakeCookie,
    /// The peer does not do ML-KEM-768, which this member requires.
    HandshakePostQuantum,
    /// A piece of a handshake datagram that waited in vain for the other one, or does not fit it.
    HandshakePiece,
    /// Data of no session.
    DataSession,
    /// Data seen before, or too late to tell.
    DataReplayed,
    /// Data that does not verify.
    DataForged,
    /// An unknown-session notice that names no session of its sender.
    Notice,
    /// From a peer: a packet that the firewall can't judge.
    InboundMalformed,
    /// From a peer: the source is not one of its addresses.
    InboundSource,
    /// From a peer: the destination is not one of this member's addresses.
    InboundDestination,
    /// From a peer: nothing lets it in.
    InboundDenied,
    /// From a peer: more than this member's caps let pass.
    InboundCap,
    /// From a peer: a control message that is none of this version's.
    InboundControl,
    /// A packet passed on by the router of this member's node, of a member that it has no session
    /// with.
    LocalStranger,
    /// A relayed frame that is not from a neighbour, or where none is expected.
    HopUnexpected,
    /// A relayed frame whose tag does not verify, or that was seen before.
    HopForged,
}

impl DropReason {
    /// Its name in metrics: `inbound_denied`.
    #[must_use]
    pub fn name(self) -> String {
        let mut name = String::new();
        for letter in format!("{self:?}").chars() {
            if letter.is_ascii_uppercase() && !name.is_empty() {
                name.push('_');
            }
            name.push(letter.to_ascii_lowercase());
        }
        name
    }

    /// All reasons, in the order of their numbers.
    pub const ALL: [Self; 34] = [
        Self::OutboundMalformed,
        Self::OutboundOversize,
        Self::OutboundSource,
        Self::OutboundNoRoute,
        Self::OutboundDenied,
        Self::OutboundCap,
        Self::OutboundNoEndpoint,
        Self::OutboundWaiting,
        Self::OutboundUnanswered,
        Self::OutboundQueue,
        Self::Wire,
        Self::HandshakeMac,
        Self::HandshakeRate,
        Self::HandshakeForged,
        Self::HandshakeReplayed,
        Self::HandshakeStranger,
        Self::HandshakeUnasked,
        Self::HandshakeCrossed,
        Self::HandshakeCookie,
        Self::HandshakePostQuantum,
        Self::HandshakePiece,
        Self::DataSession,
        Self::DataReplayed,
        Self::DataForged,
        Self::Notice,
        Self::InboundMalformed,
        Self::InboundSource,
        Self::InboundDestination,
        Self::InboundDenied,
        Self::InboundCap,
        Self::InboundControl,
        Self::LocalStranger,
        Self::HopUnexpected,
        Self::HopForged,
    ];
}

/// A count for each reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Drops([u64; DropReason::ALL.len()]);

impl Default for Drops {
    fn default() -> Self {
        Self([0; DropReason::ALL.len()])
    }
}

/// What an endpoint has done so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets sealed and queued for the socket.
    pub packets_sent: u64,
    /// Their bytes, without the mesh's headers.
    pub bytes_sent: u64,
    /// Those of them that went as they were, to members attached to the same router.
    pub packets_local: u64,
    /// Packets received and let in.
    pub packets_received: u64,
    /// Their bytes, without the mesh's headers.
    pub bytes_received: u64,
    /// Initiations sent, retries included.
    pub initiations_sent: u64,
    /// Handshakes completed, on either side.
    pub handshakes: u64,
    /// How often a peer was found at a new socket address.
    pub roamed: u64,
    /// Unknown-session notices sent.
    pub notices_sent: u64,
    /// Cookies sent, to addresses that too many initiations came from.
    pub cookies_sent: u64,
    /// Packets that were too large for their way and went in two halves.
    pub packets_split: u64,
    /// Relayed frames that verified, or were given a tag, on their way through this member.
    pub frames_relayed: u64,
    /// Events that were lost because nobody took them.
    pub events_lost: u64,
    /// Living flows that gave way because the firewall's table was full.
    pub flows_evicted: u64,
    pub(super) drops: Drops,
}

impl Counters {
    /// How many packets or datagrams were dropped for `reason`.
    #[must_use]
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.drops.0.get(reason as usize).copied().unwrap_or(0)
    }

    /// How many were dropped in all.
    #[must_use]
    pub fn dropped_total(&self) -> u64 {
        self.drops.0.iter().sum()
    }

    pub(super) fn drop(&mut self, reason: DropReason) {
        self.drop_many(reason, 1);
    }

    pub(super) fn drop_many(&mut self, reason: DropReason, number: u64) {
        if let Some(count) = self.drops.0.get_mut(reason as usize) {
            *count += number;
        }
    }
}

/// What an endpoint holds in memory: each has a limit that no traffic exceeds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Occupancy {
    /// Peers: those listed, and as many strangers as are welcome.
    pub peers: usize,
    /// Sessions and handshakes under way: at most 4 per peer.
    pub indices: usize,
    /// Deadlines: at most 1 per peer.
    pub timers: usize,
    /// Packets that wait for a handshake, a key or their other half: at most 12 per peer, and 256.
    pub waiting: usize,
    /// Buffers that wait for [`super::Endpoint::poll_transmit`]: at most [`super::TRANSMITS_MAX`].
    pub transmits: usize,
    /// Events that wait for [`super::Endpoint::poll_event`]: at most [`super::EVENTS_MAX`].
    pub events: usize,
    /// Bytes of handshake datagrams that came in pieces: at most
    /// [`crate::reassembly::BYTES_MAX`].
    pub piece_bytes: usize,
    /// Slots for flows: at most [`crate::firewall::FLOWS_MAX`].
    pub flow_slots: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_own_count() {
        for (position, reason) in DropReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, position);
            let mut counters = Counters::default();
            counters.drop(reason);
            assert_eq!((counters.dropped(reason), counters.dropped_total()), (1, 1));
        }
    }
}
