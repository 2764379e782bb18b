//! HTTP/1.1 as `kv` speaks it (RFC 9110, RFC 9112): bytes in, requests out; no sockets here.

use alloc::rc::Rc;
use alloc::vec::Vec;
use core::fmt::Write as _;

use super::format::{KEY_BYTES_MAX, VALUE_BYTES_MAX};

/// The most bytes of a request line and headers.
pub const HEAD_BYTES_MAX: usize = 8 << 10;
/// The most headers.
const HEADERS_MAX: usize = 64;
/// How many keys a list gives if it isn't told.
const LIST_LIMIT_DEFAULT: usize = 1_000;
/// How many keys a list gives at most.
const LIST_LIMIT_MAX: usize = 10_000;

/// The status codes that `kv` answers with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
#[expect(missing_docs, reason = "each is the status of its name in RFC 9110")]
pub enum Status {
    Ok = 200,
    Created = 201,
    NoContent = 204,
    BadRequest = 400,
    NotFound = 404,
    MethodNotAllowed = 405,
    RequestTimeout = 408,
    LengthRequired = 411,
    ContentTooLarge = 413,
    UriTooLong = 414,
    ExpectationFailed = 417,
    HeaderFieldsTooLarge = 431,
    InternalServerError = 500,
    NotImplemented = 501,
    ServiceUnavailable = 503,
    VersionNotSupported = 505,
    InsufficientStorage = 507,
}

impl Status {
    /// The reason phrase.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::Ok => "OK",
            Self::Created => "Created",
            Self::NoContent => "No Content",
            Self::BadRequest => "Bad Request",
            Self::NotFound => "Not Found",
            Self::MethodNotAllowed => "Method Not Allowed",
            Self::RequestTimeout => "Request Timeout",
            Self::LengthRequired => "Length Required",
            Self::ContentTooLarge => "Content Too Large",
            Self::UriTooLong => "URI Too Long",
            Self::ExpectationFailed => "Expectation Failed",
            Self::HeaderFieldsTooLarge => "Request Header Fields Too Large",
            Self::InternalServerError => "Internal Server Error",
            Self::NotImplemented => "Not Implemented",
            Self::ServiceUnavailable => "Service Unavailable",
            Self::VersionNotSupported => "HTTP Version Not Supported",
            Self::InsufficientStorage => "Insufficient Storage",
        }
    }
}

/// What a request wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// `PUT /kv/<key>`
    Put(Rc<[u8]>),
    /// `GET /kv/<key>`, `HEAD /kv/<key>`
    Get(Rc<[u8]>),
    /// `DELETE /kv/<key>`
    Delete(Rc<[u8]>),
    /// `GET /kv?prefix=&after=&limit=`
    List {
        /// Keys that begin with this,
        prefix: Vec<u8>,
        /// and come after this,
        after: Option<Vec<u8>>,
        /// so many at most.
        limit: usize,
    },
    /// `GET /stats`
    Stats,
    /// A request that is well-formed and can't be served: its body is skipped, the connection
    /// lives on.
    Refuse(Status),
}

/// A request without its body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// What it wants.
    pub action: Action,
    /// Whether the answer has no body whatever it is (HEAD).
    pub head_only: bool,
    /// The length of the body that follows.
    pub body_len: usize,
    /// Whether the client waits for `100 Continue` before it sends the body.
    pub expects_continue: bool,
    /// Whether the connection goes on after the answer.
    pub keep_alive: bool,
}

/// Parses the request at the start of `bytes`. Returns it with the length of its head, or `None`
/// if there is no whole head yet.
///
/// # Errors
/// The status to answer with before the connection is closed: where the next request begins is
/// not known, or not to be trusted.
pub fn parse(bytes: &[u8]) -> Result<Option<(Request, usize)>, Status> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut parsed = httparse::Request::new(&mut headers);
    let window = bytes.get(..HEAD_BYTES_MAX).unwrap_or(bytes);
    let head_len = match parsed.parse(window) {
        Ok(httparse::Status::Complete(head_len)) => head_len,
        Ok(httparse::Status::Partial) if window.len() < HEAD_BYTES_MAX => return Ok(None),
        Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
            return Err(Status::HeaderFieldsTooLarge);
        }
        Err(httparse::Error::Version) => return Err(Status::VersionNotSupported),
        Err(_) => return Err(Status::BadRequest),
    };
    let (Some(method), Some(target), Some(version)) = (parsed.method, parsed.path, parsed.version)
    else {
        return Err(Status::BadRequest);
    };
    let framing = Framing::parse(parsed.headers, version == 1)?;
    let mut action = action(method, target)?;
    if framing.body_len > VALUE_BYTES_MAX {
        // Skipping that much is not worth it.
        return Err(Status::ContentTooLarge);
    }
    if matches!(action, Action::Put(_)) && !framing.has_length {
        action = Action::Refuse(Status::LengthRequired);
    }
    let request = Request {
        action,
        head_only: method == "HEAD",
        body_len: framing.body_len,
        expects_continue: framing.expects_continue,
        keep_alive: framing.keep_alive,
    };
    Ok(Some((request, head_len)))
}

/// What the headers say about where the message ends and what comes after it.
struct Framing {
    has_length: bool,
    body_len: usize,
    expects_continue: bool,
    keep_alive: bool,
}

impl Framing {
    fn parse(headers: &[httparse::Header<'_>], is_1_1: bool) -> Result<Self, Status> {
        let mut length: Option<usize> = None;
        let mut framing =
            Self { has_length: false, body_len: 0, expects_continue: false, keep_alive: is_1_1 };
        let mut hosts = 0;
        for header in headers {
            let value = header.value.trim_ascii();
            if header.name.eq_ignore_ascii_case("content-length") {
                let len = content_length(value).ok_or(Status::BadRequest)?;
                // Two different lengths are how requests are smuggled (RFC 9112 §6.3).
                if length.is_some_and(|other| other != len) {
                    return Err(Status::BadRequest);
                }
                length = Some(len);
            } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
                return Err(Status::NotImplemented);
            } else if header.name.eq_ignore_ascii_case("expect") {
                if !value.eq_ignore_ascii_case(b"100-continue") {
                    return Err(Status::ExpectationFailed);
                }
                framing.expects_continue = is_1_1;
            } else if header.name.eq_ignore_ascii_case("connection") {
                for option in value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
                    if option.eq_ignore_ascii_case(b"close") {
                        framing.keep_alive = false;
                    } else if option.eq_ignore_ascii_case(b"keep-alive") && !is_1_1 {
                        framing.keep_alive = true;
                    }
                }
            } else if header.name.eq_ignore_ascii_case("host") {
                hosts += 1;
            }
        }
        if hosts > 1 || (is_1_1 && hosts == 0) {
            return Err(Status::BadRequest);
        }
        framing.has_length = length.is_some();
        framing.body_len = length.unwrap_or(0);
        framing.expects_continue &= framing.body_len > 0;
        Ok(framing)
    }
}

/// Digits only: no sign, no list, nothing that another parser might read differently.
fn content_length(value: &[u8]) -> Option<usize> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    // A length beyond the address space is a length beyond every limit.
    Some(core::str::from_utf8(value).ok()?.parse().unwrap_or(usize::MAX))
}

fn action(method: &str, target: &str) -> Result<Action, Status> {
    let target = origin_form(target)?;
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target, None),
    };
    let is_read = matches!(method, "GET" | "HEAD");
    Ok(match path {
        "/stats" if is_read => Action::Stats,
        "/kv" | "/kv/" if is_read => list(query.unwrap_or(""))?,
        "/stats" | "/kv" | "/kv/" => Action::Refuse(Status::MethodNotAllowed),
        _ => match path.strip_prefix("/kv/") {
            Some(key) => keyed(method, key)?,
            None => Action::Refuse(Status::NotFound),
        },
    })
}

fn keyed(method: &str, key: &str) -> Result<Action, Status> {
    let key = percent_decode(key).ok_or(Status::BadRequest)?;
    if key.len() > KEY_BYTES_MAX {
        return Ok(Action::Refuse(Status::UriTooLong));
    }
    let key = Rc::from(key);
    Ok(match method {
        "PUT" => Action::Put(key),
        "GET" | "HEAD" => Action::Get(key),
        "DELETE" => Action::Delete(key),
        _ => Action::Refuse(Status::MethodNotAllowed),
    })
}

/// The path of a target in origin form or absolute form (RFC 9112 §3.2).
fn origin_form(target: &str) -> Result<&str, Status> {
    if target.starts_with('/') {
        return Ok(target);
    }
    let rest = target.strip_prefix("http://").ok_or(Status::BadRequest)?;
    rest.find('/').and_then(|at| rest.get(at..)).ok_or(Status::NotFound)
}

fn list(query: &str) -> Result<Action, Status> {
    let (mut prefix, mut after, mut limit) = (Vec::new(), None, LIST_LIMIT_DEFAULT);
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = percent_decode(value).ok_or(Status::BadRequest)?;
        match name {
            "prefix" => prefix = value,
            "after" => after = Some(value),
            "limit" => {
                let text = core::str::from_utf8(&value).map_err(|_| Status::BadRequest)?;
                limit = text.parse::<usize>().map_err(|_| Status::BadRequest)?.min(LIST_LIMIT_MAX);
            }
            _ => return Err(Status::BadRequest),
        }
    }
    Ok(Action::List { prefix, after, limit })
}

/// Decodes `%xx`; `None` if a `%` isn't followed by two hexadecimal digits.
#[must_use]
pub fn percent_decode(text: &str) -> Option<Vec<u8>> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let mut digit = || char::from(bytes.next()?).to_digit(16);
        let (high, low) = (digit()?, digit()?);
        decoded.push((high << 4 | low) as u8);
    }
    Some(decoded)
}

/// Appends `bytes` to `text` with everything but unreserved characters (RFC 3986 §2.3) as `%xx`.
pub fn percent_encode(bytes: &[u8], text: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    for byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(byte) {
            text.push(*byte);
        } else {
            let digit = |nibble: u8| DIGITS.get(usize::from(nibble)).copied().unwrap_or(b'0');
            text.extend_from_slice(&[b'%', digit(byte >> 4), digit(byte & 15)]);
        }
    }
}

/// An answer's body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// None (204, or a status whose name says it all).
    Empty,
    /// A value.
    Value(Rc<[u8]>),
    /// Text that was made for the answer, with its media type.
    Text(&'static str, Vec<u8>),
}

/// What a client gets who waits with its body (RFC 9110 §10.1.1).
pub const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// Appends an answer to `out`.
pub fn respond(out: &mut Vec<u8>, status: Status, body: &Body, head_only: bool, keep_alive: bool) {
    let (media_type, bytes): (_, &[u8]) = match body {
        Body::Empty => ("", &[]),
        Body::Value(value) => ("application/octet-stream", value),
        Body::Text(media_type, text) => (*media_type, text),
    };
    let mut text = HeadWriter(out);
    // Writing to memory does not fail.
    let mut written = write!(text, "HTTP/1.1 {} {}\r\n", status as u16, status.reason());
    if status != Status::NoContent {
        written = written.and(write!(text, "Content-Length: {}\r\n", bytes.len()));
    }
    if !media_type.is_empty() {
        written = written.and(write!(text, "Content-Type: {media_type}\r\n"));
    }
    if status == Status::MethodNotAllowed {
        written = written.and(write!(text, "Allow: GET, HEAD, PUT, DELETE\r\n"));
    }
    if !keep_alive {
        written = written.and(write!(text, "Connection: close\r\n"));
    }
    debug_assert!(written.is_ok());
    out.extend_from_slice(b"\r\n");
    if !head_only {
        out.extend_from_slice(bytes);
    }
}

struct HeadWriter<'a>(&'a mut Vec<u8>);

impl core::fmt::Write for HeadWriter<'_> {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        self.0.extend_from_slice(text.as_bytes());
        Ok(())
    }
}

#[cfg(test)]
mod tests;
