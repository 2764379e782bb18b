//! Epochs: closed when they are over, kept, posted, and their leaves shown to whoever demands them.
//!
//! The data of each are a file, `epochs/NUMBER`, synced before anything is posted: a root whose data are
//! lost would cost the bond.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::SyncSender;

use hypha_chain::contracts::{Capacity, GridToken, Rewards};
use hypha_chain::{Address, B256, U256};
use hypha_proofs::network::epoch::EpochData;
use hypha_proofs::network::ledger::{Closing, Ledger, Terms, Weights};
use hypha_proofs::network::participant::Participant;
use hypha_proofs::network::pool::Pool;
use hypha_proofs::network::roster::Roster;
use hypha_proofs::network::schedule::{EPOCH_SECS, Schedule};
use serde_json::json;

use super::core::Teller;
use super::inputs::Input;
use super::sending::{Sending, Ticket};
use super::{Aggregation, Config, DaemonError};
use crate::filler::shelf::{read_at_most, write_whole};

/// How many epochs' data are kept: those that can be claimed from, and some more.
const KEPT: usize = 48;
/// The most bytes of an epoch's data that are read.
const DATA_BYTES_MAX: u64 = 1 << 30;
/// An epoch's trees: verdicts and rewards.
const TREES: u8 = 2;
/// How long before the end of an appeal's vote its jury must be seated (`Capacity.VOTE_SECONDS`).
const VOTE_SECS: u64 = 3000;
/// The contract keeps as many epochs: an older one can't be posted.
const RING: u64 = 24;

/// Who posts epochs.
pub(super) struct Aggregator {
    folder: PathBuf,
    terms: Terms,
    schedule: Schedule,
    suite: hypha_chain::deploy::Suite,
    account: Address,
    is_joined: bool,
    ledger: Ledger,
    /// Epochs that are over: what the Registry had then, and when they are closed, on the monotonic clock.
    over: BTreeMap<u32, ((u32, u32), u64)>,
    data: BTreeMap<u32, Arc<EpochData>>,
    posted: BTreeMap<u32, Capacity::Epoch>,
    demands: BTreeMap<u64, Capacity::Demand>,
    /// Appeals against epochs that this aggregator has posted.
    appeals: BTreeMap<u64, Appeal>,
    pub(super) sending: Sending,
}

/// An appeal against an epoch, for a jury to judge.
struct Appeal {
    demand: Capacity::Demand,
    posted_at: u64,
    is_seated: bool,
}

impl Aggregator {
    /// Reads what was kept, and asks the chain for its terms.
    pub(super) fn open(
        config: &Config,
        it: &Aggregation,
        schedule: Schedule,
        stop: &Arc<AtomicBool>,
        core: &SyncSender<Input>,
    ) -> Result<Self, DaemonError> {
        let (client, suite) = (&config.client, config.suite);
        let emission = client.view(suite.rewards, &Rewards::emissionCall {})?;
        let cap = client.view(suite.rewards, &Rewards::capCall {})?;
        let account = it.key.address();
        let bond = client.view(suite.capacity, &Capacity::aggregatorsCall(account))?.bond;
        let terms = Terms {
            emission: u128::try_from(emission).unwrap_or(u128::MAX),
            cap: u128::try_from(cap).unwrap_or(u128::MAX),
            disk_draws: config.network.rules.disk_draws,
            measured_per_mille: config.network.measured_per_mille,
            weights: Weights::STANDARD,
        };
        let data = read_all(&it.folder)?;
        let ledger = data.values().next_back().map(|data| data.ledger.clone()).unwrap_or_default();
        let (stop, core) = (Arc::clone(stop), core.clone());
        Ok(Self {
            folder: it.folder.clone(),
            terms,
            schedule,
            suite,
            account,
            is_joined: bond > 0,
            ledger,
            over: BTreeMap::new(),
            data,
            posted: BTreeMap::new(),
            demands: BTreeMap::new(),
            appeals: BTreeMap::new(),
            sending: Sending::start(client.clone(), Arc::clone(&it.key), stop, core),
        })
    }

    /// An epoch is over; it is closed when statements had time to come.
    pub(super) fn on_ended(&mut self, epoch: u32, counts: (u32, u32), due_ns: u64) {
        if epoch >= self.ledger.next {
            self.over.insert(epoch, (counts, due_ns));
        }
    }

    /// Somebody has posted an epoch.
    pub(super) fn on_posted(&mut self, posted: Capacity::Epoch, data: B256, teller: &mut Teller) {
        let epoch = posted.epoch;
        let ours = self.data.get(&epoch).and_then(|ours| ours.post());
        let roots = |call: &Capacity::postEpochCall| (call.verdictRoot, call.rewardRoot);
        if posted.aggregator != self.account
            && ours.is_some_and(|ours| roots(&ours) != (posted.verdictRoot, posted.rewardRoot))
        {
            let text = format!(
                "epoch {epoch} as {} has posted it differs from what is known here: compare the data",
                posted.aggregator
            );
            let fields = json!({"epoch": epoch, "aggregator": posted.aggregator, "data": data});
            teller.tell("epoch-differs", text, fields);
        }
        self.posted.insert(epoch, posted);
        while self.posted.len() > KEPT {
            self.posted.pop_first();
        }
    }

    /// An epoch does not stand any more.
    pub(super) fn on_voided(&mut self, epoch: u32, teller: &mut Teller) {
        let voided = self.posted.remove(&epoch);
        self.appeals.retain(|_, appeal| appeal.demand.epoch != epoch);
        if voided.is_some_and(|posted| posted.aggregator == self.account) {
            self.is_joined = false;
            let text = format!("epoch {epoch} was voided, and this aggregator's bond is lost");
            teller.tell("epoch-voided", text, json!({"epoch": epoch}));
        }
    }

    /// Somebody wants to see a leaf, or appeals.
    pub(super) fn on_demand(
        &mut self,
        demand: Capacity::Demand,
        posted: Capacity::Epoch,
        teller: &mut Teller,
    ) {
        let (posted_at, is_ours) = (posted.postedAt, posted.aggregator == self.account);
        self.posted.insert(posted.epoch, posted);
        // What has no leaf is an appeal: it is for a jury, and no data answers it.
        if demand.tree < TREES {
            self.demands.insert(demand.id, demand);
        } else if is_ours {
            let (id, epoch) = (demand.id, demand.epoch);
            let text = format!("appeal {id} against epoch {epoch}: a jury decides");
            teller.tell("appealed", text, json!({"appeal": id, "epoch": epoch}));
            self.appeals.insert(id, Appeal { demand, posted_at, is_seated: false });
        }
    }

    /// It was shown.
    pub(super) fn on_demand_answered(&mut self, id: u64, posted: Capacity::Epoch) {
        self.posted.insert(posted.epoch, posted);
        self.demands.remove(&id);
        self.appeals.remove(&id);
        [Ticket::Demand(id), Ticket::Seat(id), Ticket::Decide(id)]
            .into_iter()
            .for_each(|ticket| self.sending.forget(ticket));
    }

    /// Does what is due. `now_secs` is the chain's time.
    pub(super) fn tend(
        &mut self,
        participant: &Participant,
        (now_ns, now_secs): (u64, u64),
        teller: &mut Teller,
    ) {
        while let Some((epoch, (counts, due_ns))) = self.over.first_key_value()
            && *due_ns <= now_ns
        {
            let (epoch, counts) = (*epoch, *counts);
            self.close_up_to(epoch, counts, participant, teller);
            self.over.remove(&epoch);
        }
        self.join(now_ns);
        self.post(now_ns, now_secs);
        self.answer(now_ns, now_secs);
        self.defend(now_ns, now_secs);
    }

    /// Closes an epoch, and those before it that this node was not there for: of these it knows no
    /// statements, so nobody earned anything in them, unless their data are put into the folder.
    fn close_up_to(
        &mut self,
        epoch: u32,
        counts: (u32, u32),
        participant: &Participant,
        teller: &mut Teller,
    ) {
        let empty = (Roster::new(Vec::new(), 0), Pool::new(1));
        while self.ledger.next <= epoch {
            let number = self.ledger.next;
            let (Ok(nobody), nothing) = &empty else { return };
            let closing = Closing {
                epoch: number,
                ends_secs: self.schedule.epoch_end(number),
                counts,
                roster: participant.roster(number).map_or(nobody, Arc::as_ref),
                pulses: participant.pulses(number),
                pool: participant.pool(number).unwrap_or(nothing),
            };
            let closed = match self.ledger.close(&self.terms, &closing) {
                Ok(closed) => closed,
                Err(error) => {
                    let text = format!("epoch {number} can't be closed: {error}");
                    return teller.tell("epoch-failed", text, json!({"epoch": number}));
                }
            };
            if let Err(error) = write_whole(&self.folder.join(number.to_string()), &closed.encode())
            {
                let text = format!("epoch {number} can't be kept, so it is not posted: {error}");
                return teller.tell("epoch-failed", text, json!({"epoch": number}));
            }
            let pulses = closed.verdicts.iter().map(|leaf| leaf.pulses).max().unwrap_or(0);
            let answered = closed.verdicts.iter().filter(|leaf| leaf.answered > 0).count();
            let text = format!("epoch {number}: {pulses} pulses, {answered} nodes answered");
            let fields = json!({"epoch": number, "pulses": pulses, "answered": answered,
                "statements": closing.pool.len(), "data": closed.hash()});
            teller.tell("epoch", text, fields);
            self.ledger = closed.ledger.clone();
            self.data.insert(number, Arc::new(closed));
            while self.data.len() > KEPT {
                if let Some((old, _)) = self.data.pop_first() {
                    // It is of no use any more, and does no harm either.
                    _ = fs::remove_file(self.folder.join(old.to_string()));
                }
            }
        }
    }

    fn join(&mut self, now_ns: u64) {
        let capacity = self.suite.capacity;
        if self.is_joined || !self.sending.is_free(Ticket::Join, now_ns) {
            return;
        }
        let amount = U256::from(1000) * U256::from(10).pow(U256::from(18));
        let approve = GridToken::approveCall { spender: capacity, amount };
        self.sending.send(Ticket::Approve, self.suite.token, &approve, now_ns);
        // They are sent one after the other: this one when the other is in a block.
        self.sending.send(Ticket::Join, capacity, &Capacity::joinCall {}, now_ns);
    }

    fn post(&mut self, now_ns: u64, now_secs: u64) {
        if !self.is_joined {
            return;
        }
        for (epoch, data) in &self.data {
            let ended = self.schedule.epoch_end(*epoch);
            let in_time = ended <= now_secs && now_secs < ended + RING * EPOCH_SECS;
            // Without a pulse there is nothing to say.
            let says = data.verdicts.iter().any(|leaf| leaf.pulses > 0);
            if !in_time || !says || self.posted.contains_key(epoch) {
                continue;
            }
            if let Some(call) = data.post() {
                self.sending.send(Ticket::Epoch(*epoch), self.suite.capacity, &call, now_ns);
            }
        }
    }

    fn answer(&mut self, now_ns: u64, now_secs: u64) {
        self.demands.retain(|_, demand| now_secs <= demand.deadline);
        for (id, demand) in &self.demands {
            let known = self.data.get(&demand.epoch).zip(self.posted.get(&demand.epoch));
            let shown = known.and_then(|(data, posted)| {
                let post = data.post()?;
                let is_ours =
                    (post.verdictRoot, post.rewardRoot) == (posted.verdictRoot, posted.rewardRoot);
                Some((data.demanded(demand.tree, demand.index).filter(|_| is_ours)?, posted))
            });
            let Some(((count, leaf, path), posted)) = shown else { continue };
            let call = Capacity::answerDemandCall {
                it: demand.clone(),
                posted: posted.clone(),
                count,
                leaf: leaf.into(),
                path,
            };
            self.sending.send(Ticket::Demand(*id), self.suite.capacity, &call, now_ns);
        }
    }

    /// Has juries drawn at once, before who appeals finds a seed that draws his own nodes, and appeals
    /// ended: until then the epoch is not final.
    fn defend(&mut self, now_ns: u64, now_secs: u64) {
        for (id, Appeal { demand, posted_at, is_seated }) in &self.appeals {
            if now_secs > demand.deadline {
                if let Some(posted) = self.posted.get(&demand.epoch) {
                    let (it, posted) = (demand.clone(), posted.clone());
                    let call = Capacity::decideCall { it, posted };
                    self.sending.send(Ticket::Decide(*id), self.suite.capacity, &call, now_ns);
                }
            } else if !is_seated && now_secs + VOTE_SECS <= demand.deadline {
                let call = Capacity::seatCall {
                    it: demand.clone(),
                    postedAt: *posted_at,
                    aggregator: self.account,
                };
                self.sending.send(Ticket::Seat(*id), self.suite.capacity, &call, now_ns);
            }
        }
    }

    /// A transaction is done.
    pub(super) fn on_done(&mut self, ticket: Ticket) {
        match ticket {
            Ticket::Join => self.is_joined = true,
            Ticket::Seat(id) => {
                if let Some(appeal) = self.appeals.get_mut(&id) {
                    appeal.is_seated = true;
                }
            }
            _ => {}
        }
    }
}

/// The data of all epochs that were kept, one after the other; older ones with a gap behind them are of
/// no use.
fn read_all(folder: &Path) -> Result<BTreeMap<u32, Arc<EpochData>>, DaemonError> {
    let at = |source| DaemonError::Io { path: folder.to_owned(), source };
    fs::create_dir_all(folder).map_err(at)?;
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).map_err(at)? {
        let path = entry.map_err(at)?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let Some(epoch) = name.and_then(|name| name.parse::<u32>().ok()) else { continue };
        let bytes = read_at_most(&path, DATA_BYTES_MAX).map_err(at)?;
        let data = EpochData::decode(&bytes).ok().filter(|data| data.epoch == epoch);
        let data = data.ok_or_else(|| DaemonError::Epoch(path.clone()))?;
        found.insert(epoch, Arc::new(data));
    }
    Ok(found)
}
