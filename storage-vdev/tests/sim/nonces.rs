//! No (key, nonce) pair recurs, whatever the host does with the stores.
//!
//! Keys follow from (epoch, salt), nonces from the sequence number; headers show all three. So: the
//! same (epoch, salt, sequence) must never name two different things.

use std::collections::HashMap;

use storage_vdev::sim::{Image, Rng, SimDisk, Written};
use storage_vdev::{Geometry, StoreFile};

use crate::harness::{Change, SimVolume, choose, flush, geometry, open, repair, seeds};

/// Everything that was ever sealed, over all stores, copies and clones.
#[derive(Default)]
struct Seals {
    /// (kind, shard, epoch and salt, sequence) → the sealed bytes that the header vouches for.
    seen: HashMap<(u8, u8, Vec<u8>, u64), Vec<u8>>,
    records: usize,
    stripes: usize,
}

impl Seals {
    fn add(&mut self, written: &[Written], context: &str) {
        for Written { file, bytes, .. } in written {
            match file {
                StoreFile::Journal if bytes.starts_with(b"HJRN") => {
                    // A record: the whole of it, ciphertext and tag.
                    let sequence = u64::from_le_bytes(bytes[32..40].try_into().unwrap());
                    let opening = bytes[40..80].to_vec();
                    self.check((0, 0, opening, sequence), bytes, context);
                    self.records += 1;
                }
                StoreFile::Shard if bytes.starts_with(b"HSLT") => {
                    // A slot header: unit checksum, unit MAC and the tags of its blocks.
                    let sequence = u64::from_le_bytes(bytes[40..48].try_into().unwrap());
                    let opening = bytes[48..88].to_vec();
                    self.check((1, bytes[9], opening, sequence), bytes, context);
                    self.stripes += 1;
                }
                _ => {}
            }
        }
    }

    fn check(&mut self, name: (u8, u8, Vec<u8>, u64), sealed: &[u8], context: &str) {
        let (kind, sequence) = (name.0, name.3);
        let first = self.seen.entry(name).or_insert_with(|| sealed.to_vec());
        assert!(first == sealed, "{context}: kind {kind}, sequence {sequence} sealed twice");
    }
}

fn write_something(volume: &mut SimVolume, rng: &mut Rng) {
    for _ in 0..6 {
        let change = Change::random(rng, volume.geometry().size_bytes());
        // A store may just be failing: what counts is what was sealed.
        if change.submit(volume).is_err() {
            return;
        }
        if rng.below(3) == 0 && flush(volume).is_err() {
            return;
        }
        if rng.below(3) == 0 {
            volume.repair_step();
        }
    }
    if rng.below(2) == 0 {
        repair(volume);
    }
}

fn images(disk: &SimDisk, geometry: Geometry) -> Vec<Image> {
    (0..geometry.shards()).map(|store| disk.image(store)).collect()
}

#[test]
fn no_key_and_nonce_recur_after_crash_rollback_clone_or_double_open() {
    for seed in seeds(25) {
        let mut rng = Rng::new(seed + 300);
        let geometry = geometry(2, 1, 24);
        let mut seals = Seals::default();
        let disk = SimDisk::new(3);
        disk.start_trace();
        let mut kept = Vec::new();
        for step in 0..8 {
            let context = format!("seed {seed} step {step}");
            match rng.below(6) {
                // The host puts all stores back to where they were.
                0 if !kept.is_empty() => {
                    let old: &Vec<Image> = &kept[rng.below(kept.len() as u64) as usize];
                    (0..3).for_each(|store| disk.set_image(store, old[store].clone()));
                }
                // A crash that drops what was not synced.
                1 => {
                    disk.crash_at(Some(disk.operations() + rng.below(60)));
                    if let Ok(mut volume) = open(&disk, geometry, &mut rng) {
                        write_something(&mut volume, &mut rng);
                    }
                    disk.crash(&mut rng);
                }
                // A clone goes its own way from the same state.
                2 => {
                    let clone = SimDisk::new(3);
                    clone.start_trace();
                    (0..3).for_each(|store| clone.set_image(store, disk.image(store)));
                    let mut volume = open(&clone, geometry, &mut rng).unwrap();
                    write_something(&mut volume, &mut rng);
                    seals.add(&clone.trace(), &context);
                }
                // A store is lost and rebuilt.
                3 => {
                    let lost = choose(&mut rng, 3, 1)[0];
                    disk.set_image(lost, Image::default());
                }
                // Two openers at once, which no lock prevents here.
                4 => {
                    let mut one = open(&disk, geometry, &mut rng).unwrap();
                    let before = images(&disk, geometry);
                    write_something(&mut one, &mut rng);
                    (0..3).for_each(|store| disk.set_image(store, before[store].clone()));
                    let mut other = open(&disk, geometry, &mut rng).unwrap();
                    write_something(&mut other, &mut rng);
                    write_something(&mut one, &mut rng);
                    (0..3).for_each(|store| disk.set_image(store, before[store].clone()));
                }
                _ => {}
            }
            let mut volume = open(&disk, geometry, &mut rng)
                .unwrap_or_else(|error| panic!("{context}: {error}"));
            write_something(&mut volume, &mut rng);
            drop(volume);
            kept.push(images(&disk, geometry));
        }
        seals.add(&disk.trace(), &format!("seed {seed}"));
        assert!(seals.records > 20 && seals.stripes > 20, "seed {seed}: the test saw too little");
    }
}
