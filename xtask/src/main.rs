//! The one entry for people: `cargo xtask demo|test|svm|bench|fuzz|soak|contracts|dist`.
//!
//! Every command says what it runs. The first failure ends the command, with the exact line that
//! repeats what failed; `test` alone goes on, so that one run shows everything that is wrong.
#![forbid(unsafe_code)]
#![expect(clippy::disallowed_methods, reason = "this program is the edge: it times what it runs")]

mod anvil;
mod bench;
mod check;
mod cli;
mod contracts;
mod demo;
mod dist;
mod failure;
mod fuzz;
mod packages;
mod repository;
mod soak;
mod svm;
mod tally;
mod task;

use std::process::ExitCode;

use clap::ArgMatches;
use failure::Failure;
use repository::Repository;

fn main() -> ExitCode {
    match run(&cli::command().get_matches()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("\nxtask: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn run(matches: &ArgMatches) -> Result<(), Failure> {
    let repository = Repository::find()?;
    let seconds = |arguments: &ArgMatches| arguments.get_one::<u64>("seconds").copied();
    match matches.subcommand() {
        Some(("demo", _)) => demo::run(&repository),
        Some(("test", arguments)) => check::run(&repository, arguments.get_flag("quick")),
        Some(("svm", arguments)) => {
            let filter = arguments.get_one::<String>("filter").map(String::as_str);
            svm::run(&repository, filter).and_then(svm::Report::into_result)
        }
        Some(("bench", arguments)) => {
            bench::run(&repository, arguments.get_one::<String>("name").map(String::as_str))
        }
        Some(("fuzz", arguments)) => {
            let target = arguments.get_one::<String>("target").map(String::as_str);
            fuzz::run(&repository, target, seconds(arguments).unwrap_or(60))
        }
        Some(("soak", arguments)) => soak_run(&repository, arguments),
        Some(("contracts", arguments)) => contracts::run(&repository, arguments.get_flag("write")),
        Some(("dist", arguments)) => {
            let out = arguments.get_one::<std::path::PathBuf>("out");
            dist::build(&repository, out.map(std::path::PathBuf::as_path)).map(|dist| {
                println!("{}", dist.summary());
            })
        }
        _ => unreachable!("clap refuses a missing or unknown command"),
    }
}

fn soak_run(repository: &Repository, arguments: &ArgMatches) -> Result<(), Failure> {
    let number = |arguments: &ArgMatches, name: &str| arguments.get_one::<u64>(name).copied();
    match arguments.subcommand() {
        Some(("storage", arguments)) => {
            soak::storage(repository, number(arguments, "from"), number(arguments, "seeds"))
        }
        Some(("mesh", arguments)) => {
            soak::mesh(repository, number(arguments, "from"), number(arguments, "seeds"))
        }
        Some(("kills", arguments)) => {
            soak::kills(repository, number(arguments, "count").unwrap_or(1000))
        }
        _ => unreachable!("clap refuses a missing or unknown command"),
    }
}
