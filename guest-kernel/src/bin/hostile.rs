//! A guest that breaks the rules, one at a time: its first argument names which. Only for tests.
//!
//! What a rule should have stopped is followed by `exit(99)`: "nothing stopped me".
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "every attack is an access or instruction that no safe code has")]

use core::arch::asm;
use core::mem::offset_of;

use abi::{BootPage, Call, DoorbellPage, UpcallArea, layout};
use guest_kernel::entry;

guest_kernel::main!(attack);

const NOTHING_STOPPED_ME: u32 = 99;

fn attack() -> u32 {
    let mut args = entry::args();
    let name = args.next().unwrap_or("");
    let argument = args
        .next()
        .and_then(|text| u64::from_str_radix(text.strip_prefix("0x").unwrap_or(text), 16).ok());
    match name {
        "read" => read(argument.unwrap_or(0)),
        "write" => write(argument.unwrap_or(0)),
        "execute" => execute(argument.unwrap_or(0)),
        "write-text" => write(attack as *const () as u64),
        "execute-data" => execute_data(),
        "panic" => panic!("on purpose"),
        "overflow-stack" => return overflow_stack(0),
        "divide" => {
            // SAFETY: a fault is what the test wants.
            unsafe { asm!("div {0:e}", in(reg) 0, inout("eax") 1 => _, inout("edx") 0 => _) };
        }
        "log" => log(argument.unwrap_or(0) as u32),
        "call" => call(argument.unwrap_or(0) as u32),
        "exit" => return argument.unwrap_or(0) as u32,
        "spin" => loop {
            core::hint::spin_loop();
        },
        "wait" => {
            entry::log_write(b"waiting\n");
            entry::wait(abi::WAIT_FOREVER);
        }
        "sleep" => sleep(argument.unwrap_or(0)),
        "flood" => loop {
            entry::log_write(b"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcde\n");
        },
        "registers" => return registers(),
        "upcall" => return upcall(),
        "descriptor" => return descriptor(argument.unwrap_or(0), 512),
        "large-read" => return descriptor(entry::boot_page().heap_base + 8192, 4 << 20),
        "discard" => return discard(),
        "avail-index" => avail_index(argument.unwrap_or(0) as u16),
        "loop" => return descriptor_chain(|index| Descriptor::link(index, (index + 1) % 2)),
        "indirect" => {
            return descriptor_chain(|_| Descriptor { flags: 4, ..Descriptor::default() });
        }
        "bad-head" => publish(0xffff),
        instruction => forbidden(instruction),
    }
    NOTHING_STOPPED_ME
}

fn read(address: u64) {
    // SAFETY: a fault is what the test wants.
    unsafe { (address as *const u8).read_volatile() };
}

fn write(address: u64) {
    // SAFETY: a fault is what the test wants.
    unsafe { (address as *mut u8).write_volatile(0x90) };
}

fn execute(address: u64) {
    // SAFETY: a fault is what the test wants.
    unsafe { asm!("call {}", in(reg) address, clobber_abi("C")) };
}

fn execute_data() {
    // `ret`, on the stack and so not executable.
    let code = [0xc3u8; 16];
    execute(core::hint::black_box(&code).as_ptr() as u64);
}

#[expect(unconditional_recursion, reason = "the guard page below the stack ends it")]
#[inline(never)]
fn overflow_stack(depth: u32) -> u32 {
    let frame = core::hint::black_box([depth; 256]);
    overflow_stack(depth + 1) + frame[0]
}

/// Instructions that CPL 3 may not execute.
fn forbidden(instruction: &str) {
    // SAFETY: a fault is what the test wants.
    unsafe {
        match instruction {
            "hlt" => asm!("hlt"),
            "cli" => asm!("cli"),
            "in" => asm!("in al, 0x60", out("al") _),
            "out" => asm!("out 0x20, al", in("al") 4u8),
            "rdmsr" => asm!("rdmsr", in("ecx") 0xc000_0080u32, out("eax") _, out("edx") _),
            "mov-cr3" => asm!("mov {}, cr3", out(reg) _),
            "lgdt" => asm!("lgdt [{}]", in(reg) layout::BOOT_PAGE),
            "sgdt" => asm!("sgdt [{}]", in(reg) layout::UPCALL_AREA),
            "syscall" => {
                asm!("syscall", in("eax") 39, lateout("rax") _, out("rcx") _, out("r11") _);
            }
            "int3" => asm!("int3"),
            "int80" => asm!("int 0x80"),
            "int14" => asm!("int 14"),
            "ud2" => asm!("ud2"),
            // A data selector beyond every GDT (software KVM runs CPL 3 with the host's), and one of
            // the kernel's.
            "segment" => asm!("mov ds, {:x}", in(reg) 0xfff8u16),
            "kernel-segment" => asm!("mov ss, {:x}", in(reg) 0x18u16),
            // A far return to CPL 0.
            "ring0" => {
                asm!("push 0x10", "lea rax, [rip + 2f]", "push rax", "retfq", "2:", out("rax") _);
            }
            // A stack pointer that nothing is behind, then a gate: the gate has its own stack.
            "bad-stack" => asm!("xor esp, esp", "ud2"),
            _ => {
                entry::log_write(b"hostile: unknown attack\n");
            }
        }
    }
}

fn doorbell(offset: usize) -> *mut u32 {
    (layout::DOORBELL_PAGE as usize + offset) as *mut u32
}

fn log(len: u32) {
    // SAFETY: an aligned word of the doorbell page.
    unsafe { doorbell(offset_of!(DoorbellPage, log_len)).write_volatile(len) };
    entry::call(Call::Log);
}

fn call(number: u32) {
    // SAFETY: the gate takes any number.
    unsafe { asm!("int 4", in("eax") number) };
}

/// Waits `ms` milliseconds thrice and says by the TSC how long it took.
fn sleep(ms: u64) {
    for _ in 0..3 {
        let start = entry::tsc();
        entry::wait(ms * 1_000_000);
        let elapsed = (entry::tsc() - start) / entry::boot_page().tsc_khz;
        entry::log_write(if elapsed >= ms { b"slept\n" } else { b"woke early\n" });
    }
    entry::exit(0)
}

/// A call preserves every register.
fn registers() -> u32 {
    let mut sums = [0u64; 6];
    // SAFETY: `Call::Ring` changes no memory of ours; all registers named are declared.
    unsafe {
        asm!(
            "int 4",
            in("eax") Call::Ring as u32,
            inout("rcx") 0x1111_1111_1111_1111u64 => sums[0],
            inout("rdx") 0x2222_2222_2222_2222u64 => sums[1],
            inout("r8") 0x3333_3333_3333_3333u64 => sums[2],
            inout("r11") 0x4444_4444_4444_4444u64 => sums[3],
            inout("r12") 0x5555_5555_5555_5555u64 => sums[4],
            inout("r15") 0x6666_6666_6666_6666u64 => sums[5],
        );
    }
    let kept = sums.iter().zip(1u64..).all(|(sum, n)| *sum == n * 0x1111_1111_1111_1111);
    if kept { 0 } else { NOTHING_STOPPED_ME }
}

static mut UPCALLS: u64 = 0;

/// Spins until three upcalls have come; the interrupted loop must not notice them.
fn upcall() -> u32 {
    let area = layout::UPCALL_AREA as usize;
    let entry_field = (area + offset_of!(UpcallArea, entry)) as *mut u64;
    let timer_field = (area + offset_of!(UpcallArea, timer_ns)) as *mut u64;
    let mut sum = 0u64;
    for round in 1..=3 {
        // SAFETY: aligned words of the upcall area.
        unsafe {
            entry_field.write_volatile(upcall_entry as *const () as u64);
            timer_field.write_volatile(2_000_000);
        }
        entry::call(Call::ArmUpcall);
        // SAFETY: only the upcall, which runs in between on this very vCPU, changes it.
        while unsafe { (&raw const UPCALLS).read_volatile() } < round {
            sum = sum.wrapping_add(1);
        }
    }
    entry::log_write(if sum > 0 { b"three upcalls\n" } else { b"no work done\n" });
    0
}

/// Counts, then resumes the interrupted code with its registers, flags and stack: `iretq` at CPL 3.
#[unsafe(naked)]
extern "C" fn upcall_entry() -> ! {
    core::arch::naked_asm!(
        "mov rax, {area}",
        "inc qword ptr [rip + {count}]",
        "push 0x2b",
        "push qword ptr [rax + {saved} + 6*8]",
        "push qword ptr [rax + {saved} + 17*8]",
        "push 0x33",
        "push qword ptr [rax + {saved} + 16*8]",
        "mov qword ptr [rax + {pending}], 0",
        "mov rax, [rax + {saved}]",
        "iretq",
        area = const layout::UPCALL_AREA,
        count = sym UPCALLS,
        saved = const offset_of!(UpcallArea, saved),
        pending = const offset_of!(UpcallArea, pending),
    )
}

/// A virtqueue descriptor (virtio 1.2 §2.7.5).
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Descriptor {
    address: u64,
    len: u32,
    flags: u16,
    next: u16,
}

impl Descriptor {
    const NEXT: u16 = 1;
    const WRITE: u16 = 2;

    fn link(index: u16, next: u16) -> Self {
        let address = entry::boot_page().heap_base + u64::from(index) * 512;
        Self { address, len: 16, flags: Self::NEXT, next }
    }
}

fn first_queue() -> &'static abi::QueueEntry {
    let boot: &'static BootPage = entry::boot_page();
    let device = &boot.devices[0];
    &boot.queues[device.first_queue as usize]
}

fn put_descriptor(index: u16, descriptor: Descriptor) {
    let table = first_queue().descriptor_table as *mut Descriptor;
    // SAFETY: the table of queue 0 has more than three descriptors.
    unsafe { table.add(usize::from(index)).write_volatile(descriptor) };
}

/// Makes the chain at `head` available and rings.
fn publish(head: u16) {
    let ring = first_queue().avail_ring as *mut u16;
    // SAFETY: flags, index and ring of queue 0's available ring.
    unsafe {
        let index = ring.add(1).read_volatile();
        ring.add(2 + usize::from(index) % first_queue().size as usize).write_volatile(head);
        ring.add(1).write_volatile(index.wrapping_add(1));
    }
    entry::ring();
}

fn avail_index(index: u16) {
    // SAFETY: the index of queue 0's available ring.
    unsafe { (first_queue().avail_ring as *mut u16).add(1).write_volatile(index) };
    entry::ring();
}

fn descriptor_chain(make: impl Fn(u16) -> Descriptor) -> u32 {
    for index in 0..2 {
        put_descriptor(index, make(index));
    }
    publish(0);
    NOTHING_STOPPED_ME
}

/// Writes the first 4 KiB of the first device (a disk), discards its first MiB, with a flush and a
/// pause behind each; 0 if all went well.
fn discard() -> u32 {
    const OUT: u64 = 1;
    const FLUSH: u64 = 4;
    const DISCARD: u64 = 11;
    let heap = entry::boot_page().heap_base;
    for (kind, data_len) in [(OUT, 4096), (FLUSH, 0), (DISCARD, 16), (FLUSH, 0)] {
        // The request header: type, sector 0. For DISCARD the data is one segment: sector, count.
        // SAFETY: the heap is ours, and this image allocates nothing.
        unsafe {
            (heap as *mut [u64; 2]).write_volatile([kind, 0]);
            ((heap + 8192) as *mut [u64; 2]).write_volatile([0, 2048]);
            ((heap + 4096) as *mut u8).write_volatile(0xff);
        }
        let (flags, next) = (Descriptor::NEXT, if data_len == 0 { 2 } else { 1 });
        put_descriptor(0, Descriptor { address: heap, len: 16, flags, next });
        put_descriptor(1, Descriptor { address: heap + 8192, len: data_len, flags, next: 2 });
        let flags = Descriptor::WRITE;
        put_descriptor(2, Descriptor { address: heap + 4096, len: 1, flags, next: 0 });
        publish(0);
        // Background work, which frees the space, is done while the guest is idle.
        entry::wait(500_000_000);
        // SAFETY: as above.
        if unsafe { ((heap + 4096) as *const u8).read_volatile() } != 0 {
            return 1;
        }
    }
    0
}

/// Asks the first device (a disk) to read `len` bytes from its sector 0 on to `address`.
fn descriptor(address: u64, len: u32) -> u32 {
    let heap = entry::boot_page().heap_base;
    // The request header: VIRTIO_BLK_T_IN, sector 0. Then the target, then the status byte.
    // SAFETY: the heap is ours, and this image allocates nothing.
    unsafe { (heap as *mut [u8; 16]).write_volatile([0; 16]) };
    let header = Descriptor { address: heap, len: 16, flags: Descriptor::NEXT, next: 1 };
    let flags = Descriptor::NEXT | Descriptor::WRITE;
    let target = Descriptor { address, len, flags, next: 2 };
    let status = Descriptor { address: heap + 4096, len: 1, flags: Descriptor::WRITE, next: 0 };
    put_descriptor(0, header);
    put_descriptor(1, target);
    put_descriptor(2, status);
    publish(0);
    NOTHING_STOPPED_ME
}
