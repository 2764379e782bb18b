//! The HTTP side: loopback only, a few connections at a time, every length and time bounded.
//!
//! Whoever opens many connections and says nothing, or a byte now and then, keeps nobody out: a new one
//! takes the place of the one that was served longest ago.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::client::locked;
use crate::embedded::Chain;
use crate::rpc::{Turns, answer};

/// The longest head of a request, in bytes, and the most header lines.
const HEAD_LEN_MAX: usize = 8 * 1024;
const HEADERS_MAX: usize = 64;
/// The longest body, in bytes: a transaction of the greatest length in hexadecimal, and some more.
const BODY_LEN_MAX: usize = 1024 * 1024;
/// Connections at a time, and with those that were turned away and are not gone yet.
const CONNECTIONS_MAX: usize = 16;
const THREADS_MAX: usize = 2 * CONNECTIONS_MAX;
/// How long nobody is let in when there is no room, or the system has no descriptor or thread left; and how
/// often one waits so for room.
const PAUSE: Duration = Duration::from_millis(10);
const PAUSES_MAX: usize = 100;
/// How long a peer may be silent, and how many requests a connection serves.
const SILENCE: Duration = Duration::from_secs(10);
const REQUESTS_MAX: usize = 10_000;

/// A server that runs until it is dropped.
pub struct Server {
    address: SocketAddr,
    stops: Arc<AtomicBool>,
    listener: Option<JoinHandle<()>>,
}

/// Why a server does not start.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The chain has no access control: whoever reaches it may send.
    #[error("{0} is not a loopback address; the chain is served on loopback only")]
    NotLoopback(IpAddr),
    /// The socket.
    #[error("the chain cannot be served on {address}: {source}")]
    Socket {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
}

impl Server {
    /// Serves a chain at a loopback address; port 0 takes a free one.
    ///
    /// # Errors
    /// [`ServerError`].
    pub fn start(chain: Arc<Mutex<Chain>>, address: SocketAddr) -> Result<Self, ServerError> {
        if !address.ip().is_loopback() {
            return Err(ServerError::NotLoopback(address.ip()));
        }
        let socket = |source| ServerError::Socket { address, source };
        let listener = TcpListener::bind(address).map_err(socket)?;
        let address = listener.local_addr().map_err(socket)?;
        let stops = Arc::new(AtomicBool::new(false));
        let thread = {
            let stops = Arc::clone(&stops);
            std::thread::spawn(move || listen(&listener, &chain, &stops))
        };
        Ok(Self { address, stops, listener: Some(thread) })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stops.store(true, Ordering::Release);
        // Wakes the listener, which looks whether to stop; refused if it has stopped by itself.
        drop(TcpStream::connect(self.address));
        if let Some(thread) = self.listener.take() {
            thread.join().ok();
        }
    }
}

/// The connections that are open.
#[derive(Default)]
struct Lines {
    open: usize,
    /// How often a peer's turn has begun.
    turns: u64,
    /// Those whose peer is to speak or to listen, the one that was served longest ago first.
    waiting: BTreeMap<u64, TcpStream>,
}

/// An open connection. Its place is free when this is dropped.
struct Line {
    lines: Arc<Mutex<Lines>>,
    turn: u64,
}

impl Line {
    /// A place for one more, if need be that of another; `None` if all are being answered.
    fn open(lines: &Arc<Mutex<Lines>>) -> Option<Self> {
        let mut all = locked(lines);
        if all.open >= THREADS_MAX {
            return None;
        }
        if all.open >= CONNECTIONS_MAX {
            let (_, oldest) = all.waiting.pop_first()?;
            // Its thread sees the end; one that is gone already needs none.
            oldest.shutdown(Shutdown::Both).ok();
        }
        all.open += 1;
        Some(Self { lines: Arc::clone(lines), turn: 0 })
    }

    /// It is its peer's turn: until that has said or taken all, the connection may be turned away.
    fn wait(&mut self, stream: TcpStream) {
        let mut all = locked(&self.lines);
        all.turns += 1;
        self.turn = all.turns;
        all.waiting.insert(self.turn, stream);
    }

    /// Its question is answered now; `None` if it was turned away.
    fn answer(&mut self) -> Option<TcpStream> {
        locked(&self.lines).waiting.remove(&self.turn)
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let mut all = locked(&self.lines);
        all.waiting.remove(&self.turn);
        all.open -= 1;
    }
}

fn listen(listener: &TcpListener, chain: &Arc<Mutex<Chain>>, stops: &Arc<AtomicBool>) {
    let (lines, turns) = (Arc::default(), Arc::new(Turns::default()));
    for stream in listener.incoming() {
        if stops.load(Ordering::Acquire) {
            return;
        }
        // A connection that was reset before it was accepted, or no descriptor left for a moment.
        let Ok(mut stream) = stream else {
            std::thread::sleep(PAUSE);
            continue;
        };
        let Some(line) = (0..PAUSES_MAX).find_map(|_| {
            let line = Line::open(&lines);
            if line.is_none() {
                // Those that were turned away are about to go.
                std::thread::sleep(PAUSE);
            }
            line
        }) else {
            // The peer may be gone; then nobody needs to hear it.
            respond(&mut stream, "503 Service Unavailable", b"").ok();
            continue;
        };
        let (chain, turns, stops) = (Arc::clone(chain), Arc::clone(&turns), Arc::clone(stops));
        let started = std::thread::Builder::new().spawn(move || {
            // A peer that breaks the protocol or goes away ends its own connection only.
            serve(stream, line, (&chain, &turns), &stops).ok();
        });
        if started.is_err() {
            std::thread::sleep(PAUSE);
        }
    }
}

fn serve(
    mut stream: TcpStream,
    mut line: Line,
    (chain, turns): (&Mutex<Chain>, &Turns),
    stops: &AtomicBool,
) -> std::io::Result<()> {
    stream.set_read_timeout(Some(SILENCE))?;
    stream.set_write_timeout(Some(SILENCE))?;
    stream.set_nodelay(true)?;
    line.wait(stream.try_clone()?);
    let mut buffer = Vec::new();
    for _ in 0..REQUESTS_MAX {
        let request = read_request(&mut stream, &mut buffer)?;
        let Some(handle) = line.answer() else { return Ok(()) };
        match request {
            Request::Body(body) => {
                let answer = answer(chain, turns, &body).map(|answer| answer.to_string());
                line.wait(handle);
                respond(&mut stream, "200 OK", answer.unwrap_or_default().as_bytes())?;
            }
            Request::Wrong(status) => return respond(&mut stream, status, b""),
            Request::End => return Ok(()),
        }
        if stops.load(Ordering::Acquire) {
            return Ok(());
        }
    }
    Ok(())
}

/// What came over a connection.
#[derive(Debug, PartialEq, Eq)]
enum Request {
    Body(Vec<u8>),
    /// Not what is served: the status line's end.
    Wrong(&'static str),
    End,
}

/// What the head of a request says.
#[derive(Debug, PartialEq, Eq)]
enum Head {
    Incomplete,
    Wrong(&'static str),
    Complete { head_len: usize, body_len: usize },
}

fn read_request(stream: &mut impl Read, buffer: &mut Vec<u8>) -> std::io::Result<Request> {
    let mut head = Head::Incomplete;
    loop {
        // A complete one is read once, however slowly its body comes.
        if head == Head::Incomplete {
            head = parse_head(buffer);
        }
        match head {
            Head::Wrong(status) => return Ok(Request::Wrong(status)),
            Head::Complete { head_len, body_len } if buffer.len() >= head_len + body_len => {
                let rest = buffer.split_off(head_len + body_len);
                let body = buffer.split_off(head_len);
                *buffer = rest;
                return Ok(Request::Body(body));
            }
            Head::Complete { .. } | Head::Incomplete => {}
        }
        let mut chunk = [0; 16 * 1024];
        let len = stream.read(&mut chunk)?;
        if len == 0 {
            return Ok(Request::End);
        }
        buffer.extend_from_slice(chunk.get(..len).unwrap_or_default());
    }
}

fn parse_head(buffer: &[u8]) -> Head {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    let head_len = match request.parse(buffer) {
        Ok(httparse::Status::Complete(len)) if len <= HEAD_LEN_MAX => len,
        Ok(httparse::Status::Partial) if buffer.len() < HEAD_LEN_MAX => return Head::Incomplete,
        Ok(_) => return Head::Wrong("431 Request Header Fields Too Large"),
        Err(_) => return Head::Wrong("400 Bad Request"),
    };
    // A browser's page may post to loopback, but not without saying where it is from.
    let has = |name: &str| request.headers.iter().any(|it| it.name.eq_ignore_ascii_case(name));
    let is_elsewhere = |host: &httparse::Header<'_>| {
        host.name.eq_ignore_ascii_case("host") && !is_here(host.value)
    };
    if has("origin") || request.headers.iter().any(is_elsewhere) {
        return Head::Wrong("403 Forbidden");
    }
    if request.method != Some("POST") {
        return Head::Wrong("405 Method Not Allowed");
    }
    if has("transfer-encoding") {
        return Head::Wrong("411 Length Required");
    }
    let mut lengths =
        request.headers.iter().filter(|it| it.name.eq_ignore_ascii_case("content-length"));
    let length = lengths.next().and_then(|header| std::str::from_utf8(header.value).ok());
    let digits = length.filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    match (digits.and_then(|text| text.parse::<usize>().ok()), lengths.next()) {
        (Some(body_len), None) if body_len <= BODY_LEN_MAX => Head::Complete { head_len, body_len },
        (Some(_), None) => Head::Wrong("413 Content Too Large"),
        _ => Head::Wrong("411 Length Required"),
    }
}

/// Whether a `Host` is an address or `localhost`. A name of somebody else's that leads to loopback is how a
/// browser is made to take this for that somebody's own.
fn is_here(host: &[u8]) -> bool {
    let Ok(host) = std::str::from_utf8(host) else { return false };
    let is_port = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
    let name = host.rsplit_once(':').filter(|(_, port)| is_port(port)).map_or(host, |(it, _)| it);
    let address = name.strip_prefix('[').and_then(|it| it.strip_suffix(']')).unwrap_or(name);
    name.eq_ignore_ascii_case("localhost") || address.parse::<IpAddr>().is_ok()
}

fn respond(stream: &mut TcpStream, status: &str, body: &[u8]) -> std::io::Result<()> {
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(&[head.as_bytes(), body].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Request {
        read_request(&mut &*bytes, &mut Vec::new()).unwrap()
    }

    #[test]
    fn two_requests_in_one_packet_are_two() {
        let bytes = b"POST / HTTP/1.1\r\ncontent-length: 2\r\n\r\nabPOST / HTTP/1.1\r\n\
            Content-Length: 1\r\n\r\nc";
        let mut stream = bytes.as_slice();
        let mut buffer = Vec::new();
        for body in [b"ab".as_slice(), b"c"] {
            let request = read_request(&mut stream, &mut buffer).unwrap();
            assert_eq!(request, Request::Body(body.to_vec()));
        }
        assert_eq!(read_request(&mut stream, &mut buffer).unwrap(), Request::End);
    }

    #[test]
    fn what_is_not_served_is_refused_by_its_reason() {
        let cases: [(&[u8], &str); 9] = [
            (b"GET / HTTP/1.1\r\n\r\n", "405"),
            (b"POST / HTTP/1.1\r\n\r\n", "411"),
            (b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n", "411"),
            (b"POST / HTTP/1.1\r\ncontent-length: 99999999\r\n\r\n", "413"),
            (b"POST / HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n", "411"),
            (b"POST / HTTP/1.1\r\norigin: http://x\r\ncontent-length: 1\r\n\r\n", "403"),
            (b"POST / HTTP/1.1\r\nhost: evil.example:8545\r\ncontent-length: 1\r\n\r\n", "403"),
            (b"POST / HTTP/1.1\r\nhost: ::1\r\nHost: evil\r\ncontent-length: 1\r\n\r\n", "403"),
            (b"\x00\x01\x02\r\n\r\n", "400"),
        ];
        for (bytes, status) in cases {
            let request = read(bytes);
            assert!(matches!(request, Request::Wrong(it) if it.starts_with(status)), "{request:?}");
        }
        let long = [b"POST / HTTP/1.1\r\nx: ".as_slice(), &[b'a'; HEAD_LEN_MAX]].concat();
        assert!(matches!(read(&long), Request::Wrong(it) if it.starts_with("431")));
    }

    #[test]
    fn an_address_is_a_host_and_a_strangers_name_is_none() {
        for host in
            ["127.0.0.1", "127.0.0.1:8545", "localhost", "LocalHost:1", "[::1]:8545", "[::1]"]
        {
            assert!(is_here(host.as_bytes()), "{host}");
        }
        for host in ["", ":8545", "evil.example", "localhost.evil:80", "127.0.0.1.evil", "\u{e4}"] {
            assert!(!is_here(host.as_bytes()), "{host}");
        }
    }

    #[test]
    fn a_request_that_ends_early_is_no_request() {
        let whole = b"POST / HTTP/1.1\r\ncontent-length: 2\r\n\r\nab";
        for len in 0..whole.len() {
            assert_eq!(read(&whole[..len]), Request::End, "{len} bytes");
        }
    }
}
