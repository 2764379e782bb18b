//! Lost, damaged, rolled back and forged stores: any m cost nothing, m + 1 give an error.

use storage_vdev::sim::{Image, Rng, SimDisk};
use storage_vdev::{Geometry, OpenError, Reason, RequestError, StoreFile, Volume, VolumeKey};

use crate::harness::{
    Change, choose, damage, flush, geometry, open, options, random, read, read_all, repair, seeds,
    write, zero,
};

/// A 4+2 volume with content in stripes and in the journal, and the copies that a host took of its
/// stores some flushed writes ago.
struct Filled {
    geometry: Geometry,
    disk: SimDisk,
    content: Vec<u8>,
    older: Vec<Image>,
}

fn filled(rng: &mut Rng) -> Filled {
    let geometry = geometry(4, 2, 64);
    let disk = SimDisk::new(6);
    let mut content = vec![0; usize::try_from(geometry.size_bytes()).unwrap()];
    let mut volume = open(&disk, geometry, rng).unwrap();
    let mut older = Vec::new();
    for round in 0..3 {
        for _ in 0..8 {
            let change = Change::random(rng, geometry.size_bytes());
            change.submit(&mut volume).unwrap();
            change.apply(&mut content);
        }
        flush(&mut volume).unwrap();
        match round {
            0 => repair(&mut volume),
            1 => {
                repair(&mut volume);
                volume.close().unwrap();
                older = (0..6).map(|store| disk.image(store)).collect();
                volume = open(&disk, geometry, rng).unwrap();
                // Something new in every stripe, so that an old store is wrong everywhere.
                for stripe in 0..4 {
                    let change = Change::Write { offset: stripe << 16, data: vec![7; 4096] };
                    change.submit(&mut volume).unwrap();
                    change.apply(&mut content);
                }
                flush(&mut volume).unwrap();
                repair(&mut volume);
            }
            _ => {}
        }
    }
    Filled { geometry, disk, content, older }
}

fn copy(disk: &SimDisk) -> SimDisk {
    let copy = SimDisk::new(6);
    (0..6).for_each(|store| copy.set_image(store, disk.image(store)));
    copy
}

fn subsets(stores: u32, size: u32) -> impl Iterator<Item = u32> {
    (0..1u32 << stores).filter(move |mask| mask.count_ones() == size)
}

fn members(mask: u32) -> impl Iterator<Item = usize> {
    (0..32).filter(move |store| mask >> store & 1 == 1)
}

#[test]
fn any_m_stores_may_be_lost_damaged_or_rolled_back() {
    let mut rng = Rng::new(11);
    let filled = filled(&mut rng);
    for round in seeds(2) {
        for pair in subsets(6, 2) {
            let disk = copy(&filled.disk);
            let mut how = Vec::new();
            for store in members(pair) {
                how.push(damage(&disk, store, &filled.older[store], &mut rng));
            }
            let context = format!("round {round}, stores {pair:#b} {how:?}");
            let mut volume = open(&disk, filled.geometry, &mut rng)
                .unwrap_or_else(|error| panic!("{context}: {error}"));
            assert!(read_all(&mut volume).unwrap() == filled.content, "{context}");
            volume.start_scrub();
            repair(&mut volume);
            let status = volume.status();
            assert_eq!(status.redundancy, Some(2), "{context}: {status:?}");
            drop(volume);
            // What was repaired is as good as what was there: lose all that wasn't damaged but k.
            for store in choose(&mut rng, 6, 6).into_iter().filter(|s| pair >> s & 1 == 0).take(2) {
                disk.set_image(store, Image::default());
            }
            let mut volume = open(&disk, filled.geometry, &mut rng).unwrap();
            assert!(read_all(&mut volume).unwrap() == filled.content, "{context}, repaired");
        }
    }
}

#[test]
fn every_pair_of_stale_stores_is_treated_as_lost() {
    let mut rng = Rng::new(12);
    let filled = filled(&mut rng);
    for pair in subsets(6, 2) {
        let disk = copy(&filled.disk);
        members(pair).for_each(|store| disk.set_image(store, filled.older[store].clone()));
        let mut volume = open(&disk, filled.geometry, &mut rng).unwrap();
        assert_eq!(volume.status().redundancy, Some(0), "stores {pair:#b}");
        assert!(read_all(&mut volume).unwrap() == filled.content, "stores {pair:#b}");
    }
}

#[test]
fn more_than_m_lost_stores_are_an_error_and_nothing_is_changed() {
    let mut rng = Rng::new(13);
    let filled = filled(&mut rng);
    for three in subsets(6, 3) {
        for kind in 0..3 {
            let disk = copy(&filled.disk);
            for store in members(three) {
                let image = match kind {
                    0 => Image::default(),
                    1 => filled.older[store].clone(),
                    _ => {
                        let mut image = disk.image(store);
                        rng.fill(image.file_mut(StoreFile::Shard).unwrap());
                        image
                    }
                };
                disk.set_image(store, image);
            }
            let before: Vec<Image> = (0..6).map(|store| disk.image(store)).collect();
            let error = open(&disk, filled.geometry, &mut rng).expect_err("too many are lost");
            let OpenError::TooManyLost { lost, tolerated: 2 } = error else {
                panic!("stores {three:#b}: {error}");
            };
            assert_eq!(lost.len(), 3);
            if kind == 1 {
                assert!(lost.iter().all(|lost| lost.reason == Reason::Stale), "{lost:?}");
            }
            let after: Vec<Image> = (0..6).map(|store| disk.image(store)).collect();
            assert!(before == after, "stores {three:#b}: a refused open changed something");
        }
    }
}

/// Damage in different places of more than m stores: each read is right or an error.
#[test]
fn scattered_damage_gives_right_blocks_or_errors_and_never_wrong_ones() {
    for seed in seeds(12) {
        let mut rng = Rng::new(seed + 700);
        let filled = filled(&mut rng);
        for store in 0..6 {
            let mut image = filled.disk.image(store);
            let bytes = image.file_mut(StoreFile::Shard).unwrap();
            for _ in 0..rng.below(120) {
                let at = 8192 + rng.below(bytes.len() as u64 - 8192) as usize;
                bytes[at] ^= 0x10;
            }
            filled.disk.set_image(store, image);
        }
        let Ok(mut volume) = open(&filled.disk, filled.geometry, &mut rng) else { continue };
        let mut lost = 0;
        for pass in 0..2 {
            for (block, content) in filled.content.chunks(4096).enumerate() {
                match read(&mut volume, block as u64 * 4096, 4096) {
                    Ok(found) => assert!(found == content, "seed {seed} pass {pass} block {block}"),
                    Err(RequestError::Lost { .. }) => lost += 1,
                    Err(error) => panic!("seed {seed}: {error}"),
                }
            }
            // Writing over a lost stripe keeps the blocks that are still there.
            if write(&mut volume, 0, &filled.content[..4096]).is_err() {
                assert!(volume.is_stopped(), "seed {seed}: a whole block can always be written");
            }
            volume.start_scrub();
            repair(&mut volume);
        }
        assert!(lost == 0 || volume.status().redundancy.is_none(), "seed {seed}: {lost} lost");
    }
}

#[test]
fn a_block_of_a_lost_stripe_can_be_written_again() {
    let mut rng = Rng::new(14);
    let geometry = geometry(2, 1, 16);
    let disk = SimDisk::new(3);
    let mut volume = open(&disk, geometry, &mut rng).unwrap();
    write(&mut volume, 0, &[5; 8 * 4096]).unwrap();
    volume.close().unwrap();
    drop(volume);
    for store in [0, 1] {
        let mut image = disk.image(store);
        let bytes = image.file_mut(StoreFile::Shard).unwrap();
        let slots = bytes.len() - 18 * (16 << 10);
        bytes[slots..].fill(0xee);
        disk.set_image(store, image);
    }
    let mut volume = open(&disk, geometry, &mut rng).unwrap();
    assert_eq!(read(&mut volume, 0, 4096), Err(RequestError::Lost { stripe: 0 }));
    assert_eq!(volume.status().redundancy, None);
    // Part of a block can't be written: the rest of it is lost.
    assert!(write(&mut volume, 0, &[6; 512]).is_err());
    write(&mut volume, 0, &[6; 4096]).unwrap();
    repair(&mut volume);
    volume.close().unwrap();
    let mut volume = open(&disk, geometry, &mut rng).unwrap();
    assert_eq!(read(&mut volume, 0, 4096), Ok(vec![6; 4096]));
    assert_eq!(read(&mut volume, 4096, 4096), Err(RequestError::Lost { stripe: 0 }));
    assert_eq!(volume.status().stripes_lost, 1);
    write(&mut volume, 4096, &[6; 7 * 4096]).unwrap();
    repair(&mut volume);
    assert_eq!(volume.status().redundancy, Some(1));
    assert_eq!(read(&mut volume, 0, 8 * 4096), Ok(vec![6; 8 * 4096]));
}

#[test]
fn a_wrong_key_shape_or_version_is_refused_by_name() {
    let mut rng = Rng::new(15);
    let disk = SimDisk::new(3);
    let shape = geometry(2, 1, 16);
    drop(open(&disk, shape, &mut rng).unwrap());
    let before: Vec<Image> = (0..3).map(|store| disk.image(store)).collect();
    let mut wrong = options(shape);
    wrong.key = VolumeKey::new(&[0x43; 32]);
    let error = Volume::open_or_create(disk.stores(), &wrong, &random(&mut rng)).unwrap_err();
    assert!(matches!(error, OpenError::WrongKey), "{error}");
    let error = open(&disk, geometry(2, 1, 17), &mut rng).unwrap_err();
    assert!(matches!(error, OpenError::Shape { .. }), "{error}");
    let error = open(&disk, geometry(1, 2, 16), &mut rng).unwrap_err();
    assert!(matches!(error, OpenError::Shape { .. }), "{error}");
    let error = open(&disk, geometry(2, 2, 16), &mut rng).unwrap_err();
    assert!(matches!(error, OpenError::StoreCount { found: 3, wanted: 4 }), "{error}");
    let after: Vec<Image> = (0..3).map(|store| disk.image(store)).collect();
    assert!(before == after);
    let mut missing = options(shape);
    missing.create = false;
    let empty = SimDisk::new(3);
    let error = Volume::open_or_create(empty.stores(), &missing, &random(&mut rng)).unwrap_err();
    assert!(matches!(error, OpenError::NotFound), "{error}");
    assert_eq!(empty.operations(), 0);
}

#[test]
fn stores_of_two_volumes_or_in_the_wrong_order_are_not_mixed() {
    let mut rng = Rng::new(16);
    let shape = geometry(2, 1, 16);
    let (one, other) = (SimDisk::new(3), SimDisk::new(3));
    for disk in [&one, &other] {
        let mut volume = open(disk, shape, &mut rng).unwrap();
        write(&mut volume, 0, &[if std::ptr::eq(disk, &one) { 1 } else { 2 }; 4096]).unwrap();
        volume.close().unwrap();
    }
    one.set_image(2, other.image(2));
    let mut volume = open(&one, shape, &mut rng).unwrap();
    assert_eq!(read(&mut volume, 0, 4096), Ok(vec![1; 4096]));
    repair(&mut volume);
    assert_eq!(volume.status().redundancy, Some(1));
    drop(volume);
    let swapped = one.image(0);
    one.set_image(0, one.image(1));
    one.set_image(1, swapped);
    let error = open(&one, shape, &mut rng).unwrap_err();
    assert!(matches!(error, OpenError::TooManyLost { .. }), "{error}");
}

#[test]
fn discarding_an_empty_volume_writes_no_stripe() {
    let mut rng = Rng::new(17);
    let shape = geometry(4, 2, 4096);
    let disk = SimDisk::new(6);
    let mut volume = open(&disk, shape, &mut rng).unwrap();
    zero(&mut volume, 0, shape.size_bytes()).unwrap();
    flush(&mut volume).unwrap();
    let before = disk.operations();
    repair(&mut volume);
    assert!(disk.operations() - before < 40, "a discard of nothing cost stripes");
    write(&mut volume, 1 << 20, &[9; 4096]).unwrap();
    repair(&mut volume);
    zero(&mut volume, 0, shape.size_bytes()).unwrap();
    repair(&mut volume);
    assert!(read_all(&mut volume).unwrap().iter().all(|byte| *byte == 0));
    volume.close().unwrap();
    let mut volume = open(&disk, shape, &mut rng).unwrap();
    assert!(read_all(&mut volume).unwrap().iter().all(|byte| *byte == 0));
}

/// A checkpoint of more stripes than there are spare slots commits early and goes on.
#[test]
fn slots_never_run_out() {
    let mut rng = Rng::new(18);
    let shape = geometry(1, 1, 4 * 200).with_journal_bytes(4 << 20).unwrap();
    let disk = SimDisk::new(2);
    let mut volume = open(&disk, shape, &mut rng).unwrap();
    for round in 0..4u8 {
        for stripe in 0..200 {
            write(&mut volume, stripe * 16384 + 4096, &[round + 1; 4096]).unwrap();
        }
        flush(&mut volume).unwrap();
        if round == 2 {
            zero(&mut volume, 0, shape.size_bytes()).unwrap();
        }
    }
    repair(&mut volume);
    assert_eq!(read(&mut volume, 150 * 16384 + 4096, 4096), Ok(vec![4; 4096]));
    assert_eq!(read(&mut volume, 150 * 16384, 4096), Ok(vec![0; 4096]));
}

/// However much is discarded at once, little of it waits for a checkpoint afterwards.
#[test]
fn discarding_a_full_volume_leaves_no_long_checkpoint() {
    const STRIPES: u64 = 1500;
    let mut rng = Rng::new(19);
    let shape = geometry(1, 1, 4 * STRIPES).with_journal_bytes(1 << 20).unwrap();
    let disk = SimDisk::new(2);
    let mut volume = open(&disk, shape, &mut rng).unwrap();
    for stripe in 0..STRIPES {
        write(&mut volume, stripe * 16384, &[7; 4096]).unwrap();
    }
    repair(&mut volume);
    // Single blocks of many stripes, then all of it but the first and the last block.
    for stripe in 0..STRIPES {
        zero(&mut volume, stripe * 16384 + 4096, 4096).unwrap();
    }
    zero(&mut volume, 4096, shape.size_bytes() - 8192).unwrap();
    flush(&mut volume).unwrap();
    let before = disk.operations();
    let found = read_all(&mut volume).unwrap();
    repair(&mut volume);
    // Half as many stripes as the journal has blocks, each with two headers and two holes, and what
    // the commits cost.
    let spent = disk.operations() - before;
    assert!(spent < 128 * 4 + 40, "a checkpoint of {spent} operations");
    assert!(read_all(&mut volume).unwrap() == found);
    drop(volume);
    let mut volume = open(&disk, shape, &mut rng).unwrap();
    assert!(read_all(&mut volume).unwrap() == found);
    let (first, rest) = found.split_at(4096);
    assert!(first.iter().all(|byte| *byte == 7) && rest.iter().all(|byte| *byte == 0));
}

#[test]
fn closing_leaves_a_long_checkpoint_to_the_next_opening() {
    const STRIPES: u64 = 4200;
    let mut rng = Rng::new(20);
    let shape = geometry(1, 0, 4 * STRIPES).with_journal_bytes(64 << 20).unwrap();
    let disk = SimDisk::new(1);
    let mut volume = open(&disk, shape, &mut rng).unwrap();
    for stripe in 0..STRIPES {
        write(&mut volume, stripe * 16384, &[stripe as u8; 512]).unwrap();
    }
    volume.close().unwrap();
    disk.crash(&mut rng);
    let mut volume = open(&disk, shape, &mut rng).unwrap();
    assert!(volume.status().journal_bytes > 0);
    for stripe in 0..STRIPES {
        assert_eq!(read(&mut volume, stripe * 16384, 512), Ok(vec![stripe as u8; 512]));
    }
}
