//! `hypha volume`: volumes without a VM.

pub mod manifest;
pub mod node_spec;
