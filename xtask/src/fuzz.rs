//! `cargo xtask fuzz`: the fuzz targets under cargo-fuzz, which needs a nightly toolchain.

use std::path::Path;

use crate::failure::Failure;
use crate::packages;
use crate::repository::Repository;
use crate::task::Task;

/// Runs every target, or the one with this name, for so many seconds each.
pub(crate) fn run(
    repository: &Repository,
    target: Option<&str>,
    seconds: u64,
) -> Result<(), Failure> {
    if !nightly_is_there(repository) {
        return Err(Failure::Install {
            missing: "a nightly toolchain".to_owned(),
            line: "rustup toolchain install nightly --profile minimal".to_owned(),
        });
    }
    packages::install(repository, &[packages::GCC, packages::GPP])?;
    packages::cargo_tool(repository, "fuzz")?;
    for name in targets(repository)?.iter().filter(|name| target.is_none_or(|only| only == *name)) {
        println!("fuzzing {name} for {seconds} s");
        let limit = format!("-max_total_time={seconds}");
        // New inputs go to a folder of their own: the seed corpus is part of the repository.
        let found = repository.work_folder(&format!("fuzz/{name}"))?;
        let seeds = format!("fuzz/corpus/{name}");
        let build = repository.target().join("fuzz");
        let arguments = [
            "+nightly".as_ref(),
            "fuzz".as_ref(),
            "run".as_ref(),
            "--features".as_ref(),
            "libfuzzer".as_ref(),
            "--target-dir".as_ref(),
            build.as_os_str(),
            name.as_ref(),
            found.as_os_str(),
            seeds.as_ref(),
            "--".as_ref(),
            limit.as_ref(),
            "-print_final_stats=1".as_ref(),
        ];
        let task = Task::cargo(repository, arguments)
            // One crate at a time is optimised; linking the whole as one would take minutes.
            .env("CARGO_PROFILE_RELEASE_LTO", "off")
            .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16");
        run_quietly(task, &repository.work_folder("logs")?.join(format!("fuzz-{name}.log")))?;
    }
    Ok(())
}

/// Runs libFuzzer, which is talkative: all goes to a log, the sum to the screen; of a failure, also
/// the end of what it said, with the input that causes it.
fn run_quietly(task: Task, log: &Path) -> Result<(), Failure> {
    let mut lines = Vec::new();
    let result = task.lines(|line| {
        if line.starts_with("stat::number_of") || line.starts_with("stat::new_units") {
            println!("    {line}");
        }
        lines.push(line.to_owned());
    });
    std::fs::write(log, lines.join("\n")).map_err(Failure::file(log))?;
    if result.is_err() {
        let end = lines.get(lines.len().saturating_sub(40)..).unwrap_or(&lines);
        println!("{}\nall of it: {}", end.join("\n"), log.display());
    }
    result
}

/// Whether `cargo +nightly` works here.
pub(crate) fn nightly_is_there(repository: &Repository) -> bool {
    Task::cargo(repository, ["+nightly", "--version"]).succeeds()
}

/// The targets: a file of `fuzz/fuzz_targets` each.
pub(crate) fn targets(repository: &Repository) -> Result<Vec<String>, Failure> {
    let folder = repository.root().join("fuzz/fuzz_targets");
    let entries = std::fs::read_dir(&folder).map_err(Failure::file(&folder))?;
    let mut names: Vec<String> = entries
        .flatten()
        .filter_map(|entry| Some(entry.file_name().to_str()?.strip_suffix(".rs")?.to_owned()))
        .collect();
    names.sort();
    Ok(names)
}
