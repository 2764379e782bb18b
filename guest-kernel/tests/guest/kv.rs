use std::cell::Cell;
use std::rc::Rc;

use guest_kernel::net::tcp::{BufferSizes, TcpStream};
use guest_kernel::programs::kv::server::{Server, Settings};
use guest_kernel::programs::kv::store::{Limits, Store};
use guest_kernel::programs::load::{self, Report};

use crate::disk::Platters;
use crate::world::{Guest, World, endpoint};

const LIMITS: Limits = Limits { index_bytes_max: 1 << 20, cache_bytes_max: 1 << 20 };
const SETTINGS: Settings = Settings { port: 8080, connections_max: 4, body_bytes_max: 2 << 20 };
const SIZES: BufferSizes = BufferSizes { receive_bytes: 64 << 10, transmit_bytes: 64 << 10 };

thread_local! {
    /// The exits of the guest that serves and of the one that asks, for `fn() -> u64`.
    static EXITS: [Cell<u64>; 2] = const { [Cell::new(0), Cell::new(0)] };
}

fn exits(of: usize) -> u64 {
    EXITS.with(|exits| exits[of].get())
}

fn share_exits(world: &mut World) {
    for (index, guest) in world.guests.iter().enumerate() {
        EXITS.with(|exits| exits[index].set(guest.exits.get()));
    }
}

fn start_kv(guest: &Guest) {
    let (executor, net, block) =
        (guest.executor.clone(), guest.net.clone(), guest.block.clone().unwrap());
    drop(guest.executor.spawn(async move {
        let store = Store::open(block, LIMITS, 42).await.unwrap();
        drop(executor.spawn(store.clone().run()));
        let server = Server::new(executor, store, SETTINGS, || exits(0));
        server.run(net).await.unwrap();
    }));
}

fn kv_and_client(seed: u64) -> World {
    let mut world = World::new(seed);
    let kv = world.boot(1, Some(Platters::blank(8 << 20)));
    start_kv(&kv);
    world.guests = vec![kv, world.boot(2, None)];
    world
}

fn settings(count: usize, connections: usize) -> load::Settings {
    load::Settings {
        target: endpoint(1, 8080),
        count,
        value_bytes: 1024,
        connections,
        seed: 7,
        timed: 100,
        patience_ns: 60_000_000_000,
    }
}

fn run_load(
    world: &mut World,
    settings: load::Settings,
    mut meddle: impl FnMut(&mut World),
) -> Report {
    let guest = &world.guests[1];
    let (executor, net) = (guest.executor.clone(), guest.net.clone());
    let run = load::run(executor, net, settings, || exits(1), |_| {});
    let task = guest.executor.spawn(run);
    world.finish_with(&task, |world| {
        share_exits(world);
        meddle(world);
    })
}

#[test]
fn at_depth_1_a_get_costs_one_exit_and_a_put_two() {
    let mut world = kv_and_client(1);
    let settings = settings(300, 1);
    let report = run_load(&mut world, settings, |_| {});
    assert!(report.is_good(&settings), "{report}");
    assert_eq!(report.reconnects, 0);
    assert!(report.timing.kv_exits_per_get <= 1.0, "{report}");
    assert!(report.timing.own_exits_per_get <= 1.0, "{report}");
    assert!(report.timing.kv_exits_per_put <= 2.0, "{report}");
}

#[test]
fn nothing_is_lost_when_frames_are() {
    for seed in 0..3 {
        let mut world = kv_and_client(seed);
        world.lose_one_in = 30;
        let settings = settings(60, 3);
        let report = run_load(&mut world, settings, |_| {});
        assert!(report.is_good(&settings), "seed {seed}: {report}");
    }
}

/// The VM vanishes without a word in mid-write, its disk loses what wasn't flushed, and a new one
/// comes up with other sequence numbers and random seeds.
#[test]
fn nothing_is_lost_when_the_server_is_killed_and_comes_back() {
    for seed in 0..10 {
        let mut world = kv_and_client(seed);
        let settings = settings(200, 1 + seed as usize % 4);
        let (mut steps, mut kills) = (0u64, 0);
        let mut next_kill = 200 + world.random.below(400) as u64;
        let report = run_load(&mut world, settings, |world| {
            steps += 1;
            if steps < next_kill || kills == 4 {
                return;
            }
            kills += 1;
            next_kill = steps + 100 + world.random.below(2_000) as u64;
            let mut platters = world.guests[0].disk.take().unwrap().platters;
            platters.crash(&mut world.random);
            let kv = world.boot(1, Some(platters));
            start_kv(&kv);
            world.guests[0] = kv;
        });
        assert!(report.is_good(&settings), "seed {seed}: {report}");
        assert!(report.reconnects > 0 && kills > 0, "seed {seed}: {report}");
    }
}

/// Sends `pieces` one after the other, each in its own wait, and returns all that comes back until
/// the server closes or says nothing for a second.
fn talk(world: &mut World, pieces: Vec<Vec<u8>>) -> String {
    let (executor, net) = (world.guests[1].executor.clone(), world.guests[1].net.clone());
    let task = world.guests[1].executor.spawn(async move {
        let mut stream = TcpStream::connect(&net, endpoint(1, 8080), SIZES).await.unwrap();
        let mut answer = Vec::new();
        for piece in pieces {
            if stream.write_all(&piece).await.is_err() {
                break;
            }
            executor.sleep(1_000_000).await;
        }
        loop {
            let read = stream.read(&mut answer, 1 << 20);
            match executor.timeout(1_000_000_000, read).await {
                Some(Ok(1..)) => {}
                _ => return String::from_utf8_lossy(&answer).into_owned(),
            }
        }
    });
    world.finish_with(&task, share_exits)
}

fn statuses(answer: &str) -> Vec<u16> {
    let lines = answer.split("HTTP/1.1 ").skip(1);
    lines.map(|line| line.get(..3).and_then(|code| code.parse().ok()).unwrap()).collect()
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let mut world = kv_and_client(1);
    let requests = "PUT /kv/a HTTP/1.1\r\nHost: kv\r\nContent-Length: 3\r\n\r\none\
        GET /kv/a HTTP/1.1\r\nHost: kv\r\n\r\n\
        PUT /kv/a HTTP/1.1\r\nHost: kv\r\nContent-Length: 3\r\n\r\ntwo\
        HEAD /kv/a HTTP/1.1\r\nHost: kv\r\n\r\n\
        GET /kv?prefix=a HTTP/1.1\r\nHost: kv\r\n\r\n\
        DELETE /kv/a HTTP/1.1\r\nHost: kv\r\n\r\n\
        DELETE /kv/a HTTP/1.1\r\nHost: kv\r\n\r\n\
        GET /kv/a HTTP/1.1\r\nHost: kv\r\n\r\n\
        GET /stats HTTP/1.1\r\nHost: kv\r\nConnection: close\r\n\r\n\
        GET /stats HTTP/1.1\r\nHost: kv\r\n\r\n";
    let whole = talk(&mut world, vec![requests.into()]);
    let expected = [201, 200, 204, 200, 200, 204, 404, 404, 200];
    assert_eq!(statuses(&whole), expected, "{whole}");
    assert!(whole.contains("\r\n\r\noneHTTP") && whole.contains("\r\n\r\na\nHTTP"), "{whole}");
    assert!(whole.contains("\"live_keys\":0") && whole.contains("Connection: close"), "{whole}");
    // The same byte by byte, and cut at random.
    let bytes: Vec<Vec<u8>> = requests.bytes().map(|byte| vec![byte]).collect();
    assert_eq!(statuses(&talk(&mut world, bytes)), expected);
    let mut pieces = vec![Vec::new()];
    for byte in requests.bytes() {
        if world.random.one_in(20) {
            pieces.push(Vec::new());
        }
        pieces.last_mut().unwrap().push(byte);
    }
    assert_eq!(statuses(&talk(&mut world, pieces)), expected);
}

#[test]
fn a_megabyte_goes_in_and_comes_out_and_more_is_refused() {
    let mut world = kv_and_client(1);
    let body = load::value(1, 1, 1 << 20);
    let mut put =
        b"PUT /kv/big HTTP/1.1\r\nHost: kv\r\nExpect: 100-continue\r\nContent-Length: 1048576\r\n\r\n"
            .to_vec();
    put.extend_from_slice(&body);
    put.extend_from_slice(b"GET /kv/big HTTP/1.0\r\n\r\n");
    let (executor, net) = (world.guests[1].executor.clone(), world.guests[1].net.clone());
    let task = world.guests[1].executor.spawn(async move {
        let mut stream = TcpStream::connect(&net, endpoint(1, 8080), SIZES).await.unwrap();
        stream.write_all(&put).await.unwrap();
        let mut answer = Vec::new();
        while let Some(Ok(1..)) =
            executor.timeout(5_000_000_000, stream.read(&mut answer, 1 << 20)).await
        {}
        answer
    });
    let answer = world.finish(&task);
    assert!(answer.ends_with(&body), "{} bytes", answer.len());
    let head = String::from_utf8_lossy(&answer[..200]).into_owned();
    assert_eq!(statuses(&head), [201, 200], "the body was there before it was asked for");
    let refused = talk(
        &mut world,
        vec![b"PUT /kv/big HTTP/1.1\r\nHost: kv\r\nContent-Length: 1048577\r\n\r\n".to_vec()],
    );
    assert_eq!(statuses(&refused), [413]);
    assert!(refused.contains("Connection: close"));
}

#[test]
fn a_client_that_waits_is_told_to_continue() {
    let mut world = kv_and_client(1);
    let head =
        b"PUT /kv/a HTTP/1.1\r\nHost: kv\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n";
    let answer = talk(&mut world, vec![head.to_vec(), b"ok".to_vec()]);
    assert_eq!(statuses(&answer), [100, 201], "{answer}");
}

#[test]
fn nonsense_is_answered_and_the_server_goes_on() {
    let mut world = kv_and_client(1);
    for (bytes, status) in [
        (b"\x16\x03\x01\x00 hello".to_vec(), 400),
        (
            b"PUT /kv/a HTTP/1.1\r\nHost: kv\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
                .to_vec(),
            501,
        ),
        ([b"GET /kv/a HTTP/1.1\r\nHost: kv\r\nA: ".to_vec(), vec![b'a'; 10_000]].concat(), 431),
        (
            b"PUT /kv/a HTTP/1.1\r\nHost: kv\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n"
                .to_vec(),
            400,
        ),
    ] {
        assert_eq!(statuses(&talk(&mut world, vec![bytes])), [status]);
    }
    for seed in 0..50 {
        let len = world.random.below(300);
        let garbage = world.random.bytes(len);
        drop(talk(&mut world, vec![garbage]));
        let stats = talk(&mut world, vec![b"GET /stats HTTP/1.1\r\nHost: kv\r\n\r\n".to_vec()]);
        assert_eq!(statuses(&stats), [200], "seed {seed}");
    }
}

#[test]
fn a_silent_connection_is_closed_and_its_place_given_to_another() {
    let mut world = kv_and_client(1);
    let (executor, net) = (world.guests[1].executor.clone(), world.guests[1].net.clone());
    // As many as the server takes, and they say nothing.
    let task = world.guests[1].executor.spawn(async move {
        let mut silent = Vec::new();
        for _ in 0..SETTINGS.connections_max {
            silent.push(TcpStream::connect(&net, endpoint(1, 8080), SIZES).await.unwrap());
        }
        executor.sleep(1_000_000_000).await;
        silent
    });
    let silent = Rc::new(world.finish(&task));
    let started = world.now.get();
    let (executor, net) = (world.guests[1].executor.clone(), world.guests[1].net.clone());
    let task = executor.clone().spawn(async move {
        let mut stream = TcpStream::connect(&net, endpoint(1, 8080), SIZES).await.unwrap();
        stream.write_all(b"GET /stats HTTP/1.0\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        while let Ok(1..) = stream.read(&mut answer, 1 << 20).await {}
        answer
    });
    let answer = world.finish(&task);
    assert!(answer.starts_with(b"HTTP/1.1 200"));
    assert!(world.now.get() - started > 50_000_000_000, "after the idle time-out");
    drop(silent);
}
