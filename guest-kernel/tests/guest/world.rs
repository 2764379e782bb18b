//! Several guests on one wire, each with its own loop, in one thread and in virtual time. A guest
//! runs until it waits; a wait is an exit, submits its queues, and ends with an event or its
//! deadline.

use std::cell::Cell;
use std::rc::Rc;

use guest_kernel::block::Block;
use guest_kernel::dma::QueueMemory;
use guest_kernel::net::Net;
use guest_kernel::net::names::parse_addresses;
use guest_kernel::net::nic::Nic;
use guest_kernel::runtime::{Driver, Runtime};
use guest_kernel::task::{Executor, JoinHandle};
use smoltcp::wire::{IpAddress, IpCidr, IpEndpoint};

use crate::disk::{Disk, Platters};
use crate::random::Random;
use crate::wire::{Card, carry};

const MTU: u16 = 1400;
/// What running a guest until it waits takes.
const TURN_NS: u64 = 5_000;

pub(crate) struct Guest {
    pub(crate) executor: Executor,
    pub(crate) net: Net,
    pub(crate) block: Option<Block>,
    pub(crate) disk: Option<Disk>,
    pub(crate) exits: Rc<Cell<u64>>,
    runtime: Runtime,
    card: Card,
    /// When its wait ends at the latest; `None`: it isn't in a wait.
    waits_until: Option<u64>,
}

pub(crate) struct World {
    pub(crate) guests: Vec<Guest>,
    pub(crate) now: Rc<Cell<u64>>,
    pub(crate) random: Random,
    pub(crate) lose_one_in: usize,
    pub(crate) queue_size: u16,
    /// Whether cards cut, merge and compute checksums.
    pub(crate) offloads: bool,
}

/// The addresses of guest `number`.
pub(crate) fn endpoint(number: u8, port: u16) -> IpEndpoint {
    IpEndpoint { addr: cidrs(number)[0].address(), port }
}

pub(crate) fn endpoint_v4(number: u8, port: u16) -> IpEndpoint {
    IpEndpoint { addr: cidrs(number)[1].address(), port }
}

fn cidrs(number: u8) -> Vec<IpCidr> {
    let text = format!("400:1::{number}/7,10.1.1.{number}/24");
    parse_addresses(&text).unwrap()
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            guests: Vec::new(),
            now: Rc::new(Cell::new(1_000_000)),
            random: Random(seed),
            lose_one_in: 0,
            queue_size: 64,
            offloads: false,
        }
    }

    /// Boots guest `number` (1, 2, ...), with a disk or without.
    pub(crate) fn boot(&mut self, number: u8, platters: Option<Platters>) -> Guest {
        let clock = Rc::clone(&self.now);
        let executor = Executor::new(move || clock.get());
        let mut drivers: Vec<Rc<dyn Driver>> = Vec::new();
        let memories = [(); 2].map(|()| QueueMemory::allocate(self.queue_size));
        let entries = [memories[0].entry(), memories[1].entry()];
        let [receive, transmit] = memories;
        let nic = Nic::new(&Card::device_entry(number, MTU, self.offloads), receive, transmit);
        let addresses = cidrs(number);
        let net = Net::new(nic, &addresses, self.random.next(), self.now.get());
        drivers.push(Rc::new(net.clone()));
        let own: Vec<IpAddress> = addresses.iter().map(|cidr| cidr.address()).collect();
        let card = Card::new(number, &own, entries, self.offloads);
        let (mut block, mut disk) = (None, None);
        if let Some(platters) = platters {
            let memory = QueueMemory::allocate(128);
            let entry = memory.entry();
            let device = Block::new(&Disk::device_entry(platters.len(), 4096), memory);
            drivers.push(Rc::new(device.clone()));
            block = Some(device);
            disk = Some(Disk::new(platters, entry));
        }
        let runtime = Runtime::new(executor.clone(), drivers);
        let exits = Rc::new(Cell::new(0));
        Guest { executor, net, block, disk, exits, runtime, card, waits_until: None }
    }

    /// How many super-frames the guests have sent.
    pub(crate) fn super_frames(&self) -> usize {
        self.guests.iter().map(|guest| guest.card.super_frames).sum()
    }

    /// Runs all guests until `task` has ended.
    pub(crate) fn finish<T>(&mut self, task: &JoinHandle<T>) -> T {
        self.finish_with(task, |_| {})
    }

    /// As [`World::finish`]; `meddle` is called between steps.
    pub(crate) fn finish_with<T>(
        &mut self,
        task: &JoinHandle<T>,
        mut meddle: impl FnMut(&mut Self),
    ) -> T {
        for _ in 0..2_000_000 {
            self.step();
            if let Some(result) = task.try_take() {
                return result;
            }
            meddle(self);
        }
        panic!("nothing comes to an end");
    }

    fn step(&mut self) {
        let mut ran = false;
        for index in 0..self.guests.len() {
            if self.guests[index].waits_until.is_none() {
                self.turn(index);
                ran = true;
            }
        }
        for guest in &mut self.guests {
            let woken = guest.card.deliver();
            if woken || guest.waits_until.is_some_and(|until| until <= self.now.get()) {
                guest.waits_until = None;
                ran = true;
            }
        }
        if !ran {
            let next = self.guests.iter().filter_map(|guest| guest.waits_until).min();
            let next = next.filter(|next| *next != u64::MAX);
            self.now.set(next.expect("somebody has a deadline"));
        }
    }

    /// Guest `index` runs until it waits.
    fn turn(&mut self, index: usize) {
        let guest = &mut self.guests[index];
        let deadline = guest.runtime.turn();
        self.now.set(self.now.get() + TURN_NS);
        guest.exits.set(guest.exits.get() + 1);
        guest.waits_until = Some(deadline.unwrap_or(u64::MAX));
        let served = guest.disk.as_mut().map_or(0, |disk| disk.serve(usize::MAX, &mut self.random));
        let (frames, wakes) = guest.card.take_sent(usize::MAX);
        if served > 0 || wakes {
            guest.waits_until = None;
        }
        let mut cards: Vec<&mut Card> =
            self.guests.iter_mut().map(|guest| &mut guest.card).collect();
        carry(&mut cards, index, frames, self.lose_one_in, &mut self.random);
    }
}
