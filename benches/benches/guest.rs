//! What guests do with their devices: exits per operation (counted, the same on any machine), rates
//! and latencies (of this one).
//!
//! `disk` on a 4+2 volume, `kv` and `load` over the mesh. `HYPHA_BENCH_FOLDER` says where the volume
//! lies (default: the temporary folder).
#![expect(clippy::unwrap_used, reason = "a benchmark that lacks its tools fails")]

use std::path::{Path, PathBuf};
use std::process::Command;

use benches::{dist, table};
use serde_json::Value;

const DISK_SPEC: &str = r#"{"name": "bench-disk", "workloads": [
  {"type": "volume", "name": "data",
   "data": {"size": "64MiB", "redundancy": {"data": 4, "parity": 2}}},
  {"type": "zmachine", "name": "disk", "data": {
    "image": {"unikernel": "disk"},
    "compute_capacity": {"cpu": 1, "memory": "64MiB"},
    "mounts": [{"name": "data", "mountpoint": "/data"}],
    "args": ["--count", "4096"]}}]}"#;

fn main() {
    let folder = std::env::var_os("HYPHA_BENCH_FOLDER")
        .map_or_else(std::env::temp_dir, PathBuf::from)
        .join(format!("hypha-bench-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let spec = folder.join("disk.json");
    std::fs::write(&spec, DISK_SPEC).unwrap();
    // The first run writes where nothing was before; the second is the steady state.
    run(&spec, &folder, "disk: result ");
    disk(&run(&spec, &folder, "disk: result "));
    let spec = folder.join("kv.json");
    let example = include_str!("../../examples/kv.json");
    std::fs::write(&spec, example.replace("\"listen\": 8080", "\"listen\": 18081")).unwrap();
    run(&spec, &folder, "load: result ");
    http("1 KiB", &run(&spec, &folder, "load: result "));
    // Values of many packets: what super-frames and their buffers are for.
    let large = example
        .replace("\"size\": \"64MiB\"", "\"size\": \"512MiB\"")
        .replace("\"listen\": 8080", "\"listen\": 18081")
        .replace("\"name\": \"kv\",\n  \"workloads\"", "\"name\": \"kv-large\",\n  \"workloads\"")
        .replace(
            "\"--count\", \"1000\"",
            "\"--count\", \"200\", \"--value-bytes\", \"65536\", \"--timed\", \"200\"",
        );
    std::fs::write(&spec, large).unwrap();
    http("64 KiB", &run(&spec, &folder, "load: result "));
    std::fs::remove_dir_all(&folder).unwrap();
}

/// Runs a deployment until a machine of it has ended, and returns the results in its log.
fn run(spec: &Path, folder: &Path, marker: &str) -> Vec<Value> {
    let mut child = Command::new(dist().join("hypha"))
        .args(["run", "--json", "--state"])
        .arg(folder.join("state"))
        .arg(spec)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let events = std::io::BufReader::new(child.stdout.take().unwrap());
    let mut results = Vec::new();
    let mut stopped = false;
    for line in std::io::BufRead::lines(events) {
        let event: Value = serde_json::from_str(&line.unwrap()).unwrap();
        let text = event["line"].as_str().unwrap_or_default();
        results.extend(text.strip_prefix(marker).map(|json| serde_json::from_str(json).unwrap()));
        if event["event"] == "exited" && !stopped {
            stopped = true;
            let pid = rustix::process::Pid::from_child(&child);
            // It fails if hypha has ended by itself, as nothing runs any more.
            rustix::process::kill_process(pid, rustix::process::Signal::TERM).ok();
        }
    }
    let status = child.wait().unwrap();
    assert!(status.success() && !results.is_empty(), "{}: {status}", spec.display());
    results
}

fn disk(results: &[Value]) {
    println!("## A 4+2 volume from inside a guest\n");
    let rows: Vec<_> = results
        .iter()
        .map(|result| {
            let number = |field: &str| result[field].as_f64().unwrap();
            let per_second = number("requests") / number("us") * 1e6;
            vec![
                result["case"].as_str().unwrap().to_owned(),
                result["depth"].to_string(),
                format!("{:.3}", number("exits") / number("requests")),
                format!("{per_second:.0}"),
                format!("{:.0}", per_second * number("bytes") / 1e6),
            ]
        })
        .collect();
    table(&["case", "depth", "exits per request", "requests/s", "MB/s"], &rows);
}

fn http(values: &str, results: &[Value]) {
    println!("## HTTP between two guests over the mesh, depth 1, values of {values}\n");
    let rows: Vec<_> = results
        .iter()
        .flat_map(Value::as_object)
        .flatten()
        .map(|(name, value)| vec![name.clone(), value.to_string()])
        .collect();
    table(&["figure", "value"], &rows);
}
