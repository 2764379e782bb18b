//! Rules about which crate may depend on which.

use std::collections::BTreeMap;
use std::process::Command;

use serde_json::Value;

use crate::assert_none;
use crate::files::root;

/// Each crate of ours and the crates of ours that it may use (docs/ARCHITECTURE.md draws this).
const ARROWS: [(&str, &[&str]); 23] = [
    ("abi", &[]),
    ("spec", &[]),
    ("vdev", &[]),
    ("noise-ring", &[]),
    ("storage-vdev", &["noise-ring", "vdev"]),
    ("storage-node", &["storage-vdev"]),
    ("net-vdev", &["noise-ring", "vdev"]),
    ("mesh-router", &["net-vdev"]),
    ("mesh-sim", &["mesh-router", "net-vdev"]),
    ("mesh-edge", &["net-vdev"]),
    ("mesh-egress", &["net-vdev"]),
    ("mesh-lab", &[]),
    ("mesh-node", &["mesh-egress", "mesh-router", "net-vdev", "spec"]),
    ("guest-kernel", &["abi"]),
    ("hypha-chain", &[]),
    ("hypha-proofs", &["hypha-chain", "storage-vdev"]),
    ("proof-node", &["hypha-chain", "hypha-proofs", "storage-vdev"]),
    ("proof-sim", &["hypha-chain", "hypha-proofs"]),
    ("vmm", &["abi", "net-vdev", "spec", "storage-vdev", "vdev"]),
    (
        "orchestrator",
        &[
            "hypha-chain",
            "hypha-proofs",
            "mesh-edge",
            "mesh-egress",
            "mesh-lab",
            "mesh-node",
            "net-vdev",
            "proof-node",
            "spec",
            "storage-node",
            "storage-vdev",
        ],
    ),
    ("fuzz", ANY),
    ("benches", ANY),
    ("xtask", ANY),
];

const ANY: &[&str] = &[
    "abi",
    "guest-kernel",
    "hypha-chain",
    "hypha-proofs",
    "mesh-edge",
    "mesh-egress",
    "mesh-lab",
    "mesh-node",
    "mesh-router",
    "mesh-sim",
    "net-vdev",
    "noise-ring",
    "orchestrator",
    "proof-node",
    "proof-sim",
    "spec",
    "storage-node",
    "storage-vdev",
    "vdev",
    "vmm",
];

/// What has no place in a VMM: runtimes, HTTP, TLS, object stores.
const NOT_IN_THE_VMM: [&str; 20] = [
    "async-std",
    "axum",
    "curl",
    "futures-executor",
    "h2",
    "hyper",
    "isahc",
    "mio",
    "native-tls",
    "object_store",
    "opendal",
    "openssl",
    "quinn",
    "reqwest",
    "rustls",
    "smol",
    "surf",
    "tokio",
    "tonic",
    "ureq",
];

fn cargo(arguments: &[&str]) -> String {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let output = Command::new(cargo).args(arguments).current_dir(root()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Each crate of the workspace with its dependencies of all kinds.
fn workspace() -> BTreeMap<String, Vec<String>> {
    let text = cargo(&["metadata", "--no-deps", "--format-version", "1"]);
    let metadata: Value = serde_json::from_str(&text).unwrap();
    let names = |list: &Value| -> Vec<String> {
        let entries = list.as_array().unwrap().iter();
        entries.map(|entry| entry["name"].as_str().unwrap().to_owned()).collect()
    };
    let packages = metadata["packages"].as_array().unwrap().iter();
    packages
        .map(|package| {
            (package["name"].as_str().unwrap().to_owned(), names(&package["dependencies"]))
        })
        .collect()
}

#[test]
fn the_arrows_between_our_crates_are_the_drawn_ones() {
    let workspace = workspace();
    let mut broken = Vec::new();
    for (package, dependencies) in &workspace {
        let Some((_, allowed)) = ARROWS.iter().find(|(name, _)| name == package) else {
            broken.push(format!("{package}: not in ARROWS"));
            continue;
        };
        for dependency in dependencies.iter().filter(|name| workspace.contains_key(*name)) {
            if !allowed.contains(&dependency.as_str()) {
                broken.push(format!("{package} → {dependency}"));
            }
        }
    }
    assert_none(
        &broken,
        "move what both need to a crate below (abi, spec, vdev), or pass it in as an argument",
    );
}

#[test]
fn the_guest_contract_depends_on_nothing() {
    let broken = workspace().remove("abi").unwrap();
    assert_none(&broken, "abi is core only: it is compiled into every guest and every VMM");
}

#[test]
fn the_vmm_holds_no_runtime_no_http_and_no_object_store() {
    let tree = cargo(&["tree", "-p", "vmm", "-e", "normal,build", "--prefix", "none"]);
    let names = tree.lines().filter_map(|line| line.split_whitespace().next());
    let mut broken: Vec<String> =
        names.filter(|name| NOT_IN_THE_VMM.contains(name)).map(str::to_owned).collect();
    broken.sort();
    broken.dedup();
    assert_none(&broken, "the VMM speaks over sockets that it inherits; the node does the rest");
}

#[test]
fn every_crate_takes_the_lints_of_the_workspace() {
    let without: Vec<String> = crate::files::all(&["Cargo.toml"])
        .into_iter()
        .filter(|file| file.text.contains("[package]"))
        .filter(|file| !file.text.contains("[lints]\nworkspace = true"))
        .map(|file| file.path)
        .collect();
    assert_none(&without, "add the two lines `[lints]` and `workspace = true`");
}
