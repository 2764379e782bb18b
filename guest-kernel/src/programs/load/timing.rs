//! The undisturbed part: one connection, one request at a time, exits counted on both sides.

use alloc::vec::Vec;
use core::fmt;

use super::Run;
use super::client::{Client, GaveUp};

const STATS: &[u8] = b"GET /stats HTTP/1.1\r\nHost: kv\r\n\r\n";

/// Rates and costs at depth 1. The exits don't depend on the machine.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Timing {
    /// PUTs per second.
    pub put_per_s: f64,
    /// GETs per second.
    pub get_per_s: f64,
    /// The median time of a GET, microseconds.
    pub get_p50_us: f64,
    /// The median time of a PUT, microseconds.
    pub put_p50_us: f64,
    /// Exits of the server's vCPU per GET.
    pub kv_exits_per_get: f64,
    /// Exits of the server's vCPU per PUT.
    pub kv_exits_per_put: f64,
    /// Exits of this vCPU per GET.
    pub own_exits_per_get: f64,
}

impl fmt::Display for Timing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "\"put_per_s\":{:.1},\"get_per_s\":{:.1},\"get_p50_us\":{:.1},\"put_p50_us\":{:.1},\
             \"kv_exits_per_get\":{:.3},\"kv_exits_per_put\":{:.3},\"own_exits_per_get\":{:.3}",
            self.put_per_s,
            self.get_per_s,
            self.get_p50_us,
            self.put_p50_us,
            self.kv_exits_per_get,
            self.kv_exits_per_put,
            self.own_exits_per_get,
        )
    }
}

/// Times GETs, then PUTs of the values that are there already.
pub(super) async fn measure(run: &Run, client: &mut Client) -> Result<Timing, GaveUp> {
    let count = run.settings.timed.min(run.settings.count);
    if count == 0 {
        return Ok(Timing::default());
    }
    let gets: Vec<_> = (0..count).map(|index| run.get_request(index)).collect();
    let get = batch(run, client, &gets).await?;
    drop(gets);
    let puts: Vec<_> = (0..count).map(|index| run.put_request(index)).collect();
    let put = batch(run, client, &puts).await?;
    Ok(Timing {
        put_per_s: put.per_s,
        get_per_s: get.per_s,
        get_p50_us: get.p50_us,
        put_p50_us: put.p50_us,
        kv_exits_per_get: get.kv_exits,
        kv_exits_per_put: put.kv_exits,
        own_exits_per_get: get.own_exits,
    })
}

struct Figures {
    per_s: f64,
    p50_us: f64,
    kv_exits: f64,
    own_exits: f64,
}

async fn batch(run: &Run, client: &mut Client, requests: &[Vec<u8>]) -> Result<Figures, GaveUp> {
    let count = requests.len() as f64;
    let kv_before = kv_exits(client).await?;
    let own_before = (run.exits)();
    let started_ns = run.executor.now_ns();
    let mut times_ns = Vec::with_capacity(requests.len());
    for request in requests {
        let before_ns = run.executor.now_ns();
        client.request(request).await?;
        times_ns.push(run.executor.now_ns() - before_ns);
    }
    let elapsed_ns = run.executor.now_ns() - started_ns;
    let own = (run.exits)() - own_before;
    // Between the two looks lie the batch and the answer to the first look.
    let kv = kv_exits(client).await?.saturating_sub(kv_before);
    times_ns.sort_unstable();
    let p50_ns = times_ns.get(times_ns.len() / 2).copied().unwrap_or(0);
    Ok(Figures {
        per_s: count * 1e9 / (elapsed_ns.max(1) as f64),
        p50_us: p50_ns as f64 / 1e3,
        kv_exits: kv as f64 / (count + 1.0),
        own_exits: own as f64 / count,
    })
}

async fn kv_exits(client: &mut Client) -> Result<u64, GaveUp> {
    let stats = client.request(STATS).await?;
    Ok(field(&stats.body, "\"exits\":").unwrap_or(0))
}

/// The number behind `name` in flat JSON.
fn field(json: &[u8], name: &str) -> Option<u64> {
    let text = core::str::from_utf8(json).ok()?;
    let rest = text.get(text.find(name)? + name.len()..)?;
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    rest.get(..end)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_found_in_the_stats() {
        let json = b"{\"requests\":12,\"exits\":345,\"uptime_ms\":6}";
        assert_eq!(field(json, "\"exits\":"), Some(345));
        assert_eq!(field(json, "\"uptime_ms\":"), Some(6));
        assert_eq!(field(json, "\"nothing\":"), None);
        assert_eq!(field(b"\xff", "\"exits\":"), None);
    }
}
