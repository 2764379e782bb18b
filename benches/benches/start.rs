//! Cold start: spawn of the VMM to its exit after `hello`, confined, beside `/bin/true`.
//!
//! Rounds are interleaved, so that a change of load meets all of them. `kept`: the parent holds the
//! KVM descriptors until the process is gone (what `hypha run` does).
#![expect(clippy::unwrap_used, reason = "a benchmark that lacks its tools fails")]

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use benches::{Distribution, dist, milliseconds, table};
use rustix::cmsg_space;
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::{RecvAncillaryBuffer, RecvFlags, recvmsg};

const ROUNDS: usize = 40;
const SPAWNS_PER_ROUND: usize = 10;

fn main() {
    let vmm = dist().join("vmm");
    let hello = dist().join("images/hello");
    let run = |arguments: &[&str]| {
        let mut command = Command::new(&vmm);
        command.args(arguments).args(["--memory", "8MiB"]).arg(&hello);
        finish(&mut command);
    };
    run(&[]); // fills the cache of the host probe
    let config = std::env::temp_dir().join(format!("hypha-start-{}.json", std::process::id()));
    let text = serde_json::json!({"version": 1, "name": "hello", "image": &hello,
        "memory_bytes": 8 << 20});
    std::fs::write(&config, text.to_string()).unwrap();
    let configured = || {
        let file = std::fs::File::open(&config).unwrap();
        fcntl_setfd(&file, FdFlags::empty()).unwrap();
        let number = file.as_raw_fd().to_string();
        finish(Command::new(&vmm).args(["--config-fd", &number]));
    };
    let mut samples: [Vec<f64>; 5] = Default::default();
    for _ in 0..ROUNDS {
        let rounds = [
            milliseconds(SPAWNS_PER_ROUND, || finish(&mut Command::new("/bin/true"))),
            milliseconds(SPAWNS_PER_ROUND, || run(&[])),
            milliseconds(SPAWNS_PER_ROUND, &configured),
            kept(&run),
            milliseconds(SPAWNS_PER_ROUND / 5, || run(&["--cache", "none"])),
        ];
        for (all, round) in samples.iter_mut().zip(rounds) {
            all.extend(round.samples());
        }
    }
    std::fs::remove_file(&config).unwrap();
    let [truth, plain, configured, kept, uncached] = samples.map(Distribution::new);
    println!("## Cold start, spawn to exit, confined\n");
    let row = |name: &str, times: &Distribution| {
        let ratio = times.percentile(50) / truth.percentile(50);
        vec![name.to_owned(), times.cell(), format!("{ratio:.2}")]
    };
    table(
        &["what", "ms: median (p10 to p90)", "× `/bin/true`"],
        &[
            row("`/bin/true`", &truth),
            row("`vmm hello`", &plain),
            row("`vmm hello`, configured by a descriptor as `hypha` does", &configured),
            row("`vmm hello`, descriptors kept by the parent", &kept),
            row("`vmm hello`, first start after a host boot", &uncached),
        ],
    );
    phases(&vmm, &hello);
}

fn finish(command: &mut Command) {
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status().unwrap();
    assert!(status.success(), "{command:?}: {status}");
}

/// As `run`, with a keeper of the descriptors, which are closed outside the measured time.
fn kept(run: &dyn Fn(&[&str])) -> Distribution {
    let mut times = Vec::new();
    for _ in 0..SPAWNS_PER_ROUND {
        let (ours, theirs) = UnixStream::pair().unwrap();
        fcntl_setfd(&theirs, FdFlags::empty()).unwrap();
        let number = theirs.as_raw_fd().to_string();
        times.push(milliseconds(1, || run(&["--keeper-fd", &number])).percentile(50));
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(2))];
        let mut descriptors = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0; 2];
        recvmsg(&ours, &mut [IoSliceMut::new(&mut byte)], &mut descriptors, RecvFlags::empty())
            .unwrap();
        assert_eq!(descriptors.drain().count(), 1, "the VM's descriptors came");
    }
    Distribution::new(times)
}

/// Where the time of a start goes, from the VMM's own figures.
fn phases(vmm: &std::path::Path, hello: &std::path::Path) {
    let mut phases: Vec<(String, Vec<f64>)> = Vec::new();
    for _ in 0..100 {
        let output =
            Command::new(vmm).args(["--stats", "--memory", "8MiB"]).arg(hello).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        let json: serde_json::Value =
            serde_json::from_str(text.trim_start_matches("vmm: ")).unwrap();
        for (phase, us) in json["start_us"].as_object().unwrap() {
            let us = us.as_f64().unwrap();
            match phases.iter_mut().find(|(name, _)| name == phase) {
                Some((_, samples)) => samples.push(us),
                None => phases.push((phase.clone(), vec![us])),
            }
        }
    }
    println!("## Where a start's time goes\n");
    let rows: Vec<_> = phases
        .into_iter()
        .map(|(phase, samples)| vec![phase, Distribution::new(samples).cell()])
        .collect();
    table(&["phase", "µs: median (p10 to p90)"], &rows);
}
