//! A daemon that judges what somebody else posts: it keeps what it finds true, appeals against the rest,
//! votes, and goes on where it was after a restart.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use hypha_chain::B256;
use hypha_chain::contracts::{Capacity, Registry};
use hypha_chain::message::{Reader, RotateKey, sign};
use hypha_proofs::network::judge::Closed;
use hypha_proofs::network::ledger::Ledger;
use proof_node::daemon::{self, DaemonError};
use proof_node::kept;
use proof_node::metrics::Metrics;

use crate::daemon::{Daemon, POSTER};
use crate::{CHAIN_ID, World, key};

/// What an epoch's file has, if it is there and whole.
fn kept(path: &Path) -> Option<Closed> {
    kept::decode(&std::fs::read(path).ok()?)
}

#[test]
fn what_is_found_true_is_on_the_disk_and_gone_on_from_after_a_restart() {
    let mut world = World::with_a_node(31);
    let folder = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&world, folder.path());
    world.end(0);
    let first = world.honest(&Ledger::default(), 0);
    world.post(&first);
    daemon.wait(&mut world, "epoch-true", 0);
    let epochs = folder.path().join("epochs");
    assert_eq!(kept(&epochs.join("0")).unwrap().data, first);
    daemon.stop();
    // What a kill leaves: half a file under another name; and what a disk leaves.
    std::fs::write(epochs.join("1.part"), b"hypha ep").unwrap();
    std::fs::write(epochs.join("7"), b"hypha epoch  1\n\0 and then something else").unwrap();
    let daemon = Daemon::start(&world, folder.path());
    daemon.wait(&mut world, "epoch-failed", 7);
    daemon.wait(&mut world, "epoch-true", 0);
    world.end(1);
    let second = world.honest(&first.ledger, 1);
    world.post(&second);
    daemon.wait(&mut world, "epoch-true", 1);
    assert_eq!(kept(&epochs.join("1")).unwrap().data, second);
    daemon.stop();
    // Whoever has lost everything, and has all blocks, comes to the same.
    let folder = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&world, folder.path());
    daemon.wait(&mut world, "epoch-true", 0);
    daemon.wait(&mut world, "epoch-true", 1);
    daemon.stop();
}

#[test]
fn a_false_epoch_is_appealed_voted_on_and_voided_though_the_node_restarts_meanwhile() {
    let mut world = World::with_a_node(32);
    let folder = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&world, folder.path());
    world.end(0);
    let honest = world.honest(&Ledger::default(), 0);
    let mut false_one = honest.clone();
    false_one.rewards[0].cumulative += 1;
    world.post(&false_one);
    let found = daemon.wait(&mut world, "epoch-differs", 0);
    assert!(found.text.contains("nobody serves its data"), "{}", found.text);
    daemon.wait(&mut world, "appealed", 0);
    daemon.stop();
    let daemon = Daemon::start(&world, folder.path());
    assert_eq!(daemon.wait(&mut world, "voted", 0).fields["true"], false);
    // The hour of the vote.
    (0..60).for_each(|_| world.block());
    daemon.wait(&mut world, "epoch-voided", 0);
    let capacity = world.suite.capacity;
    let poster = Capacity::aggregatorsCall(key(POSTER).address());
    assert_eq!(world.client.view(capacity, &poster).unwrap().bond, 0);
    let text = daemon.metrics.render();
    assert!(text.contains("hypha_proof_votes_total 1\n"), "{text}");
    // Another posts what is true, and the same node finds it so.
    world.fund(POSTER);
    world.send(POSTER, capacity, &Capacity::joinCall {});
    world.post(&honest);
    daemon.wait(&mut world, "epoch-true", 0);
    daemon.stop();
}

#[test]
fn what_a_reorganisation_takes_back_is_not_gone_on_from() {
    let mut world = World::with_a_node(37);
    let folder = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&world, folder.path());
    world.end(1);
    world.post(&world.honest(&Ledger::default(), 1));
    daemon.wait(&mut world, "epoch-true", 1);
    // Another producer's chain: nobody has posted anything there yet.
    let mut other = World::with_a_node(38);
    while other.now <= world.now {
        other.block();
    }
    world.now = other.now;
    std::mem::swap(&mut *world.chain.lock().unwrap(), &mut *other.chain.lock().unwrap());
    daemon.wait_for(&mut world, |it| it.kind == "reorganised");
    // There epoch 0 comes first, so that it does not come too late.
    let first = world.honest(&Ledger::default(), 0);
    world.post(&first);
    daemon.wait(&mut world, "epoch-true", 0);
    let second = world.honest(&first.ledger, 1);
    world.post(&second);
    let hash = second.hash();
    let epochs = folder.path().join("epochs");
    daemon
        .until(&mut world, |_| kept(&epochs.join("1")).is_some_and(|it| it.before == first.hash()));
    assert_eq!(kept(&epochs.join("1")).unwrap().data.hash(), hash);
    daemon.stop();
}

#[test]
fn who_proves_with_a_key_that_the_node_has_no_more_is_told_so() {
    let mut world = World::with_a_node(36);
    let folder = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&world, folder.path());
    daemon.settle(&world);
    let (registry, new) = (world.suite.registry, key(13));
    let mesh_key = B256::repeat_byte(13);
    let domain = Reader::Registry.domain(CHAIN_ID, registry);
    let signature = sign(&RotateKey { node: 1, meshKey: mesh_key }, &domain, &new);
    let (node, zero) = (1, B256::ZERO);
    let mesh = Registry::MeshKey { key: mesh_key, signatureR: zero, signatureS: zero };
    let signature = signature.to_bytes().into();
    world.send(1, registry, &Registry::rotateKeyCall { node, mesh, signature });
    let told = daemon.wait_for(&mut world, |it| it.kind == "key-changed");
    assert!(told.text.contains(&new.address().to_string()), "{}", told.text);
    daemon.stop();
    let (stop, metrics) = (Arc::new(AtomicBool::new(true)), Arc::new(Metrics::default()));
    let config = Daemon::config(&world, folder.path());
    let again = daemon::run(config, &stop, &metrics, &mut |_| {});
    assert!(matches!(again, Err(DaemonError::Key { node: 1, .. })));
}

#[test]
fn one_folder_is_for_one_daemon_at_a_time() {
    let world = World::with_a_node(35);
    let folder = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&world, folder.path());
    daemon.settle(&world);
    let (stop, metrics) = (Arc::new(AtomicBool::new(true)), Arc::new(Metrics::default()));
    let again = || {
        let config = Daemon::config(&world, folder.path());
        daemon::run(config, &stop, &metrics, &mut |_| {})
    };
    assert!(matches!(again(), Err(DaemonError::InUse(path)) if path == folder.path()));
    daemon.stop();
    assert!(again().is_ok());
}
