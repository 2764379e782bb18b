//! The verbs of `hypha node` and their options.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use hypha_chain::U256;
use hypha_chain::contracts::{Registry, Reservations};
use proof_node::machine::Provable;

use super::measure::MeasureArguments;
use super::prove::ProveArguments;
use crate::chain::amount::{parse_hourly, parse_mib, parse_tokens};
use crate::chain::failure::Failure;
use crate::chain::reach::ChainArguments;
use crate::chain::wallet::SendArguments;
use crate::keys::arguments::PassphraseArguments;

/// What can be done with a node of the network.
#[derive(Debug, Subcommand)]
pub enum NodeVerb {
    /// Puts this host's node on the chain: its keys, what it claims, and its stake.
    ///
    /// It can be run again: what was begun is finished, what is there is left. A node that was parked
    /// comes back into service, and what is missing of a --stake is added.
    #[command(after_help = "Examples:\n  hypha farm create && \
        hypha node register --cores 8 --memory 32GiB --hdd 4TiB\n  \
        hypha node register --measured /mnt/disk1 /mnt/disk2\n  \
        hypha node register --farm 3 --cores 8 --memory 32GiB --key farm --json | jq .node")]
    Register(RegisterArguments),
    /// Looks at this machine and measures it: what it has, and what it could prove.
    #[command(after_help = "Examples:\n  hypha node measure\n  \
        hypha node measure /mnt/disk1 /mnt/disk2 --json | jq .provable")]
    Measure(MeasureArguments),
    /// Proves what this node claims, pulse by pulse, and watches others, until SIGINT or SIGTERM.
    #[command(after_help = "Examples:\n  hypha node prove\n  \
        hypha node prove --filler /mnt/disk1/filler --filler /mnt/disk2/filler --plot-threads 4\n  \
        hypha node prove --filler /mnt/disk1/filler --shards /mnt/disk1/shards=12\n  \
        hypha node prove --aggregate account --json >> events.ndjson\n  \
        hypha node prove --appeal farmer --metrics 127.0.0.1:9100")]
    Prove(Box<ProveArguments>),
    /// Says what the chain knows of a node: its farm, keys, capacities, stake and proofs.
    #[command(after_help = "Examples:\n  hypha node status\n  hypha node status 7 --json\n  \
        hypha node status 7 --at http://127.0.0.1:8545 --contracts chain.json")]
    Status {
        /// Its number [default: the node of the key of this host].
        node: Option<u32>,
        /// Which key this host's node has.
        #[command(flatten)]
        key: NodeKeyArguments,
        /// Which chain.
        #[command(flatten)]
        chain: ChainArguments,
    },
    /// Offers a part of a node's capacity, as often as there is room for it; or withdraws an offer.
    #[command(after_help = "Examples:\n  \
        hypha node offer 7 --cores 2 --memory 4GiB --ssd 50GiB --price 0.02 --storage-price 0.002\n  \
        hypha node offer --end 12")]
    Offer(OfferArguments),
    /// Announces maintenance, an hour or more ahead: its silence then costs only rewards.
    #[command(after_help = "Examples:\n  hypha node maintenance 7 --hours 2\n  \
        hypha node maintenance 7 --hours 1 --from 1800000000")]
    Maintenance(MaintenanceArguments),
    /// Takes stake out: begins it, or (14 days later, without options) pays it out.
    #[command(after_help = "Examples:\n  hypha node unstake 7 --amount 100\n  \
        hypha node unstake 7 --retire\n  hypha node unstake 7")]
    Unstake(UnstakeArguments),
    /// Claims as much as an epoch shows as proven; the stake must be enough for it.
    #[command(after_help = "Examples:\n  hypha node raise 7 --data node/epochs/480\n  \
        hypha node register --stake 120 && hypha node raise 7 --data node/epochs/480 --json")]
    Raise(RaiseArguments),
    /// Gives a node another chain key; what the old one has signed can still be shown.
    #[command(after_help = "Example:\n  hypha node rotate-key 7 --node-key node-2 && \
        hypha node prove --node-key node-2")]
    RotateKey(RotateArguments),
}

/// Which key this host's node has. It signs answers to pulses, and no transactions of its farm.
#[derive(Debug, Clone, Args)]
pub struct NodeKeyArguments {
    /// The node's chain key: its name in the state, or its file with a slash [default: node].
    #[arg(long, value_name = "NAME|FILE")]
    pub node_key: Option<String>,
    /// Where that key's passphrase is.
    #[arg(long, value_name = "FILE")]
    pub node_passphrase_file: Option<PathBuf>,
}

/// Options of `hypha node register`.
#[derive(Debug, Args)]
pub struct RegisterArguments {
    /// The farm [default: the account's only one].
    #[arg(long)]
    pub farm: Option<u32>,
    /// What it claims.
    #[command(flatten)]
    pub caps: CapsArguments,
    /// Measure this machine and the disks of these folders [default: the state's], and claim no more
    /// than it can prove; what is named besides is claimed at most.
    #[arg(long, value_name = "FOLDER", num_args = 0..)]
    pub measured: Option<Vec<PathBuf>>,
    /// The stake in tokens [default: what the claim needs].
    #[arg(long, value_name = "TOKENS", value_parser = parse_tokens)]
    pub stake: Option<U256>,
    /// Which key this host's node has; made if there is none.
    #[command(flatten)]
    pub node_key: NodeKeyArguments,
    /// Whose farm it is.
    #[command(flatten)]
    pub send: SendArguments,
}

/// Capacities.
#[derive(Debug, Clone, Args)]
pub struct CapsArguments {
    /// Cores, which are units of computing and no silicon: a fast thread proves several in each pulse;
    /// `hypha node measure` says how many a machine does.
    #[arg(long, value_name = "UNITS", default_value_t = 0)]
    pub cores: u16,
    /// Memory, as 512MiB or 16GiB.
    #[arg(long, value_name = "SIZE", default_value = "0", value_parser = parse_mib)]
    pub memory: u64,
    /// Flash storage, as 100GiB or 2TiB.
    #[arg(long, value_name = "SIZE", default_value = "0", value_parser = parse_mib)]
    pub ssd: u64,
    /// Storage on rotating disks, as 4TiB.
    #[arg(long, value_name = "SIZE", default_value = "0", value_parser = parse_mib)]
    pub hdd: u64,
    /// Bandwidth in Mbit/s.
    #[arg(long, default_value_t = 0)]
    pub mbps: u32,
}

/// Options of `hypha node offer`.
#[derive(Debug, Args)]
pub struct OfferArguments {
    /// The node.
    #[arg(required_unless_present = "end", conflicts_with = "end")]
    pub node: Option<u32>,
    /// What is offered.
    #[command(flatten)]
    pub caps: CapsArguments,
    /// Tokens by the hour.
    #[arg(long, value_name = "TOKENS", value_parser = parse_hourly, required_unless_present = "end")]
    pub price: Option<u128>,
    /// Tokens by the hour for the storage alone, while a machine is paused.
    #[arg(long, value_name = "TOKENS", value_parser = parse_hourly, default_value = "0")]
    pub storage_price: u128,
    /// The shortest time that is paid for at once, in hours.
    #[arg(long, value_name = "HOURS", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    pub min_hours: u16,
    /// Withdraw this offer; reservations of it go on.
    #[arg(long, value_name = "OFFER")]
    pub end: Option<u32>,
    /// Whose node it is.
    #[command(flatten)]
    pub send: SendArguments,
}

/// Options of `hypha node maintenance`.
#[derive(Debug, Args)]
pub struct MaintenanceArguments {
    /// The node.
    pub node: u32,
    /// How long.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=8))]
    pub hours: u64,
    /// When it begins, in seconds since 1970 [default: with the first epoch in an hour or more].
    #[arg(long, value_name = "SECONDS")]
    pub from: Option<u64>,
    /// Whose node it is.
    #[command(flatten)]
    pub send: SendArguments,
}

/// Options of `hypha node raise`.
#[derive(Debug, Args)]
pub struct RaiseArguments {
    /// The node.
    pub node: u32,
    /// An epoch's data, as a proving node keeps it.
    #[arg(long, value_name = "FILE")]
    pub data: PathBuf,
    /// Whose node it is.
    #[command(flatten)]
    pub send: SendArguments,
}

/// Options of `hypha node rotate-key`.
#[derive(Debug, Args)]
pub struct RotateArguments {
    /// The node.
    pub node: u32,
    /// The new key, which must be named; made if there is none.
    #[command(flatten)]
    pub node_key: NodeKeyArguments,
    /// Whose node it is.
    #[command(flatten)]
    pub send: SendArguments,
}

/// Options of `hypha node unstake`.
#[derive(Debug, Args)]
pub struct UnstakeArguments {
    /// The node.
    pub node: u32,
    /// Begin to take out so many tokens.
    #[arg(long, value_name = "TOKENS", value_parser = parse_tokens, conflicts_with = "retire")]
    pub amount: Option<U256>,
    /// End the node for good; all stake begins to leave.
    #[arg(long)]
    pub retire: bool,
    /// Whose node it is.
    #[command(flatten)]
    pub send: SendArguments,
}

impl NodeKeyArguments {
    /// Its name or file.
    #[must_use]
    pub fn name(&self) -> &str {
        self.node_key.as_deref().unwrap_or("node")
    }

    /// Where its passphrase is.
    #[must_use]
    pub fn passphrase(&self) -> PassphraseArguments {
        let passphrase_file = self.node_passphrase_file.clone();
        PassphraseArguments { passphrase_file, passphrase_fd: None }
    }
}

impl CapsArguments {
    fn memory(&self) -> Result<u32, Failure> {
        let too_large = |_| Failure::Input("that is more memory than a node can claim".to_owned());
        u32::try_from(self.memory).map_err(too_large)
    }
}

impl RegisterArguments {
    /// Whether any capacity is named.
    #[must_use]
    pub fn claims_something(&self) -> bool {
        let it = &self.caps;
        (it.cores, it.memory, it.ssd, it.hdd, it.mbps) != (0, 0, 0, 0, 0)
    }

    /// What the node claims.
    ///
    /// # Errors
    /// [`Failure::Input`] if it claims nothing, or more than a claim can hold.
    pub fn caps(&self) -> Result<Registry::Caps, Failure> {
        let it = &self.caps;
        let (memory, ssd, hdd) = (it.memory()?, it.ssd, it.hdd);
        something(Registry::Caps {
            cores: it.cores,
            memMiB: memory,
            ssdMiB: ssd,
            hddMiB: hdd,
            mbps: it.mbps,
        })
    }

    /// What the node claims if a machine can prove this much: all of it, or less where less is named.
    ///
    /// # Errors
    /// [`Failure::Input`] if that is nothing.
    pub fn caps_within(&self, most: &Provable) -> Result<Registry::Caps, Failure> {
        let it = &self.caps;
        something(Registry::Caps {
            cores: within(it.cores, most.units),
            memMiB: within(it.memory()?, most.mem_mib),
            ssdMiB: within(it.ssd, most.ssd_mib),
            hddMiB: within(it.hdd, most.hdd_mib),
            mbps: within(it.mbps, most.mbps),
        })
    }
}

/// The smaller one; 0 is not named.
fn within<T: Ord + Default>(named: T, most: T) -> T {
    if named == T::default() { most } else { named.min(most) }
}

fn something(caps: Registry::Caps) -> Result<Registry::Caps, Failure> {
    if caps.cores == 0 || caps.memMiB == 0 {
        let text = "a node claims --cores and --memory at least, or --measured what it can prove: \
                    `hypha node measure` says how much that is";
        return Err(Failure::Input(text.to_owned()));
    }
    Ok(caps)
}

impl OfferArguments {
    /// What is offered.
    ///
    /// # Errors
    /// [`Failure::Input`] if it is nothing, or more than a contract counts.
    pub fn terms(&self) -> Result<Reservations::Offer, Failure> {
        let it = &self.caps;
        if (it.cores, it.memory, it.ssd, it.hdd, it.mbps) == (0, 0, 0, 0, 0) {
            return Err(Failure::Input(
                "an offer is of something: --cores, --memory, …".to_owned(),
            ));
        }
        let too_large = |_| Failure::Input("the price is more than a contract counts".to_owned());
        let caps = Reservations::Caps {
            cores: it.cores,
            memMiB: it.memory()?,
            ssdMiB: it.ssd,
            hddMiB: it.hdd,
            mbps: it.mbps,
        };
        Ok(Reservations::Offer {
            node: self.node.unwrap_or_default(),
            rate: self.price.unwrap_or_default().try_into().map_err(too_large)?,
            storageRate: self.storage_price.try_into().map_err(too_large)?,
            minSeconds: u32::from(self.min_hours) * 3600,
            token: 0,
            open: true,
            caps,
        })
    }
}
