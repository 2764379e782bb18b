//! Cooperative tasks on one thread: futures that are polled inside [`super::Volume::poll`].
//!
//! A task waits for an answer of a node ([`Runtime::call`]), for a time ([`Runtime::sleep_until`])
//! or for something that another task does ([`Event`]). Nothing here reads a clock, does I/O or
//! depends on anything but the order of what comes in: the same inputs give the same run. Dropping
//! the tasks is a crash.
//!
//! There are no wakers to clone: whoever waits notes the task that is running, and is put on the
//! ready list by number. A task may be woken for nothing; every future here checks again.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use crate::node::{NodeCompletion, NodeError, NodeIndex, Request, Response, Tag};

type Task = Pin<Box<dyn Future<Output = ()>>>;
type TaskId = usize;

/// An answer of a node.
pub(crate) type Answer = Result<Response, NodeError>;

/// What tasks share with the one who runs them.
#[derive(Default)]
pub(crate) struct Runtime {
    now_ns: Cell<u64>,
    current: Cell<TaskId>,
    ready: RefCell<VecDeque<TaskId>>,
    spawned: RefCell<Vec<Task>>,
    /// By time and a number of their own.
    timers: RefCell<BTreeMap<(u64, u64), TaskId>>,
    next_timer: Cell<u64>,
    calls: RefCell<Calls>,
    outbox: RefCell<VecDeque<Outgoing>>,
    finished: RefCell<Vec<Finished>>,
}

/// A request that is to be submitted to a node.
pub(crate) struct Outgoing {
    pub(crate) node: NodeIndex,
    pub(crate) tag: Tag,
    pub(crate) request: Request,
}

/// A call that a node has answered: what the node's health is judged by.
pub(crate) struct Finished {
    pub(crate) node: NodeIndex,
    pub(crate) elapsed_ns: u64,
    pub(crate) error: Option<NodeError>,
}

#[derive(Default)]
struct Calls {
    slots: Vec<CallSlot>,
    free: Vec<u32>,
}

struct CallSlot {
    generation: u32,
    node: NodeIndex,
    started_ns: u64,
    state: CallState,
}

enum CallState {
    Free,
    /// No answer yet; the task that waits for it.
    Waiting(TaskId),
    /// Nobody waits any more.
    Abandoned,
    Answered(Answer),
}

impl Runtime {
    /// The time that the last poll was given.
    pub(crate) fn now_ns(&self) -> u64 {
        self.now_ns.get()
    }

    /// The time goes on; it never goes back.
    pub(crate) fn set_now(&self, now_ns: u64) {
        self.now_ns.set(now_ns.max(self.now_ns.get()));
    }

    /// Adds a task; it runs in this poll.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.spawned.borrow_mut().push(Box::pin(task));
    }

    /// Asks `node`. The answer is dropped if the call is.
    pub(crate) fn call(self: &Rc<Self>, node: NodeIndex, request: Request) -> Call {
        let mut calls = self.calls.borrow_mut();
        let index = calls.free.pop().unwrap_or_else(|| {
            let slot = CallSlot { generation: 0, node: 0, started_ns: 0, state: CallState::Free };
            calls.slots.push(slot);
            (calls.slots.len() - 1) as u32
        });
        let mut tag = 0;
        if let Some(slot) = calls.slots.get_mut(index as usize) {
            slot.generation = slot.generation.wrapping_add(1);
            slot.node = node;
            slot.started_ns = self.now_ns.get();
            slot.state = CallState::Waiting(self.current.get());
            tag = u64::from(slot.generation) << 32 | u64::from(index);
        }
        self.outbox.borrow_mut().push_back(Outgoing { node, tag, request });
        Call { runtime: Rc::clone(self), tag, answered: false }
    }

    /// Waits until `at_ns` has come.
    pub(crate) fn sleep_until(self: &Rc<Self>, at_ns: u64) -> Sleep {
        Sleep { runtime: Rc::clone(self), at_ns, timer: None }
    }

    /// The next request for a node.
    pub(crate) fn next_outgoing(&self) -> Option<Outgoing> {
        self.outbox.borrow_mut().pop_front()
    }

    /// Gives an answer to whoever waits for it. One that nobody asked for is dropped.
    pub(crate) fn complete(&self, completion: NodeCompletion) {
        let NodeCompletion { tag, result } = completion;
        let mut calls = self.calls.borrow_mut();
        let index = (tag & u64::from(u32::MAX)) as u32;
        let generation = (tag >> 32) as u32;
        let Some(slot) = calls.slots.get_mut(index as usize) else { return };
        if slot.generation != generation {
            return;
        }
        let finished = Finished {
            node: slot.node,
            elapsed_ns: self.now_ns.get().saturating_sub(slot.started_ns),
            error: result.as_ref().err().copied(),
        };
        match slot.state {
            CallState::Waiting(task) => {
                slot.state = CallState::Answered(result);
                self.ready.borrow_mut().push_back(task);
            }
            CallState::Abandoned => {
                slot.state = CallState::Free;
                calls.free.push(index);
            }
            CallState::Free | CallState::Answered(_) => return,
        }
        self.finished.borrow_mut().push(finished);
    }

    /// The calls that were answered since the last time.
    pub(crate) fn take_finished(&self) -> Vec<Finished> {
        std::mem::take(&mut self.finished.borrow_mut())
    }

    /// When the next timer is due.
    pub(crate) fn next_timer_ns(&self) -> Option<u64> {
        self.timers.borrow().first_key_value().map(|((at_ns, _), _)| *at_ns)
    }

    /// Whether a request waits to be sent.
    pub(crate) fn has_outgoing(&self) -> bool {
        !self.outbox.borrow().is_empty()
    }

    /// Whether a task could run or a request could be sent now.
    pub(crate) fn has_work(&self) -> bool {
        !self.ready.borrow().is_empty()
            || !self.spawned.borrow().is_empty()
            || !self.outbox.borrow().is_empty()
    }

    fn with_slot<R>(&self, tag: Tag, f: impl FnOnce(&mut CallSlot) -> R) -> Option<R> {
        self.calls.borrow_mut().slots.get_mut((tag & u64::from(u32::MAX)) as usize).map(f)
    }
}

/// The tasks themselves. Not part of [`Runtime`], so that no task keeps itself alive.
#[derive(Default)]
pub(crate) struct Executor {
    tasks: Vec<Option<Task>>,
    free: Vec<TaskId>,
}

impl Executor {
    /// Runs every task that can run, until none can.
    pub(crate) fn run(&mut self, runtime: &Runtime) {
        self.fire_timers(runtime);
        loop {
            for task in std::mem::take(&mut *runtime.spawned.borrow_mut()) {
                let id = self.free.pop().unwrap_or(self.tasks.len());
                if id == self.tasks.len() {
                    self.tasks.push(None);
                }
                if let Some(slot) = self.tasks.get_mut(id) {
                    *slot = Some(task);
                }
                runtime.ready.borrow_mut().push_back(id);
            }
            let Some(id) = runtime.ready.borrow_mut().pop_front() else { break };
            self.step(runtime, id);
        }
    }

    fn step(&mut self, runtime: &Runtime, id: TaskId) {
        let Some(mut task) = self.tasks.get_mut(id).and_then(Option::take) else { return };
        runtime.current.set(id);
        let poll = task.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        match poll {
            Poll::Ready(()) => self.free.push(id),
            Poll::Pending => {
                if let Some(slot) = self.tasks.get_mut(id) {
                    *slot = Some(task);
                }
            }
        }
    }

    fn fire_timers(&mut self, runtime: &Runtime) {
        let mut timers = runtime.timers.borrow_mut();
        while let Some(timer) = timers.first_entry() {
            if timer.key().0 > runtime.now_ns.get() {
                break;
            }
            runtime.ready.borrow_mut().push_back(timer.remove());
        }
    }
}

/// A question to a node that is under way.
#[must_use = "a call that is dropped is not answered"]
pub(crate) struct Call {
    runtime: Rc<Runtime>,
    tag: Tag,
    answered: bool,
}

impl Future for Call {
    type Output = Answer;

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Answer> {
        let current = self.runtime.current.get();
        let answer = self.runtime.with_slot(self.tag, |slot| {
            match std::mem::replace(&mut slot.state, CallState::Free) {
                CallState::Answered(answer) => Some(answer),
                _ => {
                    slot.state = CallState::Waiting(current);
                    None
                }
            }
        });
        match answer.flatten() {
            Some(answer) => {
                self.answered = true;
                let index = (self.tag & u64::from(u32::MAX)) as u32;
                self.runtime.calls.borrow_mut().free.push(index);
                Poll::Ready(answer)
            }
            None => Poll::Pending,
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if self.answered {
            return;
        }
        let free = self.runtime.with_slot(self.tag, |slot| {
            let answered = matches!(slot.state, CallState::Answered(_));
            slot.state = if answered { CallState::Free } else { CallState::Abandoned };
            answered
        });
        if free == Some(true) {
            let index = (self.tag & u64::from(u32::MAX)) as u32;
            self.runtime.calls.borrow_mut().free.push(index);
        }
    }
}

/// Waits for a time.
pub(crate) struct Sleep {
    runtime: Rc<Runtime>,
    at_ns: u64,
    /// Its number among the timers, once it has been polled.
    timer: Option<u64>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        if self.runtime.now_ns.get() >= self.at_ns {
            return Poll::Ready(());
        }
        // The end of time never comes.
        if self.timer.is_none() && self.at_ns != u64::MAX {
            let number = self.runtime.next_timer.get();
            self.runtime.next_timer.set(number + 1);
            let task = self.runtime.current.get();
            self.runtime.timers.borrow_mut().insert((self.at_ns, number), task);
            self.timer = Some(number);
        }
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(number) = self.timer {
            self.runtime.timers.borrow_mut().remove(&(self.at_ns, number));
        }
    }
}

/// Something that tasks wait for and others announce.
#[derive(Default)]
pub(crate) struct Event {
    waiting: RefCell<Vec<TaskId>>,
}

impl Event {
    /// Wakes all tasks that wait now.
    pub(crate) fn announce(&self, runtime: &Runtime) {
        runtime.ready.borrow_mut().extend(self.waiting.borrow_mut().drain(..));
    }

    /// Waits until `ready` gives something; asks it at once and after each announcement.
    pub(crate) async fn until<R>(
        &self,
        runtime: &Runtime,
        mut ready: impl FnMut() -> Option<R>,
    ) -> R {
        std::future::poll_fn(|_| match ready() {
            Some(result) => Poll::Ready(result),
            None => {
                let task = runtime.current.get();
                let mut waiting = self.waiting.borrow_mut();
                if !waiting.contains(&task) {
                    waiting.push(task);
                }
                Poll::Pending
            }
        })
        .await
    }
}

/// The first of two futures that is done, the first one first; the other is dropped.
pub(crate) async fn either<A, B>(
    first: impl Future<Output = A>,
    second: impl Future<Output = B>,
) -> Either<A, B> {
    let mut first = std::pin::pin!(first);
    let mut second = std::pin::pin!(second);
    std::future::poll_fn(|context| {
        if let Poll::Ready(result) = first.as_mut().poll(context) {
            return Poll::Ready(Either::First(result));
        }
        second.as_mut().poll(context).map(Either::Second)
    })
    .await
}

/// See [`either`].
pub(crate) enum Either<A, B> {
    /// The first was done.
    First(A),
    /// Only the second was.
    Second(B),
}

/// The results of futures that run side by side, in their order.
pub(crate) async fn join_all<F: Future>(futures: impl IntoIterator<Item = F>) -> Vec<F::Output> {
    let mut running: Vec<Joined<F>> =
        futures.into_iter().map(|future| Joined::Running(Box::pin(future))).collect();
    std::future::poll_fn(|context| {
        let mut pending = false;
        for one in &mut running {
            if let Joined::Running(future) = one {
                match future.as_mut().poll(context) {
                    Poll::Ready(result) => *one = Joined::Done(result),
                    Poll::Pending => pending = true,
                }
            }
        }
        if pending { Poll::Pending } else { Poll::Ready(()) }
    })
    .await;
    let done = running.into_iter().filter_map(|one| match one {
        Joined::Done(result) => Some(result),
        Joined::Running(_) => None,
    });
    done.collect()
}

enum Joined<F: Future> {
    Running(Pin<Box<F>>),
    Done(F::Output),
}
