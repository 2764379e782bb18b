//! Fuzz targets: each check is a function here, run by cargo-fuzz and by the tests.
//!
//! A check takes any bytes at all and panics if a promise is broken; a mistake in the input is no
//! promise of ours. `fuzz_targets/` holds three lines for each, `corpus/` inputs that reach deep.
//! `tests/smoke.rs` runs every check on stable in each test run, so that none of them rots.
#![forbid(unsafe_code)]

pub mod mutate;
pub mod virtqueue;

mod bytes;

/// A check and its name, which is also the name of its fuzz target and of its corpus folder.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// The name.
    pub name: &'static str,
    /// The check: panics if a promise is broken.
    pub check: fn(&[u8]),
}

/// All targets.
pub const TARGETS: &[Target] = &[Target { name: "virtqueue", check: virtqueue::check }];
