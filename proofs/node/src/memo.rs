//! What a node must not forget: which pulse it has answered, and how large its table of a day is.
//!
//! Two answers to one pulse cost all stake, and two tables of one day count as none. So both are on the
//! disk before anybody else hears of them. After a restart a pulse that was answered, or may have been,
//! is not answered again.
//!
//! The file: `hypha proven 1\n\0` ‖ pulse (8) ‖ answer (32) ‖ day (4) ‖ blocks of the table (4) ‖
//! SHA-256 of all before.

use std::io;
use std::path::{Path, PathBuf};

use hypha_chain::B256;
use ring::digest::{SHA256, digest};

use crate::filler::shelf::{read_at_most, write_whole};

const MAGIC: &[u8; 16] = b"hypha proven 1\n\0";
const BYTES: usize = 16 + 8 + 32 + 4 + 4 + 32;

/// Why there is no memo.
#[derive(Debug, thiserror::Error)]
pub enum MemoError {
    /// The disk.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Its bytes are not those that were written.
    #[error(
        "{0} is damaged, and without it a pulse could be answered twice: if the newest pulse is over, \
         remove it"
    )]
    Damaged(PathBuf),
}

/// The file, and what is in it.
#[derive(Debug)]
pub struct Memo {
    path: PathBuf,
    pulse: u64,
    answer: B256,
    day: u32,
    blocks: u32,
}

impl Memo {
    /// Reads the file; without one nothing was answered yet.
    ///
    /// # Errors
    /// [`MemoError`].
    pub fn open(path: &Path) -> Result<Self, MemoError> {
        let path = path.to_owned();
        let bytes = match read_at_most(&path, BYTES as u64) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Self { path, pulse: 0, answer: B256::ZERO, day: 0, blocks: 0 });
            }
            Err(error) if error.kind() == io::ErrorKind::Other => {
                return Err(MemoError::Damaged(path));
            }
            Err(source) => return Err(MemoError::Io { path, source }),
            Ok(bytes) => bytes,
        };
        match Self::read(&bytes) {
            Some((pulse, answer, day, blocks)) => Ok(Self { path, pulse, answer, day, blocks }),
            None => Err(MemoError::Damaged(path)),
        }
    }

    fn read(bytes: &[u8]) -> Option<(u64, B256, u32, u32)> {
        let (body, sum) = bytes.split_last_chunk::<32>()?;
        let (magic, rest) = body.split_first_chunk::<16>()?;
        if magic != MAGIC || digest(&SHA256, body).as_ref() != sum {
            return None;
        }
        let (pulse, rest) = rest.split_first_chunk::<8>()?;
        let (answer, rest) = rest.split_first_chunk::<32>()?;
        let (day, rest) = rest.split_first_chunk::<4>()?;
        let blocks = rest.first_chunk::<4>()?;
        let (pulse, answer) = (u64::from_be_bytes(*pulse), B256::new(*answer));
        Some((pulse, answer, u32::from_be_bytes(*day), u32::from_be_bytes(*blocks)))
    }

    /// Keeps that a pulse is answered so. Returns whether that may be sent: a pulse that was answered
    /// otherwise, or is older than one that was, may not.
    ///
    /// # Errors
    /// The disk; then nothing may be sent.
    pub fn answer(&mut self, pulse: u64, answer: B256) -> io::Result<bool> {
        if pulse == self.pulse && self.pulse > 0 {
            return Ok(answer == self.answer);
        }
        if pulse < self.pulse {
            return Ok(false);
        }
        let before = (self.pulse, self.answer);
        (self.pulse, self.answer) = (pulse, answer);
        if let Err(error) = self.write() {
            // It may be on the disk all the same; then this pulse is not answered after a restart.
            (self.pulse, self.answer) = before;
            return Err(error);
        }
        Ok(true)
    }

    /// The newest pulse that was answered; 0 for none.
    #[must_use]
    pub fn answered(&self) -> u64 {
        self.pulse
    }

    /// How many blocks the table of a day has: as many as are wanted, unless it had another number
    /// before.
    ///
    /// # Errors
    /// The disk.
    pub fn table(&mut self, day: u32, wanted: u32) -> io::Result<u32> {
        if day == self.day {
            return Ok(self.blocks);
        }
        if day < self.day {
            return Ok(0);
        }
        let before = (self.day, self.blocks);
        (self.day, self.blocks) = (day, wanted);
        if let Err(error) = self.write() {
            (self.day, self.blocks) = before;
            return Err(error);
        }
        Ok(wanted)
    }

    fn write(&self) -> io::Result<()> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(self.pulse.to_be_bytes());
        bytes.extend(self.answer);
        bytes.extend(self.day.to_be_bytes());
        bytes.extend(self.blocks.to_be_bytes());
        let sum = digest(&SHA256, &bytes);
        bytes.extend(sum.as_ref());
        write_whole(&self.path, &bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pulse_is_answered_one_way_even_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("proven");
        let (one, two) = (B256::repeat_byte(1), B256::repeat_byte(2));
        let mut memo = Memo::open(&path).unwrap();
        assert!(memo.answer(7, one).unwrap());
        assert!(memo.answer(7, one).unwrap(), "the same again is no contradiction");
        for _ in 0..2 {
            assert!(!memo.answer(7, two).unwrap());
            assert!(!memo.answer(6, two).unwrap());
            memo = Memo::open(&path).unwrap();
        }
        assert_eq!(memo.answered(), 7);
        assert!(memo.answer(8, two).unwrap());
    }

    #[test]
    fn a_table_keeps_its_size_for_a_day() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("proven");
        let mut memo = Memo::open(&path).unwrap();
        assert_eq!(memo.table(3, 10).unwrap(), 10);
        let mut memo = Memo::open(&path).unwrap();
        assert_eq!(memo.table(3, 12).unwrap(), 10);
        assert_eq!(memo.table(2, 12).unwrap(), 0);
        assert_eq!(memo.table(4, 12).unwrap(), 12);
    }

    #[test]
    fn a_damaged_memo_is_refused_and_not_taken_for_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("proven");
        Memo::open(&path).unwrap().answer(7, B256::ZERO).unwrap();
        let whole = std::fs::read(&path).unwrap();
        assert_eq!(whole.len(), BYTES);
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 8;
            std::fs::write(&path, &bytes).unwrap();
            assert!(matches!(Memo::open(&path), Err(MemoError::Damaged(_))), "byte {at}");
            std::fs::write(&path, &whole[..at]).unwrap();
            assert!(matches!(Memo::open(&path), Err(MemoError::Damaged(_))), "cut at {at}");
        }
        std::fs::write(&path, [whole.clone(), vec![0]].concat()).unwrap();
        assert!(matches!(Memo::open(&path), Err(MemoError::Damaged(_))));
    }

    #[test]
    fn what_is_not_on_the_disk_is_not_sent() {
        let folder = tempfile::tempdir().unwrap();
        let mut memo = Memo::open(&folder.path().join("gone/proven")).unwrap();
        assert!(memo.answer(7, B256::ZERO).is_err());
        assert_eq!(memo.answered(), 0);
    }
}
