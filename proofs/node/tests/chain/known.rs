//! What a daemon knew of an epoch in time outlives it: who leaves that out is found out after a restart too.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use hypha_chain::contracts::Registry;
use hypha_chain::{B256, keccak256};
use hypha_proofs::Rules;
use hypha_proofs::binding::Binding;
use hypha_proofs::network::epoch::EpochData;
use hypha_proofs::network::ledger::{Closing, Ledger, Terms, Weights};
use hypha_proofs::network::message::Message;
use hypha_proofs::network::pool::{Pool, Term};
use hypha_proofs::network::roster::Roster;
use hypha_proofs::network::schedule::Pulse;
use hypha_proofs::network::statement::{Content, Statement};
use hypha_proofs::verifier::PulseVerdict;
use proof_node::chain::follower::News;
use proof_node::daemon::Config;
use proof_node::kept;

use crate::daemon::Daemon;
use crate::flood::{HONEST, Honest, signer};
use crate::{CHAIN_ID, World, catch_up, key, pulses, tokens};

const SECOND: u64 = 1_000_000_000;

/// Two nodes of two farms, and a pulse of epoch 1, of which only one thing was said.
struct Court {
    world: World,
    roster: Arc<Roster>,
    pulse: Pulse,
    /// Node 2's verdict on node 1.
    said: Statement,
}

impl Court {
    fn new(seed: u8) -> Self {
        let mut world = World::with_a_node(seed);
        let payout = key(1).address();
        let call = Registry::addFarmCall { payout, meta: B256::ZERO };
        world.send(1, world.suite.registry, &call);
        world.add_node(HONEST, signer(HONEST), 100);
        world.end(0);
        let (roster, pulse) = loop {
            let news = catch_up(&mut world.follower(8));
            let roster = news.iter().find_map(|news| match news {
                News::Epoch { epoch: 1, roster } => Some(Arc::clone(roster)),
                _ => None,
            });
            if let Some(pulse) = pulses(&news).into_iter().find(|it| it.epoch == 1) {
                break (roster.unwrap(), pulse);
            }
            world.block();
        };
        let binding = Binding {
            chain_id: CHAIN_ID,
            registry: world.suite.registry,
            capacity: world.suite.capacity,
            disputes: world.suite.disputes,
            node: HONEST,
        };
        let (node, pulse_number) = (1, pulse.challenge.pulse);
        let verdict = PulseVerdict {
            node,
            pulse: pulse_number,
            threads: 4,
            memMiB: 0,
            diskMiB: 0,
            fillerDraws: 0,
        };
        let content = Content::Verdict(verdict);
        let said = Statement::new(HONEST, content, &binding, &key(signer(HONEST)));
        Self { world, roster, pulse, said }
    }

    /// A daemon that has time to hear something before an epoch settles, and answers pulses at once.
    fn config(&self, folder: &Path, gather_secs: u64) -> Config {
        let mut config = Daemon::config(&self.world, folder);
        let light = Rules { segments: 1, walk_steps: 1, ..Rules::STANDARD };
        config.network.rules = light;
        config.network.pulse_mean_secs = self.world.schedule().mean_secs;
        config.timing.gather_ns = gather_secs * SECOND;
        config.timing.patience_ns = 300 * SECOND;
        config.appellant = None;
        config
    }

    /// The epoch as it is if nothing was said in it.
    fn without(&self) -> EpochData {
        let terms = Terms {
            emission: tokens(1).to(),
            cap: tokens(1000).to(),
            disk_draws: Rules::STANDARD.disk_draws,
            measured_per_mille: 0,
            weights: Weights::STANDARD,
        };
        let ends_secs = self.world.schedule().epoch_end(1);
        let news = catch_up(&mut self.world.follower(8));
        let pulses: Vec<Pulse> = pulses(&news).into_iter().filter(|it| it.epoch == 1).collect();
        assert!(pulses.contains(&self.pulse));
        let (roster, counts, pool) = (&self.roster, (2, 2), &Pool::new(1));
        let closing = Closing { epoch: 1, ends_secs, counts, roster, pulses: &pulses, pool };
        Ledger::default().skip(&terms, 1).close(&terms, &closing).unwrap()
    }

    /// Starts a daemon, and node 2, which tells it what it has said.
    fn start(&mut self, config: Config, served: &EpochData) -> (Daemon, Neighbour) {
        let daemon = Daemon::run(config);
        let listens = daemon.wait_for(&mut self.world, |it| it.kind == "proving");
        let at = listens.fields["at"].as_str().unwrap().parse().unwrap();
        let honest = Honest::start(&self.world, at);
        (daemon, Neighbour::start(honest, self.said.clone(), served.encode()))
    }
}

/// Whether it is on the disk that this was known in time.
fn is_kept(folder: &Path, id: u128) -> bool {
    let file = std::fs::read(folder.join("known/1")).unwrap_or_default();
    let known = kept::decode_known(&file);
    known.is_some_and(|(epoch, known)| epoch == 1 && known.0.contains(&id))
}

/// Node 2: it says something until node 1 has heard it, and serves an epoch's data.
struct Neighbour {
    stop: Arc<AtomicBool>,
    is_heard: Arc<AtomicBool>,
    serving: Option<JoinHandle<()>>,
}

impl Neighbour {
    fn start(Honest { peers, answers }: Honest, said: Statement, served: Vec<u8>) -> Self {
        let (stop, is_heard) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (stops, hears) = (Arc::clone(&stop), Arc::clone(&is_heard));
        let serving = thread::spawn(move || {
            while !stops.load(Ordering::Acquire) {
                if !hears.load(Ordering::Acquire) {
                    peers.send(1, Message::Statements(vec![said.clone()]).encode());
                    peers.send(1, Message::Want(Term::Epoch(1), vec![said.id()]).encode());
                }
                let Ok(it) = answers.recv_timeout(Duration::from_millis(100)) else { continue };
                match Message::decode(&it.bytes) {
                    Ok(Message::Statements(told)) if told.contains(&said) => {
                        hears.store(true, Ordering::Release);
                    }
                    Ok(Message::WantPiece { hash, offset }) if hash == keccak256(&served) => {
                        let (total, bytes) =
                            (served.len() as u32, served[offset as usize..].to_vec());
                        peers.send(1, Message::Piece { hash, offset, total, bytes }.encode());
                    }
                    _ => {}
                }
            }
        });
        Self { stop, is_heard, serving: Some(serving) }
    }

    fn wait_until_heard(&self) {
        for _ in 0..600 {
            if self.is_heard.load(Ordering::Acquire) {
                return;
            }
            thread::sleep(Duration::from_millis(100));
        }
        panic!("node 1 does not hear what node 2 says");
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // One that panicked has printed why.
        self.serving.take().map(JoinHandle::join);
    }
}

#[test]
fn what_was_known_in_time_and_left_out_is_found_out_after_a_restart() {
    let mut court = Court::new(40);
    let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let config = court.config(folder.path(), 3);
    let nothing = court.world.honest(&Ledger::default(), 1);
    let (daemon, neighbour) = court.start(config, &nothing);
    neighbour.wait_until_heard();
    court.world.end(1);
    let id = court.said.id();
    daemon.until(&mut court.world, |_| is_kept(folder.path(), id));
    drop(neighbour);
    daemon.stop();
    // More than ten minutes later: what comes now came too late.
    (0..11).for_each(|_| court.world.block());
    let without = court.without();
    court.world.post(&without);
    let config = court.config(other.path(), 3);
    let (daemon, neighbour) = court.start(config, &without);
    neighbour.wait_until_heard();
    daemon.wait(&mut court.world, "epoch-true", 1);
    assert!(!other.path().join("known/1").exists());
    drop(neighbour);
    daemon.stop();
    // Who knew it in time still does.
    let config = court.config(folder.path(), 3);
    let (daemon, _neighbour) = court.start(config, &without);
    let found = daemon.wait(&mut court.world, "epoch-differs", 1);
    assert!(found.text.contains(&format!("statement {id:032x} was left out")), "{}", found.text);
    daemon.stop();
}

#[test]
fn who_restarts_before_an_epoch_settles_knows_what_it_hears_again_in_time() {
    let mut court = Court::new(41);
    let folder = tempfile::tempdir().unwrap();
    court.world.end(1);
    let nothing = court.world.honest(&Ledger::default(), 1);
    let config = court.config(folder.path(), 40);
    let (daemon, neighbour) = court.start(config, &nothing);
    neighbour.wait_until_heard();
    for _ in 0..600 {
        if is_kept(folder.path(), court.said.id()) {
            return daemon.stop();
        }
        thread::sleep(Duration::from_millis(100));
    }
    panic!("it was not known in time");
}
