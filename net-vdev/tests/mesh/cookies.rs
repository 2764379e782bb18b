//! Floods of initiations from forged addresses: whoever can be reached where it says it is gets its
//! handshake all the same.

use std::net::SocketAddr;

use net_vdev::cookie::Cookie;
use net_vdev::wire::{self, CookieReply, Datagram};
use net_vdev::{DropReason, PrivateKey};

use crate::hostile::{initiation, stranger};
use crate::world::{MS, ONE_WAY_NS, SECOND, World};

fn dropped(world: &World, member: usize, reason: DropReason) -> u64 {
    world.members[member].endpoint.counters().dropped(reason)
}

/// Somebody who is on no path between the members, and so sees nothing that they send; but it knows
/// both keys and addresses, and sends from any.
struct Forger {
    /// For each member: an initiation to it, under a key that nobody knows.
    initiations: [Vec<u8>; 2],
    per_second: u64,
    /// Whether it writes to both members, or to member 1 only.
    to_both: bool,
}

impl Forger {
    fn new(world: &mut World, per_second: u64, to_both: bool) -> Self {
        let key = PrivateKey::new([9; 32]);
        let initiations = [0, 1].map(|to| initiation(world, to, &key, u64::MAX));
        Self { initiations, per_second, to_both }
    }

    /// A second of the flood, each initiation in the name of the other member.
    fn flood(&self, world: &mut World) {
        let places = [0, 1].map(|member| world.members[member].place);
        for _ in 0..self.per_second {
            world.run(SECOND / self.per_second);
            for to in if self.to_both { 0..2 } else { 1..2 } {
                world.inject(places[1 - to], places[to], self.initiations[to].clone());
            }
        }
        world.seen.clear();
    }
}

#[test]
fn a_flood_in_the_peer_s_name_keeps_no_session_from_coming_up_or_being_renewed() {
    for (per_second, to_both) in [(200, false), (1000, true)] {
        let mut world = World::new(2, 77);
        let forger = Forger::new(&mut world, per_second, to_both);
        // All allowances are used up before the first packet.
        forger.flood(&mut world);
        // A session lives for 180 seconds: this is more than one life. With one direction flooded,
        // only its member has something to send, so that no other handshake renews the session.
        let mut packets = Vec::new();
        for _ in 0..200 {
            packets.push((1, world.send(0, 1)));
            if to_both {
                packets.push((0, world.send(1, 0)));
            }
            forger.flood(&mut world);
        }
        let lost = packets.iter().filter(|(to, packet)| !world.got_once(*to, packet)).count();
        assert_eq!(lost, 0, "{per_second} initiations a second, to both: {to_both}");
        let counters = world.members[1].endpoint.counters();
        assert!(counters.handshakes >= 2, "{counters:?}");
        assert!(counters.cookies_sent > 0, "{counters:?}");
    }
}

#[test]
fn a_member_that_is_new_to_an_address_gets_in_through_a_flood_of_strangers() {
    let mut world = World::new(2, 78);
    let flood = initiation(&mut world, 1, &PrivateKey::new([9; 32]), u64::MAX);
    world.members[0].place = SocketAddr::from(([203, 0, 113, 9], 4));
    let place = world.members[1].place;
    (0..50).for_each(|number| world.inject(stranger(number), place, flood.clone()));
    let packet = world.send(0, 1);
    for number in 0..1000 {
        world.inject(stranger(number), place, flood.clone());
        world.run(MS);
    }
    assert!(world.got_once(1, &packet));
}

#[test]
fn a_cookie_costs_one_round_trip_and_serves_for_two_minutes() {
    let mut world = World::new(2, 79);
    let flood = initiation(&mut world, 1, &PrivateKey::new([9; 32]), u64::MAX);
    let [place, peer] = [0, 1].map(|member| world.members[member].place);
    // Nothing comes back from the peer for so long that each packet starts a handshake.
    for (pause_ns, needed) in [(0, 2), (50 * SECOND, 1), (50 * SECOND, 1), (50 * SECOND, 2)] {
        world.run(pause_ns);
        (0..10).for_each(|_| world.inject(place, peer, flood.clone()));
        world.seen.clear();
        let packet = world.send(0, 1);
        world.run(5 * ONE_WAY_NS);
        assert!(world.got_once(1, &packet), "initiation, cookie, initiation, response, data");
        let sent = world.seen.iter();
        let initiations = sent.filter(|(from, _, bytes)| *from == place && bytes[1] == 1).count();
        assert_eq!(initiations, needed, "at second {}", world.now_ns / SECOND);
    }
}

#[test]
fn cookies_are_shorter_than_what_they_answer_and_not_too_many() {
    let mut world = World::new(2, 80);
    let flood = initiation(&mut world, 1, &PrivateKey::new([9; 32]), u64::MAX);
    let (peer, place) = (world.members[0].place, world.members[1].place);
    let begin_ns = world.now_ns;
    for number in 0..5000 {
        world.inject(if number % 2 == 0 { peer } else { stranger(number) }, place, flood.clone());
    }
    assert_eq!(world.now_ns, begin_ns);
    assert_eq!(world.seen.len(), 100);
    assert_eq!(world.members[1].endpoint.counters().cookies_sent, 100);
    assert!(world.seen.iter().all(|(_, _, bytes)| bytes[1] == 4 && bytes.len() == 64));
    // Nobody takes what the member has to send: cookies leave room for others.
    for _ in 0..5000 {
        world.now_ns += MS;
        world.hand(1, peer, flood.clone());
    }
    assert_eq!(world.members[1].endpoint.occupancy().transmits, 128);
}

/// The cookie that member 1 gives to whoever is at `place`, by a flood from there.
fn cookie_for(world: &mut World, place: SocketAddr) -> Cookie {
    let flood = initiation(world, 1, &PrivateKey::new([9; 32]), u64::MAX);
    let responder = world.members[1].key();
    let to = world.members[1].place;
    world.seen.clear();
    for _ in 0..60 {
        world.inject(place, to, flood.clone());
    }
    let (_, receiver, reply) = world.seen.last().unwrap();
    assert_eq!(*receiver, place);
    let Ok(Datagram::Cookie(reply)) = wire::parse(reply) else { panic!("no cookie") };
    let Ok(Datagram::Initiation(message)) = wire::parse(&flood) else { panic!("no initiation") };
    assert_eq!(reply.answers, wire::cookie_index(&message.mac1));
    Cookie::open(&responder, &reply.nonce, &message.mac1, reply.sealed).unwrap()
}

#[test]
fn who_proved_an_address_is_read_at_a_bounded_rate_and_from_that_address_only() {
    let mut world = World::new(2, 81);
    let cookie = cookie_for(&mut world, stranger(1));
    let read = |world: &World| dropped(world, 1, DropReason::HandshakeStranger);
    assert_eq!(read(&world), 50, "the strangers' allowance is used up");
    let mut proven = initiation(&mut world, 1, &PrivateKey::new([8; 32]), u64::MAX);
    cookie.prove(&mut proven);
    let place = world.members[1].place;
    for number in 2..40 {
        world.inject(stranger(number), place, proven.clone());
    }
    world.inject(world.members[0].place, place, proven.clone());
    assert_eq!(read(&world), 51, "the one from the peer's place, as if it had no cookie");
    let asked = world.members[1].endpoint.counters().cookies_sent;
    for _ in 0..100 {
        world.inject(stranger(1), place, proven.clone());
    }
    assert_eq!(read(&world), 61);
    assert_eq!(world.members[1].endpoint.counters().cookies_sent, asked, "it has one");
    // The peer is not kept waiting by that, wherever it comes from.
    world.members[0].place = SocketAddr::from(([203, 0, 113, 9], 4));
    let packet = world.send(0, 1);
    world.run(5 * ONE_WAY_NS);
    assert!(world.got_once(1, &packet));
}

#[test]
fn a_forged_cookie_is_neither_kept_nor_answered() {
    let mut world = World::new(2, 82);
    world.faults.lose_kind = Some(1);
    world.send(0, 1);
    let (from, to, sent) = world.seen.last().cloned().unwrap();
    let Ok(Datagram::Initiation(message)) = wire::parse(&sent) else { panic!("no initiation") };
    // Made by somebody who has not seen the initiation, and so guesses its number right at best.
    let responder = world.members[1].key();
    let cookie = cookie_for(&mut World::new(2, 83), from);
    let nonce = [7; 24];
    let mac1 = message.mac1;
    let mut others = mac1;
    others[15] ^= 1;
    let sealed = cookie.seal(&responder, &nonce, &others).unwrap();
    let reply = |answers, sealed| {
        let mut bytes = Vec::new();
        wire::write_cookie(&mut bytes, &CookieReply { answers, nonce, sealed });
        bytes
    };
    world.seen.clear();
    let answers = wire::cookie_index(&mac1);
    for answers in [answers, answers ^ 1] {
        world.inject(to, from, reply(answers, sealed));
    }
    assert_eq!(dropped(&world, 0, DropReason::HandshakeCookie), 2);
    assert!(world.seen.is_empty());
    // Whoever has seen it makes the member repeat it, once, and no handshake fails for that.
    let sealed = cookie.seal(&responder, &nonce, &mac1).unwrap();
    for _ in 0..10 {
        world.inject(to, from, reply(answers, sealed));
    }
    assert_eq!(world.seen.len(), 1);
    world.faults.lose_kind = None;
    let packet = world.send(0, 1);
    world.run(SECOND);
    assert!(world.got_once(1, &packet), "a wrong cookie is worth as much as none");
}
