//! The unikernel library: a whole guest in ring 3.
//!
//! A guest is one program linked to this library. It runs at CPL 3 in one address space, without
//! interrupts: it computes, queues requests for its devices, and leaves the guest only to wait.
#![no_std]
#![deny(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod block;
pub mod clock;
pub mod dma;
pub mod entry;
#[cfg(all(feature = "image", not(test)))]
mod heap;
pub mod log;
#[cfg(all(feature = "image", not(test)))]
pub mod machine;
pub mod net;
pub mod programs;
pub mod runtime;
pub mod task;
pub mod virtio;
