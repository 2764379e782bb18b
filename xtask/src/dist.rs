//! `cargo xtask dist`: a folder with `hypha`, `vmm` and the guest images that runs from anywhere.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::failure::Failure;
use crate::packages;
use crate::repository::Repository;
use crate::task::Task;

/// A built folder: `hypha`, `vmm`, `images/<name>`.
#[derive(Debug)]
pub(crate) struct Dist {
    folder: PathBuf,
    images: Vec<String>,
}

impl Dist {
    /// The folder.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// What was built, in a few lines.
    pub(crate) fn summary(&self) -> String {
        let size = |name: &str| {
            let bytes = std::fs::metadata(self.folder.join(name)).map_or(0, |file| file.len());
            format!("{:.2} MiB", bytes as f64 / f64::from(1 << 20))
        };
        let folder = self.folder.display();
        let mut text = format!("{folder}: hypha {}, vmm {}", size("hypha"), size("vmm"));
        for image in &self.images {
            text.push_str(&format!("\n  images/{image} {}", size(&format!("images/{image}"))));
        }
        text
    }
}

/// Linked statically, so that they start without a dynamic linker and run on any distribution.
const STATIC: [&str; 5] =
    ["--", "-C", "target-feature=+crt-static", "-C", "relocation-model=static"];

/// How programs are optimised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Optimised {
    /// As they are shipped and measured: as one whole, which takes minutes.
    AsShipped,
    /// Crate by crate: the same code, for tests.
    ByCrate,
}

/// Builds the folder as it is shipped (`dist` in the root unless told otherwise).
pub(crate) fn build(repository: &Repository, out: Option<&Path>) -> Result<Dist, Failure> {
    let folder = match out {
        Some(out) => std::path::absolute(out).map_err(Failure::file(out))?,
        None => repository.root().join("dist"),
    };
    build_at(repository, folder, Optimised::AsShipped)
}

/// Builds a folder for tests, below the target folder.
pub(crate) fn build_for_tests(repository: &Repository) -> Result<Dist, Failure> {
    build_at(repository, repository.work_folder("dist")?, Optimised::ByCrate)
}

fn build_at(
    repository: &Repository,
    folder: PathBuf,
    optimised: Optimised,
) -> Result<Dist, Failure> {
    packages::install(repository, &[packages::GCC, packages::LIBC])?;
    let images_folder = folder.join("images");
    std::fs::create_dir_all(&images_folder).map_err(Failure::file(&images_folder))?;
    for (package, name) in [("vmm", "vmm"), ("orchestrator", "hypha")] {
        let cargo = ["rustc", "-p", package, "--bin", name, "--release"];
        let task = Task::cargo(repository, cargo.into_iter().chain([MESSAGES]).chain(STATIC));
        let built = executables(match optimised {
            Optimised::AsShipped => task,
            Optimised::ByCrate => task.optimised_by_crate(),
        })?;
        let program = built.iter().find(|built| built.name == name).ok_or(Failure::Output {
            from: "cargo rustc",
            reason: format!("it did not say where it put {name}"),
        })?;
        put(&program.path, &folder.join(name))?;
    }
    let mut images = Vec::new();
    for image in guest_images(repository)? {
        put(&image.path, &images_folder.join(&image.name))?;
        images.push(image.name);
    }
    images.sort();
    Ok(Dist { folder, images })
}

/// Builds the guest images.
fn guest_images(repository: &Repository) -> Result<Vec<Executable>, Failure> {
    executables(of_images(repository, "build", &[MESSAGES]))
}

/// The lints of the guest images, which `--all-targets` leaves out: they need their feature.
pub(crate) fn lint_images(repository: &Repository) -> Result<(), Failure> {
    of_images(repository, "clippy", &["--", "-D", "warnings"]).run()
}

/// A cargo command on the guest images. Their frame pointers, which a crash's backtrace follows,
/// need flags for the whole build; a target folder of their own keeps these from rebuilding
/// everything else.
fn of_images(repository: &Repository, command: &str, more: &[&str]) -> Task {
    let target = repository.target().join("guest");
    let target = target.to_string_lossy();
    let arguments = [
        command,
        "-p",
        "guest-kernel",
        "--features",
        "image",
        "--bins",
        "--profile",
        "guest",
        "--target-dir",
        &target,
    ];
    Task::cargo(repository, arguments.iter().chain(more))
        .env("RUSTFLAGS", "-C force-frame-pointers=yes")
}

/// Makes cargo say where it put things, and still show errors to people.
pub(crate) const MESSAGES: &str = "--message-format=json-render-diagnostics";

/// A program that cargo built.
#[derive(Debug)]
pub(crate) struct Executable {
    /// The package's name.
    pub package: String,
    /// The target's name.
    pub name: String,
    /// `bin`, `lib`, `test`, …: of a test program, what it tests.
    pub kind: String,
    /// Whether it is a test program.
    pub is_test: bool,
    /// Where it lies.
    pub path: PathBuf,
}

/// Runs cargo with [`MESSAGES`] and returns the programs that it built.
pub(crate) fn executables(task: Task) -> Result<Vec<Executable>, Failure> {
    eprintln!("    $ {}", task.line());
    let output = task.output()?;
    let messages = output.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    Ok(messages.filter_map(|message| executable(&message)).collect())
}

fn executable(message: &Value) -> Option<Executable> {
    let text = |pointer: &str| message.pointer(pointer)?.as_str().map(str::to_owned);
    // `path+file:///folder/name#0.1.0`, or `…/folder#name@0.1.0` where the two differ.
    let id = text("/package_id")?;
    let (folder, version) = id.split_once('#').unwrap_or((&id, ""));
    let package = match version.split_once('@') {
        Some((name, _)) => name,
        None => folder.rsplit('/').next().unwrap_or_default(),
    };
    Some(Executable {
        package: package.to_owned(),
        name: text("/target/name")?,
        kind: text("/target/kind/0")?,
        is_test: message.pointer("/profile/test").and_then(Value::as_bool).unwrap_or(false),
        path: text("/executable")?.into(),
    })
}

/// Replaces `to` in one step, so that a running program keeps its own file.
fn put(from: &Path, to: &Path) -> Result<(), Failure> {
    let new = to.with_extension("new");
    std::fs::copy(from, &new).map_err(Failure::file(from))?;
    std::fs::rename(&new, to).map_err(Failure::file(to))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargo_says_what_it_built() {
        let line = r#"{"reason":"compiler-artifact",
            "package_id":"path+file:///src/orchestrator#0.1.0",
            "target":{"kind":["test"],"name":"run"},"profile":{"test":true},
            "executable":"/t/run-1"}"#;
        let built = executable(&serde_json::from_str(line).unwrap()).unwrap();
        assert_eq!((built.package.as_str(), built.name.as_str()), ("orchestrator", "run"));
        assert!(built.is_test);
        assert_eq!(built.path, Path::new("/t/run-1"));
    }

    #[test]
    fn a_message_without_a_program_is_passed_over() {
        let line = r#"{"reason":"compiler-artifact","package_id":"a#b@1","executable":null}"#;
        assert!(executable(&serde_json::from_str(line).unwrap()).is_none());
    }
}
