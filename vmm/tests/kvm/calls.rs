//! The sandbox fits exactly: traced, real guests make every system call that it allows, and it
//! allows every one that they make (or they would be dead).

use std::collections::BTreeSet;
use std::process::Command;

use vmm::sandbox::{Needs, allowed_calls};

use crate::support::{Ended, have_kvm, vmm};

/// The system calls that a command makes behind its seccomp filter.
fn traced(command: &Command) -> (Ended, BTreeSet<String>) {
    static NUMBER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let trace = std::env::temp_dir().join(format!("hypha-trace-{}-{number}", std::process::id()));
    let output = Command::new("strace")
        .args(["-f", "-o"])
        .arg(&trace)
        .arg(command.get_program())
        .args(command.get_args())
        .output()
        .expect("strace runs");
    let text = std::fs::read_to_string(&trace).expect("strace writes a trace");
    std::fs::remove_file(&trace).expect("the trace can be removed");
    let (_, behind) = text.split_once("SECCOMP_SET_MODE_FILTER").expect("a filter is set");
    let calls = behind
        .lines()
        .skip(1)
        .filter_map(|line| line.split_whitespace().nth(1)?.split_once('('))
        .map(|(name, _)| name.to_owned())
        .filter(|name| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_'))
        .collect();
    (output.into(), calls)
}

fn have_strace() -> bool {
    let found = Command::new("strace").arg("-V").output().is_ok();
    if !found {
        println!("SKIPPED: strace is not installed");
    }
    found
}

#[test]
fn a_thread_that_only_runs_the_vcpu_makes_every_call_it_may() {
    if !have_kvm() || !have_strace() {
        return;
    }
    let mut made = BTreeSet::new();
    for (args, code) in
        [(["exit", "0"], 0), (["panic", ""], 126), (["upcall", ""], 0), (["sleep", "1"], 0)]
    {
        let (ended, calls) = traced(&vmm("hostile", &args));
        assert_eq!(ended.code, code, "{args:?}: {}", ended.messages);
        made.extend(calls);
    }
    let allowed = allowed_calls(Needs::default());
    assert!(allowed.len() <= 10, "{allowed:?}");
    let allowed: BTreeSet<String> = allowed.into_iter().map(|(name, _)| name.to_owned()).collect();
    assert_eq!(made, allowed);
}
