//! Signatures under a member's X25519 key: XEdDSA (T. Perrin, "The XEdDSA and VXEdDSA Signature
//! Schemes", revision 1), so that the key that a session proves is also the key that signs.
//!
//! What is signed is `length of the purpose (1) ‖ purpose ‖ message`: a signature made for one
//! [`Purpose`] says nothing under another, whatever the messages look like.
//!
//! [`verify`] is stricter than the scheme asks: a key in its one canonical encoding, on the curve
//! and not of small order, and a scalar below the group's order. So nobody can turn a signature
//! into another one of the same message, or find a key that signs everything.
//!
//! What this module holds of a secret is erased; `ring`'s SHA-512 does not erase its own state.

use curve25519_dalek::edwards::EdwardsPoint;
use curve25519_dalek::montgomery::MontgomeryPoint;
use curve25519_dalek::scalar::{Scalar, clamp_integer};
use ring::digest;
use zeroize::{Zeroize, Zeroizing};

use crate::identity::{PrivateKey, PublicKey};

/// The bytes of a signature: a point, then a scalar.
pub const SIGNATURE_BYTES: usize = 64;
/// The random bytes that one signature takes.
pub const RANDOM_BYTES: usize = 64;

/// The scheme's `hash_1`: SHA-512 of 2^256 - 2 (little-endian) and what follows. No point has this
/// encoding, so this hash and the one of a signature never meet.
const HASH_1: [u8; 32] = {
    let mut bytes = [0xff; 32];
    bytes[0] = 0xfe;
    bytes
};

/// What a signature is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Purpose(&'static str);

impl Purpose {
    /// A purpose by its name, such as `Hypha mesh 1: announcement`. Two kinds of messages never
    /// share a name. A name of more than 255 bytes does not compile in a constant.
    #[must_use]
    pub const fn new(name: &'static str) -> Self {
        assert!(!name.is_empty() && name.len() <= 255, "a purpose has 1 to 255 bytes");
        Self(name)
    }

    /// The bytes in front of the message.
    fn parts(self) -> ([u8; 1], &'static [u8]) {
        // The constructor has seen to it that the length fits.
        ([self.0.len() as u8], self.0.as_bytes())
    }
}

/// Signs `message`. `random` is drawn anew for each signature; should it ever recur, the signature
/// is still safe, because the nonce also depends on the key and the message.
#[must_use]
pub fn sign(
    key: &PrivateKey,
    purpose: Purpose,
    message: &[u8],
    random: &[u8; RANDOM_BYTES],
) -> [u8; SIGNATURE_BYTES] {
    let (length, name) = purpose.parts();
    sign_parts(key, &[&length, name, message], random)
}

/// Whether `signature` is one of `message` for this purpose under `key`.
#[must_use]
pub fn verify(
    key: &PublicKey,
    purpose: Purpose,
    message: &[u8],
    signature: &[u8; SIGNATURE_BYTES],
) -> bool {
    let (length, name) = purpose.parts();
    verify_parts(key, &[&length, name, message], signature).is_some()
}

/// `xeddsa_sign` of the scheme: the message is the parts, one after the other.
fn sign_parts(
    key: &PrivateKey,
    message: &[&[u8]],
    random: &[u8; RANDOM_BYTES],
) -> [u8; SIGNATURE_BYTES] {
    let clamped = Zeroizing::new(clamp_integer(*key.expose()));
    let mut secret = Scalar::from_bytes_mod_order(*clamped);
    let mut point = EdwardsPoint::mul_base(&secret);
    // The X25519 key does not tell a point from its negative: the one with sign bit 0 is meant.
    if point.compress().as_bytes()[31] & 0x80 != 0 {
        secret = -secret;
        point = -point;
    }
    let secret = Zeroizing::new(secret);
    let secret_bytes = Zeroizing::new(secret.to_bytes());
    let private = [HASH_1.as_slice(), secret_bytes.as_slice()];
    let nonce = Zeroizing::new(hash(&[&private, message, &[random.as_slice()]]));
    let commitment = EdwardsPoint::mul_base(&nonce).compress();
    let public = point.compress();
    let challenge = hash(&[&[commitment.as_bytes(), public.as_bytes()], message]);
    let mut response = *nonce + challenge * *secret;
    let mut signature = [0; SIGNATURE_BYTES];
    let (front, back) = signature.split_at_mut(32);
    front.copy_from_slice(commitment.as_bytes());
    back.copy_from_slice(response.as_bytes());
    response.zeroize();
    signature
}

/// `xeddsa_verify` of the scheme, and the stricter checks of this module.
fn verify_parts(
    key: &PublicKey,
    message: &[&[u8]],
    signature: &[u8; SIGNATURE_BYTES],
) -> Option<()> {
    let public = MontgomeryPoint(key.0).to_edwards(0)?;
    // The way back gives the canonical encoding: another one would be a second name for the key.
    if public.to_montgomery().to_bytes() != key.0 || public.is_small_order() {
        return None;
    }
    let (commitment, response) = signature.split_first_chunk::<32>()?;
    let response = Scalar::from_canonical_bytes(response.try_into().ok()?).into_option()?;
    let encoded = public.compress();
    let challenge = hash(&[&[commitment, encoded.as_bytes()], message]);
    let expected =
        EdwardsPoint::vartime_double_scalar_mul_basepoint(&challenge, &-public, &response);
    // Compared as bytes: a commitment in an encoding of its own never matches.
    (expected.compress().as_bytes() == commitment && !expected.is_small_order()).then_some(())
}

/// SHA-512 of all the parts, as a scalar.
fn hash(parts: &[&[&[u8]]]) -> Scalar {
    let mut context = digest::Context::new(&digest::SHA512);
    for part in parts.iter().flat_map(|parts| parts.iter()) {
        context.update(part);
    }
    let mut wide = Zeroizing::new([0; 64]);
    wide.iter_mut().zip(context.finish().as_ref()).for_each(|(to, from)| *to = *from);
    Scalar::from_bytes_mod_order_wide(&wide)
}

#[cfg(test)]
mod tests;
