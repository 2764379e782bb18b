//! Crashes: a store that drops, tears and reorders everything since the last sync.
//!
//! After each crash the volume must be what it was after some change since the last acknowledged
//! flush and all changes before it, even if any m stores are lost or damaged at the same time.
//! `HYPHA_SEEDS=n` runs a longer campaign.

use crate::harness::{
    Change, Oracle, SimVolume, choose, damage, flush, geometry, open, random, read, read_all,
    repair, seeds, write,
};
use storage_vdev::sim::{Image, Rng, SimDisk};
use storage_vdev::{BLOCK_BYTES, Geometry, Step, StoreFile, Volume};

/// Runs changes until they are done or the disk stops.
fn work(
    disk: &SimDisk,
    volume: &mut SimVolume,
    oracle: &mut Oracle,
    rng: &mut Rng,
    changes: usize,
) -> bool {
    for _ in 0..changes {
        let change = Change::random(rng, volume.geometry().size_bytes());
        oracle.issue(change.clone());
        if change.submit(volume).is_err() {
            return false;
        }
        match rng.below(8) {
            0..3 => {
                if flush(volume).is_err() || disk.has_crashed() {
                    return false;
                }
                oracle.flush();
            }
            3 => {
                volume.repair_step();
            }
            _ => {}
        }
        if volume.is_stopped() {
            return false;
        }
    }
    true
}

struct Run {
    seed: u64,
    geometry: Geometry,
    disk: SimDisk,
    rng: Rng,
    /// Copies of the stores from an earlier moment.
    older: Vec<Image>,
}

impl Run {
    fn new(seed: u64, salt: u64) -> Self {
        let mut rng = Rng::new(seed);
        let shapes = [(2, 1), (1, 1), (4, 2), (1, 2), (3, 0)];
        let (data, parity) = shapes[rng.below(5) as usize];
        // Some with so many stripes that writes come between the steps of a checkpoint.
        let blocks = if rng.below(2) == 0 { 12 + rng.below(40) } else { 200 };
        let geometry = geometry(data, parity, blocks);
        let disk = SimDisk::new(geometry.shards());
        // The workload follows the seed alone, what the crash leaves also the crash point.
        let rng = Rng::new(seed ^ salt.wrapping_mul(0x1_0000_0001));
        Self { seed, geometry, disk, rng, older: Vec::new() }
    }

    fn images(&self) -> Vec<Image> {
        (0..self.geometry.shards()).map(|store| self.disk.image(store)).collect()
    }

    /// The workload up to a crash at operation `crash_at`.
    fn until_crash(&mut self, crash_at: Option<u64>, changes: usize) -> Oracle {
        let size = usize::try_from(self.geometry.size_bytes()).unwrap();
        let mut oracle = Oracle::new(vec![0; size]);
        let mut rng = Rng::new(self.seed);
        self.disk.crash_at(crash_at);
        if let Ok(mut volume) = open(&self.disk, self.geometry, &mut rng) {
            self.older = self.images();
            if work(&self.disk, &mut volume, &mut oracle, &mut rng, changes / 2) {
                self.older = self.images();
                work(&self.disk, &mut volume, &mut oracle, &mut rng, changes - changes / 2);
            }
        }
        oracle
    }

    /// What the crash leaves, perhaps a crash while opening, perhaps damage; then the check.
    fn check(mut self, oracle: &Oracle, with_damage: bool) {
        let seed = self.seed;
        let at = self.disk.operations();
        let mut happened = format!("seed {seed}, crash at operation {at}");
        let killed = self.rng.below(3) == 0;
        if killed {
            // Only the process died: what was not synced is there for now.
            self.disk.crash_at(None);
            happened = format!("seed {seed}, killed at operation {at}");
        } else {
            self.disk.crash(&mut self.rng);
        }
        if killed || self.rng.below(3) == 0 {
            let later = self.disk.operations() + self.rng.below(30);
            self.disk.crash_at(Some(later));
            drop(open(&self.disk, self.geometry, &mut self.rng));
            self.disk.crash(&mut self.rng);
            happened += &format!(", crash while opening at {later}");
        }
        let parity = u64::from(self.geometry.parity_shards());
        if with_damage && self.older.len() == self.geometry.shards() {
            let count = self.rng.below(parity + 1);
            for store in choose(&mut self.rng, self.geometry.shards(), count) {
                let how = damage(&self.disk, store, &self.older[store], &mut self.rng);
                happened += &format!(", store {store} {how}");
            }
        }
        let mut volume = self.open(&happened);
        let state = read_all(&mut volume).unwrap_or_else(|error| panic!("{happened}: {error}"));
        assert!(oracle.allows(&state), "{happened}: a flushed write is lost or an old one is back");
        self.check_repaired(volume, state, &happened);
    }

    /// After repair any m stores may be lost again, and another crash changes nothing.
    fn check_repaired(mut self, mut volume: SimVolume, state: Vec<u8>, happened: &str) {
        volume.start_scrub();
        repair(&mut volume);
        let status = volume.status();
        let parity = u32::from(self.geometry.parity_shards());
        assert_eq!(status.redundancy, Some(parity), "{happened}: {status:?}");
        let mut oracle = Oracle::new(state);
        work(&self.disk, &mut volume, &mut oracle, &mut self.rng, 5);
        flush(&mut volume).unwrap();
        oracle.flush();
        drop(volume);
        self.disk.crash(&mut self.rng);
        for store in choose(&mut self.rng, self.geometry.shards(), u64::from(parity)) {
            self.disk.set_image(store, Image::default());
        }
        let mut volume = self.open(&format!("{happened}, then m lost"));
        let found = read_all(&mut volume).unwrap();
        assert!(found == oracle.newest(), "{happened}, then {parity} stores lost after repair");
    }

    fn open(&mut self, happened: &str) -> SimVolume {
        open(&self.disk, self.geometry, &mut self.rng)
            .unwrap_or_else(|error| panic!("{happened}: {error}"))
    }
}

#[test]
fn a_crash_at_every_operation_loses_no_flushed_write() {
    for seed in seeds(1) {
        let mut whole = Run::new(seed, 0);
        whole.until_crash(None, 14);
        for crash_at in 0..whole.disk.operations() {
            let mut run = Run::new(seed, crash_at);
            let oracle = run.until_crash(Some(crash_at), 14);
            run.check(&oracle, false);
        }
    }
}

#[test]
fn a_crash_and_any_m_damaged_stores_lose_no_flushed_write() {
    for seed in seeds(100) {
        let seed = seed + 1000;
        let mut whole = Run::new(seed, 0);
        whole.until_crash(None, 30);
        let crash_at = Rng::new(!seed).below(whole.disk.operations());
        let mut run = Run::new(seed, crash_at);
        let oracle = run.until_crash(Some(crash_at), 30);
        run.check(&oracle, true);
    }
}

#[test]
fn stores_that_fail_while_the_volume_runs_cost_redundancy_and_no_data() {
    for seed in seeds(10) {
        let mut rng = Rng::new(seed + 5000);
        let geometry = geometry(3, 2, 40);
        let disk = SimDisk::new(5);
        let mut volume = open(&disk, geometry, &mut rng).unwrap();
        let mut oracle = Oracle::new(vec![0; usize::try_from(geometry.size_bytes()).unwrap()]);
        assert!(work(&disk, &mut volume, &mut oracle, &mut rng, 10), "seed {seed}");
        let failing = choose(&mut rng, 5, 2);
        disk.break_stores(failing.iter().fold(0, |mask, store| mask | 1 << store));
        assert!(work(&disk, &mut volume, &mut oracle, &mut rng, 20), "seed {seed}");
        flush(&mut volume).unwrap();
        oracle.flush();
        repair(&mut volume);
        assert!(read_all(&mut volume).unwrap() == oracle.newest(), "seed {seed}");
        let status = volume.status();
        assert_eq!(status.redundancy, Some(0), "seed {seed}: {status:?}");
        drop(volume);
        // They come back with what they had: they missed writes and are not believed.
        disk.crash(&mut rng);
        disk.break_stores(0);
        let mut volume = open(&disk, geometry, &mut rng).unwrap();
        assert!(read_all(&mut volume).unwrap() == oracle.newest(), "seed {seed}");
        repair(&mut volume);
        assert_eq!(volume.status().redundancy, Some(2), "seed {seed}");
        assert!(read_all(&mut volume).unwrap() == oracle.newest(), "seed {seed}");
        // One more than m: the volume stops and says so, and never returns wrong bytes.
        disk.break_stores(0b111);
        let written = write(&mut volume, 0, &[1; BLOCK_BYTES]);
        assert!(written.is_err() || flush(&mut volume).is_err(), "seed {seed}");
        assert!(volume.is_stopped(), "seed {seed}");
        assert!(read_all(&mut volume).is_err(), "seed {seed}");
    }
}

#[test]
fn a_volume_whose_creation_crashed_is_made_again() {
    let geometry = geometry(2, 1, 12);
    let mut crash_at = 0;
    loop {
        let mut rng = Rng::new(crash_at);
        let disk = SimDisk::new(3);
        disk.crash_at(Some(crash_at));
        let options = crate::harness::options(geometry);
        let whole = Volume::open_or_create(disk.stores(), &options, &random(&mut rng)).is_ok();
        disk.crash(&mut rng);
        let mut volume = open(&disk, geometry, &mut rng)
            .unwrap_or_else(|error| panic!("crash at operation {crash_at}: {error}"));
        assert!(read_all(&mut volume).unwrap().iter().all(|byte| *byte == 0));
        if whole {
            return;
        }
        crash_at += 1;
    }
}

#[test]
fn a_crash_during_repair_leaves_no_header_without_its_unit() {
    for seed in seeds(4) {
        let mut crash_at = 0;
        loop {
            let mut rng = Rng::new(seed + 9000);
            let geometry = geometry(2, 1, 48);
            let disk = SimDisk::new(3);
            let mut volume = open(&disk, geometry, &mut rng).unwrap();
            let mut oracle = Oracle::new(vec![0; usize::try_from(geometry.size_bytes()).unwrap()]);
            work(&disk, &mut volume, &mut oracle, &mut rng, 12);
            volume.close().unwrap();
            oracle.flush();
            let lost = choose(&mut rng, 3, 1)[0];
            disk.set_image(lost, Image::default());
            let mut volume = open(&disk, geometry, &mut rng).unwrap();
            disk.crash_at(Some(disk.operations() + crash_at));
            repair(&mut volume);
            let whole = volume.status().redundancy == Some(1);
            disk.crash(&mut Rng::new(seed ^ crash_at));
            let mut volume = open(&disk, geometry, &mut rng).unwrap();
            let context = format!("seed {seed}, crash at operation {crash_at} of repair");
            assert!(read_all(&mut volume).unwrap() == oracle.newest(), "{context}");
            repair(&mut volume);
            assert_eq!(volume.status().redundancy, Some(1), "{context}");
            // Repair believed the headers that the crash left: were their units there?
            volume.start_scrub();
            while volume.repair_step() == Step::More {
                assert!(!volume.needs_repair(), "{context}: a header without its unit");
            }
            if whole {
                break;
            }
            crash_at += 1;
        }
    }
}

/// Single blocks all over a volume of many stripes: writes come between the steps of checkpoints.
#[test]
fn a_crash_between_the_steps_of_a_checkpoint_loses_no_flushed_write() {
    for seed in seeds(60) {
        let mut crash_at = None;
        for pass in 0..2 {
            let mut rng = Rng::new(seed + 20_000);
            let geometry = geometry(1, 1, 400).with_journal_bytes(320 << 10).unwrap();
            let disk = SimDisk::new(2);
            let mut volume = open(&disk, geometry, &mut rng).unwrap();
            let mut oracle = Oracle::new(vec![0; 400 * BLOCK_BYTES]);
            disk.crash_at(crash_at);
            disk.start_trace();
            for _ in 0..120 {
                let (offset, data) = (rng.below(400) * 4096, vec![rng.below(256) as u8; 4096]);
                let change = Change::Write { offset, data };
                oracle.issue(change.clone());
                let done = change.submit(&mut volume);
                if done.is_err() || volume.is_stopped() {
                    break;
                }
                if rng.below(5) == 0 && flush(&mut volume).is_ok() && !disk.has_crashed() {
                    oracle.flush();
                }
            }
            if pass == 0 {
                // Near a commit: behind the write of some superblock.
                let commits = disk
                    .trace()
                    .into_iter()
                    .filter(|written| written.file == StoreFile::Shard && written.offset < 8192);
                let commits: Vec<u64> = commits.map(|written| written.operation).collect();
                let mut rng = Rng::new(!seed);
                crash_at = Some(commits[rng.below(commits.len() as u64) as usize] + rng.below(6));
                continue;
            }
            disk.crash(&mut Rng::new(seed));
            let mut volume = open(&disk, geometry, &mut rng).unwrap();
            let state = read_all(&mut volume).unwrap();
            assert!(oracle.allows(&state), "seed {seed}, crash at operation {crash_at:?}");
        }
    }
}

/// What is only in the journal has its m + 1 copies again as soon as the volume is open.
#[test]
fn opening_completes_the_journal_copies() {
    for lost in 0..2 {
        let mut rng = Rng::new(77);
        let geometry = geometry(1, 1, 16);
        let disk = SimDisk::new(2);
        let mut volume = open(&disk, geometry, &mut rng).unwrap();
        write(&mut volume, 4096, &[8; 8192]).unwrap();
        flush(&mut volume).unwrap();
        drop(volume);
        disk.set_image(lost, Image::default());
        let volume = open(&disk, geometry, &mut rng).unwrap();
        assert_eq!(volume.status().redundancy, Some(1));
        drop(volume);
        disk.crash(&mut rng);
        disk.set_image(1 - lost, Image::default());
        let mut volume = open(&disk, geometry, &mut rng).unwrap();
        assert_eq!(read(&mut volume, 4096, 8192), Ok(vec![8; 8192]));
    }
}

/// One crash at each operation of a checkpoint, then one at each operation of the opening.
#[test]
fn a_crash_in_a_checkpoint_and_one_while_opening_lose_nothing() {
    let geometry = geometry(2, 1, 12);
    for modes in seeds(2) {
        let (mut first, mut last) = (0, u64::MAX);
        while first < last {
            for second in 0..24 {
                let mut rng = Rng::new(5);
                let disk = SimDisk::new(3);
                let mut volume = open(&disk, geometry, &mut rng).unwrap();
                write(&mut volume, 0, &[1; 8 * 4096]).unwrap();
                flush(&mut volume).unwrap();
                let start = disk.operations();
                disk.crash_at(Some(start + first));
                repair(&mut volume);
                if !disk.has_crashed() {
                    last = first;
                }
                let context = format!("modes {modes}, crashes at operations {first} and {second}");
                disk.crash(&mut Rng::new(modes * 1000 + first));
                disk.crash_at(Some(disk.operations() + second));
                drop(open(&disk, geometry, &mut rng));
                disk.crash(&mut Rng::new(modes * 1000 + second));
                let mut volume = open(&disk, geometry, &mut rng)
                    .unwrap_or_else(|error| panic!("{context}: {error}"));
                assert!(read(&mut volume, 0, 8 * 4096) == Ok(vec![1; 8 * 4096]), "{context}");
            }
            first += 1;
        }
    }
}
