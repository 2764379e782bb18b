//! An EVM node that speaks JSON-RPC over HTTP.
//!
//! Nodes fail and lie. Each request has a time limit and a size limit, is tried at several endpoints, and
//! is believed if `agreement` of them answer the same. A receipt counts only if its block is still the
//! one at its height, `confirmations` blocks deep; until then there is none, so that a caller who waits
//! for it outlives a reorganisation. `https://` is TLS by ring, with the system's authorities (or those of
//! `SSL_CERT_FILE`).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use alloy_primitives::{Address, B256, Bytes, Log, LogData, U256};
use serde_json::{Map, Value, json};
use ureq::tls::{RootCerts, TlsConfig};

use crate::client::{Block, ClientError, Head, Receipt};
use crate::embedded::{Call, Filter, FoundLog};
use crate::rpc::json::{
    data, quantity, quantity_wide, read_address, read_data, read_hash, read_quantity,
    read_quantity_wide,
};

/// The longest answer, in bytes.
const ANSWER_LEN_MAX: u64 = 8 << 20;
/// How long an answer may take.
const ANSWER_TIME: Duration = Duration::from_secs(10);
/// How often the whole list of endpoints is gone through.
const ROUNDS: usize = 2;

/// Which nodes are asked, and how much is believed.
#[derive(Debug, Clone)]
pub struct Endpoints {
    /// `http://` and `https://` addresses, the best first.
    pub urls: Vec<String>,
    /// How many must answer the same.
    pub agreement: usize,
    /// How many blocks must follow on a receipt's.
    pub confirmations: u64,
}

/// Some nodes of one chain.
pub struct Remote {
    agent: ureq::Agent,
    endpoints: Endpoints,
    chain_id: u64,
    next_id: AtomicU64,
}

/// Why the nodes gave no answer that can be used.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// What is given as an endpoint is no address of one.
    #[error(
        "{url:?} is no endpoint: write http://HOST:PORT or https://HOST:PORT, with a path if it has one"
    )]
    NoUrl {
        /// What was given.
        url: String,
    },
    /// No endpoints, or fewer than must agree; one that is given twice is one.
    #[error("{given} endpoints are given, and {needed} must agree")]
    TooFew {
        /// How many there are.
        given: usize,
        /// How many must agree.
        needed: usize,
    },
    /// An endpoint is of another chain than the first.
    #[error("{url} is on chain {theirs}, not on chain {ours}")]
    OtherChain {
        /// Which endpoint.
        url: String,
        /// Its chain.
        theirs: u64,
        /// The chain that was asked for.
        ours: u64,
    },
    /// Nobody answered.
    #[error("no endpoint answered {method}; the last one said: {reason}")]
    Unreachable {
        /// What was asked.
        method: &'static str,
        /// Why the last one did not.
        reason: String,
    },
    /// Answers differ.
    #[error("{urls} answer {method} differently; one of them is wrong or behind")]
    Disagree {
        /// Who was asked.
        urls: String,
        /// What was asked.
        method: &'static str,
    },
    /// The node refuses.
    #[error("{url} refuses {method}: {message}")]
    Refused {
        /// Which endpoint.
        url: Box<str>,
        /// What was asked.
        method: &'static str,
        /// What it said.
        message: String,
        /// What a contract said, if it was one.
        data: Option<Bytes>,
    },
    /// The answer has another shape than it must have.
    #[error("the answer of {url} to {method} cannot be read")]
    Malformed {
        /// Which endpoint.
        url: String,
        /// What was asked.
        method: &'static str,
    },
}

impl Remote {
    /// Asks each endpoint which chain it is on. One that does not answer may be down; one that is on
    /// another chain is an error.
    ///
    /// # Errors
    /// [`RemoteError`].
    pub fn connect(endpoints: Endpoints, chain_id: u64) -> Result<Self, RemoteError> {
        let needed = endpoints.agreement.max(1);
        let urls = distinct(endpoints.urls)?;
        let given = urls.len();
        if given < needed {
            return Err(RemoteError::TooFew { given, needed });
        }
        let endpoints = Endpoints { urls, ..endpoints };
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(ANSWER_TIME))
            .max_redirects(0)
            .tls_config(tls())
            .build();
        let agent = ureq::Agent::new_with_config(config);
        let remote = Self { agent, endpoints, chain_id, next_id: AtomicU64::new(1) };
        let mut reachable = 0;
        let mut last = None;
        for url in &remote.endpoints.urls {
            match remote.ask(url, "eth_chainId", &json!([])) {
                Ok(answer) => {
                    let unread = || malformed("eth_chainId", url);
                    let theirs = read_quantity(&answer).ok_or_else(unread)?;
                    if theirs != chain_id {
                        let url = url.clone();
                        return Err(RemoteError::OtherChain { url, theirs, ours: chain_id });
                    }
                    reachable += 1;
                }
                Err(error) => last = Some(error),
            }
        }
        match last {
            Some(error) if reachable < needed => Err(error),
            _ => Ok(remote),
        }
    }

    /// The chain that all endpoints are on.
    #[must_use]
    pub fn chain_id(&self) -> u64 {
        self.chain_id
    }

    /// The newest block that as many have as must agree: one that is ahead, or says so, is not believed alone.
    pub(crate) fn head(&self) -> Result<Head, RemoteError> {
        let (method, newest) = ("eth_getBlockByNumber", json!(["latest", false]));
        let needed = self.endpoints.agreement.max(1);
        if needed == 1 {
            return self.any(method, &newest, read_head);
        }
        let mut last = RemoteError::TooFew { given: self.endpoints.urls.len(), needed };
        let mut numbers = Vec::new();
        for url in &self.endpoints.urls {
            match self.ask(url, method, &newest).map(|block| read_head(&block)) {
                Ok(Some(head)) => numbers.push(head.number),
                Ok(None) => last = malformed(method, url),
                Err(error) => last = error,
            }
        }
        numbers.sort_unstable();
        let at = numbers.len().checked_sub(needed);
        let Some(number) = at.and_then(|at| numbers.get(at).copied()) else { return Err(last) };
        self.agreed(method, &json!([quantity(number), false]), |block| {
            read_head(block).filter(|found| found.number == number)
        })
    }

    pub(crate) fn block(&self, number: u64) -> Result<Option<Block>, RemoteError> {
        let method = "eth_getBlockByNumber";
        self.agreed(method, &json!([quantity(number), false]), |block| {
            optional(block, |block| read_block(block).filter(|found| found.number == number))
        })
    }

    pub(crate) fn nonce(&self, address: Address) -> Result<u64, RemoteError> {
        let method = "eth_getTransactionCount";
        self.agreed(method, &json!([data(address.as_slice()), "pending"]), read_quantity)
    }

    pub(crate) fn settled_nonce(&self, address: Address) -> Result<u64, RemoteError> {
        let method = "eth_getTransactionCount";
        self.agreed(method, &json!([data(address.as_slice()), "latest"]), read_quantity)
    }

    pub(crate) fn balance(&self, address: Address) -> Result<U256, RemoteError> {
        let method = "eth_getBalance";
        self.agreed(method, &json!([data(address.as_slice()), "latest"]), read_quantity_wide)
    }

    pub(crate) fn fees(&self) -> Result<(u128, u128), RemoteError> {
        let price = u128::from(self.any("eth_gasPrice", &json!([]), read_quantity)?);
        // The base fee may double while the transaction waits; the unused part is not paid.
        Ok((price.saturating_mul(2), 0))
    }

    pub(crate) fn call(&self, call: &Call) -> Result<Bytes, ClientError> {
        let method = "eth_call";
        self.agreed(method, &json!([call_object(call), "latest"]), read_data).map_err(reverted)
    }

    pub(crate) fn estimate(&self, call: &Call) -> Result<u64, ClientError> {
        let method = "eth_estimateGas";
        let gas = self.any(method, &json!([call_object(call)]), read_quantity);
        let gas = gas.map_err(reverted)?;
        Ok(crate::client::with_reserve(gas))
    }

    /// Sends it to all endpoints: one that took it is enough, and one that has it already took it. It is
    /// refused if all refuse it; whoever gave no answer may have taken it.
    pub(crate) fn send(&self, raw: &[u8]) -> Result<B256, RemoteError> {
        let method = "eth_sendRawTransaction";
        let hash = alloy_primitives::keccak256(raw);
        let mut taken = false;
        let (mut refused, mut unsure) = (None, None);
        for url in &self.endpoints.urls {
            match self.ask(url, method, &json!([data(raw)])) {
                Ok(answer) if read_hash(&answer) == Some(hash) => taken = true,
                Ok(_) => unsure = Some(malformed(method, url)),
                Err(RemoteError::Refused { message, .. }) if is_known(&message) => taken = true,
                Err(error @ RemoteError::Refused { .. }) => refused = refused.or(Some(error)),
                Err(error) => unsure = Some(error),
            }
        }
        match unsure.or(refused) {
            Some(error) if !taken => Err(error),
            _ => Ok(hash),
        }
    }

    pub(crate) fn receipt(&self, hash: &B256) -> Result<Option<Receipt>, RemoteError> {
        let method = "eth_getTransactionReceipt";
        let receipt = self.agreed(method, &json!([data(hash.as_slice())]), |answer| {
            optional(answer, |it| read_receipt(it).filter(|it| it.transaction == *hash))
        })?;
        let Some(receipt) = receipt else { return Ok(None) };
        let head = self.head()?;
        if head.number < receipt.block.saturating_add(self.endpoints.confirmations) {
            return Ok(None);
        }
        let method = "eth_getBlockByNumber";
        let there = self.agreed(method, &json!([quantity(receipt.block), false]), |block| {
            optional(block, read_head)
        })?;
        let Some(there) = there else { return Ok(None) };
        // Of a block that was reorganised away: the transaction may come in another.
        Ok((there.hash == receipt.block_hash && there.number == receipt.block).then_some(receipt))
    }

    pub(crate) fn logs(&self, filter: &Filter) -> Result<Vec<FoundLog>, RemoteError> {
        let method = "eth_getLogs";
        let hashes = |list: &Vec<B256>| match list.as_slice() {
            [] => Value::Null,
            list => list.iter().map(|hash| data(hash.as_slice())).collect(),
        };
        let mut object = Map::new();
        object.insert("fromBlock".to_owned(), quantity(filter.from));
        object.insert("toBlock".to_owned(), quantity(filter.to));
        if !filter.addresses.is_empty() {
            let addresses = filter.addresses.iter().map(|address| data(address.as_slice()));
            object.insert("address".to_owned(), addresses.collect());
        }
        object.insert("topics".to_owned(), filter.topics.iter().map(hashes).collect());
        let read = |log: &Value| read_log(log).filter(|found| is_wanted(filter, found));
        self.agreed(method, &json!([object]), |answer| {
            answer.as_array()?.iter().map(read).collect()
        })
    }

    /// The first answer.
    fn any<T>(
        &self,
        method: &'static str,
        parameters: &Value,
        read: impl FnOnce(&Value) -> Option<T>,
    ) -> Result<T, RemoteError> {
        let (answer, url) = self.enough(method, parameters, 1)?;
        read(&answer).ok_or_else(|| malformed(method, url))
    }

    /// The answer that as many endpoints give as must agree.
    fn agreed<T>(
        &self,
        method: &'static str,
        parameters: &Value,
        read: impl FnOnce(&Value) -> Option<T>,
    ) -> Result<T, RemoteError> {
        let (answer, url) = self.enough(method, parameters, self.endpoints.agreement.max(1))?;
        read(&answer).ok_or_else(|| malformed(method, url))
    }

    /// An answer that so many give, and the one that completed them.
    fn enough(
        &self,
        method: &'static str,
        parameters: &Value,
        needed: usize,
    ) -> Result<(Value, &str), RemoteError> {
        let urls = &self.endpoints.urls;
        let mut last = RemoteError::TooFew { given: urls.len(), needed };
        for _ in 0..ROUNDS {
            let mut answers: Vec<Result<Value, RemoteError>> = Vec::new();
            for url in urls {
                match self.ask(url, method, parameters) {
                    Ok(answer) => answers.push(Ok(answer)),
                    // What the chain refuses one node, it refuses all.
                    Err(error @ RemoteError::Refused { .. }) if needed == 1 => return Err(error),
                    // What a contract says is an answer like others.
                    Err(error @ RemoteError::Refused { data: Some(_), .. }) => {
                        answers.push(Err(error));
                    }
                    Err(error) => last = error,
                }
                let same = |it: &&Result<Value, RemoteError>| {
                    answers.iter().filter(|other| are_alike(it, other)).count() >= needed
                };
                if let Some(at) = answers.iter().position(|it| same(&it)) {
                    return answers.swap_remove(at).map(|answer| (answer, url.as_str()));
                }
            }
            if answers.len() >= needed {
                last = RemoteError::Disagree { urls: urls.join(", "), method };
            }
        }
        Err(last)
    }

    fn ask(
        &self,
        url: &str,
        method: &'static str,
        parameters: &Value,
    ) -> Result<Value, RemoteError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let question =
            json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": parameters });
        let unreachable = |error: ureq::Error| RemoteError::Unreachable {
            method,
            reason: format!("{url}: {error}"),
        };
        let request = self.agent.post(url).content_type("application/json");
        let mut answer = request.send(question.to_string()).map_err(unreachable)?;
        let body = answer.body_mut().with_config().limit(ANSWER_LEN_MAX);
        let body = body.read_to_vec().map_err(unreachable)?;
        let mut answer: Value =
            serde_json::from_slice(&body).map_err(|_| malformed(method, url))?;
        if answer["id"] != id {
            return Err(malformed(method, url));
        }
        if let Some(error) = answer.get("error").filter(|error| !error.is_null()) {
            let message = error["message"].as_str().unwrap_or_default();
            return Err(RemoteError::Refused {
                url: url.into(),
                method,
                message: message.chars().filter(is_shown).take(200).collect(),
                data: read_data(&error["data"]),
            });
        }
        answer.get_mut("result").map(Value::take).ok_or_else(|| malformed(method, url))
    }
}

/// The system's authorities are read when the first endpoint with TLS is asked.
fn tls() -> TlsConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    TlsConfig::builder()
        .root_certs(RootCerts::PlatformVerifier)
        .unversioned_rustls_crypto_provider(provider)
        .build()
}

/// Each endpoint once, in its order: one that is given twice, in whatever spelling, has one voice.
fn distinct(given: Vec<String>) -> Result<Vec<String>, RemoteError> {
    let (mut seen, mut urls) = (BTreeSet::new(), Vec::new());
    for url in given {
        let Some(place) = place_of(&url) else { return Err(RemoteError::NoUrl { url }) };
        if seen.insert(place) {
            urls.push(url);
        }
    }
    Ok(urls)
}

/// Where an address of `http` or `https` leads: host, port, and path with its query.
fn place_of(text: &str) -> Option<(String, u16, String)> {
    let uri: ureq::http::Uri = text.parse().ok()?;
    let port = match uri.scheme_str()? {
        "http" => 80,
        "https" => 443,
        _ => return None,
    };
    let host = uri.host().filter(|host| !host.is_empty())?.to_ascii_lowercase();
    let path = uri.path_and_query().map_or("", |it| it.as_str()).trim_end_matches('/');
    Some((host, uri.port_u16().unwrap_or(port), path.to_owned()))
}

/// Whether two endpoints say the same, be it an answer or a contract's refusal.
fn are_alike(one: &Result<Value, RemoteError>, other: &Result<Value, RemoteError>) -> bool {
    match (one, other) {
        (Ok(one), Ok(other)) => one == other,
        (
            Err(RemoteError::Refused { data: one, .. }),
            Err(RemoteError::Refused { data: other, .. }),
        ) => one == other,
        _ => false,
    }
}

/// Whether a log is one of those that were asked for. Readers take its block and contract for granted.
fn is_wanted(filter: &Filter, found: &FoundLog) -> bool {
    let topics = found.log.topics();
    let has = |(at, wanted): (usize, &Vec<B256>)| {
        wanted.is_empty() || topics.get(at).is_some_and(|topic| wanted.contains(topic))
    };
    (filter.from..=filter.to).contains(&found.block)
        && (filter.addresses.is_empty() || filter.addresses.contains(&found.log.address))
        && filter.topics.iter().enumerate().all(has)
}

/// Whether a node's word may have this: it is shown to people as one line, with nothing that a terminal obeys or
/// that turns the text round (Unicode's marks of direction).
fn is_shown(it: &char) -> bool {
    let turns =
        matches!(it, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    !it.is_control() && !turns
}

fn malformed(method: &'static str, url: &str) -> RemoteError {
    RemoteError::Malformed { url: url.to_owned(), method }
}

/// What may be `null`: then there is none.
fn optional<T>(value: &Value, read: impl FnOnce(&Value) -> Option<T>) -> Option<Option<T>> {
    if value.is_null() { Some(None) } else { read(value).map(Some) }
}

fn reverted(error: RemoteError) -> ClientError {
    match error {
        RemoteError::Refused { data: Some(data), .. } => ClientError::Reverted(data),
        other => other.into(),
    }
}

/// Nodes have no code for it.
fn is_known(message: &str) -> bool {
    let message = message.to_lowercase();
    ["already known", "already imported", "waiting already"].iter().any(|it| message.contains(it))
}

fn call_object(call: &Call) -> Value {
    let mut object = Map::new();
    object.insert("from".to_owned(), data(call.from.as_slice()));
    if let Some(to) = call.to {
        object.insert("to".to_owned(), data(to.as_slice()));
    }
    object.insert("data".to_owned(), data(&call.data));
    if !call.value.is_zero() {
        object.insert("value".to_owned(), quantity_wide(&call.value));
    }
    if let Some(gas) = call.gas {
        object.insert("gas".to_owned(), quantity(gas));
    }
    Value::Object(object)
}

/// A block as a node describes it; `None` if anything of it cannot be read.
#[must_use]
pub fn read_head(block: &Value) -> Option<Head> {
    Some(Head {
        number: read_quantity(&block["number"])?,
        timestamp: read_quantity(&block["timestamp"])?,
        hash: read_hash(&block["hash"])?,
    })
}

/// A block with its parent and randomness; `None` if anything of it cannot be read.
#[must_use]
pub fn read_block(block: &Value) -> Option<Block> {
    let Head { number, timestamp, hash } = read_head(block)?;
    let (parent, prevrandao) = (read_hash(&block["parentHash"])?, read_hash(&block["mixHash"])?);
    Some(Block { number, hash, parent, timestamp, prevrandao })
}

/// A receipt as a node describes it; `None` if anything of it cannot be read.
#[must_use]
pub fn read_receipt(receipt: &Value) -> Option<Receipt> {
    let logs = receipt["logs"].as_array()?;
    let contract = match &receipt["contractAddress"] {
        Value::Null => None,
        address => Some(read_address(address)?),
    };
    Some(Receipt {
        transaction: read_hash(&receipt["transactionHash"])?,
        block: read_quantity(&receipt["blockNumber"])?,
        block_hash: read_hash(&receipt["blockHash"])?,
        succeeded: read_quantity(&receipt["status"])? == 1,
        gas_used: read_quantity(&receipt["gasUsed"])?,
        contract,
        logs: logs.iter().map(|log| read_log(log).map(|found| found.log)).collect::<Option<_>>()?,
    })
}

/// A log as a node describes it; `None` if anything of it cannot be read.
#[must_use]
pub fn read_log(log: &Value) -> Option<FoundLog> {
    let topics: Vec<B256> =
        log["topics"].as_array()?.iter().map(read_hash).collect::<Option<_>>()?;
    Some(FoundLog {
        log: Log {
            address: read_address(&log["address"])?,
            data: LogData::new(topics, read_data(&log["data"])?)?,
        },
        block: read_quantity(&log["blockNumber"])?,
        block_hash: read_hash(&log["blockHash"])?,
        transaction: read_hash(&log["transactionHash"])?,
        transaction_index: read_quantity(&log["transactionIndex"])?,
        index: read_quantity(&log["logIndex"])?,
    })
}
