//! Writing, flushing, reading, closing and opening again.

use storage_vdev::engine::Policy;

use crate::harness::{BLOCK, create, open, options};
use crate::nodes::{Rng, world};

#[test]
fn what_was_written_is_read_at_once_and_after_a_clean_close() {
    let world = world(6, 1);
    let mut bench = open(&world, options(6, Some(create(4, 2, 256))));
    let mut rng = Rng(9);
    let mut content = vec![0; 256 * BLOCK];
    rng.fill(&mut content[8 * BLOCK..200 * BLOCK]);
    bench.write(&world, 8 * BLOCK, &content[8 * BLOCK..200 * BLOCK]).unwrap().unwrap();
    assert_eq!(bench.read_all(&world).unwrap().unwrap(), content);
    bench.close(&world).unwrap().unwrap();
    let mut bench = open(&world, options(6, None));
    assert!(bench.read_all(&world).unwrap().unwrap() == content);
}

#[test]
fn a_flushed_write_survives_a_crash_under_every_policy() {
    for policy in [Policy::Local, Policy::Quorum, Policy::Sealed] {
        let world = world(6, 2);
        let mut bench = open(
            &world,
            options(6, Some(storage_vdev::engine::Create { policy, ..create(4, 2, 64) })),
        );
        let data = vec![0x5a; 3 * BLOCK];
        bench.write(&world, BLOCK, &data).unwrap().unwrap();
        bench.flush(&world).unwrap().unwrap();
        drop(bench);
        let mut bench = open(&world, options(6, None));
        let content = bench.read(&world, BLOCK, 3 * BLOCK).unwrap().unwrap();
        assert!(content == data, "{policy:?}");
    }
}

#[test]
fn sectors_and_parts_of_blocks_can_be_written_and_zeroed() {
    let world = world(3, 3);
    let mut bench = open(&world, options(3, Some(create(2, 1, 64))));
    let mut rng = Rng(5);
    let mut model = vec![0; 64 * BLOCK];
    for _ in 0..300 {
        let sectors = 64 * 8;
        let first = rng.below(sectors);
        let count = 1 + rng.below(20.min(sectors - first));
        let (start, len) = ((first * 512) as usize, (count * 512) as usize);
        if rng.below(3) == 0 {
            model[start..start + len].fill(0);
            bench.zero(&world, start, len).unwrap().unwrap();
        } else {
            rng.fill(&mut model[start..start + len]);
            let data = model[start..start + len].to_vec();
            bench.write(&world, start, &data).unwrap().unwrap();
        }
        let first = rng.below(sectors);
        let count = 1 + rng.below(20.min(sectors - first));
        let (start, len) = ((first * 512) as usize, (count * 512) as usize);
        let read = bench.read(&world, start, len).unwrap().unwrap();
        assert!(read == model[start..start + len]);
    }
}

#[test]
fn a_flush_that_has_nothing_to_do_is_answered() {
    let world = world(3, 4);
    let mut bench = open(&world, options(3, Some(create(2, 1, 64))));
    bench.flush(&world).unwrap().unwrap();
    bench.write(&world, 0, &[1; BLOCK]).unwrap().unwrap();
    bench.flush(&world).unwrap().unwrap();
    bench.flush(&world).unwrap().unwrap();
}
