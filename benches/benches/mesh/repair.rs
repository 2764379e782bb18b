//! How long nothing arrives when something on the way stops.

use std::time::Duration;

use benches::Distribution;
use mesh_lab::Direction;

use crate::ping::Ping;
use crate::{Diamond, diamond, heading, nodes, start};

/// How many silent cuts are measured; half of them in one direction only.
const CUTS: usize = 60;
/// How often a ping goes out: the resolution of what is measured.
const INTERVAL: &str = "0.01";

/// How long the link is mended before the next cut, which may be of the other one: a link that fell silent
/// several times in half a minute must answer twelve probes before it is used again.
const MENDED: Duration = Duration::from_secs(3);

/// How many diamonds are cut side by side. They share the processors, which pings hardly use.
const DIAMONDS: usize = 4;

/// Links that fall silent.
pub(crate) fn silent() {
    heading("Outage when a link of a diamond falls silent");
    let diamonds: Vec<Diamond> = (0..DIAMONDS).map(|_| diamond()).collect();
    let gaps: Vec<(bool, f64)> = std::thread::scope(|scope| {
        let threads: Vec<_> = diamonds
            .iter()
            .enumerate()
            .map(|(first, diamond)| {
                let numbers = (0..CUTS).skip(first).step_by(DIAMONDS);
                scope.spawn(move || numbers.map(|it| cut_once(diamond, it)).collect::<Vec<_>>())
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    let of = |wanted: Option<bool>| {
        let is_of = |is_one_way: &bool| wanted.is_none_or(|wanted| wanted == *is_one_way);
        let hit = gaps.iter().filter(|(is_one_way, gap)| is_of(is_one_way) && *gap >= 25.0);
        Distribution::new(hit.map(|(_, gap)| *gap).collect())
    };
    let kinds = [("both directions", Some(false)), ("one direction", Some(true)), ("all", None)];
    let rows = kinds.into_iter().map(|(name, wanted)| {
        let gaps = of(wanted);
        vec![
            name.to_owned(),
            gaps.samples().len().to_string(),
            format!("{:.0}", gaps.percentile(50)),
            format!("{:.0}", gaps.percentile(90)),
            format!("{:.0}", gaps.percentile(99)),
            format!("{:.0}", gaps.percentile(100)),
        ]
    });
    let header = ["cut", "number", "outage ms, median", "p90", "p99", "max"];
    benches::table(&header, &rows.collect::<Vec<_>>());
    let unhit = gaps.iter().filter(|(_, gap)| *gap < 25.0).count();
    println!("{unhit} cuts of {CUTS} did not touch the traffic.\n");
}

/// Cuts the link that carries the traffic; whether in one direction only, and the outage in ms.
fn cut_once(diamond: &Diamond, number: usize) -> (bool, f64) {
    let Diamond { lab, one, two, wires, .. } = diamond;
    // By the round of its diamond, so that each has all kinds.
    let (direction, is_one_way) = match number / DIAMONDS % 4 {
        0 => (Direction::Forth, true),
        1 => (Direction::Both, false),
        2 => (Direction::Back, true),
        _ => (Direction::Both, false),
    };
    // Phases against the probes vary with the number.
    let ping = Ping::start(lab, &one.namespace, &two.address.to_string(), INTERVAL, 250);
    std::thread::sleep(Duration::from_millis(500 + 37 * number as u64 % 400));
    let wire = wires.iter().take(2).max_by_key(|wire| carried(lab, wire)).unwrap();
    lab.cut(wire, direction).unwrap();
    let gap = ping.finish().longest_gap_ms();
    lab.mend(wire, direction).unwrap();
    std::thread::sleep(MENDED);
    (is_one_way, gap)
}

/// How many bytes have left `a` over a wire.
fn carried(lab: &mesh_lab::Lab, wire: &mesh_lab::Wire) -> u64 {
    let file = format!("/sys/class/net/{}/statistics/tx_bytes", wire.devices[0]);
    let read = || {
        let text = lab.run(&wire.ends[0], "cat", &[&file]).unwrap_or_default();
        text.trim().parse::<u64>().unwrap_or(0)
    };
    let before = read();
    std::thread::sleep(Duration::from_millis(60));
    read() - before
}

/// Links that say that they are down, and routers that die.
pub(crate) fn loud() {
    heading("Outage when a link goes down or a router's process dies");
    let mut gaps: [Vec<f64>; 2] = Default::default();
    for number in 0..10 {
        let Diamond { mut lab, one, two, wires, middles } = diamond();
        let to = two.address.to_string();
        std::thread::sleep(Duration::from_secs(1));
        let ping = Ping::start(&lab, &one.namespace, &to, "0.005", 400);
        std::thread::sleep(Duration::from_millis(700 + 23 * number));
        let bytes = [carried(&lab, &wires[0]), carried(&lab, &wires[1])];
        let side = usize::from(bytes[1] > bytes[0]);
        if number % 2 == 0 {
            let device = wires[side].devices[0].clone();
            lab.run("a", "ip", &["link", "set", &device, "down"]).unwrap();
        } else {
            lab.kill(middles[side].1);
        }
        gaps[usize::from(number % 2 == 1)].push(ping.finish().longest_gap_ms());
    }
    let [down, death] = gaps;
    let rows = [("link down at the sender", down), ("process killed", death)];
    let rows = rows.map(|(name, gaps)| vec![name.to_owned(), Distribution::new(gaps).cell()]);
    benches::table(&["event", "outage ms"], &rows);
}

/// The first packet to a member that was never spoken to.
pub(crate) fn cold() {
    heading("First packet to a member behind a relay, nothing known of it");
    let mut first = Vec::new();
    for _ in 0..10 {
        let mut lab = mesh_lab::Lab::new().unwrap();
        let [one, between, two] = nodes(&mut lab, ["a", "m", "b"]);
        let left = lab.wire("a", "m").unwrap();
        let right = lab.wire("b", "m").unwrap();
        start(&mut lab, &between, &[]);
        start(&mut lab, &two, &[(&between, &right)]);
        start(&mut lab, &one, &[(&between, &left)]);
        two.allow(&lab, &one).unwrap();
        std::thread::sleep(Duration::from_secs(1));
        let pinged = Ping::start(&lab, "a", &two.address.to_string(), "0.2", 1).finish();
        first.push(pinged.round_trips.percentile(50));
    }
    let rows = vec![vec![first.len().to_string(), Distribution::new(first).cell()]];
    benches::table(&["members", "round trip of the first packet, ms"], &rows);
}
