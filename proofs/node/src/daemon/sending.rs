//! Transactions, one after the other on a thread for each key, and when to try again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, SyncSender, channel};
use std::thread;
use std::time::Duration;

use hypha_chain::client::Client;
use hypha_chain::key::Key;
use hypha_chain::{Address, B256, Bytes, SolCall};

use super::inputs::Input;
use crate::chain;

/// How long a transaction is waited for.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long after a failure it is tried again.
const RETRY_NS: u64 = 5_000_000_000;
const RETRY_NS_MAX: u64 = 300_000_000_000;

/// What a transaction is for. One of each is on its way at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Ticket {
    /// The salt of this node's filler.
    Salt,
    /// A plot.
    Plot,
    /// A challenge's answer.
    Challenge(u64),
    /// That this node is proven.
    Prove,
    /// An aggregator's bond may be taken.
    Approve,
    /// Becoming an aggregator.
    Join,
    /// An epoch.
    Epoch(u32),
    /// A demanded leaf.
    Demand(u64),
    /// The jury of an appeal against an epoch.
    Seat(u64),
    /// The end of an appeal.
    Decide(u64),
    /// This node's vote on an appeal.
    Vote(u64),
    /// An appeal's bond may be taken.
    ApproveAppeal(u32),
    /// An appeal against an epoch.
    Appeal(u32),
    /// Two answers of one node to one pulse.
    Equivocation(u32),
    /// Two verdicts of one witness on one node and pulse.
    FalseWitness(u32),
    /// A segment that a node has signed and that is false.
    FalseSegment(u32),
}

/// Whose transactions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Desk {
    /// This node's own.
    Node,
    /// Of the account that posts epochs.
    Aggregator,
    /// Of the account that appeals, if that is another.
    Appellant,
}

/// What became of a transaction.
pub(super) struct Sent {
    pub(super) desk: Desk,
    pub(super) ticket: Ticket,
    /// The transaction, and its block.
    pub(super) result: Result<(B256, u64), NotSent>,
}

/// Why a transaction was not sent, or has failed.
pub(super) struct NotSent {
    pub(super) text: String,
    /// Whether its account can't pay for its gas.
    pub(super) lacks_gas: bool,
}

struct Job {
    ticket: Ticket,
    to: Address,
    data: Bytes,
}

/// All keys that this node sends by.
pub(super) struct Desks(BTreeMap<Desk, Sending>);

/// One key's transactions.
struct Sending {
    account: Address,
    jobs: Sender<Job>,
    /// The last one that had to be paid for could not be.
    lacks_gas: bool,
    /// What is on its way (`u64::MAX`), or may be tried again at that time; and how often it failed.
    tickets: BTreeMap<Ticket, (u64, u32)>,
}

impl Desks {
    /// Starts a thread for each key.
    pub(super) fn start(
        client: &Client,
        keys: Vec<(Desk, Arc<Key>)>,
        stop: &Arc<AtomicBool>,
        core: &SyncSender<Input>,
    ) -> Self {
        let start = |(desk, key)| {
            (desk, Sending::start(desk, client.clone(), key, Arc::clone(stop), core.clone()))
        };
        Self(keys.into_iter().map(start).collect())
    }

    /// Whether a transaction of this kind of the node's own may be sent now.
    pub(super) fn is_free(&self, ticket: Ticket, now_ns: u64) -> bool {
        self.is_free_by(Desk::Node, ticket, now_ns)
    }

    /// Whether a transaction of this kind may be sent now.
    pub(super) fn is_free_by(&self, desk: Desk, ticket: Ticket, now_ns: u64) -> bool {
        self.0.get(&desk).is_some_and(|it| it.is_free(ticket, now_ns))
    }

    /// Sends a call by the node's own key, as [`Self::send_by`].
    pub(super) fn send(&mut self, ticket: Ticket, to: Address, call: &impl SolCall, now_ns: u64) {
        self.send_by(Desk::Node, ticket, (to, call), now_ns);
    }

    /// Sends a call of a contract, unless one of this kind is on its way or has just failed.
    pub(super) fn send_by(
        &mut self,
        desk: Desk,
        ticket: Ticket,
        (to, call): (Address, &impl SolCall),
        now_ns: u64,
    ) {
        if let Some(it) = self.0.get_mut(&desk) {
            it.send(ticket, to, call, now_ns);
        }
    }

    /// Takes what became of a transaction. Returns its account if it can't pay for gas, and whether that
    /// is new.
    pub(super) fn on_sent(&mut self, sent: &Sent, now_ns: u64) -> Option<(Address, bool)> {
        self.0.get_mut(&sent.desk)?.on_sent(sent, now_ns)
    }

    /// How many accounts can't pay for gas.
    pub(super) fn without_gas(&self) -> u64 {
        self.0.values().filter(|it| it.lacks_gas).count() as u64
    }

    /// Forgets one that is of no use any more.
    pub(super) fn forget(&mut self, ticket: Ticket) {
        self.0.values_mut().for_each(|it| it.forget(ticket));
    }
}

impl Sending {
    /// Starts a key's thread.
    fn start(
        desk: Desk,
        client: Client,
        key: Arc<Key>,
        stop: Arc<AtomicBool>,
        core: SyncSender<Input>,
    ) -> Self {
        let (jobs, waiting) = channel::<Job>();
        let account = key.address();
        thread::spawn(move || {
            let sender = chain::desk::Desk { client: &client, key: &key, patience: PATIENCE };
            for Job { ticket, to, data } in waiting {
                let sent = sender.send(to, data, || stop.load(Ordering::Acquire));
                let result = sent.map(|receipt| (receipt.transaction, receipt.block));
                let result = result.map_err(|error| NotSent {
                    lacks_gas: error.lacks_gas(),
                    text: error.to_string(),
                });
                if core.send(Input::Sent(Sent { desk, ticket, result })).is_err() {
                    return;
                }
            }
        });
        Self { account, jobs, lacks_gas: false, tickets: BTreeMap::new() }
    }

    fn is_free(&self, ticket: Ticket, now_ns: u64) -> bool {
        self.tickets.get(&ticket).is_none_or(|(at, _)| *at <= now_ns)
    }

    fn send(&mut self, ticket: Ticket, to: Address, call: &impl SolCall, now_ns: u64) {
        if !self.is_free(ticket, now_ns) {
            return;
        }
        let failures = self.tickets.get(&ticket).map_or(0, |(_, failures)| *failures);
        self.tickets.insert(ticket, (u64::MAX, failures));
        // The thread lives as long as this does.
        _ = self.jobs.send(Job { ticket, to, data: call.abi_encode().into() });
    }

    /// Takes what became of one.
    fn on_sent(&mut self, sent: &Sent, now_ns: u64) -> Option<(Address, bool)> {
        match &sent.result {
            Ok(_) => {
                self.lacks_gas = false;
                self.tickets.remove(&sent.ticket);
                None
            }
            Err(error) => {
                let failures = self.tickets.get(&sent.ticket).map_or(0, |(_, failures)| *failures);
                let wait = RETRY_NS.saturating_mul(1 << failures.min(16)).min(RETRY_NS_MAX);
                let again = (now_ns.saturating_add(wait), failures.saturating_add(1));
                self.tickets.insert(sent.ticket, again);
                let was = self.lacks_gas;
                self.lacks_gas |= error.lacks_gas;
                error.lacks_gas.then_some((self.account, !was))
            }
        }
    }

    fn forget(&mut self, ticket: Ticket) {
        if self.tickets.get(&ticket).is_some_and(|(at, _)| *at != u64::MAX) {
            self.tickets.remove(&ticket);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(result: Result<(B256, u64), bool>) -> Sent {
        let result = result.map_err(|lacks_gas| NotSent { text: "no".to_owned(), lacks_gas });
        Sent { desk: Desk::Node, ticket: Ticket::Prove, result }
    }

    #[test]
    fn an_account_without_gas_is_new_once_until_it_has_some() {
        let account = Address::repeat_byte(3);
        let (jobs, _waiting) = channel();
        let tickets = BTreeMap::new();
        let own = Sending { account, jobs, lacks_gas: false, tickets };
        let mut desks = Desks(BTreeMap::from([(Desk::Node, own)]));
        assert_eq!(desks.on_sent(&sent(Err(false)), 0), None);
        assert_eq!(desks.without_gas(), 0);
        assert_eq!(desks.on_sent(&sent(Err(true)), 0), Some((account, true)));
        assert_eq!(desks.on_sent(&sent(Err(true)), 0), Some((account, false)));
        // Something else is wrong: that says nothing about gas.
        assert_eq!(desks.on_sent(&sent(Err(false)), 0), None);
        assert_eq!(desks.without_gas(), 1);
        assert!(!desks.is_free(Ticket::Prove, 0), "it is tried again later");
        assert!(desks.is_free(Ticket::Prove, RETRY_NS_MAX));
        assert_eq!(desks.on_sent(&sent(Ok((B256::ZERO, 7))), 0), None);
        assert_eq!(desks.without_gas(), 0);
        assert_eq!(desks.on_sent(&sent(Err(true)), 0), Some((account, true)));
    }
}
