//! JSON specs parsed once into checked types.
//!
//! * [`deployment`]: the workload spec that people write; read by `hypha`.
//! * [`node`]: how a person names a node of a volume.
//! * [`vm`]: what one `vmm` process is told; written by `hypha`, read by `vmm`.
//! * [`size`], [`duration`]: byte sizes and durations as people write them.
//! * [`secret`]: 32-byte keys that are erased after use and never printed.
#![forbid(unsafe_code)]

pub mod deployment;
pub mod duration;
pub mod node;
pub mod secret;
pub mod size;
pub mod vm;
