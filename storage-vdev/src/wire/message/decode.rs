//! Messages read back from bytes.

use bytes::Bytes;

use super::{
    ClientMessage, EVIDENCE_MAX, KEY_BYTES, KEYS_MAX, MESSAGE_BYTES_MAX, MessageError,
    ServerMessage, check_request, error_code, kind,
};
use crate::node::{
    Ballot, NodeError, ObjectKey, REGISTER_BYTES_MAX, RegisterRequest, RegisterResponse, Request,
    Response, TRANSFER_BYTES_MAX,
};
use crate::wire::authorise::Authorise;

/// Reads a client's message and its number.
///
/// # Errors
/// [`MessageError`]: the bytes are no message that [`encode_client`](super::encode_client) writes.
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
/// [`MessageError`]: the bytes are no message that [`encode_server`](super::encode_server) writes.
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

fn zero(count: u32) -> Result<(), MessageError> {
    if count == 0 { Ok(()) } else { Err(MessageError::Excess) }
}

/// Reads a message from its start.
pub(in crate::wire) struct Input<'a> {
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

    pub(in crate::wire) fn array<const N: usize>(&mut self) -> Result<[u8; N], MessageError> {
        let rest = self.frame.get(self.at..).unwrap_or_default();
        let field = rest.first_chunk::<N>().ok_or(MessageError::Truncated)?;
        self.at += N;
        Ok(*field)
    }

    pub(in crate::wire) fn u32(&mut self) -> Result<u32, MessageError> {
        self.array().map(u32::from_le_bytes)
    }

    pub(in crate::wire) fn u64(&mut self) -> Result<u64, MessageError> {
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
