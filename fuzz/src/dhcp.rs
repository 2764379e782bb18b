//! DHCP messages of a guest.

use std::net::Ipv4Addr;

use net_vdev::nic::ipv4::{GUEST, IPV4_MTU, Lease, ROUTER, answer_dhcp};

use crate::packets::has_right_checksums;

/// The first byte says which address the guest has; the rest is its message. True if it was
/// answered.
///
/// # Panics
/// A promise is broken.
pub fn check(data: &[u8]) -> bool {
    let (kind, message) = data.split_first().unwrap_or((&0, &[]));
    let address = if kind % 2 == 0 { GUEST } else { Ipv4Addr::new(10, 1, 2, 3) };
    let prefix_bits = kind / 2 % 40;
    let lease = Lease { address, prefix_bits, router: ROUTER, mtu: IPV4_MTU, seconds: 3600 };
    let Some(answer) = answer_dhcp(message, &lease) else { return false };
    assert!(answer.len() <= usize::from(IPV4_MTU), "{} bytes", answer.len());
    assert!(has_right_checksums(&answer));
    // Ports, and in the message: operation, transaction, the address given, the hardware's.
    let field = |at: usize, len: usize| answer.get(at..at + len).unwrap_or_default();
    assert_eq!(field(20, 4), [0, 67, 0, 68]);
    assert_eq!((field(28, 1), field(32, 4)), (&[2][..], message.get(4..8).unwrap_or_default()));
    let given = field(44, 4);
    assert!(given == address.octets() || given == [0; 4], "{given:?} is given");
    assert_eq!(Some(field(56, 16)), message.get(28..44));
    true
}
