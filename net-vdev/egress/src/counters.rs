//! What was done and what was dropped.

/// Why something of a member, or for one, went no further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DropReason {
    /// Not TCP, UDP or ICMP in plain headers, a wrong checksum or length, or a wrong offload.
    Malformed,
    /// The source is not the member's address.
    Source,
    /// The destination is not an IPv4 address outside, in either spelling.
    Destination,
    /// The destination is forbidden.
    Forbidden,
    /// The member has as many flows as it may, or all have.
    TooMany,
    /// The member opens flows too fast.
    TooFast,
    /// The member's buffers, or those of all, are used up.
    NoBuffers,
    /// The member's cap of bytes or packets.
    OverCap,
    /// The host has no socket for it.
    NoSocket,
    /// The other side is not there or refuses.
    Refused,
    /// Larger than the way carries.
    TooLarge,
    /// The socket takes no more datagrams now.
    Full,
    /// A TCP segment or a message of no flow.
    NoFlow,
    /// ICMP that is no echo request.
    OtherIcmp,
    /// Small packets for members that wait for their turn are too many.
    Queue,
}

impl DropReason {
    /// All of them.
    pub const ALL: [Self; 15] = [
        Self::Malformed,
        Self::Source,
        Self::Destination,
        Self::Forbidden,
        Self::TooMany,
        Self::TooFast,
        Self::NoBuffers,
        Self::OverCap,
        Self::NoSocket,
        Self::Refused,
        Self::TooLarge,
        Self::Full,
        Self::NoFlow,
        Self::OtherIcmp,
        Self::Queue,
    ];

    /// Its name, as metrics have it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Source => "source",
            Self::Destination => "destination",
            Self::Forbidden => "forbidden",
            Self::TooMany => "too_many_flows",
            Self::TooFast => "flows_too_fast",
            Self::NoBuffers => "no_buffers",
            Self::OverCap => "over_cap",
            Self::NoSocket => "no_socket",
            Self::Refused => "refused",
            Self::TooLarge => "too_large",
            Self::Full => "socket_full",
            Self::NoFlow => "no_flow",
            Self::OtherIcmp => "other_icmp",
            Self::Queue => "queue",
        }
    }
}

/// Counters since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets of members that went out, super-frames as one.
    pub packets_out: u64,
    /// Payload bytes of members that the host's sockets took.
    pub bytes_out: u64,
    /// Packets for members, super-frames as one.
    pub packets_in: u64,
    /// Bytes of these packets.
    pub bytes_in: u64,
    /// Flows opened.
    pub flows: u64,
    dropped: [u64; DropReason::ALL.len()],
}

impl Counters {
    /// How often something was dropped for this reason.
    #[must_use]
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.dropped.get(reason as usize).copied().unwrap_or(0)
    }

    pub(crate) fn drop(&mut self, reason: DropReason) {
        if let Some(count) = self.dropped.get_mut(reason as usize) {
            *count += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_its_place_and_name() {
        let mut names = std::collections::BTreeSet::new();
        for (at, reason) in DropReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, at);
            assert!(names.insert(reason.name()), "{}", reason.name());
        }
    }
}
