//! Starting a node from any files at all.
//!
//! A node has objects, a journal, a fence and a ballot. The input damages its files: it flips,
//! wipes, copies and sets bytes, and repairs checksums, so that damage gets behind them. Whatever
//! the files hold, the node must start or say why not, and serve. As long as no checksum was forged
//! an object is read as it was stored or not at all.

use std::sync::OnceLock;

use storage_vdev::disk::DiskStore;
use storage_vdev::files::sim::{Rng, SimDisk, SimFile, Which};
use storage_vdev::node::{Ballot, NodeError, ObjectKey, RegisterRequest, Request, Response};
use storage_vdev::service::{Grants, Handled, NodeIdentity, NodeOptions, NodeService};

use crate::bytes::Input;

type Node = NodeService<DiskStore<SimFile>, SimFile>;

const NODE: [u8; 16] = [9; 16];
const VOLUME: [u8; 16] = [7; 16];
const OBJECTS: u64 = 6;
const PAGE: usize = 4096;
/// Where slots begin, and where extents do.
const SLOTS_AT: u64 = 8192;
const EXTENTS_AT: u64 = SLOTS_AT + (16 << 20);
/// Where the entry of the only volume begins, and how long one of its four copies is.
const ENTRY_AT: u64 = 8192;
const COPY: u64 = 8192;

fn open(disk: &SimDisk) -> Option<Node> {
    let create = NodeIdentity { node: NODE, acceptor_seed: [5; 32].into() };
    let options = NodeOptions { capacity_bytes: 4 << 20, create: Some(create) };
    NodeService::open(disk.files(), &options).ok().map(|(node, _)| node)
}

fn ask(node: &mut Node, request: Request) -> Result<Response, NodeError> {
    match node.handle(&Grants::all(), request) {
        Handled::Done(result) => result,
        Handled::AfterSync(ticket) => {
            let answers = node.sync();
            let mine = answers.into_iter().find(|(answered, _)| *answered == ticket);
            mine.map_or(Err(NodeError::Failed), |(_, result)| result)
        }
    }
}

fn key(sequence: u64) -> ObjectKey {
    ObjectKey { volume: VOLUME, epoch: u64::MAX, sequence, shard: 0 }
}

fn content(sequence: u64) -> Vec<u8> {
    let mut bytes = vec![0; 3000 * (sequence as usize + 1)];
    Rng::new(sequence).fill(&mut bytes);
    bytes
}

fn put(sequence: u64) -> Request {
    Request::Put { key: key(sequence), parts: vec![content(sequence).into()] }
}

fn base() -> &'static SimDisk {
    static BASE: OnceLock<SimDisk> = OnceLock::new();
    BASE.get_or_init(|| {
        let disk = SimDisk::new(1);
        let Some(mut node) = open(&disk) else { panic!("a fresh disk becomes a node") };
        let (volume, epoch) = (VOLUME, 3);
        let mut requests: Vec<Request> = (0..=OBJECTS).map(put).collect();
        requests.push(Request::Delete { epoch: u64::MAX, keys: vec![key(OBJECTS)] });
        requests.push(Request::JournalOpen { volume, epoch, capacity: 64 << 10 });
        let parts = || vec![content(1).into()];
        requests.push(Request::JournalAppend { volume, epoch, position: 0, parts: parts() });
        requests.push(Request::JournalAppend { volume, epoch, position: 6000, parts: parts() });
        requests.push(Request::Fence { volume, epoch, evidence: Vec::new() });
        let ballot = Ballot { counter: 5, proposer: [6; 16] };
        let message = RegisterRequest::Prepare { ballot };
        requests.push(Request::Register { register: volume, message });
        for request in requests {
            let result = ask(&mut node, request);
            assert!(result.is_ok(), "an undamaged node serves: {result:?}");
        }
        disk
    })
}

/// Damages the files and starts the node. The input is a list of changes: a byte that names one
/// (modulo 7), a byte that names its file (modulo 3), then what it needs, numbers little-endian.
///
/// 0. exclusive-or: region (1), offset (2), mask (1)
/// 1. wipe a page: region (1), page (1)
/// 2. copy a page within the file: region (1), page (1), region (1), page (1)
/// 3. set bytes of a slot and repair its checksum: slot (1), offset (1), 4 bytes
/// 4. set bytes of a copy of the promises and repair its checksum: copy (1), offset (1), 4 bytes
/// 5. set bytes of an entry of the journal and repair its checksum: page (1), offset (1), 4 bytes
/// 6. set bytes of the superblock and repair its checksum: offset (1), 4 bytes
///
/// True if the node started and served, in spite of a change.
///
/// # Panics
/// A promise is broken.
pub fn check(data: &[u8]) -> bool {
    let disk = base().copy();
    let mut input = Input(data);
    let mut forged = false;
    for _ in 0..32 {
        if input.is_empty() {
            break;
        }
        forged |= change(&disk, &mut input);
    }
    let Some(mut node) = open(&disk) else { return false };
    let served = serve(&mut node, forged);
    drop(node);
    // What it served it serves again.
    if let Some(mut again) = open(&disk) {
        let found = ask(&mut again, Request::Get { key: key(50), offset: 0, len: u32::MAX });
        let expected = Ok(Response::Bytes(content(50).into()));
        assert!(!served || found == expected, "an object is lost: {found:?}");
    } else {
        panic!("a node that served starts again");
    }
    served && !data.is_empty()
}

/// Asks for everything; true if a new object was stored.
fn serve(node: &mut Node, forged: bool) -> bool {
    let list = Request::List { volume: VOLUME, after: None, limit: 100 };
    let names = match ask(node, list) {
        Ok(Response::Keys(keys)) => keys,
        _ => Vec::new(),
    };
    assert!(names.windows(2).all(|pair| matches!(pair, [a, b] if a < b)), "names are in order");
    for name in &names {
        let all = Request::Get { key: *name, offset: 0, len: u32::MAX };
        match ask(node, all) {
            Ok(Response::Bytes(found)) if !forged => {
                assert_eq!(found, content(name.sequence), "an object is what nobody stored");
                let part = Request::Get { key: *name, offset: 100, len: 200 };
                assert!(ask(node, part).is_ok(), "a part of a whole object is there");
            }
            _ => {}
        }
    }
    let (volume, epoch) = (VOLUME, u64::MAX);
    if let Ok(Response::Journal { start, end, .. }) = ask(node, Request::JournalState { volume }) {
        assert!(start <= end);
        let read = Request::JournalRead { volume, position: start, len: u32::MAX };
        // It may be damaged, so whatever comes, comes.
        drop(ask(node, read));
        let parts = vec![content(2).into()];
        let appended = ask(node, Request::JournalAppend { volume, epoch, position: end, parts });
        if appended.is_ok() {
            let read = Request::JournalRead { volume, position: end, len: 9000 };
            assert_eq!(ask(node, read), Ok(Response::Bytes(content(2).into())));
        }
    }
    drop(ask(node, Request::Fence { volume, epoch: 1 << 40, evidence: Vec::new() }));
    let ballot = Ballot { counter: 6, proposer: [6; 16] };
    let message = RegisterRequest::Prepare { ballot };
    drop(ask(node, Request::Register { register: volume, message }));
    let stored = ask(node, put(50)).is_ok();
    let scrubbed = node.disk().scrub(None, u64::MAX);
    if let Ok(scrubbed) = scrubbed {
        assert!(!stored || !scrubbed.damaged.contains(&key(50)), "a new object is whole");
    }
    node.sync();
    stored
}

/// Where a region of a file begins.
fn region(which: Which, byte: u8) -> u64 {
    match (which, byte % 3) {
        (Which::Objects, 0) | (Which::Journal | Which::Meta, _) => 0,
        (Which::Objects, 1) => SLOTS_AT,
        (Which::Objects, _) => EXTENTS_AT,
    }
}

/// Carries out one change; true if it repaired a checksum.
fn change(disk: &SimDisk, input: &mut Input<'_>) -> bool {
    let (kind, file) = (input.byte() % 7, input.byte());
    let which = Which::ALL.get(usize::from(file % 3)).copied().unwrap_or(Which::Objects);
    match kind {
        0 => {
            let at = region(which, input.byte()) + u64::from(input.u16());
            let mut byte = disk.bytes(which, at, 1);
            byte.iter_mut().for_each(|byte| *byte ^= input.byte());
            disk.set_bytes(which, at, &byte);
            false
        }
        1 => {
            let at = region(which, input.byte()) + u64::from(input.byte()) * PAGE as u64;
            disk.set_bytes(which, at, &[0; PAGE]);
            false
        }
        2 => {
            let from = region(which, input.byte()) + u64::from(input.byte()) * PAGE as u64;
            let to = region(which, input.byte()) + u64::from(input.byte()) * PAGE as u64;
            disk.set_bytes(which, to, &disk.bytes(which, from, PAGE));
            false
        }
        3 => {
            let slot = u32::from(input.byte());
            let seed = crc32c::crc32c_append(crc32c::crc32c(&NODE), &slot.to_le_bytes());
            forge(disk, Which::Objects, SLOTS_AT + u64::from(slot) * 64, 64, seed, input);
            true
        }
        4 => {
            let at = ENTRY_AT + u64::from(input.byte() % 4) * COPY;
            let len = disk.bytes(Which::Meta, at + 8, 4);
            let len = len.first_chunk().map_or(0, |len| u32::from_le_bytes(*len)) as usize;
            let seed = crc32c::crc32c_append(crc32c::crc32c(&NODE), &[0; 8]);
            forge(disk, Which::Meta, at, len.clamp(124, COPY as usize), seed, input);
            true
        }
        5 => {
            let at = (1 + u64::from(input.byte() % 32)) * PAGE as u64;
            let seed = crc32c::crc32c_append(crc32c::crc32c(&NODE), &VOLUME);
            let seed = crc32c::crc32c_append(seed, &1_u64.to_le_bytes());
            forge(disk, Which::Journal, at, PAGE, seed, input);
            true
        }
        _ => {
            forge(disk, Which::Objects, 0, 512, 0, input);
            true
        }
    }
}

/// Sets four bytes of a structure of `len` bytes whose last four are its checksum.
fn forge(disk: &SimDisk, which: Which, at: u64, len: usize, seed: u32, input: &mut Input<'_>) {
    let mut bytes = disk.bytes(which, at, len);
    let offset = usize::from(input.byte());
    for (byte, new) in bytes.iter_mut().skip(offset).zip(input.bytes(4)) {
        *byte = *new;
    }
    let (content, crc) = bytes.split_at_mut(len - 4);
    crc.copy_from_slice(&crc32c::crc32c_append(seed, content).to_le_bytes());
    disk.set_bytes(which, at, &bytes);
}
