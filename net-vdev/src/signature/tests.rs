//! Signatures against two other implementations (the crate `xeddsa` 1.1.0, by vectors made with it,
//! and `ring`'s Ed25519), and against those who would forge or bend them.

use proptest::prelude::*;
use ring::signature::{ED25519, UnparsedPublicKey};

use super::*;

const PURPOSE: Purpose = Purpose::new("test");

fn unhex<const N: usize>(text: &str) -> [u8; N] {
    std::array::from_fn(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap())
}

/// Made with `xeddsa` 1.1.0: the private key's byte *i* is `37 * seed + 11 * i`, and each of the 64
/// random bytes is the seed. (seed, public key, message, signature)
const VECTORS: [(u8, &str, &[u8], &str); 4] = [
    (
        2,
        "9c4f052e81b330a4c6d241b7891f6a8d3ff9fc31eab91a02d6c5ed320d2b2d78",
        b"one",
        "933df761b831945812d4ccab306b2098195ac1825d8354afe0f9aecf09792d59\
         fec930b5905eafcde61ac90cfea5d1fdafcbf3e477e636a5db334062f2701301",
    ),
    (
        3,
        "d1d3679e8aee013ad7f272578411a9d9eae593b95af7108e094569c3a4c11051",
        b"a longer message of thirty-five byte",
        "8f54dd44ad9bfabb04aad581708edd69b77afb6d8473a91e154078851cf5b652\
         76f545d73796efcc7a093712feb5745cbdc2eb0113671305dab6d324a8791b0f",
    ),
    (
        5,
        "e6f790d3ef5835be1dfa6a6a0f4789d47c59c5940cb603fc38b25a8e624ba34e",
        b"x",
        "e234060aee279970fcff4af27234659fc845f47f5affb72fdf9402f3a7d41676\
         18eaeaa22829ed02aeeb45a9607017f8e2d4a1fb411e0544cf23fa8aadd73105",
    ),
    (
        9,
        "721e01ca09533ffcb068c2ffc5c9449017ac8fdb45ba3f6f09769340132de85c",
        b"y",
        "7112d70a151efe0c8ab9edb8e8974d1bf51d01ea69645619123f2d6c0c05e6b5\
         3c6063864ca52c441018a996bf9f7bd90b480fbc8dda20df99454ae482aba40e",
    ),
];

fn vector_key(seed: u8) -> PrivateKey {
    PrivateKey::new(std::array::from_fn(|i| {
        seed.wrapping_mul(37).wrapping_add((i as u8).wrapping_mul(11))
    }))
}

#[test]
fn signatures_of_another_implementation_verify() {
    for (seed, public, message, signature) in VECTORS {
        let key = vector_key(seed).public();
        assert_eq!(key, PublicKey(unhex(public)));
        let signature = unhex(&signature.replace(char::is_whitespace, ""));
        assert!(verify_parts(&key, &[message], &signature).is_some(), "seed {seed}");
        assert!(verify_parts(&key, &[message, b"!"], &signature).is_none(), "seed {seed}");
    }
}

#[test]
fn the_same_key_and_random_bytes_give_the_other_implementations_signature() {
    // The scheme hashes the private scalar reduced. That crate reduces it only where it negates
    // it, which it does for this key; for the others its nonce, and no more, is another one.
    let (seed, _, message, signature) = VECTORS[3];
    assert_eq!(sign_parts(&vector_key(seed), &[message], &[seed; 64]), unhex(signature.trim()));
}

fn ed25519_says(key: &PublicKey, message: &[u8], signature: &[u8; 64]) -> bool {
    let converted = MontgomeryPoint(key.0).to_edwards(0).unwrap().compress();
    UnparsedPublicKey::new(&ED25519, converted.as_bytes()).verify(message, signature).is_ok()
}

/// The group's order, little-endian.
const ORDER: [u8; 32] = [
    0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde,
    0x14, //
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
];

fn plus_order(scalar: &[u8]) -> Vec<u8> {
    let mut carry = 0;
    let sums = scalar.iter().zip(ORDER).map(|(a, b)| {
        let sum = u16::from(*a) + u16::from(b) + carry;
        carry = sum >> 8;
        sum as u8
    });
    sums.collect()
}

#[test]
fn a_signature_does_not_bend_into_another_one() {
    let key = PrivateKey::new([7; 32]);
    let mut signature = sign(&key, PURPOSE, b"message", &[1; 64]);
    assert!(verify(&key.public(), PURPOSE, b"message", &signature));
    let bent = plus_order(&signature[32..]);
    let same = Scalar::from_bytes_mod_order(bent[..].try_into().unwrap());
    assert_eq!(same.as_bytes()[..], signature[32..]);
    signature[32..].copy_from_slice(&bent);
    assert!(!verify(&key.public(), PURPOSE, b"message", &signature), "the same scalar plus order");
}

#[test]
fn a_key_has_one_encoding() {
    let key = PrivateKey::new([7; 32]);
    let signature = sign(&key, PURPOSE, b"message", &[1; 64]);
    let mut public = key.public();
    public.0[31] |= 0x80;
    assert!(!verify(&public, PURPOSE, b"message", &signature), "X25519 ignores the highest bit");
}

#[test]
fn keys_of_small_order_and_keys_off_the_curve_sign_nothing() {
    // u of the points of order 1, 2, 4 and 8 on the curve and its twist, with the encodings beyond
    // the field's order (RFC 7748 §6.1, and the list of the paper "Prime, order please!").
    let small = [
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0100000000000000000000000000000000000000000000000000000000000000",
        "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
        "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        // u = 2 lies on the twist.
        "0200000000000000000000000000000000000000000000000000000000000000",
    ];
    // With A of small order, R = sB - hA holds for R = sB whenever the order divides h: all
    // scalars are tried with enough messages that some h would do.
    for (key, scalar) in small.iter().flat_map(|key| [0u8, 1, 2, 3].map(|scalar| (key, scalar))) {
        let key = PublicKey(unhex(key));
        let scalar = Scalar::from(scalar);
        let mut signature = [0; 64];
        signature[..32].copy_from_slice(EdwardsPoint::mul_base(&scalar).compress().as_bytes());
        signature[32..].copy_from_slice(scalar.as_bytes());
        for message in 0..32u8 {
            assert!(!verify(&key, PURPOSE, &[message], &signature), "{key}");
        }
    }
}

#[test]
fn a_commitment_of_small_order_is_refused_even_from_the_keys_owner() {
    let key = PrivateKey::new([7; 32]);
    let mut secret = Scalar::from_bytes_mod_order(clamp_integer(*key.expose()));
    let mut point = EdwardsPoint::mul_base(&secret);
    if point.compress().as_bytes()[31] & 0x80 != 0 {
        (secret, point) = (-secret, -point);
    }
    let identity = EdwardsPoint::mul_base(&Scalar::ZERO).compress();
    let challenge = hash(&[&[identity.as_bytes(), point.compress().as_bytes(), b"message"]]);
    let mut signature = [0; 64];
    signature[..32].copy_from_slice(identity.as_bytes());
    signature[32..].copy_from_slice((challenge * secret).as_bytes());
    assert!(ed25519_says(&key.public(), b"message", &signature), "it is a true Ed25519 signature");
    assert!(verify_parts(&key.public(), &[b"message"], &signature).is_none());
}

#[test]
fn a_purpose_ends_where_its_message_begins() {
    let key = PrivateKey::new([7; 32]);
    let (long, short) = (Purpose::new("purpose"), Purpose::new("purpos"));
    let signature = sign(&key, long, b"message", &[1; 64]);
    assert!(!verify(&key.public(), short, b"emessage", &signature));
    assert!(!verify(&key.public(), short, b"message", &signature));
    assert!(verify(&key.public(), long, b"message", &signature));
}

proptest! {
    #[test]
    fn what_is_signed_verifies_here_and_with_ed25519(
        key in any::<[u8; 32]>(),
        message in prop::collection::vec(any::<u8>(), 0..300),
        random in any::<[u8; 32]>(),
    ) {
        let random: [u8; 64] = std::array::from_fn(|i| random[i % 32].wrapping_add((i / 32) as u8));
        let key = PrivateKey::new(key);
        let signature = sign(&key, PURPOSE, &message, &random);
        prop_assert!(verify(&key.public(), PURPOSE, &message, &signature));
        let whole = [&[4], b"test".as_slice(), &message].concat();
        prop_assert!(ed25519_says(&key.public(), &whole, &signature));
        prop_assert_eq!(signature[63] & 0xe0, 0, "the sign bit is not carried along");
    }

    #[test]
    fn no_changed_bit_verifies(
        seed in any::<u8>(),
        message in prop::collection::vec(any::<u8>(), 1..40),
        bit in any::<prop::sample::Index>(),
    ) {
        let key = PrivateKey::new([seed; 32]);
        let signature = sign(&key, PURPOSE, &message, &[3; 64]);
        let mut all = [key.public().0.as_slice(), &signature, &message].concat();
        let bit = bit.index(all.len() * 8);
        all[bit / 8] ^= 1 << (bit % 8);
        let (public, rest) = all.split_first_chunk::<32>().unwrap();
        let (signature, message) = rest.split_first_chunk::<64>().unwrap();
        prop_assert!(!verify(&PublicKey(*public), PURPOSE, message, signature));
    }

    #[test]
    fn random_bytes_are_no_signature_and_never_panic(
        key in any::<[u8; 32]>(), front in any::<[u8; 32]>(), back in any::<[u8; 32]>(),
    ) {
        let signature = [front, back].concat();
        let signature = signature.first_chunk::<64>().unwrap();
        prop_assert!(!verify(&PublicKey(key), PURPOSE, b"", signature));
    }
}
