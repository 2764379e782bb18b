use std::cell::{Cell, RefCell};
use std::rc::Rc;

use guest_kernel::block::{Block, BlockError};
use guest_kernel::dma::{DmaBuffer, QueueMemory};
use guest_kernel::runtime::Runtime;
use guest_kernel::task::{Executor, JoinHandle};
use guest_kernel::virtio::{Part, Queue};

use crate::disk::{Disk, Platters};
use crate::memory::DeviceQueue;
use crate::random::Random;

/// A guest with one disk, and its host.
pub(crate) struct Machine {
    pub(crate) executor: Executor,
    pub(crate) runtime: Runtime,
    pub(crate) block: Block,
    pub(crate) disk: Disk,
    pub(crate) now: Rc<Cell<u64>>,
    /// How often the guest has waited: each is an exit.
    pub(crate) waits: usize,
    pub(crate) random: Random,
}

impl Machine {
    pub(crate) fn new(platters: Platters, queue_size: u16, block_bytes: u32, seed: u64) -> Self {
        let memory = QueueMemory::allocate(queue_size);
        let entry = memory.entry();
        let block = Block::new(&Disk::device_entry(platters.len(), block_bytes), memory);
        let now = Rc::new(Cell::new(0));
        let clock = Rc::clone(&now);
        let executor = Executor::new(move || clock.get());
        let runtime = Runtime::new(executor.clone(), vec![Rc::new(block.clone())]);
        let disk = Disk::new(platters, entry);
        Self { executor, runtime, block, disk, now, waits: 0, random: Random(seed) }
    }

    /// Runs until the task has ended; the disk serves everything at each wait.
    pub(crate) fn run<T: 'static>(&mut self, future: impl Future<Output = T> + 'static) -> T {
        let task = self.executor.spawn(future);
        self.finish(&task)
    }

    pub(crate) fn finish<T>(&mut self, task: &JoinHandle<T>) -> T {
        loop {
            self.runtime.turn();
            if let Some(result) = task.try_take() {
                return result;
            }
            self.waits += 1;
            let served = self.disk.serve(usize::MAX, &mut self.random);
            assert!(served > 0, "everybody waits and nobody works");
        }
    }
}

fn machine() -> Machine {
    Machine::new(Platters::blank(1 << 20), 128, 512, 1)
}

#[test]
fn a_write_is_read_back_and_the_capacity_is_the_devices() {
    let mut machine = machine();
    let block = machine.block.clone();
    assert_eq!(block.capacity_bytes(), 1 << 20);
    let read = machine.run(async move {
        block.write(4096, DmaBuffer::copy_of(&[7; 1024])).await.unwrap();
        block.read(3584, 2048).await.unwrap().to_vec()
    });
    assert_eq!(read, [vec![0; 512], vec![7; 1024], vec![0; 512]].concat());
}

#[test]
fn a_durable_write_is_one_exit_and_survives_a_crash() {
    let mut machine = machine();
    let block = machine.block.clone();
    machine.run(async move {
        let writes = (0..8).map(|i| (i * 512, DmaBuffer::copy_of(&[i as u8; 512]))).collect();
        block.write_durable(writes).await.unwrap();
    });
    assert_eq!((machine.waits, machine.disk.requests), (1, 9));
    machine.disk.platters.crash(&mut Random(7));
    let bytes = machine.disk.platters.bytes();
    assert!((0..8).all(|i| bytes[i * 512..][..512] == [i as u8; 512]));
}

#[test]
fn thirty_two_tasks_share_one_exit() {
    let mut machine = machine();
    let tasks: Vec<_> = (0..32)
        .map(|i| {
            let block = machine.block.clone();
            machine.executor.spawn(async move { block.read(i * 512, 512).await.map(|b| b.len()) })
        })
        .collect();
    for task in &tasks {
        assert_eq!(machine.finish(task), Ok(512));
    }
    assert_eq!((machine.waits, machine.disk.requests), (1, 32));
}

#[test]
fn more_requests_than_the_queue_holds_wait_their_turn() {
    let mut machine = Machine::new(Platters::blank(1 << 20), 8, 512, 1);
    let tasks: Vec<_> = (0..50)
        .map(|i| {
            let block = machine.block.clone();
            machine.executor.spawn(async move {
                block.write(i * 512, DmaBuffer::copy_of(&[i as u8; 512])).await.unwrap();
            })
        })
        .collect();
    for task in &tasks {
        machine.finish(task);
    }
    let bytes = machine.disk.platters.bytes();
    assert!((0..50).all(|i| bytes[i * 512..][..512] == [i as u8; 512]));
}

#[test]
fn what_is_no_sector_of_the_disk_is_refused_without_a_request() {
    let mut machine = machine();
    let block = machine.block.clone();
    machine.run(async move {
        for (offset, len) in [(1, 512), (0, 0), (0, 100), (1 << 20, 512), (u64::MAX - 511, 512)] {
            let refused = Err(BlockError::Range { offset, len });
            assert_eq!(block.read(offset, len).await.map(drop), refused);
            assert_eq!(block.write(offset, DmaBuffer::zeroed(len)).await.map(drop), refused);
        }
    });
    assert_eq!(machine.disk.requests, 0);
}

#[test]
fn a_failed_write_is_an_error_of_the_whole_durable_batch() {
    let mut machine = machine();
    machine.disk.faults.error_one_in = 1;
    let block = machine.block.clone();
    let result = machine.run(async move {
        block.write_durable(vec![(0, DmaBuffer::zeroed(512)), (512, DmaBuffer::zeroed(512))]).await
    });
    assert_eq!(result, Err(BlockError::Io));
}

/// Futures are dropped at every stage; the device keeps using their buffers, and later requests
/// get the right answers.
#[test]
fn a_cancelled_request_leaves_its_buffer_with_the_device() {
    for seed in 0..200 {
        let mut machine = Machine::new(Platters::blank(1 << 20), 16, 512, seed);
        let survivors = Rc::new(RefCell::new(Vec::new()));
        for i in 0..40u64 {
            let (block, clock) = (machine.block.clone(), machine.executor.clone());
            let survivors = Rc::clone(&survivors);
            let patience = machine.random.below(4) as u64;
            drop(machine.executor.spawn(async move {
                let bytes = [i as u8; 1024];
                let write = block.write(i * 1024, DmaBuffer::copy_of(&bytes));
                if let Some(result) = clock.timeout(patience, write).await {
                    result.unwrap();
                    survivors.borrow_mut().push(i);
                }
            }));
        }
        for _ in 0..60 {
            machine.runtime.turn();
            let count = machine.random.below(4);
            machine.disk.serve(count, &mut machine.random);
            machine.now.set(machine.now.get() + machine.random.below(2) as u64);
        }
        machine.disk.serve(usize::MAX, &mut machine.random);
        machine.runtime.turn();
        let bytes = machine.disk.platters.bytes();
        for i in survivors.borrow().iter() {
            let at = *i as usize * 1024;
            assert_eq!(bytes[at..at + 1024], [*i as u8; 1024], "seed {seed}, write {i}");
        }
        let block = machine.block.clone();
        assert_eq!(machine.run(async move { block.read(0, 512).await }).unwrap().len(), 512);
    }
}

#[test]
fn a_queue_hands_every_chain_back_whatever_the_order() {
    for seed in 0..100 {
        let mut random = Random(seed);
        let memory = QueueMemory::allocate(8);
        let mut device = DeviceQueue::new(memory.entry());
        let mut queue: Queue<u64, 2> = Queue::new("test", memory);
        let (mut posted, mut returned, mut held) = (0, 0, Vec::new());
        for _ in 0..500 {
            let parts = [
                Part { buffer: 0, range: 2..4, device_writes: false },
                Part { buffer: 1, range: 0..random.below(3), device_writes: true },
            ];
            let buffers = [DmaBuffer::copy_of(&[1, 2, 3, 4]), DmaBuffer::zeroed(3)];
            posted += u64::from(queue.submit(buffers, &parts, posted).is_ok());
            while let Some(chain) = device.pop() {
                assert_eq!(chain.1[0].read(), [3, 4]);
                held.push(chain);
            }
            while !held.is_empty() && random.one_in(2) {
                let (head, segments) = held.swap_remove(random.below(held.len()));
                let len = segments.get(1).map_or(0, |segment| {
                    segment.write(&vec![9; segment.len]);
                    segment.len
                });
                // The device may claim to have written any number of bytes.
                device.push_used(
                    u32::from(head),
                    if random.one_in(2) { len as u32 } else { u32::MAX },
                );
            }
            while let Some(used) = queue.pop_used() {
                assert!(used.len <= 2 && used.buffers[1][..used.len].iter().all(|b| *b == 9));
                assert_eq!(used.buffers[0][..], [1, 2, 3, 4]);
                returned += 1;
            }
        }
        assert!(posted > 100, "seed {seed}");
        assert!(posted - returned <= 8, "seed {seed}: {posted} posted, {returned} returned");
        let taken = 8 - queue.free_descriptors() as u64;
        assert!(taken <= 2 * (posted - returned), "seed {seed}");
    }
}

#[test]
#[should_panic(expected = "test: the device used descriptor 3, which is not in flight")]
fn a_used_id_that_is_not_in_flight_is_a_panic_with_the_queues_name() {
    let memory = QueueMemory::allocate(4);
    let mut device = DeviceQueue::new(memory.entry());
    let mut queue: Queue<(), 1> = Queue::new("test", memory);
    let part = Part { buffer: 0, range: 0..1, device_writes: true };
    queue.submit([DmaBuffer::zeroed(1)], &[part], ()).unwrap();
    device.push_used(3, 0);
    queue.pop_used();
}

#[test]
#[should_panic(expected = "which is not in flight")]
fn a_used_id_outside_the_queue_is_a_panic_too() {
    let memory = QueueMemory::allocate(4);
    let mut device = DeviceQueue::new(memory.entry());
    let mut queue: Queue<(), 1> = Queue::new("test", memory);
    device.push_used(u32::MAX, 0);
    queue.pop_used();
}
