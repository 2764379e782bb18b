//! How a node's mesh key vouches for its chain key: the other half of what the Registry checks.

use hypha_chain::{Address, B256};
use net_vdev::{PrivateKey, PublicKey, signature};
use ring::rand::{SecureRandom, SystemRandom};

use crate::state::StateError;

/// What a mesh key signs: chain (8, big-endian), Registry (20), chain key's address (20).
const PURPOSE: signature::Purpose = signature::Purpose::new("Hypha mesh 1: chain key");

fn message(chain_id: u64, registry: Address, chain_key: Address) -> [u8; 48] {
    let mut bytes = [0; 48];
    let fields = chain_id.to_be_bytes().into_iter();
    let fields = fields.chain(registry.into_array()).chain(chain_key.into_array());
    for (to, from) in bytes.iter_mut().zip(fields) {
        *to = from;
    }
    bytes
}

/// The mesh key's signature over a chain key, in the two words that the Registry logs.
///
/// # Errors
/// [`StateError::Random`].
pub fn vouch(
    mesh: &PrivateKey,
    chain_id: u64,
    registry: Address,
    chain_key: Address,
) -> Result<(B256, B256), StateError> {
    let mut random = [0; signature::RANDOM_BYTES];
    SystemRandom::new().fill(&mut random).map_err(|_| StateError::Random)?;
    let message = message(chain_id, registry, chain_key);
    let signature = signature::sign(mesh, PURPOSE, &message, &random);
    let (r, s) = signature.split_at(32);
    Ok((B256::from_slice(r), B256::from_slice(s)))
}

/// Whether a mesh key vouches for a chain key.
#[must_use]
pub fn is_vouched_for(
    mesh: B256,
    (r, s): (B256, B256),
    chain_id: u64,
    registry: Address,
    chain_key: Address,
) -> bool {
    let mut signature = [0; signature::SIGNATURE_BYTES];
    for (to, from) in signature.iter_mut().zip(r.iter().chain(s.iter())) {
        *to = *from;
    }
    let message = message(chain_id, registry, chain_key);
    signature::verify(&PublicKey(mesh.0), PURPOSE, &message, &signature)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mesh_key_vouches_for_one_chain_key_on_one_registry() {
        let mesh = PrivateKey::new([7; 32]);
        let (registry, chain_key) = (Address::repeat_byte(1), Address::repeat_byte(2));
        let signature = vouch(&mesh, 5, registry, chain_key).unwrap();
        let public = B256::from(mesh.public().0);
        assert!(is_vouched_for(public, signature, 5, registry, chain_key));
        assert!(!is_vouched_for(public, signature, 6, registry, chain_key));
        assert!(!is_vouched_for(public, signature, 5, chain_key, chain_key));
        assert!(!is_vouched_for(public, signature, 5, registry, registry));
        assert!(!is_vouched_for(B256::ZERO, signature, 5, registry, chain_key));
    }
}
