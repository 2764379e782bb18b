//! Nodes behind NATs made with nftables.

use mesh_lab::{Lab, Wire};

use crate::{await_that, lab, nodes, ping_during, start};

/// Makes a namespace an address translator, as homes have them: what leaves by `outside` gets that
/// wire's address, and what nobody inside asked for is dropped without a word.
fn masquerade(lab: &Lab, nat: &str, outside: &Wire) {
    lab.run(nat, "sysctl", &["-q", "-w", "net.ipv4.ip_forward=1"]).unwrap();
    let end = outside.ends.iter().position(|end| end == nat).unwrap();
    let device = &outside.devices[end];
    let rules = format!(
        "table ip nat {{ chain post {{ type nat hook postrouting priority 100; \
         oifname \"{device}\" masquerade; }}; chain in {{ type filter hook input priority 0; \
         iifname \"{device}\" drop; }}; }}"
    );
    lab.run(nat, "nft", &[&rules]).unwrap();
}

/// Sends everything of a namespace through the other end of a wire.
fn default_route(lab: &Lab, namespace: &str, wire: &Wire) {
    let end = wire.ends.iter().position(|end| end != namespace).unwrap();
    lab.run(namespace, "ip", &["route", "add", "default", "via", &wire.addresses[end]]).unwrap();
}

#[test]
fn two_nodes_behind_nats_meet_through_a_third_and_then_without_it() {
    let Some(mut lab) = lab() else { return };
    let [one, public, two] = nodes(&mut lab, ["a", "p", "b"]);
    for nat in ["na", "nb"] {
        lab.namespace(nat).unwrap();
    }
    let inside_a = lab.wire("a", "na").unwrap();
    let inside_b = lab.wire("b", "nb").unwrap();
    let outside_a = lab.wire("na", "p").unwrap();
    let outside_b = lab.wire("nb", "p").unwrap();
    masquerade(&lab, "na", &outside_a);
    masquerade(&lab, "nb", &outside_b);
    default_route(&lab, "a", &inside_a);
    default_route(&lab, "b", &inside_b);
    default_route(&lab, "na", &outside_a);
    default_route(&lab, "nb", &outside_b);
    // The public network between the NATs is the third node's namespace, which routes.
    lab.run("p", "sysctl", &["-q", "-w", "net.ipv4.ip_forward=1"]).unwrap();
    start(&mut lab, &public, &[]);
    start(&mut lab, &one, &[(&public, &outside_a)]);
    start(&mut lab, &two, &[(&public, &outside_b)]);
    two.allow(&lab, &one).unwrap();
    lab.await_member(&one, &two).unwrap();
    let (answers, _) = ping_during(&lab, (&one, &two), 100, |_| {});
    assert!(answers >= 95, "{answers} of 100");
    let direct = || {
        let status = one.status(&lab).unwrap();
        let peers = status["peers"].as_array().unwrap().clone();
        let peer = peers.into_iter().find(|peer| peer["key"] == two.key.as_str()).unwrap();
        let paths = peer["paths"].as_array().unwrap().clone();
        let current = paths.into_iter().find(|path| path["is_current"] == true).unwrap();
        current["path"].as_str().unwrap().to_owned()
    };
    await_that("the nodes do without the third", || {
        ping_during(&lab, (&one, &two), 10, |_| {});
        // The NAT of the other, not the node that introduced them.
        direct().contains(&outside_b.addresses[0])
    });
}
