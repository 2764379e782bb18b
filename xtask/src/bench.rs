//! `cargo xtask bench`: the benchmarks of the `benches` crate, against a fresh `dist`.

use crate::dist;
use crate::failure::Failure;
use crate::repository::Repository;
use crate::task::Task;

/// Runs all benchmarks, or the one with this name.
pub(crate) fn run(repository: &Repository, name: Option<&str>) -> Result<(), Failure> {
    let dist = dist::build(repository, None)?;
    let mut arguments = vec!["bench", "--package", "benches"];
    match name {
        Some(name) => arguments.extend(["--bench", name]),
        None => arguments.push("--benches"),
    }
    Task::cargo(repository, arguments).env("HYPHA_DIST", dist.folder()).run()
}
