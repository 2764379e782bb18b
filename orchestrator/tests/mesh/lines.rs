//! Nodes in a row: who reaches whom, through whom, and who may.

use crate::{iperf, lab, nodes, ping_during, start};

#[test]
fn nobody_reaches_a_host_until_it_lets_them_and_then_only_where_it_does() {
    let Some(mut lab) = lab() else { return };
    let [one, two] = nodes(&mut lab, ["a", "b"]);
    let wire = lab.wire("a", "b").unwrap();
    start(&mut lab, &one, &[(&two, &wire)]);
    start(&mut lab, &two, &[]);
    lab.await_member(&one, &two).unwrap();
    let ping = |count: &str| {
        let address = two.address.to_string();
        let args = ["-6", "-n", "-c", count, "-i", "0.1", "-W", "1", &address];
        lab.run("a", "ping", &args).is_ok()
    };
    assert!(!ping("2"), "default deny");
    two.allow(&lab, &one).unwrap();
    assert!(ping("3"), "a running node goes by the new rule");
    let mut remove = two.command(&lab, &["acl", "remove", &one.key, "icmp"]);
    assert!(remove.status().unwrap().success());
    assert!(!ping("2"), "and by its end");
    let denied = two.status(&lab).unwrap();
    let counters = denied["counters"].as_array().unwrap();
    let denied = counters.iter().find(|it| it[0] == "dropped_inbound_denied").unwrap();
    assert!(denied[1].as_u64().unwrap() >= 4);
}

#[test]
fn a_stream_crosses_a_node_that_sees_nothing_of_it() {
    let Some(mut lab) = lab() else { return };
    let [one, middle, two] = nodes(&mut lab, ["a", "m", "b"]);
    let left = lab.wire("a", "m").unwrap();
    let right = lab.wire("b", "m").unwrap();
    start(&mut lab, &middle, &[]);
    start(&mut lab, &one, &[(&middle, &left)]);
    start(&mut lab, &two, &[(&middle, &right)]);
    two.allow(&lab, &one).unwrap();
    lab.await_member(&one, &two).unwrap();
    let rate = iperf(&mut lab, &one, &two, 2);
    assert!(rate > 10.0, "{rate} Mbit/s");
    let trace = one.command(&lab, &["trace", &two.key]).output().unwrap();
    let trace = String::from_utf8(trace.stdout).unwrap();
    let hops: Vec<_> = trace.lines().filter_map(|line| line.split_whitespace().nth(1)).collect();
    assert_eq!(hops, [middle.address.to_string(), two.address.to_string()], "{trace}");
    let status = middle.status(&lab).unwrap();
    let counters = status["counters"].as_array().unwrap();
    let count = |name: &str| counters.iter().find(|it| it[0] == name).unwrap()[1].as_u64().unwrap();
    assert!(count("frames_forwarded") > 1000);
    assert_eq!(count("packets_received"), 0);
}

#[test]
fn a_narrow_link_on_the_way_hurts_nothing() {
    let Some(mut lab) = lab() else { return };
    let [one, middle, two] = nodes(&mut lab, ["a", "m", "b"]);
    let left = lab.wire("a", "m").unwrap();
    let right = lab.wire("b", "m").unwrap();
    // IPv6's smallest packet, and nobody says a word about it to those who send larger ones.
    lab.set_mtu(&right, 1280).unwrap();
    start(&mut lab, &middle, &[]);
    start(&mut lab, &one, &[(&middle, &left)]);
    start(&mut lab, &two, &[(&middle, &right)]);
    two.allow(&lab, &one).unwrap();
    lab.await_member(&one, &two).unwrap();
    let rate = iperf(&mut lab, &one, &two, 3);
    assert!(rate > 5.0, "{rate} Mbit/s");
    let address = two.address.to_string();
    let whole = ["-6", "-n", "-s", "1352", "-M", "do", "-c", "20", "-i", "0.05", &address];
    lab.run("a", "ping", &whole).unwrap();
}

#[test]
fn a_node_that_is_started_again_is_found_at_once() {
    let Some(mut lab) = lab() else { return };
    let [one, two] = nodes(&mut lab, ["a", "b"]);
    let wire = lab.wire("a", "b").unwrap();
    start(&mut lab, &one, &[(&two, &wire)]);
    two.allow(&lab, &one).unwrap();
    let process = start(&mut lab, &two, &[(&one, &wire)]);
    lab.await_member(&one, &two).unwrap();
    lab.kill(process);
    start(&mut lab, &two, &[(&one, &wire)]);
    lab.await_member(&one, &two).unwrap();
    let (answers, _) = ping_during(&lab, (&one, &two), 50, |_| {});
    assert!(answers >= 45, "{answers} of 50");
}
