//! Certificates from anybody.
//!
//! The input is the bytes of a certificate up to its signature, or all of it. Whatever is read is
//! what was signed: written again it is the same bytes.

use net_vdev::certificate::{Alias, LabelCertificate, NameRecord};
use net_vdev::signature::{Purpose, SIGNATURE_BYTES, sign};
use net_vdev::{PrivateKey, PublicKey};

use crate::bytes::Input;

const NOW: u64 = 1_800_000_000;

/// The first byte says: 0 the bytes are as they are; 1 to 3, they are signed as that kind by a true
/// signer, whose key is put where it belongs, and so is an alias's address. True if a certificate was taken.
///
/// # Panics
/// A promise is broken.
pub fn check(data: &[u8]) -> bool {
    let mut input = Input(data);
    let kind = input.byte() % 4;
    let mut bytes = input.0.to_vec();
    let signer = PrivateKey::new([1; 32]);
    let purpose = match kind {
        1 => Some(Purpose::new("Hypha mesh 1: alias")),
        2 => Some(Purpose::new("Hypha mesh 1: label")),
        3 => Some(Purpose::new("Hypha mesh 1: name")),
        _ => None,
    };
    if let Some(purpose) = purpose {
        bytes.iter_mut().skip(4).zip(signer.public().0).for_each(|(to, from)| *to = from);
        if kind == 1 {
            let workload = bytes.get(36..68).and_then(|key| key.try_into().ok()).map(PublicKey);
            let address = workload.map(|key| Alias::address_of(&signer.public(), &key).octets());
            let place = bytes.iter_mut().skip(68).take(16);
            place.zip(address.iter().flatten()).for_each(|(to, from)| *to = *from);
        }
        bytes.extend_from_slice(&sign(&signer, purpose, &bytes, &[7; 64]));
    }
    let member = bytes.get(36..68).and_then(|key| key.try_into().ok()).map(PublicKey);
    let again = [
        Alias::verify(&bytes, NOW).ok().map(|it| it.sign(&signer, &[7; 64])),
        member.and_then(|member| {
            let read = LabelCertificate::verify(&bytes, &member, NOW).ok();
            read.map(|it| it.sign(&signer, &[7; 64]))
        }),
        NameRecord::verify(&bytes, NOW).ok().map(|it| it.sign(&signer, &[7; 64])),
    ];
    let taken: Vec<_> = again.into_iter().flatten().collect();
    assert!(taken.len() <= 1, "one kind is taken for another");
    for written in &taken {
        let Ok(written) = written else { panic!("what was read can't be written") };
        assert_eq!(*written, bytes, "read as something else");
        assert!(bytes.len() > SIGNATURE_BYTES);
        assert_ne!(kind, 0, "nobody signed this");
    }
    !taken.is_empty()
}
