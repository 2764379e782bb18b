//! What is in the store, in memory: every key with its place on the disk, in key order, and as many
//! values as the cache has room for.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::ops::Bound;

use super::format::record_bytes;

/// What a key costs in memory besides its bytes: the map's share, the entry, two counts.
const KEY_OVERHEAD_BYTES: usize = 160;

/// Where a value lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The record's offset in the active region.
    pub offset: u64,
    /// The record's sequence number: tells a place from the one that it moved to.
    pub sequence: u64,
    /// The value's length.
    pub value_len: usize,
}

struct Entry {
    place: Place,
    /// The value, and the tick at which it was cached.
    cached: Option<(Rc<[u8]>, u64)>,
    /// Looked up since the cache's hand last passed.
    referenced: bool,
}

/// All keys, and the cache of values.
pub struct Index {
    entries: BTreeMap<Rc<[u8]>, Entry>,
    live_bytes: u64,
    key_bytes: usize,
    cache_bytes: usize,
    cache_bytes_max: usize,
    /// Keys whose values are cached, oldest first; void if cached again or no more since the tick.
    cache_order: VecDeque<(Rc<[u8]>, u64)>,
    cache_tick: u64,
}

impl Index {
    /// An empty index that caches up to `cache_bytes_max` bytes of values.
    #[must_use]
    pub fn new(cache_bytes_max: usize) -> Self {
        Self {
            entries: BTreeMap::new(),
            live_bytes: 0,
            key_bytes: 0,
            cache_bytes: 0,
            cache_bytes_max,
            cache_order: VecDeque::new(),
            cache_tick: 0,
        }
    }

    /// How many keys there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The bytes of all records that a compaction would keep.
    #[must_use]
    pub fn live_bytes(&self) -> u64 {
        self.live_bytes
    }

    /// What the keys cost in memory.
    #[must_use]
    pub fn key_bytes(&self) -> usize {
        self.key_bytes
    }

    /// What `key` costs in memory.
    #[must_use]
    pub fn key_cost(key: &[u8]) -> usize {
        key.len() + KEY_OVERHEAD_BYTES
    }

    /// Where the value of `key` lies.
    #[must_use]
    pub fn place(&self, key: &[u8]) -> Option<Place> {
        self.entries.get(key).map(|entry| entry.place)
    }

    /// The value of `key`, if it's cached.
    pub fn cached(&mut self, key: &[u8]) -> Option<Rc<[u8]>> {
        let entry = self.entries.get_mut(key)?;
        entry.referenced = true;
        entry.cached.as_ref().map(|(value, _)| Rc::clone(value))
    }

    /// Sets the place of `key` and forgets its old value; returns whether the key is new.
    pub fn put(&mut self, key: &Rc<[u8]>, place: Place) -> bool {
        let entry = Entry { place, cached: None, referenced: false };
        self.live_bytes += record_bytes(key.len(), place.value_len) as u64;
        let old = self.entries.insert(Rc::clone(key), entry);
        match &old {
            Some(old) => self.forget(key.len(), old),
            None => self.key_bytes += Self::key_cost(key),
        }
        old.is_none()
    }

    /// Removes `key`; returns whether it was there.
    pub fn remove(&mut self, key: &[u8]) -> bool {
        let Some(old) = self.entries.remove(key) else { return false };
        self.forget(key.len(), &old);
        self.key_bytes -= Self::key_cost(key);
        true
    }

    /// Keeps `value` for `key`, if it's still the one at `place`.
    pub fn cache(&mut self, key: &Rc<[u8]>, place: Place, value: &Rc<[u8]>) {
        // One value never drives out more than a quarter of the others.
        if value.len() > self.cache_bytes_max / 4 {
            return;
        }
        match self.entries.get_mut(key) {
            Some(entry) if entry.place == place && entry.cached.is_none() => {
                self.cache_tick += 1;
                entry.cached = Some((Rc::clone(value), self.cache_tick));
            }
            _ => return,
        }
        self.cache_bytes += value.len();
        self.cache_order.push_back((Rc::clone(key), self.cache_tick));
        self.evict();
    }

    /// Up to `limit` keys that begin with `prefix` and come after `after`, in order.
    #[must_use]
    pub fn list(&self, prefix: &[u8], after: Option<&[u8]>, limit: usize) -> Vec<Rc<[u8]>> {
        let from = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        self.entries
            .range::<[u8], _>((from, Bound::Unbounded))
            .map(|(key, _)| key)
            .take_while(|key| key.starts_with(prefix))
            .take(limit)
            .map(Rc::clone)
            .collect()
    }

    /// All keys with their places, in the order in which they lie on the disk.
    #[must_use]
    pub fn by_offset(&self) -> Vec<(Rc<[u8]>, Place)> {
        let mut all: Vec<_> =
            self.entries.iter().map(|(key, entry)| (Rc::clone(key), entry.place)).collect();
        all.sort_unstable_by_key(|(_, place)| place.offset);
        all
    }

    /// Moves `key` to `place`; its value stays the same.
    pub fn relocate(&mut self, key: &[u8], place: Place) {
        if let Some(entry) = self.entries.get_mut(key) {
            entry.place = place;
        }
    }

    fn forget(&mut self, key_len: usize, old: &Entry) {
        self.live_bytes -= record_bytes(key_len, old.place.value_len) as u64;
        self.cache_bytes -= old.cached.as_ref().map_or(0, |(value, _)| value.len());
    }

    /// Second chance: what was looked up since the last pass goes round once more.
    fn evict(&mut self) {
        let entries = &mut self.entries;
        if self.cache_order.len() > 2 * entries.len() + 16 {
            let is_cached_at = |key: &Rc<[u8]>, tick: u64| {
                let cached = entries.get(key).and_then(|entry| entry.cached.as_ref());
                cached.is_some_and(|(_, cached_at)| *cached_at == tick)
            };
            self.cache_order.retain(|(key, tick)| is_cached_at(key, *tick));
        }
        while self.cache_bytes > self.cache_bytes_max {
            let Some((key, tick)) = self.cache_order.pop_front() else { return };
            let Some(entry) = entries.get_mut(&key) else { continue };
            match &entry.cached {
                Some((value, cached_at)) if *cached_at == tick => {
                    if core::mem::take(&mut entry.referenced) {
                        self.cache_order.push_back((key, tick));
                    } else {
                        self.cache_bytes -= value.len();
                        entry.cached = None;
                    }
                }
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(sequence: u64, value_len: usize) -> Place {
        Place { offset: sequence * 4096, sequence, value_len }
    }

    fn key(text: &str) -> Rc<[u8]> {
        Rc::from(text.as_bytes())
    }

    #[test]
    fn live_bytes_follow_puts_overwrites_and_removals() {
        let mut index = Index::new(0);
        assert!(index.put(&key("a"), place(1, 100)));
        assert!(index.put(&key("bb"), place(2, 50)));
        assert!(!index.put(&key("a"), place(3, 10)));
        assert_eq!(index.live_bytes(), (record_bytes(1, 10) + record_bytes(2, 50)) as u64);
        assert!(index.remove(b"a") && !index.remove(b"a"));
        assert!(index.remove(b"bb"));
        assert_eq!((index.live_bytes(), index.key_bytes(), index.len()), (0, 0, 0));
    }

    #[test]
    fn a_list_honours_prefix_cursor_and_limit() {
        let mut index = Index::new(0);
        for (i, name) in ["a", "b", "ba", "bb", "bc", "c"].iter().enumerate() {
            index.put(&key(name), place(i as u64, 0));
        }
        assert_eq!(index.list(b"b", None, 3), [key("b"), key("ba"), key("bb")]);
        assert_eq!(index.list(b"b", Some(b"ba"), 9), [key("bb"), key("bc")]);
        assert_eq!(index.list(b"b", Some(b"a"), 1), [key("b")]);
        assert_eq!(index.list(b"", None, 99).len(), 6);
        assert!(index.list(b"x", None, 9).is_empty());
        assert!(index.list(b"b", Some(b"zz"), 9).is_empty());
    }

    #[test]
    fn the_cache_keeps_to_its_size_and_prefers_what_is_used() {
        let mut index = Index::new(100);
        let value: Rc<[u8]> = Rc::from(&[7; 25][..]);
        for i in 0..4 {
            let name = key(&std::format!("k{i}"));
            index.put(&name, place(i, 25));
            index.cache(&name, place(i, 25), &value);
        }
        assert!(index.cached(b"k0").is_some());
        index.put(&key("k4"), place(4, 25));
        index.cache(&key("k4"), place(4, 25), &value);
        assert!(index.cached(b"k0").is_some(), "it was used");
        assert!(index.cached(b"k1").is_none(), "the oldest that wasn't");
        assert!(index.cached(b"k4").is_some());
        assert!(index.cache_bytes <= 100);
    }

    #[test]
    fn a_value_that_was_overwritten_meanwhile_is_not_cached() {
        let mut index = Index::new(100);
        index.put(&key("a"), place(2, 3));
        index.cache(&key("a"), place(1, 3), &Rc::from(&b"old"[..]));
        assert_eq!(index.cached(b"a"), None);
    }

    #[test]
    fn overwriting_one_key_for_ever_does_not_grow_the_cache_order() {
        let mut index = Index::new(100);
        let value: Rc<[u8]> = Rc::from(&b"v"[..]);
        for i in 0..10_000 {
            index.put(&key("a"), place(i, 1));
            index.cache(&key("a"), place(i, 1), &value);
        }
        assert!(index.cache_order.len() < 32);
        assert!(index.cached(b"a").is_some());
    }
}
