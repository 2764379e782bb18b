//! A real volume over real directories: written, closed, damaged, healed without its key, read.

use std::path::{Path, PathBuf};

use storage_node::heal::{Healer, Manifest, ManifestNode, Policy, Verdict, run};
use storage_vdev::dir_nodes::DirNodes;
use storage_vdev::engine::{
    Create, Holder, Limits, NodeInfo, OpenOptions, Policy as Durability, Randomness, RequestId,
    TakeOver, Volume,
};
use storage_vdev::files::sim::Rng;
use storage_vdev::segment::Shape;
use storage_vdev::service::{NodeIdentity, NodeOptions};
use storage_vdev::{BLOCK_BYTES, VolumeKey};

const UUID: [u8; 16] = [0x33; 16];
const BLOCKS: usize = 3000;

fn directories(folder: &Path) -> Vec<PathBuf> {
    (0..6).map(|node| folder.join(format!("node-{node}"))).collect()
}

fn id(node: usize) -> [u8; 16] {
    [node as u8 + 1; 16]
}

fn nodes(folder: &Path) -> DirNodes {
    let options = |node: usize| NodeOptions {
        capacity_bytes: 64 << 20,
        create: Some(NodeIdentity { node: id(node), acceptor_seed: [9; 32].into() }),
    };
    DirNodes::open(&directories(folder), options).unwrap()
}

fn open(folder: &Path, salt: u8, create: bool) -> Volume<DirNodes> {
    let info = |node: usize| NodeInfo {
        id: id(node),
        name: format!("node {node}"),
        domain: format!("disk {node}"),
        objects: true,
        journal: true,
        register: false,
        local: true,
    };
    let create = create.then_some(Create {
        data_shards: 4,
        parity_shards: 2,
        size_bytes: (BLOCKS * BLOCK_BYTES) as u64,
        policy: Durability::Quorum,
        allow_degraded: false,
        shared_domains: false,
        journal_bytes: 256 << 10,
        lease_ns: 10_000_000_000,
    });
    let options = OpenOptions {
        uuid: UUID,
        key: VolumeKey::new(&[0x42; 32]),
        nodes: (0..6).map(info).collect(),
        create,
        base: None,
        must_be_new: false,
        holder: Holder { id: [1; 16], name: "test".to_owned() },
        register: false,
        take_over: TakeOver::Refuse,
        accept_loss: false,
        limits: Limits {
            cache_bytes: 1 << 20,
            unsealed_bytes: 16 << 20,
            segment_blocks: 256,
            map_bytes: 1 << 20,
            repair_bytes_per_second: 0,
        },
    };
    let random = Randomness { salt: [salt; 32], proposer: [salt; 24] };
    let mut opening = Volume::open(nodes(folder), options, random);
    let mut now_ns = 0;
    for _ in 0..100_000 {
        if let Some(volume) = opening.poll(now_ns) {
            return volume.unwrap();
        }
        now_ns = opening.deadline_ns().unwrap_or(now_ns).max(now_ns + 1000);
    }
    panic!("opening never ends");
}

fn finish(volume: &mut Volume<DirNodes>, id: RequestId) -> Vec<u8> {
    let mut now_ns = 1 << 40;
    for _ in 0..100_000 {
        while let Some(done) = volume.poll(now_ns) {
            if done.id == id {
                done.result.unwrap();
                return done.buffer;
            }
        }
        now_ns += 1000;
    }
    panic!("request {id} never ends");
}

fn heal(folder: &Path, policy: Policy) -> storage_node::heal::Report {
    let nodes_of = |node: usize| ManifestNode { id: id(node), address: String::new() };
    let manifest = Manifest {
        volume: UUID,
        shape: Shape::new(4, 2).unwrap(),
        nodes: (0..6).map(nodes_of).collect(),
        slots: (0..6).collect(),
        spares: Vec::new(),
        delegation: Vec::new(),
        superblock: (0, 0),
    };
    let mut healer = Healer::new(manifest, policy, 0);
    let mut waits = 0;
    let report = run(
        &mut healer,
        &mut nodes(folder),
        || 5,
        |_, _| {
            waits += 1;
            waits < 10_000
        },
    );
    report.unwrap()
}

#[test]
fn any_two_directories_of_a_closed_volume_come_back_without_its_key() {
    let folder = tempfile::tempdir().unwrap();
    let mut content = vec![0; BLOCKS * BLOCK_BYTES];
    Rng::new(5).fill(&mut content);
    let mut volume = open(folder.path(), 1, true);
    for (part, bytes) in (0u64..).zip(content.chunks(1 << 20)) {
        volume.submit_write(part + 1, part << 20, bytes);
        finish(&mut volume, part + 1);
    }
    volume.submit_close(1000);
    finish(&mut volume, 1000);
    drop(volume);
    let report = heal(folder.path(), Policy { scrub: true, ..Policy::default() });
    let segments = report.count(Verdict::Whole);
    assert!(segments > 10 && report.examples.is_empty(), "{report:?}");

    for (round, lost) in [[0, 1], [2, 3], [4, 5], [1, 4]].into_iter().enumerate() {
        for node in lost {
            std::fs::remove_dir_all(&directories(folder.path())[node]).unwrap();
        }
        let report = heal(folder.path(), Policy::default());
        assert_eq!(report.count(Verdict::Repaired), segments, "{lost:?}: {report:?}");
        assert_eq!(report.shards_restored, 2 * segments);
        assert_eq!(report.superblocks_restored, 2);
        let report = heal(folder.path(), Policy { scrub: true, ..Policy::default() });
        assert_eq!(report.count(Verdict::Whole), segments, "{lost:?} {round}: {report:?}");
    }

    // All six have been wiped and rebuilt by now.
    let mut volume = open(folder.path(), 2, false);
    volume.submit_read(1, 0, vec![0; content.len()]);
    assert!(finish(&mut volume, 1) == content);
}
