//! How nodes find links: over TCP where UDP is blocked, and to each other on a local network.

use mesh_lab::{Lab, Node, NodeOptions};
use serde_json::Value;

use crate::{await_that, lab, nodes, ping_during};

/// What a node says about another.
fn peer(lab: &Lab, node: &Node, other: &Node) -> Option<Value> {
    let status = node.status(lab).ok()?;
    let peers = status["peers"].as_array()?.clone();
    peers.into_iter().find(|peer| peer["key"] == other.key.as_str())
}

/// The way that data to another takes now.
fn current(lab: &Lab, node: &Node, other: &Node) -> String {
    let current = peer(lab, node, other).and_then(|peer| {
        let paths = peer["paths"].as_array()?.clone();
        let current = paths.into_iter().find(|path| path["is_current"] == true)?;
        Some(current["path"].as_str()?.to_owned())
    });
    current.unwrap_or_default()
}

/// Drops all UDP that comes into a namespace from elsewhere.
fn block_udp(lab: &Lab, namespace: &str) {
    let rules = "table inet noudp { chain in { type filter hook prerouting priority -300; \
                 iifname != \"lo\" ip protocol udp drop; }; }";
    lab.run(namespace, "nft", &[rules]).unwrap();
}

fn allow_udp(lab: &Lab, namespace: &str) {
    lab.run(namespace, "nft", &["delete", "table", "inet", "noudp"]).unwrap();
}

#[test]
fn where_udp_is_blocked_nodes_meet_over_tcp_and_return_to_udp_when_it_is_let_through() {
    let Some(mut lab) = lab() else { return };
    let [one, two] = nodes(&mut lab, ["a", "b"]);
    let wire = lab.wire("a", "b").unwrap();
    block_udp(&lab, "b");
    let more = vec!["--listen-tcp".to_owned(), "0.0.0.0:443".to_owned()];
    lab.start_node(&two, &NodeOptions { more, ..NodeOptions::default() }).unwrap();
    let neighbours = vec![two.at(&wire.addresses[1])];
    lab.start_node(&one, &NodeOptions { neighbours, ..NodeOptions::default() }).unwrap();
    two.allow(&lab, &one).unwrap();
    await_that("they meet over TCP", || {
        current(&lab, &one, &two) == format!("tcp {}:443", wire.addresses[1])
    });
    lab.await_member(&one, &two).unwrap();
    let (answers, _) = ping_during(&lab, (&one, &two), 50, |_| {});
    assert!(answers >= 45, "{answers} of 50");
    let said = one.command(&lab, &["peers"]).output().unwrap();
    let said = String::from_utf8(said.stdout).unwrap();
    assert!(said.contains("a firewall drops UDP") && said.contains("7400"), "{said}");
    let said = one.command(&lab, &["status"]).output().unwrap();
    assert!(String::from_utf8(said.stdout).unwrap().contains("a firewall drops UDP"));

    allow_udp(&lab, "b");
    await_that("they return to UDP", || {
        current(&lab, &one, &two) == format!("udp {}:7400", wire.addresses[1])
    });
    await_that("the connection is closed", || {
        let paths = peer(&lab, &one, &two).map(|peer| peer["paths"].to_string());
        paths.is_some_and(|paths| !paths.contains("tcp"))
    });
    let (answers, _) = ping_during(&lab, (&one, &two), 50, |_| {});
    assert!(answers >= 45, "{answers} of 50");
    let advice = peer(&lab, &one, &two).unwrap()["advice"].clone();
    assert!(advice.is_null(), "{advice}");

    // And back, while they talk.
    block_udp(&lab, "b");
    await_that("they take TCP again", || current(&lab, &one, &two).starts_with("tcp"));
    let (answers, _) = ping_during(&lab, (&one, &two), 50, |_| {});
    assert!(answers >= 45, "{answers} of 50");
}

#[test]
fn a_neighbour_that_answers_nowhere_is_named_with_what_to_do() {
    let Some(mut lab) = lab() else { return };
    let [one, two] = nodes(&mut lab, ["a", "b"]);
    let wire = lab.wire("a", "b").unwrap();
    let neighbours = vec![two.at(&wire.addresses[1])];
    lab.start_node(&one, &NodeOptions { neighbours, ..NodeOptions::default() }).unwrap();
    await_that("the status says so", || {
        let said = one.command(&lab, &["status"]).output().unwrap();
        let said = String::from_utf8(said.stdout).unwrap();
        said.contains("answers neither over UDP nor over TCP") && said.contains("--listen-tcp")
    });
}

#[test]
fn two_nodes_on_one_network_find_each_other_and_may_no_more_than_before() {
    let Some(mut lab) = lab() else { return };
    let [one, two] = nodes(&mut lab, ["a", "b"]);
    lab.wire("a", "b").unwrap();
    let anywhere = || NodeOptions {
        more: vec!["--listen".to_owned(), "[::]:7402".to_owned()],
        ..NodeOptions::default()
    };
    lab.start_node(&one, &anywhere()).unwrap();
    lab.start_node(&two, &anywhere()).unwrap();
    await_that("they find each other", || current(&lab, &one, &two).starts_with("udp [fe80::"));
    lab.await_member(&one, &two).unwrap();
    let ping = |count: &str| {
        let address = two.address.to_string();
        let args = ["-6", "-n", "-c", count, "-i", "0.1", "-W", "1", &address];
        lab.run("a", "ping", &args).is_ok()
    };
    assert!(!ping("2"), "being found is no permission");
    two.allow(&lab, &one).unwrap();
    assert!(ping("3"));
}

#[test]
fn a_node_that_does_not_want_to_be_found_is_not() {
    let Some(mut lab) = lab() else { return };
    let [one, two] = nodes(&mut lab, ["a", "b"]);
    lab.wire("a", "b").unwrap();
    for (node, more) in [(&one, ""), (&two, "--no-discovery")] {
        let more = ["--listen", "[::]:7402", more].map(str::to_owned);
        let more = more.into_iter().filter(|word| !word.is_empty()).collect();
        lab.start_node(node, &NodeOptions { more, ..NodeOptions::default() }).unwrap();
    }
    std::thread::sleep(std::time::Duration::from_secs(3));
    assert!(peer(&lab, &one, &two).is_none() && peer(&lab, &two, &one).is_none());
}
