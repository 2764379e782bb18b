//! `hypha mesh` as its users see it: real processes and sockets, in network namespaces that the
//! tests make and take away.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that panics has failed, which is what it is for"
)]

mod aliases;
mod by_hand;
#[path = "../machines/dist.rs"]
mod dist;
mod edge;
mod lines;
mod links;
mod machines;
mod nat;
mod outside;
mod repair;

use std::path::Path;
use std::time::Duration;

use mesh_lab::{Lab, Node, NodeOptions, Wire};

/// The command under test.
fn hypha() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_hypha"))
}

/// A lab, or a word that there is none.
fn lab() -> Option<Lab> {
    match Lab::new() {
        Ok(lab) => Some(lab),
        Err(reason) => {
            println!("SKIPPED: {reason}");
            None
        }
    }
}

/// Nodes with names, in namespaces of the same names.
fn nodes<const N: usize>(lab: &mut Lab, names: [&str; N]) -> [Node; N] {
    names.map(|name| {
        lab.namespace(name).unwrap();
        lab.node(name, hypha()).unwrap()
    })
}

/// Starts `node`, which calls the nodes at the other ends of these wires.
fn start(lab: &mut Lab, node: &Node, calls: &[(&Node, &Wire)]) -> u32 {
    let neighbours = calls.iter().map(|(other, wire)| {
        let end = wire.ends.iter().position(|end| *end == other.namespace).unwrap();
        other.at(&wire.addresses[end])
    });
    let options = NodeOptions { neighbours: neighbours.collect(), ..NodeOptions::default() };
    lab.start_node(node, &options).unwrap()
}

/// Sends TCP from one node's host to another's for so many seconds; returns Mbit/s.
fn iperf(lab: &mut Lab, from: &Node, to: &Node, seconds: u32) -> f64 {
    let mut server = lab.command(&to.namespace, "iperf3");
    lab.start(server.args(["-s", "-1", "--forceflush"]).stdout(std::process::Stdio::null()))
        .unwrap();
    std::thread::sleep(Duration::from_millis(300));
    let address = to.address.to_string();
    let seconds = seconds.to_string();
    let text =
        lab.run(&from.namespace, "iperf3", &["-6", "-J", "-c", &address, "-t", &seconds]).unwrap();
    let report: serde_json::Value = serde_json::from_str(&text).unwrap();
    report["end"]["sum_received"]["bits_per_second"].as_f64().unwrap() / 1e6
}

/// Pings every 20 ms with the system's own program; returns how many of how many answers came, and
/// the longest time without one, while `meanwhile` runs at about a quarter of it.
fn ping_during(
    lab: &Lab,
    (from, to): (&Node, &Node),
    count: u32,
    meanwhile: impl FnOnce(&Lab),
) -> (usize, Duration) {
    let mut command = lab.command(&from.namespace, "ping");
    command.args(["-6", "-D", "-n", "-i", "0.02", "-W", "1", "-c", &count.to_string()]);
    command.arg(to.address.to_string());
    let child = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(20) * (count / 4));
    meanwhile(lab);
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let stamp = |line: &str| -> Option<f64> {
        line.strip_prefix('[')?.split_once(']')?.0.parse().ok().filter(|_| line.contains("time="))
    };
    let times: Vec<f64> = text.lines().filter_map(stamp).collect();
    let gaps = times.windows(2).map(|pair| pair[1] - pair[0]);
    let longest = gaps.fold(0.0f64, f64::max);
    (times.len(), Duration::from_secs_f64(longest))
}

/// What a node has counted under a name; 0 if nothing.
fn counter(lab: &Lab, node: &Node, name: &str) -> u64 {
    let status = node.status(lab).unwrap();
    let counters = status["counters"].as_array().unwrap();
    counters.iter().find(|it| it[0] == name).map_or(0, |it| it[1].as_u64().unwrap())
}

/// Waits until something is so, for at most some ten seconds.
fn await_that(what: &str, mut is_so: impl FnMut() -> bool) {
    for _ in 0..200 {
        if is_so() {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("{what}: not within ten seconds");
}
