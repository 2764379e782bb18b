//! One neighbour: its liveness, and the reliable stream of updates to and from it.
//!
//! Updates are numbered. The reader takes them in rising order only; one that arrives late counts as
//! lost. It acknowledges what it took, and for what it did not take the writer sends what is true
//! *then*, under a new number. So an update never has to be kept, and the reader's state is always
//! one that the writer once had.

use std::collections::VecDeque;

use net_vdev::PublicKey;

use crate::bucket::Bucket;
use crate::liveness::{Liveness, State};
use crate::message::Header;
use crate::table::Index;

const MS: u64 = 1_000_000;

/// How many updates may be under way to a neighbour.
const WINDOW: usize = 32;
/// Messages per second that are taken from a neighbour, and at once.
const RECEIVE_RATE: (u32, u32) = (2000, 4000);
/// Bytes of updates per second that are sent to a neighbour, and at once. What waits is not lost:
/// it is merged with what changes meanwhile.
const SEND_RATE: (u32, u32) = (256 * 1024, 512 * 1024);
/// Signatures per second that are verified for a neighbour, and at once (about 40 µs each).
const VERIFY_RATE: (u32, u32) = (500, 4000);
/// A wrong signature counts as so many: a forger soon has no more verified.
const FORGED_TOKENS: u32 = 100;
/// Requests per second that are taken from a neighbour, and at once.
const REQUEST_RATE: (u32, u32) = (100, 400);
/// How long updates that are not urgent wait for others.
pub(crate) const HOLD_NS: u64 = 10 * MS;
/// How long an acknowledgement waits for further updates.
const ACK_NS: u64 = 5 * MS;

/// A link. It goes with a generation, so that a stale one names nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LinkId {
    pub(crate) slot: u16,
    pub(crate) generation: u32,
}

impl LinkId {
    /// The place of the link, less than [`crate::Config::neighbours_max`]: of the links that are
    /// there at a time, each has another.
    #[must_use]
    pub fn index(&self) -> usize {
        usize::from(self.slot)
    }
}

/// An update under way.
#[derive(Debug)]
struct Sent {
    number: u64,
    at_ns: u64,
    /// What it was about.
    about: Vec<Index>,
}

#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) id: LinkId,
    pub(crate) neighbour: PublicKey,
    /// Added to what is measured, in µs.
    extra_cost_us: u32,
    pub(crate) liveness: Liveness,
    /// Whether a probe waits for its reply longer than usual.
    pub(crate) is_doubted: bool,
    /// What routes through this link cost, in µs; it follows the measured cost with hysteresis.
    pub(crate) cost_us: u32,

    /// Our incarnation, changed whenever what the neighbour said is forgotten.
    pub(crate) own: u32,
    /// The neighbour's, 0 if not known.
    pub(crate) theirs: u32,
    /// Whether the neighbour has said that it knows ours.
    pub(crate) is_known: bool,
    pub(crate) zone: u16,

    /// What the neighbour is to be told at once, and what may wait until `flush_ns`.
    pub(crate) urgent: VecDeque<Index>,
    pub(crate) changed: VecDeque<Index>,
    pub(crate) flush_ns: u64,
    under_way: VecDeque<Sent>,
    next_number: u64,
    /// How often in a row nothing was acknowledged in time.
    timeouts: u32,

    /// The largest number taken, and which of the 64 before it.
    highest: u64,
    before: u64,
    ack_ns: Option<u64>,

    pub(crate) received: Bucket,
    pub(crate) send_bytes: Bucket,
    verified: Bucket,
    pub(crate) requests: Bucket,
    /// Destinations that this neighbour was the first to tell of.
    pub(crate) introduced: u32,
    /// Whether something of it was refused because the table was full.
    pub(crate) was_refused: bool,
}

impl Link {
    pub(crate) fn new(
        now_ns: u64,
        id: LinkId,
        neighbour: PublicKey,
        extra_cost_us: u32,
        own: u32,
    ) -> Self {
        let bucket = |(rate, burst): (u32, u32)| Bucket::new(now_ns, rate, burst);
        Self {
            id,
            neighbour,
            extra_cost_us: extra_cost_us.min(1 << 24),
            liveness: Liveness::new(now_ns),
            is_doubted: false,
            cost_us: 0,
            own,
            theirs: 0,
            is_known: false,
            zone: 0,
            urgent: VecDeque::new(),
            changed: VecDeque::new(),
            flush_ns: u64::MAX,
            under_way: VecDeque::new(),
            next_number: 1,
            timeouts: 0,
            highest: 0,
            before: 0,
            ack_ns: None,
            received: bucket(RECEIVE_RATE),
            send_bytes: bucket(SEND_RATE),
            verified: bucket(VERIFY_RATE),
            requests: bucket(REQUEST_RATE),
            introduced: 0,
            was_refused: false,
        }
    }

    /// Whether packets may be sent through it.
    pub(crate) fn is_usable(&self) -> bool {
        self.liveness.state == State::Up && self.is_known && self.theirs != 0
    }

    pub(crate) fn header(&self, zone: u16) -> Header {
        Header { zone, from: self.own, to: self.theirs }
    }

    /// The stream starts anew, in both directions, as incarnation `own`.
    pub(crate) fn restart(&mut self, own: u32, theirs: u32) {
        self.own = own;
        self.theirs = theirs;
        self.is_known = false;
        self.forget_stream();
    }

    pub(crate) fn forget_stream(&mut self) {
        self.urgent.clear();
        self.changed.clear();
        self.flush_ns = u64::MAX;
        self.under_way.clear();
        self.next_number = 1;
        self.timeouts = 0;
        self.highest = 0;
        self.before = 0;
        self.ack_ns = None;
    }

    /// Follows the measured cost, if it is off by more than a tenth and a millisecond.
    pub(crate) fn follow_cost(&mut self) -> bool {
        let measured = self.liveness.quality.cost_us().saturating_add(self.extra_cost_us);
        let is_off = measured.abs_diff(self.cost_us) > self.cost_us / 10 + 1000;
        if is_off {
            self.cost_us = measured;
        }
        is_off
    }

    /// Whether an update of this number is to be read; it is acknowledged then.
    pub(crate) fn takes(&mut self, now_ns: u64, number: u64) -> bool {
        if number <= self.highest {
            // Its writer will learn that it was not taken, or that it was.
            self.ack_ns = Some(now_ns);
            return false;
        }
        let shift = number - self.highest;
        let with_highest = if self.highest == 0 { 0 } else { 1 };
        self.before = match shift {
            1..=63 => self.before << shift | with_highest << (shift - 1),
            64 => with_highest << 63,
            _ => 0,
        };
        self.highest = number;
        self.ack_ns = self.ack_ns.or(Some(now_ns + ACK_NS));
        true
    }

    /// The acknowledgement that is due.
    pub(crate) fn take_ack(&mut self, now_ns: u64) -> Option<(u64, u64)> {
        self.ack_ns.filter(|ack_ns| now_ns >= *ack_ns)?;
        self.ack_ns = None;
        Some((self.highest, self.before))
    }

    /// Sorts the updates under way by an acknowledgement: calls `arrived` or `lost` with the number
    /// of each that was settled and what it was about.
    pub(crate) fn acknowledged(&mut self, highest: u64, before: u64) -> Settled {
        let mut settled = Settled::default();
        while let Some(sent) = self.under_way.front() {
            if sent.number > highest {
                break;
            }
            let back = highest - sent.number;
            let arrived = match back {
                0 => true,
                1..=64 => before >> (back - 1) & 1 == 1,
                _ => false,
            };
            let list = if arrived { &mut settled.arrived } else { &mut settled.lost };
            let number = sent.number;
            if let Some(sent) = self.under_way.pop_front() {
                list.extend(sent.about.into_iter().map(|index| (number, index)));
                self.timeouts = 0;
            }
        }
        settled
    }

    /// How long to wait for an acknowledgement.
    fn timeout_ns(&self) -> u64 {
        let once = (2 * self.liveness.quality.wait_ns()).max(100 * MS);
        (once << self.timeouts.min(6)).min(3000 * MS)
    }

    /// Updates that nobody acknowledged in time: all that is under way counts as lost.
    pub(crate) fn timed_out(&mut self, now_ns: u64) -> Vec<(u64, Index)> {
        let timeout_ns = self.timeout_ns();
        let is_late = |sent: &Sent| now_ns >= sent.at_ns + timeout_ns;
        if !self.under_way.front().is_some_and(is_late) {
            return Vec::new();
        }
        self.timeouts += 1;
        let all = self.under_way.drain(..);
        all.flat_map(|sent| sent.about.into_iter().map(move |index| (sent.number, index))).collect()
    }

    /// The number of the next update, if one may be sent now.
    pub(crate) fn next_number(&self, now_ns: u64) -> Option<u64> {
        let is_due =
            !self.urgent.is_empty() || (!self.changed.is_empty() && now_ns >= self.flush_ns);
        let window = if self.timeouts > 0 { 1 } else { WINDOW };
        (is_due && self.is_usable() && self.under_way.len() < window).then_some(self.next_number)
    }

    pub(crate) fn sent(&mut self, now_ns: u64, about: Vec<Index>) {
        self.under_way.push_back(Sent { number: self.next_number, at_ns: now_ns, about });
        self.next_number += 1;
    }

    /// When the stream has something to do.
    pub(crate) fn stream_deadline_ns(&self) -> u64 {
        let late_ns = self.under_way.front().map(|sent| sent.at_ns + self.timeout_ns());
        let window_is_open = self.under_way.len() < WINDOW && self.timeouts == 0;
        let flush_ns = if window_is_open || self.under_way.is_empty() {
            let paced_ns = self.send_bytes.ready_ns(crate::message::MESSAGE_BYTES_MAX as u32);
            match (self.urgent.is_empty(), self.changed.is_empty()) {
                (true, true) => u64::MAX,
                (true, false) => self.flush_ns.max(paced_ns),
                (false, _) => paced_ns,
            }
        } else {
            u64::MAX
        };
        let flush_ns = if self.is_usable() { flush_ns } else { u64::MAX };
        flush_ns.min(late_ns.unwrap_or(u64::MAX)).min(self.ack_ns.unwrap_or(u64::MAX))
    }

    /// Whether another signature may be verified for this neighbour.
    pub(crate) fn may_verify(&mut self, now_ns: u64) -> bool {
        self.verified.take(now_ns, 1)
    }

    pub(crate) fn forged(&mut self, now_ns: u64) {
        // What is left is less than the price only when the forger has none left anyway.
        if !self.verified.take(now_ns, FORGED_TOKENS) {
            self.verified.empty();
        }
    }

    /// Bytes of memory, without those of its place.
    pub(crate) fn bytes(&self) -> usize {
        let lists = self.urgent.capacity() + self.changed.capacity();
        let about: usize = self.under_way.iter().map(|sent| sent.about.capacity()).sum();
        (lists + about) * size_of::<Index>() + self.under_way.capacity() * size_of::<Sent>()
    }
}

/// What an acknowledgement settled: numbers of updates and what they were about.
#[derive(Debug, Default)]
pub(crate) struct Settled {
    pub(crate) arrived: Vec<(u64, Index)>,
    pub(crate) lost: Vec<(u64, Index)>,
}
