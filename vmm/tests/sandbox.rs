//! The sandbox: what it forbids kills the process.
//!
//! Each case runs in a child: this very test binary, with the case in an environment variable.

#![expect(clippy::unwrap_used, reason = "a test that lacks its tools fails")]

use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use vmm::sandbox::{self, Needs};

const CASE: &str = "HYPHA_SANDBOX_CASE";
const SIGSYS: i32 = 31;

/// The child's side. As a test of its own it has nothing to do.
#[test]
fn child() {
    let Ok(case) = std::env::var(CASE) else { return };
    let needs = Needs {
        block: case.ends_with("+block"),
        net: case.ends_with("+net"),
        servers: case.ends_with("+servers"),
        uplink: false,
    };
    let null = std::fs::File::open("/dev/null").unwrap();
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    // As a card has it: what a batch takes besides the sending is done before the sandbox.
    let mut card = net_vdev::socket::Socket::new(socket.try_clone().unwrap()).unwrap();
    if case == "landlock" {
        sandbox::restrict_files().unwrap();
        let denied = std::fs::File::open("/etc/hostname").unwrap_err();
        assert_eq!(denied.kind(), std::io::ErrorKind::PermissionDenied);
        println!("landlock denies");
        return;
    }
    sandbox::enter(needs).unwrap();
    match case.split('+').next().unwrap() {
        "nothing" => {}
        "open" => drop(std::fs::File::open("/dev/null")),
        "socket" => drop(std::net::UdpSocket::bind("127.0.0.1:0")),
        "thread" => drop(std::thread::Builder::new().spawn(|| {})),
        "process" => drop(Command::new("/bin/true").spawn()),
        "ioctl" => drop(rustix::termios::tcgetwinsize(&null)),
        "send" => drop(socket.send_to(b"x", "127.0.0.1:9")),
        "send-batch" => drop(card.send_batch(([127, 0, 0, 1], 9).into(), b"xx", 1)),
        "kill" => drop(rustix::process::kill_process(
            rustix::process::getpid(),
            rustix::process::Signal::USR1,
        )),
        "write-at" => {
            drop(std::os::unix::fs::FileExt::write_at(&null, b"x", 0));
        }
        "unlink" => drop(std::fs::remove_file("/nonexistent")),
        other => panic!("unknown case {other}"),
    }
    // No clean-up: the harness would open and close things.
    vmm::process::exit_now(0);
}

fn outcome(case: &str) -> std::process::ExitStatus {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture", "--test-threads=1"])
        .env(CASE, case)
        .output()
        .unwrap();
    output.status
}

#[test]
fn a_forbidden_call_kills_the_process() {
    for case in [
        "open",
        "socket",
        "thread",
        "process",
        "ioctl",
        "send",
        "kill",
        "write-at",
        "unlink",
        "send+block",
        "send+net",
        "send-batch",
        "send-batch+servers",
        "write-at+net",
        "open+block",
        "socket+net",
    ] {
        assert_eq!(outcome(case).signal(), Some(SIGSYS), "{case}");
    }
}

#[test]
fn an_allowed_call_does_not() {
    for case in ["nothing", "send-batch+net", "send+servers", "write-at+block"] {
        assert_eq!(outcome(case).code(), Some(0), "{case}");
    }
}

#[test]
fn landlock_alone_denies_the_file_system() {
    assert_eq!(outcome("landlock").code(), Some(0));
}
