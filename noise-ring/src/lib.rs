//! The primitives that `snow` runs a Noise handshake with: X25519 from `x25519-dalek`, AES-256-GCM,
//! ChaCha20-Poly1305 and SHA-256 from `ring`, and random bytes from the caller's seed, so that a
//! handshake makes no system call and can be repeated from its seed. The mesh's sessions and the
//! shard protocol share them.
#![forbid(unsafe_code)]

use ring::aead::{
    AES_256_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, Nonce, Tag, UnboundKey,
};
use ring::{digest, hmac};
use snow::Error;
use snow::params::{CipherChoice, DHChoice, HashChoice};
use snow::resolvers::CryptoResolver;
use snow::types::{Cipher, Dh, Hash, Random};
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::{ZeroizeOnDrop, Zeroizing};

/// Gives `snow` the primitives of `Noise_*_25519_{AESGCM,ChaChaPoly}_SHA256`.
#[derive(ZeroizeOnDrop)]
pub struct Primitives {
    seed: [u8; 32],
}

impl Primitives {
    /// `seed` must be fresh for each handshake: its ephemeral key comes from there.
    #[must_use]
    pub fn new(seed: [u8; 32]) -> Self {
        Self { seed }
    }
}

impl CryptoResolver for Primitives {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &self.seed);
        Some(Box::new(Seeded { key, drawn: 0 }))
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        matches!(choice, DHChoice::Curve25519).then(|| Box::<X25519>::default() as Box<dyn Dh>)
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        matches!(choice, HashChoice::SHA256).then(|| Box::<Sha256>::default() as Box<dyn Hash>)
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        Some(Box::new(match choice {
            CipherChoice::AESGCM => Aead::new("AESGCM", &AES_256_GCM, aes_gcm_nonce),
            CipherChoice::ChaChaPoly => {
                Aead::new("ChaChaPoly", &CHACHA20_POLY1305, chacha_poly_nonce)
            }
        }))
    }
}

/// HMAC-SHA-256 of a counter under the seed, 32 bytes at a time.
struct Seeded {
    key: hmac::Key,
    drawn: u64,
}

impl Random for Seeded {
    fn try_fill_bytes(&mut self, dest: &mut [u8]) -> Result<(), Error> {
        for part in dest.chunks_mut(32) {
            self.drawn += 1;
            let block = hmac::sign(&self.key, &self.drawn.to_le_bytes());
            part.iter_mut().zip(block.as_ref()).for_each(|(to, from)| *to = *from);
        }
        Ok(())
    }
}

#[derive(Default)]
struct X25519 {
    private: Zeroizing<[u8; 32]>,
    public: [u8; 32],
}

impl Dh for X25519 {
    fn name(&self) -> &'static str {
        "25519"
    }

    fn pub_len(&self) -> usize {
        32
    }

    fn priv_len(&self) -> usize {
        32
    }

    fn set(&mut self, privkey: &[u8]) {
        self.private.iter_mut().zip(privkey).for_each(|(to, from)| *to = *from);
        self.public = PublicKey::from(&StaticSecret::from(*self.private)).to_bytes();
    }

    fn generate(&mut self, rng: &mut dyn Random) -> Result<(), Error> {
        let mut private = Zeroizing::new([0; 32]);
        rng.try_fill_bytes(private.as_mut_slice())?;
        self.set(private.as_slice());
        Ok(())
    }

    fn pubkey(&self) -> &[u8] {
        &self.public
    }

    fn privkey(&self) -> &[u8] {
        self.private.as_slice()
    }

    /// Refuses keys of small order (RFC 7748 §6.1): they would make the secret known to all.
    fn dh(&self, pubkey: &[u8], out: &mut [u8]) -> Result<(), Error> {
        let public = pubkey.first_chunk::<32>().ok_or(Error::Dh)?;
        let secret = StaticSecret::from(*self.private);
        let shared = secret.diffie_hellman(&PublicKey::from(*public));
        if !shared.was_contributory() {
            return Err(Error::Dh);
        }
        *out.first_chunk_mut::<32>().ok_or(Error::Dh)? = *shared.as_bytes();
        Ok(())
    }
}

struct Sha256(digest::Context);

impl Default for Sha256 {
    fn default() -> Self {
        Self(digest::Context::new(&digest::SHA256))
    }
}

impl Hash for Sha256 {
    fn name(&self) -> &'static str {
        "SHA256"
    }

    fn block_len(&self) -> usize {
        64
    }

    fn hash_len(&self) -> usize {
        32
    }

    fn reset(&mut self) {
        *self = Self::default();
    }

    fn input(&mut self, data: &[u8]) {
        self.0.update(data);
    }

    fn result(&mut self, out: &mut [u8]) {
        let digest = self.0.clone().finish();
        out.iter_mut().zip(digest.as_ref()).for_each(|(to, from)| *to = *from);
    }
}

/// Noise §12.4: 32 zero bits, then the counter, big-endian. Never twice under one key.
#[must_use]
pub fn aes_gcm_nonce(counter: u64) -> Nonce {
    nonce(counter.to_be_bytes())
}

/// Noise §12.3: 32 zero bits, then the counter, little-endian.
fn chacha_poly_nonce(counter: u64) -> Nonce {
    nonce(counter.to_le_bytes())
}

fn nonce(counter: [u8; 8]) -> Nonce {
    let mut bytes = [0; 12];
    let (_, low) = bytes.split_at_mut(4);
    low.copy_from_slice(&counter);
    Nonce::assume_unique_for_key(bytes)
}

struct Aead {
    name: &'static str,
    algorithm: &'static Algorithm,
    nonce: fn(u64) -> Nonce,
    key: Option<LessSafeKey>,
}

impl Aead {
    fn new(name: &'static str, algorithm: &'static Algorithm, nonce: fn(u64) -> Nonce) -> Self {
        Self { name, algorithm, nonce, key: None }
    }
}

impl Cipher for Aead {
    fn name(&self) -> &'static str {
        self.name
    }

    fn set(&mut self, key: &[u8; 32]) {
        self.key = UnboundKey::new(self.algorithm, key).ok().map(LessSafeKey::new);
    }

    /// The interface has no room for an error: without a key (which `snow` never lets happen)
    /// nothing is written, and the message is one that nobody can read.
    fn encrypt(&self, counter: u64, authtext: &[u8], plaintext: &[u8], out: &mut [u8]) -> usize {
        let len = plaintext.len();
        let (Some(key), Some((body, tag_room))) = (&self.key, out.split_at_mut_checked(len)) else {
            return 0;
        };
        body.copy_from_slice(plaintext);
        let sealed =
            key.seal_in_place_separate_tag((self.nonce)(counter), Aad::from(authtext), body);
        let (Ok(tag), Some(room)) = (sealed, tag_room.first_chunk_mut::<16>()) else {
            body.fill(0);
            return 0;
        };
        room.copy_from_slice(tag.as_ref());
        len + 16
    }

    fn decrypt(
        &self,
        counter: u64,
        authtext: &[u8],
        ciphertext: &[u8],
        out: &mut [u8],
    ) -> Result<usize, Error> {
        let key = self.key.as_ref().ok_or(Error::Decrypt)?;
        let (body, tag) = ciphertext.split_last_chunk::<16>().ok_or(Error::Decrypt)?;
        let out = out.get_mut(..body.len()).ok_or(Error::Decrypt)?;
        out.copy_from_slice(body);
        let tag = Tag::from(*tag);
        key.open_in_place_separate_tag((self.nonce)(counter), Aad::from(authtext), tag, out, 0..)
            .map_err(|_| Error::Decrypt)?;
        Ok(body.len())
    }
}
