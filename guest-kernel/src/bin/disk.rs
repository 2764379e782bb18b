//! The `disk` image: measures the first disk, and counts exits. Overwrites what is on it.
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

extern crate alloc;

use alloc::vec;
use alloc::vec::Vec;

use guest_kernel::block::{Block, BlockError};
use guest_kernel::dma::DmaBuffer;
use guest_kernel::machine::Machine;
use guest_kernel::programs::options::Options;
use guest_kernel::task::{Executor, JoinHandle};
use guest_kernel::{entry, println};

guest_kernel::main!(disk);

/// The exit status for a wrong command line or a machine without a disk.
const BAD_USAGE: u32 = 2;
/// The exit status for a disk that refuses a request.
const FAILED: u32 = 1;

/// One measurement.
#[derive(Clone, Copy)]
struct Case {
    name: &'static str,
    depth: u64,
    bytes: u64,
    operation: Operation,
}

#[derive(Clone, Copy)]
enum Operation {
    Read,
    Write,
    /// A write and the flush that makes it durable, as one batch.
    WriteDurable,
}

const CASES: [Case; 8] = [
    Case { name: "write 64 KiB", depth: 32, bytes: 64 << 10, operation: Operation::Write },
    Case { name: "read 64 KiB", depth: 32, bytes: 64 << 10, operation: Operation::Read },
    Case { name: "write 4 KiB", depth: 32, bytes: 4 << 10, operation: Operation::Write },
    Case { name: "read 4 KiB", depth: 32, bytes: 4 << 10, operation: Operation::Read },
    Case { name: "write 4 KiB", depth: 1, bytes: 4 << 10, operation: Operation::Write },
    Case { name: "read 4 KiB", depth: 1, bytes: 4 << 10, operation: Operation::Read },
    Case {
        name: "write 4 KiB, durable",
        depth: 1,
        bytes: 4 << 10,
        operation: Operation::WriteDurable,
    },
    Case {
        name: "write 4 KiB, durable",
        depth: 32,
        bytes: 4 << 10,
        operation: Operation::WriteDurable,
    },
];

fn disk() -> u32 {
    let count = Options::parse(entry::args(), &["count"]).and_then(|o| o.value("count", 1024u64));
    let count = match count {
        Ok(count) => count,
        Err(error) => {
            println!("disk: {error}");
            return BAD_USAGE;
        }
    };
    let machine = Machine::take();
    let Some(disk) = machine.block.first().cloned() else {
        println!("disk: a disk is needed");
        return BAD_USAGE;
    };
    let executor = machine.executor.clone();
    machine.block_on(async move {
        for case in CASES {
            if let Err(error) = measure(&executor, &disk, case, count).await {
                println!("disk: {}: {error}", case.name);
                return FAILED;
            }
        }
        0
    })
}

/// Runs `count` requests with `depth` of them in flight, and prints a line of JSON.
async fn measure(
    executor: &Executor,
    disk: &Block,
    case: Case,
    count: u64,
) -> Result<(), BlockError> {
    let places = disk.capacity_bytes() / case.bytes;
    let (start_ns, start_exits) = (executor.now_ns(), entry::exits());
    let workers: Vec<JoinHandle<Result<(), BlockError>>> = (0..case.depth)
        .map(|worker| {
            let disk = disk.clone();
            executor.spawn(async move {
                let mut buffer = DmaBuffer::zeroed(case.bytes as usize);
                for request in (worker..count).step_by(case.depth as usize) {
                    // A stride that is prime to the number of places visits them all.
                    let offset = request.wrapping_mul(7919) % places * case.bytes;
                    buffer = once(&disk, case, offset, buffer).await?;
                }
                Ok(())
            })
        })
        .collect();
    for worker in workers {
        worker.await?;
    }
    let exits = entry::exits() - start_exits;
    let us = (executor.now_ns() - start_ns) / 1000;
    println!(
        "disk: result {{\"case\":\"{}\",\"depth\":{},\"requests\":{count},\"bytes\":{},\
         \"exits\":{exits},\"us\":{us}}}",
        case.name, case.depth, case.bytes
    );
    Ok(())
}

async fn once(
    disk: &Block,
    case: Case,
    offset: u64,
    buffer: DmaBuffer,
) -> Result<DmaBuffer, BlockError> {
    match case.operation {
        Operation::Read => disk.read(offset, case.bytes as usize).await,
        Operation::Write => disk.write(offset, buffer).await,
        Operation::WriteDurable => {
            disk.write_durable(vec![(offset, buffer)]).await?;
            Ok(DmaBuffer::zeroed(case.bytes as usize))
        }
    }
}
