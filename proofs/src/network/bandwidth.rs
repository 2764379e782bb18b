//! A node's line, measured by several challengers at once: each sends a burst of bytes that nobody
//! could know before, and the node answers all of them with one receipt over what came.
//!
//! One receipt for all, since separate answers could be given one after the other: each burst would
//! have had the whole line for a part of the time, and the sum would count it several times.
//!
//! What is proven follows from this: all bursts whose challengers waited for the receipt no longer than
//! `t` came within `t`, whenever the node had them begin. So their bytes by `t` are no more than the line
//! brings, for each `t`. Friends of the node among the challengers need not send at all, so the shortest
//! waits are left out, of ten three, and what the others bring stands for them; the largest of these figures
//! counts, over the `t` of more than half. `k` friends of ten make it `10 / (10 - k)` of the line, up to
//! three, and no less could be: what they say to have sent is a tenth of all each.

use std::collections::BTreeMap;

use hypha_chain::B256;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::digest::{Context, SHA256};

use super::message::{CHUNK_BYTES, CHUNKS_MAX};
use super::statement::BandwidthVerdict;
use crate::sha256;

/// Of how many nodes in 1000 a pulse measures the bandwidth.
pub const MEASURED_PER_MILLE: u32 = 20;
/// How long after `Ready` a burst and its receipt may take, in nanoseconds.
pub const BURST_NS: u64 = 3_000_000_000;
/// When the measured node gives its receipt at the latest, in nanoseconds after `Ready`: it must be there
/// within [`BURST_NS`] of a burst that began earlier than it was asked for, as the challenger's clock has it.
const RECEIPT_NS: u64 = BURST_NS - BURST_NS / 12;
/// How long a burst takes on the claimed line, in milliseconds.
const BURST_MS: u64 = 500;
/// Of those who were drawn, the part whose waits are left out, the shortest ones: as many friends of a node
/// gain no more than what they say to have sent.
const LEFT_OUT: (usize, usize) = (3, 10);
/// The fewest bytes of a burst: less is all round trip.
const BURST_BYTES_MIN: u64 = 16 * 1024;

/// How many bytes each of so many challengers sends to a node with such a claim: together half a
/// second of the line, if that is not too much.
#[must_use]
pub fn burst_bytes(claimed_mbps: u32, challengers: usize) -> usize {
    let all = u64::from(claimed_mbps) * 1_000_000 / 8 * BURST_MS / 1000;
    let each = all / (challengers as u64).max(1);
    each.clamp(BURST_BYTES_MIN, (CHUNK_BYTES * CHUNKS_MAX) as u64) as usize
}

/// The bandwidth in Mbit/s that challengers have measured together; `None` if not more than half of
/// those drawn confirm one receipt.
#[must_use]
pub fn mbps(lines: &[&BandwidthVerdict], drawn: usize, claimed_mbps: u32) -> Option<u32> {
    let mut receipts: BTreeMap<B256, Vec<&BandwidthVerdict>> = BTreeMap::new();
    for line in lines {
        receipts.entry(line.receipt).or_default().push(line);
    }
    let mut agreed = receipts.into_values().find(|lines| lines.len() * 2 > drawn)?;
    agreed.sort_by_key(|line| line.micros);
    let most = burst_bytes(claimed_mbps, drawn) as u64;
    let left_out = drawn * LEFT_OUT.0 / LEFT_OUT.1;
    let stand_for = (drawn as u64, (drawn - left_out).max(1) as u64);
    let mut bytes = 0;
    let figures = (1..).zip(agreed).map(|(count, line)| {
        if count > left_out {
            bytes += u64::from(line.bytesLen).min(most);
        }
        let all = bytes * stand_for.0 / stand_for.1;
        if count * 2 > drawn { all * 8 / u64::from(line.micros.max(1)) } else { 0 }
    });
    figures.max().map(|mbps| u32::try_from(mbps).unwrap_or(u32::MAX))
}

/// A challenger's burst.
pub(super) struct Burst {
    chunks: Vec<Vec<u8>>,
    hash: B256,
    sent_ns: u64,
    done: bool,
}

impl Burst {
    /// A burst of so many bytes out of 32 random ones. `place` is node, pulse and challenger.
    pub(super) fn new(random: &B256, len: usize, place: (u32, u64, u32), now_ns: u64) -> Self {
        let chunks: Vec<Vec<u8>> = (0..len.div_ceil(CHUNK_BYTES))
            .map(|index| stream(random, index, (len - index * CHUNK_BYTES).min(CHUNK_BYTES)))
            .collect();
        let mut hash = Hash::new(place);
        chunks.iter().for_each(|chunk| hash.update(chunk));
        Self { chunks, hash: hash.finish(), sent_ns: now_ns, done: false }
    }

    /// What is announced: the hash of each piece.
    pub(super) fn announced(&self) -> Vec<B256> {
        self.chunks.iter().map(|chunk| sha256(chunk)).collect()
    }

    /// The pieces, each once: what was sent need not be kept.
    pub(super) fn take(&mut self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.chunks)
    }

    /// How long the receipt took, in microseconds, if it has the right hash and is the first.
    pub(super) fn on_receipt(&mut self, hash: &B256, now_ns: u64) -> Option<u32> {
        let waited = now_ns.saturating_sub(self.sent_ns);
        if self.done || *hash != self.hash || waited > BURST_NS {
            return None;
        }
        self.done = true;
        Some(u32::try_from(waited / 1000).unwrap_or(u32::MAX).max(1))
    }
}

/// Keystream: fast to make, and no part of it tells another.
fn stream(random: &B256, index: usize, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let mut nonce = [0; NONCE_LEN];
    for (to, from) in nonce.iter_mut().zip((index as u64).to_be_bytes()) {
        *to = from;
    }
    if let Ok(key) = UnboundKey::new(&CHACHA20_POLY1305, &random[..]) {
        let nonce = Nonce::assume_unique_for_key(nonce);
        let sealed =
            LessSafeKey::new(key).seal_in_place_separate_tag(nonce, Aad::empty(), &mut bytes);
        // It refuses 256 GiB and more.
        assert!(sealed.is_ok(), "a piece of a burst has 64 KiB at most");
    }
    bytes
}

/// Over the whole burst: who knows the pieces' hashes does not know this.
struct Hash(Context);

impl Hash {
    fn new((node, pulse, challenger): (u32, u64, u32)) -> Self {
        let mut context = Context::new(&SHA256);
        context.update(b"hypha burst 1");
        context.update(&node.to_be_bytes());
        context.update(&pulse.to_be_bytes());
        context.update(&challenger.to_be_bytes());
        Self(context)
    }

    fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn finish(self) -> B256 {
        B256::from_slice(self.0.finish().as_ref())
    }
}

/// A node that is measured: what has come of each burst.
pub(super) struct Sink {
    place: (u32, u64),
    challengers: Vec<u32>,
    ready_ns: u64,
    /// Until when the other bursts are waited for, since more than half are whole.
    enough_ns: Option<u64>,
    coming: BTreeMap<u32, Coming>,
    whole: BTreeMap<u32, B256>,
    done: bool,
}

struct Coming {
    chunks: Vec<B256>,
    next: usize,
    hash: Hash,
}

impl Sink {
    /// Ready for these challengers from now on.
    pub(super) fn new(place: (u32, u64), challengers: Vec<u32>, now_ns: u64) -> Self {
        let (coming, whole) = (BTreeMap::new(), BTreeMap::new());
        Self { place, challengers, ready_ns: now_ns, enough_ns: None, coming, whole, done: false }
    }

    /// Those who were drawn.
    pub(super) fn challengers(&self) -> &[u32] {
        &self.challengers
    }

    /// A challenger, whose signature was checked, announces its burst.
    pub(super) fn on_head(&mut self, challenger: u32, chunks: Vec<B256>) {
        let known = self.whole.contains_key(&challenger) || self.coming.contains_key(&challenger);
        if known || !self.challengers.contains(&challenger) || chunks.is_empty() {
            return;
        }
        let hash = Hash::new((self.place.0, self.place.1, challenger));
        self.coming.insert(challenger, Coming { chunks, next: 0, hash });
    }

    /// A piece. Only the announced one that comes next is taken, whoever sent it.
    pub(super) fn on_chunk(&mut self, challenger: u32, index: u16, bytes: &[u8], now_ns: u64) {
        let Some(coming) = self.coming.get_mut(&challenger) else { return };
        let expected = coming.chunks.get(coming.next);
        if usize::from(index) != coming.next || expected != Some(&sha256(bytes)) {
            return;
        }
        coming.hash.update(bytes);
        coming.next += 1;
        if coming.next == coming.chunks.len()
            && let Some(coming) = self.coming.remove(&challenger)
        {
            self.whole.insert(challenger, coming.hash.finish());
            self.expect_rest(now_ns);
        }
    }

    /// A burst is whole: how long are the others waited for?
    fn expect_rest(&mut self, now_ns: u64) {
        let (all, whole) = (self.challengers.len() as u64, self.whole.len() as u64);
        if whole * 2 > all {
            // At the pace of those that are whole, the rest would be by then, and a twentieth of grace.
            // Who says nothing costs its share of the figure, and not the receipt.
            let took = now_ns.saturating_sub(self.ready_ns);
            self.enough_ns = Some(self.ready_ns + took * all / whole + took / 20);
        }
    }

    /// When the receipt is due at the latest; `None` once it was given.
    pub(super) fn due_ns(&self) -> Option<u64> {
        let last = self.ready_ns + RECEIPT_NS;
        (!self.done).then(|| self.enough_ns.unwrap_or(last).min(last))
    }

    /// The entries of the receipt if it is due, once.
    pub(super) fn receipt(&mut self, now_ns: u64) -> Option<Vec<(u32, B256)>> {
        let all = self.whole.len() == self.challengers.len();
        let due = self.due_ns().is_some_and(|due| all || now_ns >= due);
        if !due {
            return None;
        }
        self.done = true;
        let entries: Vec<(u32, B256)> = self.whole.iter().map(|(id, hash)| (*id, *hash)).collect();
        (!entries.is_empty()).then_some(entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(receipt: u8, micros: u32) -> BandwidthVerdict {
        let receipt = B256::repeat_byte(receipt);
        BandwidthVerdict { node: 1, pulse: 1, receipt, bytesLen: 625_000, micros }
    }

    fn measured(waits: &[u32]) -> Option<u32> {
        let lines: Vec<BandwidthVerdict> = waits.iter().map(|wait| line(1, *wait)).collect();
        mbps(&lines.iter().collect::<Vec<_>>(), 10, 100)
    }

    #[test]
    fn ten_bursts_of_a_tenth_of_the_line_are_the_line() {
        assert_eq!(measured(&[500_000; 10]), Some(100));
        // Four say nothing: three of the six stand for three others, and four are missing.
        assert_eq!(measured(&[500_000; 6]), Some(42));
        assert_eq!(measured(&[500_000; 5]), None, "not more than half");
        assert_eq!(measured(&[]), None);
    }

    #[test]
    fn having_challengers_begin_one_after_the_other_gains_nothing() {
        // Burst after burst on a line of 100 Mbit/s, 50 ms each, and the receipt behind the last.
        let staggered: Vec<u32> = (1..=10).map(|number| number * 50_000).collect();
        assert_eq!(measured(&staggered), Some(100));
        let in_two_halves: Vec<u32> = [[250_000; 5], [3_000_000; 5]].concat();
        assert_eq!(measured(&in_two_halves), Some(16));
    }

    #[test]
    fn friends_gain_no_more_than_what_they_say_to_have_sent() {
        // The others' bursts share a line of 100 Mbit/s: 50 ms each.
        let friends = |count: usize| {
            let shared = vec![(10 - count as u32) * 50_000; 10 - count];
            measured(&[vec![1; count], shared].concat())
        };
        assert_eq!([1, 2, 3].map(friends), [Some(111), Some(125), Some(142)]);
        // Nor with fewer of the others.
        let of_six = |friends: usize| {
            let shared = vec![(6 - friends as u32) * 50_000; 6 - friends];
            measured(&[vec![1; friends], shared].concat())
        };
        assert_eq!([1, 2, 3].map(of_six), [Some(85), Some(107), Some(142)]);
    }

    #[test]
    fn two_liars_of_ten_change_little() {
        let with = |lie: u32| [vec![500_000; 8], vec![lie; 2]].concat();
        assert_eq!(measured(&with(u32::MAX)), Some(71));
        assert_eq!(measured(&with(1)), Some(100));
    }

    #[test]
    fn only_those_count_who_confirm_one_receipt() {
        let lines: Vec<BandwidthVerdict> =
            (0..10).map(|number| line(u8::from(number < 4), 500_000)).collect();
        assert_eq!(mbps(&lines.iter().collect::<Vec<_>>(), 10, 100), Some(42));
        let halves: Vec<BandwidthVerdict> =
            (0..10).map(|number| line(u8::from(number < 5), 500_000)).collect();
        assert_eq!(mbps(&halves.iter().collect::<Vec<_>>(), 10, 100), None);
    }

    #[test]
    fn nobody_claims_to_have_sent_more_than_was_to_be_sent() {
        let huge: Vec<BandwidthVerdict> =
            (0..10).map(|_| BandwidthVerdict { bytesLen: u32::MAX, ..line(1, 500_000) }).collect();
        assert_eq!(mbps(&huge.iter().collect::<Vec<_>>(), 10, 100), Some(100));
        assert_eq!(mbps(&[&line(1, 0)], 1, 100), Some(5_000_000));
    }

    #[test]
    fn a_receipt_names_whole_bursts_and_waits_for_no_laggard() {
        let place = |challenger| (1, 2, challenger);
        let burst =
            |id: u32| Burst::new(&B256::repeat_byte(id as u8), 100_000, place(id), 1_000_000);
        let mut sink = Sink::new((1, 2), (1..=7).collect(), 1_000_000);
        let mut bursts: Vec<(u32, Burst)> = (1..=7).map(|id| (id, burst(id))).collect();
        for (id, burst) in &mut bursts {
            let chunks = burst.announced();
            sink.on_head(*id, chunks);
            let pieces = burst.take();
            assert_eq!(pieces.iter().map(Vec::len).collect::<Vec<_>>(), [65_536, 34_464]);
            for (index, piece) in (0..).zip(pieces) {
                let mut wrong = piece.clone();
                wrong[9] ^= 1;
                sink.on_chunk(*id, index, &wrong, 5_000_000);
                sink.on_chunk(*id, index + 1, &piece, 5_000_000);
                if *id < 6 {
                    sink.on_chunk(*id, index, &piece, 11_000_000);
                }
            }
        }
        // Five of seven are whole after 10 ms: the others would be after 14, and half of one more is given.
        assert_eq!(sink.due_ns(), Some(15_500_000));
        assert_eq!(sink.receipt(15_499_999), None);
        let entries = sink.receipt(15_500_000).unwrap();
        assert_eq!(entries.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
        assert_eq!((sink.receipt(16_000_000), sink.due_ns()), (None, None));
        for (id, burst) in &mut bursts {
            let hash = entries.iter().find(|(it, _)| it == id).map(|(_, hash)| *hash);
            let micros = burst.on_receipt(&hash.unwrap_or_default(), 13_000_000);
            assert_eq!(micros, hash.map(|_| 12_000));
            assert_eq!(burst.on_receipt(&hash.unwrap_or_default(), 13_000_000), None, "once");
        }
    }
}
