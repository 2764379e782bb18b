//! The verbs of whoever pays for capacity, and their options.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use hypha_chain::{Address, U256};

use super::name::Name;
use crate::chain::amount::{parse_hourly, parse_mib, parse_tokens};
use crate::chain::reach::ChainArguments;
use crate::chain::wallet::SendArguments;
use crate::keys::arguments::{AccountArguments, parse_address};

/// What can be done with capacity that others offer.
#[derive(Debug, Subcommand)]
pub enum MarketVerb {
    /// Lists what nodes offer and have room for, the cheapest first.
    #[command(after_help = "Examples:\n  hypha offers\n  \
        hypha offers --cores 2 --memory 4GiB --max-price 0.05\n  \
        hypha offers --json | jq -s 'map(select(.proven_until > now))'")]
    Offers(OffersArguments),
    /// Reserves an offer, and pays for it in advance; what is not used comes back.
    ///
    /// Says what it costs and how long it runs, and asks before it sends anything.
    #[command(after_help = "Examples:\n  hypha reserve 3 --hours 24\n  \
        hypha reserve 3 --deposit 5 --spec kv.json --yes --json | jq .reservation")]
    Reserve(ReserveArguments),
    /// Adds to a reservation's balance, so that it runs longer.
    #[command(after_help = "Examples:\n  hypha top-up 12 --hours 24\n  \
        hypha top-up 12 --amount 2.5 --yes")]
    TopUp(TopUpArguments),
    /// Ends a reservation; what it has not used comes back, when all of its time is proven.
    #[command(after_help = "Examples:\n  hypha release 12\n  \
        hypha release 12 --data epoch-480.data\n  \
        hypha release 12 --json | jq -e .refunded || echo 'run it again later'")]
    Release(ReleaseArguments),
    /// Takes what there is of a node's stake for an hour in which it did not serve a reservation.
    #[command(after_help = "Examples:\n  hypha credit 12 --data node/epochs/480\n  \
        hypha credit 12 --data node/epochs/480 --json | jq -r .credited")]
    Credit(CreditArguments),
    /// Lists an account's reservations, and how long each runs.
    #[command(after_help = "Examples:\n  hypha reservations\n  hypha reservations --all --json")]
    Reservations {
        /// Also those that have ended and are paid back.
        #[arg(long)]
        all: bool,
        /// Whose.
        #[command(flatten)]
        account: AccountArguments,
        /// Which chain.
        #[command(flatten)]
        chain: ChainArguments,
    },
    /// Says what an account has: tokens, deposits in reservations, and what pays for transactions.
    #[command(after_help = "Examples:\n  hypha balance\n  \
        hypha balance --account 0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed --json | jq -r .tokens")]
    Balance {
        /// Whose.
        #[command(flatten)]
        account: AccountArguments,
        /// Which chain.
        #[command(flatten)]
        chain: ChainArguments,
    },
    /// Sends tokens to another account.
    #[command(after_help = "Example:\n  \
        hypha transfer 0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed 12.5")]
    Transfer(TransferArguments),
    /// Names of running reservations, free again when those end.
    #[command(subcommand)]
    Name(NameVerb),
}

/// What can be done with names.
#[derive(Debug, Subcommand)]
pub enum NameVerb {
    /// Gives a reservation of the account a name.
    #[command(after_help = "Example:\n  hypha name register shop 12")]
    Register {
        /// The name: 3 to 32 of a-z, 0-9 and hyphens.
        name: Name,
        /// The reservation.
        reservation: u64,
        /// Whose it is.
        #[command(flatten)]
        send: SendArguments,
    },
    /// Frees a name.
    #[command(after_help = "Example:\n  hypha name release shop")]
    Release {
        /// The name.
        name: Name,
        /// Whose it is.
        #[command(flatten)]
        send: SendArguments,
    },
    /// Says which running reservation has a name.
    #[command(after_help = "Example:\n  hypha name show shop --json | jq .reservation")]
    Show {
        /// The name.
        name: Name,
        /// Which chain.
        #[command(flatten)]
        chain: ChainArguments,
    },
}

/// Options of `hypha offers`.
#[derive(Debug, Args)]
pub struct OffersArguments {
    /// Logical CPUs at least.
    #[arg(long, default_value_t = 0)]
    pub cores: u16,
    /// Memory at least, as 512MiB or 16GiB.
    #[arg(long, value_name = "SIZE", default_value = "0", value_parser = parse_mib)]
    pub memory: u64,
    /// Flash storage at least, as 100GiB.
    #[arg(long, value_name = "SIZE", default_value = "0", value_parser = parse_mib)]
    pub ssd: u64,
    /// Storage on rotating disks at least, as 4TiB.
    #[arg(long, value_name = "SIZE", default_value = "0", value_parser = parse_mib)]
    pub hdd: u64,
    /// Bandwidth at least, in Mbit/s.
    #[arg(long, default_value_t = 0)]
    pub mbps: u32,
    /// Tokens by the hour at most.
    #[arg(long, value_name = "TOKENS", value_parser = parse_hourly)]
    pub max_price: Option<u128>,
    /// Of this node only.
    #[arg(long)]
    pub node: Option<u32>,
    /// Also what has no room now, or whose node is not active.
    #[arg(long)]
    pub all: bool,
    /// How many at most.
    #[arg(long, value_name = "COUNT", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub limit: u32,
    /// Which chain.
    #[command(flatten)]
    pub chain: ChainArguments,
}

/// Options of `hypha reserve`.
#[derive(Debug, Args)]
pub struct ReserveArguments {
    /// The offer.
    pub offer: u32,
    /// How long it is to run.
    #[arg(long, required_unless_present = "deposit", value_parser = clap::value_parser!(u32).range(1..=876_000))]
    pub hours: Option<u32>,
    /// Tokens to put down: the bond, and what is left of them for as long as it lasts.
    #[arg(long, value_name = "TOKENS", value_parser = parse_tokens, conflicts_with = "hours")]
    pub deposit: Option<U256>,
    /// What will run there; its Keccak-256 goes to the chain.
    #[arg(long, value_name = "FILE")]
    pub spec: Option<PathBuf>,
    /// One more, although the account has the same offer for the same spec already.
    #[arg(long)]
    pub another: bool,
    /// Don't ask.
    #[arg(short, long)]
    pub yes: bool,
    /// Who pays.
    #[command(flatten)]
    pub send: SendArguments,
}

/// Options of `hypha top-up`.
#[derive(Debug, Args)]
pub struct TopUpArguments {
    /// The reservation.
    pub reservation: u64,
    /// How much longer it is to run.
    #[arg(long, required_unless_present = "amount", value_parser = clap::value_parser!(u32).range(1..=876_000))]
    pub hours: Option<u32>,
    /// How many tokens to add.
    #[arg(long, value_name = "TOKENS", value_parser = parse_tokens, conflicts_with = "hours")]
    pub amount: Option<U256>,
    /// Don't ask.
    #[arg(short, long)]
    pub yes: bool,
    /// Who pays.
    #[command(flatten)]
    pub send: SendArguments,
}

/// Options of `hypha release`.
#[derive(Debug, Args)]
pub struct ReleaseArguments {
    /// The reservation.
    pub reservation: u64,
    /// An epoch's data, as its aggregator keeps it: what it proves is kept on the chain first.
    #[arg(long, value_name = "FILE")]
    pub data: Option<PathBuf>,
    /// Whose it is.
    #[command(flatten)]
    pub send: SendArguments,
}

/// Options of `hypha credit`.
#[derive(Debug, Args)]
pub struct CreditArguments {
    /// The reservation.
    pub reservation: u64,
    /// The data of the epoch, as a proving node keeps it.
    #[arg(long, value_name = "FILE")]
    pub data: PathBuf,
    /// Who sends it; what is credited goes to the reservation's user.
    #[command(flatten)]
    pub send: SendArguments,
}

/// Options of `hypha transfer`.
#[derive(Debug, Args)]
pub struct TransferArguments {
    /// To whom.
    #[arg(value_parser = parse_address)]
    pub to: Address,
    /// How many tokens.
    #[arg(value_name = "TOKENS", value_parser = parse_tokens)]
    pub amount: U256,
    /// Who pays.
    #[command(flatten)]
    pub send: SendArguments,
}
