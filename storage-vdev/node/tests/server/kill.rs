//! A server process that is killed in the middle of its work.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use storage_vdev::node::{NodeError, Nodes, Response};
use storage_vdev::wire::NodePublicKey;

use crate::world::{Volume, config, content, get, now_ns, owner, put};

/// How often the process is killed; `HYPHA_KILLS` chooses another number.
const KILLS: u64 = 5;

/// The example `shard_server`, which the test run builds beside the tests.
fn program() -> PathBuf {
    let mut path = std::env::current_exe().unwrap();
    path.pop();
    path.pop();
    path.join("examples").join("shard_server")
}

fn start(folder: &Path) -> (Child, NodePublicKey) {
    let mut child = Command::new(program())
        .arg(folder.join("node"))
        .arg(folder.join("socket"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let byte = |at| u8::from_str_radix(&line[2 * at..2 * at + 2], 16).unwrap();
    (child, NodePublicKey(std::array::from_fn(byte)))
}

fn connect(folder: &Path, node: NodePublicKey) -> Volume {
    let socket = std::os::unix::net::UnixStream::connect(folder.join("socket")).unwrap();
    Volume::new(socket.into(), config("disk0", node, vec![owner()]))
}

fn len_of(sequence: u64) -> usize {
    match sequence % 4 {
        0 => 100,
        1 => 4112,
        2 => 70_000,
        _ => 300_000,
    }
}

#[test]
fn what_a_killed_server_acknowledged_is_there_and_the_rest_is_whole_or_absent() {
    let kills = std::env::var("HYPHA_KILLS").ok().and_then(|text| text.parse().ok());
    let folder = tempfile::tempdir().unwrap();
    let (mut issued, mut acknowledged) = (0, Vec::new());
    for round in 0..kills.unwrap_or(KILLS) {
        let (mut server, node) = start(folder.path());
        let mut volume = connect(folder.path(), node);
        let mut tags = std::collections::HashMap::new();
        let enough = acknowledged.len() + 10 + (round as usize * 7) % 23;
        while acknowledged.len() < enough {
            while tags.len() < 16 {
                tags.insert(volume.submit(put(issued, &content(issued, len_of(issued)))), issued);
                issued += 1;
            }
            let (tag, result) = volume.wait();
            assert_eq!(result, Ok(Response::Done));
            acknowledged.push(tags.remove(&tag).unwrap());
        }
        // Puts are under way when it dies.
        server.kill().unwrap();
        server.wait().unwrap();
        while !tags.is_empty() {
            let (tag, result) = volume.wait();
            let sequence = tags.remove(&tag).unwrap();
            match result {
                Ok(Response::Done) => acknowledged.push(sequence),
                other => assert_eq!(other, Err(NodeError::Unavailable)),
            }
        }
        assert_eq!(volume.nodes.poll(now_ns()), None);
    }
    let (mut server, node) = start(folder.path());
    let mut volume = connect(folder.path(), node);
    let mut found = 0;
    for sequence in 0..issued {
        match volume.ask(get(sequence)) {
            Ok(Response::Bytes(bytes)) => {
                assert_eq!(bytes, content(sequence, len_of(sequence)), "object {sequence}");
                found += 1;
            }
            other => {
                assert_eq!(other, Err(NodeError::NotFound), "object {sequence}");
                assert!(
                    !acknowledged.contains(&sequence),
                    "acknowledged object {sequence} is lost"
                );
            }
        }
    }
    println!("{issued} issued, {} acknowledged, {found} found", acknowledged.len());
    server.kill().unwrap();
    server.wait().unwrap();
}
