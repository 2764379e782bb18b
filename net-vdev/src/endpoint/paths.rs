//! The ways to a peer: which are known, which work, and which one data takes.
//!
//! A peer that has one way is like a WireGuard peer: nothing is probed, and the newest datagram
//! that verifies tells where it is. A peer that has several is probed on each of them while there
//! is traffic. A probe is answered on the way that it came, so an answer proves both directions;
//! three missed ones end a way, and data takes the best of the others in the same turn.
//!
//! ```text
//!  candidate ── probe answered ──► proven ── 3 missed ──► dead ── probe answered ──► proven
//!      └─ 8 probes unanswered ──► forgotten
//! ```

use std::net::{Ipv6Addr, SocketAddr};

use crate::identity::PublicKey;

/// How many ways to a peer are kept: two through routers, one as configured, and some that the peer
/// named.
pub const PATHS_MAX: usize = 8;
/// How long after the last packet a peer counts as active.
pub(super) const ACTIVE_NS: u64 = 2_000_000_000;
/// How often a way that works is probed.
const PROBE_NS: u64 = 200_000_000;
/// How often one that does not.
const DEAD_PROBE_NS: u64 = 1_000_000_000;
/// How often one that may not exist, and how many times.
const CANDIDATE_PROBE_NS: u64 = 100_000_000;
const CANDIDATE_PROBES: u8 = 8;
/// How long an answer is awaited, in round trips of this way, and in nanoseconds at least and most.
const PATIENCE_ROUND_TRIPS: u64 = 3;
const PATIENCE_NS: std::ops::RangeInclusive<u64> = 60_000_000..=1_000_000_000;
/// So many missed answers end a way.
const MISSED_MAX: u8 = 3;
/// After a doubt was raised, the next is not heard for so long: whoever forges them gains little.
const DOUBT_PAUSE_NS: u64 = 1_000_000_000;
/// Every so many probes one is as large as a datagram can be.
const WIDE_EVERY: u8 = 5;
/// What a stream costs beside UDP: one lost datagram holds up all behind it. Less than a router, whose
/// frames may well go by that same stream.
const STREAM_COST_NS: u64 = HYSTERESIS_NS / 2;
/// A way that is so much faster takes over: a tenth and a millisecond.
const HYSTERESIS_NS: u64 = 1_000_000;

/// A way for datagrams to and from a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Path {
    /// UDP datagrams to and from this address.
    Direct(SocketAddr),
    /// A stream connection of the owner's, by the owner's number.
    Stream(u32),
    /// Frames through routers.
    Relayed {
        /// The other end's address in the mesh.
        member: Ipv6Addr,
        /// Whether the first router takes its second-best way.
        is_alternate: bool,
    },
    /// As they are through the router that both are attached to. Never among a peer's ways: it is
    /// taken while the peer is there and answers.
    Local(PublicKey),
}

impl Path {
    /// Whether no router is on the way.
    #[must_use]
    pub fn is_direct(&self) -> bool {
        !matches!(self, Self::Relayed { .. })
    }

    /// Which kind is preferred: UDP, then a stream, then routers.
    fn rank(&self) -> u8 {
        match self {
            Self::Direct(_) | Self::Local(_) => 0,
            Self::Stream(_) => 1,
            Self::Relayed { .. } => 2,
        }
    }

    /// What a cookie is for: whoever receives here is who sent from here.
    pub(super) fn source(&self) -> SocketAddr {
        match *self {
            Self::Direct(address) => address,
            Self::Stream(number) => {
                // Each connection is a source of its own: a /64 that nobody has.
                let ip = Ipv6Addr::from(u128::from(number) << 64);
                SocketAddr::from((ip, 0))
            }
            Self::Relayed { member, .. } => SocketAddr::from((member, 0)),
            Self::Local(key) => SocketAddr::from((key.address(), 0)),
        }
    }
}

impl std::fmt::Display for Path {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Direct(address) => write!(f, "udp {address}"),
            Self::Stream(number) => write!(f, "tcp, connection {number}"),
            Self::Relayed { is_alternate: false, .. } => f.write_str("routers"),
            Self::Relayed { is_alternate: true, .. } => f.write_str("routers, second choice"),
            Self::Local(_) => f.write_str("this host"),
        }
    }
}

/// What is known of one way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathView {
    /// The way.
    pub path: Path,
    /// Whether data takes it now.
    pub is_current: bool,
    /// Whether a probe was answered on it and not three in a row missed since.
    pub is_alive: bool,
    /// The smoothed round-trip time in nanoseconds, if it was ever measured.
    pub round_trip_ns: Option<u64>,
}

/// A probe that was not answered yet.
#[derive(Debug, Clone, Copy)]
struct Outstanding {
    number: u64,
    sent_ns: u64,
    is_wide: bool,
}

#[derive(Debug, Clone)]
struct State {
    path: Path,
    is_proven: bool,
    round_trip_ns: Option<u64>,
    outstanding: Option<Outstanding>,
    missed: u8,
    /// How many probes it has left to prove itself; of no meaning once it has.
    chances: u8,
    probe_at_ns: u64,
    width: Width,
    /// How many probes ago a full-sized one was sent.
    since_wide: u8,
    /// Somebody says that nothing gets through, and no probe was answered since.
    is_doubted: bool,
    /// When the next doubt is heard.
    deaf_until_ns: u64,
}

/// Whether full-sized datagrams get through a way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Width {
    /// Not known; so many tries were not answered.
    Untested(u8),
    Wide,
    Narrow,
}

impl State {
    fn new(path: Path, now_ns: u64) -> Self {
        Self {
            path,
            is_proven: false,
            round_trip_ns: None,
            outstanding: None,
            missed: 0,
            chances: CANDIDATE_PROBES,
            probe_at_ns: now_ns,
            width: Width::Untested(0),
            since_wide: 0,
            is_doubted: false,
            deaf_until_ns: 0,
        }
    }

    /// Whether the next probe should be a full-sized one: now and then, and every other one until
    /// it is known whether they get through.
    fn wants_wide(&self) -> bool {
        let pause = if matches!(self.width, Width::Untested(_)) { 1 } else { WIDE_EVERY };
        self.is_alive() && self.missed == 0 && self.since_wide >= pause
    }

    /// A full-sized probe was not answered. A way that never took one is narrow after three; the
    /// loss of one means nothing on a way that takes them, three in a row do.
    fn missed_wide(&mut self) {
        self.width = match self.width {
            Width::Untested(misses) if misses + 1 < MISSED_MAX => Width::Untested(misses + 1),
            Width::Untested(_) | Width::Narrow => Width::Narrow,
            Width::Wide => Width::Untested(1),
        };
    }

    fn is_alive(&self) -> bool {
        self.is_proven && self.missed < MISSED_MAX
    }

    fn patience_ns(&self) -> u64 {
        let round_trips = self.round_trip_ns.map_or(*PATIENCE_NS.end() / 4, |round_trip_ns| {
            round_trip_ns.saturating_mul(PATIENCE_ROUND_TRIPS)
        });
        round_trips.clamp(*PATIENCE_NS.start(), *PATIENCE_NS.end())
    }

    /// When there is something to do: give an outstanding probe up, or send the next.
    fn due_ns(&self) -> u64 {
        match self.outstanding {
            Some(probe) => probe.sent_ns.saturating_add(self.patience_ns()),
            None => self.probe_at_ns,
        }
    }

    /// What a way is worth: less is better. A router on the way costs a millisecond.
    fn cost_ns(&self) -> u64 {
        let extra_ns = match self.path {
            Path::Direct(_) | Path::Local(_) => 0,
            Path::Stream(_) => STREAM_COST_NS,
            Path::Relayed { is_alternate: false, .. } => HYSTERESIS_NS,
            Path::Relayed { is_alternate: true, .. } => 2 * HYSTERESIS_NS,
        };
        self.round_trip_ns.unwrap_or(u64::MAX / 2).saturating_add(extra_ns)
    }
}

/// What became of a way at [`Paths::poll`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    /// Send a probe with this number on this way, as large as datagrams get if it is to be wide.
    Probe { path: Path, number: u64, is_wide: bool },
    /// The way stopped working.
    Died(Path),
}

/// The ways to one peer. At most [`PATHS_MAX`].
#[derive(Debug)]
pub(super) struct Paths {
    list: Vec<State>,
    current: Option<Path>,
    configured: Option<Path>,
    next_probe: u64,
}

impl Paths {
    /// The ways to a peer that may be at `configured`, and is reached through routers by its
    /// address `relayed`.
    pub(super) fn new(configured: Option<SocketAddr>, relayed: Option<Ipv6Addr>) -> Self {
        let configured = configured.map(Path::Direct);
        let through_routers = relayed.into_iter().flat_map(|member| {
            [false, true].map(|is_alternate| Path::Relayed { member, is_alternate })
        });
        let list: Vec<_> =
            configured.into_iter().chain(through_routers).map(|it| State::new(it, 0)).collect();
        Self { current: list.first().map(|state| state.path), list, configured, next_probe: 0 }
    }

    /// Where to send data.
    pub(super) fn current(&self) -> Option<Path> {
        self.current
    }

    /// The best way that needs no router.
    pub(super) fn direct(&self) -> Option<Path> {
        let direct = self.list.iter().filter(|state| state.path.is_direct());
        let best = direct.min_by_key(|state| (!state.is_alive(), state.cost_ns()));
        best.map(|state| state.path)
    }

    /// Where answers go to a probe that came this way: back; through routers by every choice. Whoever
    /// only answers does not probe, and so does not know which of them works from here.
    pub(super) fn for_reply(&self, from: Path) -> Vec<Path> {
        let relayed = self.list.iter().map(|state| state.path).filter(|path| !path.is_direct());
        let relayed: Vec<_> = relayed.filter(|_| !from.is_direct()).collect();
        if relayed.is_empty() { vec![from] } else { relayed }
    }

    /// Whether the peer is probed while there is traffic.
    pub(super) fn is_plural(&self) -> bool {
        self.list.len() > 1
    }

    /// Where to send the initiation of try number `tries`: to where data would go, and every other
    /// time elsewhere in turn, in case the peer is not there any more.
    pub(super) fn for_handshake(&self, tries: u32) -> Option<Path> {
        if tries.is_multiple_of(2) || self.list.is_empty() {
            return self.current;
        }
        let others = || {
            let configured = self.configured.filter(|path| self.find(path).is_none());
            let all = configured.into_iter().chain(self.list.iter().map(|state| state.path));
            all.filter(|path| Some(*path) != self.current)
        };
        let count = others().count().max(1);
        others().nth(tries as usize / 2 % count).or(self.current)
    }

    /// Whether the peer may well send from here: it was last heard there, or configured so.
    pub(super) fn is_at(&self, path: &Path) -> bool {
        self.configured.as_ref() == Some(path) || self.find(path).is_some()
    }

    fn find(&self, path: &Path) -> Option<&State> {
        self.list.iter().find(|state| state.path == *path)
    }

    fn find_mut(&mut self, path: &Path) -> Option<&mut State> {
        self.list.iter_mut().find(|state| state.path == *path)
    }

    /// A handshake was answered on this way: it works.
    pub(super) fn answered(&mut self, now_ns: u64, path: Path) {
        self.heard(now_ns, path);
        if let Some(state) = self.find_mut(&path) {
            state.is_proven = true;
            state.missed = 0;
        }
        let is_alive = |path| self.find(&path).is_some_and(State::is_alive);
        if !self.current.is_some_and(is_alive) {
            self.current = Some(path);
        }
    }

    /// The newest datagram of the peer that verified came this way; returns whether data now goes
    /// where it did not before. A peer with one way has moved; one with several may have sent it
    /// either way, and a new one has to prove itself.
    pub(super) fn heard(&mut self, now_ns: u64, path: Path) -> bool {
        if self.find(&path).is_some() {
            if self.current.is_none() {
                self.current = Some(path);
            }
            return false;
        }
        if self.list.len() <= 1 {
            self.list = vec![State::new(path, now_ns)];
            return self.current.replace(path).is_some();
        }
        self.add(now_ns, path);
        false
    }

    /// Takes a way in that the peer may be reached by; a full list keeps what it has, except for
    /// ways that don't work.
    pub(super) fn add(&mut self, now_ns: u64, path: Path) {
        if self.find(&path).is_some() {
            return;
        }
        if self.list.len() >= PATHS_MAX {
            let useless = |state: &State| {
                !state.is_alive() && state.path.is_direct() && Some(state.path) != self.current
            };
            let Some(useless) = self.list.iter().position(useless) else { return };
            self.list.remove(useless);
        }
        self.list.push(State::new(path, now_ns));
    }

    /// This way is no more; whether it was one.
    pub(super) fn remove(&mut self, path: &Path) -> bool {
        let before = self.list.len();
        self.list.retain(|state| state.path != *path);
        if self.current.as_ref() == Some(path) {
            self.current = None;
            self.choose();
            self.current = self.current.or(self.list.first().map(|state| state.path));
        }
        self.list.len() < before
    }

    pub(super) fn has(&self, path: &Path) -> bool {
        self.find(path).is_some()
    }

    /// Data takes this way from now on, if the current does not work.
    pub(super) fn prefer(&mut self, path: Path) {
        let is_alive = |current| self.find(&current).is_some_and(State::is_alive);
        if self.has(&path) && !self.current.is_some_and(is_alive) {
            self.current = Some(path);
        }
    }

    /// The network says that this way is gone.
    pub(super) fn fail(&mut self, path: &Path) {
        if let Some(state) = self.find_mut(path) {
            state.missed = MISSED_MAX;
            state.outstanding = None;
        }
        self.choose();
    }

    /// Somebody who may be wrong says that nothing gets through on this way. Returns whether it is
    /// to be probed now.
    pub(super) fn doubt(&mut self, now_ns: u64, path: &Path) -> bool {
        let state = self.find_mut(path).filter(|state| state.is_alive() && !state.is_doubted);
        let Some(state) = state.filter(|state| now_ns >= state.deaf_until_ns) else { return false };
        state.is_doubted = true;
        state.deaf_until_ns = now_ns.saturating_add(DOUBT_PAUSE_NS);
        state.outstanding = None;
        state.probe_at_ns = now_ns;
        self.choose();
        true
    }

    /// The peer rests: nothing is due until it is active again.
    pub(super) fn rest(&mut self) {
        for state in &mut self.list {
            state.outstanding = None;
            state.probe_at_ns = u64::MAX;
        }
    }

    /// The peer is active again after a rest: what is known of its ways is old.
    pub(super) fn wake(&mut self, now_ns: u64) {
        for state in &mut self.list {
            state.outstanding = None;
            state.probe_at_ns = now_ns;
        }
    }

    /// A probe was answered: its number tells which way it took. Returns whether data takes another
    /// way now.
    pub(super) fn replied(&mut self, now_ns: u64, number: u64) -> bool {
        let asked = |state: &&mut State| state.outstanding.is_some_and(|it| it.number == number);
        let Some(state) = self.list.iter_mut().find(asked) else { return false };
        let Some(probe) = state.outstanding else { return false };
        if probe.is_wide {
            state.width = Width::Wide;
        }
        let sample_ns = now_ns.saturating_sub(probe.sent_ns);
        state.round_trip_ns = Some(match state.round_trip_ns {
            Some(old_ns) => old_ns - old_ns / 8 + sample_ns / 8,
            None => sample_ns,
        });
        state.outstanding = None;
        state.missed = 0;
        state.is_doubted = false;
        state.is_proven = true;
        state.probe_at_ns = now_ns.saturating_add(PROBE_NS);
        let before = self.current;
        self.choose();
        before != self.current
    }

    /// What is due at `now_ns`; to be called until it returns `None`.
    pub(super) fn poll(&mut self, now_ns: u64) -> Option<Due> {
        let position = self.list.iter().position(|state| state.due_ns() <= now_ns)?;
        let state = self.list.get_mut(position)?;
        if let Some(probe) = state.outstanding.take() {
            return self.give_up(now_ns, position, probe);
        }
        let is_wide = state.wants_wide();
        state.since_wide = if is_wide { 0 } else { state.since_wide.saturating_add(1) };
        let number = self.next_probe;
        self.next_probe += 1;
        state.outstanding = Some(Outstanding { number, sent_ns: now_ns, is_wide });
        state.chances = state.chances.saturating_sub(1);
        Some(Due::Probe { path: state.path, number, is_wide })
    }

    /// A probe was not answered in time.
    fn give_up(&mut self, now_ns: u64, position: usize, probe: Outstanding) -> Option<Due> {
        let (configured, current) = (self.configured, self.current);
        let state = self.list.get_mut(position)?;
        state.probe_at_ns = now_ns;
        if probe.is_wide {
            state.missed_wide();
            return self.poll(now_ns);
        }
        let was_alive = state.is_alive();
        state.missed = state.missed.saturating_add(1);
        if was_alive && !state.is_alive() {
            state.probe_at_ns = now_ns.saturating_add(DEAD_PROBE_NS);
            let path = state.path;
            self.choose();
            return Some(Due::Died(path));
        }
        let is_hopeless = !state.is_proven && state.chances == 0 && state.path.is_direct();
        if is_hopeless && ![configured, current].contains(&Some(state.path)) {
            self.list.remove(position);
            return self.poll(now_ns);
        }
        if !state.is_alive() {
            let is_candidate = !state.is_proven && state.chances > 0;
            let pause_ns = if is_candidate { CANDIDATE_PROBE_NS } else { DEAD_PROBE_NS };
            state.probe_at_ns = now_ns.saturating_add(pause_ns);
        }
        self.poll(now_ns)
    }

    /// When [`Paths::poll`] next has something to do, for a peer that is active.
    pub(super) fn due_ns(&self) -> Option<u64> {
        self.list.iter().map(State::due_ns).min().filter(|_| self.is_plural())
    }

    /// Takes the best way that works, if it is clearly better than the current or that one is dead.
    fn choose(&mut self) {
        let works = |state: &&State| state.is_alive() && !state.is_doubted;
        let best = self.list.iter().filter(works).min_by_key(|it| it.cost_ns());
        let Some(best) = best else { return };
        let current = self.current.and_then(|path| self.find(&path)).filter(works);
        let is_better = current.is_none_or(|current| {
            // A direct way that is as good as one through routers spares them the work.
            let is_preferred = best.path.rank() < current.path.rank();
            let clear_ns = if is_preferred { 0 } else { best.cost_ns() / 10 + HYSTERESIS_NS };
            best.cost_ns().saturating_add(clear_ns) < current.cost_ns()
        });
        if is_better {
            self.current = Some(best.path);
        }
    }

    /// Whether full-sized datagrams get through on this way, as far as is known.
    pub(super) fn is_wide(&self, path: &Path) -> bool {
        self.find(path).is_none_or(|state| state.width != Width::Narrow)
    }

    /// The network refuses full-sized datagrams on this way.
    pub(super) fn narrow(&mut self, path: &Path) {
        if let Some(state) = self.find_mut(path) {
            state.width = Width::Narrow;
        }
    }

    pub(super) fn view(&self) -> Vec<PathView> {
        let view = |state: &State| PathView {
            path: state.path,
            is_current: Some(state.path) == self.current,
            is_alive: state.is_alive(),
            round_trip_ns: state.round_trip_ns,
        };
        self.list.iter().map(view).collect()
    }
}
