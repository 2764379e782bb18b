//! The volume's register: formats, rules, evidence, leases, and long random runs.

mod changes;
mod cluster;
mod evidence;
mod formats;
mod leases;
mod simulation;
