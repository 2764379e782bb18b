//! The messages inside frames: fixed little-endian layouts, one kind each; a payload, where a
//! kind has one, is the rest of the frame and is never copied on its way in.
//!
//! `docs/shard-protocol.md` draws them. Every byte that a layout calls zero must be zero, and
//! nothing may follow a message: there is one encoding of each.

use bytes::Bytes;

use super::authorise::Authorise;
use crate::keys::Uuid;
use crate::node::{
    Ballot, NodeError, OBJECT_BYTES_MAX, ObjectKey, REGISTER_BYTES_MAX, RegisterRequest,
    RegisterResponse, Request, Response, TRANSFER_BYTES_MAX,
};

/// The bytes of a message before its fields.
pub const HEAD_BYTES: usize = 16;
/// The most bytes of a message: the largest payload and the largest fields.
pub const MESSAGE_BYTES_MAX: usize = TRANSFER_BYTES_MAX + 128;
/// The most names in a list.
pub const KEYS_MAX: usize = 65_535;
/// The most pieces of evidence for a fence, and the most bytes of each.
pub const EVIDENCE_MAX: (usize, usize) = (64, 8192);

const KEY_BYTES: usize = 40;

/// Why bytes are no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// It ends too early.
    #[error("a message ends too early")]
    Truncated,
    /// Bytes follow it, or bytes that must be zero are not.
    #[error("a message has bytes that mean nothing")]
    Excess,
    /// No such kind.
    #[error("a message of unknown kind {0}")]
    Kind(u8),
    /// A number or a length is out of its range.
    #[error("a message asks for too much")]
    Range,
}

/// What a client sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientMessage {
    /// A request to the node.
    Request(Request),
    /// Shows a capability.
    Authorise(Box<Authorise>),
    /// Is the node there?
    Ping,
}

/// What a node sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerMessage {
    /// The answer to a request, or to an [`Authorise`] (`Done` or `Denied`).
    Answer(Result<Response, NodeError>),
    /// It is there.
    Pong,
}

impl ServerMessage {
    /// How many bytes its payload has; 0 for a kind without one.
    #[must_use]
    pub fn payload_bytes(&self) -> usize {
        match self {
            Self::Answer(Ok(Response::Bytes(bytes))) => bytes.len(),
            Self::Answer(Ok(Response::Keys(keys))) => keys.len() * KEY_BYTES,
            Self::Answer(Ok(Response::Register(RegisterResponse::Promised {
                accepted: Some((_, value)),
                ..
            }))) => value.len(),
            _ => 0,
        }
    }
}

mod kind {
    pub(super) const PUT: u8 = 1;
    pub(super) const GET: u8 = 2;
    pub(super) const LIST: u8 = 3;
    pub(super) const DELETE: u8 = 4;
    pub(super) const JOURNAL_OPEN: u8 = 5;
    pub(super) const JOURNAL_APPEND: u8 = 6;
    pub(super) const JOURNAL_READ: u8 = 7;
    pub(super) const JOURNAL_STATE: u8 = 8;
    pub(super) const JOURNAL_TRIM: u8 = 9;
    pub(super) const FENCE: u8 = 10;
    pub(super) const PREPARE: u8 = 11;
    pub(super) const ACCEPT: u8 = 12;
    pub(super) const AUDIT: u8 = 13;
    pub(super) const CAPACITY: u8 = 14;
    pub(super) const RESTORE: u8 = 15;
    pub(super) const AUTHORISE: u8 = 32;
    pub(super) const PING: u8 = 33;

    pub(super) const DONE: u8 = 64;
    pub(super) const BYTES: u8 = 65;
    pub(super) const KEYS: u8 = 66;
    pub(super) const JOURNAL: u8 = 67;
    pub(super) const FENCED: u8 = 68;
    pub(super) const PROMISED: u8 = 69;
    pub(super) const ACCEPTED: u8 = 70;
    pub(super) const REJECTED: u8 = 71;
    pub(super) const FULLNESS: u8 = 72;
    pub(super) const FAILED: u8 = 96;
    pub(super) const PONG: u8 = 97;
}

/// Writes a client's message behind what is in `out`.
///
/// # Errors
/// [`MessageError::Range`] if it is larger than the protocol allows; `out` is as it was then.
pub fn encode_client(
    id: u64,
    message: &ClientMessage,
    out: &mut Vec<u8>,
) -> Result<(), MessageError> {
    match message {
        ClientMessage::Request(request) => encode_request(id, request, out),
        ClientMessage::Authorise(authorise) => bounded(out, |out| {
            head(kind::AUTHORISE, 0, id, out);
            authorise.encode(out);
        }),
        ClientMessage::Ping => bounded(out, |out| head(kind::PING, 0, id, out)),
    }
}

/// Writes a request behind what is in `out`.
///
/// # Errors
/// [`MessageError::Range`] if it is larger than the protocol allows; `out` is as it was then.
pub fn encode_request(id: u64, request: &Request, out: &mut Vec<u8>) -> Result<(), MessageError> {
    check_request(request)?;
    bounded(out, |out| match request {
        Request::Put { key, parts } => {
            head(kind::PUT, 0, id, out);
            put_key(key, out);
            parts.iter().for_each(|part| out.extend_from_slice(part));
        }
        Request::Restore { epoch, key, parts } => {
            head(kind::RESTORE, 0, id, out);
            put_key(key, out);
            fields(out, &[&epoch.to_le_bytes()]);
            parts.iter().for_each(|part| out.extend_from_slice(part));
        }
        Request::Get { key, offset, len } => {
            head(kind::GET, 0, id, out);
            put_key(key, out);
            fields(out, &[&offset.to_le_bytes(), &len.to_le_bytes()]);
        }
        Request::List { volume, after, limit } => {
            head(kind::LIST, u32::from(after.is_some()), id, out);
            fields(out, &[volume, &u64::from(*limit).to_le_bytes()]);
            if let Some(after) = after {
                put_key(after, out);
            }
        }
        Request::Delete { epoch, keys } => {
            head(kind::DELETE, count(keys.len()), id, out);
            fields(out, &[&epoch.to_le_bytes()]);
            keys.iter().for_each(|key| put_key(key, out));
        }
        Request::Fence { volume, epoch, evidence } => {
            head(kind::FENCE, count(evidence.len()), id, out);
            fields(out, &[volume, &epoch.to_le_bytes()]);
            for piece in evidence {
                fields(out, &[&count(piece.len()).to_le_bytes(), piece]);
            }
        }
        Request::Audit { key, leaf, challenge } => {
            head(kind::AUDIT, *leaf, id, out);
            put_key(key, out);
            fields(out, &[challenge]);
        }
        Request::Capacity => head(kind::CAPACITY, 0, id, out),
        Request::Register { register, message } => encode_register(id, register, message, out),
        _ => encode_journal(id, request, out),
    })
}

fn encode_journal(id: u64, request: &Request, out: &mut Vec<u8>) {
    match request {
        Request::JournalOpen { volume, epoch, capacity } => {
            head(kind::JOURNAL_OPEN, 0, id, out);
            fields(out, &[volume, &epoch.to_le_bytes(), &capacity.to_le_bytes()]);
        }
        Request::JournalAppend { volume, epoch, position, parts } => {
            head(kind::JOURNAL_APPEND, 0, id, out);
            fields(out, &[volume, &epoch.to_le_bytes(), &position.to_le_bytes()]);
            parts.iter().for_each(|part| out.extend_from_slice(part));
        }
        Request::JournalRead { volume, position, len } => {
            head(kind::JOURNAL_READ, *len, id, out);
            fields(out, &[volume, &position.to_le_bytes()]);
        }
        Request::JournalState { volume } => {
            head(kind::JOURNAL_STATE, 0, id, out);
            fields(out, &[volume]);
        }
        Request::JournalTrim { volume, epoch, start } => {
            head(kind::JOURNAL_TRIM, 0, id, out);
            fields(out, &[volume, &epoch.to_le_bytes(), &start.to_le_bytes()]);
        }
        // The caller writes the others itself; each kind has its own arm there.
        _ => {}
    }
}

fn encode_register(id: u64, register: &Uuid, message: &RegisterRequest, out: &mut Vec<u8>) {
    match message {
        RegisterRequest::Prepare { ballot } => {
            head(kind::PREPARE, 0, id, out);
            fields(out, &[register]);
            put_ballot(ballot, out);
        }
        RegisterRequest::Accept { ballot, value } => {
            head(kind::ACCEPT, 0, id, out);
            fields(out, &[register]);
            put_ballot(ballot, out);
            fields(out, &[value]);
        }
    }
}

/// Writes a node's message behind what is in `out`.
///
/// # Errors
/// [`MessageError::Range`] if it is larger than the protocol allows; `out` is as it was then.
pub fn encode_server(
    id: u64,
    message: &ServerMessage,
    out: &mut Vec<u8>,
) -> Result<(), MessageError> {
    let response = match message {
        ServerMessage::Pong => return bounded(out, |out| head(kind::PONG, 0, id, out)),
        ServerMessage::Answer(Err(error)) => {
            let (code, detail) = error_code(*error);
            return bounded(out, |out| {
                head(kind::FAILED, code, id, out);
                fields(out, &[&detail.to_le_bytes()]);
            });
        }
        ServerMessage::Answer(Ok(response)) => response,
    };
    if matches!(response, Response::Keys(keys) if keys.len() > KEYS_MAX)
        || matches!(response, Response::Bytes(bytes) if bytes.len() > TRANSFER_BYTES_MAX)
    {
        return Err(MessageError::Range);
    }
    bounded(out, |out| match response {
        Response::Done => head(kind::DONE, 0, id, out),
        Response::Bytes(bytes) => {
            head(kind::BYTES, 0, id, out);
            fields(out, &[bytes]);
        }
        Response::Keys(keys) => {
            head(kind::KEYS, count(keys.len()), id, out);
            keys.iter().for_each(|key| put_key(key, out));
        }
        Response::Journal { start, end, epoch } => {
            head(kind::JOURNAL, 0, id, out);
            fields(out, &[&start.to_le_bytes(), &end.to_le_bytes(), &epoch.to_le_bytes()]);
        }
        Response::Fenced { previous } => {
            head(kind::FENCED, 0, id, out);
            fields(out, &[&previous.to_le_bytes()]);
        }
        Response::Capacity { total_bytes, free_bytes } => {
            head(kind::FULLNESS, 0, id, out);
            fields(out, &[&total_bytes.to_le_bytes(), &free_bytes.to_le_bytes()]);
        }
        Response::Register(answer) => encode_register_answer(id, answer, out),
    })
}

fn encode_register_answer(id: u64, answer: &RegisterResponse, out: &mut Vec<u8>) {
    match answer {
        RegisterResponse::Promised { acceptor, accepted } => {
            head(kind::PROMISED, u32::from(accepted.is_some()), id, out);
            fields(out, &[acceptor]);
            if let Some((ballot, value)) = accepted {
                put_ballot(ballot, out);
                fields(out, &[value]);
            }
        }
        RegisterResponse::Accepted { acceptor, receipt } => {
            head(kind::ACCEPTED, 0, id, out);
            fields(out, &[acceptor, receipt]);
        }
        RegisterResponse::Rejected { promised } => {
            head(kind::REJECTED, 0, id, out);
            put_ballot(promised, out);
        }
    }
}

/// Whether a request keeps the protocol's bounds: an end sends none that doesn't, and takes none.
fn check_request(request: &Request) -> Result<(), MessageError> {
    let total =
        |parts: &[Bytes]| parts.iter().fold(0_usize, |sum, part| sum.saturating_add(part.len()));
    let fits = match request {
        Request::Put { parts, .. } | Request::Restore { parts, .. } => {
            total(parts) <= OBJECT_BYTES_MAX
        }
        Request::JournalAppend { parts, .. } => total(parts) <= TRANSFER_BYTES_MAX,
        Request::Get { len, .. } => *len == u32::MAX || *len as usize <= TRANSFER_BYTES_MAX,
        Request::JournalRead { len, .. } => *len as usize <= TRANSFER_BYTES_MAX,
        Request::Delete { keys, .. } => {
            let of_one = |pair: &[ObjectKey]| matches!(pair, [a, b] if a.volume == b.volume);
            keys.len() <= KEYS_MAX && keys.windows(2).all(of_one)
        }
        Request::Fence { evidence, .. } => {
            evidence.len() <= EVIDENCE_MAX.0
                && evidence.iter().all(|piece| piece.len() <= EVIDENCE_MAX.1)
        }
        Request::Register { message: RegisterRequest::Accept { value, .. }, .. } => {
            value.len() <= REGISTER_BYTES_MAX
        }
        _ => true,
    };
    if fits { Ok(()) } else { Err(MessageError::Range) }
}

/// Reads a client's message and its number.
///
/// # Errors
/// [`MessageError`]: the bytes are no message that [`encode_client`] writes.
pub fn decode_client(frame: &Bytes) -> Result<(u64, ClientMessage), MessageError> {
    let (mut input, kind, count, id) = Input::new(frame)?;
    let message = match kind {
        kind::AUTHORISE => {
            zero(count)?;
            ClientMessage::Authorise(Box::new(Authorise::decode(&mut input)?))
        }
        kind::PING => {
            zero(count)?;
            ClientMessage::Ping
        }
        _ => {
            let request = decode_request(&mut input, kind, count)?;
            check_request(&request)?;
            ClientMessage::Request(request)
        }
    };
    input.end()?;
    Ok((id, message))
}

fn decode_request(input: &mut Input<'_>, kind: u8, count: u32) -> Result<Request, MessageError> {
    if !matches!(kind, kind::LIST | kind::DELETE | kind::FENCE | kind::AUDIT | kind::JOURNAL_READ) {
        zero(count)?;
    }
    Ok(match kind {
        kind::PUT => Request::Put { key: input.key()?, parts: vec![input.rest()] },
        kind::RESTORE => {
            let (key, epoch) = (input.key()?, input.u64()?);
            Request::Restore { epoch, key, parts: vec![input.rest()] }
        }
        kind::GET => Request::Get { key: input.key()?, offset: input.u32()?, len: input.u32()? },
        kind::LIST => {
            let volume = input.array()?;
            let limit = u16::try_from(input.u64()?).map_err(|_| MessageError::Range)?;
            let after = match count {
                0 => None,
                1 => Some(input.key()?),
                _ => return Err(MessageError::Range),
            };
            Request::List { volume, after, limit }
        }
        kind::DELETE => Request::Delete { epoch: input.u64()?, keys: input.keys(count)? },
        kind::JOURNAL_OPEN => Request::JournalOpen {
            volume: input.array()?,
            epoch: input.u64()?,
            capacity: input.u64()?,
        },
        kind::JOURNAL_APPEND => Request::JournalAppend {
            volume: input.array()?,
            epoch: input.u64()?,
            position: input.u64()?,
            parts: vec![input.rest()],
        },
        kind::JOURNAL_READ => {
            Request::JournalRead { volume: input.array()?, position: input.u64()?, len: count }
        }
        kind::JOURNAL_STATE => Request::JournalState { volume: input.array()? },
        kind::JOURNAL_TRIM => Request::JournalTrim {
            volume: input.array()?,
            epoch: input.u64()?,
            start: input.u64()?,
        },
        kind::FENCE => Request::Fence {
            volume: input.array()?,
            epoch: input.u64()?,
            evidence: input.evidence(count)?,
        },
        kind::PREPARE => {
            let register = input.array()?;
            let message = RegisterRequest::Prepare { ballot: input.ballot()? };
            Request::Register { register, message }
        }
        kind::ACCEPT => {
            let register = input.array()?;
            let (ballot, value) = (input.ballot()?, input.rest());
            Request::Register { register, message: RegisterRequest::Accept { ballot, value } }
        }
        kind::AUDIT => Request::Audit { key: input.key()?, leaf: count, challenge: input.array()? },
        kind::CAPACITY => Request::Capacity,
        other => return Err(MessageError::Kind(other)),
    })
}

/// Reads a node's message and the number of the request that it answers.
///
/// # Errors
/// [`MessageError`]: the bytes are no message that [`encode_server`] writes.
pub fn decode_server(frame: &Bytes) -> Result<(u64, ServerMessage), MessageError> {
    let (mut input, kind, count, id) = Input::new(frame)?;
    if !matches!(kind, kind::KEYS | kind::PROMISED | kind::FAILED) {
        zero(count)?;
    }
    let response = match kind {
        kind::PONG => {
            input.end()?;
            return Ok((id, ServerMessage::Pong));
        }
        kind::FAILED => {
            let error = error_of(count, input.u64()?)?;
            input.end()?;
            return Ok((id, ServerMessage::Answer(Err(error))));
        }
        kind::DONE => Response::Done,
        kind::BYTES => {
            let bytes = input.rest();
            if bytes.len() > TRANSFER_BYTES_MAX {
                return Err(MessageError::Range);
            }
            Response::Bytes(bytes)
        }
        kind::KEYS => Response::Keys(input.keys(count)?),
        kind::JOURNAL => {
            Response::Journal { start: input.u64()?, end: input.u64()?, epoch: input.u64()? }
        }
        kind::FENCED => Response::Fenced { previous: input.u64()? },
        kind::PROMISED => {
            let acceptor = input.array()?;
            let accepted = match count {
                0 => None,
                1 => Some((input.ballot()?, input.short()?)),
                _ => return Err(MessageError::Range),
            };
            Response::Register(RegisterResponse::Promised { acceptor, accepted })
        }
        kind::ACCEPTED => {
            let (acceptor, receipt) = (input.array()?, input.short()?);
            Response::Register(RegisterResponse::Accepted { acceptor, receipt })
        }
        kind::REJECTED => {
            Response::Register(RegisterResponse::Rejected { promised: input.ballot()? })
        }
        kind::FULLNESS => {
            Response::Capacity { total_bytes: input.u64()?, free_bytes: input.u64()? }
        }
        other => return Err(MessageError::Kind(other)),
    };
    input.end()?;
    Ok((id, ServerMessage::Answer(Ok(response))))
}

fn error_code(error: NodeError) -> (u32, u64) {
    match error {
        NodeError::EpochStale { current } => (1, current),
        NodeError::Exists => (2, 0),
        NodeError::NotFound => (3, 0),
        NodeError::Range => (4, 0),
        NodeError::Conflict { end } => (5, end),
        NodeError::NoSpace => (6, 0),
        NodeError::Quota => (7, 0),
        NodeError::Corrupt => (8, 0),
        NodeError::Denied => (9, 0),
        NodeError::Unsupported => (10, 0),
        NodeError::Unavailable => (11, 0),
        NodeError::Failed => (12, 0),
    }
}

fn error_of(code: u32, detail: u64) -> Result<NodeError, MessageError> {
    let error = match code {
        1 => NodeError::EpochStale { current: detail },
        2 => NodeError::Exists,
        3 => NodeError::NotFound,
        4 => NodeError::Range,
        5 => NodeError::Conflict { end: detail },
        6 => NodeError::NoSpace,
        7 => NodeError::Quota,
        8 => NodeError::Corrupt,
        9 => NodeError::Denied,
        10 => NodeError::Unsupported,
        11 => NodeError::Unavailable,
        12 => NodeError::Failed,
        _ => return Err(MessageError::Range),
    };
    // One encoding of each: a detail where none belongs is refused.
    if error_code(error) == (code, detail) { Ok(error) } else { Err(MessageError::Excess) }
}

fn bounded(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) -> Result<(), MessageError> {
    let start = out.len();
    write(out);
    if out.len() - start > MESSAGE_BYTES_MAX {
        out.truncate(start);
        return Err(MessageError::Range);
    }
    Ok(())
}

/// Kind, three zero bytes, a count (or small number), the number of the message.
fn head(kind: u8, count: u32, id: u64, out: &mut Vec<u8>) {
    fields(out, &[&[kind, 0, 0, 0], &count.to_le_bytes(), &id.to_le_bytes()]);
}

fn fields(out: &mut Vec<u8>, fields: &[&[u8]]) {
    fields.iter().for_each(|field| out.extend_from_slice(field));
}

fn put_key(key: &ObjectKey, out: &mut Vec<u8>) {
    let numbers = [key.epoch.to_le_bytes(), key.sequence.to_le_bytes()];
    fields(out, &[&key.volume, numbers.as_flattened(), &u64::from(key.shard).to_le_bytes()]);
}

fn put_ballot(ballot: &Ballot, out: &mut Vec<u8>) {
    fields(out, &[&ballot.counter.to_le_bytes(), &ballot.proposer]);
}

/// Lengths that were checked against bounds far below 2^32.
fn count(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

fn zero(count: u32) -> Result<(), MessageError> {
    if count == 0 { Ok(()) } else { Err(MessageError::Excess) }
}

/// Reads a message from its start.
pub(super) struct Input<'a> {
    frame: &'a Bytes,
    at: usize,
}

impl<'a> Input<'a> {
    fn new(frame: &'a Bytes) -> Result<(Self, u8, u32, u64), MessageError> {
        if frame.len() > MESSAGE_BYTES_MAX {
            return Err(MessageError::Range);
        }
        let mut input = Self { frame, at: 0 };
        let [kind, zeros @ ..] = input.array::<4>()?;
        if zeros != [0; 3] {
            return Err(MessageError::Excess);
        }
        let (count, id) = (input.u32()?, input.u64()?);
        Ok((input, kind, count, id))
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], MessageError> {
        let rest = self.frame.get(self.at..).unwrap_or_default();
        let field = rest.first_chunk::<N>().ok_or(MessageError::Truncated)?;
        self.at += N;
        Ok(*field)
    }

    pub(super) fn u32(&mut self) -> Result<u32, MessageError> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, MessageError> {
        self.array().map(u64::from_le_bytes)
    }

    fn left(&self) -> usize {
        self.frame.len().saturating_sub(self.at)
    }

    fn take(&mut self, len: usize) -> Result<Bytes, MessageError> {
        if len > self.left() {
            return Err(MessageError::Truncated);
        }
        let start = self.at;
        self.at += len;
        Ok(self.frame.slice(start..self.at))
    }

    fn rest(&mut self) -> Bytes {
        let start = self.at.min(self.frame.len());
        self.at = self.frame.len();
        self.frame.slice(start..)
    }

    /// The rest, as a register's value or receipt.
    fn short(&mut self) -> Result<Bytes, MessageError> {
        if self.left() > REGISTER_BYTES_MAX {
            return Err(MessageError::Range);
        }
        Ok(self.rest())
    }

    fn key(&mut self) -> Result<ObjectKey, MessageError> {
        let (volume, epoch, sequence) = (self.array()?, self.u64()?, self.u64()?);
        let shard = u8::try_from(self.u64()?).map_err(|_| MessageError::Excess)?;
        Ok(ObjectKey { volume, epoch, sequence, shard })
    }

    fn keys(&mut self, count: u32) -> Result<Vec<ObjectKey>, MessageError> {
        let count = count as usize;
        if count > KEYS_MAX {
            return Err(MessageError::Range);
        }
        if count * KEY_BYTES > self.left() {
            return Err(MessageError::Truncated);
        }
        (0..count).map(|_| self.key()).collect()
    }

    fn evidence(&mut self, count: u32) -> Result<Vec<Bytes>, MessageError> {
        if count as usize > EVIDENCE_MAX.0 {
            return Err(MessageError::Range);
        }
        let piece = |_| {
            let len = self.u32()? as usize;
            self.take(len)
        };
        (0..count).map(piece).collect()
    }

    fn ballot(&mut self) -> Result<Ballot, MessageError> {
        Ok(Ballot { counter: self.u64()?, proposer: self.array()? })
    }

    fn end(&self) -> Result<(), MessageError> {
        if self.left() == 0 { Ok(()) } else { Err(MessageError::Excess) }
    }
}
