use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const BLOCKS: u64 = 40;

#[derive(Debug, Clone)]
enum Step {
    Write { block: u64, count: u64, value: u8 },
    Zero { block: u64, count: u64 },
    Close,
    Drop,
    Journal,
}

fn step() -> impl Strategy<Value = Step> {
    let range = (0..BLOCKS, 1..9u64).prop_map(|(block, count)| (block, count.min(BLOCKS - block)));
    prop_oneof![
        6 => (range.clone(), any::<u8>())
            .prop_map(|((block, count), value)| Step::Write { block, count, value }),
        2 => range.prop_map(|(block, count)| Step::Zero { block, count }),
        1 => Just(Step::Close),
        1 => Just(Step::Drop),
        2 => Just(Step::Journal),
    ]
}

/// What a batch makes of a volume: zeroes first, then blocks.
fn apply(batch: &Batch, below: &mut BTreeMap<u64, u8>) {
    for (first, count) in &batch.zeroes {
        (*first..first + count).for_each(|block| {
            below.insert(block, 0);
        });
    }
    batch.blocks().for_each(|(block, content)| {
        below.insert(block, content[0]);
    });
}

/// What the journal makes of a volume.
fn replay(overlay: &Overlay, group: &Group, journaled: &mut BTreeMap<u64, u8>) {
    let batch = overlay.batch(group.batch).unwrap();
    for change in &group.changes {
        match *change {
            Change::Zero { block, count } => {
                (block..block + count).for_each(|block| {
                    journaled.insert(block, 0);
                });
            }
            Change::Data { block, slot, count } => {
                let blocks = batch.slots(slot, count).chunks(BLOCK_BYTES);
                for (block, content) in (block..).zip(blocks) {
                    journaled.insert(block, content[0]);
                }
            }
        }
    }
}

fn check(overlay: &Overlay, below: &BTreeMap<u64, u8>, model: &BTreeMap<u64, u8>) {
    let mut block = 0;
    while block < BLOCKS {
        let (found, run) = overlay.find(block, BLOCKS - block);
        for nth in 0..run {
            let value = match found {
                Found::Below => below.get(&(block + nth)).copied().unwrap_or(0),
                Found::Zero => 0,
                Found::Data(content) => content[nth as usize * BLOCK_BYTES],
            };
            let wanted = model.get(&(block + nth)).copied().unwrap_or(0);
            assert_eq!(value, wanted, "block {}", block + nth);
        }
        block += run;
    }
}

proptest! {
    #[test]
    fn reads_batches_and_the_journal_all_tell_the_same_story(
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let mut overlay = Overlay::new(16, 64, 100);
        let (mut model, mut below) = (BTreeMap::new(), BTreeMap::new());
        // The journal begins anew with each batch.
        let mut journaled = BTreeMap::new();
        let mut closed = VecDeque::new();
        for step in steps {
            match step {
                Step::Write { block, count, value } => {
                    let content = vec![value; count as usize * BLOCK_BYTES];
                    let mut done = 0;
                    while done < count as usize {
                        done += overlay.write(block + done as u64, &content[done * BLOCK_BYTES..]);
                        if overlay.batch_is_full() {
                            closed.extend(overlay.close_batch());
                            journaled = model.clone();
                            let written = block..block + done as u64;
                            written.for_each(|block| {
                                journaled.insert(block, value);
                            });
                        }
                    }
                    (block..block + count).for_each(|block| {
                        model.insert(block, value);
                    });
                }
                Step::Zero { block, count } => {
                    overlay.zero(block, count);
                    (block..block + count).for_each(|block| {
                        model.insert(block, 0);
                    });
                }
                Step::Close => {
                    closed.extend(overlay.close_batch());
                    journaled = model.clone();
                }
                Step::Drop => {
                    if let Some(id) = closed.pop_front() {
                        apply(overlay.batch(id).unwrap(), &mut below);
                        overlay.drop_batch(id);
                    }
                }
                Step::Journal => {
                    if let Some(group) = overlay.take_pending() {
                        prop_assert_eq!(group.last_write, overlay.last_write());
                        replay(&overlay, &group, &mut journaled);
                        overlay.set_journaled(group.batch, group.last_write);
                    }
                    let now = |map: &BTreeMap<u64, u8>| -> Vec<u8> {
                        (0..BLOCKS).map(|block| map.get(&block).copied().unwrap_or(0)).collect()
                    };
                    prop_assert_eq!(now(&journaled), now(&model));
                }
            }
            check(&overlay, &below, &model);
        }
        // Everything dropped: the batches alone make the volume.
        closed.extend(overlay.close_batch());
        while let Some(id) = closed.pop_front() {
            apply(overlay.batch(id).unwrap(), &mut below);
            overlay.drop_batch(id);
        }
        check(&overlay, &below, &model);
        prop_assert_eq!(overlay.blocks(), 0);
        prop_assert!(overlay.index.is_empty());
    }
}

#[test]
fn what_is_durable_ends_at_the_first_write_that_is_nowhere() {
    let mut overlay = Overlay::new(4, 16, 0);
    let block = [1; BLOCK_BYTES];
    let batches: Vec<BatchId> = (0..3)
        .map(|nth| {
            assert_eq!(overlay.write(nth * 10, &block), 1);
            assert_eq!(overlay.write(nth * 10 + 1, &block), 1);
            overlay.close_batch().unwrap()
        })
        .collect();
    assert_eq!(overlay.durable_write(|_| false), 0);
    overlay.set_journaled(batches[0], 1);
    assert_eq!(overlay.durable_write(|_| false), 1);
    assert_eq!(overlay.durable_write(|batch| batch <= batches[0]), 2);
    // The second is in the journal as a whole, the third only in part.
    overlay.set_journaled(batches[1], 4);
    overlay.set_journaled(batches[2], 5);
    assert_eq!(overlay.durable_write(|batch| batch <= batches[0]), 5);
    assert_eq!(overlay.durable_write(|_| true), 6);
}

#[test]
fn a_block_that_is_written_again_takes_no_more_room() {
    let mut overlay = Overlay::new(8, 32, 0);
    for value in 0..100 {
        assert_eq!(overlay.write(3, &[value; 2 * BLOCK_BYTES]), 2);
    }
    assert_eq!((overlay.blocks(), overlay.last_write()), (2, 200));
    let group = overlay.take_pending().unwrap();
    assert_eq!(group.changes, [Change::Data { block: 3, slot: 0, count: 2 }]);
    assert_eq!((group.first_write, group.last_write), (1, 200));
    assert_eq!(overlay.take_pending(), None);
}
