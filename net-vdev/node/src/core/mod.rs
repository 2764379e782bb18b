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

mod aliases;
mod attached;
mod diagnosis;
mod found;
mod links;
mod searches;
mod streams;
mod waiting;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv6Addr, SocketAddr};

use aliases::Aliases;
use aliases::Whose;
pub use attached::{ATTACHED_MAX, AttachError};
pub(crate) use diagnosis::Target;
use mesh_router::{LinkId, NextHop, OriginateError, Router};
use net_vdev::announcement::SignedAnnouncement;
use net_vdev::certificate::ALIAS_BYTES;
use net_vdev::endpoint::{Endpoint, Hop, Path, Transmit};
use net_vdev::offload::{Accepts, Coalescer, VirtioNetHeader};
use net_vdev::wire::{self, Kind, RELAY_HEADER_BYTES, RelayHeader};
use net_vdev::{PublicKey, Rule};

use crate::counters::CoreCounters;
use searches::Searches;
use waiting::WaitingFrames;

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
    /// Tells an attached member that another one is attached too, or not any more.
    fn here(&mut self, member: &PublicKey, other: &PublicKey, is_here: bool);
    /// Tells an attached member whose address this is, or that it is nobody's.
    fn resolved(&mut self, member: &PublicKey, address: &Ipv6Addr, whose: Resolved<'_>);
}

/// Whose an address is, for a member that asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resolved<'a> {
    /// The one with this key.
    Key(&'a PublicKey),
    /// That of the workload of this certificate, whose alias it is.
    Alias(&'a [u8; ALIAS_BYTES]),
    /// Nobody's, or not any more.
    Nobody,
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
    /// The members that are attached, by address.
    attached: BTreeMap<Ipv6Addr, PublicKey>,
    /// Pairs of them that were told that they are both here, the smaller key first.
    introduced: BTreeSet<(PublicKey, PublicKey)>,
    /// Which of them wait to be told whose address one is.
    asked: BTreeMap<Ipv6Addr, BTreeSet<PublicKey>>,
    /// What members and neighbours had looked for of late.
    searches: Searches,
    aliases: Aliases,
    coalescer: Coalescer,
    counters: CoreCounters,
    /// Frames for members that the router is looking for.
    waiting: WaitingFrames,
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
    /// Where it should be.
    at: Option<SocketAddr>,
    /// Whether it was found on a local network, and when it was last heard of there.
    is_found: bool,
    heard_ns: u64,
    /// When a link last led to it.
    reached_ns: u64,
    /// Since when UDP works while there is a stream, and when that was last tried.
    udp_since_ns: Option<u64>,
    looked_ns: u64,
}

const REDIAL_NS: std::ops::RangeInclusive<u64> = 1_000_000_000..=30_000_000_000;

/// Frames of one batch on their way to one neighbour: a range of the buffer.
struct Run {
    start: usize,
    end: usize,
    way: Way,
}

/// Where a frame of a batch went: those behind it with the same ends go there too, and nothing is
/// looked up again. Each has its own tag on this link and on the next.
struct Trail {
    hop: Hop,
    link: LinkId,
    next: PublicKey,
}

impl Trail {
    fn has(&self, other: &Hop) -> bool {
        let (mine, other_header) = (&self.hop.header, &other.header);
        self.hop.neighbour == other.neighbour
            && mine.destination == other_header.destination
            && mine.source == other_header.source
            && mine.is_alternate == other_header.is_alternate
            && other_header.hop_limit > 1
    }
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
            introduced: BTreeSet::new(),
            asked: BTreeMap::new(),
            searches: Searches::default(),
            aliases: Aliases::default(),
            coalescer: Coalescer::new(accepts),
            counters: CoreCounters::default(),
            waiting: WaitingFrames::default(),
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

    /// Goes by these rules from now on; flows that are open go on.
    pub fn set_rules(&mut self, rules: &[Rule]) {
        self.endpoint.set_rules(rules);
    }

    /// Shows these certificates of labels to peers from now on.
    pub fn set_certificates(&mut self, now_ns: u64, certificates: &[Vec<u8>]) {
        let count = self.endpoint.set_certificates(now_ns, certificates);
        if count < certificates.len() {
            tracing::warn!("{count} of {} certificates count now", certificates.len());
        }
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
        self.endpoint.begin_batch();
        let mut run: Option<Run> = None;
        let mut trail: Option<Trail> = None;
        let mut start = 0;
        while start < batch.len() {
            let rest = batch.get(start..).unwrap_or_default();
            let own = rest.chunks(stride).take_while(|datagram| !is_frame(datagram)).count();
            let end = batch.len().min(start + own.max(1) * stride);
            let Some(datagrams) = batch.get_mut(start..end) else { break };
            let way = if own > 0 {
                trail = None;
                self.take(now_ns, from, datagrams, stride, outside);
                None
            } else {
                self.hop(now_ns, from, datagrams, &mut trail, outside)
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

    /// Datagrams for this node's own member.
    fn take(
        &mut self,
        now_ns: u64,
        from: Path,
        datagrams: &mut [u8],
        stride: usize,
        outside: &mut impl Outside,
    ) {
        let deliver = &mut merging(&mut self.coalescer, outside);
        self.endpoint.receive(now_ns, from, datagrams, stride, deliver);
    }

    /// Checks a frame of a neighbour and makes it ready for the next hop; `None` if it ends here.
    fn hop(
        &mut self,
        now_ns: u64,
        from: Path,
        frame: &mut [u8],
        trail: &mut Option<Trail>,
        outside: &mut impl Outside,
    ) -> Option<Way> {
        let hop = self.endpoint.open_frame(now_ns, frame)?;
        if let Some(trail) = trail.as_ref().filter(|trail| trail.has(&hop)) {
            return self.hand_on(trail.link, &trail.next, hop.header.hop_limit - 1, frame);
        }
        *trail = None;
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
        let way = self.route(now_ns, &hop.neighbour, &hop.header, frame, outside);
        if let Some(Way::Neighbour(link, _)) = way
            && let Some(next) = self.neighbour(link)
        {
            *trail = Some(Trail { hop, link, next });
        }
        way
    }

    /// A frame of a member that is attached to this node: its source is that member's address.
    pub fn receive_attached(
        &mut self,
        now_ns: u64,
        member: &PublicKey,
        frame: &mut [u8],
        outside: &mut impl Outside,
    ) {
        self.endpoint.begin_batch();
        let header = RelayHeader::parse(frame).ok();
        let header = header.filter(|header| header.source == member.address());
        let Some(header) = header else {
            self.counters.frames_odd += 1;
            return;
        };
        if let Some(way) = self.route(now_ns, member, &header, frame, outside) {
            if let Way::Attached(other) = &way {
                self.introduce(member, other, outside);
            }
            let run = Run { start: 0, end: frame.len(), way };
            self.pass_on(now_ns, frame, &run, frame.len(), outside);
        }
    }

    /// Where a frame goes that a neighbour or an attached member sent. For a neighbour it gets its new
    /// hop limit and tag.
    fn route(
        &mut self,
        now_ns: u64,
        from: &PublicKey,
        header: &RelayHeader,
        frame: &mut [u8],
        outside: &mut impl Outside,
    ) -> Option<Way> {
        if header.destination == self.endpoint.address() {
            let (_, datagram) = frame.split_at_mut_checked(RELAY_HEADER_BYTES)?;
            let (member, is_alternate) = (header.source, header.is_alternate);
            let from = Path::Relayed { member, is_alternate };
            let deliver = &mut merging(&mut self.coalescer, outside);
            self.endpoint.receive_next(now_ns, from, datagram, deliver);
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
        if !self.may_search(now_ns, from, &header.destination) {
            self.counters.frames_unroutable += 1;
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
        let link = match self.router.next_hop(now_ns, destination, is_alternate) {
            NextHop::Link(link) => link,
            NextHop::Pending => {
                self.waiting.keep(destination, hop_limit, frame);
                return None;
            }
            NextHop::Local(_) | NextHop::Unreachable => {
                self.counters.frames_unroutable += 1;
                return None;
            }
        };
        let key = self.neighbour(link)?;
        self.hand_on(link, &key, hop_limit, frame)
    }

    /// Makes a frame ready for a neighbour.
    fn hand_on(
        &mut self,
        link: LinkId,
        key: &PublicKey,
        hop_limit: u8,
        frame: &mut [u8],
    ) -> Option<Way> {
        if let Some([_, _, limit, flags]) = frame.first_chunk_mut() {
            *limit = hop_limit;
            *flags = 0;
        }
        let path = self.endpoint.seal_frame(key, frame)?;
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
        self.handle_events(now_ns, outside);
        self.keep_aliases(now_ns, outside);
        self.transmit(now_ns, outside);
        self.coalescer.flush(&mut |header, packet| outside.deliver(header, packet));
    }

    /// When [`Core::finish_turn`] is due even if nothing happens.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        let redial = self.configured.iter().filter(|(key, _)| !self.links.contains_key(*key));
        let redial = redial.map(|(_, redial)| redial.at_ns).min();
        let aliases = self.aliases.deadline_ns();
        let router = Some(self.router.next_deadline());
        let all = [self.endpoint.next_deadline(), router, redial, aliases];
        all.into_iter().flatten().min()
    }

    /// Passes on what the router and the member have to send.
    pub fn transmit(&mut self, now_ns: u64, outside: &mut impl Outside) {
        while let Some((link, message)) = self.router.poll_transmit() {
            if let Some(key) = self.neighbour(link) {
                self.endpoint.send_router_message(now_ns, &key, &message);
            }
        }
        while let Some(Transmit { to, mut bytes, stride }) = self.endpoint.poll_transmit() {
            match to {
                Path::Relayed { .. } => self.relay_own(now_ns, &mut bytes, stride, outside),
                Path::Direct(to) => outside.send(to, &bytes, stride),
                Path::Stream(number) => outside.send_stream(number, &bytes, stride),
                // Only a card has peers that are attached to the same router.
                Path::Local(_) => self.counters.frames_odd += 1,
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
        let mut next = None;
        for frame in bytes.chunks_mut(stride) {
            let Ok(header) = RelayHeader::parse(frame) else { return };
            way = if let Some((link, key)) = next {
                self.hand_on(link, &key, header.hop_limit, frame)
            } else if let Some(member) = self.attached.get(&header.destination) {
                Some(Way::Attached(*member))
            } else {
                let (to, is_alternate) = (header.destination, header.is_alternate);
                self.forward(now_ns, &to, is_alternate, header.hop_limit, frame)
            };
            if let (None, Some(Way::Neighbour(link, _))) = (next, way) {
                next = self.neighbour(link).map(|key| (link, key));
            }
        }
        if let Some(way) = way {
            let run = Run { start: 0, end: bytes.len(), way };
            self.pass_on(now_ns, bytes, &run, stride, outside);
        }
    }
}

/// Merges packets for the node's host.
fn merging(
    coalescer: &mut Coalescer,
    outside: &mut impl Outside,
) -> impl FnMut(&VirtioNetHeader, &[u8]) {
    move |header, packet| {
        coalescer.push(header, packet, &mut |header, packet| outside.deliver(header, packet));
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
        Path::Relayed { .. } | Path::Local(_) => {}
    }
}
