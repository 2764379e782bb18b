//! From a checked configuration to a VM that is ready to run: everything is opened here, then the
//! process confines itself.

use std::fs::File;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::net::UdpSocket;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use abi::layout::BOOT_PAGE;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::process::{Signal, set_parent_process_death_signal};
use rustix::rand::{GetRandomFlags, getrandom};
use spec::vm::VmConfig;

use crate::alarm::Alarm;
use crate::backends::{CardSockets, NetFacts, addresses_variable, open_block, open_net};
use crate::boot::{BootDevice, BootError, BootInfo, Image, RamPlan, write_boot_page};
use crate::devices::{Devices, NamedDevice, describe};
use crate::host::{Host, ProbeError};
use crate::kvm::{self, KvmError, Machine, StopSignal};
use crate::memory::{Memory, MemoryError};
use crate::process::{Inherited, allocate_by_brk_only};
use crate::sandbox::{self, Needs, SandboxError};
use crate::vm::{ExitCounts, Vm, now_ns};
use crate::volumes::{DiskError, DiskSockets, has_directories, has_servers};
use crate::{paging, trampoline};

/// The heap that a crash report is sure to find: less than what `malloc` gives back when it is
/// freed.
const REPORT_BYTES: usize = 64 << 10;

/// Why a VM can't be started.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The configuration names something that isn't there or isn't right.
    #[error("{field}: {reason}")]
    Config {
        /// The field of the configuration.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A volume can't be opened.
    #[error("{field}: {source}")]
    Volume {
        /// The volume.
        field: String,
        /// Why not.
        source: Box<DiskError>,
    },
    /// The image is no guest, or doesn't fit.
    #[error("image {path}: {source}")]
    Image {
        /// The image's path.
        path: String,
        /// What is wrong with it.
        source: BootError,
    },
    /// Arguments, environment or devices don't fit the boot page.
    #[error(transparent)]
    Boot(BootError),
    /// No KVM.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// An unknown KVM.
    #[error(transparent)]
    Probe(#[from] ProbeError),
    /// No memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// No sandbox.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// The system lacks something else.
    #[error("{what}: {source}")]
    System {
        /// What was wanted.
        what: &'static str,
        /// The system's reason.
        source: std::io::Error,
    },
}

impl LaunchError {
    /// Whether the caller asked for something wrong (as opposed to the host lacking something).
    #[must_use]
    pub fn is_callers_fault(&self) -> bool {
        matches!(
            self,
            Self::Config { .. } | Self::Volume { .. } | Self::Image { .. } | Self::Boot(_)
        )
    }
}

/// Names what the system refused.
fn system(what: &'static str) -> impl FnOnce(std::io::Error) -> LaunchError {
    move |source| LaunchError::System { what, source }
}

/// Where the time of a start went: (phase, nanoseconds).
pub type Phases = Vec<(&'static str, u64)>;

struct Stopwatch {
    phases: Phases,
    last_ns: u64,
}

impl Stopwatch {
    fn lap(&mut self, phase: &'static str) {
        let now = now_ns();
        self.phases.push((phase, now - self.last_ns));
        self.last_ns = now;
    }
}

/// Builds the VM that `config` describes and confines this process to running it.
///
/// Only for a process that has opened nothing yet: it closes every descriptor that it was not told of.
/// `inherited` hands out the ones that the configuration names; `cache` is where the answer
/// of the host probe is kept.
///
/// # Errors
/// Nothing was started; the error says what to do.
pub fn launch(
    config: &VmConfig,
    inherited: &mut Inherited,
    cache: Option<&Path>,
) -> Result<(Vm, Phases), LaunchError> {
    let mut watch = Stopwatch { phases: Vec::new(), last_ns: now_ns() };
    if config.die_with_parent {
        set_parent_process_death_signal(Some(Signal::KILL))
            .map_err(|error| system("die_with_parent")(error.into()))?;
    }
    // Before anything is opened: a wrong number must not name a descriptor of our own.
    let sockets = take_sockets(config, inherited)?;
    let disk_sockets = take_disk_sockets(config, inherited)?;
    let keeper = config.keeper_fd.map(|number| inherited.take(number)).transpose();
    let keeper = keeper.map_err(system("keeper_fd"))?;
    inherited.close_others().map_err(system("inherited descriptors"))?;
    let path = config.image.display().to_string();
    let image_error = |source| LaunchError::Image { path: path.clone(), source };
    let file = File::open(&config.image).map_err(|error| image_error(error.into()))?;
    let mut image = Image::read(file, config.memory_bytes).map_err(image_error)?;
    watch.lap("open image");
    let kvm = kvm::open()?;
    let host = Host::load(&kvm, cache)?;
    watch.lap("open KVM");
    // What a device allocates now it may free behind the sandbox, where there is no `munmap`.
    allocate_by_brk_only().map_err(system("malloc"))?;
    let (devices, needs) = open_devices(config, sockets, disk_sockets)?;
    let described: Vec<BootDevice> =
        devices.iter().map(|named| describe(named.device.as_ref())).collect();
    let queue_sizes = devices.iter().flat_map(|named| named.device.queue_sizes().to_vec());
    let plan = RamPlan::new(&image.elf, config.memory_bytes, queue_sizes).map_err(image_error)?;
    watch.lap("open devices");

    let memory = Memory::new(config.memory_bytes, image.elf.writable_start)?;
    image.load(&memory.image).map_err(image_error)?;
    watch.lap("load image");
    trampoline::write(&memory.system);
    let tables =
        paging::build(&memory.system, &image.elf, plan.stack_guard, plan.ram_end, host.kind);
    tables.map_err(|error| LaunchError::Config {
        field: "memory".to_owned(),
        reason: error.to_string(),
    })?;
    watch.lap("page tables");
    let mut machine = Machine::new(&kvm, &memory)?;
    if let Some(keeper) = keeper {
        hand_over(&machine, &keeper).map_err(system("keeper_fd"))?;
    }
    watch.lap("create VM");
    machine.set_up(&host.cpuid, host.kind, image.elf.entry, plan.stack_top, BOOT_PAGE)?;
    watch.lap("set up vCPU");
    let devices = Devices::attach(devices, &plan.queues, &memory.ram).map_err(|error| {
        LaunchError::Config { field: "devices".to_owned(), reason: error.to_string() }
    })?;
    let stop = StopSignal::install().map_err(system("signal handlers"))?;
    let mut env = config.env.clone();
    env.extend(addresses_variable(&config.net));
    let info = boot_info(config, &env, &described, host.tsc_khz)?;
    write_boot_page(&memory.system, &plan, &info).map_err(LaunchError::Boot)?;
    watch.lap("boot page");
    // Nothing may be closed behind the sandbox but by the end of the process.
    drop(kvm);
    // A VM without devices may not ask for memory any more; a crash report needs a little.
    drop(Vec::<u8>::with_capacity(std::hint::black_box(REPORT_BYTES)));
    sandbox::enter(needs)?;
    watch.lap("sandbox");
    let (exits, alarm) = (ExitCounts::default(), Alarm::default());
    let vm = Vm { machine, memory, devices, image, stop, exits, alarm };
    Ok((vm, watch.phases))
}

/// Sends the VM's descriptors to its keeper.
fn hand_over(machine: &Machine, keeper: &OwnedFd) -> std::io::Result<()> {
    let descriptors = machine.descriptors();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut message = SendAncillaryBuffer::new(&mut space);
    if !message.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(std::io::ErrorKind::OutOfMemory.into());
    }
    sendmsg(keeper, &[IoSlice::new(b"vm")], &mut message, SendFlags::NOSIGNAL)?;
    Ok(())
}

fn boot_info<'a>(
    config: &'a VmConfig,
    env: &'a [(String, String)],
    devices: &'a [BootDevice],
    tsc_khz: u32,
) -> Result<BootInfo<'a>, LaunchError> {
    Ok(BootInfo {
        tsc_khz,
        wall_clock_ns: unix_time_ns(),
        random_seed: random()?,
        args: &config.args,
        env,
        devices,
    })
}

/// Fresh random bytes from the kernel.
///
/// # Errors
/// It has none.
pub(crate) fn random_bytes<const LEN: usize>() -> std::io::Result<[u8; LEN]> {
    const { assert!(LEN <= 256, "up to 256 bytes come whole or not at all") };
    let mut bytes = [0; LEN];
    match getrandom(&mut bytes, GetRandomFlags::empty()) {
        Ok(len) if len == LEN => Ok(bytes),
        Ok(_) => Err(std::io::ErrorKind::UnexpectedEof.into()),
        Err(error) => Err(error.into()),
    }
}

fn random<const LEN: usize>() -> Result<[u8; LEN], LaunchError> {
    random_bytes().map_err(system("random bytes"))
}

/// The sockets of the network cards.
fn take_sockets(
    config: &VmConfig,
    inherited: &mut Inherited,
) -> Result<Vec<CardSockets>, LaunchError> {
    let mut sockets = Vec::new();
    for (number, card) in config.net.iter().enumerate() {
        let mut take = |name: &str, fd: i32| {
            inherited.take(fd).map_err(|error| LaunchError::Config {
                field: format!("net[{number}].{name}"),
                reason: error.to_string(),
            })
        };
        let datagrams = UdpSocket::from(take("socket_fd", card.socket_fd)?);
        let uplink = card.uplink_fd.map(|fd| take("uplink_fd", fd)).transpose()?;
        sockets.push(CardSockets { datagrams, uplink });
    }
    Ok(sockets)
}

/// The sockets of the disks that have shard servers.
fn take_disk_sockets(
    config: &VmConfig,
    inherited: &mut Inherited,
) -> Result<Vec<DiskSockets>, LaunchError> {
    let mut sockets = Vec::new();
    for (number, disk) in config.block.iter().enumerate() {
        let taken = DiskSockets::take(disk, inherited);
        sockets.push(taken.map_err(|error| LaunchError::Config {
            field: format!("block[{number}]"),
            reason: error.to_string(),
        })?);
    }
    Ok(sockets)
}

fn open_devices(
    config: &VmConfig,
    sockets: Vec<CardSockets>,
    disk_sockets: Vec<DiskSockets>,
) -> Result<(Vec<NamedDevice>, Needs), LaunchError> {
    let mut devices = Vec::new();
    for (number, (disk, sockets)) in config.block.iter().zip(disk_sockets).enumerate() {
        devices.push(open_block(number, disk, sockets)?);
    }
    for (number, (card, sockets)) in config.net.iter().zip(sockets).enumerate() {
        let unix_time_at_zero_ns = unix_time_ns().saturating_sub(now_ns());
        let facts = NetFacts { seed: random()?, unix_time_at_zero_ns };
        devices.push(open_net(number, card, sockets, facts)?);
    }
    let needs = Needs {
        block: config.block.iter().any(has_directories),
        servers: config.block.iter().any(has_servers),
        net: !config.net.is_empty(),
        uplink: config.net.iter().any(|card| card.uplink_fd.is_some()),
    };
    Ok((devices, needs))
}

#[expect(clippy::disallowed_methods, reason = "the VMM is the edge: the guest's clock starts here")]
fn unix_time_ns() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}
