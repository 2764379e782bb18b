//! The command `hypha` as its users see it, with a shell script in the place of `vmm`.
#![expect(clippy::expect_used, reason = "a test that can't go on fails")]

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// A folder with a fake `vmm`, an image, and a place for state and specs.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    /// `script` is what the fake `vmm` does; `$config` is its configuration, `$folder` this place.
    fn new(script: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let place = Self { folder };
        let head = format!(
            "#!/bin/sh\nfolder={}\n[ \"$1\" = --config-fd ] && config=$(cat /proc/self/fd/$2)\n",
            place.path("").display()
        );
        fs::write(place.path("vmm"), head + script).expect("written");
        fs::set_permissions(place.path("vmm"), fs::Permissions::from_mode(0o755)).expect("set");
        fs::create_dir(place.path("images")).expect("made");
        fs::write(place.path("images/hello"), "not really an image").expect("written");
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn spec(&self, text: &str) -> PathBuf {
        let path = self.path("spec.json");
        fs::write(&path, text).expect("written");
        path
    }

    fn hypha(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hypha"));
        command
            .env("HYPHA_STATE", self.path("state"))
            .env("HYPHA_VMM", self.path("vmm"))
            .env("HYPHA_IMAGES", self.path("images"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn run(&self, spec: &str, options: &[&str]) -> Output {
        let spec = self.spec(spec);
        self.hypha().arg("run").arg(spec).args(options).output().expect("hypha starts")
    }
}

fn machines(list: &[(&str, &str)]) -> String {
    let machine = |(name, fields): &(&str, &str)| {
        format!(
            r#"{{"type":"vm","name":"{name}","data":{{"image":{{"unikernel":"hello"}}{fields}}}}}"#
        )
    };
    let list: Vec<_> = list.iter().map(machine).collect();
    format!(r#"{{"name":"try","workloads":[{}]}}"#, list.join(","))
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("text")
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("text")
}

fn events(output: &Output) -> Vec<Value> {
    let parse = |line: &str| serde_json::from_str(line).expect("a JSON object per line");
    stdout(output).lines().map(parse).collect()
}

fn named<'a>(events: &'a [Value], name: &str) -> Vec<&'a Value> {
    events.iter().filter(|event| event["event"] == name).collect()
}

#[test]
fn the_guests_lines_carry_its_name() {
    let place = Place::new("echo hello world; echo oops >&2; printf 'no newline \\033[31m\\377'");
    let output = place.run(&machines(&[("one", ""), ("second", "")]), &[]);
    let text = stdout(&output);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(text.contains("one    | hello world\n"), "{text}");
    assert!(text.contains("second | no newline \\u{1b}[31m\\xff\n"), "{text}");
    assert!(stderr(&output).contains("one    ! oops\n"), "{}", stderr(&output));
}

#[test]
fn the_first_failure_in_the_order_of_the_spec_is_the_exit_code() {
    let place = Place::new(
        "case \"$config\" in *'\"name\":\"a\"'*) exit 0;; *'\"name\":\"b\"'*) sleep 0.2; exit 7;; *) exit 9;; esac",
    );
    let output = place.run(&machines(&[("a", ""), ("b", ""), ("c", "")]), &[]);
    assert_eq!(output.status.code(), Some(7), "{}", stderr(&output));
}

#[test]
fn a_crash_of_the_guest_is_126() {
    let place = Place::new("exit 126");
    assert_eq!(place.run(&machines(&[("a", "")]), &[]).status.code(), Some(126));
}

#[test]
fn a_machine_is_restarted_until_it_succeeds() {
    let place = Place::new("echo x >> $folder/count; [ $(wc -l < $folder/count) -ge 3 ]");
    let restart = r#","restart":{"policy":"on-failure","backoff_initial":"1ms"}"#;
    let output = place.run(&machines(&[("a", restart)]), &["--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let events = events(&output);
    let attempts: Vec<_> =
        named(&events, "started").iter().map(|event| event["attempt"].as_u64()).collect();
    assert_eq!(attempts, [Some(1), Some(2), Some(3)]);
    let codes: Vec<_> =
        named(&events, "exited").iter().map(|event| event["code"].as_i64()).collect();
    assert_eq!(codes, [Some(1), Some(1), Some(0)]);
    let pauses: Vec<_> =
        named(&events, "restarting").iter().map(|event| event["in_ms"].as_u64()).collect();
    assert_eq!(pauses, [Some(1), Some(2)]);
}

#[test]
fn events_tell_the_whole_story_in_order() {
    let place = Place::new("echo line");
    let output = place.run(&machines(&[("a", "")]), &["--json"]);
    let events = events(&output);
    let names: Vec<_> = events.iter().filter_map(|event| event["event"].as_str()).collect();
    assert_eq!(names, ["state", "started", "first_output", "log", "exited"]);
    assert_eq!(events[0]["directory"], place.path("state/deployments/try").to_str().expect("text"));
    assert!(events[1]["pid"].as_u64().is_some_and(|pid| pid > 1));
    assert!(events[2]["cold_start_ms"].as_f64().is_some_and(|ms| ms > 0.0));
    assert_eq!((&events[3]["workload"], &events[3]["line"]), (&"a".into(), &"line".into()));
}

/// Starts hypha and waits for the guest's first line.
fn running(place: &Place, spec: &str) -> (Child, BufReader<std::process::ChildStdout>) {
    let spec = place.spec(spec);
    let mut child = place.hypha().arg("run").arg(spec).spawn().expect("hypha starts");
    let mut reader = BufReader::new(child.stdout.take().expect("piped"));
    let mut line = String::new();
    reader.read_line(&mut line).expect("the guest speaks");
    assert!(line.ends_with("up\n"), "{line}");
    (child, reader)
}

fn interrupt(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).expect("hypha is there");
}

/// A machine that runs until it is asked to end.
const PATIENT: &str = "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.05; done";

#[test]
fn both_signals_end_the_machines_in_good_order() {
    for signal in [Signal::INT, Signal::TERM] {
        let place = Place::new(PATIENT);
        let always = r#","restart":{"policy":"always"}"#;
        let (mut child, mut reader) = running(&place, &machines(&[("a", always)]));
        interrupt(&child, signal);
        let mut rest = String::new();
        reader.read_to_string(&mut rest).expect("the rest");
        assert_eq!(rest, "a | bye\n");
        assert_eq!(child.wait().expect("ended").code(), Some(0));
    }
}

#[test]
fn a_second_interrupt_kills_a_machine_that_does_not_listen() {
    let place = Place::new("trap '' TERM; echo up; while :; do sleep 0.05; done");
    let (mut child, mut reader) = running(&place, &machines(&[("a", "")]));
    interrupt(&child, Signal::INT);
    std::thread::sleep(std::time::Duration::from_millis(200));
    interrupt(&child, Signal::INT);
    let mut rest = String::new();
    reader.read_to_string(&mut rest).expect("the rest");
    assert_eq!(child.wait().expect("ended").code(), Some(125));
}

#[test]
fn a_lost_reader_ends_the_machines_in_good_order() {
    let place = Place::new(
        "trap 'echo bye; sleep 0.3; touch $folder/ended; exit 0' TERM; while :; do echo up; sleep 0.05; done",
    );
    let (mut child, reader) = running(&place, &machines(&[("a", "")]));
    drop(reader);
    assert_eq!(child.wait().expect("ended").code(), Some(0));
    assert!(place.path("ended").exists());
}

#[test]
fn one_deployment_runs_once() {
    let place = Place::new(PATIENT);
    let spec = machines(&[("a", "")]);
    let (mut child, _reader) = running(&place, &spec);
    let second = place.run(&spec, &[]);
    assert_eq!(second.status.code(), Some(4));
    let message = stderr(&second);
    assert!(message.starts_with("hypha: the deployment \"try\" is already running"), "{message}");
    assert_eq!(message.lines().count(), 1);
    interrupt(&child, Signal::TERM);
    child.wait().expect("ended");
}

#[test]
fn a_bad_spec_starts_nothing() {
    let place = Place::new("touch $folder/started");
    let output = place.run(&machines(&[("a", r#","arg":[]"#)]), &[]);
    assert_eq!(output.status.code(), Some(2));
    let message = stderr(&output);
    assert!(message.contains("spec.json:1:"), "{message}");
    assert!(message.contains("unknown field \"arg\"; did you mean \"args\"?"), "{message}");
    assert!(!place.path("started").exists() && !place.path("state").exists());
}

#[test]
fn a_missing_image_or_vmm_is_named() {
    let place = Place::new("");
    let other = machines(&[("a", "")]).replace("hello", "./other");
    let output = place.run(&other, &[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("the image \"./other\" of a is not there"));
    fs::remove_file(place.path("vmm")).expect("there");
    let output = place.run(&machines(&[("a", "")]), &[]);
    assert_eq!(output.status.code(), Some(125));
    assert!(stderr(&output).contains("set HYPHA_VMM"), "{}", stderr(&output));
}

#[test]
fn a_vmm_that_cannot_be_executed_is_the_hosts_fault() {
    let place = Place::new("");
    let denied = fs::Permissions::from_mode(0o644);
    fs::set_permissions(place.path("vmm"), denied).expect("set");
    let always = r#","restart":{"policy":"always"}"#;
    let output = place.run(&machines(&[("a", always)]), &[]);
    assert_eq!(output.status.code(), Some(125), "{}", stderr(&output));
}

const TWO: &str = r#"{"name":"try","workloads":[
    {"type":"network","name":"net","data":{"subnet":"10.9.0.0/24"}},
    {"type":"volume","name":"v","data":{"size":"8MiB","redundancy":{"data":2,"parity":1}}},
    {"type":"vm","name":"web","labels":{"role":"web"},"data":{
        "image":{"unikernel":"hello"},"env":{"A":"1"},"args":["x y"],
        "mounts":[{"name":"v","mountpoint":"/v"}],
        "network":{"interfaces":[{"network":"net","allow":[
            {"from":"client","protocol":"tcp","port":80},
            {"from":"role=client","protocol":"icmp"}]}]},
        "ports":[{"listen":LISTEN,"target":8080}]}},
    {"type":"vm","name":"client","labels":{"role":"client"},"data":{
        "image":{"unikernel":"hello"},
        "network":{"interfaces":[{"network":"net"}]}}}]}"#;

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    listener.local_addr().expect("bound").port()
}

/// Runs [`TWO`] and returns what the two machines were told.
fn told(place: &Place) -> (Value, Value) {
    let output = place.run(&TWO.replace("LISTEN", &free_port().to_string()), &["--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let read = |name: &str| -> Value {
        let text = fs::read_to_string(place.path(name)).expect("the fake vmm wrote it");
        let config: spec::vm::VmConfig = serde_json::from_str(&text).expect("a configuration");
        assert!(config.die_with_parent);
        serde_json::from_str(&text).expect("JSON")
    };
    (read("web.json"), read("client.json"))
}

const KEEP_CONFIG: &str =
    "name=$(echo \"$config\" | sed 's/.*\"name\":\"\\(web\\|client\\)\".*/\\1/')
echo \"$config\" | grep -q '\"name\":\"web\",\"image\"' && name=web || name=client
echo \"$config\" > $folder/$name.json
fd=$(echo \"$config\" | sed 's/.*\"socket_fd\":\\([0-9]*\\).*/\\1/')
readlink /proc/self/fd/$fd > $folder/$name.socket
ls -l /proc/self/fd > $folder/$name.fds
(echo x > /proc/self/fd/$2) 2>/dev/null && echo writable > $folder/$name.writable
exit 0";

#[test]
fn each_machine_is_told_its_peers_rules_and_volumes() {
    let place = Place::new(KEEP_CONFIG);
    let (web, client) = told(&place);
    assert_eq!(web["args"], serde_json::json!(["x y"]));
    assert_eq!(web["block"][0]["size_bytes"], 8 << 20);
    assert_eq!(web["block"][0]["nodes"].as_array().map(Vec::len), Some(3));
    assert_eq!(web["net"][0]["ipv4"], serde_json::json!([["10.9.0.2", 24]]));
    let env = web["env"].as_array().expect("a list");
    assert!(env.contains(&serde_json::json!(["A", "1"])));
    assert!(env.contains(&serde_json::json!(["HYPHA_MOUNTS", "/v"])));
    let peers = env.iter().find(|pair| pair[0] == "HYPHA_PEERS").expect("told of its peers");
    let (name, address) = peers[1].as_str().and_then(|pair| pair.split_once('=')).expect("a pair");
    let address: std::net::Ipv6Addr = address.parse().expect("an address");
    assert_eq!((name, address.segments()[0] >> 9), ("client", 2), "in 400::/7");

    // The client's key may reach port 80 and ping; the host's own member the published port.
    let client_key = &web["net"][0]["peers"][0]["public_key"];
    assert_eq!(web["net"][0]["peers"][0]["addresses"], serde_json::json!(["10.9.0.3"]));
    let host_key = &web["net"][0]["peers"][1]["public_key"];
    let allow = serde_json::json!([
        {"from": {"key": client_key}, "protocol": "tcp", "port": 80},
        {"from": {"key": client_key}, "protocol": "icmp", "port": null},
        {"from": {"key": host_key}, "protocol": "tcp", "port": 8080}]);
    assert_eq!(web["net"][0]["allow"], allow);
    assert_eq!(client["net"][0]["allow"], serde_json::json!([]));
    assert_eq!(client["net"][0]["peers"].as_array().map(Vec::len), Some(1));
}

#[test]
fn a_machine_inherits_its_sockets_its_configuration_and_nothing_else() {
    let place = Place::new(KEEP_CONFIG);
    told(&place);
    let read = |name: &str| fs::read_to_string(place.path(name)).expect("written");
    assert!(read("web.socket").starts_with("socket:"));
    // What hypha itself inherited may be there too; of its own there is nothing else, such as the
    // other machine's socket, the listener or the lock.
    let fds = read("web.fds");
    let count = |what: &str| fds.lines().filter(|line| line.contains(what)).count();
    // The mesh socket, the card's end of its uplink, and the one to the keeper of its descriptors.
    assert_eq!((count("socket:"), count("memfd:"), count("/state/")), (3, 1, 0), "{fds}");
    assert!(!place.path("web.writable").exists(), "the configuration is sealed");
}

#[test]
fn keys_stay_the_same_and_are_never_shown() {
    let place = Place::new(KEEP_CONFIG);
    let (first, _) = told(&place);
    let (second, _) = told(&place);
    for pointer in ["/net/0/private_key", "/block/0/key", "/net/0/peers/1/public_key"] {
        assert!(first.pointer(pointer).is_some_and(Value::is_string), "{pointer}");
        assert_eq!(first.pointer(pointer), second.pointer(pointer), "{pointer}");
    }
    let output = place.run(&TWO.replace("LISTEN", &free_port().to_string()), &["-vv"]);
    let secret = first.pointer("/net/0/private_key").and_then(Value::as_str).expect("a key");
    assert!(!stdout(&output).contains(secret) && !stderr(&output).contains(secret));
    let modes = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
    let root = place.path("state/deployments/try");
    assert_eq!(modes(&root.join("volumes/v/key")), 0o600);
    assert_eq!(modes(&root.join("volumes/v/shard-0")), 0o700);
}

#[test]
fn a_published_port_that_is_taken_is_a_conflict() {
    let place = Place::new("touch $folder/started");
    let taken = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    let port = taken.local_addr().expect("bound").port();
    let output = place.run(&TWO.replace("LISTEN", &port.to_string()), &[]);
    assert_eq!(output.status.code(), Some(4), "{}", stderr(&output));
    assert!(stderr(&output).contains(&format!("port {port} of web")), "{}", stderr(&output));
    assert!(!place.path("started").exists());
}

#[test]
fn validate_says_nothing_about_a_good_spec() {
    let place = Place::new("");
    let spec = place.spec(&machines(&[("a", "")]));
    let output = place.hypha().arg("validate").arg(&spec).output().expect("hypha starts");
    assert_eq!(
        (output.status.code(), stdout(&output), stderr(&output)),
        (Some(0), "".into(), "".into())
    );
    fs::write(&spec, "{").expect("written");
    let output = place.hypha().arg("validate").arg(&spec).output().expect("hypha starts");
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("this is not JSON"));
    let output = place.hypha().args(["validate", "/nowhere"]).output().expect("hypha starts");
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn schema_and_completions_are_printed() {
    let place = Place::new("");
    let output = place.hypha().arg("schema").output().expect("hypha starts");
    let schema: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
    let output = place.hypha().args(["completions", "bash"]).output().expect("hypha starts");
    assert!(stdout(&output).contains("validate"));
    let output = place.hypha().arg("nonsense").output().expect("hypha starts");
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn the_doctor_reports_what_the_vmm_says_about_kvm() {
    let place = Place::new("[ \"$1\" = --probe ] && echo '{\"kvm\":\"software\"}'");
    let output = place.hypha().args(["doctor", "--json"]).output().expect("hypha starts");
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(report["vmm"]["kvm"], "software");
    assert_eq!(output.status.success(), report["ok"] == true);
    let broken = Place::new("echo no such device >&2; exit 125");
    let output = broken.hypha().arg("doctor").output().expect("hypha starts");
    assert_eq!(output.status.code(), Some(125));
    assert!(stdout(&output).contains("no such device"), "{}", stdout(&output));
}
