//! A session as a pair of ends: what is sealed opens once, and nothing else does.

use proptest::prelude::*;
use zeroize::Zeroizing;

use super::*;

pub(super) fn keys(cipher: Cipher, initiator: bool) -> Keys {
    let (send, receive) = if initiator { ([1; 32], [2; 32]) } else { ([2; 32], [1; 32]) };
    Keys {
        send: Zeroizing::new(send),
        receive: Zeroizing::new(receive),
        cipher,
        remote_index: if initiator { 20 } else { 10 },
        initiator,
        send_hop: Zeroizing::new(if initiator { [3; 32] } else { [4; 32] }),
        receive_hop: Zeroizing::new(if initiator { [4; 32] } else { [3; 32] }),
        post_quantum: false,
        open_checksums: true,
    }
}

pub(super) fn pair(cipher: Cipher) -> (Session, Session) {
    let one = Session::new(&keys(cipher, true), 10, 0).unwrap();
    let other = Session::new(&keys(cipher, false), 20, 0).unwrap();
    (one, other)
}

fn sealed(session: &mut Session, packet: &[u8]) -> Vec<u8> {
    let mut datagram = vec![0; DATA_HEADER_BYTES];
    datagram.extend_from_slice(packet);
    datagram.extend_from_slice(&[0; TAG_BYTES]);
    assert!(session.seal(&mut datagram));
    datagram
}

fn open(session: &mut Session, datagram: &[u8]) -> Result<Vec<u8>, OpenError> {
    let Ok(wire::Datagram::Data { counter, .. }) = wire::parse(datagram) else {
        return Err(OpenError::Forged);
    };
    session.open(counter, &mut datagram.to_vec()).map(|(packet, _)| packet.to_vec())
}

#[test]
fn a_packet_opens_once_at_the_other_end_and_never_at_its_own() {
    for cipher in [Cipher::ChaCha20Poly1305, Cipher::Aes256Gcm] {
        let (mut one, mut other) = pair(cipher);
        let datagram = sealed(&mut one, b"packet");
        assert_eq!(datagram.len(), 6 + wire::DATA_OVERHEAD_BYTES);
        assert_eq!(datagram[..16], wire::data_header(20, 0));
        assert_eq!(open(&mut one, &datagram), Err(OpenError::Forged), "reflected");
        assert_eq!(open(&mut other, &datagram).unwrap(), b"packet");
        assert_eq!(open(&mut other, &datagram), Err(OpenError::Replayed));
    }
}

#[test]
fn a_forged_counter_does_not_move_the_window() {
    let (mut one, mut other) = pair(Cipher::Aes256Gcm);
    let mut ahead = sealed(&mut one, b"first");
    ahead[8..16].copy_from_slice(&1_000_000u64.to_be_bytes());
    assert_eq!(open(&mut other, &ahead), Err(OpenError::Forged));
    let second = sealed(&mut one, b"second");
    assert!(open(&mut other, &second).is_ok());
}

#[test]
fn counters_end_before_they_could_recur() {
    let (mut one, mut other) = pair(Cipher::Aes256Gcm);
    one.next_counter = REKEY_AFTER_PACKETS - 1;
    assert!(!one.wants_rekey(0));
    let datagram = sealed(&mut one, b"last before rekeying");
    assert!(one.wants_rekey(0) && one.is_alive(0));
    assert!(open(&mut other, &datagram).is_ok());
    one.next_counter = REJECT_AFTER_PACKETS - 1;
    sealed(&mut one, b"very last");
    assert!(!one.is_alive(0));
    let mut datagram = vec![0; DATA_HEADER_BYTES];
    assert!(!one.seal(&mut datagram), "no counter is left");
    assert_eq!(datagram, [0; DATA_HEADER_BYTES], "and nothing was written");
}

#[test]
fn age_asks_for_a_new_session_and_then_ends_the_old_one() {
    let (one, other) = pair(Cipher::Aes256Gcm);
    assert!(!one.wants_rekey(REKEY_AFTER_NS - 1) && one.wants_rekey(REKEY_AFTER_NS));
    assert!(!other.wants_rekey(REKEY_AFTER_NS), "the initiator goes first");
    assert!(other.wants_rekey(REKEY_AFTER_NS + 10_000_000_000));
    assert!(one.is_alive(REJECT_AFTER_NS - 1) && !one.is_alive(REJECT_AFTER_NS));
    let last_ns = REJECT_AFTER_NS - 5_000_000_000;
    assert!(one.may_send(last_ns - 1) && !one.may_send(last_ns), "what is under way arrives");
}

proptest! {
    #[test]
    fn any_order_with_duplicates_opens_each_packet_once(
        order in prop::collection::vec(0usize..64, 1..200),
    ) {
        let (mut one, mut other) = pair(Cipher::ChaCha20Poly1305);
        let datagrams: Vec<_> = (0u8..64).map(|number| sealed(&mut one, &[number])).collect();
        let mut opened = std::collections::BTreeSet::new();
        for index in order {
            match open(&mut other, &datagrams[index]) {
                Ok(packet) => {
                    prop_assert_eq!(packet, vec![u8::try_from(index).unwrap()]);
                    prop_assert!(opened.insert(index), "opened twice");
                }
                Err(error) => {
                    prop_assert_eq!(error, OpenError::Replayed);
                    prop_assert!(opened.contains(&index));
                }
            }
        }
    }

    #[test]
    fn no_changed_bit_and_no_cut_opens(bit in 0usize..132 * 8, cut in 0usize..132) {
        let (mut one, mut other) = pair(Cipher::Aes256Gcm);
        let mut datagram = sealed(&mut one, &[7; 100]);
        prop_assert!(open(&mut other, &datagram[..cut]).is_err());
        datagram[bit / 8] ^= 1 << (bit % 8);
        // The first eight bytes choose the session; the endpoint has done that before.
        prop_assert!(open(&mut other, &datagram).is_err());
        datagram[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(open(&mut other, &datagram).is_ok());
    }
}
