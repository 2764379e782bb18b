//! One connection to one mycelium node: what to answer, what to send, what to deliver.
//!
//! The edge is a leaf. It announces the /64 of its own key and nothing else, passes nothing on, and
//! asks for a route only when somebody sends to it. The caller moves bytes between [`Link`] and a
//! TCP connection, and gives it the time and random nonces. A caller looks destinations up in the
//! native mesh first and comes here with the rest: a native address is never reached through
//! mycelium, whatever a peer announces.
//!
//! Bounds against a hostile peer: one unfinished packet, 1024 routes, 64 questions, 1 MiB of output
//! and 1 MiB of events; 200 routing messages per second are read and 20 answered.

mod rate;
mod routes;

use std::collections::{BTreeMap, VecDeque};
use std::net::Ipv6Addr;

use net_vdev::PublicKey;

use crate::packet::{EdgeKey, OpenError, SealError, addresses};
use crate::wire::{Control, Data, Packet, Prefix, RouterId, Stream, WireError};
use rate::Rate;
use routes::{Outcome, Routes, Told};

/// The longest IPv6 packet that goes out, in bytes: the MTU of mycelium's overlay.
pub const MTU: usize = 1400;

const SECOND_NS: u64 = 1_000_000_000;
const MILLISECOND_NS: u64 = 1_000_000;
/// What the peer is told, in hundredths of a second, as mycelium 0.7 has it.
const HELLO_INTERVAL: u16 = 2000;
const IHU_INTERVAL: u16 = 6000;
const UPDATE_INTERVAL: u16 = 30_000;
const HELLO_NS: u64 = 20 * SECOND_NS;
/// Sooner than was told, so that the next update is never late.
const UPDATE_NS: u64 = 270 * SECOND_NS;
/// Three and a half Hellos of the peer's.
const SILENCE_NS: u64 = 70 * SECOND_NS;
/// A question is asked again after 3 s, and given up after 15 s as in mycelium.
const ASK_AGAIN_NS: u64 = 3 * SECOND_NS;
const GIVE_UP_NS: u64 = 15 * SECOND_NS;

const QUESTIONS_MAX: usize = 64;
const OUTPUT_BYTES_MAX: usize = 1 << 20;
/// What only routing messages may use of the output.
const CONTROL_RESERVE_BYTES: usize = 64 << 10;
const EVENT_BYTES_MAX: usize = 1 << 20;
/// Packets leave room for what is told about routes.
const PACKET_EVENTS_MAX: usize = 4096;
const EVENTS_MAX: usize = PACKET_EVENTS_MAX + 1024;
const CHUNK_BYTES: usize = 16 << 10;
/// mycelium's cost of a TCP link over IPv6, and of one that was not measured yet.
const LINK_COST: u16 = 10;
const UNMEASURED_COST: u16 = 1000;

/// Why a link is over. The connection has to be closed and the [`Link`] dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// The peer sent something else than mycelium's packets.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The peer sent nothing.
    #[error("the mycelium peer has been silent for 70 seconds")]
    Silent,
}

/// Why a packet did not go out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// Not an IPv6 packet, longer than [`MTU`], or with a hop limit below 2.
    #[error("no IPv6 packet of at most 1400 bytes with a hop limit of 2 or more")]
    NoPacket,
    /// Its source isn't the edge's address, or its destination is.
    #[error("only packets from the edge's own address to others go out through it")]
    NotOurs,
    /// The route was asked for: an event will tell.
    #[error("the route is being asked for")]
    Pending,
    /// Too many routes are being asked for, or too much waits to be sent.
    #[error("the link to the mycelium peer is overloaded")]
    Full,
    /// It could not be sealed.
    #[error(transparent)]
    Seal(#[from] SealError),
}

/// A packet from mycelium: from nobody that the native mesh knows, whoever its key says it is. It
/// may be a replay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct External {
    /// Whose key sealed it; its address is the packet's source.
    pub from: PublicKey,
    /// The IPv6 packet.
    pub packet: Vec<u8>,
}

/// What a caller should know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A packet arrived, for a firewall that lets nothing in by default.
    Packet(External),
    /// An address that was asked for has a route: packets to it go out.
    Reachable(Ipv6Addr),
    /// Nobody knew an address that was asked for.
    Unreachable(Ipv6Addr),
}

/// What happened since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets delivered.
    pub delivered: u64,
    /// Packets sent.
    pub sent: u64,
    /// Data for another address than the edge's: it forwards nothing.
    pub not_ours: u64,
    /// Data of a sender without a route, whose key is therefore unknown.
    pub unknown_sender: u64,
    /// Bodies that weren't sealed by the key of their source's address.
    pub forged: u64,
    /// Packets inside a true body that claimed another source or destination.
    pub spoofed: u64,
    /// Bodies that hold no IPv6 packet (messages of mycelium's, for instance).
    pub not_ip: u64,
    /// Routing messages that were not understood.
    pub unreadable: u64,
    /// Updates that break a rule, or that found no room.
    pub refused_updates: u64,
    /// Anything that was over a rate or a bound.
    pub over_limit: u64,
}

#[derive(Debug)]
struct Question {
    asked_ns: u64,
    again_ns: u64,
    /// Somebody here waits for the answer, so it is told.
    is_local: bool,
}

/// One connection to one mycelium node.
#[derive(Debug)]
pub struct Link {
    key: EdgeKey,
    id: RouterId,
    address: Ipv6Addr,
    stream: Stream,
    routes: Routes,
    questions: BTreeMap<Ipv6Addr, Question>,
    output: VecDeque<Vec<u8>>,
    output_bytes: usize,
    events: VecDeque<Event>,
    event_bytes: usize,
    counters: Counters,
    reading: Rate,
    answering: Rate,
    renumbering: Rate,
    seqno: u16,
    hello_seqno: u16,
    /// When the Hello went out that is not answered yet.
    hello_sent_ns: Option<u64>,
    cost: u16,
    heard_ns: u64,
    hello_due_ns: u64,
    update_due_ns: u64,
}

impl Link {
    /// A link on a connection that was just made, in whichever direction. `incarnation` is random:
    /// it tells the peer's routing that sequence numbers begin anew.
    #[must_use]
    pub fn new(now_ns: u64, key: EdgeKey, incarnation: [u8; 6]) -> Self {
        let public = key.public();
        let mut link = Self {
            key,
            id: RouterId { key: public, zone: 0, incarnation },
            address: public.address(),
            stream: Stream::default(),
            routes: Routes::default(),
            questions: BTreeMap::new(),
            output: VecDeque::new(),
            output_bytes: 0,
            events: VecDeque::new(),
            event_bytes: 0,
            counters: Counters::default(),
            reading: Rate::new(now_ns, 200, 1000),
            answering: Rate::new(now_ns, 20, 40),
            renumbering: Rate::new(now_ns, 1, 4),
            seqno: 0,
            hello_seqno: 0,
            hello_sent_ns: None,
            cost: UNMEASURED_COST,
            heard_ns: now_ns,
            hello_due_ns: now_ns,
            update_due_ns: now_ns,
        };
        link.send_due(now_ns);
        link
    }

    /// The edge's address: the only one that anything is delivered for.
    #[must_use]
    pub fn address(&self) -> Ipv6Addr {
        self.address
    }

    /// Takes bytes from the connection, in pieces of any size.
    ///
    /// # Errors
    /// The peer doesn't speak the protocol.
    pub fn receive(&mut self, now_ns: u64, bytes: &[u8]) -> Result<(), LinkError> {
        let mut stream = std::mem::take(&mut self.stream);
        let mut outcome = Ok(());
        for chunk in bytes.chunks(CHUNK_BYTES) {
            stream.push(chunk);
            outcome = self.take_packets(now_ns, &mut stream);
            if outcome.is_err() {
                break;
            }
        }
        self.stream = stream;
        Ok(outcome?)
    }

    fn take_packets(&mut self, now_ns: u64, stream: &mut Stream) -> Result<(), WireError> {
        while let Some(packet) = stream.next_packet()? {
            self.heard_ns = now_ns;
            match packet {
                Packet::Data(data) => self.take_data(now_ns, &data),
                _ if !self.reading.take(now_ns) => self.counters.over_limit += 1,
                Packet::Control(control) => self.take_control(now_ns, &control),
                Packet::Unreadable => self.counters.unreadable += 1,
            }
        }
        Ok(())
    }

    fn take_data(&mut self, now_ns: u64, data: &Data<'_>) {
        if data.destination != self.address {
            self.counters.not_ours += 1;
            return;
        }
        let opened = match self.routes.secret(now_ns, &data.source, &self.key) {
            Ok(Some((from, secret))) => secret.open(data.body).map(|packet| (from, packet)),
            Ok(None) => {
                self.counters.unknown_sender += 1;
                let overlay = Prefix::of(self.address, 7);
                // What strangers cause leaves half of the questions to those who are here.
                if overlay.contains(&data.source) && self.questions.len() < QUESTIONS_MAX / 2 {
                    self.ask(now_ns, data.source, false);
                }
                return;
            }
            Err(_) => Err(OpenError::Forged),
        };
        match opened {
            Ok((from, packet)) => {
                let is_queued = self.tell(Event::Packet(External { from, packet }));
                self.counters.delivered += u64::from(is_queued);
            }
            Err(OpenError::Forged) => self.counters.forged += 1,
            Err(OpenError::Source(_) | OpenError::Destination(_)) => self.counters.spoofed += 1,
            Err(OpenError::Kind(_) | OpenError::NoPacket) => self.counters.not_ip += 1,
        }
    }

    fn take_control(&mut self, now_ns: u64, control: &Control) {
        match control {
            Control::Hello { .. } => {
                let ihu = Control::Ihu { rxcost: self.cost, interval: IHU_INTERVAL };
                self.answer(now_ns, &ihu);
            }
            Control::Ihu { .. } => {
                if let Some(sent_ns) = self.hello_sent_ns.take() {
                    let round_trip_ms = now_ns.saturating_sub(sent_ns) / MILLISECOND_NS;
                    let measured = u16::try_from(round_trip_ms).unwrap_or(u16::MAX);
                    self.cost = measured.min(UNMEASURED_COST).saturating_add(LINK_COST);
                }
            }
            Control::Update { interval, metric, prefix, router, .. } => {
                let told =
                    Told { key: router.key, prefix: *prefix, metric: *metric, interval: *interval };
                self.take_update(now_ns, &told);
            }
            Control::RouteRequest { prefix, .. } => {
                if prefix.is_none_or(|prefix| prefix.contains(&self.address)) {
                    self.answer(now_ns, &self.own_update());
                }
            }
            Control::SeqnoRequest { seqno, router, prefix, .. } => {
                if *prefix != Prefix::of(self.address, 64) {
                    return;
                }
                let is_newer = (1..0x8000).contains(&seqno.wrapping_sub(self.seqno));
                if *router == self.id && is_newer && self.renumbering.take(now_ns) {
                    self.seqno = self.seqno.wrapping_add(1);
                }
                self.answer(now_ns, &self.own_update());
            }
        }
    }

    fn take_update(&mut self, now_ns: u64, told: &Told) {
        let address = told.key.address();
        let is_local = self.questions.get(&address).map(|question| question.is_local);
        // Nobody but the edge itself says where the edge is.
        let outcome = match told.key == self.id.key {
            true => Outcome::Refused,
            false => self.routes.learn(now_ns, told, is_local == Some(true)),
        };
        match outcome {
            Outcome::Reachable(address) => {
                self.questions.remove(&address);
                if is_local == Some(true) {
                    self.tell(Event::Reachable(address));
                }
            }
            Outcome::Retracted => {}
            Outcome::Refused => self.counters.refused_updates += 1,
        }
    }

    /// Seals an IPv6 packet from the edge's address to that of another key. `nonce`: 12 fresh
    /// random bytes, never used before with this edge's key.
    ///
    /// # Errors
    /// See [`SendError`]. After [`SendError::Pending`] an [`Event`] says when to try again.
    pub fn send(&mut self, now_ns: u64, packet: &[u8], nonce: [u8; 12]) -> Result<(), SendError> {
        let hop_limit = packet.get(7).copied().unwrap_or_default();
        let (source, destination) = addresses(packet).ok_or(SendError::NoPacket)?;
        if packet.len() > MTU || hop_limit < 2 {
            return Err(SendError::NoPacket);
        }
        if source != self.address || destination == self.address {
            return Err(SendError::NotOurs);
        }
        if !self.routes.note_use(now_ns, &destination) {
            return match self.ask(now_ns, destination, true) {
                true => Err(SendError::Pending),
                false => Err(SendError::Full),
            };
        }
        if self.output_bytes + packet.len() > OUTPUT_BYTES_MAX - CONTROL_RESERVE_BYTES {
            self.counters.over_limit += 1;
            return Err(SendError::Full);
        }
        let Some((_, secret)) = self.routes.secret(now_ns, &destination, &self.key)? else {
            return Err(SendError::Pending);
        };
        let body = secret.seal(packet, nonce)?;
        // mycelium's sender counts as a hop too.
        let data = Data { hop_limit: hop_limit - 1, source, destination, body: &body };
        let mut bytes = Vec::with_capacity(crate::wire::DATA_HEADER_BYTES + body.len());
        data.write(&mut bytes).map_err(|_| SendError::NoPacket)?;
        self.output_bytes += bytes.len();
        self.output.push_back(bytes);
        self.counters.sent += 1;
        Ok(())
    }

    /// Bytes for the connection, whole packets each; they are to be written in this order.
    pub fn poll_transmit(&mut self) -> Option<Vec<u8>> {
        let bytes = self.output.pop_front()?;
        self.output_bytes = self.output_bytes.saturating_sub(bytes.len());
        Some(bytes)
    }

    /// What happened.
    pub fn poll_event(&mut self) -> Option<Event> {
        let event = self.events.pop_front()?;
        self.event_bytes = self.event_bytes.saturating_sub(event_bytes(&event));
        Some(event)
    }

    /// When [`Link::handle_deadline`] has to be called at the latest.
    #[must_use]
    pub fn next_deadline(&self) -> u64 {
        let questions = self.questions.values().map(|question| question.again_ns);
        let own = self.hello_due_ns.min(self.update_due_ns).min(self.heard_ns + SILENCE_NS);
        questions.fold(own, u64::min)
    }

    /// Sends what is due and forgets what is over.
    ///
    /// # Errors
    /// The peer has been silent for too long.
    pub fn handle_deadline(&mut self, now_ns: u64) -> Result<(), LinkError> {
        if now_ns >= self.heard_ns + SILENCE_NS {
            return Err(LinkError::Silent);
        }
        self.send_due(now_ns);
        let due = self.questions.iter().filter(|(_, question)| question.again_ns <= now_ns);
        let due: Vec<Ipv6Addr> = due.map(|(address, _)| *address).collect();
        for address in due {
            self.ask_again(now_ns, address);
        }
        Ok(())
    }

    fn send_due(&mut self, now_ns: u64) {
        if now_ns >= self.update_due_ns {
            self.update_due_ns = now_ns + UPDATE_NS;
            self.write(&self.own_update());
        }
        if now_ns >= self.hello_due_ns {
            self.hello_due_ns = now_ns + HELLO_NS;
            self.hello_sent_ns = Some(now_ns);
            let seqno = self.hello_seqno;
            self.hello_seqno = seqno.wrapping_add(1);
            self.write(&Control::Hello { unicast: true, seqno, interval: HELLO_INTERVAL });
            self.routes.expire(now_ns);
        }
    }

    /// Asks the peer for a route, unless that is under way. False if too much is.
    fn ask(&mut self, now_ns: u64, address: Ipv6Addr, is_local: bool) -> bool {
        if let Some(question) = self.questions.get_mut(&address) {
            question.is_local |= is_local;
            return true;
        }
        if self.questions.len() >= QUESTIONS_MAX {
            self.counters.over_limit += 1;
            return false;
        }
        let question = Question { asked_ns: now_ns, again_ns: now_ns, is_local };
        self.questions.insert(address, question);
        self.ask_again(now_ns, address);
        true
    }

    fn ask_again(&mut self, now_ns: u64, address: Ipv6Addr) {
        let Some(question) = self.questions.get_mut(&address) else { return };
        if now_ns >= question.asked_ns + GIVE_UP_NS {
            let is_local = question.is_local;
            self.questions.remove(&address);
            if is_local {
                self.tell(Event::Unreachable(address));
            }
            return;
        }
        question.again_ns = now_ns + ASK_AGAIN_NS;
        let prefix = Some(Prefix::of(address, 64));
        self.write(&Control::RouteRequest { generation: 0, prefix });
    }

    fn own_update(&self) -> Control {
        Control::Update {
            interval: UPDATE_INTERVAL,
            seqno: self.seqno,
            metric: 0,
            prefix: Prefix::of(self.address, 64),
            router: self.id,
        }
    }

    /// Writes what the peer caused, at a bounded rate.
    fn answer(&mut self, now_ns: u64, control: &Control) {
        if self.answering.take(now_ns) {
            self.write(control);
        } else {
            self.counters.over_limit += 1;
        }
    }

    fn write(&mut self, control: &Control) {
        let mut bytes = Vec::new();
        control.write(&mut bytes);
        if self.output_bytes + bytes.len() > OUTPUT_BYTES_MAX {
            self.counters.over_limit += 1;
            return;
        }
        self.output_bytes += bytes.len();
        self.output.push_back(bytes);
    }

    /// Queues an event; false if there is no room.
    fn tell(&mut self, event: Event) -> bool {
        let bytes = event_bytes(&event);
        let events_max = match event {
            Event::Packet(_) => PACKET_EVENTS_MAX,
            Event::Reachable(_) | Event::Unreachable(_) => EVENTS_MAX,
        };
        if self.event_bytes + bytes > EVENT_BYTES_MAX || self.events.len() >= events_max {
            self.counters.over_limit += 1;
            return false;
        }
        self.event_bytes += bytes;
        self.events.push_back(event);
        true
    }

    /// What happened so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// The key that the address of a route belongs to, for a firewall to judge who is spoken to.
    #[must_use]
    pub fn key_of(&self, now_ns: u64, address: &Ipv6Addr) -> Option<PublicKey> {
        self.routes.key_of(now_ns, address)
    }

    /// How many routes are kept.
    #[must_use]
    pub fn routes(&self) -> usize {
        self.routes.len()
    }
}

fn event_bytes(event: &Event) -> usize {
    match event {
        Event::Packet(external) => external.packet.len(),
        Event::Reachable(_) | Event::Unreachable(_) => 0,
    }
}
