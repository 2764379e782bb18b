//! A volume behaves like plain memory, whatever the order of requests, checkpoints and reopenings.
use crate::harness::{Change, flush, geometry, open, read, read_all, repair, seeds};
use storage_vdev::sim::{Rng, SimDisk};

const SHAPES: [(u8, u8); 5] = [(1, 0), (1, 1), (2, 1), (4, 2), (3, 3)];

fn run_against_the_model(seed: u64, (data, parity): (u8, u8), operations: u32) {
    let mut rng = Rng::new(seed);
    let geometry = geometry(data, parity, 20 + rng.below(60));
    let disk = SimDisk::new(geometry.shards());
    let mut volume = open(&disk, geometry, &mut rng).expect("a new volume is made");
    let mut model = vec![0; usize::try_from(geometry.size_bytes()).unwrap()];
    for operation in 0..operations {
        match rng.below(20) {
            0 => flush(&mut volume).unwrap(),
            1 => repair(&mut volume),
            2 => {
                volume.repair_step();
            }
            3 if rng.below(3) == 0 => {
                volume.close().unwrap();
                volume = open(&disk, geometry, &mut rng).expect("a closed volume opens");
            }
            3 => {
                flush(&mut volume).unwrap();
                volume = open(&disk, geometry, &mut rng).expect("a flushed volume opens");
            }
            4..10 => {
                let sectors = geometry.size_bytes() / 512;
                let first = rng.below(sectors);
                let count = 1 + rng.below((sectors - first).min(100));
                let start = usize::try_from(first * 512).unwrap();
                let len = usize::try_from(count * 512).unwrap();
                let found = read(&mut volume, first * 512, len).unwrap();
                assert!(found == model[start..start + len], "seed {seed} operation {operation}");
            }
            _ => {
                let change = Change::random(&mut rng, geometry.size_bytes());
                change.submit(&mut volume).unwrap();
                change.apply(&mut model);
            }
        }
    }
    assert!(read_all(&mut volume).unwrap() == model, "seed {seed} at the end");
    let status = volume.status();
    assert_eq!(status.redundancy, Some(u32::from(parity)), "seed {seed}: {status:?}");
    volume.close().unwrap();
    let mut volume = open(&disk, geometry, &mut rng).unwrap();
    assert!(read_all(&mut volume).unwrap() == model, "seed {seed} after the end");
    assert_eq!(volume.status().journal_bytes, 0, "seed {seed}: close empties the journal");
}

#[test]
fn a_volume_behaves_like_plain_memory() {
    for seed in seeds(30) {
        run_against_the_model(seed, SHAPES[usize::try_from(seed % 5).unwrap()], 120);
    }
}

#[test]
fn the_widest_shapes_work_too() {
    for (seed, shape) in [(1, (28, 4)), (2, (32, 0)), (3, (1, 31))] {
        run_against_the_model(seed, shape, 25);
    }
}
