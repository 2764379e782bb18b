//! Epochs on the disk: the data of those that this node's ledger goes on from, and of those that it has made
//! to post, without which it would have to wait until what was posted can't be disputed any more; and what
//! was known of an epoch in time, without which it could not tell that something was left out.
//!
//! A file `epochs/NUMBER`: `hypha epoch  1\n\0` ‖ hash of the data that it goes on from (32) ‖ bytes of the
//! data (8) ‖ the data, as they are posted ‖ the numbers of their statements (16 each) ‖ SHA-256 of all
//! before. What is read is used for what stands on the chain by its hash only.
//!
//! A file `known/NUMBER`: `hypha known  1\n\0` ‖ epoch (4) ‖ the numbers of the statements that were known in
//! time (16 each, ascending) ‖ SHA-256 of all before.

use std::fs;
use std::io;
use std::path::Path;

use crate::filler::format::{opened, sealed};
use crate::filler::shelf::{read_at_most, write_whole};
use hypha_chain::B256;
use hypha_proofs::network::audit::Known;
use hypha_proofs::network::epoch::EpochData;
use hypha_proofs::network::judge::Closed;

const MAGIC: &[u8; 16] = b"hypha epoch  1\n\0";
const KNOWN_MAGIC: &[u8; 16] = b"hypha known  1\n\0";
/// The most bytes of a file that is read.
pub const BYTES_MAX: u64 = 1 << 31;

/// Why a file is not an epoch.
#[derive(Debug, thiserror::Error)]
pub enum KeptError {
    /// The disk.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Its bytes are not those that were written.
    #[error("it is damaged, or no such file of an epoch")]
    Damaged,
}

/// Keeps an epoch: when this returns it is on the disk.
///
/// # Errors
/// The disk.
pub fn write(folder: &Path, closed: &Closed) -> io::Result<()> {
    write_whole(&folder.join(closed.data.epoch.to_string()), &encode(closed))
}

/// Keeps what was known of an epoch in time: when this returns it is on the disk.
///
/// # Errors
/// The disk.
pub fn write_known(folder: &Path, epoch: u32, known: &Known) -> io::Result<()> {
    write_whole(&folder.join(epoch.to_string()), &encode_known(epoch, known))
}

/// All epochs whose data are in a folder, ascending; some may be damaged.
///
/// # Errors
/// The folder can't be read or made.
pub(crate) fn read_all(folder: &Path) -> io::Result<Vec<(u32, Result<Closed, KeptError>)>> {
    files(folder, |bytes| decode(bytes).map(|it| (it.data.epoch, it)))
}

/// The same of what was known in time.
///
/// # Errors
/// The folder can't be read or made.
pub(crate) fn read_all_known(folder: &Path) -> io::Result<Vec<(u32, Result<Known, KeptError>)>> {
    files(folder, decode_known)
}

/// The files of a folder that are named by an epoch, ascending. One that is another epoch's is damaged.
fn files<T>(
    folder: &Path,
    decode: impl Fn(&[u8]) -> Option<(u32, T)>,
) -> io::Result<Vec<(u32, Result<T, KeptError>)>> {
    fs::create_dir_all(folder)?;
    let mut found = Vec::new();
    for epoch in epochs(folder)? {
        let decoded = read_at_most(&folder.join(epoch.to_string()), BYTES_MAX)
            .map(|bytes| decode(&bytes).filter(|(is_of, _)| *is_of == epoch));
        let file = match decoded {
            Ok(it) => it.map(|(_, it)| it).ok_or(KeptError::Damaged),
            Err(error) => Err(error.into()),
        };
        found.push((epoch, file));
    }
    Ok(found)
}

/// The epochs that files of a folder are named by, ascending.
fn epochs(folder: &Path) -> io::Result<Vec<u32>> {
    let mut epochs = Vec::new();
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        epochs.extend(name.to_str().and_then(|name| name.parse::<u32>().ok()));
    }
    epochs.sort_unstable();
    Ok(epochs)
}

/// Removes all but the newest `most` epochs of a folder.
///
/// # Errors
/// The disk.
pub(crate) fn keep_newest(folder: &Path, most: usize) -> io::Result<()> {
    let epochs = epochs(folder)?;
    let old = epochs.len().saturating_sub(most);
    for epoch in epochs.iter().take(old) {
        fs::remove_file(folder.join(epoch.to_string()))?;
    }
    Ok(())
}

/// An epoch's file.
#[must_use]
pub fn encode(closed: &Closed) -> Vec<u8> {
    let data = closed.data.encode();
    let mut out = MAGIC.to_vec();
    out.extend(closed.before);
    out.extend((data.len() as u64).to_be_bytes());
    out.extend(data);
    closed.numbers.iter().for_each(|number| out.extend(number.to_be_bytes()));
    sealed(out)
}

/// What is in an epoch's file; `None` if it is none.
#[must_use]
pub fn decode(bytes: &[u8]) -> Option<Closed> {
    let rest = opened(bytes, MAGIC).ok()?;
    let (before, rest) = rest.split_first_chunk::<32>()?;
    let (len, rest) = rest.split_first_chunk::<8>()?;
    let (data, rest) = rest.split_at_checked(usize::try_from(u64::from_be_bytes(*len)).ok()?)?;
    let numbers = decode_numbers(rest)?;
    Some(Closed { before: B256::new(*before), data: EpochData::decode(data).ok()?, numbers })
}

/// The file of what was known of an epoch in time.
#[must_use]
pub fn encode_known(epoch: u32, known: &Known) -> Vec<u8> {
    let mut out = KNOWN_MAGIC.to_vec();
    out.extend(epoch.to_be_bytes());
    known.0.iter().for_each(|number| out.extend(number.to_be_bytes()));
    sealed(out)
}

/// What is in such a file; `None` if it is none.
#[must_use]
pub fn decode_known(bytes: &[u8]) -> Option<(u32, Known)> {
    let rest = opened(bytes, KNOWN_MAGIC).ok()?;
    let (epoch, rest) = rest.split_first_chunk::<4>()?;
    Some((u32::from_be_bytes(*epoch), Known(decode_numbers(rest)?)))
}

fn decode_numbers(bytes: &[u8]) -> Option<Vec<u128>> {
    let (numbers, tail) = bytes.as_chunks::<16>();
    let all = numbers.iter().map(|it| u128::from_be_bytes(*it)).collect();
    tail.is_empty().then_some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn closed(epoch: u32) -> Closed {
        let data = EpochData {
            epoch,
            verdicts: vec![hypha_proofs::network::epoch::VerdictLeaf::default(); 2],
            rewards: Vec::new(),
            statements: B256::repeat_byte(3),
            ledger: hypha_proofs::network::ledger::Ledger::default(),
        };
        Closed { before: B256::repeat_byte(1), data, numbers: vec![3, 5, u128::MAX] }
    }

    #[test]
    fn what_was_written_is_read_and_the_newest_stay() {
        let folder = tempfile::tempdir().unwrap();
        for epoch in [9, 11, 10] {
            write(folder.path(), &closed(epoch)).unwrap();
        }
        std::fs::write(folder.path().join("12"), b"rubbish").unwrap();
        std::fs::copy(folder.path().join("9"), folder.path().join("8")).unwrap();
        let found = || {
            let found = read_all(folder.path()).unwrap().into_iter();
            found.map(|(epoch, it)| (epoch, it.ok())).collect::<Vec<_>>()
        };
        let whole = |epoch| (epoch, Some(closed(epoch)));
        // Another's name, and no epoch at all.
        assert_eq!(found(), [(8, None), whole(9), whole(10), whole(11), (12, None)]);
        keep_newest(folder.path(), 2).unwrap();
        assert_eq!(found(), [whole(11), (12, None)]);
    }

    #[test]
    fn what_was_known_is_read_again_and_another_epochs_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let known = Known(vec![1, 7, u128::MAX]);
        write_known(folder.path(), 3, &known).unwrap();
        write_known(folder.path(), 4, &Known::default()).unwrap();
        std::fs::copy(folder.path().join("3"), folder.path().join("5")).unwrap();
        write(folder.path(), &closed(6)).unwrap();
        let found = read_all_known(folder.path()).unwrap().into_iter();
        let found: Vec<_> = found.map(|(epoch, it)| (epoch, it.ok())).collect();
        let nothing = Some(Known::default());
        assert_eq!(found, [(3, Some(known.clone())), (4, nothing), (5, None), (6, None)]);
        let whole = encode_known(3, &known);
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 8;
            assert_eq!(decode_known(&bytes), None, "byte {at}");
            assert_eq!(decode_known(&whole[..at]), None, "cut at {at}");
        }
    }

    #[test]
    fn each_changed_byte_and_each_cut_is_noticed() {
        let whole = encode(&closed(7));
        assert_eq!(decode(&whole), Some(closed(7)));
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 8;
            assert_eq!(decode(&bytes), None, "byte {at}");
            assert_eq!(decode(&whole[..at]), None, "cut at {at}");
        }
        assert_eq!(decode(&[whole, vec![0]].concat()), None);
    }
}
