//! All destinations, found by address in constant time.

use crate::destination::{Destination, NONE};
use crate::hash::{AddressMap, Seeded};

/// The place of a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Index(u32);

#[derive(Debug)]
pub(crate) struct Table {
    places: Vec<Option<Destination>>,
    free: Vec<Index>,
    by_address: AddressMap<u128, Index>,
    /// Nodes by the `/64` of their key. Of two with the same one (which takes 2^57 tries to make),
    /// the first keeps it; each is still found by its whole address.
    by_prefix: AddressMap<u64, Index>,
}

fn prefix_of(address: u128) -> u64 {
    u64::try_from(address >> 64).unwrap_or_default()
}

impl Table {
    pub(crate) fn new(hasher: Seeded) -> Self {
        Self {
            places: Vec::new(),
            free: Vec::new(),
            by_address: AddressMap::with_hasher(hasher),
            by_prefix: AddressMap::with_hasher(hasher),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.by_address.len()
    }

    /// The destination with exactly this address.
    pub(crate) fn find(&self, address: u128) -> Option<Index> {
        self.by_address.get(&address).copied()
    }

    /// The destination that packets to this address go to: a key's own address, or any in the `/64`
    /// of a node.
    pub(crate) fn find_covering(&self, address: u128) -> Option<Index> {
        let exact = self.by_address.get(&address);
        exact.or_else(|| self.by_prefix.get(&prefix_of(address))).copied()
    }

    pub(crate) fn get(&self, index: Index) -> Option<&Destination> {
        self.places.get(index.0 as usize)?.as_ref()
    }

    pub(crate) fn get_mut(&mut self, index: Index) -> Option<&mut Destination> {
        self.places.get_mut(index.0 as usize)?.as_mut()
    }

    pub(crate) fn insert(&mut self, destination: Destination) -> Index {
        let address = destination.address;
        let is_node = destination.newest.announcement.prefix().1 == 64;
        let index = self.free.pop().unwrap_or_else(|| {
            self.places.push(None);
            // The table's bound is far below 2^32.
            Index(u32::try_from(self.places.len() - 1).unwrap_or(u32::MAX))
        });
        if let Some(place) = self.places.get_mut(index.0 as usize) {
            *place = Some(destination);
        }
        self.by_address.insert(address, index);
        if is_node {
            self.by_prefix.entry(prefix_of(address)).or_insert(index);
        }
        index
    }

    pub(crate) fn remove(&mut self, index: Index) -> Option<Destination> {
        let removed = self.places.get_mut(index.0 as usize)?.take()?;
        self.by_address.remove(&removed.address);
        if self.by_prefix.get(&prefix_of(removed.address)) == Some(&index) {
            self.by_prefix.remove(&prefix_of(removed.address));
        }
        self.free.push(index);
        Some(removed)
    }

    pub(crate) fn indices(&self) -> impl Iterator<Item = Index> + use<> {
        (0..u32::try_from(self.places.len()).unwrap_or(u32::MAX)).map(Index)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (Index, &Destination)> {
        self.indices().filter_map(|index| Some((index, self.get(index)?)))
    }

    /// A destination that `slot` introduced and nobody here uses, to be given up for another.
    pub(crate) fn to_give_up(&self, slot: u16, used_before_s: u32) -> Option<Index> {
        let is_idle = |destination: &Destination| {
            destination.introducer == slot
                && slot != NONE
                && !destination.is_local
                && !destination.is_leaving
                && destination.used_s <= used_before_s
        };
        self.iter().find(|(_, destination)| is_idle(destination)).map(|(index, _)| index)
    }

    /// Bytes of memory.
    pub(crate) fn bytes(&self) -> usize {
        let places = self.places.iter().flatten().map(Destination::bytes).sum::<usize>()
            + (self.places.capacity() - self.len()) * size_of::<Option<Destination>>();
        let entry = size_of::<(u128, Index)>() + 1;
        let maps = self.by_address.capacity() + self.by_prefix.capacity();
        places + maps * entry + self.free.capacity() * size_of::<Index>()
    }
}
