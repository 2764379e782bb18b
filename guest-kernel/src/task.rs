//! A cooperative executor for one vCPU: tasks, wakers and timers.
//!
//! Waking a task sets one bit; it allocates nothing. Tasks that are ready run in rounds, each at
//! most once per round, so a task that keeps waking itself can't starve the others or the drivers.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::rc::Rc;
use alloc::sync::Arc;
use alloc::task::Wake;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::future::{Future, poll_fn};
use core::pin::{Pin, pin};
use core::sync::atomic::{AtomicU64, Ordering};
use core::task::{Context, Poll, Waker};

/// How many tasks can exist at once.
pub const TASKS_MAX: usize = 64 * READY_WORDS;
const READY_WORDS: usize = 64;

/// Runs tasks. Clones share everything.
#[derive(Clone)]
pub struct Executor {
    inner: Rc<Inner>,
}

struct Inner {
    tasks: RefCell<Vec<Option<Task>>>,
    ready: Arc<ReadySet>,
    timers: RefCell<BTreeMap<TimerKey, Waker>>,
    next_timer: Cell<u64>,
    clock: Box<dyn Fn() -> u64>,
}

struct Task {
    /// Absent while the task is being polled.
    future: Option<Pin<Box<dyn Future<Output = ()>>>>,
    waker: Waker,
}

/// Bit *i* of the set is task *i*. Wakers are `Send`, hence atomics; nothing contends for them.
struct ReadySet {
    words: [AtomicU64; READY_WORDS],
}

struct TaskWaker {
    index: usize,
    ready: Arc<ReadySet>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if let Some(word) = self.ready.words.get(self.index / 64) {
            word.fetch_or(1 << (self.index % 64), Ordering::Relaxed);
        }
    }
}

/// Deadline first, so that the map's first entry is the nearest; the number makes it unique.
type TimerKey = (u64, u64);

impl Executor {
    /// An executor without tasks; `clock` gives nanoseconds since some start, never backwards.
    #[must_use]
    pub fn new(clock: impl Fn() -> u64 + 'static) -> Self {
        let ready = ReadySet { words: [const { AtomicU64::new(0) }; READY_WORDS] };
        Self {
            inner: Rc::new(Inner {
                tasks: RefCell::new(Vec::new()),
                ready: Arc::new(ready),
                timers: RefCell::new(BTreeMap::new()),
                next_timer: Cell::new(0),
                clock: Box::new(clock),
            }),
        }
    }

    /// The clock's time in nanoseconds.
    #[must_use]
    pub fn now_ns(&self) -> u64 {
        (self.inner.clock)()
    }

    /// Starts `future` as a task. It runs to its end whether or not the handle is kept.
    ///
    /// # Panics
    /// If there are [`TASKS_MAX`] tasks already: servers cap their connections below that.
    pub fn spawn<T: 'static>(&self, future: impl Future<Output = T> + 'static) -> JoinHandle<T> {
        let join = Rc::new(RefCell::new(Join { result: None, waker: None }));
        let state = Rc::clone(&join);
        let future = Box::pin(async move {
            let result = future.await;
            let waker = {
                let mut state = state.borrow_mut();
                state.result = Some(result);
                state.waker.take()
            };
            if let Some(waker) = waker {
                waker.wake();
            }
        });
        let mut tasks = self.inner.tasks.borrow_mut();
        let index = tasks.iter().position(Option::is_none).unwrap_or(tasks.len());
        assert!(index < TASKS_MAX, "more than {TASKS_MAX} tasks");
        let waker = Waker::from(Arc::new(TaskWaker { index, ready: self.inner.ready.clone() }));
        waker.wake_by_ref();
        let task = Some(Task { future: Some(future), waker });
        match tasks.get_mut(index) {
            Some(slot) => *slot = task,
            None => tasks.push(task),
        }
        JoinHandle { join }
    }

    /// Wakes the timers that are due and polls every ready task once. Returns whether any ran.
    pub fn run_round(&self) -> bool {
        self.fire_timers();
        let mut ran = false;
        for (word_index, word) in self.inner.ready.words.iter().enumerate() {
            let mut bits = word.swap(0, Ordering::Relaxed);
            while bits != 0 {
                let index = word_index * 64 + bits.trailing_zeros() as usize;
                bits &= bits - 1;
                ran |= self.run_task(index);
            }
        }
        ran
    }

    /// When the nearest timer is due.
    #[must_use]
    pub fn deadline_ns(&self) -> Option<u64> {
        self.inner.timers.borrow().first_key_value().map(|((deadline, _), _)| *deadline)
    }

    /// Ends `duration_ns` from now, not earlier.
    pub fn sleep(&self, duration_ns: u64) -> Sleep {
        let deadline_ns = self.now_ns().saturating_add(duration_ns);
        Sleep { executor: self.clone(), deadline_ns, key: None }
    }

    /// What `future` gives, or `None` if it takes longer than `duration_ns`; it's dropped then.
    pub async fn timeout<F: Future>(&self, duration_ns: u64, future: F) -> Option<F::Output> {
        let mut future = pin!(future);
        let mut sleep = pin!(self.sleep(duration_ns));
        poll_fn(|context| {
            if let Poll::Ready(output) = future.as_mut().poll(context) {
                return Poll::Ready(Some(output));
            }
            sleep.as_mut().poll(context).map(|()| None)
        })
        .await
    }

    fn run_task(&self, index: usize) -> bool {
        let taken = {
            let mut tasks = self.inner.tasks.borrow_mut();
            let task = tasks.get_mut(index).and_then(Option::as_mut);
            task.and_then(|task| Some((task.future.take()?, task.waker.clone())))
        };
        // A waker may outlive its task.
        let Some((mut future, waker)) = taken else { return false };
        let finished = future.as_mut().poll(&mut Context::from_waker(&waker)).is_ready();
        {
            let mut tasks = self.inner.tasks.borrow_mut();
            if let Some(slot) = tasks.get_mut(index) {
                if finished {
                    *slot = None;
                } else if let Some(task) = slot {
                    task.future = Some(future);
                    return true;
                }
            }
        }
        // Dropped only now, outside the borrow: its destructors may spawn or wake.
        drop(future);
        true
    }

    fn fire_timers(&self) {
        if self.inner.timers.borrow().is_empty() {
            return;
        }
        let now_ns = self.now_ns();
        loop {
            let mut timers = self.inner.timers.borrow_mut();
            let Some(entry) = timers.first_entry() else { return };
            if entry.key().0 > now_ns {
                return;
            }
            let waker = entry.remove();
            drop(timers);
            waker.wake();
        }
    }
}

struct Join<T> {
    result: Option<T>,
    waker: Option<Waker>,
}

/// Waits for a task's result.
pub struct JoinHandle<T> {
    join: Rc<RefCell<Join<T>>>,
}

impl<T> JoinHandle<T> {
    /// The result, if the task has ended and nobody has taken it yet.
    #[must_use]
    pub fn try_take(&self) -> Option<T> {
        self.join.borrow_mut().result.take()
    }
}

impl<T> Future for JoinHandle<T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        let mut join = self.join.borrow_mut();
        if let Some(result) = join.result.take() {
            return Poll::Ready(result);
        }
        join.waker = Some(context.waker().clone());
        Poll::Pending
    }
}

/// Ends at a deadline; see [`Executor::sleep`].
pub struct Sleep {
    executor: Executor,
    deadline_ns: u64,
    key: Option<TimerKey>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.executor.now_ns() >= self.deadline_ns {
            return Poll::Ready(());
        }
        let inner = Rc::clone(&self.executor.inner);
        let key = self.key.unwrap_or_else(|| {
            let number = inner.next_timer.get();
            inner.next_timer.set(number + 1);
            (self.deadline_ns, number)
        });
        self.key = Some(key);
        inner.timers.borrow_mut().insert(key, context.waker().clone());
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.executor.inner.timers.borrow_mut().remove(&key);
        }
    }
}

/// Wakes one waiting task at a time: a flag that remembers if nobody was waiting yet.
#[derive(Debug, Default)]
pub struct Signal {
    set: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Signal {
    /// Sets the flag and wakes the task that waits for it, if one does.
    pub fn notify(&self) {
        self.set.set(true);
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }

    /// Waits until the flag is set, and clears it. One task at a time may wait.
    pub async fn notified(&self) {
        poll_fn(|context| {
            if self.set.replace(false) {
                return Poll::Ready(());
            }
            *self.waker.borrow_mut() = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

/// Lets the other ready tasks run first.
pub async fn yield_now() {
    let mut yielded = false;
    poll_fn(|context| {
        if core::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

#[cfg(test)]
mod tests;
