//! A small machine with all that it committed to: real labels, real trees, a real key. What of it a
//! cheater still has is the cheater's affair.

use hypha_chain::deploy::Suite;
use hypha_chain::key::Key;
use hypha_chain::tree::ExtentKind;
use hypha_chain::{B256, keccak256};
use hypha_proofs::binding::Binding;
use hypha_proofs::label::{FILLER_LAYERS, LABEL_BYTES, TABLE_LAYERS, fill};
use hypha_proofs::prover::{Prover, Work};
use hypha_proofs::ram::Table;
use hypha_proofs::store::{ExtentTree, Store};
use hypha_proofs::verifier::Claim;
use hypha_proofs::{Challenge, Rules};

/// The network's rules, but for work in small: what is drawn is as much as from a large node, so
/// chances are the same.
pub const RULES: Rules = Rules {
    segments: 60,
    walk_steps: 1000,
    filler_bytes: EXTENT_LABELS * LABEL_BYTES as u64,
    block_bytes: BLOCK_LABELS * LABEL_BYTES as u64,
    ..Rules::STANDARD
};
/// The day that simulated networks begin on: second 1,800,000,000.
pub const DAY: u32 = 20_833;
/// The simulated chain's number.
pub const CHAIN_ID: u64 = 31337;
/// Labels of an extent: 125 leaves.
const EXTENT_LABELS: u64 = 4000;
/// Extents of a plot: somewhat less than 2 MiB in all.
pub const EXTENTS: u32 = 16;
/// Leaves of a plot: so many that thousandths can be missing.
pub const LEAVES: usize = 2000;
/// Labels of a table's block.
const BLOCK_LABELS: u64 = 1 << 14;
/// Blocks of a table: 1 MiB.
const BLOCKS: u32 = 2;
/// Threads of a machine that claims processors.
pub const THREADS: u16 = 1;
/// Bytes of a leaf.
pub const LEAF_BYTES: usize = 1024;

/// What a node claims.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claims {
    /// Threads.
    pub cpu: bool,
    /// A table.
    pub mem: bool,
    /// A plot.
    pub disk: bool,
}

impl Claims {
    /// All of it.
    pub const ALL: Self = Self { cpu: true, mem: true, disk: true };
    /// Processors alone.
    pub const CPU: Self = Self { cpu: true, mem: false, disk: false };
    /// Memory alone.
    pub const MEM: Self = Self { cpu: false, mem: true, disk: false };
    /// Disks alone.
    pub const DISK: Self = Self { cpu: false, mem: false, disk: true };
}

/// What a plot is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filling {
    /// The node's own filler.
    Own,
    /// The filler of another node of the same farm: one disk, two nodes.
    Of(u32),
    /// Bytes of a cheap hash: any of them can be made when it is asked for.
    Cheap,
    /// The same, said to be a user's.
    CheapUser,
}

/// A node and all that it has committed to.
pub struct Machine {
    /// Who it is.
    pub binding: Binding,
    /// Its chain key.
    pub key: Key,
    /// What it claims.
    pub claims: Claims,
    /// Its table of the day.
    pub table: Table,
    /// The table's labels.
    pub labels: Vec<u8>,
    /// Its extents' bytes.
    pub extents: Vec<Vec<u8>>,
    /// Its plot.
    pub store: Store,
}

/// Where the contracts are: node 0's key is who puts them on the chain.
#[must_use]
pub fn suite() -> Suite {
    Suite::at(key_of(0).address(), 0)
}

/// Whose node on which chain.
#[must_use]
pub fn binding(node: u32) -> Binding {
    let Suite { registry, capacity, disputes, .. } = suite();
    Binding { chain_id: CHAIN_ID, registry, capacity, disputes, node }
}

/// A node's chain key. No number makes an invalid one, in practice; one would stop the simulation.
///
/// # Panics
/// If a hash is no key.
#[must_use]
pub fn key_of(node: u32) -> Key {
    let seed = keccak256([b"simulated node".as_slice(), &node.to_be_bytes()].concat());
    match Key::from_bytes(&seed.0) {
        Ok(key) => key,
        Err(error) => panic!("node {node}: {error}"),
    }
}

/// What `Capacity.drawSalt` drew, and the day's beacon: the same for all, bindings keep them apart.
#[must_use]
pub fn salt() -> B256 {
    keccak256("salt")
}

/// The question of a pulse.
#[must_use]
pub fn challenge(seed: u64, pulse: u64) -> Challenge {
    let bytes = [seed.to_be_bytes(), pulse.to_be_bytes()].concat();
    Challenge { pulse, seed: keccak256(bytes) }
}

impl Machine {
    /// A machine that has plotted what it claims.
    ///
    /// # Panics
    /// Never: its sizes are constants that fit.
    #[must_use]
    pub fn new(node: u32, claims: Claims, filling: Filling) -> Self {
        let binding = binding(node);
        // What it does not claim is there in name only.
        let (extents, blocks, block_labels) = match (claims.disk, claims.mem) {
            (true, true) => (EXTENTS, BLOCKS, BLOCK_LABELS),
            (true, false) => (EXTENTS, 1, 1),
            (false, true) => (1, BLOCKS, BLOCK_LABELS),
            (false, false) => (1, 1, 1),
        };
        let extents: Vec<Vec<u8>> = (0..extents).map(|id| extent(node, id, filling)).collect();
        let block = |id| filled(binding.table(DAY, id, &salt()), TABLE_LAYERS, block_labels);
        let kind =
            if filling == Filling::CheapUser { ExtentKind::User } else { ExtentKind::Filler };
        let trees =
            extents.iter().zip(0..).map(|(it, id)| (kind, id, ExtentTree::of(it))).collect();
        let blocks: Vec<Vec<u8>> = (0..blocks).map(block).collect();
        let labels = blocks.concat();
        let (Some(table), Some(store)) = (Table::new(blocks), Store::new(trees)) else {
            panic!("a machine has a table and a plot");
        };
        Self { binding, key: key_of(node), claims, table, labels, extents, store }
    }

    /// What the chain and the day's records say of it.
    #[must_use]
    pub fn claim(&self) -> Claim {
        Claim {
            binding: self.binding,
            signer: self.key.address(),
            threads: self.threads(),
            table: self.claims.mem.then(|| self.table.record()),
            plot: self.claims.disk.then(|| self.store.record()),
        }
    }

    /// Its threads.
    #[must_use]
    pub fn threads(&self) -> u16 {
        if self.claims.cpu { THREADS } else { 0 }
    }

    /// The honest side of a pulse.
    #[must_use]
    pub fn prover(&self) -> Prover<'_> {
        Prover {
            binding: self.binding,
            rules: RULES,
            threads: self.threads(),
            table: self.claims.mem.then_some(&self.table),
            store: self.claims.disk.then_some(&self.store),
        }
    }

    /// What its disks give for a pulse; `gone` says which leaf of the plot they have lost.
    #[must_use]
    pub fn read(&self, work: &Work, gone: impl Fn(usize) -> bool) -> Vec<Vec<u8>> {
        let one = |read: &hypha_proofs::store::Read| {
            let range = read.range.start as usize..read.range.end as usize;
            let extent = self.extents.get(read.extent).map(Vec::as_slice).unwrap_or_default();
            let mut group = extent.get(range.clone()).unwrap_or_default().to_vec();
            let first =
                (read.extent * EXTENT_LABELS as usize * LABEL_BYTES + range.start) / LEAF_BYTES;
            for (at, leaf) in group.chunks_mut(LEAF_BYTES).enumerate() {
                if gone(first + at) {
                    leaf.fill(0);
                }
            }
            group
        };
        work.reads.iter().map(one).collect()
    }
}

fn extent(node: u32, id: u32, filling: Filling) -> Vec<u8> {
    let context = |node| binding(node).filler(0, id, &salt());
    match filling {
        Filling::Own => filled(context(node), FILLER_LAYERS, EXTENT_LABELS),
        Filling::Of(other) => filled(context(other), FILLER_LAYERS, EXTENT_LABELS),
        Filling::Cheap | Filling::CheapUser => {
            let seed = context(node);
            (0..EXTENT_LABELS).flat_map(|at| cheap_label(&seed, at).0).collect()
        }
    }
}

/// A label that takes one hash, whenever it is wanted.
fn cheap_label(seed: &B256, index: u64) -> B256 {
    keccak256([&seed[..], &index.to_be_bytes()].concat())
}

fn filled(context: B256, layers: u8, labels: u64) -> Vec<u8> {
    match fill(context, layers, labels) {
        Ok(bytes) => bytes,
        Err(error) => panic!("{error}"),
    }
}
