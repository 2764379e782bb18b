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
        open_checksums: true,
        index: 0x0102_0304,
        timestamp: Timestamp::from_unix_ns(1_500_000_000_000_000_007),
    }
}

const REQUIRED: PostQuantum = PostQuantum::Required;
const UPGRADE: PostQuantum = PostQuantum::Upgrade;
/// The bytes of message 1 with its encapsulation key.
const FIRST_BYTES: usize = 32 + 48 + OFFER_BYTES + 4 + ENCAPSULATION_KEY_BYTES + 16;

/// A whole handshake; returns the initiator's and the responder's keys.
fn shake(initiator_aes: bool, responder_aes: bool) -> (Keys, Keys) {
    let (mut pending, first) = begin(initiator_aes, REQUIRED);
    assert_eq!(first.len(), FIRST_BYTES);
    let received = receive(&key(2), &first, [12; 32]).unwrap();
    assert_eq!((received.peer, received.offer), (key(1).public(), offer(initiator_aes)));
    let ciphers = CipherSupport { aes_256_gcm: responder_aes };
    let accepted = received.accept(ciphers, REQUIRED, 0x0506_0708).unwrap();
    (pending.finish(accepted.ciphertext.as_deref(), &accepted.message).unwrap(), accepted.keys)
}

fn begin(aes: bool, post_quantum: PostQuantum) -> (Pending, Vec<u8>) {
    initiate(&key(1), &key(2).public(), offer(aes), post_quantum, [11; 32]).unwrap()
}

/// What member 2 answers to message 1 of member 1.
fn answer(first: &[u8], post_quantum: PostQuantum) -> Accepted {
    let received = receive(&key(2), first, [12; 32]).unwrap();
    received.accept(offer(true).ciphers, post_quantum, 7).unwrap()
}

/// An initiator with a payload of its own, and no post-quantum half unless that has one.
fn begin_with(payload: &[u8]) -> (HandshakeState, Vec<u8>) {
    let mut state = builder([11; 32])
        .unwrap()
        .local_private_key(&[1; 32])
        .unwrap()
        .remote_public_key(&key(2).public().0)
        .unwrap()
        .build_initiator()
        .unwrap();
    let first = write(&mut state, payload).unwrap();
    (state, first)
}

/// Message 2 of a member 2 that never heard of the post-quantum half.
fn classical_answer(first: &[u8]) -> (Vec<u8>, HandshakeState) {
    let mut state =
        builder([12; 32]).unwrap().local_private_key(&[2; 32]).unwrap().build_responder().unwrap();
    read(&mut state, first, &mut [0; PAYLOAD_BYTES_MAX]).unwrap();
    let answer = Answer { cipher: Cipher::Aes256Gcm, open_checksums: false, index: 7 };
    (write(&mut state, &answer.to_bytes()).unwrap(), state)
}

#[test]
fn both_ends_get_the_same_two_keys_crossed() {
    let (initiator, responder) = shake(true, true);
    assert_eq!(initiator.send, responder.receive);
    assert_eq!(initiator.receive, responder.send);
    assert_eq!(initiator.send_hop, responder.receive_hop);
    assert_eq!(initiator.receive_hop, responder.send_hop);
    let four = [&initiator.send, &initiator.receive, &initiator.send_hop, &initiator.receive_hop];
    let distinct: std::collections::BTreeSet<[u8; 32]> = four.into_iter().map(|it| **it).collect();
    assert_eq!(distinct.len(), 4);
    assert!(initiator.post_quantum && responder.post_quantum);
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
    let (send, _) = initiator.dangerously_get_raw_split();
    assert_eq!(send, responder.dangerously_get_raw_split().0);
    // Transport message 0 of the vector under our raw split key: `ring` as an independent check.
    let mut sealed = unhex("a8fde7a0accec190cd306c5950d4fd8e04a205ec288aa747d8b347");
    let unbound = ring::aead::UnboundKey::new(&ring::aead::CHACHA20_POLY1305, &send);
    let nonce = ring::aead::Nonce::assume_unique_for_key([0; 12]);
    let opened = ring::aead::LessSafeKey::new(unbound.unwrap())
        .open_in_place(nonce, ring::aead::Aad::empty(), &mut sealed)
        .unwrap();
    assert_eq!(opened, b"F. A. Hayek");
}

#[test]
fn a_message_for_another_member_or_from_another_version_is_refused() {
    let (_, first) = begin(true, UPGRADE);
    assert_eq!(receive(&key(3), &first, [12; 32]).err(), Some(HandshakeError::Forged));
    let mut payload = offer(true).to_bytes();
    payload[0] = 2;
    let (_, first) = begin_with(&payload);
    assert_eq!(receive(&key(2), &first, [12; 32]).err(), Some(HandshakeError::Payload));
}

#[test]
fn a_forged_response_does_not_spoil_the_handshake() {
    let (mut pending, first) = begin(true, UPGRADE);
    let Accepted { ciphertext, message, .. } = answer(&first, UPGRADE);
    let ciphertext = ciphertext.unwrap();
    let mut forged = message.clone();
    forged[40] ^= 1;
    for message in [&forged[..], &message[..20], &[0; 64], &[]] {
        for ciphertext in [None, Some(&*ciphertext)] {
            let refused = pending.finish(ciphertext, message).err();
            assert_eq!(refused, Some(HandshakeError::Forged));
        }
    }
    assert!(pending.finish(Some(&ciphertext), &message).is_ok());
}

#[test]
fn a_responder_can_t_choose_what_was_not_offered() {
    let (mut pending, first) = begin(false, UPGRADE);
    let (second, _) = classical_answer(&first);
    assert_eq!(pending.finish(None, &second).err(), Some(HandshakeError::Cipher));
}

#[test]
fn members_that_can_use_the_post_quantum_half_whatever_they_ask_for() {
    for (one, other) in
        [(UPGRADE, UPGRADE), (UPGRADE, REQUIRED), (REQUIRED, UPGRADE), (REQUIRED, REQUIRED)]
    {
        let (mut pending, first) = begin(true, one);
        let Accepted { ciphertext, message, keys } = answer(&first, other);
        let finished = pending.finish(ciphertext.as_deref(), &message).unwrap();
        assert!(finished.post_quantum && keys.post_quantum);
        assert_eq!((finished.send, finished.receive), (keys.receive, keys.send));
    }
}

#[test]
fn a_peer_without_the_post_quantum_half_is_upgraded_never_but_refused_if_it_is_required() {
    // It answers.
    let (mut pending, first) = begin(true, UPGRADE);
    let (second, mut state) = classical_answer(&first);
    let finished = pending.finish(None, &second).unwrap();
    assert!(!finished.post_quantum);
    assert_eq!(*finished.receive, state.dangerously_get_raw_split().1);
    let (mut pending, first) = begin(true, REQUIRED);
    let (second, _) = classical_answer(&first);
    assert_eq!(pending.finish(None, &second).err(), Some(HandshakeError::PostQuantum));
    // It asks.
    let (mut state, first) = begin_with(&offer(true).to_bytes());
    let accepted = answer(&first, UPGRADE);
    assert!(accepted.ciphertext.is_none() && !accepted.keys.post_quantum);
    read(&mut state, &accepted.message, &mut [0; 64]).unwrap();
    assert_eq!(*accepted.keys.receive, state.dangerously_get_raw_split().0);
    let received = receive(&key(2), &first, [12; 32]).unwrap();
    let refused = received.accept(offer(true).ciphers, REQUIRED, 7).err();
    assert_eq!(refused, Some(HandshakeError::PostQuantum));
}

#[test]
fn who_strips_or_swaps_the_ciphertext_gets_no_session_not_even_a_weaker_one() {
    for post_quantum in [UPGRADE, REQUIRED] {
        let (mut pending, first) = begin(true, post_quantum);
        let Accepted { ciphertext, message, .. } = answer(&first, UPGRADE);
        let ciphertext = ciphertext.unwrap();
        assert!(pending.finish(None, &message).is_err(), "stripped");
        let received = receive(&key(2), &first, [13; 32]).unwrap();
        let other = received.accept(offer(true).ciphers, UPGRADE, 7).unwrap();
        let other = other.ciphertext.unwrap();
        assert_ne!(ciphertext, other);
        let swapped = pending.finish(Some(&other), &message).err();
        assert_eq!(swapped, Some(HandshakeError::Forged));
        // A classical answer with a ciphertext put ahead of it.
        let (classical, _) = classical_answer(&first);
        let added = pending.finish(Some(&ciphertext), &classical).err();
        assert_eq!(added, Some(HandshakeError::Forged));
        assert!(pending.finish(Some(&ciphertext), &message).is_ok());
    }
}

#[test]
fn the_keys_depend_on_the_ciphertexts_secret() {
    // The same handshake but for ML-KEM: whoever breaks X25519 alone can compute these, and not
    // those of the hybrid.
    let (_, first) = begin(true, UPGRADE);
    let hybrid = answer(&first, UPGRADE).keys;
    let (_, mut state) = classical_answer(&first);
    let classical = state.dangerously_get_raw_split();
    assert!(*hybrid.send != classical.1 && *hybrid.receive != classical.0);
}

#[test]
fn a_key_that_is_none_or_that_comes_twice_is_refused() {
    let extension = |bytes: &[u8]| {
        let mut payload = offer(true).to_bytes().to_vec();
        payload.extend_from_slice(&[0, 1]);
        payload.extend_from_slice(&(bytes.len() as u16).to_be_bytes());
        payload.extend_from_slice(bytes);
        payload
    };
    let (pending, _) = begin(true, UPGRADE);
    let public = pending.key_pair.public();
    assert_eq!(Offer::parse(&extension(public)), Some((offer(true), Some(public))));
    assert_eq!(Offer::parse(&extension(&public[1..])), None);
    assert_eq!(Offer::parse(&extension(&[])), None);
    let twice = [extension(public), extension(public)[OFFER_BYTES..].to_vec()].concat();
    assert_eq!(Offer::parse(&twice), None);
    // FIPS 203 §7.2: 0xfff is no coefficient.
    let (_, first) = begin_with(&extension(&[0xff; ENCAPSULATION_KEY_BYTES]));
    let received = receive(&key(2), &first, [12; 32]).unwrap();
    let refused = received.accept(offer(true).ciphers, UPGRADE, 7).err();
    assert_eq!(refused, Some(HandshakeError::Payload));
}

#[test]
fn the_same_seeds_give_the_same_handshake() {
    let (_, first) = begin(true, UPGRADE);
    assert_eq!(first, begin(true, UPGRADE).1);
    let (one, two) = (answer(&first, UPGRADE), answer(&first, UPGRADE));
    assert_eq!((one.ciphertext, one.message), (two.ciphertext, two.message));
}

#[test]
fn a_key_of_small_order_is_refused() {
    for point in [[0; 32], {
        let mut one = [0; 32];
        one[0] = 1;
        one
    }] {
        let refused = initiate(&key(1), &PublicKey(point), offer(true), UPGRADE, [11; 32]);
        assert_eq!(refused.err(), Some(HandshakeError::Forged));
    }
}

#[test]
fn optional_extensions_are_passed_over_and_critical_ones_refused() {
    let with = |extensions: &[u8]| {
        let mut payload = offer(true).to_bytes().to_vec();
        payload.extend_from_slice(extensions);
        Offer::parse(&payload).map(|(offer, ..)| offer)
    };
    assert_eq!(with(&[]), Some(offer(true)));
    assert_eq!(with(&[0, 2, 0, 2, 9, 9, 0x7f, 0xff, 0, 0]), Some(offer(true)));
    for refused in [&[0x80, 1, 0, 0][..], &[0, 2, 0, 2, 9], &[0, 2, 0], &[0]] {
        assert_eq!(with(refused), None, "{refused:?}");
    }
}

#[test]
fn checksums_stay_open_only_between_members_that_both_take_that() {
    let (initiator, responder) = shake(true, true);
    assert!(initiator.open_checksums && responder.open_checksums);
    // An initiator that knows nothing of it has the bit clear.
    let without = Offer { open_checksums: false, ..offer(true) };
    assert_eq!(without.to_bytes()[1], offer(true).to_bytes()[1] & !OFFERS_OPEN_CHECKSUMS);
    let (mut pending, first) =
        initiate(&key(1), &key(2).public(), without, UPGRADE, [11; 32]).unwrap();
    let accepted = answer(&first, UPGRADE);
    assert!(!accepted.keys.open_checksums);
    let keys = pending.finish(accepted.ciphertext.as_deref(), &accepted.message).unwrap();
    assert!(!keys.open_checksums);
    let plain = Answer { cipher: Cipher::Aes256Gcm, open_checksums: false, index: 7 };
    assert_eq!(plain.to_bytes()[..4], [1, 2, 0, 0], "what it would read");
    for unknown in [2, 0xff] {
        let mut bytes = plain.to_bytes();
        bytes[2] = unknown;
        assert_eq!(Answer::parse(&bytes), None);
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
    fn no_changed_bit_and_no_cut_of_message_1_passes(
        bit in 0..FIRST_BYTES * 8, cut in 0..FIRST_BYTES,
    ) {
        let (_, mut first) = begin(true, UPGRADE);
        prop_assert!(receive(&key(2), &first[..cut], [12; 32]).is_err());
        // Bit 255 of an X25519 key is ignored in Diffie-Hellman (RFC 7748), but hashed.
        first[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(receive(&key(2), &first, [12; 32]).is_err());
    }

    #[test]
    fn no_changed_bit_and_no_cut_of_message_2_passes(
        bit in 0usize..56 * 8, in_ciphertext in 0..CIPHERTEXT_BYTES * 8, cut in 0usize..56,
    ) {
        let (mut pending, first) = begin(true, UPGRADE);
        let Accepted { ciphertext, mut message, .. } = answer(&first, UPGRADE);
        let mut ciphertext = ciphertext.unwrap();
        prop_assert_eq!(message.len(), 56);
        prop_assert!(pending.finish(Some(&ciphertext), &message[..cut]).is_err());
        message[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(pending.finish(Some(&ciphertext), &message).is_err());
        message[bit / 8] ^= 1 << (bit % 8);
        ciphertext[in_ciphertext / 8] ^= 1 << (in_ciphertext % 8);
        prop_assert!(pending.finish(Some(&ciphertext), &message).is_err());
        ciphertext[in_ciphertext / 8] ^= 1 << (in_ciphertext % 8);
        prop_assert!(pending.finish(Some(&ciphertext), &message).is_ok());
    }

    #[test]
    fn keys_of_different_handshakes_never_mix(
        seeds in any::<[u8; 4]>(), swap_message in any::<bool>(),
    ) {
        // Two handshakes of the same members under way at once; parts of one offered to the other.
        let begin = |seed| {
            initiate(&key(1), &key(2).public(), offer(true), UPGRADE, [seed; 32]).unwrap()
        };
        let accept = |first: &[u8], seed| {
            let received = receive(&key(2), first, [seed; 32]).unwrap();
            received.accept(offer(true).ciphers, UPGRADE, 7).unwrap()
        };
        prop_assume!(seeds[0] != seeds[1] && seeds[2] != seeds[3]);
        let ((mut one, first_one), (mut two, first_two)) = (begin(seeds[0]), begin(seeds[1]));
        let (to_one, to_two) = (accept(&first_one, seeds[2]), accept(&first_two, seeds[3]));
        let (message, ciphertext) = if swap_message {
            (&to_two.message, &to_one.ciphertext)
        } else {
            (&to_one.message, &to_two.ciphertext)
        };
        prop_assert!(one.finish(ciphertext.as_deref(), message).is_err());
        let one = one.finish(to_one.ciphertext.as_deref(), &to_one.message).unwrap();
        let two = two.finish(to_two.ciphertext.as_deref(), &to_two.message).unwrap();
        prop_assert_eq!(&one.send, &to_one.keys.receive);
        prop_assert_eq!(&two.send, &to_two.keys.receive);
        prop_assert_ne!(one.send, two.send);
    }

    #[test]
    fn payloads_of_any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        let _offer = Offer::parse(&bytes);
        let _answer = Answer::parse(&bytes);
    }
}
