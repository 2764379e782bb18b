//! The volume's register: formats, rules, evidence, leases, and long random runs.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod changes;
mod cluster;
mod evidence;
mod formats;
mod leases;
mod simulation;
