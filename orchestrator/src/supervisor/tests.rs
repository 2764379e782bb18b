use std::time::Duration;

use proptest::prelude::*;

use super::*;

const SECOND_NS: u64 = 1_000_000_000;

fn rule(policy: RestartPolicy) -> Restart {
    Restart::new(policy)
}

fn one(restart: Restart) -> Supervisor {
    let mut supervisor = Supervisor::new([restart]);
    assert_eq!(supervisor.start(0), [Action::Start { machine: 0, attempt: 1 }]);
    supervisor
}

#[test]
fn all_machines_start_once() {
    let mut supervisor = Supervisor::new([rule(RestartPolicy::Never); 3]);
    assert_eq!(supervisor.outcome(), None);
    assert_eq!(supervisor.start(0).len(), 3);
    assert_eq!(supervisor.start(0), []);
}

#[test]
fn nothing_to_run_is_a_success() {
    assert_eq!(Supervisor::new([]).outcome(), Some(0));
}

#[test]
fn the_first_failure_in_the_order_of_the_spec_is_the_outcome() {
    let mut supervisor = Supervisor::new([rule(RestartPolicy::Never); 4]);
    supervisor.start(0);
    for (machine, exit) in [(3, 9), (2, 5), (0, 0), (1, 7)] {
        assert_eq!(supervisor.outcome(), None);
        supervisor.exited(machine, Exit::Code(exit), 1);
    }
    assert_eq!(supervisor.outcome(), Some(7));
}

#[test]
fn each_policy_restarts_after_the_ends_it_names() {
    use RestartPolicy::{Always, Never, OnFailure};
    let ends = [Exit::Code(0), Exit::Code(1), Exit::Signal(9), Exit::Code(126)];
    for (policy, restarts) in [
        (Never, [false, false, false, false]),
        (OnFailure, [false, true, true, true]),
        (Always, [true, true, true, true]),
    ] {
        for (end, again) in ends.into_iter().zip(restarts) {
            let mut supervisor = one(rule(policy));
            supervisor.exited(0, end, 1);
            assert_eq!(supervisor.outcome().is_none(), again, "{policy:?} {end:?}");
        }
    }
}

#[test]
fn what_the_host_cannot_do_is_not_tried_again() {
    for end in [Exit::Code(125), Exit::NotStarted] {
        let mut supervisor = one(rule(RestartPolicy::Always));
        assert_eq!(supervisor.exited(0, end, 1), []);
        assert_eq!(supervisor.outcome(), Some(125));
    }
}

#[test]
fn pauses_double_up_to_the_longest() {
    let mut supervisor = one(rule(RestartPolicy::Always));
    let mut now_ns = 0;
    for seconds in [1, 2, 4, 8, 16, 32, 60, 60] {
        let announced = supervisor.exited(0, Exit::Code(1), now_ns);
        assert_eq!(announced, [Action::Announce { machine: 0, in_ms: seconds * 1000 }]);
        let due_ns = now_ns + seconds * SECOND_NS;
        assert_eq!(supervisor.deadline_ns(), Some(due_ns));
        assert_eq!(supervisor.tick(due_ns - 1), []);
        assert_eq!(supervisor.tick(due_ns).len(), 1);
        now_ns = due_ns;
    }
}

#[test]
fn a_long_run_starts_the_pauses_anew() {
    let mut supervisor = one(rule(RestartPolicy::Always));
    supervisor.exited(0, Exit::Code(1), 0);
    supervisor.tick(SECOND_NS);
    let later_ns = SECOND_NS + 600 * SECOND_NS;
    let announced = supervisor.exited(0, Exit::Code(1), later_ns);
    assert_eq!(announced, [Action::Announce { machine: 0, in_ms: 1000 }]);
}

#[test]
fn a_machine_is_given_up_after_its_retries() {
    let mut restart = rule(RestartPolicy::OnFailure);
    restart.max_retries = Some(2);
    restart.backoff_initial = Duration::from_millis(1);
    let mut supervisor = one(restart);
    let mut starts = 1;
    for now_ns in (0..100).map(|step| step * SECOND_NS) {
        supervisor.exited(0, Exit::Code(3), now_ns);
        starts += supervisor.tick(now_ns + SECOND_NS / 2).len();
    }
    assert_eq!((starts, supervisor.outcome()), (3, Some(3)));
}

#[test]
fn stopping_asks_then_kills_and_a_pausing_machine_just_ends() {
    let mut supervisor = Supervisor::new([rule(RestartPolicy::Always); 2]);
    supervisor.start(0);
    supervisor.exited(1, Exit::Code(1), 0);
    assert_eq!(supervisor.stop(10), [Action::Terminate { machine: 0 }]);
    assert_eq!(supervisor.deadline_ns(), Some(10 + GRACE_NS));
    assert_eq!(supervisor.tick(9 + GRACE_NS), []);
    assert_eq!(supervisor.tick(10 + GRACE_NS), [Action::Kill { machine: 0 }]);
    assert_eq!(supervisor.deadline_ns(), None);
    supervisor.exited(0, Exit::Signal(9), 11 + GRACE_NS);
    assert_eq!(supervisor.outcome(), Some(125), "a VM that had to be killed did not stop well");
}

#[test]
fn stopping_well_is_a_success_however_the_process_says_so() {
    for end in [Exit::Code(0), Exit::Signal(15)] {
        let mut supervisor = one(rule(RestartPolicy::Always));
        supervisor.stop(10);
        assert_eq!(supervisor.exited(0, end, 11), []);
        assert_eq!(supervisor.outcome(), Some(0));
    }
}

#[test]
fn stopping_twice_kills_at_once() {
    let mut supervisor = one(rule(RestartPolicy::Never));
    supervisor.stop(10);
    assert_eq!(supervisor.stop(11), [Action::Kill { machine: 0 }]);
}

#[derive(Debug, Clone)]
enum Step {
    Exit(usize, i32),
    Signal(usize, i32),
    Tick(u64),
    Stop,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..4usize, 0..130i32).prop_map(|(machine, code)| Step::Exit(machine, code)),
        (0..4usize, 1..32i32).prop_map(|(machine, signal)| Step::Signal(machine, signal)),
        (0..90_000u64).prop_map(Step::Tick),
        Just(Step::Stop),
    ]
}

proptest! {
    /// Whatever happens in whatever order: a machine never has two processes, nothing starts after
    /// a stop, and there is an outcome exactly when no process and no pause is left.
    #[test]
    fn no_machine_ever_has_two_processes(
        policies in proptest::collection::vec(0..3usize, 3),
        steps in proptest::collection::vec(step(), 0..60),
    ) {
        use RestartPolicy::{Always, Never, OnFailure};
        let of = |index: &usize| rule([Always, OnFailure, Never][*index]);
        let mut supervisor = Supervisor::new(policies.iter().map(of));
        let (mut now_ns, mut stopped) = (0, false);
        let mut alive = [false; 3];
        let mut actions = supervisor.start(now_ns);
        for step in steps {
            for action in actions.drain(..) {
                match action {
                    Action::Start { machine, .. } => {
                        prop_assert!(!alive[machine] && !stopped);
                        alive[machine] = true;
                    }
                    Action::Terminate { machine } | Action::Kill { machine } => {
                        prop_assert!(alive[machine]);
                    }
                    Action::Announce { machine, .. } => prop_assert!(!alive[machine]),
                }
            }
            prop_assert!(supervisor.outcome().is_none() || alive == [false; 3]);
            actions = match step {
                Step::Exit(machine, code) if alive.get(machine) == Some(&true) => {
                    alive[machine] = false;
                    supervisor.exited(machine, Exit::Code(code), now_ns)
                }
                Step::Signal(machine, signal) if alive.get(machine) == Some(&true) => {
                    alive[machine] = false;
                    supervisor.exited(machine, Exit::Signal(signal), now_ns)
                }
                // The end of a process that is not there changes nothing.
                Step::Exit(machine, code) => supervisor.exited(machine, Exit::Code(code), now_ns),
                Step::Signal(..) => Vec::new(),
                Step::Tick(ms) => {
                    now_ns += ms * 1_000_000;
                    supervisor.tick(now_ns)
                }
                Step::Stop => {
                    stopped = true;
                    supervisor.stop(now_ns)
                }
            };
            if stopped && alive == [false; 3] {
                prop_assert!(supervisor.outcome().is_some());
            }
        }
    }
}
