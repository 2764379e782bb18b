//! Faults within a budget: at any time at most so many nodes are *damaged*, which a node is from
//! its first fault on until everything that it should have has been put on it again.

use std::collections::{BTreeMap, BTreeSet};

use storage_vdev::files::sim::{Faults, Rng, Which};
use storage_vdev::sim_nodes::Shared;

use crate::host::Weather;

/// What may happen to a node. Chances in a million for each event of the world.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Climate {
    /// Chance that something happens to a node.
    pub(crate) fault: u32,
    /// Chance that the host crashes.
    pub(crate) host_crash: u32,
    /// Chance that a node is full for a while.
    pub(crate) full: u32,
    /// Whether nodes lose or damage what they had stored, too.
    pub(crate) losses: bool,
}

/// The faults of one run.
pub(crate) struct Storm {
    pub(crate) rng: Rng,
    pub(crate) climate: Climate,
    /// The most nodes that are damaged at a time.
    pub(crate) budget: usize,
    pub(crate) damaged: BTreeSet<usize>,
    /// Nodes without room, and until when.
    pub(crate) full: BTreeMap<usize, u64>,
    /// Whether nodes are acceptors: their promises are not to be taken back behind their names.
    pub(crate) register: bool,
    /// How many there were.
    pub(crate) faults: u64,
}

impl Weather for Storm {
    fn step(&mut self, world: &Shared, writer: usize) -> bool {
        self.make_room(world, false);
        if self.rng.chance(self.climate.full) {
            self.fill(world);
        }
        if self.rng.chance(self.climate.fault) {
            self.strike(world, writer);
        }
        if self.rng.chance(self.climate.host_crash) {
            world.borrow_mut().note("the host crashes");
            return false;
        }
        true
    }
}

impl Storm {
    /// A node has no room for some seconds. That damages nothing.
    fn fill(&mut self, world: &Shared) {
        let mut world = world.borrow_mut();
        let node = self.rng.below(world.nodes() as u64) as usize;
        let until_ns = world.now_ns() + 1 + self.rng.below(20_000_000_000);
        if let Some(disk) = world.disk(node) {
            disk.set_space(Some(0));
            self.full.insert(node, until_ns);
            self.faults += 1;
            world.note(&format!("node {node} is full"));
        }
    }

    /// Nodes have room again, those whose time has come or all.
    pub(crate) fn make_room(&mut self, world: &Shared, all: bool) {
        if self.full.is_empty() {
            return;
        }
        let mut world = world.borrow_mut();
        let now_ns = world.now_ns();
        for (node, _) in self.full.extract_if(.., |_, until_ns| all || *until_ns <= now_ns) {
            if let Some(disk) = world.disk(node) {
                disk.set_space(None);
            }
            world.note(&format!("node {node} has room again"));
        }
    }

    /// A node that something may happen to.
    fn victim(&mut self, nodes: usize) -> Option<usize> {
        if self.damaged.len() < self.budget {
            let node = self.rng.below(nodes as u64) as usize;
            self.damaged.insert(node);
            return Some(node);
        }
        let nth = self.rng.below(self.damaged.len() as u64) as usize;
        self.damaged.iter().nth(nth).copied()
    }

    fn strike(&mut self, world: &Shared, writer: usize) {
        let mut world = world.borrow_mut();
        let Some(node) = self.victim(world.nodes()) else { return };
        self.faults += 1;
        let rng = &mut self.rng;
        let kinds = if self.climate.losses { 16 } else { 9 };
        let kind = match rng.below(kinds) {
            12 | 13 if self.register => 9,
            kind => kind,
        };
        match kind {
            0 => world.crash(node),
            1 => {
                // In the middle of what it does next.
                if let Some(disk) = world.disk(node) {
                    disk.crash_at(Some(disk.operations() + rng.below(6)));
                }
                world.note(&format!("node {node} will crash"));
            }
            2 => {
                world.crash(node);
                let after_ns = rng.below(3_000_000_000);
                world.start_after(node, after_ns);
            }
            3 => world.start(node),
            4 => world.cut(writer, node, true),
            5 => world.cut(writer, node, false),
            6 => {
                let late_ns = rng.below(400_000_000);
                world.slow(node, late_ns);
            }
            7 | 8 => world.reset(writer, node),
            9 => world.forget(node),
            10 => world.rot(node, Which::Objects, 1 + rng.below(20) as u32),
            11 => world.rot(node, Which::Journal, 1 + rng.below(20) as u32),
            12 => world.set_faults(node, Faults { lost_write: 50_000, ..Faults::default() }),
            13 => world.set_faults(node, Faults { misdirected_write: 50_000, ..Faults::default() }),
            14 => world.set_faults(node, Faults { sync_error: 50_000, ..Faults::default() }),
            _ => world.set_faults(
                node,
                Faults { write_error: 20_000, read_error: 20_000, ..Faults::default() },
            ),
        }
    }

    /// All nodes work again from now on, with what they have; one that can't start is replaced.
    pub(crate) fn clear(&mut self, world: &Shared) {
        self.make_room(world, true);
        let mut world = world.borrow_mut();
        world.note("all nodes are put in order");
        for node in 0..world.nodes() {
            world.set_faults(node, Faults::default());
            if self.damaged.contains(&node) {
                world.slow(node, 0);
                if let Some(disk) = world.disk(node)
                    && disk.has_crashed()
                {
                    world.crash(node);
                }
                if let Some(disk) = world.disk(node) {
                    disk.crash_at(None);
                }
                // A disk that has failed works again after a restart.
                world.stop(node);
                world.start(node);
                if !world.is_up(node) {
                    world.forget(node);
                }
            }
        }
        world.heal_all();
    }
}
