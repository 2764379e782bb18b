//! Out of the mesh through a node that is an exit, and in through one that is a gateway.

use std::process::Stdio;

use mesh_lab::{Lab, Node, NodeOptions, Wire};

use crate::{await_that, counter, lab, nodes, start};

/// Serves its arguments: an address and a text, over HTTP.
const SERVER: &str = "
import http.server, sys
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(sys.argv[3].encode())
    def log_message(self, *_):
        pass
class Server(http.server.ThreadingHTTPServer):
    address_family = __import__('socket').AF_INET6 if ':' in sys.argv[1] else 2
Server((sys.argv[1], int(sys.argv[2])), Answer).serve_forever()
";

fn serve(lab: &mut Lab, namespace: &str, address: &str, text: &str) {
    let mut server = lab.command(namespace, "python3");
    server.args(["-c", SERVER, address, "8080", text]).stdout(Stdio::null()).stderr(Stdio::null());
    lab.start(&mut server).unwrap();
}

/// What an HTTP server says, or why there is none.
fn fetch(lab: &Lab, namespace: &str, url: &str) -> Result<String, String> {
    let args = ["-sS", "-g", "--noproxy", "*", "-m", "5", url];
    lab.run(namespace, "curl", &args).map_err(|error| error.to_string())
}

/// Starts a node that calls `other` over a wire, with more words on its command line.
pub(crate) fn start_with(
    lab: &mut Lab,
    node: &Node,
    calls: &[(&Node, &Wire)],
    more: &[&str],
) -> u32 {
    let neighbours = calls.iter().map(|(other, wire)| {
        let end = wire.ends.iter().position(|end| *end == other.namespace).unwrap();
        other.at(&wire.addresses[end])
    });
    let options = NodeOptions {
        neighbours: neighbours.collect(),
        more: more.iter().map(|word| (*word).to_owned()).collect(),
        ..NodeOptions::default()
    };
    lab.start_node(node, &options).unwrap()
}

#[test]
fn a_host_reaches_ipv4_through_another_node_and_only_where_that_lets_it() {
    let Some(mut lab) = lab() else { return };
    let [one, exit] = nodes(&mut lab, ["a", "x"]);
    lab.namespace("s").unwrap();
    let wire = lab.wire("a", "x").unwrap();
    let beyond = lab.wire("x", "s").unwrap();
    let server = beyond.addresses[1].clone();
    // Another address of the same network, which the exit is not told to let anybody reach.
    lab.run("s", "ip", &["addr", "add", "10.77.99.9/32", "dev", "lo"]).unwrap();
    lab.run("x", "ip", &["route", "add", "10.77.99.9/32", "via", &server]).unwrap();
    serve(&mut lab, "s", "0.0.0.0", "beyond");
    let allowed = format!("{server}/32");
    let of_exit = ["--nat64", "--allow-destination", &allowed, "--exit-for", &one.key];
    start_with(&mut lab, &exit, &[], &of_exit);
    start_with(&mut lab, &one, &[(&exit, &wire)], &["--exit", &exit.key]);
    lab.await_member(&one, &exit).unwrap();
    await_that("the server is reached", || {
        fetch(&lab, "a", &format!("http://[64:ff9b::{server}]:8080/")).as_deref() == Ok("beyond")
    });
    // The exit itself reaches this one; members do not.
    assert_eq!(fetch(&lab, "x", "http://10.77.99.9:8080/").as_deref(), Ok("beyond"));
    assert!(fetch(&lab, "a", "http://[64:ff9b::10.77.99.9]:8080/").is_err());
    assert!(fetch(&lab, "a", "http://[64:ff9b::127.0.0.1]:8080/").is_err());
    assert!(counter(&lab, &exit, "exit_flows_opened") >= 1);
    assert!(counter(&lab, &exit, "exit_dropped_forbidden") >= 2);
}

#[test]
fn who_is_not_listed_does_not_get_out() {
    let Some(mut lab) = lab() else { return };
    let [one, exit] = nodes(&mut lab, ["a", "x"]);
    lab.namespace("s").unwrap();
    let wire = lab.wire("a", "x").unwrap();
    let beyond = lab.wire("x", "s").unwrap();
    let server = beyond.addresses[1].clone();
    serve(&mut lab, "s", "0.0.0.0", "beyond");
    start_with(&mut lab, &exit, &[], &["--nat64", "--allow-destination", &server]);
    start_with(&mut lab, &one, &[(&exit, &wire)], &["--exit", &exit.key]);
    lab.await_member(&one, &exit).unwrap();
    assert!(fetch(&lab, "a", &format!("http://[64:ff9b::{server}]:8080/")).is_err());
    assert!(counter(&lab, &exit, "exit_strangers") >= 1);
}

#[test]
fn a_gateways_port_leads_to_a_member_that_lets_it_in() {
    let Some(mut lab) = lab() else { return };
    let [gate, two] = nodes(&mut lab, ["g", "b"]);
    lab.namespace("c").unwrap();
    let wire = lab.wire("g", "b").unwrap();
    let public = lab.wire("c", "g").unwrap();
    let at = public.addresses[1].clone();
    let file = lab.folder().join("gateway.json");
    let route = |port: u16| {
        format!("[{{\"listen\": \"{at}:{port}\", \"key\": \"{}\", \"port\": 8080}}]", two.key)
    };
    std::fs::write(&file, route(80)).unwrap();
    start(&mut lab, &two, &[]);
    let words = ["--gateway", file.to_str().unwrap()];
    let process = start_with(&mut lab, &gate, &[(&two, &wire)], &words);
    serve(&mut lab, "b", "::", "inside");
    let key = gate.command(&lab, &["key", "--gateway", "--quiet"]).output().unwrap();
    let key = String::from_utf8(key.stdout).unwrap();
    assert!(fetch(&lab, "c", &format!("http://{at}/")).is_err(), "default deny");
    let mut allow = two.command(&lab, &["acl", "add", key.trim(), "tcp", "8080"]);
    assert!(allow.status().unwrap().success());
    await_that("the member is reached", || {
        fetch(&lab, "c", &format!("http://{at}/")).as_deref() == Ok("inside")
    });
    // The node's process is the one below `ip netns exec`, which becomes it.
    std::fs::write(&file, route(81)).unwrap();
    lab.run("g", "kill", &["-HUP", &process.to_string()]).unwrap();
    await_that("the new route counts", || {
        fetch(&lab, "c", &format!("http://{at}:81/")).as_deref() == Ok("inside")
    });
    assert!(fetch(&lab, "c", &format!("http://{at}/")).is_err(), "the old one does not");
}

/// What a resolver says about the AAAA of a name.
const ASK: &str = "
import socket, sys
name = b''.join(bytes([len(it)]) + it.encode() for it in sys.argv[2].split('.'))
question = b'\\0\\1\\1\\0\\0\\1\\0\\0\\0\\0\\0\\0' + name + b'\\0\\0\\x1c\\0\\1'
over_tcp = sys.argv[3] == 'tcp'
it = socket.socket(socket.AF_INET6, socket.SOCK_STREAM if over_tcp else socket.SOCK_DGRAM)
it.settimeout(8)
it.connect((sys.argv[1], 53))
it.send((len(question).to_bytes(2, 'big') if over_tcp else b'') + question)
answer = it.recv(2000)[2 if over_tcp else 0:]
print(answer[3] & 15, socket.inet_ntop(socket.AF_INET6, answer[-16:]) if answer[7] else '')
";

#[test]
fn a_host_resolves_the_names_that_another_node_gives_its_workloads() {
    let Some(mut lab) = lab() else { return };
    let [one, two] = nodes(&mut lab, ["a", "b"]);
    let wire = lab.wire("a", "b").unwrap();
    // Any key will do for a workload; the asking node's own is one.
    start_with(&mut lab, &two, &[], &["--name", &format!("web={}", one.key)]);
    let nickname = format!("berlin={}", two.key);
    start_with(&mut lab, &one, &[(&two, &wire)], &["--dns", "--nickname", &nickname]);
    lab.await_member(&one, &two).unwrap();
    let prefix = u128::from(one.address) & !u128::from(u64::MAX);
    let resolver = std::net::Ipv6Addr::from(prefix | 0x53).to_string();
    for transport in ["udp", "tcp"] {
        let ask = |name: &str| {
            let words = ["-c", ASK, &resolver, name, transport];
            lab.run("a", "python3", &words).unwrap().trim().to_owned()
        };
        assert_eq!(ask("web.berlin.mesh"), format!("0 {}", one.address), "{transport}");
        assert_eq!(ask("db.berlin.mesh"), "3");
        assert_eq!(ask("web.paris.mesh"), "3");
    }
}
