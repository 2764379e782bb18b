//! Who else works on the volume: a writer, a cleaner, a newer opening, a liar with a superblock.

use storage_node::heal::{Healer, Policy, Verdict};
use storage_vdev::node::Request;

use crate::world::{EPOCH, LEASE_NS, Sketch, VERSION, World};

#[test]
fn what_is_not_known_to_be_committed_is_the_writers() {
    let mut world = World::new((4, 2), 9, 0);
    world.write_superblock(&Sketch { version: VERSION + 1, ..Sketch::new(6) });
    for sequence in 1..=9 {
        world.lose(sequence, 2);
    }
    let report = world.heal(Policy::default());
    assert_eq!((report.count(Verdict::Repaired), report.uncommitted), (6, 3));
    assert!(world.stores.stored.iter().all(|(_, key)| key.sequence <= 6));
}

#[test]
fn segments_that_are_to_be_deleted_are_not_brought_back() {
    let mut world = World::new((4, 2), 5, 0);
    let deletes = vec![(2, EPOCH), (4, EPOCH)];
    world.write_superblock(&Sketch { version: VERSION + 1, deletes, ..Sketch::new(5) });
    for sequence in 1..=5 {
        world.lose(sequence, 2);
    }
    let report = world.heal(Policy::default());
    assert_eq!(report.count(Verdict::Repaired), 3);
    assert!(world.stores.stored.iter().all(|(_, key)| ![2, 4].contains(&key.sequence)));
}

#[test]
fn segments_of_openings_that_lost_are_not_brought_back() {
    let mut world = World::new((4, 2), 5, 0);
    // Epoch 2 wrote 4 and 5 as well, before epoch 3 took the volume over at 4.
    world.write_segment(4, 2);
    world.write_segment(5, 2);
    let openings = vec![(1, EPOCH)];
    world.write_superblock(&Sketch { version: VERSION + 1, openings, ..Sketch::new(5) });
    let stale = world.stores.objects[0].keys().filter(|key| key.epoch == 2).count();
    assert!(stale > 0);
    for objects in world.stores.objects.iter_mut().take(2) {
        objects.retain(|key, _| key.epoch != 2);
    }
    let report = world.heal(Policy::default());
    assert_eq!(report.count(Verdict::Whole), 5);
    assert!(world.stores.stored.is_empty());
}

#[test]
fn what_was_sealed_and_never_committed_is_not_brought_back() {
    let mut world = World::new((4, 2), 3, 0);
    // 4 and 5 were given up when a node failed; 6 took their place.
    world.write_segment(4, EPOCH);
    world.write_segment(5, EPOCH);
    world.link_to(3);
    world.write_segment(6, EPOCH);
    world.write_segment(7, EPOCH);
    world.write_superblock(&Sketch { version: VERSION + 1, ..Sketch::new(7) });
    for sequence in [4, 5] {
        (0..3).for_each(|shard| world.lose(sequence, shard));
    }
    for sequence in [3, 6, 7] {
        world.lose(sequence, 1);
    }
    let report = world.heal(Policy::default());
    assert_eq!((report.count(Verdict::Void), report.count(Verdict::Repaired)), (2, 3));
    assert_eq!(report.count(Verdict::Lost), 0);
    assert!(world.stores.stored.iter().all(|(_, key)| ![4, 5].contains(&key.sequence)));
}

/// A cleaner announces that it will delete a segment while the pass reads it, and deletes it a
/// lease later. What the pass has rebuilt by then must not come after the delete.
#[test]
fn a_segment_that_is_deleted_meanwhile_does_not_come_back() {
    for announced_at in 1..60 {
        let mut world = World::new((4, 2), 5, 0);
        world.lose(2, 0);
        world.lose(4, 0);
        // Time passes so quickly that lists are old when the shards have come.
        world.tick_ns = LEASE_NS / 16;
        let superblock =
            Sketch { version: VERSION + 1, deletes: vec![(4, EPOCH)], ..Sketch::new(5) };
        let (key, bytes) = (superblock.key(), superblock.encode(world.shape, 0));
        let mut requests = 0;
        let mut delete_ns = u64::MAX;
        let mut deleted = false;
        world.hook = Some(Box::new(move |stores, _, request| {
            requests += 1;
            if requests == announced_at {
                stores.objects.iter_mut().for_each(|objects| {
                    objects.insert(key, bytes.clone());
                });
                delete_ns = stores.clock.get() + LEASE_NS;
            }
            if stores.clock.get() >= delete_ns {
                deleted = true;
                for objects in &mut stores.objects {
                    objects.retain(|key, _| key.sequence != 4);
                }
            }
            let Request::Restore { key, .. } = request else { return };
            assert!(!deleted || key.sequence != 4, "announced at request {announced_at}");
        }));
        let report = world.heal(Policy { parallel: 1, ..Policy::default() });
        assert!(world.is_back(2, 0) || report.count(Verdict::Repaired) == 0);
        let well = [Verdict::Whole, Verdict::Repaired, Verdict::Skipped, Verdict::Lost];
        let judged: u64 = well.iter().map(|verdict| report.count(*verdict)).sum();
        assert!(judged >= 4, "{announced_at}: {report:?}");
    }
}

#[test]
fn a_pass_that_is_fenced_off_stops() {
    let mut world = World::new((4, 2), 8, 0);
    (1..=8).for_each(|sequence| world.lose(sequence, 0));
    let mut restores = 0;
    world.hook = Some(Box::new(move |stores, _, request| {
        restores += usize::from(matches!(request, Request::Restore { .. }));
        if restores == 3 {
            stores.fence = EPOCH + 1;
        }
    }));
    let report = world.heal(Policy { parallel: 1, ..Policy::default() });
    assert!(report.fenced_off);
    assert_eq!((report.count(Verdict::Repaired), report.count(Verdict::Skipped)), (2, 6));
    assert_eq!(world.stores.stored.len(), 2);
}

#[test]
fn a_superblock_that_one_node_made_up_is_not_believed() {
    let mut world = World::new((4, 2), 5, 0);
    let forged = Sketch { version: VERSION + 9, deletes: vec![(1, EPOCH)], ..Sketch::new(3) };
    for node in 0..2 {
        let bytes = forged.encode(world.shape, 0);
        world.stores.objects[node].insert(forged.key(), bytes);
    }
    (1..=5).for_each(|sequence| world.lose(sequence, 0));
    let report = world.heal(Policy::default());
    assert_eq!(report.superblock, Some((EPOCH, VERSION)));
    assert_eq!(report.count(Verdict::Repaired), 5);
}

#[test]
fn without_a_superblock_nothing_is_touched() {
    let mut world = World::new((4, 2), 5, 0);
    let key = Sketch::new(5).key();
    world.stores.objects.iter_mut().for_each(|objects| drop(objects.remove(&key)));
    world.lose(3, 0);
    let report = world.heal(Policy::default());
    assert_eq!(report.superblock, None);
    assert!(report.verdicts.is_empty() && world.stores.stored.is_empty());
}

#[test]
fn a_volume_that_was_rolled_back_is_not_touched() {
    let mut world = World::new((4, 2), 5, 0);
    world.lose(3, 0);
    let mut manifest = world.manifest();
    manifest.superblock = (EPOCH, VERSION + 1);
    let mut healer = Healer::new(manifest, Policy::default(), world.stores.clock.get());
    let report = world.run(&mut healer);
    assert_eq!(report.superblock, None);
    assert!(world.stores.stored.is_empty());
}

#[test]
fn the_pass_remembers_the_newest_superblock() {
    let mut world = World::new((4, 2), 5, 0);
    let mut healer = Healer::new(world.manifest(), Policy::default(), world.stores.clock.get());
    assert!(!healer.progress(0).surveyed);
    world.run(&mut healer);
    assert_eq!(healer.manifest().superblock, (EPOCH, VERSION));
    let progress = healer.progress(world.stores.clock.get());
    assert!(progress.surveyed && progress.segments == 5 && progress.segments_done == 5);
    assert_eq!(progress.eta_ns, Some(0));
}
