//! Clients that mean harm: each may lose its connection, and nobody else may notice.

use std::time::Duration;

use storage_vdev::files::sim::Rng;

use crate::client::{
    BLOCK_STATUS, Client, EXPORT_NAME, FAST_ZERO, FLUSH, FUA, GO, LIST, NO_HOLE, READ, TRIM, WRITE,
    WRITE_ZEROES, request,
};
use crate::server::{SIZE_BYTES, Server, folder};

const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;
const ENOTSUP: u32 = 95;

#[test]
fn garbage_ends_only_its_own_connection() {
    let folder = folder();
    let server = Server::nbd(folder.path(), &[]);
    let mut witness = Client::connected(&server.socket());
    assert_eq!(witness.ask((WRITE, FUA), 0, 512, &[7; 512]), 0);
    for seed in 0..64 {
        println!("seed {seed}");
        let mut rng = Rng::new(seed);
        let mut noise = vec![0; 16 + rng.below(8192) as usize];
        rng.fill(&mut noise);
        let mut client = match seed % 3 {
            0 => Client::greeted(&server.socket()),
            1 => {
                let mut client = Client::greeted(&server.socket());
                client.send(&3u32.to_be_bytes());
                client
            }
            _ => Client::connected(&server.socket()),
        };
        client.send(&noise);
        assert!(client.is_closed());
    }
    assert_eq!(witness.read(0, 512), [7; 512]);
}

#[test]
fn ten_thousand_options_are_too_many() {
    let folder = folder();
    let server = Server::nbd(folder.path(), &[]);
    let mut client = Client::greeted(&server.socket());
    client.send(&3u32.to_be_bytes());
    let mut answered = 0;
    for _ in 0..10_000 {
        client.option(LIST, b"");
        // The two exports, then the end of the list.
        let replies: Result<Vec<_>, _> = (0..3).map(|_| client.option_reply()).collect();
        if replies.is_err() {
            break;
        }
        answered += 1;
        if answered == storage_node::nbd::OPTIONS_MAX {
            client.option(LIST, b"");
            assert!(client.is_closed());
            return;
        }
    }
    panic!("{answered} options were answered");
}

#[test]
fn a_long_option_is_refused_and_skipped() {
    let folder = folder();
    let server = Server::nbd(folder.path(), &[]);
    let mut client = Client::greeted(&server.socket());
    client.send(&3u32.to_be_bytes());
    client.option(GO, &vec![0; 100_000]);
    assert_eq!(client.option_reply().unwrap().0, (1 << 31) + 9);
    client.option(LIST, b"");
    assert_eq!(client.option_reply().unwrap().0, 2, "the next option is understood");
    let mut client = Client::greeted(&server.socket());
    client.send(&3u32.to_be_bytes());
    let too_long = [b"IHAVEOPT", &GO.to_be_bytes()[..], &u32::MAX.to_be_bytes()].concat();
    client.send(&too_long);
    assert!(client.is_closed());
    // Lengths inside the option that point outside of it.
    let mut client = Client::greeted(&server.socket());
    client.send(&3u32.to_be_bytes());
    client.option(GO, &[u32::MAX.to_be_bytes(), [0; 4]].concat());
    assert_eq!(client.option_reply().unwrap().0, (1 << 31) + 3);
    client.option(EXPORT_NAME, b"no such export");
    assert!(client.is_closed());
}

#[test]
fn requests_that_make_no_sense_are_refused_one_by_one() {
    let folder = folder();
    let server = Server::nbd(folder.path(), &[]);
    let mut client = Client::connected(&server.socket());
    let refused: [((u16, u16), u64, u32, u32); 15] = [
        ((READ, 0), 0, 0, EINVAL),
        ((READ, 0), 1, 512, EINVAL),
        ((READ, 0), 0, 511, EINVAL),
        ((READ, 0), SIZE_BYTES, 512, EINVAL),
        ((READ, 0), u64::MAX - 511, 512, EINVAL),
        ((READ, 0), 0, u32::MAX, EINVAL),
        ((READ, 0), 0, (32 << 20) + 512, EINVAL),
        ((READ, 1 << 15), 0, 512, EINVAL),
        ((TRIM, 0), SIZE_BYTES - 512, 1024, ENOSPC),
        ((TRIM, 0), 0, 0, EINVAL),
        ((WRITE_ZEROES, 0), 3, 512, EINVAL),
        ((WRITE_ZEROES, NO_HOLE | FAST_ZERO), 0, 4096, ENOTSUP),
        ((BLOCK_STATUS, 0), 0, 4096, EINVAL),
        ((FLUSH, 0), 4096, 0, EINVAL),
        ((999, 0), 0, 512, EINVAL),
    ];
    for (command, offset, len, error) in refused {
        assert_eq!(client.ask(command, offset, len, &[]), error, "{command:?} {offset} {len}");
    }
    assert_eq!(client.ask((WRITE, 0), SIZE_BYTES - 512, 1024, &[1; 1024]), ENOSPC);
    assert_eq!(client.ask((WRITE, 0), 100, 512, &[1; 512]), EINVAL);
    assert_eq!(client.ask((WRITE, 0), 0, 0, &[]), EINVAL);
    assert_eq!(client.read(0, 512), [0; 512], "nothing of it was written");
    // A write that is too long can't even be skipped in good faith.
    client.request((WRITE, 0), 0, u32::MAX, &[]).unwrap();
    assert!(client.is_closed());
}

#[test]
fn a_client_that_goes_in_mid_write_leaves_nothing_half_done() {
    let folder = folder();
    let server = Server::nbd(folder.path(), &[]);
    let mut witness = Client::connected(&server.socket());
    assert_eq!(witness.ask((WRITE, 0), 0, 8192, &[1; 8192]), 0);
    for sent in [0, 1, 27, 28, 29, 4096, 8191] {
        let mut client = Client::connected(&server.socket());
        let whole = [&request(WRITE, 0, 9, 0, 8192)[..], &[2; 8192]].concat();
        client.send(&whole[..sent.min(whole.len())]);
    }
    assert_eq!(witness.read(0, 8192), [1; 8192]);
    // A whole one is carried out, whether or not anybody waits for the reply.
    let mut client = Client::connected(&server.socket());
    client.send(&[&request(WRITE, 0, 9, 0, 8192)[..], &[3; 8192]].concat());
    drop(client);
    for _ in 0..1000 {
        if witness.read(0, 8192) == [3; 8192] {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("the write of a client that is gone was never carried out");
}

#[test]
fn a_client_that_reads_no_replies_stops_nobody_else() {
    let folder = folder();
    let server = Server::nbd(folder.path(), &[]);
    let mut greedy = Client::connected(&server.socket());
    greedy.stream.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    let mut asked = 0u64;
    // 4 MiB each, until the server stops to listen.
    while asked < 10_000 && greedy.request((READ, 0), 0, 4 << 20, &[]).is_ok() {
        asked += 1;
    }
    assert!(asked < 10_000, "the server takes whatever comes");
    let mut other = Client::connected(&server.socket());
    assert_eq!(other.ask((WRITE, 0), 0, 512, &[5; 512]), 0);
    assert_eq!(other.read(0, 512), [5; 512]);
}

#[test]
fn a_flush_on_one_connection_covers_the_writes_of_another() {
    let folder = folder();
    let server = Server::nbd(folder.path(), &[]);
    let (mut one, mut two) =
        (Client::connected(&server.socket()), Client::connected(&server.socket()));
    assert_eq!(one.ask((WRITE, 0), 4096, 4096, &[9; 4096]), 0);
    assert_eq!(two.read(4096, 4096), [9; 4096], "seen at once");
    assert_eq!(two.ask((FLUSH, 0), 0, 0, &[]), 0);
    server.kill();
    let server = Server::nbd(folder.path(), &[]);
    assert_eq!(Client::connected(&server.socket()).read(4096, 4096), [9; 4096]);
}

#[test]
fn more_clients_than_there_is_room_for_wait() {
    let folder = folder();
    let server = Server::nbd(folder.path(), &[]);
    let mut first: Vec<Client> = (0..64).map(|_| Client::connected(&server.socket())).collect();
    let stream = std::os::unix::net::UnixStream::connect(server.socket()).unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    assert!(std::io::Read::read(&mut &stream, &mut [0; 18]).is_err(), "greeted beyond the limit");
    assert_eq!(first.pop().unwrap().read(0, 512), [0; 512]);
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    std::io::Read::read_exact(&mut &stream, &mut [0; 18]).unwrap();
}
