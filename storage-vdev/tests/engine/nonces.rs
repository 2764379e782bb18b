//! No (key, nonce) pair recurs: keys follow from an opening's salt, nonces from a segment's or a
//! record's number, so no number may stand for two contents under one salt. Looked at from the
//! nodes, over crashes, roll-backs of the host, copies of it, and two openers at once.

use std::collections::BTreeMap;

use storage_vdev::engine::Policy;
use storage_vdev::node::Request;
use storage_vdev::segment::ShardHead;

use crate::harness::{BLOCK, Bench, create, open, options, try_open};
use crate::nodes::{Rng, Shared, world};

const RECORD_MAGIC: &[u8] = b"HJRN";
const BLOCKS: usize = 64;

/// What was sealed: under which salt, with which number, as what.
#[derive(Default)]
struct Sealed {
    shards: BTreeMap<([u8; 32], u64, u8), Vec<u8>>,
    records: BTreeMap<([u8; 32], u64), Vec<u8>>,
}

impl Sealed {
    fn take(&mut self, world: &Shared, context: &str) {
        let trace = world.borrow_mut().trace.replace(Vec::new()).unwrap_or_default();
        for (_, request) in trace {
            match request {
                Request::Put { parts, .. } | Request::Restore { parts, .. } => {
                    let bytes: Vec<u8> = parts.iter().flatten().copied().collect();
                    let Ok(head) = ShardHead::parse(&bytes) else { continue };
                    let name = (head.segment.opening.salt, head.segment.sequence, head.shard);
                    let first = self.shards.entry(name).or_insert_with(|| bytes.clone());
                    assert!(*first == bytes, "{context}: segment {} twice", name.1);
                }
                Request::JournalAppend { parts, .. } => {
                    let bytes: Vec<u8> = parts.iter().flatten().copied().collect();
                    self.take_records(&bytes, context);
                }
                _ => {}
            }
        }
    }

    fn take_records(&mut self, mut bytes: &[u8], context: &str) {
        while bytes.starts_with(RECORD_MAGIC) {
            let blocks = u32::from_le_bytes(bytes[12..16].try_into().unwrap()) as usize;
            let (record, rest) = bytes.split_at((1 + blocks) * BLOCK);
            let sequence = u64::from_le_bytes(record[32..40].try_into().unwrap());
            let salt: [u8; 32] = record[48..80].try_into().unwrap();
            let first = self.records.entry((salt, sequence)).or_insert_with(|| record.to_vec());
            assert!(*first == record, "{context}: record {sequence} twice");
            bytes = rest;
        }
        assert!(bytes.is_empty(), "{context}: an append is made of records");
    }
}

fn work(bench: &mut Bench, world: &Shared, rng: &mut Rng) -> Option<()> {
    for _ in 0..20 {
        let first = rng.below(BLOCKS as u64 - 8) as usize;
        let data = vec![rng.below(256) as u8; (1 + rng.below(8)) as usize * BLOCK];
        drop(bench.write(world, first * BLOCK, &data)?);
        if rng.below(3) == 0 {
            drop(bench.flush(world)?);
        }
    }
    Some(())
}

#[test]
fn no_number_stands_for_two_contents_under_one_salt() {
    for seed in 0..12u64 {
        let context = format!("seed {seed}");
        let policy = if seed % 3 == 0 { Policy::Sealed } else { Policy::Quorum };
        let world = world(3, seed);
        world.borrow_mut().trace = Some(Vec::new());
        let mut rng = Rng(seed ^ 0xabc);
        let mut sealed = Sealed::default();
        let wanted = storage_vdev::engine::Create { policy, ..create(2, 1, BLOCKS) };
        let mut bench = open(&world, options(3, Some(wanted)));
        work(&mut bench, &world, &mut rng);
        let image = world.borrow().nodes.clone();
        work(&mut bench, &world, &mut rng);
        // Two openers at once: the first doesn't know yet.
        if let Some(Ok(mut second)) = try_open(&world, options(3, None), 0) {
            work(&mut second, &world, &mut rng);
            work(&mut bench, &world, &mut rng);
        }
        sealed.take(&world, &context);
        for _ in 0..3 {
            // The host is rolled back, or a copy of it goes on; then it crashes somewhere.
            world.borrow_mut().nodes = image.clone();
            let crash = world.borrow().operations + 1 + rng.below(200);
            world.borrow_mut().crash_at = Some(crash);
            if let Some(Ok(mut bench)) = try_open(&world, options(3, None), 0) {
                work(&mut bench, &world, &mut rng);
            }
            world.borrow_mut().crash_at = None;
            let mut bench = open(&world, options(3, None));
            work(&mut bench, &world, &mut rng);
            sealed.take(&world, &context);
        }
        assert!(sealed.shards.len() > 20, "{context}");
        assert!(policy == Policy::Sealed || sealed.records.len() > 20, "{context}");
    }
}
