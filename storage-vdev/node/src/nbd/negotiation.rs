//! The first phase of a connection: fixed newstyle negotiation, without I/O.
//!
//! What a client sends is bounded: an option's data up to [`OPTION_BYTES_MAX`] is looked at, more is
//! skipped and refused, very much more ends the connection, as do more than [`OPTIONS_MAX`] options.

use super::export::{
    BLOCK_BYTES_MAX, BLOCK_BYTES_MIN, BLOCK_BYTES_PREFERRED, Export, NAME_BYTES_MAX,
};
use super::output::Output;
use super::wire::{
    FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES, Fields, GREETING, OPTION_HEADER_BYTES, OPTION_MAGIC,
    OPTION_REPLY_MAGIC, info, option, reply, transmission,
};

/// The most bytes of an option's data that are looked at.
pub const OPTION_BYTES_MAX: usize = 16 << 10;

/// The most bytes of an option's data that are skipped.
pub const OPTION_SKIPPED_MAX: u32 = 1 << 20;

/// The most options of one connection.
pub const OPTIONS_MAX: u32 = 256;

/// The only metadata context, and its id.
const CONTEXT: &[u8] = b"base:allocation";
pub(crate) const CONTEXT_ID: u32 = 1;

/// Whether clients must, or can't, encrypt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsPolicy {
    /// There is no TLS on this socket.
    Off,
    /// Nothing is said about exports before TLS is on.
    Required,
}

/// Why a connection is ended: the client doesn't speak NBD, or abuses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// Unknown handshake flags, or not fixed newstyle.
    #[error("the client's handshake flags {flags:#x} are not supported")]
    ClientFlags {
        /// What it sent.
        flags: u32,
    },
    /// The magic of an option or request is wrong.
    #[error("the client lost the protocol: {found:#x} is no magic number")]
    Magic {
        /// What it sent.
        found: u64,
    },
    /// One option is far too long.
    #[error("the client sent an option of {len} bytes")]
    OptionTooLong {
        /// Its length.
        len: u32,
    },
    /// Too many options.
    #[error("the client sent more than {OPTIONS_MAX} options")]
    TooManyOptions,
    /// EXPORT_NAME has no way to say that there is no such export.
    #[error("the client asked for an export that doesn't exist")]
    UnknownExport,
    /// EXPORT_NAME has no way to ask for TLS.
    #[error("the client asked for an export without TLS")]
    TlsRequired,
    /// A write is longer than was offered.
    #[error("the client sent a write of {len} bytes")]
    WriteTooLong {
        /// Its length.
        len: u32,
    },
}

/// What was agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Agreed {
    /// The export's place in the server's list.
    pub export: usize,
    /// Whether reads are answered in chunks.
    pub structured: bool,
    /// Whether the client may ask for `base:allocation`.
    pub allocation: bool,
}

/// What came of some input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// The message isn't complete: nothing was used up.
    More,
    /// So many bytes are used up; there may be another message behind them.
    Used(usize),
    /// TLS starts behind these bytes, once the output is sent.
    StartTls(usize),
    /// The transmission phase starts behind these bytes.
    Enter(usize, Agreed),
    /// The client has said goodbye.
    Ended,
}

/// The state of a negotiation.
#[derive(Debug)]
pub struct Negotiation {
    tls: TlsPolicy,
    secure: bool,
    flags_known: bool,
    no_zeroes: bool,
    structured: bool,
    /// The export that `base:allocation` was chosen for.
    allocation_of: Option<usize>,
    options: u32,
    /// How many bytes of a long option are still to be skipped.
    skip: usize,
}

impl Negotiation {
    /// A new connection, and the greeting to it.
    #[must_use]
    pub fn new(tls: TlsPolicy, output: &mut Output) -> Self {
        output.put(&GREETING.to_be_bytes());
        output.put(&OPTION_MAGIC.to_be_bytes());
        output.put(&(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES).to_be_bytes());
        Self {
            tls,
            secure: false,
            flags_known: false,
            no_zeroes: false,
            structured: false,
            allocation_of: None,
            options: 0,
            skip: 0,
        }
    }

    /// TLS is on: forgets what was agreed without it.
    pub fn secured(&mut self) {
        self.secure = true;
        self.structured = false;
        self.allocation_of = None;
    }

    /// Looks at the first message of `input`.
    ///
    /// # Errors
    /// [`Violation`]: end the connection, once the output is sent.
    pub fn advance(
        &mut self,
        input: &[u8],
        exports: &[Export],
        output: &mut Output,
    ) -> Result<Next, Violation> {
        if self.skip > 0 {
            let skipped = self.skip.min(input.len());
            self.skip -= skipped;
            return Ok(if skipped == 0 { Next::More } else { Next::Used(skipped) });
        }
        let mut fields = Fields(input);
        if !self.flags_known {
            let Some(flags) = fields.u32() else { return Ok(Next::More) };
            let known = u32::from(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES);
            if flags & !known != 0 || flags & u32::from(FLAG_FIXED_NEWSTYLE) == 0 {
                return Err(Violation::ClientFlags { flags });
            }
            self.flags_known = true;
            self.no_zeroes = flags & u32::from(FLAG_NO_ZEROES) != 0;
            return Ok(Next::Used(size_of::<u32>()));
        }
        // Garbage is noticed by its first word, whether or not more of it comes.
        let Some(magic) = fields.u64() else { return Ok(Next::More) };
        if magic != OPTION_MAGIC {
            return Err(Violation::Magic { found: magic });
        }
        let (Some(option), Some(len)) = (fields.u32(), fields.u32()) else {
            return Ok(Next::More);
        };
        if len > OPTION_SKIPPED_MAX {
            return Err(Violation::OptionTooLong { len });
        }
        let data_len = len as usize;
        if data_len > OPTION_BYTES_MAX {
            self.count_option()?;
            if option == option::EXPORT_NAME {
                return Err(Violation::UnknownExport);
            }
            refuse(output, option, reply::ERR_TOO_BIG, "the option is too long");
            self.skip = data_len;
            return Ok(Next::Used(OPTION_HEADER_BYTES));
        }
        let Some(data) = fields.bytes(data_len) else { return Ok(Next::More) };
        self.count_option()?;
        self.option(option, data, exports, output, OPTION_HEADER_BYTES + data_len)
    }

    fn count_option(&mut self) -> Result<(), Violation> {
        self.options += 1;
        if self.options > OPTIONS_MAX { Err(Violation::TooManyOptions) } else { Ok(()) }
    }

    fn option(
        &mut self,
        option: u32,
        data: &[u8],
        exports: &[Export],
        output: &mut Output,
        used: usize,
    ) -> Result<Next, Violation> {
        let open = self.secure || self.tls == TlsPolicy::Off;
        match option {
            option::ABORT => {
                answer(output, option, reply::ACK, &[]);
                return Ok(Next::Ended);
            }
            option::STARTTLS => return Ok(self.start_tls(data, output, used)),
            option::EXPORT_NAME if !open => return Err(Violation::TlsRequired),
            _ if !open => refuse(output, option, reply::ERR_TLS_REQD, "TLS is required"),
            option::EXPORT_NAME => {
                let agreed = self.export_name(data, exports, output)?;
                return Ok(Next::Enter(used, agreed));
            }
            option::LIST if data.is_empty() => {
                for export in exports {
                    let name = export.name.as_bytes();
                    let name_len = (name.len() as u32).to_be_bytes();
                    let parts = [&name_len[..], name, export.description.as_bytes()].concat();
                    answer(output, option, reply::SERVER, &parts);
                }
                answer(output, option, reply::ACK, &[]);
            }
            option::STRUCTURED_REPLY if data.is_empty() => {
                self.structured = true;
                answer(output, option, reply::ACK, &[]);
            }
            option::LIST | option::STRUCTURED_REPLY => {
                refuse(output, option, reply::ERR_INVALID, "the option takes no data");
            }
            option::INFO | option::GO => {
                let chosen = information(option, data, exports, output);
                if let (Some(export), option::GO) = (chosen, option) {
                    return Ok(Next::Enter(used, self.agreed(export)));
                }
            }
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => {
                self.meta_context(option, data, exports, output);
            }
            _ => refuse(output, option, reply::ERR_UNSUP, "unknown option"),
        }
        Ok(Next::Used(used))
    }

    fn start_tls(&self, data: &[u8], output: &mut Output, used: usize) -> Next {
        let (kind, reason) = match self.tls {
            TlsPolicy::Off => (reply::ERR_POLICY, "this socket has no TLS"),
            TlsPolicy::Required if self.secure => (reply::ERR_INVALID, "TLS is on already"),
            TlsPolicy::Required if !data.is_empty() => {
                (reply::ERR_INVALID, "the option takes no data")
            }
            TlsPolicy::Required => {
                answer(output, option::STARTTLS, reply::ACK, &[]);
                return Next::StartTls(used);
            }
        };
        refuse(output, option::STARTTLS, kind, reason);
        Next::Used(used)
    }

    fn export_name(
        &self,
        name: &[u8],
        exports: &[Export],
        output: &mut Output,
    ) -> Result<Agreed, Violation> {
        let (index, export) = find(exports, name).ok_or(Violation::UnknownExport)?;
        output.put(&export.size_bytes.to_be_bytes());
        output.put(&transmission_flags(export).to_be_bytes());
        if !self.no_zeroes {
            output.put(&[0; 124]);
        }
        Ok(self.agreed(index))
    }

    fn agreed(&self, export: usize) -> Agreed {
        let allocation = self.structured && self.allocation_of == Some(export);
        Agreed { export, structured: self.structured, allocation }
    }

    fn meta_context(&mut self, option: u32, data: &[u8], exports: &[Export], output: &mut Output) {
        let sets = option == option::SET_META_CONTEXT;
        if sets {
            // Whatever comes of this, it replaces what was chosen before.
            self.allocation_of = None;
        }
        let Some((name, queries)) = queries(data) else {
            return refuse(output, option, reply::ERR_INVALID, "malformed queries");
        };
        if !self.structured {
            let reason = "structured replies must be negotiated first";
            return refuse(output, option, reply::ERR_INVALID, reason);
        }
        let Some((index, _)) = find(exports, name) else {
            return refuse(output, option, reply::ERR_UNKNOWN, "no such export");
        };
        let lists_all = !sets && queries.is_empty();
        let wanted = |query: &&[u8]| *query == CONTEXT || (!sets && *query == b"base:");
        if lists_all || queries.iter().any(wanted) {
            // A listing names contexts by no id.
            let id = if sets { CONTEXT_ID } else { 0 };
            answer(output, option, reply::META_CONTEXT, &[&id.to_be_bytes(), CONTEXT].concat());
            if sets {
                self.allocation_of = Some(index);
            }
        }
        answer(output, option, reply::ACK, &[]);
    }
}

/// The export's name and the queries of a meta context option.
fn queries(data: &[u8]) -> Option<(&[u8], Vec<&[u8]>)> {
    let mut fields = Fields(data);
    let name = fields.string()?;
    let count = fields.u32()?;
    // Each query takes 4 bytes or more of a short option, so this ends soon for any count.
    let queries = (0..count).map(|_| fields.string()).collect::<Option<Vec<_>>>()?;
    fields.is_empty().then_some((name, queries))
}

/// Answers INFO and GO. The export, if it is there.
fn information(option: u32, data: &[u8], exports: &[Export], output: &mut Output) -> Option<usize> {
    let mut fields = Fields(data);
    let parsed = (|| {
        let name = fields.string()?;
        let count = fields.u16()?;
        let wanted = (0..count).map(|_| fields.u16()).collect::<Option<Vec<_>>>()?;
        fields.is_empty().then_some((name, wanted))
    })();
    let Some((name, wanted)) = parsed else {
        refuse(output, option, reply::ERR_INVALID, "malformed request");
        return None;
    };
    let Some((index, export)) = find(exports, name) else {
        refuse(output, option, reply::ERR_UNKNOWN, "no such export");
        return None;
    };
    let mut tell = |kind: u16, parts: &[&[u8]]| {
        let body = [&kind.to_be_bytes()[..], &parts.concat()].concat();
        answer(output, option, reply::INFO, &body);
    };
    let (size, flags) = (export.size_bytes.to_be_bytes(), transmission_flags(export).to_be_bytes());
    tell(info::EXPORT, &[&size, &flags]);
    if wanted.contains(&info::NAME) {
        tell(info::NAME, &[export.name.as_bytes()]);
    }
    if wanted.contains(&info::DESCRIPTION) {
        tell(info::DESCRIPTION, &[export.description.as_bytes()]);
    }
    // Told whether or not it was asked for: who doesn't ask mostly keeps to whole sectors anyway.
    let sizes = [BLOCK_BYTES_MIN, BLOCK_BYTES_PREFERRED, BLOCK_BYTES_MAX].map(u32::to_be_bytes);
    tell(info::BLOCK_SIZE, &[sizes.as_flattened()]);
    answer(output, option, reply::ACK, &[]);
    Some(index)
}

fn find<'a>(exports: &'a [Export], name: &[u8]) -> Option<(usize, &'a Export)> {
    if name.len() > NAME_BYTES_MAX {
        return None;
    }
    exports.iter().enumerate().find(|(_, export)| export.name.as_bytes() == name)
}

/// One engine serves all connections, so a flush on one covers the writes of all: hence multi-conn.
fn transmission_flags(export: &Export) -> u16 {
    let always = transmission::HAS_FLAGS
        | transmission::SEND_FLUSH
        | transmission::SEND_DF
        | transmission::CAN_MULTI_CONN
        | transmission::SEND_CACHE;
    let writable = transmission::SEND_FUA
        | transmission::SEND_TRIM
        | transmission::SEND_WRITE_ZEROES
        | transmission::SEND_FAST_ZERO;
    if export.read_only { always | transmission::READ_ONLY } else { always | writable }
}

fn answer(output: &mut Output, option: u32, kind: u32, data: &[u8]) {
    output.put(&OPTION_REPLY_MAGIC.to_be_bytes());
    output.put(&option.to_be_bytes());
    output.put(&kind.to_be_bytes());
    output.put(&(data.len() as u32).to_be_bytes());
    output.put(data);
}

fn refuse(output: &mut Output, option: u32, kind: u32, reason: &str) {
    answer(output, option, kind, reason.as_bytes());
}
