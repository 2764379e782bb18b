//! What version 1 of the formats looks like, byte by byte.
//!
//! A fixture is the non-zero pages of a node's files: 4 bytes of file number, 8 of offset, 4096 of
//! content each. It is made by `HYPHA_WRITE_FIXTURES=1 cargo test -p storage-vdev --test node`; a
//! test that reads an old one must not be changed, only joined by one for a new version.

use std::path::PathBuf;

use storage_vdev::files::sim::{SimDisk, Which};
use storage_vdev::node::{Ballot, ObjectKey, RegisterRequest, Request, Response};
use storage_vdev::service::{Grant, Grants, Rights};

use super::harness::{
    JOURNAL, VOLUME, append, ask, ask_as, bytes, get_all, journal_open, journal_read, key, open,
    put,
};

const PAGE: usize = 4096;

fn path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/node-v1.bin")
}

/// A node with something of everything.
fn filled() -> SimDisk {
    let disk = SimDisk::new(1);
    let (mut node, _) = open(&disk).unwrap();
    let mut grants = Grants::none();
    grants.set(VOLUME, Grant { writer: [21; 32], rights: Rights::ALL });
    node.introduce(&VOLUME, [21; 32], &[[31; 32]]).unwrap();
    for sequence in 1..=3 {
        let content = bytes(sequence, 100 * sequence as usize);
        ask_as(&mut node, &grants, put(key(sequence), &content)).unwrap();
    }
    ask_as(&mut node, &grants, Request::Delete { epoch: 1, keys: vec![key(2)] }).unwrap();
    ask(&mut node, journal_open(JOURNAL)).unwrap();
    ask(&mut node, append(0, b"a record")).unwrap();
    ask(&mut node, Request::JournalTrim { volume: VOLUME, epoch: 3, start: 2 }).unwrap();
    ask(&mut node, append(8, b" and another")).unwrap();
    ask(&mut node, Request::Fence { volume: VOLUME, epoch: 1, evidence: Vec::new() }).unwrap();
    let ballot = Ballot { counter: 5, proposer: [6; 16] };
    let message = RegisterRequest::Prepare { ballot };
    ask(&mut node, Request::Register { register: VOLUME, message }).unwrap();
    disk
}

fn pack(disk: &SimDisk) -> Vec<u8> {
    let mut packed = Vec::new();
    for (number, which) in (0_u32..).zip(Which::ALL) {
        for offset in (0..disk.len(which)).step_by(PAGE) {
            let page = disk.bytes(which, offset, PAGE);
            if page.iter().any(|byte| *byte != 0) {
                packed.extend(number.to_le_bytes());
                packed.extend(offset.to_le_bytes());
                packed.extend(page);
            }
        }
    }
    packed
}

fn unpack(packed: &[u8]) -> SimDisk {
    let disk = SimDisk::new(1);
    for page in packed.chunks(12 + PAGE) {
        let which = Which::ALL[page[0] as usize];
        let offset = u64::from_le_bytes(page[4..12].try_into().unwrap());
        disk.set_bytes(which, offset, &page[12..]);
    }
    disk
}

#[test]
fn version_1_is_written_as_it_was() {
    let packed = pack(&filled());
    if std::env::var_os("HYPHA_WRITE_FIXTURES").is_some() {
        std::fs::write(path(), &packed).unwrap();
    }
    assert!(
        std::fs::read(path()).unwrap() == packed,
        "the format has changed: give it a new version"
    );
}

#[test]
fn version_1_is_read() {
    let disk = unpack(&std::fs::read(path()).unwrap());
    let (mut node, recovery) = open(&disk).unwrap();
    assert_eq!((recovery.objects, recovery.unfinished, recovery.damaged_slots), (2, 0, 0));
    assert_eq!(get_all(&mut node, key(1)).unwrap(), bytes(1, 100));
    assert_eq!(get_all(&mut node, key(3)).unwrap(), bytes(3, 300));
    let list = Request::List { volume: VOLUME, after: None, limit: 10 };
    let keys: Vec<ObjectKey> = vec![key(1), key(3)];
    assert_eq!(ask(&mut node, list), Ok(Response::Keys(keys)));
    assert_eq!(journal_read(&mut node, 2, 100).unwrap(), &b"record and another"[..]);
    let fence = Request::Fence { volume: VOLUME, epoch: 2, evidence: Vec::new() };
    assert_eq!(ask(&mut node, fence), Ok(Response::Fenced { previous: 1 }));
}
