//! Who posts epochs: one after the other, each on the disk before it is posted, and their leaves shown to
//! whoever demands them. A root whose data are lost would cost the bond.

use std::collections::BTreeMap;

use hypha_chain::contracts::{Capacity, GridToken};
use hypha_chain::deploy::Suite;
use hypha_chain::{Address, B256, U256};
use hypha_proofs::network::participant::Participant;
use hypha_proofs::network::schedule::{EPOCH_SECS, Schedule};

use super::core::Teller;
use super::judging::Judging;
use super::sending::{Desk, Desks, Ticket};
use super::{Aggregation, Config, DaemonError};

/// The contract keeps as many epochs: an older one can't be posted.
pub(super) const RING: u64 = 24;

/// Who posts epochs.
pub(super) struct Aggregator {
    schedule: Schedule,
    suite: Suite,
    account: Address,
    is_joined: bool,
    demands: BTreeMap<u64, Capacity::Demand>,
    /// The data of the newest epoch that is on the disk.
    kept: B256,
}

impl Aggregator {
    /// Asks the chain whether the bond is there.
    pub(super) fn open(
        config: &Config,
        it: &Aggregation,
        schedule: Schedule,
    ) -> Result<Self, DaemonError> {
        let account = it.key.address();
        let call = Capacity::aggregatorsCall(account);
        let bond = config.client.view(config.suite.capacity, &call)?.bond;
        let (suite, is_joined) = (config.suite, bond > 0);
        let demands = BTreeMap::new();
        Ok(Self { schedule, suite, account, is_joined, demands, kept: B256::ZERO })
    }

    /// An epoch does not stand any more.
    pub(super) fn on_voided(&mut self, epoch: u32, aggregator: Address) {
        self.demands.retain(|_, demand| demand.epoch != epoch);
        // With its bond it is no aggregator any more.
        self.is_joined &= aggregator != self.account;
    }

    /// The chain is read anew: what is demanded comes again.
    pub(super) fn begin_again(&mut self) {
        self.demands.clear();
    }

    /// Somebody wants to see a leaf.
    pub(super) fn on_demand(&mut self, demand: Capacity::Demand) {
        self.demands.insert(demand.id, demand);
    }

    /// It was shown.
    pub(super) fn on_demand_answered(&mut self, id: u64, desks: &mut Desks) {
        self.demands.remove(&id);
        desks.forget(Ticket::Demand(id));
    }

    /// Does what is due. `now_secs` is the chain's time.
    pub(super) fn tend(
        &mut self,
        participant: &mut Participant,
        (judging, desks): (&mut Judging, &mut Desks),
        (now_ns, now_secs): (u64, u64),
        teller: &mut Teller,
    ) {
        self.join(desks, now_ns);
        self.post(participant, (judging, desks), (now_ns, now_secs), teller);
        self.answer(judging, desks, (now_ns, now_secs));
    }

    fn join(&mut self, desks: &mut Desks, now_ns: u64) {
        let capacity = self.suite.capacity;
        if self.is_joined || !desks.is_free_by(Desk::Aggregator, Ticket::Join, now_ns) {
            return;
        }
        let amount = U256::from(1000) * U256::from(10).pow(U256::from(18));
        let approve = GridToken::approveCall { spender: capacity, amount };
        desks.send_by(Desk::Aggregator, Ticket::Approve, (self.suite.token, &approve), now_ns);
        // They are sent one after the other: this one when the other is in a block.
        let join = Capacity::joinCall {};
        desks.send_by(Desk::Aggregator, Ticket::Join, (capacity, &join), now_ns);
    }

    /// Posts the next epoch that has something to say. What was posted before it must have been found
    /// true: on what is objected to, nothing is built.
    fn post(
        &mut self,
        participant: &mut Participant,
        (judging, desks): (&mut Judging, &mut Desks),
        (now_ns, now_secs): (u64, u64),
        teller: &mut Teller,
    ) {
        let ring = now_secs.saturating_sub(RING * EPOCH_SECS);
        let oldest = self.schedule.epoch_at(ring).map_or(0, |epoch| epoch.saturating_add(1));
        let Some(closed) = judging.judge.next(oldest, participant, now_ns) else { return };
        let Some(call) = closed.data.post().filter(|_| self.is_joined) else { return };
        if self.kept != call.data {
            if !judging.keep(&closed, teller) {
                return;
            }
            self.kept = call.data;
        }
        let ticket = Ticket::Epoch(call.epoch);
        desks.send_by(Desk::Aggregator, ticket, (self.suite.capacity, &call), now_ns);
    }

    fn answer(&mut self, judging: &Judging, desks: &mut Desks, (now_ns, now_secs): (u64, u64)) {
        self.demands.retain(|_, demand| now_secs <= demand.deadline);
        for (id, demand) in &self.demands {
            let known = judging.judge.data(demand.epoch).zip(judging.records.get(&demand.epoch));
            let shown = known.and_then(|(data, posted)| {
                let post = data.post()?;
                let is_it =
                    (post.verdictRoot, post.rewardRoot) == (posted.verdictRoot, posted.rewardRoot);
                Some((data.demanded(demand.tree, demand.index).filter(|_| is_it)?, posted))
            });
            let Some(((count, leaf, path), posted)) = shown else { continue };
            let call = Capacity::answerDemandCall {
                it: demand.clone(),
                posted: posted.clone(),
                count,
                leaf: leaf.into(),
                path,
            };
            let ticket = Ticket::Demand(*id);
            desks.send_by(Desk::Aggregator, ticket, (self.suite.capacity, &call), now_ns);
        }
    }

    /// A transaction is done.
    pub(super) fn on_done(&mut self, ticket: Ticket) {
        if ticket == Ticket::Join {
            self.is_joined = true;
        }
    }
}
