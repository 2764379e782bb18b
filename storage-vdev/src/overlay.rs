//! Blocks that are in the journal but not yet in a stripe. What is here wins over the stripe.

use std::collections::BTreeMap;

use crate::geometry::BLOCK_BYTES;

/// A block's content.
pub(crate) type Block = Box<[u8; BLOCK_BYTES]>;

/// What the overlay knows of a block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Dirty {
    /// Nothing: the stripe has it.
    Clean,
    /// It is zero.
    Zero,
    /// Its content.
    Data(Block),
}

/// The changed blocks of one stripe.
#[derive(Debug, Default)]
pub(crate) struct DirtyStripe {
    /// The whole stripe was zeroed first: what is not here is zero, whatever the stripe says.
    zeroed: bool,
    /// Empty until one of them is changed by itself: a discard of much costs little.
    blocks: Vec<Dirty>,
}

impl DirtyStripe {
    /// What is known of block `index`; never `Clean` if the whole stripe was zeroed.
    pub(crate) fn block(&self, index: usize) -> &Dirty {
        match self.blocks.get(index) {
            Some(Dirty::Clean) | None if self.zeroed => &Dirty::Zero,
            Some(block) => block,
            None => &Dirty::Clean,
        }
    }

    /// Whether each block is zero, given that the stripe below is (or isn't) zero.
    pub(crate) fn is_zero(&self, stripe_is_zero: bool) -> bool {
        let clean_is_zero = self.zeroed || stripe_is_zero;
        if self.blocks.is_empty() {
            return clean_is_zero;
        }
        self.blocks.iter().all(|block| match block {
            Dirty::Clean => clean_is_zero,
            Dirty::Zero => true,
            Dirty::Data(_) => false,
        })
    }
}

/// The changed stripes.
#[derive(Debug)]
pub(crate) struct Overlay {
    stripe_blocks: usize,
    stripes: BTreeMap<u64, DirtyStripe>,
}

impl Overlay {
    pub(crate) fn new(stripe_blocks: usize) -> Self {
        Self { stripe_blocks, stripes: BTreeMap::new() }
    }

    pub(crate) fn get(&self, stripe: u64) -> Option<&DirtyStripe> {
        self.stripes.get(&stripe)
    }

    pub(crate) fn remove(&mut self, stripe: u64) {
        self.stripes.remove(&stripe);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.stripes.is_empty()
    }

    /// The changed stripes, lowest first.
    pub(crate) fn stripes(&self) -> impl DoubleEndedIterator<Item = u64> {
        self.stripes.keys().copied()
    }

    /// The changed stripes from `first` to `last` (inclusive).
    pub(crate) fn range(&self, first: u64, last: u64) -> impl Iterator<Item = u64> {
        self.stripes.range(first..=last).map(|(stripe, _)| *stripe)
    }

    /// How many stripes are changed.
    pub(crate) fn len(&self) -> usize {
        self.stripes.len()
    }

    pub(crate) fn put(&mut self, stripe: u64, index: usize, content: Block) {
        if let Some(block) = self.blocks(stripe).get_mut(index) {
            *block = Dirty::Data(content);
        }
    }

    /// Zeroes the blocks `first..last` of a stripe.
    pub(crate) fn zero(&mut self, stripe: u64, first: usize, last: usize) {
        let all = self.stripe_blocks;
        if first == 0 && last >= all {
            self.stripes.insert(stripe, DirtyStripe { zeroed: true, blocks: Vec::new() });
        } else if let Some(blocks) = self.blocks(stripe).get_mut(first..last.min(all)) {
            blocks.fill(Dirty::Zero);
        }
    }

    fn blocks(&mut self, stripe: u64) -> &mut Vec<Dirty> {
        let blocks = &mut self.stripes.entry(stripe).or_default().blocks;
        blocks.resize(self.stripe_blocks, Dirty::Clean);
        blocks
    }
}
