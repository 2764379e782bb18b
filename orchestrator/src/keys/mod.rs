//! `hypha key`: keys for the chain, and who signs. `docs/keys.md` has the formats.
//!
//! ```text
//! $HYPHA_STATE/keys/NAME           a key file, 0600; the name is `default` if none is given
//!             /chain/account/key   the account of the state's own chain: used if there is no default
//! ```

pub mod arguments;
pub mod file;
pub mod passphrase;
pub mod signer;

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use hypha_chain::Address;
use hypha_chain::key::Key;
use serde_json::json;
use spec::secret::Secret32;
use zeroize::Zeroizing;

use crate::exit_code;
use crate::state::{self, Common, StateError};
use arguments::{AccountArguments, KeyArguments, KeyVerb, PassphraseArguments};
use file::{Face, KeyFileError};
use passphrase::{Passphrase, PassphraseError};
use signer::{Signer, SignerError};

pub use file::load_key;

/// The name of the key that is used if none is named.
pub const DEFAULT: &str = "default";

/// Why a key can't be had.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// The key's file.
    #[error(transparent)]
    File(#[from] KeyFileError),
    /// The passphrase of a new key.
    #[error("the new passphrase: {0}")]
    Passphrase(#[from] PassphraseError),
    /// The program that signs.
    #[error(transparent)]
    Signer(#[from] SignerError),
    /// No key is named, and none is there to be taken.
    #[error("there is no key to sign with: make one with `hypha key create`, or give --key FILE")]
    NoKey,
    /// Not a name.
    #[error(
        "{0:?} is no name for a key: 1 to 64 of a-z, 0-9, - and _, or a file's path with a slash"
    )]
    Name(String),
    /// Not a key in digits.
    #[error("{0} does not hold a key of 64 hexadecimal digits")]
    Digits(PathBuf),
    /// Output.
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl KeysError {
    /// The command's exit code.
    #[must_use]
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::File(KeyFileError::Missing(_)) | Self::NoKey => exit_code::NOT_FOUND,
            Self::File(KeyFileError::Exists(_)) => exit_code::CONFLICT,
            Self::File(KeyFileError::Random | KeyFileError::Work(_)) => exit_code::HOST_CANNOT,
            Self::File(KeyFileError::State(_)) | Self::Io(_) => exit_code::FAILURE,
            Self::State(error) => error.exit_code(),
            Self::Signer(SignerError::Malformed { .. } | SignerError::OtherSignature(_))
            | Self::File(_)
            | Self::Passphrase(_)
            | Self::Name(_)
            | Self::Digits(_) => exit_code::BAD_SPEC,
            Self::Signer(_) => exit_code::UNAVAILABLE,
        }
    }
}

/// Carries out a verb.
///
/// # Errors
/// A [`KeysError`].
pub fn run(verb: &KeyVerb) -> Result<i32, KeysError> {
    match verb {
        KeyVerb::Create { name, passphrase, source, common } => {
            let path = place(&folder(common)?, name)?;
            refuse_existing(&path)?;
            let secret = file::random_secret()?;
            let words = new_passphrase(*passphrase, source)?;
            store(&path, &secret, words.as_ref(), common.json)
        }
        KeyVerb::Show { name, common } => show(name.as_deref(), common),
        KeyVerb::Import { name, file, passphrase, source, common } => {
            let path = place(&folder(common)?, name)?;
            refuse_existing(&path)?;
            let secret = read_digits(file)?;
            let words = new_passphrase(*passphrase, source)?;
            store(&path, &secret, words.as_ref(), common.json)
        }
        KeyVerb::Export { name, file, source, common } => export(name, file, source, common),
    }
}

/// Who signs, as a command line says.
///
/// # Errors
/// A [`KeysError`].
pub fn signer(arguments: &KeyArguments, state: &Path) -> Result<Signer, KeysError> {
    if let Some(program) = &arguments.signer {
        return Ok(Signer::program(program)?);
    }
    let path = chosen(arguments.key.as_deref(), state)?;
    Ok(Signer::Key(load_key(&path, &arguments.passphrase.source())?))
}

/// Whose account a command line names.
///
/// # Errors
/// A [`KeysError`].
pub fn account(arguments: &AccountArguments, state: &Path) -> Result<Address, KeysError> {
    match (arguments.account, &arguments.signer) {
        (Some(address), _) => Ok(address),
        (None, Some(program)) => Ok(Signer::program(program)?.address()),
        (None, None) => Ok(file::face(&chosen(arguments.key.as_deref(), state)?)?.address),
    }
}

/// The file of the key that is named, or of the one that is used otherwise.
fn chosen(name: Option<&str>, state: &Path) -> Result<PathBuf, KeysError> {
    if let Some(name) = name {
        return place(state, name);
    }
    let candidates = [state.join("keys").join(DEFAULT), state.join("chain/account/key")];
    candidates.into_iter().find(|path| path.exists()).ok_or(KeysError::NoKey)
}

/// The key with this name (or file, with a slash) in a state.
///
/// # Errors
/// A [`KeysError`].
pub fn named(state: &Path, name: &str, passphrase: &PassphraseArguments) -> Result<Key, KeysError> {
    Ok(load_key(&place(state, name)?, &passphrase.source())?)
}

/// The key with this name (or file, with a slash) in a state, made open if there is none.
///
/// # Errors
/// A [`KeysError`].
pub fn named_or_new(
    state: &Path,
    name: &str,
    passphrase: &PassphraseArguments,
) -> Result<Key, KeysError> {
    let path = place(state, name)?;
    if !path.try_exists().map_err(state::at(&path))? {
        if let Some(folder) = path.parent() {
            state::create_directory(folder)?;
        }
        file::write_key(&path, &file::random_secret()?, None)?;
    }
    named(state, name, passphrase)
}

/// Where a key of this name lies; a name with a slash is a file's.
fn place(state: &Path, name: &str) -> Result<PathBuf, KeysError> {
    if name.contains('/') {
        return Ok(PathBuf::from(name));
    }
    let is_plain = |byte: u8| {
        byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'_'
    };
    if name.is_empty() || name.len() > 64 || !name.bytes().all(is_plain) {
        return Err(KeysError::Name(name.to_owned()));
    }
    Ok(state.join("keys").join(name))
}

/// The state, with a folder for keys.
fn folder(common: &Common) -> Result<PathBuf, KeysError> {
    let directory = state::directory(common.state.as_deref())?;
    state::prepare(&directory)?;
    state::create_directory(&directory.join("keys"))?;
    Ok(directory)
}

/// Before anyone is asked for a passphrase.
fn refuse_existing(path: &Path) -> Result<(), KeysError> {
    match path.try_exists().map_err(state::at(path))? {
        true => Err(KeyFileError::Exists(path.to_owned()).into()),
        false => Ok(()),
    }
}

fn new_passphrase(
    is_asked: bool,
    source: &PassphraseArguments,
) -> Result<Option<Passphrase>, KeysError> {
    let is_wanted = is_asked || source.is_given();
    Ok(is_wanted.then(|| source.source().get_new()).transpose()?)
}

fn store(
    path: &Path,
    secret: &Secret32,
    words: Option<&Passphrase>,
    json: bool,
) -> Result<i32, KeysError> {
    let address = file::write_key(path, secret, words)?;
    tell(&[(path.to_owned(), Face { address, is_sealed: words.is_some() })], json)
}

fn show(name: Option<&str>, common: &Common) -> Result<i32, KeysError> {
    let directory = state::directory(common.state.as_deref())?;
    let mut paths = Vec::new();
    if let Some(name) = name {
        paths.push(place(&directory, name)?);
    } else {
        let folder = directory.join("keys");
        let entries = match std::fs::read_dir(&folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            entries => Some(entries.map_err(state::at(&folder))?),
        };
        for entry in entries.into_iter().flatten() {
            let path = entry.map_err(state::at(&folder))?.path();
            let is_ours =
                path.file_name().is_some_and(|name| !name.as_encoded_bytes().starts_with(b"."));
            paths.extend(is_ours.then_some(path));
        }
        paths.sort();
        let account = directory.join("chain/account/key");
        paths.extend(account.exists().then_some(account));
    }
    let (mut faces, mut damaged) = (Vec::new(), None);
    for path in paths {
        match file::face(&path) {
            Ok(face) => faces.push((path, face)),
            Err(error) => damaged = damaged.or(Some(error)),
        }
    }
    // The others are shown all the same.
    let code = tell(&faces, common.json)?;
    damaged.map_or(Ok(code), |error| Err(error.into()))
}

fn tell(faces: &[(PathBuf, Face)], json: bool) -> Result<i32, KeysError> {
    let mut text = String::new();
    for (path, face) in faces {
        let (address, is_sealed) = (face.address, face.is_sealed);
        text += &if json {
            format!("{}\n", json!({"address": address, "file": path, "passphrase": is_sealed}))
        } else {
            let seal = if is_sealed { "  (passphrase)" } else { "" };
            format!("{address}  {}{seal}\n", path.display())
        };
    }
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(0)
}

/// A key of 64 hexadecimal digits, with or without `0x`, and nothing else but a line's end.
fn read_digits(path: &Path) -> Result<Secret32, KeysError> {
    const LEN_MAX: usize = 256;
    let mut text = Zeroizing::new(Vec::with_capacity(LEN_MAX));
    let limit = LEN_MAX as u64;
    let read = if path == Path::new("-") {
        io::stdin().lock().take(limit).read_to_end(&mut text)
    } else {
        File::open(path).and_then(|file| file.take(limit).read_to_end(&mut text))
    };
    read.map_err(state::at(path))?;
    let digits = text.trim_ascii();
    let digits = digits.strip_prefix(b"0x").unwrap_or(digits);
    let secret = std::str::from_utf8(digits).ok().and_then(Secret32::from_hex);
    secret
        .filter(|secret| Key::from_bytes(secret.expose()).is_ok())
        .ok_or_else(|| KeysError::Digits(path.to_owned()))
}

fn export(
    name: &str,
    to: &Path,
    source: &PassphraseArguments,
    common: &Common,
) -> Result<i32, KeysError> {
    let path = place(&state::directory(common.state.as_deref())?, name)?;
    let (secret, address) = file::load_secret(&path, &source.source())?;
    let mut digits = Zeroizing::new(String::with_capacity(65));
    digits.push_str(&secret.to_hex());
    digits.push('\n');
    let mut options = OpenOptions::new();
    // Never through a link, never over something.
    let made = options.write(true).create_new(true).mode(0o600).open(to);
    let mut made = made.map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => KeyFileError::Exists(to.to_owned()),
        _ => state::at(to)(error).into(),
    })?;
    made.write_all(digits.as_bytes()).and_then(|()| made.sync_all()).map_err(state::at(to))?;
    tell(&[(to.to_owned(), Face { address, is_sealed: false })], common.json)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lie_in_the_state_and_paths_where_they_say() {
        let state = Path::new("/s");
        assert_eq!(place(state, "farm").unwrap(), Path::new("/s/keys/farm"));
        assert_eq!(place(state, "./farm").unwrap(), Path::new("./farm"));
        for bad in ["", "..", ".hidden", "Farm", "a b", &"a".repeat(65)] {
            assert!(matches!(place(state, bad), Err(KeysError::Name(_))), "{bad:?}");
        }
    }

    #[test]
    fn digits_are_a_key_and_anything_else_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("digits");
        let good = "46".repeat(32);
        for text in [good.clone(), format!("0x{good}\n"), format!("  {good}\r\n")] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(read_digits(&path).unwrap().expose(), &[0x46; 32]);
        }
        for text in ["00".repeat(32), "ff".repeat(32), good[1..].to_owned(), format!("{good} 0")] {
            std::fs::write(&path, &text).unwrap();
            assert!(matches!(read_digits(&path), Err(KeysError::Digits(_))), "{text}");
        }
    }
}
