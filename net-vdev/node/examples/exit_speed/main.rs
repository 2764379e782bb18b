//! How fast NAT64 is: `iperf3` through a node's card and way out, to a server in another namespace.
//!
//! ```text
//! namespace hypha-exit-1                                   namespace hypha-exit-2
//! iperf3 -c 64:ff9b::10.77.0.2 ── TUN ── node ── TCP ── veth ── iperf3 -s
//! ```
//!
//! As root: `cargo run --release -p mesh-node --example exit_speed -- [iperf3's options]`

use std::error::Error;
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread::sleep;
use std::time::Duration;

use mesh_egress::address::Destinations;
use mesh_node::exit::ExitConfig;
use mesh_node::{Daemon, NodeConfig};
use net_vdev::PrivateKey;

const SPACES: [&str; 2] = ["hypha-exit-1", "hypha-exit-2"];
const TARGET: &str = "64:ff9b::10.77.0.2";

/// Undoes what was set up, however the run ends.
struct World {
    children: Vec<Child>,
    state: PathBuf,
}

impl Drop for World {
    fn drop(&mut self) {
        for child in &mut self.children {
            if let Err(error) = child.kill().and_then(|()| child.wait().map(drop)) {
                eprintln!("a process was not stopped: {error}");
            }
        }
        for space in SPACES {
            if let Err(error) = command(&["ip", "netns", "del", space]) {
                eprintln!("{error}");
            }
        }
        if let Err(error) = fs::remove_dir_all(&self.state) {
            eprintln!("{}: {error}", self.state.display());
        }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.split_first() {
        Some((first, [state])) if first == "node" => node(state.into()),
        _ => measure(&arguments),
    }
}

/// The process in the first namespace.
fn node(state: PathBuf) -> Result<(), Box<dyn Error>> {
    let config = NodeConfig {
        listen_tcp: Vec::new(),
        discovers: false,
        key: PrivateKey::new([1; 32]),
        state,
        listen: Vec::new(),
        neighbours: Vec::new(),
        zone: 0,
        tun: Some("hypha0".to_owned()),
        certificates: Vec::new(),
        rules: Vec::new(),
        strangers_max: 1,
        exit: ExitConfig {
            nat64: Some(Destinations::new(vec!["10.77.0.0/24".parse()?])),
            ..ExitConfig::default()
        },
    };
    Ok(Daemon::start(config, Arc::new(AtomicBool::new(false)))?.run()?)
}

fn measure(arguments: &[String]) -> Result<(), Box<dyn Error>> {
    let state = std::env::temp_dir().join(format!("hypha-exit-{}", std::process::id()));
    fs::create_dir(&state)?;
    let mut world = World { children: Vec::new(), state };
    for space in SPACES {
        command(&["ip", "netns", "add", space])?;
        command(&["ip", "-n", space, "link", "set", "lo", "up"])?;
    }
    let [one, two] = SPACES;
    command(&[
        "ip", "link", "add", "veth1", "netns", one, "type", "veth", "peer", "veth2", "netns", two,
    ])?;
    for (side, space) in (1..).zip(SPACES) {
        let (link, address) = (format!("veth{side}"), format!("10.77.0.{side}/24"));
        command(&["ip", "-n", space, "addr", "add", &address, "dev", &link])?;
        command(&["ip", "-n", space, "link", "set", &link, "up"])?;
    }
    let program = std::env::current_exe()?;
    world.children.push(in_space(one).arg(&program).arg("node").arg(&world.state).spawn()?);
    world.children.push(in_space(two).args(["iperf3", "-s"]).stdout(Stdio::null()).spawn()?);
    sleep(Duration::from_secs(1));
    let before = cpu_seconds(&world)?;
    let output = in_space(one).args(["iperf3", "-J", "-c", TARGET]).args(arguments).output()?;
    let after = cpu_seconds(&world)?;
    let report = String::from_utf8(output.stdout)?;
    if !output.status.success() {
        return Err(report.into());
    }
    let end = report.split("\"sum_received\"").nth(1).ok_or("no sum_received in the report")?;
    let number = |name: &str| -> Result<f64, Box<dyn Error>> {
        let value = end.split(&format!("\"{name}\":")).nth(1).ok_or("iperf3 left out a number")?;
        Ok(value.split([',', '\n', '}']).next().unwrap_or_default().trim().parse()?)
    };
    let (gigabytes, gbit_per_s) = (number("bytes")? / 1e9, number("bits_per_second")? / 1e9);
    let (user, system) = (after.0 - before.0, after.1 - before.1);
    println!(
        "{gbit_per_s:.2} Gbit/s, {gigabytes:.2} GB; node: user {user:.2} s, system {system:.2} s, \
         {:.3} CPU-s/GB",
        (user + system) / gigabytes
    );
    Ok(())
}

/// User and system time of the node.
fn cpu_seconds(world: &World) -> Result<(f64, f64), Box<dyn Error>> {
    let tick = 1.0 / rustix::param::clock_ticks_per_second() as f64;
    let node = world.children.first().ok_or("no node")?;
    let stat = fs::read_to_string(format!("/proc/{}/stat", node.id()))?;
    // Fields 14 and 15, behind the name in parentheses (proc(5)).
    let fields = stat.rsplit(')').next().ok_or("an odd /proc/PID/stat")?;
    let mut fields = fields.split_whitespace().skip(11);
    let mut next = || -> Result<f64, Box<dyn Error>> {
        Ok(fields.next().ok_or("a short /proc/PID/stat")?.parse::<f64>()? * tick)
    };
    Ok((next()?, next()?))
}

fn in_space(space: &str) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", space]);
    command
}

fn command(words: &[&str]) -> Result<(), Box<dyn Error>> {
    let (program, arguments) = words.split_first().ok_or("no command")?;
    let output = Command::new(program).args(arguments).output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{}: {}", words.join(" "), String::from_utf8_lossy(&output.stderr)).into())
}
