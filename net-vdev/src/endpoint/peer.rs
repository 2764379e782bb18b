//! What an endpoint knows of one peer.
//!
//! ```text
//!            response verifies (this side initiated)
//!   (none) ────────────────────────────────────────► current ──► previous ──► (dropped)
//!      └──────────► next ────────────────────────────►┘ replaced or    replaced, or 180 s old
//!        initiation      first data of it verifies     175 s old
//! ```
//!
//! The responder does not send on `next` before data of it verified: an initiation alone, even a
//! true one, never takes the place of a working session.

use std::collections::VecDeque;

use super::certificates::Labels;
use super::fragments::Reassembly;
use super::limit::Bucket;
use super::paths::{ACTIVE_NS, Path, Paths};
use crate::cookie::Cookie;
use crate::identity::PublicKey;
use crate::session::Session;
use crate::session::handshake::{Pending, Timestamp};
use crate::wire::{self, MAC_BYTES, MacKey};

/// How many packets wait for a peer's handshake; beyond, the oldest goes.
pub(super) const WAITING_MAX: usize = 8;

/// One peer.
pub(super) struct PeerState {
    pub(super) key: PublicKey,
    pub(super) mac_key: MacKey,
    /// Whether the owner listed it: such a peer is never forgotten.
    pub(super) is_listed: bool,
    /// The ways to it.
    pub(super) paths: Paths,
    /// The session to send on.
    pub(super) current: Option<Session>,
    /// The session before: late packets still come in on it.
    pub(super) previous: Option<Session>,
    /// The peer's handshake was answered, but no data of it has come yet.
    pub(super) next: Option<Session>,
    pub(super) attempt: Option<Attempt>,
    /// Whether it is attached to the same router as this member.
    pub(super) is_here: bool,
    /// Packets that wait for a session.
    pub(super) waiting: VecDeque<Vec<u8>>,
    /// Halves of packets that wait for the other half.
    pub(super) halves: Reassembly,
    /// The number of the last packet that was sent in two halves.
    pub(super) next_fragment: u16,
    /// When a packet was last sent to it, and when anything of it last verified.
    pub(super) sent_ns: u64,
    pub(super) heard_ns: u64,
    /// When this member's own addresses were last told to it.
    pub(super) told_ns: Option<u64>,
    /// Limits how often the addresses are tried that it names, which need not be its own.
    pub(super) candidates: Bucket,
    pub(super) labels: Labels,
    pub(super) bytes_sent: u64,
    pub(super) bytes_received: u64,
    pub(super) newest_initiation: Option<Timestamp>,
    /// When this side first sent something since it last heard from the peer.
    pub(super) unanswered_since_ns: Option<u64>,
    /// Limits the initiations that are read from the peer's endpoint, true or forged.
    pub(super) handshakes: Bucket,
    /// Limits the initiations from there that prove it by a cookie.
    pub(super) proven: Bucket,
    /// The peer's cookie for this side's address, and until when to use it.
    pub(super) cookie: Option<(Cookie, u64)>,
    /// Limits the handshakes that unknown-session notices start.
    pub(super) notices: Bucket,
    /// Its entry among the endpoint's timers.
    pub(super) timer_ns: Option<u64>,
}

/// This side's handshake under way.
pub(super) struct Attempt {
    /// `None` while this side waits for data of `next` and only then starts one of its own.
    pub(super) pending: Option<Started>,
    pub(super) started_ns: u64,
    pub(super) retry_at_ns: u64,
    pub(super) tries: u32,
    /// Limits the responses that are read: whoever sends one has seen this side's random index.
    pub(super) responses: Bucket,
}

impl Attempt {
    pub(super) fn new(now_ns: u64, retry_at_ns: u64) -> Self {
        Self {
            pending: None,
            started_ns: now_ns,
            retry_at_ns,
            tries: 0,
            responses: Bucket::new(200_000_000, 10),
        }
    }
}

/// An initiation that was sent.
pub(super) struct Started {
    pub(super) noise: Pending,
    pub(super) index: u32,
    pub(super) to: Path,
    pub(super) datagram: Vec<u8>,
    pub(super) mac1: [u8; MAC_BYTES],
    /// Whether the datagram carries a cookie.
    pub(super) is_proven: bool,
    /// Whether the datagram was sent once more because the peer's own initiation crossed it.
    pub(super) was_repeated: bool,
    /// Whether the datagram goes in two pieces.
    pub(super) in_pieces: bool,
}

impl PeerState {
    pub(super) fn new(key: PublicKey, paths: Paths, is_listed: bool) -> Self {
        Self {
            key,
            mac_key: MacKey::of(&key),
            is_listed,
            paths,
            current: None,
            previous: None,
            next: None,
            attempt: None,
            is_here: false,
            waiting: VecDeque::new(),
            halves: Reassembly::default(),
            next_fragment: 0,
            sent_ns: 0,
            heard_ns: 0,
            told_ns: None,
            candidates: Bucket::new(1_000_000_000, 4),
            labels: Labels::default(),
            bytes_sent: 0,
            bytes_received: 0,
            newest_initiation: None,
            unanswered_since_ns: None,
            handshakes: Bucket::new(200_000_000, 10),
            proven: Bucket::new(200_000_000, 10),
            cookie: None,
            notices: Bucket::new(1_000_000_000, 2),
            timer_ns: None,
        }
    }

    /// The initiation under way that a cookie reply names.
    pub(super) fn initiation(&mut self, answers: u32) -> Option<&mut Started> {
        let started = self.attempt.as_mut()?.pending.as_mut()?;
        (wire::cookie_index(&started.mac1) == answers).then_some(started)
    }

    /// Adds the peer's cookie to an initiation if there is a fresh one; whether there is.
    pub(super) fn prove(&self, now_ns: u64, initiation: &mut [u8]) -> bool {
        let fresh = self.cookie.as_ref().filter(|(_, until_ns)| now_ns < *until_ns);
        if let Some((cookie, _)) = fresh {
            cookie.prove(initiation);
        }
        fresh.is_some()
    }

    /// The session that this side calls `index`.
    pub(super) fn session(&mut self, index: u32) -> Option<&mut Session> {
        let sessions = [&mut self.current, &mut self.next, &mut self.previous];
        sessions.into_iter().flatten().find(|session| session.local == index)
    }

    /// Whether `index` is the session that waits for its first data.
    pub(super) fn is_next(&self, index: u32) -> bool {
        self.next.as_ref().is_some_and(|next| next.local == index)
    }

    /// Whether the peer would know the data datagram (`index`, `counter`) as a recent one of ours.
    pub(super) fn sent_recently(&self, index: u32, counter: u64) -> bool {
        let session = self.current.as_ref().filter(|session| session.remote == index);
        session.is_some_and(|session| session.sent_recently(counter))
    }

    /// Makes the confirmed `next` the session to send on; returns what has to go for it. A session
    /// that is older than the current one only goes on to receive.
    pub(super) fn promote(&mut self) -> Option<Session> {
        let confirmed = self.next.take()?;
        let newer = |current: &Session| current.created_ns > confirmed.created_ns;
        if self.current.as_ref().is_some_and(newer) {
            self.previous.replace(confirmed)
        } else {
            self.establish(confirmed)
        }
    }

    /// Makes `session` the one to send on; returns what has to go for it.
    pub(super) fn establish(&mut self, session: Session) -> Option<Session> {
        let old = self.current.replace(session)?;
        self.previous.replace(old)
    }

    /// Stops to send on a session that is old at `now_ns`: it only goes on to receive. Returns whether
    /// there was one, and what has to go for it.
    pub(super) fn stop_sending(&mut self, now_ns: u64) -> (bool, Option<Session>) {
        let old = self.current.take_if(|session| !session.may_send(now_ns));
        let Some(old) = old else { return (false, None) };
        (true, self.previous.replace(old))
    }

    /// Takes out a session that is dead at `now_ns`.
    pub(super) fn take_dead(&mut self, now_ns: u64) -> Option<Session> {
        let slots = [&mut self.previous, &mut self.next];
        let dead = |slot: &&mut Option<Session>| {
            slot.as_ref().is_some_and(|session| !session.is_alive(now_ns))
        };
        slots.into_iter().find(dead).and_then(Option::take)
    }

    /// When this peer next needs attention by itself: a retry, or keys to be dropped. `None` when
    /// nothing is under way and no keys are held: an idle peer costs nothing.
    pub(super) fn deadline_ns(&self) -> Option<u64> {
        let receiving = [&self.previous, &self.next].into_iter().flatten().map(Session::expires_ns);
        let expiries = receiving.chain(self.current.as_ref().map(Session::sends_until_ns));
        let retry = self.attempt.as_ref().map(|attempt| attempt.retry_at_ns);
        expiries.chain(retry).chain(self.probe_ns()).min()
    }

    /// When to probe the ways to it, while it is active.
    fn probe_ns(&self) -> Option<u64> {
        let due_ns = self.paths.due_ns().filter(|_| self.current.is_some())?;
        (due_ns < self.sent_ns.saturating_add(ACTIVE_NS)).then_some(due_ns)
    }
}

#[cfg(test)]
mod tests {
    use zeroize::Zeroizing;

    use super::*;
    use crate::session::handshake::{Cipher, Keys};

    fn session(index: u32, created_ns: u64) -> Session {
        let keys = Keys {
            send: Zeroizing::new([1; 32]),
            receive: Zeroizing::new([2; 32]),
            cipher: Cipher::Aes256Gcm,
            remote_index: index,
            initiator: false,
            send_hop: Zeroizing::new([3; 32]),
            receive_hop: Zeroizing::new([4; 32]),
            post_quantum: true,
            open_checksums: true,
        };
        Session::new(&keys, index, created_ns).unwrap()
    }

    fn slots(peer: &PeerState) -> [Option<u32>; 3] {
        [&peer.current, &peer.previous, &peer.next].map(|slot| slot.as_ref().map(|it| it.local))
    }

    #[test]
    fn a_confirmed_session_takes_over_only_if_it_is_the_newer_one() {
        let mut peer = PeerState::new(PublicKey([1; 32]), Paths::new(None, None), true);
        assert!(peer.promote().is_none());
        peer.next = Some(session(1, 10));
        assert!(peer.promote().is_none());
        assert_eq!(slots(&peer), [Some(1), None, None]);
        peer.next = Some(session(2, 20));
        assert!(peer.promote().is_none());
        assert_eq!(slots(&peer), [Some(2), Some(1), None]);
        // This side's own handshake ended after that of the peer, whose first data came late.
        peer.next = Some(session(3, 30));
        assert_eq!(peer.establish(session(4, 40)).map(|old| old.local), Some(1));
        assert_eq!(peer.promote().map(|old| old.local), Some(2));
        assert_eq!(slots(&peer), [Some(4), Some(3), None]);
    }
}
