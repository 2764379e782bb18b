//! What a machine has, measured before anything is claimed: each value with where it comes from, and
//! what can be proven with it in a pulse.
//!
//! What the kernel lists is not what a process may use (affinity, control groups) nor what it is worth
//! (threads that share a core, a disk behind a hypervisor): so the speed is measured.

mod cgroup;
mod disk;
mod disk_speed;
mod memory;
mod network;
mod processors;
mod report;
mod sources;
mod speed;

use std::io;
use std::path::PathBuf;

use hypha_proofs::Rules;
use hypha_proofs::cpu::THREADS_MAX;

pub use cgroup::Limits;
pub use disk::{Disk, DiskClass};
pub use disk_speed::{DiskSpeed, FILE_BYTES_MAX};
pub use memory::Memory;
pub use network::{Card, cards};
pub use processors::Processors;
pub use sources::Sources;
pub use speed::Speed;

/// Of the memory that is free, this part is proposed for the table: the rest is for everything else.
const MEMORY_SHARE: (u64, u64) = (4, 5);
/// Of what is free on a disk, a twentieth stays free.
pub const DISK_RESERVE_SHARE: u64 = 20;

/// What was found out about a machine.
#[derive(Debug, Clone, PartialEq)]
pub struct Machine {
    /// Its processors.
    pub processors: Processors,
    /// Its memory.
    pub memory: Memory,
    /// The disks of the folders that were asked for.
    pub disks: Vec<Disk>,
    /// Its network cards.
    pub cards: Vec<Card>,
    /// Maker and product, as the firmware says.
    pub product: Option<String>,
    /// How fast its processors are, if that was measured.
    pub speed: Option<Speed>,
}

/// What a node could claim and prove with all of a machine that is free now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Provable {
    /// Units of computing: chains that all threads together end in time.
    pub units: u16,
    /// MiB of a table.
    pub mem_mib: u32,
    /// MiB of filler on disks without moving parts.
    pub ssd_mib: u64,
    /// MiB of filler on others.
    pub hdd_mib: u64,
    /// Mbit/s of the fastest card that has a line: claimed, until peers have measured it.
    pub mbps: u32,
}

/// A folder that can't be measured.
#[derive(Debug, thiserror::Error)]
#[error("{folder}: {source}")]
pub struct MeasureError {
    /// Which.
    pub folder: PathBuf,
    /// Why.
    #[source]
    pub source: io::Error,
}

impl Machine {
    /// Looks at a machine, with the disks of `folders`; measures nothing.
    ///
    /// # Errors
    /// [`MeasureError`].
    pub fn look(sources: &Sources, folders: &[PathBuf]) -> Result<Self, MeasureError> {
        let limits = Limits::read(sources);
        let disk = |folder: &PathBuf| {
            let failed = |source| MeasureError { folder: folder.clone(), source };
            Disk::of(folder, sources).map_err(failed)
        };
        let dmi = |what: &str| sources.text(&format!("sys/class/dmi/id/{what}"));
        let product = [dmi("sys_vendor"), dmi("product_name")];
        let product: Vec<String> = product.into_iter().flatten().collect();
        Ok(Self {
            processors: Processors::read(sources, &limits),
            memory: Memory::read(sources, &limits),
            disks: folders.iter().map(disk).collect::<Result<_, _>>()?,
            cards: cards(sources),
            product: (!product.is_empty()).then(|| product.join(" ")),
            speed: None,
        })
    }

    /// Measures processors and disks, for some seconds each. `progress` is told what is measured next.
    ///
    /// # Errors
    /// [`MeasureError`].
    pub fn measure(&mut self, mut progress: impl FnMut(&str)) -> Result<(), MeasureError> {
        progress("processors and memory");
        self.speed = Some(Speed::measure(self.processors.usable(), self.memory.usable()));
        for disk in &mut self.disks {
            progress(&format!("the disk of {}", disk.folder.display()));
            disk.speed = DiskSpeed::measure(&disk.folder, disk.free)
                .map_err(|source| MeasureError { folder: disk.folder.clone(), source })?;
        }
        Ok(())
    }

    /// What could be proven in a pulse with what is free now.
    #[must_use]
    pub fn provable(&self, rules: &Rules) -> Provable {
        // What was not measured is taken for a unit by thread.
        let usable = self.processors.usable().min(THREADS_MAX);
        let units = self.speed.map_or(usable, |speed| speed.units(rules));
        let (part, whole) = MEMORY_SHARE;
        let mem_mib = (self.memory.usable() / whole * part) >> 20;
        let slow_walk = self.speed.is_some_and(|speed| speed.walk_time_ns(rules) > rules.full_ns());
        let mib = |class: DiskClass| {
            let disks =
                self.disks.iter().filter(|disk| disk.class.unwrap_or(DiskClass::Hdd) == class);
            // Two folders on one disk are one disk.
            let mut seen: Vec<&Option<String>> = Vec::new();
            let mut sum = 0;
            for disk in disks.filter(|disk| disk.reads_in_time(rules)) {
                if disk.device.is_some() && seen.contains(&&disk.device) {
                    continue;
                }
                seen.push(&disk.device);
                sum += (disk.free - disk.free / DISK_RESERVE_SHARE) >> 20;
            }
            sum
        };
        let lines = self.cards.iter().filter(|card| card.up && card.device);
        Provable {
            units,
            mem_mib: if slow_walk { 0 } else { u32::try_from(mem_mib).unwrap_or(u32::MAX) },
            ssd_mib: mib(DiskClass::Ssd),
            hdd_mib: mib(DiskClass::Hdd),
            mbps: lines.filter_map(|card| card.mbps).max().unwrap_or_default(),
        }
    }
}

impl Disk {
    /// Whether the reads of a pulse end in time, one after the other.
    #[must_use]
    pub fn reads_in_time(&self, rules: &Rules) -> bool {
        let all = |speed: DiskSpeed| speed.seek_ns.saturating_mul(rules.disk_draws.into());
        self.speed.is_none_or(|speed| all(speed) < rules.commit_ns)
    }
}
