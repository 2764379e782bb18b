//! What can be done to the nodes of a world, and to the way to them.

use super::{Event, Service, World};
use crate::files::sim::{Faults, SimDisk, Which};
use crate::service::{NodeIdentity, NodeOpenError, NodeOptions};

impl World {
    /// A node's disk, to be looked at or damaged.
    #[must_use]
    pub fn disk(&self, node: usize) -> Option<&SimDisk> {
        self.nodes.get(node).map(|node| &node.disk)
    }

    /// Whether a node is up.
    #[must_use]
    pub fn is_up(&self, node: usize) -> bool {
        self.nodes.get(node).is_some_and(|node| node.service.is_some())
    }

    /// The machine stops; what was not synced may be lost. Whoever is connected notices soon.
    pub fn crash(&mut self, node: usize) {
        self.note(&format!("node {node} crashes"));
        self.stop(node);
        let Some(here) = self.nodes.get(node) else { return };
        here.disk.crash(&mut self.rng);
    }

    /// The process stops, the machine does not: nothing is lost that was written.
    pub fn stop(&mut self, node: usize) {
        let at_ns = self.now_ns + self.network.delay_ns;
        let Some(here) = self.nodes.get_mut(node) else { return };
        here.service = None;
        here.life += 1;
        here.waiting.clear();
        here.syncing = false;
        let lost: Vec<(usize, u64)> = (0..)
            .zip(&self.writers)
            .filter_map(|(writer, one)| Some((writer, one.links.get(node)?.connection)))
            .collect();
        for (writer, connection) in lost {
            self.schedule(at_ns, Event::Lost { writer, node, connection });
        }
    }

    /// The machine starts again after so long, unless it crashes once more before.
    pub fn start_after(&mut self, node: usize, ns: u64) {
        let life = self.nodes.get(node).map_or(0, |node| node.life);
        self.schedule(self.now_ns + ns, Event::Restart { node, life });
    }

    /// Starts a node that is down. One that can't use its disk stays down, and the log says why.
    pub fn start(&mut self, node: usize) {
        if self.is_up(node) {
            return;
        }
        match self.open(node) {
            Some(Ok(service)) => {
                self.note(&format!("node {node} is up"));
                if let Some(here) = self.nodes.get_mut(node) {
                    here.service = Some(service);
                }
            }
            Some(Err(error)) => self.note(&format!("node {node} can't start: {error}")),
            None => {}
        }
    }

    fn open(&self, node: usize) -> Option<Result<Service, NodeOpenError>> {
        let here = self.nodes.get(node)?;
        let opened = Service::open(here.disk.files(), &here.options);
        Some(opened.map(|(service, _)| service))
    }

    /// The node is replaced by a blank one, which is nobody's acceptor.
    pub fn forget(&mut self, node: usize) {
        self.note(&format!("node {node} forgets everything"));
        self.stop(node);
        let seed = self.rng.next_u64();
        let mut identity = NodeIdentity { node: [0; 16], acceptor_seed: [0; 32].into() };
        self.rng.fill(&mut identity.node);
        self.rng.fill(identity.acceptor_seed.as_mut_slice());
        if let Some(here) = self.nodes.get_mut(node) {
            here.disk = SimDisk::new(seed);
            let capacity_bytes = here.options.capacity_bytes;
            here.options = NodeOptions { capacity_bytes, create: Some(identity) };
        }
        self.start(node);
        if let Some(here) = self.nodes.get_mut(node) {
            // Only now: one that finds its disk blank later has lost it.
            here.options.create = None;
        }
    }

    /// A copy of what is on a node's disk.
    #[must_use]
    pub fn image(&self, node: usize) -> Option<SimDisk> {
        self.disk(node).map(SimDisk::copy)
    }

    /// The node's disk becomes what it was; with `keep_promises` what it has promised stays.
    pub fn roll_back(&mut self, node: usize, image: &SimDisk, keep_promises: bool) {
        self.note(&format!("node {node} is rolled back (keeps its promises: {keep_promises})"));
        self.stop(node);
        if let Some(here) = self.nodes.get_mut(node) {
            let disk = image.copy();
            if keep_promises {
                let len = here.disk.len(Which::Meta);
                let meta = here.disk.bytes(Which::Meta, 0, usize::try_from(len).unwrap_or(0));
                disk.set_bytes(Which::Meta, 0, &meta);
            }
            here.disk = disk;
        }
        self.start(node);
    }

    /// Flips bits of what a node has stored.
    pub fn rot(&mut self, node: usize, which: Which, bits: u32) {
        self.note(&format!("node {node}: {bits} bits of {which:?} flip"));
        let Some(here) = self.nodes.get(node) else { return };
        for _ in 0..bits {
            here.disk.rot(which, &mut self.rng);
        }
    }

    /// A node's disk misbehaves from now on.
    pub fn set_faults(&mut self, node: usize, faults: Faults) {
        if faults != Faults::default() {
            self.note(&format!("node {node}: {faults:?}"));
        }
        if let Some(here) = self.nodes.get(node) {
            here.disk.set_faults(faults);
        }
    }

    /// Each answer of the node takes so much longer.
    pub fn slow(&mut self, node: usize, ns: u64) {
        self.note(&format!("node {node} answers {} us late", ns / 1000));
        if let Some(here) = self.nodes.get_mut(node) {
            here.slow_ns = ns;
        }
    }

    /// Nothing passes between a writer and a node from now on, or everything does again.
    pub fn cut(&mut self, writer: usize, node: usize, cut: bool) {
        let what = if cut { "is cut off from" } else { "reaches" };
        self.note(&format!("writer {writer} {what} node {node}"));
        if let Some(link) = self.link(writer, node) {
            link.cut = cut;
        }
    }

    /// A writer's connection to a node is lost: what it has sent may still come to the node, later.
    pub fn reset(&mut self, writer: usize, node: usize) {
        self.note(&format!("writer {writer} loses its connection to node {node}"));
        if let Some(link) = self.link(writer, node).copied() {
            self.lose(writer, node, link.connection);
        }
    }

    /// Everybody reaches every node again.
    pub fn heal_all(&mut self) {
        for link in self.writers.iter_mut().flat_map(|writer| &mut writer.links) {
            link.cut = false;
        }
    }
}
