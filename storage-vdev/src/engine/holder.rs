//! Holding the volume: the register's changes, and the lease that they renew.

use std::rc::Rc;
use std::task::Poll;

use super::executor::{Call, Either, Runtime, either};
use super::request::RequestError;
use super::state::{Engine, State};
use crate::keys::Uuid;
use crate::node::{Request, Response};
use crate::register::{
    ChangeError, Committed, Edit, Lease, Proposer, Refusal, Step, SuperblockRef,
};

/// How long after a renewal that failed the next one is tried, as a part of the lease.
const RETRY_DIVISOR: u64 = 12;

/// Carries an edit out.
pub(super) async fn change(
    runtime: &Rc<Runtime>,
    register: Uuid,
    proposer: &mut Proposer,
    edit: Edit,
) -> Result<Committed, ChangeError> {
    let mut calls: Vec<(u64, Call)> = Vec::new();
    let busy = proposer.start(edit, runtime.now_ns()).is_err();
    assert!(!busy, "one who has the proposer has it alone, and brings each edit to its end");
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
    /// Whether reads and flushes may be answered now.
    pub(super) fn lease_holds(&self, now_ns: u64) -> bool {
        self.lease.is_none_or(|lease| lease.holds(now_ns))
    }
}

impl Engine {
    /// Refuses what may not be answered without a lease.
    pub(super) fn check_lease(&self) -> Result<(), RequestError> {
        let now_ns = self.runtime.now_ns();
        let holds = self.with(|state| state.lease_holds(now_ns));
        if holds { Ok(()) } else { Err(RequestError::LeaseExpired) }
    }

    /// Changes the register, if the volume has one; renews the lease by it.
    pub(super) async fn change_register(&self, edit: Edit) -> Result<(), RequestError> {
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
            return Ok(());
        };
        let uuid = self.with(|state| state.superblock.uuid);
        let result = change(&self.runtime, uuid, &mut proposer, edit).await;
        self.with(|state| state.proposer = Some(proposer));
        self.events.register.announce(&self.runtime);
        match result {
            Ok(committed) => {
                self.with(|state| {
                    if let (Some(lease), Some(sent_ns)) = (&mut state.lease, committed.changed_ns) {
                        lease.renewed(sent_ns);
                    }
                });
                Ok(())
            }
            Err(ChangeError::Refused(Refusal::NotHolder(record))) => {
                self.stop(RequestError::Stale { epoch: record.epoch });
                Err(RequestError::Stale { epoch: record.epoch })
            }
            Err(error) => {
                tracing::warn!(%error, "the register could not be changed");
                Err(RequestError::Unavailable)
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

/// Renews the lease, for ever.
pub(super) async fn renewer(engine: Rc<Engine>) {
    while let Some(lease) = engine.with(|state| state.lease)
        && engine.check_running().is_ok()
    {
        engine.runtime.sleep_until(lease.renew_at_ns()).await;
        if engine.with(|state| state.closing) {
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
