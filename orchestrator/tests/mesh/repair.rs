//! What happens to a ping and to a stream when links fall silent.

use std::time::Duration;

use mesh_lab::Direction;

use crate::{iperf, lab, nodes, ping_during, start};

#[test]
fn a_silent_cut_of_a_diamond_s_side_is_repaired_in_time_in_either_direction() {
    let Some(mut lab) = lab() else { return };
    let [one, up, down, two] = nodes(&mut lab, ["a", "u", "d", "b"]);
    let wires = [("a", "u"), ("a", "d"), ("b", "u"), ("b", "d")];
    let [au, ad, bu, bd] = wires.map(|(from, to)| lab.wire(from, to).unwrap());
    start(&mut lab, &up, &[]);
    start(&mut lab, &down, &[]);
    start(&mut lab, &one, &[(&up, &au), (&down, &ad)]);
    start(&mut lab, &two, &[(&up, &bu), (&down, &bd)]);
    two.allow(&lab, &one).unwrap();
    lab.await_member(&one, &two).unwrap();
    for direction in [Direction::Forth, Direction::Back, Direction::Both] {
        for wire in [&au, &ad] {
            let (answers, longest) = ping_during(&lab, (&one, &two), 200, |lab| {
                lab.cut(wire, direction).unwrap();
            });
            assert!(answers > 120, "{direction:?}: {answers} of 200");
            assert!(longest < Duration::from_secs(2), "{direction:?}: {longest:?}");
            lab.mend(wire, direction).unwrap();
            std::thread::sleep(Duration::from_millis(1500));
        }
    }
}

#[test]
fn a_stream_survives_cuts_at_random_among_five_nodes() {
    let Some(mut lab) = lab() else { return };
    let [one, x, y, z, two] = nodes(&mut lab, ["a", "x", "y", "z", "b"]);
    let between = [("a", "x"), ("a", "y"), ("x", "z"), ("y", "z"), ("z", "b"), ("x", "b")];
    let wires = between.map(|(from, to)| lab.wire(from, to).unwrap());
    let [ax, ay, xz, yz, zb, xb] = &wires;
    start(&mut lab, &x, &[]);
    start(&mut lab, &y, &[]);
    start(&mut lab, &z, &[(&x, xz), (&y, yz)]);
    start(&mut lab, &one, &[(&x, ax), (&y, ay)]);
    start(&mut lab, &two, &[(&z, zb), (&x, xb)]);
    two.allow(&lab, &one).unwrap();
    lab.await_member(&one, &two).unwrap();
    // Whatever is cut, one way is left: each round takes one wire of these.
    let seed = u64::from(std::process::id());
    println!("seed {seed}");
    let picked = |round: u64| (seed.wrapping_mul(6_364_136_223_846_793_005) >> (7 * round)) % 4;
    let address = two.address.to_string();
    let mut server = lab.command("b", "iperf3");
    lab.start(server.args(["-s", "-1"]).stdout(std::process::Stdio::null())).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    let mut client = lab.command("a", "iperf3");
    client.args(["-6", "-J", "-c", &address, "-t", "12"]);
    let client = client.stdout(std::process::Stdio::piped()).spawn().unwrap();
    for round in 0..4 {
        std::thread::sleep(Duration::from_millis(1200));
        let wire = [ax, xb, zb, xz][usize::try_from(picked(round)).unwrap()];
        let direction = [Direction::Forth, Direction::Back][usize::try_from(round).unwrap() % 2];
        lab.cut(wire, direction).unwrap();
        std::thread::sleep(Duration::from_millis(1200));
        lab.mend(wire, direction).unwrap();
    }
    let output = client.wait_with_output().unwrap();
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(report["error"].is_null(), "seed {seed}: {}", report["error"]);
    let bytes = report["end"]["sum_received"]["bytes"].as_f64().unwrap();
    assert!(bytes > 10e6, "seed {seed}: {bytes} bytes arrived");
    let rate = iperf(&mut lab, &one, &two, 1);
    assert!(rate > 10.0, "seed {seed}: afterwards {rate} Mbit/s");
}

/// A ping across a diamond, while something happens to the router that carries it.
fn ping_while(happens: fn(&mut mesh_lab::Lab, &mesh_lab::Wire, u32)) -> Option<usize> {
    let mut lab = lab()?;
    let [one, up, down, two] = nodes(&mut lab, ["a", "u", "d", "b"]);
    let wires = [("a", "u"), ("a", "d"), ("b", "u"), ("b", "d")];
    let [au, ad, bu, bd] = wires.map(|(from, to)| lab.wire(from, to).unwrap());
    let up_process = start(&mut lab, &up, &[]);
    let down_process = start(&mut lab, &down, &[]);
    start(&mut lab, &one, &[(&up, &au), (&down, &ad)]);
    start(&mut lab, &two, &[(&up, &bu), (&down, &bd)]);
    two.allow(&lab, &one).unwrap();
    lab.await_member(&one, &two).unwrap();
    let trace = one.command(&lab, &["trace", &two.key]).output().unwrap();
    let by_up = String::from_utf8(trace.stdout).unwrap().contains(&up.address.to_string());
    let (wire, process) = if by_up { (&au, up_process) } else { (&ad, down_process) };
    let address = two.address.to_string();
    let args = ["-6", "-n", "-q", "-i", "0.02", "-W", "1", "-c", "150", &address];
    let ping = lab.command("a", "ping").args(args).stdout(std::process::Stdio::piped()).spawn();
    let ping = ping.unwrap();
    std::thread::sleep(Duration::from_millis(1000));
    happens(&mut lab, wire, process);
    let text = String::from_utf8(ping.wait_with_output().unwrap().stdout).unwrap();
    let received = text.split(" received").next().and_then(|it| it.rsplit(' ').next());
    Some(received.unwrap().parse().unwrap())
}

/// So many of 150 pings may get lost: their interval is 20 ms, and probes alone take ten to notice.
const LOST_MAX: usize = 6;

#[test]
fn a_dead_router_is_noticed_by_what_its_host_says() {
    let received = ping_while(|lab, _, process| lab.kill(process));
    assert!(received.is_none_or(|received| received >= 150 - LOST_MAX), "{received:?}");
}

#[test]
fn an_interface_that_goes_down_is_noticed_at_both_ends() {
    let received = ping_while(|lab, wire, _| {
        lab.run("a", "ip", &["link", "set", &wire.devices[0], "down"]).unwrap();
    });
    assert!(received.is_none_or(|received| received >= 150 - LOST_MAX), "{received:?}");
}
