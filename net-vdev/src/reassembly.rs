//! Handshake datagrams that came in two pieces.
//!
//! An initiation with an encapsulation key has 1344 bytes; a path of 1280 can't carry it, and says
//! so to nobody. After a try that nobody answered the initiator therefore sends it in two pieces.
//! Pieces can't be verified before they are together, so they are kept for whoever sends them: in a
//! table of fixed size, in which a source always has the same few places out of many, for a second.
//! The two pieces of a true initiation leave together, so that they need a place for the time that
//! the network takes between them; a flood from one source displaces its own, and one from
//! everywhere has to be faster than that.

use std::net::{IpAddr, SocketAddr};

use crate::source::source_of;
use crate::wire::{Fragment, PIECE_BYTES_MAX};

/// How many groups of places sources share.
const GROUPS: usize = 32;
/// How many pieces wait in a group.
const GROUP_PIECES: usize = 2;
/// The most that a full table holds of datagrams, in bytes.
pub const BYTES_MAX: usize = GROUPS * GROUP_PIECES * PIECE_BYTES_MAX;
/// How long a piece waits for the other one.
pub const PATIENCE_NS: u64 = 1_000_000_000;

const _: () = assert!(BYTES_MAX < 64 << 10, "a flood fills no more than this");

/// What became of a piece.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It was the other piece: this is the datagram.
    Whole(Vec<u8>),
    /// It waits for the other piece.
    Waits,
    /// It waits, and one that waited before had to go.
    Displaced,
    /// It does not fit to its other piece, or it is here already.
    Refused,
}

/// The pieces that wait.
pub(crate) struct Reassembly {
    key: [u8; 32],
    pieces: Vec<Piece>,
}

#[derive(Clone)]
struct Piece {
    from: SocketAddr,
    id: u32,
    is_second: bool,
    bytes: Vec<u8>,
    since_ns: u64,
}

impl Piece {
    fn is_of(&self, from: SocketAddr, fragment: &Fragment<'_>) -> bool {
        !self.bytes.is_empty() && (self.from, self.id) == (from, fragment.id)
    }

    fn is_waiting(&self, now_ns: u64) -> bool {
        !self.bytes.is_empty() && now_ns.saturating_sub(self.since_ns) < PATIENCE_NS
    }
}

impl Reassembly {
    /// An empty table. `key` is random and secret: nobody outside knows which sources share places.
    pub(crate) fn new(key: [u8; 32]) -> Self {
        Self { key, pieces: Vec::new() }
    }

    /// Takes a piece that came `from` this address.
    pub(crate) fn insert(
        &mut self,
        now_ns: u64,
        from: SocketAddr,
        fragment: &Fragment<'_>,
    ) -> Outcome {
        if self.pieces.is_empty() {
            let from = SocketAddr::from(([0; 4], 0));
            let empty = Piece { from, id: 0, is_second: false, bytes: Vec::new(), since_ns: 0 };
            self.pieces = vec![empty; GROUPS * GROUP_PIECES];
        }
        let first = self.group(from.ip()) * GROUP_PIECES;
        let Some(group) = self.pieces.get_mut(first..first + GROUP_PIECES) else {
            return Outcome::Refused;
        };
        if let Some(other) = group.iter_mut().find(|piece| piece.is_of(from, fragment))
            && other.is_waiting(now_ns)
        {
            return join(other, fragment);
        }
        // An empty or expired place if there is one, else the one that has waited longest.
        let place = group.iter_mut().min_by_key(|piece| (piece.is_waiting(now_ns), piece.since_ns));
        let Some(place) = place else { return Outcome::Refused };
        let displaces = place.is_waiting(now_ns);
        place.bytes.clear();
        place.bytes.reserve_exact(fragment.bytes.len());
        place.bytes.extend_from_slice(fragment.bytes);
        (place.from, place.id, place.is_second) = (from, fragment.id, fragment.is_second);
        place.since_ns = now_ns;
        if displaces { Outcome::Displaced } else { Outcome::Waits }
    }

    /// How many bytes of pieces are in memory; never more than [`BYTES_MAX`].
    pub(crate) fn bytes(&self) -> usize {
        self.pieces.iter().map(|piece| piece.bytes.capacity()).sum()
    }

    fn group(&self, source: IpAddr) -> usize {
        let hash = blake3::keyed_hash(&self.key, &source_of(source).to_be_bytes());
        let [first, ..] = *hash.as_bytes();
        usize::from(first) % GROUPS
    }
}

/// Puts the two pieces together if they are the two halves of a datagram, and frees the place.
fn join(other: &mut Piece, fragment: &Fragment<'_>) -> Outcome {
    if other.is_second == fragment.is_second {
        return Outcome::Refused;
    }
    let waited = std::mem::take(&mut other.bytes);
    let (first, second) = if other.is_second {
        (fragment.bytes, waited.as_slice())
    } else {
        (waited.as_slice(), fragment.bytes)
    };
    if first.len() != second.len() && first.len() != second.len() + 1 {
        return Outcome::Refused;
    }
    Outcome::Whole([first, second].concat())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire;

    fn place(number: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, number], 1000))
    }

    fn insert(table: &mut Reassembly, now_ns: u64, from: SocketAddr, bytes: &[u8]) -> Outcome {
        let Ok(wire::Datagram::Fragment(fragment)) = wire::parse(bytes) else {
            panic!("no fragment")
        };
        table.insert(now_ns, from, &fragment)
    }

    #[test]
    fn two_pieces_in_any_order_are_the_datagram() {
        for length in [2usize, 3, 1343, 1344, wire::DATAGRAM_BYTES_MAX] {
            let whole: Vec<u8> = (0..length).map(|i| i as u8).collect();
            let pieces = wire::fragments(&whole, 7);
            let mut table = Reassembly::new([1; 32]);
            for order in [[0, 1], [1, 0]] {
                assert_eq!(insert(&mut table, 0, place(1), &pieces[order[0]]), Outcome::Waits);
                let whole = Outcome::Whole(whole.clone());
                assert_eq!(insert(&mut table, 0, place(1), &pieces[order[1]]), whole);
            }
            assert_eq!(insert(&mut table, 0, place(1), &pieces[1]), Outcome::Waits, "it forgot");
        }
    }

    #[test]
    fn pieces_of_another_source_number_or_time_do_not_join() {
        let [first, second] = wire::fragments(&[7; 100], 7);
        let [_, other] = wire::fragments(&[7; 100], 8);
        let mut table = Reassembly::new([1; 32]);
        assert_eq!(insert(&mut table, 0, place(1), &first), Outcome::Waits);
        assert_eq!(insert(&mut table, 0, place(1), &other), Outcome::Waits);
        let mut port = place(1);
        port.set_port(1001);
        assert_ne!(insert(&mut table, 0, port, &second), Outcome::Whole(vec![7; 100]));
        let late = PATIENCE_NS;
        assert_eq!(insert(&mut table, late, place(1), &second), Outcome::Waits);
        assert_eq!(insert(&mut table, late, place(1), &second), Outcome::Refused, "twice the same");
    }

    #[test]
    fn halves_of_different_datagrams_do_not_join() {
        let [first, _] = wire::fragments(&[7; 100], 7);
        let [_, second] = wire::fragments(&[7; 97], 7);
        let mut table = Reassembly::new([1; 32]);
        assert_eq!(insert(&mut table, 0, place(1), &first), Outcome::Waits);
        assert_eq!(insert(&mut table, 0, place(1), &second), Outcome::Refused);
    }

    #[test]
    fn a_flood_from_one_source_takes_nobody_elses_place_but_its_neighbours() {
        let mut table = Reassembly::new([1; 32]);
        let pieces = wire::fragments(&[7; 1344], 7);
        for member in 1..=100 {
            insert(&mut table, 0, place(member), &pieces[0]);
            for id in 0..1000 {
                let [flood, _] = wire::fragments(&[8; 1344], id);
                insert(&mut table, 0, SocketAddr::from(([198, 51, 100, 1], 1)), &flood);
            }
        }
        let mut fresh = Reassembly::new([1; 32]);
        let mut joined = 0;
        for member in 1..=100 {
            insert(&mut fresh, 0, place(member), &pieces[0]);
            for id in 0..1000 {
                let [flood, _] = wire::fragments(&[8; 1344], id);
                insert(&mut fresh, 0, SocketAddr::from(([198, 51, 100, 1], 1)), &flood);
            }
            let second = insert(&mut fresh, 0, place(member), &pieces[1]);
            joined += usize::from(matches!(second, Outcome::Whole(_)));
        }
        assert!(joined >= 90, "{joined} of 100 handshakes came through");
        assert!(table.bytes() <= BYTES_MAX && fresh.bytes() <= BYTES_MAX);
    }

    proptest! {
        #[test]
        fn a_flood_from_everywhere_stays_within_its_memory_and_joins_nothing(
            sources in prop::collection::vec((any::<u32>(), any::<u32>(), 1usize..700), 1..300),
        ) {
            let mut table = Reassembly::new([2; 32]);
            for (index, (ip, id, length)) in sources.into_iter().enumerate() {
                let fragment = Fragment { id, is_second: index % 2 == 1, bytes: &vec![1; length] };
                let from = SocketAddr::from((ip.to_be_bytes(), 1));
                let outcome = table.insert(index as u64, from, &fragment);
                prop_assert!(!matches!(outcome, Outcome::Whole(_)));
                prop_assert!(table.bytes() <= BYTES_MAX);
            }
        }
    }
}
