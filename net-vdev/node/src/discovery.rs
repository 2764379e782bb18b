//! Nodes on one local network find each other: each says now and then, to a multicast group, who it
//! is and on which port. `docs/mesh-wire.md` draws the datagram.
//!
//! Being found gives a link, and no permission: whoever is found is a neighbour like any other, and
//! rules name whole keys. A datagram is looked at if it comes from a link-local address, and its
//! signature is verified at a limited rate.

use std::collections::BTreeSet;
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};

use net_vdev::PublicKey;
use net_vdev::announcement::{Role, SIGNED_BYTES, SignedAnnouncement, verify};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, ipproto, socket_with, sockopt};

/// Link-local, not assigned by anybody (RFC 4291 §2.7: ff12), and the port.
pub const GROUP: Ipv6Addr = Ipv6Addr::new(0xff12, 0, 0, 0, 0, 0, 0x6879, 0x7068);
/// See [`GROUP`].
pub const PORT: u16 = 7401;

const VERSION: u8 = 1;
const KIND: u8 = 10;
const HEADER_BYTES: usize = 8;
const BYTES: usize = HEADER_BYTES + SIGNED_BYTES;

/// The pauses between two announcements on a network, at first and at last.
const PAUSE_NS: std::ops::RangeInclusive<u64> = 1_000_000_000..=30_000_000_000;
/// How many datagrams are read in a turn, and how many signatures are verified per second.
const READS_PER_TURN: usize = 16;
const VERIFIED_PER_S: u32 = 20;
/// How many networks this host takes part in at most.
const NETWORKS_MAX: usize = 32;

/// The socket of the group, and what was said on which network.
pub(crate) struct Discovery {
    socket: UdpSocket,
    /// The port that others are to speak to this node on.
    port: u16,
    joined: BTreeSet<u32>,
    due_ns: u64,
    pause_ns: u64,
    /// The second of the last verification, and how many there were in it.
    verified: (u64, u32),
}

impl Discovery {
    /// Opens the group's port, which all nodes of a host share.
    pub(crate) fn open(port: u16) -> std::io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let protocol = Some(ipproto::UDP);
        let socket = socket_with(AddressFamily::INET6, SocketType::DGRAM, flags, protocol)?;
        sockopt::set_ipv6_v6only(&socket, true)?;
        sockopt::set_socket_reuseaddr(&socket, true)?;
        bind(&socket, &SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, PORT, 0, 0))?;
        Ok(Self {
            socket: UdpSocket::from(socket),
            port,
            joined: BTreeSet::new(),
            due_ns: 0,
            pause_ns: *PAUSE_NS.start(),
            verified: (0, 0),
        })
    }

    /// Takes part in these networks, by their interfaces, and says on them who this node is, if that
    /// is due or there is a new one.
    pub(crate) fn announce(
        &mut self,
        now_ns: u64,
        networks: impl Iterator<Item = u32>,
        announcement: &SignedAnnouncement,
    ) {
        let networks: BTreeSet<u32> = networks.take(NETWORKS_MAX).collect();
        let is_new = !networks.is_subset(&self.joined);
        if !is_new && now_ns < self.due_ns {
            return;
        }
        for network in networks.difference(&self.joined) {
            // It is a member already if the interface only was down.
            let joined = sockopt::set_ipv6_add_membership(&self.socket, &GROUP, *network);
            if let Err(error) = joined {
                tracing::debug!(network, %error, "joining the group of nodes");
            }
        }
        self.pause_ns =
            if is_new { *PAUSE_NS.start() } else { (2 * self.pause_ns).min(*PAUSE_NS.end()) };
        self.due_ns = now_ns.saturating_add(self.pause_ns);
        let datagram = datagram(self.port, announcement);
        for network in &networks {
            let group = SocketAddrV6::new(GROUP, PORT, 0, *network);
            if let Err(error) = self.socket.send_to(&datagram, group) {
                tracing::debug!(network, %error, "announcing this node");
            }
        }
        self.joined = networks;
    }

    /// The nodes that said where they are: their keys and places.
    pub(crate) fn take(&mut self, now_ns: u64, unix_s: u64) -> Vec<(PublicKey, SocketAddr)> {
        let mut found = Vec::new();
        let mut buffer = [0; BYTES + 1];
        for _ in 0..READS_PER_TURN {
            let Ok((len, from)) = self.socket.recv_from(&mut buffer) else { break };
            let datagram = buffer.get(..len).unwrap_or_default();
            let SocketAddr::V6(from) = from else { continue };
            let Some((port, signed)) = parse(datagram).filter(|_| is_link_local(from.ip())) else {
                continue;
            };
            if !self.may_verify(now_ns) || !is_true(&signed, unix_s) {
                continue;
            }
            let place = SocketAddrV6::new(*from.ip(), port, 0, from.scope_id());
            found.push((signed.announcement.key, place.into()));
        }
        found
    }

    fn may_verify(&mut self, now_ns: u64) -> bool {
        let second = now_ns / 1_000_000_000;
        let (at, count) = self.verified;
        self.verified = if at == second { (at, count.saturating_add(1)) } else { (second, 1) };
        self.verified.1 <= VERIFIED_PER_S
    }
}

impl AsFd for Discovery {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// What a node says to its local network: its announcement, and the port that it is spoken to on.
#[must_use]
pub fn datagram(port: u16, announcement: &SignedAnnouncement) -> Vec<u8> {
    let mut bytes = vec![VERSION, KIND, 0, 0];
    bytes.extend_from_slice(&port.to_be_bytes());
    bytes.extend_from_slice(&[0, 0]);
    bytes.extend_from_slice(&announcement.encode());
    bytes
}

/// The port and the announcement, which is not verified; `None` if it is anything else.
#[must_use]
pub fn parse(bytes: &[u8]) -> Option<(u16, SignedAnnouncement)> {
    let ([VERSION, KIND, 0, 0, high, low, 0, 0], rest) = bytes.split_first_chunk()? else {
        return None;
    };
    let port = u16::from_be_bytes([*high, *low]);
    let signed = SignedAnnouncement::parse(rest).ok()?;
    (port != 0).then_some((port, signed))
}

/// Whether a node announces itself under its own signature, and not long ago.
fn is_true(signed: &SignedAnnouncement, unix_s: u64) -> bool {
    let announcement = signed.announcement;
    matches!(announcement.role, Role::Node { .. })
        && announcement.expires_unix_s > unix_s
        && verify(&announcement.key, &announcement.encode(), &signed.signature)
}

fn is_link_local(ip: &Ipv6Addr) -> bool {
    matches!(ip.segments(), [0xfe80..=0xfebf, ..])
}

#[cfg(test)]
mod tests {
    use net_vdev::PrivateKey;
    use net_vdev::announcement::Announcement;

    use super::*;

    fn signed(role: Role) -> SignedAnnouncement {
        let key = PrivateKey::new([1; 32]);
        let announcement =
            Announcement { key: key.public(), sequence: 1, expires_unix_s: 100, role };
        SignedAnnouncement::sign(announcement, &key, &[2; 64])
    }

    #[test]
    fn what_is_said_is_understood_and_nothing_else() {
        let signed = signed(Role::Node { zone: 3 });
        let bytes = datagram(0x1234, &signed);
        assert_eq!((bytes.len(), &bytes[..8]), (BYTES, &[1, 10, 0, 0, 0x12, 0x34, 0, 0][..]));
        assert_eq!(parse(&bytes), Some((0x1234, signed)));
        for len in 0..bytes.len() {
            assert_eq!(parse(&bytes[..len]), None);
        }
        assert_eq!(parse(&[&bytes[..], &[0]].concat()), None);
        assert_eq!(parse(&datagram(0, &signed)), None);
        for at in [0, 1, 2, 3, 6, 7] {
            let mut other = bytes.clone();
            other[at] ^= 1;
            assert_eq!(parse(&other), None, "byte {at}");
        }
    }

    #[test]
    fn only_a_node_s_own_word_counts_and_only_while_it_holds() {
        let node = signed(Role::Node { zone: 3 });
        assert!(is_true(&node, 99) && !is_true(&node, 100));
        assert!(!is_true(&signed(Role::Workload), 99));
        let mut forged = node;
        forged.signature[7] ^= 1;
        assert!(!is_true(&forged, 99));
        assert!(is_link_local(&"fe80::1".parse().unwrap()));
        assert!(!is_link_local(&"2001:db8::1".parse().unwrap()));
    }
}
