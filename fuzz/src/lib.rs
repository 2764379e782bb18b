//! Fuzz targets: each check is a function here, run by cargo-fuzz and by the tests.
//!
//! A check takes any bytes at all and panics if a promise is broken; a mistake in the input is no
//! promise of ours. It returns whether the input got all the way (an image that would boot, a
//! packet that arrived), so that a corpus which no longer reaches deep is noticed.
//! `fuzz_targets/` holds three lines for each, `corpus/` its seed inputs. `tests/smoke.rs` runs
//! every check on stable in each test run, so that none of them rots.
#![forbid(unsafe_code)]

pub mod boot_elf;
pub mod certificate;
pub mod chain_answer;
pub mod chain_question;
pub mod chain_transaction;
pub mod dhcp;
pub mod disk;
pub mod dns;
pub mod journal;
pub mod map_pages;
pub mod mesh;
pub mod mesh_handshake;
pub mod mesh_link;
pub mod mesh_node;
pub mod mesh_router;
pub mod mutate;
pub mod mycelium;
pub mod nat;
pub mod nbd;
pub mod offload;
pub mod participant;
pub mod proof_node;
pub mod pulse_answer;
pub mod register;
pub mod segment;
pub mod shard_handshake;
pub mod shard_request;
pub mod shard_response;
pub mod sni;
pub mod spec_json;
pub mod virtqueue;

mod bytes;
mod packets;

/// A check and its name, which is also the name of its fuzz target and of its corpus folder.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// The name.
    pub name: &'static str,
    /// The check: panics if a promise is broken, and says whether the input got all the way.
    pub check: fn(&[u8]) -> bool,
    /// How many mutations a test run tries: some seconds without optimisation.
    pub runs: u64,
}

/// All targets.
pub const TARGETS: &[Target] = &[
    Target { name: "boot_elf", check: boot_elf::check, runs: 20000 },
    Target { name: "certificate", check: certificate::check, runs: 3000 },
    Target { name: "chain_answer", check: chain_answer::check, runs: 20000 },
    Target { name: "chain_question", check: chain_question::check, runs: 500 },
    Target { name: "chain_transaction", check: chain_transaction::check, runs: 2000 },
    Target { name: "dhcp", check: dhcp::check, runs: 20000 },
    Target { name: "disk", check: disk::check, runs: 500 },
    Target { name: "dns", check: dns::check, runs: 10000 },
    Target { name: "journal", check: journal::check, runs: 1000 },
    Target { name: "map_pages", check: map_pages::check, runs: 2000 },
    Target { name: "mesh", check: mesh::check, runs: 800 },
    Target { name: "mesh_handshake", check: mesh_handshake::check, runs: 500 },
    Target { name: "mesh_link", check: mesh_link::check, runs: 20000 },
    Target { name: "mesh_node", check: mesh_node::check, runs: 300 },
    Target { name: "mesh_router", check: mesh_router::check, runs: 5000 },
    Target { name: "mycelium", check: mycelium::check, runs: 1000 },
    Target { name: "nat", check: nat::check, runs: 10000 },
    Target { name: "nbd", check: nbd::check, runs: 20000 },
    Target { name: "offload", check: offload::check, runs: 3000 },
    Target { name: "participant", check: participant::check, runs: 2000 },
    Target { name: "proof_node", check: proof_node::check, runs: 5000 },
    Target { name: "pulse_answer", check: pulse_answer::check, runs: 500 },
    Target { name: "register", check: register::check, runs: 2000 },
    Target { name: "segment", check: segment::check, runs: 2000 },
    Target { name: "shard_handshake", check: shard_handshake::check, runs: 500 },
    Target { name: "shard_request", check: shard_request::check, runs: 500 },
    Target { name: "shard_response", check: shard_response::check, runs: 500 },
    Target { name: "sni", check: sni::check, runs: 20000 },
    Target { name: "spec_json", check: spec_json::check, runs: 10000 },
    Target { name: "virtqueue", check: virtqueue::check, runs: 20000 },
];
