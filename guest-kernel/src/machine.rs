//! The devices of the boot page, taken over and put into one loop: what an image's `main` begins
//! with.

use alloc::rc::Rc;
use alloc::vec::Vec;

use abi::{BootPage, DeviceEntry, WAIT_FOREVER, virtio};

use crate::block::Block;
use crate::clock::Clock;
use crate::dma::QueueMemory;
use crate::entry;
use crate::net::Net;
use crate::net::names::{ENV_ADDRESSES, parse_addresses};
use crate::net::nic::Nic;
use crate::runtime::{Driver, Runtime};
use crate::task::Executor;

/// A running guest: its tasks and its devices.
pub struct Machine {
    /// Spawns tasks and tells the time.
    pub executor: Executor,
    /// The disks, in the order of the boot page.
    pub block: Vec<Block>,
    /// The network cards, in the order of the boot page.
    pub net: Vec<Net>,
    /// What the wall clock shows.
    pub clock: Clock,
    runtime: Runtime,
    seed: u64,
}

impl Machine {
    /// Takes over what the boot page lists. Possible once.
    ///
    /// # Panics
    /// If the boot page is inconsistent, the devices were taken before, or the card's addresses
    /// are not understood.
    #[must_use]
    pub fn take() -> Self {
        let boot = entry::boot_page();
        let clock = Clock::new(entry::tsc(), boot.tsc_khz, boot.wall_clock_ns);
        let executor = Executor::new(move || clock.monotonic_ns(entry::tsc()));
        let mut drivers: Vec<Rc<dyn Driver>> = Vec::new();
        let (mut block, mut net) = (Vec::new(), Vec::new());
        for (number, device) in devices(boot).iter().enumerate() {
            match device.device_id {
                virtio::DEVICE_ID_BLOCK => {
                    let disk = Block::new(device, queue(device, 0));
                    drivers.push(Rc::new(disk.clone()));
                    block.push(disk);
                }
                virtio::DEVICE_ID_NET => {
                    let nic = Nic::new(device, queue(device, 0), queue(device, 1));
                    entry::accept(number, nic.accepted());
                    let addresses = match parse_addresses(entry::env(ENV_ADDRESSES).unwrap_or("")) {
                        Ok(addresses) => addresses,
                        Err(error) => panic!("{ENV_ADDRESSES}: {error}"),
                    };
                    let seed = random(boot, number);
                    let stack = Net::new(nic, &addresses, seed, executor.now_ns());
                    drivers.push(Rc::new(stack.clone()));
                    net.push(stack);
                }
                // A device that this library has no driver for stays unused.
                _ => {}
            }
        }
        let runtime = Runtime::new(executor.clone(), drivers);
        Self { executor, block, net, clock, runtime, seed: random(boot, abi::DEVICES_MAX) }
    }

    /// A number that nobody can guess, the same at every call.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Nanoseconds since 1970 (UTC).
    #[must_use]
    pub fn wall_ns(&self) -> u64 {
        self.clock.wall_ns(entry::tsc())
    }

    /// Runs `future` and every task until it has ended. When nothing is ready, one wait submits
    /// all queues and sleeps until a device or a deadline has something.
    pub fn block_on<T: 'static>(&self, future: impl Future<Output = T> + 'static) -> T {
        let task = self.executor.spawn(future);
        loop {
            let deadline_ns = self.runtime.turn();
            if let Some(result) = task.try_take() {
                return result;
            }
            let now_ns = self.executor.now_ns();
            entry::wait(deadline_ns.map_or(WAIT_FOREVER, |at| at.saturating_sub(now_ns)));
        }
    }
}

fn devices(boot: &'static BootPage) -> &'static [DeviceEntry] {
    boot.devices.get(..boot.device_count as usize).unwrap_or(&boot.devices)
}

fn queue(device: &DeviceEntry, index: u32) -> QueueMemory {
    let found = if index < device.queue_count {
        QueueMemory::from_boot_page((device.first_queue + index) as usize)
    } else {
        None
    };
    match found {
        Some(memory) => memory,
        None => panic!(
            "the boot page has no free queue {index} for the device with id {}",
            device.device_id
        ),
    }
}

/// 64 bits drawn from the boot page's seed for one `purpose` (SplitMix64 over its words).
fn random(boot: &BootPage, purpose: usize) -> u64 {
    let (words, _) = boot.random_seed.as_chunks::<8>();
    words.iter().fold(purpose as u64, |state, word| {
        let mut mixed = (state ^ u64::from_le_bytes(*word)).wrapping_add(0x9e37_79b9_7f4a_7c15);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    })
}
