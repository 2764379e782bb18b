//! Cookies: proof that whoever sends an initiation can be reached where it says it is.
//!
//! `mac1` shows that a sender knows whom it writes to, and anybody can know that; a source address
//! can be forged. A member that gets more initiations from an address than it wants to read answers
//! with a cookie, which only somebody at that address receives. The next initiation carries a MAC
//! under it (`mac2`), and is counted apart from those that prove nothing. The member keeps no state
//! for it: a cookie is a MAC of the address under a secret that changes every two minutes. This is
//! the cookie of WireGuard (its paper, section 5.4.7) with other primitives.

use std::net::{IpAddr, SocketAddr};

use ring::aead::{self, Aad, LessSafeKey, Nonce, UnboundKey};
use ring::hkdf;
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::identity::PublicKey;
use crate::random::Generator;
use crate::wire::{COOKIE_NONCE_BYTES, Handshake, MAC_BYTES, SEALED_COOKIE_BYTES};

/// How long a member makes its cookies under one secret; it takes them for as long again.
pub(crate) const SECRET_NS: u64 = 120_000_000_000;
/// How long a member uses a cookie that it got: a little less than it is sure to be taken.
pub(crate) const COOKIE_NS: u64 = 110_000_000_000;

/// A cookie: known to the member that made it and to whoever receives at the address it is for.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Cookie([u8; MAC_BYTES]);

impl Cookie {
    /// Writes `mac2` over the rest of an initiation into its last bytes.
    pub fn prove(&self, initiation: &mut [u8]) {
        if let Some((covered, mac2)) = initiation.split_last_chunk_mut::<MAC_BYTES>() {
            *mac2 = self.mac2(covered);
        }
    }

    fn mac2(&self, covered: &[u8]) -> [u8; MAC_BYTES] {
        let key = blake3::derive_key("Hypha mesh 1: mac2 of a handshake message", &self.0);
        mac(&key, covered)
    }

    /// Seals the cookie for whoever sent the initiation with this `mac1` to `responder`. The key
    /// follows from public bytes: what keeps others from forging a reply is that they would have to
    /// know `mac1`, and so to have seen the initiation.
    #[must_use]
    pub fn seal(
        &self,
        responder: &PublicKey,
        nonce: &[u8; COOKIE_NONCE_BYTES],
        mac1: &[u8; MAC_BYTES],
    ) -> Option<[u8; SEALED_COOKIE_BYTES]> {
        let mut sealed = [0; SEALED_COOKIE_BYTES];
        let (cookie, tag_room) = sealed.split_first_chunk_mut::<MAC_BYTES>()?;
        *cookie = self.0;
        let key = reply_key(responder, nonce)?;
        let aad = Aad::from(mac1);
        let tag = key.seal_in_place_separate_tag(reply_nonce(), aad, cookie).ok()?;
        *tag_room.first_chunk_mut()? = *tag.as_ref().first_chunk::<16>()?;
        Some(sealed)
    }

    /// Opens a cookie that `responder` sealed; `None` if it does not answer the initiation with
    /// this `mac1`.
    #[must_use]
    pub fn open(
        responder: &PublicKey,
        nonce: &[u8; COOKIE_NONCE_BYTES],
        mac1: &[u8; MAC_BYTES],
        mut sealed: [u8; SEALED_COOKIE_BYTES],
    ) -> Option<Self> {
        let key = reply_key(responder, nonce)?;
        let cookie = key.open_in_place(reply_nonce(), Aad::from(mac1), &mut sealed).ok()?;
        Some(Self(*cookie.first_chunk()?))
    }
}

/// A key for one reply: HKDF-SHA-256 with the reply's random nonce as salt, so that it need not fit
/// the cipher's short nonce.
fn reply_key(responder: &PublicKey, nonce: &[u8; COOKIE_NONCE_BYTES]) -> Option<LessSafeKey> {
    let salt = hkdf::Salt::new(hkdf::HKDF_SHA256, nonce);
    let secret = salt.extract(&responder.0);
    let key = secret.expand(&[b"Hypha mesh 1: cookie"], &aead::CHACHA20_POLY1305).ok()?;
    Some(LessSafeKey::new(UnboundKey::from(key)))
}

/// Each reply has a key of its own.
fn reply_nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; 12])
}

fn mac(key: &[u8; 32], covered: &[u8]) -> [u8; MAC_BYTES] {
    let hash = blake3::keyed_hash(key, covered);
    let mut mac = [0; MAC_BYTES];
    mac.iter_mut().zip(hash.as_bytes()).for_each(|(to, from)| *to = *from);
    mac
}

/// What a member makes its cookies with. Nothing happens until an initiation asks for it.
#[derive(Zeroize, ZeroizeOnDrop)]
pub(crate) struct Secrets {
    current: [u8; 32],
    previous: [u8; 32],
    since_ns: u64,
}

impl Secrets {
    pub(crate) fn new(random: &mut Generator) -> Self {
        Self { current: random.seed(), previous: random.seed(), since_ns: 0 }
    }

    /// The cookie for `source`.
    pub(crate) fn cookie(
        &mut self,
        now_ns: u64,
        source: SocketAddr,
        random: &mut Generator,
    ) -> Cookie {
        self.rotate(now_ns, random);
        cookie_under(&self.current, source)
    }

    /// Whether an initiation that says it comes from `source` carries a cookie for that address.
    pub(crate) fn prove(
        &mut self,
        now_ns: u64,
        source: SocketAddr,
        message: &Handshake<'_>,
        random: &mut Generator,
    ) -> bool {
        if message.mac2 == [0; MAC_BYTES] {
            return false;
        }
        self.rotate(now_ns, random);
        [&self.current, &self.previous].into_iter().any(|secret| {
            let expected = cookie_under(secret, source).mac2(message.covered_by_mac2);
            // How long this takes tells nothing about where the two differ.
            let differences = expected.iter().zip(&message.mac2);
            differences.fold(0, |all, (one, other)| all | (one ^ other)) == 0
        })
    }

    fn rotate(&mut self, now_ns: u64, random: &mut Generator) {
        let age_ns = now_ns.saturating_sub(self.since_ns);
        if age_ns < SECRET_NS {
            return;
        }
        self.previous = if age_ns < 2 * SECRET_NS { self.current } else { random.seed() };
        self.current = random.seed();
        self.since_ns = now_ns;
    }
}

fn cookie_under(secret: &[u8; 32], source: SocketAddr) -> Cookie {
    let ip = match source.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    let [high, low] = source.port().to_be_bytes();
    let mut address = [0; 18];
    let bytes = ip.octets().into_iter().chain([high, low]);
    address.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
    Cookie(mac(secret, &address))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Datagram, MacKey, parse, write_initiation};

    const RESPONDER: PublicKey = PublicKey([9; 32]);

    fn place(port: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], port))
    }

    /// Whether an initiation with this cookie passes at `now_ns` from `source`.
    fn passes(secrets: &mut Secrets, now_ns: u64, source: SocketAddr, cookie: &Cookie) -> bool {
        let mut datagram = Vec::new();
        write_initiation(&mut datagram, &[0xaa; 100], &MacKey::of(&RESPONDER));
        cookie.prove(&mut datagram);
        let Ok(Datagram::Initiation(message)) = parse(&datagram) else { panic!("no initiation") };
        secrets.prove(now_ns, source, &message, &mut Generator::new([2; 32]))
    }

    #[test]
    fn a_cookie_proves_its_own_address_and_no_other() {
        let mut random = Generator::new([1; 32]);
        let mut secrets = Secrets::new(&mut random);
        let cookie = secrets.cookie(5, place(1), &mut random);
        assert!(passes(&mut secrets, 5, place(1), &cookie));
        assert!(!passes(&mut secrets, 5, place(2), &cookie), "another port");
        let elsewhere = SocketAddr::from(([192, 0, 2, 2], 1));
        assert!(!passes(&mut secrets, 5, elsewhere, &cookie), "another host");
        let mut others = Secrets::new(&mut random);
        assert!(!passes(&mut others, 5, place(1), &cookie), "another member's");
    }

    #[test]
    fn a_cookie_is_taken_for_two_minutes_at_least_and_four_at_most() {
        let mut random = Generator::new([1; 32]);
        for made_ns in [SECRET_NS, SECRET_NS + 7, 2 * SECRET_NS - 1] {
            let mut secrets = Secrets::new(&mut random);
            secrets.rotate(SECRET_NS, &mut random);
            let cookie = secrets.cookie(made_ns, place(1), &mut random);
            assert!(passes(&mut secrets, made_ns + SECRET_NS - 1, place(1), &cookie));
            assert!(!passes(&mut secrets, made_ns + 2 * SECRET_NS, place(1), &cookie));
        }
        // Nothing asked for a long time: neither secret is of use any more.
        let mut secrets = Secrets::new(&mut random);
        let cookie = secrets.cookie(SECRET_NS, place(1), &mut random);
        assert!(!passes(&mut secrets, 9 * SECRET_NS, place(1), &cookie));
    }

    #[test]
    fn a_reply_opens_for_its_initiation_only() {
        let cookie = Cookie([7; 16]);
        let (nonce, mac1) = ([3; 24], [5; 16]);
        let sealed = cookie.seal(&RESPONDER, &nonce, &mac1).unwrap();
        let opened = |responder: &PublicKey, nonce: &[u8; 24], mac1: &[u8; 16], sealed| {
            Cookie::open(responder, nonce, mac1, sealed).map(|cookie| cookie.0)
        };
        assert_eq!(opened(&RESPONDER, &nonce, &mac1, sealed), Some([7; 16]));
        assert_eq!(opened(&RESPONDER, &nonce, &[6; 16], sealed), None, "another initiation");
        assert_eq!(opened(&RESPONDER, &[4; 24], &mac1, sealed), None, "another nonce");
        assert_eq!(opened(&PublicKey([8; 32]), &nonce, &mac1, sealed), None, "another member");
        for bit in 0..8 * sealed.len() {
            let mut changed = sealed;
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(opened(&RESPONDER, &nonce, &mac1, changed), None, "bit {bit}");
        }
    }
}
