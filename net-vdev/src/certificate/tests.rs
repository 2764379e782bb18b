//! Certificates: what is signed is read back, and nothing else is.

use proptest::prelude::*;

use super::*;

const NOW: u64 = 1_800_000_000;
const RANDOM: [u8; RANDOM_BYTES] = [9; RANDOM_BYTES];

fn key(byte: u8) -> PrivateKey {
    PrivateKey::new([byte; 32])
}

/// An address in the /64 of the node with key 1.
fn inside(interface: u64) -> Ipv6Addr {
    let prefix = key(1).public().address().to_bits() >> 64 << 64;
    Ipv6Addr::from_bits(prefix | u128::from(interface))
}

fn alias() -> Alias {
    let (node, workload) = (key(1).public(), key(2).public());
    Alias::new(node, workload, NOW - 60..NOW + 60)
}

fn label() -> LabelCertificate {
    let label = Label { group: key(1).public(), name: "role=web".parse().unwrap() };
    LabelCertificate { label, member: key(2).public(), expires_unix_s: NOW + 60 }
}

fn record() -> NameRecord {
    NameRecord {
        node: key(1).public(),
        workload: key(2).public(),
        name: "kv".parse().unwrap(),
        sequence: 0x0102_0304_0506_0708,
        expires_unix_s: NOW + 60,
    }
}

/// One of each kind, signed.
fn signed() -> [Vec<u8>; 3] {
    [
        alias().sign(&key(1), &RANDOM).unwrap(),
        label().sign(&key(1), &RANDOM).unwrap(),
        record().sign(&key(1), &RANDOM).unwrap(),
    ]
}

/// What each kind of reader says of the bytes.
fn read(bytes: &[u8]) -> [Option<CertificateError>; 3] {
    [
        Alias::verify(bytes, NOW).err(),
        LabelCertificate::verify(bytes, &key(2).public(), NOW).err(),
        NameRecord::verify(bytes, NOW).err(),
    ]
}

#[test]
fn what_is_signed_is_read_back_and_lies_where_the_drawing_says() {
    let [first, second, third] = signed();
    assert_eq!(Alias::verify(&first, NOW), Ok(alias()));
    assert_eq!((first.len(), &first[..4]), (ALIAS_BYTES, &[1, 1, 0, 0][..]));
    assert_eq!(first[4..36], key(1).public().0);
    assert_eq!(first[36..68], key(2).public().0);
    assert_eq!(first[68..84], alias().address.octets());
    assert_eq!(first[84..92], (NOW - 60).to_be_bytes());
    assert_eq!(first[92..100], (NOW + 60).to_be_bytes());

    assert_eq!(LabelCertificate::verify(&second, &key(2).public(), NOW), Ok(label()));
    assert_eq!((second.len(), &second[..4]), (76 + 8 + 64, &[1, 2, 8, 0][..]));
    assert_eq!(second[68..76], (NOW + 60).to_be_bytes());
    assert_eq!(&second[76..84], b"role=web");

    assert_eq!(NameRecord::verify(&third, NOW), Ok(record()));
    assert_eq!((third.len(), &third[..4]), (84 + 2 + 64, &[1, 3, 2, 0][..]));
    assert_eq!(third[68..76], [1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(third[76..84], (NOW + 60).to_be_bytes());
    assert_eq!(&third[84..86], b"kv");
}

#[test]
fn an_alias_counts_by_clocks_that_are_five_minutes_off_and_not_by_others() {
    let [first, ..] = signed();
    let expired = CertificateError::Expired { expired_unix_s: NOW + 60 };
    let not_yet = CertificateError::NotYet { begins_unix_s: NOW - 60 };
    for (unix_s, expected) in [
        (0, Some(not_yet)),
        (NOW - 361, Some(not_yet)),
        (NOW - 360, None),
        (NOW + 359, None),
        (NOW + 360, Some(expired)),
        (u64::MAX, Some(expired)),
    ] {
        assert_eq!(Alias::verify(&first, unix_s).err(), expected, "{unix_s}");
    }
    // The last second there is.
    let held = u64::MAX - 60..u64::MAX;
    let last = Alias::new(key(1).public(), key(2).public(), held).sign(&key(1), &RANDOM).unwrap();
    assert!(Alias::verify(&last, u64::MAX - 1).is_ok());
}

#[test]
fn labels_and_names_count_until_the_second_of_their_expiry() {
    let [_, second, third] = signed();
    let member = key(2).public();
    let expired = CertificateError::Expired { expired_unix_s: NOW + 60 };
    for (unix_s, expected) in [(0, None), (NOW + 59, None), (NOW + 60, Some(expired))] {
        assert_eq!(LabelCertificate::verify(&second, &member, unix_s).err(), expected);
        assert_eq!(NameRecord::verify(&third, unix_s).err(), expected);
    }
}

#[test]
fn a_kind_is_not_taken_for_another() {
    for (number, bytes) in signed().iter().enumerate() {
        for (reader, error) in read(bytes).into_iter().enumerate() {
            let expected = (number != reader).then(|| CertificateError::Kind(number as u8 + 1));
            assert_eq!(error, expected);
        }
    }
    // Nor is a signature of one kind taken for one of another, over the same bytes.
    let mut bytes = signed()[1].clone();
    bytes.truncate(bytes.len() - SIGNATURE_BYTES);
    let signature = signature::sign(&key(1), NAME.purpose, &bytes, &RANDOM);
    bytes.extend_from_slice(&signature);
    assert_eq!(read(&bytes)[1], Some(CertificateError::Forged));
}

/// What a node signs that does not keep to the rules.
fn signed_anyway(alias: &Alias) -> Vec<u8> {
    let mut bytes = ALIAS.header(0, &alias.node, &alias.workload);
    bytes.extend_from_slice(&alias.address.octets());
    bytes.extend_from_slice(&alias.begins_unix_s.to_be_bytes());
    bytes.extend_from_slice(&alias.expires_unix_s.to_be_bytes());
    let signature = signature::sign(&key(1), ALIAS.purpose, &bytes, &RANDOM);
    bytes.extend_from_slice(&signature);
    bytes
}

#[test]
fn a_node_gives_a_workload_one_address_in_its_own_64_and_no_other() {
    let own = key(1).public().address();
    let neighbour = Ipv6Addr::from_bits(alias().address.to_bits() ^ 1 << 64);
    let of_another_node = Alias::address_of(&key(3).public(), &key(2).public());
    let of_another = Alias::address_of(&key(1).public(), &key(3).public());
    let workload = key(2).public().address();
    let wrong = [own, inside(77), neighbour, of_another_node, of_another, workload];
    for address in wrong.into_iter().chain([Ipv6Addr::LOCALHOST]) {
        let wrong = Alias { address, ..alias() };
        assert_eq!(wrong.sign(&key(1), &RANDOM), Err(CertificateError::Address(address)));
        let refused = Alias::verify(&signed_anyway(&wrong), NOW);
        assert_eq!(refused, Err(CertificateError::Address(address)));
    }
}

#[test]
fn an_alias_of_another_workload_or_node_under_the_same_signature_is_refused() {
    let address = alias().address;
    let (other, thief) = (key(3).public(), key(4).public());
    for swapped in [Alias { workload: other, ..alias() }, Alias { node: thief, ..alias() }] {
        let refused = Alias::verify(&signed_anyway(&swapped), NOW);
        assert_eq!(refused, Err(CertificateError::Address(address)));
    }
    // With the address that would be right, the signature is nobody's.
    let stolen = Alias::new(thief, other, NOW - 60..NOW + 60);
    assert_eq!(Alias::verify(&signed_anyway(&stolen), NOW), Err(CertificateError::Forged));
}

#[test]
fn an_alias_holds_for_an_hour_at_most() {
    let held = |life| Alias::new(key(1).public(), key(2).public(), NOW..NOW + life);
    for (life_s, is_right) in [(1, true), (3600, true), (3601, false), (1 << 40, false)] {
        assert_eq!(held(life_s).sign(&key(1), &RANDOM).is_ok(), is_right, "{life_s} s");
        let read = Alias::verify(&signed_anyway(&held(life_s)), NOW);
        assert_eq!(read.err(), (!is_right).then_some(CertificateError::Life(life_s)));
    }
    let backwards = Alias { begins_unix_s: NOW + 1, expires_unix_s: NOW + 1, ..held(1) };
    assert_eq!(backwards.sign(&key(1), &RANDOM), Err(CertificateError::Life(0)));
}

#[test]
fn only_the_key_that_is_named_signs() {
    let refused = CertificateError::Subject(key(1).public());
    assert_eq!(alias().sign(&key(3), &RANDOM), Err(refused));
    assert_eq!(label().sign(&key(3), &RANDOM), Err(refused));
    assert_eq!(record().sign(&key(3), &RANDOM), Err(refused));
    for bytes in signed() {
        let (signed, _) = bytes.split_last_chunk::<SIGNATURE_BYTES>().unwrap();
        for purpose in [ALIAS.purpose, LABEL.purpose, NAME.purpose] {
            let signature = signature::sign(&key(3), purpose, signed, &RANDOM);
            let forged = [signed, &signature].concat();
            assert!(read(&forged).iter().all(Option::is_some));
        }
    }
}

#[test]
fn a_label_is_of_no_use_to_another_member() {
    let [_, bytes, _] = signed();
    let thief = key(3).public();
    let refused = LabelCertificate::verify(&bytes, &thief, NOW);
    assert_eq!(refused, Err(CertificateError::Subject(thief)));
}

#[test]
fn labels_and_names_have_one_spelling() {
    for good in ["a", "role=web", "a.b_c-d=9", "0", &"x".repeat(64)] {
        assert_eq!(good.parse::<LabelName>().unwrap().as_str(), good);
    }
    for good in ["a", "kv-2", "0", &"x".repeat(63)] {
        assert_eq!(good.parse::<HostName>().unwrap().as_str(), good);
    }
    let cases = [
        ("", TextError::Length),
        ("Web", TextError::Character),
        ("a b", TextError::Character),
        ("a\0", TextError::Character),
        ("a/b", TextError::Character),
        ("ä", TextError::Character),
        ("-a", TextError::Ends),
        ("a-", TextError::Ends),
    ];
    for (bad, error) in cases {
        assert_eq!(bad.parse::<LabelName>(), Err(error), "{bad:?}");
        assert_eq!(bad.parse::<HostName>(), Err(error), "{bad:?}");
    }
    assert_eq!("x".repeat(65).parse::<LabelName>(), Err(TextError::Length));
    assert_eq!("x".repeat(64).parse::<HostName>(), Err(TextError::Length));
    assert_eq!("a.b".parse::<HostName>(), Err(TextError::Character));
    assert_eq!("=a".parse::<LabelName>(), Err(TextError::Ends));
    let names: [LabelName; 3] = ["a", "a0", "b"].map(|name| name.parse().unwrap());
    assert!(names.is_sorted());
}

#[test]
fn a_signed_certificate_with_a_bad_text_is_refused() {
    for text in [&b"Role"[..], b"ro le", b"-role", &[0xff; 4]] {
        let mut bytes = LABEL.header(text.len(), &key(1).public(), &key(2).public());
        bytes.extend_from_slice(&(NOW + 60).to_be_bytes());
        bytes.extend_from_slice(text);
        let signature = signature::sign(&key(1), LABEL.purpose, &bytes, &RANDOM);
        bytes.extend_from_slice(&signature);
        assert!(matches!(read(&bytes)[1], Some(CertificateError::Text(_))), "{text:?}");
    }
}

/// The sum of an address's words, as a checksum has it.
fn sum(address: Ipv6Addr) -> u32 {
    address.segments().into_iter().map(u32::from).sum::<u32>() % 0xffff
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn an_alias_lies_in_the_64_of_its_node_and_changes_no_checksum(
        node in any::<[u8; 32]>(), workload in any::<[u8; 32]>(),
    ) {
        let (node, workload) = (PublicKey(node), PublicKey(workload));
        let address = Alias::address_of(&node, &workload);
        prop_assert_eq!(address.segments()[..4].to_vec(), node.address().segments()[..4].to_vec());
        prop_assert_eq!(sum(address), sum(workload.address()));
    }

    #[test]
    fn no_changed_bit_no_cut_and_no_addition_is_read(
        kind in 0usize..3, bit in any::<prop::sample::Index>(), cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = signed()[kind].clone();
        prop_assert!(read(&bytes[..cut.index(bytes.len())])[kind].is_some());
        let bit = bit.index(bytes.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(read(&bytes)[kind].is_some());
        bytes[bit / 8] ^= 1 << (bit % 8);
        prop_assert_eq!(read(&bytes)[kind], None);
        bytes.push(0);
        prop_assert!(read(&bytes)[kind].is_some());
    }

    #[test]
    fn any_bytes_are_survived_and_are_no_certificate(
        bytes in prop::collection::vec(any::<u8>(), 0..260), start in 0u8..4,
    ) {
        let mut bytes = bytes;
        bytes.iter_mut().zip([1, start, 0, 0]).for_each(|(to, from)| *to = from);
        prop_assert!(read(&bytes).iter().all(Option::is_some));
    }
}
