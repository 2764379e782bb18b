//! The memory table of a day: blocks of labels, made anew each day and kept in memory.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use hypha_chain::B256;
use hypha_proofs::binding::Binding;
use hypha_proofs::label::{Fill, LABEL_BYTES, TABLE_LAYERS};
use hypha_proofs::ram::Table;

/// Labels between two looks at whether to stop.
const PORTION: u64 = 1 << 16;

/// What a table is made of.
#[derive(Debug, Clone, Copy)]
pub struct Recipe {
    /// Whose.
    pub binding: Binding,
    /// Of which day.
    pub day: u32,
    /// The day's salt.
    pub salt: B256,
    /// How many blocks.
    pub blocks: u32,
    /// Labels of a block.
    pub block_labels: u64,
}

impl Recipe {
    /// How many whole blocks so many MiB are.
    #[must_use]
    pub fn blocks_of(mem_mib: u64, block_labels: u64) -> u32 {
        let block = block_labels.saturating_mul(LABEL_BYTES as u64).max(1);
        u32::try_from(mem_mib.saturating_mul(1 << 20) / block).unwrap_or(u32::MAX)
    }

    /// All bytes.
    #[must_use]
    pub fn bytes_len(&self) -> u64 {
        u64::from(self.blocks) * self.block_labels * LABEL_BYTES as u64
    }

    /// Makes the table on so many threads; `None` if `stop` says so before it is done, or it would have
    /// no block.
    #[must_use]
    pub fn make(&self, threads: u16, stop: &AtomicBool, pause: &AtomicBool) -> Option<Table> {
        let next = Mutex::new(0..self.blocks);
        let one = || {
            let mut made = Vec::new();
            loop {
                let number = next.lock().unwrap_or_else(PoisonError::into_inner).next();
                let Some(number) = number else { return Some(made) };
                if stop.load(Ordering::Acquire) {
                    return None;
                }
                made.push((number, self.block(number, stop, pause)?));
            }
        };
        let made: Option<Vec<_>> = thread::scope(|scope| {
            let makers: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(one)).collect();
            makers.into_iter().map(|maker| maker.join().ok().flatten()).collect()
        });
        let mut blocks: Vec<(u32, Vec<u8>)> = made?.into_iter().flatten().collect();
        blocks.sort_by_key(|(number, _)| *number);
        Table::new(blocks.into_iter().map(|(_, bytes)| bytes).collect())
    }

    fn block(&self, number: u32, stop: &AtomicBool, pause: &AtomicBool) -> Option<Vec<u8>> {
        let context = self.binding.table(self.day, number, &self.salt);
        let mut fill = Fill::new(context, TABLE_LAYERS, self.block_labels).ok()?;
        while fill.advance(PORTION) > 0 {
            while pause.load(Ordering::Acquire) && !stop.load(Ordering::Acquire) {
                thread::sleep(std::time::Duration::from_millis(20));
            }
            if stop.load(Ordering::Acquire) {
                return None;
            }
        }
        fill.finish()
    }
}

#[cfg(test)]
mod tests {
    use hypha_chain::Address;
    use hypha_proofs::label::fill;

    use super::*;

    fn recipe(blocks: u32) -> Recipe {
        let address = Address::repeat_byte(1);
        let binding = Binding {
            chain_id: 1,
            registry: address,
            capacity: address,
            disputes: address,
            node: 2,
        };
        Recipe { binding, day: 5, salt: B256::ZERO, blocks, block_labels: 100 }
    }

    #[test]
    fn a_table_is_the_same_on_any_number_of_threads() {
        let (go, on) = (AtomicBool::new(false), AtomicBool::new(false));
        let one = recipe(7).make(1, &go, &on).unwrap();
        let many = recipe(7).make(3, &go, &on).unwrap();
        assert_eq!(one.record(), many.record());
        assert_eq!(one.record().bytes_len, recipe(7).bytes_len());
        let blocks = (0..7).map(|number| {
            let it = recipe(7);
            fill(it.binding.table(5, number, &it.salt), TABLE_LAYERS, 100).unwrap()
        });
        assert_eq!(Table::new(blocks.collect()).unwrap().record(), one.record());
    }

    #[test]
    fn no_block_and_a_stop_make_no_table() {
        let (go, on, stop) =
            (AtomicBool::new(false), AtomicBool::new(false), AtomicBool::new(true));
        assert!(recipe(0).make(2, &go, &on).is_none());
        assert!(recipe(2).make(2, &stop, &on).is_none());
        assert_eq!(Recipe::blocks_of(129, 1 << 21), 2);
        assert_eq!(Recipe::blocks_of(u64::MAX, 1 << 21), u32::MAX);
    }
}
