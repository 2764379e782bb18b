//! The guest's page tables: built once by the VMM, mapped nowhere, so the guest can't change them.
//!
//! Guest-virtual equals guest-physical. Everything that isn't mapped here is absent: page 0, the
//! gaps between the pages of the system slot (which guard its stacks), the page below the guest's
//! stack, the page tables themselves.

use abi::layout::{self, LARGE_PAGE_BYTES, PAGE_BYTES, PAGE_TABLES, PAGE_TABLES_END};
use vdev::GuestRam;
use vm_memory::{Bytes, GuestAddress};

use crate::elf::ElfImage;
use crate::host::KvmKind;

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
// Set from the start, so that the CPU never has to write to a table.
const ACCESSED_DIRTY: u64 = 3 << 5;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
const ENTRIES: usize = 512;

/// Who may do what with a range of guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protection {
    UserRead,
    UserReadWrite,
    UserExecute,
    SupervisorReadWrite,
    SupervisorExecute,
}

impl Protection {
    fn bits(self) -> u64 {
        PRESENT
            | ACCESSED_DIRTY
            | match self {
                Self::UserRead => USER | NO_EXECUTE,
                Self::UserReadWrite => USER | WRITABLE | NO_EXECUTE,
                Self::UserExecute => USER,
                Self::SupervisorReadWrite => WRITABLE | NO_EXECUTE,
                Self::SupervisorExecute => 0,
            }
    }
}

/// More page tables were needed than there is room for (a bug: RAM is limited accordingly).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the page tables do not fit their {} bytes", PAGE_TABLES_END - PAGE_TABLES)]
pub struct PageTablesFull;

/// Writes the page tables of a guest to the system slot. The root is at [`PAGE_TABLES`].
///
/// `stack_guard` is the one page of RAM that stays absent.
///
/// # Errors
/// [`PageTablesFull`].
pub fn build(
    system: &GuestRam,
    image: &ElfImage,
    stack_guard: u64,
    ram_end: u64,
    kind: KvmKind,
) -> Result<(), PageTablesFull> {
    use Protection::{
        SupervisorExecute, SupervisorReadWrite, UserExecute, UserRead, UserReadWrite,
    };
    let mut tables = Tables { pages: vec![[0; ENTRIES]] };
    let page = |address| (address, address + PAGE_BYTES);
    // On software KVM the `syscall` stub runs at CPL 3; on hardware SMEP and SMAP forbid that it
    // be a user page.
    let (stub, stub_stack) = match kind {
        KvmKind::Software => (UserExecute, UserReadWrite),
        KvmKind::Hardware => (SupervisorExecute, SupervisorReadWrite),
    };
    for ((start, end), protection) in [
        ((layout::BOOT_PAGE, layout::STRINGS + layout::STRINGS_BYTES), UserRead),
        ((layout::DOORBELL_PAGE, layout::LOG_AREA + layout::LOG_BYTES), UserReadWrite),
        (page(layout::GATES_PAGE), SupervisorExecute),
        (page(layout::GATE_STACK), SupervisorReadWrite),
        (page(layout::GDT), SupervisorReadWrite),
        (page(layout::IDT), SupervisorReadWrite),
        (page(layout::TSS), SupervisorReadWrite),
        (page(layout::SYSCALL_STUB), stub),
        (page(layout::SYSCALL_STACK), stub_stack),
    ] {
        tables.map(start, end, protection)?;
    }
    for segment in &image.segments {
        let protection = match (segment.execute, segment.write) {
            (true, _) => UserExecute,
            (false, true) => UserReadWrite,
            (false, false) => UserRead,
        };
        tables.map(segment.page_start(), segment.page_end(), protection)?;
    }
    tables.map(image.end, stack_guard, UserReadWrite)?;
    tables.map(stack_guard + PAGE_BYTES, ram_end, UserReadWrite)?;
    tables.write(system);
    Ok(())
}

/// Page tables under construction; page 0 is the root, and page *i* will lie at
/// [`PAGE_TABLES`] + *i* pages.
struct Tables {
    pages: Vec<[u64; ENTRIES]>,
}

impl Tables {
    fn map(&mut self, start: u64, end: u64, protection: Protection) -> Result<(), PageTablesFull> {
        let mut address = start;
        while address < end {
            let large =
                address.is_multiple_of(LARGE_PAGE_BYTES) && end - address >= LARGE_PAGE_BYTES;
            let (leaf_shift, extra) = if large { (21, LARGE) } else { (12, 0) };
            *self.entry(address, leaf_shift)? = address | protection.bits() | extra;
            address += 1 << leaf_shift;
        }
        Ok(())
    }

    /// The entry for `address` in the table of the level whose entries span `1 << leaf_shift`
    /// bytes; makes the tables above it.
    fn entry(&mut self, address: u64, leaf_shift: u32) -> Result<&mut u64, PageTablesFull> {
        let index = |shift: u32| (address >> shift) as usize % ENTRIES;
        let mut table = 0;
        let mut shift = 39;
        while shift > leaf_shift {
            let next = self.pages.len();
            let entry = &mut self.pages[table][index(shift)];
            if *entry == 0 {
                let place = PAGE_TABLES + next as u64 * PAGE_BYTES;
                if place >= PAGE_TABLES_END {
                    return Err(PageTablesFull);
                }
                *entry = place | PRESENT | WRITABLE | USER | ACCESSED_DIRTY & !(1 << 6);
                self.pages.push([0; ENTRIES]);
                table = next;
            } else {
                table =
                    ((*entry & 0x000f_ffff_ffff_f000) - PAGE_TABLES) as usize / PAGE_BYTES as usize;
            }
            shift -= 9;
        }
        Ok(&mut self.pages[table][index(leaf_shift)])
    }

    fn write(&self, system: &GuestRam) {
        for (page, place) in self.pages.iter().zip((PAGE_TABLES..).step_by(PAGE_BYTES as usize)) {
            for (entry, at) in
                page.iter().zip((place..).step_by(8)).filter(|(entry, _)| **entry != 0)
            {
                let written = system.write_obj(entry.to_le(), GuestAddress(at));
                // `entry` refuses tables beyond the slot.
                assert!(written.is_ok(), "page tables lie within the system slot");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::elf::Segment;
    use crate::memory::Memory;
    use abi::layout::RAM_BASE;

    const RAM_LEN: u64 = 64 << 20;
    const GUARD: u64 = RAM_BASE + 0x5000;

    fn built(kind: KvmKind) -> Memory {
        let segment = |address, execute, write| Segment { address, len: 0x800, execute, write };
        let image = ElfImage {
            entry: RAM_BASE + 0x1000,
            segments: vec![
                segment(RAM_BASE, false, false),
                segment(RAM_BASE + 0x1000, true, false),
                segment(RAM_BASE + 0x2000, false, true),
            ],
            writable_start: RAM_BASE + 0x2000,
            end: RAM_BASE + 0x3000,
        };
        let memory = Memory::new(RAM_LEN, image.writable_start).unwrap();
        build(&memory.system, &image, GUARD, RAM_BASE + RAM_LEN, kind).unwrap();
        memory
    }

    /// Walks the tables as the CPU would: the leaf entry, with every level's rights combined.
    fn walk(memory: &Memory, address: u64) -> Option<u64> {
        let mut table = PAGE_TABLES;
        let mut rights = USER | WRITABLE;
        for shift in [39, 30, 21, 12] {
            let index = (address >> shift) & 0x1ff;
            let entry: u64 = memory.system.read_obj(GuestAddress(table + index * 8)).unwrap();
            if entry & PRESENT == 0 {
                return None;
            }
            rights &= entry;
            if shift == 12 || entry & LARGE != 0 && shift == 21 {
                let offset_mask = (1u64 << shift) - 1;
                let place = entry & 0x000f_ffff_ffff_f000 & !offset_mask;
                assert_eq!(place | address & offset_mask, address, "identity");
                return Some(rights & (USER | WRITABLE) | entry & (NO_EXECUTE | PRESENT));
            }
            table = entry & 0x000f_ffff_ffff_f000;
        }
        None
    }

    #[test]
    fn nothing_is_writable_and_executable() {
        for kind in [KvmKind::Software, KvmKind::Hardware] {
            let memory = built(kind);
            for address in (0..RAM_BASE + RAM_LEN).step_by(PAGE_BYTES as usize) {
                if let Some(leaf) = walk(&memory, address) {
                    assert!(leaf & WRITABLE == 0 || leaf & NO_EXECUTE != 0, "{address:#x}");
                }
            }
        }
    }

    #[test]
    fn null_guards_and_page_tables_are_absent() {
        let memory = built(KvmKind::Hardware);
        for address in [
            0,
            GUARD,
            layout::GATE_STACK - PAGE_BYTES,
            layout::GATE_STACK + PAGE_BYTES,
            layout::SYSCALL_STACK - PAGE_BYTES,
            PAGE_TABLES,
            PAGE_TABLES_END - PAGE_BYTES,
            RAM_BASE + RAM_LEN,
        ] {
            assert_eq!(walk(&memory, address), None, "{address:#x}");
        }
    }

    #[test]
    fn the_guest_reaches_only_what_is_its_own() {
        let memory = built(KvmKind::Hardware);
        let rights = |address| walk(&memory, address).unwrap();
        for address in [layout::GATES_PAGE, layout::GATE_STACK, layout::GDT, layout::TSS] {
            assert_eq!(rights(address) & USER, 0, "{address:#x}");
        }
        assert_eq!(rights(layout::SYSCALL_STUB) & USER, 0);
        assert_eq!(rights(layout::BOOT_PAGE), PRESENT | USER | NO_EXECUTE);
        assert_eq!(rights(RAM_BASE), PRESENT | USER | NO_EXECUTE);
        assert_eq!(rights(RAM_BASE + 0x1000), PRESENT | USER);
        for address in [layout::DOORBELL_PAGE, RAM_BASE + 0x2000, RAM_BASE + RAM_LEN - 1] {
            assert_eq!(rights(address), PRESENT | USER | WRITABLE | NO_EXECUTE, "{address:#x}");
        }
    }

    #[test]
    fn the_most_ram_fits_and_more_is_refused() {
        let mut tables = Tables { pages: vec![[0; ENTRIES]] };
        let end = RAM_BASE + layout::RAM_BYTES_MAX;
        assert_eq!(tables.map(RAM_BASE, end, Protection::UserReadWrite), Ok(()));
        assert_eq!(tables.map(end, end * 3, Protection::UserReadWrite), Err(PageTablesFull));
    }
}
