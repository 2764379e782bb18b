//! How sessions come about: starting, answering, retrying, asking for a proof of an address, and
//! telling a peer that its session is unknown here.

use super::peer::{Attempt, Started};
use super::{DropReason, Endpoint, Event, Path, TRANSMITS_MAX};
use crate::cookie::{COOKIE_NS, Cookie};
use crate::reassembly::Outcome;
use crate::session::Session;
use crate::session::handshake::{self, HandshakeError, Keys, Offer, Received, Timestamp};
use crate::session::post_quantum::CIPHERTEXT_BYTES;
use crate::wire::{self, COOKIE_NONCE_BYTES, CookieReply, Datagram, Fragment, Handshake};

/// The pause before the first retry; each further one is twice as long, up to
/// [`RETRY_NS_MAX`], and up to a quarter longer at random.
const RETRY_NS: u64 = 300_000_000;
const RETRY_NS_MAX: u64 = 5_000_000_000;
/// When to give a handshake up; the next packet for the peer starts anew.
const GIVE_UP_NS: u64 = 60_000_000_000;

impl Endpoint {
    /// Starts a handshake with a peer unless one is under way. If the peer has just started one
    /// itself, its first data is awaited before that.
    pub(super) fn begin_handshake(&mut self, now_ns: u64, index: usize) {
        let Some(peer) = self.peers.get_mut(index) else { return };
        if peer.attempt.is_some() {
            return;
        }
        let is_young = |next: &Session| now_ns.saturating_sub(next.created_ns) < RETRY_NS;
        let waits = peer.next.as_ref().is_some_and(is_young);
        let retry_at_ns = now_ns.saturating_add(RETRY_NS);
        peer.attempt = Some(Attempt::new(now_ns, retry_at_ns));
        if waits {
            self.rearm(index);
        } else {
            self.send_initiation(now_ns, index);
        }
    }

    /// Sends a fresh initiation for the peer's attempt, and sets when to retry.
    fn send_initiation(&mut self, now_ns: u64, index: usize) {
        self.forget_initiation(index);
        let timestamp = self.next_timestamp(now_ns);
        let local = self.fresh_index(index);
        let seed = self.random.seed();
        let jitter = self.random.u64();
        let Some(peer) = self.peers.get_mut(index) else { return };
        let Some(attempt) = peer.attempt.as_ref() else { return };
        let tries = attempt.tries;
        let ciphers = self.ciphers;
        let offer = Offer { ciphers, open_checksums: true, index: local, timestamp };
        let started =
            handshake::initiate(&self.identity, &peer.key, offer, self.post_quantum, seed);
        let (Some(to), Ok((noise, message))) = (peer.paths.for_handshake(tries), started) else {
            self.indices.remove(&local);
            self.abandon(index);
            return;
        };
        let mut datagram = Vec::new();
        let mac1 = wire::write_initiation(&mut datagram, &message, &peer.mac_key);
        let is_proven = peer.prove(now_ns, &mut datagram);
        let pause_ns = (RETRY_NS << tries.min(8)).min(RETRY_NS_MAX);
        if let Some(attempt) = peer.attempt.as_mut() {
            attempt.tries = tries.saturating_add(1);
            attempt.retry_at_ns = now_ns.saturating_add(pause_ns + jitter % (pause_ns / 4));
            attempt.pending = Some(Started {
                noise,
                index: local,
                to,
                datagram: datagram.clone(),
                mac1,
                is_proven,
                was_repeated: false,
                in_pieces: tries > 0,
            });
        }
        self.counters.initiations_sent += 1;
        self.transmit_initiation(to, datagram, tries > 0);
        self.rearm(index);
    }

    /// Retries the peer's handshake if that is due, or gives it up.
    pub(super) fn retry_handshake(&mut self, now_ns: u64, index: usize) {
        let Some(peer) = self.peers.get_mut(index) else { return };
        let Some(attempt) = peer.attempt.as_ref().filter(|it| it.retry_at_ns <= now_ns) else {
            return;
        };
        if now_ns.saturating_sub(attempt.started_ns) >= GIVE_UP_NS {
            self.abandon(index);
        } else {
            self.send_initiation(now_ns, index);
        }
    }

    /// Gives the peer's handshake up, and drops what waits for it.
    fn abandon(&mut self, index: usize) {
        self.forget_initiation(index);
        let Some(peer) = self.peers.get_mut(index) else { return };
        peer.attempt = None;
        let given_up = std::mem::take(&mut peer.waiting).len();
        let is_down = peer.current.is_none();
        let key = peer.key;
        self.counters.drop_many(DropReason::OutboundUnanswered, given_up as u64);
        self.rearm(index);
        if is_down {
            self.tell(Event::Down(key));
        }
    }

    /// Forgets the initiation that was sent last: an answer to it no longer counts.
    pub(super) fn forget_initiation(&mut self, index: usize) {
        let attempt = self.peers.get_mut(index).and_then(|peer| peer.attempt.as_mut());
        if let Some(started) = attempt.and_then(|attempt| attempt.pending.take()) {
            self.indices.remove(&started.index);
        }
    }

    pub(super) fn receive_initiation(
        &mut self,
        now_ns: u64,
        from: Path,
        message: &Handshake<'_>,
    ) -> Result<(), DropReason> {
        if !self.mac_key.matches(message) {
            return Err(DropReason::HandshakeMac);
        }
        self.admit_initiation(now_ns, from, message)?;
        let seed = self.random.seed();
        let received = handshake::receive(&self.identity, message.noise, seed)
            .map_err(|_| DropReason::HandshakeForged)?;
        let known = self.by_key.get(&received.peer).copied();
        let index = match known {
            Some(index) => index,
            None => self.welcome(now_ns, &received.peer, from)?,
        };
        let peer = self.peers.get_mut(index).ok_or(DropReason::HandshakeStranger)?;
        if peer.newest_initiation.is_some_and(|newest| received.offer.timestamp <= newest) {
            return Err(DropReason::HandshakeReplayed);
        }
        peer.newest_initiation = Some(received.offer.timestamp);
        let started = peer.attempt.as_mut().and_then(|attempt| attempt.pending.as_mut());
        match started {
            // Both sides started at once: the one with the smaller key goes on, and makes sure
            // that the other has its initiation; the other answers.
            Some(started) if self.key < peer.key => {
                if std::mem::replace(&mut started.was_repeated, true) {
                    self.send_initiation(now_ns, index);
                } else {
                    let (datagram, in_pieces) = (started.datagram.clone(), started.in_pieces);
                    self.transmit_initiation(from, datagram, in_pieces);
                }
                Err(DropReason::HandshakeCrossed)
            }
            _ => self.answer(now_ns, from, index, received),
        }
    }

    fn answer(
        &mut self,
        now_ns: u64,
        from: Path,
        index: usize,
        received: Received,
    ) -> Result<(), DropReason> {
        let local = self.fresh_index(index);
        let accepted = received.accept(self.ciphers, self.post_quantum, local);
        let accepted = accepted.map_err(reason).and_then(|accepted| {
            let session = Session::new(&accepted.keys, local, now_ns);
            session.map(|session| (accepted, session)).ok_or(DropReason::HandshakeForged)
        });
        let peer = self.peers.get_mut(index).ok_or(DropReason::HandshakeStranger);
        let (accepted, session, peer) = match (accepted, peer) {
            (Ok((accepted, session)), Ok(peer)) => (accepted, session, peer),
            (Err(reason), _) | (_, Err(reason)) => {
                self.indices.remove(&local);
                return Err(reason);
            }
        };
        let (to, ciphertext) = (session.remote, accepted.ciphertext.as_deref());
        let mut datagram = Vec::new();
        wire::write_response(&mut datagram, to, ciphertext, &accepted.message, &peer.mac_key);
        let unconfirmed = peer.next.replace(session);
        // This side's own attempt rests until the peer's had its chance.
        if let Some(attempt) = peer.attempt.as_mut() {
            attempt.retry_at_ns = attempt.retry_at_ns.max(now_ns.saturating_add(RETRY_NS));
        }
        self.retire(unconfirmed);
        self.transmit(from, datagram);
        self.rearm(index);
        Ok(())
    }

    pub(super) fn receive_response(
        &mut self,
        now_ns: u64,
        from: Path,
        receiver: u32,
        (ciphertext, message): (Option<&[u8; CIPHERTEXT_BYTES]>, &Handshake<'_>),
    ) -> Result<(), DropReason> {
        if !self.mac_key.matches(message) {
            return Err(DropReason::HandshakeMac);
        }
        let index = *self.indices.get(&receiver).ok_or(DropReason::HandshakeUnasked)?;
        let peer = self.peers.get_mut(index).ok_or(DropReason::HandshakeUnasked)?;
        let attempt = peer.attempt.as_mut().ok_or(DropReason::HandshakeUnasked)?;
        let started = attempt.pending.as_mut().filter(|started| started.index == receiver);
        let started = started.ok_or(DropReason::HandshakeUnasked)?;
        if !attempt.responses.take(now_ns) {
            return Err(DropReason::HandshakeRate);
        }
        let keys: Keys = started.noise.finish(ciphertext, message.noise).map_err(reason)?;
        let session = Session::new(&keys, receiver, now_ns).ok_or(DropReason::HandshakeForged)?;
        // The index lives on as the session's.
        peer.attempt = None;
        peer.paths.answered(now_ns, from);
        peer.unanswered_since_ns = None;
        peer.heard_ns = now_ns;
        let old = peer.establish(session);
        let key = peer.key;
        tracing::debug!(peer = %key, path = ?from, "session up, this side initiated");
        self.retire(old);
        self.tell(Event::Up(key));
        self.counters.handshakes += 1;
        self.rearm(index);
        self.show_certificates(now_ns, index);
        self.send_waiting(now_ns, index, true);
        self.greet(now_ns, index);
        Ok(())
    }

    /// Data of the session that the peer started has verified: from now on it is the one to use.
    pub(super) fn confirm_next(&mut self, now_ns: u64, index: usize) {
        self.forget_initiation(index);
        let Some(peer) = self.peers.get_mut(index) else { return };
        peer.attempt = None;
        let old = peer.promote();
        let key = peer.key;
        tracing::debug!(peer = %key, "session up, the peer initiated");
        self.retire(old);
        self.tell(Event::Up(key));
        self.counters.handshakes += 1;
        self.rearm(index);
        self.show_certificates(now_ns, index);
        self.send_waiting(now_ns, index, false);
        self.greet(now_ns, index);
    }

    /// Sends what waited for a session. The initiator sends an empty packet if nothing did: the
    /// responder waits for data before it sends.
    fn send_waiting(&mut self, now_ns: u64, index: usize, confirm: bool) {
        let Some(peer) = self.peers.get_mut(index) else { return };
        let mut waiting = std::mem::take(&mut peer.waiting);
        if waiting.is_empty() && confirm {
            waiting.push_back(Vec::new());
        }
        for packet in waiting {
            if let Err(reason) = self.send_sealed(now_ns, index, &packet) {
                self.counters.drop(reason);
            }
        }
    }

    /// Tells whoever sent data that its session is unknown here: most likely this member was
    /// restarted. The notice proves nothing, and no longer datagram answers a shorter one.
    pub(super) fn send_notice(&mut self, now_ns: u64, to: Path, named: (u32, u64)) {
        if !self.notices.take(now_ns) {
            return;
        }
        let mut datagram = self.transmits.buffer();
        wire::write_unknown_session(&mut datagram, named.0, named.1);
        self.counters.notices_sent += 1;
        self.transmit(to, datagram);
    }

    /// A notice about a recent datagram of ours, from where the peer is, starts a handshake beside
    /// the session; the session stays until the new one has proven itself.
    pub(super) fn receive_notice(
        &mut self,
        now_ns: u64,
        from: Path,
        (remote, counter): (u32, u64),
    ) -> Result<(), DropReason> {
        // Anybody may send thousands of these: the check that costs less comes first.
        let named = self
            .peers
            .iter_mut()
            .find(|(_, peer)| peer.sent_recently(remote, counter) && peer.paths.is_at(&from));
        let Some((index, peer)) = named else {
            self.tell(Event::UnknownSession { index: remote, path: from });
            return Err(DropReason::Notice);
        };
        if !peer.notices.take(now_ns) {
            return Err(DropReason::Notice);
        }
        self.begin_handshake(now_ns, index);
        Ok(())
    }

    /// Whether an initiation from this address may cost Diffie-Hellman operations now; asks for a
    /// proof of the address if not.
    ///
    /// Peers have their own allowances at their endpoints, so that strangers can't use those up.
    /// But an address can be forged, so initiations that prove theirs are counted apart: whoever
    /// forges a peer's address keeps that peer from nothing but a handshake without a cookie.
    fn admit_initiation(
        &mut self,
        now_ns: u64,
        from: Path,
        message: &Handshake<'_>,
    ) -> Result<(), DropReason> {
        let is_proven = self.cookie_secrets.prove(now_ns, from.source(), message, &mut self.random);
        let mut peers = self.peers.iter_mut().map(|(_, peer)| peer);
        let peer = peers.find(|peer| peer.paths.is_at(&from));
        let is_admitted = match (peer, is_proven) {
            (Some(peer), true) => peer.proven.take(now_ns),
            (Some(peer), false) => peer.handshakes.take(now_ns),
            (None, true) => self.proven_strangers.take(now_ns, from.source().ip()),
            (None, false) => self.strangers.take(now_ns),
        };
        if is_admitted {
            return Ok(());
        }
        if !is_proven {
            self.send_cookie(now_ns, from, message);
        }
        Err(DropReason::HandshakeRate)
    }

    /// Asks the sender of an initiation to prove its address. A flood must not fill the queue.
    fn send_cookie(&mut self, now_ns: u64, to: Path, message: &Handshake<'_>) {
        if self.transmits.len() >= TRANSMITS_MAX / 2 || !self.cookies.take(now_ns) {
            return;
        }
        let cookie = self.cookie_secrets.cookie(now_ns, to.source(), &mut self.random);
        let mut nonce = [0; COOKIE_NONCE_BYTES];
        self.random.fill(&mut nonce);
        let Some(sealed) = cookie.seal(&self.key, &nonce, &message.mac1) else { return };
        let answers = wire::cookie_index(&message.mac1);
        let mut datagram = self.transmits.buffer();
        wire::write_cookie(&mut datagram, &CookieReply { answers, nonce, sealed });
        self.counters.cookies_sent += 1;
        self.transmit(to, datagram);
    }

    /// Keeps a cookie that answers an initiation under way, and sends that initiation once more
    /// with it. One that was sent with a cookie already is left to its retry: two members must not
    /// get into an exchange of cookies.
    pub(super) fn receive_cookie(
        &mut self,
        now_ns: u64,
        reply: &CookieReply,
    ) -> Result<(), DropReason> {
        let named = self.peers.iter_mut().find_map(|(_, peer)| {
            let key = peer.key;
            let started = peer.initiation(reply.answers)?;
            let cookie = Cookie::open(&key, &reply.nonce, &started.mac1, reply.sealed)?;
            let mut again = None;
            if !std::mem::replace(&mut started.is_proven, true) {
                cookie.prove(&mut started.datagram);
                again = Some((started.to, started.datagram.clone(), started.in_pieces));
            }
            peer.cookie = Some((cookie, now_ns.saturating_add(COOKIE_NS)));
            Some(again)
        });
        if let Some((to, datagram, in_pieces)) = named.ok_or(DropReason::HandshakeCookie)? {
            self.transmit_initiation(to, datagram, in_pieces);
        }
        Ok(())
    }

    /// Takes one of the two pieces of an initiation. Responses are short enough for any path.
    pub(super) fn receive_piece(
        &mut self,
        now_ns: u64,
        from: Path,
        fragment: &Fragment<'_>,
    ) -> Result<(), DropReason> {
        let whole = match self.pieces.insert(now_ns, from.source(), fragment) {
            Outcome::Whole(whole) => whole,
            Outcome::Waits => return Ok(()),
            Outcome::Displaced | Outcome::Refused => return Err(DropReason::HandshakePiece),
        };
        match wire::parse(&whole) {
            Ok(Datagram::Initiation(message)) => self.receive_initiation(now_ns, from, &message),
            _ => Err(DropReason::Wire),
        }
    }

    /// Queues an initiation. A path may be unable to carry it whole and say nothing, so the tries
    /// after the first are in pieces.
    fn transmit_initiation(&mut self, to: Path, datagram: Vec<u8>, in_pieces: bool) {
        if in_pieces {
            let id = self.random.u32();
            for piece in wire::fragments(&datagram, id) {
                self.transmit(to, piece);
            }
        } else {
            self.transmit(to, datagram);
        }
    }

    fn next_timestamp(&mut self, now_ns: u64) -> Timestamp {
        let unix_ns = self.unix_time_at_zero_ns.saturating_add(now_ns);
        let unix_ns = unix_ns.max(self.newest_initiation_unix_ns.saturating_add(1));
        self.newest_initiation_unix_ns = unix_ns;
        Timestamp::from_unix_ns(unix_ns)
    }

    /// A random index that no session or handshake of this member has, for one of peer `index`.
    fn fresh_index(&mut self, index: usize) -> u32 {
        loop {
            let candidate = self.random.u32();
            if let std::collections::btree_map::Entry::Vacant(entry) = self.indices.entry(candidate)
            {
                entry.insert(index);
                return candidate;
            }
        }
    }
}

fn reason(error: HandshakeError) -> DropReason {
    match error {
        HandshakeError::PostQuantum => DropReason::HandshakePostQuantum,
        HandshakeError::Forged | HandshakeError::Payload | HandshakeError::Cipher => {
            DropReason::HandshakeForged
        }
    }
}
