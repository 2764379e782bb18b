//! Clones: they begin as a snapshot, and neither volume sees what the other does.

use storage_vdev::VolumeKey;
use storage_vdev::engine::{CloneOf, Command, OpenError, OpenOptions};

use crate::harness::{BLOCK, Bench, UUID, create, open, options, try_open};
use crate::nodes::{Rng, Shared, world};
use crate::space::{command, fill, snapshot};

const BLOCKS: usize = 128;

/// How clone number `nth` is opened; its base is `of`, if it is made.
fn clone_options(nth: u8, of: Option<CloneOf>) -> OpenOptions {
    let create = of.is_some().then(|| create(2, 1, BLOCKS));
    OpenOptions { uuid: [nth; 16], key: VolumeKey::new(&[nth; 32]), base: of, ..options(3, create) }
}

fn base(name: &str) -> CloneOf {
    CloneOf { uuid: UUID, key: VolumeKey::new(&[0x42; 32]), snapshot: name.to_owned() }
}

/// A snapshot that a clone may stand on.
fn pinned(bench: &mut Bench, world: &Shared, name: &str) {
    snapshot(bench, world, name);
    let order = Command::PinSnapshot { name: name.to_owned(), has_clone: true };
    command(bench, world, order).unwrap();
}

fn objects_of(world: &Shared, uuid: [u8; 16]) -> usize {
    let world = world.borrow();
    let keys = world.nodes.iter().flat_map(|node| node.objects.keys());
    keys.filter(|key| key.volume == uuid && key.shard < 32).count()
}

fn collect(bench: &mut Bench, world: &Shared) {
    command(bench, world, Command::Collect).unwrap();
    bench.idle(2_000_000_000);
}

#[test]
fn a_clone_and_its_base_go_their_own_ways() {
    let world = world(3, 1);
    let mut rng = Rng(1);
    let mut first = open(&world, options(3, Some(create(2, 1, BLOCKS))));
    let mut model = vec![0; BLOCKS * BLOCK];
    fill(&mut first, &world, &mut rng, &mut model, 80);
    pinned(&mut first, &world, "start");
    let mut second = open(&world, clone_options(8, Some(base("start"))));
    let mut copy = model.clone();
    for round in 0..6 {
        assert!(second.read_all(&world).unwrap().unwrap() == copy, "round {round}");
        assert!(first.read_all(&world).unwrap().unwrap() == model, "round {round}");
        fill(&mut first, &world, &mut rng, &mut model, 30);
        fill(&mut second, &world, &mut rng, &mut copy, 20);
        collect(&mut first, &world);
        collect(&mut second, &world);
        second.flush(&world).unwrap().unwrap();
        // The clone's process dies, and another opens it without being told what it stands on.
        second = open(&world, clone_options(8, None));
    }
    assert!(second.read_all(&world).unwrap().unwrap() == copy);
    // An empty clone leaves the base's objects alone.
    let before = objects_of(&world, UUID);
    second.zero(&world, 0, BLOCKS * BLOCK).unwrap().unwrap();
    collect(&mut second, &world);
    assert_eq!(objects_of(&world, UUID), before);
    assert!(objects_of(&world, [8; 16]) <= 3 * 3);
    assert!(first.read_all(&world).unwrap().unwrap() == model);
    let delete = Command::DeleteSnapshot { name: "start".to_owned() };
    assert!(command(&mut first, &world, delete).is_err(), "a clone stands on it");
}

#[test]
fn a_clone_of_a_clone_reads_from_all_of_them() {
    let world = world(3, 2);
    let mut rng = Rng(2);
    let mut bench = open(&world, options(3, Some(create(2, 1, BLOCKS))));
    let mut model = vec![0; BLOCKS * BLOCK];
    fill(&mut bench, &world, &mut rng, &mut model, 40);
    pinned(&mut bench, &world, "a");
    let mut of = base("a");
    for nth in 20..23 {
        bench = open(&world, clone_options(nth, Some(of)));
        fill(&mut bench, &world, &mut rng, &mut model, 4);
        pinned(&mut bench, &world, "next");
        let (uuid, key) = ([nth; 16], VolumeKey::new(&[nth; 32]));
        of = CloneOf { uuid, key, snapshot: "next".to_owned() };
        assert!(bench.read_all(&world).unwrap().unwrap() == model, "clone {nth}");
    }
    drop(bench);
    let mut bench = open(&world, clone_options(22, None));
    assert!(bench.read_all(&world).unwrap().unwrap() == model);
    assert_eq!(bench.volume.status().segments_degraded, 0);
}

#[test]
fn a_clone_of_what_is_not_there_or_not_marked_is_refused() {
    let world = world(3, 3);
    let mut bench = open(&world, options(3, Some(create(2, 1, BLOCKS))));
    snapshot(&mut bench, &world, "unmarked");
    pinned(&mut bench, &world, "marked");
    drop(bench);
    let refused = |options: OpenOptions| match try_open(&world, options, 0) {
        Some(Err(error)) => error,
        _ => panic!("it was made"),
    };
    for name in ["unmarked", "missing"] {
        let error = refused(clone_options(8, Some(base(name))));
        assert_eq!(error, OpenError::NoSnapshot(name.to_owned()));
    }
    let wrong = CloneOf { key: VolumeKey::new(&[1; 32]), ..base("marked") };
    assert_eq!(refused(clone_options(8, Some(wrong))), OpenError::WrongKey);
    let nobody = CloneOf { uuid: [99; 16], ..base("marked") };
    assert_eq!(refused(clone_options(8, Some(nobody))), OpenError::NotFound);
    for other in [create(1, 1, BLOCKS), create(2, 1, BLOCKS - 1)] {
        let options = OpenOptions { create: Some(other), ..clone_options(8, Some(base("marked"))) };
        assert!(matches!(refused(options), OpenError::Shape { .. }));
    }
    let larger = OpenOptions {
        create: Some(create(2, 1, 3 * BLOCKS)),
        ..clone_options(8, Some(base("marked")))
    };
    let mut bench = open(&world, larger);
    assert_eq!(bench.volume.size_bytes(), (3 * BLOCKS * BLOCK) as u64);
    assert!(bench.read_all(&world).unwrap().unwrap() == vec![0; 3 * BLOCKS * BLOCK]);
}
