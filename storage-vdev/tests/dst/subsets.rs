//! Every set of m nodes out of k + m: dead, damaged, slow and stale ones mixed. The content must be
//! read back exactly; with one node more, every read is right or fails.

use storage_vdev::engine::{Command, NodeState, OpenError, Policy, RequestError};
use storage_vdev::files::sim::{Rng, SimDisk, Which};
use storage_vdev::sim_nodes::{Network, Shared, world};

use crate::host::{Ended, Fair, Host, Shape, open};
use crate::oracle::{Oracle, SECTOR, stamps_at, stamps_of};

const BLOCKS: usize = 40;
const CAPACITY: u64 = 64 << 20;

/// What is wrong with a node.
#[derive(Debug, Clone, Copy)]
enum Ill {
    Dead,
    Forgetful,
    Damaged,
    Slow,
    Stale,
}

/// A volume with some history, closed or crashed, and an earlier image of each node.
struct Made {
    world: Shared,
    oracle: Oracle,
    shape: Shape,
    stale: Vec<SimDisk>,
    fresh: Vec<SimDisk>,
}

fn images(world: &Shared, nodes: usize) -> Vec<SimDisk> {
    let world = world.borrow();
    (0..nodes).map(|node| world.image(node).unwrap()).collect()
}

/// Writes a history: the first half is in the stale images, too.
fn make(k: u8, m: u8, seed: u64) -> Made {
    let shape = Shape { k, m, spares: 0, blocks: BLOCKS, policy: Policy::Quorum, register: true };
    let nodes = shape.nodes();
    let world = world(seed, nodes, CAPACITY, Network::CALM);
    let mut oracle = Oracle::new(BLOCKS * 8);
    let mut rng = Rng::new(seed);
    let mut stale = Vec::new();
    for half in 0..2 {
        let opened = open(&world, shape.options(1, half == 0), &mut rng, &mut Fair).unwrap();
        let mut host = opened.unwrap_or_else(|error| panic!("{error}"));
        for _ in 0..30 {
            let first = rng.below(BLOCKS as u64) as usize;
            let count = 1 + rng.below(((BLOCKS - first) as u64).min(6)) as usize;
            host.write(&mut oracle, (first * 8, count * 8), false);
            host.run(&mut oracle, &mut Fair, None).unwrap();
        }
        host.command(&mut oracle, &mut Fair, Command::Checkpoint).unwrap();
        if half == 0 {
            host.close(&mut oracle, &mut Fair).unwrap();
            stale = images(&world, nodes);
        } else {
            // The last flush is in the journal only, and the host is lost.
            host.flush(&oracle);
            host.run(&mut oracle, &mut Fair, None).unwrap();
            host.write(&mut oracle, (8, 16), true);
            host.run(&mut oracle, &mut Fair, None).unwrap();
        }
    }
    let fresh = images(&world, nodes);
    Made { world, oracle, shape, stale, fresh }
}

impl Made {
    /// Makes these nodes ill, and all others well.
    fn prepare(&self, ill: &[(usize, Ill)]) {
        let mut world = self.world.borrow_mut();
        for node in 0..self.shape.nodes() {
            world.slow(node, 0);
            world.roll_back(node, &self.fresh[node], false);
        }
        for (node, ill) in ill {
            match ill {
                Ill::Dead => world.stop(*node),
                Ill::Forgetful => world.forget(*node),
                Ill::Damaged => world.rot(*node, Which::Objects, 4000),
                Ill::Slow => world.slow(*node, 300_000_000),
                Ill::Stale => world.roll_back(*node, &self.stale[*node], false),
            }
        }
    }

    fn open(&self, rng: &mut Rng) -> Result<Host, OpenError> {
        open(&self.world, self.shape.options(1, false), rng, &mut Fair).expect("it never crashes")
    }

    /// With no more ill nodes than m, everything is there.
    fn read_exactly(&self, ill: &[(usize, Ill)], rng: &mut Rng) {
        self.prepare(ill);
        let mut host = self.open(rng).unwrap_or_else(|error| panic!("{ill:?}: {error}"));
        let content = host.content(&mut Fair);
        let content = content.unwrap_or_else(|error| panic!("{ill:?}: {error:?}"));
        assert_eq!(stamps_of(&content).unwrap(), self.oracle.newest(), "{ill:?}");
    }

    /// With one more: whether there is an error, and how many blocks are not the newest.
    fn read_beyond(&self, ill: &[(usize, Ill)], rng: &mut Rng) -> (bool, usize) {
        self.prepare(ill);
        let Ok(mut host) = self.open(rng) else { return (true, 0) };
        let newest = self.oracle.newest();
        let (mut failed, mut old) = (false, 0);
        for (block, newest) in (0u64..).zip(newest.chunks(8)) {
            match host.bytes(block * 4096, 4096, &mut Fair) {
                Ok(bytes) => {
                    // Foreign bytes fail here; bytes of an earlier time are counted.
                    let found = stamps_at(block as usize * 8, &bytes).unwrap();
                    old += usize::from(found != newest);
                }
                Err(Ended::Failed(RequestError::Lost { .. } | RequestError::Unavailable)) => {
                    failed = true;
                }
                Err(error) => panic!("{ill:?}: block {block}: {error:?}"),
            }
        }
        (failed, old)
    }
}

/// All sets of `count` nodes below `nodes`.
fn sets(nodes: usize, count: usize) -> Vec<Vec<usize>> {
    let sets = (0u64..1 << nodes).filter(|set| set.count_ones() as usize == count);
    sets.map(|set| (0..nodes).filter(|node| set >> node & 1 == 1).collect()).collect()
}

fn mixed(set: &[usize], rng: &mut Rng) -> Vec<(usize, Ill)> {
    const ALL: [Ill; 5] = [Ill::Dead, Ill::Forgetful, Ill::Damaged, Ill::Slow, Ill::Stale];
    set.iter().map(|node| (*node, ALL[rng.below(5) as usize])).collect()
}

fn all_lost(set: &[usize], ill: Ill) -> Vec<(usize, Ill)> {
    set.iter().map(|node| (*node, ill)).collect()
}

/// Runs all sets of m, or about as many as `sample` says, and some of m + 1.
///
/// More nodes than m that were replaced by blank ones behind the volume's back, or rolled back, are
/// known by their fences, and the volume is refused: what was in segments since the last checkpoint
/// may be missing, and it would be that of an earlier time. Asking twice doesn't change that.
fn check(k: u8, m: u8, sample: usize) {
    let mut rng = Rng::new(u64::from(k) * 100 + u64::from(m));
    let made = make(k, m, rng.next_u64());
    let nodes = made.shape.nodes();
    let all = sets(nodes, m.into());
    let step = (all.len() / sample).max(1);
    let chosen: Vec<_> = all.iter().step_by(step).collect();
    for set in &chosen {
        let ill = mixed(set, &mut rng);
        made.read_exactly(&ill, &mut rng);
    }
    let more = sets(nodes, usize::from(m) + 1);
    let beyond: Vec<_> = more.iter().step_by((more.len() / 60).max(1)).collect();
    for set in &beyond {
        let (failed, old) = made.read_beyond(&all_lost(set, Ill::Dead), &mut rng);
        assert!(failed && old == 0, "{set:?} dead: {old} blocks are old");
        for ill in [Ill::Forgetful, Ill::Stale] {
            made.prepare(&all_lost(set, ill));
            for attempt in 0..2 {
                let error = made.open(&mut rng).err();
                let refused = match &error {
                    Some(OpenError::Forgotten { lost, .. }) => *lost == set.len(),
                    // They were most of the register's acceptors.
                    Some(
                        OpenError::RegisterRolledBack { .. }
                        | OpenError::RegisterForgot { .. }
                        | OpenError::RegisterReplaced { .. },
                    ) => true,
                    _ => false,
                };
                assert!(refused, "{set:?} {ill:?}, attempt {attempt}: {error:?}");
            }
        }
    }
    println!(
        "{k}+{m}: {} sets of {m} read exactly; {} sets of {} dead, blank or rolled back all fail",
        chosen.len(),
        beyond.len(),
        m + 1
    );
}

#[test]
fn every_pair_of_six_nodes_may_be_lost_or_lie() {
    check(4, 2, usize::MAX);
}

#[test]
fn every_quadruple_of_fourteen_nodes_may_be_lost_or_lie() {
    let sample = if std::env::var_os("HYPHA_ALL").is_some() { usize::MAX } else { 250 };
    check(10, 4, sample);
}

#[test]
fn many_quadruples_of_twenty_nodes_may_be_lost_or_lie() {
    let sample = if std::env::var_os("HYPHA_ALL").is_some() { 1000 } else { 60 };
    check(16, 4, sample);
}

/// Seed 2559 of the node losses: no journal header of a node can be read any more. Its shards can,
/// and the node is wanted for them; and the journal is wanted on as many heads as before.
#[test]
fn a_node_whose_journal_rotted_away_goes_on_with_its_shards_and_gets_another_journal() {
    let made = make(4, 2, 2559);
    let mut rng = Rng::new(2559);
    for rotten in 0..2 {
        made.prepare(&[]);
        {
            let mut world = made.world.borrow_mut();
            let disk = world.disk(rotten).unwrap();
            let len = usize::try_from(disk.len(Which::Journal)).unwrap();
            disk.set_bytes(Which::Journal, 4096, &vec![0x5a; len - 4096]);
            world.stop(rotten);
            world.start(rotten);
        }
        let mut host = made.open(&mut rng).unwrap();
        let status = host.status();
        assert!(status.nodes[rotten].is_head, "{status:?}");
        assert!(status.nodes.iter().all(|node| node.state == NodeState::Up), "{status:?}");
        assert_eq!((status.redundancy, status.policy_degraded), (Some(2), false));
        let content = host.content(&mut Fair).unwrap();
        assert_eq!(stamps_of(&content).unwrap(), made.oracle.newest());
    }
}

#[test]
fn a_sector_is_512_bytes() {
    assert_eq!(SECTOR as u64, storage_vdev::SECTOR_BYTES);
}
