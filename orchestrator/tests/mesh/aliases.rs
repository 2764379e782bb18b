//! A machine's alias in the /64 of its node: found, used and gone.

use std::net::Ipv6Addr;
use std::process::Stdio;

use mesh_lab::{Lab, Node};
use serde_json::{Value, json};

use crate::dist::dist;
use crate::machines::{curl, give_key, machine, run};
use crate::{await_that, lab, nodes, start};

/// What a node's status says of aliases under this name.
fn aliases(lab: &Lab, node: &Node, name: &str) -> Vec<Value> {
    node.status(lab).unwrap()[name].as_array().cloned().unwrap_or_default()
}

/// What `hypha mesh` prints.
fn told_of(lab: &Lab, node: &Node, words: &[&str]) -> String {
    String::from_utf8(node.command(lab, words).output().unwrap().stdout).unwrap()
}

#[test]
fn a_machine_is_reached_by_its_alias_on_its_node_while_it_runs_there_and_no_longer() {
    let (Some(mut lab), Some(dist)) = (lab(), dist()) else { return };
    let [one, middle, two] = nodes(&mut lab, ["a", "m", "b"]);
    let left = lab.wire("a", "m").unwrap();
    let right = lab.wire("b", "m").unwrap();
    start(&mut lab, &middle, &[]);
    start(&mut lab, &one, &[(&middle, &left)]);
    start(&mut lab, &two, &[(&middle, &right)]);
    lab.await_member(&one, &two).unwrap();
    let store = give_key(&one, "kv", 41);
    let mut spec = machine("kv", "kv", &[], &[&two.key]);
    let echo = json!({"from": two.key, "protocol": "icmp"});
    spec["workloads"][2]["data"]["network"]["interfaces"][0]["allow"]
        .as_array_mut()
        .unwrap()
        .push(echo);
    let mut command = run(&lab, &one, &dist, &spec);
    let running = lab.start(command.stdout(Stdio::null()).stderr(Stdio::null())).unwrap();

    // What the node says of it, and what another one finds out by asking.
    await_that("the node gives it an alias", || !aliases(&lab, &one, "aliases").is_empty());
    let said = &aliases(&lab, &one, "aliases")[0];
    let alias: Ipv6Addr = said["address"].as_str().unwrap().parse().unwrap();
    assert_eq!(said["key"], store.to_string());
    let prefix = |address: Ipv6Addr| Ipv6Addr::from_bits(address.to_bits() >> 64 << 64);
    assert_eq!(prefix(alias), prefix(one.address));
    let told = told_of(&lab, &one, &["key"]);
    assert!(told.contains(&format!("aliases  {}/64", prefix(one.address))), "{told}");

    // Programs of the host use it as any address, TCP and ICMP: the guest's own is on the wire.
    let url = format!("http://[{alias}]:8080/kv/key");
    await_that("the guest answers at its alias", || {
        curl(&lab, &two, &["-X", "PUT", "--data", "value", &url]).status.success()
    });
    let own = format!("http://[{}]:8080/kv/key", store.address());
    for url in [&url, &own] {
        assert_eq!(curl(&lab, &two, &[url]).stdout, b"value", "{url}");
    }
    assert!(!curl(&lab, &middle, &[&url]).status.success(), "an alias lets nobody in");
    let pings = ["-6", "-n", "-c", "3", "-i", "0.1", "-W", "2", &alias.to_string()];
    lab.run("b", "ping", &pings).unwrap();
    let whose = format!("{alias} is {}", &store.to_string()[..12]);
    for (verb, also) in [("ping", "answered"), ("trace", &*middle.address.to_string())] {
        let told = told_of(&lab, &two, &[verb, &alias.to_string()]);
        assert!(told.starts_with(&whose) && told.contains(also), "{told}");
    }
    let known = &aliases(&lab, &two, "known_aliases")[0];
    assert_eq!([&known["key"], &known["node"]], [&store.to_string(), &one.key]);

    // It ends, and so does its alias, long before the certificate would have.
    lab.kill(running);
    await_that("the alias is nobody's", || {
        aliases(&lab, &one, "aliases").is_empty() && aliases(&lab, &two, "known_aliases").is_empty()
    });
    let output = two.command(&lab, &["ping", &alias.to_string()]).output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(5));
    assert!(told.contains("nor the alias of a workload that runs on node"), "{told}");
}
