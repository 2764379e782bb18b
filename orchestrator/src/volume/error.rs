//! Why a verb of `hypha volume` failed, and the exit code that says so.

use std::io;
use std::path::PathBuf;

use storage_vdev::engine::{OpenError, RequestError};

use super::host::HostError;
use super::manifest::ManifestError;
use crate::exit_code;
use crate::state::StateError;

/// Why a verb failed.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// The volume's folder.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// Its nodes.
    #[error(transparent)]
    Host(#[from] HostError),
    /// It can't be opened.
    #[error("volume {name}: {source}")]
    Open {
        /// Its name.
        name: String,
        /// Why.
        #[source]
        source: OpenError,
    },
    /// It is open, and refused or failed.
    #[error("volume {name}: {source}")]
    Request {
        /// Its name.
        name: String,
        /// Why.
        #[source]
        source: RequestError,
    },
    /// The process that serves it said so.
    #[error("volume {name}: {message}")]
    Remote {
        /// Its name.
        name: String,
        /// What it said.
        message: String,
    },
    /// Another process has it open and doesn't answer.
    #[error(
        "volume {name} is in use by another process of this host, which doesn't answer ({path}: {source})"
    )]
    Busy {
        /// Its name.
        name: String,
        /// Its control socket.
        path: PathBuf,
        /// Why it doesn't answer.
        #[source]
        source: io::Error,
    },
    /// Another process of this host has it open.
    #[error("volume {name} is in use by {user} of this host (epoch {epoch})")]
    InUse {
        /// Its name.
        name: String,
        /// The process.
        user: String,
        /// The epoch of its opening, if it said so.
        epoch: String,
    },
    /// An argument that can't be.
    #[error("{field}: {reason}")]
    Argument {
        /// Which.
        field: &'static str,
        /// What is wrong, and what was expected.
        reason: String,
    },
    /// Standard output is gone, or the like.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// A face.
    #[error("{0}")]
    Serve(String),
}

impl VolumeError {
    /// The command's exit code.
    #[must_use]
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::Manifest(ManifestError::NotFound { .. }) => exit_code::NOT_FOUND,
            Self::Argument { .. }
            | Self::Busy { .. }
            | Self::InUse { .. }
            | Self::Manifest(ManifestError::Exists { .. } | ManifestError::Damaged { .. }) => {
                exit_code::BAD_SPEC
            }
            Self::Host(HostError::Directories(_) | HostError::InUse { .. }) => exit_code::BAD_SPEC,
            Self::Open { source, .. } => match source {
                OpenError::TooFewNodes { .. }
                | OpenError::Stale { .. }
                | OpenError::Register(_)
                | OpenError::RegisterReplaced { .. } => exit_code::UNAVAILABLE,
                OpenError::Forgotten { .. }
                | OpenError::RegisterRolledBack { .. }
                | OpenError::RegisterForgot { .. }
                | OpenError::RegisterLost { .. }
                | OpenError::SuperblockLost { .. }
                | OpenError::JournalLost
                | OpenError::MapLost { .. }
                | OpenError::NoSpace => exit_code::FAILURE,
                _ => exit_code::BAD_SPEC,
            },
            Self::Request { source, .. } => match source {
                RequestError::Unavailable | RequestError::LeaseExpired => exit_code::UNAVAILABLE,
                RequestError::NoSnapshot(_) => exit_code::NOT_FOUND,
                RequestError::SnapshotExists(_) | RequestError::SnapshotInUse(_) => {
                    exit_code::CONFLICT
                }
                RequestError::Refused(_) | RequestError::Range { .. } => exit_code::BAD_SPEC,
                _ => exit_code::FAILURE,
            },
            _ => exit_code::FAILURE,
        }
    }
}
