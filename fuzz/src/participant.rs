//! A participant in pulses, among peers that may be anybody, and an epoch's data from anybody.
//!
//! The first byte says what the rest is: 0 an epoch's data; otherwise messages, each behind two bytes of
//! length and one of its sender. What a peer says is kept only if a drawn author has signed it, tick
//! never leaves something due, and nothing is answered with a multiple of what peers may cost.

use std::net::IpAddr;
use std::sync::{Arc, LazyLock};

use hypha_chain::key::Key;
use hypha_chain::{Address, B256, U256};
use hypha_proofs::Challenge;
use hypha_proofs::binding::Binding;
use hypha_proofs::network::epoch::EpochData;
use hypha_proofs::network::ledger::{Closing, Terms, Weights};
use hypha_proofs::network::message::Message;
use hypha_proofs::network::participant::{Action, Moment, Participant, Settings};
use hypha_proofs::network::roster::{Caps, Member, Place, Roster};
use hypha_proofs::network::schedule::{Pulse, Schedule};

use crate::bytes::Input;

const NODES: u32 = 9;
const ME: u32 = 1;
/// What it serves by its hash.
const SERVED: &[u8] = &[1; 70_000];
/// What all peers together may have got out of it at once: see `COST_AT_ONCE` of gossip.
const SENT_MAX: usize = (NODES as usize + 1) * (8 << 20);

static ROSTER: LazyLock<Arc<Roster>> = LazyLock::new(|| {
    let members = (1..=NODES).map(|node| Member {
        node,
        farm: node,
        signer: key(node).address(),
        stake: U256::from(10_u128.pow(21)),
        since_secs: 0,
        claimed: Caps { cores: 1, mem_mib: 1, ssd_mib: 0, hdd_mib: 1, mbps: 1 },
        reserved: Caps::default(),
        plot: None,
        salt: None,
        place: Some(Place { address: IpAddr::from([10, 0, node as u8, 1]), asn: None }),
    });
    match Roster::new(members.collect(), 86_400) {
        Ok(roster) => Arc::new(roster),
        Err(error) => panic!("{error}"),
    }
});

fn key(node: u32) -> Key {
    match Key::from_bytes(&[node as u8; 32]) {
        Ok(key) => key,
        Err(error) => panic!("{error}"),
    }
}

fn pulse() -> Pulse {
    let challenge = Challenge { pulse: 5, seed: B256::repeat_byte(6) };
    Pulse { challenge, epoch: 0, timestamp: 86_400 + 60 }
}

fn participant() -> Participant {
    let address = Address::repeat_byte(1);
    let binding =
        Binding { chain_id: 1, registry: address, capacity: address, disputes: address, node: ME };
    let schedule = Schedule {
        chain_id: 1,
        capacity: address,
        start_secs: 86_400,
        round_secs: 1,
        mean_secs: 60,
        quiet_secs: 30,
    };
    let settings =
        Settings { measured_per_mille: 1000, statements_max: 100, ..Settings::standard(schedule) };
    let mut participant = Participant::new(binding, Arc::new(key(ME)), settings);
    participant.on_epoch(0, Arc::clone(&ROSTER));
    participant.on_pulse(&pulse(), &moment(1));
    participant.serve(0, vec![SERVED.to_vec()]);
    participant.fetch(Some((hypha_chain::keccak256([9; 100]), 70_000)));
    participant.show(0, &[1, 2, 3]);
    participant
}

fn moment(now_ns: u64) -> Moment {
    Moment { now_ns, random: B256::repeat_byte(3) }
}

/// True if a message was answered or a statement kept, or if the data are an epoch's.
///
/// # Panics
/// A promise is broken.
pub fn check(data: &[u8]) -> bool {
    let mut input = Input(data);
    match input.byte() {
        0 => epoch_data(input.0),
        _ => messages(input),
    }
}

fn messages(mut input: Input<'_>) -> bool {
    let mut participant = participant();
    let (mut now_ns, mut sent, mut got_through) = (2, 0, false);
    while !input.0.is_empty() {
        let (len, from) = (usize::from(input.u16()), u32::from(input.byte()) % (NODES + 2));
        let bytes = input.0.get(..len).unwrap_or(input.0);
        input.0 = input.0.get(bytes.len()..).unwrap_or_default();
        if let Ok(message) = Message::decode(bytes) {
            assert_eq!(message.encode(), bytes, "a message has one form");
        }
        now_ns += 1_000_000_000;
        let actions = participant.on_message(from, bytes, &moment(now_ns));
        for action in &actions {
            if let Action::Fetched { hash, bytes, .. } = action {
                assert_eq!(hypha_chain::keccak256(bytes), *hash, "nothing else was wanted");
            }
        }
        got_through |= !actions.is_empty();
        sent += actions.iter().map(sent_bytes).sum::<usize>();
        participant.on_tick(&moment(now_ns));
        assert!(participant.wakes_ns() > now_ns, "it spins");
    }
    assert!(sent <= SENT_MAX, "{sent} bytes were got out of it");
    if let Some(pool) = participant.pool(0) {
        assert!(pool.len() <= 100, "a pool has a limit");
        got_through |= !pool.is_empty();
    }
    got_through
}

fn sent_bytes(action: &Action) -> usize {
    match action {
        Action::Send { bytes, .. } => bytes.len(),
        _ => 0,
    }
}

/// Whatever data say, comparing and going on from them is safe.
fn epoch_data(bytes: &[u8]) -> bool {
    let Ok(data) = EpochData::decode(bytes) else { return false };
    assert_eq!(data.encode(), bytes, "data have one form");
    assert_eq!(data.differences(&data.clone()).count(), 0);
    let participant = participant();
    let Some(pool) = participant.pool(0) else { return false };
    let terms = Terms {
        emission: 1000,
        cap: u128::MAX - 1,
        disk_draws: 64,
        measured_per_mille: 20,
        weights: Weights::STANDARD,
    };
    let closing = Closing {
        epoch: data.ledger.next,
        ends_secs: 90_000,
        counts: (NODES, NODES),
        roster: &ROSTER,
        pulses: &[pulse()],
        pool,
    };
    if let Ok(next) = data.ledger.close(&terms, &closing) {
        let (before, after) = (&data.ledger, &next.ledger);
        let emitted = after.issued() + after.carry - before.issued() - before.carry;
        assert_eq!(emitted, 1000, "an hour's emission");
    }
    true
}
