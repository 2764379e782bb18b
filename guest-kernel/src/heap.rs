//! The image's global allocator: `talc` over the heap that the boot page names.
#![expect(unsafe_code, reason = "a global allocator is an unsafe trait over raw memory")]

use core::alloc::{GlobalAlloc, Layout};
use core::cell::Cell;

use talc::TalcCell;
use talc::source::Manual;

use crate::entry;

/// The heap of a guest, claimed at the first allocation: a guest that needs none touches none.
struct Heap {
    talc: TalcCell<Manual>,
    claimed: Cell<bool>,
}

// SAFETY: a guest has one vCPU and no interrupts; an upcall never allocates. So no two threads of
// execution are ever inside the allocator at once.
unsafe impl Sync for Heap {}

#[global_allocator]
static HEAP: Heap = Heap { talc: TalcCell::new(Manual), claimed: Cell::new(false) };

impl Heap {
    fn claim(&self) {
        self.claimed.set(true);
        let boot = entry::boot_page();
        // SAFETY: the VMM names this range as RAM that nothing else uses, mapped read/write for as
        // long as the guest runs, and it's claimed once. A range too small is refused by `claim`,
        // and allocations then fail as out of memory.
        unsafe {
            self.talc.claim(boot.heap_base as *mut u8, boot.heap_len as usize);
        }
    }
}

// SAFETY: all calls go to `talc`, which upholds the contract of `GlobalAlloc`.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if !self.claimed.get() {
            self.claim();
        }
        // SAFETY: the caller upholds the contract of `GlobalAlloc::alloc`.
        unsafe { self.talc.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller upholds the contract of `GlobalAlloc::dealloc`.
        unsafe { self.talc.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller upholds the contract of `GlobalAlloc::realloc`.
        unsafe { self.talc.realloc(pointer, layout, new_size) }
    }
}
