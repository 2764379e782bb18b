//! The virtio block device, driven through a real queue by an honest and by a hostile driver.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use proptest::prelude::*;
use storage_vdev::BlockDevice;
use vdev::driver::{Buffer, Driver};
use vdev::{Device, DeviceError, DeviceQueue, GuestRam, QueueLayout, RingError};
use vm_memory::{Bytes, GuestAddress};

#[path = "engine/harness.rs"]
#[expect(dead_code, reason = "shared with the engine's tests, which use all of it")]
mod harness;
#[path = "engine/nodes.rs"]
#[expect(dead_code, reason = "shared with the engine's tests, which use all of it")]
mod nodes;

use nodes::{MemoryNodes, Shared};

const RAM_BYTES: usize = 8 << 20;
const HEADERS: u64 = 0x1_0000;
const STATUS: u64 = 0x2_0000;
const DATA: u64 = 0x10_0000;
const VOLUME_BYTES: u64 = 1 << 20;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

struct Rig {
    world: Shared,
    ram: GuestRam,
    device: BlockDevice<MemoryNodes>,
    queues: Vec<DeviceQueue>,
    driver: Driver,
    requests: u64,
}

impl Rig {
    fn new(read_only: bool) -> Self {
        Self::over(nodes::world(3, 1), read_only)
    }

    fn over(world: Shared, read_only: bool) -> Self {
        let create = harness::create(2, 1, VOLUME_BYTES as usize / 4096);
        let volume = harness::open(&world, harness::options(3, Some(create))).volume;
        let device = BlockDevice::new(volume, "a volume with a long name", read_only);
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), RAM_BYTES)]).unwrap();
        let layout = QueueLayout::at(0x1000, device.queue_sizes()[0]);
        let queues = vec![DeviceQueue::new(0, layout, &ram).unwrap()];
        Self { world, ram, device, queues, driver: Driver::new(layout), requests: 0 }
    }

    /// Makes a request available without ringing; returns the address of its status byte.
    fn add(&mut self, kind: u32, sector: u64, data: &[Buffer]) -> u64 {
        let slot = self.requests % 128;
        self.requests += 1;
        let (header, status) = (HEADERS + 16 * slot, STATUS + slot);
        self.ram.write_obj(kind.to_le(), GuestAddress(header)).unwrap();
        self.ram.write_obj(0u32, GuestAddress(header + 4)).unwrap();
        self.ram.write_obj(sector.to_le(), GuestAddress(header + 8)).unwrap();
        self.ram.write_obj(0xffu8, GuestAddress(status)).unwrap();
        let mut buffers = vec![Buffer { address: header, len: 16, device_writes: false }];
        buffers.extend_from_slice(data);
        buffers.push(Buffer { address: status, len: 1, device_writes: true });
        self.driver.add(&self.ram, &buffers).unwrap();
        status
    }

    fn ring(&mut self, now_ns: u64) -> Result<vdev::Progress, DeviceError> {
        self.device.process(&mut self.queues, &self.ram, now_ns)
    }

    fn status(&self, address: u64) -> u8 {
        self.ram.read_obj(GuestAddress(address)).unwrap()
    }

    /// One request to its end: status and used length.
    fn run(&mut self, kind: u32, sector: u64, data: &[Buffer]) -> (u8, u32) {
        let status = self.add(kind, sector, data);
        assert_eq!(self.ring(0).unwrap().used_queues, 1);
        let (_, len) = self.driver.take_used(&self.ram).unwrap().unwrap();
        (self.status(status), len)
    }

    fn put(&self, bytes: &[u8]) -> Buffer {
        self.ram.write_slice(bytes, GuestAddress(DATA)).unwrap();
        Buffer { address: DATA, len: bytes.len() as u32, device_writes: false }
    }

    fn read(&mut self, sector: u64, len: u32) -> (u8, Vec<u8>) {
        let target = Buffer { address: DATA, len, device_writes: true };
        let (status, used) = self.run(IN, sector, &[target]);
        assert_eq!(used, len + 1);
        let mut bytes = vec![0; len as usize];
        self.ram.read_slice(&mut bytes, GuestAddress(DATA)).unwrap();
        (status, bytes)
    }
}

fn segment(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
}

#[test]
fn the_features_and_the_configuration_are_the_specifications() {
    let rig = Rig::new(false);
    let expected = [6, 2, 9, 13, 14, 32, 35].iter().fold(0u64, |bits, bit| bits | 1 << bit);
    assert_eq!(rig.device.features(), expected);
    assert_eq!(Rig::new(true).device.features() & (1 << 5 | 1 << 13 | 1 << 14), 1 << 5);
    let config = rig.device.config_space();
    assert_eq!(config[0..8], (VOLUME_BYTES / 512).to_le_bytes());
    assert_eq!(config[12..16], 126u32.to_le_bytes());
    assert_eq!(config[20..24], 4096u32.to_le_bytes());
    assert!(u32::from_le_bytes(config[36..40].try_into().unwrap()) > 0);
    assert_eq!(config[56], 1);
    assert!(config.len() <= 64);
    assert_eq!(rig.device.device_id(), 2);
}

#[test]
fn what_is_written_is_read_back_sector_by_sector() {
    let mut rig = Rig::new(false);
    let bytes: Vec<u8> = (0..12 * 512u32).map(|i| (i * 7 / 3) as u8).collect();
    let data = rig.put(&bytes);
    // Cut in odd pieces: a request's buffers have any lengths.
    let piece = |from: u32, to: u32| Buffer {
        address: data.address + u64::from(from),
        len: to - from,
        device_writes: false,
    };
    let pieces = [piece(0, 5), piece(5, 700), piece(700, 700), piece(700, data.len)];
    assert_eq!(rig.run(OUT, 3, &pieces), (0, 1));
    assert_eq!(rig.read(3, 12 * 512), (0, bytes.clone()));
    assert_eq!(rig.read(5, 512), (0, bytes[1024..1536].to_vec()));
    assert_eq!(rig.read(15, 512), (0, vec![0; 512]));
    let id = Buffer { address: DATA, len: 20, device_writes: true };
    assert_eq!(rig.run(GET_ID, 0, &[id]), (0, 21));
    let mut name = [0; 20];
    rig.ram.read_slice(&mut name, GuestAddress(DATA)).unwrap();
    assert_eq!(&name, b"a volume with a long");
}

#[test]
fn discard_and_write_zeroes_leave_zeroes() {
    let mut rig = Rig::new(false);
    for kind in [DISCARD, WRITE_ZEROES] {
        let data = rig.put(&[0x77; 64 * 512]);
        assert_eq!(rig.run(OUT, 0, &[data]), (0, 1));
        let data = rig.put(&[segment(1, 6, 0), segment(16, 32, 0)].concat());
        assert_eq!(rig.run(kind, 0, &[data]), (0, 1));
        let (status, bytes) = rig.read(0, 64 * 512);
        assert_eq!(status, 0);
        for (sector, bytes) in bytes.chunks(512).enumerate() {
            let zeroed = (1..7).contains(&sector) || (16..48).contains(&sector);
            assert!(bytes.iter().all(|b| *b == if zeroed { 0 } else { 0x77 }), "sector {sector}");
        }
    }
}

#[test]
fn a_batch_of_writes_and_flushes_is_one_commit_and_survives_a_crash() {
    let mut rig = Rig::new(false);
    let before = rig.world.borrow().operations;
    for request in 0..10u64 {
        rig.ram
            .write_slice(&[request as u8 + 1; 4096], GuestAddress(DATA + 4096 * request))
            .unwrap();
        let data = Buffer { address: DATA + 4096 * request, len: 4096, device_writes: false };
        rig.add(OUT, request * 8, &[data]);
        rig.add(FLUSH, 0, &[]);
    }
    rig.ring(0).unwrap();
    // One append to each of the m + 1 journal heads.
    assert_eq!(rig.world.borrow().operations - before, 2);
    let mut heads = Vec::new();
    while let Some((head, len)) = rig.driver.take_used(&rig.ram).unwrap() {
        assert_eq!(len, 1);
        heads.push(head);
    }
    assert_eq!(heads.len(), 20);
    assert!(heads.is_sorted(), "buffers are used in order: {heads:?}");
    let mut rig = Rig::over(rig.world.clone(), false);
    for request in 0..10u64 {
        assert_eq!(rig.read(request * 8, 4096), (0, vec![request as u8 + 1; 4096]));
    }
}

#[test]
fn a_request_that_is_merely_wrong_gets_a_status() {
    let mut rig = Rig::new(false);
    let sectors = VOLUME_BYTES / 512;
    let out = |len| Buffer { address: DATA, len, device_writes: false };
    let input = |len| Buffer { address: DATA, len, device_writes: true };
    let (io_error, unsupported) = (1, 2);
    for (kind, sector, data) in [
        (OUT, sectors, vec![out(512)]),
        (OUT, sectors - 1, vec![out(1024)]),
        (OUT, u64::MAX, vec![out(512)]),
        (OUT, u64::MAX / 512, vec![out(512)]),
        (OUT, 0, vec![out(511)]),
        (OUT, 0, vec![]),
        (IN, sectors, vec![input(512)]),
        (IN, 0, vec![input(513)]),
        (IN, 0, vec![]),
        (IN, 0, vec![out(512)]),
        (DISCARD, 0, vec![]),
        (DISCARD, 0, vec![out(15)]),
        (DISCARD, 0, vec![out(17 * 16)]),
    ] {
        let (status, _) = rig.run(kind, sector, &data);
        assert_eq!(status, io_error, "{kind} {sector} {data:?}");
    }
    for (kind, sector, count, flags, expected) in [
        (DISCARD, sectors, 1, 0, io_error),
        (DISCARD, u64::MAX, 8, 0, io_error),
        (DISCARD, 0, u32::MAX, 0, io_error),
        (DISCARD, 0, 8, 1, unsupported),
        (WRITE_ZEROES, 0, 8, 1, 0),
        (WRITE_ZEROES, 0, 8, 2, unsupported),
    ] {
        let data = rig.put(&segment(sector, count, flags));
        assert_eq!(rig.run(kind, 0, &[data]).0, expected, "{kind} {sector} {count} {flags}");
    }
    assert_eq!(rig.run(99, 0, &[]).0, unsupported);
    // A header that is too short for a request.
    let status = Buffer { address: STATUS, len: 1, device_writes: true };
    rig.driver.add(&rig.ram, &[out(15), status]).unwrap();
    rig.ring(0).unwrap();
    assert_eq!(rig.status(STATUS), io_error);
    assert!(rig.driver.take_used(&rig.ram).unwrap().is_some());
    // After all this the device still works, and nothing was written.
    let (status, bytes) = rig.read(0, 4096);
    assert_eq!(status, 0);
    assert!(bytes.iter().all(|byte| *byte == 0));
}

#[test]
fn a_chain_without_a_status_byte_breaks_the_ring() {
    for buffers in [
        vec![Buffer { address: HEADERS, len: 16, device_writes: false }],
        vec![Buffer { address: HEADERS, len: 0, device_writes: true }],
    ] {
        let mut rig = Rig::new(false);
        rig.driver.add(&rig.ram, &buffers).unwrap();
        let error = rig.ring(0).unwrap_err();
        let DeviceError::Ring { queue: 0, source } = &error else { panic!("{error}") };
        assert!(matches!(source, RingError::Malformed { .. }), "{error}");
        assert!(error.is_guest_fault());
    }
}

#[test]
fn a_read_only_device_refuses_changes() {
    let mut rig = Rig::new(true);
    let data = rig.put(&[1; 512]);
    assert_eq!(rig.run(OUT, 0, &[data]).0, 1);
    let data = rig.put(&segment(0, 8, 0));
    assert_eq!(rig.run(DISCARD, 0, &[data]).0, 1);
    assert_eq!(rig.run(FLUSH, 0, &[]).0, 0);
    assert_eq!(rig.read(0, 512), (0, vec![0; 512]));
}

#[test]
fn a_read_of_a_lost_stripe_is_an_error_and_shows_nothing_old() {
    let mut rig = Rig::new(false);
    let data = rig.put(&[0x5a; 4096]);
    rig.run(OUT, 0, &[data]);
    rig.device.close().unwrap();
    rig.put(&[0x5a; 4096]);
    let (status, bytes) = rig.read(0, 4096);
    assert_eq!(status, 1);
    assert!(bytes.iter().all(|byte| *byte == 0));
}

#[test]
fn an_idle_device_finishes_its_work_and_then_asks_for_nothing() {
    let mut rig = Rig::new(false);
    let data = rig.put(&[1; 32768]);
    rig.run(OUT, 0, &[data]);
    let mut now_ns = 0;
    let mut calls = 0;
    while let Some(deadline_ns) = rig.ring(now_ns).unwrap().deadline_ns {
        assert!(deadline_ns > now_ns, "a deadline in the past is a busy loop");
        now_ns = deadline_ns;
        calls += 1;
        assert!(calls < 100);
    }
    assert_eq!(rig.device.volume().status().unsealed_bytes, 32768);
}

/// A read over the ring's own index and over its own header makes the next request available while
/// it is answered: each call serves what was there when it began, and comes back.
#[test]
fn a_request_that_brings_the_next_one_keeps_no_call_from_ending() {
    let mut rig = Rig::new(false);
    let avail_ring = QueueLayout::at(0x1000, 128).avail_ring;
    let header = |sector: u64| [&IN.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat();
    let first = rig.requests as u16 + 2;
    let mut bytes = vec![0; 64 * 512];
    for (number, sector) in bytes.chunks_mut(512).enumerate() {
        sector[..2].copy_from_slice(&(first + number as u16 + 1).to_le_bytes());
        sector[2..18].copy_from_slice(&header(number as u64 + 1));
    }
    let data = rig.put(&bytes);
    assert_eq!(rig.run(OUT, 0, &[data]), (0, 1));
    // All places of the ring name one chain.
    let buffer = |address, len| Buffer { address, len, device_writes: true };
    let chain = [
        Buffer { address: HEADERS, len: 16, device_writes: false },
        buffer(avail_ring + 2, 2),
        buffer(HEADERS, 16),
        buffer(DATA, 494),
        buffer(STATUS, 1),
    ];
    rig.ram.write_slice(&header(0), GuestAddress(HEADERS)).unwrap();
    let head = rig.driver.add(&rig.ram, &chain).unwrap();
    for slot in 0..128 {
        rig.ram.write_obj(head.to_le(), GuestAddress(avail_ring + 4 + 2 * slot)).unwrap();
    }
    for call in 0..60 {
        let progress = rig.ring(call).unwrap();
        assert_eq!(progress, vdev::Progress { used_queues: 1, deadline_ns: Some(call) });
        assert_eq!(rig.driver.take_used(&rig.ram).unwrap(), Some((head, 513)), "call {call}");
        assert_eq!(rig.driver.take_used(&rig.ram).unwrap(), None, "call {call}");
    }
}

#[test]
fn one_call_serves_a_bounded_number_of_bytes_and_the_next_one_goes_on() {
    let mut rig = Rig::new(false);
    let whole = Buffer { address: DATA, len: VOLUME_BYTES as u32, device_writes: true };
    for _ in 0..40 {
        rig.add(IN, 0, &[whole]);
    }
    let mut served = Vec::new();
    loop {
        let progress = rig.ring(7).unwrap();
        let mut count = 0;
        while rig.driver.take_used(&rig.ram).unwrap().is_some() {
            count += 1;
        }
        served.push(count);
        if progress.deadline_ns != Some(7) {
            break;
        }
    }
    assert_eq!(served, [32, 8]);
}

#[derive(Debug, Clone)]
struct Wild {
    kind: u32,
    sector: u64,
    buffers: Vec<(u64, u32, bool)>,
    header: bool,
    status: bool,
}

fn wild() -> impl Strategy<Value = Wild> {
    let kind = prop_oneof![8 => 0u32..16, 1 => any::<u32>()];
    let sector = prop_oneof![8 => 0u64..2100, 1 => any::<u64>()];
    let len = prop_oneof![4 => (0u32..40).prop_map(|n| n * 512), 2 => 0u32..100, 1 => any::<u32>()];
    let address = prop_oneof![8 => 0u64..RAM_BYTES as u64, 1 => any::<u64>()];
    let buffers = prop::collection::vec((address, len, any::<bool>()), 0..5);
    let often = || prop::bool::weighted(0.9);
    (kind, sector, buffers, often(), often()).prop_map(|(kind, sector, buffers, header, status)| {
        Wild { kind, sector, buffers, header, status }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn no_driver_makes_the_device_panic(batch in prop::collection::vec(wild(), 1..12)) {
        let mut rig = Rig::new(false);
        for request in &batch {
            let slot = rig.requests % 128;
            rig.requests += 1;
            let header = HEADERS + 16 * slot;
            rig.ram.write_obj(request.kind.to_le(), GuestAddress(header)).unwrap();
            rig.ram.write_obj(request.sector.to_le(), GuestAddress(header + 8)).unwrap();
            let mut buffers = Vec::new();
            if request.header {
                buffers.push(Buffer { address: header, len: 16, device_writes: false });
            }
            // Readable ones first, mostly, or the ring is broken at once.
            let mut wild = request.buffers.clone();
            wild.sort_by_key(|(address, _, writes)| *writes && address % 16 != 0);
            buffers.extend(wild.into_iter().map(|(address, len, device_writes)| Buffer {
                address,
                len,
                device_writes,
            }));
            if request.status {
                buffers.push(Buffer { address: STATUS + slot, len: 1, device_writes: true });
            }
            if !buffers.is_empty() {
                rig.driver.add(&rig.ram, &buffers).unwrap();
            }
        }
        match rig.ring(0) {
            Ok(_) => prop_assert!(rig.device.close().is_ok()),
            Err(error) => prop_assert!(error.is_guest_fault(), "{error}"),
        }
    }
}
