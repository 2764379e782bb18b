//! Capabilities: what counts, and everything that doesn't.

use storage_vdev::VolumeKey;
use storage_vdev::service::Rights;
use storage_vdev::wire::authorise::{CapabilityError, Delegation, Proof, VolumeSigner};
use storage_vdev::wire::server::Event;
use storage_vdev::wire::{Authorise, Credential, NodeKey};

use crate::world::{Pair, TODAY, VOLUME, client_key, signer};

const BINDING: [u8; 32] = [3; 32];

fn verify(authorise: &Authorise) -> Result<(), CapabilityError> {
    authorise.verify(&BINDING, &client_key().public(), TODAY)
}

#[test]
fn a_capability_counts_in_its_own_session_only() {
    let authorise = signer(VOLUME).capability(Rights::ALL, &BINDING);
    assert_eq!(verify(&authorise), Ok(()));
    let elsewhere = authorise.verify(&[4; 32], &client_key().public(), TODAY);
    assert_eq!(elsewhere, Err(CapabilityError::Forged));
}

#[test]
fn a_capability_says_nothing_about_another_volume_or_more_rights() {
    let read = Rights { read: true, ..Rights::default() };
    let authorise = signer(VOLUME).capability(read, &BINDING);
    let other = Authorise { volume: [8; 16], ..authorise.clone() };
    assert_eq!(verify(&other), Err(CapabilityError::Forged));
    let more = Authorise { rights: Rights::ALL, ..authorise };
    assert_eq!(verify(&more), Err(CapabilityError::Forged));
}

#[test]
fn another_volume_key_is_another_writer() {
    let stranger = VolumeSigner::derive(&VolumeKey::new(&[8; 32]), VOLUME);
    assert_ne!(stranger.public(), signer(VOLUME).public());
    let mut authorise = stranger.capability(Rights::ALL, &BINDING);
    authorise.writer = signer(VOLUME).public();
    assert_eq!(verify(&authorise), Err(CapabilityError::Forged));
}

#[test]
fn two_volumes_of_one_key_have_two_writers() {
    assert_ne!(signer(VOLUME).public(), signer([8; 16]).public());
}

#[test]
fn a_delegation_is_its_holders_until_its_end() {
    let holder = client_key().public();
    let delegation = signer(VOLUME).delegate(Rights::ALL, holder, TODAY);
    let authorise = delegation.authorise();
    assert_eq!(verify(&authorise), Ok(()));
    let late = authorise.verify(&BINDING, &holder, TODAY + 1);
    assert_eq!(late, Err(CapabilityError::Expired));
    let thief = NodeKey::new([5; 32]).public();
    assert_eq!(authorise.verify(&BINDING, &thief, TODAY), Err(CapabilityError::Holder));
}

#[test]
fn no_field_of_a_delegation_can_be_changed() {
    let holder = client_key().public();
    let heal = Rights { heal: true, ..Rights::default() };
    let signed = signer(VOLUME).delegate(heal, holder, TODAY).authorise();
    let Proof::Delegated { signature, .. } = signed.proof else { panic!("not delegated") };
    let longer = Proof::Delegated { holder, not_after: TODAY + 1, signature };
    let mut broken = signature;
    broken[0] ^= 1;
    let changed = [
        Authorise { volume: [8; 16], ..signed.clone() },
        Authorise { rights: Rights::ALL, ..signed.clone() },
        Authorise { proof: longer, ..signed.clone() },
        Authorise { writer: signer([8; 16]).public(), ..signed.clone() },
        Authorise {
            proof: Proof::Delegated { holder, not_after: TODAY, signature: broken },
            ..signed
        },
    ];
    for authorise in changed {
        assert_eq!(verify(&authorise), Err(CapabilityError::Forged), "{authorise:?}");
    }
}

#[test]
fn the_signature_of_one_kind_is_none_of_another() {
    let signer = signer(VOLUME);
    let holder = client_key().public();
    let Proof::Delegated { signature, .. } =
        signer.delegate(Rights::ALL, holder, TODAY).authorise().proof
    else {
        panic!("not delegated")
    };
    let mut session = signer.capability(Rights::ALL, &BINDING);
    session.proof = Proof::Session { signature };
    assert_eq!(verify(&session), Err(CapabilityError::Forged));
}

#[test]
fn a_stored_delegation_comes_back_and_no_bit_of_it_can_turn() {
    let delegation = signer(VOLUME).delegate(Rights::ALL, client_key().public(), TODAY);
    let bytes = delegation.to_bytes();
    assert_eq!(Delegation::from_bytes(&bytes), Some(delegation));
    for bit in 0..bytes.len() * 8 {
        let mut turned = bytes;
        turned[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(Delegation::from_bytes(&turned), None, "bit {bit}");
    }
}

#[test]
fn a_card_is_signed_for_its_volume() {
    let signer = signer(VOLUME);
    let card = signer.card(&[[1; 32], [2; 32], [3; 32]]);
    assert!(card.is_genuine(&VOLUME, &signer.public()));
    assert!(!card.is_genuine(&[8; 16], &signer.public()));
    let mut fewer = card.clone();
    fewer.acceptors.pop();
    assert!(!fewer.is_genuine(&VOLUME, &signer.public()));
    assert!(!signer.card(&[]).is_genuine(&VOLUME, &signer.public()), "a card of nobody");
    let mut authorise = signer.capability(Rights::ALL, &BINDING);
    authorise.card = Some(card);
    assert_eq!(verify(&authorise), Ok(()));
    authorise.card = Some(fewer);
    assert_eq!(verify(&authorise), Err(CapabilityError::Card));
}

#[test]
fn a_refused_credential_is_known_to_the_client_and_grants_nothing() {
    let expired = signer(VOLUME).delegate(Rights::ALL, client_key().public(), TODAY - 1);
    let mut pair = Pair::silent(vec![Credential::Delegation(expired)], 1);
    let events = pair.carry_up();
    assert_eq!(events, [Event::Refused(CapabilityError::Expired)]);
    pair.carry_down();
    assert!(pair.client.is_denied() && pair.client.is_open());
    assert_eq!(pair.server.grants(TODAY), &storage_vdev::service::Grants::none());
}

#[test]
fn rights_end_with_their_delegation_in_the_middle_of_a_session() {
    let delegation = signer(VOLUME).delegate(Rights::ALL, client_key().public(), TODAY + 5);
    let mut pair = Pair::silent(vec![Credential::Delegation(delegation)], 1);
    assert!(matches!(pair.carry_up()[..], [Event::Authorised { .. }]));
    let none = storage_vdev::service::Grants::none();
    assert_ne!(pair.server.grants(TODAY + 5), &none);
    assert_eq!(pair.server.grants(TODAY + 6), &none);
}
