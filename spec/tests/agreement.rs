//! The JSON Schema and the parser say the same, and neither ever panics.
#![expect(clippy::expect_used, reason = "a test that can't go on fails")]

use proptest::prelude::*;
use serde_json::{Value, json};
use spec::deployment::{From, Image, RestartPolicy, parse, parse_bytes, schema};
use spec::secret::Public32;
use spec::vm::Protocol;

const KV: &str = include_str!("../../examples/kv.json");
const KV_SERVERS: &str = include_str!("../../examples/kv-servers.json");
const HELLO: &str = include_str!("../../examples/hello.json");

/// A spec that uses every field that is supported.
fn everything() -> Value {
    json!({
        "$schema": "https://example.org/deployment.v1.json", "api": "v1", "name": "every-1",
        "version": 3, "labels": {"team": "a"}, "description": "all", "metadata": "{}",
        "workloads": [
            {"type": "network", "name": "net", "version": 0, "result": {"state": "ok"},
             "data": {"subnet": "10.1.0.0/16", "mesh": {"listen": "::1", "peers": [
                {"key": "ab".repeat(32), "endpoint": "[2001:db8::7]:51820"},
                {"key": "cd".repeat(32)}]}}},
            {"type": "network", "name": "bare"},
            {"type": "volume", "name": "v", "data": {"size": 1048576}},
            {"type": "zmount", "name": "w",
             "data": {"size": "1TiB", "redundancy": {"data": 32, "parity": 0}}},
            {"type": "disk", "name": "x",
             "data": {"size": "1MiB", "redundancy": {"data": 1, "parity": 2}, "policy": "sealed",
                      "nodes": [format!("tcp:[::1]:9700,key={}", "ef".repeat(32)), "/srv/disk1",
                                format!("unix:/run/n,key={},store=a,domain=b", "ef".repeat(32)),
                                "dir:/srv/disk2"]}},
            {"type": "vm", "name": "a", "labels": {"role": "web"}, "data": {
                "image": {"unikernel": "../images/a"},
                "compute_capacity": {"cpu": 1, "memory": 2097152},
                "mounts": [{"name": "v", "mountpoint": "/v", "read_only": true},
                           {"name": "w", "mountpoint": "/w"}],
                "network": {"interfaces": [{"network": "net", "ip": "10.1.0.2", "mesh_port": 5000,
                    "allow": [{"from": "ab".repeat(32), "protocol": "udp", "port": 53},
                              {"from": "role=web", "protocol": "tcp", "port": "80"},
                              {"from": "b", "protocol": "icmp"},
                              {"from": format!("{}/role=web", "cd".repeat(32)),
                               "protocol": "tcp", "port": 443}]}]},
                "ports": [{"listen": "443", "target": 8443, "protocol": "tcp", "public": true}],
                "args": ["-v", ""], "env": {"B": "2", "A": "1"},
                "restart": {"policy": "on-failure", "max_retries": 3, "backoff_initial": "500ms",
                            "backoff_max": "1h", "reset_after": "1m"}}},
            {"type": "zmachine", "name": "b", "data": {"image": {"unikernel": "hello"},
                "network": {"interfaces": [{"network": "net"}]}}}
        ]
    })
}

#[test]
fn the_examples_and_a_full_spec_pass_both() {
    let validator = jsonschema::validator_for(&schema()).expect("the schema is one");
    for text in [KV.to_owned(), KV_SERVERS.to_owned(), HELLO.to_owned(), everything().to_string()] {
        parse(&text).unwrap_or_else(|problems| panic!("{problems}\nin {text}"));
        let value = serde_json::from_str(&text).expect("JSON");
        if let Err(error) = validator.validate(&value) {
            panic!("{} at {}", error, error.instance_path());
        }
    }
}

#[test]
fn a_full_spec_becomes_what_it_says() {
    let deployment = parse(&everything().to_string()).expect("valid");
    let [a, b] = deployment.machines.as_slice() else { panic!("two machines") };
    assert_eq!(a.image, Image::File("../images/a".into()));
    assert_eq!(a.mounts.iter().map(|m| m.read_only).collect::<Vec<_>>(), [true, false]);
    assert_eq!(a.env, [("A".into(), "1".into()), ("B".into(), "2".into())]);
    let interface = a.interface.as_ref().expect("a card");
    assert_eq!(interface.network.listen.to_string(), "::1");
    assert_eq!(
        interface.ipv4.map(|(ip, len)| (ip.to_string(), len)),
        Some(("10.1.0.2".into(), 16))
    );
    let from: Vec<_> = interface.allow.iter().map(|rule| &rule.from).collect();
    assert!(matches!(from[0], From::Key(_)));
    assert_eq!(from[1], &From::Machines(vec!["a".into()]));
    assert_eq!(from[2], &From::Machines(vec!["b".into()]));
    assert_eq!(interface.allow[2].protocol, Protocol::Icmp);
    let group = Public32([0xcd; 32]);
    assert_eq!(from[3], &From::Label { group, name: "role=web".into() });
    assert_eq!((a.ports[0].listen, a.ports[0].target, a.ports[0].public), (443, 8443, true));
    let restart = a.restart.expect("a rule");
    assert_eq!((restart.policy, restart.max_retries), (RestartPolicy::OnFailure, Some(3)));
    // 10.1.0.2 is taken by name, so the next automatic address is 10.1.0.3.
    let second = b.interface.as_ref().and_then(|interface| interface.ipv4);
    assert_eq!(second.map(|(ip, _)| ip.to_string()), Some("10.1.0.3".into()));
    assert_eq!((b.memory_bytes, b.restart), (128 << 20, None));
}

/// Edits of a valid spec: JSON pointer, and the value that is put there (null takes it away).
fn shape_mistakes() -> Vec<(&'static str, Value)> {
    let machine = |field: &str, value: Value| (format!("/workloads/5/data/{field}"), value);
    let edits = vec![
        ("/name".to_owned(), json!("Upper")),
        ("/name".to_owned(), json!("-x")),
        ("/name".to_owned(), Value::Null),
        ("/api".to_owned(), json!("v2")),
        ("/twin_id".to_owned(), json!(1)),
        ("/nmae".to_owned(), json!("x")),
        ("/workloads".to_owned(), json!([])),
        ("/workloads/0/name".to_owned(), json!("a b")),
        ("/workloads/0/type".to_owned(), json!("zdb")),
        ("/workloads/0/type".to_owned(), json!("nonsense")),
        ("/workloads/0/data/ip_range".to_owned(), json!("10.0.0.0/8")),
        ("/workloads/0/data/subnet".to_owned(), json!("10.1.0.0")),
        ("/workloads/0/data/mesh/peers/0/key".to_owned(), json!("abc")),
        ("/workloads/0/data/mesh/peers/0/endpoint".to_owned(), json!("example.org")),
        ("/workloads/2/data".to_owned(), Value::Null),
        ("/workloads/2/data/size".to_owned(), json!(4097)),
        ("/workloads/2/data/size".to_owned(), json!("1.5GiB")),
        ("/workloads/2/data/size".to_owned(), json!(-1)),
        ("/workloads/3/data/redundancy/data".to_owned(), json!(0)),
        ("/workloads/3/data/redundancy/parity".to_owned(), json!(33)),
        ("/workloads/3/data/redundancy/parity".to_owned(), json!("2")),
        machine("image", json!({"oci": "x"})),
        machine("image", json!({"unikernel": ".."})),
        machine("image", json!({"unikernel": "https://x/y"})),
        machine("compute_capacity/cpu", json!(2)),
        machine("compute_capacity/memory", json!(4096)),
        machine("network/interfaces/0/allow/0/from", json!("cd/web")),
        machine("network/interfaces/0/allow/0/from", json!(format!("{}/", "cd".repeat(32)))),
        machine("network/interfaces/0/allow/0/from", json!(format!("{}/Web", "cd".repeat(32)))),
        machine("network/interfaces/0/allow/0/from", json!(format!("{}/-web", "cd".repeat(32)))),
        machine("network/interfaces/0/allow/0/from", json!(format!("{}/a/b", "cd".repeat(32)))),
        machine(
            "network/interfaces/0/allow/0/from",
            json!(format!("{}/{}", "cd".repeat(32), "x".repeat(65))),
        ),
        machine("mounts/0/mountpoint", json!("data")),
        machine("mounts/0/mountpoint", json!("/a/../b")),
        machine("mounts/0/read_only", json!("yes")),
        machine("network/interfaces/0/mesh_port", json!(0)),
        machine("network/interfaces/0/allow/0/protocol", json!("sctp")),
        machine("network/interfaces/0/allow/0/from", json!("a b")),
        machine("ports/0/listen", json!(65536)),
        machine("ports/0/protocol", json!("udp")),
        machine("args", json!([1])),
        machine("env/HYPHA_PEERS", json!("x")),
        machine("env/1A", json!("x")),
        machine("env/A", json!(1)),
        machine("restart/policy", json!("sometimes")),
        machine("restart/backoff_initial", json!(2)),
        machine("restart/backoff_initial", json!("2 s")),
        machine("checks", json!({})),
        machine("gpu", json!([])),
    ];
    edits.into_iter().map(|(pointer, value)| (&*pointer.leak(), value)).collect()
}

fn edited(pointer: &str, value: &Value) -> Value {
    let mut spec = everything();
    let (parent, name) = pointer.rsplit_once('/').expect("a pointer");
    let parent = spec.pointer_mut(parent).expect("the parent exists");
    if value.is_null() {
        parent.as_object_mut().expect("an object").remove(name);
    } else if let Some(list) = parent.as_array_mut() {
        list[name.parse::<usize>().expect("an index")] = value.clone();
    } else {
        parent.as_object_mut().expect("an object").insert(name.to_owned(), value.clone());
    }
    spec
}

#[test]
fn what_the_schema_refuses_the_parser_refuses_too() {
    let validator = jsonschema::validator_for(&schema()).expect("the schema is one");
    for (pointer, value) in shape_mistakes() {
        let spec = edited(pointer, &value);
        assert!(parse(&spec.to_string()).is_err(), "the parser took {value} at {pointer}");
        assert!(!validator.is_valid(&spec), "the schema took {value} at {pointer}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
        let _outcome = parse_bytes(&bytes).map_err(|problems| problems.render("x"));
    }

    #[test]
    fn a_mutated_spec_never_panics(
        cut in 0usize..2000,
        insert in proptest::collection::vec(any::<u8>(), 0..6),
        skip in 0usize..6,
    ) {
        let text = everything().to_string().into_bytes();
        let cut = cut.min(text.len());
        let rest = text.get(cut + skip..).unwrap_or_default();
        let mutated = [&text[..cut], &insert, rest].concat();
        if let Err(problems) = parse_bytes(&mutated) {
            prop_assert!(!problems.list().is_empty());
            prop_assert!(problems.list().iter().all(|problem| problem.line > 0));
        }
    }

    /// Replaces one value anywhere in the tree by one of another kind.
    #[test]
    fn a_parsed_spec_always_passes_the_schema(
        position in 0usize..200,
        replacement in prop_oneof![
            Just(Value::Null), any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from), "[ -~]{0,12}".prop_map(Value::from),
            Just(json!([])), Just(json!({})), Just(json!(1)), Just(json!("net")),
        ],
    ) {
        let mut spec = everything();
        let mut left = position;
        replace(&mut spec, &mut left, &replacement);
        let text = spec.to_string();
        if parse(&text).is_ok() {
            let validator = jsonschema::validator_for(&schema()).expect("the schema is one");
            prop_assert!(validator.is_valid(&spec), "{}", text);
        }
    }
}

/// Replaces the value at the `left`th position in depth-first order.
fn replace(value: &mut Value, left: &mut usize, replacement: &Value) {
    if *left == 0 {
        *value = replacement.clone();
    }
    *left = left.wrapping_sub(1);
    match value {
        Value::Array(list) => {
            list.iter_mut().for_each(|item| replace(item, left, replacement));
        }
        Value::Object(map) => {
            map.values_mut().for_each(|item| replace(item, left, replacement));
        }
        _ => {}
    }
}
