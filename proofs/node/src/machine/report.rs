//! What was found, as a table for people and as JSON for programs.

use hypha_proofs::Rules;
use hypha_proofs::cpu::SEGMENT_STEPS;
use serde_json::{Value, json};

use super::{Card, Disk, DiskClass, Machine};

/// One line of the table.
struct Row {
    what: String,
    value: String,
    from: String,
}

impl Machine {
    /// A table: what, how much, and where that comes from; and at the end what can be proven.
    #[must_use]
    pub fn to_text(&self, rules: &Rules) -> String {
        let mut rows = self.processor_rows(rules);
        rows.extend(self.memory_rows(rules));
        for disk in &self.disks {
            rows.extend(disk_rows(disk, rules));
        }
        rows.extend(self.cards.iter().map(card_row));
        let host = self.product.clone().unwrap_or_else(|| "unknown".to_owned());
        let kind =
            if self.processors.hypervisor { "virtual machine" } else { "no hypervisor seen" };
        rows.push(row("host", format!("{kind}, {host}"), "cpuinfo's flags, DMI"));
        let width = |of: fn(&Row) -> &str| {
            rows.iter().map(|row| of(row).chars().count()).max().unwrap_or_default()
        };
        let (first, second) = (width(|row| &row.what), width(|row| &row.value));
        let mut text = String::new();
        for Row { what, value, from } in &rows {
            text += &format!("{what:<first$}  {value:<second$}  {from}\n");
        }
        let can = self.provable(rules);
        text + &format!(
            "\nWith what is free now, a pulse can prove: {} units on {} threads, {} of memory, {} of SSD, {} of \
             other disks.\nA unit, which is claimed as a core, is {} million hashes one after the other within \
             {} s.\nThe line's speed is measured by peers.\n",
            can.units,
            self.processors.usable(),
            size(u64::from(can.mem_mib) << 20),
            size(can.ssd_mib << 20),
            size(can.hdd_mib << 20),
            rules.segments * u64::from(SEGMENT_STEPS) / 1_000_000,
            rules.commit_ns / 1_000_000_000,
        )
    }

    fn processor_rows(&self, rules: &Rules) -> Vec<Row> {
        let it = &self.processors;
        let cores = if it.cores == 0 { String::new() } else { format!(" on {} cores", it.cores) };
        let model = it.model.as_deref().unwrap_or("of an unknown kind");
        let sha = if it.sha { "" } else { ", without SHA instructions" };
        let mut rows = vec![
            row("threads", format!("{}{cores}", it.online), "/sys/devices/system/cpu/online"),
            row("processor", format!("{model}{sha}"), "/proc/cpuinfo"),
            row("threads allowed", it.allowed.to_string(), "affinity, /proc/self/status"),
        ];
        if let Some(milli) = it.quota_milli {
            let threads = format!("{}.{:02}", milli / 1000, milli % 1000 / 10);
            rows.push(row("threads in quota", threads, "control groups"));
        }
        if let Some(speed) = &self.speed {
            let both = format!(
                "{:.0} ns alone, {:.0} ns with {} at once",
                speed.hash_ns, speed.hash_ns_slowest, speed.threads
            );
            rows.push(row("SHA-256 chain", both, "measured, per hash"));
            let chains = rules.segments as f64 * f64::from(SEGMENT_STEPS) / 1e9;
            let time = format!(
                "{:.2} s alone, a unit each {:.2} s together",
                chains * speed.hash_ns,
                chains * speed.hash_ns_together
            );
            let units = format!("{} units in time", speed.units(rules));
            rows.push(row("a pulse's chain", time, units));
            let filler = format!("{}/s", size(speed.filler_per_s));
            rows.push(row("filler", filler, "measured, one thread, four layers"));
        }
        rows
    }

    fn memory_rows(&self, rules: &Rules) -> Vec<Row> {
        let it = &self.memory;
        let mut rows = vec![row("memory", size(it.total), "MemTotal, /proc/meminfo")];
        if let Some(limit) = it.limit {
            rows.push(row("memory allowed", size(limit), "control groups"));
        }
        rows.push(row("memory free", size(it.usable()), "MemAvailable and control groups"));
        if let Some(speed) = &self.speed {
            let table = format!("{}/s", size(speed.table_per_s));
            rows.push(row("memory table", table, "measured, one thread, two layers"));
            let walk = speed.walk_time_ns(rules) as f64 / 1e9;
            let over = format!("measured, over {}", size(speed.walk_bytes));
            rows.push(row("a pulse's walk", format!("{walk:.2} s"), over));
        }
        rows
    }

    /// One JSON object; sizes in bytes, times in nanoseconds, unknown values null.
    #[must_use]
    pub fn to_json(&self, rules: &Rules) -> Value {
        let (processors, memory, can) = (&self.processors, &self.memory, self.provable(rules));
        let speed = self.speed.as_ref().map(|speed| {
            json!({"threads": speed.threads, "hash_ns": speed.hash_ns,
                "hash_ns_all_at_once": speed.hash_ns_slowest,
                "hash_ns_together": speed.hash_ns_together,
                "filler_bytes_per_s": speed.filler_per_s, "table_bytes_per_s": speed.table_per_s,
                "walk_step_ns": speed.walk_ns, "walk_bytes": speed.walk_bytes})
        });
        json!({
            "processors": {"model": processors.model, "online": processors.online,
                "cores": processors.cores, "allowed": processors.allowed,
                "quota_milli": processors.quota_milli, "usable": processors.usable(),
                "sha": processors.sha},
            "memory": {"total": memory.total, "available": memory.available,
                "limit": memory.limit, "usable": memory.usable()},
            "disks": self.disks.iter().map(disk_json).collect::<Vec<_>>(),
            "cards": self.cards.iter().map(|card| json!({"name": card.name, "mbps": card.mbps,
                "mtu": card.mtu, "up": card.up, "device": card.device})).collect::<Vec<_>>(),
            "host": {"hypervisor": processors.hypervisor, "product": self.product},
            "speed": speed,
            "provable": {"units": can.units, "threads": processors.usable(), "mem_mib": can.mem_mib, "ssd_mib": can.ssd_mib,
                "hdd_mib": can.hdd_mib, "mbps": can.mbps},
        })
    }
}

fn row(what: &str, value: String, from: impl Into<String>) -> Row {
    Row { what: what.to_owned(), value, from: from.into() }
}

fn class_name(class: Option<DiskClass>) -> &'static str {
    match class {
        Some(DiskClass::Ssd) => "SSD",
        Some(DiskClass::Hdd) => "HDD",
        None => "of an unknown kind",
    }
}

fn disk_rows(disk: &Disk, rules: &Rules) -> Vec<Row> {
    let name = disk.device.as_deref().unwrap_or("no device");
    let model = disk.model.as_deref().map(|model| format!(" {model}")).unwrap_or_default();
    let whole = disk.device_bytes.map(|bytes| format!(", {}", size(bytes))).unwrap_or_default();
    let value = format!("{name}{model}, {}{whole}", class_name(disk.class));
    let kind = disk.kind.as_deref().unwrap_or("file system");
    let free = format!("{} of {}", size(disk.free), size(disk.bytes));
    let mut rows = vec![
        row(&format!("disk of {}", disk.folder.display()), value, "/sys/block"),
        row("  free", free, format!("statvfs, {kind}")),
    ];
    if let Some(speed) = &disk.speed {
        let how =
            if speed.direct { "measured, direct reads" } else { "measured, through the cache" };
        let (ms, most) = (speed.seek_ns as f64 / 1e6, speed.seek_ns_max as f64 / 1e6);
        rows.push(row("  64 KiB anywhere", format!("{ms:.2} ms, at most {most:.2}"), how));
        let all = ms * f64::from(rules.disk_draws) / 1e3;
        let in_time = if disk.reads_in_time(rules) { "in time" } else { "too late" };
        rows.push(row("  a pulse's reads", format!("{all:.2} s"), in_time));
        let row_of = |per_s| format!("{}/s", size(per_s));
        rows.push(row("  reading", row_of(speed.read_per_s), how));
        rows.push(row("  writing", row_of(speed.write_per_s), "measured, synced"));
    }
    rows
}

fn card_row(card: &Card) -> Row {
    let speed = card.mbps.map_or_else(|| "speed unknown".to_owned(), |it| format!("{it} Mbit/s"));
    let mtu = card.mtu.map(|mtu| format!(", MTU {mtu}")).unwrap_or_default();
    let state = if card.up { "" } else { ", down" };
    let kind = if card.device { "" } else { ", virtual" };
    row(&format!("card {}", card.name), format!("{speed}{mtu}{state}{kind}"), "/sys/class/net")
}

fn disk_json(disk: &Disk) -> Value {
    let speed = disk.speed.as_ref().map(|speed| {
        json!({"seek_ns": speed.seek_ns, "seek_ns_max": speed.seek_ns_max,
            "read_bytes_per_s": speed.read_per_s, "write_bytes_per_s": speed.write_per_s,
            "direct": speed.direct})
    });
    let class = match disk.class {
        Some(DiskClass::Ssd) => Some("ssd"),
        Some(DiskClass::Hdd) => Some("hdd"),
        None => None,
    };
    json!({"folder": disk.folder, "device": disk.device, "model": disk.model, "class": class,
        "device_bytes": disk.device_bytes, "bytes": disk.bytes, "free": disk.free,
        "file_system": disk.kind, "speed": speed})
}

/// Bytes in the largest unit that leaves a whole number before the point.
fn size(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    let name = units.get(unit).copied().unwrap_or_default();
    if unit == 0 { format!("{value} {name}") } else { format!("{value:.1} {name}") }
}
