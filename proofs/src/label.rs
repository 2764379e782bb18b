//! Labels: what filler and memory tables are made of (`docs/chain.md`, "Labels").
//!
//! A label is the hash of its place and of four others: the one before it, and three that the one
//! before it draws. Only the last layer is kept. To make one label of it again, one needs labels of
//! the layer below, which nobody keeps, and so nearly everything.

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

/// The three places that a label's predecessor draws: in its own layer if it is the first (`layer`
/// 0), otherwise in the one below. `None` for the very first label, before which there is nothing.
#[must_use]
pub fn drawn_places(layer: u8, index: u64, count: u64, previous: &B256) -> Option<[u64; 3]> {
    let bound = if layer == 0 { index } else { count };
    if bound == 0 {
        return None;
    }
    let (words, _) = previous.as_chunks::<8>();
    let mut places = [0; 3];
    for (place, word) in places.iter_mut().zip(words) {
        *place = u64::from_be_bytes(*word) % bound;
    }
    Some(places)
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
        let from = if self.layer == 0 { &self.current } else { &self.below };
        let mut drawn = [self.context; 3];
        let places = drawn_places(self.layer, index, self.count, &previous);
        for (to, place) in drawn.iter_mut().zip(places.into_iter().flatten()) {
            *to = from.get(place as usize).copied().unwrap_or_default();
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
