//! How fast the shard protocol is on this machine: `shard_speed DIRECTORY [SECONDS]`.
//!
//! Six servers, each with a node in a directory of its own, in this process (a thread for each
//! store, one for the client): PUTs of 64 KiB and 1 MiB spread over the six; then one server alone,
//! GETs of one unit at depth 1 beside a bare ping-pong of as many bytes over a unix socket between
//! two threads, and at depth 32.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use rustix::event::{PollFd, PollFlags, poll};
use storage_node::server::{Limits, ListenAddress, Server, ServerConfig, Service};
use storage_vdev::VolumeKey;
use storage_vdev::files::open_directory;
use storage_vdev::node::{Nodes, ObjectKey, Request, Response};
use storage_vdev::service::{NodeIdentity, NodeOptions, NodeService, Rights};
use storage_vdev::wire::{
    ClientConfig, Credential, NodeKey, SocketNode, SocketNodes, VolumeSigner,
};
use zeroize::Zeroizing;

type Failure = Box<dyn std::error::Error>;

const NODES: usize = 6;
const UNIT: usize = 4112;
const VOLUME: [u8; 16] = [7; 16];

fn now_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// The processor time of this process, both ends of every session.
fn cpu_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

fn start(directory: &Path, number: usize) -> Result<Server, Failure> {
    let identity = NodeIdentity {
        node: [number as u8; 16],
        acceptor_seed: Zeroizing::new([number as u8; 32]),
    };
    let files = open_directory(&directory.join(format!("node{number}")), true)?;
    let options = NodeOptions { capacity_bytes: 4 << 30, create: Some(identity) };
    let service: Box<dyn Service> = Box::new(NodeService::open(files, &options)?.0);
    let config = ServerConfig {
        key: NodeKey::new([number as u8 + 1; 32]),
        listen: vec![ListenAddress::Unix(socket_of(directory, number))],
        limits: Limits::default(),
    };
    Ok(Server::start(config, vec![("disk0".to_owned(), service)])?)
}

fn socket_of(directory: &Path, number: usize) -> PathBuf {
    directory.join(format!("socket{number}"))
}

fn connect(directory: &Path) -> Result<SocketNodes, Failure> {
    let signer = Arc::new(VolumeSigner::derive(&VolumeKey::new(&[9; 32]), VOLUME));
    let mut nodes = Vec::new();
    for number in 0..NODES {
        let credential = Credential::Signer { signer: Arc::clone(&signer), rights: Rights::ALL };
        let config = ClientConfig {
            node: NodeKey::new([number as u8 + 1; 32]).public(),
            store: "disk0".to_owned(),
            identity: NodeKey::new([99; 32]),
            credentials: vec![credential],
            timeout_ns: 10_000_000_000,
            ping_after_ns: 30_000_000_000,
        };
        let socket = UnixStream::connect(socket_of(directory, number))?;
        let (name, config) = (format!("node {number}"), Arc::new(config));
        nodes.push(SocketNode { name, config, socket: Some(socket.into()) });
    }
    Ok(SocketNodes::new(nodes, Box::new(|_| None), &[5; 32])?)
}

fn wait(nodes: &mut SocketNodes) -> Result<Response, Failure> {
    loop {
        if let Some(completion) = nodes.poll(now_ns()) {
            return Ok(completion.result?);
        }
        let ready = nodes.ready_fd().ok_or("sockets have a descriptor")?;
        poll(&mut [PollFd::new(&ready, PollFlags::IN)], None)?;
    }
}

/// Keeps `depth` requests under way for so many seconds; how many were answered, in how many
/// nanoseconds, and in how many of processor time.
fn keep(
    nodes: &mut SocketNodes,
    depth: u64,
    seconds: f64,
    mut next: impl FnMut(u64) -> (u8, Request),
) -> Result<(u64, u64, u64), Failure> {
    let (start, cpu) = (now_ns(), cpu_ns());
    let until = start + (seconds * 1e9) as u64;
    let (mut sent, mut done) = (0, 0);
    while done < sent || sent == 0 {
        while sent - done < depth && now_ns() < until {
            let (node, request) = next(sent);
            nodes.submit(node, sent, request);
            sent += 1;
        }
        wait(nodes)?;
        done += 1;
    }
    Ok((done, now_ns() - start, cpu_ns() - cpu))
}

/// A bare round trip: 64 bytes there, so many back.
fn ping_pong(bytes: usize, seconds: f64) -> Result<f64, Failure> {
    let (mut near, mut far) = UnixStream::pair()?;
    let echo = std::thread::spawn(move || {
        let (mut question, answer) = ([0; 64], vec![0; bytes]);
        while far.read_exact(&mut question).is_ok() {
            if far.write_all(&answer).is_err() {
                break;
            }
        }
    });
    let (start, mut rounds) = (now_ns(), 0_u64);
    let mut answer = vec![0; bytes];
    while ((now_ns() - start) as f64) < seconds * 1e9 {
        near.write_all(&[0; 64])?;
        near.read_exact(&mut answer)?;
        rounds += 1;
    }
    let ns = (now_ns() - start) as f64 / rounds as f64;
    drop(near);
    echo.join().map_err(|_| "the echo panicked")?;
    Ok(ns)
}

fn main() -> Result<(), Failure> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (directory, seconds) = match args.as_slice() {
        [directory] => (Path::new(directory), 2.0),
        [directory, seconds] => (Path::new(directory), seconds.parse()?),
        _ => return Err("usage: shard_speed DIRECTORY [SECONDS]".into()),
    };
    std::fs::create_dir_all(directory)?;
    let servers: Vec<Server> =
        (0..NODES).map(|number| start(directory, number)).collect::<Result<_, _>>()?;
    let mut nodes = connect(directory)?;
    let mut sequence = now_ns();
    for bytes in [64 << 10, 1 << 20] {
        let content = Bytes::from((0..bytes).map(|at| ((at * 31) >> 3) as u8).collect::<Vec<u8>>());
        for depth in [12, 48] {
            let (count, ns, cpu_ns) = keep(&mut nodes, depth, seconds, |number| {
                sequence += 1;
                let key = ObjectKey { volume: VOLUME, epoch: 1, sequence, shard: 0 };
                ((number % NODES as u64) as u8, Request::Put { key, parts: vec![content.clone()] })
            })?;
            let rate = (count * bytes as u64) as f64 / ns as f64 * 1e3;
            let per_second = count as f64 / ns as f64 * 1e9;
            let per_cpu = (count * bytes as u64) as f64 / cpu_ns as f64 * 1e3;
            println!(
                "put {:>4} KiB depth {depth:>2}: {rate:.0} MB/s, {per_second:.0}/s, {per_cpu:.0} MB per \
                 second of processor",
                bytes >> 10
            );
        }
    }
    let key = ObjectKey { volume: VOLUME, epoch: 1, sequence, shard: 0 };
    let node = (0..NODES as u8).find(|node| {
        nodes.submit(*node, 0, Request::Get { key, offset: 0, len: 1 });
        wait(&mut nodes).is_ok()
    });
    let node = node.ok_or("the last object is nowhere")?;
    for depth in [1, 32] {
        let (count, ns, cpu_ns) = keep(&mut nodes, depth, seconds, |number| {
            let offset = (number * 7 % 200) as u32 * UNIT as u32;
            (node, Request::Get { key, offset, len: UNIT as u32 })
        })?;
        let each = ns as f64 / count as f64 / 1e3;
        let cpu = cpu_ns as f64 / count as f64 / 1e3;
        println!("get {UNIT} B depth {depth:>2}: {each:.1} us each, {cpu:.1} us of processor");
    }
    let bare = ping_pong(UNIT, seconds)? / 1e3;
    println!("bare ping-pong of {UNIT} B over a unix socket: {bare:.1} us");
    servers.into_iter().for_each(Server::stop);
    Ok(())
}
