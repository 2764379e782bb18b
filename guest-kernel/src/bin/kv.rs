//! The `kv` image: serves a durable key-value store over HTTP from its own disk.
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

extern crate alloc;

use guest_kernel::machine::Machine;
use guest_kernel::programs::kv::server::{Server, Settings};
use guest_kernel::programs::kv::store::{Limits, Store};
use guest_kernel::programs::options::Options;
use guest_kernel::{entry, println};

guest_kernel::main!(kv);

/// The exit status for a wrong command line or a machine without the devices it needs.
const BAD_USAGE: u32 = 2;
/// The exit status for a disk that can't be opened or a port that can't be listened on.
const FAILED: u32 = 1;

fn kv() -> u32 {
    let port = Options::parse(entry::args(), &["port"]).and_then(|o| o.value("port", 8080));
    let port = match port {
        Ok(port) => port,
        Err(error) => {
            println!("kv: {error}");
            return BAD_USAGE;
        }
    };
    let machine = Machine::take();
    let (Some(disk), Some(net)) = (machine.block.first().cloned(), machine.net.first().cloned())
    else {
        println!("kv: a disk and a network card are needed");
        return BAD_USAGE;
    };
    // An eighth of the heap each for keys, cached values and bodies; connections take 128 KiB.
    let share = (entry::boot_page().heap_len / 8) as usize;
    let limits = Limits { index_bytes_max: share, cache_bytes_max: share };
    let settings = Settings {
        port,
        connections_max: (share / (128 << 10)).clamp(4, 256),
        body_bytes_max: share.max(1 << 20),
    };
    let (executor, store_id) = (machine.executor.clone(), machine.seed());
    machine.block_on(async move {
        let store = match Store::open(disk, limits, store_id).await {
            Ok(store) => store,
            Err(error) => {
                println!("kv: {error}");
                return FAILED;
            }
        };
        println!("kv: {} keys, listening on port {port}", store.usage().keys);
        drop(executor.spawn(store.clone().run()));
        match Server::new(executor, store, settings, entry::exits).run(net).await {
            Ok(()) => 0,
            Err(error) => {
                println!("kv: {error}");
                FAILED
            }
        }
    })
}
