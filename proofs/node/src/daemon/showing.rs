//! Challenges of the chain: the leaf that a drawn byte lies in, of the plot that the challenge names.

use hypha_chain::B256;
use hypha_chain::contracts::Capacity;
use hypha_chain::tree::{Extent, ExtentKind};
use hypha_proofs::label::{FILLER_LAYERS, LABEL_BYTES, fill};
use hypha_proofs::store::{ExtentTree, Store};

use crate::reading::Reading;

/// What is said to a challenge.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Shown {
    /// The leaf.
    Leaf(Box<Capacity::Answer>),
    /// That the byte lay in a user's extent, which is gone: to be said once another plot is committed to.
    Gone(Box<Capacity::ExtentPath>),
}

/// Why a byte can't be shown.
#[derive(Debug, thiserror::Error)]
pub(super) enum ShowError {
    /// Nothing is known of such a plot.
    #[error("the plot {0:x} was not committed to by this node, or too long ago")]
    Plot(B256),
    /// It is gone, and can't be made again.
    #[error("extent {0:x} is lost")]
    Lost(u64),
}

/// Shows the challenged byte. An extent that is gone, or that the disk has damaged, is made again: filler
/// follows from its place. That takes a minute and twice its size of memory. What users have deleted nobody
/// can make again.
pub(super) fn show(
    challenge: &Capacity::Challenge,
    extents: Option<Vec<Extent>>,
    reading: &Reading,
) -> Result<Shown, ShowError> {
    let unknown = || ShowError::Plot(challenge.plotRoot);
    let extents = extents.ok_or_else(unknown)?;
    let store = Store::listed(extents.clone());
    let mut store =
        store.filter(|store| store.record().root == challenge.plotRoot).ok_or_else(unknown)?;
    let read = store.locate(challenge.offset).ok_or_else(unknown)?;
    let extent = extents.get(read.extent).ok_or_else(unknown)?;
    let lost = || ShowError::Lost(extent.id);
    let kept = reading.tree(extent).and_then(|tree| {
        let group = reading.read(extent, &read.range)?;
        Ok((tree, group))
    });
    if let Ok((tree, group)) = kept
        && store.load(read.extent, tree)
        && let Ok(shown) = store.open(challenge.offset, &group)
    {
        return Ok(Shown::Leaf(Box::new((&shown).into())));
    }
    reading.doubt(extent);
    if extent.kind == ExtentKind::User {
        let way = store.way(challenge.offset).ok_or_else(unknown)?;
        return Ok(Shown::Gone(Box::new((&way).into())));
    }
    let context = reading.context(extent).ok_or_else(lost)?;
    let count = extent.bytes_len / LABEL_BYTES as u64;
    let bytes = fill(context, FILLER_LAYERS, count).map_err(|_| lost())?;
    let range = read.range.start as usize..read.range.end as usize;
    let group = bytes.get(range).ok_or_else(lost)?;
    if !store.load(read.extent, ExtentTree::of(&bytes)) {
        return Err(lost());
    }
    let shown = store.open(challenge.offset, group).map_err(|_| lost())?;
    Ok(Shown::Leaf(Box::new((&shown).into())))
}

#[cfg(test)]
mod tests {
    use hypha_chain::Address;
    use hypha_chain::tree::Plot;
    use hypha_proofs::binding::Binding;
    use hypha_proofs::store::PlotRecord;
    use storage_vdev::audit::{self, LeafProof};

    use super::*;
    use crate::filler::{Filler, Place};
    use crate::shards;

    const EXTENT: u64 = 8192;

    /// Three extents in a folder, and what they were listed as.
    fn filler(folder: &std::path::Path) -> (Filler, Vec<Extent>) {
        let address = Address::repeat_byte(7);
        let binding = Binding {
            chain_id: 1,
            registry: address,
            capacity: address,
            disputes: address,
            node: 3,
        };
        let places = vec![Place { folder: folder.to_owned(), bytes_max: u64::MAX, keep_free: 0 }];
        let salt = B256::repeat_byte(9);
        let (mut filler, _) = Filler::open(places, (&binding, &salt), EXTENT, || 5).unwrap();
        for number in 0..3 {
            let files = filler.files((0, number)).unwrap().clone();
            let bytes = fill(files.context(number), FILLER_LAYERS, EXTENT / 32).unwrap();
            let kept = files.write(number, &bytes, &ExtentTree::of(&bytes)).unwrap();
            filler.end((0, number), Some(kept));
        }
        let listed = filler.listed();
        (filler, listed)
    }

    fn challenge(extents: &[Extent], offset: u64) -> (Capacity::Challenge, PlotRecord) {
        let plot = Plot::new(extents.to_vec()).unwrap();
        let record = PlotRecord { root: plot.root(), bytes_len: plot.bytes_len() };
        let challenge = Capacity::Challenge {
            id: 1,
            node: 3,
            deadline: 0,
            challenger: Address::ZERO,
            offset,
            bytesLen: record.bytes_len,
            plotRoot: record.root,
        };
        (challenge, record)
    }

    fn is_answered(extents: &[Extent], offset: u64, reading: &Reading) {
        let (challenge, record) = challenge(extents, offset);
        let shown = show(&challenge, Some(extents.to_vec()), reading).unwrap();
        let Shown::Leaf(shown) = shown else { panic!("it can be shown") };
        let extent = extents[(offset / EXTENT) as usize];
        assert_eq!((shown.way.extent.id, shown.way.extent.root), (extent.id, extent.root));
        let proof = LeafProof {
            path: shown.path.iter().map(|hash| hash.0).collect(),
            bytes: shown.leaf.to_vec(),
        };
        let leaf = offset % EXTENT / 1024;
        audit::verify(&extent.root.0, extent.bytes_len, leaf, &proof).unwrap();
        assert_eq!(record.bytes_len, 3 * EXTENT);
    }

    #[test]
    fn a_byte_is_shown_whether_its_extent_is_there_damaged_or_given_up() {
        let folder = tempfile::tempdir().unwrap();
        let (mut filler, extents) = filler(folder.path());
        let reading = Reading { filler: filler.reading(), shards: shards::Reading::default() };
        filler.remove((0, 1)).unwrap();
        std::fs::write(folder.path().join("0000000002"), vec![0; EXTENT as usize]).unwrap();
        for offset in [0, EXTENT - 1, EXTENT, 2 * EXTENT - 1, 2 * EXTENT, 3 * EXTENT - 1] {
            is_answered(&extents, offset, &reading);
        }
    }

    #[test]
    fn a_plot_that_is_not_known_is_not_shown_and_of_a_shard_that_is_gone_where_it_lay() {
        let folder = tempfile::tempdir().unwrap();
        let (filler, mut extents) = filler(folder.path());
        let reading = Reading { filler: filler.reading(), shards: shards::Reading::default() };
        let (unknown, _) = challenge(&extents, 5);
        assert!(matches!(show(&unknown, None, &reading), Err(ShowError::Plot(_))));
        let (other, _) = challenge(&extents[1..], 5);
        let shown = show(&other, Some(extents.clone()), &reading);
        assert!(matches!(shown, Err(ShowError::Plot(_))), "a list of another plot");
        extents[0].kind = ExtentKind::User;
        extents[0].id = 99;
        let (of_a_shard, _) = challenge(&extents, 5);
        let shown = show(&of_a_shard, Some(extents), &reading).unwrap();
        let Shown::Gone(way) = shown else { panic!("there is no such shard") };
        assert_eq!((way.extent.kind, way.extent.id, way.extent.bytesLen), (2, 99, EXTENT));
    }
}
