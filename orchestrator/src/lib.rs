//! The command `hypha`: from a spec to running workloads.
//!
//! * [`cli`]: the verbs and their options. [`doctor`]: what this host can do.
//! * [`state`]: the state directory: locks, keys, volumes.
//! * [`launch`]: a deployment and its keys → what each `vmm` process is told.
//! * [`supervisor`]: when machines start, restart and stop (pure). [`run`]: the processes.
//! * [`ports`]: published ports, each a mesh member of its own that splices TCP.
//! * [`chain`], [`keys`], [`farm`], [`node`], [`market`]: capacity for tokens, on a chain.
//! * [`output`], [`lines`]: what people and programs read. [`clock`]: where time is read.
#![forbid(unsafe_code)]

pub mod chain;
pub mod cli;
pub mod clock;
pub mod disk;
pub mod doctor;
pub mod farm;
pub mod files;
pub mod gateway;
pub mod keys;
pub mod launch;
pub mod lines;
pub mod market;
pub mod mesh;
pub mod node;
pub mod output;
pub mod ports;
pub mod run;
mod scrape;
pub mod state;
pub mod storage;
pub mod supervisor;
pub mod volume;

/// The exit codes of `hypha`; `hypha run` also ends with a workload's own, 0 to 123, with 126 (the
/// guest crashed) and 127 (the guest broke the device contract).
pub mod exit_code {
    /// Something failed that has no code of its own.
    pub const FAILURE: i32 = 1;
    /// The spec or the command line is wrong; nothing was started.
    pub const BAD_SPEC: i32 = 2;
    /// There is nothing of that name.
    pub const NOT_FOUND: i32 = 3;
    /// The deployment is running, or one of its ports is taken.
    pub const CONFLICT: i32 = 4;
    /// Too few nodes answer.
    pub const UNAVAILABLE: i32 = 5;
    /// It works, with less redundancy than it should have.
    pub const DEGRADED: i32 = 6;
    /// This host can't: no KVM, no VMM, no memory, no state directory, or the sandbox was refused.
    pub const HOST_CANNOT: i32 = 125;
}
