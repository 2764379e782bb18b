//! The pages of the tree that are in memory.
//!
//! A page is evicted only if it is stored as it is and none of the pages below it is in memory, so
//! everything above a changed page is in memory too. While a checkpoint is under way its pages
//! stay; one that changes meanwhile keeps a copy of what the checkpoint stores (`held`).

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use super::PAGE_BYTES;
use super::location::PageAddress;

/// How many words a page has, as a power of two.
pub(super) const FANOUT_BITS: u32 = 9;
/// How many words a page has.
pub(super) const FANOUT: usize = 1 << FANOUT_BITS;

/// A page as it is stored.
pub type Page = [u8; PAGE_BYTES];

/// A page's content: locations of blocks, or of the pages below; 0: none.
pub(super) type Words = [u64; FANOUT];

/// How many pages are looked at for one to evict.
const EVICTION_STEPS: usize = 64;

pub(super) fn words_of(page: &Page) -> Box<Words> {
    let mut words = Box::new([0; FANOUT]);
    let (fields, _) = page.as_chunks::<8>();
    words.iter_mut().zip(fields).for_each(|(word, field)| *word = u64::from_le_bytes(*field));
    words
}

pub(super) fn page_of(words: &Words) -> Box<Page> {
    let mut page = Box::new([0; PAGE_BYTES]);
    let (fields, _) = page.as_chunks_mut::<8>();
    fields.iter_mut().zip(words).for_each(|(field, word)| *field = word.to_le_bytes());
    page
}

/// The page above, and the place in it.
pub(super) fn above(address: PageAddress) -> (PageAddress, usize) {
    let parent = PageAddress::map(address.level() + 1, address.index() >> FANOUT_BITS);
    (parent, address.index() as usize % FANOUT)
}

/// How a page in memory stands to what is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Stored as it is.
    Clean,
    /// Changed since it was stored.
    Dirty,
    /// To be stored by the checkpoint under way, and not changed since that began.
    Frozen,
    /// Given a place by the checkpoint under way, and not changed since.
    Placed,
    /// Dropped from the live tree; the checkpoint under way still has to store it.
    Gone,
}

#[derive(Debug)]
struct Slot {
    words: Box<Words>,
    held: Option<Box<Words>>,
    state: State,
    used: bool,
    /// The pages below it in memory; `Gone` ones count.
    children: u16,
    /// Those of them that the live tree has.
    live_children: u16,
}

#[derive(Debug)]
pub(super) struct Pages {
    slots: BTreeMap<PageAddress, Slot>,
    dirty: BTreeSet<PageAddress>,
    capacity: usize,
    hand: PageAddress,
}

impl Pages {
    pub(super) fn new(capacity: usize) -> Self {
        let hand = PageAddress::map(0, 0);
        Self { slots: BTreeMap::new(), dirty: BTreeSet::new(), capacity, hand }
    }

    pub(super) fn capacity(&self) -> usize {
        self.capacity
    }

    pub(super) fn resident(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn dirty(&self) -> usize {
        self.dirty.len()
    }

    /// What the live tree has in the page, if it is in memory and in the live tree.
    pub(super) fn read(&mut self, address: PageAddress) -> Option<&Words> {
        let slot = self.slots.get_mut(&address).filter(|slot| slot.state != State::Gone)?;
        slot.used = true;
        Some(&slot.words)
    }

    /// The page to be changed by the live tree, if it is in memory and in the live tree.
    pub(super) fn change(&mut self, address: PageAddress) -> Option<&mut Words> {
        let slot = self.slots.get_mut(&address).filter(|slot| slot.state != State::Gone)?;
        slot.used = true;
        if slot.state != State::Dirty {
            if slot.state == State::Frozen {
                slot.held = Some(slot.words.clone());
            }
            slot.state = State::Dirty;
            self.dirty.insert(address);
        }
        Some(&mut slot.words)
    }

    /// Whether the live tree has the page and its state, if it is in memory.
    pub(super) fn state(&self, address: PageAddress) -> Option<State> {
        self.slots.get(&address).map(|slot| slot.state)
    }

    /// How many pages right below it are in memory and in the live tree.
    pub(super) fn live_children(&self, address: PageAddress) -> u16 {
        self.slots.get(&address).map_or(0, |slot| slot.live_children)
    }

    /// What the checkpoint under way has in the page, if it has to store it.
    pub(super) fn frozen_words(&self, address: PageAddress) -> Option<&Words> {
        let slot = self.slots.get(&address)?;
        match (&slot.held, slot.state) {
            (Some(held), _) => Some(held),
            (None, State::Frozen) => Some(&slot.words),
            (None, _) => None,
        }
    }

    /// Says in a page where the page below it is stored by the checkpoint under way. `live`: for
    /// the live tree too. That is no change that would have to be stored once more.
    pub(super) fn place_child(&mut self, child: PageAddress, word: u64, live: bool) {
        let (parent, nth) = above(child);
        let Some(slot) = self.slots.get_mut(&parent) else { return };
        let shared = slot.held.is_none() && slot.state == State::Frozen;
        if let Some(held) = &mut slot.held {
            held[nth] = word;
        }
        if shared || live {
            slot.words[nth] = word;
        }
    }

    /// Makes room and adds a page to the live tree. One that is gone comes back as `words`.
    pub(super) fn insert(&mut self, address: PageAddress, words: Box<Words>, state: State) {
        let was_gone = self.slots.contains_key(&address);
        if let Some(parent) = self.slots.get_mut(&above(address).0) {
            parent.children += u16::from(!was_gone);
            parent.live_children += 1;
        }
        if state == State::Dirty {
            self.dirty.insert(address);
        }
        if let Some(slot) = self.slots.get_mut(&address) {
            debug_assert_eq!(slot.state, State::Gone, "only what is gone comes back");
            slot.words = words;
            slot.state = state;
            return;
        }
        self.make_room();
        let slot = Slot { words, held: None, state, used: true, children: 0, live_children: 0 };
        self.slots.insert(address, slot);
    }

    /// Puts a new topmost page above the present one.
    pub(super) fn insert_above(&mut self, child: PageAddress, words: Box<Words>) {
        let (parent, _) = above(child);
        self.insert(parent, words, State::Dirty);
        let live = self.state(child).map(|state| u16::from(state != State::Gone));
        if let (Some(live), Some(slot)) = (live, self.slots.get_mut(&parent)) {
            slot.children = 1;
            slot.live_children = live;
        }
    }

    /// Takes a page out of the live tree; a checkpoint under way keeps what it needs of it.
    pub(super) fn drop_live(&mut self, address: PageAddress) {
        self.dirty.remove(&address);
        let Some(slot) = self.slots.get_mut(&address) else { return };
        if slot.state == State::Frozen {
            slot.held = Some(slot.words.clone());
        }
        slot.state = State::Gone;
        let frozen = slot.held.is_some();
        if let Some(parent) = self.slots.get_mut(&above(address).0) {
            parent.live_children -= 1;
        }
        if !frozen {
            self.forget(address);
        }
    }

    /// Forgets a page that the live tree doesn't count any more.
    fn forget(&mut self, address: PageAddress) {
        self.slots.remove(&address);
        if let Some(parent) = self.slots.get_mut(&above(address).0) {
            parent.children -= 1;
        }
    }

    /// Begins a checkpoint: all changed pages and those above them, from the leaves up.
    pub(super) fn freeze(&mut self) -> Vec<PageAddress> {
        let mut all: BTreeSet<PageAddress> = BTreeSet::new();
        for mut address in std::mem::take(&mut self.dirty) {
            while let Some(slot) = self.slots.get_mut(&address)
                && all.insert(address)
            {
                slot.state = State::Frozen;
                address = above(address).0;
            }
        }
        all.into_iter().collect()
    }

    /// A page of the checkpoint has its place.
    pub(super) fn placed(&mut self, address: PageAddress) {
        let Some(slot) = self.slots.get_mut(&address) else { return };
        slot.held = None;
        match slot.state {
            State::Frozen => slot.state = State::Placed,
            State::Gone => self.forget(address),
            State::Clean | State::Dirty | State::Placed => {}
        }
    }

    /// A page of a checkpoint that is finished may be evicted.
    pub(super) fn finish(&mut self, address: PageAddress) {
        if let Some(slot) = self.slots.get_mut(&address)
            && slot.state == State::Placed
        {
            slot.state = State::Clean;
        }
    }

    /// A page of a checkpoint that was given up has to be stored by the next one.
    pub(super) fn abort(&mut self, address: PageAddress) {
        let Some(slot) = self.slots.get_mut(&address) else { return };
        slot.held = None;
        match slot.state {
            State::Frozen | State::Placed => {
                slot.state = State::Dirty;
                self.dirty.insert(address);
            }
            State::Gone => self.forget(address),
            State::Clean | State::Dirty => {}
        }
    }

    /// Evicts until there is room for one more, if enough pages can go: two at most, so that the
    /// room beyond the capacity that a checkpoint frees is given back step by step.
    fn make_room(&mut self) {
        for _ in 0..2 {
            if self.slots.len() < self.capacity {
                return;
            }
            let Some(address) = self.victim() else { return };
            if let Some(parent) = self.slots.get_mut(&above(address).0) {
                parent.live_children -= 1;
            }
            self.forget(address);
        }
    }

    /// A page that can go and wasn't used since the hand last came by.
    fn victim(&mut self) -> Option<PageAddress> {
        for _ in 0..2 {
            let after = self.slots.range_mut((Bound::Excluded(self.hand), Bound::Unbounded));
            for (address, slot) in after.take(EVICTION_STEPS) {
                self.hand = *address;
                let evictable = slot.state == State::Clean && slot.children == 0;
                if evictable && !std::mem::replace(&mut slot.used, false) {
                    return Some(*address);
                }
            }
            if self.slots.last_key_value().is_none_or(|(last, _)| *last <= self.hand) {
                self.hand = PageAddress::map(0, 0);
            }
        }
        None
    }
}
