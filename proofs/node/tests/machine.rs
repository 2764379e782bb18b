//! Machines as their kernels describe them: `machines/virtual.txt` was recorded, the others are made
//! up after the kernel's documentation.
#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use std::fs;
use std::path::Path;

use hypha_proofs::Rules;
use proof_node::machine::{Card, Limits, Machine, Memory, Processors, Sources, cards};

/// Puts a recording into a folder: a line `== path`, then the file's text.
fn recorded(text: &str) -> (tempfile::TempDir, Sources) {
    let folder = tempfile::tempdir().unwrap();
    for part in text.split("== ").skip(1) {
        let (path, text) = part.split_once('\n').unwrap();
        let path = folder.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let sources = Sources::recorded(folder.path());
    (folder, sources)
}

fn card(name: &str, mbps: Option<u32>, mtu: Option<u32>, is: (bool, bool)) -> Card {
    Card { name: name.to_owned(), mbps, mtu, up: is.0, device: is.1 }
}

#[test]
fn a_recorded_virtual_machine_is_read() {
    let (_folder, sources) = recorded(include_str!("machines/virtual.txt"));
    let limits = Limits::read(&sources);
    assert_eq!(limits, Limits::default(), "groups without limits");
    let processors = Processors::read(&sources, &limits);
    assert_eq!((processors.online, processors.allowed, processors.usable()), (2, 2, 2));
    assert!(processors.hypervisor && processors.sha);
    assert_eq!(Memory::read(&sources, &limits).total, 24_684_092 * 1024);
    let found = cards(&sources);
    let wanted = [
        card("eth0", None, Some(1400), (true, true)),
        card("ifb0", None, Some(1500), (false, false)),
    ];
    assert_eq!(found, wanted);
}

#[test]
fn affinity_beyond_what_is_there_counts_for_nothing() {
    let (_folder, sources) = recorded(include_str!("machines/bare.txt"));
    let processors = Processors::read(&sources, &Limits::read(&sources));
    assert_eq!((processors.online, processors.cores, processors.usable()), (4, 2, 4));
    assert!(!processors.hypervisor);
    let found = cards(&sources);
    assert_eq!(found.len(), 3);
    assert_eq!(found[1], card("enp5s0", Some(10_000), Some(9000), (true, true)));
    assert_eq!(found[2].mbps, None, "-1 is no speed");
    let machine = Machine::look(&sources, &[]).unwrap();
    assert_eq!(machine.product.as_deref(), Some("A Maker of Boards Model 7"));
    let can = machine.provable(&Rules::STANDARD);
    assert_eq!((can.units, can.mbps), (4, 10_000));
    assert_eq!(u64::from(can.mem_mib), 60_000_000 / 5 * 4 / 1024);
}

#[test]
fn the_quota_of_a_container_is_counted_in_whole_threads() {
    let (_folder, sources) = recorded(include_str!("machines/container.txt"));
    let limits = Limits::read(&sources);
    assert_eq!(limits.cpu_milli, Some(1500));
    let processors = Processors::read(&sources, &limits);
    assert_eq!((processors.allowed, processors.usable()), (2, 1));
    let memory = Memory::read(&sources, &limits);
    assert_eq!(memory.usable(), 2_000_000_000, "less than is free on the machine");
}

#[test]
fn the_least_limit_on_the_way_up_counts() {
    let (_folder, sources) = recorded(include_str!("machines/service.txt"));
    let limits = Limits::read(&sources);
    assert_eq!(limits.cpu_milli, Some(500));
    assert_eq!((limits.memory, limits.memory_left), (Some(4 << 30), Some(4_000_000_000)));
    let processors = Processors::read(&sources, &limits);
    assert_eq!((processors.online, processors.allowed, processors.usable()), (3, 2, 0));
    assert!(processors.sha);
}

#[test]
fn a_machine_that_says_nothing_can_prove_nothing() {
    let (_folder, sources) = recorded("");
    let machine = Machine::look(&sources, &[]).unwrap();
    let can = machine.provable(&Rules::STANDARD);
    assert_eq!((can.units, can.mem_mib, can.ssd_mib, can.hdd_mib, can.mbps), (0, 0, 0, 0, 0));
    assert!(machine.to_text(&Rules::STANDARD).contains("0 units on 0 threads"));
}

#[test]
fn files_that_are_too_long_or_no_text_are_not_read() {
    let (folder, sources) = recorded("== proc/meminfo\nMemTotal: 1 kB\n");
    fs::write(folder.path().join("proc/meminfo"), vec![b'a'; 5 << 20]).unwrap();
    assert_eq!(Memory::read(&sources, &Limits::default()).total, 0);
    fs::write(folder.path().join("proc/meminfo"), b"MemTotal: \xff kB").unwrap();
    assert_eq!(Memory::read(&sources, &Limits::default()).total, 0);
    fs::write(folder.path().join("proc/meminfo"), "MemTotal: 18446744073709551615 kB").unwrap();
    assert_eq!(Memory::read(&sources, &Limits::default()).total, 0, "no overflow");
}

#[test]
fn this_machine_is_measured() {
    let folder = tempfile::tempdir().unwrap();
    let folders = [folder.path().to_owned()];
    let mut machine = Machine::look(&Sources::of_this_machine(), &folders).unwrap();
    let mut told = 0;
    machine.measure(|_| told += 1).unwrap();
    assert_eq!(told, 2);
    let json = machine.to_json(&Rules::STANDARD);
    assert!(json["speed"]["hash_ns"].as_f64().unwrap() > 1.0, "{json}");
    assert!(machine.to_text(&Rules::STANDARD).contains("a pulse can prove"));
    assert!(Machine::look(&Sources::of_this_machine(), &[Path::new("/nowhere").into()]).is_err());
}
