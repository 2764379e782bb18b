//! secp256k1 keys: whose transactions and messages are whose.

use alloy_primitives::{Address, B256, keccak256};
use k256::ecdsa::{RecoveryId, Signature as Raw, SigningKey, VerifyingKey};

/// A private key. It is erased when dropped and never printed.
pub struct Key(SigningKey);

/// Why bytes are no key.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum KeyError {
    /// Zero, or not below the curve's order.
    #[error("these 32 bytes are no secp256k1 key")]
    OutOfRange,
}

/// A recoverable signature. `s` is in the lower half, so that no signature has a second form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signature {
    /// x of the nonce's point.
    pub r: B256,
    /// The scalar.
    pub s: B256,
    /// Whether y of the nonce's point is odd.
    pub y_is_odd: bool,
}

impl Key {
    /// A key of 32 bytes, big-endian.
    ///
    /// # Errors
    /// [`KeyError::OutOfRange`].
    pub fn from_bytes(bytes: &[u8; 32]) -> Result<Self, KeyError> {
        SigningKey::from_bytes(bytes.into()).map(Self).map_err(|_| KeyError::OutOfRange)
    }

    /// The address that the public half hashes to.
    #[must_use]
    pub fn address(&self) -> Address {
        address_of(self.0.verifying_key())
    }

    /// Signs a digest (RFC 6979: the same digest gives the same signature).
    #[must_use]
    pub fn sign(&self, digest: &B256) -> Signature {
        // It fails for a nonce of zero alone, which no digest is known to lead to.
        let signed = self.0.sign_prehash_recoverable(digest.as_slice());
        let Ok((raw, recovery)) = signed else {
            unreachable!("a nonce of zero came out of HMAC-SHA256");
        };
        let (r, s) = raw.split_bytes();
        Signature {
            r: B256::from_slice(&r),
            s: B256::from_slice(&s),
            y_is_odd: recovery.is_y_odd(),
        }
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Key({})", self.address())
    }
}

impl Signature {
    /// r, s and 27 or 28: what contracts take.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; 65] {
        let mut bytes = [0; 65];
        for (to, from) in bytes.iter_mut().zip(self.r.iter().chain(self.s.iter())) {
            *to = *from;
        }
        if let Some(last) = bytes.last_mut() {
            *last = 27 + u8::from(self.y_is_odd);
        }
        bytes
    }

    /// Who signed the digest; `None` if nobody can have.
    #[must_use]
    pub fn recover(&self, digest: &B256) -> Option<Address> {
        let raw = Raw::from_scalars(self.r.0, self.s.0).ok()?;
        if raw.normalize_s().is_some() {
            return None;
        }
        let recovery = RecoveryId::new(self.y_is_odd, false);
        let key = VerifyingKey::recover_from_prehash(digest.as_slice(), &raw, recovery).ok()?;
        Some(address_of(&key))
    }
}

fn address_of(key: &VerifyingKey) -> Address {
    let point = key.to_encoded_point(false);
    let hash = keccak256(point.as_bytes().get(1..).unwrap_or_default());
    Address::from_word(hash)
}

#[cfg(test)]
mod tests {
    use alloy_primitives::{address, hex};

    use super::*;

    fn key() -> Key {
        Key::from_bytes(&hex!("ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80"))
            .unwrap()
    }

    #[test]
    fn the_address_is_the_one_that_other_tools_derive() {
        assert_eq!(key().address(), address!("f39Fd6e51aad88F6F4ce6aB8827279cffFb92266"));
    }

    #[test]
    fn a_signature_recovers_its_signer_and_no_other_digest_does() {
        let digest = keccak256(b"a");
        let signature = key().sign(&digest);
        assert_eq!(signature.recover(&digest), Some(key().address()));
        assert_ne!(signature.recover(&keccak256(b"b")), Some(key().address()));
    }

    #[test]
    fn the_mirror_image_of_a_signature_is_refused() {
        let digest = keccak256(b"a");
        let mut signature = key().sign(&digest);
        let order = alloy_primitives::U256::from_be_bytes(hex!(
            "fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141"
        ));
        let s = alloy_primitives::U256::from_be_bytes(signature.s.0);
        signature.s = B256::from(order - s);
        signature.y_is_odd = !signature.y_is_odd;
        assert_eq!(signature.recover(&digest), None);
    }

    #[test]
    fn zero_and_the_order_are_no_keys() {
        assert_eq!(Key::from_bytes(&[0; 32]).err(), Some(KeyError::OutOfRange));
        assert_eq!(Key::from_bytes(&[0xff; 32]).err(), Some(KeyError::OutOfRange));
    }

    #[test]
    fn a_key_prints_as_its_address() {
        assert_eq!(format!("{:?}", key()), "Key(0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266)");
    }
}
