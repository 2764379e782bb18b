//! `cargo xtask fuzz`: the fuzz targets under cargo-fuzz, which needs a nightly toolchain.

use std::path::{Path, PathBuf};

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
    let mut names = targets(repository)?;
    names.retain(|name| target.is_none_or(|only| only == name));
    let programs = build(repository, target)?;
    // As many at once as there are processors: each uses one.
    let at_once = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    for group in names.chunks(at_once) {
        println!("fuzzing {} for {seconds} s", group.join(" and "));
        let ended = std::thread::scope(|scope| {
            let started: Vec<_> = group
                .iter()
                .map(|name| scope.spawn(|| fuzz(repository, &programs, name, seconds)))
                .collect();
            started.into_iter().map(|run| run.join()).collect::<Vec<_>>()
        });
        for ended in ended {
            ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
    }
    Ok(())
}

/// Builds the targets, or this one, all at once. Returns the folder with their programs.
fn build(repository: &Repository, target: Option<&str>) -> Result<PathBuf, Failure> {
    let folder = repository.target().join("fuzz");
    let path = folder.to_string_lossy();
    let options = ["+nightly", "fuzz", "build", "--features", "libfuzzer", "--target-dir", &path];
    Task::cargo(repository, options.into_iter().chain(target)).optimised_by_crate().run()?;
    Ok(folder.join("x86_64-unknown-linux-gnu/release"))
}

/// Runs one target. New inputs go to a folder of their own: the seed corpus is part of the repository.
fn fuzz(repository: &Repository, programs: &Path, name: &str, seconds: u64) -> Result<(), Failure> {
    let found = repository.work_folder(&format!("fuzz/{name}"))?;
    let broken = repository.work_folder(&format!("fuzz-broken/{name}"))?;
    let arguments = [
        found.display().to_string(),
        format!("fuzz/corpus/{name}"),
        format!("-max_total_time={seconds}"),
        format!("-artifact_prefix={}/", broken.display()),
        "-print_final_stats=1".to_owned(),
    ];
    let program = programs.join(name).display().to_string();
    let log = repository.work_folder("logs")?.join(format!("fuzz-{name}.log"));
    run_quietly(Task::new(repository, &program, arguments), name, &log)
}

/// Runs libFuzzer, which is talkative: all goes to a log, the sum to the screen; of a failure, also
/// the end of what it said, with the input that causes it.
fn run_quietly(task: Task, name: &str, log: &Path) -> Result<(), Failure> {
    let (mut lines, mut sums) = (Vec::new(), Vec::new());
    let result = task.lines(|line| {
        if let Some(sum) = line.strip_prefix("stat::")
            && (sum.starts_with("number_of") || sum.starts_with("new_units"))
        {
            sums.push(sum.split_whitespace().collect::<Vec<_>>().join(" "));
        }
        lines.push(line.to_owned());
    });
    println!("    {name}: {}", sums.join(", "));
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
