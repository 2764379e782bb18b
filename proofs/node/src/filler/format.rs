//! What is kept of an extent beside its bytes, and of a plot that was committed to
//! (`docs/proof-node.md`, "On disk"). Integers are big-endian; each file ends with the SHA-256 of all before.

use hypha_chain::B256;
use hypha_chain::tree::{Extent, ExtentKind};
use hypha_proofs::store::{ExtentTree, GROUP_BYTES};
use ring::digest::{SHA256, digest};

const TREE_MAGIC: &[u8; 16] = b"hypha extent 1\n\0";
const PLOT_MAGIC: &[u8; 16] = b"hypha plot   1\n\0";
const HASH_BYTES: usize = 32;
/// Bytes of one extent in a plot's list.
const LISTED_BYTES: usize = 1 + 8 + 8 + 32;
/// The most extents of a plot that this build keeps.
pub const EXTENTS_MAX: usize = 1 << 20;

/// Why a file is not used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// Another kind of file, or another version.
    #[error("this is no such file, or one of another version")]
    Magic,
    /// The bytes have changed.
    #[error("its checksum is wrong: the disk has lost it")]
    Checksum,
    /// The checksum is right and the rest makes no sense.
    #[error("its parts have sizes that don't fit each other")]
    Length,
    /// Made for another node, device, place or salt.
    #[error("it was made for another node, device or salt")]
    Context,
}

/// The file beside an extent.
#[must_use]
pub fn encode_tree(context: &B256, tree: &ExtentTree) -> Vec<u8> {
    let mut out = TREE_MAGIC.to_vec();
    out.extend(context);
    out.extend(tree.bytes_len().to_be_bytes());
    out.extend(tree.groups().iter().flatten());
    sealed(out)
}

/// Reads the file beside an extent that must be of this context.
///
/// # Errors
/// [`FormatError`].
pub fn decode_tree(context: &B256, bytes: &[u8]) -> Result<ExtentTree, FormatError> {
    let body = opened(bytes, TREE_MAGIC)?;
    let (made_for, body) = body.split_at_checked(HASH_BYTES).ok_or(FormatError::Length)?;
    if made_for != context.as_slice() {
        return Err(FormatError::Context);
    }
    let (len, groups) = body.split_first_chunk::<8>().ok_or(FormatError::Length)?;
    let (groups, rest) = groups.as_chunks::<HASH_BYTES>();
    if !rest.is_empty() {
        return Err(FormatError::Length);
    }
    let groups = groups.iter().copied().map(B256::new).collect();
    ExtentTree::from_groups(u64::from_be_bytes(*len), groups).ok_or(FormatError::Length)
}

/// The most bytes of the file beside an extent of so many bytes.
#[must_use]
pub fn tree_bytes_max(extent_bytes: u64) -> u64 {
    let groups = extent_bytes.div_ceil(GROUP_BYTES as u64).max(1);
    (TREE_MAGIC.len() + 2 * HASH_BYTES + 8) as u64 + groups.saturating_mul(HASH_BYTES as u64)
}

/// The list of a plot's extents, in their order.
#[must_use]
pub fn encode_plot(extents: &[Extent]) -> Vec<u8> {
    let mut out = PLOT_MAGIC.to_vec();
    for extent in extents {
        out.push(match extent.kind {
            ExtentKind::Filler => 1,
            ExtentKind::User => 2,
        });
        out.extend(extent.id.to_be_bytes());
        out.extend(extent.bytes_len.to_be_bytes());
        out.extend(extent.root);
    }
    sealed(out)
}

/// Reads a plot's list.
///
/// # Errors
/// [`FormatError`].
pub fn decode_plot(bytes: &[u8]) -> Result<Vec<Extent>, FormatError> {
    let (listed, rest) = opened(bytes, PLOT_MAGIC)?.as_chunks::<LISTED_BYTES>();
    if !rest.is_empty() || listed.len() > EXTENTS_MAX {
        return Err(FormatError::Length);
    }
    listed.iter().map(|bytes| extent_of(bytes).ok_or(FormatError::Length)).collect()
}

fn extent_of(bytes: &[u8; LISTED_BYTES]) -> Option<Extent> {
    let (kind, rest) = bytes.split_first()?;
    let kind = match kind {
        1 => ExtentKind::Filler,
        2 => ExtentKind::User,
        _ => return None,
    };
    let (id, rest) = rest.split_first_chunk::<8>()?;
    let (len, root) = rest.split_first_chunk::<8>()?;
    let (id, bytes_len) = (u64::from_be_bytes(*id), u64::from_be_bytes(*len));
    Some(Extent { kind, id, bytes_len, root: B256::try_from(root).ok()? })
}

/// A file of these bytes: its checksum is put behind them.
#[must_use]
pub fn sealed(mut out: Vec<u8>) -> Vec<u8> {
    let hash = digest(&SHA256, &out);
    out.extend(hash.as_ref());
    out
}

/// What lies between the magic and the SHA-256 of a file, if both are right.
///
/// # Errors
/// [`FormatError`].
pub(crate) fn opened<'a>(bytes: &'a [u8], magic: &[u8; 16]) -> Result<&'a [u8], FormatError> {
    let (found, _) = bytes.split_first_chunk::<16>().ok_or(FormatError::Magic)?;
    if found != magic {
        return Err(FormatError::Magic);
    }
    let (body, sum) = bytes.split_last_chunk::<HASH_BYTES>().ok_or(FormatError::Checksum)?;
    if digest(&SHA256, body).as_ref() != sum.as_slice() {
        return Err(FormatError::Checksum);
    }
    body.get(magic.len()..).ok_or(FormatError::Length)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> ExtentTree {
        ExtentTree::of(&vec![7; 200_000])
    }

    #[test]
    fn a_tree_is_read_as_it_was_written() {
        let context = B256::repeat_byte(3);
        let bytes = encode_tree(&context, &tree());
        assert_eq!(decode_tree(&context, &bytes), Ok(tree()));
        assert_eq!(bytes.len() as u64, tree_bytes_max(200_000));
        let other = decode_tree(&B256::ZERO, &bytes);
        assert_eq!(other, Err(FormatError::Context));
    }

    #[test]
    fn every_changed_byte_and_every_cut_is_noticed() {
        let context = B256::repeat_byte(3);
        let (tree, plot) = (encode_tree(&context, &tree()), encode_plot(&listed()));
        for whole in [&tree, &plot] {
            let read =
                |bytes: &[u8]| decode_tree(&context, bytes).is_err() && decode_plot(bytes).is_err();
            for at in 0..whole.len() {
                let mut bytes = whole.clone();
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 0x40;
                }
                assert!(read(&bytes), "byte {at}");
                assert!(read(whole.get(..at).unwrap()), "cut at {at}");
            }
        }
    }

    #[test]
    fn sums_that_are_right_over_nonsense_are_refused() {
        for len in [1, 48, 50, 97] {
            let bytes = sealed([PLOT_MAGIC.as_slice(), &vec![9; len]].concat());
            assert_eq!(decode_plot(&bytes), Err(FormatError::Length), "{len}");
        }
        let bytes = sealed([TREE_MAGIC.as_slice(), &[0; 32 + 8 + 31]].concat());
        assert_eq!(decode_tree(&B256::ZERO, &bytes), Err(FormatError::Length));
        let bytes = sealed([TREE_MAGIC.as_slice(), &[0; 32], &[255; 8 + 32]].concat());
        assert_eq!(decode_tree(&B256::ZERO, &bytes), Err(FormatError::Length));
    }

    fn listed() -> Vec<Extent> {
        let root = B256::repeat_byte(1);
        vec![
            Extent { kind: ExtentKind::Filler, id: 1 << 33, bytes_len: 5, root },
            Extent { kind: ExtentKind::User, id: 7, bytes_len: u64::MAX, root },
        ]
    }

    #[test]
    fn a_plot_is_read_as_it_was_written() {
        assert_eq!(decode_plot(&encode_plot(&listed())), Ok(listed()));
        assert_eq!(decode_plot(&encode_plot(&[])), Ok(Vec::new()));
    }
}
