//! Rules about Rust source.

use crate::assert_none;
use crate::files::{File, rust_sources};
use crate::rust::{code_of, has_word};

/// The only files with unsafe code, and what for. decisions.md names the kinds; a file that has
/// no unsafe code any more must leave the list.
const UNSAFE_FILES: [(&str, &str); 15] = [
    ("benches/benches/storage_codec/isal.rs", "calls of ISA-L, a peer written in C"),
    ("guest-kernel/src/bin/hostile.rs", "attacks that no safe code can express"),
    ("guest-kernel/src/dma.rs", "memory that a device accesses by address"),
    ("guest-kernel/src/entry.rs", "the entry point and the gate to the VMM"),
    ("guest-kernel/src/heap.rs", "a global allocator"),
    ("guest-kernel/tests/guest/memory.rs", "the device's side of that memory, in tests"),
    ("net-vdev/node/src/tun/device.rs", "two ioctls of the TUN driver"),
    ("storage-vdev/src/audit/lanes.rs", "sixteen hashes in vector registers"),
    ("storage-vdev/src/codec/gfni256.rs", "a kernel of vector instructions"),
    ("storage-vdev/src/codec/gfni512.rs", "a kernel of vector instructions"),
    ("storage-vdev/src/codec/plan.rs", "the call of a kernel that this CPU can run"),
    ("storage-vdev/src/codec/shuffle256.rs", "a kernel of vector instructions"),
    ("storage-vdev/node/src/uring.rs", "buffers that io_uring reads"),
    ("vmm/src/kvm.rs", "KVM calls and the memory that they share"),
    ("vmm/src/process.rs", "inherited descriptors and `_exit`"),
];

/// Protocol, storage and guest logic, which is given its time and its randomness.
const TIMELESS: [&str; 7] = [
    "chain/src/",
    "guest-kernel/src/",
    "net-vdev/edge/src/",
    "net-vdev/router/src/",
    "net-vdev/src/",
    "proofs/src/",
    "storage-vdev/src/",
];

/// Lines of code (not of comments or literals) with their numbers.
fn code_lines(file: &File) -> Vec<(usize, String)> {
    let code = code_of(&file.text);
    code.lines().enumerate().map(|(index, line)| (index + 1, line.to_owned())).collect()
}

/// Each line of code that `breaks` a rule, of the files that `applies` names.
fn broken_lines(applies: impl Fn(&str) -> bool, breaks: impl Fn(&str) -> bool) -> Vec<String> {
    let mut broken = Vec::new();
    for file in rust_sources().iter().filter(|file| applies(&file.path)) {
        for (number, line) in code_lines(file) {
            if breaks(&line) {
                broken.push(format!("{}:{number}: {}", file.path, line.trim()));
            }
        }
    }
    broken
}

#[test]
fn no_file_is_longer_than_700_lines() {
    let long: Vec<String> = rust_sources()
        .iter()
        .map(|file| (file, file.text.lines().count()))
        .filter(|(_, lines)| *lines > 700)
        .map(|(file, lines)| format!("{}: {lines} lines", file.path))
        .collect();
    assert_none(&long, "split the file by question: each answers one (aim at 500 lines)");
}

#[test]
fn unsafe_code_stays_in_the_listed_files() {
    let is_unsafe = |line: &str| has_word(line, "unsafe") || line.contains("expect(unsafe_code");
    let listed = |path: &str| UNSAFE_FILES.iter().any(|(file, _)| *file == path);
    assert_none(
        &broken_lines(|path| !listed(path), is_unsafe),
        "use a safe wrapper (rustix, kvm-ioctls, vm-memory), or put it into a file of UNSAFE_FILES",
    );
    let files = rust_sources();
    let has_unsafe = |wanted: &str| {
        let file = files.iter().find(|file| file.path == wanted);
        file.is_some_and(|file| code_lines(file).iter().any(|(_, line)| is_unsafe(line)))
    };
    let stale: Vec<String> = UNSAFE_FILES
        .iter()
        .filter(|(path, _)| !has_unsafe(path))
        .map(|(path, reason)| format!("{path} ({reason})"))
        .collect();
    assert_none(&stale, "these have no unsafe code: take them off UNSAFE_FILES");
}

#[test]
fn every_crate_root_forbids_unsafe_code() {
    let crates_with_unsafe: Vec<&str> =
        UNSAFE_FILES.iter().filter_map(|(path, _)| crate_and_rest(path)).map(|it| it.0).collect();
    let mut broken = Vec::new();
    for file in rust_sources() {
        let Some((package, rest)) = crate_and_rest(&file.path) else { continue };
        let is_binary = rest == "src/main.rs" || rest.starts_with("src/bin/");
        let listed = UNSAFE_FILES.iter().any(|(path, _)| *path == file.path);
        let wanted = match rest {
            "src/lib.rs" if crates_with_unsafe.contains(&package) => "#![deny(unsafe_code)]",
            "src/lib.rs" => "#![forbid(unsafe_code)]",
            _ if is_binary && !listed && is_root(rest) => "#![forbid(unsafe_code)]",
            _ => continue,
        };
        if !code_of(&file.text).contains(wanted) {
            broken.push(format!("{}: no {wanted}", file.path));
        }
    }
    assert_none(&broken, "put the attribute under the crate's documentation");
}

/// The folder of a file's crate, which may lie in that of another, and the path from there.
fn crate_and_rest(path: &str) -> Option<(&str, &str)> {
    let starts = ["/src/", "/tests/", "/benches/", "/examples/"];
    let at = starts.iter().filter_map(|start| path.find(start)).min()?;
    path.split_at_checked(at).map(|(package, rest)| (package, rest.trim_start_matches('/')))
}

/// Whether a file is a program, as opposed to a module of one; the path is from its crate.
fn is_root(rest: &str) -> bool {
    !rest.starts_with("src/bin/") || rest.matches('/').count() == 2
}

#[test]
fn nothing_is_left_open_in_the_source() {
    // In pieces, so that this file does not break its own rule.
    let marks = [concat!("FIX", "ME"), concat!("XX", "X"), concat!("TO", "DO")];
    let mut broken = Vec::new();
    for file in rust_sources() {
        for (index, line) in file.text.lines().enumerate() {
            if marks.iter().any(|mark| has_word(line, mark)) {
                broken.push(format!("{}:{}: {}", file.path, index + 1, line.trim()));
            }
        }
    }
    broken.extend(broken_lines(
        |_| true,
        |line| ["todo!", "unimplemented!"].iter().any(|name| line.contains(name)),
    ));
    assert_none(&broken, "do it now, or open an issue, or say so in the README's list of gaps");
}

#[test]
fn lints_are_expected_and_never_allowed() {
    let broken =
        broken_lines(|_| true, |line| line.contains("#[allow(") || line.contains("#![allow("));
    assert_none(&broken, "#[expect(lint, reason = \"…\")] on the item, which ends with its cause");
}

#[test]
fn no_module_is_a_drawer_for_anything() {
    let names = ["utils", "util", "common", "helpers", "misc"];
    let is_drawer = |path: &str| {
        let mut parts = path.split('/').map(|part| part.strip_suffix(".rs").unwrap_or(part));
        parts.any(|part| names.contains(&part))
    };
    let broken: Vec<String> = rust_sources()
        .iter()
        .filter(|file| is_drawer(&file.path))
        .map(|file| file.path.clone())
        .collect();
    assert_none(&broken, "name the module after the one question that it answers");
}

#[test]
fn logic_is_given_its_time_and_its_randomness() {
    let sources = [
        "Instant::now",
        "SystemTime::now",
        "UNIX_EPOCH.elapsed",
        "clock_gettime",
        "OsRng",
        "thread_rng",
        "SystemRandom",
        "getrandom",
    ];
    let broken = broken_lines(
        |path| TIMELESS.iter().any(|folder| path.starts_with(folder)),
        |line| sources.iter().any(|source| line.contains(source)),
    );
    assert_none(
        &broken,
        "take `now_ns` or random bytes as an argument; the caller reads the clock",
    );
}

#[test]
fn production_code_has_no_branch_for_tests() {
    let mut broken = Vec::new();
    for file in rust_sources() {
        let lines = code_lines(&file);
        for (position, (number, line)) in lines.iter().enumerate() {
            if !line.contains("cfg") || !["test", "fuzzing"].iter().any(|c| has_word(line, c)) {
                continue;
            }
            let next = lines.get(position + 1).map(|(_, next)| next.trim()).unwrap_or_default();
            if !is_allowed_test_cfg(&file.path, line.trim(), next) {
                broken.push(format!("{}:{number}: {}", file.path, line.trim()));
            }
        }
    }
    assert_none(
        &broken,
        "give the type a seam that tests use from outside; only `mod tests` is cfg(test)",
    );
}

fn is_allowed_test_cfg(path: &str, line: &str, next: &str) -> bool {
    let is_test_module =
        |item: &str| item.strip_prefix("mod ").is_some_and(|rest| rest.starts_with("tests"));
    match line {
        "#[cfg(test)]" => is_test_module(next) || next == "extern crate std;",
        // On the host, the kernel's library must not bring a panic handler and an allocator.
        // Literals are blanked: this is `feature = "image"`.
        _ => {
            path.starts_with("guest-kernel/")
                && line.starts_with("#[cfg(all(feature =")
                && line.ends_with(", not(test)))]")
        }
    }
}
