//! Where passphrases come from: a file, an inherited descriptor, or the terminal without echo; never
//! from a command line or the environment, which other processes can read.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::termios::{LocalModes, OptionalActions, SpecialCodeIndex, tcgetattr, tcsetattr};
use zeroize::Zeroizing;

/// The longest passphrase, in bytes.
pub const LEN_MAX: usize = 1024;

/// A passphrase. It is erased when dropped and never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Passphrase(Zeroizing<Vec<u8>>);

/// Where to get a passphrase.
#[derive(Debug, Clone)]
pub enum PassphraseSource {
    /// Nowhere: keys that need one can't be used.
    None,
    /// The first line of a file.
    File(PathBuf),
    /// The first line of what this process inherited under a number.
    Descriptor(u32),
    /// Whoever sits at the terminal.
    Terminal,
    /// It is known.
    Given(Passphrase),
}

/// Why there is no passphrase.
#[derive(Debug, thiserror::Error)]
pub enum PassphraseError {
    /// Nobody can be asked.
    #[error(
        "there is no terminal to ask at; give --passphrase-file FILE or --passphrase-fd NUMBER"
    )]
    NoTerminal,
    /// It was not typed.
    #[error("it was not typed")]
    Cancelled,
    /// It is empty.
    #[error("a passphrase has 1 to {LEN_MAX} bytes, in one line")]
    Length,
    /// The two that were typed differ.
    #[error("the two that were typed differ")]
    Differ,
    /// Others may read its file.
    #[error("{path} has mode {mode:o}, so others may read it; run chmod 600 {path}")]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Its file can't be read.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Passphrase {
    /// A passphrase of these bytes.
    ///
    /// # Errors
    /// [`PassphraseError::Length`].
    pub fn new(bytes: Vec<u8>) -> Result<Self, PassphraseError> {
        let bytes = Zeroizing::new(bytes);
        let fits = !bytes.is_empty() && bytes.len() <= LEN_MAX;
        fits.then_some(Self(bytes)).ok_or(PassphraseError::Length)
    }

    /// Its bytes. Whoever copies them erases the copy.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Passphrase(..)")
    }
}

impl PassphraseSource {
    /// The passphrase of a key that is there.
    ///
    /// # Errors
    /// A [`PassphraseError`].
    pub fn get(&self, prompt: &str) -> Result<Passphrase, PassphraseError> {
        match self {
            Self::None => Err(PassphraseError::NoTerminal),
            Self::File(path) => read_file(path),
            // The kernel's own name for it, so that no number becomes a descriptor of ours.
            Self::Descriptor(number) => {
                let path = PathBuf::from(format!("/proc/self/fd/{number}"));
                let file = File::open(&path).map_err(at(&path))?;
                first_line(file, &path)
            }
            Self::Terminal => ask(prompt),
            Self::Given(words) => Ok(words.clone()),
        }
    }

    /// A passphrase for a new key: whoever types it types it twice.
    ///
    /// # Errors
    /// A [`PassphraseError`].
    pub fn get_new(&self) -> Result<Passphrase, PassphraseError> {
        let first = self.get("new passphrase: ")?;
        if matches!(self, Self::Terminal) && ask("once more: ")? != first {
            return Err(PassphraseError::Differ);
        }
        Ok(first)
    }
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> PassphraseError {
    let path = path.to_owned();
    move |source| PassphraseError::Io { path, source }
}

fn read_file(path: &Path) -> Result<Passphrase, PassphraseError> {
    let file = File::open(path).map_err(at(path))?;
    let metadata = file.metadata().map_err(at(path))?;
    let mode = metadata.permissions().mode() & 0o777;
    if metadata.is_file() && mode & 0o077 != 0 {
        return Err(PassphraseError::Exposed { path: path.to_owned(), mode });
    }
    first_line(file, path)
}

/// The first line of a file, byte by byte: what follows in a pipe is for others.
#[expect(clippy::unbuffered_bytes, reason = "what follows the line in a pipe is not ours to take")]
fn first_line(file: File, path: &Path) -> Result<Passphrase, PassphraseError> {
    let mut line = Zeroizing::new(Vec::with_capacity(LEN_MAX + 1));
    for byte in file.bytes() {
        match byte.map_err(at(path))? {
            b'\n' => break,
            _ if line.len() > LEN_MAX => break,
            byte => line.push(byte),
        }
    }
    if line.last() == Some(&b'\r') {
        line.pop();
    }
    Passphrase::new(std::mem::take(&mut *line))
}

/// Asks at the terminal. Nothing that is typed is shown, and Ctrl-C is a key like others meanwhile, so
/// that the terminal is put back in any case.
fn ask(prompt: &str) -> Result<Passphrase, PassphraseError> {
    let path = Path::new("/dev/tty");
    let opened = OpenOptions::new().read(true).write(true).open(path);
    let mut terminal = opened.map_err(|_| PassphraseError::NoTerminal)?;
    let before = tcgetattr(&terminal).map_err(|_| PassphraseError::NoTerminal)?;
    let mut quiet = before.clone();
    quiet.local_modes.remove(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG);
    quiet.special_codes[SpecialCodeIndex::VMIN] = 1;
    quiet.special_codes[SpecialCodeIndex::VTIME] = 0;
    let set = |modes| {
        tcsetattr(&terminal, OptionalActions::Flush, modes)
            .map_err(|error| at(path)(io::Error::from(error)))
    };
    set(&quiet)?;
    let typed = (&terminal)
        .write_all(prompt.as_bytes())
        .map_err(at(path))
        .and_then(|()| typed_line(&terminal, path));
    set(&before)?;
    terminal.write_all(b"\n").map_err(at(path))?;
    typed
}

#[expect(clippy::unbuffered_bytes, reason = "each key comes by itself")]
fn typed_line(terminal: &File, path: &Path) -> Result<Passphrase, PassphraseError> {
    let mut line = Zeroizing::new(Vec::with_capacity(LEN_MAX + 1));
    for byte in terminal.bytes() {
        match byte.map_err(at(path))? {
            b'\n' | b'\r' => return Passphrase::new(std::mem::take(&mut *line)),
            // Ctrl-C, Ctrl-D, Ctrl-\.
            3 | 4 | 28 => return Err(PassphraseError::Cancelled),
            // Backspace, as either kind of terminal sends it: a character of UTF-8 whole.
            8 | 127 => while line.pop().is_some_and(|byte| byte & 0xc0 == 0x80) {},
            _ if line.len() > LEN_MAX => return Err(PassphraseError::Length),
            byte => line.push(byte),
        }
    }
    Err(PassphraseError::Cancelled)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn file(text: &[u8], mode: u32) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("passphrase");
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        (folder, path)
    }

    #[test]
    fn the_first_line_of_a_file_is_the_passphrase() {
        for text in ["a b\n", "a b", "a b\r\nmore"] {
            let (_folder, path) = file(text.as_bytes(), 0o600);
            let words = PassphraseSource::File(path).get("").unwrap();
            assert_eq!(words.expose(), b"a b", "{text:?}");
            assert_eq!(format!("{words:?}"), "Passphrase(..)");
        }
    }

    #[test]
    fn a_file_that_others_may_read_or_with_no_line_is_refused() {
        let (_folder, path) = file(b"a", 0o644);
        let read = PassphraseSource::File(path).get("");
        assert!(matches!(read, Err(PassphraseError::Exposed { mode: 0o644, .. })));
        for bad in [Vec::new(), b"\n".to_vec(), vec![b'a'; LEN_MAX + 1]] {
            let (_folder, path) = file(&bad, 0o600);
            let read = PassphraseSource::File(path).get("");
            assert!(matches!(read, Err(PassphraseError::Length)), "{} bytes", bad.len());
        }
    }

    #[test]
    fn a_descriptor_that_was_not_inherited_is_said_so() {
        let read = PassphraseSource::Descriptor(999_999).get("");
        assert!(matches!(read, Err(PassphraseError::Io { .. })));
    }
}
