//! The verbs of `hypha chain` and their options.

use std::net::SocketAddr;

use clap::Subcommand;

use crate::state::Common;

/// Where a chain is served if nothing else is said: the port that EVM tools try first.
pub const LISTEN: &str = "127.0.0.1:8545";

/// What can be done with the chain in this state.
#[derive(Debug, Subcommand)]
pub enum ChainVerb {
    /// Makes a chain with the contracts on it, and an account that has all tokens.
    ///
    /// It can be run again: what was begun is finished, what is there is left.
    #[command(after_help = "Example:\n  hypha chain init && hypha chain serve &")]
    Init {
        /// The chain's number, which is in every signature.
        #[arg(long, default_value_t = 7411, value_parser = clap::value_parser!(u64).range(1..))]
        chain_id: u64,
        /// Seconds from block to block.
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=3600))]
        cadence: u64,
        /// How many tokens there are at the start, and the account has.
        #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
        tokens: u64,
        /// What all verbs take.
        #[command(flatten)]
        common: Common,
    },
    /// Makes blocks and answers EVM tools (`eth_*`) on loopback until SIGINT or SIGTERM.
    #[command(after_help = "Examples:\n  hypha chain serve\n  \
        cast block-number --rpc-url http://127.0.0.1:8545")]
    Serve {
        /// Where; a loopback address, for whoever reaches it may send.
        #[arg(long, value_name = "ADDRESS", default_value = LISTEN)]
        listen: SocketAddr,
        /// For development: let the chain's time go so much faster than the world's. Afterwards a chain
        /// is ahead, and at speed 1 has no blocks until the world has come so far.
        #[arg(long, value_name = "FACTOR", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=100_000))]
        speed: u64,
        /// What all verbs take.
        #[command(flatten)]
        common: Common,
    },
    /// Says which chain it is, how far it is, where the contracts are and what the account has.
    #[command(after_help = "Examples:\n  hypha chain status\n  \
        hypha chain status --at 127.0.0.1:8545 --json | jq .block")]
    Status {
        /// Ask the chain that is served here [default: this state's, served or not].
        #[arg(long, value_name = "ADDRESS")]
        at: Option<SocketAddr>,
        /// What all verbs take.
        #[command(flatten)]
        common: Common,
    },
}
