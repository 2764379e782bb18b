//! The handshake against plain `snow` with the same primitives, against the published vector, and
//! against everything that somebody between the ends may change.

use proptest::prelude::*;

use super::*;

fn key(byte: u8) -> PrivateKey {
    PrivateKey::new([byte; 32])
}

fn offer(aes: bool) -> Offer {
    Offer {
        ciphers: CipherSupport { aes_256_gcm: aes },
        index: 0x0102_0304,
        timestamp: Timestamp::from_unix_ns(1_500_000_000_000_000_007),
    }
}

/// A whole handshake; returns the initiator's and the responder's keys.
fn shake(initiator_aes: bool, responder_aes: bool) -> (Keys, Keys) {
    let (mut pending, first) =
        initiate(&key(1), &key(2).public(), offer(initiator_aes), [11; 32]).unwrap();
    let received = receive(&key(2), &first, [12; 32]).unwrap();
    assert_eq!((received.peer, received.offer), (key(1).public(), offer(initiator_aes)));
    let ciphers = CipherSupport { aes_256_gcm: responder_aes };
    let (second, responder) = received.accept(ciphers, 0x0506_0708).unwrap();
    (pending.finish(&second).unwrap(), responder)
}

#[test]
fn both_ends_get_the_same_two_keys_crossed() {
    let (initiator, responder) = shake(true, true);
    assert_eq!(initiator.send, responder.receive);
    assert_eq!(initiator.receive, responder.send);
    assert_ne!(initiator.send, initiator.receive);
    assert_eq!((initiator.remote_index, responder.remote_index), (0x0506_0708, 0x0102_0304));
}

#[test]
fn aes_is_chosen_only_if_both_ends_have_it() {
    for (initiator, responder) in [(false, false), (false, true), (true, false), (true, true)] {
        let (one, other) = shake(initiator, responder);
        let expected =
            if initiator && responder { Cipher::Aes256Gcm } else { Cipher::ChaCha20Poly1305 };
        assert_eq!((one.cipher, other.cipher), (expected, expected));
    }
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len() / 2).map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap()).collect()
}

/// The published vector of this protocol name (cacophony), run on our primitives.
#[test]
fn the_primitives_reproduce_the_published_noise_vector() {
    let psk: [u8; 32] = unhex("54686973206973206d7920417573747269616e20706572737065637469766521")
        .try_into()
        .unwrap();
    let build = |private: &str, ephemeral: &str, remote: Option<&str>| {
        let (private, ephemeral) = (unhex(private), unhex(ephemeral));
        let remote = remote.map(unhex);
        let mut builder =
            Builder::with_resolver(NOISE_NAME.parse().unwrap(), Box::new(Primitives::new([0; 32])))
                .psk(2, &psk)
                .unwrap()
                .prologue(b"John Galt")
                .unwrap()
                .local_private_key(&private)
                .unwrap()
                .fixed_ephemeral_key_for_testing_only(&ephemeral);
        if let Some(remote) = &remote {
            builder = builder.remote_public_key(remote).unwrap();
            return builder.build_initiator().unwrap();
        }
        builder.build_responder().unwrap()
    };
    let mut initiator = build(
        "e61ef9919cde45dd5f82166404bd08e38bceb5dfdfded0a34c8df7ed542214d1",
        "893e28b9dc6ca8d611ab664754b8ceb7bac5117349a4439a6b0569da977c464a",
        Some("31e0303fd6418d2f8c0e78b91f22e8caed0fbe48656dcf4767e4834f701b8f62"),
    );
    let mut responder = build(
        "4a3acbfdb163dec651dfa3194dece676d437029c62a408b4c5ea9114246e4893",
        "bbdb4cdbd309f1a1f2e1456967fe288cadd6f712d65dc7b7793d5e63da6b375b",
        None,
    );
    let first = write(&mut initiator, b"Ludwig von Mises").unwrap();
    assert_eq!(
        first,
        unhex(
            "ca35def5ae56cec33dc2036731ab14896bc4c75dbb07a61f879f8e3afa4c79442ec9b09893d0f510791784c10cbc959f25b1766e0def6e301d14fbca1c7790ac829b8b3674f5f649a5f0e98479662cbfbf2b2c47cd4b09fcd266cd29d7cb675f1808849707847840f6d178ec4d3733aa"
        )
    );
    let mut payload = [0; 64];
    assert_eq!(read(&mut responder, &first, &mut payload).unwrap(), b"Ludwig von Mises");
    let second = write(&mut responder, b"Murray Rothbard").unwrap();
    assert_eq!(
        second,
        unhex(
            "95ebc60d2b1fa672c1f46a8aa265ef51bfe38e7ccb39ec5be34069f1448088439a1b3cebf680b2c74217fcb5eba4ff58a9468cd90c4aca6194f57479b379a7"
        )
    );
    assert_eq!(read(&mut initiator, &second, &mut payload).unwrap(), b"Murray Rothbard");
    assert_eq!(
        initiator.get_handshake_hash(),
        unhex("8310f86394dc0dabb40beb8210031556db4403ab1202db7034c526232147a700")
    );
    let keys = split(&mut initiator, Cipher::ChaCha20Poly1305, 0, true);
    assert_eq!(keys.send, split(&mut responder, Cipher::ChaCha20Poly1305, 0, false).receive);
    // Transport message 0 of the vector under our raw split key: `ring` as an independent check.
    let mut sealed = unhex("a8fde7a0accec190cd306c5950d4fd8e04a205ec288aa747d8b347");
    let unbound = ring::aead::UnboundKey::new(&ring::aead::CHACHA20_POLY1305, &*keys.send);
    let nonce = ring::aead::Nonce::assume_unique_for_key([0; 12]);
    let opened = ring::aead::LessSafeKey::new(unbound.unwrap())
        .open_in_place(nonce, ring::aead::Aad::empty(), &mut sealed)
        .unwrap();
    assert_eq!(opened, b"F. A. Hayek");
}

#[test]
fn a_message_for_another_member_or_from_another_version_is_refused() {
    let (_, first) = initiate(&key(1), &key(2).public(), offer(true), [11; 32]).unwrap();
    assert_eq!(receive(&key(3), &first, [12; 32]).err(), Some(HandshakeError::Forged));
    let mut state = builder([11; 32])
        .unwrap()
        .local_private_key(&[1; 32])
        .unwrap()
        .remote_public_key(&key(2).public().0)
        .unwrap()
        .build_initiator()
        .unwrap();
    let mut payload = offer(true).to_bytes();
    payload[0] = 2;
    let first = write(&mut state, &payload).unwrap();
    assert_eq!(receive(&key(2), &first, [12; 32]).err(), Some(HandshakeError::Payload));
}

#[test]
fn a_forged_response_does_not_spoil_the_handshake() {
    let (mut pending, first) = initiate(&key(1), &key(2).public(), offer(true), [11; 32]).unwrap();
    let received = receive(&key(2), &first, [12; 32]).unwrap();
    let (second, _) = received.accept(offer(true).ciphers, 7).unwrap();
    // Somebody who also saw message 1, under another key: and plain damage.
    let mut forged = second.clone();
    forged[40] ^= 1;
    for message in [&forged[..], &second[..20], &[0; 64], &[]] {
        assert_eq!(pending.finish(message).err(), Some(HandshakeError::Forged));
    }
    assert!(pending.finish(&second).is_ok());
}

#[test]
fn a_responder_can_t_choose_what_was_not_offered() {
    let (mut pending, first) = initiate(&key(1), &key(2).public(), offer(false), [11; 32]).unwrap();
    let mut received = receive(&key(2), &first, [12; 32]).unwrap();
    let answer = Answer { cipher: Cipher::Aes256Gcm, index: 1 };
    let second = write(&mut received.state, &answer.to_bytes()).unwrap();
    assert_eq!(pending.finish(&second).err(), Some(HandshakeError::Cipher));
}

#[test]
fn a_key_of_small_order_is_refused() {
    for point in [[0; 32], {
        let mut one = [0; 32];
        one[0] = 1;
        one
    }] {
        let refused = initiate(&key(1), &PublicKey(point), offer(true), [11; 32]);
        assert_eq!(refused.err(), Some(HandshakeError::Forged));
    }
}

#[test]
fn optional_extensions_are_passed_over_and_critical_ones_refused() {
    let with = |extensions: &[u8]| {
        let mut payload = offer(true).to_bytes().to_vec();
        payload.extend_from_slice(extensions);
        Offer::parse(&payload)
    };
    assert_eq!(with(&[]), Some(offer(true)));
    assert_eq!(with(&[0, 1, 0, 2, 9, 9, 0x7f, 0xff, 0, 0]), Some(offer(true)));
    for refused in [&[0x80, 1, 0, 0][..], &[0, 1, 0, 2, 9], &[0, 1, 0], &[0]] {
        assert_eq!(with(refused), None, "{refused:?}");
    }
}

#[test]
fn timestamps_are_ordered_as_their_bytes() {
    let stamps = [0, 999_999_999, 1_000_000_000, 1_800_000_000_000_000_000, u64::MAX];
    let stamps = stamps.map(Timestamp::from_unix_ns);
    assert!(stamps.is_sorted() && stamps[0] < stamps[4]);
    assert_eq!(stamps[2].0, [0x40, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn no_changed_bit_and_no_cut_of_message_1_passes(bit in 0usize..116 * 8, cut in 0usize..116) {
        let (_, mut first) =
            initiate(&key(1), &key(2).public(), offer(true), [11; 32]).unwrap();
        prop_assert_eq!(first.len(), 116);
        prop_assert!(receive(&key(2), &first[..cut], [12; 32]).is_err());
        // Bit 255 of an X25519 key is ignored in Diffie-Hellman (RFC 7748), but hashed.
        first[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(receive(&key(2), &first, [12; 32]).is_err());
    }

    #[test]
    fn no_changed_bit_and_no_cut_of_message_2_passes(bit in 0usize..56 * 8, cut in 0usize..56) {
        let (mut pending, first) =
            initiate(&key(1), &key(2).public(), offer(true), [11; 32]).unwrap();
        let received = receive(&key(2), &first, [12; 32]).unwrap();
        let (mut second, _) = received.accept(offer(false).ciphers, 7).unwrap();
        prop_assert_eq!(second.len(), 56);
        prop_assert!(pending.finish(&second[..cut]).is_err());
        second[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(pending.finish(&second).is_err());
    }

    #[test]
    fn payloads_of_any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        let _offer = Offer::parse(&bytes);
        let _answer = Answer::parse(&bytes);
    }
}
