//! JSON specs parsed once into checked types.
//!
//! * [`vm`]: what one `vmm` process is told; written by `hypha`, read by `vmm`.
//! * [`size`]: byte sizes as people write them.
//! * [`secret`]: 32-byte keys that are erased after use and never printed.
#![forbid(unsafe_code)]

pub mod secret;
pub mod size;
pub mod vm;
