//! VMs as members of the mesh: their cards are attached to the node of their host.

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use mesh_lab::{Lab, Node};
use net_vdev::{PrivateKey, PublicKey};
use serde_json::{Value, json};

use crate::dist::dist;
use crate::outside::start_with;
use crate::{await_that, counter, hypha, lab, nodes, start};

/// Gives the machine `name` of the deployment of the same name this key.
pub(crate) fn give_key(node: &Node, name: &str, byte: u8) -> PublicKey {
    let folder = node.state.join("deployments").join(name).join("workloads").join(name);
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder).unwrap();
    let options = fs::File::options().write(true).create(true).mode(0o600).clone();
    std::io::Write::write_all(&mut options.open(folder.join("key")).unwrap(), &[byte; 32]).unwrap();
    PrivateKey::new([byte; 32]).public()
}

/// A deployment of one machine of its own name on a network of nobody else.
pub(crate) fn machine(name: &str, image: &str, args: &[&str], allow: &[&str]) -> Value {
    let allow: Vec<_> =
        allow.iter().map(|key| json!({"from": key, "protocol": "tcp", "port": 8080})).collect();
    json!({"name": name, "workloads": [
        {"type": "network", "name": "net", "data": {}},
        {"type": "volume", "name": "data",
         "data": {"size": "16MiB", "redundancy": {"data": 1, "parity": 1}}},
        {"type": "zmachine", "name": name, "data": {
            "image": {"unikernel": image}, "compute_capacity": {"cpu": 1, "memory": "32MiB"},
            "mounts": [{"name": "data", "mountpoint": "/data"}], "args": args,
            "network": {"interfaces": [{"network": "net", "allow": allow}]}}}]})
}

/// `hypha run` of a spec on the host of a node.
pub(crate) fn run(lab: &Lab, node: &Node, dist: &Path, spec: &Value) -> Command {
    let path = node.state.join(format!("{}.json", spec["name"].as_str().unwrap()));
    fs::write(&path, spec.to_string()).unwrap();
    let mut command = lab.command(&node.namespace, &hypha().to_string_lossy());
    command
        .arg("run")
        .arg(&path)
        .env("HYPHA_STATE", &node.state)
        .env("HYPHA_VMM", dist.join("vmm"))
        .env("HYPHA_IMAGES", dist.join("images"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

pub(crate) fn curl(lab: &Lab, node: &Node, words: &[&str]) -> Output {
    let mut command = lab.command(&node.namespace, "curl");
    command.args(["-6", "-s", "-g", "-m", "5", "-f"]).args(words);
    command.output().unwrap()
}

#[test]
fn guests_are_reached_by_their_addresses_from_other_hosts_and_by_guests_there_and_here() {
    let (Some(mut lab), Some(dist)) = (lab(), dist()) else { return };
    let [one, middle, two] = nodes(&mut lab, ["a", "m", "b"]);
    let left = lab.wire("a", "m").unwrap();
    let right = lab.wire("b", "m").unwrap();
    start(&mut lab, &middle, &[]);
    let daemon = start(&mut lab, &one, &[(&middle, &left)]);
    start(&mut lab, &two, &[(&middle, &right)]);
    lab.await_member(&one, &two).unwrap();

    let store = give_key(&one, "kv", 11);
    let [near, far] = [give_key(&one, "near", 12), give_key(&two, "far", 13)];
    let allowed = [two.key.clone(), near.to_string(), far.to_string()];
    let spec = machine("kv", "kv", &[], &allowed.each_ref().map(String::as_str));
    let mut command = run(&lab, &one, &dist, &spec);
    lab.start(command.stdout(Stdio::null()).stderr(Stdio::null())).unwrap();

    // A plain program on another host, through a router that is neither's.
    let url = format!("http://[{}]:8080/kv/key", store.address());
    await_that("the guest answers a host", || {
        curl(&lab, &two, &["-X", "PUT", "--data", "value", &url]).status.success()
    });
    assert_eq!(curl(&lab, &two, &[&url]).stdout, b"value");
    assert!(!curl(&lab, &middle, &[&url]).status.success(), "nobody let this one in");

    // A guest there, and one on the same host, whose packets need no sealing.
    let target = format!("[{}]:8080", store.address());
    let args = ["--target", &target, "--count", "20"];
    for (node, name, passes) in [(&two, "far", false), (&one, "near", true)] {
        let before = counter(&lab, &one, "cards_local");
        let output = run(&lab, node, &dist, &machine(name, "load", &args, &[])).output().unwrap();
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{name}: {told} {output:?}");
        let local = counter(&lab, &one, "cards_local") - before;
        assert_eq!(local > 20, passes, "{name}: {local} packets went as they were");
    }

    // The node dies and comes back; the guest never notices.
    lab.kill(daemon);
    start(&mut lab, &one, &[(&middle, &left)]);
    await_that("the guest is attached again", || curl(&lab, &two, &[&url]).stdout == b"value");
    let status = one.status(&lab).unwrap();
    assert_eq!(status["attached"].as_array().unwrap().len(), 1, "who ended is not attached");
}

#[test]
fn a_machine_is_reached_by_the_name_that_it_has_on_its_node() {
    let (Some(mut lab), Some(dist)) = (lab(), dist()) else { return };
    let [one, two] = nodes(&mut lab, ["a", "b"]);
    let wire = lab.wire("a", "b").unwrap();
    start(&mut lab, &one, &[]);
    let nickname = format!("berlin={}", one.key);
    start_with(&mut lab, &two, &[(&one, &wire)], &["--dns", "--nickname", &nickname]);
    lab.await_member(&two, &one).unwrap();
    let store = give_key(&one, "kv", 21);
    let mut command = run(&lab, &one, &dist, &machine("kv", "kv", &[], &[&two.key]));
    lab.start(command.stdout(Stdio::null()).stderr(Stdio::null())).unwrap();

    // The resolver of the host, as its programs would have it in /etc/resolv.conf.
    let prefix = u128::from(two.address) & !u128::from(u64::MAX);
    let resolver = Ipv6Addr::from(prefix | 0x53);
    let file = lab.folder().join("resolv.conf");
    fs::write(&file, format!("nameserver {resolver}\n")).unwrap();
    let script = format!("mount --bind {} /etc/resolv.conf && exec curl \"$@\"", file.display());
    let fetch = |words: &[&str]| {
        let mut command = lab.command(&two.namespace, "unshare");
        command.args(["-m", "sh", "-c", &script, "curl", "-sS", "--noproxy", "*", "-m", "5", "-f"]);
        command.args(words).output().unwrap()
    };
    let url = "http://kv.berlin.mesh:8080/kv/key";
    await_that("the machine answers by its name", || {
        fetch(&["-X", "PUT", "--data", "value", url]).status.success()
    });
    let by_key = format!("http://kv.{}.mesh:8080/kv/key", label(&one.key));
    for url in [url, &by_key] {
        assert_eq!(fetch(&[url]).stdout, b"value", "{url}");
    }
    let nobody = fetch(&["http://db.berlin.mesh:8080/"]);
    assert_eq!(nobody.status.code(), Some(6), "curl could not resolve it: {nobody:?}");
    let status = one.status(&lab).unwrap();
    assert_eq!(status["attached"][0]["name"], "kv");
    assert_eq!(status["attached"][0]["key"], store.to_string());
}

/// A key of hexadecimal digits as a label of a name.
fn label(key: &str) -> String {
    let bytes = (0..64).step_by(2).map(|at| u8::from_str_radix(&key[at..at + 2], 16).unwrap());
    let bytes: Vec<u8> = bytes.collect();
    mesh_egress::names::key_label(&PublicKey(bytes.try_into().unwrap()))
}

/// Keeps what is put and gives it back, over HTTP, as `kv` does; its argument is the address.
const STORE: &str = "
import http.server, sys
class Store(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    values = {}
    def do_PUT(self):
        self.values[self.path] = self.rfile.read(int(self.headers['Content-Length']))
        self.send_response(204)
        self.end_headers()
    def do_GET(self):
        value = self.values.get(self.path)
        self.send_response(404 if value is None else 200)
        self.send_header('Content-Length', str(len(value or b'')))
        self.end_headers()
        self.wfile.write(value or b'')
    def log_message(self, *_):
        pass
http.server.ThreadingHTTPServer((sys.argv[1], 8080), Store).serve_forever()
";

#[test]
fn a_guest_reaches_a_plain_ipv4_server_through_an_exit_that_lets_it_and_no_other_does() {
    let (Some(mut lab), Some(dist)) = (lab(), dist()) else { return };
    let [one, exit] = nodes(&mut lab, ["a", "x"]);
    lab.namespace("s").unwrap();
    let wire = lab.wire("a", "x").unwrap();
    let beyond = lab.wire("x", "s").unwrap();
    let server = beyond.addresses[1].clone();
    let mut store = lab.command("s", "python3");
    store.args(["-c", STORE, &server]).stdout(Stdio::null()).stderr(Stdio::null());
    lab.start(&mut store).unwrap();
    let [listed, other] = [give_key(&one, "listed", 31), give_key(&one, "other", 32)];
    assert_ne!(listed, other);
    let destination = format!("{server}/32");
    let listed = listed.to_string();
    let words = ["--nat64", "--allow-destination", &destination, "--exit-for", &listed];
    start_with(&mut lab, &exit, &[], &words);
    start(&mut lab, &one, &[(&exit, &wire)]);
    lab.await_member(&one, &exit).unwrap();

    let [a, b, c, d] = server.parse::<Ipv4Addr>().unwrap().octets().map(u16::from);
    let address = Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, a << 8 | b, c << 8 | d);
    let target = format!("[{address}]:8080");
    for (name, patience_s, is_let_out) in [("listed", "30", true), ("other", "4", false)] {
        let count = ["--count", "20", "--timed", "10", "--patience-s", patience_s];
        let args: Vec<&str> = ["--target", &target].into_iter().chain(count).collect();
        let mut spec = machine(name, "load", &args, &[]);
        spec["workloads"][0]["data"] = json!({"mesh": {"exit": exit.key}});
        let before = counter(&lab, &exit, "exit_flows_opened");
        let output = run(&lab, &one, &dist, &spec).output().unwrap();
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.success(), is_let_out, "{name}: {told} {output:?}");
        let flows = counter(&lab, &exit, "exit_flows_opened") - before;
        assert_eq!(flows >= 1, is_let_out, "{name}: {flows} flows");
        let word = if is_let_out { "verified 20 values, 0 lost" } else { "does not answer" };
        assert!(told.contains(word), "{name}: {told}");
    }
    assert!(counter(&lab, &exit, "exit_strangers") >= 1);
}
