//! A peer that has a key and a session, and seals what it likes.

use net_vdev::session::Session;
use net_vdev::session::handshake::{Offer, Timestamp, initiate};
use net_vdev::wire::{self, DATA_HEADER_BYTES, Datagram, MacKey, TAG_BYTES};
use net_vdev::{CipherSupport, PostQuantum, PrivateKey, PublicKey};

/// The index that it gives its session.
const INDEX: u32 = 77;

/// Makes a session: `exchange` hands over the initiation, and returns the response.
pub(crate) fn session(
    key: &PrivateKey,
    with: &PublicKey,
    open_checksums: bool,
    exchange: impl FnOnce(Vec<u8>) -> Vec<u8>,
) -> Session {
    let offer = Offer {
        ciphers: CipherSupport { aes_256_gcm: true },
        open_checksums,
        index: INDEX,
        timestamp: Timestamp::from_unix_ns(u64::MAX),
    };
    let (mut pending, message) = initiate(key, with, offer, PostQuantum::Upgrade, [5; 32]).unwrap();
    let mut initiation = Vec::new();
    wire::write_initiation(&mut initiation, &message, &MacKey::of(with));
    let response = exchange(initiation);
    let Ok(Datagram::Response { ciphertext, handshake, .. }) = wire::parse(&response) else {
        panic!("not answered: {response:02x?}")
    };
    let keys = pending.finish(ciphertext, handshake.noise).unwrap();
    assert_eq!(keys.open_checksums, open_checksums);
    Session::new(&keys, INDEX, 0).unwrap()
}

/// The datagram that carries these bytes.
pub(crate) fn sealed(session: &mut Session, content: &[u8]) -> Vec<u8> {
    let mut datagram = vec![0; DATA_HEADER_BYTES];
    datagram.extend_from_slice(content);
    datagram.resize(datagram.len() + TAG_BYTES, 0);
    assert!(session.seal(&mut datagram));
    datagram
}
