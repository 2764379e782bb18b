//! The sandbox fits exactly: traced, real guests make every system call that it allows, and it
//! allows every one that they make (or they would be dead).

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use vmm::sandbox::{CLOCK_FALLBACK, Needs, allowed_calls};

use crate::pair::{Member, pair};
use crate::servers::{Servers, await_confined};
use crate::support::{Folder, config, have_kvm, run_with, vmm, vmm_with, volume};

/// A trace of one process.
struct Trace(PathBuf);

impl Trace {
    fn new(folder: &Folder, name: &str) -> Self {
        Self(folder.path().join(format!("{name}.trace")))
    }

    /// The same command, traced; the process that it starts is still the one asked for.
    fn command(&self, command: &Command) -> Command {
        let mut traced = Command::new("strace");
        traced.args(["-D", "-o"]).arg(&self.0);
        traced.arg(command.get_program()).args(command.get_args());
        traced
    }

    /// The system calls behind the seccomp filter, once the process has ended.
    fn calls(&self) -> BTreeSet<String> {
        let mut text = String::new();
        for _ in 0..500 {
            text = std::fs::read_to_string(&self.0).expect("strace writes a trace");
            if text.contains("+++ exited") || text.contains("+++ killed") {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let (_, behind) = text.split_once("SECCOMP_SET_MODE_FILTER").expect("a filter is set");
        let names = behind.lines().skip(1).filter_map(|line| Some(line.split_once('(')?.0));
        names
            .filter(|name| *name != CLOCK_FALLBACK)
            .filter(|name| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_'))
            .map(str::to_owned)
            .collect()
    }
}

fn have_strace() -> bool {
    let found = Command::new("strace").arg("-V").output().is_ok();
    if !found {
        println!("SKIPPED: strace is not installed");
    }
    found
}

fn names(needs: Needs) -> BTreeSet<String> {
    let names = allowed_calls(needs).into_iter().map(|(name, _)| name.to_owned());
    names.filter(|name| name != CLOCK_FALLBACK).collect()
}

fn stop(mut child: Child) {
    kill_process(Pid::from_child(&child), Signal::TERM).expect("it runs");
    assert!(child.wait().expect("it ends").success());
}

#[test]
fn a_thread_that_only_runs_the_vcpu_makes_every_call_it_may() {
    if !have_kvm() || !have_strace() {
        return;
    }
    let folder = Folder::new();
    let mut made = BTreeSet::new();
    for (args, code) in
        [(["exit", "0"], 0), (["panic", ""], 126), (["upcall", ""], 0), (["sleep", "1"], 0)]
    {
        let trace = Trace::new(&folder, args[0]);
        let output = trace.command(&vmm("hostile", &args)).output().expect("strace runs");
        assert_eq!(output.status.code(), Some(code), "{args:?}: {output:?}");
        made.extend(trace.calls());
    }
    let allowed = names(Needs::default());
    assert!(allowed.len() <= 10, "{allowed:?}");
    assert_eq!(made, allowed);
}

#[test]
fn a_thread_that_serves_devices_makes_every_call_it_may() {
    if !have_kvm() || !have_strace() {
        return;
    }
    let folder = Folder::new();
    let mut made = BTreeSet::new();
    // What any guest can make its VMM do,
    for args in [["panic", ""], ["upcall", ""], ["discard", ""], ["large-read", ""]] {
        let mut config = config("hostile", &args);
        config.block = vec![volume(&folder)];
        let trace = Trace::new(&folder, args[0]);
        let (command, _file) = vmm_with(&config, &folder);
        trace.command(&command).output().expect("strace runs");
        made.extend(trace.calls());
    }
    // and a busy server.
    let members = [Member::new(5), Member::new(6)];
    let [kv, load] = pair(&folder, &members, &["--count", "8"], 8080);
    let (command, _file) = vmm_with(&kv, &folder);
    let trace = Trace::new(&folder, "kv");
    let server = trace.command(&command).spawn().expect("strace runs");
    let ended = run_with(&load, &folder);
    assert_eq!(ended.code, 0, "{} {}", ended.log, ended.messages);
    stop(server);
    made.extend(trace.calls());
    let allowed = names(Needs { block: true, net: true, ..Needs::default() });
    assert!(allowed.len() <= 24, "{allowed:?}");
    assert_eq!(made, allowed);
}

#[test]
fn a_thread_with_a_disk_on_servers_makes_every_call_it_may() {
    if !have_kvm() || !have_strace() {
        return;
    }
    let folder = Folder::new();
    let mut made = BTreeSet::new();
    let mut servers = Servers::start(&folder);
    for args in [["panic", ""], ["upcall", ""], ["discard", ""], ["large-read", ""]] {
        let mut config = config("hostile", &args);
        config.block = vec![servers.disk(&folder)];
        let trace = Trace::new(&folder, args[0]);
        let (command, _file) = vmm_with(&config, &folder);
        trace.command(&command).output().expect("strace runs");
        servers.renew();
        made.extend(trace.calls());
    }
    // A guest that waits, while one of the connections ends and another takes its place.
    let mut config = config("hostile", &["sleep", "3600"]);
    config.block = vec![servers.disk(&folder)];
    let (command, _file) = vmm_with(&config, &folder);
    let trace = Trace::new(&folder, "waits");
    let child = trace.command(&command).spawn().expect("strace runs");
    servers.let_go();
    await_confined(&child);
    servers.cut(5);
    servers.reconnect(5);
    servers.await_requests(0, 4);
    stop(child);
    made.extend(trace.calls());
    let mut allowed = names(Needs { servers: true, ..Needs::default() });
    assert!(allowed.len() <= 15, "{allowed:?}");
    // Only a VMM that was built with debug assertions makes it, and this one may be another build.
    for calls in [&mut allowed, &mut made] {
        calls.remove("fcntl");
    }
    assert_eq!(made, allowed);
}
