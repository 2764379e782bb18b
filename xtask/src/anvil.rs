//! The contracts' tests on another chain: anvil, from npm. What they pin must come out the same.

use std::path::PathBuf;

use crate::failure::Failure;
use crate::packages;
use crate::repository::Repository;
use crate::task::Task;

/// Its newest version when this was written.
const VERSION: &str = "1.7.1";

/// Runs the suite of `hypha-chain` and the verbs of `hypha` on anvil.
pub(crate) fn run(repository: &Repository) -> Result<(), Failure> {
    let program = program(repository)?;
    for (package, test) in [("hypha-chain", "suite"), ("orchestrator", "chain")] {
        let arguments = ["test", "--package", package, "--test", test];
        Task::cargo(repository, arguments).env("HYPHA_ANVIL", &program).run()?;
    }
    Ok(())
}

/// The program, installed under the target folder if it is missing.
fn program(repository: &Repository) -> Result<PathBuf, Failure> {
    packages::install(repository, &packages::NODE)?;
    let folder = repository.work_folder(&format!("anvil-{VERSION}"))?;
    let program = folder.join("node_modules/@foundry-rs/anvil-linux-amd64/bin/anvil");
    if !program.is_file() {
        println!("installing anvil {VERSION} from npm (once)");
        packages::npm(repository, &folder, &format!("@foundry-rs/anvil-linux-amd64@{VERSION}"))?;
    }
    Ok(program)
}
