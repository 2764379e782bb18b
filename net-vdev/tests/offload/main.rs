//! Offloads through their public interface: super-frames to packets and back, against a slow
//! reference, with checksums verified by another implementation (smoltcp).
#![expect(clippy::unwrap_used, reason = "a helper that fails ends its test")]

mod coalesce;
mod frames;
mod mss;
mod segment;
