//! What the verbs say, and how they refuse.

use std::process::{Command, Output};

use crate::{await_that, hypha, lab, nodes, start};

fn run(arguments: &[&str]) -> (i32, String, String) {
    let Output { status, stdout, stderr } =
        Command::new(hypha()).arg("mesh").args(arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

const KEY: &str = "fd3384e132ad02a56c78f45547ee40038dc79002b90d29ed90e08eee762ae715";

#[test]
fn a_key_is_made_once_and_kept() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().to_str().unwrap();
    let (code, first, _) = run(&["key", "--state", state]);
    assert_eq!(code, 0);
    assert_eq!(run(&["key", "--state", state]).1, first);
    let (_, quiet, _) = run(&["key", "-q", "--state", state]);
    assert!(first.contains(quiet.trim()) && quiet.trim().len() == 64);
    let (_, json, _) = run(&["key", "--json", "--state", state]);
    let object: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(object["key"], quiet.trim());
    let mode = std::fs::metadata(folder.path().join("mesh/key")).unwrap();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&mode.permissions()) & 0o777, 0o600);
}

#[test]
fn bad_input_is_one_line_that_says_what_was_expected_and_exit_code_2() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().to_str().unwrap();
    let own = run(&["key", "-q", "--state", state]).1.trim().to_owned();
    let own_peer = format!("{own}@192.0.2.1:7400");
    let bad_place = format!("{KEY}@nowhere");
    let twice = ["up", "--no-tun", "--peer", KEY, "--peer", KEY, "--listen", "127.0.0.1:0"];
    let cases: [(&[&str], &str); 10] = [
        (&["up", "--peer", "abc@192.0.2.1:7400"], "\"abc\" is no key: expected 64 hexadecimal"),
        (&["up", "--peer", &bad_place], "\"nowhere\" is no address: expected ADDRESS:PORT"),
        (&["up", "--no-tun", "--listen", "127.0.0.1:0", "--peer", &own_peer], "own key"),
        (&twice, "listed twice"),
        (&["up", "--listen", "everywhere"], "everywhere"),
        (&["ping", "2001:db8::1"], "its addresses lie in 400::/7"),
        (&["acl", "add", KEY, "sctp"], "expected tcp, udp or icmp"),
        (&["acl", "add", KEY, "tcp", "0"], "0"),
        (&["acl", "add", KEY, "icmp", "22"], "icmp has no ports"),
        (&["acl", "add", "me", "tcp", "22"], "\"me\" is no key"),
    ];
    for (arguments, expected) in cases {
        let (code, _, stderr) = run(&[arguments, &["--state", state]].concat());
        assert_eq!(code, 2, "{arguments:?}: {stderr}");
        assert!(stderr.contains(expected), "{arguments:?}: {stderr}");
    }
}

#[test]
fn without_a_node_the_command_says_how_to_start_one() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().to_str().unwrap();
    for verb in [&["status"][..], &["peers"], &["routes"], &["ping", KEY], &["trace", KEY]] {
        let (code, _, stderr) = run(&[verb, &["--state", state]].concat());
        assert_eq!(code, 5, "{verb:?}");
        assert!(stderr.contains("start one with `hypha mesh up`"), "{verb:?}: {stderr}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "{verb:?} made something");
    }
}

#[test]
fn rules_are_kept_listed_and_taken_away() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().to_str().unwrap();
    let acl = |arguments: &[&str]| run(&[&["acl"], arguments, &["--state", state]].concat());
    assert_eq!(acl(&["list"]).1, "nobody may open flows to this host\n");
    let (code, _, stderr) = acl(&["add", KEY, "tcp", "22"]);
    assert_eq!(code, 0);
    assert!(stderr.contains("kept for the next start: no node runs"), "{stderr}");
    assert_eq!(acl(&["add", KEY, "tcp", "22"]).0, 0);
    assert_eq!(acl(&["add", KEY, "icmp"]).0, 0);
    assert_eq!(acl(&["list"]).1, format!("{KEY} tcp 22\n{KEY} icmp\n"));
    assert_eq!(acl(&["remove", KEY, "tcp", "22"]).0, 0);
    let (code, _, stderr) = acl(&["remove", KEY, "tcp", "22"]);
    assert_eq!(code, 3);
    assert!(stderr.contains("there is no rule"), "{stderr}");
    let file = folder.path().join("mesh/acl.json");
    std::fs::write(&file, "[{\"from\": \"x\"}]").unwrap();
    let (code, _, stderr) = acl(&["list"]);
    assert_eq!(code, 2);
    assert!(stderr.contains("acl.json") && stderr.contains("64 hexadecimal digits"), "{stderr}");
    std::fs::write(
        &file,
        format!("[{{\"from\": \"{KEY}\", \"protocol\": \"icmp\", \"port\": 22}}]"),
    )
    .unwrap();
    let (code, _, stderr) = acl(&["list"]);
    assert_eq!(code, 2);
    assert!(stderr.contains("acl.json") && stderr.contains("icmp has no ports"), "{stderr}");
}

#[test]
fn a_second_node_with_the_same_state_or_port_is_refused_and_an_unknown_member_named() {
    let Some(mut lab) = lab() else { return };
    let [one, two] = nodes(&mut lab, ["a", "b"]);
    let wire = lab.wire("a", "b").unwrap();
    start(&mut lab, &one, &[(&two, &wire)]);
    let refused = one.command(&lab, &["up", "--no-tun", "--listen", "127.0.0.1:0"]).output();
    let refused = refused.unwrap();
    assert_eq!(refused.status.code(), Some(4));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("already runs with this state"));
    // Nobody is at the other end yet.
    let alone = one.command(&lab, &["ping", "-c", "1", KEY]).output().unwrap();
    assert_eq!(alone.status.code(), Some(5));
    let text = String::from_utf8_lossy(&alone.stderr).into_owned();
    assert!(text.contains("no neighbour") && text.contains("UDP"), "{text}");
    assert_eq!(text.lines().count(), 1, "said once: {text}");
    start(&mut lab, &two, &[(&one, &wire)]);
    lab.await_member(&one, &two).unwrap();
    let unknown = one.command(&lab, &["ping", "-c", "1", KEY]).output().unwrap();
    assert_eq!(unknown.status.code(), Some(5));
    let text = String::from_utf8_lossy(&unknown.stderr).into_owned();
    assert!(text.contains("no node announces it"), "{text}");
    await_that("the peers are listed", || {
        let peers = one.command(&lab, &["peers"]).output().unwrap();
        String::from_utf8_lossy(&peers.stdout).contains(&two.key)
    });
}
