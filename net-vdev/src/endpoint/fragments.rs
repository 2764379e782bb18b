//! Packets that are too large for a way travel as two sealed halves.
//!
//! Halves are made and joined inside the session, so nobody can fill the memory for them but the
//! peer itself, and it has room for four packets.

use super::control::{Control, FRAGMENT_HEADER_BYTES};
use crate::wire::MTU;

/// How many packets of a peer may lack their other half.
pub(super) const PARTIAL_MAX: usize = 4;
/// How long the first half waits for the other.
const WAIT_NS: u64 = 2_000_000_000;

/// The two halves of `packet`, each at most `room` bytes with its header; `None` if that does not
/// do.
pub(super) fn split(packet: &[u8], room: usize, identity: u16) -> Option<[Control<'_>; 2]> {
    let middle = packet.len().div_ceil(2);
    let (front, back) = packet.split_at_checked(middle)?;
    let fits = front.len() + FRAGMENT_HEADER_BYTES <= room;
    let offset = u16::try_from(middle).ok()?;
    fits.then_some([
        Control::Fragment { identity, is_last: false, offset: 0, bytes: front },
        Control::Fragment { identity, is_last: true, offset, bytes: back },
    ])
}

/// A half whose other has not come.
struct Partial {
    identity: u16,
    is_last: bool,
    offset: u16,
    bytes: Vec<u8>,
    since_ns: u64,
}

/// The halves that wait for their others.
#[derive(Default)]
pub(super) struct Reassembly {
    partial: Vec<Partial>,
}

impl Reassembly {
    /// Takes a half; returns the packet if it is whole now. Halves that don't fit each other make
    /// no packet.
    pub(super) fn take(
        &mut self,
        now_ns: u64,
        (identity, is_last, offset): (u16, bool, u16),
        bytes: &[u8],
    ) -> Option<Vec<u8>> {
        self.partial.retain(|it| now_ns.saturating_sub(it.since_ns) < WAIT_NS);
        if bytes.is_empty() || bytes.len() > MTU {
            return None;
        }
        let other = self.partial.iter().position(|it| it.identity == identity);
        let Some(other) = other.map(|position| self.partial.remove(position)) else {
            if self.partial.len() >= PARTIAL_MAX {
                self.partial.remove(0);
            }
            let bytes = bytes.to_vec();
            self.partial.push(Partial { identity, is_last, offset, bytes, since_ns: now_ns });
            return None;
        };
        let (front, back, front_offset, back_offset) = match (other.is_last, is_last) {
            (false, true) => (other.bytes.as_slice(), bytes, other.offset, offset),
            (true, false) => (bytes, other.bytes.as_slice(), offset, other.offset),
            _ => return None,
        };
        let fits = front_offset == 0
            && usize::from(back_offset) == front.len()
            && front.len() + back.len() <= MTU;
        fits.then(|| [front, back].concat())
    }

    /// How many halves wait.
    pub(super) fn len(&self) -> usize {
        self.partial.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn take(reassembly: &mut Reassembly, now_ns: u64, half: &Control<'_>) -> Option<Vec<u8>> {
        let Control::Fragment { identity, is_last, offset, bytes } = half else {
            panic!("no fragment")
        };
        reassembly.take(now_ns, (*identity, *is_last, *offset), bytes)
    }

    #[test]
    fn halves_make_the_packet_in_either_order_and_only_once() {
        let packet: Vec<u8> = (0..=255).cycle().take(1399).collect();
        let [front, back] = split(&packet, 800, 7).unwrap();
        for [one, other] in [[&front, &back], [&back, &front]] {
            let mut reassembly = Reassembly::default();
            assert_eq!(take(&mut reassembly, 0, one), None);
            assert_eq!(take(&mut reassembly, 1, other), Some(packet.clone()));
            assert_eq!(take(&mut reassembly, 2, other), None);
        }
        assert_eq!(split(&packet, 700, 7), None, "a half has to fit");
    }

    #[test]
    fn what_waits_is_bounded_in_number_and_time() {
        let mut reassembly = Reassembly::default();
        for identity in 0..1000 {
            assert_eq!(reassembly.take(0, (identity, false, 0), &[1; MTU]), None);
            assert!(reassembly.len() <= PARTIAL_MAX);
        }
        assert_eq!(reassembly.take(WAIT_NS, (999, true, 1400), &[1]), None);
        assert_eq!(reassembly.len(), 1, "the others were too old");
    }

    proptest! {
        #[test]
        fn a_peer_that_lies_about_halves_makes_no_packet_that_is_too_long(
            halves in prop::collection::vec(
                (0u16..3, any::<bool>(), 0u16..1500, 0usize..1500), 1..40),
        ) {
            let mut reassembly = Reassembly::default();
            for (identity, is_last, offset, len) in halves {
                let packet = reassembly.take(0, (identity, is_last, offset), &vec![0; len]);
                prop_assert!(packet.is_none_or(|packet| packet.len() <= MTU));
            }
        }
    }
}
