//! `hypha chain`: the embedded chain with the contracts on it.
//!
//! ```text
//! $HYPHA_STATE/chain/producer/key   the producer's seed, 32 bytes, 0600: who has it makes the blocks
//!                   /account/key    the secp256k1 key of the account that deployed the contracts
//!                   /blocks.redb    the chain; blocks.part while it is made, making is locked meanwhile
//!                   /chain.json     its number and where its contracts are; the last to be written
//!                   /served         where whoever has the blocks open answers
//!                   /senders/       a lock for each account that sends
//! ```

pub mod amount;
pub mod arguments;
pub mod epochs;
pub mod failure;
pub mod reach;
pub mod refusal;
pub mod wallet;

use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hypha_chain::client::{Client, ClientError};
use hypha_chain::contracts::GridToken;
use hypha_chain::deploy::{BeaconKind, Suite, Terms, creations};
use hypha_chain::embedded::{Chain, ChainError, Parameters, StoreError};
use hypha_chain::key::{Key, KeyError};
use hypha_chain::remote::{Endpoints, Remote, RemoteError};
use hypha_chain::rpc::server::{Server, ServerError};
use hypha_chain::{Address, U256};
use serde::{Deserialize, Serialize};
use serde_json::json;
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::clock::{Clock, unix_time_ns};
use crate::exit_code;
use crate::state::{self, Common, StateError};
use amount::{UNIT, tokens as whole};
use arguments::ChainVerb;
use failure::Failure;

/// Tokens minted per hour at most, and ever, for one at the start.
const EMISSION_SHARE: u128 = 100_000;
const CAP_SHARE: u128 = 2;
/// Seconds for which an epoch can be disputed.
const DISPUTE_WINDOW_SECS: u64 = 6 * 3600;
/// How long before now a chain begins: its first blocks are for its contracts.
const HEAD_START_BLOCKS: u64 = 16;
/// How often the producer looks whether a block is due, or it is to stop.
const TICK: Duration = Duration::from_millis(100);

/// Why a verb failed.
#[derive(Debug, thiserror::Error)]
pub enum ChainVerbError {
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// There is none.
    #[error("there is no chain in this state ({0} is missing): make one with `hypha chain init`")]
    NoChain(PathBuf),
    /// Its contracts are known, and it is not here.
    #[error(
        "{0} is missing: this state knows the chain's contracts, and has no blocks: put a copy back"
    )]
    NoBlocks(PathBuf),
    /// Its file is damaged, or another chain's.
    #[error("{path} can't be used: {source}; put a copy back, and the producer's key with it")]
    Blocks {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: ChainError,
    },
    /// Another process has it.
    #[error("another hypha has {0} open: it serves this chain, or is about to send something")]
    Busy(PathBuf),
    /// There is one with another number.
    #[error("the chain in this state has the number {there}, not {wanted}")]
    OtherChain {
        /// Its number.
        there: u64,
        /// What was asked for.
        wanted: u64,
    },
    /// What describes it is damaged.
    #[error("{path}: {reason}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The account's key.
    #[error("the account's key: {0}")]
    Key(#[from] KeyError),
    /// The chain itself.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// It did not do what it was asked.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// A contract was not made.
    #[error("contract {0} of {1} was not made: the chain says that its transaction failed")]
    Deploy(usize, usize),
    /// Nobody answers.
    #[error("no chain answers at {at}: {source}; start one with `hypha chain serve`")]
    Unreachable {
        /// Where.
        at: SocketAddr,
        /// Why.
        #[source]
        source: RemoteError,
    },
    /// It can't be served there.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// The system.
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl ChainVerbError {
    /// The command's exit code.
    #[must_use]
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::File { .. } | Self::Key(_) | Self::Server(ServerError::NotLoopback(_)) => {
                exit_code::BAD_SPEC
            }
            Self::State(error) => error.exit_code(),
            Self::NoChain(_) | Self::NoBlocks(_) => exit_code::NOT_FOUND,
            Self::OtherChain { .. } | Self::Busy(_) | Self::Server(_) => exit_code::CONFLICT,
            Self::Unreachable { .. } => exit_code::UNAVAILABLE,
            _ => exit_code::FAILURE,
        }
    }
}

/// What is known of a chain whose contracts are there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Description {
    version: u32,
    chain_id: u64,
    deployer: Address,
}

const VERSION: u32 = 1;

impl Description {
    fn suite(&self) -> Suite {
        Suite::at(self.deployer, 0)
    }
}

/// The files of a chain.
struct Place {
    folder: PathBuf,
}

impl Place {
    fn open(common: &Common) -> Result<Self, ChainVerbError> {
        let directory = state::directory(common.state.as_deref())?;
        state::prepare(&directory)?;
        let folder = directory.join("chain");
        state::create_directory(&folder)?;
        Ok(Self { folder })
    }

    fn blocks(&self) -> PathBuf {
        self.folder.join("blocks.redb")
    }

    fn served(&self) -> PathBuf {
        self.folder.join("served")
    }

    fn seed(&self) -> Result<[u8; 32], ChainVerbError> {
        Ok(*state::key(&self.folder.join("producer"))?.expose())
    }

    fn account(&self) -> Result<Key, ChainVerbError> {
        Ok(Key::from_bytes(state::key(&self.folder.join("account"))?.expose())?)
    }

    /// Opens the chain.
    fn chain(&self) -> Result<Chain, ChainVerbError> {
        let path = self.blocks();
        // Otherwise it would be made, with nothing in it.
        if !path.exists() {
            return Err(ChainVerbError::NoBlocks(path));
        }
        Chain::open(&path, self.seed()?).map_err(|source| match source {
            ChainError::Store(StoreError::InUse) => ChainVerbError::Busy(path),
            source => ChainVerbError::Blocks { path, source },
        })
    }

    /// Makes a chain with nothing but its genesis. It is there whole or not at all: a database that a kill
    /// interrupts in its making can't be opened any more.
    fn create(&self, parameters: Parameters) -> Result<Chain, ChainVerbError> {
        let part = self.folder.join("blocks.part");
        match std::fs::remove_file(&part) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        let chain = Chain::create(&part, parameters, self.seed()?)?;
        state::put_in_place(&part, &self.blocks())?;
        Ok(chain)
    }

    /// What is known of the chain, if it is finished.
    fn description(&self) -> Result<Option<Description>, ChainVerbError> {
        let path = self.folder.join("chain.json");
        let text = match std::fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            text => text?,
        };
        let bad = |reason: String| ChainVerbError::File { path: path.clone(), reason };
        let found: Description =
            serde_json::from_str(&text).map_err(|error| bad(error.to_string()))?;
        if found.version != VERSION {
            let version = found.version;
            return Err(bad(format!("version {version}; this hypha reads version {VERSION}")));
        }
        Ok(Some(found))
    }

    fn described(&self) -> Result<Description, ChainVerbError> {
        self.description()?.ok_or_else(|| ChainVerbError::NoChain(self.folder.join("chain.json")))
    }
}

/// Carries out a verb.
///
/// # Errors
/// A [`Failure`].
pub fn run(verb: &ChainVerb) -> Result<i32, Failure> {
    match verb {
        ChainVerb::Init { chain_id, cadence, tokens, common } => {
            init(&Place::open(common)?, *chain_id, *cadence, *tokens)?;
            status(&Place::open(common)?, None, common.json)
        }
        ChainVerb::Serve { listen, speed, common } => {
            Ok(serve(&Place::open(common)?, *listen, *speed, common.json)?)
        }
        ChainVerb::Status { at, common } => status(&Place::open(common)?, *at, common.json),
    }
}

/// The time of a chain that is served.
enum ChainTime {
    /// The world's.
    World,
    /// So many times faster, from a time in seconds on.
    Faster { speed: u64, from: u64, clock: Clock },
}

impl ChainTime {
    /// Time never goes back: of a chain that is ahead, it goes on from the newest block.
    fn new(speed: u64, newest: u64) -> Self {
        match speed {
            0 | 1 => Self::World,
            speed => Self::Faster { speed, from: now_secs().max(newest), clock: Clock::start() },
        }
    }

    fn now_secs(&self) -> u64 {
        match self {
            Self::World => now_secs(),
            Self::Faster { speed, from, clock } => {
                let since = u128::from(clock.now_ns()) * u128::from(*speed) / 1_000_000_000;
                from.saturating_add(u64::try_from(since).unwrap_or(u64::MAX))
            }
        }
    }
}

fn now_secs() -> u64 {
    unix_time_ns() / 1_000_000_000
}

/// Makes the chain and puts the contracts on it, as far as that was not done before.
fn init(place: &Place, chain_id: u64, cadence: u64, tokens: u64) -> Result<(), ChainVerbError> {
    if let Some(found) = place.description()? {
        let (there, wanted) = (found.chain_id, chain_id);
        return match there == wanted {
            false => Err(ChainVerbError::OtherChain { there, wanted }),
            true if !place.blocks().exists() => Err(ChainVerbError::NoBlocks(place.blocks())),
            true => Ok(()),
        };
    }
    let held = state::lock(&place.folder.join("making"))?;
    let _held = held.ok_or_else(|| ChainVerbError::Busy(place.blocks()))?;
    let account = place.account()?;
    let chain = match place.chain() {
        Err(ChainVerbError::NoBlocks(_)) => {
            let timestamp = now_secs().saturating_sub(HEAD_START_BLOCKS * cadence);
            let balances = Vec::new();
            place.create(Parameters { chain_id, timestamp, cadence_secs: cadence, balances })?
        }
        found => found?,
    };
    let (there, wanted) = (chain.genesis().chain_id, chain_id);
    if there != wanted {
        return Err(ChainVerbError::OtherChain { there, wanted });
    }
    deploy(chain, &account, u128::from(tokens) * UNIT)?;
    let found = Description { version: VERSION, chain_id, deployer: account.address() };
    let mut text = serde_json::to_string_pretty(&found).map_err(io::Error::from)?;
    text.push('\n');
    Ok(state::write_whole(&place.folder.join("chain.json"), text.as_bytes())?)
}

/// What the contracts of a chain of one's own are set up with.
fn terms(holder: Address, supply: u128) -> Terms {
    Terms {
        governor: holder,
        holder,
        genesis_supply: supply,
        emission_per_hour: U256::from(supply / EMISSION_SHARE),
        emission_cap: U256::from(supply.saturating_mul(CAP_SHARE)),
        dispute_window_secs: DISPUTE_WINDOW_SECS,
        beacon: BeaconKind::Prevrandao,
    }
}

/// Makes those of the contracts that are not there yet, one in each block.
fn deploy(chain: Chain, account: &Key, supply: u128) -> Result<(), ChainVerbError> {
    let holder = account.address();
    let terms = terms(holder, supply);
    let cadence = chain.genesis().cadence_secs;
    let chain = Arc::new(Mutex::new(chain));
    let client = Client::Embedded(Arc::clone(&chain));
    let all = creations(&Suite::at(holder, 0), &terms);
    let done = usize::try_from(client.nonce(holder)?).unwrap_or(usize::MAX);
    let count = all.len();
    for (index, init) in all.into_iter().enumerate().skip(done) {
        let hash = client.transact(account, None, init)?;
        let due = client.head()?.timestamp + cadence;
        while now_secs() < due {
            std::thread::sleep(TICK);
        }
        chain.lock().unwrap_or_else(PoisonError::into_inner).tick(due)?;
        let made = client.receipt(&hash)?.is_some_and(|receipt| receipt.succeeded);
        if !made {
            return Err(ChainVerbError::Deploy(index + 1, count));
        }
    }
    Ok(())
}

/// Makes blocks and answers until a signal.
fn serve(place: &Place, listen: SocketAddr, speed: u64, json: bool) -> Result<i32, ChainVerbError> {
    let found = place.described()?;
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    let chain = Arc::new(Mutex::new(place.chain()?));
    let server = Server::start(Arc::clone(&chain), listen)?;
    let (at, number) = (server.address(), found.chain_id);
    // Only whoever finds the blocks open elsewhere reads it: one that a kill leaves behind does no harm.
    state::write_whole(&place.served(), format!("http://{at}/\n").as_bytes())?;
    print::<ChainVerbError>(&if json {
        format!("{}\n", json!({"event": "serving", "at": at, "chain_id": number}))
    } else {
        format!("chain {number}, answering at http://{at}\n")
    })?;
    let newest = chain.lock().unwrap_or_else(PoisonError::into_inner).head().timestamp;
    let time = ChainTime::new(speed, newest);
    while !stop.load(Ordering::Relaxed) {
        let made = chain.lock().unwrap_or_else(PoisonError::into_inner).tick(time.now_secs())?;
        if let Some(header) = made {
            tracing::debug!(number = header.number, gas = header.gas_used, "a block");
        }
        std::thread::sleep(TICK);
    }
    std::fs::remove_file(place.served())?;
    Ok(0)
}

/// What the chain says of itself.
fn status(place: &Place, at: Option<SocketAddr>, json: bool) -> Result<i32, Failure> {
    let found = place.described()?;
    let client = match at {
        Some(at) => {
            let urls = vec![format!("http://{at}")];
            let endpoints = Endpoints { urls, agreement: 1, confirmations: 0 };
            let remote = Remote::connect(endpoints, found.chain_id)
                .map_err(|source| ChainVerbError::Unreachable { at, source })?;
            Client::Remote(Arc::new(remote))
        }
        None => reach::of_the_state(place, found.chain_id)?.0,
    };
    let (suite, account) = (found.suite(), place.account()?.address());
    let head = client.head()?;
    let tokens = client.view(suite.token, &GridToken::balanceOfCall(account))?;
    let contracts = [
        ("token", suite.token),
        ("directory", suite.directory),
        ("registry", suite.registry),
        ("beacon", suite.beacon),
        ("capacity", suite.capacity),
        ("disputes", suite.disputes),
        ("reservations", suite.reservations),
        ("rewards", suite.rewards),
        ("names", suite.names),
    ];
    if json {
        let contracts: serde_json::Map<_, _> =
            contracts.into_iter().map(|(name, at)| (name.to_owned(), json!(at))).collect();
        let object = json!({"chain_id": found.chain_id, "block": head.number,
            "time": head.timestamp, "hash": head.hash, "account": account,
            "tokens": tokens.to_string(), "contracts": contracts});
        return print(&format!("{object}\n"));
    }
    let mut text = format!("chain         {}\nblock         {}\n", found.chain_id, head.number);
    text += &format!("account       {account}, {} tokens\n", whole(tokens));
    for (name, at) in contracts {
        text += &format!("{name:<12}  {at}\n");
    }
    print(&text)
}

/// Writes what a verb has to say, which ends well.
///
/// # Errors
/// Standard output is gone.
pub(crate) fn print<E: From<io::Error>>(text: &str) -> Result<i32, E> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> (tempfile::TempDir, Place) {
        let folder = tempfile::tempdir().unwrap();
        let common = Common { json: false, state: Some(folder.path().to_owned()) };
        let place = Place::open(&common).unwrap();
        (folder, place)
    }

    #[test]
    fn a_chain_is_made_once_and_its_account_has_the_tokens() {
        let (_folder, place) = place();
        init(&place, 7411, 1, 5).unwrap();
        init(&place, 7411, 1, 5).unwrap();
        let other = init(&place, 1, 1, 5).unwrap_err();
        assert_eq!(other.exit_code(), exit_code::CONFLICT, "{other}");
        let found = place.described().unwrap();
        let chain = Chain::open(&place.blocks(), place.seed().unwrap()).unwrap();
        let client = Client::Embedded(Arc::new(Mutex::new(chain)));
        let account = place.account().unwrap().address();
        let held = client.view(found.suite().token, &GridToken::balanceOfCall(account)).unwrap();
        assert_eq!(whole(held), "5");
    }

    #[test]
    fn what_was_interrupted_is_finished() {
        let (_folder, place) = place();
        let (seed, account) = (place.seed().unwrap(), place.account().unwrap());
        let timestamp = now_secs() - 100;
        let balances = Vec::new();
        let parameters = Parameters { chain_id: 9, timestamp, cadence_secs: 1, balances };
        let chain = Chain::create(&place.blocks(), parameters, seed).unwrap();
        let holder = account.address();
        let all = creations(&Suite::at(holder, 0), &terms(holder, 5 * UNIT));
        let chain = Arc::new(Mutex::new(chain));
        let client = Client::Embedded(Arc::clone(&chain));
        client.transact(&account, None, all[0].clone()).unwrap();
        chain.lock().unwrap().tick(timestamp + 1).unwrap();
        drop((client, chain));
        init(&place, 9, 1, 5).unwrap();
        assert_eq!(place.described().unwrap().chain_id, 9);
        let chain = Chain::open(&place.blocks(), seed).unwrap();
        assert_eq!(chain.head().number, 12, "eleven more blocks");
        let client = Client::Embedded(Arc::new(Mutex::new(chain)));
        let token = place.described().unwrap().suite().token;
        let held = client.view(token, &GridToken::balanceOfCall(holder)).unwrap();
        assert_eq!(whole(held), "5");
    }

    #[test]
    fn what_a_kill_has_left_half_made_is_made_anew_and_what_is_lost_is_not() {
        let (_folder, place) = place();
        // What a kill leaves of a database that is being made.
        std::fs::write(place.folder.join("blocks.part"), [0; 8192]).unwrap();
        init(&place, 9, 1, 5).unwrap();
        assert!(!place.folder.join("blocks.part").exists());
        assert!(Chain::open(&place.blocks(), place.seed().unwrap()).is_ok());
        std::fs::remove_file(place.blocks()).unwrap();
        let lost = serve(&place, "127.0.0.1:0".parse().unwrap(), 1, false).unwrap_err();
        let again = init(&place, 9, 1, 5).unwrap_err();
        for error in [lost, again] {
            assert_eq!(error.exit_code(), exit_code::NOT_FOUND, "{error}");
        }
        assert!(!place.blocks().exists(), "nothing is made in its place");
        std::fs::write(place.blocks(), b"no chain").unwrap();
        let error = serve(&place, "127.0.0.1:0".parse().unwrap(), 1, false).unwrap_err();
        assert!(error.to_string().contains("blocks.redb can't be used"), "{error}");
    }

    #[test]
    fn nobody_serves_what_is_not_there() {
        let (_folder, place) = place();
        let error = serve(&place, "127.0.0.1:0".parse().unwrap(), 1, false).unwrap_err();
        assert_eq!(error.exit_code(), exit_code::NOT_FOUND, "{error}");
        let error = status(&place, None, true).unwrap_err();
        assert!(error.to_string().contains("hypha chain init"), "{error}");
    }
}
