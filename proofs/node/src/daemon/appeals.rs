//! Appeals against posted epochs: made, if this node was given an account for it; seated and ended, if
//! they are its own or its own epoch is meant; and voted on, if it is drawn.
//!
//! A vote is what this node has found out itself. If it has found out nothing until the vote ends it
//! abstains.

use std::collections::{BTreeMap, BTreeSet};

use hypha_chain::contracts::{Capacity, GridToken};
use hypha_chain::deploy::Suite;
use hypha_chain::{Address, U256};
use hypha_proofs::network::audit::Jury;
use hypha_proofs::network::judge::Judgement;
use hypha_proofs::network::roster::Member;
use hypha_proofs::network::schedule::Schedule;
use serde_json::json;

use super::core::Teller;
use super::judging::Judging;
use super::sending::{Desk, Desks, Ticket};

/// An appeal's bond, in tokens (`Capacity.APPEAL_BOND`).
const BOND_TOKENS: u64 = 100;
/// How long before the end of an appeal's vote its jury must be seated (`Capacity.VOTE_SECONDS`).
const VOTE_SECS: u64 = 3000;

/// All appeals that are open.
pub(super) struct Appeals {
    me: Me,
    suite: Suite,
    window_secs: u64,
    /// Who appeals for this node, and who posts for it.
    appellant: Option<(Address, Desk)>,
    aggregator: Option<Address>,
    open: BTreeMap<u64, Appeal>,
    /// Epochs with the time of their posting that were appealed against from here: once each, whatever
    /// a jury says.
    appealed: BTreeSet<(u32, u64)>,
}

/// When something is looked at.
#[derive(Debug, Clone, Copy)]
pub(super) struct Now {
    /// On the monotonic clock.
    pub(super) now_ns: u64,
    /// The chain's time.
    pub(super) now_secs: u64,
    /// The newest block that was read.
    pub(super) block: u64,
}

/// This node, as it votes.
pub(super) struct Me {
    pub(super) node: u32,
    pub(super) schedule: Schedule,
    /// As the chain has it now.
    pub(super) member: Option<Member>,
}

struct Appeal {
    demand: Capacity::Demand,
    posted_at: u64,
    aggregator: Address,
    /// The block in which it was made: a later one draws the jury.
    block: u64,
    jury: Option<Jury>,
    has_voted: bool,
    has_abstained: bool,
}

impl Appeals {
    pub(super) fn new(
        (me, suite, window_secs): (Me, Suite, u64),
        appellant: Option<(Address, Desk)>,
        aggregator: Option<Address>,
    ) -> Self {
        Self {
            me,
            suite,
            window_secs,
            appellant,
            aggregator,
            open: BTreeMap::new(),
            appealed: BTreeSet::new(),
        }
    }

    /// The chain is read anew: what is open comes again.
    pub(super) fn begin_again(&mut self) {
        self.open.clear();
        self.appealed.clear();
    }

    /// Somebody appeals.
    pub(super) fn on_appeal(
        &mut self,
        demand: &Capacity::Demand,
        posted: &Capacity::Epoch,
        block: u64,
        teller: &mut Teller,
    ) {
        let (id, epoch) = (demand.id, demand.epoch);
        let text = format!("appeal {id} against epoch {epoch}: a jury decides");
        teller.tell("appealed", text, json!({"appeal": id, "epoch": epoch, "by": demand.demander}));
        if self.appellant.is_some_and(|(it, _)| it == demand.demander) {
            self.appealed.insert((epoch, posted.postedAt));
        }
        let appeal = Appeal {
            demand: demand.clone(),
            posted_at: posted.postedAt,
            aggregator: posted.aggregator,
            block,
            jury: None,
            has_voted: false,
            has_abstained: false,
        };
        self.open.insert(id, appeal);
    }

    /// A jury is drawn.
    pub(super) fn on_seated(&mut self, jury: Jury) {
        if let Some(appeal) = self.open.get_mut(&jury.id) {
            appeal.jury = Some(jury);
        }
    }

    /// This node, as the chain has it now.
    pub(super) fn on_mine(&mut self, member: Option<Member>) {
        self.me.member = member;
    }

    /// A node has voted.
    pub(super) fn on_voted(&mut self, id: u64, node: u32, is_true: bool, teller: &mut Teller) {
        let Some(appeal) = self.open.get_mut(&id).filter(|_| node == self.me.node) else { return };
        appeal.has_voted = true;
        let (epoch, how) = (appeal.demand.epoch, if is_true { "for" } else { "against" });
        let text = format!("this node has voted {how} epoch {epoch} in appeal {id}");
        teller.tell("voted", text, json!({"appeal": id, "epoch": epoch, "true": is_true}));
    }

    /// An appeal is over.
    pub(super) fn on_over(&mut self, id: u64, desks: &mut Desks) {
        if let Some(appeal) = self.open.remove(&id) {
            if appeal.jury.is_none() {
                // Nobody was asked, so nothing was decided: it is made again.
                self.appealed.remove(&(appeal.demand.epoch, appeal.posted_at));
            }
            [Ticket::Seat(id), Ticket::Decide(id), Ticket::Vote(id)]
                .into_iter()
                .for_each(|ticket| desks.forget(ticket));
        }
    }

    /// An epoch does not stand any more, and no appeal against it either.
    pub(super) fn on_voided(&mut self, epoch: u32, desks: &mut Desks) {
        let over: Vec<u64> = self
            .open
            .iter()
            .filter(|(_, it)| it.demand.epoch == epoch)
            .map(|(id, _)| *id)
            .collect();
        over.into_iter().for_each(|id| self.on_over(id, desks));
    }

    /// Does what is due.
    pub(super) fn tend(
        &mut self,
        judging: &Judging,
        desks: &mut Desks,
        now: Now,
        teller: &mut Teller,
    ) {
        let Now { now_ns, now_secs, .. } = now;
        self.appeal(judging, desks, (now_ns, now_secs));
        let capacity = self.suite.capacity;
        for (id, appeal) in &mut self.open {
            if let Some(desk) = desk_of(appeal, self.appellant, self.aggregator) {
                appeal.conduct(*id, judging, (desks, desk, capacity), now);
            }
            if now_secs <= appeal.demand.deadline {
                if let Some(call) = appeal.vote_of(&self.me, judging) {
                    desks.send(Ticket::Vote(*id), capacity, &call, now_ns);
                }
            } else if appeal.abstains(&self.me) {
                let text = format!("this node has abstained in appeal {id}: it knew too little");
                teller.tell("abstained", text, json!({"appeal": id}));
            }
        }
    }

    /// Appeals against what was objected to, if nobody has yet.
    fn appeal(&mut self, judging: &Judging, desks: &mut Desks, (now_ns, now_secs): (u64, u64)) {
        let Some((_, desk)) = self.appellant else { return };
        for (epoch, posted_at, _) in judging.judge.objected() {
            let is_open = self.open.values().any(|it| it.demand.epoch == epoch);
            let was = self.appealed.contains(&(epoch, posted_at));
            let is_late = now_secs >= posted_at.saturating_add(self.window_secs);
            let Some(record) = judging.records.get(&epoch) else { continue };
            if is_open || was || is_late || !desks.is_free_by(desk, Ticket::Appeal(epoch), now_ns) {
                continue;
            }
            let amount = U256::from(BOND_TOKENS) * U256::from(10).pow(U256::from(18));
            let approve = GridToken::approveCall { spender: self.suite.capacity, amount };
            let ticket = Ticket::ApproveAppeal(epoch);
            desks.send_by(desk, ticket, (self.suite.token, &approve), now_ns);
            // They are sent one after the other: this one when the other is in a block.
            let call = Capacity::appealCall { posted: record.clone() };
            desks.send_by(desk, Ticket::Appeal(epoch), (self.suite.capacity, &call), now_ns);
        }
    }
}

fn desk_of(
    appeal: &Appeal,
    appellant: Option<(Address, Desk)>,
    aggregator: Option<Address>,
) -> Option<Desk> {
    if aggregator == Some(appeal.aggregator) {
        return Some(Desk::Aggregator);
    }
    let (_, desk) = appellant.filter(|(it, _)| *it == appeal.demand.demander)?;
    Some(desk)
}

impl Appeal {
    /// Has the jury drawn at once, before who appeals finds a seed that draws his own nodes, and the
    /// appeal ended: until then the epoch is not final.
    fn conduct(
        &self,
        id: u64,
        judging: &Judging,
        (desks, desk, capacity): (&mut Desks, Desk, Address),
        Now { now_ns, now_secs, block }: Now,
    ) {
        let it = self.demand.clone();
        if now_secs > it.deadline {
            if let Some(posted) = judging.records.get(&it.epoch) {
                let call = Capacity::decideCall { it, posted: posted.clone() };
                desks.send_by(desk, Ticket::Decide(id), (capacity, &call), now_ns);
            }
        } else if self.jury.is_none() && block > self.block && now_secs + VOTE_SECS <= it.deadline {
            let call =
                Capacity::seatCall { it, postedAt: self.posted_at, aggregator: self.aggregator };
            desks.send_by(desk, Ticket::Seat(id), (capacity, &call), now_ns);
        }
    }

    /// This node's vote, if it is drawn, has an opinion and has not voted.
    fn vote_of(&self, me: &Me, judging: &Judging) -> Option<Capacity::voteCall> {
        if self.has_voted || self.seats(me) == 0 {
            return None;
        }
        let is_true = match judging.judge.judgement(self.demand.epoch)? {
            Judgement::Open => return None,
            Judgement::True | Judgement::Settled => true,
            Judgement::False(_) => false,
        };
        Some(Capacity::voteCall {
            it: self.demand.clone(),
            postedAt: self.posted_at,
            aggregator: self.aggregator,
            node: me.node,
            isTrue: is_true,
        })
    }

    fn seats(&self, me: &Me) -> u128 {
        let ends_secs = me.schedule.epoch_end(self.demand.epoch);
        let weight = me.member.map_or(0, |member| member.juror_weight(ends_secs));
        self.jury.map_or(0, |jury| jury.seats_of(me.node, weight))
    }

    /// Whether the vote has ended without this node's, told once.
    fn abstains(&mut self, me: &Me) -> bool {
        !self.has_voted && self.seats(me) > 0 && !std::mem::replace(&mut self.has_abstained, true)
    }
}
