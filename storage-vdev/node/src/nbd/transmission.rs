//! The second phase of a connection: requests and their replies, without I/O.

use super::export::{BLOCK_BYTES_MAX, Export};
use super::negotiation::{Agreed, CONTEXT_ID, Violation};
use super::output::Output;
use super::wire::{
    CHUNK_MAGIC, Fields, REQUEST_BYTES, REQUEST_MAGIC, SIMPLE_REPLY_MAGIC, STATE_HOLE_ZERO, chunk,
    command, error, flag,
};
use crate::served::{Answer, Extent, Failure, Operation, SECTOR_BYTES};

/// The most extents in one answer.
const EXTENTS_MAX: usize = 4096;

/// A request that was handed to the volume: what its reply needs to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    /// The client's name for the request.
    pub cookie: u64,
    kind: Kind,
    /// The bytes that its data may take up until it is answered.
    pub weight: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Read { offset: u64 },
    Status { len: u32, one: bool },
    Other,
}

/// What came of some input.
#[derive(Debug)]
pub enum Parsed<'a> {
    /// So many bytes are needed from the start of the input on.
    More(usize),
    /// So many bytes are used up by a request, to be given to the volume.
    Request(usize, Ticket, Operation<'a>),
    /// So many bytes are used up by a request that is answered already.
    Refused(usize),
    /// The client has said goodbye; what it asked before is still to be answered.
    Ended,
}

/// The transmission phase of one connection.
#[derive(Debug)]
pub struct Transmission {
    agreed: Agreed,
    size_bytes: u64,
    read_only: bool,
}

/// The fields of a request.
#[derive(Debug, Clone, Copy)]
struct Header {
    flags: u16,
    command: u16,
    cookie: u64,
    offset: u64,
    len: u32,
}

impl Header {
    fn parse(input: &[u8]) -> Option<(u32, Self)> {
        let mut fields = Fields(input);
        let (magic, flags, command) = (fields.u32()?, fields.u16()?, fields.u16()?);
        let (cookie, offset, len) = (fields.u64()?, fields.u64()?, fields.u32()?);
        Some((magic, Self { flags, command, cookie, offset, len }))
    }

    fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

/// An error that a client is told.
type Refusal = (u32, &'static str);

impl Transmission {
    /// The phase that follows a negotiation. `export` is what was agreed on.
    #[must_use]
    pub fn new(agreed: Agreed, export: &Export) -> Self {
        Self { agreed, size_bytes: export.size_bytes, read_only: export.read_only }
    }

    /// Looks at the first request of `input`.
    ///
    /// # Errors
    /// [`Violation`]: end the connection.
    pub fn parse<'a>(&self, input: &'a [u8], output: &mut Output) -> Result<Parsed<'a>, Violation> {
        let Some((magic, header)) = Header::parse(input) else {
            // Garbage is noticed by its first word, whether or not more of it comes.
            return match Fields(input).u32() {
                Some(magic) if magic != REQUEST_MAGIC => {
                    Err(Violation::Magic { found: magic.into() })
                }
                _ => Ok(Parsed::More(REQUEST_BYTES)),
            };
        };
        if magic != REQUEST_MAGIC {
            return Err(Violation::Magic { found: magic.into() });
        }
        let mut used = REQUEST_BYTES;
        let mut data: &[u8] = &[];
        if header.command == command::WRITE {
            if header.len > BLOCK_BYTES_MAX {
                return Err(Violation::WriteTooLong { len: header.len });
            }
            used += header.len as usize;
            let Some(payload) = input.get(REQUEST_BYTES..used) else {
                return Ok(Parsed::More(used));
            };
            data = payload;
        }
        if header.command == command::DISC {
            return Ok(Parsed::Ended);
        }
        match self.operation(&header, data) {
            Ok((kind, weight, operation)) => {
                let ticket = Ticket { cookie: header.cookie, kind, weight };
                Ok(Parsed::Request(used, ticket, operation))
            }
            Err(refusal) => {
                let chunked = matches!(header.command, command::READ | command::BLOCK_STATUS);
                self.refuse(header.cookie, chunked, refusal, output);
                Ok(Parsed::Refused(used))
            }
        }
    }

    fn operation<'a>(
        &self,
        header: &Header,
        data: &'a [u8],
    ) -> Result<(Kind, usize, Operation<'a>), Refusal> {
        let Header { offset, len, .. } = *header;
        let known = match header.command {
            command::READ if self.agreed.structured => flag::FUA | flag::DF,
            command::WRITE_ZEROES => flag::FUA | flag::NO_HOLE | flag::FAST_ZERO,
            command::BLOCK_STATUS => flag::FUA | flag::REQ_ONE,
            command::READ | command::WRITE | command::FLUSH | command::TRIM | command::CACHE => {
                flag::FUA
            }
            _ => return Err((error::EINVAL, "unknown command")),
        };
        if header.flags & !known != 0 {
            return Err((error::EINVAL, "unknown flags"));
        }
        let writes =
            matches!(header.command, command::WRITE | command::TRIM | command::WRITE_ZEROES);
        if writes && self.read_only {
            return Err((error::EPERM, "the export is read-only"));
        }
        if header.command == command::FLUSH {
            if offset != 0 || len != 0 {
                return Err((error::EINVAL, "a flush has no range"));
            }
            return Ok((Kind::Other, 0, Operation::Flush));
        }
        self.check_range(offset, len, if writes { error::ENOSPC } else { error::EINVAL })?;
        let durable = header.has(flag::FUA);
        let carries = matches!(header.command, command::READ | command::CACHE);
        if carries && len > BLOCK_BYTES_MAX {
            return Err((error::EINVAL, "longer than the maximum block size"));
        }
        let (kind, weight) = match header.command {
            command::READ => (Kind::Read { offset }, len as usize),
            command::WRITE | command::CACHE => (Kind::Other, len as usize),
            command::BLOCK_STATUS => {
                (Kind::Status { len, one: header.has(flag::REQ_ONE) }, EXTENTS_MAX * 8)
            }
            _ => (Kind::Other, 0),
        };
        let range = u64::from(len);
        let operation = match header.command {
            command::READ => Operation::Read { offset, len },
            command::WRITE => Operation::Write { offset, data, durable },
            command::TRIM => Operation::Discard { offset, len: range, durable },
            command::CACHE => Operation::Prefetch { offset, len },
            command::BLOCK_STATUS if !self.agreed.allocation => {
                return Err((error::EINVAL, "no metadata context was negotiated"));
            }
            command::BLOCK_STATUS => Operation::Extents { offset, len: range },
            // Zeroing is a change of the volume's map, which is always fast, unless the range is to
            // keep its space: then it is as slow as a write.
            _ if header.has(flag::FAST_ZERO) && header.has(flag::NO_HOLE) => {
                return Err((error::ENOTSUP, "zeroes without a hole are not fast"));
            }
            _ => {
                let allocate = header.has(flag::NO_HOLE);
                Operation::Zero { offset, len: range, durable, allocate }
            }
        };
        Ok((kind, weight, operation))
    }

    fn check_range(&self, offset: u64, len: u32, outside: u32) -> Result<(), Refusal> {
        let len = u64::from(len);
        if len == 0 {
            return Err((error::EINVAL, "a request of no bytes"));
        }
        if offset.checked_add(len).is_none_or(|end| end > self.size_bytes) {
            return Err((outside, "outside the export"));
        }
        if !offset.is_multiple_of(SECTOR_BYTES) || !len.is_multiple_of(SECTOR_BYTES) {
            return Err((error::EINVAL, "not whole sectors of 512 bytes"));
        }
        Ok(())
    }

    /// Replies to a request that the volume has answered. A buffer that isn't needed any more comes
    /// back.
    pub fn reply(
        &self,
        ticket: Ticket,
        result: Result<Answer, Failure>,
        output: &mut Output,
    ) -> Option<Vec<u8>> {
        let cookie = ticket.cookie;
        let chunked = !matches!(ticket.kind, Kind::Other);
        match (result, ticket.kind) {
            (Err(failure), _) => {
                self.refuse(cookie, chunked, told(failure), output);
                None
            }
            (Ok(Answer::Bytes(buffer)), Kind::Read { offset }) => {
                if self.agreed.structured {
                    put_chunk(output, cookie, chunk::OFFSET_DATA, 8 + buffer.len());
                    output.put(&offset.to_be_bytes());
                } else {
                    put_simple(output, 0, cookie);
                }
                output.put_buffer(buffer)
            }
            (Ok(Answer::Extents(extents)), Kind::Status { len, one }) => {
                let states = describe(&extents, len, one);
                put_chunk(output, cookie, chunk::BLOCK_STATUS, 4 + states.len());
                output.put(&CONTEXT_ID.to_be_bytes());
                output.put(&states);
                None
            }
            (Ok(Answer::Done), Kind::Other) => {
                put_simple(output, 0, cookie);
                None
            }
            (Ok(_), _) => {
                self.refuse(cookie, chunked, (error::EIO, "the volume answered otherwise"), output);
                None
            }
        }
    }

    /// Which of the server's exports this is about.
    #[must_use]
    pub fn export(&self) -> usize {
        self.agreed.export
    }

    fn refuse(&self, cookie: u64, chunked: bool, (code, reason): Refusal, output: &mut Output) {
        if !chunked || !self.agreed.structured {
            return put_simple(output, code, cookie);
        }
        put_chunk(output, cookie, chunk::ERROR, 6 + reason.len());
        output.put(&code.to_be_bytes());
        output.put(&(reason.len() as u16).to_be_bytes());
        output.put(reason.as_bytes());
    }
}

fn told(failure: Failure) -> Refusal {
    match failure {
        Failure::Range => (error::EINVAL, "not whole sectors inside the volume"),
        Failure::NoSpace => (error::ENOSPC, "no space left on the volume's nodes"),
        Failure::ReadOnly => (error::EPERM, "the volume is open for reading only"),
        Failure::Io => (error::EIO, "the volume's nodes failed"),
        Failure::Stopped => (error::ESHUTDOWN, "the volume has stopped"),
    }
}

/// Lengths and states of extents, merged, up to `len` bytes: at least one, at most [`EXTENTS_MAX`].
fn describe(extents: &[Extent], len: u32, one: bool) -> Vec<u8> {
    let mut merged: Vec<(u32, bool)> = Vec::new();
    let (mut left, most) = (len, if one { 1 } else { EXTENTS_MAX });
    for extent in extents {
        let part = u32::try_from(extent.len).unwrap_or(u32::MAX).min(left);
        left -= part;
        let full = merged.len() == most;
        match merged.last_mut() {
            _ if part == 0 => {}
            Some((sum, hole)) if *hole != extent.allocated => *sum += part,
            _ if full => break,
            _ => merged.push((part, !extent.allocated)),
        }
    }
    if merged.is_empty() {
        // What isn't known is not said to be a hole.
        merged.push((len, false));
    }
    let word = |(len, hole): &(u32, bool)| {
        [*len, if *hole { STATE_HOLE_ZERO } else { 0 }].map(u32::to_be_bytes)
    };
    merged.iter().map(word).collect::<Vec<_>>().as_flattened().as_flattened().to_vec()
}

fn put_simple(output: &mut Output, code: u32, cookie: u64) {
    let mut bytes = [0; 16];
    let (magic, rest) = bytes.split_at_mut(4);
    let (error, rest) = rest.split_at_mut(4);
    magic.copy_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
    error.copy_from_slice(&code.to_be_bytes());
    rest.copy_from_slice(&cookie.to_be_bytes());
    output.put(&bytes);
}

/// The head of a reply of one chunk.
fn put_chunk(output: &mut Output, cookie: u64, kind: u16, len: usize) {
    output.put(&CHUNK_MAGIC.to_be_bytes());
    output.put(&chunk::DONE.to_be_bytes());
    output.put(&kind.to_be_bytes());
    output.put(&cookie.to_be_bytes());
    output.put(&(len as u32).to_be_bytes());
}
