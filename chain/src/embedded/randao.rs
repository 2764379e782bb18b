//! Where the embedded chain's `prevrandao` comes from: hash chains, each committed to before it is used.
//!
//! Chain `k` has [`LEN`] links; each is the keccak-256 of the one that is revealed after it. Block `n`
//! (from 1) reveals link `(n - 1) mod LEN` of chain `(n - 1) / LEN`. The hash of a chain's first link is
//! its anchor: genesis names the anchor of chain 0, the first block of a chain that of the next. So the
//! producer can choose nothing after genesis, and nobody else can know a block's value before it; the
//! producer knows all of them from the start.

use alloy_primitives::{B256, keccak256};
use zeroize::Zeroizing;

/// Blocks per hash chain.
pub(super) const LEN: u64 = 4096;

/// The producer's secret, and the chain that is in use.
pub(super) struct Randao {
    seed: Zeroizing<[u8; 32]>,
    chain: u64,
    /// Links in the order in which they are revealed.
    links: Vec<B256>,
}

impl Randao {
    pub(super) fn new(seed: [u8; 32]) -> Self {
        let seed = Zeroizing::new(seed);
        let links = links(&seed, 0);
        Self { seed, chain: 0, links }
    }

    /// What chain `chain` is committed to with.
    pub(super) fn anchor(&self, chain: u64) -> B256 {
        let first = if chain == self.chain {
            self.links.first().copied()
        } else {
            links(&self.seed, chain).first().copied()
        };
        first.map(keccak256).unwrap_or_default()
    }

    /// What block `number` (from 1) reveals.
    pub(super) fn reveal(&mut self, number: u64) -> B256 {
        let (chain, link) = place(number);
        if chain != self.chain {
            self.links = links(&self.seed, chain);
            self.chain = chain;
        }
        usize::try_from(link).ok().and_then(|at| self.links.get(at)).copied().unwrap_or_default()
    }
}

/// The chain of a block and its link there.
pub(super) fn place(number: u64) -> (u64, u64) {
    let index = number.saturating_sub(1);
    (index / LEN, index % LEN)
}

fn links(seed: &[u8; 32], chain: u64) -> Vec<B256> {
    let text = Zeroizing::new([b"hypha randao".as_slice(), seed, &chain.to_be_bytes()].concat());
    let mut link = keccak256(&*text);
    let mut links = Vec::new();
    for _ in 0..LEN {
        links.push(link);
        link = keccak256(link);
    }
    links.reverse();
    links
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_block_reveals_what_the_one_before_was_committed_to() {
        let mut randao = Randao::new([7; 32]);
        let mut expected = randao.anchor(0);
        for number in 1..=LEN + 2 {
            let (chain, link) = place(number);
            if link == 0 {
                assert_eq!(expected, randao.anchor(chain), "block {number}");
            }
            let revealed = randao.reveal(number);
            assert_eq!(keccak256(revealed), expected, "block {number}");
            expected = if link == LEN - 1 { randao.anchor(chain + 1) } else { revealed };
        }
    }

    #[test]
    fn an_earlier_block_can_be_computed_again() {
        let mut randao = Randao::new([7; 32]);
        let first = randao.reveal(1);
        randao.reveal(LEN * 3);
        assert_eq!(randao.reveal(1), first);
        assert_ne!(Randao::new([8; 32]).reveal(1), first);
    }
}
