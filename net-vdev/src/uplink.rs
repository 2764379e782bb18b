//! What a VM's network card and the router of its node say to each other on a socket of sequenced
//! packets (`SOCK_SEQPACKET`) that the card inherited.
//!
//! ```text
//!  0 │ version=1 │ kind │ stride (2, big-endian)
//!  4 │ by kind
//! ```
//!
//! | kind | direction | content |
//! |---|---|---|
//! | 1 attach | up | the member's signed announcement |
//! | 1 attached | down | the node's key (32) |
//! | 2 frames | both | relayed frames of `stride` bytes each, the last perhaps shorter |
//! | 3 resolve | up | an address (16) |
//! | 4 resolved | down | the key that has it (32) |
//! | 5 unknown | down | an address that nobody has (16) |
//!
//! Nobody but the two has the socket, so frames have neither link fields nor a tag; the router lets
//! a frame up only if its source is the member that was attached.

use std::net::Ipv6Addr;

use crate::announcement::{SIGNED_BYTES, SignedAnnouncement};
use crate::identity::PublicKey;
use crate::wire::FRAME_BYTES_MAX;

/// The version of the format.
pub const VERSION: u8 = 1;
/// The bytes in front of a message's content.
pub const HEADER_BYTES: usize = 4;
/// The largest message: a batch of frames and the header.
pub const MESSAGE_BYTES_MAX: usize = HEADER_BYTES + 64 * FRAME_BYTES_MAX;

const ATTACH: u8 = 1;
const FRAMES: u8 = 2;
const RESOLVE: u8 = 3;
const RESOLVED: u8 = 4;
const UNKNOWN: u8 = 5;

/// A message from the card up.
#[derive(Debug, PartialEq, Eq)]
pub enum Up<'a> {
    /// "I am this member."
    Attach(Box<SignedAnnouncement>),
    /// Frames of the member.
    Frames {
        /// The bytes of each but the last.
        stride: usize,
        /// The frames.
        frames: &'a mut [u8],
    },
    /// "Whose address is this?"
    Resolve(Ipv6Addr),
}

/// A message from the router down.
#[derive(Debug, PartialEq, Eq)]
pub enum Down<'a> {
    /// "You are attached to the node of this key."
    Attached(PublicKey),
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

impl<'a> Up<'a> {
    /// Reads a message of a card; `None` for anything else.
    #[must_use]
    pub fn parse(message: &'a mut [u8]) -> Option<Self> {
        let (kind, stride, content) = split(message)?;
        match kind {
            ATTACH => {
                let signed = <&[u8; SIGNED_BYTES]>::try_from(&*content).ok()?;
                Some(Self::Attach(Box::new(SignedAnnouncement::parse(signed).ok()?)))
            }
            FRAMES => {
                let (stride, frames) = frames(stride, content)?;
                Some(Self::Frames { stride, frames })
            }
            RESOLVE => Some(Self::Resolve(<[u8; 16]>::try_from(&*content).ok()?.into())),
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
            ATTACH => Some(Self::Attached(PublicKey((&*content).try_into().ok()?))),
            FRAMES => {
                let (stride, frames) = frames(stride, content)?;
                Some(Self::Frames { stride, frames })
            }
            RESOLVED => Some(Self::Resolved(PublicKey((&*content).try_into().ok()?))),
            UNKNOWN => Some(Self::Unknown(<[u8; 16]>::try_from(&*content).ok()?.into())),
            _ => None,
        }
    }
}

/// The header of a message with frames.
#[must_use]
pub fn frames_header(stride: usize) -> [u8; HEADER_BYTES] {
    let [high, low] = u16::try_from(stride).unwrap_or(u16::MAX).to_be_bytes();
    [VERSION, FRAMES, high, low]
}

fn message(kind: u8, content: &[u8]) -> Vec<u8> {
    [&[VERSION, kind, 0, 0], content].concat()
}

/// A card's first message.
#[must_use]
pub fn attach(signed: &SignedAnnouncement) -> Vec<u8> {
    message(ATTACH, &signed.encode())
}

/// A router's answer to it.
#[must_use]
pub fn attached(node: &PublicKey) -> Vec<u8> {
    message(ATTACH, &node.0)
}

/// A card's question.
#[must_use]
pub fn resolve(address: &Ipv6Addr) -> Vec<u8> {
    message(RESOLVE, &address.octets())
}

/// A router's answer to it.
#[must_use]
pub fn resolved(key: &PublicKey) -> Vec<u8> {
    message(RESOLVED, &key.0)
}

/// The other answer to it.
#[must_use]
pub fn unknown(address: &Ipv6Addr) -> Vec<u8> {
    message(UNKNOWN, &address.octets())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::announcement::{Announcement, Role};

    #[test]
    fn what_is_written_is_read() {
        let key = PublicKey([7; 32]);
        let announcement =
            Announcement { key, sequence: 1, expires_unix_s: 2, role: Role::Workload };
        let signed = SignedAnnouncement { announcement, signature: [3; 64] };
        assert_eq!(Up::parse(&mut attach(&signed)), Some(Up::Attach(Box::new(signed))));
        assert_eq!(Down::parse(&mut attached(&key)), Some(Down::Attached(key)));
        let address = key.address();
        assert_eq!(Up::parse(&mut resolve(&address)), Some(Up::Resolve(address)));
        assert_eq!(Down::parse(&mut resolved(&key)), Some(Down::Resolved(key)));
        assert_eq!(Down::parse(&mut unknown(&address)), Some(Down::Unknown(address)));
        let mut message = [frames_header(1496).as_slice(), &[9; 2000]].concat();
        let Some(Up::Frames { stride, frames }) = Up::parse(&mut message) else {
            panic!("no frames")
        };
        assert_eq!((stride, frames.len()), (1496, 2000));
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
            prop_assert!(!(up && down) || again[1] <= FRAMES, "each says one thing");
        }
    }
}
