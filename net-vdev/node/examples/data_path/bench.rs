//! The namespaces, the two processes, and iperf3 between them.

use std::error::Error;
use std::fs;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use crate::forward::{inner, outer};

const SPACES: [&str; 2] = ["hypha-data-1", "hypha-data-2"];

/// Undoes what was set up, however the run ends.
struct World {
    children: Vec<Child>,
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
    }
}

pub(crate) fn run(arguments: &[&str]) -> Result<(), Box<dyn Error>> {
    let mut world = World { children: Vec::new() };
    for space in SPACES {
        command(&["ip", "netns", "add", space])?;
        command(&["ip", "-n", space, "link", "set", "lo", "up"])?;
    }
    let [one, two] = SPACES;
    command(&[
        "ip", "link", "add", "veth1", "netns", one, "type", "veth", "peer", "veth2", "netns", two,
    ])?;
    for (side, space) in (1..).zip(SPACES) {
        let link = format!("veth{side}");
        let address = format!("{}/64", outer(side));
        command(&["ip", "-n", space, "addr", "add", &address, "dev", &link, "nodad"])?;
        command(&["ip", "-n", space, "link", "set", &link, "up"])?;
    }
    let program = std::env::current_exe()?;
    for (side, space) in (1..=2).zip(SPACES) {
        let side = side.to_string();
        let child = in_space(space).arg(&program).args(["forward", &side]).spawn()?;
        world.children.push(child);
    }
    world.children.push(in_space(two).args(["iperf3", "-s"]).stdout(Stdio::null()).spawn()?);
    sleep(Duration::from_secs(1));
    ping(one)?;
    measure(&world, arguments)
}

fn measure(world: &World, arguments: &[&str]) -> Result<(), Box<dyn Error>> {
    let before = cpu_seconds(world)?;
    let target = inner(2).to_string();
    let output =
        in_space(SPACES[0]).args(["iperf3", "-J", "-c", &target]).args(arguments).output()?;
    let after = cpu_seconds(world)?;
    let report = String::from_utf8(output.stdout)?;
    if !output.status.success() {
        return Err(report.into());
    }
    let end =
        report.split("\"sum_received\"").nth(1).ok_or("no sum_received in iperf3's report")?;
    let number = |text: &str, name: &str| -> Result<f64, Box<dyn Error>> {
        let value = text.split(&format!("\"{name}\":")).nth(1).ok_or("iperf3 left out a number")?;
        let value = value.split([',', '\n', '}']).next().unwrap_or_default();
        Ok(value.trim().parse()?)
    };
    let bytes = number(end, "bytes")?;
    let gbit_per_s = number(end, "bits_per_second")? / 1e9;
    let retransmits = report
        .split("\"sum_sent\"")
        .nth(1)
        .map_or(Ok(f64::NAN), |sent| number(sent, "retransmits"));
    println!("{gbit_per_s:.2} Gbit/s, {:.2} GB", bytes / 1e9);
    println!("retransmits {}", retransmits.unwrap_or(f64::NAN));
    let mut total = 0.0;
    for (name, (before, after)) in ["sender", "receiver"].iter().zip(before.iter().zip(&after)) {
        let (user, system) = (after.0 - before.0, after.1 - before.1);
        total += user + system;
        println!("{name}: user {user:.2} s, system {system:.2} s");
    }
    println!("{:.3} CPU-s/GB for both", total / (bytes / 1e9));
    Ok(())
}

/// User and system time of the two processes.
fn cpu_seconds(world: &World) -> Result<Vec<(f64, f64)>, Box<dyn Error>> {
    let tick = 1.0 / rustix::param::clock_ticks_per_second() as f64;
    let of = |child: &Child| -> Result<(f64, f64), Box<dyn Error>> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", child.id()))?;
        // Fields 14 and 15, behind the name in parentheses (proc(5)).
        let fields = stat.rsplit(')').next().ok_or("an odd /proc/PID/stat")?;
        let mut fields = fields.split_whitespace().skip(11);
        let mut next = || -> Result<f64, Box<dyn Error>> {
            Ok(fields.next().ok_or("a short /proc/PID/stat")?.parse::<f64>()? * tick)
        };
        Ok((next()?, next()?))
    };
    world.children.iter().take(2).map(of).collect()
}

fn ping(space: &str) -> Result<(), Box<dyn Error>> {
    let target = inner(2).to_string();
    let output = in_space(space).args(["ping", "-c", "200", "-i", "0.01", "-q", &target]).output();
    if let Ok(output) = output {
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        println!("{}", text.lines().last().unwrap_or_default());
    }
    Ok(())
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
