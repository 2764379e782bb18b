//! Stores that rewind: up to m of them remember every byte that they were ever given, lose nothing
//! in a crash that they don't want to lose, and put anything back before any open.
//!
//! The promises are the same as for honest stores: a flushed write is never lost, no later write is
//! there without the earlier ones, and the volume opens.

use storage_vdev::sim::{Image, Rng, SimDisk};
use storage_vdev::{Geometry, StoreFile};

use crate::harness::{
    Change, Oracle, SimVolume, choose, flush, geometry, open, read_all, repair, seeds,
};

/// What the hostile stores do before an open. They know all of the past: `trace` and `images`.
fn rewind(disk: &SimDisk, store: usize, images: &[Vec<Image>], rng: &mut Rng) -> &'static str {
    let mut image = disk.image(store);
    let old = |rng: &mut Rng| images[rng.below(images.len() as u64) as usize][store].clone();
    let name = match rng.below(8) {
        0 if !images.is_empty() => {
            image = old(rng);
            "all"
        }
        1 if !images.is_empty() => {
            if let Some(journal) = old(rng).file_mut(StoreFile::Journal) {
                image.set_file(StoreFile::Journal, journal.clone());
            }
            "its journal"
        }
        2 if !images.is_empty() => {
            // The superblocks stay.
            let mut old = old(rng);
            if let (Some(new), Some(old)) =
                (image.file_mut(StoreFile::Shard), old.file_mut(StoreFile::Shard))
            {
                new[8192..].copy_from_slice(&old[8192..]);
            }
            "its slots"
        }
        3..6 => {
            let trace = disk.trace();
            let own: Vec<_> = trace.iter().filter(|written| written.store == store).collect();
            for _ in 0..=rng.below(6) {
                let Some(_) = own.first() else { break };
                let written = own[rng.below(own.len() as u64) as usize];
                let start = usize::try_from(written.offset).unwrap();
                if let Some(file) = image.file_mut(written.file)
                    && let Some(target) = file.get_mut(start..start + written.bytes.len())
                {
                    target.copy_from_slice(&written.bytes);
                }
            }
            "some writes"
        }
        _ => "nothing",
    };
    disk.set_image(store, image);
    name
}

/// Runs some changes, until the disk stops.
fn work(disk: &SimDisk, volume: &mut SimVolume, oracle: &mut Oracle, rng: &mut Rng) {
    for _ in 0..rng.below(8) {
        let change = Change::random(rng, volume.geometry().size_bytes());
        oracle.issue(change.clone());
        if change.submit(volume).is_err() {
            return;
        }
        if rng.below(2) == 0 {
            if flush(volume).is_err() || disk.has_crashed() {
                return;
            }
            oracle.flush();
        }
        match rng.below(6) {
            0 => repair(volume),
            1 => {
                volume.repair_step();
            }
            _ => {}
        }
    }
}

fn images(disk: &SimDisk, geometry: Geometry) -> Vec<Image> {
    (0..geometry.shards()).map(|store| disk.image(store)).collect()
}

#[test]
fn any_m_stores_that_rewind_cost_no_flushed_write() {
    for seed in seeds(300) {
        let mut rng = Rng::new(seed + 40_000);
        let (data, parity) = [(1, 1), (2, 1), (4, 2), (2, 2), (1, 2)][rng.below(5) as usize];
        let geometry = geometry(data, parity, 8 + rng.below(60));
        let disk = SimDisk::new(geometry.shards());
        let count = 1 + rng.below(u64::from(parity));
        let hostile = choose(&mut rng, geometry.shards(), count);
        let mut oracle = Oracle::new(vec![0; usize::try_from(geometry.size_bytes()).unwrap()]);
        drop(open(&disk, geometry, &mut rng).unwrap());
        disk.start_trace();
        let mut past = Vec::new();
        let mut happened = format!("seed {seed}, {data}+{parity}, hostile {hostile:?}");
        for _ in 0..10 {
            for store in &hostile {
                let what = rewind(&disk, *store, &past, &mut rng);
                happened += &format!("; store {store} rewinds {what}");
            }
            // In the middle of the opening, later, or not at all.
            let crash_after = [20, 60, 200][rng.below(3) as usize];
            let crash_at = disk.operations() + rng.below(crash_after);
            disk.crash_at((rng.below(4) != 0).then_some(crash_at));
            match open(&disk, geometry, &mut rng) {
                Err(error) => assert!(disk.has_crashed(), "{happened}: {error}"),
                // The last stores already failed: a machine that had stopped would not go on.
                Ok(_) if disk.has_crashed() => {}
                Ok(mut volume) => {
                    let state = read_all(&mut volume).unwrap_or_else(|error| {
                        panic!("{happened}: {error}");
                    });
                    assert!(oracle.allows(&state), "{happened}: a flushed write is lost");
                    oracle = Oracle::new(state);
                    happened += "; opened";
                    work(&disk, &mut volume, &mut oracle, &mut rng);
                }
            }
            past.push(images(&disk, geometry));
            if rng.below(2) == 0 {
                disk.crash(&mut rng);
                happened += "; power lost";
            } else {
                disk.crash_at(None);
                happened += "; killed";
            }
        }
    }
}
