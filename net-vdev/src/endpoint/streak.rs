//! Packets of one flow that come one behind the other in a batch: what the first was let in for lets
//! the others in, and nothing is looked up again.
//!
//! That gives what judging each would give: no rule, label or flow changes inside of a batch but by a
//! packet that ends the streak, and a plain segment leaves its flow as the one before it did.

use super::{DropReason, Endpoint};
use crate::firewall::{Packet, TcpFlags, Transport, Verdict};

/// The last packet that was let in, if it was a plain TCP segment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Streak {
    index: usize,
    packet: Packet,
    /// Whether its kind is counted against the member's caps.
    is_metered: bool,
}

impl Streak {
    /// What a packet of peer `index` that was let in begins.
    pub(super) fn of(index: usize, packet: &Packet, is_metered: bool) -> Option<Self> {
        is_plain(packet).then_some(Self { index, packet: *packet, is_metered })
    }

    /// Whether a packet of peer `index` goes on with it.
    pub(super) fn has(&self, index: usize, packet: &Packet) -> bool {
        let ports = |packet: &Packet| match packet.transport {
            Transport::Tcp { ports, .. } => Some(ports),
            _ => None,
        };
        self.index == index
            && is_plain(packet)
            && ports(packet) == ports(&self.packet)
            && packet.source == self.packet.source
            && packet.destination == self.packet.destination
    }
}

/// Whether a packet is a TCP segment that neither opens nor ends anything.
fn is_plain(packet: &Packet) -> bool {
    const SYN: u8 = 0x02;
    let plain = |flags: TcpFlags| flags.0 & SYN == 0 && !flags.finishes() && !flags.resets();
    matches!(packet.transport, Transport::Tcp { flags, .. } if plain(flags))
}

impl Endpoint {
    /// Lets the next packet of a streak in, if the member's caps do; it is counted if so.
    pub(super) fn admit_more(
        &mut self,
        now_ns: u64,
        streak: Streak,
        bytes: usize,
    ) -> Result<(), DropReason> {
        if streak.is_metered && self.firewall.inbound_more(now_ns, bytes) != Verdict::Pass {
            return Err(DropReason::InboundCap);
        }
        self.count_inbound(streak.index, bytes);
        Ok(())
    }
}
