//! When machines are started, restarted and stopped: a state machine without processes or clock.
//!
//! ```text
//!            start()                exited(), policy says again
//!   Idle ───────────► Running ───────────────────────────► BackingOff
//!                      │   ▲                                   │
//!                      │   └───────────────────────────────────┘ tick(), pause over
//!                      │ exited(), policy says no more;  stop() from BackingOff
//!                      ▼
//!                    Ended
//! ```
//!
//! * **Idle**: known, never started.
//! * **Running**: its process exists; since when decides whether the next pause starts anew.
//! * **BackingOff**: its process ended; the next start is due at a known time.
//! * **Ended**: for good, with the exit code that counts.
//!
//! [`Supervisor::stop`] asks all processes to end, and kills what is left after [`GRACE_NS`], or at
//! the second call. Time is CLOCK_MONOTONIC in nanoseconds and always an argument.

use spec::deployment::{Restart, RestartPolicy};

use crate::exit_code::HOST_CANNOT;

/// How long a process may take to end after it was asked to.
pub const GRACE_NS: u64 = 5_000_000_000;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// By itself, with this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
    /// It could not be started at all.
    NotStarted,
}

impl Exit {
    /// The exit code that stands for this end.
    fn code(self) -> i32 {
        match self {
            Self::Code(code) => code,
            // Killed from outside (out of memory, seccomp) or never there: the host's doing.
            Self::Signal(_) | Self::NotStarted => HOST_CANNOT,
        }
    }
}

/// What the owner of the processes is to do. Machines are named by their place in the spec.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Start the process for the `attempt`th time (from 1).
    Start {
        /// Which machine.
        machine: usize,
        /// How often it was started, this time included.
        attempt: u32,
    },
    /// Tell the user that the machine is started again after a pause.
    Announce {
        /// Which machine.
        machine: usize,
        /// The pause in milliseconds.
        in_ms: u64,
    },
    /// Ask the process to end (SIGTERM).
    Terminate {
        /// Which machine.
        machine: usize,
    },
    /// End the process (SIGKILL).
    Kill {
        /// Which machine.
        machine: usize,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Idle,
    Running { since_ns: u64 },
    BackingOff { until_ns: u64 },
    Ended { code: i32 },
}

#[derive(Debug)]
struct Machine {
    restart: Restart,
    state: State,
    /// How often it was started.
    attempts: u32,
    /// Restarts in a row without a healthy run between them.
    retries: u32,
}

/// See the module.
#[derive(Debug)]
pub struct Supervisor {
    machines: Vec<Machine>,
    /// When all processes are to end at the latest, once [`Supervisor::stop`] was called.
    kill_at_ns: Option<u64>,
    killed: bool,
}

impl Supervisor {
    /// A supervisor of machines with these rules, in the order of the spec.
    #[must_use]
    pub fn new(rules: impl IntoIterator<Item = Restart>) -> Self {
        let machine = |restart| Machine { restart, state: State::Idle, attempts: 0, retries: 0 };
        Self { machines: rules.into_iter().map(machine).collect(), kill_at_ns: None, killed: false }
    }

    /// Starts every machine that was never started.
    pub fn start(&mut self, now_ns: u64) -> Vec<Action> {
        let idle = |(_, machine): &(usize, &mut Machine)| machine.state == State::Idle;
        let idle = self.machines.iter_mut().enumerate().filter(idle);
        idle.map(|(index, machine)| machine.start(index, now_ns)).collect()
    }

    /// Takes note that the process of `machine` has ended.
    pub fn exited(&mut self, machine: usize, exit: Exit, now_ns: u64) -> Vec<Action> {
        let Some(state) = self.machines.get_mut(machine) else { return Vec::new() };
        let State::Running { since_ns } = state.state else { return Vec::new() };
        if self.kill_at_ns.is_some() {
            state.state = State::Ended { code: stopped_code(exit, self.killed) };
            return Vec::new();
        }
        let ran_ns = now_ns.saturating_sub(since_ns);
        match state.pause_ms(exit, ran_ns) {
            None => {
                state.state = State::Ended { code: exit.code() };
                Vec::new()
            }
            Some(in_ms) => {
                let until_ns = now_ns.saturating_add(in_ms.saturating_mul(1_000_000));
                state.state = State::BackingOff { until_ns };
                vec![Action::Announce { machine, in_ms }]
            }
        }
    }

    /// Does what is due: starts after a pause, kills after the grace time.
    pub fn tick(&mut self, now_ns: u64) -> Vec<Action> {
        if self.kill_at_ns.is_some_and(|at| at <= now_ns) {
            return self.kill();
        }
        let due = |machine: &Machine| matches!(machine.state, State::BackingOff { until_ns } if until_ns <= now_ns);
        let due = self.machines.iter_mut().enumerate().filter(|(_, machine)| due(machine));
        due.map(|(index, machine)| machine.start(index, now_ns)).collect()
    }

    /// Ends everything: politely at first, at once when called again.
    pub fn stop(&mut self, now_ns: u64) -> Vec<Action> {
        if self.kill_at_ns.is_some() {
            return self.kill();
        }
        self.kill_at_ns = Some(now_ns.saturating_add(GRACE_NS));
        for machine in &mut self.machines {
            if matches!(machine.state, State::Idle | State::BackingOff { .. }) {
                machine.state = State::Ended { code: 0 };
            }
        }
        self.running().map(|machine| Action::Terminate { machine }).collect()
    }

    /// Whether [`Supervisor::stop`] was called.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.kill_at_ns.is_some()
    }

    /// When [`Supervisor::tick`] has something to do.
    #[must_use]
    pub fn deadline_ns(&self) -> Option<u64> {
        let pauses = self.machines.iter().filter_map(|machine| match machine.state {
            State::BackingOff { until_ns } => Some(until_ns),
            _ => None,
        });
        let kill = self.kill_at_ns.filter(|_| !self.killed);
        pauses.chain(kill).min()
    }

    /// Once all machines have ended for good: the first exit code that is not 0, in the order of
    /// the spec.
    #[must_use]
    pub fn outcome(&self) -> Option<i32> {
        let mut outcome = 0;
        for machine in &self.machines {
            let State::Ended { code } = machine.state else { return None };
            outcome = if outcome == 0 { code } else { outcome };
        }
        Some(outcome)
    }

    fn kill(&mut self) -> Vec<Action> {
        self.killed = true;
        self.running().map(|machine| Action::Kill { machine }).collect()
    }

    fn running(&self) -> impl Iterator<Item = usize> {
        let running = |machine: &Machine| matches!(machine.state, State::Running { .. });
        let all = self.machines.iter().enumerate();
        all.filter(move |(_, machine)| running(machine)).map(|(index, _)| index)
    }
}

impl Machine {
    fn start(&mut self, machine: usize, now_ns: u64) -> Action {
        self.attempts = self.attempts.saturating_add(1);
        self.state = State::Running { since_ns: now_ns };
        Action::Start { machine, attempt: self.attempts }
    }

    /// How long to wait before the next start; `None` if there is none.
    fn pause_ms(&mut self, exit: Exit, ran_ns: u64) -> Option<u64> {
        let rule = &self.restart;
        let again = match rule.policy {
            RestartPolicy::Never => false,
            RestartPolicy::OnFailure => exit != Exit::Code(0),
            RestartPolicy::Always => true,
        };
        // What this host can't do now it can't do in a second either.
        let hopeless = matches!(exit, Exit::Code(HOST_CANNOT) | Exit::NotStarted);
        if !again || hopeless {
            return None;
        }
        if u128::from(ran_ns) >= rule.reset_after.as_nanos() {
            self.retries = 0;
        }
        if rule.max_retries.is_some_and(|most| self.retries >= most) {
            return None;
        }
        let factor = 1u128 << self.retries.min(40);
        let pause_ms = rule.backoff_initial.as_millis().saturating_mul(factor);
        self.retries = self.retries.saturating_add(1);
        u64::try_from(pause_ms.min(rule.backoff_max.as_millis())).ok()
    }
}

/// The code of a process that was asked to end: whatever it says about itself, unless it only
/// obeyed the signal.
fn stopped_code(exit: Exit, killed: bool) -> i32 {
    const SIGTERM: i32 = 15;
    match exit {
        Exit::Signal(SIGTERM) if !killed => 0,
        other => other.code(),
    }
}

#[cfg(test)]
mod tests;
