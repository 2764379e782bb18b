//! The `load` image: fills, checks and times a `kv`.
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

extern crate alloc;

use guest_kernel::machine::Machine;
use guest_kernel::net::names::{ENV_PEERS, resolve};
use guest_kernel::programs::load::{Settings, run};
use guest_kernel::programs::options::{OptionError, Options};
use guest_kernel::{entry, println};

guest_kernel::main!(load);

/// The exit status for a wrong command line or a machine without a network card.
const BAD_USAGE: u32 = 2;
/// The exit status if a value was lost, wrong or never acknowledged.
const FAILED: u32 = 1;
const OPTIONS: [&str; 7] =
    ["target", "count", "value-bytes", "connections", "seed", "timed", "patience-s"];

fn load() -> u32 {
    let settings = match settings() {
        Ok(settings) => settings,
        Err(error) => {
            println!("load: {error}");
            return BAD_USAGE;
        }
    };
    let machine = Machine::take();
    let Some(net) = machine.net.first().cloned() else {
        println!("load: a network card is needed");
        return BAD_USAGE;
    };
    println!(
        "load: {} values for {}",
        settings.count,
        core::net::SocketAddr::from(settings.target)
    );
    let executor = machine.executor.clone();
    let report = machine.block_on(run(executor, net, settings, entry::exits, |line| {
        guest_kernel::log::print(line);
    }));
    println!("load: result {report}");
    if report.is_good(&settings) { 0 } else { FAILED }
}

fn settings() -> Result<Settings, alloc::string::String> {
    let text = |error: OptionError<'_>| alloc::format!("{error}");
    let options = Options::parse(entry::args(), &OPTIONS).map_err(text)?;
    let target = options.text("target").ok_or(OptionError::Missing("target")).map_err(text)?;
    let peers = entry::env(ENV_PEERS).unwrap_or("");
    let target = resolve(target, peers).map_err(|error| alloc::format!("--target: {error}"))?;
    let patience_s: u64 = options.value("patience-s", 60).map_err(text)?;
    Ok(Settings {
        target,
        count: options.value("count", 1_000).map_err(text)?,
        value_bytes: options.value("value-bytes", 1_024).map_err(text)?,
        connections: options.value("connections", 1).map_err(text)?,
        seed: options.value("seed", 1).map_err(text)?,
        timed: options.value("timed", 1_000).map_err(text)?,
        patience_ns: patience_s.saturating_mul(1_000_000_000),
    })
}
