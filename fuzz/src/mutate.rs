//! Small changes to an input, all of them determined by a seed.

use fastrand::Rng;

/// Numbers that parsers trip over.
const EDGES: [u64; 12] =
    [0, 1, 7, 8, 0x7f, 0x80, 0xff, 0x7fff, 0xffff, 0x7fff_ffff, 0xffff_ffff, u64::MAX];

/// Words that text parsers trip over.
const WORDS: [&str; 12] = [
    "null",
    "true",
    "-1",
    "0",
    "1e400",
    "18446744073709551616",
    "[]",
    "{}",
    "\"\"",
    "\"\\ud800\"",
    "\"0.0.0.0/0\"",
    "\"\u{fc}\"",
];

/// The longest input that a mutation makes.
const LEN_MAX: usize = 8192;

/// A changed copy of `input`: some bytes flipped, cut, repeated, overwritten with edge numbers, or
/// spliced with `other`.
#[must_use]
pub fn mutate(input: &[u8], other: &[u8], rng: &mut Rng) -> Vec<u8> {
    let mut bytes = input.to_vec();
    if rng.bool() && std::str::from_utf8(input).is_ok() {
        // Byte by byte a text would hardly ever get past its grammar.
        for _ in 0..rng.usize(1..4) {
            change_word(&mut bytes, other, rng);
        }
    } else {
        for _ in 0..rng.usize(1..6) {
            change(&mut bytes, other, rng);
        }
    }
    bytes.truncate(LEN_MAX);
    bytes
}

fn change(bytes: &mut Vec<u8>, other: &[u8], rng: &mut Rng) {
    let at = rng.usize(..=bytes.len());
    match rng.u8(..7) {
        0 => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << rng.u8(..8);
            }
        }
        1 => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = rng.u8(..);
            }
        }
        2 => {
            let edge = rng.choice(EDGES).unwrap_or(0);
            let width = rng.choice([1, 2, 4, 8]).unwrap_or(1);
            let mut encoded = edge.to_le_bytes();
            if rng.bool() {
                encoded = edge.swap_bytes().rotate_left(8 * width as u32).to_le_bytes();
            }
            for (target, source) in bytes.iter_mut().skip(at).take(width).zip(encoded) {
                *target = source;
            }
        }
        3 => bytes.truncate(at),
        4 => {
            let end = rng.usize(at..=bytes.len());
            bytes.drain(at..end.min(at + 32));
        }
        5 => {
            let end = rng.usize(at..=bytes.len()).min(at + 64);
            let piece = bytes.get(at..end).unwrap_or_default().to_vec();
            let to = rng.usize(..=bytes.len());
            bytes.splice(to..to, piece);
        }
        _ => {
            let from = rng.usize(..=other.len());
            let piece = other.get(from..).unwrap_or_default().to_vec();
            bytes.splice(at.., piece);
        }
    }
}

/// Puts a word of `other`, or one of [`WORDS`], in the place of a word.
fn change_word(bytes: &mut Vec<u8>, other: &[u8], rng: &mut Rng) {
    let Some((start, end)) = rng.choice(words(bytes)) else { return };
    let new = if rng.bool() {
        let source = rng.choice(words(other));
        source.and_then(|(start, end)| other.get(start..end)).unwrap_or_default().to_vec()
    } else {
        rng.choice(WORDS).unwrap_or_default().as_bytes().to_vec()
    };
    bytes.splice(start..end, new);
}

/// Where the words of a text lie: what is between spaces, brackets, commas and colons.
fn words(text: &[u8]) -> Vec<(usize, usize)> {
    let is_end = |byte: &u8| byte.is_ascii_whitespace() || b",:[]{}".contains(byte);
    let mut words = Vec::new();
    let mut start = 0;
    for word in text.split(is_end) {
        if !word.is_empty() {
            words.push((start, start + word.len()));
        }
        start += word.len() + 1;
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_determines_the_mutation() {
        let run = |seed| mutate(b"some input", b"another", &mut Rng::with_seed(seed));
        for seed in 0..100 {
            assert_eq!(run(seed), run(seed), "seed {seed}");
        }
        assert!((0..100).any(|seed| run(seed) != run(0)));
    }

    #[test]
    fn words_lie_where_they_stand() {
        let text = b"{\"a\": [1, 22]}";
        let found: Vec<&[u8]> = words(text).iter().map(|&(a, b)| &text[a..b]).collect();
        assert_eq!(found, [&b"\"a\""[..], b"1", b"22"]);
    }

    #[test]
    fn an_empty_input_can_be_mutated() {
        for seed in 0..100 {
            assert!(mutate(b"", b"", &mut Rng::with_seed(seed)).is_empty(), "seed {seed}");
        }
    }
}
