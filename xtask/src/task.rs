//! A program to run: shown before it runs, and repeatable by hand when it fails.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::failure::Failure;
use crate::repository::Repository;

/// A program, its arguments and its additions to the environment; runs in the repository's root.
pub(crate) struct Task {
    command: Command,
    line: String,
}

impl Task {
    /// A program with arguments.
    pub(crate) fn new<I>(repository: &Repository, program: &str, arguments: I) -> Self
    where
        I: IntoIterator,
        I::Item: AsRef<OsStr>,
    {
        let mut command = Command::new(program);
        command.current_dir(repository.root()).stdin(Stdio::null());
        let mut line = quoted(OsStr::new(program));
        for argument in arguments {
            line.push(' ');
            line.push_str(&quoted(argument.as_ref()));
            command.arg(argument);
        }
        Self { command, line }
    }

    /// Cargo with arguments, as the toolchain file pins it.
    pub(crate) fn cargo<I>(repository: &Repository, arguments: I) -> Self
    where
        I: IntoIterator,
        I::Item: AsRef<OsStr>,
    {
        Self::new(repository, "cargo", arguments)
    }

    /// Adds a variable to the environment.
    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.line = format!("{name}={} {}", quoted(value.as_ref()), self.line);
        self.command.env(name, value);
        self
    }

    /// Has cargo's release profile optimise crate by crate: linking all as one whole takes minutes.
    pub(crate) fn optimised_by_crate(self) -> Self {
        self.env("CARGO_PROFILE_RELEASE_LTO", "off")
            .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16")
    }

    /// Takes a variable that this process inherited out of the environment.
    pub(crate) fn without_env(mut self, name: &str) -> Self {
        self.command.env_remove(name);
        self
    }

    /// The line that repeats it by hand.
    pub(crate) fn line(&self) -> &str {
        &self.line
    }

    /// Runs it, its output going where ours goes.
    pub(crate) fn run(mut self) -> Result<(), Failure> {
        eprintln!("    $ {}", self.line);
        let status = self.command.status().map_err(|source| self.not_started(source))?;
        self.judge(status)
    }

    /// Runs it without a word; true if it ended well.
    pub(crate) fn succeeds(mut self) -> bool {
        let silent = self.command.stdout(Stdio::null()).stderr(Stdio::null());
        silent.status().is_ok_and(|status| status.success())
    }

    /// Runs it and returns its standard output; standard error goes where ours goes.
    pub(crate) fn output(mut self) -> Result<String, Failure> {
        self.command.stderr(Stdio::inherit());
        let output = self.command.output().map_err(|source| self.not_started(source))?;
        self.judge(output.status)?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs it and hands over each line of its output and errors, in the order of writing.
    pub(crate) fn lines(mut self, mut each: impl FnMut(&str)) -> Result<(), Failure> {
        eprintln!("    $ {}", self.line);
        let (reader, writer) = std::io::pipe().map_err(|source| self.not_started(source))?;
        let second = writer.try_clone().map_err(|source| self.not_started(source))?;
        self.command.stdout(writer).stderr(second);
        let mut child = self.command.spawn().map_err(|source| self.not_started(source))?;
        // The command holds the pipe's writing ends: without this the reader never sees an end.
        self.command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut reader = BufReader::new(reader);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line).is_ok_and(|count| count > 0) {
            each(String::from_utf8_lossy(&line).trim_end_matches(['\n', '\r']));
            line.clear();
        }
        let status = child.wait().map_err(|source| self.not_started(source))?;
        self.judge(status)
    }

    fn not_started(&self, source: std::io::Error) -> Failure {
        Failure::Start { line: self.line.clone(), source }
    }

    fn judge(&self, status: std::process::ExitStatus) -> Result<(), Failure> {
        if status.success() {
            return Ok(());
        }
        Err(Failure::Command { repeat: self.line.clone(), status: status.to_string() })
    }
}

/// The first file of this name in a folder of `PATH`.
pub(crate) fn find_in_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.is_file())
}

/// Whether a folder of `PATH` holds `program`.
pub(crate) fn in_path(program: &str) -> bool {
    find_in_path(program).is_some()
}

/// An argument as a shell takes it.
fn quoted(argument: &OsStr) -> String {
    let text = argument.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=./:,+@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.into_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repository() -> Repository {
        Repository::find().unwrap()
    }

    #[test]
    fn a_shown_line_can_be_pasted_into_a_shell() {
        let task = Task::new(&repository(), "echo", ["a b", "it's", "--x=1"]).env("NAME", "v w");
        assert_eq!(task.line(), r"NAME='v w' echo 'a b' 'it'\''s' --x=1");
    }

    #[test]
    fn both_streams_come_in_the_order_of_writing() {
        let mut seen = Vec::new();
        let script = "echo one; echo two >&2; echo three";
        Task::new(&repository(), "sh", ["-c", script])
            .lines(|line| seen.push(line.to_owned()))
            .unwrap();
        assert_eq!(seen, ["one", "two", "three"]);
    }

    #[test]
    fn a_failure_says_how_to_repeat_it() {
        let failure = Task::new(&repository(), "sh", ["-c", "exit 3"]).run().unwrap_err();
        assert!(failure.to_string().contains("sh -c 'exit 3'"), "{failure}");
    }
}
