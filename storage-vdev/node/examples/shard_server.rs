//! Serves the node in `DIRECTORY` as the store `disk0` on a unix socket, until it is killed or its
//! standard input ends: `shard_server DIRECTORY SOCKET [CAPACITY_BYTES]`.
//!
//! The node's static key is `DIRECTORY.key`; its public half is printed once the server listens. The
//! tests run it, and it shows how little a server needs. Real stores are served by
//! `hypha storage serve`.

use std::io::Read;
use std::path::{Path, PathBuf};

use storage_node::server::{Limits, ListenAddress, Server, ServerConfig, Service, load_key};
use storage_node::uring::UringFile;
use storage_vdev::files::open_directory;
use storage_vdev::service::{NodeIdentity, NodeOptions, NodeService};
use zeroize::Zeroizing;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [directory, socket, capacity @ ..] = args.as_slice() else {
        return Err("usage: shard_server DIRECTORY SOCKET [CAPACITY_BYTES]".into());
    };
    let capacity_bytes = capacity.first().map_or(Ok(1 << 30), |text| text.parse())?;
    let mut random = [0; 48];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut random)?;
    let (node, seed) = random.split_at(16);
    let identity =
        NodeIdentity { node: node.try_into()?, acceptor_seed: Zeroizing::new(seed.try_into()?) };
    let files = open_directory(Path::new(directory), true)?;
    let options = NodeOptions { capacity_bytes, create: Some(identity) };
    let (service, _) = NodeService::open(UringFile::of_node(files), &options)?;
    let key = load_key(Path::new(&format!("{directory}.key")))?;
    let public = key.public();
    let listen = vec![ListenAddress::Unix(PathBuf::from(socket))];
    let config = ServerConfig { key, listen, limits: Limits::default() };
    let service: Box<dyn Service> = Box::new(service);
    let server = Server::start(config, vec![("disk0".to_owned(), service)])?;
    println!("{public}");
    // Whatever ends the input ends the server.
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    eprint!("{}", server.metrics());
    server.stop();
    Ok(())
}
