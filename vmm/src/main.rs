//! The command `vmm`: one process, one VM.
#![forbid(unsafe_code)]

use std::io::Read;
use std::process::ExitCode;

use abi::exit_code;
use abi::layout::{PAGE_BYTES, RAM_BYTES_MAX, RAM_BYTES_MIN};
use spec::size::Size;
use spec::vm::{VERSION, VmConfig};
use vmm::cli::{self, Cache, Command, Run, Source};
use vmm::launch::{LaunchError, Phases, launch};
use vmm::process::{Inherited, exit_now};
use vmm::vm::{Outcome, Vm};
use vmm::{host, kvm, output};
use zeroize::Zeroizing;

/// The most bytes that a configuration may have.
const CONFIG_BYTES_MAX: u64 = 1 << 20;

fn main() -> ExitCode {
    let code = match cli::parse(std::env::args_os().skip(1)) {
        Ok(Command::Help) => print(cli::HELP),
        Ok(Command::Version) => print(concat!("vmm ", env!("CARGO_PKG_VERSION"))),
        Ok(Command::Probe) => probe(),
        Ok(Command::Run(run)) => start(&run),
        Err(message) => refuse(&message),
    };
    // The exit codes are all below 128.
    ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX))
}

fn print(text: &str) -> i32 {
    output::guest_log(text.as_bytes());
    output::guest_log(b"\n");
    0
}

fn refuse(message: &str) -> i32 {
    output::message(message);
    exit_code::BAD_SPEC
}

fn probe() -> i32 {
    let host = kvm::open().map_err(host::ProbeError::from).and_then(|kvm| host::Host::probe(&kvm));
    match host {
        Ok(host) => print(&format!(
            "{{\"kvm\":\"{}\",\"tsc_khz\":{},\"cpuid_entries\":{}}}",
            host.kind.name(),
            host.tsc_khz,
            host.cpuid.len()
        )),
        Err(error) => {
            output::message(&error.to_string());
            exit_code::HOST_CANNOT
        }
    }
}

fn start(run: &Run) -> i32 {
    let mut inherited = Inherited::default();
    let config = match config(run, &mut inherited) {
        Ok(config) => config,
        Err(message) => return refuse(&message),
    };
    let cache = match &run.cache {
        Cache::Default => host::default_cache(),
        Cache::None => None,
        Cache::File(path) => Some(path.clone()),
    };
    match launch(&config, &mut inherited, cache.as_deref()) {
        Ok((mut vm, phases)) => {
            drop(config);
            let outcome = vm.run();
            if run.stats {
                print_stats(&vm, &phases);
            }
            report(&outcome);
            // With the VM still in place: the kernel takes it apart, and the sandbox forbids
            // closing anything.
            exit_now(outcome.exit_code())
        }
        Err(error) => {
            output::message(&error.to_string());
            exit_code_of(&error)
        }
    }
}

fn exit_code_of(error: &LaunchError) -> i32 {
    if error.is_callers_fault() { exit_code::BAD_SPEC } else { exit_code::HOST_CANNOT }
}

fn report(outcome: &Outcome) {
    match outcome {
        Outcome::Exited(_) | Outcome::Stopped => {}
        Outcome::Crashed(text) | Outcome::HostFailed(text) => output::message(text),
        Outcome::ContractBroken(text) => {
            output::message(&format!("the guest broke the device contract: {text}"));
        }
    }
}

fn print_stats(vm: &Vm, phases: &Phases) {
    let exits = vm.exits;
    let phases: Vec<String> =
        phases.iter().map(|(phase, ns)| format!("\"{phase}\":{}", ns / 1000)).collect();
    output::message(&format!(
        "{{\"exits\":{{\"ring\":{},\"wait\":{},\"other\":{},\"interrupted\":{}}},\"start_us\":{{{}}}}}",
        exits.ring,
        exits.wait,
        exits.other,
        exits.interrupted,
        phases.join(",")
    ));
}

fn config(run: &Run, inherited: &mut Inherited) -> Result<VmConfig, String> {
    let config = match &run.source {
        Source::Descriptor(number) => {
            let file = std::fs::File::from(
                inherited.take(*number).map_err(|error| format!("--config-fd: {error}"))?,
            );
            // It holds keys: one buffer, so that growing leaves no copy behind. A file says how large
            // it is; a pipe doesn't. (Erasing a buffer touches all of it, so no larger than needed.)
            let len = file.metadata().map_or(0, |metadata| metadata.len());
            let room = if len == 0 { CONFIG_BYTES_MAX } else { len.min(CONFIG_BYTES_MAX) + 1 };
            let mut text = Zeroizing::new(Vec::with_capacity(room as usize));
            let read = file.take(CONFIG_BYTES_MAX).read_to_end(&mut text);
            read.map_err(|error| format!("--config-fd: {error}"))?;
            serde_json::from_slice(&text).map_err(|error| format!("--config-fd: {error}"))?
        }
        Source::Image { image, args, env, memory } => VmConfig {
            version: VERSION,
            name: image.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            image: image.clone(),
            memory_bytes: memory.0,
            args: args.clone(),
            env: env.clone(),
            block: Vec::new(),
            net: Vec::new(),
            die_with_parent: false,
            keeper_fd: run.keeper_fd,
        },
    };
    if config.version != VERSION {
        return Err(format!("configuration version {}, expected {VERSION}", config.version));
    }
    let memory = config.memory_bytes;
    if !(RAM_BYTES_MIN..=RAM_BYTES_MAX).contains(&memory) || !memory.is_multiple_of(PAGE_BYTES) {
        return Err(format!(
            "memory {}: expected {} to {}, a multiple of {PAGE_BYTES} bytes",
            Size(memory),
            Size(RAM_BYTES_MIN),
            Size(RAM_BYTES_MAX)
        ));
    }
    Ok(config)
}
