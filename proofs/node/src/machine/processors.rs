//! Processors: how many threads there are, and how many of them this process may use.

use std::collections::BTreeSet;

use super::cgroup::Limits;
use super::sources::Sources;

/// The most threads that a list may name.
const THREADS_MAX: u32 = 65_536;

/// The processors of a machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Processors {
    /// What the first one calls itself.
    pub model: Option<String>,
    /// Threads that are online.
    pub online: u32,
    /// Cores that these are on; 0 if the kernel doesn't say (many virtual machines).
    pub cores: u32,
    /// Threads that this process may run on.
    pub allowed: u32,
    /// Thousandths of a thread that its control groups leave it.
    pub quota_milli: Option<u64>,
    /// Whether they say that a hypervisor runs them (CPUID leaf 1, ECX bit 31).
    pub hypervisor: bool,
    /// Whether they have SHA instructions: what pulses are made of is four times faster with them.
    pub sha: bool,
}

impl Processors {
    /// Reads what the kernel says of them.
    #[must_use]
    pub fn read(sources: &Sources, limits: &Limits) -> Self {
        let cpuinfo = sources.text("proc/cpuinfo").unwrap_or_default();
        let listed = cpuinfo.lines().filter(|line| line.starts_with("processor")).count();
        let online = sources.text("sys/devices/system/cpu/online");
        let online = online.and_then(|text| count_of_list(&text)).unwrap_or(listed as u32);
        let status = sources.text("proc/self/status").unwrap_or_default();
        let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
        // The mask may name threads that are not there.
        let allowed = allowed.and_then(|list| count_of_list(list.trim())).unwrap_or(online);
        let flags = field(&cpuinfo, "flags").or_else(|| field(&cpuinfo, "Features"));
        let flags: Vec<&str> = flags.unwrap_or_default().split_whitespace().collect();
        Self {
            model: field(&cpuinfo, "model name").map(str::to_owned),
            online,
            cores: cores(&cpuinfo),
            allowed: allowed.min(online),
            quota_milli: limits.cpu_milli,
            hypervisor: flags.contains(&"hypervisor"),
            sha: flags.contains(&"sha_ni") || flags.contains(&"sha2"),
        }
    }

    /// Threads that can be claimed as far as the kernel is concerned: whole ones.
    #[must_use]
    pub fn usable(&self) -> u16 {
        let quota = self.quota_milli.map_or(u64::MAX, |milli| milli / 1000);
        u16::try_from(u64::from(self.allowed).min(quota)).unwrap_or(u16::MAX)
    }
}

/// The first value of a field of `/proc/cpuinfo`.
fn field<'a>(cpuinfo: &'a str, name: &str) -> Option<&'a str> {
    cpuinfo.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim())
    })
}

/// How many pairs of package and core the file names.
fn cores(cpuinfo: &str) -> u32 {
    let mut found = BTreeSet::new();
    for thread in cpuinfo.split("\n\n") {
        if let Some(pair) = field(thread, "physical id").zip(field(thread, "core id")) {
            found.insert(pair);
        }
    }
    found.len() as u32
}

/// How many numbers a list such as `0-3,8,10-11` names; `None` if it is no list.
fn count_of_list(text: &str) -> Option<u32> {
    let mut count = 0_u32;
    for part in text.split(',') {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        let (from, to): (u32, u32) = (from.trim().parse().ok()?, to.trim().parse().ok()?);
        let width = to.checked_sub(from)?.checked_add(1)?;
        count = count.checked_add(width).filter(|count| *count <= THREADS_MAX)?;
    }
    Some(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_threads_are_counted_and_nonsense_is_refused() {
        for (text, count) in [("0", 1), ("0-3", 4), ("0-3,8,10-11", 7), ("0-65535", 65_536)] {
            assert_eq!(count_of_list(text), Some(count), "{text}");
        }
        for text in ["", "a", "3-1", "0-4294967295", "0-65536", "1,,2", "-1"] {
            assert_eq!(count_of_list(text), None, "{text}");
        }
    }
}
