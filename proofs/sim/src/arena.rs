//! One node, seven witnesses, one pulse: the real verifiers judge what a strategy answers, over lines
//! that delay and lose.
//!
//! What the seven see of one pulse belongs together (all see the same leaves, each draws its own
//! segments), so it is kept together: larger networks draw whole pulses of what was seen here.

use fastrand::Rng;
use hypha_chain::{B256, keccak256};
use hypha_proofs::Rules;
use hypha_proofs::network::witness::WITNESSES;
use hypha_proofs::verifier::{Outcome, Verifier};

use crate::hardware::{MS, SECOND};
use crate::machine::RULES;
use crate::strategy::{Played, Player, Strategy};

/// How long a message that is not answered waits to be sent again (`Participant` does the same).
const RESEND_NS: u64 = 500 * MS;
/// Bytes of a standard opening (docs/proofs.md, "Figures"): seven go out at once.
const OPENING_BYTES: u64 = 178_049;

/// A node's way to its witnesses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Line {
    /// From when to when a message arrives, in nanoseconds.
    pub delay_ns: (u64, u64),
    /// Of 1000 messages, so many are lost.
    pub lost: u32,
    /// What the node sends in a second, in bytes.
    pub bytes_per_sec: u64,
}

impl Line {
    /// A usual one.
    pub const USUAL: Self =
        Self { delay_ns: (5 * MS, 80 * MS), lost: 5, bytes_per_sec: 12_500_000 };
    /// Two Mbit/s, and three messages of a hundred lost.
    pub const SLOW: Self =
        Self { delay_ns: (100 * MS, 400 * MS), lost: 30, bytes_per_sec: 250_000 };

    /// When a message arrives that is sent until it does; `None` if not within the deadline.
    fn arrives(&self, rng: &mut Rng, from_ns: u64, until_ns: u64) -> Option<u64> {
        let mut sent_ns = from_ns;
        while rng.u32(..1000) < self.lost {
            sent_ns += RESEND_NS;
        }
        let at = sent_ns + rng.u64(self.delay_ns.0..self.delay_ns.1);
        (at <= until_ns).then_some(at)
    }
}

/// What happens to honest machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Faults {
    /// Of 10,000 pulses, in so many the machine is down, for a crash or an update.
    pub down: u32,
    /// The latest at which a node hears of a pulse, in nanoseconds after the first: its own chain
    /// node is behind, or its clock.
    pub hears_ns: u64,
    /// Of 1000 nodes, so many have a slow line.
    pub slow: u32,
}

impl Faults {
    /// What this simulation takes for usual: down for a quarter of a percent of the time, one in ten
    /// lines slow, blocks known within 0.8 s.
    pub const USUAL: Self = Self { down: 25, hears_ns: 800 * MS, slow: 100 };
}

/// What one witness makes of one node in one pulse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Seen {
    /// It has a verdict at all.
    pub spoke: bool,
    /// How long it waited for the commitment, in nanoseconds: what that leaves of an amount,
    /// `Rules::timely` says.
    pub took_ns: u64,
    /// The processors are proven.
    pub cpu: bool,
    /// The memory is.
    pub mem: bool,
    /// The disk is.
    pub disk: bool,
    /// How many of 64 drawn leaves were filler.
    pub filler: u16,
}

/// What seven witnesses make of one node in one pulse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pulse {
    /// Each of them.
    pub seen: [Seen; WITNESSES],
    /// How many have a false segment with the node's signature: a dispute takes all its stake.
    pub evidence: u32,
}

/// What was seen of a strategy: for each of its identities, its pulses.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// Who.
    pub strategy: Strategy,
    /// For each identity.
    pub pulses: Vec<Vec<Pulse>>,
}

impl Pulse {
    /// Whether five of seven say of a resource that it is proven.
    #[must_use]
    pub fn proven(&self, of: impl Fn(&Seen) -> bool) -> bool {
        let quorum = hypha_proofs::network::witness::quorum(WITNESSES).unwrap_or(usize::MAX);
        self.seen.iter().filter(|seen| of(seen)).count() >= quorum
    }
}

impl Record {
    /// All identities' pulses.
    pub fn all(&self) -> impl Iterator<Item = &Pulse> {
        self.pulses.iter().flatten()
    }

    /// Whether a pulse proved all that was claimed in it.
    #[must_use]
    pub fn whole(&self, pulse: &Pulse) -> bool {
        let claims = self.strategy.claims();
        (!claims.cpu || pulse.proven(|seen| seen.cpu))
            && (!claims.mem || pulse.proven(|seen| seen.mem))
            && (!claims.disk || pulse.proven(|seen| seen.disk))
    }
}

/// Plays `count` pulses of a strategy. The same arguments give the same record; and with one seed, pulses of
/// different strategies meet with the same lines and delays, so that a difference between them is theirs.
#[must_use]
pub fn play(strategy: Strategy, faults: &Faults, count: u64, seed: u64) -> Record {
    let player = Player::new(strategy, 1, seed);
    let identities = strategy.identities() as usize;
    let mut pulses = vec![Vec::with_capacity(count as usize); identities];
    for number in 1..=count {
        let mut rng = chance(seed, number, 0);
        let slow = rng.u32(..1000) < faults.slow;
        let line = if slow { Line::SLOW } else { Line::USUAL };
        let down = rng.u32(..10_000) < faults.down;
        if down {
            pulses.iter_mut().for_each(|of| of.push(Pulse::default()));
            continue;
        }
        let heard_ns = rng.u64(..faults.hears_ns.max(1));
        for (of, played) in pulses.iter_mut().zip(player.play(number)) {
            of.push(watch(&player, &played, (heard_ns, &line, faults), number, seed));
        }
    }
    Record { strategy, pulses }
}

/// What happens in a pulse to all of it (0) or at one witness (from 1 on).
fn chance(seed: u64, pulse: u64, place: u64) -> Rng {
    let word = keccak256([seed, pulse, place].map(u64::to_be_bytes).concat());
    Rng::with_seed(u64::from_be_bytes(word.first_chunk().copied().unwrap_or_default()))
}

/// A pulse through all its witnesses.
fn watch(
    player: &Player,
    played: &Played<'_>,
    (heard_ns, line, faults): (u64, &Line, &Faults),
    number: u64,
    seed: u64,
) -> Pulse {
    let mut pulse = Pulse::default();
    let Some(reply) = &played.reply else { return pulse };
    let commitment = reply.commitment().encode();
    let claim = played.machine.claim();
    // Openings share the line: the last one waits for all.
    let opening_ns = OPENING_BYTES * WITNESSES as u64 * SECOND / line.bytes_per_sec;
    for (index, seen) in pulse.seen.iter_mut().enumerate() {
        let rng = &mut chance(seed, number, index as u64 + 1);
        let began_ns = rng.u64(..faults.hears_ns.max(1));
        let mut verifier = Verifier::new(RULES, claim, player.challenge(number), began_ns);
        let draw: B256 =
            keccak256([number, index as u64, rng.u64(..)].map(u64::to_be_bytes).concat());
        let until = began_ns + RULES.commit_ns;
        let sent = heard_ns + played.ready_ns;
        // Who is late anyway is told so by the verifier itself.
        let at = line.arrives(rng, sent, until.max(sent) + SECOND);
        let Some(at) = at else { continue };
        let Ok(draw) = verifier.on_commitment(&commitment, at, draw) else { continue };
        let until = at + RULES.open_ns;
        let drawn = line.arrives(rng, at, until);
        let opened = drawn.and_then(|at| line.arrives(rng, at + opening_ns, until));
        let Some((opened, opening)) = opened.zip(reply.open(&draw)) else { continue };
        let Ok(outcome) = verifier.on_opening(&opening.encode(), opened) else { continue };
        pulse.evidence += u32::from(!outcome.evidence.is_empty());
        *seen = seen_of(&outcome, at.saturating_sub(began_ns));
    }
    pulse
}

fn seen_of(outcome: &Outcome, took_ns: u64) -> Seen {
    let verdict = &outcome.verdict;
    Seen {
        spoke: true,
        took_ns,
        cpu: verdict.threads > 0,
        mem: verdict.memMiB > 0,
        disk: verdict.diskMiB > 0 || verdict.fillerDraws > 0,
        filler: verdict.fillerDraws,
    }
}

/// What a share of trials was, and between which bounds the true one lies with 95 % (Wilson's).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Share {
    /// Of the trials.
    pub mean: f64,
    /// The lower bound.
    pub low: f64,
    /// The upper bound.
    pub high: f64,
}

impl Share {
    /// Of so many trials, so many.
    #[must_use]
    pub fn of(hits: usize, trials: usize) -> Self {
        let (n, z) = (trials.max(1) as f64, 1.96);
        let mean = hits as f64 / n;
        let middle = (mean + z * z / (2.0 * n)) / (1.0 + z * z / n);
        let half = z * (mean * (1.0 - mean) / n + z * z / (4.0 * n * n)).sqrt() / (1.0 + z * z / n);
        Self { mean, low: (middle - half).max(0.0), high: (middle + half).min(1.0) }
    }

    /// At least once in `times`.
    #[must_use]
    pub fn once_in(&self, times: i32) -> Self {
        let once = |share: f64| 1.0 - (1.0 - share).powi(times);
        Self { mean: once(self.mean), low: once(self.low), high: once(self.high) }
    }
}

/// What a formula says of `missing` of all leaves in one pulse.
#[must_use]
pub fn caught_by_formula(missing: f64, rules: &Rules) -> f64 {
    1.0 - (1.0 - missing).powi(rules.disk_draws as i32)
}
