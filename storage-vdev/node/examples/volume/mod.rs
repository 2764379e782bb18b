//! The volume of the examples: 2+1 shards in three directories of this machine.

use std::io::Read;
use std::path::{Path, PathBuf};

use storage_node::thread_nodes::ThreadNodes;
use storage_node::{Stop, served};
use storage_vdev::VolumeKey;
use storage_vdev::engine::{
    Create, Holder, Limits, NodeInfo, OpenOptions, Policy, Randomness, TakeOver, Volume,
};
use storage_vdev::service::{NodeIdentity, NodeOptions};
use zeroize::Zeroizing;

const NODES: u8 = 3;

/// Opens the volume in `folder/0` to `folder/2`, or makes it.
pub(crate) fn open(
    folder: &Path,
    size_bytes: u64,
) -> Result<Volume<ThreadNodes>, Box<dyn std::error::Error>> {
    std::fs::create_dir_all(folder)?;
    let directories: Vec<PathBuf> = (0..NODES).map(|node| folder.join(node.to_string())).collect();
    let identities = directories
        .iter()
        .map(|_| Ok(NodeIdentity { node: random()?, acceptor_seed: Zeroizing::new(random()?) }));
    let identities: Vec<NodeIdentity> = identities.collect::<std::io::Result<_>>()?;
    let nodes = ThreadNodes::open(&directories, |node| NodeOptions {
        capacity_bytes: 8 << 30,
        create: identities.get(node).cloned(),
    })?;
    let node = |node: u8| NodeInfo {
        id: [node + 1; 16],
        name: format!("directory {node}"),
        domain: format!("directory {node}"),
        objects: true,
        journal: true,
        register: false,
        local: true,
    };
    let create = Create {
        data_shards: 2,
        parity_shards: 1,
        size_bytes,
        policy: Policy::Quorum,
        allow_degraded: false,
        shared_domains: false,
        journal_bytes: 64 << 20,
        lease_ns: 10_000_000_000,
    };
    let options = OpenOptions {
        uuid: [7; 16],
        key: VolumeKey::new(&[7; 32]),
        nodes: (0..NODES).map(node).collect(),
        create: Some(create),
        base: None,
        must_be_new: false,
        holder: Holder { id: random()?, name: "an example".into() },
        register: false,
        take_over: TakeOver::Refuse,
        accept_loss: false,
        limits: Limits::LARGE,
    };
    let random = Randomness { salt: random()?, proposer: random()? };
    let opening = Volume::open(nodes, options, random);
    Ok(served::open(opening)??)
}

/// Ends `stop` when the standard input ends.
pub(crate) fn stop_with_input(stop: &Stop) {
    let stopper = stop.clone();
    std::thread::spawn(move || {
        std::io::copy(&mut std::io::stdin(), &mut std::io::sink()).ok();
        stopper.stop()
    });
}

fn random<const N: usize>() -> std::io::Result<[u8; N]> {
    let mut bytes = [0; N];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}
