//! A thousand idle VMs at once: how fast they start and what each costs beyond guest pages; then the
//! memory of one VMM and the size of its binary.
#![expect(clippy::unwrap_used, reason = "a benchmark that lacks its tools fails")]
#![expect(clippy::disallowed_methods, reason = "benchmarks read the clock")]

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use benches::{dist, table};

const VMS: u32 = 1000;

fn main() {
    one();
    many();
}

/// An idle VM that has said that it waits.
fn idle_vm(read_log: bool) -> Child {
    let mut child = Command::new(dist().join("vmm"))
        .args(["--memory", "8MiB"])
        .arg(dist().join("images/hostile"))
        .arg("wait")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    if read_log {
        await_log(&mut child);
    }
    child
}

fn await_log(child: &mut Child) {
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "waiting\n");
}

/// The figures of `/proc/<pid>/smaps`, in KiB: resident and private, without guest memory.
fn smaps(pid: u32) -> [u64; 3] {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    let (mut guest, mut sums) = (false, [0; 3]);
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or_default();
        let kib = words.next().and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
        match first {
            "Rss:" if guest => sums[2] += kib,
            "Rss:" => sums[0] += kib,
            "Private_Clean:" | "Private_Dirty:" if !guest => sums[1] += kib,
            _ if !first.ends_with(':') => guest = line.contains("hypha-guest"),
            _ => {}
        }
    }
    sums
}

fn one() {
    // Two, so that what VMMs share counts as shared.
    let mut children = [idle_vm(true), idle_vm(true)];
    let [resident, private, guest] = smaps(children[0].id());
    for child in &mut children {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let binary = std::fs::metadata(dist().join("vmm")).unwrap().len();
    println!("## Memory and size of one VMM\n");
    table(
        &["what", "KiB", "limit"],
        &[
            vec!["resident, without guest pages".into(), resident.to_string(), "2048".into()],
            vec!["private of that".into(), private.to_string(), "256".into()],
            vec!["guest pages touched".into(), guest.to_string(), String::new()],
            vec![
                "binary `vmm`, static, stripped".into(),
                (binary / 1024).to_string(),
                "3072".into(),
            ],
        ],
    );
}

/// Memory that the machine has left, in KiB.
fn available() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap();
    let line = text.lines().find(|line| line.starts_with("MemAvailable:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn many() {
    let before = available();
    let start = Instant::now();
    let mut children: Vec<Child> = (0..VMS).map(|_| idle_vm(false)).collect();
    children.iter_mut().for_each(await_log);
    let seconds = start.elapsed().as_secs_f64();
    let used = before.saturating_sub(available());
    let guest: u64 = smaps(children[0].id())[2];
    let each = (used / u64::from(VMS)).saturating_sub(guest);
    for child in &mut children {
        child.kill().unwrap();
    }
    for child in &mut children {
        child.wait().unwrap();
    }
    println!("## {VMS} idle VMs at once\n");
    table(
        &["what", "measured", "limit"],
        &[
            vec![
                "started per second".into(),
                format!("{:.0}", f64::from(VMS) / seconds),
                "≥ 500".into(),
            ],
            vec![
                "KiB of the machine each, beyond guest pages".into(),
                each.to_string(),
                "≤ 1536".into(),
            ],
        ],
    );
}
