//! Control messages: probes of the ways to a peer, the addresses that members tell each other to
//! meet behind NATs, halves of packets, and what routers say.

use std::net::SocketAddr;

use super::control::{CANDIDATES_MAX, Control, is_plausible};
use super::paths::{ACTIVE_NS, Due, Path};
use super::transmit::{DIRECT_ROOM, RELAYED_ROOM};
use super::{DropReason, Endpoint, Event};
use crate::identity::PublicKey;
use crate::offload::VirtioNetHeader;

/// How often this member's addresses are told to a peer at most, unless it just told its own.
const TELL_NS: u64 = 30_000_000_000;
const TELL_BACK_NS: u64 = 2_000_000_000;
/// The bit that tells the numbers of pings from those of probes.
const PING: u64 = 1 << 63;
/// How many addresses that peers saw are remembered.
const OBSERVED_MAX: usize = 2;

impl Endpoint {
    /// Where this member may be reached, as its owner knows: told to peers that it reaches through
    /// routers, so that both can try. At most [`CANDIDATES_MAX`] count.
    pub fn set_candidates(&mut self, candidates: Vec<SocketAddr>) {
        self.candidates = candidates;
    }

    /// Where peers saw this member, the newest last.
    pub fn observed(&self) -> impl Iterator<Item = SocketAddr> {
        self.observed.iter().copied()
    }

    /// Sends a router's message to a neighbour, on the best way that needs no router. Returns
    /// whether there was one. Routers never fall silent, so this is also what replaces a session in
    /// time on which a link's frames go, and perhaps nothing else.
    pub fn send_router_message(&mut self, now_ns: u64, to: &PublicKey, message: &[u8]) -> bool {
        let Some(index) = self.by_key.get(to).copied() else { return false };
        let path = self.peers.get(index).and_then(|peer| peer.paths.direct());
        let Some(path) = path else { return false };
        let sent = self.seal_control(index, path, &Control::Router(message));
        self.renew_if_old(now_ns, index);
        sent.map_err(|reason| self.counters.drop(reason)).is_ok()
    }

    /// Asks a peer whether it is there, on the way that data takes; an [`Event::Pong`] with the
    /// number that is returned follows if it is. `None` if there is no session.
    pub fn ping(&mut self, now_ns: u64, to: &PublicKey) -> Option<u64> {
        let index = self.by_key.get(to).copied()?;
        let path = self.peers.get(index).filter(|peer| peer.current.is_some())?.paths.current()?;
        self.pings += 1;
        let number = PING | self.pings;
        self.wake(now_ns, index);
        let sent = self.seal_control(index, path, &Control::Probe { number });
        sent.map_err(|reason| self.counters.drop(reason)).ok().map(|()| number)
    }

    /// A packet goes to the peer: if it has several ways and rested, what is known of them is old.
    pub(super) fn wake(&mut self, now_ns: u64, index: usize) {
        let Some(peer) = self.peers.get_mut(index).filter(|peer| peer.paths.is_plural()) else {
            return;
        };
        let rested = now_ns.saturating_sub(peer.sent_ns) >= ACTIVE_NS || peer.sent_ns == 0;
        peer.sent_ns = now_ns;
        if rested {
            peer.paths.wake(now_ns);
            self.rearm(index);
        }
    }

    /// A session with the peer came up: finds out which ways to it work, and tells it where else
    /// this member may be.
    pub(super) fn greet(&mut self, now_ns: u64, index: usize) {
        if self.is_routed {
            self.wake(now_ns, index);
            self.tell_candidates(now_ns, index, TELL_NS);
        }
    }

    /// Sends what probes are due, and notices which are overdue.
    pub(super) fn probe(&mut self, now_ns: u64, index: usize) {
        loop {
            let Some(peer) = self.peers.get_mut(index) else { return };
            let is_active = now_ns < peer.sent_ns.saturating_add(ACTIVE_NS);
            if peer.current.is_none() || !peer.paths.is_plural() || !is_active {
                // What was due while nobody looked (the host slept) is not due any more.
                peer.paths.rest();
                return;
            }
            let key = peer.key;
            match peer.paths.poll(now_ns) {
                None => return,
                Some(Due::Died(path)) => {
                    tracing::debug!(peer = %key, ?path, "a way to the peer died");
                    if let Path::Relayed { is_alternate: false, .. } = path {
                        peer.is_here = false;
                    }
                    self.tell(Event::PathDied { peer: key, path });
                    self.tell_candidates(now_ns, index, TELL_BACK_NS);
                }
                Some(Due::Probe { path, number, is_wide }) => {
                    let padded = match (is_wide, path.is_direct()) {
                        (false, _) => 0,
                        (true, true) => DIRECT_ROOM,
                        (true, false) => RELAYED_ROOM,
                    };
                    let sent = self.seal(index, path, |bytes| {
                        let start = bytes.len();
                        Control::Probe { number }.write(bytes);
                        bytes.resize(bytes.len().max(start + padded), 0);
                    });
                    self.count(sent);
                }
            }
        }
    }

    fn count(&mut self, outcome: Result<(), DropReason>) {
        if let Err(reason) = outcome {
            self.counters.drop(reason);
        }
    }

    pub(super) fn receive_control(
        &mut self,
        now_ns: u64,
        index: usize,
        from: Path,
        message: &[u8],
        deliver: &mut dyn FnMut(&VirtioNetHeader, &[u8]),
    ) -> Result<(), DropReason> {
        let message = Control::parse(message).ok_or(DropReason::InboundControl)?;
        match message {
            Control::Probe { number } => {
                let observed = match from {
                    Path::Direct(address) => Some(address),
                    Path::Stream(_) | Path::Relayed { .. } | Path::Local(_) => None,
                };
                let Some(peer) = self.peers.get(index) else { return Ok(()) };
                let ways = peer.paths.for_reply(from);
                let reply = Control::Reply { number, observed };
                ways.into_iter().try_for_each(|way| self.seal_control(index, way, &reply))
            }
            Control::Reply { number, observed } => {
                self.receive_reply(now_ns, index, from, number, observed);
                Ok(())
            }
            Control::Candidates(places) => self.receive_candidates(now_ns, index, &places),
            Control::Fragment { identity, is_last, offset, bytes } => {
                let Some(peer) = self.peers.get_mut(index) else { return Ok(()) };
                let whole = peer.halves.take(now_ns, (identity, is_last, offset), bytes);
                whole.map_or(Ok(()), |packet| self.admit(now_ns, index, &packet, false, deliver))
            }
            Control::Router(message) => {
                let Some(peer) = self.peers.get(index) else { return Ok(()) };
                let (path, message) = (from, message.to_vec());
                self.tell(Event::Router { from: peer.key, path, message });
                Ok(())
            }
            Control::Certificates(message) => self.receive_certificates(now_ns, index, message),
            Control::AskAlias(address) => {
                let Some(peer) = self.peers.get(index) else { return Ok(()) };
                self.tell(Event::AliasAsked { from: peer.key, address });
                Ok(())
            }
            Control::Alias { address, certificate } => {
                let Some(peer) = self.peers.get(index) else { return Ok(()) };
                let certificate = certificate.map(|bytes| Box::new(*bytes));
                self.tell(Event::Alias { from: peer.key, address, certificate });
                Ok(())
            }
        }
    }

    fn receive_reply(
        &mut self,
        now_ns: u64,
        index: usize,
        from: Path,
        number: u64,
        observed: Option<SocketAddr>,
    ) {
        let Some(peer) = self.peers.get_mut(index) else { return };
        if number & PING != 0 {
            let from_key = peer.key;
            return self.tell(Event::Pong { from: from_key, path: from, number });
        }
        if peer.paths.replied(now_ns, number) {
            let current = peer.paths.current();
            tracing::debug!(peer = %peer.key, path = ?current, "data takes another way");
        }
        self.rearm(index);
        let Some(observed) = observed.filter(is_plausible) else { return };
        if matches!(from, Path::Direct(_)) && !self.observed.contains(&observed) {
            if self.observed.len() >= OBSERVED_MAX {
                self.observed.pop_front();
            }
            self.observed.push_back(observed);
        }
    }

    /// Tries the addresses that a peer named. Both sides do at about the same time, so that each
    /// NAT in between has seen a datagram go out before one comes in. They may be anybody's, and a
    /// message of a few bytes names many: a peer is heard about them now and then only.
    fn receive_candidates(
        &mut self,
        now_ns: u64,
        index: usize,
        places: &[SocketAddr],
    ) -> Result<(), DropReason> {
        let Some(peer) = self.peers.get_mut(index).filter(|peer| peer.paths.is_plural()) else {
            return Ok(());
        };
        if !peer.candidates.take(now_ns) {
            return Err(DropReason::InboundControl);
        }
        for place in places.iter().filter(|place| is_plausible(place)) {
            peer.paths.add(now_ns, Path::Direct(*place));
        }
        peer.sent_ns = now_ns;
        self.tell_candidates(now_ns, index, TELL_BACK_NS);
        self.probe(now_ns, index);
        self.rearm(index);
        Ok(())
    }

    /// Tells a peer where this member may be, unless that was said less than `pause_ns` ago.
    fn tell_candidates(&mut self, now_ns: u64, index: usize, pause_ns: u64) {
        let places = self.candidates.iter().chain(&self.observed).copied();
        let mut known: Vec<_> = places.collect();
        known.dedup();
        known.truncate(CANDIDATES_MAX);
        let Some(peer) = self.peers.get_mut(index) else { return };
        let is_recent = peer.told_ns.is_some_and(|told| now_ns.saturating_sub(told) < pause_ns);
        let path = peer.paths.current().filter(|_| peer.paths.is_plural());
        let Some(path) = path.filter(|_| !known.is_empty() && !is_recent) else { return };
        peer.told_ns = Some(now_ns);
        let sent = self.seal_control(index, path, &Control::Candidates(known));
        self.count(sent);
    }
}
