//! What people read when a spec is wrong, word by word.

use spec::deployment::{Problems, parse, parse_bytes};

/// A deployment around `workloads`, one line per workload from line 2 on.
fn around(workloads: &[&str]) -> String {
    format!("{{\"name\":\"x\",\"workloads\":[\n{}]}}", workloads.join(",\n"))
}

fn refused(text: &str) -> Problems {
    match parse(text) {
        Ok(deployment) => panic!("accepted {text}: {deployment:?}"),
        Err(problems) => problems,
    }
}

/// Expects one problem, at the last place where `at` stands in the text.
#[track_caller]
fn expect(workloads: &[&str], at: &str, message: &str) {
    let text = around(workloads);
    let Some((before, _)) = text.rsplit_once(at) else { panic!("{at} is not in the text") };
    let line = before.lines().count() + usize::from(before.ends_with('\n'));
    let column = before.rsplit('\n').next().map_or(0, |last| last.chars().count()) + 1;
    let expected = format!("x.json:{line}:{column}: {message}\n");
    assert_eq!(refused(&text).render("x.json"), expected);
}

const NET: &str = r#"{"type":"network","name":"net","data":{"subnet":"10.1.1.0/29"}}"#;

fn machine(name: &str, fields: &str) -> String {
    format!(r#"{{"type":"vm","name":"{name}","data":{{"image":{{"unikernel":"hello"}}{fields}}}}}"#)
}

fn on_net(name: &str, interface: &str) -> String {
    let network = format!(r#","network":{{"interfaces":[{{"network":"net"{interface}}}]}}"#);
    machine(name, &network)
}

#[test]
fn a_misspelt_field_is_named_with_its_nearest() {
    expect(
        &[&machine("a", r#","compute_capacity":{"memmory":"64MiB"}"#)],
        r#""memmory""#,
        "/workloads/0/data/compute_capacity/memmory: unknown field \"memmory\"; \
         did you mean \"memory\"?",
    );
}

#[test]
fn an_unknown_field_far_from_all_lists_the_valid_ones() {
    expect(
        &[r#"{"type":"volume","name":"v","data":{"size":"1GiB","colour":"red"}}"#],
        r#""colour""#,
        "/workloads/0/data/colour: unknown field \"colour\"; expected one of size, redundancy, nodes, \
         policy",
    );
}

#[test]
fn a_syntax_error_has_line_and_column() {
    let message = refused("{\n  \"name\": \"x\",\n  \"workloads\": [,]\n}").render("x.json");
    assert_eq!(message, "x.json:3:17: this is not JSON: expected value\n");
}

#[test]
fn comments_and_trailing_commas_are_not_json() {
    for text in ["{} // x", "{\"name\":\"x\",}", "{'name':\"x\"}", "{name:1}", "[1,]", "0x10", "+1"]
    {
        let message = refused(text).to_string();
        assert!(message.contains("this is not JSON"), "{text}: {message}");
    }
}

#[test]
fn deep_nesting_is_refused() {
    let text = format!("{}{}", "[".repeat(200), "]".repeat(200));
    assert_eq!(
        refused(&text).render("x.json"),
        "x.json:1:128: this is not JSON: recursion limit exceeded\n"
    );
}

#[test]
fn a_spec_over_a_mebibyte_is_refused() {
    let text = " ".repeat((1 << 20) + 1);
    assert_eq!(
        refused(&text).render("x.json"),
        "x.json:1:1: the spec has 1048577 bytes, expected at most 1048576\n"
    );
}

#[test]
fn bytes_that_are_not_utf8_are_refused_where_they_are() {
    let problems = parse_bytes(b"{\n \"na\xffme\": 1}").unwrap_err();
    assert_eq!(problems.render("x.json"), "x.json:2:5: this is not UTF-8 text\n");
}

#[test]
fn a_missing_field_is_named() {
    expect(
        &[r#"{"type":"volume","name":"v"}"#],
        r#"{"type"#,
        "/workloads/0: missing field \"data\"",
    );
    expect(
        &[r#"{"type":"volume","name":"v","data":{}}"#],
        r#"{}"#,
        "/workloads/0/data: missing field \"size\"",
    );
}

#[test]
fn a_value_of_the_wrong_type_is_shown() {
    expect(
        &[&machine("a", r#","args":"--verbose""#)],
        r#""--verbose""#,
        "/workloads/0/data/args: found \"--verbose\", expected a list",
    );
}

#[test]
fn a_size_without_a_unit_of_ours_is_refused() {
    expect(
        &[&machine("a", r#","compute_capacity":{"memory":"64MB"}"#)],
        r#""64MB""#,
        "/workloads/0/data/compute_capacity/memory: found \"64MB\", expected a size from \
         2MiB to 128GiB in multiples of 4KiB, such as 67108864 or \"64MiB\"",
    );
}

#[test]
fn a_second_vcpu_is_refused_with_the_reason() {
    expect(
        &[&machine("a", r#","compute_capacity":{"cpu":2}"#)],
        r#"2}}"#,
        "/workloads/0/data/compute_capacity/cpu: found 2, expected 1 \
         (a unikernel has one vCPU for now)",
    );
}

#[test]
fn a_field_of_a_later_version_is_refused_by_name() {
    expect(
        &[&machine("a", r#","entrypoint":"/bin/sh""#)],
        r#""entrypoint""#,
        "/workloads/0/data/entrypoint: \"entrypoint\" is not supported yet; \
         a unikernel has one program; use \"args\"",
    );
}

#[test]
fn a_type_of_a_later_version_is_refused_by_name() {
    expect(
        &[r#"{"type":"zdb","name":"d","data":{"size":1}}"#],
        r#""zdb""#,
        "/workloads/0/type: the workload type \"zdb\" is not supported yet; \
         supported are network, volume (or zmount, disk) and zmachine (or vm)",
    );
}

#[test]
fn an_image_kind_of_a_later_version_is_refused_by_name() {
    expect(
        &[r#"{"type":"vm","name":"a","data":{"image":{"oci":"docker.io/library/nginx"}}}"#],
        r#""oci""#,
        "/workloads/0/data/image/oci: \"oci\" is not supported yet; use \"unikernel\"",
    );
}

#[test]
fn a_misspelt_type_is_named_with_its_nearest() {
    expect(
        &[r#"{"type":"zmachin","name":"a","data":{}}"#],
        r#""zmachin""#,
        "/workloads/0/type: unknown workload type \"zmachin\"; did you mean \"zmachine\"?",
    );
}

#[test]
fn two_workloads_of_one_name_are_refused() {
    expect(
        &[NET, &machine("net", "")],
        r#""net","data""#,
        "/workloads/1/name: there is another workload named \"net\", in line 2",
    );
}

#[test]
fn a_field_given_twice_is_refused() {
    expect(
        &[r#"{"type":"network","name":"a","name":"b"}"#],
        r#""name":"b""#,
        "/workloads/0/name: the field \"name\" is given twice",
    );
}

#[test]
fn a_reference_to_nothing_or_to_another_type_is_refused() {
    expect(
        &[NET, &machine("a", r#","network":{"interfaces":[{"network":"nte"}]}"#)],
        r#""nte""#,
        "/workloads/1/data/network/interfaces/0/network: there is no network named \
         \"nte\"; did you mean \"net\"?",
    );
    expect(
        &[NET, &machine("a", r#","mounts":[{"name":"net","mountpoint":"/d"}]"#)],
        r#""net","mountpoint""#,
        "/workloads/1/data/mounts/0/name: \"net\" is a network, expected a volume",
    );
}

#[test]
fn an_address_outside_its_subnet_is_refused() {
    expect(
        &[NET, &on_net("a", r#","ip":"10.1.2.9""#)],
        r#""10.1.2.9""#,
        "/workloads/1/data/network/interfaces/0/ip: 10.1.2.9 is not a host address of \
         the network's subnet 10.1.1.0/29",
    );
}

#[test]
fn one_address_or_port_for_two_machines_is_refused() {
    let (a, b) = (on_net("a", r#","ip":"10.1.1.3""#), on_net("b", r#","ip":"10.1.1.3""#));
    expect(
        &[NET, &a, &b],
        r#""10.1.1.3""#,
        "/workloads/2/data/network/interfaces/0/ip: 10.1.1.3 is also the address of \"a\"",
    );
    let ports =
        r#","network":{"interfaces":[{"network":"net"}]},"ports":[{"listen":80,"target":"81"}]"#;
    expect(
        &[NET, &machine("a", ports), &machine("b", ports)],
        r#"80,"target""#,
        "/workloads/2/data/ports/0/listen: port 80 is also published by \"a\"",
    );
}

#[test]
fn a_volume_of_two_machines_is_refused() {
    let volume = r#"{"type":"disk","name":"v","data":{"size":"1MiB"}}"#;
    let mount = r#","mounts":[{"name":"v","mountpoint":"/d"}]"#;
    expect(
        &[volume, &machine("a", mount), &machine("b", mount)],
        r#""v","mountpoint""#,
        "/workloads/2/data/mounts/0/name: the volume \"v\" is also mounted by \"a\"; \
         a volume has one machine",
    );
}

#[test]
fn a_rule_for_a_machine_elsewhere_or_a_label_of_nobody_is_refused() {
    let rule = |from: &str| format!(r#","allow":[{{"from":"{from}","protocol":"tcp"}}]"#);
    expect(
        &[NET, &machine("far", ""), &on_net("a", &rule("far"))],
        r#""far""#,
        "/workloads/2/data/network/interfaces/0/allow/0/from: \"far\" has no interface \
         on the network \"net\"",
    );
    expect(
        &[NET, &on_net("a", &rule("role=web"))],
        r#""role=web""#,
        "/workloads/1/data/network/interfaces/0/allow/0/from: no machine on the network \
         \"net\" has the label \"role=web\"",
    );
}

#[test]
fn a_groups_label_that_is_none_is_refused_with_what_it_looks_like() {
    let group = "cd".repeat(32);
    let rule = |from: &str| format!(r#","allow":[{{"from":"{from}","protocol":"tcp"}}]"#);
    let from = format!("{group}/Web");
    let text = around(&[NET, &on_net("a", &rule(&from))]);
    let problems = refused(&text).to_string();
    assert!(problems.contains("allow/0/from"), "{problems}");
    assert!(problems.contains("\"<key of 64 hexadecimal digits>/<label>\""), "{problems}");
}

#[test]
fn several_problems_are_reported_at_once_in_order() {
    let text = around(&[
        r#"{"type":"volume","name":"a b","data":{"size":"1XB"}}"#,
        r#"{"type":"volume","name":"b","data":{"size":-1}}"#,
    ]);
    let problems = refused(&text);
    let lines: Vec<_> = problems.list().iter().map(|p| (p.line, p.pointer.as_str())).collect();
    let size = "/workloads/1/data/size";
    assert_eq!(lines, [(2, "/workloads/0/name"), (2, "/workloads/0/data/size"), (3, size)]);
}

#[test]
fn control_characters_of_a_spec_do_not_reach_the_terminal() {
    let message = refused("{\"\\u001b[31m\\u202e\": 1}").to_string();
    assert!(!message.contains(['\u{1b}', '\u{202e}']), "{message}");
}

#[test]
fn a_published_port_needs_an_interface() {
    expect(
        &[&machine("a", r#","ports":[{"listen":80,"target":80}]"#)],
        r#"{"listen""#,
        "/workloads/0/data/ports/0: a published port needs a network interface; \
         add \"network\": {\"interfaces\": ...}",
    );
}

#[test]
fn a_peer_listed_twice_is_refused() {
    let key = "ab".repeat(32);
    let peers = format!(r#"[{{"key":"{key}"}},{{"key":"{key}","endpoint":"192.0.2.7:1"}}]"#);
    expect(
        &[&format!(r#"{{"type":"network","name":"n","data":{{"mesh":{{"peers":{peers}}}}}}}"#)],
        &format!(r#"{{"key":"{key}","endpoint""#),
        &format!("/workloads/0/data/mesh/peers/1: the peer {key} is listed twice"),
    );
}

#[test]
fn a_full_subnet_is_reported_where_the_next_machine_is() {
    let small = r#"{"type":"network","name":"net","data":{"subnet":"10.1.1.0/30"}}"#;
    expect(
        &[small, &on_net("a", ""), &on_net("b", "")],
        r#"{"network":"net"}"#,
        "/workloads/2/data/network/interfaces/0: the subnet 10.1.1.0/30 has no address \
         left for this machine",
    );
}

/// A 2+1 volume with these nodes.
fn on_nodes(name: &str, nodes: &[&str]) -> String {
    let nodes: Vec<String> = nodes.iter().map(|node| format!("{node:?}")).collect();
    format!(
        r#"{{"type":"volume","name":"{name}","data":{{"size":"1MiB","redundancy":{{"data":2,"parity":1}},"nodes":[{}]}}}}"#,
        nodes.join(",")
    )
}

const KEY: &str = "5b3c0e1f7a9d2846c1e0f3b5d7a9081726354455667788990a1b2c3d4e5f6071";

#[test]
fn a_node_that_is_none_is_shown_where_it_stands() {
    expect(
        &[&on_nodes("v", &["/a", "srv/b", "/c"])],
        "\"srv/b\"",
        "/workloads/0/data/nodes/1: found \"srv/b\", expected an absolute directory, or \
         \"tcp:ADDRESS:PORT\" or \"unix:/PATH\" with \",key=HEX\"",
    );
    expect(
        &[&on_nodes("v", &["/a", "tcp:192.0.2.7:9700", "/c"])],
        "\"tcp:",
        "/workloads/0/data/nodes/1: a shard server needs key=HEX, which `hypha storage ls` prints on \
         its host",
    );
    expect(
        &[&on_nodes("v", &["/a", &format!("tcp:there,key={KEY}"), "/c"])],
        "\"tcp:",
        "/workloads/0/data/nodes/1: \"there\" is no address with a port, like 10.0.0.7:9700 or \
         [fd00::7]:9700",
    );
}

#[test]
fn shards_that_would_be_lost_together_are_refused() {
    let server = format!("unix:/run/a,key={KEY}");
    expect(
        &[&on_nodes("v", &[&server, "/b", &server])],
        "\"unix:",
        "/workloads/0/data/nodes/2: this is also a node of \"v\"; shards there would be lost together",
    );
    expect(
        &[&on_nodes("v", &["/a", "/b", "/c"]), &on_nodes("w", &["/d", "/b", "/e"])],
        "\"/b\"",
        "/workloads/1/data/nodes/1: this is also a node of \"v\"; shards there would be lost together",
    );
    // A server has room for many volumes.
    let text =
        around(&[&on_nodes("v", &[&server, "/a", "/b"]), &on_nodes("w", &[&server, "/c", "/d"])]);
    assert!(parse(&text).is_ok());
}

#[test]
fn servers_of_one_failure_domain_are_refused_when_the_shards_need_more() {
    let server = |store: &str, more: &str| format!("unix:/s,key={KEY},store={store}{more}");
    let (a, b) = (server("a", ""), server("b", ""));
    expect(
        &[&on_nodes("v", &[&a, "/c", &b])],
        &format!("\"{b}\""),
        "/workloads/0/data/nodes/2: another node is in the failure domain \"this-host\" too, and 3 \
         shards need as many domains; name them with domain=NAME if one can be lost without the \
         other",
    );
    // A name tells them apart; with a spare there are enough.
    let named = server("b", ",domain=second");
    for nodes in [vec![a.as_str(), "/c", &named], vec![&a, "/c", &b, "/d"]] {
        let spec = around(&[&on_nodes("v", &nodes)]);
        assert!(spec::deployment::parse(&spec).is_ok(), "{nodes:?}");
    }
}

#[test]
fn nodes_and_shards_must_fit() {
    expect(
        &[&on_nodes("v", &["/a", "/b"])],
        "[\"/a\"",
        "/workloads/0/data/nodes: 2 nodes for 3 shards; each needs a directory, and spares are for \
         shard servers",
    );
    let server = format!("unix:/run/a,key={KEY}");
    expect(
        &[&on_nodes("v", &["/a", &server])],
        "[\"/a\"",
        "/workloads/0/data/nodes: 2 nodes for 3 shards; each needs a node",
    );
    assert!(parse(&around(&[&on_nodes("v", &["/a", "/b", "/c", &server])])).is_ok());
}
