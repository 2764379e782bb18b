//! What the demo found out, and whether it is good.

use serde_json::Value;

use crate::failure::Failure;

/// The memory of a VMM besides its guest's, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Memory {
    /// All that is resident.
    pub resident: u64,
    /// The part that no other process shares.
    pub private: u64,
}

impl Memory {
    /// Of the VMM with this process ID; `None` if it can't be read.
    pub(crate) fn of(pid: i32) -> Option<Self> {
        std::fs::read_to_string(format!("/proc/{pid}/smaps")).ok().map(|smaps| Self::read(&smaps))
    }

    /// Sums the mappings of `/proc/PID/smaps`, except those of guest memory, which is a memfd.
    fn read(smaps: &str) -> Self {
        let mut memory = Self { resident: 0, private: 0 };
        let mut is_guest = false;
        for line in smaps.lines() {
            let Some((name, value)) = line.split_once(':') else { continue };
            // A mapping begins with its addresses; its fields begin with a capital letter.
            if !name.starts_with(|c: char| c.is_ascii_uppercase()) {
                is_guest = line.contains("/memfd:");
                continue;
            }
            let kilobytes = value.trim().strip_suffix(" kB").and_then(|text| text.parse().ok());
            let bytes = kilobytes.unwrap_or(0) * 1024;
            match name {
                _ if is_guest => {}
                "Rss" => memory.resident += bytes,
                "Private_Clean" | "Private_Dirty" => memory.private += bytes,
                _ => {}
            }
        }
        memory
    }
}

/// What the demo found out.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// From the start of a VMM's process to its guest's first byte of output, milliseconds.
    pub cold_starts: Vec<(String, f64)>,
    /// The server's VMM, just before it was killed.
    pub memory: Option<Memory>,
    /// How many shards were deleted.
    pub shards_lost: usize,
    /// What `load` told.
    pub result: Option<Value>,
    /// How `load` ended.
    pub client_code: Option<i64>,
}

impl Report {
    /// An error unless the whole story happened and nothing was lost.
    pub(crate) fn verdict(&self) -> Result<(), Failure> {
        let number = |name: &str| self.result.as_ref()?.get(name)?.as_u64();
        let reason = match (number("lost"), number("wrong")) {
            (Some(0), Some(0)) if self.shards_lost == 0 => {
                "all was stored before anything was killed: this run shows nothing".to_owned()
            }
            (Some(0), Some(0)) if self.client_code == Some(0) => return Ok(()),
            (Some(0), Some(0)) => "load says that not every value was stored".to_owned(),
            (Some(lost), Some(wrong)) => format!("{lost} values lost, {wrong} wrong"),
            _ => "load ended without a result".to_owned(),
        };
        Err(Failure::Checks { summary: format!("demo: {reason}") })
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut row = |name: &str, value: String| writeln!(f, "  {name:<46} {value:>14}");
        for (name, ms) in &self.cold_starts {
            row(&format!("cold start of {name}"), format!("{ms:.1} ms"))?;
        }
        let number = |name: &str| self.result.as_ref()?.get(name)?.as_f64();
        let show = |value: Option<f64>, unit: &str, digits: usize| match value {
            Some(value) => format!("{value:.digits$}{unit}"),
            None => "unknown".to_owned(),
        };
        row("GET requests per second, one at a time", show(number("get_per_s"), "", 0))?;
        row("PUT requests per second, durable, one at a time", show(number("put_per_s"), "", 0))?;
        row("exits of kv's VM per GET", show(number("kv_exits_per_get"), "", 2))?;
        row("exits of kv's VM per PUT", show(number("kv_exits_per_put"), "", 2))?;
        let kib = |pick: fn(Memory) -> u64| {
            show(self.memory.map(|memory| pick(memory) as f64 / 1024.0), " KiB", 0)
        };
        row("kv's VMM without guest pages, resident", kib(|memory| memory.resident))?;
        row("kv's VMM without guest pages, private", kib(|memory| memory.private))?;
        row("values acknowledged", show(number("acknowledged"), "", 0))?;
        row("values lost", show(number("lost"), "", 0))?;
        row("values wrong", show(number("wrong"), "", 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
        00400000-00500000 r-xp 00000000 fe:00 1 /usr/bin/vmm\n\
        Size:               1024 kB\nRss:                 100 kB\nPrivate_Clean:        20 kB\n\
        Private_Dirty:         0 kB\n\
        7f0000000000-7f0004000000 rw-s 00000000 00:01 2 /memfd:guest (deleted)\n\
        Size:              65536 kB\nRss:               30000 kB\nPrivate_Dirty:     30000 kB\n\
        7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0 [stack]\n\
        Rss:                  16 kB\nPrivate_Dirty:        16 kB\nVmFlags: rd wr\n";

    #[test]
    fn guest_memory_is_not_the_vmms() {
        let memory = Memory::read(SMAPS);
        assert_eq!(memory, Memory { resident: 116 << 10, private: 36 << 10 });
    }

    fn report(lost: u64, wrong: u64) -> Report {
        let result = serde_json::json!({ "acknowledged": 1000, "lost": lost, "wrong": wrong });
        Report { shards_lost: 2, result: Some(result), client_code: Some(0), ..Report::default() }
    }

    #[test]
    fn one_lost_or_wrong_value_is_a_failure() {
        assert!(report(0, 0).verdict().is_ok());
        assert!(report(1, 0).verdict().is_err());
        assert!(report(0, 1).verdict().is_err());
    }

    #[test]
    fn a_run_that_killed_nothing_shows_nothing() {
        assert!(Report { shards_lost: 0, ..report(0, 0) }.verdict().is_err());
        assert!(Report { client_code: Some(1), ..report(0, 0) }.verdict().is_err());
        assert!(Report { result: None, ..report(0, 0) }.verdict().is_err());
    }

    #[test]
    fn the_table_says_what_is_unknown() {
        let table = report(0, 0).to_string();
        assert!(table.contains("values lost") && table.contains("unknown"), "{table}");
    }
}
