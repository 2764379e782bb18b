//! A member's identity: an X25519 key pair, and the IPv6 address that follows from it.

use std::net::Ipv6Addr;

use x25519_dalek::StaticSecret;
use zeroize::{Zeroize, ZeroizeOnDrop};

/// An X25519 private key (RFC 7748), 32 bytes as they lie in a key file. Erased when dropped and
/// never shown by `Debug`.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct PrivateKey([u8; 32]);

impl PrivateKey {
    /// Wraps the bytes of a key; X25519 clamps them at each use.
    #[must_use]
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        let secret = StaticSecret::from(self.0);
        PublicKey(x25519_dalek::PublicKey::from(&secret).to_bytes())
    }

    pub(crate) fn expose(&self) -> &[u8; 32] {
        &self.0
    }
}

impl std::fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PrivateKey(..)")
    }
}

/// An X25519 public key: a member's name. Every decision about a member is about all 32 bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey(pub [u8; 32]);

impl PublicKey {
    /// The member's own address in `400::/7`, as mycelium 0.7 derives it: the first 16 bytes of
    /// BLAKE3 of the key, the first of them replaced by 4 plus the parity of its set bits.
    #[must_use]
    pub fn address(&self) -> Ipv6Addr {
        let mut octets = [0u8; 16];
        blake3::Hasher::new().update(&self.0).finalize_xof().fill(&mut octets);
        let [first, ..] = &mut octets;
        *first = 0x04 | u8::from(first.count_ones() % 2 == 1);
        Ipv6Addr::from(octets)
    }
}

impl std::fmt::Display for PublicKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl std::fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> [u8; 32] {
        std::array::from_fn(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap())
    }

    /// Captured from mycelium 0.7.10: (private key, public key, address).
    const CAPTURED: [(&str, &str, &str); 2] = [
        (
            "1c49a05cc4bc622ee7e3395734197a7d89d891f356cbf45cd43dfc18487a79b4",
            "d2f9ea6dc0923d1389baa43d3ce778c4bcda099cd0d8023d6644cb8506696c1b",
            "4f2:9859:15f6:316f:1b20:b7a3:edea:defa",
        ),
        (
            "4e001f686c732fc9b1265ab0aaeb5cda35c08e7624d364c6efb760d3d05c02b0",
            "752bb0bf60ac34056802f504c632c13c0227593f453bc802e5f4eba0be6eaa2d",
            "507:1c99:5898:8adf:93e0:8cc4:dcc4:3478",
        ),
    ];

    #[test]
    fn keys_and_addresses_are_those_of_mycelium() {
        for (private, public, address) in CAPTURED {
            let key = PrivateKey::new(hex(private)).public();
            assert_eq!(key.to_string(), public);
            assert_eq!(key.address(), address.parse::<Ipv6Addr>().unwrap());
        }
    }

    #[test]
    fn every_address_lies_in_400_7() {
        for byte in 0..=255 {
            let first = PublicKey([byte; 32]).address().octets()[0];
            assert_eq!(first & 0xfe, 0x04, "key of bytes {byte}");
        }
    }

    #[test]
    fn a_private_key_is_not_printed() {
        assert_eq!(format!("{:?}", PrivateKey::new([0x41; 32])), "PrivateKey(..)");
    }
}
