//! Who may write: epochs, fences, the register and its lease.

use storage_vdev::VolumeKey;
use storage_vdev::engine::{Holder, OpenError, OpenOptions, RequestError, TakeOver, Volume};

use crate::harness::{BLOCK, create, open, options, random, try_open};
use crate::nodes::{MemoryNodes, Mood, Rng, world};

const SECOND: u64 = 1_000_000_000;

fn held_by(id: u8, create_it: bool) -> OpenOptions {
    OpenOptions {
        register: true,
        holder: Holder { id: [id; 16], name: format!("host {id}") },
        ..options(6, create_it.then(|| create(4, 2, 64)))
    }
}

#[test]
fn an_old_writer_gets_epoch_stale_and_fails_everything() {
    let world = world(6, 1);
    let mut old = open(&world, options(6, Some(create(4, 2, 64))));
    old.write(&world, 0, &[1; BLOCK]).unwrap().unwrap();
    old.flush(&world).unwrap().unwrap();
    let mut new = open(&world, options(6, None));
    old.write(&world, 0, &[2; BLOCK]).unwrap().unwrap();
    let stale = old.flush(&world).unwrap().unwrap_err();
    assert!(matches!(stale, RequestError::Stale { epoch } if epoch >= 2), "{stale}");
    assert!(stale.to_string().starts_with("EPOCH_STALE"));
    assert_eq!(old.read(&world, 0, BLOCK).unwrap().unwrap_err(), stale);
    assert_eq!(old.write(&world, 0, &[3; BLOCK]).unwrap().unwrap_err(), stale);
    assert!(new.read(&world, 0, BLOCK).unwrap().unwrap() == [1; BLOCK]);
    new.write(&world, 0, &[4; BLOCK]).unwrap().unwrap();
    new.flush(&world).unwrap().unwrap();
}

#[test]
fn a_volume_in_use_is_refused_by_name_and_released_ones_are_had_at_once() {
    let world = world(6, 2);
    let mut one = open(&world, held_by(1, true));
    let error = try_open(&world, held_by(2, false), 0).unwrap().err().unwrap();
    assert_eq!(error.to_string(), "the volume is in use by host 1 (epoch 1)");
    one.close(&world).unwrap().unwrap();
    let two = try_open(&world, held_by(2, false), 0).unwrap().unwrap();
    assert!(two.now_ns < SECOND, "a hand-over took {} ns", two.now_ns);
}

#[test]
fn a_forced_take_over_waits_the_lease_out_and_the_holder_has_stopped_by_then() {
    let world = world(6, 3);
    let mut one = open(&world, held_by(1, true));
    one.write(&world, 0, &[1; BLOCK]).unwrap().unwrap();
    one.flush(&world).unwrap().unwrap();
    // The first holder's host freezes: nobody polls its volume.
    let taking = OpenOptions { take_over: TakeOver::Wait, ..held_by(2, false) };
    let mut two = try_open(&world, taking, one.now_ns).unwrap().unwrap();
    assert!(two.now_ns - one.now_ns >= 10 * SECOND, "only {} ns", two.now_ns - one.now_ns);
    assert!(two.read(&world, 0, BLOCK).unwrap().unwrap() == [1; BLOCK]);
    one.now_ns = two.now_ns;
    let error = one.read(&world, 0, BLOCK).unwrap().err().unwrap();
    let stopped = matches!(error, RequestError::LeaseExpired | RequestError::Stale { .. });
    assert!(stopped, "{error}");
}

#[test]
fn a_holder_renews_its_lease_and_stops_serving_when_it_cannot() {
    let world = world(6, 4);
    let mut one = open(&world, held_by(1, true));
    one.write(&world, 0, &[1; BLOCK]).unwrap().unwrap();
    one.flush(&world).unwrap().unwrap();
    one.idle(60 * SECOND);
    assert!(one.read(&world, 0, BLOCK).is_some_and(|read| read.is_ok()));
    // Cut off from the register, and from everything else.
    world.borrow_mut().moods.fill(Mood::Gone);
    one.idle(30 * SECOND);
    let error = one.read(&world, 0, BLOCK).unwrap().unwrap_err();
    assert_eq!(error, RequestError::LeaseExpired);
    assert!(one.flush(&world).unwrap().is_err());
    // It heals, and nobody had taken it.
    world.borrow_mut().moods.fill(Mood::Fine);
    one.idle(30 * SECOND);
    assert!(one.read(&world, 0, BLOCK).unwrap().unwrap() == [1; BLOCK]);
    one.flush(&world).unwrap().unwrap();
}

#[test]
fn a_superblock_that_was_rolled_back_on_every_node_is_refused() {
    let world = world(6, 5);
    let mut one = open(&world, held_by(1, true));
    one.write(&world, 0, &[1; BLOCK]).unwrap().unwrap();
    one.close(&world).unwrap().unwrap();
    let old: Vec<_> = world.borrow().nodes.iter().map(|node| node.objects.clone()).collect();
    let mut two = open(&world, held_by(1, false));
    two.write(&world, 0, &[2; BLOCK]).unwrap().unwrap();
    two.close(&world).unwrap().unwrap();
    for (node, objects) in world.borrow_mut().nodes.iter_mut().zip(old) {
        node.objects = objects;
    }
    let error = try_open(&world, held_by(1, false), 0).unwrap().err().unwrap();
    assert!(matches!(error, OpenError::SuperblockLost { .. }), "{error}");
}

#[test]
fn bad_input_is_refused_in_one_line_and_changes_nothing() {
    let world = world(6, 6);
    drop(open(&world, options(6, Some(create(4, 2, 64)))));
    let before: Vec<_> = world.borrow().nodes.iter().map(|node| node.objects.clone()).collect();
    let refused = |options: OpenOptions, words: &str| {
        let error = try_open(&world, options, 0).unwrap().err().unwrap().to_string();
        assert!(error.contains(words) && !error.contains('\n'), "{error}");
    };
    refused(OpenOptions { key: VolumeKey::new(&[1; 32]), ..options(6, None) }, "key is wrong");
    refused(OpenOptions { uuid: [9; 16], ..options(6, None) }, "no volume");
    let mut new = options(6, Some(create(4, 2, 64)));
    new.must_be_new = true;
    refused(new, "already");
    refused(options(6, Some(create(3, 2, 64))), "and not 3+2");
    refused(options(3, Some(create(4, 2, 64))), "3 nodes were given; 6 are needed");
    let mut odd = create(4, 2, 64);
    odd.size_bytes += 512;
    refused(options(6, Some(odd)), "multiple of 4096");
    let mut same = options(6, Some(create(4, 2, 64)));
    same.uuid = [8; 16];
    same.nodes[1].domain = same.nodes[0].domain.clone();
    refused(same.clone(), "in one failure domain");
    same.nodes[1].id = same.nodes[0].id;
    refused(same, "the same node");
    for (node, before) in world.borrow().nodes.iter().zip(before) {
        assert!(node.objects == before);
    }
}

#[test]
fn two_openers_at_once_end_with_one_writer() {
    for seed in 0..20 {
        let world = world(6, seed);
        drop(open(&world, held_by(1, true)));
        let mut rng = Rng(seed);
        let wait = |id| OpenOptions { take_over: TakeOver::Wait, ..held_by(id, false) };
        let mut openings: Vec<_> = (2..4)
            .map(|id| Some(Volume::open(MemoryNodes::new(&world), wait(id), random(&mut rng))))
            .collect();
        let mut now_ns = 0;
        let mut held: Vec<(usize, Volume<MemoryNodes>)> = Vec::new();
        for _ in 0..20_000 {
            let turn = rng.below(2) as usize;
            let Some(opening) = &mut openings[turn] else {
                now_ns += 50_000_000;
                continue;
            };
            match opening.poll(now_ns) {
                Some(Ok(volume)) => {
                    held.push((turn, volume));
                    openings[turn] = None;
                }
                Some(Err(_)) => openings[turn] = None,
                None => now_ns += rng.below(200_000_000),
            }
            // A holder that lives goes on renewing.
            for (_, volume) in &mut held {
                while volume.poll(now_ns).is_some() {}
            }
            if openings.iter().all(Option::is_none) || now_ns > 100 * SECOND {
                break;
            }
        }
        let running = held.iter().filter(|(_, volume)| volume.status().stopped.is_none());
        assert_eq!(running.count(), 1, "seed {seed}: {} opened", held.len());
    }
}

#[test]
fn a_holder_that_gives_the_volume_up_acknowledges_nothing_from_then_on() {
    let world = world(6, 9);
    let mut one = open(&world, held_by(1, true));
    one.write(&world, 0, &[1; BLOCK]).unwrap().unwrap();
    one.flush(&world).unwrap().unwrap();
    one.read(&world, 0, BLOCK).unwrap().unwrap();
    // Answered from memory, and not yet told: then the volume is released in a single turn.
    for id in 1000..1200 {
        one.volume.submit_read(id, 0, vec![0; BLOCK]);
    }
    one.volume.submit_close(2000);
    let mut told = Vec::new();
    let mut two = loop {
        match try_open(&world, held_by(2, false), one.now_ns).unwrap() {
            Ok(two) => break two,
            Err(error) => assert!(matches!(error, OpenError::InUse { .. }), "{error}"),
        }
        told.push(one.volume.poll(one.now_ns).unwrap());
    };
    let before = told.len();
    assert!(before < 150, "{before} of 200 were told before the volume was released");
    two.write(&world, 0, &[2; BLOCK]).unwrap().unwrap();
    two.flush(&world).unwrap().unwrap();
    while let Some(completion) = one.volume.poll(one.now_ns) {
        told.push(completion);
    }
    for completion in told.iter().skip(before) {
        let closes = completion.id == 2000;
        assert_eq!(completion.result.is_ok(), closes, "{}: {:?}", completion.id, completion.result);
    }
    assert_eq!(told.len(), 201, "each request is answered once");
}

#[test]
fn a_register_that_all_its_nodes_have_lost_is_not_made_anew_over_a_volume_that_is_there() {
    let world = world(6, 10);
    let options = |id, create_it| {
        let mut options = held_by(id, create_it);
        options.nodes.iter_mut().skip(3).for_each(|node| node.register = false);
        options
    };
    let mut one = open(&world, options(1, true));
    one.write(&world, 0, &[1; BLOCK]).unwrap().unwrap();
    one.close(&world).unwrap().unwrap();
    for node in world.borrow_mut().nodes.iter_mut().take(3) {
        node.registers.clear();
    }
    for create_it in [false, true] {
        let error = try_open(&world, options(2, create_it), 0).unwrap().err();
        assert_eq!(error, Some(OpenError::RegisterLost { fence: 1 }));
    }
}
