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
    // The whole workspace, so that what is built has the same features as in the tests before it, and is
    // there already. The tests of this name in `proof-node` have no use for anvil, and are short.
    let arguments = ["test", "--workspace", "--test", "suite", "--test", "chain"];
    Task::cargo(repository, arguments).env("HYPHA_ANVIL", &program).run()
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
