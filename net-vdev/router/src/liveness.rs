//! Whether a neighbour can still be reached, and what the way to it costs.
//!
//! What counts is the *confirmation of our own probes*: a reply shows that both directions work.
//! Hearing the neighbour shows nothing about the way to it, so its data is not looked at.
//!
//! ```text
//!            first reply                    no reply for `wait`
//!  Starting ─────────────► Up ────────────────────────────────────► suspicion: dense probes
//!                          ▲ ▲          any reply                        │
//!                          │ └───────────────────────────────────────────┤
//!                          │ some replies in a row                       │ `window` is over
//!                          └──────────────── Dead ◄──────────────────────┘
//! ```
//!
//! A link that carries data is probed ten times a second, an idle one once a second. `wait` is
//! 50 ms or the time that replies take by the estimate of RFC 6298, if that is longer; the dense
//! probes take 150 ms (450 ms idle). A cut under traffic is thus found within 100 + 50 + 150 ms
//! plus what the way itself is long. How many probes that window has follows from the losses seen
//! so far, so that a lossy link isn't given up by bad luck.
//!
//! A *hint* from elsewhere (an ICMP error, say) proves nothing, because anybody can send one. It
//! makes the link doubtful at once, so that packets take the second choice, and starts probes that
//! are denser still: one answer to them ends the matter, and no answer within some 40 ms ends the
//! link.

use crate::hash::Random;

const MS: u64 = 1_000_000;

/// How long a link counts as carrying data after the last.
const ACTIVE_NS: u64 = 1000 * MS;
const ACTIVE_PERIOD_NS: u64 = 100 * MS;
const IDLE_PERIOD_NS: u64 = 1000 * MS;
const WAIT_NS_MIN: u64 = 50 * MS;
const ACTIVE_WINDOW_NS: u64 = 150 * MS;
const IDLE_WINDOW_NS: u64 = 450 * MS;
/// After a hint: how far apart probes are at least, and how long the last is waited for at least.
const HINT_PROBE_NS: u64 = 6 * MS;
const HINT_WAIT_NS: u64 = 20 * MS;
/// Hints are not heard for so long after one: whoever forges them gains a few probes a second.
const HINT_PAUSE_NS: u64 = 1000 * MS;
/// No suspicion is based on fewer lost probes.
const LOST_PROBES_MIN: u32 = 4;
/// How many probes are remembered: more are never under way within a window.
const RING: usize = 64;
/// A hop's own cost, in µs: a router more on the way costs processor time and is one more that can
/// fail, so that a path with fewer is taken unless it is this much slower.
const HOP_COST_US: u32 = 2000;
/// What a lost packet costs, in µs per packet sent: at 1 % loss, a path 5 ms longer is as good.
const LOSS_COST_US: u32 = 500_000;
/// No link costs more.
const COST_MAX_US: u32 = 100_000_000;
/// How long the smallest round trip is remembered (up to twice as long).
const FLOOR_NS: u64 = 10_000 * MS;

/// Where a link stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// No probe was answered yet.
    Starting,
    /// Probes are answered.
    Up,
    /// Probes were no longer answered.
    Dead,
}

/// What is to be done now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// Send a probe of this number, and ask again.
    Probe(u32),
    /// The link is dead as of now.
    Dead,
    /// Nothing until [`Liveness::deadline_ns`].
    Wait,
}

/// What a reply changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Confirmed {
    /// No probe of ours, or one answered already.
    Nothing,
    /// The link goes on as it was.
    Same,
    /// The link is up as of now.
    Up,
}

#[derive(Debug)]
pub(crate) struct Liveness {
    pub(crate) state: State,
    /// When data was last handed to the link; 0 if never.
    sent_ns: u64,
    /// When each of the last [`RING`] probes was sent, by number.
    probes: [u64; RING],
    next: u32,
    /// The first probe behind the last confirmed one.
    unconfirmed: u32,
    /// When the last probe was sent.
    probed_ns: u64,
    due_ns: u64,
    /// Replies in a row since it died, and how many it takes.
    streak: u32,
    streak_needed: u32,
    up_since_ns: u64,
    /// Somebody says that the link is dead: the first probe that can refute it.
    hint: Option<u32>,
    /// When hints are heard again.
    deaf_until_ns: u64,
    pub(crate) quality: Quality,
}

impl Liveness {
    pub(crate) fn new(now_ns: u64) -> Self {
        Self {
            state: State::Starting,
            sent_ns: 0,
            probes: [0; RING],
            next: 0,
            unconfirmed: 0,
            probed_ns: 0,
            due_ns: now_ns,
            streak: 0,
            streak_needed: 1,
            up_since_ns: 0,
            hint: None,
            deaf_until_ns: 0,
            quality: Quality::default(),
        }
    }

    /// Somebody who may be wrong says that the link is dead. Returns whether that is looked into.
    pub(crate) fn hint(&mut self, now_ns: u64) -> bool {
        if self.state != State::Up || self.hint.is_some() || now_ns < self.deaf_until_ns {
            return false;
        }
        self.hint = Some(self.next);
        self.deaf_until_ns = now_ns + HINT_PAUSE_NS;
        self.due_ns = now_ns;
        true
    }

    /// Data was handed to the link. The first after a pause has a probe follow at once.
    pub(crate) fn sent(&mut self, now_ns: u64) {
        let was_active = self.is_active(now_ns);
        self.sent_ns = now_ns.max(1);
        if !was_active && self.state == State::Up {
            self.due_ns = self.due_ns.min(self.next_due_ns(now_ns)).max(now_ns);
        }
    }

    fn is_active(&self, now_ns: u64) -> bool {
        self.sent_ns != 0 && now_ns < self.sent_ns + ACTIVE_NS
    }

    /// The number of probes sent and not confirmed.
    fn lost(&self) -> u32 {
        self.next.wrapping_sub(self.unconfirmed)
    }

    /// When the oldest unconfirmed probe was sent.
    fn oldest_ns(&self) -> Option<u64> {
        let lost = usize::try_from(self.lost()).unwrap_or(usize::MAX);
        let first =
            if lost > RING { self.next.wrapping_sub(RING as u32) } else { self.unconfirmed };
        (lost > 0).then(|| self.probes[first as usize % RING])
    }

    /// When it is dead, if nothing is confirmed until then. Whether data flows is judged as of the
    /// last probe, so that this depends on the state alone.
    fn dead_ns(&self) -> Option<u64> {
        self.dead_by_hint_ns().into_iter().chain(self.dead_by_silence_ns()).min()
    }

    /// When the last probe that it takes after a hint has been waited for, once that was sent.
    fn dead_by_hint_ns(&self) -> Option<u64> {
        let first = self.hint.filter(|_| self.state == State::Up)?;
        let needed = self.quality.probes_in_doubt();
        let last = first.wrapping_add(needed - 1);
        let were_sent = self.next.wrapping_sub(first) >= needed;
        were_sent.then(|| self.probes[last as usize % RING] + self.quality.hint_wait_ns())
    }

    fn dead_by_silence_ns(&self) -> Option<u64> {
        let window = if self.is_active(self.probed_ns) { ACTIVE_WINDOW_NS } else { IDLE_WINDOW_NS };
        let end_ns = self.oldest_ns()? + self.quality.wait_ns() + window;
        let enough = self.state == State::Up && self.lost() >= self.quality.probes_in_doubt();
        enough.then_some(end_ns)
    }

    /// When the next probe is due after the last one, which was sent at `self.probed_ns`.
    fn next_due_ns(&self, now_ns: u64) -> u64 {
        if self.state != State::Up {
            let is_reviving = self.streak > 0 && self.lost() == 0;
            let pause = if is_reviving { ACTIVE_PERIOD_NS } else { IDLE_PERIOD_NS };
            return self.probed_ns + pause;
        }
        if self.hint.is_some() {
            return self.probed_ns + self.quality.hint_probe_ns();
        }
        let is_active = self.is_active(now_ns);
        let Some(oldest_ns) = self.oldest_ns() else {
            return self.probed_ns + if is_active { ACTIVE_PERIOD_NS } else { IDLE_PERIOD_NS };
        };
        let window = if is_active { ACTIVE_WINDOW_NS } else { IDLE_WINDOW_NS };
        let pause = window / u64::from(self.quality.probes_in_doubt() - 1);
        (oldest_ns + self.quality.wait_ns()).max(self.probed_ns + pause)
    }

    /// What is to be done at `now_ns`.
    pub(crate) fn poll(&mut self, now_ns: u64, random: &mut Random) -> Action {
        let dead_ns = self.dead_ns();
        if dead_ns.is_some_and(|dead_ns| now_ns >= dead_ns) {
            self.die(now_ns);
            return Action::Dead;
        }
        if now_ns >= self.due_ns {
            let id = self.next;
            self.probes[id as usize % RING] = now_ns;
            self.next = id.wrapping_add(1);
            self.probed_ns = now_ns;
            self.due_ns = self.next_due_ns(now_ns).max(now_ns + 5 * MS);
            if self.state != State::Up {
                let pause = if self.state == State::Starting { 250 * MS } else { IDLE_PERIOD_NS };
                self.due_ns = now_ns + random.around(pause);
            }
            return Action::Probe(id);
        }
        Action::Wait
    }

    /// When [`poll`](Self::poll) has something to do.
    pub(crate) fn deadline_ns(&self) -> u64 {
        self.due_ns.min(self.dead_ns().unwrap_or(u64::MAX))
    }

    fn die(&mut self, now_ns: u64) {
        // A link that has been good for long is trusted again soon; one that flaps is not.
        let lasted_ns = now_ns.saturating_sub(self.up_since_ns);
        let is_flapping = lasted_ns < 30_000 * MS;
        self.streak_needed = if is_flapping { (self.streak_needed * 2).clamp(3, 12) } else { 3 };
        self.state = State::Dead;
        self.hint = None;
        self.streak = 0;
        self.due_ns = now_ns;
        self.quality.forget_losses();
    }

    /// A reply to the probe `id` arrived.
    pub(crate) fn confirm(&mut self, now_ns: u64, id: u32, random: &mut Random) -> Confirmed {
        let ahead = id.wrapping_sub(self.unconfirmed);
        let lost = self.lost();
        if ahead >= lost || self.next.wrapping_sub(id) as usize > RING {
            return Confirmed::Nothing;
        }
        let sent_ns = self.probes[id as usize % RING];
        self.quality.sample(now_ns, now_ns.saturating_sub(sent_ns));
        self.quality.count(ahead);
        // Links keep the order of what they carry, nearly always: those before it are lost.
        self.unconfirmed = id.wrapping_add(1);
        // What was sent before the hint may have been answered before the link died.
        self.hint = self.hint.filter(|first| id.wrapping_sub(*first) as usize > RING);
        if self.state == State::Up {
            let due_ns = self.next_due_ns(now_ns);
            let period_ns = due_ns.saturating_sub(self.probed_ns);
            self.due_ns = self.probed_ns + random.around(period_ns);
            return Confirmed::Same;
        }
        // A loss sets it back, but not to nothing: a lossy link would never get there.
        self.streak = if ahead == 0 { self.streak + 1 } else { self.streak / 2 + 1 };
        if self.streak < self.streak_needed {
            self.due_ns = self.next_due_ns(now_ns).min(self.due_ns);
            return Confirmed::Same;
        }
        self.state = State::Up;
        self.up_since_ns = now_ns;
        self.due_ns = self.next_due_ns(now_ns);
        Confirmed::Up
    }

    pub(crate) fn is_in_doubt(&self, now_ns: u64) -> bool {
        let is_late = |oldest_ns| now_ns >= oldest_ns + self.quality.wait_ns();
        self.state == State::Up && (self.hint.is_some() || self.oldest_ns().is_some_and(is_late))
    }
}

/// What round trips and losses were like.
#[derive(Debug, Default)]
pub(crate) struct Quality {
    /// Smoothed round trip and its variation, in ns (RFC 6298).
    smoothed_ns: u64,
    variation_ns: u64,
    /// The smallest of this interval and of the one before.
    floor_ns: [u64; 2],
    floor_since_ns: u64,
    /// One bit for each of the last 64 probes: 1 is lost.
    losses: u64,
}

impl Quality {
    fn sample(&mut self, now_ns: u64, round_trip_ns: u64) {
        if self.smoothed_ns == 0 {
            self.smoothed_ns = round_trip_ns.max(1);
            self.variation_ns = round_trip_ns / 2;
            self.floor_ns = [round_trip_ns; 2];
            self.floor_since_ns = now_ns;
            return;
        }
        let off = self.smoothed_ns.abs_diff(round_trip_ns);
        self.variation_ns = (3 * self.variation_ns + off) / 4;
        self.smoothed_ns = ((7 * self.smoothed_ns + round_trip_ns) / 8).max(1);
        if now_ns >= self.floor_since_ns + FLOOR_NS {
            self.floor_ns = [round_trip_ns, self.floor_ns[0]];
            self.floor_since_ns = now_ns;
        }
        self.floor_ns[0] = self.floor_ns[0].min(round_trip_ns);
    }

    /// `lost` probes were not answered, then one was.
    fn count(&mut self, lost: u32) {
        for _ in 0..lost.min(64) {
            self.losses = self.losses << 1 | 1;
        }
        self.losses <<= 1;
    }

    fn forget_losses(&mut self) {
        self.losses = 0;
    }

    /// The smallest round trip of the last ten to twenty seconds, in ns.
    pub(crate) fn round_trip_ns(&self) -> u64 {
        self.floor_ns[0].min(self.floor_ns[1])
    }

    /// Lost probes of the last 64.
    pub(crate) fn lost_of_64(&self) -> u32 {
        self.losses.count_ones()
    }

    /// How long to wait for a reply before doubting, in ns.
    pub(crate) fn wait_ns(&self) -> u64 {
        self.usual_ns().max(WAIT_NS_MIN)
    }

    /// How far apart probes are after a hint, and how long the last of them is waited for: a quarter
    /// more than a reply usually takes.
    fn hint_probe_ns(&self) -> u64 {
        (self.usual_ns() / 2).max(HINT_PROBE_NS)
    }

    fn hint_wait_ns(&self) -> u64 {
        (self.usual_ns() + self.usual_ns() / 4).max(HINT_WAIT_NS)
    }

    /// How long a reply takes at most, by the estimate of RFC 6298.
    fn usual_ns(&self) -> u64 {
        (self.smoothed_ns + 4 * self.variation_ns).min(5000 * MS)
    }

    /// How many probes in a row must be lost before it is no bad luck: at the losses seen so far,
    /// that happens to about one probe of a million.
    fn probes_in_doubt(&self) -> u32 {
        match self.lost_of_64() {
            0..=2 => LOST_PROBES_MIN,
            3..=6 => 6,
            7..=13 => 9,
            14..=25 => 15,
            _ => 20,
        }
    }

    /// The cost of the link in µs, at least 1: smallest round trip, half of what queues add to it,
    /// losses, and the hop itself. One loss among 64 probes is no sign yet.
    pub(crate) fn cost_us(&self) -> u32 {
        let us = |ns: u64| u32::try_from(ns / 1000).unwrap_or(COST_MAX_US);
        let queue_ns = self.smoothed_ns.saturating_sub(self.round_trip_ns());
        let loss = self.lost_of_64().saturating_sub(1) * (LOSS_COST_US / 64);
        let sum = us(self.round_trip_ns()).saturating_add(us(queue_ns / 2)).saturating_add(loss);
        sum.saturating_add(HOP_COST_US).min(COST_MAX_US)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A link that has answered once, and nothing for a while.
    fn up() -> (Liveness, Random, u64) {
        let (mut link, mut random) = (Liveness::new(0), Random::new(1));
        assert_eq!(link.poll(0, &mut random), Action::Probe(0));
        assert_eq!(link.confirm(MS, 0, &mut random), Confirmed::Up);
        (link, random, 100 * MS)
    }

    /// Polls at each deadline; when it died, and the numbers and times of the probes.
    fn until_dead(link: &mut Liveness, random: &mut Random, to_ns: u64) -> (u64, Vec<(u32, u64)>) {
        let mut probes = Vec::new();
        loop {
            let now_ns = link.deadline_ns();
            assert!(now_ns <= to_ns, "it does not die");
            match link.poll(now_ns, random) {
                Action::Dead => return (now_ns, probes),
                Action::Probe(id) => probes.push((id, now_ns)),
                Action::Wait => {}
            }
        }
    }

    #[test]
    fn a_hint_that_nothing_refutes_ends_the_link_within_forty_milliseconds() {
        let (mut link, mut random, now_ns) = up();
        assert!(link.hint(now_ns) && link.is_in_doubt(now_ns));
        let (dead_ns, probes) = until_dead(&mut link, &mut random, now_ns + 40 * MS);
        assert!(probes.len() >= 4, "{probes:?}");
        assert_eq!(probes[0].1, now_ns, "the first goes at once");
        assert!(dead_ns >= probes[3].1 + HINT_WAIT_NS);
    }

    #[test]
    fn one_answer_refutes_a_hint_and_the_next_hints_are_not_heard() {
        let (mut link, mut random, now_ns) = up();
        assert!(link.hint(now_ns));
        let Action::Probe(id) = link.poll(now_ns, &mut random) else { panic!("no probe") };
        assert_eq!(link.confirm(now_ns + MS, id, &mut random), Confirmed::Same);
        assert!(!link.is_in_doubt(now_ns + MS));
        assert!(!link.hint(now_ns + 2 * MS), "too soon");
        assert!(link.deadline_ns() > now_ns + 100 * MS, "nothing is due for a while");
        assert!(link.hint(now_ns + HINT_PAUSE_NS));
    }

    #[test]
    fn an_answer_to_an_older_probe_refutes_nothing() {
        let (mut link, mut random, _) = up();
        let sent_ns = link.deadline_ns();
        let Action::Probe(old) = link.poll(sent_ns, &mut random) else { panic!("no probe") };
        assert!(link.hint(sent_ns + MS));
        assert!(matches!(link.poll(sent_ns + MS, &mut random), Action::Probe(_)));
        assert_eq!(link.confirm(sent_ns + 2 * MS, old, &mut random), Confirmed::Same);
        assert!(link.is_in_doubt(sent_ns + 2 * MS));
        until_dead(&mut link, &mut random, sent_ns + 41 * MS);
    }

    #[test]
    fn a_link_is_not_given_up_before_the_probes_were_sent() {
        let (mut link, mut random, now_ns) = up();
        assert!(link.hint(now_ns));
        // The host slept.
        let late_ns = now_ns + 400 * MS;
        assert!(matches!(link.poll(late_ns, &mut random), Action::Probe(_)));
    }

    #[test]
    fn a_hint_about_a_link_that_is_not_up_is_none() {
        let mut link = Liveness::new(0);
        assert!(!link.hint(5));
    }
}
