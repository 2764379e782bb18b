//! A user deletes what a node has committed to, and challenges the node in the same moment.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use hypha_chain::contracts::{Capacity, GridToken, Registry};
use hypha_chain::embedded::Filter;
use hypha_chain::sol_types::SolEvent;
use hypha_chain::{B256, U256};
use proof_node::shards::Folder;
use storage_vdev::disk::{DiskOptions, DiskStore, Look, Seen};
use storage_vdev::files::{RealFile, open_directory};
use storage_vdev::node::ObjectKey;
use storage_vdev::service::ShardStore;

use crate::daemon::Daemon;
use crate::{World, tokens};

const SHARDS: u64 = 6;
const SHARD_BYTES: usize = 100_000;

fn object(sequence: u64) -> ObjectKey {
    ObjectKey { volume: [7; 16], epoch: 1, sequence, shard: 0 }
}

/// A shard server's store with shards of a user.
fn store(folder: &Path) -> DiskStore<RealFile> {
    let files = open_directory(folder, true).unwrap();
    let options = DiskOptions { capacity_bytes: 64 << 20, create: Some([5; 16]) };
    let (mut store, _) = DiskStore::open(files.objects, &options).unwrap();
    for number in 1..=SHARDS {
        let bytes: Vec<u8> = (0..SHARD_BYTES as u64).map(|at| (at * number) as u8).collect();
        store.put(&object(number), &[bytes.into()]).unwrap();
    }
    store.sync().unwrap();
    store
}

/// Deletes some shards, and writes over where they lay.
fn delete(store: &mut DiskStore<RealFile>, folder: &Path, numbers: std::ops::RangeInclusive<u64>) {
    let seen = Look::open(folder).unwrap().step(0).unwrap().unwrap();
    let file = File::options().write(true).open(folder.join("objects")).unwrap();
    for number in numbers {
        let it = seen.iter().flatten().find(|seen| seen.key == object(number)).unwrap();
        store.delete(&object(number)).unwrap();
        file.write_all_at(&vec![0xee; it.len as usize], Seen::offset_of(it.block)).unwrap();
    }
    store.sync().unwrap();
}

impl World {
    fn plot(&self) -> Capacity::plotsReturn {
        self.client.view(self.suite.capacity, &Capacity::plotsCall(1)).unwrap()
    }

    fn stake(&self) -> U256 {
        self.client.view(self.suite.registry, &Registry::stakeOfCall { node: 1 }).unwrap()
    }

    fn challenge(&mut self) {
        self.send(1, self.suite.capacity, &Capacity::challengeCall { node: 1 });
    }

    /// The challenges that ended in a way.
    fn ended(&self, how: B256) -> usize {
        let filter = Filter {
            from: 0,
            to: u64::MAX,
            addresses: vec![self.suite.capacity],
            topics: vec![vec![how]],
        };
        self.client.logs(&filter, || false).unwrap().len()
    }
}

#[test]
fn who_deletes_what_is_committed_to_and_challenges_at_once_takes_no_stake_of_an_honest_node() {
    let mut world = World::with_a_node(37);
    let (capacity, token) = (world.suite.capacity, world.suite.token);
    let amount = tokens(100);
    world.send(1, token, &GridToken::approveCall { spender: capacity, amount });
    let (state, shards) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut store = store(shards.path());
    let folder = Folder { path: shards.path().to_owned(), reservation: 0 };
    let mut config = Daemon::config(&world, state.path());
    config.shards = vec![folder];
    config.timing.commit_ns = 1_000_000_000;
    let daemon = Daemon::run(config);
    let all = SHARDS * SHARD_BYTES as u64;
    daemon.until(&mut world, |world| world.plot().bytesLen == all);
    let before = world.stake();
    // What is there is shown.
    world.challenge();
    // Five of six go, and whoever let them go challenges before the node can know.
    delete(&mut store, shards.path(), 2..=SHARDS);
    (0..6).for_each(|_| world.challenge());
    for id in 1..=7 {
        let what = format!("challenge({id})");
        daemon.wait_for(&mut world, |it| it.kind == "sent" && it.fields["what"] == what);
    }
    // The hour in which they could have been answered, and everybody may say that one was not.
    (0..62).for_each(|_| world.block());
    let answered = world.ended(Capacity::Answered::SIGNATURE_HASH);
    let released = world.ended(Capacity::Released::SIGNATURE_HASH);
    assert_eq!((answered + released, world.ended(Capacity::Failed::SIGNATURE_HASH)), (7, 0));
    assert!(released > 0, "of a plot of which five sixths are gone");
    assert_eq!(world.stake(), before);
    assert_eq!(world.plot().bytesLen, SHARD_BYTES as u64);
    daemon.stop();
}
