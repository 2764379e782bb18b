//! `cargo xtask soak`: the random tests of storage and mesh for as long as one likes.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::failure::Failure;
use crate::repository::Repository;
use crate::task::Task;

/// The seeds between two lines of progress. Each is run in every campaign.
const BATCH: u64 = 500;

/// Simulates systems from seed `first` on (a fresh one if there is none), `count` seeds or until it is
/// stopped. The first batch with a seed that fails ends it; the seed is in the output, with the line
/// that repeats it.
pub(crate) fn storage(
    repository: &Repository,
    first: Option<u64>,
    count: Option<u64>,
) -> Result<(), Failure> {
    seeds(repository, ["storage-vdev", "dst", "campaign::"], (first, count))
}

/// The same for the mesh's routers.
pub(crate) fn mesh(
    repository: &Repository,
    first: Option<u64>,
    count: Option<u64>,
) -> Result<(), Failure> {
    // All tests but the one that compares traces, which would run each seed three times more.
    seeds(repository, ["mesh-sim", "campaigns", "_no_loop"], (first, count))
}

/// Runs the tests of a package, a file of tests and a part of their names, batch after batch.
fn seeds(
    repository: &Repository,
    [package, test, names]: [&str; 3],
    (first, count): (Option<u64>, Option<u64>),
) -> Result<(), Failure> {
    let first = first.unwrap_or_else(fresh);
    let end = count.map_or(u64::MAX, |count| first.saturating_add(count));
    let mut next = first;
    while next < end {
        let batch_end = end.min(next.saturating_add(BATCH));
        let arguments = ["test", "--release", "--package", package, "--test", test];
        let filter = [names, "--", "--nocapture", "--test-threads", "1"];
        let task = Task::cargo(repository, arguments.into_iter().chain(filter));
        task.env("HYPHA_SEEDS", format!("{next}..{batch_end}")).run()?;
        next = batch_end;
        println!("soak: seeds {first}..{next} of every campaign have passed");
    }
    Ok(())
}

/// Kills real servers, each kind so many times, and checks what they had promised.
pub(crate) fn kills(repository: &Repository, count: u64) -> Result<(), Failure> {
    // The servers are examples, which `cargo test` builds only where no test is chosen.
    let examples = ["build", "--release", "--package", "storage-node", "--examples"];
    Task::cargo(repository, examples).run()?;
    let arguments = ["test", "--release", "--package", "storage-node"];
    let tests = ["--test", "faces", "--test", "server", "kill", "--", "--nocapture"];
    let task = Task::cargo(repository, arguments.into_iter().chain(tests));
    task.env("HYPHA_KILLS", count.to_string()).run()
}

/// A seed that nobody has tried: they grow with the time, faster than any machine runs them.
fn fresh() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_secs().saturating_mul(10_000)
}
