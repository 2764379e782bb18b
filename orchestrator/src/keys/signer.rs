//! Who signs: a key in this process, or a program that keeps it elsewhere (a hardware wallet, another
//! user, another host).
//!
//! The program is asked line by line on its standard input and answers on its standard output, one line
//! of ASCII for each question:
//!
//! ```text
//! hypha → address                      program → address 0x<40 hex digits>
//! hypha → sign 0x<64 hex digits>       program → signature 0x<130 hex digits: r, s, 27 or 28>
//!                                      program → refused <why, for people>
//! ```
//!
//! It is believed nothing: a signature must be the named address's over what was asked for.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use hypha_chain::key::{Key, Signature};
use hypha_chain::{Address, B256};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::clock::Clock;
use crate::lines::visible;

/// The longest line that a signer may answer.
const LINE_LEN_MAX: usize = 512;
/// How long it may take to say whose key it has.
const ADDRESS_TIME: Duration = Duration::from_secs(10);
/// How long it may take to sign: people press buttons.
const SIGN_TIME: Duration = Duration::from_secs(120);

/// Who signs.
#[derive(Debug)]
pub enum Signer {
    /// A key in this process.
    Key(Key),
    /// A program.
    Program(Program),
}

/// A program that signs.
#[derive(Debug)]
pub struct Program {
    path: PathBuf,
    address: Address,
    child: Child,
    questions: ChildStdin,
    answers: ChildStdout,
    /// What came after the last line.
    pending: Vec<u8>,
    sign_time: Duration,
}

/// Why nobody signed.
#[derive(Debug, thiserror::Error)]
pub enum SignerError {
    /// It can't be started or talked to.
    #[error("the signer {path}: {source}")]
    Io {
        /// The program.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It has ended.
    #[error("the signer {0} ended without an answer")]
    Gone(PathBuf),
    /// It does not answer.
    #[error("the signer {path} did not answer within {secs} s")]
    Silent {
        /// The program.
        path: PathBuf,
        /// How long it was waited for.
        secs: u64,
    },
    /// It does not want to.
    #[error("the signer {path} refuses: {reason}")]
    Refused {
        /// The program.
        path: PathBuf,
        /// What it says.
        reason: String,
    },
    /// It answers something else.
    #[error("the signer {path} answers {line:?}, and not as docs/keys.md says")]
    Malformed {
        /// The program.
        path: PathBuf,
        /// The begin of its answer.
        line: String,
    },
    /// It signed something else, or with another key.
    #[error("the signer {0} gave a signature that is not its key's over what was to be signed")]
    OtherSignature(PathBuf),
}

impl Signer {
    /// Starts a program and asks whose key it has.
    ///
    /// # Errors
    /// A [`SignerError`].
    pub fn program(path: &Path) -> Result<Self, SignerError> {
        Program::start(path, ADDRESS_TIME, SIGN_TIME).map(Self::Program)
    }

    /// Whose signatures these are.
    #[must_use]
    pub fn address(&self) -> Address {
        match self {
            Self::Key(key) => key.address(),
            Self::Program(program) => program.address,
        }
    }

    /// Signs a digest.
    ///
    /// # Errors
    /// A [`SignerError`]; a key in this process has none.
    pub fn sign(&mut self, digest: &B256) -> Result<Signature, SignerError> {
        match self {
            Self::Key(key) => Ok(key.sign(digest)),
            Self::Program(program) => program.sign(digest),
        }
    }
}

impl Program {
    fn start(path: &Path, first: Duration, sign_time: Duration) -> Result<Self, SignerError> {
        let failed = |source| SignerError::Io { path: path.to_owned(), source };
        let mut command = Command::new(path);
        let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = piped.spawn().map_err(failed)?;
        let (Some(questions), Some(answers)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(failed(io::Error::from(io::ErrorKind::BrokenPipe)));
        };
        let (path, address, pending) = (path.to_owned(), Address::ZERO, Vec::new());
        let mut program = Self { path, address, child, questions, answers, pending, sign_time };
        let line = program.ask("address", first)?;
        let address = line.strip_prefix("address ").and_then(hex_bytes::<20>);
        program.address = address.map(Address::from).ok_or_else(|| program.malformed(&line))?;
        Ok(program)
    }

    fn sign(&mut self, digest: &B256) -> Result<Signature, SignerError> {
        let line = self.ask(&format!("sign {digest:#x}"), self.sign_time)?;
        if let Some(reason) = line.strip_prefix("refused ") {
            return Err(SignerError::Refused {
                path: self.path.clone(),
                reason: reason.to_owned(),
            });
        }
        let bytes = line.strip_prefix("signature ").and_then(hex_bytes::<65>);
        let signature = bytes.as_ref().and_then(read_signature);
        let signature = signature.ok_or_else(|| self.malformed(&line))?;
        if signature.recover(digest) != Some(self.address) {
            return Err(SignerError::OtherSignature(self.path.clone()));
        }
        Ok(signature)
    }

    fn malformed(&self, line: &str) -> SignerError {
        SignerError::Malformed { path: self.path.clone(), line: line.chars().take(80).collect() }
    }

    fn failed(&self, source: io::Error) -> SignerError {
        SignerError::Io { path: self.path.clone(), source }
    }

    /// Asks one question; its answer is a line that is safe to show.
    fn ask(&mut self, question: &str, time: Duration) -> Result<String, SignerError> {
        let clock = Clock::start();
        let limit_ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        match writeln!(self.questions, "{question}") {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                return Err(SignerError::Gone(self.path.clone()));
            }
            Err(error) => return Err(self.failed(error)),
        }
        loop {
            if let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.pending.drain(..=end).collect();
                return Ok(visible(line.trim_ascii_end()));
            }
            if self.pending.len() > LINE_LEN_MAX {
                let line = visible(&self.pending);
                return Err(self.malformed(&line));
            }
            let left = limit_ns.saturating_sub(clock.now_ns());
            let silent = || SignerError::Silent { path: self.path.clone(), secs: time.as_secs() };
            let wait = Timespec::try_from(Duration::from_nanos(left)).map_err(|_| silent())?;
            let mut ready = [PollFd::new(&self.answers, PollFlags::IN)];
            match poll(&mut ready, Some(&wait)) {
                Ok(0) => return Err(silent()),
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(self.failed(error.into())),
            }
            let mut bytes = [0; LINE_LEN_MAX];
            match self.answers.read(&mut bytes) {
                Ok(0) => return Err(SignerError::Gone(self.path.clone())),
                Ok(len) => self.pending.extend_from_slice(bytes.get(..len).unwrap_or_default()),
                Err(error) => return Err(self.failed(error)),
            }
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended by itself; it is ours to collect in either case.
        if let Err(error) = self.child.kill().and_then(|()| self.child.wait().map(drop)) {
            tracing::debug!(%error, "a signer");
        }
    }
}

/// `0x` and exactly as many hexadecimal digits as `N` bytes have.
pub(super) fn hex_bytes<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.strip_prefix("0x")?.as_bytes();
    let mut bytes = [0; N];
    if digits.len() != 2 * N {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        for digit in pair {
            let value = char::from(*digit).to_digit(16)?;
            *byte = *byte << 4 | u8::try_from(value).ok()?;
        }
    }
    Some(bytes)
}

fn read_signature(bytes: &[u8; 65]) -> Option<Signature> {
    let (r, rest) = bytes.split_first_chunk::<32>()?;
    let (s, rest) = rest.split_first_chunk::<32>()?;
    let y_is_odd = match rest {
        [27] => false,
        [28] => true,
        _ => return None,
    };
    Some(Signature { r: B256::from(*r), s: B256::from(*s), y_is_odd })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn key() -> Key {
        Key::from_bytes(&[0x46; 32]).unwrap()
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// A program that answers these lines, whatever it is asked.
    fn script(answers: &[&str]) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("signer");
        let mut text = "#!/bin/sh\n".to_owned();
        for answer in answers {
            text += &format!("read -r question\n{answer}\n");
        }
        // Closed before it is run: a file that is open for writing can't be.
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        (folder, path)
    }

    fn start(path: &Path) -> Result<Signer, SignerError> {
        let short = Duration::from_millis(300);
        let mut started = Program::start(path, Duration::from_secs(10), short);
        for _ in 0..1000 {
            match started {
                // Another test's child may still hold the file open between its fork and its exec.
                Err(SignerError::Io { source, .. })
                    if source.kind() == io::ErrorKind::ExecutableFileBusy =>
                {
                    started = Program::start(path, Duration::from_secs(10), short);
                }
                done => return done.map(Signer::Program),
            }
        }
        started.map(Signer::Program)
    }

    #[test]
    fn a_program_signs_with_the_key_that_it_named() {
        let digest = B256::repeat_byte(7);
        let address = format!("echo address 0x{}", hex(key().address().as_slice()));
        let signature = format!("echo signature 0x{}", hex(&key().sign(&digest).to_bytes()));
        let (_folder, path) = script(&[&address, &signature]);
        let mut signer = start(&path).unwrap();
        assert_eq!(signer.address(), key().address());
        assert_eq!(signer.sign(&digest).unwrap(), key().sign(&digest));
        let gone = signer.sign(&digest);
        assert!(matches!(gone, Err(SignerError::Gone(_))), "{gone:?}");
    }

    #[test]
    fn what_a_program_says_instead_of_a_signature_is_no_signature() {
        let digest = B256::repeat_byte(7);
        let address = format!("echo address 0x{}", hex(key().address().as_slice()));
        let other = format!("echo signature 0x{}", hex(&key().sign(&B256::ZERO).to_bytes()));
        for (answer, name) in [
            (other.as_str(), "OtherSignature"),
            ("echo refused by its owner", "Refused"),
            ("echo signature 0x00", "Malformed"),
            ("head -c 600 /dev/zero", "Malformed"),
            ("exec sleep 60", "Silent"),
            ("exit 0", "Gone"),
        ] {
            let (_folder, path) = script(&[&address, answer]);
            let error = start(&path).unwrap().sign(&digest).unwrap_err();
            assert!(format!("{error:?}").starts_with(name), "{answer}: {error:?}");
        }
        for (answer, name) in [("echo address 0x12", "Malformed"), ("exit 1", "Gone")] {
            let (_folder, path) = script(&[answer]);
            let error = start(&path).unwrap_err();
            assert!(format!("{error:?}").starts_with(name), "{answer}: {error:?}");
        }
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let error = start(Path::new("/nonexistent/signer")).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/signer"), "{error}");
    }
}
