//! What it costs to make filler again: labels of all layers that must be made for one that is missing.
//!
//! The graph is the real one ([`hypha_proofs::label`]): which labels a label needs is read off the labels.
//! A *keeper* says which labels of which layers lie on the disk. The count is of the least set that must
//! be made, so no cheater with these labels can do with fewer; that no other choice of labels is cheaper
//! is not shown. What also counts is the *depth*: the longest chain of labels that need each other, which
//! no number of cores shortens.

use hypha_chain::{B256, keccak256};
use hypha_proofs::label::{Fill, LABEL_BYTES, drawn_places};

/// The labels of all layers of one extent, and so its graph.
pub struct Graph {
    layers: u8,
    count: usize,
    /// The four that each label needs, by number: layer · count + index. Missing ones are its own number.
    parents: Vec<[u32; 4]>,
}

/// Which graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// The real one.
    Real,
    /// As it was designed first: all three drawn parents of a label are in the layer below, and in the
    /// lowest one anywhere before.
    Plain,
}

/// Which labels a cheater keeps. What is dropped of the last layer is whole leaves, scattered: that is
/// what is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keeper {
    /// So many thousandths of the last layer's labels, scattered one by one.
    Scattered(u32),
    /// So many thousandths of an extent, spread over all layers by chance.
    Spread(u32),
    /// The first so many thousandths of the last layer.
    Front(u32),
    /// The last layer without so many thousandths of its leaves.
    Leaves(u32),
    /// The same, and each so-manieth label of all layers below.
    Ladder {
        /// Each so-manieth.
        every: u32,
        /// Thousandths of the leaves.
        dropped: u32,
    },
    /// The same, and those labels of the layer below the last that are drawn most.
    Hubs {
        /// Thousandths of an extent.
        part: u32,
        /// Thousandths of the leaves.
        dropped: u32,
    },
}

/// What one missing label costs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cost {
    /// Labels on the disk, against an honest node's.
    pub kept: f64,
    /// Labels to make for one that is missing: the mean of those asked for, against an extent's.
    pub work: f64,
    /// The longest chain among them, likewise.
    pub depth: f64,
}

/// Labels in a leaf of 1 KiB: what is drawn, and so what a cheater leaves out at once.
const LEAF_LABELS: usize = 32;

impl Graph {
    /// The graph of an extent of `count` labels.
    ///
    /// # Panics
    /// With no layer or no label, or 2^32 and more in all.
    #[must_use]
    pub fn new(shape: Shape, layers: u8, count: usize) -> Self {
        assert!(usize::from(layers) * count < 1 << 32, "labels are numbered by 32 bits");
        let context = keccak256("graph");
        let mut parents = Vec::with_capacity(usize::from(layers) * count);
        for layer in 0..layers {
            let labels = labels_of(context, layer + 1, count);
            for index in 0..count {
                parents.push(numbers(&context, (layer, index), &labels, (shape, count)));
            }
        }
        Self { layers, count, parents }
    }

    /// What a missing label costs a keeper; `asked` of them are tried, spread over the extent.
    #[must_use]
    pub fn cost(&self, keeper: Keeper, seed: u64, asked: usize) -> Cost {
        let kept = self.kept(keeper, seed);
        let last = self.parents.len() - self.count;
        let missing: Vec<usize> = (last..self.parents.len()).filter(|at| !kept[*at]).collect();
        let step = (missing.len() / asked.max(1)).max(1);
        // From the middle of each part, so that neither end is preferred.
        let wanted: Vec<usize> = missing.iter().skip(step / 2).step_by(step).copied().collect();
        let (mut work, mut depth) = (0, 0);
        for label in &wanted {
            let (made, longest) = self.rebuild(&kept, *label);
            work += made;
            depth += longest;
        }
        let all = (wanted.len().max(1) * self.count) as f64;
        let on_disk = kept.iter().filter(|kept| **kept).count();
        Cost {
            kept: on_disk as f64 / self.count as f64,
            work: work as f64 / all,
            depth: depth as f64 / all,
        }
    }

    /// How many labels must be made for one, and how long the longest chain of them is.
    #[must_use]
    pub fn rebuild(&self, kept: &[bool], wanted: usize) -> (usize, usize) {
        let mut needed = vec![false; self.parents.len()];
        let mut open = vec![wanted];
        let mut made = 0;
        while let Some(label) = open.pop() {
            if std::mem::replace(&mut needed[label], true) {
                continue;
            }
            made += 1;
            open.extend(self.parents_of(label).filter(|it| !kept[*it] && !needed[*it]));
        }
        // Parents have smaller numbers, so one pass in order is enough.
        let mut depths = vec![0_u32; self.parents.len()];
        for label in (0..=wanted).filter(|label| needed[*label]) {
            let before = self.parents_of(label).filter(|it| !kept[*it]).map(|it| depths[it]).max();
            depths[label] = before.unwrap_or_default() + 1;
        }
        (made, depths[wanted] as usize)
    }

    fn parents_of(&self, label: usize) -> impl Iterator<Item = usize> {
        let parents = self.parents[label];
        parents.into_iter().map(|it| it as usize).filter(move |it| *it != label)
    }

    fn kept(&self, keeper: Keeper, seed: u64) -> Vec<bool> {
        let mut rng = fastrand::Rng::with_seed(seed);
        let (count, last) = (self.count, self.parents.len() - self.count);
        let thousandths = |part: u32| count * part as usize / 1000;
        let mut kept = vec![false; self.parents.len()];
        if let Keeper::Leaves(dropped)
        | Keeper::Ladder { dropped, .. }
        | Keeper::Hubs { dropped, .. } = keeper
        {
            for leaf in kept[last..].chunks_mut(LEAF_LABELS) {
                leaf.fill(rng.u32(..1000) >= dropped);
            }
        }
        match keeper {
            Keeper::Leaves(_) => {}
            Keeper::Scattered(part) => {
                kept[last..].iter_mut().for_each(|it| *it = rng.u32(..1000) < part);
            }
            Keeper::Spread(part) => {
                let layers = u32::from(self.layers);
                kept.iter_mut().for_each(|it| *it = rng.u32(..1000 * layers) < part);
            }
            Keeper::Front(part) => kept[last..last + thousandths(part)].fill(true),
            Keeper::Ladder { every, .. } => {
                (0..last).for_each(|at| kept[at] = at % count % every as usize == 0);
            }
            Keeper::Hubs { part, .. } => {
                let mut drawn = vec![0_u32; self.parents.len()];
                self.parents[last..].iter().for_each(|parents| {
                    parents.iter().for_each(|it| drawn[*it as usize] += 1);
                });
                let mut below: Vec<usize> = (last.saturating_sub(count)..last).collect();
                below.sort_by_key(|at| std::cmp::Reverse(drawn[*at]));
                below.iter().take(thousandths(part)).for_each(|at| kept[*at] = true);
            }
        }
        kept
    }
}

fn labels_of(context: B256, layers: u8, count: usize) -> Vec<u8> {
    let mut fill = match Fill::new(context, layers, count as u64) {
        Ok(fill) => fill,
        Err(error) => panic!("{error}"),
    };
    fill.advance(u64::MAX);
    fill.finish().unwrap_or_default()
}

/// The numbers of a label's parents; its own number where it has none.
fn numbers(
    context: &B256,
    (layer, index): (u8, usize),
    labels: &[u8],
    (shape, count): (Shape, usize),
) -> [u32; 4] {
    let first = usize::from(layer) * count;
    let (own, below) = (first + index, first.saturating_sub(count));
    let before = index.checked_sub(1);
    let previous = before.and_then(|at| labels.chunks(LABEL_BYTES).nth(at));
    let previous = previous.map_or(*context, B256::from_slice);
    let Some([near, b, c]) = drawn_places(layer, index as u64, count as u64, &previous) else {
        return [own as u32; 4];
    };
    let bound = if layer == 0 { index } else { count } as u64;
    let a = match shape {
        Shape::Real if index == 0 => own,
        Shape::Real => first + near as usize,
        Shape::Plain => {
            let word = previous.first_chunk().copied().map_or(0, u64::from_be_bytes);
            below + (word % bound) as usize
        }
    };
    let previous = if index == 0 { own } else { own - 1 };
    [previous, a, below + b as usize, below + c as usize].map(|number| number as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn with_nothing_kept_the_last_label_needs_nearly_all_and_one_after_the_other() {
        let graph = Graph::new(Shape::Real, 4, 1024);
        let (made, depth) = graph.rebuild(&vec![false; 4096], 4095);
        assert!(made > 3000, "{made}");
        assert!(depth > 2048, "{depth}");
    }

    #[test]
    fn with_all_but_one_kept_one_is_made() {
        let graph = Graph::new(Shape::Real, 2, 64);
        let mut kept = vec![true; 128];
        kept[100] = false;
        assert_eq!(graph.rebuild(&kept, 100), (1, 1));
    }

    #[test]
    fn a_label_needs_those_that_the_real_graph_draws() {
        let graph = Graph::new(Shape::Real, 2, 64);
        let context = keccak256("graph");
        let labels = labels_of(context, 2, 64);
        let previous = B256::from_slice(&labels[9 * LABEL_BYTES..10 * LABEL_BYTES]);
        let [near, b, c] = drawn_places(1, 10, 64, &previous).unwrap();
        assert_eq!(graph.parents[64 + 10], [64 + 9, 64 + near as u32, b as u32, c as u32]);
    }
}
