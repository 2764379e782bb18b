//! Which counters of a session were seen (RFC 6479): a ring of words behind the highest one.

/// How far behind the highest counter a packet may come in. Multi-path reorders by thousands.
pub const WINDOW_PACKETS: u64 = 8192;

/// One word more than the window, so that moving on by a bit never forgets what is still inside.
const WORDS: usize = (WINDOW_PACKETS / 64) as usize + 1;

/// The counters seen so far.
pub(crate) struct Window {
    /// One more than the highest counter seen.
    next: u64,
    words: Box<[u64; WORDS]>,
}

impl Window {
    pub(crate) fn new() -> Self {
        Self { next: 0, words: Box::new([0; WORDS]) }
    }

    /// Whether a packet with this counter is new, and not too old to tell.
    pub(crate) fn admits(&self, counter: u64) -> bool {
        if counter >= self.next {
            return counter != u64::MAX;
        }
        self.next - counter <= WINDOW_PACKETS && self.word(counter) & bit(counter) == 0
    }

    /// Whether this counter is higher than all seen so far.
    pub(crate) fn is_newest(&self, counter: u64) -> bool {
        counter >= self.next
    }

    /// Remembers the counter of a packet that verified.
    pub(crate) fn insert(&mut self, counter: u64) {
        if counter >= self.next {
            let first_new = self.next.div_ceil(64);
            let last_new = counter / 64;
            let fresh = (last_new + 1).saturating_sub(first_new).min(WORDS as u64);
            for step in 0..fresh {
                *self.word_mut((last_new - step) * 64) = 0;
            }
            self.next = counter.saturating_add(1);
        }
        *self.word_mut(counter) |= bit(counter);
    }

    fn word(&self, counter: u64) -> u64 {
        self.words.get(word_index(counter)).copied().unwrap_or(u64::MAX)
    }

    fn word_mut(&mut self, counter: u64) -> &mut u64 {
        let index = word_index(counter);
        &mut self.words[index]
    }
}

fn word_index(counter: u64) -> usize {
    ((counter / 64) % WORDS as u64) as usize
}

fn bit(counter: u64) -> u64 {
    1 << (counter % 64)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_counter_is_admitted_once() {
        let mut window = Window::new();
        for counter in [0, 5, 3, 8191, 8192, 1, 100_000, 100_000 - 8191] {
            assert!(window.admits(counter), "{counter}");
            window.insert(counter);
            assert!(!window.admits(counter), "{counter}");
        }
        assert!(!window.admits(100_000 - 8192), "behind the window");
        assert!(!window.admits(u64::MAX), "the last counter is never used");
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_set_of_all_counters(
            steps in prop::collection::vec((0u8..4, 0u64..20_000), 1..400),
        ) {
            let (mut window, mut seen, mut highest) = (Window::new(), BTreeSet::new(), 0u64);
            for (kind, distance) in steps {
                let counter = match kind {
                    0 => highest + 1 + distance % 3,
                    1 => highest + distance,
                    _ => highest.saturating_sub(distance % 9000),
                };
                let recent = seen.is_empty() || counter > highest
                    || highest - counter < WINDOW_PACKETS;
                prop_assert_eq!(window.admits(counter), recent && !seen.contains(&counter));
                if window.admits(counter) {
                    window.insert(counter);
                    seen.insert(counter);
                    highest = highest.max(counter);
                }
            }
        }
    }
}
