//! The messages inside frames: fixed little-endian layouts, one kind each; a payload, where a
//! kind has one, is the rest of the frame and is never copied on its way in.
//!
//! `docs/shard-protocol.md` draws them. Every byte that a layout calls zero must be zero, and
//! nothing may follow a message: there is one encoding of each.

mod decode;

use bytes::Bytes;

pub(super) use decode::Input;
pub use decode::{decode_client, decode_server};

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
