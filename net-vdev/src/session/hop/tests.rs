//! Hop tags: each header passes once, at the other end of its link, unchanged.

use proptest::prelude::*;

use super::*;
use crate::session::handshake::Cipher;
use crate::session::tests::{keys, pair};
use crate::session::{REKEY_AFTER_PACKETS, WINDOW_PACKETS};
use crate::wire::{DATA_HEADER_BYTES, TAG_BYTES};

fn tagged(session: &mut Session, byte: u8) -> [u8; 64] {
    let mut header = [byte; 64];
    assert!(session.seal_hop(&mut header));
    header
}

#[test]
fn a_header_passes_once_at_the_other_end_of_its_link() {
    for cipher in [Cipher::ChaCha20Poly1305, Cipher::Aes256Gcm] {
        let (mut one, mut other) = pair(cipher);
        let header = tagged(&mut one, 0xee);
        assert_eq!(header[..16], [0xee, 0xee, 0xee, 0xee, 0, 0, 0, 20, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(header[16..48], [0xee; 32]);
        assert_eq!(tagged(&mut one, 0xee)[8..16], 1u64.to_be_bytes());
        assert_eq!(one.open_hop(&header), Err(OpenError::Forged), "reflected");
        assert_eq!(other.open_hop(&header), Ok(()));
        assert_eq!(other.open_hop(&header), Err(OpenError::Replayed));
    }
}

#[test]
fn hop_tags_and_packets_have_counters_and_keys_of_their_own() {
    let (mut one, mut other) = pair(Cipher::Aes256Gcm);
    let mut datagram = [0; DATA_HEADER_BYTES + TAG_BYTES];
    for _ in 0..3 {
        assert!(one.seal(&mut datagram));
    }
    let header = tagged(&mut one, 1);
    assert_eq!(header[8..16], [0; 8]);
    assert_eq!(other.open_hop(&header), Ok(()));
    // A sealed empty packet is a tag too, over its 16 bytes of header and under the other key.
    let mut forged = header;
    forged[48..].copy_from_slice(&datagram[DATA_HEADER_BYTES..][..TAG_BYTES]);
    assert_eq!(other.open_hop(&forged), Err(OpenError::Replayed));
    forged[15] = 2;
    assert_eq!(other.open_hop(&forged), Err(OpenError::Forged));
}

#[test]
fn a_key_of_one_direction_is_derived_and_not_the_key_itself() {
    // HKDF-Expand (RFC 5869) of one block is HMAC(key, info ‖ 1).
    let derived = derive_key(&[7; 32]).unwrap();
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &[7; 32]);
    let expected = ring::hmac::sign(&key, b"Hypha mesh 1: hop tags\x01");
    assert_eq!(derived.as_slice(), expected.as_ref());
}

#[test]
fn hop_counters_end_before_they_could_recur_and_ask_for_a_new_session_first() {
    let (mut one, _) = pair(Cipher::Aes256Gcm);
    one.hop.next_counter = REKEY_AFTER_PACKETS - 1;
    assert!(!one.wants_rekey(0));
    tagged(&mut one, 1);
    assert!(one.wants_rekey(0) && one.is_alive(0));
    one.hop.next_counter = REJECT_AFTER_PACKETS - 1;
    tagged(&mut one, 1);
    assert!(!one.is_alive(0));
    let mut header = [9; 64];
    assert!(!one.seal_hop(&mut header), "no counter is left");
    assert_eq!(header, [9; 64], "and nothing was written");
}

#[test]
fn a_session_without_the_hop_key_of_its_link_passes_nothing() {
    let (mut one, _) = pair(Cipher::Aes256Gcm);
    let mut stolen = keys(Cipher::Aes256Gcm, false);
    stolen.receive_hop = stolen.receive.clone();
    let mut other = Session::new(&stolen, 20, 0).unwrap();
    assert_eq!(other.open_hop(&tagged(&mut one, 1)), Err(OpenError::Forged));
}

proptest! {
    #[test]
    fn no_changed_bit_passes_and_none_moves_the_window(bit in 0usize..64 * 8) {
        for cipher in [Cipher::ChaCha20Poly1305, Cipher::Aes256Gcm] {
            let (mut one, mut other) = pair(cipher);
            let header = tagged(&mut one, 0x5a);
            let mut changed = header;
            changed[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(other.open_hop(&changed).is_err());
            prop_assert_eq!(other.open_hop(&header), Ok(()));
        }
    }

    #[test]
    fn any_order_within_the_window_passes_each_header_once(
        order in prop::collection::vec(0usize..40, 1..120), far in 0..2 * WINDOW_PACKETS,
    ) {
        let (mut one, mut other) = pair(Cipher::Aes256Gcm);
        let headers: Vec<_> = (0..40).map(|byte| tagged(&mut one, byte)).collect();
        let mut passed = std::collections::BTreeSet::new();
        for index in order {
            let expected =
                if passed.insert(index) { Ok(()) } else { Err(OpenError::Replayed) };
            prop_assert_eq!(other.open_hop(&headers[index]), expected);
        }
        one.hop.next_counter = 40 + far;
        let ahead = tagged(&mut one, 1);
        prop_assert_eq!(other.open_hop(&ahead), Ok(()));
        for (index, header) in headers.iter().enumerate() {
            let is_late = 40 + far - index as u64 >= WINDOW_PACKETS;
            let expected = if is_late || !passed.insert(index) {
                Err(OpenError::Replayed)
            } else {
                Ok(())
            };
            prop_assert_eq!(other.open_hop(header), expected);
        }
    }
}
