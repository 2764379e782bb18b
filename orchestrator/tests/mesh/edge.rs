//! `hypha mesh edge`: two of them, as mycelium nodes to each other.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::process::Stdio;

use mesh_edge::EdgeKey;
use mesh_lab::Lab;
use net_vdev::PublicKey;

use crate::{await_that, hypha, lab};

/// Takes two connections and passes on what comes by one to the other, for as long as both stand;
/// then takes two more.
const SPLICE: &str = "
import socket, threading
door = socket.create_server(('0.0.0.0', 9651))
def pump(one, other):
    try:
        while data := one.recv(65536):
            other.sendall(data)
    except OSError:
        pass
    for it in (one, other):
        try:
            it.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
while True:
    one, other = door.accept()[0], door.accept()[0]
    for pair in ((one, other), (other, one)):
        threading.Thread(target=pump, args=pair, daemon=True).start()
";

/// Gives the edge of a namespace this key.
fn give_key(lab: &Lab, namespace: &str, byte: u8) -> PublicKey {
    let folder = lab.folder().join(namespace).join("mesh/edge");
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder).unwrap();
    let options = fs::File::options().write(true).create(true).mode(0o600).clone();
    std::io::Write::write_all(&mut options.open(folder.join("key")).unwrap(), &[byte; 32]).unwrap();
    EdgeKey::new([byte; 32]).public()
}

fn start(lab: &mut Lab, namespace: &str, words: &[&str]) {
    let mut command = lab.command(namespace, &hypha().to_string_lossy());
    command.args(["mesh", "edge"]).args(words).arg("--state").arg(lab.folder().join(namespace));
    lab.start(command.stdout(Stdio::null()).stderr(Stdio::null())).unwrap();
}

fn answers(lab: &Lab, from: &str, to: &PublicKey, bytes: &str) -> bool {
    let words = ["-6", "-n", "-c", "1", "-W", "1", "-s", bytes, &to.address().to_string()];
    lab.run(from, "ping", &words).is_ok()
}

#[test]
fn two_edges_reach_who_is_listed_and_nobody_gets_in_whom_no_rule_lets() {
    let Some(mut lab) = lab() else { return };
    for name in ["a", "m", "b"] {
        lab.namespace(name).unwrap();
    }
    let wires = [lab.wire("a", "m").unwrap(), lab.wire("b", "m").unwrap()];
    let [at_a, at_b] = wires.each_ref().map(|wire| format!("{}:9651", wire.addresses[1]));
    let [one, two] = [give_key(&lab, "a", 41), give_key(&lab, "b", 42)];
    let mut splice = lab.command("m", "python3");
    lab.start(splice.args(["-c", SPLICE]).stdout(Stdio::null()).stderr(Stdio::null())).unwrap();

    let to_two = two.address().to_string();
    start(&mut lab, "a", &["--peer", &at_a, "--route", &to_two]);
    start(&mut lab, "b", &["--peer", &at_b, "--allow", &format!("{one},icmp")]);
    await_that("an edge that is let in is answered", || answers(&lab, "a", &two, "56"));
    assert!(answers(&lab, "a", &two, "1300"), "a large packet passes as well");
    assert!(!answers(&lab, "b", &one, "56"), "nobody let this one in");

    // The rest of the mesh's addresses is nobody's here.
    let routes = lab.run("a", "ip", &["-6", "route", "show", "dev", "hyphaedge0"]).unwrap();
    let listed: Vec<_> = routes.lines().filter(|it| !it.starts_with("fe80")).collect();
    assert!(listed.iter().any(|it| it.starts_with(&to_two)), "{routes}");
    assert!(listed.iter().all(|it| !it.contains('/')), "whole addresses only: {routes}");
}

#[test]
fn an_edge_without_a_peer_waits_and_comes_back_when_there_is_one() {
    let Some(mut lab) = lab() else { return };
    for name in ["a", "m", "b"] {
        lab.namespace(name).unwrap();
    }
    let wires = [lab.wire("a", "m").unwrap(), lab.wire("b", "m").unwrap()];
    let [at_a, at_b] = wires.each_ref().map(|wire| format!("{}:9651", wire.addresses[1]));
    let [one, two] = [give_key(&lab, "a", 43), give_key(&lab, "b", 44)];
    let (allow_one, allow_two) = (format!("{one},icmp"), format!("{two},icmp"));
    start(&mut lab, "a", &["--peer", &at_a, "--allow", &allow_two]);
    start(&mut lab, "b", &["--peer", &at_b, "--allow", &allow_one]);
    assert!(!answers(&lab, "a", &two, "56"), "there is nobody to carry it");
    let run = |lab: &mut Lab| {
        let mut splice = lab.command("m", "python3");
        splice.args(["-c", SPLICE]).stdout(Stdio::null()).stderr(Stdio::null());
        lab.start(&mut splice).unwrap()
    };
    let process = run(&mut lab);
    await_that("both are called", || answers(&lab, "a", &two, "56"));
    lab.kill(process);
    assert!(!answers(&lab, "a", &two, "56"), "it is gone");
    run(&mut lab);
    await_that("both are called again", || answers(&lab, "b", &one, "56"));
}
