//! A daemon shows the chain that its node is proven: seldom, once, and whatever fails meanwhile.

use std::path::Path;
use std::sync::Arc;

use hypha_chain::B256;
use hypha_chain::client::Client;
use hypha_chain::contracts::{Capacity, Registry, Reservations};
use hypha_chain::remote::{Endpoints, Remote};
use hypha_chain::rpc::server::Server;
use hypha_proofs::network::epoch::EpochData;
use hypha_proofs::network::judge::Closed;
use hypha_proofs::network::ledger::Ledger;
use proof_node::kept;

use crate::daemon::{Daemon, NODE, POSTER};
use crate::{CHAIN_ID, World, key};

impl World {
    /// An epoch in which node 1 was proven, known to the daemon of this folder.
    fn proven(&self, folder: &Path, before: Option<&EpochData>, epoch: u32) -> EpochData {
        let ledger = before.map_or_else(Ledger::default, |before| before.ledger.clone());
        let mut data = self.honest(&ledger, epoch);
        data.verdicts[0].proven_until = self.schedule().epoch_end(epoch);
        let before = before.map_or(B256::ZERO, EpochData::hash);
        let epochs = folder.join("epochs");
        std::fs::create_dir_all(&epochs).unwrap();
        kept::write(&epochs, &Closed { before, data: data.clone(), numbers: Vec::new() }).unwrap();
        data
    }

    fn proven_until(&self) -> u64 {
        self.client.view(self.suite.capacity, &Capacity::provenUntilCall(1)).unwrap()
    }

    /// Transactions of the node so far.
    fn sent(&self) -> u64 {
        self.client.nonce(key(NODE).address()).unwrap()
    }

    /// Whether the chain keeps that the node is proven until an epoch's end.
    fn is_shown(&self, epoch: u32) -> bool {
        self.proven_until() == self.schedule().epoch_end(epoch)
    }
}

#[test]
fn a_node_shows_that_it_is_proven_before_anyone_can_park_it_though_chain_and_node_go_away() {
    let mut world = World::with_a_node(33);
    let folder = tempfile::tempdir().unwrap();
    let first = world.proven(folder.path(), None, 60);
    let second = world.proven(folder.path(), Some(&first), 61);
    let third = world.proven(folder.path(), Some(&second), 121);
    let server = Server::start(Arc::clone(&world.chain), "127.0.0.1:0".parse().unwrap()).unwrap();
    let at = server.address();
    let endpoints =
        Endpoints { urls: vec![format!("http://{at}")], agreement: 1, confirmations: 0 };
    let remote = Client::Remote(Arc::new(Remote::connect(endpoints, CHAIN_ID).unwrap()));
    let embedded = std::mem::replace(&mut world.client, remote);
    let daemon = Daemon::start(&world, folder.path());
    world.client = embedded;
    world.jump(60);
    world.post(&first);
    daemon.wait(&mut world, "epoch-true", 60);
    // The endpoint is away when the epoch becomes final.
    drop(server);
    daemon.wait_for(&mut world, |it| it.kind == "chain-down");
    world.jump(61);
    world.post(&second);
    assert_eq!(world.sent(), 0);
    let _server = Server::start(Arc::clone(&world.chain), at).unwrap();
    daemon.until(&mut world, |world| world.is_shown(60));
    assert_eq!(world.sent(), 1);
    daemon.stop();
    // Whoever begins anew knows that from the chain: the next epoch adds too little.
    let daemon = Daemon::start(&world, folder.path());
    daemon.wait(&mut world, "epoch-true", 61);
    world.jump(63);
    daemon.settle(&world);
    assert_eq!((world.sent(), world.is_shown(60)), (1, true));
    let text = daemon.metrics.render();
    let kept = world.proven_until();
    assert!(text.contains(&format!("hypha_proof_proven_until_seconds {kept}\n")), "{text}");
    // Days later the newest epoch is false: the one before is shown, and that one not.
    world.jump(121);
    let mut false_one = third.clone();
    false_one.verdicts[0].proven_until -= 1;
    world.post(&false_one);
    daemon.until(&mut world, |world| world.is_shown(61));
    daemon.wait_for(&mut world, |it| it.kind == "voted");
    (0..60).for_each(|_| world.block());
    daemon.wait(&mut world, "epoch-voided", 121);
    assert_eq!((world.sent(), world.is_shown(61)), (3, true), "two proofs and a vote");
    world.fund(POSTER);
    world.send(POSTER, world.suite.capacity, &Capacity::joinCall {});
    world.post(&third);
    daemon.wait(&mut world, "epoch-true", 121);
    world.jump(123);
    daemon.until(&mut world, |world| world.is_shown(121));
    assert_eq!(world.sent(), 4);
    daemon.stop();
    // A week after it was added nobody can park it yet, but a week after it was last shown.
    let park = |world: &World| {
        world.client.view(world.suite.registry, &Registry::parkCall { node: 1 }).is_ok()
    };
    world.jump(7 * 24 + 1);
    assert!(!park(&world));
    world.jump(121 + 7 * 24 + 1);
    assert!(park(&world));
}

#[test]
fn what_is_reserved_is_shown_as_proven_sooner_and_the_end_of_a_reservation_at_once() {
    let mut world = World::with_a_node(34);
    let reservations = world.suite.reservations;
    world.offer();
    world.reserve();
    let folder = tempfile::tempdir().unwrap();
    let first = world.proven(folder.path(), None, 1);
    let second = world.proven(folder.path(), Some(&first), 5);
    let third = world.proven(folder.path(), Some(&second), 7);
    let daemon = Daemon::start(&world, folder.path());
    world.jump(1);
    world.post(&first);
    world.jump(2);
    daemon.until(&mut world, |world| world.is_shown(1));
    // Four hours more are not worth it.
    world.jump(5);
    world.post(&second);
    world.jump(6);
    daemon.wait(&mut world, "epoch-true", 5);
    daemon.settle(&world);
    assert_eq!((world.sent(), world.is_shown(1)), (1, true));
    // Six are, when the user has gone and waits for what is left.
    world.send(1, reservations, &Reservations::closeCall { id: 1 });
    world.jump(7);
    world.post(&third);
    world.jump(9);
    daemon.until(&mut world, |world| world.is_shown(7));
    assert_eq!(world.sent(), 2);
    world.send(1, reservations, &Reservations::reclaimCall { id: 1 });
    daemon.stop();
}
