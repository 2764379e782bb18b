//! What a VM's network card and the router of its node say to each other on a socket of sequenced
//! packets (`SOCK_SEQPACKET`) that the card inherited. `docs/mesh-uplink.md` tells how it gets there.
//!
//! ```text
//!  0 │ version=1 │ kind │ stride (2, big-endian)
//!  4 │ by kind
//! ```
//!
//! | kind | direction | content |
//! |---|---|---|
//! | 1 join | up | nothing: a card that has just started asks for a challenge |
//! | 1 challenge | down | the node's key (32), a nonce (32), the least sequence number (8) |
//! | 2 attach | up | the member's signed announcement (116), its signature of the challenge (64) |
//! | 2 attached | down | the addresses of the node's host (16 each, at most 8) |
//! | 3 frames | both | relayed frames of `stride` bytes each, the last perhaps shorter |
//! | 4 resolve | up | an address (16) |
//! | 4 resolved | down | the key that has it (32) |
//! | 5 unknown | down | an address that nobody has (16) |
//! | 6 local | both | the other member's key (32), a virtio-net header (12), a packet |
//! | 7 here | down | a member that is attached to the same node (32) |
//! | 8 gone | down | one that is not any more (32) |
//! | 9 alias | down | the certificate of an alias that was asked for (164) |
//!
//! Nobody but the two has the socket, so frames have neither link fields nor a tag; the router lets
//! a frame up only if its source is the member that was attached. The announcement says who the
//! member is and the signature that it is the one on this socket, now: so the router may pass
//! packets between two members of its own as they are (`local`), under the key of who sent them.
//! It runs on the host that could read both members' memory anyway.
//!
//! A router asks again with another challenge when an announcement is about to end or another
//! number is due, so a card has no timer and no state of its own for this.

use std::net::{IpAddr, Ipv6Addr};

use crate::announcement::{SIGNED_BYTES, SignedAnnouncement};
use crate::certificate::ALIAS_BYTES;
use crate::identity::{PrivateKey, PublicKey};
use crate::offload::{PACKET_BYTES_MAX, TUN_HEADER_BYTES, VIRTIO_HEADER_BYTES, VirtioNetHeader};
use crate::signature::{self, Purpose, RANDOM_BYTES, SIGNATURE_BYTES};
use crate::wire::FRAME_BYTES_MAX;

/// The version of the format.
pub const VERSION: u8 = 1;
/// The bytes in front of a message's content.
pub const HEADER_BYTES: usize = 4;
/// The largest message: a batch of frames and the header.
pub const MESSAGE_BYTES_MAX: usize = HEADER_BYTES + 64 * FRAME_BYTES_MAX;
/// How many addresses of its host a router tells.
pub const HOST_ADDRESSES_MAX: usize = 8;
/// The bytes in front of the packet of a local message.
pub const LOCAL_BYTES: usize = HEADER_BYTES + KEY_BYTES + VIRTIO_HEADER_BYTES;
const KEY_BYTES: usize = 32;

const _: () = assert!(LOCAL_BYTES + PACKET_BYTES_MAX <= MESSAGE_BYTES_MAX);

/// A signature made for anything else is none of a challenge.
const PURPOSE: Purpose = Purpose::new("Hypha mesh 1: uplink challenge");

const JOIN: u8 = 1;
const ATTACH: u8 = 2;
const FRAMES: u8 = 3;
const RESOLVE: u8 = 4;
const UNKNOWN: u8 = 5;
const LOCAL: u8 = 6;
const HERE: u8 = 7;
const GONE: u8 = 8;
const ALIAS: u8 = 9;

/// What a router asks a card: to sign this.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Challenge {
    /// The router's node.
    pub node: PublicKey,
    /// Never asked before.
    pub nonce: [u8; 32],
    /// The announcement that comes with the answer has at least this number.
    pub sequence: u64,
}

/// A packet, or a super-frame, between two members of one node.
#[derive(Debug, PartialEq, Eq)]
pub struct Local<'a> {
    /// The other member: whom it is for on the way up, who sent it on the way down.
    pub member: PublicKey,
    /// What is to be done with the packet.
    pub header: VirtioNetHeader,
    /// The packet.
    pub packet: &'a mut [u8],
}

/// A message from the card up.
#[derive(Debug, PartialEq, Eq)]
pub enum Up<'a> {
    /// "Who are you?"
    Join,
    /// "I am this member", and its signature of the last challenge.
    Attach(Box<(SignedAnnouncement, [u8; SIGNATURE_BYTES])>),
    /// Frames of the member.
    Frames {
        /// The bytes of each but the last.
        stride: usize,
        /// The frames.
        frames: &'a mut [u8],
    },
    /// "Whose address is this?"
    Resolve(Ipv6Addr),
    /// A packet for a member of the same node.
    Local(Local<'a>),
}

/// A message from the router down.
#[derive(Debug, PartialEq, Eq)]
pub enum Down<'a> {
    /// "Sign this."
    Challenge(Challenge),
    /// "You are attached", and the addresses of the host.
    Attached(Vec<IpAddr>),
    /// Frames for the member.
    Frames {
        /// The bytes of each but the last.
        stride: usize,
        /// The frames.
        frames: &'a mut [u8],
    },
    /// "Its key is this."
    Resolved(PublicKey),
    /// "Nobody's."
    Unknown(Ipv6Addr),
    /// A packet of a member of the same node.
    Local(Local<'a>),
    /// This member is attached to the same node.
    Here(PublicKey),
    /// This one is not any more.
    Gone(PublicKey),
    /// "It is an alias", and the certificate that says of whom, which nobody verified here.
    Alias(&'a [u8; ALIAS_BYTES]),
}

/// The kind, stride and content of a message of this version.
fn split(message: &mut [u8]) -> Option<(u8, usize, &mut [u8])> {
    let ([version, kind, high, low], content) = message.split_first_chunk_mut()?;
    let stride = usize::from(u16::from_be_bytes([*high, *low]));
    (*version == VERSION).then_some((*kind, stride, content))
}

fn frames(stride: usize, frames: &mut [u8]) -> Option<(usize, &mut [u8])> {
    let fits = (1..=FRAME_BYTES_MAX).contains(&stride) && !frames.is_empty();
    fits.then_some((stride, frames))
}

fn key(content: &[u8]) -> Option<PublicKey> {
    content.try_into().ok().map(PublicKey)
}

fn address(content: &[u8]) -> Option<Ipv6Addr> {
    <[u8; 16]>::try_from(content).ok().map(Ipv6Addr::from)
}

fn local_of(content: &mut [u8]) -> Option<Local<'_>> {
    let (member, content) = content.split_first_chunk_mut()?;
    let (header, packet) = content.split_first_chunk_mut::<VIRTIO_HEADER_BYTES>()?;
    let header = VirtioNetHeader::parse(header.first_chunk::<TUN_HEADER_BYTES>()?).ok()?;
    let fits = !packet.is_empty() && packet.len() <= PACKET_BYTES_MAX;
    fits.then_some(Local { member: PublicKey(*member), header, packet })
}

impl<'a> Up<'a> {
    /// Reads a message of a card; `None` for anything else.
    #[must_use]
    pub fn parse(message: &'a mut [u8]) -> Option<Self> {
        let (kind, stride, content) = split(message)?;
        match kind {
            JOIN => content.is_empty().then_some(Self::Join),
            ATTACH => {
                let (signed, signature) = content.split_first_chunk::<SIGNED_BYTES>()?;
                let signed = SignedAnnouncement::parse(signed).ok()?;
                Some(Self::Attach(Box::new((signed, signature.try_into().ok()?))))
            }
            FRAMES => {
                let (stride, frames) = frames(stride, content)?;
                Some(Self::Frames { stride, frames })
            }
            RESOLVE => address(content).map(Self::Resolve),
            LOCAL => local_of(content).map(Self::Local),
            _ => None,
        }
    }
}

impl<'a> Down<'a> {
    /// Reads a message of a router; `None` for anything else.
    #[must_use]
    pub fn parse(message: &'a mut [u8]) -> Option<Self> {
        let (kind, stride, content) = split(message)?;
        match kind {
            JOIN => Challenge::parse(content).map(Self::Challenge),
            ATTACH => {
                let (addresses, rest) = content.as_chunks::<16>();
                let fits = rest.is_empty() && addresses.len() <= HOST_ADDRESSES_MAX;
                let canonical = |bytes: &[u8; 16]| Ipv6Addr::from(*bytes).to_canonical();
                fits.then(|| Self::Attached(addresses.iter().map(canonical).collect()))
            }
            FRAMES => {
                let (stride, frames) = frames(stride, content)?;
                Some(Self::Frames { stride, frames })
            }
            RESOLVE => key(content).map(Self::Resolved),
            UNKNOWN => address(content).map(Self::Unknown),
            LOCAL => local_of(content).map(Self::Local),
            HERE => key(content).map(Self::Here),
            GONE => key(content).map(Self::Gone),
            ALIAS => (&*content).try_into().ok().map(Self::Alias),
            _ => None,
        }
    }
}

impl Challenge {
    fn parse(content: &[u8]) -> Option<Self> {
        let (node, content) = content.split_first_chunk()?;
        let (nonce, sequence) = content.split_first_chunk()?;
        let sequence = u64::from_be_bytes(sequence.try_into().ok()?);
        Some(Self { node: PublicKey(*node), nonce: *nonce, sequence })
    }

    fn bytes(&self) -> Vec<u8> {
        [&self.node.0[..], &self.nonce, &self.sequence.to_be_bytes()].concat()
    }

    /// The message that asks it.
    #[must_use]
    pub fn message(&self) -> Vec<u8> {
        message(JOIN, &self.bytes())
    }

    /// The message that answers it: the member announces itself and signs. `random` is drawn anew.
    #[must_use]
    pub fn answer(
        &self,
        signed: &SignedAnnouncement,
        key: &PrivateKey,
        random: &[u8; RANDOM_BYTES],
    ) -> Vec<u8> {
        let signature = signature::sign(key, PURPOSE, &self.bytes(), random);
        message(ATTACH, &[&signed.encode()[..], &signature].concat())
    }

    /// Whether `signature` is the answer of `member`.
    #[must_use]
    pub fn is_answered(&self, member: &PublicKey, signature: &[u8; SIGNATURE_BYTES]) -> bool {
        signature::verify(member, PURPOSE, &self.bytes(), signature)
    }
}

/// The header of a message with frames.
#[must_use]
pub fn frames_header(stride: usize) -> [u8; HEADER_BYTES] {
    let [high, low] = u16::try_from(stride).unwrap_or(u16::MAX).to_be_bytes();
    [VERSION, FRAMES, high, low]
}

/// What is in front of the packet of a local message.
#[must_use]
pub fn local_header(member: &PublicKey, header: &VirtioNetHeader) -> [u8; LOCAL_BYTES] {
    let mut bytes = [0; LOCAL_BYTES];
    let fields = [VERSION, LOCAL, 0, 0].into_iter().chain(member.0).chain(header.bytes(0));
    bytes.iter_mut().zip(fields).for_each(|(to, from)| *to = from);
    bytes
}

fn message(kind: u8, content: &[u8]) -> Vec<u8> {
    [&[VERSION, kind, 0, 0], content].concat()
}

/// A card's first message.
#[must_use]
pub fn join() -> Vec<u8> {
    message(JOIN, &[])
}

/// A router's answer to a challenge that was answered: where the card's host may be reached.
#[must_use]
pub fn attached(addresses: &[IpAddr]) -> Vec<u8> {
    let octets = |address: &IpAddr| match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    };
    let all = addresses.iter().take(HOST_ADDRESSES_MAX).flat_map(octets);
    message(ATTACH, &all.collect::<Vec<_>>())
}

/// A card's question.
#[must_use]
pub fn resolve(address: &Ipv6Addr) -> Vec<u8> {
    message(RESOLVE, &address.octets())
}

/// A router's answer to it.
#[must_use]
pub fn resolved(key: &PublicKey) -> Vec<u8> {
    message(RESOLVE, &key.0)
}

/// The answer for an alias.
#[must_use]
pub fn alias(certificate: &[u8; ALIAS_BYTES]) -> Vec<u8> {
    message(ALIAS, certificate)
}

/// Nobody has the address, or not any more.
#[must_use]
pub fn unknown(address: &Ipv6Addr) -> Vec<u8> {
    message(UNKNOWN, &address.octets())
}

/// A router's word that a member is attached to it too.
#[must_use]
pub fn here(key: &PublicKey) -> Vec<u8> {
    message(HERE, &key.0)
}

/// A router's word that a member is not attached to it any more.
#[must_use]
pub fn gone(key: &PublicKey) -> Vec<u8> {
    message(GONE, &key.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::announcement::{Announcement, Role};

    #[test]
    fn what_is_written_is_read() {
        let private = PrivateKey::new([7; 32]);
        let key = private.public();
        let announcement =
            Announcement { key, sequence: 1, expires_unix_s: 2, role: Role::Workload };
        let signed = SignedAnnouncement { announcement, signature: [3; 64] };
        let challenge = Challenge { node: PublicKey([9; 32]), nonce: [8; 32], sequence: 77 };
        assert_eq!(Up::parse(&mut join()), Some(Up::Join));
        assert_eq!(Down::parse(&mut challenge.message()), Some(Down::Challenge(challenge)));
        let mut answer = challenge.answer(&signed, &private, &[5; RANDOM_BYTES]);
        let Some(Up::Attach(attach)) = Up::parse(&mut answer) else { panic!("no answer") };
        assert_eq!(attach.0, signed);
        assert!(challenge.is_answered(&key, &attach.1));
        assert!(!Challenge { nonce: [0; 32], ..challenge }.is_answered(&key, &attach.1));
        assert!(!Challenge { node: key, ..challenge }.is_answered(&key, &attach.1));
        let addresses = ["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()];
        let mut told = attached(&addresses);
        assert_eq!(Down::parse(&mut told), Some(Down::Attached(addresses.to_vec())));
        let address = key.address();
        assert_eq!(Up::parse(&mut resolve(&address)), Some(Up::Resolve(address)));
        assert_eq!(Down::parse(&mut resolved(&key)), Some(Down::Resolved(key)));
        assert_eq!(Down::parse(&mut unknown(&address)), Some(Down::Unknown(address)));
        let certificate = [6; ALIAS_BYTES];
        assert_eq!(Down::parse(&mut alias(&certificate)), Some(Down::Alias(&certificate)));
        assert_eq!(Down::parse(&mut here(&key)), Some(Down::Here(key)));
        assert_eq!(Down::parse(&mut gone(&key)), Some(Down::Gone(key)));
        let mut message = [frames_header(1496).as_slice(), &[9; 2000]].concat();
        let Some(Up::Frames { stride, frames }) = Up::parse(&mut message) else {
            panic!("no frames")
        };
        assert_eq!((stride, frames.len()), (1496, 2000));
        let header = VirtioNetHeader::default();
        let mut message = [local_header(&key, &header).as_slice(), &[4; 100]].concat();
        let Some(Up::Local(local)) = Up::parse(&mut message) else { panic!("no packet") };
        assert_eq!((local.member, local.header, local.packet.len()), (key, header, 100));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(mut bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Some(first) = bytes.first_mut() {
                *first = VERSION;
            }
            let mut again = bytes.clone();
            let up = Up::parse(&mut bytes).is_some();
            let down = Down::parse(&mut again).is_some();
            let either_way = [FRAMES, LOCAL].contains(again.get(1).unwrap_or(&0));
            prop_assert!(!(up && down) || either_way, "each says one thing");
        }
    }
}
