//! Guest memory: one memfd, three mappings, three KVM memory slots.
//!
//! | slot | guest-physical | who may write it |
//! |---|---|---|
//! | 0 | system slot: shared pages, trampoline, page tables | the VMM; the guest its three pages |
//! | 1 | the image's text and constants | nobody once loaded; a read-only slot |
//! | 2 | RAM: the image's data and everything behind it | the guest and its devices |
//!
//! Devices are handed [`Memory::ram`], which contains slot 2 only.

use std::fs::File;
use std::sync::Arc;

use abi::layout::{RAM_BASE, SYSTEM_BASE, SYSTEM_BYTES};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vdev::GuestRam;
use vm_memory::mmap::MmapRegionError;
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap, MmapRegion,
};

/// Why guest memory can't be had.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The memfd can't be made or sized.
    #[error("cannot get {bytes} bytes of guest memory: {source}")]
    Memfd {
        /// The bytes wanted.
        bytes: u64,
        /// The system's reason.
        source: rustix::io::Errno,
    },
    /// It can't be mapped.
    #[error("cannot map guest memory: {0}")]
    Map(#[from] MmapRegionError),
    /// The regions are malformed (a bug).
    #[error("guest memory regions clash: {0}")]
    Regions(#[from] vm_memory::GuestRegionCollectionError),
}

/// The memory of one VM.
#[derive(Debug)]
pub struct Memory {
    /// The system slot.
    pub system: GuestRam,
    /// What devices may reach.
    pub ram: GuestRam,
    /// Text and RAM together: what the loader fills and a crash report reads.
    pub image: GuestRam,
}

/// One KVM memory slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// Guest-physical start.
    pub guest_address: u64,
    /// Where it is mapped in this process.
    pub host_address: u64,
    /// Its bytes.
    pub len: u64,
    /// Whether the guest may not write it, whatever its page tables say.
    pub read_only: bool,
}

impl Memory {
    /// Makes memory with `ram_len` bytes of RAM at [`RAM_BASE`], of which those from
    /// `writable_start` on are writable.
    ///
    /// # Errors
    /// The system refuses memory or address space.
    pub fn new(ram_len: u64, writable_start: u64) -> Result<Self, MemoryError> {
        let bytes = SYSTEM_BYTES + ram_len;
        let refused = |source| MemoryError::Memfd { bytes, source };
        let memfd = memfd_create("hypha-guest", MemfdFlags::CLOEXEC).map_err(refused)?;
        ftruncate(&memfd, bytes).map_err(refused)?;
        let file = Arc::new(File::from(memfd));
        let text_len = writable_start - RAM_BASE;
        let map = |start: u64, offset: u64, len: u64| -> Result<_, MemoryError> {
            let file = FileOffset::from_arc(Arc::clone(&file), offset);
            let region = MmapRegion::from_file(file, len as usize)?;
            Ok(GuestRegionMmap::new(region, GuestAddress(start)).map(Arc::new))
        };
        let system = map(SYSTEM_BASE, 0, SYSTEM_BYTES)?;
        let ram = map(writable_start, SYSTEM_BYTES + text_len, ram_len - text_len)?;
        let text = if text_len > 0 { map(RAM_BASE, SYSTEM_BYTES, text_len)? } else { None };
        let collect = |regions: Vec<Option<Arc<_>>>| {
            GuestRam::from_arc_regions(regions.into_iter().flatten().collect())
        };
        Ok(Self {
            system: collect(vec![system])?,
            ram: collect(vec![ram.clone()])?,
            image: collect(vec![text, ram])?,
        })
    }

    /// The KVM memory slots, in order.
    pub fn slots(&self) -> impl Iterator<Item = Slot> {
        let regions = self.system.iter().chain(self.image.iter());
        regions.map(|region| {
            let guest_address = region.start_addr().0;
            let writable = self.ram.find_region(region.start_addr()).is_some();
            Slot {
                guest_address,
                host_address: region.as_ptr() as u64,
                len: region.len(),
                read_only: guest_address >= RAM_BASE && !writable,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::Bytes;

    #[test]
    fn devices_reach_neither_text_nor_the_system_slot() {
        let memory = Memory::new(8 << 20, RAM_BASE + 0x3000).unwrap();
        for address in [0, SYSTEM_BASE, SYSTEM_BASE + SYSTEM_BYTES - 1, RAM_BASE, RAM_BASE + 0x2fff]
        {
            assert!(memory.ram.read_obj::<u8>(GuestAddress(address)).is_err(), "{address:#x}");
        }
        assert!(memory.ram.read_obj::<u8>(GuestAddress(RAM_BASE + 0x3000)).is_ok());
        assert!(memory.ram.read_obj::<u8>(GuestAddress(RAM_BASE + (8 << 20))).is_err());
        let read_only: Vec<bool> = memory.slots().map(|slot| slot.read_only).collect();
        assert_eq!(read_only, [false, true, false]);
    }

    #[test]
    fn the_loader_and_devices_see_the_same_ram() {
        let memory = Memory::new(4 << 20, RAM_BASE + 0x1000).unwrap();
        let address = GuestAddress(RAM_BASE + 0x1000);
        memory.image.write_obj(7u8, address).unwrap();
        assert_eq!(memory.ram.read_obj::<u8>(address).unwrap(), 7);
    }
}
