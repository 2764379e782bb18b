//! Holding the volume: the register's changes, and the lease that they renew.

use std::rc::Rc;
use std::task::Poll;

use super::executor::{Call, Either, Runtime, either, join_all};
use super::request::RequestError;
use super::state::{Engine, State};
use crate::keys::Uuid;
use crate::node::{NodeIndex, Request, Response};
use crate::register::{
    ChangeError, Committed, Edit, Lease, Proposer, Refusal, Step, SuperblockRef, VolumeRecord,
};

/// How long after a renewal that failed the next one is tried, as a part of the lease.
const RETRY_DIVISOR: u64 = 12;
/// How long after a change of acceptors that failed the next one is tried.
const BRING_IN_NS: u64 = 5_000_000_000;
/// The most attempts of a step of a change of acceptors: two seconds, far less than a lease.
const ATTEMPTS_BRIEF: u32 = 2;
/// How often a change of acceptors that somebody else had begun is brought to its end first.
const STEPS_MAX: u32 = 8;

/// Carries an edit out.
pub(super) async fn change(
    runtime: &Rc<Runtime>,
    register: Uuid,
    proposer: &mut Proposer,
    edit: Edit,
) -> Result<Committed, ChangeError> {
    let mut calls: Vec<(u64, Call)> = Vec::new();
    let can_wait = matches!(edit, Edit::BeginAcceptors { .. } | Edit::SettleAcceptors { .. });
    let busy = proposer.start(edit, runtime.now_ns()).is_err();
    assert!(!busy, "one who has the proposer has it alone, and brings each edit to its end");
    if can_wait {
        // A renewal that waits for it can't.
        proposer.limit_attempts(ATTEMPTS_BRIEF);
    }
    loop {
        match proposer.poll(runtime.now_ns()) {
            Step::Send { message, node, request } => {
                let request = Request::Register { register, message: request };
                calls.push((message, runtime.call(node, request)));
            }
            Step::Wait { until_ns } => {
                let answer = std::future::poll_fn(|context| {
                    for (nth, (_, call)) in calls.iter_mut().enumerate() {
                        if let Poll::Ready(answer) = std::pin::Pin::new(call).poll(context) {
                            return Poll::Ready((nth, answer));
                        }
                    }
                    Poll::Pending
                });
                if let Either::First((nth, answer)) =
                    either(answer, runtime.sleep_until(until_ns)).await
                {
                    let (message, _) = calls.swap_remove(nth);
                    let answer = answer.and_then(|response| match response {
                        Response::Register(response) => Ok(response),
                        _ => Err(crate::node::NodeError::Unsupported),
                    });
                    proposer.answer(message, answer, runtime.now_ns());
                }
            }
            Step::Done(result) => return *result,
            Step::Idle => unreachable!("an edit that was started ends with its result"),
        }
    }
}

impl State {
    /// The nodes whose acceptors should be the register's, when it is time to see to that.
    fn acceptors_wanted(&mut self) -> Option<Vec<NodeIndex>> {
        let nodes = self.nodes.iter().take(self.given).filter(|(_, node)| node.info.register);
        let acceptors: Vec<NodeIndex> = nodes.map(|(node, _)| node).collect();
        let all = acceptors.iter().all(|node| self.nodes.is_usable(*node));
        let wanted = self.lease.is_some() && self.acceptors_due && !self.closing && all;
        self.acceptors_due &= !wanted;
        wanted.then_some(acceptors)
    }

    /// Whether reads and flushes may be answered now.
    pub(super) fn lease_holds(&self, now_ns: u64) -> bool {
        !self.released && self.lease.is_none_or(|lease| lease.holds(now_ns))
    }
}

impl Engine {
    /// Refuses what may not be answered without a lease.
    pub(super) fn check_lease(&self) -> Result<(), RequestError> {
        let now_ns = self.runtime.now_ns();
        self.with(|state| match state.lease_holds(now_ns) {
            true => Ok(()),
            false if state.released => Err(RequestError::Closed),
            false => Err(RequestError::LeaseExpired),
        })
    }

    /// Makes the acceptors of these nodes the register's, if others are. All nodes are shown each
    /// step: who knows the old ones only believes no later one.
    async fn bring_in(self: &Rc<Self>, acceptors: Vec<NodeIndex>) -> Result<(), RequestError> {
        let Some(read) = self.edit_register(Edit::Read).await? else { return Ok(()) };
        let members = read.map_err(|_| RequestError::Unavailable)?.record.members;
        // Whoever opens it with fewer nodes than it has acceptors doesn't mean to leave any out.
        if acceptors.len() < members.current.len() {
            return Ok(());
        }
        for _ in 0..STEPS_MAX {
            let begin = Edit::BeginAcceptors { acceptors: acceptors.clone() };
            let Some(begun) = self.edit_register(begin).await? else { return Ok(()) };
            let half = match begun {
                Ok(committed) if committed.record.members.next.is_empty() => return Ok(()),
                Ok(committed) => self.show(committed).await,
                Err(ChangeError::Refused(Refusal::Moving(record))) => *record,
                Err(_) => return Err(RequestError::Unavailable),
            };
            let settle = Edit::SettleAcceptors { committed: Box::new(half) };
            let Some(settled) = self.edit_register(settle).await? else { return Ok(()) };
            match settled {
                Ok(committed) => {
                    let record = self.show(committed).await;
                    tracing::info!(version = record.version, "the register has other acceptors");
                }
                // A renewal came between, and is found half done in the next round.
                Err(ChangeError::Refused(Refusal::Changed(_))) => {}
                Err(_) => return Err(RequestError::Unavailable),
            }
        }
        Err(RequestError::Unavailable)
    }

    /// Shows all nodes what the register says of its acceptors now.
    async fn show(self: &Rc<Self>, committed: Committed) -> VolumeRecord {
        let nodes = self.with(|state| {
            state.evidence = committed.evidence;
            let usable = state.nodes.iter().filter(|(node, _)| state.nodes.is_usable(*node));
            usable.map(|(node, _)| node).collect::<Vec<_>>()
        });
        let fences = nodes.iter().map(|node| self.fence_again(*node));
        for (node, fence) in nodes.iter().zip(join_all(fences).await) {
            if let Err(error) = fence {
                self.node_down(*node, error);
            }
        }
        committed.record
    }

    /// Changes the register, if the volume has one; renews the lease by it.
    pub(super) async fn change_register(&self, edit: Edit) -> Result<(), RequestError> {
        match self.edit_register(edit).await? {
            None | Some(Ok(_)) => Ok(()),
            Some(Err(error)) => {
                tracing::warn!(%error, "the register could not be changed");
                Err(RequestError::Unavailable)
            }
        }
    }

    /// Carries an edit out; `None` if the volume has no register. Who has lost the volume stops.
    async fn edit_register(
        &self,
        edit: Edit,
    ) -> Result<Option<Result<Committed, ChangeError>>, RequestError> {
        let taken = || {
            if let Err(error) = self.check_running() {
                return Some(Err(error));
            }
            self.with(|state| match state.lease {
                None => Some(Ok(None)),
                Some(_) => state.proposer.take().map(|proposer| Ok(Some(proposer))),
            })
        };
        let Some(mut proposer) = self.events.register.until(&self.runtime, taken).await? else {
            return Ok(None);
        };
        let uuid = self.with(|state| state.superblock.uuid);
        let result = change(&self.runtime, uuid, &mut proposer, edit).await;
        self.with(|state| state.proposer = Some(proposer));
        self.events.register.announce(&self.runtime);
        match result {
            Err(ChangeError::Refused(Refusal::NotHolder(record))) => {
                self.stop(RequestError::Stale { epoch: record.epoch });
                Err(RequestError::Stale { epoch: record.epoch })
            }
            result => {
                let changed_ns = result.as_ref().ok().and_then(|committed| committed.changed_ns);
                self.with(|state| {
                    if let (Some(lease), Some(sent_ns)) = (&mut state.lease, changed_ns) {
                        lease.renewed(sent_ns);
                    }
                });
                Ok(Some(result))
            }
        }
    }

    /// Names a superblock in the register, however long that takes.
    pub(super) async fn register_superblock(
        &self,
        superblock: SuperblockRef,
    ) -> Result<(), RequestError> {
        loop {
            let epoch = self.with(|state| state.epoch());
            let edit = Edit::Superblock { epoch, superblock };
            match self.change_register(edit).await {
                Err(RequestError::Unavailable) => {}
                result => return result,
            }
            let again_ns = self.runtime.now_ns().saturating_add(1_000_000_000);
            self.runtime.sleep_until(again_ns).await;
        }
    }
}

/// Brings in the acceptors of nodes that have lost theirs (an acceptor that lost what it promised has
/// another name, and counts no more), for ever: whenever a node has come up, and all answer.
pub(super) async fn registrar(engine: Rc<Engine>) {
    loop {
        let due = || match engine.check_running() {
            Err(_) => Some(None),
            Ok(()) => engine.with(|state| state.acceptors_wanted()).map(Some),
        };
        let Some(acceptors) = engine.events.nodes.until(&engine.runtime, due).await else { return };
        if let Err(error) = engine.bring_in(acceptors).await {
            tracing::debug!(%error, "the register's acceptors were not changed");
            let again_ns = engine.runtime.now_ns().saturating_add(BRING_IN_NS);
            engine.runtime.sleep_until(again_ns).await;
            engine.with(|state| state.acceptors_due = true);
        }
    }
}

/// Renews the lease, for ever.
pub(super) async fn renewer(engine: Rc<Engine>) {
    while let Some(lease) = engine.with(|state| state.lease)
        && engine.check_running().is_ok()
    {
        engine.runtime.sleep_until(lease.renew_at_ns()).await;
        if engine.with(|state| state.released) {
            return;
        }
        let due = |lease: Lease| lease.renew_at_ns() <= engine.runtime.now_ns();
        if !engine.with(|state| state.lease).is_some_and(due) {
            continue;
        }
        let epoch = engine.with(|state| state.epoch());
        if engine.change_register(Edit::Renew { epoch }).await.is_err() {
            let pause_ns = engine.with(|state| state.superblock.lease_ns) / RETRY_DIVISOR;
            let again_ns = engine.runtime.now_ns().saturating_add(pause_ns.max(1));
            let ends_ns = engine.with(|state| state.lease).map_or(u64::MAX, |l| l.ends_ns());
            engine
                .runtime
                .sleep_until(again_ns.min(ends_ns.max(engine.runtime.now_ns() + 1)))
                .await;
            engine.settle_flushes();
        }
    }
}
