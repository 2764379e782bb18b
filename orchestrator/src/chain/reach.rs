//! The chain that a verb speaks to: the one at `--at`, or the state's own, served or not.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use clap::Args;
use hypha_chain::client::{Client, ClientError, Head};
use hypha_chain::contracts::{Directory, Registry};
use hypha_chain::deploy::{Suite, name32};
use hypha_chain::embedded::{Chain, Filter, FoundLog};
use hypha_chain::remote::{Endpoints, Remote};
use hypha_chain::{Address, B256, SolCall};
use serde::Deserialize;

use super::failure::Failure;
use super::{Place, now_secs};
use crate::clock::Clock;
use crate::files::read_regular;
use crate::state;

/// The longest description of contracts, in bytes.
const CONTRACTS_LEN_MAX: u64 = 64 * 1024;

/// Which chain, and how much of what it says is believed.
#[derive(Debug, Clone, Args)]
pub struct ChainArguments {
    /// Nodes of the chain, the best first [default: the chain of this state].
    #[arg(long, value_name = "URL", value_delimiter = ',')]
    pub at: Vec<String>,
    /// How many of them must answer alike.
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..))]
    pub agreement: u8,
    /// How many blocks must follow on a transaction's before it counts.
    #[arg(long, value_name = "COUNT", default_value_t = 0)]
    pub confirmations: u64,
    /// Which chain it is and where its contracts are [default: chain/chain.json in the state].
    #[arg(long, value_name = "FILE")]
    pub contracts: Option<PathBuf>,
    /// How long to wait for a transaction, or to search for events, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..))]
    pub timeout: u64,
    /// How far the newest block's time may be from this host's before nothing is sent, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    pub max_skew: u64,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// Where the state is [default: $HYPHA_STATE or ~/.local/share/hypha].
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
}

impl ChainArguments {
    /// The state directory, made if need be.
    ///
    /// # Errors
    /// [`Failure::State`].
    pub fn directory(&self) -> Result<PathBuf, Failure> {
        let directory = state::directory(self.state.as_deref())?;
        state::prepare(&directory)?;
        Ok(directory)
    }
}

/// A chain whose blocks this process makes.
type Own = Arc<Mutex<Chain>>;

/// A chain with the contracts on it.
pub struct Reach {
    /// It.
    pub client: Client,
    /// Its contracts.
    pub suite: Suite,
    /// Its number.
    pub chain_id: u64,
    /// The first block that can have something of the contracts.
    first_block: u64,
    /// The chain itself if nobody else makes its blocks.
    own: Option<Own>,
    timeout: Duration,
    max_skew_secs: u64,
}

/// A file that says where contracts are.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Contracts {
    version: u32,
    chain_id: u64,
    /// Who made all of them, as its first transactions.
    deployer: Option<Address>,
    /// Or the Directory that has their names.
    directory: Option<Address>,
    #[serde(default)]
    first_block: u64,
}

impl Reach {
    /// Finds the chain.
    ///
    /// # Errors
    /// A [`Failure`].
    pub fn open(arguments: &ChainArguments) -> Result<Self, Failure> {
        let directory = arguments.directory()?;
        let place = Place { folder: directory.join("chain") };
        let path = arguments.contracts.clone().unwrap_or_else(|| place.folder.join("chain.json"));
        let described = read_contracts(&path, arguments.contracts.is_some())?;
        let (client, own) = if arguments.at.is_empty() {
            of_the_state(&place, described.chain_id)?
        } else {
            (remote(arguments.at.clone(), arguments, described.chain_id)?, None)
        };
        let suite = match (described.deployer, described.directory) {
            (Some(deployer), None) => Suite::at(deployer, 0),
            (None, Some(directory)) => look_up(&client, directory, &path)?,
            _ => {
                return Err(Failure::file(&path)("it names either a deployer or a directory"));
            }
        };
        let reach = Self {
            client,
            suite,
            chain_id: described.chain_id,
            first_block: described.first_block,
            own,
            timeout: Duration::from_secs(arguments.timeout),
            max_skew_secs: arguments.max_skew,
        };
        match reach.client.view(suite.registry, &Registry::tokenCall {}) {
            Ok(token) if token == suite.token => Ok(reach),
            Ok(_) | Err(ClientError::Output) => Err(Failure::NoContracts(path)),
            Err(error) => Err(error.into()),
        }
    }

    /// Calls a function of a contract without changing anything.
    ///
    /// # Errors
    /// A [`Failure`].
    pub fn view<C: SolCall>(&self, to: Address, call: &C) -> Result<C::Return, Failure> {
        Ok(self.client.view(to, call)?)
    }

    /// The newest block.
    ///
    /// # Errors
    /// A [`Failure`].
    pub fn head(&self) -> Result<Head, Failure> {
        Ok(self.client.head()?)
    }

    /// The first block that can have something of the contracts.
    #[must_use]
    pub fn first_block(&self) -> u64 {
        self.first_block
    }

    /// How long transactions are waited for.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Whether this process makes the blocks, since nobody else does.
    pub fn makes_blocks(&self) -> bool {
        self.own.is_some()
    }

    /// Makes a block if one is due and nobody else makes them.
    ///
    /// # Errors
    /// A [`Failure`].
    pub fn tick(&self) -> Result<(), Failure> {
        if let Some(chain) = &self.own {
            chain.lock().unwrap_or_else(PoisonError::into_inner).tick(now_secs())?;
        }
        Ok(())
    }

    /// Refuses a chain that stands still, or a host whose clock is wrong: what is computed of time would
    /// be wrong too.
    ///
    /// # Errors
    /// [`Failure::Skew`] and others.
    pub fn check_clock(&self) -> Result<(), Failure> {
        let (block, here) = (self.head()?.timestamp, now_secs());
        if block.abs_diff(here) <= self.max_skew_secs {
            return Ok(());
        }
        Err(Failure::Skew { block, here, most: self.max_skew_secs })
    }

    /// The logs of a contract with these topics, from the first block on.
    ///
    /// # Errors
    /// A [`Failure`].
    pub fn logs(&self, address: Address, topics: &[Vec<B256>]) -> Result<Vec<FoundLog>, Failure> {
        let (from, to) = (self.first_block, self.head()?.number);
        let (addresses, topics) = (vec![address], topics.to_vec());
        let (clock, most) = (Clock::start(), self.timeout.as_nanos());
        let stops = || u128::from(clock.now_ns()) >= most;
        Ok(self.client.logs(&Filter { from, to, addresses, topics }, stops)?)
    }
}

/// A description of contracts; `is_given` if it was named on the command line.
fn read_contracts(path: &Path, is_given: bool) -> Result<Contracts, Failure> {
    let bytes = match read_regular(path, CONTRACTS_LEN_MAX) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && !is_given => {
            return Err(Failure::NoChain(path.to_owned()));
        }
        bytes => bytes.map_err(Failure::file(path))?,
    };
    let found: Contracts = serde_json::from_slice(&bytes).map_err(Failure::file(path))?;
    if found.version != super::VERSION {
        let (version, reads) = (found.version, super::VERSION);
        let reason = format!("version {version}; this hypha reads version {reads}");
        return Err(Failure::file(path)(reason));
    }
    Ok(found)
}

/// The state's own chain: its file if nobody has it open, otherwise whoever serves it.
pub(super) fn of_the_state(place: &Place, chain_id: u64) -> Result<(Client, Option<Own>), Failure> {
    if !place.blocks().exists() {
        return Err(Failure::NoEndpoint);
    }
    let busy = match place.chain() {
        Ok(chain) => {
            let chain = Arc::new(Mutex::new(chain));
            return Ok((Client::Embedded(Arc::clone(&chain)), Some(chain)));
        }
        Err(error @ super::ChainVerbError::Busy(_)) => error,
        Err(error) => return Err(error.into()),
    };
    let Ok(url) = std::fs::read_to_string(place.served()) else { return Err(busy.into()) };
    let endpoints = Endpoints { urls: vec![url.trim().to_owned()], agreement: 1, confirmations: 0 };
    let remote = Remote::connect(endpoints, chain_id)?;
    Ok((Client::Remote(Arc::new(remote)), None))
}

fn remote(urls: Vec<String>, arguments: &ChainArguments, chain_id: u64) -> Result<Client, Failure> {
    let (agreement, confirmations) = (usize::from(arguments.agreement), arguments.confirmations);
    let endpoints = Endpoints { urls, agreement, confirmations };
    Ok(Client::Remote(Arc::new(Remote::connect(endpoints, chain_id)?)))
}

/// The contracts that a Directory has, the newest of each.
fn look_up(client: &Client, directory: Address, path: &Path) -> Result<Suite, Failure> {
    let find = |name: &str| {
        let call = Directory::latestCall { name: name32(name) };
        match client.view(directory, &call) {
            Ok(found) => Ok(found.target),
            Err(ClientError::Output | ClientError::Reverted(_)) => {
                Err(Failure::NoContracts(path.to_owned()))
            }
            Err(error) => Err(error.into()),
        }
    };
    Ok(Suite {
        token: find("token")?,
        directory,
        registry: find("registry")?,
        beacon: find("beacon")?,
        capacity: find("capacity")?,
        // The Directory does not have them, and no verb calls them.
        verifiers: [Address::ZERO; 3],
        disputes: find("disputes")?,
        reservations: find("reservations")?,
        rewards: find("rewards")?,
        names: find("names")?,
    })
}
