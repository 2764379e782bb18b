//! Which IPv4 addresses members reach, and how they are written in IPv6 (RFC 6052).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// The well-known prefix `64:ff9b::/96` (RFC 6052 §2.1), as its first 12 bytes.
const PREFIX: [u8; 12] = [0, 0x64, 0xff, 0x9b, 0, 0, 0, 0, 0, 0, 0, 0];

/// The well-known prefix, for a route to it: address and length in bits.
pub const NAT64_PREFIX: (Ipv6Addr, u8) = (Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0), 96);

/// The IPv6 address that stands for an IPv4 address.
#[must_use]
pub fn embed(address: Ipv4Addr) -> Ipv6Addr {
    let mut octets = [0; 16];
    let all = PREFIX.into_iter().chain(address.octets());
    octets.iter_mut().zip(all).for_each(|(to, from)| *to = from);
    Ipv6Addr::from(octets)
}

/// The IPv4 address that an IPv6 address stands for, if it is one of the prefix.
#[must_use]
pub fn extract(address: &Ipv6Addr) -> Option<Ipv4Addr> {
    let octets = address.octets();
    let (prefix, rest) = octets.split_first_chunk::<12>()?;
    let rest = <[u8; 4]>::try_from(rest).ok()?;
    (*prefix == PREFIX).then(|| Ipv4Addr::from(rest))
}

/// What a member's packet to `destination` is meant for, if that is an IPv4 address outside.
#[must_use]
pub fn outside(destination: &IpAddr) -> Option<Ipv4Addr> {
    match destination {
        IpAddr::V4(address) => Some(*address),
        IpAddr::V6(address) => extract(address),
    }
}

/// A block of IPv4 addresses, written `10.1.0.0/16` or as one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Block {
    first: Ipv4Addr,
    bits: u8,
}

/// Why a text is no block of addresses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BlockError {
    /// Not an address, or not a length behind it.
    #[error(
        "{0:?} is no block of IPv4 addresses: expected ADDRESS or ADDRESS/BITS, like 10.1.0.0/16"
    )]
    Form(String),
    /// The length is more than an address has.
    #[error("a block of /{0}: an IPv4 address has 32 bits")]
    Bits(u8),
    /// There are bits set behind the length, so perhaps another block is meant.
    #[error("{given} does not start a block of /{bits}; {first} does")]
    Start {
        /// The address.
        given: Ipv4Addr,
        /// The length.
        bits: u8,
        /// What would.
        first: Ipv4Addr,
    },
}

impl Block {
    /// The block of the addresses that share the first `bits` bits of `first`.
    ///
    /// # Errors
    /// [`BlockError`] if there is no such block.
    pub const fn new(first: Ipv4Addr, bits: u8) -> Result<Self, BlockError> {
        if bits > 32 {
            return Err(BlockError::Bits(bits));
        }
        let start = Ipv4Addr::from_bits(first.to_bits() & mask(bits));
        if start.to_bits() != first.to_bits() {
            return Err(BlockError::Start { given: first, bits, first: start });
        }
        Ok(Self { first, bits })
    }

    /// Whether an address is in it.
    #[must_use]
    pub const fn contains(&self, address: Ipv4Addr) -> bool {
        address.to_bits() & mask(self.bits) == self.first.to_bits()
    }
}

const fn mask(bits: u8) -> u32 {
    match bits {
        0 => 0,
        1..32 => u32::MAX << (32 - bits),
        _ => u32::MAX,
    }
}

impl FromStr for Block {
    type Err = BlockError;

    fn from_str(text: &str) -> Result<Self, BlockError> {
        let form = || BlockError::Form(text.to_owned());
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, bits.parse().map_err(|_| form())?),
            None => (text, 32),
        };
        Self::new(address.parse().map_err(|_| form())?, bits)
    }
}

impl std::fmt::Display for Block {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.first, self.bits)
    }
}

/// What nobody reaches unless the operator lists it (RFC 6890): "this" network, private, carrier
/// NAT, loopback, link-local (the metadata services of clouds among them), IETF assignments,
/// benchmarks, multicast, reserved and broadcast.
const FORBIDDEN: [(Ipv4Addr, u8); 11] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8),
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(100, 64, 0, 0), 10),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 0, 0, 0), 24),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    (Ipv4Addr::new(198, 18, 0, 0), 15),
    (Ipv4Addr::new(224, 0, 0, 0), 4),
    (Ipv4Addr::new(240, 0, 0, 0), 4),
];

/// Where members may go by address alone. The host's own addresses are not known here: whether an
/// address is one of them is asked when a flow opens ([`crate::sockets::Sockets::is_own`]).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Destinations {
    allowed: Vec<Block>,
}

impl Destinations {
    /// What is public, and what the operator lists.
    #[must_use]
    pub fn new(allowed: Vec<Block>) -> Self {
        Self { allowed }
    }

    /// Whether the operator lists the address: then it may be the host's own too.
    #[must_use]
    pub fn lists(&self, address: Ipv4Addr) -> bool {
        self.allowed.iter().any(|block| block.contains(address))
    }

    /// Whether the address is public or listed.
    #[must_use]
    pub fn permits(&self, address: Ipv4Addr) -> bool {
        let is_in =
            |(first, bits): &(Ipv4Addr, u8)| address.to_bits() & mask(*bits) == first.to_bits();
        self.lists(address) || !FORBIDDEN.iter().any(is_in)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_address_of_the_rfc_is_written_as_there() {
        let address = embed(Ipv4Addr::new(192, 0, 2, 33));
        assert_eq!(address, "64:ff9b::192.0.2.33".parse::<Ipv6Addr>().unwrap());
        assert_eq!(extract(&"64:ff9b:1::1".parse().unwrap()), None);
        assert_eq!(extract(&"64:ff9b::1:0:0:1".parse().unwrap()), None);
    }

    #[test]
    fn what_is_not_public_is_forbidden_unless_it_is_listed() {
        let listed: Vec<Block> = vec!["10.1.0.0/16".parse().unwrap(), "127.0.0.1".parse().unwrap()];
        let (none, some) = (Destinations::default(), Destinations::new(listed));
        for text in [
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "192.0.0.8",
            "198.19.0.1",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
        ] {
            assert!(!none.permits(text.parse().unwrap()), "{text}");
        }
        for text in [
            "1.1.1.1",
            "100.63.255.255",
            "100.128.0.0",
            "172.32.0.0",
            "11.0.0.0",
            "223.255.255.255",
        ] {
            assert!(none.permits(text.parse().unwrap()), "{text}");
        }
        assert!(some.permits(Ipv4Addr::new(10, 1, 2, 3)) && some.permits(Ipv4Addr::LOCALHOST));
        assert!(!some.permits(Ipv4Addr::new(10, 2, 0, 0)));
        assert!(!some.permits(Ipv4Addr::new(127, 0, 0, 2)));
    }

    #[test]
    fn a_block_is_written_in_one_way() {
        assert_eq!("10.1.0.0/16".parse::<Block>().unwrap().to_string(), "10.1.0.0/16");
        assert!("0.0.0.0/0".parse::<Block>().unwrap().contains(Ipv4Addr::BROADCAST));
        for (text, wrong) in [
            ("10.1.0.1/16", "10.1.0.0 does"),
            ("10.0.0.0/33", "32 bits"),
            ("10.0.0/8", "expected ADDRESS"),
            ("10.0.0.0/", "expected ADDRESS"),
        ] {
            let error = text.parse::<Block>().unwrap_err().to_string();
            assert!(error.contains(wrong), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn what_is_embedded_is_extracted(address in any::<u32>()) {
            let address = Ipv4Addr::from(address);
            prop_assert_eq!(extract(&embed(address)), Some(address));
        }
    }
}
