//! A node that lies about aliases.

use std::net::{Ipv6Addr, SocketAddr};

use mesh_router::{LinkId, Router};
use net_vdev::announcement::{Announcement, Role, SignedAnnouncement};
use net_vdev::certificate::{ALIAS_BYTES, Alias};
use net_vdev::endpoint::{Endpoint, Event, Path, Strangers, Transmit};
use net_vdev::signature::{Purpose, sign};
use net_vdev::{Config, PrivateKey, PublicKey};

use crate::aliases::{reaches, unix_s, world, world_key};
use crate::attached::{Vm, run};
use crate::world::{MS, SECOND, UNIX_NS, World, place};

/// Where it is.
const PLACE: usize = 8;

/// A neighbour of the first node: a member and a router of its own, and no [`mesh_node::core::Core`].
struct Liar {
    endpoint: Endpoint,
    router: Router,
    asker: PublicKey,
    link: Option<LinkId>,
    /// What it answers whoever asks for an alias.
    claims: Option<[u8; ALIAS_BYTES]>,
}

impl Liar {
    fn new(world: &mut World, key: &PrivateKey) -> Self {
        let public = key.public();
        let config = Config {
            strangers: Strangers::Welcome { at_most: 8 },
            is_routed: true,
            ..Config::new(key.clone(), UNIX_NS)
        };
        let mut routing = mesh_router::Config::new(public, 0);
        routing.unix_time_at_zero_ns = UNIX_NS;
        let mut router = Router::new(routing, 5);
        let announcement = Announcement {
            key: public,
            sequence: 1,
            expires_unix_s: UNIX_NS / SECOND + 3600,
            role: Role::Node { zone: 0 },
        };
        let signed = SignedAnnouncement::sign(announcement, key, &[7; 64]);
        router.originate(world.now_ns, signed).unwrap();
        let asker = &mut world.nodes[0];
        assert!(asker.core.add_neighbour(world.now_ns, public, Some(place(PLACE))));
        let asker = asker.key;
        world.settle(0);
        let endpoint = Endpoint::new(config, [60; 32]).unwrap();
        Self { endpoint, router, asker, link: None, claims: None }
    }

    /// Takes what came for it, and sends what it has to say. What would go through routers is lost.
    fn turn(&mut self, world: &mut World) {
        let now_ns = world.now_ns;
        let mine = |(_, to, ..): &mut (usize, SocketAddr, Vec<u8>, usize)| *to == place(PLACE);
        for (from, _, mut bytes, stride) in world.strays.extract_if(.., mine) {
            let from = Path::Direct(place(from));
            self.endpoint.receive(now_ns, from, &mut bytes, stride, &mut |_, _| {});
        }
        self.endpoint.handle_deadline(now_ns);
        self.router.handle_deadline(now_ns);
        while let Some(event) = self.endpoint.poll_event() {
            match event {
                Event::Router { from, message, .. } => {
                    let link =
                        self.link.unwrap_or_else(|| self.router.link_up(now_ns, from, 0).unwrap());
                    self.link = Some(link);
                    self.router.receive(now_ns, link, &message);
                }
                Event::AliasAsked { from, address } => {
                    if let Some(claim) = self.claims {
                        assert!(self.endpoint.tell_alias(&from, address, Some(&claim)));
                    }
                }
                _ => {}
            }
        }
        while let Some((_, message)) = self.router.poll_transmit() {
            self.endpoint.send_router_message(now_ns, &self.asker, &message);
        }
        while let Some(Transmit { to, bytes, stride }) = self.endpoint.poll_transmit() {
            for datagram in bytes.chunks(stride).filter(|_| to == Path::Direct(place(0))) {
                world.inject(place(PLACE), 0, datagram.to_vec());
            }
        }
    }

    fn run(&mut self, world: &mut World, vms: &mut [Vm], duration_ns: u64) {
        for _ in 0..duration_ns / (2 * MS) {
            self.turn(world);
            run(world, vms, 2 * MS);
        }
    }

    /// Whether the first host reaches the workload at `to`.
    fn reached(&mut self, world: &mut World, vms: &mut [Vm], to: Ipv6Addr) -> bool {
        reaches(world, vms, to, |world, vms| self.run(world, vms, 200 * MS))
    }
}

/// What somebody signs that does not keep to the rules.
fn signed_anyway(alias: &Alias, key: &PrivateKey) -> [u8; ALIAS_BYTES] {
    let mut bytes = vec![1, 1, 0, 0];
    bytes.extend_from_slice(&alias.node.0);
    bytes.extend_from_slice(&alias.workload.0);
    bytes.extend_from_slice(&alias.address.octets());
    bytes.extend_from_slice(&alias.begins_unix_s.to_be_bytes());
    bytes.extend_from_slice(&alias.expires_unix_s.to_be_bytes());
    let signature = sign(key, Purpose::new("Hypha mesh 1: alias"), &bytes, &[5; 64]);
    bytes.extend_from_slice(&signature);
    bytes.try_into().unwrap()
}

#[test]
fn a_node_s_word_about_an_alias_counts_only_with_a_certificate_that_does() {
    let (mut world, [workload], true_alias) = world();
    let key = PrivateKey::new([50; 32]);
    let asker = world.nodes[0].key;
    let mut liar = Liar::new(&mut world, &key);
    let mut vms = [workload];
    let (victim, other) = (vms[0].key, PrivateKey::new([9; 32]).public());
    let true_node = world.nodes[2].key;
    let now_s = unix_s(&world);
    let held = now_s - 60..now_s + 300;
    let good = Alias::new(key.public(), victim, held.clone());
    let ended = Alias::new(key.public(), victim, now_s - 700..now_s - 301);
    let early = Alias::new(key.public(), victim, now_s + 1000..now_s + 1300);
    let eternal = Alias::new(key.public(), victim, now_s..now_s + (1 << 40));
    let lies = [
        ("it has ended", signed_anyway(&ended, &key)),
        ("it has not begun", signed_anyway(&early, &key)),
        ("it holds for ever", signed_anyway(&eternal, &key)),
        ("another workload", signed_anyway(&Alias { workload: other, ..good }, &key)),
        ("another address of its own", {
            signed_anyway(&Alias::new(key.public(), other, held.clone()), &key)
        }),
        ("an address of another's /64", {
            signed_anyway(&Alias { address: true_alias, ..good }, &key)
        }),
        ("another node's name", signed_anyway(&Alias { node: true_node, ..good }, &key)),
        ("another node's certificate", {
            signed_anyway(&Alias::new(true_node, victim, held), &world_key(&world, 2))
        }),
        ("nobody signed it", signed_anyway(&good, &PrivateKey::new([51; 32]))),
    ];
    for (number, (what, lie)) in (1..).zip(lies) {
        liar.claims = Some(lie);
        assert!(!liar.reached(&mut world, &mut vms, good.address), "{what}");
        assert_eq!(world.nodes[0].core.counters().aliases_refused, number, "{what}");
        assert_eq!(world.nodes[0].core.known_aliases(world.now_ns).count(), 0, "{what}");
        // It is asked again two seconds later.
        liar.run(&mut world, &mut vms, 3 * SECOND);
    }
    liar.claims = Some(signed_anyway(&good, &key));
    assert!(liar.reached(&mut world, &mut vms, good.address), "the truth, after all that");
    // What it says without being asked changes nothing, but that it takes its alias back.
    let told = liar.endpoint.tell_alias(&asker, true_alias, None);
    assert!(told && liar.reached(&mut world, &mut vms, true_alias));
    assert!(liar.endpoint.tell_alias(&asker, good.address, None));
    liar.claims = None;
    liar.run(&mut world, &mut vms, 50 * MS);
    assert!(!liar.reached(&mut world, &mut vms, good.address));
    assert!(liar.reached(&mut world, &mut vms, true_alias), "the other node's stays");
}
