//! A store's loop: reads what is there, handles it, makes it durable with one sync, answers.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver;

use rustix::event::epoll;
use rustix::io::Errno;
use rustix::time::{ClockId, Timespec, clock_gettime};
use storage_vdev::Uuid;
use storage_vdev::files::NodeFile;
use storage_vdev::node::{AcceptorId, NodeError, Request, Response};
use storage_vdev::service::{Grants, Handled, NodeService, ShardStore, Ticket, WriterKey};
use storage_vdev::wire::ServerSession;
use storage_vdev::wire::server::Event;

use super::connection::{Connection, End};
use super::metrics::{AUTHORISED, StoreMetrics, kind_of};
use super::{Shared, Wake};

const WAKE_TOKEN: u64 = u64::MAX;
/// How often connections that make no progress are looked for.
const LOOK_NS: u64 = 1_000_000_000;

/// A store as its loop sees it: a [`NodeService`] over any kind of objects.
pub trait Service: Send {
    /// Handles a request under the session's rights.
    fn handle(&mut self, grants: &Grants, request: Request) -> Handled;

    /// Pins the writer key of a volume, and its acceptors, if none are pinned.
    ///
    /// # Errors
    /// As [`NodeService::introduce`].
    fn introduce(
        &mut self,
        volume: &Uuid,
        writer: WriterKey,
        acceptors: &[AcceptorId],
    ) -> Result<(), NodeError>;

    /// Makes all durable that waits for it, and answers it.
    fn sync(&mut self) -> Vec<(Ticket, Result<Response, NodeError>)>;

    /// Does a little of what can wait; whether there may be more.
    fn tidy(&mut self) -> bool;
}

impl<S: ShardStore + Send, F: NodeFile + Send> Service for NodeService<S, F> {
    fn handle(&mut self, grants: &Grants, request: Request) -> Handled {
        Self::handle(self, grants, request)
    }

    fn introduce(
        &mut self,
        volume: &Uuid,
        writer: WriterKey,
        acceptors: &[AcceptorId],
    ) -> Result<(), NodeError> {
        Self::introduce(self, volume, writer, acceptors)
    }

    fn sync(&mut self) -> Vec<(Ticket, Result<Response, NodeError>)> {
        Self::sync(self)
    }

    fn tidy(&mut self) -> bool {
        Self::tidy(self)
    }
}

/// A session that the door hands over.
pub(crate) struct Arrival {
    pub(crate) socket: OwnedFd,
    pub(crate) session: Box<ServerSession>,
}

/// Nanoseconds since boot, sleep included.
pub(crate) fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    u64::try_from(now.tv_sec)
        .unwrap_or(0)
        .saturating_mul(1_000_000_000)
        .saturating_add(u64::try_from(now.tv_nsec).unwrap_or(0))
}

fn unix_seconds() -> u64 {
    u64::try_from(clock_gettime(ClockId::Realtime).tv_sec).unwrap_or(0)
}

/// Whom a durable request is answered to.
struct Waiter {
    connection: u64,
    id: u64,
    since_ns: u64,
}

pub(crate) struct StoreLoop {
    shared: Arc<Shared>,
    service: Box<dyn Service>,
    inbox: Receiver<Arrival>,
    wake: Arc<Wake>,
    metrics: Arc<StoreMetrics>,
    epoll: OwnedFd,
    connections: HashMap<u64, Connection>,
    next_token: u64,
    waiters: HashMap<Ticket, Waiter>,
    looked_ns: u64,
    /// Which connections have something to do, used again each turn.
    due: Vec<u64>,
    /// What one connection asks for, used again each turn.
    asked: Vec<Event>,
}

impl StoreLoop {
    pub(crate) fn new(
        shared: Arc<Shared>,
        service: Box<dyn Service>,
        (inbox, wake): (Receiver<Arrival>, Arc<Wake>),
        metrics: Arc<StoreMetrics>,
    ) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let token = epoll::EventData::new_u64(WAKE_TOKEN);
        epoll::add(&epoll, &wake.0, token, epoll::EventFlags::IN)?;
        Ok(Self {
            shared,
            service,
            inbox,
            wake,
            metrics,
            epoll,
            connections: HashMap::new(),
            next_token: 0,
            waiters: HashMap::new(),
            looked_ns: now_ns(),
            due: Vec::new(),
            asked: Vec::new(),
        })
    }

    pub(crate) fn run(mut self) {
        let mut events = Vec::with_capacity(256);
        let mut more = false;
        while !self.shared.stopping.load(Ordering::Acquire) {
            if let Err(error) = self.wait(&mut events, more) {
                tracing::error!("a store is served no more: {error}");
                break;
            }
            more = self.turn();
        }
        self.farewell();
    }

    /// Waits until something happens; not at all if some connection still has something to read.
    fn wait(&mut self, events: &mut Vec<epoll::Event>, more: bool) -> io::Result<()> {
        events.clear();
        let timeout = Timespec { tv_sec: i64::from(!more), tv_nsec: 0 };
        let buffer = rustix::buffer::spare_capacity(events);
        match epoll::wait(&self.epoll, buffer, Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        self.due.clear();
        for event in &*events {
            let (data, flags) = (event.data, event.flags);
            let token = data.u64();
            if token == WAKE_TOKEN {
                self.wake.clear();
                self.welcome();
            } else if let Some(connection) = self.connections.get_mut(&token) {
                let reading = epoll::EventFlags::IN
                    | epoll::EventFlags::RDHUP
                    | epoll::EventFlags::HUP
                    | epoll::EventFlags::ERR;
                let writable = flags.intersects(epoll::EventFlags::OUT);
                connection.notice(flags.intersects(reading), writable);
                self.due.push(token);
            }
        }
        if more {
            let limits = &self.shared.config.limits;
            let waiting = self.connections.iter().filter(|(_, one)| one.wants_turn(limits));
            self.due.extend(waiting.map(|(token, _)| *token));
            self.due.sort_unstable();
            self.due.dedup();
        }
        Ok(())
    }

    fn welcome(&mut self) {
        let now_ns = now_ns();
        while let Ok(Arrival { socket, session }) = self.inbox.try_recv() {
            let token = self.next_token;
            self.next_token += 1;
            // Edge-triggered and never changed: what is left unread is remembered here.
            let interest = epoll::EventFlags::IN
                | epoll::EventFlags::OUT
                | epoll::EventFlags::RDHUP
                | epoll::EventFlags::ET;
            let added =
                epoll::add(&self.epoll, &socket, epoll::EventData::new_u64(token), interest);
            if let Err(error) = added {
                tracing::warn!("a session can't be waited for: {error}");
                self.shared.connections.fetch_sub(1, Ordering::Relaxed);
                continue;
            }
            self.metrics.sessions.add(1);
            self.connections.insert(token, Connection::new(socket, session, now_ns));
            self.due.push(token);
        }
    }

    /// One turn: reads and handles, answers what needs no sync, syncs once, answers the rest. True
    /// if a connection has more to read.
    fn turn(&mut self) -> bool {
        let clocks = (now_ns(), unix_seconds());
        let due = std::mem::take(&mut self.due);
        for token in &due {
            self.listen_to(*token, clocks);
        }
        // Whoever only reads needn't wait for the disk's sync.
        due.iter().for_each(|token| self.write(*token, clocks.0));
        let mut synced = Vec::new();
        if !self.waiters.is_empty() {
            self.sync(&mut synced);
        }
        let now_ns = now_ns();
        synced.iter().for_each(|token| self.write(*token, now_ns));
        self.look_for_idle(now_ns);
        let mut more = false;
        for token in due.iter().chain(&synced) {
            let Some(connection) = self.connections.get(token) else { continue };
            if connection.end.is_some() {
                self.part(*token);
            } else {
                more |= connection.wants_turn(&self.shared.config.limits);
            }
        }
        let idle = due.is_empty() && synced.is_empty() && self.waiters.is_empty();
        self.due = due;
        more || (idle && self.service.tidy())
    }

    fn listen_to(&mut self, token: u64, clocks: (u64, u64)) {
        let limits = &self.shared.config.limits;
        let Some(connection) = self.connections.get_mut(&token) else { return };
        if !connection.wants_turn(limits) {
            return;
        }
        let mut asked = std::mem::take(&mut self.asked);
        let received = connection.read(limits, clocks, |event| asked.push(event));
        self.metrics.bytes_received.add(received);
        for event in asked.drain(..) {
            self.handle(token, event, clocks);
        }
        self.asked = asked;
    }

    fn handle(&mut self, token: u64, event: Event, (since_ns, unix_seconds): (u64, u64)) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        let (id, request) = match event {
            Event::Request { id, request } => (id, request),
            Event::Authorised { volume, writer, card } => {
                self.metrics.count_request(AUTHORISED.0);
                // Durable with the next sync; a fence, which asks for it, waits for one.
                let known =
                    card.map(|card| self.service.introduce(&volume, writer, &card.acceptors));
                if let Some(Err(error)) = known {
                    tracing::warn!("a volume's card from {}: {error}", connection.session.peer());
                }
                return;
            }
            Event::Refused(error) => {
                tracing::debug!("{} was refused: {error}", connection.session.peer());
                return self.metrics.count_request(AUTHORISED.1);
            }
        };
        self.metrics.count_request(kind_of(&request));
        match self.service.handle(connection.session.grants(unix_seconds), request) {
            Handled::Done(result) => {
                self.metrics.immediate.record(now_ns().saturating_sub(since_ns));
                answer(connection, &self.metrics, id, result);
            }
            Handled::AfterSync(ticket) => {
                self.waiters.insert(ticket, Waiter { connection: token, id, since_ns });
            }
        }
    }

    fn sync(&mut self, synced: &mut Vec<u64>) {
        self.metrics.syncs.add(1);
        let results = self.service.sync();
        let now_ns = now_ns();
        for (ticket, result) in results {
            let Some(waiter) = self.waiters.remove(&ticket) else { continue };
            self.metrics.durable.record(now_ns.saturating_sub(waiter.since_ns));
            if let Some(connection) = self.connections.get_mut(&waiter.connection) {
                answer(connection, &self.metrics, waiter.id, result);
                synced.push(waiter.connection);
            }
        }
        synced.sort_unstable();
        synced.dedup();
    }

    fn write(&mut self, token: u64, now_ns: u64) {
        if let Some(connection) = self.connections.get_mut(&token) {
            self.metrics.bytes_sent.add(connection.write(now_ns));
        }
    }

    fn look_for_idle(&mut self, now_ns: u64) {
        if now_ns.saturating_sub(self.looked_ns) < LOOK_NS {
            return;
        }
        self.looked_ns = now_ns;
        let limits = &self.shared.config.limits;
        let mut over = Vec::new();
        for (token, connection) in &mut self.connections {
            connection.expire(now_ns, limits);
            if connection.end.is_some() {
                over.push(*token);
            }
        }
        over.into_iter().for_each(|token| self.part(token));
    }

    fn part(&mut self, token: u64) {
        let Some(connection) = self.connections.remove(&token) else { return };
        self.shared.connections.fetch_sub(1, Ordering::Relaxed);
        let peer = connection.session.peer();
        match connection.end {
            Some(End::Broken(error)) => {
                self.metrics.sessions_broken.add(1);
                tracing::warn!("the session with {peer} ended: {error}");
            }
            Some(End::Idle) => {
                self.metrics.sessions_idle.add(1);
                tracing::info!("the session with {peer} ended: nothing came for too long");
            }
            Some(End::Closed) | None => tracing::debug!("the session with {peer} ended"),
        }
    }

    /// Sends the answers that wait, for so long as the limits say, and closes everything.
    fn farewell(&mut self) {
        let until = now_ns().saturating_add(self.shared.config.limits.farewell_ns);
        loop {
            let tokens: Vec<u64> = self.connections.keys().copied().collect();
            tokens.iter().for_each(|token| self.write(*token, now_ns()));
            let waits = |one: &Connection| one.end.is_none() && one.session.outgoing_bytes() > 0;
            if !self.connections.values().any(waits) || now_ns() >= until {
                tokens.into_iter().for_each(|token| self.part(token));
                return;
            }
            self.connections.values_mut().for_each(|one| one.notice(false, true));
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
    }
}

fn answer(
    connection: &mut Connection,
    metrics: &StoreMetrics,
    id: u64,
    result: Result<Response, NodeError>,
) {
    if let Err(error) = result {
        metrics.count_error(error);
    }
    if let Err(error) = connection.session.answer(id, result) {
        connection.end = connection.end.or(Some(End::Broken(error)));
    }
}
