//! A daemon on an embedded chain whose time goes when the test says.

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
use proof_node::metrics::Metrics;

use crate::{CADENCE, CHAIN_ID, World, key, tokens};

/// Blocks until something must have happened; nothing asserts a time.
const PATIENCE: usize = 400;
/// How long a block waits for the daemon.
const PACE: Duration = Duration::from_millis(800);

/// Who posts, who appeals, and whose node it is.
pub(crate) const POSTER: u8 = 21;
pub(crate) const APPELLANT: u8 = 1;
pub(crate) const NODE: u8 = 11;

/// One that is running, what it has told so far, and what it has counted.
pub(crate) struct Daemon {
    stop: Arc<AtomicBool>,
    told: Arc<(Mutex<Vec<Event>>, Condvar)>,
    pub(crate) metrics: Arc<Metrics>,
    running: Option<JoinHandle<()>>,
}

impl Daemon {
    pub(crate) fn config(world: &World, folder: &Path) -> Config {
        Config {
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
        }
    }

    pub(crate) fn start(world: &World, folder: &Path) -> Self {
        Self::run(Self::config(world, folder))
    }

    pub(crate) fn run(config: Config) -> Self {
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
    pub(crate) fn wait(&self, world: &mut World, kind: &str, epoch: u32) -> Event {
        self.wait_for(world, |it| it.kind == kind && it.fields["epoch"] == epoch)
    }

    /// Makes blocks until such an event is told.
    pub(crate) fn wait_for(&self, world: &mut World, is_it: impl Fn(&Event) -> bool) -> Event {
        for _ in 0..PATIENCE {
            let events = self.told.0.lock().unwrap();
            let none = |events: &mut Vec<Event>| !events.iter().any(&is_it);
            let (events, _) = self.told.1.wait_timeout_while(events, PACE, none).unwrap();
            if let Some(event) = events.iter().find(|it| is_it(it)) {
                return event.clone();
            }
            drop(events);
            world.block();
        }
        panic!("it did not come: {:#?}", self.told.0.lock().unwrap());
    }

    /// Makes blocks until the chain is so.
    pub(crate) fn until(&self, world: &mut World, is_so: impl Fn(&World) -> bool) {
        for _ in 0..PATIENCE {
            if is_so(world) {
                return;
            }
            thread::sleep(PACE / 8);
            world.block();
        }
        panic!("it is not so: {:#?}", self.told.0.lock().unwrap());
    }

    /// Waits until all blocks were read and what follows from them was looked at.
    pub(crate) fn settle(&self, world: &World) {
        let head = world.client.head().unwrap().number;
        for _ in 0..PATIENCE {
            thread::sleep(PACE);
            if self.metrics.block.load(Ordering::Relaxed) >= head {
                return;
            }
        }
        panic!("block {head} was not read");
    }

    pub(crate) fn stop(mut self) {
        self.stop.store(true, Ordering::Release);
        self.running.take().unwrap().join().unwrap();
    }
}

impl World {
    /// A chain with a node, and who posts epochs.
    pub(crate) fn with_a_node(seed: u8) -> Self {
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

    pub(crate) fn fund(&mut self, to: u8) {
        let (to, amount) = (key(to).address(), tokens(1000));
        self.send(1, self.suite.token, &GridToken::transferCall { to, amount });
    }

    /// Goes on until an epoch is over.
    pub(crate) fn end(&mut self, epoch: u32) {
        while self.now <= self.schedule().epoch_end(epoch) + CADENCE {
            self.block();
        }
    }

    /// Goes on to the end of an epoch at once, without blocks between.
    pub(crate) fn jump(&mut self, epoch: u32) {
        self.now = self.now.max(self.schedule().epoch_end(epoch));
        self.block();
    }

    /// What there is to say of an epoch: nobody said anything in it.
    pub(crate) fn honest(&self, ledger: &Ledger, epoch: u32) -> EpochData {
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

    pub(crate) fn post(&mut self, data: &EpochData) {
        self.send(POSTER, self.suite.capacity, &data.post().unwrap());
    }
}
