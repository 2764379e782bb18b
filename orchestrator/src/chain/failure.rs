//! Why a verb that needs the chain failed, in words that say what to do, and with which exit code.

use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};

use hypha_chain::client::ClientError;
use hypha_chain::embedded::{ChainError, FilterError, PoolError, SubmitError};
use hypha_chain::remote::RemoteError;
use hypha_chain::{Address, B256, U256};

use super::ChainVerbError;
use super::amount::tokens;
use super::refusal::Refusal;
use crate::exit_code;
use crate::keys::KeysError;
use crate::state::StateError;

/// Why a verb failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// Whoever is to sign.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// The chain of the state.
    #[error(transparent)]
    Own(#[from] ChainVerbError),
    /// The embedded chain.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// No chain is described.
    #[error(
        "no chain is known ({0} is missing): make one with `hypha chain init`, or give --contracts FILE"
    )]
    NoChain(PathBuf),
    /// A chain elsewhere, and nobody to ask.
    #[error("this state has no chain of its own: give --at URL")]
    NoEndpoint,
    /// A file is wrong.
    #[error("{path}: {reason}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The chain has no such contracts.
    #[error(
        "the contracts that {0} names are not on this chain: is it the right file, and the right --at?"
    )]
    NoContracts(PathBuf),
    /// Time here and there differ.
    #[error(
        "the newest block's time is {block}, this host's is {here}, more than {most} s apart: set the \
         clock, or wait until the chain goes on, or give --max-skew SECONDS"
    )]
    Skew {
        /// The block's time, in seconds since 1970.
        block: u64,
        /// This host's.
        here: u64,
        /// How far apart they may be.
        most: u64,
    },
    /// Too few tokens.
    #[error("{account} has {} tokens, and this takes {}; nothing was changed", tokens(*.has), tokens(*.needs))]
    Funds {
        /// Whose.
        account: Address,
        /// What it has, in units.
        has: U256,
        /// What is needed, in units.
        needs: U256,
    },
    /// Nothing to pay the chain's own price with.
    #[error(
        "the account can't pay for gas, which this chain takes ether for ({0}): send it some; this was \
         not sent"
    )]
    Gas(String),
    /// Somebody else sends for the account.
    #[error(
        "another program has sent for this account at the same time ({0}): run the command again; this \
         was not sent"
    )]
    Nonce(String),
    /// What an interrupted run has signed can still be sent.
    #[error(
        "an interrupted run has signed: {what} ({transaction:#x}) with the nonce {nonce}, and the \
         account's next one is {next}: an endpoint lied, or blocks were taken back, and it can be sent when \
         its turn comes. Move the tokens to another account, or delete {note} to go on"
    )]
    Ahead {
        /// What it was to do.
        what: String,
        /// The transaction.
        transaction: B256,
        /// Its nonce.
        nonce: u64,
        /// The account's next one.
        next: u64,
        /// Where it is noted.
        note: PathBuf,
    },
    /// A contract says no.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The chain did not take or answer something.
    #[error(transparent)]
    Client(ClientError),
    /// A transaction is in no block yet.
    #[error(
        "{what}: transaction {hash:#x} is in no block after {secs} s; run the command again: it waits \
         for it and does nothing twice"
    )]
    Waiting {
        /// What it does.
        what: String,
        /// The transaction.
        hash: B256,
        /// How long it was waited for.
        secs: u64,
    },
    /// Transactions of before are in no block yet.
    #[error(
        "{count} transactions of {account} are in no block after {secs} s; nothing was sent: run the \
         command again when they are"
    )]
    Pending {
        /// Whose.
        account: Address,
        /// How many.
        count: u64,
        /// How long they were waited for.
        secs: u64,
    },
    /// Another process sends for the same account.
    #[error("another hypha sends for {0} now: wait until it has ended")]
    Busy(Address),
    /// Another process uses what is needed.
    #[error("{0}")]
    InUse(String),
    /// It failed in its block, and would not now.
    #[error(
        "{what}: transaction {hash:#x} failed in its block, and nothing was changed; run the command again"
    )]
    Failed {
        /// What it was to do.
        what: String,
        /// The transaction.
        hash: B256,
    },
    /// There is nothing of that number.
    #[error("{0}")]
    NotFound(String),
    /// What was asked for can't be.
    #[error("{0}")]
    Input(String),
    /// It can't be yet.
    #[error("{0}")]
    NotNow(String),
    /// The system.
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Reverted(output) => Self::Refused(Refusal::read(&output)),
            error if error.lacks_gas() => Self::Gas(error.to_string()),
            error if error.lacks_nonce() => Self::Nonce(error.to_string()),
            other => Self::Client(other),
        }
    }
}

impl From<RemoteError> for Failure {
    fn from(error: RemoteError) -> Self {
        ClientError::from(error).into()
    }
}

impl Failure {
    /// What is wrong with a file, as its reader says.
    pub fn file<E: Display>(path: &Path) -> impl Fn(E) -> Self + '_ {
        |error| Self::File { path: path.to_owned(), reason: error.to_string() }
    }

    /// The command's exit code.
    #[must_use]
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::State(error) => error.exit_code(),
            Self::Keys(error) => error.exit_code(),
            Self::Own(error) => error.exit_code(),
            Self::Refused(refusal) => refusal.exit_code(),
            Self::Client(error) => client_code(error),
            Self::NoChain(_) | Self::NotFound(_) => exit_code::NOT_FOUND,
            Self::NoEndpoint
            | Self::File { .. }
            | Self::NoContracts(_)
            | Self::Funds { .. }
            | Self::Ahead { .. }
            | Self::Gas(_)
            | Self::Input(_) => exit_code::BAD_SPEC,
            Self::Busy(_) | Self::InUse(_) => exit_code::CONFLICT,
            Self::Skew { .. }
            | Self::Waiting { .. }
            | Self::Pending { .. }
            | Self::Failed { .. }
            | Self::Nonce(_)
            | Self::NotNow(_) => exit_code::UNAVAILABLE,
            Self::Chain(_) | Self::Io(_) => exit_code::FAILURE,
        }
    }
}

/// A chain that is another one is a wrong command line; one that does not answer can't be helped.
fn client_code(error: &ClientError) -> i32 {
    match error {
        ClientError::Remote(
            RemoteError::OtherChain { .. } | RemoteError::TooFew { .. } | RemoteError::NoUrl { .. },
        )
        | ClientError::Submit(SubmitError::ChainId { .. }) => exit_code::BAD_SPEC,
        ClientError::Remote(_)
        | ClientError::Output
        | ClientError::GivenUp { .. }
        | ClientError::Filter(FilterError::TooMuch)
        | ClientError::Submit(SubmitError::Pool(PoolError::Full)) => exit_code::UNAVAILABLE,
        _ => exit_code::FAILURE,
    }
}
