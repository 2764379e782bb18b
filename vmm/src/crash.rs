//! What people see of a guest that crashed: the reason, registers, and a symbolised backtrace.

use std::fmt::Write as _;
use std::fs::File;
use std::os::unix::fs::FileExt;

use kvm_bindings::kvm_regs;
use rustc_demangle::demangle;
use vdev::GuestRam;
use vm_memory::{Bytes, GuestAddress};

use crate::elf::ElfImage;

const FRAMES_MAX: usize = 32;
const SYMBOLS_MAX: u64 = 200_000;
const STRING_TABLE_MAX: u64 = 32 << 20;
const NAME_MAX: usize = 512;
const SECTION_HEADER_LEN: u64 = 64;
const SYMBOL_LEN: usize = 24;
const SHT_SYMTAB: u32 = 2;
const STT_FUNC: u8 = 2;

/// The names of the exceptions (Intel SDM volume 3, table 6-1).
#[must_use]
pub fn exception_name(vector: u16) -> &'static str {
    match vector {
        0 => "#DE divide error",
        1 => "#DB debug exception",
        2 => "NMI",
        3 => "#BP breakpoint",
        5 => "#BR bound range exceeded",
        6 => "#UD invalid opcode",
        7 => "#NM device not available",
        8 => "#DF double fault",
        10 => "#TS invalid TSS",
        11 => "#NP segment not present",
        12 => "#SS stack-segment fault",
        13 => "#GP general protection",
        14 => "#PF page fault",
        16 => "#MF x87 floating-point error",
        17 => "#AC alignment check",
        18 => "#MC machine check",
        19 => "#XM SIMD floating-point exception",
        20 => "#VE virtualization exception",
        21 => "#CP control protection exception",
        _ => "reserved exception",
    }
}

/// The registers of the guest at its crash, with the gate's frame put back in place.
#[must_use]
pub fn registers(regs: &kvm_regs) -> String {
    let mut text = String::new();
    let named = [
        ("rax", regs.rax),
        ("rbx", regs.rbx),
        ("rcx", regs.rcx),
        ("rdx", regs.rdx),
        ("rsi", regs.rsi),
        ("rdi", regs.rdi),
        ("rbp", regs.rbp),
        ("rsp", regs.rsp),
        ("r8", regs.r8),
        ("r9", regs.r9),
        ("r10", regs.r10),
        ("r11", regs.r11),
        ("r12", regs.r12),
        ("r13", regs.r13),
        ("r14", regs.r14),
        ("r15", regs.r15),
        ("rip", regs.rip),
        ("rflags", regs.rflags),
    ];
    for (position, (name, value)) in named.into_iter().enumerate() {
        let separator = if position % 4 == 0 { "\n    " } else { "  " };
        write!(text, "{separator}{name:>6} {value:016x}").ok();
    }
    text
}

/// The return addresses on the stack, innermost first, found by frame pointers. The guest's stack
/// is hostile: addresses must be in its text and frames must ascend.
#[must_use]
pub fn backtrace(memory: &GuestRam, elf: &ElfImage, rip: u64, rbp: u64) -> Vec<u64> {
    let in_text = |address: u64| {
        elf.segments
            .iter()
            .any(|s| s.execute && address >= s.address && address < s.address + s.len)
    };
    let mut frames = vec![rip];
    let mut frame = rbp;
    while frames.len() < FRAMES_MAX {
        let word = |at: Option<u64>| memory.read_obj::<u64>(GuestAddress(at?)).ok();
        let (Some(next), Some(address)) = (word(Some(frame)), word(frame.checked_add(8))) else {
            break;
        };
        if !in_text(address) {
            break;
        }
        frames.push(address);
        if next <= frame {
            break;
        }
        frame = next;
    }
    frames
}

/// The functions of an image, for names in backtraces.
#[derive(Debug, Default)]
pub struct Symbols {
    /// (address, length, offset of the name in `names`), ascending.
    functions: Vec<(u64, u64, u32)>,
    names: Vec<u8>,
}

impl Symbols {
    /// Reads `.symtab` of an ELF file; a file without one, or a malformed one, has no symbols.
    #[must_use]
    pub fn read(file: &File) -> Self {
        Self::parse(file).unwrap_or_default()
    }

    fn parse(file: &File) -> Option<Self> {
        let header = read_at(file, 0, 64)?;
        let sections = u64_at(&header, 40)?;
        let count = u64::from(u16_at(&header, 60)?);
        let section = |index: u64| {
            read_at(file, sections.checked_add(index * SECTION_HEADER_LEN)?, SECTION_HEADER_LEN)
        };
        let symtab = (0..count).filter_map(section).find(|s| u32_at(s, 4) == Some(SHT_SYMTAB))?;
        let (offset, len) = (u64_at(&symtab, 24)?, u64_at(&symtab, 32)?);
        let strtab = section(u64::from(u32_at(&symtab, 40)?))?;
        let (names_offset, names_len) = (u64_at(&strtab, 24)?, u64_at(&strtab, 32)?);
        if len > SYMBOLS_MAX * SYMBOL_LEN as u64 || names_len > STRING_TABLE_MAX {
            return None;
        }
        let table = read_at(file, offset, len)?;
        let mut functions: Vec<_> = table
            .chunks_exact(SYMBOL_LEN)
            .filter(|symbol| symbol.get(4).is_some_and(|info| info & 15 == STT_FUNC))
            .filter_map(|s| Some((u64_at(s, 8)?, u64_at(s, 16)?, u32_at(s, 0)?)))
            .collect();
        functions.sort_unstable();
        Some(Self { functions, names: read_at(file, names_offset, names_len)? })
    }

    /// `function+offset` for an address in text, or the bare address.
    #[must_use]
    pub fn name(&self, address: u64) -> String {
        let next = self.functions.partition_point(|(start, _, _)| *start <= address);
        let found = next.checked_sub(1).and_then(|index| self.functions.get(index));
        let name = found.filter(|(start, len, _)| address - start <= *len).and_then(|function| {
            let name = self.names.get(function.2 as usize..)?;
            let end = name.iter().take(NAME_MAX).position(|byte| *byte == 0)?;
            let name = std::str::from_utf8(name.get(..end)?).ok()?;
            Some(format!("{:#}+{:#x}", demangle(name), address - function.0))
        });
        name.unwrap_or_else(|| format!("{address:#x}"))
    }
}

fn read_at(file: &File, offset: u64, len: u64) -> Option<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(len).ok()?];
    file.read_exact_at(&mut bytes, offset).ok()?;
    Some(bytes)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}
