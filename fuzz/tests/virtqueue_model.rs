//! The virtqueue's device side, checked exhaustively within a small scope: every sequence of
//! actions of a hostile driver and the device, up to a depth, on small queues.
//!
//! Each state is reached by the real [`vdev::DeviceQueue`] through real memory, in step with the
//! reference (`fuzz::virtqueue`), which asserts after each action: the same chain or one of the
//! broken rules, every byte of memory equal, never a panic. Two sequences that lead to the same
//! memory and the same two indices are one state: the queue keeps nothing else (the smoke test's
//! random sequences would show if it did), so the search goes on from one of them only. That turns
//! millions of sequences into thousands of states.

use std::collections::HashSet;

use fuzz::virtqueue::Pair;
use vdev::driver::Buffer;
use vdev::queue::CHAIN_BYTES_MAX;
use vdev::{DeviceQueue, GuestRam, QueueLayout};
use vm_memory::GuestAddress;

const RAM_BASE: u64 = 0x20_0000;
const RAM_BYTES: usize = 4096;
const RAM_END: u64 = RAM_BASE + RAM_BYTES as u64;
/// Behind the rings of the largest queue here.
const BUFFER: u64 = RAM_BASE + 0x80;
const BUFFER_BYTES: u32 = 8;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// What a descriptor is rewritten to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Readable,
    Writable,
    ReadableThenNext,
    WritableThenNext,
    OverTheRings,
    CrossesTheEnd,
    Outside,
    AddressOverflows,
    EmptyOutside,
    Indirect,
    NextOutside,
    NextIsItself,
}

/// The descriptor of this kind at `index` of a queue of `size`.
fn descriptor(kind: Kind, index: u16, size: u16) -> (Buffer, u16, u16) {
    let good = BUFFER + 16 * u64::from(index);
    let (address, len, flags, next) = match kind {
        Kind::Readable => (good, BUFFER_BYTES, 0, 0),
        Kind::Writable => (good, BUFFER_BYTES, WRITE, 0),
        Kind::ReadableThenNext => (good, BUFFER_BYTES, NEXT, (index + 1) % size),
        Kind::WritableThenNext => (good, BUFFER_BYTES, WRITE | NEXT, (index + 1) % size),
        Kind::OverTheRings => (RAM_BASE, 16 * u32::from(size) + 4, WRITE, 0),
        Kind::CrossesTheEnd => (RAM_END - 4, BUFFER_BYTES, WRITE, 0),
        Kind::Outside => (RAM_END, 1, 0, 0),
        Kind::AddressOverflows => (u64::MAX - 3, BUFFER_BYTES, WRITE, 0),
        Kind::EmptyOutside => (RAM_END + 4096, 0, 0, 0),
        Kind::Indirect => (good, 16, INDIRECT, 0),
        Kind::NextOutside => (good, BUFFER_BYTES, NEXT, size),
        Kind::NextIsItself => (good, BUFFER_BYTES, NEXT, index),
    };
    (Buffer { address, len, device_writes: flags & WRITE != 0 }, flags, next)
}

/// Something that the driver or the device does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Rewrite(u16, Kind),
    Publish(u16),
    AvailIndex(u16),
    Pop,
    /// Gives back the chain that was taken last.
    PushUsed,
    PushUsedOutside,
}

/// A queue, and what the device holds of it.
struct System {
    pair: Pair,
    size: u16,
    last: u16,
    taken: u32,
    published: u32,
}

impl System {
    fn new(size: u16) -> Self {
        let pair = Pair::new(QueueLayout::at(RAM_BASE, size), &[(RAM_BASE, RAM_BYTES)]);
        Self { pair, size, last: 0, taken: 0, published: 0 }
    }

    /// Starts anew and goes this way.
    fn after(&mut self, path: &[Action]) {
        let pair = self.pair.restarted();
        *self = Self { pair, size: self.size, last: 0, taken: 0, published: 0 };
        for action in path {
            self.act(*action);
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Rewrite(index, kind) => {
                let (buffer, flags, next) = descriptor(kind, index, self.size);
                self.pair.write_descriptor(index, &buffer, flags, next);
            }
            Action::Publish(head) => {
                self.pair.publish(head);
                self.published += 1;
            }
            Action::AvailIndex(index) => {
                // Forwards it publishes what lies in the ring, backwards it takes back.
                let ahead = index.wrapping_sub(self.pair.reference().progress().0);
                self.pair.write_avail_index(index);
                self.published = self.taken + u32::from(ahead);
            }
            Action::Pop => {
                if let Some(head) = self.pair.pop() {
                    self.last = head;
                    self.taken += 1;
                    assert!(self.taken <= self.published, "a publication was taken twice");
                }
            }
            Action::PushUsed => self.pair.push_used(self.last, BUFFER_BYTES),
            Action::PushUsedOutside => self.pair.push_used(self.size, 0),
        }
    }

    /// All that can make a difference from here on.
    fn state(&self) -> Vec<u8> {
        let reference = self.pair.reference();
        let (next_avail, next_used) = reference.progress();
        let written = reference.memory.get(RAM_BASE, 0x100).unwrap_or_default();
        let mut state = written.to_vec();
        for number in [next_avail, next_used, self.last] {
            state.extend_from_slice(&number.to_le_bytes());
        }
        state
    }
}

fn actions(size: u16, descriptors: u16, kinds: &[Kind]) -> Vec<Action> {
    let mut actions = vec![Action::Pop, Action::PushUsed, Action::PushUsedOutside];
    actions.extend((0..descriptors).chain([size]).map(Action::Publish));
    actions.extend([0, size + 1, u16::MAX].map(Action::AvailIndex));
    for index in 0..descriptors {
        actions.extend(kinds.iter().map(|kind| Action::Rewrite(index, *kind)));
    }
    actions
}

/// Tries every sequence of `depth` actions; returns how many states and actions that were.
fn search(size: u16, depth: usize, actions: &[Action]) -> (usize, usize) {
    let mut seen = HashSet::new();
    let mut frontier: Vec<Vec<Action>> = vec![Vec::new()];
    let mut system = System::new(size);
    let mut tried = 0;
    for _ in 0..depth {
        let mut next = Vec::new();
        for path in &frontier {
            for action in actions {
                let mut longer = path.clone();
                longer.push(*action);
                // A failed assertion inside names the values; this names the way there.
                on_panic_print(&longer, || system.after(&longer));
                tried += 1;
                if seen.insert(system.state()) {
                    next.push(longer);
                }
            }
        }
        frontier = next;
    }
    (seen.len(), tried)
}

fn on_panic_print<T>(path: &[Action], work: impl FnOnce() -> T) -> T {
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)) {
        Ok(value) => value,
        Err(panic) => {
            eprintln!("the sequence that breaks a promise: {path:?}");
            std::panic::resume_unwind(panic)
        }
    }
}

/// The kinds that differ in what they do to a chain.
const KINDS: [Kind; 12] = [
    Kind::Readable,
    Kind::Writable,
    Kind::ReadableThenNext,
    Kind::WritableThenNext,
    Kind::OverTheRings,
    Kind::CrossesTheEnd,
    Kind::Outside,
    Kind::AddressOverflows,
    Kind::EmptyOutside,
    Kind::Indirect,
    Kind::NextOutside,
    Kind::NextIsItself,
];

#[test]
fn no_sequence_of_five_actions_breaks_a_queue_of_two() {
    let (states, tried) = search(2, 5, &actions(2, 2, &KINDS));
    println!("{states} states, {tried} actions");
}

#[test]
fn no_sequence_of_seven_actions_on_chains_breaks_a_queue_of_two() {
    let kinds = [Kind::ReadableThenNext, Kind::Writable, Kind::OverTheRings];
    let (states, tried) = search(2, 7, &actions(2, 2, &kinds));
    println!("{states} states, {tried} actions");
}

#[test]
fn no_sequence_of_five_actions_breaks_a_queue_of_four() {
    let kinds = [Kind::ReadableThenNext, Kind::WritableThenNext, Kind::Readable];
    let (states, tried) = search(4, 5, &actions(4, 4, &kinds));
    println!("{states} states, {tried} actions");
}

#[test]
fn every_pair_of_descriptors_makes_the_chain_or_the_error_that_the_rules_say() {
    for first in KINDS {
        for second in KINDS {
            let path = [
                Action::Rewrite(0, first),
                Action::Rewrite(1, second),
                Action::Publish(0),
                Action::Publish(1),
                Action::Pop,
                Action::PushUsed,
                Action::Pop,
                Action::PushUsed,
                Action::Pop,
            ];
            on_panic_print(&path, || System::new(2).after(&path));
        }
    }
}

#[test]
fn the_indices_wrap_around() {
    let mut system = System::new(2);
    system.act(Action::Rewrite(0, Kind::Writable));
    for round in 0..=u32::from(u16::MAX) {
        system.pair.publish(0);
        assert_eq!(system.pair.pop(), Some(0), "round {round}");
        system.pair.push_used(0, 1);
    }
    assert_eq!(system.pair.reference().progress(), (0, 0));
    assert_eq!(system.pair.pop(), None);
}

#[test]
fn a_chain_may_be_as_long_as_the_limit_and_no_longer() {
    let half = CHAIN_BYTES_MAX / 2;
    let layout = QueueLayout::at(RAM_BASE, 2);
    let ram_bytes = usize::try_from(half + 8192).unwrap();
    let ram = GuestRam::from_ranges(&[(GuestAddress(RAM_BASE), ram_bytes)]).unwrap();
    let mut driver = vdev::driver::Driver::new(layout);
    let mut queue = DeviceQueue::new(0, layout, &ram).unwrap();
    let buffer = |len: u64| Buffer {
        address: RAM_BASE + 4096,
        len: u32::try_from(len).unwrap(),
        device_writes: true,
    };
    driver.add(&ram, &[buffer(half), buffer(half)]).unwrap();
    let chain = queue.pop(&ram).unwrap().unwrap();
    assert_eq!(chain.writable_len() as u64, CHAIN_BYTES_MAX);
    driver.add(&ram, &[buffer(half), buffer(half + 1)]).unwrap();
    assert_eq!(queue.pop(&ram), Err(vdev::RingError::TooLong { head: 0 }));
}
