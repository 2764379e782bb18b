//! A volume's end of a session, without I/O: requests go in, completions come out, whatever the
//! node does. When the session ends, everything that is unanswered completes as unavailable.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;

use super::authorise::{Authorise, Delegation, VolumeSigner};
use super::channel::{Channel, ChannelError};
use super::handshake::{self, HandshakeError, HelloReader, NodeKey, NodePublicKey, Pending};
use super::message::{self, ClientMessage, HEAD_BYTES, MessageError, ServerMessage};
use crate::keys::Uuid;
use crate::node::{
    NodeCompletion, NodeError, ObjectKey, RegisterRequest, RegisterResponse, Request, Response,
    TRANSFER_BYTES_MAX, Tag,
};
use crate::register::{Members, VolumeRecord, verify_evidence};
use crate::service::Rights;

/// How a client proves that it may use a volume.
#[derive(Debug, Clone)]
pub enum Credential {
    /// It has the volume's writer key.
    Signer {
        /// The key.
        signer: Arc<VolumeSigner>,
        /// What it asks for.
        rights: Rights,
    },
    /// Somebody who has it gave the client rights.
    Delegation(Delegation),
}

impl Credential {
    fn authorise(&self, binding: &[u8; 32]) -> Authorise {
        match self {
            Self::Signer { signer, rights } => signer.capability(*rights, binding),
            Self::Delegation(delegation) => delegation.authorise(),
        }
    }

    /// The same with the volume's card, which names the acceptors whose receipts the fence's
    /// `evidence` is made of: the node, if it knew none, asks for receipts of theirs from then on.
    ///
    /// `None` for who has not the writer key, and for evidence that would not do: a card that names
    /// acceptors that don't sign (in an etcd, say) would keep the volume's own fences out.
    fn introduce(
        &self,
        binding: &[u8; 32],
        (volume, epoch, evidence): (&Uuid, u64, &[Bytes]),
    ) -> Option<Authorise> {
        let Self::Signer { signer, rights } = self else { return None };
        if signer.volume() != *volume {
            return None;
        }
        let (record, _) = VolumeRecord::parse(evidence.first()?).ok()?;
        let named = Members { current: record.members.current, next: Vec::new() };
        verify_evidence(volume, epoch, &named, evidence).ok()?;
        let card = Some(signer.card(&named.current));
        Some(Authorise { card, ..signer.capability(*rights, binding) })
    }
}

/// What a client knows before it connects.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// The node's static key, which the volume's list of nodes pins.
    pub node: NodePublicKey,
    /// The name of the store at that node.
    pub store: String,
    /// The client's static key: its own node's for delegations, else any.
    pub identity: NodeKey,
    /// Shown as soon as the session stands.
    pub credentials: Vec<Credential>,
    /// A node that answers nothing, and takes nothing, for so long while requests are unanswered is
    /// given up. A single request may take [`PATIENCE`] times as long while others are served.
    pub timeout_ns: u64,
    /// After so long without traffic the client asks whether the node is there.
    pub ping_after_ns: u64,
}

/// How many times [`ClientConfig::timeout_ns`] one request may take while its session makes
/// progress.
pub const PATIENCE: u64 = 8;

/// What a message of this client's own has at most: a capability with a card of 15 acceptors.
const OWN_BYTES: usize = 1024;
/// So many sealed bytes wait for the socket at most, and one message more.
const SEAL_AHEAD_BYTES: usize = 128 << 10;

/// Why a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// It never began.
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    /// The stream is damaged.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// What arrived whole makes no sense.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// The node answered what was not asked, or with what is no answer to it.
    #[error("the node's answer doesn't fit the question")]
    Misfit,
    /// The node was silent for too long.
    #[error("the node doesn't answer")]
    Silent,
    /// The connection ended.
    #[error("the connection ended")]
    Closed,
}

/// What counts as an answer.
enum Expected {
    Done,
    Bytes { least: usize, most: usize },
    Keys { volume: Uuid, after: Option<ObjectKey>, limit: usize },
    Journal,
    Fenced,
    Promise,
    Acceptance,
    Capacity,
}

impl Expected {
    fn of(request: &Request) -> Self {
        match request {
            Request::Put { .. }
            | Request::Restore { .. }
            | Request::Delete { .. }
            | Request::JournalAppend { .. }
            | Request::JournalTrim { .. } => Self::Done,
            Request::Get { len: u32::MAX, .. } => {
                Self::Bytes { least: 0, most: TRANSFER_BYTES_MAX }
            }
            Request::Get { len, .. } => Self::Bytes { least: *len as usize, most: *len as usize },
            Request::JournalRead { len, .. } => Self::Bytes { least: 0, most: *len as usize },
            Request::Audit { .. } => Self::Bytes { least: 0, most: TRANSFER_BYTES_MAX },
            Request::List { volume, after, limit } => {
                Self::Keys { volume: *volume, after: *after, limit: usize::from(*limit) }
            }
            Request::JournalOpen { .. } | Request::JournalState { .. } => Self::Journal,
            Request::Fence { .. } => Self::Fenced,
            Request::Register { message: RegisterRequest::Prepare { .. }, .. } => Self::Promise,
            Request::Register { message: RegisterRequest::Accept { .. }, .. } => Self::Acceptance,
            Request::Capacity => Self::Capacity,
        }
    }

    fn fits(&self, response: &Response) -> bool {
        use RegisterResponse::{Accepted, Promised, Rejected};
        match (self, response) {
            (Self::Bytes { least, most }, Response::Bytes(bytes)) => {
                (*least..=*most).contains(&bytes.len())
            }
            (Self::Keys { volume, after, limit }, Response::Keys(keys)) => {
                let behind = |pair: (Option<&ObjectKey>, &ObjectKey)| pair.0 < Some(pair.1);
                let earlier = std::iter::once(after.as_ref()).chain(keys.iter().map(Some));
                keys.len() <= *limit
                    && keys.iter().all(|key| key.volume == *volume)
                    && earlier.zip(keys).all(behind)
            }
            (Self::Done, Response::Done)
            | (Self::Journal, Response::Journal { .. })
            | (Self::Fenced, Response::Fenced { .. })
            | (Self::Promise, Response::Register(Promised { .. } | Rejected { .. }))
            | (Self::Acceptance, Response::Register(Accepted { .. } | Rejected { .. }))
            | (Self::Capacity, Response::Capacity { .. }) => true,
            _ => false,
        }
    }
}

/// Who waits for an answer.
enum Asker {
    /// The volume's engine.
    Engine(Tag, Expected),
    /// This client, for a capability.
    Credential,
    /// This client, for a sign of life.
    Ping,
}

struct Outstanding {
    asker: Asker,
    /// When it was sent; `None` until the next look at the clock.
    since_ns: Option<u64>,
}

enum State {
    Hello { pending: Option<Pending>, reader: HelloReader, out: Vec<u8>, sent: usize },
    Open { channel: Box<Channel>, binding: [u8; 32] },
    Ended(ClientError),
}

/// A session with one node, from its first byte on.
pub struct Client {
    config: Arc<ClientConfig>,
    state: State,
    /// What was submitted and is not sealed yet: the session doesn't stand, or enough is on its way.
    waiting: VecDeque<(Tag, Request)>,
    outstanding: BTreeMap<u64, Outstanding>,
    next_id: u64,
    completions: VecDeque<NodeCompletion>,
    /// When a byte last moved, or the first of the unanswered requests was sent.
    progress_ns: Option<u64>,
    /// Bytes moved since the last look at the clock.
    moved: bool,
    scratch: Vec<u8>,
    denied: bool,
}

impl Client {
    /// Starts a session; `seed` is fresh randomness.
    ///
    /// # Errors
    /// [`HandshakeError`] if the node's key or the store's name can't be right.
    pub fn new(config: Arc<ClientConfig>, seed: [u8; 32]) -> Result<Self, HandshakeError> {
        let (pending, out) =
            handshake::initiate(&config.identity, &config.node, &config.store, seed)?;
        let reader = HelloReader::default();
        Ok(Self {
            config,
            state: State::Hello { pending: Some(pending), reader, out, sent: 0 },
            waiting: VecDeque::new(),
            outstanding: BTreeMap::new(),
            next_id: 0,
            completions: VecDeque::new(),
            progress_ns: None,
            moved: false,
            scratch: Vec::new(),
            denied: false,
        })
    }

    /// Sends `request`, or keeps it until the session stands.
    pub fn submit(&mut self, tag: Tag, request: Request) {
        match &self.state {
            State::Hello { .. } | State::Open { .. } => {
                self.waiting.push_back((tag, request));
                self.send_waiting();
            }
            State::Ended(_) => self.complete(tag, Err(NodeError::Unavailable)),
        }
    }

    /// Seals what waits, but not far ahead of the socket: a sealed request is a copy, which is best
    /// written while it is in the processor's cache.
    fn send_waiting(&mut self) {
        while let State::Open { channel, .. } = &self.state {
            if channel.outgoing_bytes() >= SEAL_AHEAD_BYTES {
                break;
            }
            let Some((tag, request)) = self.waiting.pop_front() else { break };
            self.send_request(tag, &request);
        }
    }

    /// Shows the volume's card ahead of a fence, once the acceptors are known that it names.
    fn introduce(&mut self, request: &Request) {
        let Request::Fence { volume, epoch, evidence } = request else { return };
        let State::Open { binding, .. } = &self.state else { return };
        let fence = (volume, *epoch, evidence.as_slice());
        let shown = self.config.credentials.iter().find_map(|one| one.introduce(binding, fence));
        if let Some(authorise) = shown {
            self.send_own(Asker::Credential, &ClientMessage::Authorise(Box::new(authorise)));
        }
    }

    fn send_request(&mut self, tag: Tag, request: &Request) {
        self.introduce(request);
        let expected = Expected::of(request);
        let size = HEAD_BYTES + request_bytes(request);
        let sent = self.send(size, Asker::Engine(tag, expected), |id, out| {
            message::encode_request(id, request, out)
        });
        match sent {
            Ok(()) => {}
            // The request itself breaks a bound of the protocol: no node would take it.
            Err(ClientError::Message(_)) => self.complete(tag, Err(NodeError::Unsupported)),
            Err(error) => {
                self.complete(tag, Err(NodeError::Unavailable));
                self.end(error);
            }
        }
    }

    fn send(
        &mut self,
        size: usize,
        asker: Asker,
        write: impl FnOnce(u64, &mut Vec<u8>) -> Result<(), MessageError>,
    ) -> Result<(), ClientError> {
        let State::Open { channel, .. } = &mut self.state else { return Err(ClientError::Closed) };
        let id = self.next_id;
        channel.send(size, |out| Ok::<_, ClientError>(write(id, out)?))?;
        self.next_id += 1;
        self.outstanding.insert(id, Outstanding { asker, since_ns: None });
        Ok(())
    }

    fn send_own(&mut self, asker: Asker, message: &ClientMessage) {
        let sent = self.send(OWN_BYTES, asker, |id, out| message::encode_client(id, message, out));
        if let Err(error) = sent {
            self.end(error);
        }
    }

    /// The buffer to append read bytes to; it has room.
    pub fn read_buffer(&mut self) -> &mut Vec<u8> {
        match &mut self.state {
            State::Open { channel, .. } => channel.read_buffer(),
            State::Hello { .. } | State::Ended(_) => {
                self.scratch.clear();
                self.scratch.reserve(handshake::HELLO_BYTES + handshake::MESSAGE_BYTES_MAX);
                &mut self.scratch
            }
        }
    }

    /// Takes what was appended to the read buffer.
    pub fn receive(&mut self) {
        self.moved = true;
        let result = match self.state {
            State::Hello { .. } => self.receive_hello(),
            State::Open { .. } => self.receive_answers(),
            State::Ended(_) => Ok(()),
        };
        if let Err(error) = result {
            self.end(error);
        }
    }

    fn receive_hello(&mut self) -> Result<(), ClientError> {
        let State::Hello { pending, reader, .. } = &mut self.state else { return Ok(()) };
        reader.push(&self.scratch);
        self.scratch.clear();
        let Some(message) = reader.message()? else { return Ok(()) };
        let pending = pending.take().ok_or(HandshakeError::Malformed)?;
        let keys = pending.finish(message)?;
        let channel = Channel::new(&keys).ok_or(HandshakeError::Forged)?;
        self.state = State::Open { channel: Box::new(channel), binding: keys.binding };
        for credential in &Arc::clone(&self.config).credentials {
            let authorise = Box::new(credential.authorise(&keys.binding));
            self.send_own(Asker::Credential, &ClientMessage::Authorise(authorise));
        }
        self.send_waiting();
        Ok(())
    }

    fn receive_answers(&mut self) -> Result<(), ClientError> {
        let State::Open { channel, .. } = &mut self.state else { return Ok(()) };
        let mut messages = Vec::new();
        let received =
            channel.receive(message::MESSAGE_BYTES_MAX, |message| messages.push(message));
        for frame in &messages {
            let (id, answer) = message::decode_server(frame)?;
            let outstanding = self.outstanding.remove(&id).ok_or(ClientError::Misfit)?;
            match (outstanding.asker, answer) {
                (Asker::Engine(tag, expected), ServerMessage::Answer(result)) => {
                    if matches!(&result, Ok(response) if !expected.fits(response)) {
                        self.complete(tag, Err(NodeError::Unavailable));
                        return Err(ClientError::Misfit);
                    }
                    self.complete(tag, result);
                }
                (Asker::Engine(tag, _), ServerMessage::Pong) => {
                    self.complete(tag, Err(NodeError::Unavailable));
                    return Err(ClientError::Misfit);
                }
                (Asker::Ping, ServerMessage::Pong)
                | (Asker::Credential, ServerMessage::Answer(Ok(Response::Done))) => {}
                (Asker::Credential, ServerMessage::Answer(Err(_))) => self.denied = true,
                (Asker::Ping | Asker::Credential, _) => return Err(ClientError::Misfit),
            }
        }
        Ok(received?)
    }

    /// The bytes to write next; empty if there are none.
    #[must_use]
    pub fn outgoing(&self) -> &[u8] {
        match &self.state {
            State::Hello { out, sent, .. } => out.get(*sent..).unwrap_or_default(),
            State::Open { channel, .. } => channel.outgoing(),
            State::Ended(_) => &[],
        }
    }

    /// So many bytes of [`Client::outgoing`] were written.
    pub fn sent(&mut self, count: usize) {
        self.moved = true;
        match &mut self.state {
            State::Hello { sent, .. } => *sent += count,
            State::Open { channel, .. } => channel.sent(count),
            State::Ended(_) => {}
        }
        self.send_waiting();
    }

    /// Looks at the clock: gives a silent node up, or asks whether it is there.
    pub fn tick(&mut self, now_ns: u64) {
        let fresh = self.outstanding.values_mut().rev().take_while(|one| one.since_ns.is_none());
        fresh.for_each(|one| one.since_ns = Some(now_ns));
        let idle = !self.is_waiting();
        if self.moved || self.progress_ns.is_none() {
            self.progress_ns = Some(now_ns);
            self.moved = false;
        }
        let Some(due) = self.deadline_ns() else { return };
        if now_ns < due {
            return;
        }
        if idle {
            self.progress_ns = Some(now_ns);
            if let State::Open { channel, .. } = &mut self.state {
                channel.shrink();
            }
            self.send_own(Asker::Ping, &ClientMessage::Ping);
        } else {
            self.end(ClientError::Silent);
        }
    }

    /// When [`Client::tick`] wants to be called at the latest; `None` when the session has ended.
    #[must_use]
    pub fn deadline_ns(&self) -> Option<u64> {
        if matches!(self.state, State::Ended(_)) {
            return None;
        }
        let progress = self.progress_ns?;
        if !self.is_waiting() {
            return Some(progress.saturating_add(self.config.ping_after_ns));
        }
        let timeout = self.config.timeout_ns;
        let oldest = self.outstanding.values().next().and_then(|oldest| oldest.since_ns);
        // A request that was sent after a long silence has its whole time.
        let silent = progress.max(oldest.unwrap_or(0)).saturating_add(timeout);
        let starved = oldest.map(|since| since.saturating_add(timeout.saturating_mul(PATIENCE)));
        Some(starved.map_or(silent, |starved| starved.min(silent)))
    }

    fn is_waiting(&self) -> bool {
        matches!(self.state, State::Hello { .. })
            || !self.outstanding.is_empty()
            || !self.waiting.is_empty()
    }

    /// The next completion.
    pub fn poll(&mut self) -> Option<NodeCompletion> {
        self.completions.pop_front()
    }

    /// The connection ended.
    pub fn close(&mut self) {
        self.end(ClientError::Closed);
    }

    /// Why the session ended, if it has.
    #[must_use]
    pub fn error(&self) -> Option<ClientError> {
        match self.state {
            State::Ended(error) => Some(error),
            State::Hello { .. } | State::Open { .. } => None,
        }
    }

    /// Whether the session stands.
    #[must_use]
    pub fn is_open(&self) -> bool {
        matches!(self.state, State::Open { .. })
    }

    /// Whether the node refused a credential.
    #[must_use]
    pub fn is_denied(&self) -> bool {
        self.denied
    }

    fn end(&mut self, error: ClientError) {
        if matches!(self.state, State::Ended(_)) {
            return;
        }
        self.state = State::Ended(error);
        let outstanding = std::mem::take(&mut self.outstanding);
        let sent = outstanding.into_values().filter_map(|one| match one.asker {
            Asker::Engine(tag, _) => Some(tag),
            Asker::Credential | Asker::Ping => None,
        });
        let unsent = std::mem::take(&mut self.waiting).into_iter().map(|(tag, _)| tag);
        let tags: Vec<Tag> = sent.chain(unsent).collect();
        tags.into_iter().for_each(|tag| self.complete(tag, Err(NodeError::Unavailable)));
    }

    fn complete(&mut self, tag: Tag, result: Result<Response, NodeError>) {
        self.completions.push_back(NodeCompletion { tag, result });
    }
}

/// About how many bytes a request's fields and payload have.
fn request_bytes(request: &Request) -> usize {
    match request {
        Request::Put { parts, .. }
        | Request::Restore { parts, .. }
        | Request::JournalAppend { parts, .. } => {
            parts.iter().fold(64, |sum, part| sum.saturating_add(part.len()))
        }
        Request::Register { message: RegisterRequest::Accept { value, .. }, .. } => {
            64 + value.len()
        }
        _ => 128,
    }
}
