//! Questions are answered one after the other, in the order in which they came. A mutex alone lets
//! whoever has just had it have it again, and so one who asks much keep out all others, even blocks.

use std::sync::{Condvar, Mutex, PoisonError};

use crate::client::locked;

/// Whose turn it is.
#[derive(Debug, Default)]
pub struct Turns {
    numbers: Mutex<Numbers>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Numbers {
    /// The next one to be given out.
    next: u64,
    /// Whose turn it is.
    current: u64,
}

/// A turn, until it is dropped.
pub(super) struct Turn<'a>(&'a Turns);

impl Turns {
    /// Waits until all who came before have had their turn.
    pub(super) fn wait(&self) -> Turn<'_> {
        let mut numbers = locked(&self.numbers);
        let mine = numbers.next;
        numbers.next += 1;
        let waits = |numbers: &mut Numbers| numbers.current != mine;
        drop(self.changed.wait_while(numbers, waits).unwrap_or_else(PoisonError::into_inner));
        Turn(self)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        locked(&self.0.numbers).current += 1;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn whoever_comes_while_another_asks_again_and_again_has_the_next_turn() {
        let turns = Turns::default();
        let done = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            let first = turns.wait();
            let waiting = scope.spawn(|| {
                let _turn = turns.wait();
                done.load(Ordering::SeqCst)
            });
            while locked(&turns.numbers).next < 2 {
                std::thread::yield_now();
            }
            drop(first);
            for _ in 0..100 {
                let _turn = turns.wait();
                done.fetch_add(1, Ordering::SeqCst);
            }
            assert_eq!(waiting.join().unwrap(), 0);
        });
    }
}
