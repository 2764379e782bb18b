//! What all nodes of a network must have alike, from a file: for development chains, whose time may go
//! faster than the world's and whose machines are small. Without a file it is the standard.

use std::path::Path;
use std::time::Duration;

use hypha_proofs::Rules;
use proof_node::daemon::{Network, Timing};
use serde::Deserialize;

use crate::chain::failure::Failure;
use crate::files::read_regular;

/// The longest such file.
const BYTES_MAX: u64 = 64 * 1024;
const VERSION: u32 = 1;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NetworkFile {
    version: u32,
    /// How many times faster than the world's the chain's time goes (`hypha chain serve --speed`).
    #[serde(default = "one")]
    speed: u64,
    pulse_mean_secs: u64,
    pulse_quiet_secs: u64,
    rules: RulesFile,
    measured_per_mille: u32,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RulesFile {
    segments: u64,
    walk_steps: u64,
    cpu_draws: u32,
    walk_draws: u32,
    disk_draws: u32,
    commit_ms: u64,
    open_ms: u64,
    filler_bytes: u64,
    block_bytes: u64,
}

fn one() -> u64 {
    1
}

/// Reads the file; the standard without one.
pub(super) fn read(path: Option<&Path>) -> Result<(Network, Timing), Failure> {
    let Some(path) = path else { return Ok((Network::STANDARD, Timing::STANDARD)) };
    let bytes = read_regular(path, BYTES_MAX).map_err(Failure::file(path))?;
    let file: NetworkFile = serde_json::from_slice(&bytes).map_err(Failure::file(path))?;
    check(file).map_err(Failure::file(path))
}

fn check(file: NetworkFile) -> Result<(Network, Timing), String> {
    let NetworkFile { version, speed, rules, .. } = file;
    if version != VERSION {
        return Err(format!("version {version}; this hypha reads version {VERSION}"));
    }
    let bounds = [
        ("speed", speed, 1, 100_000),
        ("pulse_mean_secs", file.pulse_mean_secs, 1, 1 << 32),
        ("pulse_quiet_secs", file.pulse_quiet_secs, 0, 1 << 32),
        ("segments", rules.segments, 1, 1 << 24),
        ("walk_steps", rules.walk_steps, 1, 1 << 28),
        ("cpu_draws", rules.cpu_draws.into(), 1, 256),
        ("walk_draws", rules.walk_draws.into(), 1, 64),
        ("disk_draws", rules.disk_draws.into(), 1, 256),
        ("commit_ms", rules.commit_ms, 100, 60_000),
        ("open_ms", rules.open_ms, 100, 60_000),
        ("filler_bytes", rules.filler_bytes, 32, 1 << 32),
        ("block_bytes", rules.block_bytes, 32, 1 << 32),
        ("measured_per_mille", file.measured_per_mille.into(), 0, 1000),
    ];
    for (name, value, least, most) in bounds {
        if !(least..=most).contains(&value) {
            return Err(format!("{name} is {value}; it must be from {least} to {most}"));
        }
    }
    let network = Network {
        rules: Rules {
            segments: rules.segments,
            walk_steps: rules.walk_steps,
            cpu_draws: rules.cpu_draws,
            walk_draws: rules.walk_draws,
            disk_draws: rules.disk_draws,
            commit_ns: rules.commit_ms * 1_000_000,
            open_ns: rules.open_ms * 1_000_000,
            filler_bytes: rules.filler_bytes,
            block_bytes: rules.block_bytes,
        },
        pulse_mean_secs: file.pulse_mean_secs,
        pulse_quiet_secs: file.pulse_quiet_secs,
        measured_per_mille: file.measured_per_mille,
    };
    Ok((network, timing(speed)))
}

/// Times of this host for a chain whose time goes so much faster.
fn timing(speed: u64) -> Timing {
    let it = Timing::STANDARD;
    if speed <= 1 {
        return it;
    }
    Timing {
        poll: Duration::from_millis(50),
        commit_ns: it.commit_ns / speed,
        // Statements still take as long as the lines do.
        gather_ns: (it.gather_ns / speed).max(5_000_000_000),
        patience_ns: (it.patience_ns / speed).max(20_000_000_000),
        compare_ns: 1_000_000_000,
        // Such a chain's time is not this host's.
        skew_secs: u64::MAX,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"{"version": 1, "speed": 120, "pulse_mean_secs": 900,
        "pulse_quiet_secs": 600, "rules": {"segments": 100, "walk_steps": 2000, "cpu_draws": 4,
        "walk_draws": 2, "disk_draws": 16, "commit_ms": 1500, "open_ms": 1500,
        "filler_bytes": 262144, "block_bytes": 1048576}, "measured_per_mille": 200}"#;

    fn read_text(text: &str) -> Result<(Network, Timing), Failure> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        read(Some(file.path()))
    }

    #[test]
    fn a_file_is_read_and_none_is_the_standard() {
        let (network, timing) = read_text(TEXT).unwrap();
        assert_eq!((network.rules.segments, network.rules.commit_ns), (100, 1_500_000_000));
        assert_eq!(timing.commit_ns, 5_000_000_000);
        let (network, timing) = read(None).unwrap();
        assert_eq!((network, timing), (Network::STANDARD, Timing::STANDARD));
    }

    #[test]
    fn what_cannot_be_is_refused_with_its_name() {
        let cases = [
            ("\"version\": 1", "\"version\": 2", "version 2"),
            ("\"segments\": 100", "\"segments\": 0", "segments"),
            ("\"commit_ms\": 1500", "\"commit_ms\": 99999999", "commit_ms"),
            ("\"speed\": 120", "\"speed\": 0", "speed"),
            ("\"measured_per_mille\": 200", "\"measured\": 200", "measured"),
        ];
        for (from, to, says) in cases {
            let error = read_text(&TEXT.replace(from, to)).unwrap_err();
            assert!(error.to_string().contains(says), "{error}");
            assert_eq!(error.exit_code(), crate::exit_code::BAD_SPEC);
        }
        assert!(read(Some(Path::new("/nowhere"))).is_err());
    }
}
