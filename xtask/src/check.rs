//! `cargo xtask test`: everything that the CI checks, and a table of it at the end.

use std::io::Write;
use std::path::Path;
use std::time::Instant;

use crate::anvil;
use crate::contracts;
use crate::demo;
use crate::dist::{self, Dist};
use crate::failure::Failure;
use crate::fuzz;
use crate::packages;
use crate::repository::Repository;
use crate::svm;
use crate::tally::{self, Tally};
use crate::task::Task;

/// How long each fuzz target runs under cargo-fuzz.
const FUZZ_SECONDS: u64 = 6;

/// What a step came to.
enum Outcome {
    /// All is well.
    Passed(Tally),
    /// Something is wrong: what, and how to repeat it.
    Failed(Tally, String),
    /// It can't run here, and why.
    Skipped(String),
}

/// The steps so far.
struct Run {
    steps: Vec<(&'static str, Outcome, f64)>,
}

impl Run {
    fn step(&mut self, name: &'static str, work: impl FnOnce() -> Outcome) {
        println!("\n== {name}");
        let start = Instant::now();
        let outcome = work();
        let seconds = start.elapsed().as_secs_f64();
        let (word, detail) = outcome.words();
        println!("== {name}: {word}, {seconds:.0} s {detail}");
        self.steps.push((name, outcome, seconds));
    }

    /// Prints the table and the last line.
    fn finish(self) -> Result<(), Failure> {
        let mut total = Tally::default();
        let mut failures = String::new();
        println!("\n{:<22} {:<8} {:>8}  ", "step", "result", "seconds");
        for (name, outcome, seconds) in &self.steps {
            let (word, detail) = outcome.words();
            let detail = if word == "FAILED" { "see below" } else { &detail };
            println!("{name:<22} {word:<8} {seconds:>8.1}  {detail}");
            total.add(outcome.tally());
            if let Outcome::Failed(_, repeat) = outcome {
                failures.push_str(&format!("\n{name}: {repeat}"));
            }
        }
        if !failures.is_empty() {
            println!("{failures}");
        }
        println!("\n{total}");
        if total.failed == 0 {
            return Ok(());
        }
        Err(Failure::Checks { summary: "some checks failed (see the table above)".to_owned() })
    }
}

impl Outcome {
    /// A check without tests of its own counts as one.
    fn of_one(result: Result<(), Failure>) -> Self {
        match result {
            Ok(()) => Self::Passed(Tally::ONE_PASSED),
            Err(failure) => Self::Failed(Tally::ONE_FAILED, failure.to_string()),
        }
    }

    fn tally(&self) -> Tally {
        match self {
            Self::Passed(tally) | Self::Failed(tally, _) => *tally,
            Self::Skipped(_) => Tally::ONE_SKIPPED,
        }
    }

    fn words(&self) -> (&'static str, String) {
        match self {
            Self::Passed(tally) if *tally == Tally::ONE_PASSED => ("ok", String::new()),
            Self::Passed(tally) => ("ok", tally.to_string()),
            Self::Failed(tally, repeat) if *tally == Tally::ONE_FAILED => {
                ("FAILED", repeat.clone())
            }
            Self::Failed(tally, _) => ("FAILED", tally.to_string()),
            Self::Skipped(reason) => ("skipped", reason.clone()),
        }
    }
}

/// Runs every check, also after one has failed, and ends with the table.
pub(crate) fn run(repository: &Repository, quick: bool) -> Result<(), Failure> {
    let needed = [packages::GCC, packages::LIBC, packages::STRACE];
    packages::install(repository, &needed)?;
    packages::install(repository, &packages::STORES)?;
    packages::install(repository, &packages::FACES)?;
    packages::install(repository, &packages::NETWORK)?;
    packages::install(repository, &[packages::QEMU])?;
    // For the guest that puts a file system on a volume.
    svm::fetch_kernel(repository)?;
    let mut run = Run { steps: Vec::new() };
    let cargo = |arguments: &[&str]| Task::cargo(repository, arguments);
    run.step("format", || Outcome::of_one(cargo(&["fmt", "--all", "--check"]).run()));
    run.step("lints", || {
        let lints = ["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"];
        Outcome::of_one(cargo(&lints).run().and_then(|()| dist::lint_images(repository)))
    });
    run.step("documentation", || {
        let doc = cargo(&["doc", "--workspace", "--no-deps", "--document-private-items"]);
        Outcome::of_one(doc.env("RUSTDOCFLAGS", "-D warnings").run())
    });
    run.step("contracts", || Outcome::of_one(contracts::run(repository, false)));
    let mut dist = None;
    run.step("dist", || match dist::build_for_tests(repository) {
        Ok(built) => {
            println!("{}", built.summary());
            dist = Some(built);
            Outcome::Passed(Tally::ONE_PASSED)
        }
        Err(failure) => Outcome::Failed(Tally::ONE_FAILED, failure.to_string()),
    });
    run.step("tests", || tests(repository, dist.as_ref()));
    run.step("demo", || match &dist {
        _ if !Path::new("/dev/kvm").exists() => Outcome::Skipped("no /dev/kvm".to_owned()),
        Some(dist) => Outcome::of_one(demo::run_with(repository, dist)),
        None => Outcome::Skipped("dist could not be built".to_owned()),
    });
    if !quick {
        run.step("contracts on anvil", || Outcome::of_one(anvil::run(repository)));
        run.step("tests on emulated SVM", || match &dist {
            Some(dist) => emulated(repository, dist),
            None => Outcome::Skipped("dist could not be built".to_owned()),
        });
        run.step("fuzzing", || fuzzing(repository));
    }
    run.step("dependencies", || {
        // Without the advisories: their database is not always within reach (CONTRIBUTING.md).
        let deny = ["deny", "--workspace", "check", "bans", "licenses", "sources"];
        let installed = packages::cargo_tool(repository, "deny");
        Outcome::of_one(installed.and_then(|()| cargo(&deny).run()))
    });
    run.finish()
}

/// All tests of the workspace: unit, property, house rules, fuzz smoke, real KVM, documentation.
fn tests(repository: &Repository, dist: Option<&Dist>) -> Outcome {
    let mut task =
        Task::cargo(repository, ["test", "--workspace", "--no-fail-fast", "--", "--show-output"]);
    if let Some(dist) = dist {
        let folder = dist.folder();
        task = task
            .env("HYPHA_DIST", folder)
            .env("HYPHA_VMM", folder.join("vmm"))
            .env("HYPHA_IMAGES", folder.join("images"));
    }
    let mut tally = Tally::default();
    let result = repository.work_folder("logs").and_then(|folder| {
        let log = folder.join("tests.log");
        let mut file = std::fs::File::create(&log).map_err(Failure::file(&log))?;
        let mut view = View::default();
        let result = task.lines(|line| {
            // A full disk shows in the tests themselves.
            writeln!(file, "{line}").ok();
            tally.read(line);
            if view.shows(line) {
                println!("{line}");
            }
        });
        println!("all output: {}", log.display());
        result
    });
    match result {
        Ok(()) => Outcome::Passed(tally),
        Err(failure) => {
            // It did not compile, or a test program died without a summary.
            if tally.failed == 0 {
                tally.failed = 1;
            }
            Outcome::Failed(tally, failure.to_string())
        }
    }
}

fn emulated(repository: &Repository, dist: &Dist) -> Outcome {
    match svm::run_with(repository, dist, None) {
        Ok(report) if report.tally.failed == 0 && report.troubles.is_empty() => {
            Outcome::Passed(report.tally)
        }
        Ok(mut report) => {
            let summary = report.failure_summary();
            report.tally.failed = report.tally.failed.max(1);
            Outcome::Failed(report.tally, format!("{summary}; to repeat it: cargo xtask svm"))
        }
        Err(failure) => Outcome::Failed(Tally::ONE_FAILED, failure.to_string()),
    }
}

fn fuzzing(repository: &Repository) -> Outcome {
    if fuzz::nightly_is_there(repository) {
        Outcome::of_one(fuzz::run(repository, None, FUZZ_SECONDS))
    } else {
        let reason = "no nightly toolchain (the same checks ran as fuzz/tests/smoke.rs)";
        Outcome::Skipped(reason.to_owned())
    }
}

/// Shows of a test run what a person wants to see: progress, skips, failures, summaries.
#[derive(Default)]
struct View {
    hides: bool,
}

impl View {
    fn shows(&mut self, line: &str) -> bool {
        if tally::skip_reason(line).is_some() {
            return true;
        }
        match line {
            "successes:" => self.hides = true,
            "failures:" => self.hides = false,
            _ if line.starts_with("test result: ") => self.hides = false,
            _ => {}
        }
        let dull = line.is_empty()
            || line.ends_with("... ok")
            || line.starts_with("running ")
            || line.starts_with("   Compiling ");
        !self.hides && !dull
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_shown_and_a_success_is_not() {
        let output = "running 2 tests\ntest a ... ok\ntest b ... FAILED\nsuccesses:\nSKIPPED: x\n\
            noise\nfailures:\nwhy\ntest result: FAILED. 1 passed; 1 failed";
        let mut view = View::default();
        let shown: Vec<&str> = output.lines().filter(|line| view.shows(line)).collect();
        let wanted = ["test b ... FAILED", "SKIPPED: x", "failures:", "why"];
        assert_eq!(shown.get(..4), Some(wanted.as_slice()));
        assert_eq!(shown.len(), 5);
    }
}
