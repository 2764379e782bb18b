//! `cargo xtask demo`: two VMs on an encrypted mesh and a dispersed disk, one of them killed in
//! mid-write, two of its six shard directories lost, and nothing that was acknowledged missing.

mod report;
mod session;

use std::path::{Path, PathBuf};

use report::{Memory, Report};
use serde_json::Value;
use session::Session;

use crate::dist::{self, Dist};
use crate::failure::Failure;
use crate::repository::Repository;

/// The VM that is killed.
const SERVER: &str = "kv";
/// The VM that knows what was acknowledged.
const CLIENT: &str = "load";
/// The volume of the server, and which of its six shards are lost.
const VOLUME: &str = "data";
const LOST_SHARDS: [&str; 2] = ["shard-1", "shard-4"];

/// Builds all, runs the demo, prints what came of it.
pub(crate) fn run(repository: &Repository) -> Result<(), Failure> {
    run_with(repository, &dist::build(repository, None)?)
}

/// The same, with a `dist` folder that is already built.
pub(crate) fn run_with(repository: &Repository, dist: &Dist) -> Result<(), Failure> {
    let folder = fresh_folder(repository)?;
    let hypha = dist.folder().join("hypha");
    let mut demo = Demo::new(&folder);
    demo.report.cold_starts.push(("hello".to_owned(), cold_start(repository, &hypha, &folder)?));
    let spec = spec_file(repository, &folder)?;
    println!("\nrunning {} with 1,000 values to store", spec.display());
    let mut session = Session::start(&hypha, &spec, &folder)?;
    while !demo.is_over() {
        let event = session.next_event()?;
        demo.follow(&event)?;
    }
    session.end()?;
    println!("\n{}", demo.report);
    println!("the state (keys, volumes, {} less): {}", LOST_SHARDS.len(), folder.display());
    println!("everything that hypha told: {}", session.log().display());
    demo.report.verdict()
}

/// The time from the start of a VMM's process to the first word of `examples/hello.json`,
/// milliseconds; the best of three.
fn cold_start(repository: &Repository, hypha: &Path, folder: &Path) -> Result<f64, Failure> {
    let spec = repository.root().join("examples/hello.json");
    let mut best = f64::INFINITY;
    for _ in 0..3 {
        let mut session = Session::start(hypha, &spec, folder)?;
        loop {
            let event = session.next_event()?;
            let kind = event.get("event").and_then(Value::as_str);
            match kind {
                Some("first_output") => best = best.min(cold_start_ms(&event)),
                Some("exited") => break,
                _ => {}
            }
        }
        session.end()?;
    }
    Ok(best)
}

fn cold_start_ms(event: &Value) -> f64 {
    event.get("cold_start_ms").and_then(Value::as_f64).unwrap_or(f64::NAN)
}

/// An empty folder for this run.
fn fresh_folder(repository: &Repository) -> Result<PathBuf, Failure> {
    let folder = repository.target().join("demo");
    if folder.exists() {
        std::fs::remove_dir_all(&folder).map_err(Failure::file(&folder))?;
    }
    std::fs::create_dir_all(&folder).map_err(Failure::file(&folder))?;
    Ok(folder)
}

/// `examples/kv.json`; if its port of this host is taken, a copy with a free one.
fn spec_file(repository: &Repository, folder: &Path) -> Result<PathBuf, Failure> {
    let path = repository.root().join("examples/kv.json");
    let text = std::fs::read_to_string(&path).map_err(Failure::file(&path))?;
    let unusable = |reason: String| Failure::Output { from: "examples/kv.json", reason };
    let mut spec: Value =
        serde_json::from_str(&text).map_err(|error| unusable(error.to_string()))?;
    let workloads = spec.get_mut("workloads").and_then(Value::as_array_mut);
    let listen =
        workloads.into_iter().flatten().find_map(|it| it.pointer_mut("/data/ports/0/listen"));
    let Some(listen) = listen else { return Ok(path) };
    let bind =
        |port: u64| std::net::TcpListener::bind(("127.0.0.1", u16::try_from(port).unwrap_or(0)));
    if listen.as_u64().is_some_and(|port| bind(port).is_ok()) {
        return Ok(path);
    }
    let free =
        bind(0).and_then(|socket| socket.local_addr()).map_err(Failure::file("127.0.0.1"))?;
    *listen = free.port().into();
    let copy = folder.join("kv.json");
    std::fs::write(&copy, spec.to_string()).map_err(Failure::file(&copy))?;
    Ok(copy)
}

/// How far the demo is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Values are being stored.
    Filling,
    /// The server was killed.
    Killed,
    /// Its shards are gone; it is to come back.
    Wounded,
    /// The client has told its result.
    Told,
    /// The client has ended.
    Over,
}

struct Demo {
    stage: Stage,
    folder: PathBuf,
    server_pid: Option<i32>,
    report: Report,
}

impl Demo {
    fn new(folder: &Path) -> Self {
        let folder = folder.to_owned();
        Self { stage: Stage::Filling, folder, server_pid: None, report: Report::default() }
    }

    fn is_over(&self) -> bool {
        self.stage == Stage::Over
    }

    /// Takes an event of `hypha run --json` and does what is due.
    fn follow(&mut self, event: &Value) -> Result<(), Failure> {
        let text = |name: &str| event.get(name).and_then(Value::as_str).unwrap_or_default();
        let workload = text("workload");
        match text("event") {
            "state" => self.folder = PathBuf::from(text("directory")),
            "started" => self.started(workload, event),
            "first_output" => self.first_output(workload, event),
            "log" => {
                let line = text("line");
                println!("  {workload:<5} {line}");
                if workload == CLIENT {
                    self.client_says(line)?;
                }
            }
            "message" => println!("  {workload:<5} vmm: {}", text("line")),
            "exited" => return self.exited(workload, event),
            "restarting" => {
                println!(
                    "  {workload:<5} comes back in {} ms",
                    event.get("in_ms").unwrap_or(event)
                );
            }
            _ => {}
        }
        Ok(())
    }

    fn started(&mut self, workload: &str, event: &Value) {
        let pid = event.get("pid").and_then(Value::as_i64).and_then(|pid| i32::try_from(pid).ok());
        println!("  {workload:<5} started, process {}", pid.unwrap_or(0));
        if workload == SERVER {
            self.server_pid = pid;
        }
    }

    fn first_output(&mut self, workload: &str, event: &Value) {
        let ms = cold_start_ms(event);
        println!("  {workload:<5} said its first word after {ms:.1} ms");
        // The client's first word waits for the server.
        if workload == SERVER {
            let fresh = self.stage == Stage::Filling;
            let name = if fresh { "kv, making its volume" } else { "kv, with two shards less" };
            self.report.cold_starts.push((name.to_owned(), ms));
        }
    }

    /// The client tells how many values are acknowledged, and at last its result.
    fn client_says(&mut self, line: &str) -> Result<(), Failure> {
        if let Some(json) = line.strip_prefix("load: result ") {
            let result = serde_json::from_str(json).map_err(|error| Failure::Output {
                from: "load",
                reason: format!("its result is no JSON ({error}): {json}"),
            })?;
            self.report.result = Some(result);
            self.stage = Stage::Told;
        } else if self.stage == Stage::Filling && acknowledged_half(line) {
            self.kill_the_server()?;
        }
        Ok(())
    }

    fn kill_the_server(&mut self) -> Result<(), Failure> {
        let process = self.server_pid.and_then(rustix::process::Pid::from_raw);
        let Some(process) = process else { return Ok(()) };
        self.report.memory = Memory::of(process.as_raw_nonzero().get());
        let killed = rustix::process::kill_process(process, rustix::process::Signal::KILL);
        killed.map_err(|error| {
            Failure::file(format!("process {}", process.as_raw_nonzero()))(error.into())
        })?;
        println!("> killed {SERVER} with SIGKILL, in mid-write");
        self.stage = Stage::Killed;
        Ok(())
    }

    fn exited(&mut self, workload: &str, event: &Value) -> Result<(), Failure> {
        let number = |name: &str| event.get(name).and_then(Value::as_i64);
        match (number("code"), number("signal")) {
            (Some(code), _) => println!("  {workload:<5} ended with code {code}"),
            (_, signal) => println!("  {workload:<5} ended by signal {}", signal.unwrap_or(0)),
        }
        if workload == CLIENT {
            self.report.client_code = number("code");
            self.stage = Stage::Over;
        } else if self.stage == Stage::Killed {
            let volume = self.folder.join("volumes").join(VOLUME);
            for shard in LOST_SHARDS {
                let shard = volume.join(shard);
                std::fs::remove_dir_all(&shard).map_err(Failure::file(&shard))?;
            }
            println!("> deleted {} of the 6 shards of its volume", LOST_SHARDS.join(" and "));
            self.report.shards_lost = LOST_SHARDS.len();
            self.stage = Stage::Wounded;
        }
        Ok(())
    }
}

/// Whether `load: 500/1000 acknowledged` says that half is done.
fn acknowledged_half(line: &str) -> bool {
    let counts = line.strip_prefix("load: ").and_then(|rest| rest.strip_suffix(" acknowledged"));
    let counts = counts.and_then(|counts| counts.split_once('/'));
    let number = |text: &str| text.parse::<u64>().ok();
    let parsed = counts.and_then(|(done, all)| Some((number(done)?, number(all)?)));
    parsed.is_some_and(|(done, all)| done < all && 2 * done >= all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_the_values_is_enough_and_all_are_too_many() {
        let half = |line| acknowledged_half(line);
        assert!(half("load: 500/1000 acknowledged") && half("load: 900/1000 acknowledged"));
        assert!(!half("load: 499/1000 acknowledged") && !half("load: 1000/1000 acknowledged"));
        assert!(!half("load: result {}") && !half("500/1000"));
    }

    #[test]
    fn the_clients_end_ends_the_demo() {
        let mut demo = Demo::new(Path::new("/nonexistent"));
        for event in [
            r#"{"event":"log","workload":"load","line":"load: result {\"acknowledged\":3,\"lost\":0,\"wrong\":0}"}"#,
            r#"{"event":"exited","workload":"load","code":0}"#,
        ] {
            demo.follow(&serde_json::from_str(event).unwrap()).unwrap();
        }
        assert!(demo.is_over());
        assert_eq!(demo.report.client_code, Some(0));
        // No server was killed, so this showed nothing.
        assert!(demo.report.verdict().is_err());
    }
}
