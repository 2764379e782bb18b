//! Why a command ended early.

use std::path::PathBuf;

/// Why a command ended early, in the words of the person who ran it.
#[derive(Debug)]
pub(crate) enum Failure {
    /// A program ended with an error.
    Command {
        /// The line that repeats it, from the repository's root.
        repeat: String,
        /// How it ended.
        status: String,
    },
    /// A program could not be started.
    Start {
        /// The line that was to be run.
        line: String,
        /// Why it did not start.
        source: std::io::Error,
    },
    /// Something must be installed by hand.
    Install {
        /// What is missing.
        missing: String,
        /// The exact line to run.
        line: String,
    },
    /// A file could not be read or written.
    File {
        /// The file.
        path: PathBuf,
        /// What happened.
        source: std::io::Error,
    },
    /// A program printed something that is not what was agreed.
    Output {
        /// Which program.
        from: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// Checks ran, and some of them failed.
    Checks {
        /// What failed, for people.
        summary: String,
    },
}

impl Failure {
    /// A `map_err` argument that names the file.
    pub(crate) fn file(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { path, source }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Command { repeat, status } => {
                write!(f, "failed ({status}); to repeat it from the repository's root:\n  {repeat}")
            }
            Self::Start { line, source } => write!(f, "could not start: {line}\n  {source}"),
            Self::Install { missing, line } => {
                write!(f, "missing: {missing}; please run, then try again:\n  {line}")
            }
            Self::File { path, source } => write!(f, "{}: {source}", path.display()),
            Self::Output { from, reason } => write!(f, "{from}: {reason}"),
            Self::Checks { summary } => f.write_str(summary),
        }
    }
}
