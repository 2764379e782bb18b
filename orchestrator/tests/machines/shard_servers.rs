//! A machine whose disk lies on shard servers: six of them, as threads of this test.

use std::path::Path;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use storage_node::server::{Limits, ListenAddress, Server, ServerConfig, Service, load_key};
use storage_vdev::files::open_directory;
use storage_vdev::service::{NodeIdentity, NodeOptions, NodeService};
use zeroize::Zeroizing;

use crate::{Place, Session, dist, free_port, get, published, put};

/// A shard server that can be stopped and started again.
struct Node {
    number: u8,
    server: Option<Server>,
}

impl Node {
    fn new(folder: &Path, number: u8) -> Self {
        let mut node = Self { number, server: None };
        node.start(folder);
        node
    }

    fn start(&mut self, folder: &Path) {
        let number = self.number;
        let acceptor_seed = Zeroizing::new([number; 32]);
        let identity = NodeIdentity { node: [number; 16], acceptor_seed };
        let options = NodeOptions { capacity_bytes: 256 << 20, create: Some(identity) };
        let files = open_directory(&folder.join(format!("node-{number}")), true).expect("open");
        let (service, _) = NodeService::open(files, &options).expect("a node");
        let key = load_key(&folder.join(format!("node-{number}.key"))).expect("a key");
        let listen = vec![ListenAddress::Unix(folder.join(format!("node-{number}.sock")))];
        let config = ServerConfig { key, listen, limits: Limits::default() };
        let service: Box<dyn Service> = Box::new(service);
        let server = Server::start(config, vec![("disk0".to_owned(), service)]);
        self.server = Some(server.expect("it listens"));
    }

    fn stop(&mut self) {
        self.server.take().expect("it runs").stop();
    }

    /// Its metrics, where `name` has this value at least.
    fn awaits(&self, name: &str, least: u64) {
        let server = self.server.as_ref().expect("it runs");
        for _ in 0..600 {
            let text = server.metrics();
            let lines = text.lines().filter(|line| line.starts_with(name));
            let value = |line: &str| line.rsplit(' ').next()?.parse::<u64>().ok();
            if lines.filter_map(value).sum::<u64>() >= least {
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        panic!("node {}: {name} stays below {least}:\n{}", self.number, server.metrics());
    }

    fn text(&self, folder: &Path) -> String {
        let key = load_key(&folder.join(format!("node-{}.key", self.number))).expect("a key");
        let socket = folder.join(format!("node-{}.sock", self.number));
        let (socket, number) = (socket.display(), self.number);
        format!("unix:{socket},key={},store=disk0,domain=disk-{number}", key.public())
    }
}

/// `kv` on a 4+2 volume over `nodes`, restarted at once.
fn kv(nodes: &[String]) -> Value {
    json!({"name": "far", "workloads": [
        {"type": "network", "name": "net", "data": {}},
        {"type": "volume", "name": "data", "data": {
            "size": "16MiB", "redundancy": {"data": 4, "parity": 2}, "nodes": nodes}},
        {"type": "zmachine", "name": "kv", "data": {
            "image": {"unikernel": "kv"}, "compute_capacity": {"cpu": 1, "memory": "32MiB"},
            "mounts": [{"name": "data", "mountpoint": "/data"}],
            "network": {"interfaces": [{"network": "net"}]},
            "ports": [{"listen": free_port(), "target": 8080, "protocol": "tcp"}],
            "restart": {"policy": "always", "backoff_initial": "1s"}}}]})
}

#[test]
fn a_disk_on_six_servers_loses_two_and_the_vmm_and_nothing_that_was_acknowledged() {
    let Some(dist) = dist() else { return };
    let servers = tempfile::tempdir().expect("a folder");
    let folder = servers.path();
    let mut nodes: Vec<Node> = (0..6).map(|number| Node::new(folder, number)).collect();
    let texts: Vec<String> = nodes.iter().map(|node| node.text(folder)).collect();
    let place = Place::new(dist, &kv(&texts));
    let mut session = Session::start(&place);
    let address = published(&mut session);
    let started = session.await_event("started");
    session.await_event("first_output");
    let value = |number: u32| format!("value {number} ").repeat(20);
    for number in 0..300 {
        let status = put(address, &format!("key-{number}"), &value(number));
        assert_eq!(status, "HTTP/1.1 201 Created", "{number}");
    }
    nodes[1].stop();
    nodes[4].stop();
    let pid = started["pid"].as_i64().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
    kill_process(pid.expect("a process"), Signal::KILL).expect("it runs");
    session.await_event("exited");
    session.await_event("first_output");
    for number in 0..300 {
        let found = get(address, &format!("key-{number}"));
        assert_eq!(found, ("HTTP/1.1 200 OK".to_owned(), value(number)), "{number}");
    }
    assert_eq!(put(address, "late", "with two servers less"), "HTTP/1.1 201 Created");
    // Both come back, and the running VMM gets new sockets to them.
    for number in [1, 4] {
        nodes[number].start(folder);
    }
    for number in [1, 4] {
        nodes[number].awaits("hypha_shard_requests_total", 1);
    }
    assert_eq!(put(address, "later", "with all of them"), "HTTP/1.1 201 Created");
    assert_eq!(get(address, "late").1, "with two servers less");
    session.end();
}
