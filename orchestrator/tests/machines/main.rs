//! The command `hypha` with the real `vmm`, real guests on real KVM, and a plain TCP client.
#![expect(clippy::expect_used, reason = "a test that can't go on fails")]

mod dist;
mod shard_servers;

use std::fs;
use std::io::{BufRead, BufReader, Lines, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::dist::dist;

/// A spec with a state of its own.
struct Place {
    folder: tempfile::TempDir,
    dist: PathBuf,
}

impl Place {
    fn new(dist: PathBuf, spec: &Value) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("spec.json"), spec.to_string()).expect("written");
        Self { folder, dist }
    }

    fn hypha(&self, options: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hypha"));
        command
            .arg("run")
            .arg(self.folder.path().join("spec.json"))
            .args(options)
            .env("HYPHA_STATE", self.folder.path().join("state"))
            .env("HYPHA_VMM", self.dist.join("vmm"))
            .env("HYPHA_IMAGES", self.dist.join("images"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn run(&self) -> Output {
        self.hypha(&[]).output().expect("hypha starts")
    }

    fn volume(&self, deployment: &str) -> PathBuf {
        let deployments = self.folder.path().join("state/deployments");
        deployments.join(deployment).join("volumes/data")
    }
}

/// A running `hypha run --json`.
struct Session {
    child: Child,
    events: Lines<BufReader<ChildStdout>>,
}

impl Session {
    fn start(place: &Place) -> Self {
        let mut child = place.hypha(&["--json"]).spawn().expect("hypha starts");
        let events = BufReader::new(child.stdout.take().expect("piped")).lines();
        Self { child, events }
    }

    /// The next event of this kind. No machine may end while another event is waited for: it might
    /// be started again and again.
    fn await_event(&mut self, kind: &str) -> Value {
        let mut messages = Vec::new();
        for line in self.events.by_ref() {
            let event: Value = serde_json::from_str(&line.expect("text")).expect("JSON");
            if event["event"] == kind {
                return event;
            }
            assert_ne!(event["event"], "exited", "before {kind}: {messages:?}");
            if event["event"] == "message" {
                messages.push(event);
            }
        }
        panic!("hypha ended before {kind}")
    }

    fn end(mut self) {
        kill_process(Pid::from_child(&self.child), Signal::INT).expect("it runs");
        // Nobody may be left writing to a full pipe.
        self.events.by_ref().for_each(drop);
        assert_eq!(self.child.wait().expect("it ends").code(), Some(0));
    }
}

fn machine(image: &str, args: &[&str]) -> Value {
    json!({"name": "one", "workloads": [{"type": "zmachine", "name": "one", "data": {
        "image": {"unikernel": image}, "compute_capacity": {"cpu": 1, "memory": "8MiB"},
        "args": args}}]})
}

/// `kv` on a 2+1 volume with a published port, restarted at once.
fn kv() -> Value {
    json!({"name": "store", "workloads": [
        {"type": "network", "name": "net", "data": {}},
        {"type": "volume", "name": "data",
         "data": {"size": "16MiB", "redundancy": {"data": 2, "parity": 1}}},
        {"type": "zmachine", "name": "kv", "data": {
            "image": {"unikernel": "kv"}, "compute_capacity": {"cpu": 1, "memory": "32MiB"},
            "mounts": [{"name": "data", "mountpoint": "/data"}],
            "network": {"interfaces": [{"network": "net"}]},
            "ports": [{"listen": free_port(), "target": 8080, "protocol": "tcp"}],
            "restart": {"policy": "always", "backoff_initial": "1s"}}}]})
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
    listener.local_addr().expect("bound").port()
}

/// One request on a connection of its own; the status line and the body.
fn http(address: SocketAddr, request: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).expect("the port is published");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("set");
    stream.write_all(request.as_bytes()).expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answered");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    (head.lines().next().unwrap_or_default().to_owned(), body.to_owned())
}

fn put(address: SocketAddr, key: &str, value: &str) -> String {
    let len = value.len();
    let head =
        format!("PUT /kv/{key} HTTP/1.1\r\nHost: kv\r\nConnection: close\r\nContent-Length: {len}");
    http(address, &format!("{head}\r\n\r\n{value}")).0
}

fn get(address: SocketAddr, key: &str) -> (String, String) {
    let request = format!("GET /kv/{key} HTTP/1.1\r\nHost: kv\r\nConnection: close\r\n\r\n");
    http(address, &request)
}

fn published(session: &mut Session) -> SocketAddr {
    let event = session.await_event("published");
    event["listen"].as_str().and_then(|text| text.parse().ok()).expect("an address")
}

#[test]
fn hello_greets_and_its_code_is_hyphas() {
    let Some(dist) = dist() else { return };
    let output = Place::new(dist.clone(), &machine("hello", &["you"])).run();
    let log = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(log, "one | hello from ring 3\none | you\n");
    let output = Place::new(dist, &machine("hostile", &["exit", "7"])).run();
    assert_eq!(output.status.code(), Some(7), "{output:?}");
}

#[test]
fn a_guest_that_crashes_or_breaks_the_contract_says_so() {
    let Some(dist) = dist() else { return };
    for (attack, code, words) in [
        ("panic", 126, "guest crashed: panic"),
        ("call", 127, "the guest broke the device contract: doorbell: unknown call 0"),
    ] {
        let output = Place::new(dist.clone(), &machine("hostile", &[attack])).run();
        let told = String::from_utf8_lossy(&output.stderr).into_owned()
            + &String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(code), "{attack}: {told}");
        assert!(told.contains(words), "{attack}: {told}");
    }
}

#[test]
fn what_kv_acknowledged_survives_kill_9_and_a_lost_shard() {
    let Some(dist) = dist() else { return };
    let place = Place::new(dist, &kv());
    let mut session = Session::start(&place);
    let address = published(&mut session);
    let started = session.await_event("started");
    session.await_event("first_output");
    assert_eq!(put(address, "key", "kept"), "HTTP/1.1 201 Created");
    let pid = started["pid"].as_i64().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
    kill_process(pid.expect("a process"), Signal::KILL).expect("it runs");
    session.await_event("exited");
    fs::remove_dir_all(place.volume("store").join("shard-1")).expect("removed");
    session.await_event("first_output");
    assert_eq!(get(address, "key"), ("HTTP/1.1 200 OK".to_owned(), "kept".to_owned()));
    assert_eq!(put(address, "key", "kept on"), "HTTP/1.1 204 No Content");
    session.end();
}

#[test]
fn a_volume_that_is_wholly_lost_is_an_error_and_no_empty_disk() {
    let Some(dist) = dist() else { return };
    let place = Place::new(dist, &kv());
    let mut session = Session::start(&place);
    session.await_event("first_output");
    session.end();
    for shard in 0..3 {
        fs::remove_dir_all(place.volume("store").join(format!("shard-{shard}"))).expect("removed");
    }
    let mut child = place.hypha(&["--json"]).spawn().expect("hypha starts");
    let events = BufReader::new(child.stdout.take().expect("piped")).lines();
    let mut told = String::new();
    for line in events.map_while(Result::ok) {
        told += &line;
        if line.contains("\"exited\"") {
            break;
        }
    }
    kill_process(Pid::from_child(&child), Signal::KILL).expect("it runs");
    child.wait().expect("it ends");
    assert!(told.contains("volume \\\"data\\\""), "{told}");
    assert!(told.contains("\"code\":2"), "{told}");
    assert!(!told.contains("listening"), "{told}");
}
