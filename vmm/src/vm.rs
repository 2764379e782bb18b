//! One VM from start to end: build, confine, run, stop.
//!
//! ```text
//!            int $4                    work or deadline
//!  GUEST ──────────────► SERVING ◄───────────────────── WAITING
//!    ▲                   │  │  │ nothing to report, Wait   ▲
//!    └── re-enter ───────┘  │  └───────────────────────────┘
//!                           ▼ Exit, Panic, a fault, a broken ring, SIGTERM
//!                          END
//! ```
//! Everything happens on one thread: devices are served while the vCPU is stopped, so what they
//! write to guest memory is published only at an exit (the record/replay rule).

use std::mem::offset_of;

use abi::layout::{DOORBELL_PAGE, LOG_AREA, LOG_BYTES, PAGE_BYTES, SYSCALL_STUB, UPCALL_AREA};
use abi::{Call, DoorbellPage, SavedRegisters, UPCALL_TIMER, UpcallArea, WAIT_FOREVER, exit_code};
use kvm_bindings::kvm_regs;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::{ClockId, Timespec, clock_gettime};
use vm_memory::{ByteValued, Bytes, GuestAddress};

use crate::alarm::Alarm;
use crate::boot::Image;
use crate::crash;
use crate::devices::{DeviceFailure, Devices};
use crate::kvm::{AlarmTimer, Exit, KvmError, Machine, StopSignal};
use crate::memory::Memory;
use crate::output;
use crate::trampoline::GateFrame;

/// How long until an upcall is tried again that came while the guest was in a gate.
const UPCALL_RETRY_NS: u64 = 100_000;
/// The reason of a crash by `syscall`, whichever way the kind of KVM reports it.
const NO_SYSTEM_CALLS: &str = "system call: this guest kernel serves none";
/// Bytes below `rsp` that belong to the interrupted function (System V ABI).
const RED_ZONE: u64 = 128;

/// How a VM ended.
#[derive(Debug)]
pub enum Outcome {
    /// The guest ended itself.
    Exited(u32),
    /// It was asked to stop.
    Stopped,
    /// The guest panicked or faulted: the report.
    Crashed(String),
    /// The guest broke the contract: the device or call, and the rule.
    ContractBroken(String),
    /// The host failed under it.
    HostFailed(String),
}

impl Outcome {
    /// The process exit code.
    #[must_use]
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::Exited(status) => i32::try_from(*status)
                .map_or(exit_code::WORKLOAD_MAX, |status| status.min(exit_code::WORKLOAD_MAX)),
            Self::Stopped => 0,
            Self::Crashed(_) => exit_code::GUEST_CRASHED,
            Self::ContractBroken(_) => exit_code::CONTRACT_BROKEN,
            Self::HostFailed(_) => exit_code::HOST_CANNOT,
        }
    }
}

/// How often the vCPU left the guest, by reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ExitCounts {
    /// Calls that serve the queues and return at once.
    pub ring: u64,
    /// Calls that wait.
    pub wait: u64,
    /// Calls that only write the log out, and all others.
    pub other: u64,
    /// Signals, which are no exits of the guest's making.
    pub interrupted: u64,
}

/// A VM that is ready to run.
pub struct Vm {
    /// Dropped first: it refers to `memory`.
    pub machine: Machine,
    /// Its memory.
    pub memory: Memory,
    /// Its devices.
    pub devices: Devices,
    /// The image, for crash reports.
    pub image: Image,
    /// Becomes readable when the process is asked to stop.
    pub stop: std::os::fd::BorrowedFd<'static>,
    /// The exits so far.
    pub exits: ExitCounts,
    /// What takes the vCPU out of the guest.
    pub alarm: Alarm,
}

impl Vm {
    /// Runs the guest to its end and closes the devices.
    pub fn run(&mut self) -> Outcome {
        self.machine.stop_on_signal();
        self.attend(now_ns());
        let outcome = loop {
            match self.machine.run() {
                Ok(exit) => {
                    if let Some(outcome) = self.handle(exit) {
                        break outcome;
                    }
                }
                Err(error) => break Outcome::HostFailed(error.to_string()),
            }
        };
        match self.devices.close() {
            Ok(()) => outcome,
            Err(failure) if outcome.exit_code() == 0 => Outcome::HostFailed(failure.to_string()),
            Err(failure) => {
                output::message(&failure.to_string());
                outcome
            }
        }
    }

    /// Serves one exit; the outcome if it was the last.
    fn handle(&mut self, exit: Exit) -> Option<Outcome> {
        match exit {
            Exit::Call(number) => self.serve(number),
            Exit::Interrupted => self.interrupted(),
            Exit::Exception(vector) => Some(self.fault(vector)),
            Exit::Syscall => Some(Outcome::Crashed(self.report(NO_SYSTEM_CALLS, None, false))),
            Exit::Mmio { address } => Some(Outcome::Crashed(self.report(
                &format!("access to guest-physical address {address:#x}, where nothing is"),
                None,
                false,
            ))),
            Exit::Shutdown => Some(Outcome::Crashed("guest crashed: triple fault".to_owned())),
            Exit::Unexpected(reason) => Some(Outcome::Crashed(format!(
                "guest crashed: KVM left it with exit reason {reason}"
            ))),
        }
    }

    fn serve(&mut self, number: u32) -> Option<Outcome> {
        let Some(call) = Call::from_number(number) else {
            return Some(Outcome::ContractBroken(format!("doorbell: unknown call {number}")));
        };
        if let Err(outcome) = self.drain_log() {
            return Some(outcome);
        }
        let counter = match call {
            Call::Ring => &mut self.exits.ring,
            Call::Wait => &mut self.exits.wait,
            _ => &mut self.exits.other,
        };
        *counter += 1;
        let end = match call {
            Call::Ring => self.serve_devices(0),
            Call::Wait => self.serve_devices(self.doorbell(offset_of!(DoorbellPage, timeout_ns))),
            Call::Log => None,
            Call::Exit => Some(self.guest_exit()),
            Call::Panic => {
                let reason = "panic (its message is in the log)";
                Some(Outcome::Crashed(self.report(reason, None, true)))
            }
            Call::ArmUpcall => {
                let in_ns = self.upcall(offset_of!(UpcallArea, timer_ns));
                let now_ns = now_ns();
                let at_ns = Some(now_ns.saturating_add(in_ns)).filter(|_| in_ns > 0);
                self.alarm.set_upcall(at_ns, now_ns);
                None
            }
        };
        if end.is_none() {
            self.set_doorbell(offset_of!(DoorbellPage, exits), self.exit_count());
        }
        end
    }

    fn guest_exit(&self) -> Outcome {
        let status: u32 = self.doorbell(offset_of!(DoorbellPage, status));
        let highest = exit_code::WORKLOAD_MAX;
        if status > highest.unsigned_abs() {
            output::message(&format!(
                "exit status {status} is out of range 0 to {highest}: reported as the highest"
            ));
        }
        Outcome::Exited(status)
    }

    /// The exits of the guest's making so far.
    fn exit_count(&self) -> u64 {
        self.exits.ring + self.exits.wait + self.exits.other
    }

    /// Serves the queues until something was used, or `timeout_ns` has passed.
    fn serve_devices(&mut self, timeout_ns: u64) -> Option<Outcome> {
        self.devices.accept(self.doorbell(offset_of!(DoorbellPage, accepted)));
        let mut now = now_ns();
        let deadline =
            if timeout_ns == WAIT_FOREVER { None } else { Some(now.saturating_add(timeout_ns)) };
        loop {
            let progress = match self.devices.process(&self.memory.ram, now) {
                Ok(progress) => progress,
                Err(failure) => return Some(device_outcome(&failure)),
            };
            let expired = deadline.is_some_and(|deadline| now >= deadline);
            if progress.used_queues != 0 || expired {
                let events = u64::from(progress.used_queues);
                self.set_doorbell(offset_of!(DoorbellPage, events), events);
                return None;
            }
            if StopSignal::requested() {
                return Some(Outcome::Stopped);
            }
            let until = [deadline, progress.deadline_ns].into_iter().flatten().min();
            let timeout = until.map(|until| timespec(until.saturating_sub(now)));
            let mut fds = self.devices.poll_fds();
            fds.push(PollFd::new(&self.stop, PollFlags::IN));
            match poll(&mut fds, timeout.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => now = now_ns(),
                Err(error) => return Some(Outcome::HostFailed(format!("cannot wait: {error}"))),
            }
        }
    }

    /// Lets the devices do what can't wait for the guest.
    fn attend(&mut self, now_ns: u64) {
        let again_ns = self.devices.attend(now_ns);
        self.alarm.set_attend(again_ns, now_ns);
    }

    /// A signal took the vCPU out: stop, or do what the alarm was set for.
    fn interrupted(&mut self) -> Option<Outcome> {
        self.exits.interrupted += 1;
        self.machine.clear_interrupt();
        if StopSignal::requested() {
            return Some(Outcome::Stopped);
        }
        if AlarmTimer::take_due() {
            let now_ns = now_ns();
            let due = self.alarm.fired(now_ns);
            if due.attend {
                self.attend(now_ns);
            }
            if due.upcall
                && let Err(error) = self.deliver_upcall()
            {
                return Some(Outcome::HostFailed(error.to_string()));
            }
        }
        None
    }

    /// Saves the registers in the upcall area and sends the guest to its entry.
    fn deliver_upcall(&mut self) -> Result<(), KvmError> {
        let entry: u64 = self.upcall(offset_of!(UpcallArea, entry));
        let pending: u64 = self.upcall(offset_of!(UpcallArea, pending));
        if entry == 0 {
            return Ok(());
        }
        let mut regs = self.machine.regs()?;
        // On software KVM the `syscall` stub runs at CPL 3, so its page is looked at as well.
        let in_stub = (SYSCALL_STUB..SYSCALL_STUB + PAGE_BYTES).contains(&regs.rip);
        if pending != 0 || in_stub || !self.machine.is_in_guest_code()? {
            let now_ns = now_ns();
            self.alarm.set_upcall(Some(now_ns.saturating_add(UPCALL_RETRY_NS)), now_ns);
            return Ok(());
        }
        let saved = saved_registers(&regs);
        let at = GuestAddress(UPCALL_AREA + offset_of!(UpcallArea, saved) as u64);
        for (register, offset) in saved.into_iter().zip((0u64..).step_by(8)) {
            self.put_system(at.0 + offset, register);
        }
        self.put_system(UPCALL_AREA + offset_of!(UpcallArea, pending) as u64, UPCALL_TIMER);
        // As after a call: the return address makes `rsp` 8 modulo 16.
        regs.rsp = (regs.rsp.wrapping_sub(RED_ZONE) & !15).wrapping_sub(8);
        regs.rip = entry;
        self.machine.set_regs(&regs)
    }

    fn fault(&mut self, vector: u16) -> Outcome {
        let frame = GateFrame::read(&self.memory.system, Some(vector));
        let in_stub = (SYSCALL_STUB..SYSCALL_STUB + PAGE_BYTES).contains(&frame.rip);
        let text = if in_stub {
            NO_SYSTEM_CALLS.to_owned()
        } else {
            let mut text = crash::exception_name(vector).to_owned();
            if let Some(code) = frame.error_code {
                text += &format!(", error code {code:#x}");
            }
            if vector == 14
                && let Ok(address) = self.machine.fault_address()
            {
                text += &format!(", address {address:#x}");
            }
            text
        };
        Outcome::Crashed(self.report(&text, Some(vector), true))
    }

    /// The crash report. `in_gate`: the vCPU is in a gate, so the guest's own `rip`, `rsp` and
    /// flags are in the gate's frame.
    fn report(&mut self, reason: &str, vector: Option<u16>, in_gate: bool) -> String {
        if let Err(outcome) = self.drain_log() {
            output::message(&format!("the log was lost: {outcome:?}"));
        }
        let mut regs = match self.machine.regs() {
            Ok(regs) => regs,
            Err(error) => return format!("guest crashed: {reason} (no registers: {error})"),
        };
        if in_gate {
            let frame = GateFrame::read(&self.memory.system, vector);
            (regs.rip, regs.rsp, regs.rflags) = (frame.rip, frame.rsp, frame.rflags);
        }
        let frames = crash::backtrace(&self.memory.image, &self.image.elf, regs.rip, regs.rbp);
        let mut text = format!("guest crashed: {reason}{}", crash::registers(&regs));
        let names = crash::symbolise(&self.image.file, &frames);
        for (number, (address, name)) in frames.iter().zip(names).enumerate() {
            text += &format!("\n    #{number:<2} {address:#x} {name}");
        }
        text
    }

    /// Writes out what the guest has logged.
    fn drain_log(&mut self) -> Result<(), Outcome> {
        let at = offset_of!(DoorbellPage, log_len);
        let len: u32 = self.doorbell(at);
        if len == 0 {
            return Ok(());
        }
        if u64::from(len) > LOG_BYTES {
            return Err(Outcome::ContractBroken(format!(
                "doorbell: a log of {len} bytes, of at most {LOG_BYTES}"
            )));
        }
        let mut bytes = [0; LOG_BYTES as usize];
        let (bytes, _) = bytes.split_at_mut(len as usize);
        let read = self.memory.system.read_slice(bytes, GuestAddress(LOG_AREA));
        assert!(read.is_ok(), "the log area lies within the system slot");
        output::guest_log(bytes);
        self.set_doorbell(at, 0u32);
        Ok(())
    }

    fn doorbell<T: ByteValued>(&self, offset: usize) -> T {
        self.get_system(DOORBELL_PAGE + offset as u64)
    }

    fn set_doorbell<T: ByteValued>(&self, offset: usize, value: T) {
        self.put_system(DOORBELL_PAGE + offset as u64, value);
    }

    fn upcall(&self, offset: usize) -> u64 {
        self.get_system(UPCALL_AREA + offset as u64)
    }

    fn get_system<T: ByteValued>(&self, address: u64) -> T {
        let value = self.memory.system.read_obj(GuestAddress(address));
        let Ok(value) = value else { unreachable!("shared pages lie within the system slot") };
        value
    }

    fn put_system<T: ByteValued>(&self, address: u64, value: T) {
        let written = self.memory.system.write_obj(value, GuestAddress(address));
        assert!(written.is_ok(), "shared pages lie within the system slot");
    }
}

/// CLOCK_BOOTTIME in nanoseconds: it counts while the host sleeps, as leases and sessions do.
#[must_use]
pub fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}

fn timespec(ns: u64) -> Timespec {
    Timespec {
        tv_sec: (ns / 1_000_000_000).cast_signed(),
        tv_nsec: (ns % 1_000_000_000).cast_signed(),
    }
}

fn device_outcome(failure: &DeviceFailure) -> Outcome {
    if failure.source.is_guest_fault() {
        Outcome::ContractBroken(failure.to_string())
    } else {
        Outcome::HostFailed(failure.to_string())
    }
}

/// The registers in the order of [`SavedRegisters`], which is that of `struct kvm_regs`.
fn saved_registers(regs: &kvm_regs) -> [u64; size_of::<SavedRegisters>() / 8] {
    [
        regs.rax,
        regs.rbx,
        regs.rcx,
        regs.rdx,
        regs.rsi,
        regs.rdi,
        regs.rsp,
        regs.rbp,
        regs.r8,
        regs.r9,
        regs.r10,
        regs.r11,
        regs.r12,
        regs.r13,
        regs.r14,
        regs.r15,
        regs.rip,
        regs.rflags,
    ]
}
