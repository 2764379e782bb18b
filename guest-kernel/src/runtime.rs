//! The loop that everything runs in: drivers, then tasks, until nothing is left to do.
//!
//! ```text
//! turn: drivers poll ──► tasks run ──► … ──► nothing ready ──► one wait ──► turn
//! ```
//!
//! A wait is the only exit: it submits every queue and returns with what the devices have done. So
//! an operation costs as many exits as it has dependent steps on the other side, and no more.

use alloc::rc::Rc;
use alloc::vec::Vec;

use crate::task::Executor;

/// How many rounds tasks may run before the drivers are looked at again.
const ROUNDS_PER_POLL: usize = 16;

/// A device driver as the loop sees it.
pub trait Driver {
    /// Takes what the device has done, wakes whom it concerns, and queues what is to be submitted.
    fn poll(&self, now_ns: u64);

    /// When [`Driver::poll`] has to run even if the device has done nothing; `None` for never.
    fn deadline_ns(&self, now_ns: u64) -> Option<u64>;
}

/// An executor and the drivers that its tasks wait for.
pub struct Runtime {
    executor: Executor,
    drivers: Vec<Rc<dyn Driver>>,
}

impl Runtime {
    /// A runtime for the tasks of `executor`.
    #[must_use]
    pub fn new(executor: Executor, drivers: Vec<Rc<dyn Driver>>) -> Self {
        Self { executor, drivers }
    }

    /// Runs until nothing is ready. Returns when to turn again at the latest (which may have
    /// passed), or `None` if only a device can change anything.
    pub fn turn(&self) -> Option<u64> {
        loop {
            let now_ns = self.executor.now_ns();
            for driver in &self.drivers {
                driver.poll(now_ns);
            }
            if !self.executor.run_round() {
                break;
            }
            for _ in 1..ROUNDS_PER_POLL {
                if !self.executor.run_round() {
                    break;
                }
            }
        }
        let now_ns = self.executor.now_ns();
        let drivers = self.drivers.iter().filter_map(|driver| driver.deadline_ns(now_ns));
        drivers.chain(self.executor.deadline_ns()).min()
    }
}
