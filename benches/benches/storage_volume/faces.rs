//! Volumes behind our NBD server beside qemu-nbd with a plain file, both asked by `qemu-img bench`;
//! and the memory that a server with a volume takes.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use benches::{Distribution, table};
use storage_node::Stop;
use storage_node::nbd::{Listener, Server};
use storage_vdev::engine::Policy;

use crate::flush::{directories, plain_file};
use crate::volume::{Driven, IDS, options};

/// The argument that makes this program the server: `serve FOLDER SOCKET POLICY CACHE_BYTES`.
pub(crate) const SERVE: &str = "serve";
const SIZE: u64 = 256 << 20;
/// The fewest blocks that a run reads, 3000, are six times as much.
const CACHE: u64 = 2 << 20;
const ROUNDS: usize = 3;

/// Serves a 4+2 volume over six directories until the standard input ends, as
/// `hypha volume serve` does.
pub(crate) fn serve(arguments: &[String]) {
    let [folder, socket, policy, cache] = arguments else { panic!("wrong arguments") };
    let policy = if policy == "local" { Policy::Local } else { Policy::Quorum };
    let nodes = directories(Path::new(folder), 1 << 30);
    let volume =
        Driven::open(nodes, options((SIZE, policy), &IDS, true, cache.parse().unwrap())).volume;
    let mut server = Server::new(vec![volume], vec![Listener::unix(Path::new(socket)).unwrap()]);
    server.offer("", "a volume", 0, false).unwrap();
    let stop = Stop::new().unwrap();
    let stopper = stop.clone();
    std::thread::spawn(move || {
        std::io::copy(&mut std::io::stdin(), &mut std::io::sink()).ok();
        stopper.stop()
    });
    println!("serving");
    server.run(&stop).unwrap();
}

/// A server in a process of its own.
struct Served {
    name: &'static str,
    child: Child,
    input: Option<ChildStdin>,
    socket: PathBuf,
}

impl Served {
    fn ours(folder: &Path, (name, policy): (&'static str, &str), cache: u64) -> Self {
        let (socket, place) = places(folder, name);
        let mut child = Command::new(std::env::current_exe().unwrap())
            .arg(SERVE)
            .args([&place, &socket])
            .args([policy, &cache.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = child.stdout.take().unwrap();
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line).unwrap();
        assert_eq!(line.trim(), "serving");
        let input = child.stdin.take();
        Self { name, child, input, socket }
    }

    fn qemu(folder: &Path, name: &'static str, how: [&str; 2]) -> Self {
        let (socket, file) = places(folder, name);
        drop(plain_file(&file, SIZE));
        let child = Command::new("qemu-nbd")
            .args(["--format=raw", "--persistent", "--shared=8"])
            .args(how)
            .arg("--socket")
            .args([&socket, &file])
            .spawn()
            .unwrap();
        let up = (0..200).any(|_| {
            std::thread::sleep(Duration::from_millis(50));
            socket.exists()
        });
        assert!(up, "qemu-nbd starts");
        Self { name, child, input: None, socket }
    }

    /// Requests per second.
    fn bench(&self, load: &Load) -> f64 {
        let mut command = Command::new("qemu-img");
        command.args(["bench", "-f", "raw", "-t", "none"]);
        command.args(["-c", &load.count.to_string(), "-d", &load.depth.to_string()]);
        command.args(["-s", &load.bytes.to_string(), "-S", &load.step.to_string()]);
        command.args(load.write.then_some("-w"));
        command.args(load.flush.map(|every| format!("--flush-interval={every}")));
        command.arg(format!("nbd+unix:///?socket={}", self.socket.display()));
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let seconds =
            text.split("Run completed in ").nth(1).and_then(|rest| rest.split(' ').next());
        let seconds: f64 = seconds.unwrap_or_else(|| panic!("{output:?}")).parse().unwrap();
        load.count as f64 / seconds
    }

    /// A line of /proc/PID/status, in KiB.
    fn memory_kib(&self, field: &str) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
        line.trim_start_matches(':').trim().trim_end_matches(" kB").parse().unwrap()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if self.input.take().is_none() {
            self.child.kill().ok();
        }
        self.child.wait().ok();
    }
}

/// A server's socket, which must be nameable in an address, and its data.
fn places(folder: &Path, name: &str) -> (PathBuf, PathBuf) {
    let name = name.replace(|letter: char| !letter.is_ascii_alphanumeric(), "_");
    (folder.join(format!("{name}.socket")), folder.join(name))
}

#[derive(Debug, Clone, Copy)]
struct Load {
    bytes: u64,
    step: u64,
    depth: u64,
    count: u64,
    write: bool,
    flush: Option<u64>,
}

/// Every third block, so that no two requests make one.
fn load(bytes: u64, depth: u64, count: u64) -> Load {
    Load { bytes, step: 3 * bytes, depth, count, write: false, flush: None }
}

fn writes(load: Load, flush: Option<u64>) -> Load {
    Load { write: true, flush, ..load }
}

/// Fills a volume with data.
const FILL: Load =
    Load { bytes: 1 << 20, step: 1 << 20, depth: 8, count: SIZE >> 20, write: true, flush: None };

pub(crate) fn run(folder: &Path) {
    if !crate::is_installed("qemu-nbd") || !crate::is_installed("qemu-img") {
        return;
    }
    let writeback = ["--cache=writeback", "--aio=threads"];
    let direct = ["--cache=none", "--aio=io_uring"];
    crate::heading("NBD: 4 KiB writes with flushes");
    println!(
        "`qemu-img bench` over a unix socket, requests per second, median of {ROUNDS}. Ours: 4+2 over six \
         directories of the disk on which qemu-nbd's plain file is.\n"
    );
    let mut servers = vec![
        Served::qemu(folder, "qemu-nbd, writeback", writeback),
        Served::qemu(folder, "qemu-nbd, none", direct),
        Served::ours(folder, ("local", "local"), CACHE),
        Served::ours(folder, ("quorum, m = 2", "quorum"), CACHE),
    ];
    let loads = [
        ("depth 1, flush after each", writes(load(4096, 1, 600), Some(1))),
        ("depth 32, flush after 32", writes(load(4096, 32, 6400), Some(32))),
    ];
    compare(&servers, &loads);
    servers.retain(|server| server.name != "local");

    crate::heading("NBD: reads and writes without flushes");
    println!(
        "As above; {} MiB, ours with a cache of 2 MiB, and (reads from memory) with one in which all has \
         room.\n",
        SIZE >> 20
    );
    servers.push(Served::ours(folder, ("cached", "quorum"), 2 * SIZE));
    servers.iter().for_each(|server| {
        server.bench(&FILL);
    });
    // 4 KiB at a time: that is what the cache keeps.
    let warm = Load { bytes: 4096, step: 4096, depth: 32, count: SIZE / 4096, ..FILL };
    servers.last().unwrap().bench(&Load { write: false, ..warm });
    let mut loads = Vec::new();
    let sizes = [("4 KiB", 4096, 3000, 20_000), ("64 KiB", 65_536, 2000, 4000)];
    for write in [false, true] {
        for (_, bytes, one, many) in sizes {
            for (depth, count) in [(1, one), (32, many)] {
                let load = Load { write, ..load(bytes, depth, count) };
                loads.push((label(&load), load));
            }
        }
    }
    let loads: Vec<(&str, Load)> =
        loads.iter().map(|(name, load)| (name.as_str(), *load)).collect();
    compare(&servers, &loads);
}

fn label(load: &Load) -> String {
    let what = if load.write { "write" } else { "read" };
    format!("{} KiB {what}, depth {}", load.bytes >> 10, load.depth)
}

/// All servers take turns with each load.
fn compare(servers: &[Served], loads: &[(&str, Load)]) {
    let mut rows = Vec::new();
    for (name, load) in loads {
        let mut rates = vec![Vec::new(); servers.len()];
        for _ in 0..ROUNDS {
            for (server, rates) in servers.iter().zip(&mut rates) {
                rates.push(server.bench(load));
            }
        }
        let medians: Vec<f64> =
            rates.into_iter().map(|rates| Distribution::new(rates).percentile(50)).collect();
        let mut row = vec![(*name).to_owned()];
        row.extend(medians.iter().map(|rate| format!("{rate:.0}")));
        // The third server is our first.
        row.push(format!("{:.2}", medians[2] / medians[0]));
        rows.push(row);
    }
    let mut header = vec![""];
    header.extend(servers.iter().map(|server| server.name));
    let ratio = format!("{} ÷ {}", servers[2].name, servers[0].name);
    header.push(&ratio);
    table(&header, &rows);
}

/// The memory of a server with one volume.
pub(crate) fn memory(folder: &Path) {
    if !crate::is_installed("qemu-img") {
        return;
    }
    crate::heading("Memory of a server with one volume of 256 MiB, all of it written");
    let mib = |kib: f64| format!("{:.1}", kib / 1024.0);
    let look = |name: &str, server: &Served| {
        let figures = ["RssAnon", "VmHWM"].map(|field| mib(server.memory_kib(field)));
        [vec![name.to_owned()], figures.to_vec()].concat()
    };
    let mut rows = Vec::new();
    let server = Served::ours(folder, ("memory", "quorum"), 0);
    rows.push(look("made, nothing written", &server));
    server.bench(&FILL);
    rows.push(look("filled, 8 MiB under way", &server));
    drop(server);
    let server = Served::ours(folder, ("memory", "quorum"), 0);
    rows.push(look("opened again", &server));
    server.bench(&Load { write: false, ..FILL });
    rows.push(look("read once, no cache", &server));
    table(&["", "anonymous, MiB", "most ever, with the program, MiB"], &rows);
}
