//! One TCP stream, its processor time, and the round trip beside it; ours and the peers' in turns.

use std::process::Stdio;
use std::time::Duration;

use benches::Distribution;
use mesh_lab::{Lab, cpu_seconds};
use serde_json::Value;

use crate::peers::{Peer, Tunnel};
use crate::ping::Ping;
use crate::{heading, nodes, start};

const ROUNDS: usize = 5;
const SECONDS: u32 = 3;

/// Two namespaces that reach each other through something.
pub(crate) struct Path {
    pub(crate) lab: Lab,
    /// The address of `b` inside.
    pub(crate) to: String,
    /// The processes whose time counts: at the ends, and between them.
    pub(crate) ends: Vec<u32>,
    pub(crate) middle: Vec<u32>,
}

/// What was measured on a path.
struct Figures {
    gbit_per_s: Vec<f64>,
    ends_s_per_gb: Vec<f64>,
    middle_s_per_gb: Vec<f64>,
    round_trip_ms: Distribution,
}

/// Nothing between the two but a cable.
fn bare() -> Path {
    let mut lab = Lab::new().unwrap();
    lab.namespace("a").unwrap();
    lab.namespace("b").unwrap();
    let wire = lab.wire("a", "b").unwrap();
    let to = wire.addresses[1].clone();
    Path { lab, to, ends: Vec::new(), middle: Vec::new() }
}

/// Two of our nodes.
pub(crate) fn direct() -> Path {
    let mut lab = Lab::new().unwrap();
    let [one, two] = nodes(&mut lab, ["a", "b"]);
    let wire = lab.wire("a", "b").unwrap();
    let ends = vec![start(&mut lab, &one, &[(&two, &wire)]), start(&mut lab, &two, &[])];
    two.allow(&lab, &one).unwrap();
    lab.await_member(&one, &two).unwrap();
    Path { lab, to: two.address.to_string(), ends, middle: Vec::new() }
}

/// Two of our nodes and one between them.
fn relayed() -> Path {
    let mut lab = Lab::new().unwrap();
    let [one, between, two] = nodes(&mut lab, ["a", "m", "b"]);
    let left = lab.wire("a", "m").unwrap();
    let right = lab.wire("b", "m").unwrap();
    let middle = vec![start(&mut lab, &between, &[])];
    let ends = vec![
        start(&mut lab, &one, &[(&between, &left)]),
        start(&mut lab, &two, &[(&between, &right)]),
    ];
    two.allow(&lab, &one).unwrap();
    lab.await_member(&one, &two).unwrap();
    Path { lab, to: two.address.to_string(), ends, middle }
}

pub(crate) fn run() {
    heading("One TCP stream between two hosts");
    let mut paths = vec![
        ("bare veth".to_owned(), bare()),
        ("hypha, direct".to_owned(), direct()),
        ("hypha, one relay".to_owned(), relayed()),
    ];
    for peer in Peer::ALL {
        match peer.tunnel() {
            Ok(Tunnel { name, path }) => paths.push((name, path)),
            Err(reason) => println!("({peer:?} is left out: {reason})\n"),
        }
    }
    let mut figures: Vec<Figures> = paths.iter().map(|(_, path)| rest(path)).collect();
    for _ in 0..ROUNDS {
        for ((_, path), figures) in paths.iter_mut().zip(&mut figures) {
            measure(path, figures);
        }
    }
    let cell = |values: &[f64]| Distribution::new(values.to_vec()).cell();
    let rows = paths.iter().zip(&figures).map(|((name, _), it)| {
        vec![
            name.clone(),
            cell(&it.gbit_per_s),
            cell(&it.ends_s_per_gb),
            cell(&it.middle_s_per_gb),
            it.round_trip_ms.cell(),
            format!("{:.3}", it.round_trip_ms.percentile(99)),
        ]
    });
    let header = [
        "path",
        "Gbit/s",
        "CPU s per GB, both ends",
        "CPU s per GB, relay",
        "round trip ms, idle",
        "p99",
    ];
    benches::table(&header, &rows.collect::<Vec<_>>());
    println!("Median (p10 to p90) of {ROUNDS} rounds of {SECONDS} s, iperf3, all paths in turn.\n");
}

fn rest(path: &Path) -> Figures {
    let pinged = Ping::start(&path.lab, "a", &path.to, "0.01", 200).finish();
    Figures {
        gbit_per_s: Vec::new(),
        ends_s_per_gb: Vec::new(),
        middle_s_per_gb: Vec::new(),
        round_trip_ms: pinged.round_trips,
    }
}

fn cpu(processes: &[u32]) -> f64 {
    processes.iter().filter_map(|process| cpu_seconds(*process)).sum()
}

fn measure(path: &mut Path, figures: &mut Figures) {
    let before = (cpu(&path.ends), cpu(&path.middle));
    let Some((bytes, bits_per_s)) = iperf(&mut path.lab, &path.to, SECONDS) else { return };
    let gb = bytes / 1e9;
    figures.gbit_per_s.push(bits_per_s / 1e9);
    figures.ends_s_per_gb.push((cpu(&path.ends) - before.0) / gb);
    figures.middle_s_per_gb.push((cpu(&path.middle) - before.1) / gb);
}

/// Runs iperf3 from `a` to `b`; the bytes received and bits per second.
fn iperf(lab: &mut Lab, to: &str, seconds: u32) -> Option<(f64, f64)> {
    let mut server = lab.command("b", "iperf3");
    lab.start(server.args(["-s", "-1"]).stdout(Stdio::null()).stderr(Stdio::null())).ok()?;
    std::thread::sleep(Duration::from_millis(300));
    let text = lab.run("a", "iperf3", &["-J", "-c", to, "-t", &seconds.to_string()]).ok()?;
    let report: Value = serde_json::from_str(&text).ok()?;
    let sum = &report["end"]["sum_received"];
    Some((sum["bytes"].as_f64()?, sum["bits_per_second"].as_f64()?))
}

/// The delay that a full link of 200 Mbit/s adds, with and without the mesh.
pub(crate) fn queue() {
    heading("Round trip while a stream fills a link of 200 Mbit/s");
    let mut rows = Vec::new();
    for name in ["bare veth", "hypha, direct"] {
        let mut path = if name == "bare veth" { bare() } else { direct() };
        let devices = [("a", "w1a"), ("b", "w1b")];
        for (namespace, device) in devices {
            let shape = "qdisc add dev DEV root tbf rate 200mbit burst 64kb latency 20ms";
            let shape = shape.replace("DEV", device);
            let words: Vec<&str> = shape.split(' ').collect();
            path.lab.run(namespace, "tc", &words).unwrap();
        }
        let idle = Ping::start(&path.lab, "a", &path.to, "0.02", 100).finish();
        let mut server = path.lab.command("b", "iperf3");
        path.lab.start(server.args(["-s", "-1"]).stdout(Stdio::null())).unwrap();
        std::thread::sleep(Duration::from_millis(300));
        let mut client = path.lab.command("a", "iperf3");
        client.args(["-J", "-c", &path.to, "-t", "8"]).stdout(Stdio::piped());
        let client = client.spawn().unwrap();
        std::thread::sleep(Duration::from_secs(1));
        let loaded = Ping::start(&path.lab, "a", &path.to, "0.02", 250).finish();
        let output = client.wait_with_output().unwrap();
        let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let rate = report["end"]["sum_received"]["bits_per_second"].as_f64().unwrap_or(0.0) / 1e6;
        rows.push(vec![
            name.to_owned(),
            format!("{rate:.0}"),
            idle.round_trips.cell(),
            loaded.round_trips.cell(),
            format!("{:.2}", loaded.round_trips.percentile(99)),
        ]);
    }
    benches::table(&["path", "Mbit/s", "idle ms", "loaded ms", "loaded p99"], &rows);
}
