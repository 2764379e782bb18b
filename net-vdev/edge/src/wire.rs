//! The bytes of mycelium 0.7 on a TCP connection; `docs/mesh-mycelium.md` draws them.
//!
//! A connection is a sequence of packets, each with four bytes in front that say whether it is
//! data or control. What breaks the framing ends the connection. A control packet that is well
//! framed and says something that this build doesn't read is [`Packet::Unreadable`], so that a
//! later mycelium may add messages. Whatever is read is written back as the same bytes.

use std::net::Ipv6Addr;

use net_vdev::PublicKey;

/// The bytes in front of every packet.
pub const HEADER_BYTES: usize = 4;
/// The bytes in front of a data packet's body, with the packet header.
pub const DATA_HEADER_BYTES: usize = HEADER_BYTES + 4 + 16 + 16;
/// The largest body of a data packet, in bytes.
pub const BODY_BYTES_MAX: usize = 65_535;
/// The metric of what can't be reached.
pub const INFINITY: u16 = 0xffff;

const VERSION: u8 = 1;
const DATA: u8 = 0;
const CONTROL: u8 = 1;
const CONTROL_HEADER_BYTES: usize = HEADER_BYTES + 4;
const BABEL_MAGIC: u8 = 42;
const BABEL_VERSION: u8 = 3;
/// Type and length of one TLV, and the longest value that the length can say.
const TLV_BYTES_MAX: usize = 2 + 255;

const HELLO: u8 = 4;
const IHU: u8 = 5;
const UPDATE: u8 = 8;
const ROUTE_REQUEST: u8 = 9;
const SEQNO_REQUEST: u8 = 10;

/// How an address is encoded: none, or IPv6. mycelium's overlay has no others.
const WILDCARD: u8 = 0;
const IPV6: u8 = 2;
const UNICAST: u16 = 0x8000;

/// Why bytes are no packets of mycelium; the connection is of no use after that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The first four bytes of a packet.
    #[error("the peer does not speak mycelium's TCP protocol: a packet starts with {0:02x?}")]
    Header([u8; HEADER_BYTES]),
    /// The first two bytes of a control packet.
    #[error("the peer's routing messages are of another protocol or version: {0:02x?}")]
    ControlHeader([u8; 2]),
    /// A control packet that is longer than one TLV can be.
    #[error("a control packet of {0} bytes; one message of 2 to 257 bytes was expected")]
    ControlLength(usize),
    /// A data packet that is longer than any.
    #[error("a data packet of {0} bytes; at most 65535 were expected")]
    DataLength(usize),
}

/// Who originates a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RouterId {
    /// The originator's key.
    pub key: PublicKey,
    /// Its zone; mycelium 0.7 writes 0.
    pub zone: u16,
    /// Random, another each time the originator starts: its sequence numbers begin anew with it.
    pub incarnation: [u8; 6],
}

/// A range of addresses: the first `length` bits of `address`, whose other bits are zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefix {
    address: Ipv6Addr,
    length: u8,
}

impl Prefix {
    /// The prefix of `length` bits that holds `address`; a length over 128 means 128.
    #[must_use]
    pub fn of(address: Ipv6Addr, length: u8) -> Self {
        let length = length.min(128);
        let address = Ipv6Addr::from_bits(address.to_bits() & mask(length));
        Self { address, length }
    }

    /// Whether the address lies in it.
    #[must_use]
    pub fn contains(&self, address: &Ipv6Addr) -> bool {
        address.to_bits() & mask(self.length) == self.address.to_bits()
    }

    /// Its lowest address.
    #[must_use]
    pub fn address(&self) -> Ipv6Addr {
        self.address
    }

    /// How many leading bits are fixed, 0 to 128.
    #[must_use]
    pub fn length(&self) -> u8 {
        self.length
    }
}

fn mask(length: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(length.min(128))).unwrap_or(0)
}

/// A routing message. All intervals are in hundredths of a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control {
    /// "I am here", to be answered by an [`Control::Ihu`].
    Hello {
        /// Whether it was meant for this link alone.
        unicast: bool,
        /// Counts the Hellos.
        seqno: u16,
        /// The next one comes within this time.
        interval: u16,
    },
    /// "I heard you."
    Ihu {
        /// What the sender reckons the link to cost.
        rxcost: u16,
        /// The next one comes within this time.
        interval: u16,
    },
    /// A route.
    Update {
        /// The next one comes within this time.
        interval: u16,
        /// The originator's sequence number.
        seqno: u16,
        /// The sender's distance; [`INFINITY`] takes the route back.
        metric: u16,
        /// Where it leads.
        prefix: Prefix,
        /// Who originates it.
        router: RouterId,
    },
    /// "Tell me your route."
    RouteRequest {
        /// How often it has been passed on.
        generation: u8,
        /// Where to; `None` asks for everything.
        prefix: Option<Prefix>,
    },
    /// "Have the originator raise its sequence number to this."
    SeqnoRequest {
        /// The number.
        seqno: u16,
        /// How many further routers may see it; not 0.
        hops: u8,
        /// The originator.
        router: RouterId,
        /// The route.
        prefix: Prefix,
    },
}

/// A packet in an overlay whose body only its destination can read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Data<'a> {
    /// How many further routers may pass it on.
    pub hop_limit: u8,
    /// Where it claims to come from.
    pub source: Ipv6Addr,
    /// Where it goes.
    pub destination: Ipv6Addr,
    /// The sealed body (see [`crate::packet`]).
    pub body: &'a [u8],
}

/// What stands on the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packet<'a> {
    /// Data.
    Data(Data<'a>),
    /// A routing message.
    Control(Control),
    /// A routing message of an unknown type, or one that is not written as mycelium 0.7 writes it.
    Unreadable,
}

/// Reads the packet at the start of `bytes`, and says how many bytes it took. `None`: more bytes
/// are needed.
///
/// # Errors
/// The bytes can't become a packet, whatever follows.
pub fn parse(bytes: &[u8]) -> Result<Option<(Packet<'_>, usize)>, WireError> {
    let Some((header, rest)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
        return Ok(None);
    };
    match *header {
        [VERSION, DATA, 0, 0] => parse_data(rest),
        [VERSION, CONTROL, 0, 0] => parse_control(rest),
        _ => Err(WireError::Header(*header)),
    }
}

fn parse_data(rest: &[u8]) -> Result<Option<(Packet<'_>, usize)>, WireError> {
    let mut fields = Reader(rest);
    let Some(length_and_hops) = fields.array::<4>() else { return Ok(None) };
    let [high, middle, low, hop_limit] = length_and_hops;
    let length = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
    if length > BODY_BYTES_MAX {
        return Err(WireError::DataLength(length));
    }
    let addresses = (fields.array::<16>(), fields.array::<16>());
    let (Some(source), Some(destination)) = addresses else { return Ok(None) };
    let Some(body) = fields.0.get(..length) else { return Ok(None) };
    let (source, destination) = (source.into(), destination.into());
    let data = Data { hop_limit, source, destination, body };
    Ok(Some((Packet::Data(data), DATA_HEADER_BYTES + length)))
}

fn parse_control(rest: &[u8]) -> Result<Option<(Packet<'_>, usize)>, WireError> {
    let mut fields = Reader(rest);
    let (Some(kind), Some(length)) = (fields.array::<2>(), fields.u16()) else { return Ok(None) };
    if kind != [BABEL_MAGIC, BABEL_VERSION] {
        return Err(WireError::ControlHeader(kind));
    }
    let length = usize::from(length);
    if !(2..=TLV_BYTES_MAX).contains(&length) {
        return Err(WireError::ControlLength(length));
    }
    let Some(tlv) = fields.0.get(..length) else { return Ok(None) };
    let packet = parse_tlv(tlv).map_or(Packet::Unreadable, Packet::Control);
    Ok(Some((packet, CONTROL_HEADER_BYTES + length)))
}

/// Exactly one TLV; `None` for anything that [`Control::write`] would not have written.
fn parse_tlv(tlv: &[u8]) -> Option<Control> {
    let mut fields = Reader(tlv);
    let (kind, length) = (fields.u8()?, fields.u8()?);
    if fields.0.len() != usize::from(length) {
        return None;
    }
    let control = match kind {
        HELLO => {
            let flags = fields.u16()?;
            let unicast = flags == UNICAST;
            if !unicast && flags != 0 {
                return None;
            }
            Control::Hello { unicast, seqno: fields.u16()?, interval: fields.u16()? }
        }
        IHU => {
            fields.expect([WILDCARD, 0])?;
            Control::Ihu { rxcost: fields.u16()?, interval: fields.u16()? }
        }
        UPDATE => {
            fields.expect([IPV6, 0])?;
            let length = fields.u8()?;
            fields.expect([0])?;
            let (interval, seqno, metric) = (fields.u16()?, fields.u16()?, fields.u16()?);
            let prefix = fields.prefix(length)?;
            Control::Update { interval, seqno, metric, prefix, router: fields.router()? }
        }
        ROUTE_REQUEST => {
            let generation = fields.u8()?;
            let prefix = match (fields.u8()?, fields.u8()?) {
                (WILDCARD, 0) => None,
                (IPV6, length) => Some(fields.prefix(length)?),
                _ => return None,
            };
            Control::RouteRequest { generation, prefix }
        }
        SEQNO_REQUEST => {
            fields.expect([IPV6])?;
            let (length, seqno, hops) = (fields.u8()?, fields.u16()?, fields.u8()?);
            fields.expect([0])?;
            if hops == 0 {
                return None;
            }
            let router = fields.router()?;
            Control::SeqnoRequest { seqno, hops, router, prefix: fields.prefix(length)? }
        }
        _ => return None,
    };
    fields.0.is_empty().then_some(control)
}

impl Control {
    /// Appends it as a packet.
    pub fn write(&self, out: &mut Vec<u8>) {
        let mut value = Vec::with_capacity(66);
        let kind = match self {
            Self::Hello { unicast, seqno, interval } => {
                let flags = if *unicast { UNICAST } else { 0 };
                [flags, *seqno, *interval].iter().for_each(|it| value.extend(it.to_be_bytes()));
                HELLO
            }
            Self::Ihu { rxcost, interval } => {
                value.extend([WILDCARD, 0]);
                [rxcost, interval].iter().for_each(|it| value.extend(it.to_be_bytes()));
                IHU
            }
            Self::Update { interval, seqno, metric, prefix, router } => {
                value.extend([IPV6, 0, prefix.length, 0]);
                [interval, seqno, metric].iter().for_each(|it| value.extend(it.to_be_bytes()));
                write_prefix(prefix, &mut value);
                write_router(router, &mut value);
                UPDATE
            }
            Self::RouteRequest { generation, prefix: None } => {
                value.extend([*generation, WILDCARD, 0]);
                ROUTE_REQUEST
            }
            Self::RouteRequest { generation, prefix: Some(prefix) } => {
                value.extend([*generation, IPV6, prefix.length]);
                write_prefix(prefix, &mut value);
                ROUTE_REQUEST
            }
            Self::SeqnoRequest { seqno, hops, router, prefix } => {
                value.extend([IPV6, prefix.length]);
                value.extend(seqno.to_be_bytes());
                value.extend([*hops, 0]);
                write_router(router, &mut value);
                write_prefix(prefix, &mut value);
                SEQNO_REQUEST
            }
        };
        // The longest value is the Update's: 10 + 16 + 40 bytes.
        let length = value.len().to_le_bytes()[0];
        out.extend([VERSION, CONTROL, 0, 0, BABEL_MAGIC, BABEL_VERSION]);
        out.extend((u16::from(length) + 2).to_be_bytes());
        out.extend([kind, length]);
        out.extend(value);
    }
}

impl Data<'_> {
    /// Appends it as a packet.
    ///
    /// # Errors
    /// The body is longer than [`BODY_BYTES_MAX`]; nothing was written.
    pub fn write(&self, out: &mut Vec<u8>) -> Result<(), WireError> {
        let length = self.body.len();
        let Ok(short) = u16::try_from(length) else {
            return Err(WireError::DataLength(length));
        };
        let [high, low] = short.to_be_bytes();
        out.extend([VERSION, DATA, 0, 0, 0, high, low, self.hop_limit]);
        out.extend(self.source.octets());
        out.extend(self.destination.octets());
        out.extend(self.body);
        Ok(())
    }
}

fn write_prefix(prefix: &Prefix, out: &mut Vec<u8>) {
    let bytes = usize::from(prefix.length.div_ceil(8));
    out.extend(prefix.address.octets().into_iter().take(bytes));
}

fn write_router(router: &RouterId, out: &mut Vec<u8>) {
    out.extend(router.key.0);
    out.extend(router.zone.to_be_bytes());
    out.extend(router.incarnation);
}

/// Takes fields off the front.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (array, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*array)
    }

    fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    fn expect<const N: usize>(&mut self, wanted: [u8; N]) -> Option<()> {
        (self.array::<N>()? == wanted).then_some(())
    }

    /// A prefix of that many bits, with no bit set after them.
    fn prefix(&mut self, length: u8) -> Option<Prefix> {
        let (bytes, rest) = self.0.split_at_checked(usize::from(length.div_ceil(8)))?;
        let mut octets = [0; 16];
        octets.get_mut(..bytes.len())?.copy_from_slice(bytes);
        self.0 = rest;
        let prefix = Prefix::of(octets.into(), length);
        (prefix.address.octets() == octets).then_some(prefix)
    }

    fn router(&mut self) -> Option<RouterId> {
        let (key, zone, incarnation) = (self.array()?, self.u16()?, self.array()?);
        Some(RouterId { key: PublicKey(key), zone, incarnation })
    }
}

/// Puts packets together from whatever pieces TCP delivers. It holds one unfinished packet (at most
/// 65575 bytes) and what was pushed since.
#[derive(Debug, Default)]
pub struct Stream {
    buffer: Vec<u8>,
    /// What has been read of the buffer.
    read: usize,
}

impl Stream {
    /// Appends bytes as they came; call [`Stream::next_packet`] until it has no more.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.read.min(self.buffer.len()));
        self.read = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The next complete packet.
    ///
    /// # Errors
    /// The peer doesn't speak the protocol; each further call says the same.
    pub fn next_packet(&mut self) -> Result<Option<Packet<'_>>, WireError> {
        let unread = self.buffer.get(self.read..).unwrap_or_default();
        Ok(parse(unread)?.map(|(packet, taken)| {
            self.read += taken;
            packet
        }))
    }
}
