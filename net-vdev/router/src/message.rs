//! The messages between neighbouring routers, version 1. `docs/mesh-routing.md` draws them.
//!
//! A message travels inside the link's session, so its sender is known; what it says is not
//! trusted. Parsing never panics and checks everything that can be checked without state.

use net_vdev::announcement::{SIGNED_BYTES, SignedAnnouncement};

use crate::doubts::Doubt;

/// The version of the format, the first byte of each message.
pub const VERSION: u8 = 1;
/// The largest message, in bytes.
pub const MESSAGE_BYTES_MAX: usize = 1200;
/// The bytes in front of every message.
pub const HEADER_BYTES: usize = 12;
/// The metric of what can't be reached. Larger ones are read as this.
pub const INFINITY: u32 = 1 << 31;

const PROBE: u8 = 1;
const REPLY: u8 = 2;
const UPDATE: u8 = 3;
const ACK: u8 = 4;
const REQUEST: u8 = 5;
const DOUBT: u8 = 6;

const ATTEMPT_MAX: u8 = 3;

const NEWS: u8 = 1;
const ROUTE: u8 = 2;
const RETRACTION: u8 = 3;

/// The bytes of an entry that carries an announcement: tag, announcement, route.
pub(crate) const NEWS_BYTES: usize = 1 + SIGNED_BYTES + 8 + 4;
const ROUTE_BYTES: usize = 1 + 16 + 8 + 4;
const RETRACTION_BYTES: usize = 1 + 16;

/// Why bytes are no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// It ends too early, goes on too long, or is larger than any message.
    #[error("{0} bytes are no router message of that type")]
    Length(usize),
    /// Another version.
    #[error("router message of version {0}; this build speaks version {VERSION}")]
    Version(u8),
    /// A type or an entry that this version does not know.
    #[error("unknown router message or entry {0}")]
    Kind(u8),
    /// An announcement in it is none.
    #[error(transparent)]
    Announcement(#[from] net_vdev::announcement::AnnouncementError),
}

/// What stands in front of every message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The zone of the sender.
    pub zone: u16,
    /// The sender's incarnation on this link: not 0, another each time it forgot what it was told.
    pub from: u32,
    /// The reader's incarnation as far as the sender knows it; 0 if it does not.
    pub to: u32,
}

/// A message taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body<'a> {
    /// "Do you hear me?"
    Probe {
        /// Chosen by the sender, and to be repeated in the reply.
        id: u32,
    },
    /// "I heard you."
    Reply {
        /// That of the probe.
        id: u32,
    },
    /// Routes that changed.
    Update {
        /// Grows by at least one with each update of an incarnation, from 1 on.
        number: u64,
        /// The entries.
        entries: Entries<'a>,
    },
    /// Which updates arrived.
    Ack {
        /// The largest number taken.
        highest: u64,
        /// Bit i: number `highest - 1 - i` was taken too.
        before: u64,
    },
    /// "Tell me your route to this address, and whenever it changes."
    Request(Request),
    /// "Look whether you can reach that one."
    Doubt(Doubt),
}

/// Asks for a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// The destination.
    pub address: u128,
    /// The smallest sequence number that helps; 0 if any does.
    pub sequence: u64,
    /// How many further routers may pass it on.
    pub hops: u8,
    /// Whether the sender lacks the announcement as well.
    pub wants_announcement: bool,
    /// Whether a router that knows nothing is to ask all its neighbours, even if the destination is
    /// a node of its zone, of which it should be told.
    pub is_search: bool,
    /// How often the first asker asked before, 3 at most: tells a repetition from a copy that took a
    /// longer way.
    pub attempt: u8,
}

/// The entries of an update, read one by one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entries<'a>(&'a [u8]);

/// What an update says about a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// A route and the announcement that it is about.
    News {
        /// The announcement, not verified.
        signed: SignedAnnouncement,
        /// The sequence number of the route, which may be older than the announcement.
        sequence: u64,
        /// The sender's distance.
        metric: u32,
    },
    /// A route under an announcement that the reader has.
    Route {
        /// The destination.
        address: u128,
        /// The sequence number of the announcement that the route belongs to.
        sequence: u64,
        /// The sender's distance.
        metric: u32,
    },
    /// No route any more.
    Retraction {
        /// The destination.
        address: u128,
    },
}

impl Entries<'_> {
    /// Takes the next entry.
    ///
    /// # Errors
    /// A [`MessageError`] where the rest is no entry; then nothing further is readable.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, MessageError> {
        let Some(tag) = self.0.first() else { return Ok(None) };
        let length = match *tag {
            NEWS => NEWS_BYTES,
            ROUTE => ROUTE_BYTES,
            RETRACTION => RETRACTION_BYTES,
            other => return Err(MessageError::Kind(other)),
        };
        let (entry, rest) =
            self.0.split_at_checked(length).ok_or(MessageError::Length(self.0.len()))?;
        self.0 = rest;
        let mut reader = Reader(entry.get(1..).unwrap_or_default());
        let short = MessageError::Length(length);
        Ok(Some(match *tag {
            NEWS => {
                let signed: [u8; SIGNED_BYTES] = reader.take().ok_or(short)?;
                let sequence = reader.u64().ok_or(short)?;
                let metric = reader.u32().ok_or(short)?.min(INFINITY);
                Entry::News { signed: SignedAnnouncement::parse(&signed)?, sequence, metric }
            }
            ROUTE => Entry::Route {
                address: reader.u128().ok_or(short)?,
                sequence: reader.u64().ok_or(short)?,
                metric: reader.u32().ok_or(short)?.min(INFINITY),
            },
            _ => Entry::Retraction { address: reader.u128().ok_or(short)? },
        }))
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*first)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take().map(u8::from_be_bytes)
    }

    fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_be_bytes)
    }

    fn u128(&mut self) -> Option<u128> {
        self.take().map(u128::from_be_bytes)
    }
}

/// Takes a message apart.
///
/// # Errors
/// A [`MessageError`] for anything that is no message of version 1. The entries of an update are
/// checked as they are read.
pub fn parse(bytes: &[u8]) -> Result<(Header, Body<'_>), MessageError> {
    let length = MessageError::Length(bytes.len());
    if bytes.len() > MESSAGE_BYTES_MAX {
        return Err(length);
    }
    let mut reader = Reader(bytes);
    let version = reader.u8().ok_or(length)?;
    if version != VERSION {
        return Err(MessageError::Version(version));
    }
    let kind = reader.u8().ok_or(length)?;
    let header = Header {
        zone: reader.u16().ok_or(length)?,
        from: reader.u32().ok_or(length)?,
        to: reader.u32().ok_or(length)?,
    };
    let body = match kind {
        PROBE => Body::Probe { id: reader.u32().ok_or(length)? },
        REPLY => Body::Reply { id: reader.u32().ok_or(length)? },
        UPDATE => {
            let number = reader.u64().ok_or(length)?;
            let entries = Entries(reader.0);
            return Ok((header, Body::Update { number, entries }));
        }
        ACK => {
            Body::Ack { highest: reader.u64().ok_or(length)?, before: reader.u64().ok_or(length)? }
        }
        REQUEST => Body::Request(read_request(&mut reader).ok_or(length)?),
        DOUBT => Body::Doubt(Doubt {
            teller: reader.u128().ok_or(length)?,
            silent: reader.u128().ok_or(length)?,
            hops: reader.u8().ok_or(length)?,
        }),
        other => return Err(MessageError::Kind(other)),
    };
    if reader.0.is_empty() { Ok((header, body)) } else { Err(length) }
}

fn read_request(reader: &mut Reader<'_>) -> Option<Request> {
    let (address, sequence) = (reader.u128()?, reader.u64()?);
    let (hops, flags) = (reader.u8()?, reader.u8()?);
    let (wants_announcement, is_search) = (flags & 1 != 0, flags & 2 != 0);
    let attempt = flags >> 2 & ATTEMPT_MAX;
    Some(Request { address, sequence, hops, wants_announcement, is_search, attempt })
}

fn header(kind: u8, header: Header, body_bytes: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES + body_bytes);
    bytes.extend_from_slice(&[VERSION, kind]);
    bytes.extend_from_slice(&header.zone.to_be_bytes());
    bytes.extend_from_slice(&header.from.to_be_bytes());
    bytes.extend_from_slice(&header.to.to_be_bytes());
    bytes
}

/// The bytes of a probe.
#[must_use]
pub fn probe(head: Header, id: u32) -> Vec<u8> {
    let mut bytes = header(PROBE, head, 4);
    bytes.extend_from_slice(&id.to_be_bytes());
    bytes
}

/// The bytes of the reply to a probe.
#[must_use]
pub fn reply(head: Header, id: u32) -> Vec<u8> {
    let mut bytes = header(REPLY, head, 4);
    bytes.extend_from_slice(&id.to_be_bytes());
    bytes
}

/// The bytes of an acknowledgement.
#[must_use]
pub fn ack(head: Header, highest: u64, before: u64) -> Vec<u8> {
    let mut bytes = header(ACK, head, 16);
    bytes.extend_from_slice(&highest.to_be_bytes());
    bytes.extend_from_slice(&before.to_be_bytes());
    bytes
}

/// The bytes of a request.
#[must_use]
pub fn request(head: Header, request: Request) -> Vec<u8> {
    let mut bytes = header(REQUEST, head, 26);
    let flags = u8::from(request.wants_announcement) | u8::from(request.is_search) << 1;
    let flags = flags | request.attempt.min(ATTEMPT_MAX) << 2;
    bytes.extend_from_slice(&request.address.to_be_bytes());
    bytes.extend_from_slice(&request.sequence.to_be_bytes());
    bytes.extend_from_slice(&[request.hops, flags]);
    bytes
}

/// The bytes of a doubt.
#[must_use]
pub fn doubt(head: Header, doubt: Doubt) -> Vec<u8> {
    let mut bytes = header(DOUBT, head, 33);
    bytes.extend_from_slice(&doubt.teller.to_be_bytes());
    bytes.extend_from_slice(&doubt.silent.to_be_bytes());
    bytes.push(doubt.hops);
    bytes
}

/// The start of an update; [`push`] adds its entries.
#[must_use]
pub fn update(head: Header, number: u64) -> Vec<u8> {
    let mut bytes = header(UPDATE, head, MESSAGE_BYTES_MAX - HEADER_BYTES);
    bytes.extend_from_slice(&number.to_be_bytes());
    bytes
}

/// Adds an entry to an update. There must be room: [`has_room`].
pub fn push(bytes: &mut Vec<u8>, entry: &Entry) {
    match entry {
        Entry::News { signed, sequence, metric } => {
            bytes.push(NEWS);
            bytes.extend_from_slice(&signed.encode());
            bytes.extend_from_slice(&sequence.to_be_bytes());
            bytes.extend_from_slice(&metric.to_be_bytes());
        }
        Entry::Route { address, sequence, metric } => {
            bytes.push(ROUTE);
            bytes.extend_from_slice(&address.to_be_bytes());
            bytes.extend_from_slice(&sequence.to_be_bytes());
            bytes.extend_from_slice(&metric.to_be_bytes());
        }
        Entry::Retraction { address } => {
            bytes.push(RETRACTION);
            bytes.extend_from_slice(&address.to_be_bytes());
        }
    }
}

/// Whether any further entry fits into an update.
#[must_use]
pub fn has_room(bytes: &[u8]) -> bool {
    bytes.len() + NEWS_BYTES <= MESSAGE_BYTES_MAX
}

#[cfg(test)]
mod tests {
    use net_vdev::PublicKey;
    use net_vdev::announcement::{Announcement, Role};

    use super::*;

    const HEAD: Header = Header { zone: 0x0102, from: 0x0304_0506, to: 0x0708_090a };
    const HEAD_BYTES: [u8; 10] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10];

    fn entries() -> Vec<Entry> {
        let announcement = Announcement {
            key: PublicKey([3; 32]),
            sequence: 4,
            expires_unix_s: 5,
            role: Role::Node { zone: 6 },
        };
        vec![
            Entry::News {
                signed: SignedAnnouncement { announcement, signature: [7; 64] },
                sequence: 3,
                metric: 8,
            },
            Entry::Route { address: 9, sequence: 10, metric: INFINITY },
            Entry::Retraction { address: 11 },
        ]
    }

    #[test]
    fn every_message_lies_where_the_drawing_says() {
        let bytes = probe(HEAD, 0x1112_1314);
        assert_eq!(bytes[..2], [1, 1]);
        assert_eq!(bytes[2..12], HEAD_BYTES);
        assert_eq!(bytes[12..], [0x11, 0x12, 0x13, 0x14]);
        assert_eq!(reply(HEAD, 1)[..2], [1, 2]);
        assert_eq!(ack(HEAD, 1, 2)[12..], [0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2]);
        let asked = Request {
            address: 1,
            sequence: 2,
            hops: 3,
            wants_announcement: true,
            is_search: true,
            attempt: 2,
        };
        let bytes = request(HEAD, asked);
        assert_eq!(bytes.len(), 38);
        assert_eq!(bytes[27..], [1, 0, 0, 0, 0, 0, 0, 0, 2, 3, 11]);
        let bytes = doubt(HEAD, Doubt { teller: 1, silent: 2, hops: 3 });
        assert_eq!((bytes[1], bytes.len(), &bytes[43..]), (6, 45, &[2, 3][..]));
        assert_eq!(bytes[27], 1);
    }

    #[test]
    fn what_was_written_is_read() {
        let asked = Request {
            address: 1,
            sequence: 2,
            hops: 3,
            wants_announcement: true,
            is_search: true,
            attempt: 2,
        };
        let doubted = Doubt { teller: 1, silent: 2, hops: 3 };
        let cases = [
            (probe(HEAD, 7), Body::Probe { id: 7 }),
            (reply(HEAD, 7), Body::Reply { id: 7 }),
            (ack(HEAD, 7, 8), Body::Ack { highest: 7, before: 8 }),
            (request(HEAD, asked), Body::Request(asked)),
            (doubt(HEAD, doubted), Body::Doubt(doubted)),
        ];
        for (bytes, body) in cases {
            assert_eq!(parse(&bytes), Ok((HEAD, body)));
            assert!(parse(&bytes[..bytes.len() - 1]).is_err());
            assert!(parse(&[&bytes[..], &[0]].concat()).is_err());
        }
        let mut bytes = update(HEAD, 9);
        entries().iter().for_each(|entry| push(&mut bytes, entry));
        let Ok((HEAD, Body::Update { number: 9, entries: mut read })) = parse(&bytes) else {
            panic!("not an update: {bytes:02x?}")
        };
        for entry in entries() {
            assert_eq!(read.next_entry(), Ok(Some(entry)));
        }
        assert_eq!(read.next_entry(), Ok(None));
    }

    #[test]
    fn another_version_type_entry_or_length_is_refused() {
        assert_eq!(parse(&[]), Err(MessageError::Length(0)));
        assert_eq!(parse(&[2; 12]), Err(MessageError::Version(2)));
        let mut bytes = probe(HEAD, 7);
        bytes[1] = 9;
        assert_eq!(parse(&bytes), Err(MessageError::Kind(9)));
        assert_eq!(parse(&vec![1; MESSAGE_BYTES_MAX + 1]), Err(MessageError::Length(1201)));
        let mut read = Entries(&[9]);
        assert_eq!(read.next_entry(), Err(MessageError::Kind(9)));
        let mut read = Entries(&[RETRACTION, 1, 2]);
        assert_eq!(read.next_entry(), Err(MessageError::Length(3)));
    }

    #[test]
    fn a_metric_beyond_infinity_is_infinity() {
        let mut bytes = Vec::new();
        push(&mut bytes, &Entry::Route { address: 1, sequence: 1, metric: u32::MAX });
        let read = Entries(&bytes).next_entry();
        assert_eq!(read, Ok(Some(Entry::Route { address: 1, sequence: 1, metric: INFINITY })));
    }
}
