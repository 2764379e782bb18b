//! `hypha storage`: the daemon that owns this host's stores and serves them.
//!
//! ```text
//! $HYPHA_STATE/storage/key           the node's static X25519 key, 32 bytes, 0600
//!                     /stores.json   what was served last, for `hypha storage ls`
//!                     /socket        where it listens, if nothing else is said
//!                     /NAME/         journals and promises of a store whose objects are elsewhere
//! ```

pub mod arguments;
mod heal;
mod serve;
mod stores;

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use spec::node::NodeSpec;

use crate::exit_code;
use crate::state::{self, StateError};
use arguments::StorageVerb;

/// Why a verb failed.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// The node's key.
    #[error(transparent)]
    Key(#[from] storage_node::server::KeyFileError),
    /// A store.
    #[error("store {name}: {reason}")]
    Store {
        /// Its name.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// A healing manifest.
    #[error("{path}: {reason}")]
    Heal {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The server.
    #[error(transparent)]
    Start(#[from] storage_node::server::StartError),
    /// The system.
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl StorageError {
    /// The command's exit code.
    #[must_use]
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::Store { .. } | Self::Heal { .. } | Self::Key(_) => exit_code::BAD_SPEC,
            Self::Start(_) => exit_code::CONFLICT,
            Self::State(_) | Self::Io(_) => exit_code::FAILURE,
        }
    }
}

/// A store, as `stores.json` has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Served {
    name: String,
    place: String,
    durable: bool,
    /// As `hypha volume create --nodes` takes it.
    nodes: Vec<NodeSpec>,
}

/// Does what the command line says; the exit code if it succeeds.
///
/// # Errors
/// [`StorageError`].
pub fn run(verb: StorageVerb) -> Result<i32, StorageError> {
    match verb {
        StorageVerb::Serve(serve) => serve::serve(&serve),
        StorageVerb::Ls { json, state } => list(json, state.as_deref()),
    }
}

fn folder(argument: Option<&Path>) -> Result<PathBuf, StorageError> {
    let directory = state::directory(argument)?;
    state::prepare(&directory)?;
    let folder = directory.join("storage");
    state::create_directory(&folder)?;
    Ok(folder)
}

fn list(json: bool, argument: Option<&Path>) -> Result<i32, StorageError> {
    let path = folder(argument)?.join("stores.json");
    let stores: Vec<Served> = match fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(io::Error::from)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error.into()),
    };
    let mut text = String::new();
    if json {
        text = serde_json::to_string(&stores).map_err(io::Error::from)? + "\n";
    } else {
        for store in &stores {
            // One node per store: the first address is the one to give away.
            let first = store.nodes.first().map(NodeSpec::to_argument);
            text.extend(first.map(|node| node + "\n"));
        }
    }
    io::stdout().lock().write_all(text.as_bytes())?;
    Ok(0)
}
