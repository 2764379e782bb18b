//! The names of the volume that was listed last, for stores that list slowly or without an order.

use std::collections::BTreeSet;
use std::ops::Bound;

use storage_vdev::Uuid;
use storage_vdev::node::ObjectKey;

/// A listing asks the store once; its later pages come from here, with what this process has put
/// and deleted since. A new listing asks again.
#[derive(Debug, Default)]
pub(crate) struct Names(Option<(Uuid, BTreeSet<ObjectKey>)>);

impl Names {
    /// A page of names behind `after`. `None` if the store must be asked first, see
    /// [`Names::learn`].
    pub(crate) fn page(
        &self,
        volume: &Uuid,
        after: Option<&ObjectKey>,
        limit: u16,
    ) -> Option<Vec<ObjectKey>> {
        after?;
        self.of(volume, after, limit)
    }

    /// The first page of what the store said now.
    pub(crate) fn learn(
        &mut self,
        volume: &Uuid,
        names: BTreeSet<ObjectKey>,
        (after, limit): (Option<&ObjectKey>, u16),
    ) -> Vec<ObjectKey> {
        self.0 = Some((*volume, names));
        self.of(volume, after, limit).unwrap_or_default()
    }

    /// Whether the store is known not to have this name.
    pub(crate) fn lack(&self, key: &ObjectKey) -> bool {
        let of_volume = self.0.as_ref().filter(|(volume, _)| *volume == key.volume);
        of_volume.is_some_and(|(_, names)| !names.contains(key))
    }

    pub(crate) fn insert(&mut self, key: &ObjectKey) {
        if let Some((_, names)) = self.0.as_mut().filter(|(volume, _)| *volume == key.volume) {
            names.insert(*key);
        }
    }

    pub(crate) fn remove(&mut self, key: &ObjectKey) {
        if let Some((_, names)) = &mut self.0 {
            names.remove(key);
        }
    }

    pub(crate) fn forget(&mut self) {
        self.0 = None;
    }

    fn of(&self, volume: &Uuid, after: Option<&ObjectKey>, limit: u16) -> Option<Vec<ObjectKey>> {
        let (_, names) = self.0.as_ref().filter(|(of, _)| of == volume)?;
        let from = after.map_or(Bound::Unbounded, |after| Bound::Excluded(*after));
        Some(names.range((from, Bound::Unbounded)).take(limit.into()).copied().collect())
    }
}
