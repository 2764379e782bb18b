//! What `hypha node` says without a network.

use std::process::{Command, Output, Stdio};

use serde_json::Value;

fn hypha(state: &std::path::Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hypha"));
    command.env("HYPHA_STATE", state).args(arguments).stdin(Stdio::null());
    command.output().unwrap()
}

fn complaint(output: &Output) -> String {
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(text.lines().count(), 1, "one line: {text}");
    text
}

#[test]
fn a_machine_is_looked_at_as_a_table_and_as_json() {
    let state = tempfile::tempdir().unwrap();
    let output = hypha(state.path(), &["node", "measure", "--look", "--json"]);
    assert!(output.status.success());
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(found["processors"]["online"].as_u64().unwrap() >= 1, "{found}");
    assert_eq!(found["disks"].as_array().unwrap().len(), 1, "{found}");
    assert!(found["speed"].is_null() && found["provable"]["mem_mib"].is_u64(), "{found}");
    let output = hypha(state.path(), &["node", "measure", "--look"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("a pulse can prove") && text.contains("/proc/cpuinfo"), "{text}");
    let output = hypha(state.path(), &["node", "measure", "/nowhere/at/all"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(complaint(&output).contains("/nowhere/at/all"));
}

#[test]
fn who_cannot_prove_is_told_why_in_one_line() {
    let state = tempfile::tempdir().unwrap();
    let output = hypha(state.path(), &["node", "prove"]);
    assert_eq!(output.status.code(), Some(3), "no chain");
    assert!(complaint(&output).contains("hypha chain init"));
    let output = hypha(state.path(), &["chain", "init", "--cadence", "1"]);
    assert!(output.status.success());
    assert!(hypha(state.path(), &["key", "create", "node"]).status.success());
    let output = hypha(state.path(), &["node", "prove"]);
    assert_eq!(output.status.code(), Some(3), "not registered");
    assert!(complaint(&output).contains("hypha node register"));
    let file = state.path().join("network.json");
    std::fs::write(&file, "{}").unwrap();
    let output = hypha(state.path(), &["node", "prove", "--peer", "7"]);
    assert_eq!(output.status.code(), Some(2), "a peer without an address");
}

#[test]
fn a_folder_that_is_no_shard_servers_is_named_in_one_line() {
    let state = tempfile::tempdir().unwrap();
    let prove = |folder: &str| hypha(state.path(), &["node", "prove", "--shards", folder]);
    let empty = state.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    for folder in ["/nowhere/at/all=12", empty.to_str().unwrap()] {
        let output = prove(folder);
        assert_eq!(output.status.code(), Some(2), "{folder}");
        let complaint = complaint(&output);
        let path = folder.trim_end_matches("=12");
        assert!(complaint.contains("--shards") && complaint.contains(path), "{complaint}");
        assert!(complaint.contains("hypha storage serve"), "{complaint}");
    }
}
