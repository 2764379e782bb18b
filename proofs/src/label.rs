//! Labels: what filler and memory tables are made of (`docs/chain.md`, "Labels").
//!
//! A label is the hash of its place and of four others: the one before it, and three that the one
//! before it draws, one nearby in its own layer and two anywhere in the layer below. Only the last layer
//! is kept. To make one label of it again, one needs labels of the layer below, which nobody keeps, and
//! so nearly everything. The nearby ones make that take long on any number of processors: without
//! them, who keeps each 64th label of the layers below has cut all long chains of labels that need each
//! other (`proofs/sim/src/graph.rs` measures it).

use hypha_chain::B256;

use crate::sha256;

/// Bytes of a label.
pub const LABEL_BYTES: usize = 32;
/// Layers of filler: the least that held in the model of the design.
pub const FILLER_LAYERS: u8 = 4;
/// Layers of a memory table, which must only outlive five seconds.
pub const TABLE_LAYERS: u8 = 2;
/// The most labels of an extent: 4 GiB of them.
pub const COUNT_MAX: u64 = 1 << 27;

/// The bytes that are hashed for a label.
const PREIMAGE_BYTES: usize = 32 + 1 + 8 + 4 * LABEL_BYTES;

/// A label from its parents: the one before it and the three drawn.
#[must_use]
pub fn label(context: &B256, layer: u8, index: u64, previous: &B256, drawn: &[B256; 3]) -> B256 {
    let mut bytes = [0; PREIMAGE_BYTES];
    let index = index.to_be_bytes();
    let [a, b, c] = drawn;
    let parts: [&[u8]; 7] = [&context[..], &[layer], &index, &previous[..], &a[..], &b[..], &c[..]];
    let mut rest = bytes.as_mut_slice();
    for part in parts {
        let Some((to, after)) = rest.split_at_mut_checked(part.len()) else { break };
        to.copy_from_slice(part);
        rest = after;
    }
    sha256(&bytes)
}

/// The three places that a label's predecessor draws: the first in its own layer and nearby, the others
/// in the layer below, or for `layer` 0 in its own as well. `None` for the very first label, before which
/// there is nothing; for the first of another layer, the context stands for the nearby one.
///
/// A nearby place is up to 2 ^ s + 1 labels before, and each s is as likely as any other: so there are
/// short ways between labels of all distances, and no few labels cut all of them.
#[must_use]
pub fn drawn_places(layer: u8, index: u64, count: u64, previous: &B256) -> Option<[u64; 3]> {
    let bound = if layer == 0 { index } else { count };
    if bound == 0 {
        return None;
    }
    let (words, _) = previous.as_chunks::<8>();
    let word = |at: usize| words.get(at).map_or(0, |word| u64::from_be_bytes(*word));
    let near = match index.checked_ilog2() {
        None | Some(0) => 0,
        Some(scales) => {
            let distance = 2 + word(0) % (1 << (1 + word(3) % u64::from(scales)));
            index.saturating_sub(distance)
        }
    };
    Some([near, word(1) % bound, word(2) % bound])
}

/// Why an extent can't be filled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FillError {
    /// No label, or too many.
    #[error("an extent has 1 to {COUNT_MAX} labels, not {0}")]
    Count(u64),
    /// No layer.
    #[error("labels have at least one layer")]
    Layers,
}

/// Fills one extent, in portions of the caller's choice. Takes twice the extent's bytes of memory.
pub struct Fill {
    context: B256,
    layers: u8,
    count: u64,
    layer: u8,
    below: Vec<B256>,
    current: Vec<B256>,
}

impl Fill {
    /// Starts to fill an extent of `count` labels.
    ///
    /// # Errors
    /// [`FillError`].
    pub fn new(context: B256, layers: u8, count: u64) -> Result<Self, FillError> {
        if count == 0 || count > COUNT_MAX {
            return Err(FillError::Count(count));
        }
        if layers == 0 {
            return Err(FillError::Layers);
        }
        Ok(Self { context, layers, count, layer: 0, below: Vec::new(), current: Vec::new() })
    }

    /// Makes up to `labels` more. Returns how many are still to be made, of all layers.
    pub fn advance(&mut self, labels: u64) -> u64 {
        for _ in 0..labels.min(self.left()) {
            if self.current.len() as u64 == self.count {
                self.below = std::mem::take(&mut self.current);
                self.layer += 1;
            }
            self.make_one();
        }
        self.left()
    }

    /// The extent's bytes; `None` if it is not full yet.
    #[must_use]
    pub fn finish(self) -> Option<Vec<u8>> {
        if self.left() > 0 {
            return None;
        }
        drop(self.below);
        Some(self.current.into_iter().flatten().collect())
    }

    fn left(&self) -> u64 {
        let above = u64::from(self.layers - 1 - self.layer);
        above * self.count + self.count - self.current.len() as u64
    }

    fn make_one(&mut self) {
        let index = self.current.len() as u64;
        let previous = self.current.last().copied().unwrap_or(self.context);
        let below = if self.layer == 0 { &self.current } else { &self.below };
        let mut drawn = [self.context; 3];
        if let Some([near, b, c]) = drawn_places(self.layer, index, self.count, &previous) {
            let label = |layer: &Vec<B256>, place: u64| {
                layer.get(place as usize).copied().unwrap_or(self.context)
            };
            drawn = [label(&self.current, near), label(below, b), label(below, c)];
        }
        self.current.push(label(&self.context, self.layer, index, &previous, &drawn));
    }
}

/// The bytes of a whole extent at once.
///
/// # Errors
/// [`FillError`].
pub fn fill(context: B256, layers: u8, count: u64) -> Result<Vec<u8>, FillError> {
    let mut fill = Fill::new(context, layers, count)?;
    fill.advance(u64::MAX);
    Ok(fill.finish().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn portions_make_no_difference() {
        let context = B256::repeat_byte(7);
        let whole = fill(context, FILLER_LAYERS, 100).unwrap();
        for portion in [1, 7, 100, 399] {
            let mut slow = Fill::new(context, FILLER_LAYERS, 100).unwrap();
            while slow.advance(portion) > 0 {}
            assert_eq!(slow.finish().as_deref(), Some(whole.as_slice()));
        }
        assert_eq!(whole.len(), 100 * LABEL_BYTES);
    }

    #[test]
    fn nearby_labels_are_before_the_one_before_and_at_all_distances() {
        let seed = 20_261_121;
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut at_most = [0; 20];
        for _ in 0..19_000 {
            let previous = B256::new(std::array::from_fn(|_| rng.u8(..)));
            let index = 1 << 20;
            let [near, ..] = drawn_places(2, index, 1 << 21, &previous).unwrap();
            let distance = index - near;
            assert!(distance >= 2, "seed {seed}");
            let scale = (distance - 1).ilog2() as usize;
            at_most[scale.min(19)] += 1;
        }
        // Half of each scale's distances are in its upper half, and some of all larger ones.
        assert!(at_most.iter().all(|count| *count > 200), "{at_most:?}, seed {seed}");
    }

    #[test]
    fn the_first_labels_have_what_there_is() {
        let previous = B256::repeat_byte(0xff);
        assert_eq!(drawn_places(0, 0, 10, &previous), None);
        assert_eq!(drawn_places(0, 1, 10, &previous), Some([0, 0, 0]));
        assert_eq!(drawn_places(1, 0, 10, &previous).map(|[near, ..]| near), Some(0));
        for index in 2..100 {
            let [near, b, c] = drawn_places(0, index, 100, &previous).unwrap();
            assert!(near + 2 <= index && b < index && c < index);
        }
    }

    #[test]
    fn an_unfinished_extent_is_none() {
        let mut slow = Fill::new(B256::ZERO, 2, 10).unwrap();
        assert_eq!(slow.advance(19), 1);
        assert!(slow.finish().is_none());
    }

    #[test]
    fn sizes_that_cannot_be_are_refused() {
        assert_eq!(Fill::new(B256::ZERO, 4, 0).err(), Some(FillError::Count(0)));
        assert_eq!(Fill::new(B256::ZERO, 0, 1).err(), Some(FillError::Layers));
        assert!(Fill::new(B256::ZERO, 4, COUNT_MAX + 1).is_err());
    }
}
