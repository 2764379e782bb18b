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
use crate::chain::desk::Desk;

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
    /// Two answers of one node to one pulse.
    Equivocation(u32),
    /// Two verdicts of one witness on one node and pulse.
    FalseWitness(u32),
    /// A segment that a node has signed and that is false.
    FalseSegment(u32),
}

/// What became of a transaction.
pub(super) struct Sent {
    pub(super) ticket: Ticket,
    /// The transaction, and its block.
    pub(super) result: Result<(B256, u64), String>,
}

struct Job {
    ticket: Ticket,
    to: Address,
    data: Bytes,
}

/// One key's transactions.
pub(super) struct Sending {
    jobs: Sender<Job>,
    /// What is on its way (`u64::MAX`), or may be tried again at that time; and how often it failed.
    tickets: BTreeMap<Ticket, (u64, u32)>,
}

impl Sending {
    /// Starts a key's thread.
    pub(super) fn start(
        client: Client,
        key: Arc<Key>,
        stop: Arc<AtomicBool>,
        core: SyncSender<Input>,
    ) -> Self {
        let (jobs, waiting) = channel::<Job>();
        thread::spawn(move || {
            let desk = Desk { client: &client, key: &key, patience: PATIENCE };
            for Job { ticket, to, data } in waiting {
                let sent = desk.send(to, data, || stop.load(Ordering::Acquire));
                let result = sent.map(|receipt| (receipt.transaction, receipt.block));
                let result = result.map_err(|error| error.to_string());
                if core.send(Input::Sent(Sent { ticket, result })).is_err() {
                    return;
                }
            }
        });
        Self { jobs, tickets: BTreeMap::new() }
    }

    /// Whether one of this kind may be sent now.
    pub(super) fn is_free(&self, ticket: Ticket, now_ns: u64) -> bool {
        self.tickets.get(&ticket).is_none_or(|(at, _)| *at <= now_ns)
    }

    /// Sends a call, unless one of this kind is on its way or has just failed.
    pub(super) fn send(&mut self, ticket: Ticket, to: Address, call: &impl SolCall, now_ns: u64) {
        if !self.is_free(ticket, now_ns) {
            return;
        }
        let failures = self.tickets.get(&ticket).map_or(0, |(_, failures)| *failures);
        self.tickets.insert(ticket, (u64::MAX, failures));
        // The thread lives as long as this does.
        _ = self.jobs.send(Job { ticket, to, data: call.abi_encode().into() });
    }

    /// Takes what became of one.
    pub(super) fn on_sent(&mut self, sent: &Sent, now_ns: u64) {
        match &sent.result {
            Ok(_) => _ = self.tickets.remove(&sent.ticket),
            Err(_) => {
                let failures = self.tickets.get(&sent.ticket).map_or(0, |(_, failures)| *failures);
                let wait = RETRY_NS.saturating_mul(1 << failures.min(16)).min(RETRY_NS_MAX);
                let again = (now_ns.saturating_add(wait), failures.saturating_add(1));
                self.tickets.insert(sent.ticket, again);
            }
        }
    }

    /// Forgets one that is of no use any more.
    pub(super) fn forget(&mut self, ticket: Ticket) {
        if self.tickets.get(&ticket).is_some_and(|(at, _)| *at != u64::MAX) {
            self.tickets.remove(&ticket);
        }
    }
}
