//! Volumes on shard servers, each a `hypha storage serve` of its own.

use std::fs;
use std::io::BufRead;
use std::sync::Arc;

use spec::node::{Endpoint, NodeSpec, Place as NodePlace};
use storage_vdev::VolumeKey;
use storage_vdev::node::{NodeError, Nodes, Request, Response};
use storage_vdev::service::Rights;
use storage_vdev::wire::{
    ClientConfig, Credential, NodeKey, NodePublicKey, SocketNode, SocketNodes, VolumeSigner,
};

use crate::place::{Place, Running, content, eventually, stderr};

const MIB: usize = 1 << 20;

/// A server with one store, and a state of its own so that it has a key of its own.
fn server(place: &Place, name: &str) -> Running {
    let state = place.path(&format!("server-{name}"));
    let listen = place.path(&format!("{name}.sock"));
    place.start(&format!(
        "storage serve --store {name}={} --listen unix:{} --state {} --json",
        place.path(&format!("disk-{name}")).display(),
        listen.display(),
        state.display()
    ))
}

fn node(server: &Running) -> String {
    let told: serde_json::Value = serde_json::from_str(&server.first).unwrap();
    told["node"].as_str().unwrap().to_owned()
}

/// Servers, and the nodes that they are, each in a failure domain of its own.
fn servers(place: &Place, names: &[&str]) -> (Vec<Running>, String) {
    let all: Vec<Running> = names.iter().map(|name| server(place, name)).collect();
    let named = all.iter().zip(names).map(|(one, name)| format!("{},domain={name}", node(one)));
    let nodes = named.collect::<Vec<_>>().join(" ");
    (all, nodes)
}

/// What a volume's owner asks a server, as the volume `db` of the state.
fn ask(place: &Place, node: &str, rights: Rights, request: Request) -> Result<Response, NodeError> {
    let spec: NodeSpec = node.parse().unwrap();
    let NodePlace::Server { endpoint: Endpoint::Unix(path), key, store } = spec.place else {
        panic!("a server at a unix socket");
    };
    let key_bytes: [u8; 32] =
        fs::read(place.path("state/volumes/db/key")).unwrap().try_into().unwrap();
    let signer = Arc::new(VolumeSigner::derive(&VolumeKey::new(&key_bytes), uuid(place)));
    let config = ClientConfig {
        node: NodePublicKey(key.0),
        store,
        identity: NodeKey::new([9; 32]),
        credentials: vec![Credential::Signer { signer, rights }],
        timeout_ns: 10_000_000_000,
        ping_after_ns: 10_000_000_000,
    };
    let socket = std::os::unix::net::UnixStream::connect(path).unwrap();
    let name = "a server".to_owned();
    let socket = SocketNode { name, config: Arc::new(config), socket: Some(socket.into()) };
    let mut nodes = SocketNodes::new(vec![socket], Box::new(|_| None), &[3; 32]).unwrap();
    nodes.submit(0, 1, request);
    for turn in 0..100_000 {
        if let Some(completion) = nodes.poll(turn * 100_000) {
            return completion.result;
        }
        std::thread::sleep(std::time::Duration::from_micros(100));
    }
    panic!("no answer");
}

fn uuid(place: &Place) -> [u8; 16] {
    let text = fs::read_to_string(place.path("state/volumes/db/volume.json")).unwrap();
    let manifest: serde_json::Value = serde_json::from_str(&text).unwrap();
    let digits = manifest["uuid"].as_str().unwrap();
    let byte = |at: usize| u8::from_str_radix(&digits[at..at + 2], 16).unwrap();
    std::array::from_fn(|index| byte(2 * index))
}

#[test]
fn a_server_lets_nobody_jump_to_an_epoch_that_the_register_has_not_given() {
    let place = Place::new();
    let (all, nodes) = servers(&place, &["a", "b", "c"]);
    place.done(&format!("volume create db --size 64MiB --code 2+1 --nodes {nodes}"));
    let volume = uuid(&place);
    let fence = Request::Fence { volume, epoch: 1 << 40, evidence: Vec::new() };
    for server in &all {
        let jumped = ask(&place, &node(server), Rights::ALL, fence.clone());
        assert_eq!(jumped, Err(NodeError::Denied), "even the owner has to show evidence");
    }
    // Who may heal may not fence, change the register, write or delete.
    let heal = Rights { heal: true, ..Rights::default() };
    assert_eq!(ask(&place, &node(&all[0]), heal, fence), Err(NodeError::Denied));
    // And the volume goes on, with evidence of each new epoch.
    let serving = place.serve("db", "");
    serving.client().keep(0, &content(1, MIB));
    serving.stop();
    let (code, status) = place.status("db");
    assert_eq!(code, Some(0), "{status}");
}

#[test]
fn a_keyless_daemon_heals_two_lost_stores_with_nobody_asking() {
    let place = Place::new();
    // Five: a register that outlives two losses, as the shards do. The fifth is a spare.
    let names = ["a", "b", "c", "d", "e"];
    let (mut all, nodes) = servers(&place, &names);
    place.done(&format!("volume create db --size 64MiB --code 2+2 --nodes {nodes}"));
    let data = content(2, 8 * MIB);
    let serving = place.serve("db", "");
    serving.client().keep(0, &data);
    serving.stop();
    // The daemon's key is made by its first start.
    let healer = place.path("healer");
    let daemon = format!(
        "storage serve --store h={} --listen unix:{} --state {} --json",
        place.path("disk-h").display(),
        place.path("h.sock").display(),
        healer.display()
    );
    let first = place.start(&daemon);
    let spec: NodeSpec = node(&first).parse().unwrap();
    let NodePlace::Server { key, .. } = spec.place else { panic!("a server") };
    first.stop();
    let heal = place.path("db.heal");
    fs::write(&heal, place.done(&format!("volume delegate db --holder {key}"))).unwrap();
    let secret = fs::read(place.path("state/volumes/db/key")).unwrap();
    let told = fs::read(&heal).unwrap();
    assert!(!told.windows(32).any(|part| part == secret), "no key in what the daemon gets");

    for lost in [0, 1] {
        all.remove(0).kill();
        fs::remove_dir_all(place.path(&format!("disk-{}", names[lost]))).unwrap();
    }
    let again: Vec<Running> = names[..2].iter().map(|name| server(&place, name)).collect();
    let mut daemon = place.start(&format!("{daemon} --heal {} --heal-every 1", heal.display()));
    let mut healed = 0;
    while healed == 0 {
        let mut line = String::new();
        assert_ne!(daemon.lines.read_line(&mut line).unwrap(), 0, "the daemon ended");
        let event: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(event["volume"], "db", "{event}");
        if event["event"] == "healed" {
            healed = event["shards"].as_u64().unwrap();
        } else {
            assert_eq!(event["event"], "healing");
            assert!(event["segments"].as_u64() > Some(0), "{event}");
        }
    }
    daemon.stop();
    for survivor in all {
        survivor.kill();
    }
    let mut rest: Vec<Running> = names[2..].iter().map(|name| server(&place, name)).collect();
    let (code, status) = place.status("db");
    assert_eq!(code, Some(0), "{status}");
    assert_eq!(status["shards_to_repair"], 0, "{status}");
    // Now the other two shards may go: what is read was healed.
    let serving = place.serve("db", "");
    rest.drain(..2).for_each(Running::kill);
    assert_eq!(serving.client().read(0, data.len()), data);
    drop((serving, again, rest));
}

#[test]
fn a_dead_server_shows_in_the_numbers_and_is_back_in_them_later() {
    let place = Place::new();
    let (mut all, nodes) = servers(&place, &["a", "b", "c"]);
    place.done(&format!("volume create db --size 64MiB --code 2+1 --nodes {nodes}"));
    let serving = place.serve("db", "");
    serving.client().keep(0, &content(3, MIB));
    all.pop().unwrap().kill();
    eventually("the status knows of the dead server", || {
        let (_, status) = place.status("db");
        status["redundancy"] == 0 && status["nodes"][2]["state"] != "up"
    });
    let back = server(&place, "c");
    eventually("the server is back", || {
        let (_, status) = place.status("db");
        status["redundancy"] == 1 && status["health"] == "healthy"
    });
    serving.stop();
    drop(back);
}

#[test]
fn a_register_that_was_replaced_is_told_from_servers_that_do_not_answer() {
    let place = Place::new();
    let (mut all, nodes) = servers(&place, &["a", "b", "c"]);
    place.done(&format!("volume create db --size 64MiB --code 2+1 --nodes {nodes}"));
    for name in ["a", "b"] {
        all.remove(0).kill();
        fs::remove_dir_all(place.path(&format!("disk-{name}"))).unwrap();
        all.push(server(&place, name));
    }
    let output = place.hypha("volume status db");
    let text = stderr(&output);
    assert!(!text.contains("3 of 3 nodes answer and 2 must"), "{text}");
    assert_eq!(output.status.code(), Some(5), "{text}");
    assert!(text.contains("lost or replaced"), "{text}");
}

#[test]
fn too_few_servers_say_how_many_are_wanted() {
    let place = Place::new();
    let (all, nodes) = servers(&place, &["a", "b", "c"]);
    place.done(&format!("volume create db --size 64MiB --code 2+1 --nodes {nodes}"));
    for server in all {
        server.kill();
    }
    let output = place.hypha("volume status db");
    assert_eq!(output.status.code(), Some(5), "{}", stderr(&output));
    let text = stderr(&output);
    let last = text.lines().last().unwrap();
    assert!(last.contains("0 of 3 nodes answer and 2 must"), "{last}");
}
