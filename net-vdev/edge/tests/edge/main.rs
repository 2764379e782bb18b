//! The edge against captured bytes, against itself over simulated TCP, against whoever is on the
//! other side, and against the real daemon where there is one.
#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod daemon;
mod golden;
mod hostile;
mod pair;
mod stream;

use std::net::Ipv6Addr;

use mesh_edge::{EdgeKey, Link};
use net_vdev::PublicKey;

/// An IPv6 packet of UDP's protocol number with that many bytes of payload and hop limit 64.
fn packet(source: Ipv6Addr, destination: Ipv6Addr, payload: usize) -> Vec<u8> {
    let [high, low] = u16::try_from(payload).unwrap().to_be_bytes();
    let mut bytes = vec![0x60, 0, 0, 0, high, low, 17, 64];
    bytes.extend(source.octets());
    bytes.extend(destination.octets());
    bytes.extend((0..payload).map(|i| i.to_le_bytes()[0]));
    bytes
}

fn key(byte: u8) -> EdgeKey {
    EdgeKey::new([byte; 32])
}

fn public(byte: u8) -> PublicKey {
    key(byte).public()
}

fn link(byte: u8) -> Link {
    Link::new(0, key(byte), [byte; 6])
}

/// All that the link has to send.
fn output(link: &mut Link) -> Vec<u8> {
    std::iter::from_fn(|| link.poll_transmit()).flatten().collect()
}
