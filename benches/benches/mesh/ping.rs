//! The system's own `ping`, and what its lines tell.

use std::process::{Child, Stdio};

use benches::Distribution;
use mesh_lab::Lab;

/// A ping under way.
pub(crate) struct Ping {
    child: Child,
    /// Between two of them, in seconds.
    interval: f64,
    count: u32,
}

/// What came of it.
pub(crate) struct Pinged {
    /// When answers came, in seconds since 1970.
    pub(crate) at: Vec<f64>,
    /// How long the last of them went unanswered, in seconds.
    pub(crate) silent_at_end: f64,
    /// Round trips in milliseconds.
    pub(crate) round_trips: Distribution,
}

impl Ping {
    /// Starts one, from a namespace to an address.
    pub(crate) fn start(lab: &Lab, from: &str, to: &str, interval: &str, count: u32) -> Self {
        let mut command = lab.command(from, "ping");
        command.args(["-D", "-n", "-W", "1", "-i", interval, "-c", &count.to_string(), to]);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        Self { child, interval: interval.parse().unwrap(), count }
    }

    /// Waits for its end.
    pub(crate) fn finish(self) -> Pinged {
        let output = self.child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let parsed = text.lines().filter_map(|line| {
            let (stamp, rest) = line.strip_prefix('[')?.split_once(']')?;
            let time = rest.split_once("time=")?.1.split(' ').next()?;
            Some((stamp.parse::<f64>().ok()?, time.parse::<f64>().ok()?))
        });
        let (at, round_trips): (Vec<f64>, Vec<f64>) = parsed.unzip();
        let numbers = text.lines().filter_map(|line| {
            line.split_once("icmp_seq=")?.1.split(' ').next()?.parse::<u32>().ok()
        });
        let unanswered = self.count - numbers.max().unwrap_or(0).min(self.count);
        let silent_at_end = f64::from(unanswered) * self.interval;
        Pinged { at, silent_at_end, round_trips: Distribution::new(round_trips) }
    }
}

impl Pinged {
    /// The longest time without an answer, in milliseconds; what lasts to the end counts too.
    pub(crate) fn longest_gap_ms(&self) -> f64 {
        let gaps = self.at.windows(2).map(|pair| pair[1] - pair[0]);
        gaps.fold(self.silent_at_end, f64::max) * 1e3
    }
}
