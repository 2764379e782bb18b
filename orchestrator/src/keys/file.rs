//! Key files: a secp256k1 key, open or under a passphrase. `docs/keys.md` has the format.
//!
//! ```text
//! 0    8  "HYPHAKEY"            30  32  open: the key
//! 8    1  version, 1            30   4  passphrase: Argon2id's memory in KiB
//! 9    1  kind: 0 open,         34   4    its passes
//!         1 passphrase          38   4    its lanes
//! 10  20  address               42  16    its salt
//!                               58  12    the nonce of AES-256-GCM
//!                               70  48    the sealed key; all before it is authenticated
//! last 4  CRC-32C of all before
//! ```
//!
//! The checksum tells a damaged file from a wrong passphrase. A file of exactly 32 bytes is an open key
//! too: so the state keeps its other keys.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use argon2::{Algorithm, Argon2, Block, Params, Version};
use hypha_chain::Address;
use hypha_chain::key::Key;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};
use spec::secret::Secret32;
use zeroize::{Zeroize, Zeroizing};

use super::passphrase::{Passphrase, PassphraseError, PassphraseSource};
use crate::state::{self, StateError};

const MAGIC: &[u8; 8] = b"HYPHAKEY";
const VERSION: u8 = 1;
const OPEN: u8 = 0;
const SEALED: u8 = 1;
/// Magic, version, kind, address.
const HEAD_LEN: usize = 30;
const OPEN_LEN: usize = HEAD_LEN + 32 + 4;
const SEALED_LEN: usize = 122;
/// What a guess at a passphrase costs: 64 MiB, three times over (RFC 9106 §4, the second choice, but for
/// its lanes: it is worked out on one thread).
const COST: Cost = Cost { memory_kib: 64 * 1024, passes: 3, lanes: 1 };
/// What a file may ask of whoever opens it.
const COST_MAX: Cost = Cost { memory_kib: 1024 * 1024, passes: 64, lanes: 16 };

/// Why a key file can't be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// There is none.
    #[error("there is no key {0}: make one with `hypha key create`")]
    Missing(PathBuf),
    /// There is one already.
    #[error("{0} is there already, and a key is never replaced: take another name")]
    Exists(PathBuf),
    /// Others may read it.
    #[error("{path} has mode {mode:o}, so others may read the key; run chmod 600 {path}")]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Not a key file, or one whose bytes have changed.
    #[error("{path} is damaged, or no key file: {reason}; put its backup back")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: &'static str,
    },
    /// Of a later hypha.
    #[error("{path} has version {version}; this hypha reads version {VERSION}")]
    Version {
        /// The file.
        path: PathBuf,
        /// What it says.
        version: u8,
    },
    /// The passphrase does not open it.
    #[error("this is not the passphrase of {0}")]
    WrongPassphrase(PathBuf),
    /// No passphrase is to be had.
    #[error("{path} needs its passphrase: {source}")]
    Passphrase {
        /// The file.
        path: PathBuf,
        /// Why there is none.
        #[source]
        source: PassphraseError,
    },
    /// The kernel gives no random bytes.
    #[error("the kernel gives no random bytes")]
    Random,
    /// This host has not the memory that the file's passphrase costs.
    #[error("the passphrase can't be worked out: {0}")]
    Work(argon2::Error),
    /// The file can't be read or written.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateError),
}

/// What Argon2id is to cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cost {
    memory_kib: u32,
    passes: u32,
    lanes: u32,
}

/// What a key file says without its passphrase.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Face {
    /// Whose key it is.
    pub address: Address,
    /// Whether it takes a passphrase to use it.
    pub is_sealed: bool,
}

/// Reads the key in a file, asking for its passphrase if it has one.
///
/// # Errors
/// A [`KeyFileError`].
pub fn load_key(path: &Path, source: &PassphraseSource) -> Result<Key, KeyFileError> {
    unlock(path, source).map(|(_, key)| key)
}

/// Reads a key for whoever is to have it outside of this process.
///
/// # Errors
/// A [`KeyFileError`].
pub(super) fn load_secret(
    path: &Path,
    source: &PassphraseSource,
) -> Result<(Secret32, Address), KeyFileError> {
    unlock(path, source).map(|(secret, key)| (secret, key.address()))
}

fn unlock(path: &Path, source: &PassphraseSource) -> Result<(Secret32, Key), KeyFileError> {
    let bytes = read(path)?;
    let secret = match parse(path, &bytes)? {
        Parsed::Open(secret) => secret,
        Parsed::Sealed(sealed) => {
            let wanting = |source| KeyFileError::Passphrase { path: path.to_owned(), source };
            let words = source.get(&format!("passphrase of {}: ", path.display()));
            sealed.open(path, &words.map_err(wanting)?)?
        }
    };
    let key = key_of(path, &bytes, &secret)?;
    Ok((secret, key))
}

/// Whose key is in a file, and whether it takes a passphrase.
///
/// # Errors
/// A [`KeyFileError`].
pub fn face(path: &Path) -> Result<Face, KeyFileError> {
    let bytes = read(path)?;
    match parse(path, &bytes)? {
        Parsed::Open(secret) => {
            let address = key_of(path, &bytes, &secret)?.address();
            Ok(Face { address, is_sealed: false })
        }
        Parsed::Sealed(sealed) => Ok(Face { address: sealed.address, is_sealed: true }),
    }
}

/// Writes a key file; under a passphrase if one is given. It is there whole or not at all, and none is
/// ever replaced.
///
/// # Errors
/// A [`KeyFileError`].
pub fn write_key(
    path: &Path,
    secret: &Secret32,
    passphrase: Option<&Passphrase>,
) -> Result<Address, KeyFileError> {
    if path.try_exists().map_err(at(path))? {
        return Err(KeyFileError::Exists(path.to_owned()));
    }
    let damaged = |_| KeyFileError::Damaged { path: path.to_owned(), reason: OUT_OF_RANGE };
    let address = Key::from_bytes(secret.expose()).map_err(damaged)?.address();
    let bytes = match passphrase {
        None => open_file(address, secret),
        Some(words) => sealed_file(address, secret, words, COST)?,
    };
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let beside = path.with_file_name(format!(".{name}.new.{}", std::process::id()));
    state::write_whole(&beside, &bytes)?;
    // A link, unlike a rename, fails if somebody else's key has come to lie there.
    let linked = fs::hard_link(&beside, path).map_err(|source| match source.kind() {
        io::ErrorKind::AlreadyExists => KeyFileError::Exists(path.to_owned()),
        _ => at(path)(source),
    });
    fs::remove_file(&beside).map_err(at(&beside))?;
    linked?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(at(folder))?;
    Ok(address)
}

/// 32 random bytes that are a key.
///
/// # Errors
/// [`KeyFileError::Random`].
pub fn random_secret() -> Result<Secret32, KeyFileError> {
    loop {
        let mut bytes = Zeroizing::new([0; 32]);
        SystemRandom::new().fill(&mut *bytes).map_err(|_| KeyFileError::Random)?;
        // Out of 2^128 drawn ones, one is none.
        if Key::from_bytes(&bytes).is_ok() {
            return Ok(Secret32::new(*bytes));
        }
    }
}

const OUT_OF_RANGE: &str = "its 32 bytes are no secp256k1 key";

fn at(path: &Path) -> impl FnOnce(io::Error) -> KeyFileError {
    let path = path.to_owned();
    move |source| KeyFileError::Io { path, source }
}

/// The bytes of a key file that nobody else may read.
fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, KeyFileError> {
    let file = File::open(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => KeyFileError::Missing(path.to_owned()),
        _ => at(path)(source),
    })?;
    let metadata = file.metadata().map_err(at(path))?;
    if !metadata.is_file() {
        return Err(KeyFileError::Damaged { path: path.to_owned(), reason: "it is no file" });
    }
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(KeyFileError::Exposed { path: path.to_owned(), mode });
    }
    // With room for one byte too many, so that nothing is moved and left behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(SEALED_LEN + 1));
    file.take(SEALED_LEN as u64 + 1).read_to_end(&mut bytes).map_err(at(path))?;
    Ok(bytes)
}

enum Parsed {
    Open(Secret32),
    Sealed(Sealed),
}

/// A sealed key, and what it takes to open it.
struct Sealed {
    address: Address,
    cost: Cost,
    salt: [u8; 16],
    nonce: [u8; 12],
    /// All that is authenticated but not secret.
    front: Vec<u8>,
    sealed: [u8; 48],
}

fn parse(path: &Path, bytes: &[u8]) -> Result<Parsed, KeyFileError> {
    if let Ok(raw) = <[u8; 32]>::try_from(bytes) {
        return Ok(Parsed::Open(Secret32::new(*Zeroizing::new(raw))));
    }
    let damaged = |reason| KeyFileError::Damaged { path: path.to_owned(), reason };
    let version = bytes.strip_prefix(MAGIC).and_then(<[u8]>::first).copied();
    let version = version.ok_or_else(|| damaged("it does not begin as one"))?;
    if version != VERSION {
        return Err(KeyFileError::Version { path: path.to_owned(), version });
    }
    let (body, sum) = bytes.split_last_chunk::<4>().ok_or_else(|| damaged("it is too short"))?;
    if crc32c::crc32c(body) != u32::from_be_bytes(*sum) {
        return Err(damaged("its checksum is not that of its bytes"));
    }
    match (body.get(9).copied(), bytes.len()) {
        (Some(OPEN), OPEN_LEN) => {
            let key = field::<32>(body, HEAD_LEN).ok_or_else(|| damaged("it is too short"))?;
            Ok(Parsed::Open(Secret32::new(*Zeroizing::new(key))))
        }
        (Some(SEALED), SEALED_LEN) => parse_sealed(body)
            .map(Parsed::Sealed)
            .ok_or_else(|| damaged("its passphrase would cost more than this hypha spends")),
        _ => Err(damaged("its length is not that of its kind")),
    }
}

fn field<const N: usize>(bytes: &[u8], from: usize) -> Option<[u8; N]> {
    bytes.get(from..from + N)?.try_into().ok()
}

fn parse_sealed(body: &[u8]) -> Option<Sealed> {
    let number = |from| field::<4>(body, from).map(u32::from_be_bytes);
    let cost = Cost { memory_kib: number(30)?, passes: number(34)?, lanes: number(38)? };
    let affordable = cost.memory_kib <= COST_MAX.memory_kib
        && cost.passes <= COST_MAX.passes
        && cost.lanes <= COST_MAX.lanes;
    affordable.then_some(())?;
    Some(Sealed {
        address: Address::from(field::<20>(body, 10)?),
        cost,
        salt: field(body, 42)?,
        nonce: field(body, 58)?,
        front: body.get(..70)?.to_vec(),
        sealed: field(body, 70)?,
    })
}

impl Sealed {
    fn open(&self, path: &Path, words: &Passphrase) -> Result<Secret32, KeyFileError> {
        let aead = derive(words, &self.salt, self.cost)?;
        let mut sealed = Zeroizing::new(self.sealed);
        let nonce = Nonce::assume_unique_for_key(self.nonce);
        let opened = aead.open_in_place(nonce, Aad::from(&self.front), sealed.as_mut_slice());
        let key = opened.ok().and_then(|plain| plain.first_chunk::<32>());
        let key = key.ok_or_else(|| KeyFileError::WrongPassphrase(path.to_owned()))?;
        Ok(Secret32::new(*key))
    }
}

/// The key of a file, which is to be the one that its head names.
fn key_of(path: &Path, bytes: &[u8], secret: &Secret32) -> Result<Key, KeyFileError> {
    let damaged = |reason| KeyFileError::Damaged { path: path.to_owned(), reason };
    let key = Key::from_bytes(secret.expose()).map_err(|_| damaged(OUT_OF_RANGE))?;
    let named = field::<20>(bytes, 10).filter(|_| bytes.len() != 32).map(Address::from);
    match named {
        Some(address) if address != key.address() => {
            Err(damaged("its key is not the one of its address"))
        }
        _ => Ok(key),
    }
}

fn head(kind: u8, address: Address) -> Vec<u8> {
    // With room for all, so that no copy of a key is left where a shorter one was.
    let mut bytes = Vec::with_capacity(SEALED_LEN);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&[VERSION, kind]);
    bytes.extend_from_slice(address.as_slice());
    bytes
}

fn open_file(address: Address, secret: &Secret32) -> Zeroizing<Vec<u8>> {
    let mut bytes = Zeroizing::new(head(OPEN, address));
    bytes.extend_from_slice(secret.expose());
    let sum = crc32c::crc32c(&bytes);
    bytes.extend_from_slice(&sum.to_be_bytes());
    bytes
}

fn sealed_file(
    address: Address,
    secret: &Secret32,
    words: &Passphrase,
    cost: Cost,
) -> Result<Zeroizing<Vec<u8>>, KeyFileError> {
    let (mut salt, mut nonce) = ([0; 16], [0; 12]);
    let random = SystemRandom::new();
    random.fill(&mut salt).and(random.fill(&mut nonce)).map_err(|_| KeyFileError::Random)?;
    let mut bytes = Zeroizing::new(head(SEALED, address));
    for number in [cost.memory_kib, cost.passes, cost.lanes] {
        bytes.extend_from_slice(&number.to_be_bytes());
    }
    bytes.extend_from_slice(&salt);
    bytes.extend_from_slice(&nonce);
    let aead = derive(words, &salt, cost)?;
    let mut key = Zeroizing::new(*secret.expose());
    let nonce = Nonce::assume_unique_for_key(nonce);
    // It refuses only what is longer than the cipher can take.
    let tag = aead
        .seal_in_place_separate_tag(nonce, Aad::from(&*bytes), key.as_mut_slice())
        .map_err(|_| KeyFileError::Random)?;
    bytes.extend_from_slice(&*key);
    bytes.extend_from_slice(tag.as_ref());
    let sum = crc32c::crc32c(&bytes);
    bytes.extend_from_slice(&sum.to_be_bytes());
    Ok(bytes)
}

/// The cipher that a passphrase leads to.
fn derive(words: &Passphrase, salt: &[u8; 16], cost: Cost) -> Result<LessSafeKey, KeyFileError> {
    let params = Params::new(cost.memory_kib, cost.passes, cost.lanes, Some(32));
    let params = params.map_err(KeyFileError::Work)?;
    let mut memory = vec![Block::default(); params.block_count()];
    let mut key = Zeroizing::new([0; 32]);
    let argon = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    let worked = argon.hash_password_into_with_memory(words.expose(), salt, &mut *key, &mut memory);
    for block in &mut memory {
        block.zeroize();
    }
    worked.map_err(KeyFileError::Work)?;
    let key = UnboundKey::new(&AES_256_GCM, &*key).map_err(|_| KeyFileError::Random)?;
    Ok(LessSafeKey::new(key))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn secret() -> Secret32 {
        Secret32::new([0x46; 32])
    }

    fn words(text: &str) -> PassphraseSource {
        PassphraseSource::Given(Passphrase::new(text.as_bytes().to_vec()).unwrap())
    }

    fn given(source: &PassphraseSource) -> Passphrase {
        source.get("").unwrap()
    }

    fn folder() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        (folder, path)
    }

    #[test]
    fn an_open_key_comes_back_and_is_never_replaced() {
        let (_folder, path) = folder();
        let address = write_key(&path, &secret(), None).unwrap();
        let loaded = load_key(&path, &PassphraseSource::None).unwrap();
        assert_eq!(loaded.address(), address);
        assert_eq!(face(&path).unwrap(), Face { address, is_sealed: false });
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let again = write_key(&path, &Secret32::new([1; 32]), None);
        assert!(matches!(again, Err(KeyFileError::Exists(_))));
    }

    #[test]
    fn a_sealed_key_opens_with_its_passphrase_alone() {
        let (_folder, path) = folder();
        let right = words("correct horse");
        let address = write_key(&path, &secret(), Some(&given(&right))).unwrap();
        assert_eq!(load_key(&path, &right).unwrap().address(), address);
        assert_eq!(face(&path).unwrap(), Face { address, is_sealed: true });
        let wrong = load_key(&path, &words("battery staple"));
        assert!(matches!(wrong, Err(KeyFileError::WrongPassphrase(_))), "{wrong:?}");
        let none = load_key(&path, &PassphraseSource::None);
        assert!(matches!(none, Err(KeyFileError::Passphrase { .. })), "{none:?}");
        let bytes = fs::read(&path).unwrap();
        assert!(!bytes.windows(8).any(|part| part == &secret().expose()[..8]), "the key shows");
    }

    #[test]
    fn every_changed_or_missing_byte_is_told_from_a_wrong_passphrase() {
        let (_folder, path) = folder();
        let source = words("a");
        let cost = Cost { memory_kib: 8, passes: 1, lanes: 1 };
        let address = Key::from_bytes(secret().expose()).unwrap().address();
        let sealed = sealed_file(address, &secret(), &given(&source), cost).unwrap();
        for good in [sealed, open_file(address, &secret())] {
            fs::write(&path, &*good).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            assert_eq!(load_key(&path, &source).unwrap().address(), address);
            for index in 0..good.len() {
                let mut bad = good.to_vec();
                bad[index] ^= 1;
                fs::write(&path, &bad).unwrap();
                let read = load_key(&path, &source);
                let told = matches!(
                    read,
                    Err(KeyFileError::Damaged { .. } | KeyFileError::Version { .. })
                );
                assert!(told, "byte {index}: {read:?}");
                // 32 bytes of anything are a key.
                if index != 32 {
                    fs::write(&path, &good[..index]).unwrap();
                    let read = load_key(&path, &source);
                    assert!(matches!(read, Err(KeyFileError::Damaged { .. })), "{index} bytes");
                }
            }
        }
    }

    #[test]
    fn a_file_that_would_cost_all_memory_is_refused_before_any_work() {
        let (_folder, path) = folder();
        let source = words("a");
        let cost = Cost { memory_kib: 8, passes: 1, lanes: 1 };
        let mut bytes =
            sealed_file(Address::ZERO, &secret(), &given(&source), cost).unwrap().to_vec();
        bytes[30..34].copy_from_slice(&u32::MAX.to_be_bytes());
        let end = bytes.len() - 4;
        let sum = crc32c::crc32c(&bytes[..end]);
        bytes[end..].copy_from_slice(&sum.to_be_bytes());
        fs::write(&path, &bytes).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let read = load_key(&path, &source);
        assert!(matches!(read, Err(KeyFileError::Damaged { .. })), "{read:?}");
    }

    #[test]
    fn a_file_that_another_program_made_as_the_format_says_opens() {
        // Made in Python (cryptography 48) from docs/keys.md: key 46…46, passphrase "correct horse".
        let digits = [
            "48595048414b455901019d8a62f656a8d1615c1294fd71e9cfb3e4855a4f00000040000000020000",
            "0001000102030405060708090a0b0c0d0e0f6465666768696a6b6c6d6e6f290f9b75b16d454574a7",
            "3bc5fd68cbe77781ce16b5fc80bd25df961d6df178c937132e7add80df602f3de14bd28df19d2bd3",
            "ae86",
        ]
        .concat();
        let pairs = digits.as_bytes().chunks(2);
        let byte = |pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
        let (_folder, path) = folder();
        fs::write(&path, pairs.map(byte).collect::<Vec<u8>>()).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let (opened, _) = load_secret(&path, &words("correct horse")).unwrap();
        assert_eq!(opened.expose(), secret().expose());
    }

    proptest! {
        // The checksum is put right, so that what lies behind it is reached. Costs are kept low: 0 or 1 of
        // each, and 8 to 15 KiB.
        #[test]
        fn bytes_of_any_kind_with_a_right_checksum_are_a_key_or_an_error(
            mut bytes in prop::collection::vec(any::<u8>(), 0..130),
            shape in 0_usize..4,
        ) {
            let lengths = [bytes.len(), OPEN_LEN, SEALED_LEN, SEALED_LEN];
            bytes.resize(lengths[shape], 7);
            let kinds = [None, Some(OPEN), Some(SEALED), Some(SEALED)];
            if let Some(kind) = kinds[shape] {
                bytes[..8].copy_from_slice(MAGIC);
                bytes[8..10].copy_from_slice(&[VERSION, kind]);
                if kind == SEALED {
                    for (at, low) in [(30, 8), (34, 0), (38, 0)] {
                        bytes[at..at + 3].fill(0);
                        bytes[at + 3] = low | (bytes[at + 3] & if low == 8 { 7 } else { 1 });
                    }
                }
                let end = bytes.len() - 4;
                let sum = crc32c::crc32c(&bytes[..end]).to_be_bytes();
                bytes[end..].copy_from_slice(&sum);
            }
            let (_folder, path) = folder();
            fs::write(&path, &bytes).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            let read = load_key(&path, &words("a"));
            if let Ok(key) = read {
                prop_assert!(bytes.len() == 32 || bytes[10..30] == *key.address().as_slice());
            }
        }
    }

    #[test]
    fn a_key_that_others_may_read_is_refused() {
        let (_folder, path) = folder();
        write_key(&path, &secret(), None).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let read = load_key(&path, &PassphraseSource::None);
        assert!(matches!(read, Err(KeyFileError::Exposed { mode: 0o640, .. })), "{read:?}");
    }

    #[test]
    fn the_states_own_32_bytes_are_a_key() {
        let (folder, path) = folder();
        let raw = state::key(folder.path()).unwrap();
        let loaded = load_key(&path, &PassphraseSource::None).unwrap();
        assert_eq!(loaded.address(), Key::from_bytes(raw.expose()).unwrap().address());
    }
}
