//! The resolver.

use std::net::SocketAddr;

use mesh_egress::names::key_label;
use net_vdev::PublicKey;

use crate::world::{MEMBER, RESOLVER, SECOND_NS, Server, World, udp};

const A: u16 = 1;
const AAAA: u16 = 28;

/// A query, and an answer to it when `records` are behind the question.
pub(crate) fn message(
    id: u16,
    flags: u16,
    name: &str,
    kind: u16,
    records: &[(u16, u32, &[u8])],
) -> Vec<u8> {
    let mut message = Vec::new();
    for word in [id, flags, 1, records.len() as u16, 0, 0] {
        message.extend_from_slice(&word.to_be_bytes());
    }
    for label in name.split('.') {
        message.push(label.len() as u8);
        message.extend_from_slice(label.as_bytes());
    }
    message.push(0);
    message.extend_from_slice(&kind.to_be_bytes());
    message.extend_from_slice(&[0, 1]);
    for (kind, ttl_s, data) in records {
        message.extend_from_slice(&[0xc0, 12]);
        message.extend_from_slice(&kind.to_be_bytes());
        message.extend_from_slice(&[0, 1]);
        message.extend_from_slice(&ttl_s.to_be_bytes());
        message.extend_from_slice(&(data.len() as u16).to_be_bytes());
        message.extend_from_slice(data);
    }
    message
}

fn ask(world: &mut World, name: &str, kind: u16) -> Vec<Vec<u8>> {
    let to = SocketAddr::new(RESOLVER.into(), 53);
    world.send(&udp((&MEMBER, 4000), to, &message(77, 0x0100, name, kind, &[])));
    answers(world)
}

fn answers(world: &mut World) -> Vec<Vec<u8>> {
    world.turns(2).into_iter().map(|packet| packet[48..].to_vec()).collect()
}

/// What was asked of the server last: its id, and the type.
fn asked(world: &mut World, server: &str) -> (u16, u16) {
    let query = world.outside().socket(server).datagrams.last().unwrap().clone();
    let end = query.len() - 11;
    (u16::from_be_bytes([query[0], query[1]]), u16::from_be_bytes([query[end - 4], query[end - 3]]))
}

pub(crate) fn code(answer: &[u8]) -> u8 {
    answer[3] & 0x0f
}

#[test]
fn a_question_for_ipv6_is_answered_with_ipv4_in_the_prefix() {
    let mut world = World::new(&[]);
    assert!(ask(&mut world, "www.example.org", AAAA).is_empty());
    let (id, kind) = asked(&mut world, "192.0.2.53:53");
    assert_eq!(kind, A);
    let answer = message(id, 0x8180, "www.example.org", A, &[(A, 300, &[198, 51, 100, 7])]);
    world.outside().answer("192.0.2.53:53", &answer);
    let found = answers(&mut world);
    assert_eq!((found.len(), found[0][..2].to_vec()), (1, vec![0, 77]));
    let address = "64:ff9b::198.51.100.7".parse::<std::net::Ipv6Addr>().unwrap();
    assert!(found[0].ends_with(&address.octets()));
    // The second time nobody is asked, and the time that is left counts down.
    let opened = world.outside().opened;
    world.now_ns += 100 * SECOND_NS;
    let again = ask(&mut world, "WWW.example.org", AAAA);
    assert_eq!((again.len(), world.outside().opened), (1, opened));
    let ttl_at = again[0].len() - 22;
    assert_eq!(again[0][ttl_at..ttl_at + 4], 200_u32.to_be_bytes());
}

#[test]
fn an_answer_that_was_not_asked_for_does_not_count() {
    let mut world = World::new(&[]);
    ask(&mut world, "a.org", A);
    let (id, _) = asked(&mut world, "192.0.2.53:53");
    let record: &[(u16, u32, &[u8])] = &[(A, 300, &[6, 6, 6, 6])];
    for wrong in [
        message(id ^ 1, 0x8180, "a.org", A, record),
        message(id, 0x8180, "b.org", A, record),
        message(id, 0x8180, "a.org", 16, record),
        message(id, 0x0180, "a.org", A, record),
        vec![0xff; 40],
    ] {
        world.outside().answer("192.0.2.53:53", &wrong);
        assert!(answers(&mut world).is_empty());
    }
    assert_eq!(world.egress.resolver_counters().odd, 5);
    world.outside().answer("192.0.2.53:53", &message(id, 0x8180, "a.org", A, record));
    assert_eq!(answers(&mut world).len(), 1);
}

#[test]
fn a_server_that_is_silent_gives_way_to_the_next_and_in_the_end_to_an_error() {
    let mut world = World::new(&[]);
    ask(&mut world, "a.org", A);
    world.now_ns += 3 * SECOND_NS;
    assert!(answers(&mut world).is_empty());
    assert_eq!(asked(&mut world, "192.0.2.54:53").1, A);
    for _ in 0..4 {
        world.now_ns += 3 * SECOND_NS;
        if let [answer] = answers(&mut world).as_slice() {
            assert_eq!(code(answer), 2);
            assert!(world.outside().sockets.is_empty());
            return;
        }
    }
    panic!("no answer at all");
}

#[test]
fn a_truncated_answer_is_asked_for_over_tcp() {
    let mut world = World::new(&[(53, Server::Takes)]);
    ask(&mut world, "big.org", 16);
    let (id, _) = asked(&mut world, "192.0.2.53:53");
    world.outside().answer("192.0.2.53:53", &message(id, 0x8380, "big.org", 16, &[]));
    assert!(answers(&mut world).is_empty());
    let query = world.outside().socket("192.0.2.53:53").received.clone();
    let id = u16::from_be_bytes([query[2], query[3]]);
    let text = [[200_u8].as_slice(), &[b'x'; 200]].concat();
    let answer = message(id, 0x8180, "big.org", 16, &[(16, 60, &text)]);
    let framed = [&(answer.len() as u16).to_be_bytes()[..], &answer].concat();
    let (first, second) = framed.split_at(50);
    world.outside().answer("192.0.2.53:53", first);
    assert!(answers(&mut world).is_empty());
    world.outside().answer("192.0.2.53:53", second);
    let found = answers(&mut world);
    assert!(found[0].ends_with(&text));
}

#[test]
fn the_mesh_is_answered_here_and_never_asked_for() {
    let mut world = World::new(&[]);
    let key = PublicKey([5; 32]);
    let found = ask(&mut world, &format!("{}.mesh", key_label(&key)), AAAA);
    assert!(found[0].ends_with(&key.address().octets()));
    assert_eq!(code(&ask(&mut world, "nobody.mesh", AAAA)[0]), 3);
    assert_eq!(code(&ask(&mut world, "a.b.c.mesh", A)[0]), 3);
    let reverse = "0.".repeat(30) + "4.0.ip6.arpa";
    assert_eq!(code(&ask(&mut world, &reverse, 12)[0]), 3);
    let ipv4only = ask(&mut world, "ipv4only.arpa", AAAA);
    assert!(ipv4only[0].ends_with(&[192, 0, 0, 171]));
    assert_eq!(world.outside().opened, 0);
}

#[test]
fn many_questions_are_bounded() {
    let mut world = World::new(&[]);
    for at in 0..5000 {
        ask(&mut world, &format!("n{at}.org"), A);
    }
    assert_eq!(world.outside().sockets.len(), 64);
    assert_eq!(world.egress.resolver_counters().too_many, 5000 - 64);
    for _ in 0..6 {
        world.now_ns += 3 * SECOND_NS;
        world.turn();
    }
    assert!(world.outside().sockets.is_empty());
}

#[test]
fn nonsense_is_refused_or_ignored() {
    let mut world = World::new(&[]);
    let to = SocketAddr::new(RESOLVER.into(), 53);
    world.send(&udp((&MEMBER, 4000), to, &[0; 5]));
    assert!(answers(&mut world).is_empty());
    assert_eq!(code(&ask(&mut world, "a.org", 255)[0]), 4);
}
