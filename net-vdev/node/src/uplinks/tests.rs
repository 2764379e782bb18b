use std::net::{Ipv6Addr, SocketAddr};

use mesh_router::Router;
use net_vdev::announcement::{Announcement, Role};
use net_vdev::endpoint::Endpoint;
use net_vdev::offload::{Accepts, VirtioNetHeader};
use net_vdev::uplink::Down;
use net_vdev::{Config, PrivateKey};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::RecvFlags;

use super::*;
use crate::core::Resolved;

const SECOND: u64 = 1_000_000_000;

/// Nobody is outside.
struct Nobody;

impl Outside for Nobody {
    fn send(&mut self, _to: SocketAddr, _datagrams: &[u8], _stride: usize) {}
    fn send_stream(&mut self, _number: u32, _datagrams: &[u8], _stride: usize) {}
    fn deliver(&mut self, _header: &VirtioNetHeader, _packet: &[u8]) {}
    fn attached(&mut self, _member: &PublicKey, _frames: &[u8], _stride: usize) {}
    fn here(&mut self, _member: &PublicKey, _other: &PublicKey, _is_here: bool) {}
    fn resolved(&mut self, _: &PublicKey, _: &Ipv6Addr, _: Resolved<'_>) {}
}

/// A node, and somebody who runs VMs and keeps both ends of all their cards, as `hypha run` does.
struct Host {
    _folder: tempfile::TempDir,
    uplinks: Uplinks,
    core: Core,
    handover: Handover,
    cards: Vec<CardEnds>,
    now_ns: u64,
}

impl Host {
    fn new(cards: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("uplink");
        let private = PrivateKey::new([1; 32]);
        let key = private.public();
        let endpoint = Endpoint::new(Config::new(private, 0), [2; 32]).unwrap();
        let core = Core::new(
            endpoint,
            Router::new(mesh_router::Config::new(key, 0), 3),
            Accepts::default(),
        );
        let uplinks = Uplinks::open(&path, key).unwrap();
        let cards = (0..cards).map(|_| CardEnds::new(None).unwrap()).collect();
        let handover = Handover::new(path);
        let mut host = Self { _folder: folder, uplinks, core, handover, cards, now_ns: SECOND };
        assert!(host.handover.serve(SECOND, host.cards.iter()));
        host.turns();
        host
    }

    fn turns(&mut self) {
        for _ in 0..4 {
            self.uplinks.turn(self.now_ns, &mut self.core, &mut Nobody);
        }
    }

    fn is_ready(&self) -> bool {
        let mut entries = [PollFd::from_borrowed_fd(self.uplinks.as_fd(), PollFlags::IN)];
        poll(&mut entries, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() > 0
    }

    fn say(&self, card: usize, message: &[u8]) {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        send(&self.cards[card].card, message, flags).unwrap();
    }

    /// A card answers the last challenge that it was asked.
    fn answer(&self, card: usize, private: &PrivateKey, sequence: u64) {
        let mut buffer = vec![0; 4096];
        let mut last = None;
        while let Ok((len, _)) = recv(&self.cards[card].card, &mut *buffer, RecvFlags::DONTWAIT) {
            if let Some(Down::Challenge(it)) = Down::parse(&mut buffer[..len]) {
                last = Some(it);
            }
        }
        self.say(card, &answer_to(&last.expect("a challenge"), private, sequence));
    }
}

fn answer_to(challenge: &Challenge, private: &PrivateKey, sequence: u64) -> Vec<u8> {
    let announcement = Announcement {
        key: private.public(),
        sequence,
        expires_unix_s: 3600,
        role: Role::Workload,
    };
    let signed = SignedAnnouncement::sign(announcement, private, &[4; 64]);
    challenge.answer(&signed, private, &[5; 64])
}

#[test]
fn a_card_that_was_let_go_does_not_keep_the_node_awake() {
    let mut host = Host::new(1);
    // An empty message looks like the end of the connection.
    host.say(0, &[]);
    host.turns();
    assert!(host.uplinks.cards.is_empty());
    host.say(0, &uplink::join());
    host.turns();
    assert!(!host.is_ready(), "nobody takes what this socket has");
}

#[test]
fn a_card_whose_member_moved_to_another_does_not_keep_the_node_awake() {
    let mut host = Host::new(2);
    let private = PrivateKey::new([9; 32]);
    for (card, sequence) in [(0, 1), (1, 2)] {
        host.answer(card, &private, sequence);
        host.turns();
    }
    assert_eq!(host.uplinks.cards.len(), 1, "the first is cut off");
    host.say(0, &uplink::join());
    host.turns();
    assert!(!host.is_ready(), "nobody takes what this socket has");
}

#[test]
fn answers_are_verified_at_a_limited_rate() {
    let mut host = Host::new(1);
    let challenge = host.uplinks.cards.values().next().unwrap().challenge;
    let (wrong, right) = (PrivateKey::new([8; 32]), PrivateKey::new([9; 32]));
    let mut forged = answer_to(&challenge, &wrong, 1);
    *forged.last_mut().unwrap() ^= 1;
    for _ in 0..ANSWERS_MAX {
        host.say(0, &forged);
        host.turns();
    }
    host.say(0, &answer_to(&challenge, &right, 1));
    host.turns();
    assert!(host.core.attached().is_empty(), "one too many");
    host.now_ns += ANSWERS_PERIOD_NS;
    host.say(0, &answer_to(&challenge, &right, 1));
    host.turns();
    assert_eq!(host.core.attached().len(), 1);
}
