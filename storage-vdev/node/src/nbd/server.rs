//! The server: one thread that owns the volumes and waits for everybody at once.
//!
//! Each turn reads what every client has sent, hands it to the volumes, takes what they have finished
//! and sends each client its replies. Small requests cost three system calls per client and turn,
//! however many are under way; of large ones a few at a time are carried out and answered, so that
//! a client has something to do while the next ones are. No request changes threads.

use std::collections::BTreeMap;
use std::io;

use rustix::event::{PollFd, PollFlags};
use storage_vdev::engine::Volume;
use storage_vdev::node::Nodes;

use super::connection::{Connection, Ending};
use super::export::{Export, NAME_BYTES_MAX};
use super::listen::Listener;
use super::transmission::Ticket;
use crate::orders::Inbox;
use crate::served::Served;
use crate::wait::{Stop, now_ns, wait};

/// The most clients at a time.
const CONNECTIONS_MAX: usize = 64;

/// How long a client may take to say what it wants.
const NEGOTIATION_NS: u64 = 20_000_000_000;

/// How long clients may take to fetch their last replies when the server stops.
const FAREWELL_NS: u64 = 2_000_000_000;

/// How often one turn goes back to the clients who have more requests.
const ROUNDS_MAX: usize = 16;

/// Why a server ends, or can't start.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Two exports of one name, or a name that is too long, or an export of no volume.
    #[error("the export {name:?} can't be offered")]
    Export {
        /// Its name.
        name: String,
    },
    /// The system refuses what the server can't do without.
    #[error("the server can't go on: {0}")]
    System(#[from] io::Error),
    /// A volume failed when it was closed.
    #[error("what was not flushed may be lost: {0}")]
    Close(#[from] crate::served::Failure),
}

/// Who waits for an answer of a volume.
#[derive(Debug)]
struct Caller {
    connection: u64,
    ticket: Ticket,
}

/// An NBD server over volumes.
#[derive(Debug)]
pub struct Server<N> {
    volumes: Vec<Served<N, Caller>>,
    exports: Vec<Export>,
    listeners: Vec<Listener>,
    connections: BTreeMap<u64, Client>,
    next_connection: u64,
    /// Accepting failed, mostly for want of descriptors: not again before a client has gone.
    full: bool,
}

#[derive(Debug)]
struct Client {
    connection: Connection,
    /// When it must be over with negotiating, or gone.
    deadline_ns: Option<u64>,
}

impl<N: Nodes> Server<N> {
    /// A server of `volumes`, of which none is offered yet.
    #[must_use]
    pub fn new(volumes: Vec<Volume<N>>, listeners: Vec<Listener>) -> Self {
        Self {
            volumes: volumes.into_iter().map(Served::new).collect(),
            exports: Vec::new(),
            listeners,
            connections: BTreeMap::new(),
            next_connection: 0,
            full: false,
        }
    }

    /// Offers volume number `volume` under `name`.
    ///
    /// # Errors
    /// [`ServeError::Export`].
    pub fn offer(
        &mut self,
        name: &str,
        description: &str,
        volume: usize,
        read_only: bool,
    ) -> Result<(), ServeError> {
        let taken = self.exports.iter().any(|export| export.name == name);
        let too_long = name.len() > NAME_BYTES_MAX || description.len() > NAME_BYTES_MAX;
        let Some(served) = self.volumes.get(volume).filter(|_| !taken && !too_long) else {
            return Err(ServeError::Export { name: name.to_owned() });
        };
        self.exports.push(Export {
            name: name.to_owned(),
            description: description.to_owned(),
            volume,
            size_bytes: served.size_bytes(),
            read_only,
        });
        Ok(())
    }

    /// Lets volume number `volume` take orders from `inbox`.
    pub fn take_orders(&mut self, volume: usize, inbox: Inbox) {
        if let Some(volume) = self.volumes.get_mut(volume) {
            volume.take_orders(inbox);
        }
    }

    /// Serves until `stop`. Then closes the volumes.
    ///
    /// # Errors
    /// [`ServeError`]. A client's errors are its own: they end only its connection.
    pub fn run(mut self, stop: &Stop) -> Result<(), ServeError> {
        loop {
            let ready = self.wait(stop)?;
            if ready.stop {
                break;
            }
            self.turn(&ready);
        }
        self.farewell(stop)?;
        for volume in &mut self.volumes {
            volume.close()?;
        }
        Ok(())
    }

    /// Waits until there is something to do.
    fn wait(&mut self, stop: &Stop) -> Result<Ready, ServeError> {
        let now_ns = now_ns();
        let mut wake_ns: Option<u64> = None;
        let mut wake_at = |at: u64| wake_ns = Some(wake_ns.map_or(at, |before| before.min(at)));
        let mut ready = Ready::default();
        let mut sources = vec![PollFd::new(&stop.0, PollFlags::IN)];
        for volume in &self.volumes {
            sources.extend(volume.ready_fd().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
            volume.deadline_ns().into_iter().for_each(&mut wake_at);
        }
        let own = sources.len();
        if !self.full && self.connections.len() < CONNECTIONS_MAX {
            sources.extend(self.listeners.iter().map(|l| PollFd::new(l, PollFlags::IN)));
        }
        let others = sources.len();
        let mut polled = Vec::with_capacity(self.connections.len());
        for (id, client) in &self.connections {
            let connection = &client.connection;
            if connection.is_due() {
                wake_at(now_ns);
                ready.readable.push(*id);
            }
            client.deadline_ns.into_iter().for_each(&mut wake_at);
            let mut events = PollFlags::empty();
            events.set(PollFlags::IN, connection.wants_read());
            events.set(PollFlags::OUT, connection.wants_write());
            // One that waits for the volume alone is not asked: a hang-up would wake us for ever.
            if !events.is_empty() {
                sources.push(PollFd::new(connection, events));
                polled.push(*id);
            }
        }
        wait(&mut sources, wake_ns)?;
        ready.stop = sources.first().is_some_and(|source| !source.revents().is_empty());
        let fired = |source: &PollFd<'_>| !source.revents().is_empty();
        ready.arrival =
            sources.get(own..others).is_some_and(|listeners| listeners.iter().any(fired));
        for (source, id) in sources.iter().skip(others).zip(polled) {
            if source.revents().intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
                ready.readable.push(id);
            }
        }
        Ok(ready)
    }

    /// Does what there is to do, and leaves nothing behind that nobody would wake us for.
    fn turn(&mut self, ready: &Ready) {
        let now_ns = now_ns();
        if ready.arrival {
            self.accept(now_ns);
        }
        for id in &ready.readable {
            if let Some(client) = self.connections.get_mut(id) {
                let ended = match client.connection.fill() {
                    Ok(true) => self.process(*id),
                    Ok(false) => self.process_rest(*id).and(Err(Departure::Closed)),
                    Err(ending) => Err(ending.into()),
                };
                self.settle(*id, ended);
            }
        }
        for _ in 0..ROUNDS_MAX {
            self.collect(now_ns);
            // The clients go on with what is finished while we do the rest.
            self.send(now_ns);
            let due =
                |(id, client): (&u64, &Client)| client.connection.has_request().then_some(*id);
            let due: Vec<u64> = self.connections.iter().filter_map(due).collect();
            if due.is_empty() {
                break;
            }
            for id in due {
                let ended = self.process(id);
                self.settle(id, ended);
            }
        }
        // What finished at once, in the last round too.
        self.collect(now_ns);
        self.send(now_ns);
    }

    fn accept(&mut self, now_ns: u64) {
        // A volume may have grown; a client sees the size that there was when it came.
        for export in &mut self.exports {
            if let Some(volume) = self.volumes.get(export.volume) {
                export.size_bytes = volume.size_bytes();
            }
        }
        for listener in &self.listeners {
            while self.connections.len() < CONNECTIONS_MAX {
                match listener.accept() {
                    Ok(Some(socket)) => {
                        let connection = Connection::new(socket, listener.tls_config());
                        let deadline_ns = Some(now_ns + NEGOTIATION_NS);
                        let client = Client { connection, deadline_ns };
                        self.connections.insert(self.next_connection, client);
                        self.next_connection += 1;
                    }
                    Ok(None) => break,
                    Err(error) => {
                        tracing::warn!(%error, "an NBD client could not be accepted");
                        self.full = !self.connections.is_empty();
                        break;
                    }
                }
            }
        }
    }

    /// Hands a client's requests to the volumes.
    fn process(&mut self, id: u64) -> Result<(), Departure> {
        let Self { volumes, exports, connections, .. } = self;
        let Some(client) = connections.get_mut(&id) else { return Ok(()) };
        client.connection.process(exports, &mut |export, ticket, operation| {
            let volume = exports.get(export).map_or(usize::MAX, |export| export.volume);
            if let Some(volume) = volumes.get_mut(volume) {
                volume.submit(Caller { connection: id, ticket }, operation);
            }
        })?;
        if !client.connection.is_negotiating() {
            client.deadline_ns = None;
        }
        Ok(())
    }

    /// Hands over what a client that sends nothing more has sent before.
    fn process_rest(&mut self, id: u64) -> Result<(), Departure> {
        while self.connections.get(&id).is_some_and(|client| client.connection.has_request()) {
            self.process(id)?;
        }
        Ok(())
    }

    /// Sees a client off that can't go on. What its last requests were is still carried out.
    fn settle(&mut self, id: u64, ended: Result<(), Departure>) {
        let Err(departure) = ended else { return };
        if let Departure::Because(reason) = departure {
            tracing::info!(connection = id, %reason, "NBD client disconnected");
        }
        if let Some(client) = self.connections.get_mut(&id) {
            client.connection.end();
        }
    }

    /// Takes what the volumes have finished to the clients.
    fn collect(&mut self, now_ns: u64) {
        for volume in &mut self.volumes {
            while let Some(finished) = volume.poll(now_ns) {
                let Caller { connection, ticket } = finished.context;
                let Some(client) = self.connections.get_mut(&connection) else { continue };
                let buffer = client.connection.answer(ticket, finished.result);
                buffer.into_iter().for_each(|buffer| volume.recycle(buffer));
            }
        }
    }

    /// Sends what there is to send and forgets who is gone.
    fn send(&mut self, now_ns: u64) {
        let mut spent = Vec::new();
        self.connections.retain(|id, client| {
            let Client { connection, deadline_ns } = client;
            if let Err(reason) = connection.send(&mut spent) {
                tracing::info!(connection = id, %reason, "NBD client lost");
                return false;
            }
            if connection.is_ending() {
                deadline_ns.get_or_insert(now_ns + FAREWELL_NS);
            }
            !connection.is_over() && deadline_ns.is_none_or(|deadline| now_ns < deadline)
        });
        if self.connections.len() < CONNECTIONS_MAX {
            self.full = false;
        }
        if let Some(volume) = self.volumes.first_mut() {
            spent.into_iter().for_each(|buffer| volume.recycle(buffer));
        }
    }

    /// Answers what was asked and reads nothing more.
    fn farewell(&mut self, stop: &Stop) -> Result<(), ServeError> {
        // Taken, so that waiting waits again.
        stop.0.take();
        self.listeners.clear();
        self.connections.values_mut().for_each(|client| client.connection.end());
        while !self.connections.is_empty() {
            self.turn(&Ready::default());
            if !self.connections.is_empty() {
                self.wait(stop)?;
            }
        }
        Ok(())
    }
}

/// What woke the server.
#[derive(Debug, Default)]
struct Ready {
    stop: bool,
    /// A client may wait at a listener.
    arrival: bool,
    readable: Vec<u64>,
}

/// How a client leaves.
enum Departure {
    Closed,
    Because(Ending),
}

impl From<Ending> for Departure {
    fn from(ending: Ending) -> Self {
        Self::Because(ending)
    }
}
