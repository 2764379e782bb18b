//! The mesh between nodes, measured in network namespaces: streams, round trips, processor time,
//! repair, first packets, queueing. Peers that are installed are measured beside it in the same run.
//!
//! `mesh` runs all parts, `mesh PART…` those that are named: `stream`, `repair`, `death`, `cold`,
//! `queue`.
#![expect(clippy::unwrap_used, reason = "a benchmark that fails, fails")]

mod peers;
mod ping;
mod repair;
mod stream;

use std::path::PathBuf;

use mesh_lab::{Lab, Node, NodeOptions, Wire};

const PARTS: [&str; 5] = ["stream", "repair", "death", "cold", "queue"];

fn main() {
    let arguments: Vec<String> =
        std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    if let Err(reason) = Lab::new() {
        println!("not measured: {reason}");
        return;
    }
    for part in PARTS {
        if !arguments.is_empty() && !arguments.iter().any(|argument| argument == part) {
            continue;
        }
        match part {
            "stream" => stream::run(),
            "repair" => repair::silent(),
            "death" => repair::loud(),
            "cold" => repair::cold(),
            _ => stream::queue(),
        }
    }
}

/// Prints a heading, with what else this machine does.
fn heading(title: &str) {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or_default();
    println!("## {title}\n\nLoad average: {load}.\n");
}

/// Whether a program can be started; says so if not.
fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).any(|folder| folder.join(program).is_file());
    if !found {
        println!("({program} is not installed)\n");
    }
    found
}

/// The command under test.
fn hypha() -> PathBuf {
    benches::dist().join("hypha")
}

/// Nodes with names, in namespaces of the same names.
fn nodes<const N: usize>(lab: &mut Lab, names: [&str; N]) -> [Node; N] {
    names.map(|name| {
        lab.namespace(name).unwrap();
        lab.node(name, &hypha()).unwrap()
    })
}

/// Starts `node`, which calls the nodes at the other ends of these wires; its process ID.
fn start(lab: &mut Lab, node: &Node, calls: &[(&Node, &Wire)]) -> u32 {
    let neighbours = calls.iter().map(|(other, wire)| {
        let end = wire.ends.iter().position(|end| *end == other.namespace).unwrap();
        other.at(&wire.addresses[end])
    });
    let options = NodeOptions { neighbours: neighbours.collect(), ..NodeOptions::default() };
    lab.start_node(node, &options).unwrap()
}

/// Two ways from `a` to `b`, through `u` and through `d`.
struct Diamond {
    lab: Lab,
    one: Node,
    two: Node,
    /// From `a` to `u` and to `d`, from `b` to `u` and to `d`.
    wires: [Wire; 4],
    /// The processes of `u` and `d`, and what starts them anew.
    middles: [(Node, u32); 2],
}

fn diamond() -> Diamond {
    let mut lab = Lab::new().unwrap();
    let [one, up, down, two] = nodes(&mut lab, ["a", "u", "d", "b"]);
    let ends = [("a", "u"), ("a", "d"), ("b", "u"), ("b", "d")];
    let wires = ends.map(|(from, to)| lab.wire(from, to).unwrap());
    let up_process = start(&mut lab, &up, &[]);
    let down_process = start(&mut lab, &down, &[]);
    start(&mut lab, &one, &[(&up, &wires[0]), (&down, &wires[1])]);
    start(&mut lab, &two, &[(&up, &wires[2]), (&down, &wires[3])]);
    two.allow(&lab, &one).unwrap();
    lab.await_member(&one, &two).unwrap();
    Diamond { lab, one, two, wires, middles: [(up, up_process), (down, down_process)] }
}
