//! A register in etcd instead of on our own nodes.
//!
//! etcd is a consensus already. So it takes the place of a whole set of acceptors: one acceptor
//! whose state lies in one key of etcd and is replaced by compare and swap on `mod_revision`. The
//! proposer, its records and its rules stay the same; the set of acceptors has one member.
//!
//! The v3 API through etcd's own HTTP gateway: `POST /v3/kv/range` and `/v3/kv/txn`, bytes in
//! base64. A range read is linearizable unless one asks for less.
//!
//! The key's value: the acceptor's identity (32), then [`AcceptorState::encode`].

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};
use storage_vdev::Uuid;
use storage_vdev::node::{
    AcceptorId, NodeError, REGISTER_BYTES_MAX, RegisterRequest, RegisterResponse,
};
use storage_vdev::register::{AcceptorKey, AcceptorState};

/// The most bytes of a gateway's answer: one state in base64, and room for the rest.
const ANSWER_BYTES_MAX: u64 = 4 * REGISTER_BYTES_MAX as u64;

/// How often a swap that somebody else got in front of is tried again.
const SWAPS_MAX: u32 = 16;

/// How to reach etcd.
#[derive(Debug, Clone)]
pub struct EtcdOptions {
    /// `http://host:port` of each member; the first that answers is used.
    pub endpoints: Vec<String>,
    /// What the keys begin with, such as `/hypha/register/`.
    pub prefix: String,
    /// How long one member has to answer.
    pub timeout: Duration,
    /// The identity of acceptors that are made now: random.
    pub fresh_id: AcceptorId,
}

/// The acceptor of every register that etcd keeps.
#[derive(Debug)]
pub struct EtcdAcceptor {
    options: EtcdOptions,
    agent: ureq::Agent,
}

/// Why one exchange with etcd failed.
#[derive(Debug, thiserror::Error)]
enum EtcdError {
    #[error("etcd at {endpoint}: {source}")]
    Http { endpoint: String, source: Box<ureq::Error> },
    #[error("no endpoint of etcd is given")]
    NoEndpoint,
    #[error("what etcd keeps under {key} is not an acceptor's state")]
    Damaged { key: String },
}

#[derive(Debug, Serialize)]
struct RangeRequest {
    key: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RangeAnswer {
    kvs: Vec<KeyValue>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct KeyValue {
    /// A number, in JSON a string.
    mod_revision: String,
    value: String,
}

#[derive(Debug, Serialize)]
struct TxnRequest {
    compare: [Compare; 1],
    success: [Success; 1],
}

#[derive(Debug, Serialize)]
struct Compare {
    key: String,
    target: &'static str,
    result: &'static str,
    mod_revision: String,
}

#[derive(Debug, Serialize)]
struct Success {
    #[serde(rename = "requestPut")]
    request_put: Put,
}

#[derive(Debug, Serialize)]
struct Put {
    key: String,
    value: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct TxnAnswer {
    succeeded: bool,
}

impl EtcdAcceptor {
    /// An acceptor over these endpoints. Nothing is asked yet.
    #[must_use]
    pub fn new(options: EtcdOptions) -> Self {
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(options.timeout))
            .proxy(None)
            .max_redirects(0)
            .build();
        Self { options, agent: config.into() }
    }

    /// Answers a message to the acceptor of `register`. What it promises is in etcd by then.
    ///
    /// # Errors
    /// [`NodeError::Unavailable`] if no member answers or the others were always first,
    /// [`NodeError::Corrupt`], and what [`AcceptorState::step`] refuses.
    pub fn handle(
        &self,
        register: &Uuid,
        message: &RegisterRequest,
    ) -> Result<RegisterResponse, NodeError> {
        let hex: String = register.iter().map(|byte| format!("{byte:02x}")).collect();
        let key = format!("{}{hex}", self.options.prefix);
        for _ in 0..SWAPS_MAX {
            let (revision, id, state) = self.load(&key).map_err(failure)?;
            let transition = state.step(&AcceptorKey::silent(id), register, message)?;
            let Some(next) = transition.next else { return Ok(transition.response) };
            let value = [&id[..], &next.encode()].concat();
            // An answer that was lost on the way here is met again as an equal state.
            if self.swap(&key, revision, &value).map_err(failure)? {
                return Ok(transition.response);
            }
        }
        Err(NodeError::Unavailable)
    }

    /// What is stored, and the revision that stored it; 0 if nothing is.
    fn load(&self, key: &str) -> Result<(u64, AcceptorId, AcceptorState), EtcdError> {
        let request = RangeRequest { key: BASE64.encode(key) };
        let answer: RangeAnswer = self.post("/v3/kv/range", &request)?;
        let Some(found) = answer.kvs.first() else {
            return Ok((0, self.options.fresh_id, AcceptorState::default()));
        };
        let read = || {
            let value = BASE64.decode(&found.value).ok()?;
            let (id, state) = value.split_first_chunk()?;
            let revision = found.mod_revision.parse().ok().filter(|revision| *revision > 0)?;
            Some((revision, *id, AcceptorState::decode(state).ok()?))
        };
        read().ok_or_else(|| EtcdError::Damaged { key: key.to_owned() })
    }

    /// Stores `value` if the key is still as it was at `revision`.
    fn swap(&self, key: &str, revision: u64, value: &[u8]) -> Result<bool, EtcdError> {
        let key = BASE64.encode(key);
        let compare = Compare {
            key: key.clone(),
            target: "MOD",
            result: "EQUAL",
            mod_revision: revision.to_string(),
        };
        let put = Put { key, value: BASE64.encode(value) };
        let request = TxnRequest { compare: [compare], success: [Success { request_put: put }] };
        let answer: TxnAnswer = self.post("/v3/kv/txn", &request)?;
        Ok(answer.succeeded)
    }

    /// Asks one member after the other.
    fn post<A: serde::de::DeserializeOwned>(
        &self,
        path: &str,
        request: &impl Serialize,
    ) -> Result<A, EtcdError> {
        let mut last = EtcdError::NoEndpoint;
        for endpoint in &self.options.endpoints {
            let url = format!("{}{path}", endpoint.trim_end_matches('/'));
            match self.exchange(&url, request) {
                Ok(answer) => return Ok(answer),
                Err(source) => {
                    let (endpoint, source) = (endpoint.clone(), Box::new(source));
                    last = EtcdError::Http { endpoint, source };
                    tracing::debug!(error = %last, "the next member of etcd is asked");
                }
            }
        }
        Err(last)
    }

    fn exchange<A: serde::de::DeserializeOwned>(
        &self,
        url: &str,
        request: &impl Serialize,
    ) -> Result<A, ureq::Error> {
        let body = serde_json::to_vec(request).map_err(std::io::Error::from)?;
        let mut answer =
            self.agent.post(url).header("content-type", "application/json").send(&body[..])?;
        let body = answer.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_vec()?;
        Ok(serde_json::from_slice(&body).map_err(std::io::Error::from)?)
    }
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn failure(error: EtcdError) -> NodeError {
    tracing::warn!(%error, "the register in etcd");
    match error {
        EtcdError::Damaged { .. } => NodeError::Corrupt,
        EtcdError::Http { .. } | EtcdError::NoEndpoint => NodeError::Unavailable,
    }
}
