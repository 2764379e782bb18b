//! Names of workloads: one node gives them, another asks for them.

use std::net::{Ipv6Addr, SocketAddr};

use mesh_egress::names::{Names, key_label};
use mesh_egress::{Egress, EgressConfig};
use net_vdev::certificate::{HostName, NameRecord};
use net_vdev::offload::VirtioNetHeader;
use net_vdev::{PrivateKey, PublicKey};

use crate::names::{code, message};
use crate::world::{MEMBER, Outside, SECOND_NS, udp};

const NODE: [u8; 32] = [1; 32];
const ASKING: [u8; 32] = [2; 32];
const WORKLOAD: PublicKey = PublicKey([8; 32]);
const AAAA: u16 = 28;
const NAME_RECORD: u16 = 65_312;
const UNIX_S: u64 = 1_800_000_000;

fn node(key: [u8; 32], names: Names) -> Egress<Outside> {
    let own = PrivateKey::new(key).public().address();
    let config = EgressConfig {
        resolver_addresses: vec![own],
        names,
        own: Some(own),
        unix_time_at_zero_ns: UNIX_S * SECOND_NS,
        ..EgressConfig::default()
    };
    Egress::new(config, Outside::default(), [9; 32])
}

/// What a node signs about the name `web`.
fn signed(signer: [u8; 32], name: &str, expires_unix_s: u64) -> Vec<u8> {
    numbered(2, signer, name, expires_unix_s)
}

fn numbered(sequence: u64, signer: [u8; 32], name: &str, expires_unix_s: u64) -> Vec<u8> {
    let key = PrivateKey::new(signer);
    let record = NameRecord {
        node: key.public(),
        workload: WORKLOAD,
        name: name.parse().unwrap(),
        sequence,
        expires_unix_s,
    };
    record.sign(&key, &[3; 64]).unwrap()
}

/// Two nodes, the first of which has a name for a workload and this to show for it.
struct World {
    named: Egress<Outside>,
    asking: Egress<Outside>,
    now_ns: u64,
}

impl World {
    fn new(certificate: Vec<u8>) -> Self {
        let mut names = Names::new();
        let node_key = PrivateKey::new(NODE).public();
        let web: HostName = "web".parse().unwrap();
        names.set_own(node_key);
        names.name_workload(web, WORKLOAD, certificate);
        let mut nicknames = Names::new();
        nicknames.nickname("berlin", node_key);
        Self { named: node(NODE, names), asking: node(ASKING, nicknames), now_ns: SECOND_NS }
    }

    /// A member of the second node asks; what it is answered, when nodes are `reached`.
    fn ask(&mut self, name: &str, kind: u16, reached: bool) -> Option<Vec<u8>> {
        let to = SocketAddr::new(PrivateKey::new(ASKING).public().address().into(), 53);
        let packet = udp((&MEMBER, 4000), to, &message(77, 0x0100, name, kind, &[]));
        let header = VirtioNetHeader::default();
        self.asking.receive(self.now_ns, (&MEMBER, None), &header, &packet);
        for _ in 0..10 {
            while let Some(question) = self.asking.poll_packet() {
                assert_eq!(question[24..40], PrivateKey::new(NODE).public().address().octets());
                if reached {
                    assert!(self.named.takes(&question));
                    assert!(self.named.receive_stranger(self.now_ns, &question));
                }
            }
            while let Some(answer) = self.named.poll_packet() {
                assert!(self.asking.takes(&answer) && self.asking.is_answer(&answer));
                self.asking.receive_answer(self.now_ns, &answer);
            }
            let mut answers = Vec::new();
            self.asking.handle_deadline(self.now_ns);
            self.asking.flush(self.now_ns, &mut |member, _, packet| {
                assert_eq!(*member, MEMBER);
                answers.push(packet[48..].to_vec());
            });
            if let Some(answer) = answers.pop() {
                return Some(answer);
            }
            self.now_ns += SECOND_NS;
        }
        None
    }
}

fn holds(answer: &[u8], address: Ipv6Addr) -> bool {
    answer.windows(16).any(|bytes| bytes == address.octets())
}

#[test]
fn a_workload_is_found_by_the_name_that_its_node_signed() {
    let mut world = World::new(signed(NODE, "web", UNIX_S + 3600));
    let by_key = format!("Web.{}.mesh", key_label(&PrivateKey::new(NODE).public()));
    for name in ["web.berlin.mesh", &by_key] {
        let answer = world.ask(name, AAAA, true).unwrap();
        assert_eq!(code(&answer), 0);
        assert!(holds(&answer, WORKLOAD.address()), "{name}");
    }
    // What is known is not asked for again, and has an end.
    assert!(holds(&world.ask("web.berlin.mesh", AAAA, false).unwrap(), WORKLOAD.address()));
    world.now_ns += 61 * SECOND_NS;
    assert_eq!(code(&world.ask("web.berlin.mesh", AAAA, false).unwrap()), 2, "nobody answers");
}

#[test]
fn a_name_that_a_node_does_not_give_is_nobodys() {
    let mut world = World::new(signed(NODE, "web", UNIX_S + 3600));
    assert_eq!(code(&world.ask("db.berlin.mesh", AAAA, true).unwrap()), 3);
    assert_eq!(code(&world.ask("web.paris.mesh", AAAA, true).unwrap()), 3, "no such node");
    assert_eq!(code(&world.ask("a.web.berlin.mesh", AAAA, true).unwrap()), 3);
}

#[test]
fn what_is_not_signed_by_the_node_or_has_expired_or_names_another_is_no_answer() {
    for certificate in [
        signed(ASKING, "web", UNIX_S + 3600),
        signed(NODE, "web", UNIX_S),
        signed(NODE, "db", UNIX_S + 3600),
        vec![0; 150],
        Vec::new(),
    ] {
        let mut world = World::new(certificate);
        let answer = world.ask("web.berlin.mesh", AAAA, true).unwrap();
        assert_eq!(code(&answer), 2);
        assert!(!holds(&answer, WORKLOAD.address()));
    }
}

#[test]
fn a_stranger_is_told_of_this_nodes_names_and_nothing_else() {
    let mut world = World::new(signed(NODE, "web", UNIX_S + 3600));
    let to = SocketAddr::new(PrivateKey::new(NODE).public().address().into(), 53);
    let web = format!("web.{}.mesh", key_label(&PrivateKey::new(NODE).public()));
    let elsewhere = format!("web.{}.mesh", key_label(&PrivateKey::new(ASKING).public()));
    for (name, kind, is_told) in [
        (web.as_str(), NAME_RECORD, true),
        (&web, AAAA, false),
        ("example.org", 1, false),
        ("example.org", NAME_RECORD, false),
        (&elsewhere, NAME_RECORD, false),
    ] {
        let packet = udp((&MEMBER, 4000), to, &message(1, 0x0100, name, kind, &[]));
        assert_eq!(world.named.receive_stranger(SECOND_NS, &packet), is_told, "{name} {kind}");
        assert_eq!(world.named.poll_packet().is_some(), is_told);
    }
    assert_eq!(world.named.sockets().opened, 0, "nobody else is asked for a stranger");
    let packet = udp((&MEMBER, 4000), to, &message(1, 0x0100, &web, NAME_RECORD, &[]));
    let answered = (0..5000).filter(|_| world.named.receive_stranger(SECOND_NS, &packet)).count();
    assert!(answered <= 1000, "{answered}");
}

#[test]
fn an_older_record_does_not_count_as_long_as_the_newer_would() {
    let mut world = World::new(signed(NODE, "web", UNIX_S + 3600));
    assert_eq!(code(&world.ask("web.berlin.mesh", AAAA, true).unwrap()), 0);
    let web: HostName = "web".parse().unwrap();
    let say = |world: &mut World, sequence: u64, after_s: u64| {
        let certificate = numbered(sequence, NODE, "web", UNIX_S + 99_999);
        world.named.names_mut().name_workload(web, WORKLOAD, certificate);
        world.now_ns += after_s * SECOND_NS;
        code(&world.ask("web.berlin.mesh", AAAA, true).unwrap())
    };
    assert_eq!(say(&mut world, 1, 61), 2, "an older one");
    assert_eq!(say(&mut world, 2, 61), 0, "the same");
    assert_eq!(say(&mut world, 3, 61), 0, "a newer one");
}
