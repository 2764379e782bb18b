//! A daemon that judges what somebody else posts, on an embedded chain whose time goes when the test says:
//! it keeps what it finds true, appeals against the rest, votes, and goes on where it was after a restart.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use hypha_chain::contracts::{Capacity, GridToken, Registry};
use hypha_chain::{B256, U256};
use hypha_proofs::Rules;
use hypha_proofs::network::epoch::EpochData;
use hypha_proofs::network::ledger::{Closing, Ledger, Terms, Weights};
use hypha_proofs::network::pool::Pool;
use hypha_proofs::network::roster::Roster;
use proof_node::daemon::{self, Config, Event, Network, Timing};
use proof_node::kept;
use proof_node::metrics::Metrics;

use crate::{CADENCE, CHAIN_ID, World, key, tokens};

/// Blocks until something must have happened; nothing asserts a time.
const PATIENCE: usize = 400;
/// How long a block waits for the daemon.
const PACE: Duration = Duration::from_millis(800);

/// Who posts, who appeals, and whose node it is.
const POSTER: u8 = 21;
const APPELLANT: u8 = 1;
const NODE: u8 = 11;

struct Daemon {
    stop: Arc<AtomicBool>,
    told: Arc<(Mutex<Vec<Event>>, Condvar)>,
    metrics: Arc<Metrics>,
    running: Option<JoinHandle<()>>,
}

impl Daemon {
    fn start(world: &World, folder: &Path) -> Self {
        let config = Config {
            node: 1,
            key: Arc::new(key(NODE)),
            client: world.client.clone(),
            chain_id: CHAIN_ID,
            suite: world.suite,
            first_block: 0,
            confirmations: 0,
            cadence_secs: CADENCE,
            network: Network {
                rules: Rules::STANDARD,
                // None that anybody lives to see.
                pulse_mean_secs: 1 << 50,
                pulse_quiet_secs: 120,
                measured_per_mille: 0,
            },
            timing: Timing {
                poll: Duration::from_millis(20),
                gather_ns: 300_000_000,
                patience_ns: 600_000_000,
                skew_secs: u64::MAX,
                ..Timing::STANDARD
            },
            folder: folder.to_owned(),
            places: Vec::new(),
            shards: Vec::new(),
            extent_bytes: 1 << 30,
            plot_threads: 1,
            memory_mib_max: 0,
            listen: "127.0.0.1:0".parse().unwrap(),
            peers: Default::default(),
            address_of: |_| None,
            aggregation: None,
            appellant: Some(Arc::new(key(APPELLANT))),
        };
        let (stop, metrics) = (Arc::new(AtomicBool::new(false)), Arc::new(Metrics::default()));
        let told = Arc::new((Mutex::new(Vec::new()), Condvar::new()));
        let (stops, counts, tells) = (Arc::clone(&stop), Arc::clone(&metrics), Arc::clone(&told));
        let running = thread::spawn(move || {
            let mut tell = |event: &Event| {
                tells.0.lock().unwrap().push(event.clone());
                tells.1.notify_all();
            };
            daemon::run(config, &stops, &counts, &mut tell).unwrap();
        });
        Self { stop, told, metrics, running: Some(running) }
    }

    /// Makes blocks until an event of a kind and an epoch is told.
    fn wait(&self, world: &mut World, kind: &str, epoch: u32) -> Event {
        let is_it = |it: &&Event| it.kind == kind && it.fields["epoch"] == epoch;
        for _ in 0..PATIENCE {
            let events = self.told.0.lock().unwrap();
            let none = |events: &mut Vec<Event>| !events.iter().any(|it| is_it(&it));
            let (events, _) = self.told.1.wait_timeout_while(events, PACE, none).unwrap();
            if let Some(event) = events.iter().find(is_it) {
                return event.clone();
            }
            drop(events);
            world.block();
        }
        panic!("{kind} did not come: {:#?}", self.told.0.lock().unwrap());
    }

    fn stop(mut self) {
        self.stop.store(true, Ordering::Release);
        self.running.take().unwrap().join().unwrap();
    }
}

impl World {
    /// A chain with a node, and who posts epochs.
    fn with_a_node(seed: u8) -> Self {
        let mut world = Self::new(seed);
        let (registry, token, capacity) =
            (world.suite.registry, world.suite.token, world.suite.capacity);
        let payout = key(APPELLANT).address();
        world.send(1, registry, &Registry::addFarmCall { payout, meta: B256::ZERO });
        world.add_node(1, NODE, 100);
        world.fund(POSTER);
        world.send(POSTER, token, &GridToken::approveCall { spender: capacity, amount: U256::MAX });
        world.send(POSTER, capacity, &Capacity::joinCall {});
        world
    }

    fn fund(&mut self, to: u8) {
        let (to, amount) = (key(to).address(), tokens(1000));
        self.send(1, self.suite.token, &GridToken::transferCall { to, amount });
    }

    /// Goes on until an epoch is over.
    fn end(&mut self, epoch: u32) {
        while self.now <= self.schedule().epoch_end(epoch) + CADENCE {
            self.block();
        }
    }

    /// What there is to say of an epoch: nobody said anything in it.
    fn honest(&self, ledger: &Ledger, epoch: u32) -> EpochData {
        let terms = Terms {
            emission: 1_000_000_000_000_000_000,
            cap: 1_000_000_000_000_000_000_000,
            disk_draws: Rules::STANDARD.disk_draws,
            measured_per_mille: 0,
            weights: Weights::STANDARD,
        };
        let ends_secs = self.schedule().epoch_end(epoch);
        let (roster, pool) = (Roster::new(Vec::new(), ends_secs).unwrap(), Pool::new(1));
        let (counts, pulses) = ((1, 1), [].as_slice());
        let closing = Closing { epoch, ends_secs, counts, roster: &roster, pulses, pool: &pool };
        ledger.skip(&terms, epoch).close(&terms, &closing).unwrap()
    }

    fn post(&mut self, data: &EpochData) {
        self.send(POSTER, self.suite.capacity, &data.post().unwrap());
    }
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
    assert_eq!(kept::read(&epochs.join("0")).unwrap().data, first);
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
    assert_eq!(kept::read(&epochs.join("1")).unwrap().data, second);
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
