//! The daemon of a node: it follows the chain, answers pulses, watches others, keeps its filler, and
//! answers challenges.
//!
//! ```text
//!   chain thread ── news ──►┐                       ┌─► peers        messages
//!   peers' threads ─────────┤                       ├─► plotter      what is to be kept
//!   pulse threads ──────────┼─►  Core (one thread) ─┼─► work         a thread for each pulse
//!   plotter, table, shows ──┤      participant      ├─► senders      transactions, one after the other
//!   senders ────────────────┘      upkeep           └─► told         events for people and programs
//! ```
//!
//! The core never waits for anything but its queue, so that a chain that does not answer, a slow disk or
//! a peer that says nothing changes nothing for pulses.

mod aggregator;
mod appeals;
mod core;
mod evidence;
mod inputs;
mod judging;
mod proof;
mod pulses;
mod sending;
mod shards;
mod showing;
mod upkeep;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use hypha_chain::client::{Client, ClientError};
use hypha_chain::deploy::Suite;
use hypha_chain::key::Key;
use hypha_chain::{Address, B256};
use hypha_proofs::Rules;
use hypha_proofs::network::bandwidth::MEASURED_PER_MILLE;
use hypha_proofs::network::schedule::Schedule;
use serde_json::Value;

use crate::filler::{FillerError, Place};
use crate::memo::MemoError;
use crate::metrics::Metrics;
use crate::shards::Folder;

/// What all nodes of a network must have alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    /// The work of a pulse.
    pub rules: Rules,
    /// How far apart pulses are on average, in seconds of the chain.
    pub pulse_mean_secs: u64,
    /// No pulse follows another within so many seconds of the chain.
    pub pulse_quiet_secs: u64,
    /// Of how many nodes in 1000 a pulse measures the bandwidth.
    pub measured_per_mille: u32,
}

impl Network {
    /// What a network of real machines has.
    pub const STANDARD: Self = Self {
        rules: Rules::STANDARD,
        pulse_mean_secs: Schedule::MEAN_SECS,
        pulse_quiet_secs: Schedule::QUIET_SECS,
        measured_per_mille: MEASURED_PER_MILLE,
    };
}

/// How this node does what it does. [`Timing::STANDARD`] is right everywhere but where time is driven
/// faster than it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// How often the chain is asked for blocks.
    pub poll: Duration,
    /// A plot that has grown is committed to so often at most.
    pub commit_ns: u64,
    /// How long after its end an epoch is closed: until then statements may come.
    pub gather_ns: u64,
    /// How long data and statements of a posted epoch that nobody serves are waited for.
    pub patience_ns: u64,
    /// How often one's statements are compared with a peer's.
    pub compare_ns: u64,
    /// How far the chain's newest block may be from this host's clock before that is told, in seconds.
    pub skew_secs: u64,
}

impl Timing {
    /// For a chain whose time is the world's.
    pub const STANDARD: Self = Self {
        poll: Duration::from_millis(500),
        commit_ns: 600_000_000_000,
        // Of the statements that were known ten minutes after the end, none may be left out.
        gather_ns: 1_200_000_000_000,
        patience_ns: 2_400_000_000_000,
        compare_ns: 10_000_000_000,
        skew_secs: 120,
    };
}

/// Who posts epochs.
pub struct Aggregation {
    /// The account, which has the bond.
    pub key: Arc<Key>,
}

/// All that a node is told at its start.
pub struct Config {
    /// The node's number.
    pub node: u32,
    /// Its chain key.
    pub key: Arc<Key>,
    /// The chain.
    pub client: Client,
    /// Its number.
    pub chain_id: u64,
    /// Its contracts.
    pub suite: Suite,
    /// The first block that can have something of them.
    pub first_block: u64,
    /// So many blocks must follow on one before it is read.
    pub confirmations: u64,
    /// Seconds from block to block.
    pub cadence_secs: u64,
    /// What all nodes have alike.
    pub network: Network,
    /// How this one does it.
    pub timing: Timing,
    /// Where it keeps what must not be forgotten.
    pub folder: PathBuf,
    /// Where its filler is.
    pub places: Vec<Place>,
    /// Shard servers' folders of this host.
    pub shards: Vec<Folder>,
    /// Bytes of an extent.
    pub extent_bytes: u64,
    /// Threads that make filler.
    pub plot_threads: u16,
    /// Memory of the table, at most, in MiB.
    pub memory_mib_max: u64,
    /// Where it listens.
    pub listen: SocketAddr,
    /// Where others are, if that is not what `address_of` says.
    pub peers: BTreeMap<u32, SocketAddr>,
    /// Where a node with this mesh key listens, if that can be told.
    pub address_of: fn(&B256) -> Option<SocketAddr>,
    /// Whether it posts epochs.
    pub aggregation: Option<Aggregation>,
    /// The account that pays for appeals against posted epochs, if it appeals.
    pub appellant: Option<Arc<Key>>,
}

/// Something that people or programs may want to know.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// One word.
    pub kind: &'static str,
    /// One line.
    pub text: String,
    /// The same as fields.
    pub fields: Value,
}

/// Why the daemon can't run.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The chain did not answer at the start.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Its folder.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another process proves with this folder.
    #[error("{0} is in use: another `hypha node prove` runs there")]
    InUse(PathBuf),
    /// What must not be forgotten.
    #[error(transparent)]
    Memo(#[from] MemoError),
    /// Filler.
    #[error(transparent)]
    Filler(#[from] FillerError),
    /// It can't listen.
    #[error("{0} can't be listened at: {1}")]
    Listen(SocketAddr, #[source] io::Error),
    /// A thread can't be made.
    #[error("no thread can be made: {0}")]
    Thread(#[source] io::Error),
    /// The key is not this node's.
    #[error("node {node}'s chain key is {wanted}, not {given}: give the --node-key that it has")]
    Key {
        /// The node.
        node: u32,
        /// The Registry's.
        wanted: Address,
        /// The given one.
        given: Address,
    },
}

/// Runs until `stop`. `tell` is told what happens; `metrics` always says how it is.
///
/// # Errors
/// [`DaemonError`]: at the start only. Whatever fails later is told, and tried again.
pub fn run(
    config: Config,
    stop: &Arc<AtomicBool>,
    metrics: &Arc<Metrics>,
    tell: &mut dyn FnMut(&Event),
) -> Result<(), DaemonError> {
    core::Core::start(config, stop, metrics, tell)?.run();
    Ok(())
}
