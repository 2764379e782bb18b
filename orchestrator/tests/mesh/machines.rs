//! VMs as members of the mesh: their cards are attached to the node of their host.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use mesh_lab::{Lab, Node};
use net_vdev::{PrivateKey, PublicKey};
use serde_json::{Value, json};

use crate::{await_that, hypha, lab, nodes, start};

/// The folder with `vmm` and `images/`, if guests can run here; otherwise says loudly why not.
fn dist() -> Option<PathBuf> {
    let required = std::env::var_os("HYPHA_REQUIRE_KVM").is_some_and(|value| value == "1");
    let kvm = fs::File::options().read(true).write(true).open("/dev/kvm");
    let refusal = match (kvm, std::env::var_os("HYPHA_DIST")) {
        (Ok(_), Some(dist)) => return Some(dist.into()),
        (Err(error), _) => format!("/dev/kvm: {error}"),
        (_, None) => "HYPHA_DIST is not set; `cargo xtask test` sets it".to_owned(),
    };
    assert!(!required, "{refusal}");
    println!("SKIPPED: {refusal}");
    None
}

/// Gives the machine `name` of the deployment of the same name this key.
fn give_key(node: &Node, name: &str, byte: u8) -> PublicKey {
    let folder = node.state.join("deployments").join(name).join("workloads").join(name);
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder).unwrap();
    let options = fs::File::options().write(true).create(true).mode(0o600).clone();
    std::io::Write::write_all(&mut options.open(folder.join("key")).unwrap(), &[byte; 32]).unwrap();
    PrivateKey::new([byte; 32]).public()
}

/// A deployment of one machine of its own name on a network of nobody else.
fn machine(name: &str, image: &str, args: &[&str], allow: &[&str]) -> Value {
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
fn run(lab: &Lab, node: &Node, dist: &Path, spec: &Value) -> Command {
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

fn curl(lab: &Lab, node: &Node, words: &[&str]) -> Output {
    let mut command = lab.command(&node.namespace, "curl");
    command.args(["-6", "-s", "-g", "-m", "5", "-f"]).args(words);
    command.output().unwrap()
}

fn counter(lab: &Lab, node: &Node, name: &str) -> u64 {
    let status = node.status(lab).unwrap();
    let counters = status["counters"].as_array().unwrap();
    counters.iter().find(|it| it[0] == name).map_or(0, |it| it[1].as_u64().unwrap())
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
