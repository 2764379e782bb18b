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
const NAME_MAX: usize = 512;
const SHOWN_MAX: usize = 256;
const SECTION_HEADER_LEN: usize = 64;
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

/// The function that an address is in.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Function {
    start: u64,
    name_at: u64,
}

/// `function+offset` for each address, by the `.symtab` of the image, or the bare address.
///
/// The table is read piece by piece into a small buffer: a confined VMM has little memory left to
/// ask for, and the file may claim any size.
#[must_use]
pub fn symbolise(file: &File, addresses: &[u64]) -> Vec<String> {
    let mut found = vec![None; addresses.len()];
    // A file without symbols, or a malformed one, has no names.
    scan_symbols(file, addresses, &mut found);
    let named = |(address, function): (&u64, &Option<Function>)| {
        let function = function.as_ref()?;
        let mut buffer = [0; NAME_MAX];
        let len = file.read_at(&mut buffer, function.name_at).ok()?;
        let end = buffer.iter().take(len).position(|byte| *byte == 0)?;
        let name = std::str::from_utf8(buffer.get(..end)?).ok()?;
        let mut text = ShortName(String::with_capacity(SHOWN_MAX));
        // An error says that the name is longer than what is shown.
        write!(text, "{:#}", demangle(name)).ok();
        Some(format!("{}+{:#x}", text.0, address - function.start))
    };
    addresses
        .iter()
        .zip(&found)
        .map(|pair| named(pair).unwrap_or_else(|| format!("{:#x}", pair.0)))
        .collect()
}

/// A name as it is shown: printable, and no longer than [`SHOWN_MAX`]. Demangling can make a
/// megabyte out of a hundred bytes, and a confined VMM has no megabyte.
struct ShortName(String);

impl std::fmt::Write for ShortName {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        for char in text.chars() {
            if self.0.len() >= SHOWN_MAX {
                return Err(std::fmt::Error);
            }
            self.0.push(if char.is_ascii_graphic() || char == ' ' { char } else { '?' });
        }
        Ok(())
    }
}

fn scan_symbols(file: &File, addresses: &[u64], found: &mut [Option<Function>]) -> Option<()> {
    let header: [u8; 64] = read_at(file, 0)?;
    let sections = u64_at(&header, 40)?;
    let count = u64::from(u16_at(&header, 60)?);
    let section = |index: u64| -> Option<[u8; SECTION_HEADER_LEN]> {
        read_at(file, sections.checked_add(index * SECTION_HEADER_LEN as u64)?)
    };
    let symtab = (0..count).filter_map(section).find(|s| u32_at(s, 4) == Some(SHT_SYMTAB))?;
    let strtab = section(u64::from(u32_at(&symtab, 40)?))?;
    let names = u64_at(&strtab, 24)?;
    let mut at = u64_at(&symtab, 24)?;
    let end = at.checked_add(u64_at(&symtab, 32)?.min(SYMBOLS_MAX * SYMBOL_LEN as u64))?;
    let mut buffer = [0; SYMBOL_LEN * 128];
    while at < end {
        let len = file.read_at(&mut buffer, at).ok()?;
        let whole = len - len % SYMBOL_LEN;
        for symbol in buffer.get(..whole)?.chunks_exact(SYMBOL_LEN) {
            note_symbol(symbol, names, addresses, found);
        }
        if whole == 0 {
            return None;
        }
        at += whole as u64;
    }
    Some(())
}

/// Remembers the function of one symbol for every address that lies in it.
fn note_symbol(symbol: &[u8], names: u64, addresses: &[u64], found: &mut [Option<Function>]) {
    let is_function = symbol.get(4).is_some_and(|info| info & 15 == STT_FUNC);
    let fields = (u32_at(symbol, 0), u64_at(symbol, 8), u64_at(symbol, 16));
    let (true, (Some(name), Some(start), Some(len))) = (is_function, fields) else { return };
    let end = start.saturating_add(len.max(1));
    for (address, found) in addresses.iter().zip(found) {
        // The end counts too: a call that doesn't return may be the last instruction, and the
        // return address then is the end. A function that starts there wins.
        let better = found.as_ref().is_none_or(|function| function.start < start);
        if better && (start..=end).contains(address) {
            *found = Some(Function { start, name_at: names.saturating_add(u64::from(name)) });
        }
    }
}

fn read_at<const LEN: usize>(file: &File, offset: u64) -> Option<[u8; LEN]> {
    let mut bytes = [0; LEN];
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A mangled name (v0) of nested pairs, each holding the one within it twice, the second time
    /// as a back-reference: demangled, it doubles with every level.
    fn growing_name(levels: usize) -> String {
        const DIGITS: &[u8] = b"0123456789abcdefghijklmnopqrstuvwxyz";
        let mut name = format!("_RIC0{}u", "T".repeat(levels));
        for level in (0..levels).rev() {
            // Position of the inner pair, in base 62 as the format has it; below 36 one digit.
            let digit = char::from(DIGITS[level + 3]);
            name += &format!("B{digit}_E");
        }
        name + "E"
    }

    #[test]
    fn a_name_that_grows_when_demangled_is_cut() {
        let name = growing_name(24);
        assert!(name.len() < 160, "{name}");
        assert!(format!("{:#}", demangle(&growing_name(12))).len() > 10_000, "it does grow");
        let mut text = ShortName(String::new());
        write!(text, "{:#}", demangle(&name)).unwrap_err();
        assert_eq!(text.0.len(), SHOWN_MAX);
    }

    #[test]
    fn a_name_cannot_steer_a_terminal() {
        let mut text = ShortName(String::new());
        text.write_str("\x1b[31mred\x07\u{202e}").unwrap();
        assert_eq!(text.0, "?[31mred??");
    }
}
