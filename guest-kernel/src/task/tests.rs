use alloc::string::String;
use alloc::vec;
use std::format;

use super::*;

fn at_rest() -> (Executor, Rc<Cell<u64>>) {
    let now = Rc::new(Cell::new(0));
    let clock = Rc::clone(&now);
    (Executor::new(move || clock.get()), now)
}

fn run(executor: &Executor) {
    while executor.run_round() {}
}

#[test]
fn a_task_runs_when_it_is_woken_and_not_otherwise() {
    let (executor, _) = at_rest();
    let polls = Rc::new(Cell::new(0));
    let signal = Rc::new(Signal::default());
    let task = {
        let (polls, signal) = (Rc::clone(&polls), Rc::clone(&signal));
        executor.spawn(async move {
            polls.set(polls.get() + 1);
            signal.notified().await;
            polls.set(polls.get() + 1);
            "done"
        })
    };
    run(&executor);
    run(&executor);
    assert_eq!((polls.get(), task.try_take()), (1, None));
    signal.notify();
    run(&executor);
    assert_eq!((polls.get(), task.try_take()), (2, Some("done")));
}

#[test]
fn timers_fire_in_the_order_of_their_deadlines() {
    let (executor, now) = at_rest();
    let log = Rc::new(RefCell::new(String::new()));
    for duration in [30, 10, 20] {
        let (sleeper, log) = (executor.clone(), Rc::clone(&log));
        drop(executor.spawn(async move {
            sleeper.sleep(duration).await;
            log.borrow_mut().push_str(&format!("{duration} "));
        }));
    }
    run(&executor);
    while let Some(deadline) = executor.deadline_ns() {
        now.set(deadline);
        run(&executor);
    }
    assert_eq!((log.borrow().as_str(), now.get()), ("10 20 30 ", 30));
}

#[test]
fn a_timeout_drops_the_future_and_its_timer() {
    let (executor, now) = at_rest();
    let dropped = Rc::new(Cell::new(false));
    struct OnDrop(Rc<Cell<bool>>);
    impl Drop for OnDrop {
        fn drop(&mut self) {
            self.0.set(true);
        }
    }
    let task = {
        let (clock, guard) = (executor.clone(), OnDrop(Rc::clone(&dropped)));
        executor.spawn(async move {
            let never = async move {
                let _guard = guard;
                core::future::pending::<()>().await;
            };
            let slow = clock.timeout(50, never).await;
            let quick = clock.timeout(50, async { 7 }).await;
            (slow, quick)
        })
    };
    run(&executor);
    now.set(50);
    run(&executor);
    assert_eq!(task.try_take(), Some((None, Some(7))));
    assert!(dropped.get());
    assert_eq!(executor.deadline_ns(), None);
}

#[test]
fn a_waker_that_outlives_its_task_wakes_nobody() {
    let (executor, _) = at_rest();
    let stale = Rc::new(RefCell::new(None));
    {
        let stale = Rc::clone(&stale);
        drop(executor.spawn(poll_fn(move |context| {
            *stale.borrow_mut() = Some(context.waker().clone());
            Poll::Ready(())
        })));
    }
    run(&executor);
    stale.borrow_mut().take().unwrap().wake();
    assert!(!executor.run_round());
}

#[test]
fn a_task_that_wakes_itself_does_not_starve_the_others() {
    let (executor, _) = at_rest();
    drop(executor.spawn(async {
        loop {
            yield_now().await;
        }
    }));
    let other = executor.spawn(async {
        for _ in 0..3 {
            yield_now().await;
        }
    });
    for _ in 0..4 {
        assert!(executor.run_round());
    }
    assert_eq!(other.try_take(), Some(()));
}

#[test]
fn tasks_spawn_tasks_and_join_them() {
    let (executor, _) = at_rest();
    let spawner = executor.clone();
    let all = executor.spawn(async move {
        let children: Vec<_> = (0..100).map(|i| spawner.spawn(async move { i * i })).collect();
        let mut sum = 0;
        for child in children {
            sum += child.await;
        }
        sum
    });
    run(&executor);
    assert_eq!(all.try_take(), Some((0..100).map(|i| i * i).sum()));
    let slots = executor.inner.tasks.borrow().len();
    assert_eq!(executor.inner.tasks.borrow().iter().flatten().count(), 0, "of {slots} slots");
}

#[test]
fn a_finished_future_may_spawn_from_its_destructor() {
    struct Spawns(Executor, Rc<Cell<bool>>);
    impl Drop for Spawns {
        fn drop(&mut self) {
            let ran = Rc::clone(&self.1);
            drop(self.0.spawn(async move { ran.set(true) }));
        }
    }
    let (executor, _) = at_rest();
    let ran = Rc::new(Cell::new(false));
    let guard = Spawns(executor.clone(), Rc::clone(&ran));
    let mut guards = vec![guard];
    drop(executor.spawn(poll_fn(move |_| {
        let _kept = &mut guards;
        Poll::Ready(())
    })));
    run(&executor);
    assert!(ran.get());
}
