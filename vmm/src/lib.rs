//! A purpose-built virtual machine monitor for guests without a ring 0: one process, one VM.
#![deny(unsafe_code)]

pub mod alarm;
pub mod backends;
pub mod boot;
pub mod cli;
pub mod crash;
pub mod devices;
pub mod elf;
pub mod host;
pub mod kvm;
pub mod launch;
pub mod memory;
pub mod output;
pub mod paging;
pub mod process;
pub mod sandbox;
pub mod trampoline;
pub mod vm;
pub mod volumes;
