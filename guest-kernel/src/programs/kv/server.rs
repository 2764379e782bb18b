//! The server: one task per connection, answers in the order of the requests.
//!
//! A request that arrives in one wait is answered in the next: a cached GET costs the VM one exit,
//! a PUT two (the second waits for the disk). Pipelined requests share them.

use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::Cell;
use core::fmt;

use super::format::KEY_BYTES_MAX;
use super::http::{self, Action, Body, HEAD_BYTES_MAX, Request, Status};
use super::store::{Change, Store, StoreError};
use crate::net::tcp::{BufferSizes, TcpListener, TcpStream};
use crate::net::{Net, NetError};
use crate::task::Executor;

/// How the server is set up.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// The TCP port.
    pub port: u16,
    /// How many connections are served at once; more wait in the backlog.
    pub connections_max: usize,
    /// How many bytes of bodies may be on their way in at once.
    pub body_bytes_max: usize,
}

/// A connection that says nothing for so long is closed.
const IDLE_NS: u64 = 60_000_000_000;
/// Connections that are not accepted yet.
const BACKLOG: usize = 8;
const BUFFERS: BufferSizes = BufferSizes { receive_bytes: 64 << 10, transmit_bytes: 64 << 10 };
/// Answers are written when there are so many bytes of them, or nothing more to answer.
const WRITE_BYTES: usize = 32 << 10;
/// How much is read at once while a head is expected.
const READ_BYTES: usize = 16 << 10;

/// What the server counts, and where it gets the figures of `/stats`.
pub struct Server {
    executor: Executor,
    store: Store,
    settings: Settings,
    exits: fn() -> u64,
    started_ns: u64,
    requests: Cell<u64>,
    connections: Cell<usize>,
    body_bytes: Cell<usize>,
}

impl Server {
    /// A server of `store`; `exits` tells how often the vCPU has left the guest.
    #[must_use]
    pub fn new(
        executor: Executor,
        store: Store,
        settings: Settings,
        exits: fn() -> u64,
    ) -> Rc<Self> {
        let started_ns = executor.now_ns();
        Rc::new(Self {
            executor,
            store,
            settings,
            exits,
            started_ns,
            requests: Cell::new(0),
            connections: Cell::new(0),
            body_bytes: Cell::new(0),
        })
    }

    /// Serves for ever.
    ///
    /// # Errors
    /// The port can't be listened on.
    pub async fn run(self: Rc<Self>, net: Net) -> Result<(), NetError> {
        let mut listener = TcpListener::bind(&net, self.settings.port, BACKLOG, BUFFERS)?;
        loop {
            while self.connections.get() >= self.settings.connections_max {
                // Rare, and a client that waits is better off than one that is refused.
                self.executor.sleep(10_000_000).await;
            }
            let stream = listener.accept().await;
            self.connections.set(self.connections.get() + 1);
            let server = Rc::clone(&self);
            drop(self.executor.spawn(async move {
                Connection::new(&server, stream).serve().await;
                server.connections.set(server.connections.get() - 1);
            }));
        }
    }

    async fn answer(&self, request: &Request, body: Vec<u8>) -> (Status, Body) {
        self.requests.set(self.requests.get() + 1);
        match &request.action {
            Action::Put(key) => match self.store.put(Rc::clone(key), Rc::from(body)).await {
                Ok(Change::Created) => (Status::Created, Body::Empty),
                Ok(_) => (Status::NoContent, Body::Empty),
                Err(error) => failure(error),
            },
            Action::Get(key) => match self.store.get(key).await {
                Ok(Some(value)) => (Status::Ok, Body::Value(value)),
                Ok(None) => (Status::NotFound, Body::Empty),
                Err(error) => failure(error),
            },
            Action::Delete(key) => match self.store.delete(Rc::clone(key)).await {
                Ok(Change::Absent) => (Status::NotFound, Body::Empty),
                Ok(_) => (Status::NoContent, Body::Empty),
                Err(error) => failure(error),
            },
            Action::List { prefix, after, limit } => {
                let keys = self.store.list(prefix, after.as_deref(), *limit);
                let mut text = Vec::with_capacity(keys.len() * 16);
                for key in keys {
                    http::percent_encode(&key, &mut text);
                    text.push(b'\n');
                }
                (Status::Ok, Body::Text("text/plain", text))
            }
            Action::Stats => {
                (Status::Ok, Body::Text("application/json", alloc::format!("{self}\n").into()))
            }
            Action::Refuse(status) => (*status, Body::Empty),
        }
    }
}

/// The JSON of `/stats`.
impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let usage = self.store.usage();
        write!(
            f,
            "{{\"requests\":{},\"exits\":{},\"bytes_used\":{},\"bytes_max\":{},\
             \"live_keys\":{},\"connections\":{},\"uptime_ms\":{}}}",
            self.requests.get(),
            (self.exits)(),
            usage.live_bytes,
            usage.live_bytes_max,
            usage.keys,
            self.connections.get(),
            (self.executor.now_ns() - self.started_ns) / 1_000_000,
        )
    }
}

fn failure(error: StoreError) -> (Status, Body) {
    let status = match error {
        StoreError::Full => Status::InsufficientStorage,
        StoreError::Disk(_) | StoreError::Corrupt => Status::InternalServerError,
    };
    (status, Body::Text("text/plain", alloc::format!("{error}\n").into()))
}

/// Why a connection is over.
enum End {
    /// The peer has gone, or says nothing.
    Gone,
    /// Its bytes make no sense any more: it gets this status and is closed.
    Refused(Status),
}

impl From<NetError> for End {
    fn from(_: NetError) -> Self {
        Self::Gone
    }
}

struct Connection<'a> {
    server: &'a Server,
    stream: TcpStream,
    /// What has arrived and is not consumed yet.
    input: Vec<u8>,
    /// Answers that are not written yet.
    output: Vec<u8>,
}

impl<'a> Connection<'a> {
    fn new(server: &'a Server, stream: TcpStream) -> Self {
        Self { server, stream, input: Vec::new(), output: Vec::new() }
    }

    /// Serves until either side has enough. A connection that breaks is its client's affair.
    async fn serve(mut self) {
        loop {
            match self.exchange().await {
                Ok(true) => {}
                Ok(false) => break,
                Err(End::Gone) => return,
                Err(End::Refused(status)) => {
                    http::respond(&mut self.output, status, &Body::Empty, false, false);
                    break;
                }
            }
        }
        if self.write().await.is_ok() {
            self.stream.close();
            self.drain().await;
        }
    }

    /// One request and its answer. Returns whether the connection goes on.
    async fn exchange(&mut self) -> Result<bool, End> {
        let (request, head_len) = loop {
            match http::parse(&self.input).map_err(End::Refused)? {
                Some(found) => break found,
                None => self.read(READ_BYTES).await?,
            }
        };
        self.input.drain(..head_len);
        let reserved =
            self.reserve(request.body_len).ok_or(End::Refused(Status::ServiceUnavailable))?;
        // A client that has begun to send doesn't wait (RFC 9110 §10.1.1).
        if request.expects_continue && self.input.is_empty() {
            if let Action::Refuse(status) = request.action {
                return Err(End::Refused(status));
            }
            self.output.extend_from_slice(http::CONTINUE);
            self.write().await?;
        }
        while self.input.len() < request.body_len {
            let missing = request.body_len - self.input.len();
            self.read(missing).await?;
        }
        let rest = self.input.split_off(request.body_len);
        let body = core::mem::replace(&mut self.input, rest);
        let (status, answer) = self.server.answer(&request, body).await;
        drop(reserved);
        let keep_alive = request.keep_alive;
        http::respond(&mut self.output, status, &answer, request.head_only, keep_alive);
        // More requests may be here already: their answers go out together.
        if self.output.len() >= WRITE_BYTES || self.input.is_empty() {
            self.write().await?;
        }
        Ok(keep_alive)
    }

    /// Waits for more input, and answers what is answered first.
    async fn read(&mut self, bytes_max: usize) -> Result<(), End> {
        self.write().await?;
        let read = self.stream.read(&mut self.input, bytes_max);
        match self.server.executor.timeout(IDLE_NS, read).await {
            Some(Ok(0)) | None if self.input.is_empty() => Err(End::Gone),
            // In the middle of a request.
            Some(Ok(0)) | None => Err(End::Refused(Status::RequestTimeout)),
            Some(Ok(_)) => Ok(()),
            Some(Err(error)) => Err(error.into()),
        }
    }

    async fn write(&mut self) -> Result<(), NetError> {
        if self.output.is_empty() {
            return Ok(());
        }
        let write = self.stream.write_all(&self.output);
        let written = self.server.executor.timeout(IDLE_NS, write).await;
        self.output.clear();
        written.unwrap_or(Err(NetError::Reset))
    }

    /// Reads a little of what the client still sends, so that the answer isn't lost to the reset
    /// that unread bytes would cause (RFC 9112 §9.6).
    async fn drain(&mut self) {
        let mut left = 2 * (KEY_BYTES_MAX + HEAD_BYTES_MAX) + (64 << 10);
        while left > 0 {
            self.input.clear();
            let read = self.stream.read(&mut self.input, left);
            match self.server.executor.timeout(1_000_000_000, read).await {
                Some(Ok(count)) if count > 0 => left -= count.min(left),
                _ => return,
            }
        }
    }

    /// Room for a body, given back when dropped.
    fn reserve(&self, bytes: usize) -> Option<Reserved<'a>> {
        let used = self.server.body_bytes.get() + bytes;
        if used > self.server.settings.body_bytes_max {
            return None;
        }
        self.server.body_bytes.set(used);
        Some(Reserved { server: self.server, bytes })
    }
}

struct Reserved<'a> {
    server: &'a Server,
    bytes: usize,
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        self.server.body_bytes.set(self.server.body_bytes.get() - self.bytes);
    }
}
