//! An HTTP client that survives a server that dies and comes back.

use alloc::vec::Vec;

use smoltcp::wire::IpEndpoint;

use crate::net::tcp::{BufferSizes, TcpStream};
use crate::net::{Net, NetError};
use crate::task::Executor;

const BUFFERS: BufferSizes = BufferSizes { receive_bytes: 64 << 10, transmit_bytes: 64 << 10 };
/// How long a connection may take at first; doubled after each failure. The stack repeats a lost
/// SYN only after a second, and the first is often lost while the mesh makes its session.
const CONNECT_NS_MIN: u64 = 250_000_000;
const CONNECT_NS_MAX: u64 = 2_000_000_000;
/// How long an answer may take at first; doubled after each failure, in case the server is slow. A
/// server that was killed sends neither FIN nor RST: only silence tells.
const ANSWER_NS_MIN: u64 = 1_000_000_000;
const ANSWER_NS_MAX: u64 = 8_000_000_000;
const BACK_OFF_NS_MIN: u64 = 20_000_000;
const BACK_OFF_NS_MAX: u64 = 500_000_000;
/// The most of an answer's head.
const HEAD_BYTES_MAX: usize = 8 << 10;
/// The most of an answer's body.
const BODY_BYTES_MAX: usize = 2 << 20;
const HEADERS_MAX: usize = 32;

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// The body.
    pub body: Vec<u8>,
}

/// The server has not answered for as long as the client is patient.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GaveUp;

/// One connection at a time to one server; reconnects when it breaks.
pub struct Client {
    executor: Executor,
    net: Net,
    target: IpEndpoint,
    patience_ns: u64,
    stream: Option<TcpStream>,
    input: Vec<u8>,
    connect_ns: u64,
    answer_ns: u64,
    /// How many connections were opened.
    pub connects: u64,
}

impl Client {
    /// A client of `target` that gives up when nothing has succeeded for `patience_ns`.
    #[must_use]
    pub fn new(executor: Executor, net: Net, target: IpEndpoint, patience_ns: u64) -> Self {
        Self {
            executor,
            net,
            target,
            patience_ns,
            stream: None,
            input: Vec::new(),
            connect_ns: CONNECT_NS_MIN,
            answer_ns: ANSWER_NS_MIN,
            connects: 0,
        }
    }

    /// Sends `request` (an idempotent one: it's sent again if its fate is unknown) until it's
    /// answered with something else than 503.
    ///
    /// # Errors
    /// [`GaveUp`].
    pub async fn request(&mut self, request: &[u8]) -> Result<Response, GaveUp> {
        let give_up_ns = self.executor.now_ns().saturating_add(self.patience_ns);
        let mut back_off_ns = BACK_OFF_NS_MIN;
        loop {
            match self.attempt(request).await {
                Ok(response) if response.status != 503 => {
                    self.answer_ns = ANSWER_NS_MIN;
                    return Ok(response);
                }
                Ok(_) => {}
                Err(_) => self.disconnect(),
            }
            if self.executor.now_ns() >= give_up_ns {
                return Err(GaveUp);
            }
            self.executor.sleep(back_off_ns).await;
            back_off_ns = (back_off_ns * 2).min(BACK_OFF_NS_MAX);
        }
    }

    fn disconnect(&mut self) {
        self.input.clear();
        if let Some(stream) = self.stream.take() {
            self.answer_ns = (self.answer_ns * 2).min(ANSWER_NS_MAX);
            stream.abort();
        }
    }

    async fn attempt(&mut self, request: &[u8]) -> Result<Response, NetError> {
        if self.stream.is_none() {
            let connect = TcpStream::connect(&self.net, self.target, BUFFERS);
            let connected = self.executor.timeout(self.connect_ns, connect).await;
            self.connect_ns = (self.connect_ns * 2).min(CONNECT_NS_MAX);
            self.stream = Some(connected.unwrap_or(Err(NetError::Reset))?);
            self.connect_ns = CONNECT_NS_MIN;
            self.connects += 1;
        }
        let Some(stream) = &mut self.stream else { return Err(NetError::Closed) };
        let exchange = exchange(stream, &mut self.input, request);
        self.executor.timeout(self.answer_ns, exchange).await.unwrap_or(Err(NetError::Reset))
    }
}

async fn exchange(
    stream: &mut TcpStream,
    input: &mut Vec<u8>,
    request: &[u8],
) -> Result<Response, NetError> {
    stream.write_all(request).await?;
    loop {
        if let Some((response, len)) = parse(input).map_err(|()| NetError::Reset)? {
            input.drain(..len);
            return Ok(response);
        }
        if stream.read(input, 64 << 10).await? == 0 {
            return Err(NetError::Reset);
        }
    }
}

/// The answer at the start of `bytes` and its length, or `None` if it isn't whole yet.
fn parse(bytes: &[u8]) -> Result<Option<(Response, usize)>, ()> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut parsed = httparse::Response::new(&mut headers);
    let head_len = match parsed.parse(bytes).map_err(drop)? {
        httparse::Status::Complete(head_len) => head_len,
        httparse::Status::Partial if bytes.len() < HEAD_BYTES_MAX => return Ok(None),
        httparse::Status::Partial => return Err(()),
    };
    let status = parsed.code.ok_or(())?;
    let length = parsed.headers.iter().find(|h| h.name.eq_ignore_ascii_case("content-length"));
    let body_len = match length {
        None if status == 204 => 0,
        None => return Err(()),
        Some(header) => {
            let text = core::str::from_utf8(header.value).map_err(drop)?;
            text.parse::<usize>().map_err(drop)?
        }
    };
    if body_len > BODY_BYTES_MAX {
        return Err(());
    }
    let end = head_len + body_len;
    Ok(bytes.get(head_len..end).map(|body| (Response { status, body: body.to_vec() }, end)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_found_when_it_is_whole() {
        let bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcHTTP/1.1 ";
        for cut in 0..bytes.len() {
            let found = parse(&bytes[..cut]).unwrap();
            assert_eq!(found.is_some(), cut >= 41, "{cut}");
        }
        let (response, len) = parse(bytes).unwrap().unwrap();
        assert_eq!((response.status, &response.body[..], len), (200, &b"abc"[..], 41));
        let empty = b"HTTP/1.1 204 No Content\r\n\r\n";
        assert_eq!(parse(empty).unwrap().unwrap().1, empty.len());
    }

    #[test]
    fn an_answer_without_an_end_is_refused() {
        for bytes in [
            &b"HTTP/1.1 200 OK\r\n\r\n"[..],
            b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n",
            b"nonsense\r\n\r\n",
            &[b'a'; 9000],
        ] {
            assert_eq!(parse(bytes), Err(()));
        }
    }
}
