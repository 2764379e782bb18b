//! `cargo xtask bench`: the benchmarks of the `benches` crate, against a fresh `dist`.

use crate::dist;
use crate::failure::Failure;
use crate::packages;
use crate::repository::Repository;
use crate::task::Task;

/// What `cargo xtask bench storage` runs.
const STORAGE: [&str; 2] = ["storage_codec", "storage_volume"];

/// Runs all benchmarks, or the one with this name.
pub(crate) fn run(repository: &Repository, name: Option<&str>) -> Result<(), Failure> {
    let storage = name.is_none_or(|name| name == "storage" || STORAGE.contains(&name));
    let mut arguments = vec!["bench", "--package", "benches"];
    if storage {
        packages::install(repository, &packages::ISAL)?;
        arguments.extend(["--features", "isal"]);
    }
    if name.is_none_or(|name| name == "mesh") {
        packages::install(repository, &packages::NETWORK)?;
        packages::install(repository, &packages::MESH_PEERS)?;
        packages::cargo_program(repository, "boringtun-cli")?;
    }
    match name {
        Some("storage") => arguments.extend(STORAGE.iter().flat_map(|name| ["--bench", *name])),
        Some(name) => arguments.extend(["--bench", name]),
        None => arguments.push("--benches"),
    }
    let dist = dist::build(repository, None)?;
    Task::cargo(repository, arguments).env("HYPHA_DIST", dist.folder()).run()
}
