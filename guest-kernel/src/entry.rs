//! The ground of an image: the ELF entry point, calls to the VMM, the pages shared with it, the
//! `mem*` symbols that compiled code expects, and what a panic does.
//!
//! On the host (in tests) there is no VMM: nothing here is called there.
#![expect(unsafe_code, reason = "entry point, shared pages and the `int $4` gate")]

use core::arch::{asm, x86_64};
use core::mem::offset_of;

use abi::{BootPage, Call, DoorbellPage, layout};

/// What the VMM told the guest at start.
#[must_use]
pub fn boot_page() -> &'static BootPage {
    // SAFETY: the VMM maps this page read-only before the first instruction, fills it with a
    // `BootPage` (every bit pattern is one), and never changes it.
    unsafe { &*(layout::BOOT_PAGE as *const BootPage) }
}

/// Leaves the guest with `call`; every register but the flags is preserved.
pub fn call(call: Call) {
    // SAFETY: vector 4 is the VMM's gate for CPL 3. While the guest is stopped the VMM writes
    // only rings, posted buffers and the doorbell page, all of which this crate reads as volatile
    // or owns through the driver: hence no `nomem`.
    unsafe {
        asm!("int $4", in("eax") call as u32, options(nostack, att_syntax));
    }
}

fn doorbell_field(offset: usize) -> *mut u64 {
    (layout::DOORBELL_PAGE as usize + offset) as *mut u64
}

/// Tells the device at this place of the boot page which features of [`abi::virtio::OPT_IN`] its
/// driver takes: it counts from the next call on.
pub fn accept(device: usize, features: u64) {
    assert!(device < abi::DEVICES_MAX, "device {device} is none of the boot page");
    let field = doorbell_field(offset_of!(DoorbellPage, accepted) + 8 * device);
    // SAFETY: an aligned word of the doorbell page, which is mapped read/write.
    unsafe { field.write_volatile(features) };
}

/// Submits every queue and waits until something is used or `timeout_ns` has passed
/// ([`abi::WAIT_FOREVER`] for no limit). Returns the queues that may have used entries, as bits.
pub fn wait(timeout_ns: u64) -> u64 {
    // SAFETY: an aligned word of the doorbell page, which is mapped read/write.
    unsafe { doorbell_field(offset_of!(DoorbellPage, timeout_ns)).write_volatile(timeout_ns) };
    call(Call::Wait);
    events()
}

/// Submits every queue and returns at once, with the queues that may have used entries as bits.
pub fn ring() -> u64 {
    call(Call::Ring);
    events()
}

fn events() -> u64 {
    // SAFETY: an aligned word of the doorbell page, which is mapped read/write.
    unsafe { doorbell_field(offset_of!(DoorbellPage, events)).read_volatile() }
}

/// How often the vCPU has left the guest so far.
#[must_use]
pub fn exits() -> u64 {
    // SAFETY: an aligned word of the doorbell page, which is mapped read/write.
    unsafe { doorbell_field(offset_of!(DoorbellPage, exits)).read_volatile() }
}

/// Appends to the log. It goes out with the next call of any kind, or at once when it is full.
pub fn log_write(mut bytes: &[u8]) {
    let log_len = doorbell_field(offset_of!(DoorbellPage, log_len)).cast::<u32>();
    while !bytes.is_empty() {
        // SAFETY: an aligned word of the doorbell page, which is mapped read/write.
        let used = unsafe { log_len.read_volatile() } as usize;
        let take = bytes.len().min((layout::LOG_BYTES as usize).saturating_sub(used));
        let (now, later) = bytes.split_at(take);
        // SAFETY: `used + take` is within the log area, which is mapped read/write and which no
        // Rust object lies in.
        unsafe {
            let target = (layout::LOG_AREA as usize + used) as *mut u8;
            core::ptr::copy_nonoverlapping(now.as_ptr(), target, take);
            log_len.write_volatile((used + take) as u32);
        }
        bytes = later;
        if !bytes.is_empty() {
            call(Call::Log);
        }
    }
}

/// Ends the VM with `status`, 0 to 123.
pub fn exit(status: u32) -> ! {
    let field = doorbell_field(offset_of!(DoorbellPage, status)).cast::<u32>();
    // SAFETY: an aligned word of the doorbell page, which is mapped read/write.
    unsafe { field.write_volatile(status) };
    loop {
        call(Call::Exit);
    }
}

/// The time-stamp counter; [`BootPage::tsc_khz`] scales it.
#[must_use]
pub fn tsc() -> u64 {
    // SAFETY: RDTSC is allowed at CPL 3 (CR4.TSD is clear) and touches no memory.
    unsafe { x86_64::_rdtsc() }
}

/// The arguments that the spec gives, without a program name. What isn't UTF-8 is left out.
pub fn args() -> impl Iterator<Item = &'static str> {
    let boot = boot_page();
    strings(boot.args_address, boot.args_len)
}

/// The value of the environment variable `name`.
#[must_use]
pub fn env(name: &str) -> Option<&'static str> {
    let boot = boot_page();
    strings(boot.env_address, boot.env_len)
        .find_map(|entry| entry.strip_prefix(name)?.strip_prefix('='))
}

fn strings(address: u64, len: u32) -> impl Iterator<Item = &'static str> {
    let bytes: &'static [u8] = if len == 0 {
        &[]
    } else {
        // SAFETY: the VMM maps these bytes read-only and never changes them.
        unsafe { core::slice::from_raw_parts(address as *const u8, len as usize) }
    };
    bytes
        .split_inclusive(|byte| *byte == 0)
        .filter_map(|entry| core::str::from_utf8(entry.strip_suffix(&[0])?).ok())
}

/// Makes `fn() -> u32` the program of this image; what it returns is the exit status.
#[macro_export]
macro_rules! main {
    ($program:ident) => {
        #[unsafe(no_mangle)]
        extern "C" fn hypha_main() -> u32 {
            let program: fn() -> u32 = $program;
            program()
        }
    };
}

#[cfg(all(feature = "image", not(test)))]
mod image {
    use core::arch::{asm, naked_asm};
    use core::fmt::Write as _;

    use abi::{ABI_VERSION, BOOT_MAGIC, Call};

    unsafe extern "C" {
        safe fn hypha_main() -> u32;
    }

    /// Where the VMM starts the vCPU, at CPL 3, with `rsp` at the top of the stack. The null return
    /// address and frame pointer end a backtrace.
    ///
    /// # Safety
    /// Only the VMM enters here, once.
    #[unsafe(naked)]
    #[unsafe(no_mangle)]
    unsafe extern "C" fn _start() -> ! {
        naked_asm!("xor ebp, ebp", "push rbp", "push rbp", "call {start}", "ud2", start = sym start)
    }

    extern "C" fn start() -> ! {
        let boot = super::boot_page();
        assert!(boot.magic == BOOT_MAGIC, "this image was not started by a Hypha VMM");
        assert!(
            boot.abi_version == ABI_VERSION,
            "this image speaks guest ABI {ABI_VERSION}, the VMM {}",
            boot.abi_version
        );
        super::exit(hypha_main())
    }

    struct Log;

    impl core::fmt::Write for Log {
        fn write_str(&mut self, text: &str) -> core::fmt::Result {
            super::log_write(text.as_bytes());
            Ok(())
        }
    }

    #[panic_handler]
    fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
        // The log never fails; there is nobody left to tell if it did.
        writeln!(Log, "{info}").ok();
        loop {
            super::call(Call::Panic);
        }
    }

    /// Unoptimised images refer to it; with `panic = "abort"` nothing calls it.
    #[unsafe(no_mangle)]
    extern "C" fn rust_eh_personality() {}

    /// The precompiled `alloc` refers to it in clean-ups that `panic = "abort"` never reaches.
    #[unsafe(no_mangle)]
    extern "C" fn _Unwind_Resume() -> ! {
        panic!("an unwind without unwinding")
    }

    // Compiled code calls these by name. They are written with string instructions so that the
    // compiler can't turn a loop in them into a call of themselves.

    /// # Safety
    /// As C's `memcpy`.
    #[unsafe(no_mangle)]
    unsafe extern "C" fn memcpy(target: *mut u8, source: *const u8, len: usize) -> *mut u8 {
        // SAFETY: the caller gives two valid ranges that don't overlap; DF is clear by the ABI.
        unsafe {
            asm!("rep movsb", inout("rcx") len => _, inout("rdi") target => _,
                inout("rsi") source => _, options(nostack, preserves_flags));
        }
        target
    }

    /// # Safety
    /// As C's `memmove`.
    #[unsafe(no_mangle)]
    unsafe extern "C" fn memmove(target: *mut u8, source: *const u8, len: usize) -> *mut u8 {
        if (target as usize).wrapping_sub(source as usize) >= len {
            // SAFETY: a forward copy reads each byte before it's overwritten, as `target` doesn't
            // lie inside the source.
            return unsafe { memcpy(target, source, len) };
        }
        // SAFETY: the caller gives two valid ranges; copied backwards, each byte is read before
        // it's overwritten. DF is cleared again as the ABI demands.
        unsafe {
            asm!("std", "rep movsb", "cld", inout("rcx") len => _,
                inout("rdi") target.wrapping_add(len).wrapping_sub(1) => _,
                inout("rsi") source.wrapping_add(len).wrapping_sub(1) => _, options(nostack));
        }
        target
    }

    /// # Safety
    /// As C's `memset`.
    #[unsafe(no_mangle)]
    unsafe extern "C" fn memset(target: *mut u8, value: i32, len: usize) -> *mut u8 {
        // SAFETY: the caller gives a valid range; DF is clear by the ABI.
        unsafe {
            asm!("rep stosb", inout("rcx") len => _, inout("rdi") target => _,
                in("al") value as u8, options(nostack, preserves_flags));
        }
        target
    }

    /// # Safety
    /// As C's `memcmp`.
    #[unsafe(no_mangle)]
    unsafe extern "C" fn memcmp(left: *const u8, right: *const u8, len: usize) -> i32 {
        let mut at = 0;
        while at + 8 <= len {
            // SAFETY: eight bytes at `at` lie within both ranges that the caller gives.
            let (a, b) = unsafe {
                (
                    left.add(at).cast::<u64>().read_unaligned(),
                    right.add(at).cast::<u64>().read_unaligned(),
                )
            };
            if a != b {
                return if a.swap_bytes() < b.swap_bytes() { -1 } else { 1 };
            }
            at += 8;
        }
        while at < len {
            // SAFETY: the byte at `at` lies within both ranges. Volatile, so that the loop is not
            // recognised as a `memcmp`.
            let (a, b) = unsafe { (left.add(at).read_volatile(), right.add(at).read_volatile()) };
            if a != b {
                return i32::from(a) - i32::from(b);
            }
            at += 1;
        }
        0
    }

    /// # Safety
    /// As BSD's `bcmp`.
    #[unsafe(no_mangle)]
    unsafe extern "C" fn bcmp(left: *const u8, right: *const u8, len: usize) -> i32 {
        // SAFETY: the caller upholds the same contract.
        unsafe { memcmp(left, right, len) }
    }
}
