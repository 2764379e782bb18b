//! The calls to KVM, with the few that are unsafe: memory slots, and stopping a running vCPU from a
//! signal handler.
#![expect(
    unsafe_code,
    reason = "memory slots hand raw addresses to KVM; the stop signal reaches into kvm_run"
)]

use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, Ordering};

use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, KVM_MEM_READONLY, Msrs, kvm_cpuid_entry2, kvm_msr_entry,
    kvm_regs, kvm_segment, kvm_userspace_memory_region, kvm_xcrs,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use rustix::event::{EventfdFlags, eventfd};
use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd, OwnedFd};

use abi::layout::{GDT, IDT, PAGE_TABLES, SYSCALL_STUB, TSS};

use crate::host::KvmKind;
use crate::memory::Memory;
use crate::trampoline::{
    GDT_LIMIT, IDT_LIMIT, PORT_CALL, PORT_EXCEPTION, PORT_SYSCALL, SFMASK, STAR, TSS_LIMIT,
    TSS_SELECTOR, USER_CS, USER_SS, VECTORS,
};

const KVM_API_VERSION: i32 = 12;

const MSR_STAR: u32 = 0xc000_0081;
const MSR_LSTAR: u32 = 0xc000_0082;
const MSR_FMASK: u32 = 0xc000_0084;

const CR0: u64 = 0x8005_0033; // PG AM WP NE ET MP PE
const CR4_PAE_OSFXSR_OSXMMEXCPT: u64 = 0x620;
const CR4_UMIP: u64 = 1 << 11;
const CR4_FSGSBASE: u64 = 1 << 16;
const CR4_OSXSAVE: u64 = 1 << 18;
const CR4_SMEP: u64 = 1 << 20;
const CR4_SMAP: u64 = 1 << 21;
const EFER_SCE_LME_LMA_NXE: u64 = 0xd01;
/// x87, SSE, AVX and AVX-512 state; what the host lacks is masked by CPUID leaf 0xD.
const XCR0_WANTED: u64 = 0xe7;
const RFLAGS_RESERVED: u64 = 1 << 1;

/// Why KVM can't be used.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// `/dev/kvm` is absent.
    #[error(
        "/dev/kvm does not exist: load the module kvm_intel or kvm_amd (modprobe), and enable \
         virtualisation in the firmware"
    )]
    Missing,
    /// `/dev/kvm` may not be opened.
    #[error(
        "/dev/kvm may not be opened: add yourself to its group (sudo usermod -aG kvm $USER) and log in again"
    )]
    NotPermitted,
    /// Not the API that everybody has had since Linux 2.6.22.
    #[error("KVM API version {0}, expected {KVM_API_VERSION}")]
    Version(i32),
    /// A call failed.
    #[error("KVM refused {call}: {source}")]
    Call {
        /// The name of the ioctl.
        call: &'static str,
        /// The system's reason.
        source: kvm_ioctls::Error,
    },
}

/// Names the call that failed.
fn failed(call: &'static str) -> impl Fn(kvm_ioctls::Error) -> KvmError {
    move |source| KvmError::Call { call, source }
}

/// Opens `/dev/kvm`.
///
/// # Errors
/// It is missing, not permitted, or too old.
pub fn open() -> Result<Kvm, KvmError> {
    let kvm = Kvm::new().map_err(|error| match error.errno() {
        libc::ENOENT | libc::ENXIO | libc::ENODEV => KvmError::Missing,
        libc::EACCES | libc::EPERM => KvmError::NotPermitted,
        _ => failed("open")(error),
    })?;
    match kvm.get_api_version() {
        KVM_API_VERSION => Ok(kvm),
        version => Err(KvmError::Version(version)),
    }
}

/// The CPUID table that this host's KVM supports.
///
/// # Errors
/// KVM refuses.
pub fn supported_cpuid(kvm: &Kvm) -> Result<Vec<kvm_cpuid_entry2>, KvmError> {
    let table = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(failed("KVM_GET_SUPPORTED_CPUID"))?;
    Ok(table.as_slice().to_vec())
}

/// A virtual machine: memory slots, no interrupt controller, one vCPU.
#[derive(Debug)]
pub struct Machine {
    // The vCPU before the VM: dropped in this order.
    vcpu: VcpuFd,
    vm: VmFd,
}

/// Why the vCPU left the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// `int $4` with this call number.
    Call(u32),
    /// Exception with this vector.
    Exception(u16),
    /// The `syscall` instruction, on hardware KVM (on software KVM it is an exception).
    Syscall,
    /// A signal came; nothing of the guest's.
    Interrupted,
    /// A triple fault.
    Shutdown,
    /// The guest touched guest-physical memory that doesn't exist.
    Mmio {
        /// The guest-physical address.
        address: u64,
    },
    /// Anything else, with KVM's exit reason.
    Unexpected(u32),
}

impl Machine {
    /// Makes a VM with one vCPU and the slots of `memory`.
    ///
    /// # Errors
    /// KVM refuses.
    pub fn new(kvm: &Kvm, memory: &Memory) -> Result<Self, KvmError> {
        let vm = kvm.create_vm().map_err(failed("KVM_CREATE_VM"))?;
        for (number, slot) in memory.slots().enumerate() {
            let region = kvm_userspace_memory_region {
                slot: number as u32,
                flags: if slot.read_only { KVM_MEM_READONLY } else { 0 },
                guest_phys_addr: slot.guest_address,
                memory_size: slot.len,
                userspace_addr: slot.host_address,
            };
            // SAFETY: the range is a mapping that `memory` owns. The VM dies with `Machine`, which
            // is dropped before `memory` (and, at process exit, with it).
            unsafe { vm.set_user_memory_region(region) }
                .map_err(failed("KVM_SET_USER_MEMORY_REGION"))?;
        }
        let vcpu = vm.create_vcpu(0).map_err(failed("KVM_CREATE_VCPU"))?;
        Ok(Self { vcpu, vm })
    }

    /// The ticks of the guest's TSC per millisecond.
    ///
    /// # Errors
    /// KVM doesn't know.
    pub fn tsc_khz(&self) -> Result<u32, KvmError> {
        self.vcpu.get_tsc_khz().map_err(failed("KVM_GET_TSC_KHZ"))
    }

    /// Sets the vCPU up to start at `rip` with CPL 3, `rsp` and `rdi`, in 64-bit mode over the page
    /// tables and descriptor tables of the system slot.
    ///
    /// # Errors
    /// KVM refuses.
    pub fn set_up(
        &mut self,
        cpuid: &[kvm_cpuid_entry2],
        kind: KvmKind,
        rip: u64,
        rsp: u64,
        rdi: u64,
    ) -> Result<(), KvmError> {
        // Before anything that is checked against it.
        let table = CpuId::from_entries(cpuid)
            .map_err(|_| failed("KVM_SET_CPUID2")(kvm_ioctls::Error::new(libc::E2BIG)))?;
        self.vcpu.set_cpuid2(&table).map_err(failed("KVM_SET_CPUID2"))?;
        let features = CpuFeatures::of(cpuid);
        self.set_sregs(&features, kind)?;
        if features.xcr0 != 0 {
            let mut xcrs = kvm_xcrs { nr_xcrs: 1, ..Default::default() };
            xcrs.xcrs[0].value = features.xcr0;
            self.vcpu.set_xcrs(&xcrs).map_err(failed("KVM_SET_XCRS"))?;
        }
        let msr = |index, data| kvm_msr_entry { index, data, ..Default::default() };
        let entries = [msr(MSR_STAR, STAR), msr(MSR_LSTAR, SYSCALL_STUB), msr(MSR_FMASK, SFMASK)];
        let msrs = Msrs::from_entries(&entries)
            .map_err(|_| failed("KVM_SET_MSRS")(kvm_ioctls::Error::new(libc::E2BIG)))?;
        let set = self.vcpu.set_msrs(&msrs).map_err(failed("KVM_SET_MSRS"))?;
        if set != entries.len() {
            return Err(failed("KVM_SET_MSRS")(kvm_ioctls::Error::new(libc::EINVAL)));
        }
        let regs = kvm_regs { rip, rsp, rdi, rflags: RFLAGS_RESERVED, ..Default::default() };
        self.set_regs(&regs)
    }

    fn set_sregs(&self, features: &CpuFeatures, kind: KvmKind) -> Result<(), KvmError> {
        let mut sregs = self.vcpu.get_sregs().map_err(failed("KVM_GET_SREGS"))?;
        sregs.cr0 = CR0;
        sregs.cr3 = PAGE_TABLES;
        sregs.cr4 = CR4_PAE_OSFXSR_OSXMMEXCPT | features.cr4;
        if kind == KvmKind::Hardware {
            sregs.cr4 |= features.cr4_supervisor;
        }
        sregs.efer = EFER_SCE_LME_LMA_NXE;
        sregs.gdt.base = GDT;
        sregs.gdt.limit = GDT_LIMIT;
        sregs.idt.base = IDT;
        sregs.idt.limit = IDT_LIMIT;
        let flat =
            kvm_segment { limit: u32::MAX, present: 1, dpl: 3, s: 1, g: 1, ..Default::default() };
        sregs.cs = kvm_segment { selector: USER_CS, type_: 11, l: 1, ..flat };
        sregs.ss = kvm_segment { selector: USER_SS, type_: 3, db: 1, ..flat };
        // Null data selectors: in 64-bit mode they need none, and both kinds of KVM read 0.
        let null = kvm_segment { unusable: 1, ..Default::default() };
        (sregs.ds, sregs.es, sregs.fs, sregs.gs) = (null, null, null, null);
        sregs.tr = kvm_segment {
            base: TSS,
            limit: TSS_LIMIT,
            selector: TSS_SELECTOR,
            type_: 11,
            present: 1,
            ..Default::default()
        };
        self.vcpu.set_sregs(&sregs).map_err(failed("KVM_SET_SREGS"))
    }

    /// Runs the guest until it leaves.
    ///
    /// # Errors
    /// KVM refuses to run the vCPU.
    pub fn run(&mut self) -> Result<Exit, KvmError> {
        let exit = match self.vcpu.run() {
            Ok(VcpuExit::IoOut(PORT_CALL, data)) => {
                let mut number = [0; 4];
                number.iter_mut().zip(data).for_each(|(to, from)| *to = *from);
                Exit::Call(u32::from_le_bytes(number))
            }
            Ok(VcpuExit::IoOut(PORT_SYSCALL, _)) => Exit::Syscall,
            Ok(VcpuExit::IoOut(port, _))
                if (PORT_EXCEPTION..PORT_EXCEPTION + VECTORS).contains(&port) =>
            {
                Exit::Exception(port - PORT_EXCEPTION)
            }
            Ok(VcpuExit::MmioRead(address, _) | VcpuExit::MmioWrite(address, _)) => {
                Exit::Mmio { address }
            }
            Ok(VcpuExit::Shutdown) => Exit::Shutdown,
            Ok(VcpuExit::Intr) => Exit::Interrupted,
            Ok(_) => Exit::Unexpected(self.vcpu.get_kvm_run().exit_reason),
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => Exit::Interrupted,
            Err(error) => return Err(failed("KVM_RUN")(error)),
        };
        Ok(exit)
    }

    /// The general registers.
    ///
    /// # Errors
    /// KVM refuses.
    pub fn regs(&self) -> Result<kvm_regs, KvmError> {
        self.vcpu.get_regs().map_err(failed("KVM_GET_REGS"))
    }

    /// Sets the general registers.
    ///
    /// # Errors
    /// KVM refuses.
    pub fn set_regs(&self, regs: &kvm_regs) -> Result<(), KvmError> {
        self.vcpu.set_regs(regs).map_err(failed("KVM_SET_REGS"))
    }

    /// The address of the last page fault.
    ///
    /// # Errors
    /// KVM refuses.
    pub fn fault_address(&self) -> Result<u64, KvmError> {
        self.vcpu.get_sregs().map(|sregs| sregs.cr2).map_err(failed("KVM_GET_SREGS"))
    }

    /// Whether the vCPU is at CPL 3 with no event half delivered, so that its registers are the
    /// guest's own: neither in a gate, nor in the `syscall` stub, nor on the way into one.
    ///
    /// # Errors
    /// KVM refuses.
    pub fn is_in_guest_code(&self) -> Result<bool, KvmError> {
        let sregs = self.vcpu.get_sregs().map_err(failed("KVM_GET_SREGS"))?;
        let events = self.vcpu.get_vcpu_events().map_err(failed("KVM_GET_VCPU_EVENTS"))?;
        let half_delivered = events.exception.injected | events.interrupt.injected;
        Ok(sregs.cs.selector & 3 == 3 && half_delivered == 0)
    }

    /// The vCPU and the VM, for a keeper that holds them until this process is gone.
    #[must_use]
    pub fn descriptors(&self) -> [BorrowedFd<'_>; 2] {
        let borrow = |raw| {
            // SAFETY: `self` owns the descriptor and is borrowed as long.
            unsafe { BorrowedFd::borrow_raw(raw) }
        };
        [borrow(self.vcpu.as_raw_fd()), borrow(self.vm.as_raw_fd())]
    }

    /// Takes the mark of a signal back, before the signal's cause is looked at.
    pub fn clear_interrupt(&mut self) {
        self.vcpu.set_kvm_immediate_exit(0);
    }

    /// Makes [`StopSignal`] and [`AlarmTimer`] reach this vCPU.
    pub fn stop_on_signal(&mut self) {
        KVM_RUN_IMMEDIATE_EXIT
            .store(&raw mut self.vcpu.get_kvm_run().immediate_exit, Ordering::Release);
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        KVM_RUN_IMMEDIATE_EXIT.store(std::ptr::null_mut(), Ordering::Release);
    }
}

/// The features of a CPUID table that the vCPU's control registers depend on.
struct CpuFeatures {
    cr4: u64,
    cr4_supervisor: u64,
    xcr0: u64,
}

impl CpuFeatures {
    fn of(cpuid: &[kvm_cpuid_entry2]) -> Self {
        let leaf = |function, index| {
            cpuid
                .iter()
                .find(|entry| entry.function == function && entry.index == index)
                .copied()
                .unwrap_or_default()
        };
        let bit = |register: u32, bit: u32, value: u64| {
            if register >> bit & 1 == 1 { value } else { 0 }
        };
        let (leaf1, leaf7, leaf_d) = (leaf(1, 0), leaf(7, 0), leaf(0xd, 0));
        let xsave = bit(leaf1.ecx, 26, CR4_OSXSAVE);
        let supported = u64::from(leaf_d.eax) | u64::from(leaf_d.edx) << 32;
        Self {
            cr4: bit(leaf7.ebx, 0, CR4_FSGSBASE) | bit(leaf7.ecx, 2, CR4_UMIP) | xsave,
            cr4_supervisor: bit(leaf7.ebx, 7, CR4_SMEP) | bit(leaf7.ebx, 20, CR4_SMAP),
            xcr0: if xsave == 0 { 0 } else { supported & XCR0_WANTED },
        }
    }
}

static STOP_REQUESTED: AtomicBool = AtomicBool::new(false);
static ALARM_DUE: AtomicBool = AtomicBool::new(false);
static STOP_EVENT: AtomicI32 = AtomicI32::new(-1);
/// `kvm_run.immediate_exit` of the running vCPU, or null.
static KVM_RUN_IMMEDIATE_EXIT: AtomicPtr<u8> = AtomicPtr::new(std::ptr::null_mut());

/// SIGTERM and SIGINT as something that an event loop can see, also in the middle of KVM_RUN.
#[derive(Debug, Clone, Copy)]
pub struct StopSignal;

impl StopSignal {
    /// Installs the handlers. Once per process; returns the descriptor that becomes readable when
    /// the process is asked to stop.
    ///
    /// # Errors
    /// The system has no descriptor or handler to give.
    pub fn install() -> std::io::Result<BorrowedFd<'static>> {
        let event: OwnedFd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let raw = event.into_raw_fd();
        STOP_EVENT.store(raw, Ordering::Release);
        for (signal, handler) in [
            (libc::SIGTERM, on_stop_signal as extern "C" fn(_, _, _)),
            (libc::SIGINT, on_stop_signal),
            (libc::SIGALRM, on_alarm_signal),
        ] {
            vmm_sys_util::signal::register_signal_handler(signal, handler)
                .map_err(std::io::Error::from)?;
        }
        // SAFETY: the descriptor was just made and is never closed.
        Ok(unsafe { BorrowedFd::borrow_raw(raw) })
    }

    /// Whether the process was asked to stop.
    #[must_use]
    pub fn requested() -> bool {
        STOP_REQUESTED.load(Ordering::Acquire)
    }
}

/// The timer of [`crate::alarm`]: SIGALRM, so that it ends KVM_RUN.
#[derive(Debug, Clone, Copy)]
pub struct AlarmTimer;

impl AlarmTimer {
    /// Fires once in `ns` nanoseconds (rounded up to microseconds); 0 disarms.
    pub fn arm(ns: u64) {
        let us = ns.div_ceil(1000);
        let value = libc::timeval {
            tv_sec: (us / 1_000_000).cast_signed(),
            tv_usec: (us % 1_000_000).cast_signed(),
        };
        let once = libc::itimerval {
            it_interval: libc::timeval { tv_sec: 0, tv_usec: 0 },
            it_value: value,
        };
        // SAFETY: reads a local; the old value isn't asked for. It fails only for times out of
        // range, which the division above excludes but for tv_sec, whose excess never fires.
        unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const once, std::ptr::null_mut()) };
    }

    /// Whether the timer has fired since the last call.
    #[must_use]
    pub fn take_due() -> bool {
        ALARM_DUE.swap(false, Ordering::AcqRel)
    }
}

/// Ends KVM_RUN, or keeps the next one from entering the guest.
fn interrupt_vcpu() {
    let immediate_exit = KVM_RUN_IMMEDIATE_EXIT.load(Ordering::Acquire);
    if !immediate_exit.is_null() {
        // SAFETY: it points into the mapped kvm_run page of a live vCPU: `Machine` clears it when
        // it's dropped. The handler runs on the one thread that uses the vCPU. KVM reads this byte
        // before it enters the guest, so a signal between our check and KVM_RUN isn't lost.
        unsafe { immediate_exit.write_volatile(1) };
    }
}

extern "C" fn on_alarm_signal(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    ALARM_DUE.store(true, Ordering::Release);
    interrupt_vcpu();
}

extern "C" fn on_stop_signal(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    STOP_REQUESTED.store(true, Ordering::Release);
    interrupt_vcpu();
    let one = 1u64;
    // SAFETY: writes eight bytes of a local to an eventfd; `write` is async-signal-safe. It can
    // only fail with EAGAIN, when the descriptor is readable already.
    unsafe { libc::write(STOP_EVENT.load(Ordering::Acquire), (&raw const one).cast(), 8) };
}
