//! The post-quantum half of a handshake: ML-KEM-768 (FIPS 203).
//!
//! The initiator makes a key pair for one handshake and sends the encapsulation key inside message
//! 1; the responder encapsulates a secret to it and sends the ciphertext ahead of message 2. What
//! both then know goes into Noise's psk, so that the session's keys hold as long as *one* of X25519
//! and ML-KEM does. It protects secrecy, not identity: who the peer is, X25519 alone shows.

use ml_kem::kem::{Decapsulate, KeyExport};
use ml_kem::{B32, DecapsulationKey, EncapsulationKey, MlKem768, Seed};
use ring::hkdf;
use zeroize::{Zeroize, Zeroizing};

use crate::identity::PublicKey;

/// The bytes of an encapsulation key.
pub const ENCAPSULATION_KEY_BYTES: usize = 1184;
/// The bytes of a ciphertext.
pub const CIPHERTEXT_BYTES: usize = 1088;

const PSK_SALT: &[u8] = b"Hypha mesh 1: post-quantum psk";
const KEY_PAIR_SEED: &str = "Hypha mesh 1: ML-KEM key pair of a handshake";
const MESSAGE_SEED: &str = "Hypha mesh 1: ML-KEM encapsulation of a handshake";

/// What a member asks of its handshakes. Either way it takes part in the post-quantum half with
/// every peer that does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PostQuantum {
    /// No session without it: a peer that can't is refused.
    Required,
    /// A peer that can't gets a session that rests on X25519 alone.
    #[default]
    Upgrade,
}

/// The static keys that a secret belongs to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Statics {
    pub(super) initiator: PublicKey,
    pub(super) responder: PublicKey,
}

/// An initiator's key pair for one handshake; erased when dropped.
pub(super) struct KeyPair {
    secret: DecapsulationKey<MlKem768>,
    public: Box<[u8; ENCAPSULATION_KEY_BYTES]>,
}

impl KeyPair {
    /// The key pair that follows from the seed of the handshake.
    pub(super) fn new(handshake_seed: &[u8; 32]) -> Self {
        let mut seed = Seed::default();
        derive(KEY_PAIR_SEED, handshake_seed, &mut seed);
        let secret = DecapsulationKey::from_seed(seed);
        seed.zeroize();
        let public = Box::new(secret.encapsulation_key().to_bytes().into());
        Self { secret, public }
    }

    pub(super) fn public(&self) -> &[u8; ENCAPSULATION_KEY_BYTES] {
        &self.public
    }

    /// The psk of the handshake whose responder sent this ciphertext. A ciphertext that was changed
    /// gives another psk, and message 2 does not verify.
    pub(super) fn psk(
        &self,
        ciphertext: &[u8; CIPHERTEXT_BYTES],
        statics: &Statics,
    ) -> Option<Zeroizing<[u8; 32]>> {
        let mut secret = self.secret.decapsulate(&(*ciphertext).into());
        let psk = psk(secret.as_ref(), &self.public, ciphertext, statics);
        secret.zeroize();
        psk
    }
}

/// A secret for the holder of an encapsulation key.
pub(super) struct Encapsulated {
    pub(super) ciphertext: Box<[u8; CIPHERTEXT_BYTES]>,
    pub(super) psk: Zeroizing<[u8; 32]>,
}

/// Encapsulates a secret that follows from the seed of the handshake; `None` if these bytes are no
/// encapsulation key (FIPS 203 §7.2: a coefficient is not reduced).
pub(super) fn encapsulate(
    public: &[u8; ENCAPSULATION_KEY_BYTES],
    handshake_seed: &[u8; 32],
    statics: &Statics,
) -> Option<Encapsulated> {
    let key = EncapsulationKey::<MlKem768>::new(&(*public).into()).ok()?;
    let mut message = B32::default();
    derive(MESSAGE_SEED, handshake_seed, &mut message);
    let (ciphertext, mut secret) = key.encapsulate_deterministic(&message);
    message.zeroize();
    let ciphertext = Box::new(ciphertext.into());
    let psk = psk(secret.as_ref(), public, &ciphertext, statics);
    secret.zeroize();
    Some(Encapsulated { ciphertext, psk: psk? })
}

fn derive(purpose: &str, seed: &[u8; 32], bytes: &mut [u8]) {
    let mut hasher = blake3::Hasher::new_derive_key(purpose);
    hasher.update(seed);
    let mut output = hasher.finalize_xof();
    output.fill(bytes);
    output.zeroize();
    hasher.zeroize();
}

/// HKDF-SHA-256 of the secret, what carried it, and whom it is between: the transcript is bound to
/// the psk although ML-KEM's secret alone would not name it.
fn psk(
    secret: &[u8],
    public: &[u8; ENCAPSULATION_KEY_BYTES],
    ciphertext: &[u8; CIPHERTEXT_BYTES],
    statics: &Statics,
) -> Option<Zeroizing<[u8; 32]>> {
    let parts = [secret, public, ciphertext, &statics.initiator.0, &statics.responder.0];
    let input = Zeroizing::new(parts.concat());
    let extracted = hkdf::Salt::new(hkdf::HKDF_SHA256, PSK_SALT).extract(&input);
    let mut psk = Zeroizing::new([0; 32]);
    let expanded = extracted.expand(&[], hkdf::HKDF_SHA256);
    // HKDF fails only beyond 255 blocks; this is one.
    expanded.and_then(|output| output.fill(psk.as_mut_slice())).ok()?;
    Some(psk)
}
