//! Garbage collection, snapshots, roll-back and growth: what is needed is never deleted, and what
//! isn't is.

use std::collections::BTreeMap;

use storage_vdev::engine::{Command, Output, RequestError, SnapshotInfo, Volume};

use crate::harness::{BLOCK, Bench, create, open, options, try_open};
use crate::nodes::{MemoryNodes, Mood, Rng, Shared, world};

const BLOCKS: usize = 256;

pub(crate) fn command(
    bench: &mut Bench,
    world: &Shared,
    command: Command,
) -> Result<Output, RequestError> {
    let submit = |volume: &mut Volume<MemoryNodes>, id| volume.submit_command(id, command);
    bench.run(world, submit).expect("no crash").0
}

pub(crate) fn snapshot(bench: &mut Bench, world: &Shared, name: &str) {
    let name = name.to_owned();
    command(bench, world, Command::Snapshot { name, unix_time: 5 }).unwrap();
}

/// Segments that have an object on some node.
fn segments(world: &Shared) -> usize {
    let world = world.borrow();
    let keys = world.nodes.iter().flat_map(|node| node.objects.keys());
    let shards = keys.filter(|key| key.shard != storage_vdev::node::SUPERBLOCK_SHARD);
    shards.map(|key| key.sequence).collect::<std::collections::BTreeSet<u64>>().len()
}

pub(crate) fn bytes(world: &Shared) -> usize {
    let world = world.borrow();
    world.nodes.iter().flat_map(|node| node.objects.values()).map(bytes::Bytes::len).sum()
}

pub(crate) fn fill(
    bench: &mut Bench,
    world: &Shared,
    rng: &mut Rng,
    model: &mut [u8],
    count: usize,
) {
    for _ in 0..count {
        let first = rng.below((model.len() / BLOCK - 8) as u64) as usize;
        let len = (1 + rng.below(8) as usize) * BLOCK;
        let range = first * BLOCK..first * BLOCK + len;
        rng.fill(&mut model[range.clone()]);
        bench.write(world, range.start, &model[range]).unwrap().unwrap();
    }
}

#[test]
fn a_trim_of_everything_empties_the_nodes() {
    let world = world(3, 1);
    let mut bench = open(&world, options(3, Some(create(2, 1, BLOCKS))));
    let mut model = vec![0; BLOCKS * BLOCK];
    fill(&mut bench, &world, &mut Rng(2), &mut model, 200);
    bench.flush(&world).unwrap().unwrap();
    bench.zero(&world, 0, BLOCKS * BLOCK).unwrap().unwrap();
    bench.flush(&world).unwrap().unwrap();
    command(&mut bench, &world, Command::Checkpoint).unwrap();
    command(&mut bench, &world, Command::Collect).unwrap();
    bench.idle(3_000_000_000);
    assert!(segments(&world) <= 3, "{} segments are left", segments(&world));
    assert_eq!(bench.read_all(&world).unwrap().unwrap(), vec![0; BLOCKS * BLOCK]);
    assert!(bench.volume.status().live_bytes <= 4 * BLOCK as u64);
}

#[test]
fn a_volume_that_is_overwritten_for_ever_keeps_to_its_size() {
    for seed in 0..4 {
        let world = world(3, seed);
        let mut bench = open(&world, options(3, Some(create(2, 1, BLOCKS))));
        let mut rng = Rng(seed);
        let mut model = vec![0; BLOCKS * BLOCK];
        let mut most = 0;
        for _ in 0..60 {
            fill(&mut bench, &world, &mut rng, &mut model, 30);
            most = most.max(bytes(&world));
            bench.idle(1_100_000_000);
        }
        assert!(bench.read_all(&world).unwrap().unwrap() == model, "seed {seed}");
        let raw = BLOCKS * BLOCK * 3 / 2;
        assert!(most < 4 * raw, "seed {seed}: {most} bytes for {raw}");
        let status = bench.volume.status();
        assert!(status.counters.moved_blocks > 0, "seed {seed}: blocks were moved");
        bench.close(&world).unwrap().unwrap();
        let mut bench = open(&world, options(3, None));
        assert!(bench.read_all(&world).unwrap().unwrap() == model, "seed {seed}");
    }
}

#[test]
fn garbage_collection_mends_degraded_segments() {
    let world = world(4, 3);
    let mut bench = open(&world, options(4, Some(create(2, 2, BLOCKS))));
    let mut model = vec![0; BLOCKS * BLOCK];
    world.borrow_mut().moods[3] = Mood::Gone;
    let mut rng = Rng(4);
    fill(&mut bench, &world, &mut rng, &mut model, 60);
    bench.flush(&world).unwrap().unwrap();
    for block in (0..BLOCKS).filter(|block| block % 4 != 0) {
        model[block * BLOCK..(block + 1) * BLOCK].fill(0);
        bench.zero(&world, block * BLOCK, BLOCK).unwrap().unwrap();
    }
    world.borrow_mut().moods[3] = Mood::Fine;
    bench.idle(3_000_000_000);
    command(&mut bench, &world, Command::Collect).unwrap();
    bench.idle(3_000_000_000);
    assert_eq!(bench.volume.status().segments_degraded, 0);
    assert!(bench.read_all(&world).unwrap().unwrap() == model);
}

#[test]
fn a_node_that_was_away_forgets_what_was_deleted_meanwhile() {
    let world = world(3, 9);
    let mut bench = open(&world, options(3, Some(create(2, 1, BLOCKS))));
    let mut model = vec![0; BLOCKS * BLOCK];
    fill(&mut bench, &world, &mut Rng(2), &mut model, 100);
    bench.flush(&world).unwrap().unwrap();
    world.borrow_mut().moods[1] = Mood::Gone;
    bench.zero(&world, 0, BLOCKS * BLOCK).unwrap().unwrap();
    command(&mut bench, &world, Command::Collect).unwrap();
    bench.idle(2_000_000_000);
    let left = world.borrow().nodes[1].objects.len();
    assert!(left > 20, "{left}");
    // It is not forgotten over a crash, either.
    drop(bench);
    let mut bench = open(&world, options(3, None));
    world.borrow_mut().moods[1] = Mood::Fine;
    bench.idle(5_000_000_000);
    let left = world.borrow().nodes[1].objects.len();
    assert!(left <= 8, "{left} objects are left");
}

#[test]
fn snapshots_are_listed_and_their_names_checked() {
    let world = world(3, 1);
    let mut bench = open(&world, options(3, Some(create(2, 1, 64))));
    snapshot(&mut bench, &world, "one");
    snapshot(&mut bench, &world, "two");
    let listed = command(&mut bench, &world, Command::ListSnapshots).unwrap();
    let info = |name: &str| SnapshotInfo {
        name: name.to_owned(),
        size_bytes: 64 * BLOCK as u64,
        unix_time: 5,
        has_clone: false,
    };
    assert_eq!(listed, Output::Snapshots(vec![info("one"), info("two")]));
    let mut refused = |name: &str| {
        let name = name.to_owned();
        command(&mut bench, &world, Command::Snapshot { name, unix_time: 0 }).unwrap_err()
    };
    assert_eq!(refused("one"), RequestError::SnapshotExists("one".to_owned()));
    for name in ["", "a/b", "a\n", "x@y", &"n".repeat(65)] {
        assert!(matches!(refused(name), RequestError::Refused(_)), "{name:?}");
    }
    let missing = || RequestError::NoSnapshot("none".to_owned());
    let name = || "none".to_owned();
    for order in [
        Command::DeleteSnapshot { name: name() },
        Command::Rollback { name: name() },
        Command::PinSnapshot { name: name(), has_clone: true },
    ] {
        assert_eq!(command(&mut bench, &world, order), Err(missing()));
    }
    let pin = |has_clone| Command::PinSnapshot { name: "one".to_owned(), has_clone };
    command(&mut bench, &world, pin(true)).unwrap();
    let delete = || Command::DeleteSnapshot { name: "one".to_owned() };
    let in_use = Err(RequestError::SnapshotInUse("one".to_owned()));
    assert_eq!(command(&mut bench, &world, delete()), in_use);
    command(&mut bench, &world, pin(false)).unwrap();
    command(&mut bench, &world, delete()).unwrap();
}

#[test]
fn a_deleted_snapshot_gives_its_room_back() {
    let world = world(3, 1);
    let mut bench = open(&world, options(3, Some(create(2, 1, BLOCKS))));
    let mut model = vec![0; BLOCKS * BLOCK];
    fill(&mut bench, &world, &mut Rng(2), &mut model, 150);
    snapshot(&mut bench, &world, "old");
    bench.zero(&world, 0, BLOCKS * BLOCK).unwrap().unwrap();
    command(&mut bench, &world, Command::Collect).unwrap();
    bench.idle(3_000_000_000);
    let held = bytes(&world);
    assert!(held > BLOCKS * BLOCK / 2, "the snapshot holds its blocks");
    command(&mut bench, &world, Command::DeleteSnapshot { name: "old".to_owned() }).unwrap();
    bench.idle(3_000_000_000);
    assert!(bytes(&world) < held / 10, "{} of {held}", bytes(&world));
    assert!(segments(&world) <= 3);
}

#[test]
fn a_volume_grows_online_and_after_a_crash_has_its_new_size() {
    let world = world(3, 1);
    let mut bench = open(&world, options(3, Some(create(2, 1, 64))));
    let grow = |blocks: usize| Command::Grow { size_bytes: (blocks * BLOCK) as u64 };
    assert!(command(&mut bench, &world, grow(63)).is_err());
    assert!(command(&mut bench, &world, Command::Grow { size_bytes: (1 << 40) + 1 }).is_err());
    command(&mut bench, &world, grow(100_000)).unwrap();
    let data = vec![7; 2 * BLOCK];
    bench.write(&world, 99_998 * BLOCK, &data).unwrap().unwrap();
    bench.flush(&world).unwrap().unwrap();
    drop(bench);
    let mut bench = open(&world, options(3, None));
    assert_eq!(bench.volume.size_bytes(), (100_000 * BLOCK) as u64);
    assert!(bench.read(&world, 99_998 * BLOCK, 2 * BLOCK).unwrap().unwrap() == data);
}

/// Random writes, trims, snapshots, deletions of snapshots, roll-backs, collections, crashes.
struct History {
    world: Shared,
    bench: Bench,
    rng: Rng,
    model: Vec<u8>,
    kept: BTreeMap<String, Vec<u8>>,
    names: u64,
}

impl History {
    fn step(&mut self) {
        let Self { world, bench, rng, model, kept, names } = self;
        match rng.below(20) {
            0..9 => {
                let count = 1 + rng.below(12) as usize;
                fill(bench, world, rng, model, count);
            }
            9..12 => {
                let first = rng.below(BLOCKS as u64) as usize;
                let count = 1 + rng.below((BLOCKS - first) as u64) as usize;
                let range = first * BLOCK..(first + count) * BLOCK;
                model[range.clone()].fill(0);
                bench.zero(world, range.start, range.len()).unwrap().unwrap();
            }
            12 | 13 => {
                if kept.len() < 3 {
                    *names += 1;
                    let name = format!("s{names}");
                    snapshot(bench, world, &name);
                    kept.insert(name, model.clone());
                }
            }
            14 => {
                let nth = rng.below(kept.len() as u64 + 1) as usize;
                if let Some(name) = kept.keys().nth(nth).cloned() {
                    kept.remove(&name);
                    command(bench, world, Command::DeleteSnapshot { name }).unwrap();
                }
            }
            15 => {
                let nth = rng.below(kept.len() as u64 + 1) as usize;
                if let Some((name, content)) = kept.iter().nth(nth) {
                    model.clone_from(content);
                    let name = name.clone();
                    command(bench, world, Command::Rollback { name }).unwrap();
                }
            }
            16 | 17 => {
                command(bench, world, Command::Collect).unwrap();
            }
            18 => bench.idle(2_500_000_000),
            _ => {
                bench.flush(world).unwrap().unwrap();
                *bench = match try_open(world, options(3, None), bench.now_ns) {
                    Some(Ok(bench)) => bench,
                    Some(Err(error)) => panic!("{error}"),
                    None => panic!("crashed"),
                };
            }
        }
    }

    /// Rolls back to each snapshot in turn: that is how a snapshot is read.
    fn check_snapshots(&mut self) {
        for (name, content) in self.kept.clone() {
            let order = Command::Rollback { name: name.clone() };
            command(&mut self.bench, &self.world, order).unwrap();
            let read = self.bench.read_all(&self.world).unwrap().unwrap();
            assert!(read == content, "snapshot {name}");
        }
    }
}

#[test]
fn snapshots_and_the_volume_read_what_they_must_whatever_is_collected() {
    for seed in 0..25 {
        let print = Seed(seed);
        let world = world(3, seed);
        let bench = open(&world, options(3, Some(create(2, 1, BLOCKS))));
        let model = vec![0; BLOCKS * BLOCK];
        let rng = Rng(seed ^ 0x5bace);
        let mut history = History { world, bench, rng, model, kept: BTreeMap::new(), names: 0 };
        for _ in 0..60 {
            history.step();
            if history.rng.below(4) == 0 {
                let read = history.bench.read_all(&history.world).unwrap().unwrap();
                assert!(read == history.model);
            }
        }
        history.check_snapshots();
        drop(print);
    }
}

/// Says which seed it was if the test fails.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("seed {}", self.0);
        }
    }
}

/// Everything crashes at some request while garbage is collected and snapshots come and go; what
/// was flushed before is there, and each snapshot is whole or was never made.
#[test]
fn a_crash_in_the_middle_of_freeing_loses_nothing() {
    for seed in 0..40 {
        let print = Seed(seed);
        let world = world(3, seed);
        let mut rng = Rng(seed ^ 0xc4a5);
        let mut bench = open(&world, options(3, Some(create(2, 1, BLOCKS))));
        let mut model = vec![0; BLOCKS * BLOCK];
        fill(&mut bench, &world, &mut rng, &mut model, 40);
        snapshot(&mut bench, &world, "old");
        let old = model.clone();
        fill(&mut bench, &world, &mut rng, &mut model, 60);
        bench.flush(&world).unwrap().unwrap();
        let at = world.borrow().operations + rng.below(400);
        world.borrow_mut().crash_at = Some(at);
        let orders = [
            Command::Collect,
            Command::Snapshot { name: "new".to_owned(), unix_time: 1 },
            Command::Collect,
            Command::DeleteSnapshot { name: "old".to_owned() },
            Command::Collect,
        ];
        for order in orders {
            let submit = |volume: &mut Volume<MemoryNodes>, id| volume.submit_command(id, order);
            if bench.run(&world, submit).is_none() {
                break;
            }
        }
        world.borrow_mut().crash_at = None;
        let mut bench = match try_open(&world, options(3, None), bench.now_ns) {
            Some(Ok(bench)) => bench,
            Some(Err(error)) => panic!("{error}"),
            None => panic!("crashed"),
        };
        assert!(bench.read_all(&world).unwrap().unwrap() == model);
        command(&mut bench, &world, Command::Collect).unwrap();
        bench.idle(2_000_000_000);
        assert!(bench.read_all(&world).unwrap().unwrap() == model);
        for (name, content) in [("new", &model), ("old", &old)] {
            let order = Command::Rollback { name: name.to_owned() };
            if command(&mut bench, &world, order).is_ok() {
                assert!(bench.read_all(&world).unwrap().unwrap() == *content, "{name}");
            }
        }
        drop(print);
    }
}
