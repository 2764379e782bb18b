//! What a node says, as text for people, JSON, or metrics.

use std::fmt::Write;
use std::io;

use mesh_node::orders::{AliasStatus, Answer, PeerStatus, Status};

/// One answer, as a line or as JSON.
pub(super) fn answer(answer: &Answer, json: bool) -> Result<String, io::Error> {
    if json {
        return Ok(serde_json::to_string(answer)? + "\n");
    }
    Ok(match answer {
        Answer::Pong { key, alias, round_trip_us, path } => {
            let whose = alias.as_ref().map_or_else(String::new, leads_to);
            let time = time(*round_trip_us);
            format!("{whose}{} answered after {time} on the way: {path}\n", short(key))
        }
        Answer::Trace { alias, hops } => {
            let whose = alias.as_ref().map_or_else(String::new, leads_to);
            let mut text = String::new();
            for (number, hop) in hops.iter().enumerate() {
                let hop = hop.as_ref().map_or_else(
                    || "no answer".to_owned(),
                    |hop| format!("{:<39} {}", hop.address.to_string(), time(hop.round_trip_us)),
                );
                line(&mut text, format_args!("{:2}  {hop}", number + 1));
            }
            if text.is_empty() {
                text.push_str("that is this node itself, or attached to it\n");
            }
            whose + &text
        }
        Answer::Status(status) => self::status(status),
        Answer::Done => String::new(),
        Answer::Failed { reason } => format!("{reason}\n"),
    })
}

/// The node in a few lines.
pub(super) fn status(status: &Status) -> String {
    let mut text = String::new();
    line(&mut text, format_args!("key         {}", status.key));
    line(&mut text, format_args!("address     {}", status.address));
    line(&mut text, format_args!("zone        {}", status.zone));
    for place in &status.listening {
        line(&mut text, format_args!("listening   {place}"));
    }
    for place in &status.listening_tcp {
        line(&mut text, format_args!("listening   {place} (TCP)"));
    }
    for place in &status.observed {
        line(&mut text, format_args!("seen as     {place}"));
    }
    let tun = status.tun.as_deref().unwrap_or("none");
    line(&mut text, format_args!("interface   {tun}"));
    let connected = status.peers.iter().filter(|peer| peer.is_connected).count();
    line(&mut text, format_args!("sessions    {connected} of {} peers", status.peers.len()));
    let usable = status.neighbours.iter().filter(|neighbour| neighbour.is_usable).count();
    line(&mut text, format_args!("neighbours  {usable} of {} usable", status.neighbours.len()));
    line(&mut text, format_args!("routes      {}", status.routes.len()));
    for peer in &status.peers {
        if let Some(advice) = &peer.advice {
            line(&mut text, format_args!("trouble     {}: {advice}", short(&peer.key)));
        }
    }
    for member in &status.attached {
        let name = member.name.as_ref().map_or_else(String::new, |name| format!(" {name}"));
        let key = short(&member.key);
        line(&mut text, format_args!("attached    {key} {}{name}", member.address));
    }
    for alias in &status.aliases {
        line(&mut text, format_args!("alias       {}", leads_to(alias).trim_end()));
    }
    for alias in &status.known_aliases {
        line(
            &mut text,
            format_args!("known       {} on {}", leads_to(alias).trim_end(), short(&alias.node)),
        );
    }
    for (name, count) in status.counters.iter().filter(|(_, count)| *count > 0) {
        line(&mut text, format_args!("  {name:<28} {count}"));
    }
    text
}

/// What an alias stands for, as a line.
fn leads_to(alias: &AliasStatus) -> String {
    let AliasStatus { address, key, expires_unix_s, .. } = alias;
    format!("{address} is {}, as certified until {expires_unix_s}\n", short(key))
}

/// The members with sessions.
pub(super) fn peers(status: &Status) -> String {
    let mut text = String::new();
    for peer in &status.peers {
        line(&mut text, format_args!("{}", peer.key));
        let state = if peer.is_connected { "session" } else { "no session" };
        let (sent, received) = (bytes(peer.bytes_sent), bytes(peer.bytes_received));
        line(
            &mut text,
            format_args!("  {}, {state}, sent {sent}, received {received}", peer.address),
        );
        for path in &peer.paths {
            let mark = if path.is_current { '*' } else { ' ' };
            let time = path.round_trip_us.map_or_else(|| "-".to_owned(), time);
            let state = if path.is_alive { "" } else { ", not answering" };
            line(&mut text, format_args!("  {mark} {:<44} {time}{state}", path.path));
        }
        if let Some(advice) = &peer.advice {
            line(&mut text, format_args!("  ! {advice}"));
        }
    }
    if text.is_empty() { "no peers\n".to_owned() } else { text }
}

/// Neighbours and routes.
pub(super) fn routes(status: &Status) -> String {
    let mut text = String::from("neighbours\n");
    for neighbour in &status.neighbours {
        let state = if neighbour.is_usable { "" } else { ", not answering" };
        line(
            &mut text,
            format_args!(
                "  {} {:<39} {}{state}",
                short(&neighbour.key),
                neighbour.address.to_string(),
                time(neighbour.round_trip_us)
            ),
        );
    }
    text.push_str("routes\n");
    for route in &status.routes {
        let cost = route.cost_us.map_or_else(|| "unreachable".to_owned(), |us| time(us.into()));
        let next = route.next.as_deref().map_or("here", short);
        let best = route
            .next_best
            .as_deref()
            .map_or_else(String::new, |it| format!(", else {}", short(it)));
        line(&mut text, format_args!("  {:<43} {cost:>12}  via {next}{best}", route.prefix));
    }
    text
}

/// Prometheus' text format.
pub(super) fn metrics(status: &Status) -> String {
    let mut text = String::new();
    for (name, count) in &status.counters {
        line(&mut text, format_args!("# TYPE hypha_mesh_{name}_total counter"));
        line(&mut text, format_args!("hypha_mesh_{name}_total {count}"));
    }
    let connected = status.peers.iter().filter(|peer| peer.is_connected).count();
    let usable = status.neighbours.iter().filter(|neighbour| neighbour.is_usable).count();
    let gauges = [("sessions", connected), ("neighbours", usable), ("routes", status.routes.len())];
    for (name, count) in gauges {
        line(&mut text, format_args!("# TYPE hypha_mesh_{name} gauge"));
        line(&mut text, format_args!("hypha_mesh_{name} {count}"));
    }
    line(&mut text, format_args!("# TYPE hypha_mesh_path_round_trip_seconds gauge"));
    for (peer, path, us) in status.peers.iter().flat_map(times) {
        line(
            &mut text,
            format_args!(
                "hypha_mesh_path_round_trip_seconds{{peer=\"{peer}\",path=\"{path}\"}} {}",
                us as f64 / 1e6
            ),
        );
    }
    text
}

fn times(peer: &PeerStatus) -> impl Iterator<Item = (&str, &str, u64)> {
    peer.paths
        .iter()
        .filter_map(|path| Some((peer.key.as_str(), path.path.as_str(), path.round_trip_us?)))
}

fn line(text: &mut String, content: std::fmt::Arguments<'_>) {
    // Writing to a string can't fail.
    _ = writeln!(text, "{content}");
}

/// The first digits of a key: enough to tell a few apart, and never used to decide anything.
fn short(key: &str) -> &str {
    key.get(..12).unwrap_or(key)
}

fn time(us: u64) -> String {
    format!("{}.{:03} ms", us / 1000, us % 1000)
}

fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_readable() {
        assert_eq!((bytes(1023), bytes(1536)), ("1023 B".to_owned(), "1.5 KiB".to_owned()));
        assert_eq!((time(12), time(1234)), ("0.012 ms".to_owned(), "1.234 ms".to_owned()));
    }
}
