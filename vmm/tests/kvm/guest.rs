//! A guest's life on real KVM: start, calls, time, stop, and what people see of it.

use std::io::{BufRead, BufReader, Read};
use std::process::Stdio;

use crate::support::{have_kvm, image, run, spawn, vmm, vmm_path};
use rustix::process::{Pid, Signal, kill_process};

#[test]
fn hello_says_so_and_ends() {
    if !have_kvm() {
        return;
    }
    let ended = run("hello", &["one", "two words"]);
    assert_eq!((ended.code, ended.messages.as_str()), (0, ""));
    assert_eq!(ended.log, "hello from ring 3\none\ntwo words\n");
}

#[test]
fn hello_needs_at_most_three_exits_and_the_least_memory() {
    if !have_kvm() {
        return;
    }
    let output = std::process::Command::new(vmm_path())
        .args(["--stats", "--memory", "2MiB"])
        .arg(image("hello"))
        .output()
        .unwrap();
    let messages = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{messages}");
    let json = messages.strip_prefix("vmm: ").unwrap();
    let stats: serde_json::Value = serde_json::from_str(json).unwrap();
    let exits = |kind: &str| stats["exits"][kind].as_u64().unwrap();
    assert!(exits("ring") + exits("wait") + exits("other") <= 3, "{messages}");
}

#[test]
fn the_guests_status_is_the_exit_code() {
    if !have_kvm() {
        return;
    }
    assert_eq!(run("hostile", &["exit", "0"]).code, 0);
    assert_eq!(run("hostile", &["exit", "7b"]).code, 123);
    let ended = run("hostile", &["exit", "7c"]);
    assert_eq!(ended.code, 123);
    assert!(ended.messages.contains("exit status 124 is out of range"), "{}", ended.messages);
}

#[test]
fn a_wait_lasts_as_long_as_it_says_by_the_guests_clock() {
    if !have_kvm() {
        return;
    }
    assert_eq!(run("hostile", &["sleep", "14"]).log, "slept\nslept\nslept\n");
}

#[test]
fn a_call_preserves_the_registers() {
    if !have_kvm() {
        return;
    }
    assert_eq!(run("hostile", &["registers"]).code, 0);
}

#[test]
fn a_spinning_guest_gets_its_upcalls_and_goes_on() {
    if !have_kvm() {
        return;
    }
    let ended = run("hostile", &["upcall"]);
    assert_eq!((ended.code, ended.log.as_str()), (0, "three upcalls\n"), "{}", ended.messages);
}

#[test]
fn a_guest_that_waits_or_spins_is_stopped_by_sigterm() {
    if !have_kvm() {
        return;
    }
    for attack in ["wait", "spin"] {
        let mut child = spawn("hostile", &[attack]);
        if attack == "wait" {
            let mut line = String::new();
            BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
            assert_eq!(line, "waiting\n");
        }
        kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
        let status = child.wait().unwrap();
        let mut messages = String::new();
        child.stderr.unwrap().read_to_string(&mut messages).unwrap();
        // A signal before the handler is installed ends the process too.
        assert!(status.code().is_none_or(|code| code == 0), "{attack}: {status} {messages}");
    }
}

#[test]
fn an_idle_guest_uses_no_cpu() {
    if !have_kvm() {
        return;
    }
    let mut child = spawn("hostile", &["wait"]);
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    let ticks = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
        let after_name = stat.rsplit(") ").next().unwrap().to_owned();
        // utime and stime, in clock ticks.
        after_name.split(' ').skip(11).take(2).map(|n| n.parse::<u64>().unwrap()).sum::<u64>()
    };
    let before = ticks();
    std::thread::sleep(std::time::Duration::from_millis(500));
    let used = ticks() - before;
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(used, 0, "clock ticks used while idle");
}

#[test]
fn a_log_that_nobody_reads_does_not_end_the_guest() {
    if !have_kvm() {
        return;
    }
    let mut child = vmm("hostile", &["flood"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut some = [0; 4096];
    child.stdout.take().unwrap().read_exact(&mut some).unwrap();
    assert!(some.starts_with(b"0123456789abcdef"));
    std::thread::sleep(std::time::Duration::from_millis(50));
    assert!(child.try_wait().unwrap().is_none(), "it goes on with its log closed");
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn wrong_use_is_refused_with_one_line_and_code_2() {
    for (args, message) in [
        (
            vec!["--memory", "1MiB", "x"],
            "vmm: memory 1MiB: expected 2MiB to 128GiB, a multiple of 4096 bytes\n",
        ),
        (
            vec!["--memory", "8MB", "x"],
            "vmm: --memory 8MB: expected a number of bytes, or a number with one of B, KiB, MiB, GiB, TiB\n",
        ),
        (
            vec!["/nonexistent/image"],
            "vmm: image /nonexistent/image: cannot read the image: No such file or directory (os error 2)\n",
        ),
        (vec!["/etc/passwd"], "vmm: image /etc/passwd: the image is no guest: not an ELF file\n"),
        (vec!["--config-fd", "77"], "vmm: --config-fd: descriptor 77 is not open\n"),
        (vec![], "vmm: no image and no --config-fd given; see --help\n"),
    ] {
        let output = std::process::Command::new(vmm_path()).args(&args).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert_eq!(String::from_utf8(output.stderr).unwrap(), message, "{args:?}");
    }
}

#[test]
fn a_reader_that_stalls_does_not_keep_the_guest_from_being_stopped() {
    if !have_kvm() {
        return;
    }
    // Nobody reads: the pipe is full after 64 KiB, and the VMM is blocked in a write.
    let mut child = vmm("hostile", &["flood"]).stdout(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(300));
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(0));
}
