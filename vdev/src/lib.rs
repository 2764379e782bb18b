//! What a virtio device is, and the queue loop that every device shares.
//!
//! A [`Device`] is a state machine over its queues. The VMM calls [`Device::process`] when the
//! guest rang the doorbell, when one of [`Device::ready_fds`] became readable, and when the deadline that
//! the last call returned has passed. There are no interrupts: the [`Progress`] that comes back
//! says which queues have new used entries, and the VMM tells the guest when it next asks.
//!
//! **Who ends what.** A request that is merely wrong gets a status byte, in the device's own
//! terms. A ring that is broken (an address outside RAM, a chain that loops, an index out of range)
//! is a [`DeviceError`] and ends the VM: see [`queue`].
#![forbid(unsafe_code)]

pub mod driver;
pub mod queue;

use std::os::fd::BorrowedFd;

pub use queue::{Chain, DeviceQueue, QueueLayout, RingError};

/// The guest memory that devices may reach: writable RAM only, never text, the root image, page
/// tables or the trampoline.
pub type GuestRam = vm_memory::GuestMemoryMmap<()>;

/// A virtio device (virtio 1.2) whose queues are drained by its owner's event loop.
pub trait Device {
    /// The virtio device ID (virtio 1.2 §5): 1 network card, 2 block device.
    fn device_id(&self) -> u32;

    /// The feature bits that this device offers; the VMM writes them to the boot page as chosen.
    fn features(&self) -> u64;

    /// The driver takes these features of those offered that change what it gets: from now on, until
    /// it says otherwise. What was not offered is left out by the caller.
    fn accept(&mut self, _features: u64) {}

    /// The size of each queue in descriptors, each a power of two up to 32768.
    fn queue_sizes(&self) -> &[u16];

    /// The device configuration structure, as the virtio specification lays it out.
    fn config_space(&self) -> Vec<u8>;

    /// Consumes what the driver made available, moves finished work to the used rings, and does
    /// the I/O that is ready. Never blocks for a peer.
    ///
    /// `queues` has one entry per [`Device::queue_sizes`]; `now_ns` is CLOCK_BOOTTIME in
    /// nanoseconds, which counts while the host sleeps, as a lease does.
    ///
    /// # Errors
    /// A broken ring or a back end that can't go on; either ends the VM.
    fn process(
        &mut self,
        queues: &mut [DeviceQueue],
        ram: &GuestRam,
        now_ns: u64,
    ) -> Result<Progress, DeviceError>;

    /// Does what can't wait until a guest that computes asks for something: answers peers, renews a
    /// lease. Called before the guest runs, and again at the time (CLOCK_BOOTTIME nanoseconds) that
    /// the last call returned, which takes the guest out of its work; `None`: never again. Touches
    /// no guest memory, which changes only when the guest asks.
    fn attend(&mut self, _now_ns: u64) -> Option<u64> {
        None
    }

    /// Names the descriptors whose readability means that [`Device::process`] has something to do.
    fn ready_fds<'a>(&'a self, watch: &mut dyn FnMut(BorrowedFd<'a>));

    /// Writes back what the device holds and releases its back end. Called once, when the VM ends
    /// in good order (not after a crash of the process).
    ///
    /// # Errors
    /// What could not be made durable, in the device's words.
    fn close(&mut self) -> Result<(), DeviceError>;
}

/// What one call of [`Device::process`] did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bit *i* is set if queue *i* has new used entries that the guest has not been told of.
    pub used_queues: u32,
    /// When to call again even if nothing happens (CLOCK_BOOTTIME nanoseconds).
    pub deadline_ns: Option<u64>,
}

/// Why a device can't go on; the VM ends with this message.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The driver broke the ring of a queue.
    #[error("queue {queue}: {source}")]
    Ring {
        /// The index of the queue within the device.
        queue: usize,
        /// The rule that was broken.
        source: RingError,
    },
    /// The back end failed for good.
    #[error("{0}")]
    Backend(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl DeviceError {
    /// Whether the guest is at fault (as opposed to the host's back end).
    #[must_use]
    pub fn is_guest_fault(&self) -> bool {
        matches!(self, Self::Ring { .. })
    }
}
