//! The Internet checksum (RFC 1071), in words as wide as the machine's.
//!
//! The sum is the same in either byte order but for a swap of its two bytes (RFC 1071 §2 (B)). So
//! words are added as they lie in memory, and [`Sum::field`] writes the result back the same way.

/// An unfinished ones' complement sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sum(u64);

impl Sum {
    /// The sum of bytes that start at an even distance from the start of what is summed. An odd
    /// last byte counts as the high one of a word.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        // Four chains of additions that don't wait for each other; the carries of 64-bit words end
        // up in the high halves, which 2^64 words could not fill.
        let mut lanes = [0_u128; 4];
        let (blocks, rest) = bytes.as_chunks::<32>();
        for block in blocks {
            let (words, _) = block.as_chunks::<8>();
            for (lane, word) in lanes.iter_mut().zip(words) {
                *lane += u128::from(u64::from_ne_bytes(*word));
            }
        }
        let (words, rest) = rest.as_chunks::<8>();
        let words = words.iter().map(|word| u128::from(u64::from_ne_bytes(*word)));
        let mut last = [0; 8];
        last.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
        let total =
            lanes.into_iter().chain(words).sum::<u128>() + u128::from(u64::from_ne_bytes(last));
        // 2^64 is 1 modulo 2^16 - 1, and so is 2^32.
        let halves = |value: u64| (value & 0xffff_ffff) + (value >> 32);
        let low = halves((total & u128::from(u64::MAX)) as u64);
        Self(low + halves((total >> 64) as u64))
    }

    /// Adds a number that the packet holds as a 16-bit word.
    #[must_use]
    pub fn word(self, word: u16) -> Self {
        Self(self.0 + u64::from(u16::from_ne_bytes(word.to_be_bytes())))
    }

    /// Adds another sum.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self(self.0 + u64::from(other.folded()))
    }

    /// The two bytes of the sum itself: what a checksum field holds when the rest is left to an
    /// offload (virtio 1.2 §5.1.6.2).
    #[must_use]
    pub fn partial(self) -> [u8; 2] {
        self.folded().to_ne_bytes()
    }

    /// The two bytes of a checksum field.
    #[must_use]
    pub fn field(self) -> [u8; 2] {
        (!self.folded()).to_ne_bytes()
    }

    /// Whether this is the sum of bytes that carry their right checksum.
    #[must_use]
    pub fn is_right(self) -> bool {
        self.folded() == 0xffff
    }

    fn folded(self) -> u16 {
        let mut sum = self.0;
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }
}

/// The sum of a pseudo-header (RFC 9293 §3.1, RFC 8200 §8.1): `addresses` are source and
/// destination as they follow each other in the IP header, `len` that of the transport's header and
/// payload, at most 65,535 bytes.
#[must_use]
pub fn pseudo_header(addresses: &[u8], protocol: u8, len: usize) -> Sum {
    Sum::of(addresses).word(u16::from(protocol)).word(u16::try_from(len).unwrap_or(u16::MAX))
}

/// A checksum field after one 16-bit word under it has changed from `old` to `new` (RFC 1624).
pub(crate) fn updated(field: [u8; 2], old: [u8; 2], new: [u8; 2]) -> [u8; 2] {
    let word = |bytes: [u8; 2]| u64::from(u16::from_ne_bytes(bytes));
    let inverse = |bytes: [u8; 2]| u64::from(!u16::from_ne_bytes(bytes));
    Sum(inverse(field) + inverse(old) + word(new)).field()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The definition, word by word.
    fn slow(bytes: &[u8]) -> u16 {
        let mut sum = 0_u32;
        for pair in bytes.chunks(2) {
            let low = pair.get(1).copied().unwrap_or(0);
            sum += u32::from(u16::from_be_bytes([pair[0], low]));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    proptest! {
        #[test]
        fn the_wide_sum_is_the_definition(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert_eq!(u16::from_be_bytes(Sum::of(&bytes).partial()), slow(&bytes));
        }

        #[test]
        fn sums_of_parts_add_up(
            bytes in prop::collection::vec(any::<u8>(), 0..300),
            at in 0_usize..150,
            word in any::<u16>(),
        ) {
            let at = (2 * at).min(bytes.len() & !1);
            let mut whole = bytes.clone();
            whole.splice(0..0, word.to_be_bytes());
            let parts = Sum::of(&bytes[..at]).plus(Sum::of(&bytes[at..])).word(word);
            prop_assert_eq!(u16::from_be_bytes(parts.partial()), slow(&whole));
        }

        #[test]
        fn a_changed_word_updates_the_field(
            mut words in prop::collection::vec(any::<[u8; 2]>(), 2..40),
            at in any::<prop::sample::Index>(),
            new in any::<[u8; 2]>(),
        ) {
            // A header is never all zero, where the two zeroes of ones' complement differ.
            words.push([1, 1]);
            let at = at.index(words.len() - 1);
            let field = Sum::of(words.as_flattened()).field();
            let old = std::mem::replace(&mut words[at], new);
            let expected = Sum::of(words.as_flattened()).field();
            prop_assert_eq!(updated(field, old, new), expected);
        }
    }

    #[test]
    fn the_largest_packet_does_not_overflow() {
        let bytes = vec![0xff; 65_535];
        assert_eq!(u16::from_be_bytes(Sum::of(&bytes).partial()), slow(&bytes));
    }
}
