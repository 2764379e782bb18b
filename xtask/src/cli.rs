//! The command line.

use std::path::PathBuf;

use clap::{Arg, ArgAction, Command, value_parser};

/// The commands and their options.
pub(crate) fn command() -> Command {
    Command::new("cargo xtask")
        .about("The one entry for people: what a newcomer and the CI run")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(Command::new("demo").about(
            "Two VMs on an encrypted mesh and a dispersed disk; kills one, loses two shards, \
             checks that nothing is lost",
        ))
        .subcommand(
            Command::new("test")
                .about("Everything that the CI checks; under 30 minutes on two cores")
                .arg(
                    Arg::new("quick")
                        .long("quick")
                        .action(ArgAction::SetTrue)
                        .help("Leave out the emulated machine and cargo-fuzz"),
                ),
        )
        .subcommand(
            Command::new("svm")
                .about("The KVM integration tests inside QEMU's emulated AMD-V")
                .arg(Arg::new("filter").help("Run only the tests whose name contains this")),
        )
        .subcommand(
            Command::new("bench")
                .about("Measures against the limits of docs/performance.md")
                .arg(Arg::new("name").help("Run only this benchmark, or these: storage")),
        )
        .subcommand(
            Command::new("fuzz")
                .about("Runs the fuzz targets with cargo-fuzz on the nightly toolchain")
                .arg(Arg::new("target").help("Run only this target"))
                .arg(
                    Arg::new("seconds")
                        .long("seconds")
                        .value_name("N")
                        .value_parser(value_parser!(u64))
                        .help("How long each target runs [default: 60]"),
                ),
        )
        .subcommand(soak())
        .subcommand(
            Command::new("contracts")
                .about("Compiles the contracts and compares them with the bytecode checked in")
                .arg(
                    Arg::new("write")
                        .long("write")
                        .action(ArgAction::SetTrue)
                        .help("Replace what is checked in"),
                ),
        )
        .subcommand(
            Command::new("dist")
                .about("Builds a folder with hypha, vmm and guest images that runs from anywhere")
                .arg(
                    Arg::new("out")
                        .long("out")
                        .value_name("FOLDER")
                        .value_parser(value_parser!(PathBuf))
                        .help("Where to put it [default: dist]"),
                ),
        )
}

fn soak() -> Command {
    let number = |name: &'static str| {
        Arg::new(name).long(name).value_name("N").value_parser(value_parser!(u64))
    };
    Command::new("soak")
        .about("Runs the random tests of storage and mesh for as long as one likes")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(
            Command::new("storage")
                .about("Simulates whole systems, seed after seed, until one fails")
                .arg(number("seeds").help("Stop after so many seeds [default: never]"))
                .arg(number("from").help("The first seed [default: one that is new]")),
        )
        .subcommand(
            Command::new("mesh")
                .about("Simulates networks of routers, seed after seed, until one fails")
                .arg(number("seeds").help("Stop after so many seeds [default: never]"))
                .arg(number("from").help("The first seed [default: one that is new]")),
        )
        .subcommand(
            Command::new("kills")
                .about("Kills real servers at any moment and checks what they had promised")
                .arg(number("count").help("How many times each [default: 1000]")),
        )
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_command_line_is_consistent() {
        super::command().debug_assert();
    }
}
