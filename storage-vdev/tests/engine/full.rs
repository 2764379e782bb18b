//! Nodes that run full: writes are refused before nothing can be tidied up any more, nothing is
//! lost, and it goes on when there is room.

use storage_vdev::engine::{Command, RequestError};

use crate::harness::{BLOCK, create, open, options};
use crate::nodes::{Rng, world};
use crate::space::{bytes, command};

/// A volume that fits its nodes, but not twice.
#[test]
fn a_volume_on_tight_nodes_is_overwritten_again_and_again() {
    const BLOCKS: usize = 512;
    let world = world(3, 1);
    // Each node has half of the data, and two thirds on top of it.
    let capacity = (BLOCKS / 2 * 4112 * 5 / 3) as u64;
    world.borrow_mut().nodes.iter_mut().for_each(|node| node.capacity = capacity);
    let mut bench = open(&world, options(3, Some(create(2, 1, BLOCKS))));
    bench.idle(2_000_000_000);
    let mut rng = Rng(3);
    let mut model = vec![0; BLOCKS * BLOCK];
    let mut refused = 0;
    for nth in 0..600 {
        let first = rng.below(BLOCKS as u64 - 8) as usize * BLOCK;
        let range = first..first + 8 * BLOCK;
        let mut data = vec![0; 8 * BLOCK];
        rng.fill(&mut data);
        let mut tries = 0;
        loop {
            match bench.write(&world, range.start, &data).unwrap() {
                Ok(_) => break,
                Err(RequestError::NoSpace) => refused += 1,
                Err(error) => panic!("{error}"),
            }
            tries += 1;
            let status = || bench.volume.status();
            assert!(
                tries < 20,
                "write {nth} finds no room: {:?}, {} bytes",
                status(),
                bytes(&world)
            );
            bench.idle(1_100_000_000);
        }
        model[range].copy_from_slice(&data);
    }
    assert!(refused < 300, "{refused} of 600 writes had to wait");
    bench.flush(&world).unwrap().unwrap();
    assert!(bench.read_all(&world).unwrap().unwrap() == model);
    drop(bench);
    let mut bench = open(&world, options(3, None));
    assert!(bench.read_all(&world).unwrap().unwrap() == model);
}

/// A volume that is larger than its nodes.
#[test]
fn a_full_volume_refuses_writes_and_takes_them_again_after_a_trim() {
    const BLOCKS: usize = 1024;
    let world = world(3, 1);
    let capacity = (300 * 4112) as u64;
    world.borrow_mut().nodes.iter_mut().for_each(|node| node.capacity = capacity);
    let mut bench = open(&world, options(3, Some(create(2, 1, BLOCKS))));
    bench.idle(2_000_000_000);
    let mut rng = Rng(3);
    let mut model = vec![0; BLOCKS * BLOCK];
    let mut full_at = None;
    for chunk in 0..BLOCKS / 8 {
        let range = chunk * 8 * BLOCK..(chunk + 1) * 8 * BLOCK;
        let mut data = vec![0; 8 * BLOCK];
        rng.fill(&mut data);
        match bench.write(&world, range.start, &data).unwrap() {
            Ok(_) => model[range].copy_from_slice(&data),
            Err(RequestError::NoSpace) => {
                full_at = Some(chunk);
                break;
            }
            Err(error) => panic!("{error}"),
        }
    }
    let full_at = full_at.expect("it is larger than its nodes");
    assert!(full_at * 8 > 300, "full after {} blocks", full_at * 8);
    bench.flush(&world).unwrap().unwrap();
    assert!(bench.read_all(&world).unwrap().unwrap() == model, "nothing is lost");
    // A trim needs no room to speak of, and makes some.
    let half = full_at * 4 * BLOCK;
    bench.zero(&world, 0, half).unwrap().unwrap();
    model[..half].fill(0);
    bench.flush(&world).unwrap().unwrap();
    command(&mut bench, &world, Command::Collect).unwrap();
    bench.idle(3_000_000_000);
    let mut data = vec![0; half / 2 / BLOCK * BLOCK];
    rng.fill(&mut data);
    for (nth, piece) in data.chunks(8 * BLOCK).enumerate() {
        bench.write(&world, nth * 8 * BLOCK, piece).unwrap().unwrap();
    }
    model[..data.len()].copy_from_slice(&data);
    bench.flush(&world).unwrap().unwrap();
    drop(bench);
    let mut bench = open(&world, options(3, None));
    assert!(bench.read_all(&world).unwrap().unwrap() == model);
}
