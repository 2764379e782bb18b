//! A node of the mesh without sockets, clock or TUN: its member, its router, and what passes between
//! them and the outside.
//!
//! ```text
//!              TUN (super-frames)
//!                │          ▲
//!                ▼          │ coalesced
//!   ┌──────── Endpoint: sessions of the node's own key ────────┐
//!   │  data straight to peers │  frames for and from routers   │
//!   └───────────┬─────────────┴──────────────┬─────────────────┘
//!               │                    ┌───────┴───────┐
//!               │                    │    Router     │──── uplinks of VMs
//!               ▼                    └───────┬───────┘
//!             UDP sockets  ◄─────────────────┘ frames of others, hop by hop
//! ```
//!
//! Frames that come in one batch for one neighbour leave as one batch, from the buffer that they
//! came in.

use std::collections::BTreeMap;
use std::net::{Ipv6Addr, SocketAddr};

use mesh_router::{Event as RouterEvent, LinkId, NextHop, OriginateError, Router};
use net_vdev::announcement::SignedAnnouncement;
use net_vdev::endpoint::{Endpoint, Event, Path, PeerView, Transmit};
use net_vdev::offload::{Accepts, Coalescer, VirtioNetHeader};
use net_vdev::wire::{self, Kind, RELAY_HEADER_BYTES, RelayHeader, TAG_BYTES};
use net_vdev::{Peer, PublicKey};

use crate::counters::CoreCounters;

/// What a [`Core`] needs of the world: sockets, or a simulated network.
pub trait Outside {
    /// Sends datagrams of `stride` bytes each, the last perhaps shorter. A datagram may get lost.
    fn send(&mut self, to: SocketAddr, datagrams: &[u8], stride: usize);
    /// Sends datagrams on a stream.
    fn send_stream(&mut self, number: u32, datagrams: &[u8], stride: usize);
    /// Hands a packet, or several as one super-frame, to the node's host.
    fn deliver(&mut self, header: &VirtioNetHeader, packet: &[u8]);
    /// Hands frames to a member that is attached to this node.
    fn attached(&mut self, member: &PublicKey, frames: &[u8], stride: usize);
}

/// The most answers to pings and traces, and wishes for numbers, that are kept in one turn.
const ANSWERS_MAX: usize = 256;
/// The most expiry notices per second.
const NOTICES_PER_S: u64 = 50;

/// A node.
pub struct Core {
    endpoint: Endpoint,
    router: Router,
    /// The neighbours that the router has a link to.
    links: BTreeMap<PublicKey, LinkId>,
    /// The neighbours that this node keeps a session with.
    configured: BTreeMap<PublicKey, Redial>,
    attached: BTreeMap<Ipv6Addr, PublicKey>,
    coalescer: Coalescer,
    counters: CoreCounters,
    /// The second of the last expiry notices, and how many there were in it.
    notices: (u64, u64),
    /// What routers said about frames that went too far, for `trace`.
    traces: Vec<(u32, Ipv6Addr)>,
    pongs: Vec<(u64, PublicKey, Path)>,
    /// Keys that are to announce themselves under a larger number.
    wanted: Vec<(PublicKey, u64)>,
}

/// When to try a configured neighbour again.
#[derive(Debug, Clone, Copy)]
struct Redial {
    at_ns: u64,
    pause_ns: u64,
}

const REDIAL_NS: std::ops::RangeInclusive<u64> = 1_000_000_000..=30_000_000_000;

/// Frames of one batch on their way to one neighbour: a range of the buffer.
struct Run {
    start: usize,
    end: usize,
    way: Way,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Neighbour(LinkId, Path),
    Attached(PublicKey),
}

impl Core {
    /// A node of a member and its router. `accepts` tells which super-frames its host takes.
    #[must_use]
    pub fn new(endpoint: Endpoint, router: Router, accepts: Accepts) -> Self {
        Self {
            endpoint,
            router,
            links: BTreeMap::new(),
            configured: BTreeMap::new(),
            attached: BTreeMap::new(),
            coalescer: Coalescer::new(accepts),
            counters: CoreCounters::default(),
            notices: (0, 0),
            traces: Vec::new(),
            pongs: Vec::new(),
            wanted: Vec::new(),
        }
    }

    /// The node's member.
    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// The node's router.
    #[must_use]
    pub fn router(&self) -> &Router {
        &self.router
    }

    /// What this node has counted besides its member and its router.
    #[must_use]
    pub fn counters(&self) -> CoreCounters {
        self.counters
    }

    /// The node's router.
    pub(crate) fn router_mut(&mut self) -> &mut Router {
        &mut self.router
    }

    /// Where this node may be reached from elsewhere.
    pub fn set_candidates(&mut self, candidates: Vec<SocketAddr>) {
        self.endpoint.set_candidates(candidates);
    }

    /// Announces the node's own key, or that of an attached member.
    ///
    /// # Errors
    /// The router's.
    pub fn originate(
        &mut self,
        now_ns: u64,
        signed: &SignedAnnouncement,
    ) -> Result<(), OriginateError> {
        self.router.originate(now_ns, *signed)
    }

    /// The number that this node's key is to announce itself under next, if it is to: at least
    /// that.
    pub fn sequence_wanted(&mut self, own: &PublicKey) -> Option<u64> {
        let wanted = std::mem::take(&mut self.wanted);
        wanted.into_iter().filter(|(key, _)| key == own).map(|(_, number)| number).max()
    }

    /// The network refuses datagrams to a neighbour's place: it is not there any more, or the way
    /// to it is gone.
    pub fn place_refused(&mut self, now_ns: u64, place: SocketAddr) {
        let path = Path::Direct(place);
        let at = |peer: &PeerView| peer.paths.iter().any(|view| view.path == path);
        let peers: Vec<_> = self.endpoint.peers().filter(at).collect();
        for peer in peers {
            self.endpoint.path_failed(&peer.key, &path);
            let only = peer.paths.iter().filter(|view| view.path.is_direct()).count() == 1;
            if only && let Some(link) = self.links.remove(&peer.key) {
                tracing::debug!(peer = %peer.key, %place, "the network refuses datagrams");
                self.router.link_down(now_ns, link);
            }
        }
    }

    /// The network refuses full-sized datagrams to this place.
    pub fn place_is_narrow(&mut self, place: SocketAddr) {
        self.endpoint.path_is_narrow(&Path::Direct(place));
    }

    /// Asks a member whether it is there; `None` until there is a session with it.
    ///
    /// # Errors
    /// Why there will be none.
    pub(crate) fn ping(&mut self, now_ns: u64, to: &Ipv6Addr) -> Result<Option<u64>, String> {
        if *to == self.endpoint.key().address() {
            return Err(format!("{to} is this node itself"));
        }
        let known = self.endpoint.peers().map(|peer| peer.key).find(|key| key.address() == *to);
        let Some(key) = known.or_else(|| self.router.resolve(to)) else {
            // Looks for it.
            self.router.next_hop(now_ns, to, false);
            return Ok(None);
        };
        if key.address() != *to {
            return Err(format!("{to} is no member's address, though node {key} has its prefix"));
        }
        if known.is_none() && !self.endpoint.learn(now_ns, &key, &[]) {
            return Err("there are as many sessions as are allowed".to_owned());
        }
        self.endpoint.connect(now_ns, &key);
        Ok(self.endpoint.ping(now_ns, &key))
    }

    /// Sends a frame that ends after `hop_limit` routers, or is answered by `to` itself: `token`
    /// comes back.
    pub(crate) fn send_trace(
        &mut self,
        now_ns: u64,
        to: &Ipv6Addr,
        hop_limit: u8,
        token: u32,
        outside: &mut impl Outside,
    ) {
        let header = RelayHeader {
            hop_limit,
            is_alternate: false,
            receiver: 0,
            counter: 0,
            destination: *to,
            source: self.endpoint.key().address(),
        };
        let mut frame = header.to_bytes().to_vec();
        // Data of a session that nobody has: a member that gets it says so.
        frame.extend_from_slice(&wire::data_header(token, 0));
        frame.extend_from_slice(&[0; TAG_BYTES]);
        if let Some(way) = self.forward(now_ns, to, false, hop_limit, &mut frame) {
            let run = Run { start: 0, end: frame.len(), way };
            self.pass_on(now_ns, &frame, &run, frame.len(), outside);
        }
    }

    /// The answers to pings that came since this was last called.
    pub(crate) fn take_pongs(&mut self) -> Vec<(u64, PublicKey, Path)> {
        std::mem::take(&mut self.pongs)
    }

    /// The answers to traces that came since this was last called.
    pub(crate) fn take_traces(&mut self) -> Vec<(u32, Ipv6Addr)> {
        std::mem::take(&mut self.traces)
    }

    /// Keeps a session with a neighbour from now on. Says whether it was not one before.
    pub fn add_neighbour(&mut self, now_ns: u64, key: PublicKey, at: Option<SocketAddr>) -> bool {
        if self.configured.contains_key(&key) || key == self.endpoint.key() {
            return false;
        }
        let peer = Peer { key, endpoint: at, addresses: Vec::new() };
        if self.endpoint.list(peer).is_err() {
            self.endpoint.learn(now_ns, &key, at.as_slice());
        }
        self.configured.insert(key, Redial { at_ns: now_ns, pause_ns: *REDIAL_NS.start() });
        true
    }

    /// Datagrams of `stride` bytes each came in on a path from outside.
    pub fn receive(
        &mut self,
        now_ns: u64,
        from: Path,
        batch: &mut [u8],
        stride: usize,
        outside: &mut impl Outside,
    ) {
        let stride = stride.max(1);
        let mut run: Option<Run> = None;
        let mut start = 0;
        while start < batch.len() {
            let end = batch.len().min(start + stride);
            let Some(datagram) = batch.get_mut(start..end) else { break };
            let way = if is_frame(datagram) {
                self.hop(now_ns, from, datagram, outside)
            } else {
                self.take(now_ns, from, datagram, outside);
                None
            };
            let grows = run.as_mut().filter(|run| Some(run.way) == way && run.end == start);
            if let Some(run) = grows {
                run.end = end;
            } else {
                let next = way.map(|way| Run { start, end, way });
                if let Some(done) = std::mem::replace(&mut run, next) {
                    self.pass_on(now_ns, batch, &done, stride, outside);
                }
            }
            start = end;
        }
        if let Some(done) = run {
            self.pass_on(now_ns, batch, &done, stride, outside);
        }
    }

    /// A datagram for this node's own member.
    fn take(&mut self, now_ns: u64, from: Path, datagram: &mut [u8], outside: &mut impl Outside) {
        let coalescer = &mut self.coalescer;
        self.endpoint.receive(now_ns, from, datagram, &mut |packet| {
            coalescer.push(packet, &mut |header, packet| outside.deliver(header, packet));
        });
    }

    /// Checks a frame of a neighbour and makes it ready for the next hop; `None` if it ends here.
    fn hop(
        &mut self,
        now_ns: u64,
        from: Path,
        frame: &mut [u8],
        outside: &mut impl Outside,
    ) -> Option<Way> {
        let hop = self.endpoint.open_frame(now_ns, frame)?;
        if !from.is_direct() {
            // A frame in a frame: nobody makes that.
            self.counters.frames_odd += 1;
            return None;
        }
        let link = self.links.get(&hop.neighbour).filter(|link| self.router.accepts(**link));
        if link.is_none() {
            self.counters.frames_unexpected += 1;
            return None;
        }
        self.route(now_ns, &hop.header, frame, outside)
    }

    /// A frame of a member that is attached to this node: its source is that member's address.
    pub fn receive_attached(
        &mut self,
        now_ns: u64,
        member: &PublicKey,
        frame: &mut [u8],
        outside: &mut impl Outside,
    ) {
        let header = RelayHeader::parse(frame).ok();
        let header = header.filter(|header| header.source == member.address());
        let Some(header) = header else {
            self.counters.frames_odd += 1;
            return;
        };
        if let Some(way) = self.route(now_ns, &header, frame, outside) {
            let run = Run { start: 0, end: frame.len(), way };
            self.pass_on(now_ns, frame, &run, frame.len(), outside);
        }
    }

    /// Where a frame goes. For a neighbour it gets its new hop limit and tag.
    fn route(
        &mut self,
        now_ns: u64,
        header: &RelayHeader,
        frame: &mut [u8],
        outside: &mut impl Outside,
    ) -> Option<Way> {
        if header.destination == self.endpoint.key().address() {
            let (_, datagram) = frame.split_at_mut_checked(RELAY_HEADER_BYTES)?;
            let (member, is_alternate) = (header.source, header.is_alternate);
            self.take(now_ns, Path::Relayed { member, is_alternate }, datagram, outside);
            return None;
        }
        if let Some(member) = self.attached.get(&header.destination) {
            return Some(Way::Attached(*member));
        }
        if header.hop_limit <= 1 {
            self.counters.frames_expired += 1;
            self.notify_expired(now_ns, header, frame, outside);
            return None;
        }
        self.forward(now_ns, &header.destination, header.is_alternate, header.hop_limit - 1, frame)
    }

    fn forward(
        &mut self,
        now_ns: u64,
        destination: &Ipv6Addr,
        is_alternate: bool,
        hop_limit: u8,
        frame: &mut [u8],
    ) -> Option<Way> {
        let NextHop::Link(link) = self.router.next_hop(now_ns, destination, is_alternate) else {
            self.counters.frames_unroutable += 1;
            return None;
        };
        let key = self.links.iter().find(|(_, id)| **id == link).map(|(key, _)| *key)?;
        if let Some([_, _, limit, flags]) = frame.first_chunk_mut() {
            *limit = hop_limit;
            *flags = 0;
        }
        let path = self.endpoint.seal_frame(&key, frame)?;
        Some(Way::Neighbour(link, path))
    }

    fn pass_on(
        &mut self,
        now_ns: u64,
        batch: &[u8],
        run: &Run,
        stride: usize,
        outside: &mut impl Outside,
    ) {
        let frames = batch.get(run.start..run.end).unwrap_or_default();
        match run.way {
            Way::Neighbour(link, path) => {
                self.router.sent(now_ns, link);
                send(outside, path, frames, stride);
            }
            Way::Attached(member) => outside.attached(&member, frames, stride),
        }
        self.counters.frames_forwarded += frames.len().div_ceil(stride.max(1)) as u64;
    }

    /// Tells the sender of a frame that it went through too many routers: for `trace`.
    fn notify_expired(
        &mut self,
        now_ns: u64,
        header: &RelayHeader,
        frame: &[u8],
        outside: &mut impl Outside,
    ) {
        let second = now_ns / 1_000_000_000;
        let (at, count) = self.notices;
        self.notices = if at == second { (at, count + 1) } else { (second, 1) };
        let inside = frame.get(RELAY_HEADER_BYTES..).and_then(<[u8]>::first_chunk);
        let Some(inside) = inside.filter(|_| self.notices.1 <= NOTICES_PER_S) else { return };
        let own = self.endpoint.key().address();
        let back = RelayHeader {
            hop_limit: wire::HOP_LIMIT,
            is_alternate: false,
            receiver: 0,
            counter: 0,
            destination: header.source,
            source: own,
        };
        let mut notice = back.to_bytes().to_vec();
        wire::write_expired(&mut notice, inside, &own);
        let way = self.forward(now_ns, &header.source, false, wire::HOP_LIMIT, &mut notice);
        if let Some(way) = way {
            let run = Run { start: 0, end: notice.len(), way };
            self.pass_on(now_ns, &notice, &run, notice.len(), outside);
        }
    }

    /// The host sends a packet or super-frame.
    pub fn send(&mut self, now_ns: u64, header: &VirtioNetHeader, packet: &[u8]) {
        self.endpoint.send_frame(now_ns, header, packet);
    }

    /// Does what is due and passes on what waits. To be called after everything that happened in a
    /// turn.
    pub fn finish_turn(&mut self, now_ns: u64, outside: &mut impl Outside) {
        if self.endpoint.next_deadline().is_some_and(|due_ns| due_ns <= now_ns) {
            self.endpoint.handle_deadline(now_ns);
        }
        if self.router.next_deadline() <= now_ns {
            self.router.handle_deadline(now_ns);
        }
        self.redial(now_ns);
        self.handle_events(now_ns);
        self.transmit(now_ns, outside);
        self.coalescer.flush(&mut |header, packet| outside.deliver(header, packet));
    }

    /// When [`Core::finish_turn`] is due even if nothing happens.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        let redial = self.configured.iter().filter(|(key, _)| !self.links.contains_key(*key));
        let redial = redial.map(|(_, redial)| redial.at_ns).min();
        let all = [self.endpoint.next_deadline(), Some(self.router.next_deadline()), redial];
        all.into_iter().flatten().min()
    }

    /// Calls configured neighbours that there is no session with.
    fn redial(&mut self, now_ns: u64) {
        let mut connected = Vec::new();
        for (key, redial) in &mut self.configured {
            if self.links.contains_key(key) {
                redial.pause_ns = *REDIAL_NS.start();
                redial.at_ns = now_ns.saturating_add(redial.pause_ns);
            } else if redial.at_ns <= now_ns {
                redial.at_ns = now_ns.saturating_add(redial.pause_ns);
                redial.pause_ns = (2 * redial.pause_ns).min(*REDIAL_NS.end());
                self.endpoint.connect(now_ns, key);
                if self.endpoint.is_connected(key) {
                    connected.push(*key);
                }
            }
        }
        // The session outlived the link: the router finds out whether it works again.
        for key in connected {
            self.take_up(now_ns, key);
        }
    }

    fn handle_events(&mut self, now_ns: u64) {
        while let Some(event) = self.endpoint.poll_event() {
            self.handle_member_event(now_ns, event);
        }
        while let Some(event) = self.router.poll_event() {
            self.handle_router_event(now_ns, event);
        }
    }

    fn handle_member_event(&mut self, now_ns: u64, event: Event) {
        match event {
            Event::Up(key) => {
                if self.configured.contains_key(&key) {
                    self.take_up(now_ns, key);
                }
            }
            Event::Down(key) => {
                if let Some(link) = self.links.remove(&key) {
                    self.router.link_down(now_ns, link);
                }
            }
            Event::Resolve(address) => self.resolve(now_ns, &address),
            Event::Router { from, path, message } => {
                // A router's word counts on the very link that it is about.
                if path.is_direct()
                    && let Some(link) = self.take_up(now_ns, from)
                {
                    self.router.receive(now_ns, link, &message);
                }
            }
            Event::PathDied { peer, path } => self.avoid(now_ns, &peer, path),
            Event::Expired { index, router } => self.keep_trace(index, router),
            Event::UnknownSession { index, path: Path::Relayed { member, .. } } => {
                self.keep_trace(index, member);
            }
            Event::UnknownSession { .. } => {}
            Event::Pong { from, path, number } => {
                if self.pongs.len() < ANSWERS_MAX {
                    self.pongs.push((number, from, path));
                }
            }
        }
    }

    /// Packets wait for whoever has this address. If the router has to look for it, the answer
    /// comes as an event.
    fn resolve(&mut self, now_ns: u64, address: &Ipv6Addr) {
        if let Some(key) = self.router.resolve(address) {
            self.learn(now_ns, address, &key);
        } else if self.router.next_hop(now_ns, address, false) == NextHop::Unreachable {
            self.endpoint.give_up(address);
        }
    }

    fn keep_trace(&mut self, token: u32, router: Ipv6Addr) {
        if self.traces.len() < ANSWERS_MAX {
            self.traces.push((token, router));
        }
    }

    fn handle_router_event(&mut self, now_ns: u64, event: RouterEvent) {
        match event {
            RouterEvent::Resolved(address) => match self.router.resolve(&address) {
                Some(key) => self.learn(now_ns, &address, &key),
                None => self.endpoint.give_up(&address),
            },
            RouterEvent::Unreachable(address) => self.endpoint.give_up(&address),
            RouterEvent::LinkUp(_) => {}
            RouterEvent::LinkDead(link) => {
                let key = self.links.iter().find(|(_, id)| **id == link).map(|(key, _)| *key);
                if let Some(key) = key {
                    self.endpoint.direct_paths_failed(&key);
                }
            }
            // Anybody can ask for any number: it gets the next one.
            RouterEvent::SequenceWanted { key, .. } => self.want(key, 0),
            // This one was signed with the key itself.
            RouterEvent::Superseded { key, sequence } => self.want(key, sequence + 1),
        }
    }

    fn want(&mut self, key: PublicKey, number: u64) {
        if self.wanted.len() < ANSWERS_MAX {
            self.wanted.push((key, number));
        }
    }

    /// The member with an address is known: what waits for it is sent. The key has to be the one
    /// that the address follows from; a node's prefix alone names nobody.
    fn learn(&mut self, now_ns: u64, address: &Ipv6Addr, key: &PublicKey) {
        if key.address() == *address {
            self.endpoint.learn(now_ns, key, &[]);
        } else {
            self.endpoint.give_up(address);
        }
    }

    /// The router's link to a neighbour, made if there is room for one.
    fn take_up(&mut self, now_ns: u64, key: PublicKey) -> Option<LinkId> {
        if let Some(link) = self.links.get(&key) {
            return Some(*link);
        }
        match self.router.link_up(now_ns, key, 0) {
            Ok(link) => {
                self.links.insert(key, link);
                Some(link)
            }
            Err(error) => {
                tracing::debug!(%key, %error, "no link");
                self.counters.links_refused += 1;
                None
            }
        }
    }

    /// The way to a member that a router nearby chose does not work: another is taken for a while.
    fn avoid(&mut self, now_ns: u64, peer: &PublicKey, path: Path) {
        if let Path::Relayed { member, is_alternate: false } = path
            && let NextHop::Link(link) = self.router.route_to(&member, false)
        {
            tracing::debug!(%peer, "a router on the way drops what it is given");
            self.router.avoid(now_ns, &member, link);
        }
    }

    /// Passes on what the router and the member have to send.
    pub fn transmit(&mut self, now_ns: u64, outside: &mut impl Outside) {
        while let Some((link, message)) = self.router.poll_transmit() {
            let key = self.links.iter().find(|(_, id)| **id == link).map(|(key, _)| *key);
            if let Some(key) = key {
                self.endpoint.send_router_message(&key, &message);
            }
        }
        while let Some(Transmit { to, mut bytes, stride }) = self.endpoint.poll_transmit() {
            match to {
                Path::Relayed { .. } => self.relay_own(now_ns, &mut bytes, stride, outside),
                Path::Direct(to) => outside.send(to, &bytes, stride),
                Path::Stream(number) => outside.send_stream(number, &bytes, stride),
            }
            self.endpoint.recycle(bytes);
        }
    }

    /// Frames of the node's own member: all of one buffer are for one other.
    fn relay_own(
        &mut self,
        now_ns: u64,
        bytes: &mut [u8],
        stride: usize,
        outside: &mut impl Outside,
    ) {
        let stride = stride.max(1);
        let mut way = None;
        for frame in bytes.chunks_mut(stride) {
            let Ok(header) = RelayHeader::parse(frame) else { return };
            way = if let Some(member) = self.attached.get(&header.destination) {
                Some(Way::Attached(*member))
            } else {
                let (to, is_alternate) = (header.destination, header.is_alternate);
                self.forward(now_ns, &to, is_alternate, header.hop_limit, frame)
            };
        }
        if let Some(way) = way {
            let run = Run { start: 0, end: bytes.len(), way };
            self.pass_on(now_ns, bytes, &run, stride, outside);
        }
    }
}

fn is_frame(datagram: &[u8]) -> bool {
    matches!(datagram, [wire::VERSION, kind, ..] if *kind == Kind::Relayed as u8)
}

fn send(outside: &mut impl Outside, to: Path, datagrams: &[u8], stride: usize) {
    match to {
        Path::Direct(to) => outside.send(to, datagrams, stride),
        Path::Stream(number) => outside.send_stream(number, datagrams, stride),
        // What goes through routers was made a frame for one before.
        Path::Relayed { .. } => {}
    }
}
