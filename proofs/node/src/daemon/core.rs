//! The core: one thread that all inputs come to.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use hypha_chain::contracts::{Capacity, Registry};
use hypha_chain::key::Key;
use hypha_chain::{Address, B256};
use hypha_proofs::binding::Binding;
use hypha_proofs::network::participant::{Action, Moment, Participant, Settings};
use hypha_proofs::network::schedule::{Pulse, Schedule};
use hypha_proofs::network::statement::Content;
use hypha_proofs::ram::Table;
use hypha_proofs::regenerate::Regeneration;
use serde_json::{Value, json};

use super::aggregator::Aggregator;
use super::appeals::{Appeals, Me, Now};
use super::inputs::{Input, Read, Reader};
use super::judging::Judging;
use super::sending::{Desk, Desks, Sent, Ticket};
use super::shards::ShardsState;
use super::showing::Shown;
use super::{Config, DaemonError, Event};
use crate::chain::book::{Change, Node};
use crate::chain::follower::{Horizon, News, start_of};
use crate::clock::{monotonic_ns, random32, unix_secs};
use crate::filler::plots::Plots;
use crate::filler::plotter::Plotter;
use crate::filler::shelf::lock;
use crate::memo::Memo;
use crate::metrics::{Metrics, add, set};
use crate::peers::link::Identity;
use crate::peers::{Contact, Peers};
use crate::shards::Keeper;
use crate::work::Draw;

/// Inputs that wait for the core; whoever has more waits.
const WAITING: usize = 256;
/// An epoch's trees: verdicts and rewards.
const TREES: u8 = 2;
/// How often what is not urgent is looked at.
const TEND_NS: u64 = 500_000_000;
/// How long the core sleeps at most: a stop is seen then.
const SLEEP_MAX: Duration = Duration::from_millis(500);
/// Statements of one epoch that are kept: four million take some gigabytes, and a network has seven for
/// each node and pulse.
pub(super) const STATEMENTS_MAX: usize = 4 << 20;
/// How many epochs' statements are kept: one can be disputed for six hours, and who begins then judges
/// from the last on that can't.
pub(super) const KEEP_EPOCHS: u32 = 10;

/// Where events go.
pub(super) struct Teller<'a>(pub(super) &'a mut dyn FnMut(&Event));

impl Teller<'_> {
    pub(super) fn tell(&mut self, kind: &'static str, text: String, fields: Value) {
        (self.0)(&Event { kind, text, fields });
    }
}

/// What is known of the chain's time.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct ChainTime {
    /// The newest block's time, in seconds since 1970.
    pub(super) secs: u64,
    /// The newest block that was read.
    pub(super) block: u64,
    /// The newest that has a transaction of this node.
    pub(super) awaits_block: u64,
    pub(super) is_down: bool,
    is_skewed: bool,
}

/// A node's daemon.
pub(super) struct Core<'a> {
    pub(super) config: Config,
    pub(super) participant: Participant,
    pub(super) peers: Peers,
    pub(super) sending: Desks,
    pub(super) judging: Judging,
    pub(super) appeals: Appeals,
    pub(super) aggregator: Option<Aggregator>,
    pub(super) memo: Memo,
    pub(super) plots: Plots,
    pub(super) plotter: Option<Plotter>,
    pub(super) keeper: Option<Keeper>,
    /// This node, as the chain has it.
    pub(super) mine: Option<Node>,
    pub(super) day: Option<(u32, B256)>,
    pub(super) table: Option<(u32, Arc<Table>)>,
    /// The day whose table is made or was, and what stops that.
    pub(super) making: Option<(u32, Arc<AtomicBool>)>,
    pub(super) pulses: BTreeMap<u64, Sender<Draw>>,
    pub(super) challenges: BTreeMap<u64, (Capacity::Challenge, Asked)>,
    pub(super) shards: ShardsState,
    /// It was told that anybody can park this node soon.
    pub(super) is_silence_told: bool,
    pub(super) is_shrunk: bool,
    pub(super) is_grown: bool,
    pub(super) committed_ns: Option<u64>,
    pub(super) time: ChainTime,
    pub(super) paused: Arc<AtomicBool>,
    is_regenerating: bool,
    /// It was told that the node has another key.
    is_replaced: bool,
    next_tend_ns: u64,
    pub(super) core: SyncSender<Input>,
    inputs: Receiver<Input>,
    pub(super) stop: Arc<AtomicBool>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) teller: Teller<'a>,
    /// Two that answer a pulse of one node would cost its stake.
    _lock: File,
}

/// How far the answer to a challenge is.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Asked {
    /// Nothing was done yet, or it may be tried again at that time.
    Waiting(u64),
    /// The leaf is being read, or made.
    Looking,
    /// It goes to the chain.
    Found(Shown),
}

impl<'a> Core<'a> {
    /// Opens all that it needs, and starts its threads.
    pub(super) fn start(
        config: Config,
        stop: &Arc<AtomicBool>,
        metrics: &Arc<Metrics>,
        tell: &'a mut dyn FnMut(&Event),
    ) -> Result<Self, DaemonError> {
        config.check_key()?;
        let schedule = config.schedule()?;
        let at = |source| DaemonError::Io { path: config.folder.clone(), source };
        let lock = take(&config.folder)?;
        let memo = Memo::open(&config.folder.join("proven"))?;
        let plots = Plots::open(&config.folder.join("plots")).map_err(at)?;
        let (core, inputs) = sync_channel(WAITING);
        let aggregator = config.aggregation.as_ref();
        let aggregator =
            aggregator.map(|it| Aggregator::open(&config, it, schedule)).transpose()?;
        let key = Arc::clone(&config.key);
        let sending = Desks::start(&config.client, config.keys(), stop, &core);
        let (chain_id, registry) = (config.chain_id, config.suite.registry);
        let identity = Identity { chain_id, registry, node: config.node };
        let inbox = core.clone();
        let deliver = Box::new(move |message| inbox.send(Input::Peer(message)).is_ok());
        let peers = Peers::start(config.listen, identity, Arc::clone(&key), deliver)
            .map_err(|error| DaemonError::Listen(config.listen, error))?;
        let settings = Settings {
            rules: config.network.rules,
            measured_per_mille: config.network.measured_per_mille,
            keep_epochs: KEEP_EPOCHS,
            statements_max: STATEMENTS_MAX,
            compare_ns: config.timing.compare_ns,
            ..Settings::standard(schedule)
        };
        let mut participant = Participant::new(config.binding(), key, settings);
        let mut teller = Teller(tell);
        let judging = Judging::open(&config, schedule, &mut participant, &mut teller)?;
        let appeals = config.appeals(schedule)?;
        start_reader(&config, schedule, stop, &core)?;
        let listens = peers.address();
        let fields = json!({"node": config.node, "at": listens, "chain_id": config.chain_id});
        teller.tell("proving", format!("node {} listens at {listens}", config.node), fields);
        Ok(Self {
            participant,
            peers,
            sending,
            judging,
            appeals,
            aggregator,
            memo,
            plots,
            plotter: None,
            keeper: None,
            shards: ShardsState::default(),
            mine: None,
            day: None,
            table: None,
            making: None,
            pulses: BTreeMap::new(),
            challenges: BTreeMap::new(),
            is_silence_told: false,
            is_shrunk: false,
            is_grown: false,
            committed_ns: None,
            time: ChainTime::default(),
            paused: Arc::new(AtomicBool::new(false)),
            is_regenerating: false,
            is_replaced: false,
            next_tend_ns: 0,
            core,
            inputs,
            stop: Arc::clone(stop),
            metrics: Arc::clone(metrics),
            teller,
            _lock: lock,
            config,
        })
    }

    /// Looks at inputs until it is stopped.
    pub(super) fn run(mut self) {
        while !self.stop.load(Ordering::Acquire) {
            let now_ns = monotonic_ns();
            let wakes_ns = self.participant.wakes_ns().min(self.next_tend_ns);
            let wait = Duration::from_nanos(wakes_ns.saturating_sub(now_ns)).min(SLEEP_MAX);
            match self.inputs.recv_timeout(wait) {
                Ok(input) => self.on_input(input),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            let Some(moment) = self.moment() else { continue };
            if moment.now_ns >= self.participant.wakes_ns() {
                let actions = self.participant.on_tick(&moment);
                self.act(actions);
            }
            if moment.now_ns >= self.next_tend_ns {
                self.next_tend_ns = moment.now_ns + TEND_NS;
                self.tend(moment.now_ns);
            }
        }
        if let Some((_, stop)) = &self.making {
            stop.store(true, Ordering::Release);
        }
        // First, so that no thread that has something to say waits for ever.
        drop(self.inputs);
    }

    fn on_input(&mut self, input: Input) {
        let Some(moment) = self.moment() else { return };
        match input {
            Input::Peer(message) => {
                let actions = self.participant.on_message(message.from, &message.bytes, &moment);
                self.act(actions);
            }
            Input::Chain(read) => self.on_chain(*read, &moment),
            Input::ChainDown(error) => self.on_chain_down(&error),
            Input::Reorganised(error) => self.on_reorganised(&error),
            Input::Pulse(pulse, outcome) => self.on_outcome(pulse, outcome, &moment),
            Input::Filler(event) => self.on_filler(&event),
            Input::Shards(event) => self.on_shards(event),
            Input::Table(day, table) => self.on_table(day, table, &moment),
            Input::Regenerated { node, is_table, is_true } => {
                self.is_regenerating = false;
                self.participant.on_regenerated(node, is_table, is_true, &moment);
                if !is_true {
                    let what = if is_table { "memory table" } else { "filler" };
                    let text = format!("node {node}'s {what} is not what it is said to be");
                    self.teller.tell(
                        "false-filler",
                        text,
                        json!({"node": node, "table": is_table}),
                    );
                }
            }
            Input::Shown(id, shown) => self.on_shown(id, shown, moment.now_ns),
            Input::Sent(sent) => self.on_sent(&sent, moment.now_ns),
        }
    }

    /// Now, with randomness; without it nothing is done, since whatever is drawn could be known.
    fn moment(&mut self) -> Option<Moment> {
        let random = random32();
        if random.is_none() {
            let text = "the system gives no randomness: nothing is answered".to_owned();
            self.teller.tell("no-randomness", text, json!({}));
            thread::sleep(SLEEP_MAX);
        }
        Some(Moment { now_ns: monotonic_ns(), random: B256::new(random?) })
    }

    fn on_chain(&mut self, read: Read, moment: &Moment) {
        let Read { news, is_fresh, mine, nodes } = read;
        set(&self.metrics.chain_up, 1);
        if std::mem::take(&mut self.time.is_down) {
            self.teller.tell("chain-up", "the chain answers again".to_owned(), json!({}));
        }
        if let Some(nodes) = nodes {
            self.know(&nodes);
        }
        self.appeals.on_mine(mine.as_ref().map(|mine| mine.member(self.config.node)));
        self.mine = mine;
        self.check_signer();
        for news in news {
            match news {
                News::Epoch { epoch, roster } => {
                    tracing::debug!(epoch, members = roster.members().len(), "an epoch begins");
                    self.participant.on_epoch(epoch, roster);
                }
                News::Ended { epoch, counts } => {
                    self.judging.on_ended(epoch, counts, is_fresh, moment.now_ns);
                }
                News::Day { day, salt } => {
                    self.participant.on_day(day, salt);
                    self.day = Some((day, salt));
                }
                News::Pulse(pulse) if is_fresh => self.on_pulse(&pulse, moment),
                News::Pulse(pulse) => self.participant.on_past_pulse(&pulse),
                News::Change { change, block } => self.on_change(change, block),
                News::Block { number, timestamp, is_newest } => {
                    set(&self.metrics.block, number);
                    set(&self.metrics.block_time, timestamp);
                    (self.time.secs, self.time.block) = (timestamp, number);
                    if is_newest {
                        self.check_clock(timestamp);
                        self.judging.on_newest(timestamp, moment.now_ns);
                    }
                }
            }
        }
    }

    fn on_pulse(&mut self, pulse: &Pulse, moment: &Moment) {
        add(&self.metrics.pulses, 1);
        let number = pulse.challenge.pulse;
        let fields = json!({"pulse": number, "epoch": pulse.epoch});
        self.teller.tell("pulse", format!("pulse {number} of epoch {}", pulse.epoch), fields);
        let actions = self.participant.on_pulse(pulse, moment);
        self.act(actions);
    }

    fn on_change(&mut self, change: Change, block: u64) {
        let me = self.config.node;
        match change {
            Change::Kept | Change::Reserved(_) => {}
            Change::Plot(node, plot) => {
                self.participant.on_plot(node, block, plot);
                if node == me {
                    set(&self.metrics.plot_bytes, plot.bytes_len);
                    self.look_again();
                }
            }
            Change::Challenged(challenge) if challenge.node == me => {
                let (id, deadline) = (challenge.id, challenge.deadline);
                let text = format!("challenge {id}: to be answered until {deadline}");
                let fields = json!({"challenge": id, "deadline": deadline});
                self.teller.tell("challenged", text, fields);
                self.challenges.insert(id, (challenge, Asked::Waiting(0)));
            }
            Change::Challenged(_) => {}
            Change::ChallengeOver(id) => {
                self.challenges.remove(&id);
                self.sending.forget(Ticket::Challenge(id));
            }
            Change::Posted(posted, data) => self.judging.on_posted(posted, data, monotonic_ns()),
            Change::Voided(epoch) => self.on_voided(epoch),
            Change::Demanded(demand, posted) => {
                // What has no leaf is an appeal: it is for a jury, and no data answers it.
                if demand.tree >= TREES {
                    self.appeals.on_appeal(&demand, &posted, block, &mut self.teller);
                } else if let Some(it) = &mut self.aggregator {
                    it.on_demand(demand);
                }
                self.judging.on_record(posted);
            }
            Change::DemandAnswered(id, posted) => {
                self.judging.on_record(posted);
                self.appeals.on_over(id, &mut self.sending);
                if let Some(it) = &mut self.aggregator {
                    it.on_demand_answered(id, &mut self.sending);
                }
            }
            Change::Seated(jury) => self.appeals.on_seated(jury),
            Change::Voted(id, node, is_true) => {
                self.appeals.on_voted(id, node, is_true, &mut self.teller);
            }
        }
    }

    fn on_voided(&mut self, epoch: u32) {
        let aggregator = self.judging.records.get(&epoch).map(|record| record.aggregator);
        let aggregator = aggregator.unwrap_or_default();
        let text = format!("epoch {epoch} was voided, and the bond of {aggregator} is lost");
        self.teller.tell("epoch-voided", text, json!({"epoch": epoch, "aggregator": aggregator}));
        if let Some(it) = &mut self.aggregator {
            it.on_voided(epoch, aggregator);
        }
        self.judging.on_voided(epoch, &mut self.participant, monotonic_ns());
        self.appeals.on_voided(epoch, &mut self.sending);
    }

    /// Judges what was posted, posts, appeals and votes. Times are the monotonic clock's and the chain's.
    pub(super) fn tend_epochs(&mut self, now: (u64, u64)) {
        let (participant, teller) = (&mut self.participant, &mut self.teller);
        self.judging.tend(participant, now, &self.metrics, teller);
        if self.time.block < self.time.awaits_block {
            // What was sent last is not read yet: it would be sent twice.
            return;
        }
        let at = Now { now_ns: now.0, now_secs: now.1, block: self.time.block };
        self.appeals.tend(&self.judging, &mut self.sending, at, teller);
        if let Some(it) = &mut self.aggregator {
            it.tend(participant, (&mut self.judging, &mut self.sending), now, teller);
        }
        self.tend_proof(now);
    }

    /// Says once that the chain does not answer.
    fn on_chain_down(&mut self, error: &str) {
        set(&self.metrics.chain_up, 0);
        if !std::mem::replace(&mut self.time.is_down, true) {
            let text = format!("the chain does not answer: {error}; it is asked again");
            self.teller.tell("chain-down", text, json!({"error": error}));
        }
    }

    /// Forgets what was read of the chain: all of it comes again, or does not stand any more.
    fn on_reorganised(&mut self, error: &str) {
        let text = format!("{error}; all is read anew");
        self.teller.tell("reorganised", text, json!({"error": error}));
        self.participant.begin_again();
        self.judging.begin_again(&mut self.participant);
        self.appeals.begin_again();
        if let Some(it) = &mut self.aggregator {
            it.begin_again();
        }
        self.challenges.clear();
        // What was sent may be gone too, with the block that it was in.
        self.time.awaits_block = 0;
    }

    /// Says once that the node has another key now: nobody listens to what this one signs.
    fn check_signer(&mut self) {
        let given = self.config.key.address();
        let wanted = self.mine.as_ref().map(|mine| mine.signer).filter(|signer| *signer != given);
        if let Some(wanted) = wanted
            && !self.is_replaced
        {
            let node = self.config.node;
            let text = format!(
                "node {node}'s chain key is {wanted} now, and nobody listens to {given}: start again with \
                 the --node-key that it has"
            );
            self.teller.tell("key-changed", text, json!({"node": node, "chain_key": wanted}));
        }
        self.is_replaced = wanted.is_some();
    }

    /// Says once that this host's clock and the chain's time are far apart. No deadline depends on it.
    fn check_clock(&mut self, block_secs: u64) {
        let here = unix_secs();
        let is_skewed = here.abs_diff(block_secs) > self.config.timing.skew_secs;
        if is_skewed && !self.time.is_skewed {
            let text = format!(
                "this host's clock says {here}, the newest block {block_secs}: one of them is wrong"
            );
            self.teller.tell("clock", text, json!({"here": here, "block": block_secs}));
        }
        self.time.is_skewed = is_skewed;
    }

    fn know(&mut self, nodes: &[(u32, Address, B256)]) {
        let contacts = nodes.iter().filter(|(node, ..)| *node != self.config.node);
        let contacts = contacts.map(|(node, signer, mesh_key)| {
            let given = self.config.peers.get(node).copied();
            let address = given.or_else(|| (self.config.address_of)(mesh_key));
            (*node, Contact { signer: *signer, address })
        });
        self.peers.know(contacts.collect());
    }

    pub(super) fn act(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Send { to, bytes } => self.peers.send(to, bytes),
                Action::Work { challenge, claim } => self.work(challenge, claim),
                Action::Open { pulse, witness, draw } => {
                    if let Some(pulse) = self.pulses.get(&pulse) {
                        // It may be over by now.
                        _ = pulse.send(Draw { witness, draw });
                    }
                }
                Action::Said(statement) => {
                    if let Content::Verdict(it) = &statement.content {
                        add(&self.metrics.verdicts, 1);
                        let (node, pulse) = (it.node, it.pulse);
                        tracing::debug!(node, pulse, threads = it.threads, "a verdict");
                    }
                }
                Action::Regenerate { node, is_table, job } => self.regenerate(node, is_table, job),
                Action::Evidence(evidence) => self.on_evidence(&evidence),
                Action::Fetched { hash, from, bytes } => self.on_fetched(&hash, from, bytes),
            }
        }
    }

    fn on_fetched(&mut self, hash: &B256, from: u32, bytes: Vec<u8>) {
        let text = format!("{} bytes of a posted epoch came from node {from}", bytes.len());
        let fields = json!({"hash": hash, "node": from, "bytes": bytes.len()});
        self.teller.tell("epoch-data-from", text, fields);
        self.judging.judge.on_fetched(hash, bytes, &mut self.participant);
    }

    /// Makes an extent of another node again, one at a time, at the lowest priority.
    fn regenerate(&mut self, node: u32, is_table: bool, mut job: Box<Regeneration>) {
        if std::mem::replace(&mut self.is_regenerating, true) {
            return;
        }
        let (core, stop) = (self.core.clone(), Arc::clone(&self.stop));
        thread::spawn(move || {
            // Without it, it is as urgent as all else here; nothing waits for it.
            _ = rustix::process::setpriority_process(None, 19);
            while job.advance(1 << 16) > 0 {
                if stop.load(Ordering::Acquire) {
                    return;
                }
            }
            let is_true = job.finish().unwrap_or(true);
            _ = core.send(Input::Regenerated { node, is_table, is_true });
        });
    }

    fn on_sent(&mut self, sent: &Sent, now_ns: u64) {
        let Sent { ticket, result, .. } = sent;
        let short = self.sending.on_sent(sent, now_ns);
        set(&self.metrics.accounts_without_gas, self.sending.without_gas());
        if let Some(it) = self.aggregator.as_mut().filter(|_| result.is_ok()) {
            it.on_done(*ticket);
        }
        let what = format!("{ticket:?}").to_lowercase();
        match result {
            Ok((hash, block)) => {
                // What it has changed is known here when that block was read, and not before.
                self.time.awaits_block = self.time.awaits_block.max(*block);
                match ticket {
                    Ticket::Challenge(_) => add(&self.metrics.challenges_answered, 1),
                    Ticket::Epoch(_) => add(&self.metrics.epochs_posted, 1),
                    Ticket::Vote(_) => add(&self.metrics.votes, 1),
                    Ticket::Appeal(_) => add(&self.metrics.appeals, 1),
                    _ => {}
                }
                let fields = json!({"what": what, "transaction": hash});
                self.teller.tell("sent", format!("{what}: transaction {hash:#x}"), fields);
            }
            Err(error) => {
                add(&self.metrics.transactions_failed, 1);
                self.tell_not_sent(&what, &error.text, short);
            }
        }
    }

    /// Says why a transaction is not in a block; of an account that can't pay for gas, once until it can.
    fn tell_not_sent(&mut self, what: &str, error: &str, short: Option<(Address, bool)>) {
        let fields = json!({"what": what, "error": error, "account": short.map(|it| it.0)});
        match short {
            Some((account, true)) => {
                let text = format!(
                    "{what}: {account} can't pay for gas, and nothing of it is sent until it can \
                     ({error}): send it some ether"
                );
                self.teller.tell("no-gas", text, fields);
            }
            Some((_, false)) => tracing::debug!("{what}: {error}"),
            None => {
                let text = format!("{what}: {error}; it is tried again");
                self.teller.tell("not-sent", text, fields);
            }
        }
    }
}

impl Config {
    /// Refuses a key that the node had before: what it signs is of no use, but as evidence.
    fn check_key(&self) -> Result<(), DaemonError> {
        let (node, given) = (self.node, self.key.address());
        let call = Registry::nodeAtCall { node };
        let wanted = self.client.view(self.suite.registry, &call)?.signer;
        if wanted == given { Ok(()) } else { Err(DaemonError::Key { node, wanted, given }) }
    }

    /// All keys that transactions are signed by.
    fn keys(&self) -> Vec<(Desk, Arc<Key>)> {
        let aggregator =
            self.aggregation.as_ref().map(|it| (Desk::Aggregator, Arc::clone(&it.key)));
        let appellant = self.appellant.as_ref().map(|it| (Desk::Appellant, Arc::clone(it)));
        let appellant = appellant.filter(|(_, it)| {
            aggregator.as_ref().is_none_or(|(_, other)| other.address() != it.address())
        });
        let own = (Desk::Node, Arc::clone(&self.key));
        [Some(own), aggregator, appellant].into_iter().flatten().collect()
    }

    fn appeals(&self, schedule: Schedule) -> Result<Appeals, DaemonError> {
        let aggregator = self.aggregation.as_ref().map(|it| it.key.address());
        let appellant = self.appellant.as_ref().map(|key| {
            let address = key.address();
            // One key's transactions are sent one after the other.
            let is_one = aggregator == Some(address);
            (address, if is_one { Desk::Aggregator } else { Desk::Appellant })
        });
        let window = self.client.view(self.suite.capacity, &Capacity::windowCall {})?;
        let me = Me { node: self.node, schedule, member: None };
        Ok(Appeals::new((me, self.suite, window), appellant, aggregator))
    }

    /// When pulses are.
    fn schedule(&self) -> Result<Schedule, DaemonError> {
        Ok(Schedule {
            chain_id: self.chain_id,
            capacity: self.suite.capacity,
            start_secs: start_of(&self.client, &self.suite)?,
            round_secs: self.cadence_secs,
            mean_secs: self.network.pulse_mean_secs,
            quiet_secs: self.network.pulse_quiet_secs,
        })
    }

    pub(super) fn binding(&self) -> Binding {
        Binding {
            chain_id: self.chain_id,
            registry: self.suite.registry,
            capacity: self.suite.capacity,
            disputes: self.suite.disputes,
            node: self.node,
        }
    }
}

/// Makes the folder and locks it.
fn take(folder: &Path) -> Result<File, DaemonError> {
    let at = |source| DaemonError::Io { path: folder.to_owned(), source };
    std::fs::create_dir_all(folder).map_err(at)?;
    lock(folder).map_err(at)?.ok_or_else(|| DaemonError::InUse(folder.to_owned()))
}

fn start_reader(
    config: &Config,
    schedule: Schedule,
    stop: &Arc<AtomicBool>,
    core: &SyncSender<Input>,
) -> Result<(), DaemonError> {
    let (first_block, confirmations) = (config.first_block, config.confirmations);
    let reader = Reader {
        client: config.client.clone(),
        suite: config.suite,
        schedule,
        horizon: Horizon { epochs: KEEP_EPOCHS, first_block, confirmations },
        node: config.node,
        poll: config.timing.poll,
        stop: Arc::clone(stop),
        core: core.clone(),
    };
    let named = thread::Builder::new().name("chain".to_owned());
    named.spawn(|| reader.run()).map_err(DaemonError::Thread)?;
    Ok(())
}
