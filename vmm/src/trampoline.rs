//! The only code in a VM that isn't the guest's: a few instructions that the VMM supplies, and the
//! descriptor tables that lead to them. Nothing at CPL 3 can write any of it.
//!
//! * **Gates page** (always supervisor). Offset 0: the gate of `int $4`, through which the guest
//!   calls. Offset 0x100 + 16 × *v*: the entry of exception *v*; it leaves to the VMM with the
//!   vector in the port number, so no register of the guest is touched.
//! * **`syscall` stub** (user on software KVM, supervisor on hardware). This guest ABI serves no
//!   system calls, so it leaves to the VMM, which ends the VM.
//!
//! I/O instructions are legal only here: the guest runs with IOPL 0.

use abi::layout::{self, GATE_STACK, GATES_PAGE, GDT, IDT, PAGE_BYTES, SYSCALL_STACK, TSS};
use vdev::GuestRam;
use vm_memory::{Bytes, GuestAddress};

/// The port through which `int $4` leaves; the data is the call number.
pub const PORT_CALL: u16 = 0x20;
/// The port through which exception 0 leaves; exception *v* uses `PORT_EXCEPTION + v`.
pub const PORT_EXCEPTION: u16 = 0x40;
/// The port through which the `syscall` stub leaves.
pub const PORT_SYSCALL: u16 = 0x60;

/// How many vectors the IDT has: the exceptions of the architecture.
pub const VECTORS: u16 = 32;
/// The one vector that CPL 3 may raise itself. Of the software interrupts only `int3` and `int $4`
/// reach CPL 0 on software KVM.
const CALL_VECTOR: u16 = 4;

/// Kernel code selector; with 0x2b and 0x33 these are Linux's, the fastest on software KVM.
pub const KERNEL_CS: u16 = 0x10;
/// The code selector of the guest, RPL 3.
pub const USER_CS: u16 = 0x33;
/// The stack selector of the guest, RPL 3.
pub const USER_SS: u16 = 0x2b;
/// The selector of the task state segment.
pub const TSS_SELECTOR: u16 = 0x40;
/// STAR: `syscall` loads CS 0x10 and SS 0x18, `sysret` would load CS 0x33 and SS 0x2b.
pub const STAR: u64 = 0x23 << 48 | (KERNEL_CS as u64) << 32;
/// SFMASK: what `syscall` clears of RFLAGS (TF, IF, DF, IOPL, NT, AC), as Linux does.
pub const SFMASK: u64 = 0x4_7700;

/// GDT limit.
pub const GDT_LIMIT: u16 = 10 * 8 - 1;
/// IDT limit.
pub const IDT_LIMIT: u16 = VECTORS * 16 - 1;
/// TSS limit: up to and without an I/O permission map.
pub const TSS_LIMIT: u32 = 0x67;

const GATE_TYPE_CPL0: u64 = 0x8e00 << 32;
const GATE_TYPE_CPL3: u64 = 0xee00 << 32;

/// Writes gates, stub, GDT, IDT and TSS to the system slot.
pub fn write(system: &GuestRam) {
    let put = |address: u64, bytes: &[u8]| {
        let written = system.write_slice(bytes, GuestAddress(address));
        assert!(written.is_ok(), "the trampoline lies within the system slot");
    };
    put(GATES_PAGE, &gates());
    put(layout::SYSCALL_STUB, &syscall_stub());
    put(GDT, &bytes_of(&gdt()));
    put(IDT, &bytes_of(&idt()));
    put(TSS, &tss());
}

/// The address of exception *v*'s entry.
fn exception_entry(vector: u16) -> u64 {
    GATES_PAGE + 0x100 + 16 * u64::from(vector)
}

fn gates() -> Vec<u8> {
    let mut page = vec![0xf4; 0x100 + 16 * usize::from(VECTORS)];
    // out %eax, $PORT_CALL: the VMM serves the call; iretq: back to CPL 3. `sysret` is no
    // alternative: software KVM can't emulate it.
    page[..4].copy_from_slice(&[0xe7, PORT_CALL as u8, 0x48, 0xcf]);
    for (vector, entry) in page[0x100..].chunks_exact_mut(16).enumerate() {
        // out %al, $PORT_EXCEPTION + v: the VMM reads the frame on the gate stack. Should it ever
        // come back, halt: that leaves too.
        entry[..4].copy_from_slice(&[0xe6, PORT_EXCEPTION as u8 + vector as u8, 0xf4, 0xf4]);
    }
    page
}

fn syscall_stub() -> Vec<u8> {
    // mov $top, %esp: before anything else, a stack that isn't the guest's, as a fault here would
    // push to it. out %al, $PORT_SYSCALL: leaves at CPL 0, faults (and so leaves) at CPL 3.
    let mut stub = vec![0xbc];
    stub.extend_from_slice(&((SYSCALL_STACK + PAGE_BYTES) as u32).to_le_bytes());
    stub.extend_from_slice(&[0xe6, PORT_SYSCALL as u8, 0xf4, 0xf4]);
    stub
}

fn gdt() -> [u64; 10] {
    let mut table = [0; 10];
    // Accessed bits are preset: the CPU never writes here.
    table[2] = 0x00af_9b00_0000_ffff; // 0x10 kernel code, 64-bit
    table[3] = 0x00cf_9300_0000_ffff; // 0x18 kernel data
    table[4] = 0x00cf_fb00_0000_ffff; // 0x23 user code, 32-bit: only STAR's arithmetic needs it
    table[5] = 0x00cf_f300_0000_ffff; // 0x2b user data
    table[6] = 0x00af_fb00_0000_ffff; // 0x33 user code, 64-bit
    // 0x40 the busy 64-bit TSS, two entries long.
    let base = TSS;
    table[8] =
        u64::from(TSS_LIMIT) | (base & 0xff_ffff) << 16 | 0x8b << 40 | (base >> 24 & 0xff) << 56;
    table[9] = base >> 32;
    table
}

fn idt() -> Vec<u64> {
    (0..VECTORS)
        .flat_map(|vector| {
            let (entry, kind) = if vector == CALL_VECTOR {
                (GATES_PAGE, GATE_TYPE_CPL3)
            } else {
                (exception_entry(vector), GATE_TYPE_CPL0)
            };
            let low =
                entry & 0xffff | u64::from(KERNEL_CS) << 16 | kind | (entry >> 16 & 0xffff) << 48;
            [low, entry >> 32]
        })
        .collect()
}

fn tss() -> [u8; 0x68] {
    let mut tss = [0; 0x68];
    tss[4..12].copy_from_slice(&(GATE_STACK + PAGE_BYTES).to_le_bytes()); // RSP0
    // The I/O map base points behind the limit: no port is open to CPL 3. Zero would open some on
    // software KVM.
    tss[0x66] = 0x68;
    tss
}

fn bytes_of(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// What the CPU pushed to the gate stack when the guest last entered a gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GateFrame {
    /// The error code, for the exceptions that have one.
    pub error_code: Option<u64>,
    /// Where the guest was.
    pub rip: u64,
    /// Its flags.
    pub rflags: u64,
    /// Its stack pointer.
    pub rsp: u64,
}

impl GateFrame {
    /// Reads the frame of a call (`vector` `None`) or of an exception.
    #[must_use]
    pub fn read(system: &GuestRam, vector: Option<u16>) -> Self {
        let has_code = vector.is_some_and(|v| matches!(v, 8 | 10..=14 | 17 | 21 | 29 | 30));
        let top = GATE_STACK + PAGE_BYTES;
        // The gate stack lies in the system slot, so the reads can't fail.
        let word =
            |below: u64| system.read_obj::<u64>(GuestAddress(top - below)).map_or(0, u64::from_le);
        Self {
            error_code: has_code.then(|| word(48)),
            rip: word(40),
            rflags: word(24),
            rsp: word(16),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_call_gate_is_open_to_the_guest() {
        let idt = idt();
        for vector in 0..VECTORS {
            let dpl = idt[usize::from(vector) * 2] >> 45 & 3;
            assert_eq!(dpl, if vector == CALL_VECTOR { 3 } else { 0 }, "vector {vector}");
        }
    }

    #[test]
    fn ports_of_gates_do_not_clash() {
        const { assert!(PORT_CALL < PORT_EXCEPTION) };
        const { assert!(PORT_EXCEPTION + VECTORS <= PORT_SYSCALL) };
        assert!(gates().len() <= PAGE_BYTES as usize);
    }
}
