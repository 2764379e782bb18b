//! The verbs of `hypha farm` and their options.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use hypha_chain::Address;

use crate::chain::reach::ChainArguments;
use crate::chain::wallet::SendArguments;
use crate::keys::arguments::{AccountArguments, parse_address};

/// What can be done with a farm: what owns nodes, and is paid for them.
#[derive(Debug, Subcommand)]
pub enum FarmVerb {
    /// Makes a farm of the account, unless it has one like that.
    #[command(after_help = "Examples:\n  hypha farm create\n  \
        hypha farm create --payout 0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed --key farm --json")]
    Create(CreateArguments),
    /// Says what farms an account has, their nodes, and what they have earned.
    #[command(
        after_help = "Examples:\n  hypha farm status\n  hypha farm status 3 --json | jq .income"
    )]
    Status {
        /// The farm [default: all of the account].
        farm: Option<u32>,
        /// Whose farms.
        #[command(flatten)]
        account: AccountArguments,
        /// Which chain.
        #[command(flatten)]
        chain: ChainArguments,
    },
    /// Settles all reservations of a farm's nodes, and sends its income to its payout address.
    #[command(
        after_help = "Examples:\n  hypha farm withdraw\n  hypha farm withdraw --farm 3 --json"
    )]
    Withdraw(WithdrawArguments),
    /// Mints the rewards that an epoch says a farm has earned. Later epochs contain earlier ones.
    #[command(after_help = "Example:\n  hypha farm claim epoch-480.data")]
    Claim(ClaimArguments),
}

/// Options of `hypha farm create`.
#[derive(Debug, Args)]
pub struct CreateArguments {
    /// Where its income and rewards go [default: the account].
    #[arg(long, value_name = "ADDRESS", value_parser = parse_address)]
    pub payout: Option<Address>,
    /// A file that describes it; its Keccak-256 goes to the chain.
    #[arg(long, value_name = "FILE")]
    pub description: Option<PathBuf>,
    /// Whose it is.
    #[command(flatten)]
    pub send: SendArguments,
}

/// Options of `hypha farm withdraw`.
#[derive(Debug, Args)]
pub struct WithdrawArguments {
    /// The farm [default: the account's only one].
    #[arg(long)]
    pub farm: Option<u32>,
    /// An epoch's data, as a node keeps it: what it proves is kept on the chain first.
    #[arg(long, value_name = "FILE")]
    pub data: Option<PathBuf>,
    /// Who sends it; anyone may.
    #[command(flatten)]
    pub send: SendArguments,
}

/// Options of `hypha farm claim`.
#[derive(Debug, Args)]
pub struct ClaimArguments {
    /// The epoch's data, as a node keeps it.
    pub data: PathBuf,
    /// The farm [default: the account's only one].
    #[arg(long)]
    pub farm: Option<u32>,
    /// Who sends it; anyone may.
    #[command(flatten)]
    pub send: SendArguments,
}
