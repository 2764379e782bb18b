//! Writing parts that follow each other as whole pages.

use std::io;

use bytes::Bytes;

use crate::files::{NodeFile, PAGE};

/// Writes `parts` one behind the other from `offset`, a multiple of a page, and zeroes to the end of
/// the last page. No page is written in pieces: that would have the page cache read it first.
pub(crate) fn write(file: &mut impl NodeFile, offset: u64, parts: &[Bytes]) -> io::Result<()> {
    let mut at = offset;
    let mut page = [0; PAGE];
    let mut filled = 0;
    for part in parts {
        let mut rest: &[u8] = part;
        while !rest.is_empty() {
            if filled == 0 && rest.len() >= PAGE {
                let (whole, behind) = rest.split_at(rest.len() - rest.len() % PAGE);
                file.write_at(at, whole)?;
                at += whole.len() as u64;
                rest = behind;
                continue;
            }
            let (piece, behind) = rest.split_at(rest.len().min(PAGE - filled));
            if let Some(target) = page.get_mut(filled..filled + piece.len()) {
                target.copy_from_slice(piece);
            }
            filled += piece.len();
            rest = behind;
            if filled == PAGE {
                file.write_at(at, &page)?;
                (at, filled) = (at + PAGE as u64, 0);
            }
        }
    }
    if filled > 0 {
        page.iter_mut().skip(filled).for_each(|byte| *byte = 0);
        file.write_at(at, &page)?;
    }
    Ok(())
}
