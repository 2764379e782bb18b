//! The resolver between members that ask anything and servers that answer anything.

use std::net::{Ipv6Addr, SocketAddr};

use mesh_egress::names::Names;
use mesh_egress::{Egress, EgressConfig};
use net_vdev::PublicKey;
use net_vdev::firewall::{Packet, Transport};
use net_vdev::offload::VirtioNetHeader;
use net_vdev::wire::MTU;

use crate::bytes::Input;
use crate::packets::{Outside, has_right_checksums, packet};

const MEMBER: PublicKey = PublicKey([7; 32]);
const NODE: PublicKey = PublicKey([8; 32]);
const SECOND_NS: u64 = 1_000_000_000;

/// The input is a list of events: a member's message (length (2), bytes); what a server says on an
/// open socket, with the id and the question of what it was asked or without (which socket (1),
/// length (2), bytes); another node's answer (length (2), bytes); time (2). True if a member was told
/// what a server said.
///
/// # Panics
/// A promise is broken.
pub fn check(data: &[u8]) -> bool {
    let own = NODE.address();
    let mut names = Names::new();
    names.nickname("a", PublicKey([9; 32]));
    let upstreams = [[192, 0, 2, 1], [192, 0, 2, 2]];
    let config = EgressConfig {
        resolver_addresses: vec![own],
        upstreams: upstreams.map(|address| SocketAddr::from((address, 53))).to_vec(),
        names,
        own: Some(own),
        ..EgressConfig::default()
    };
    let mut egress = Egress::new(config, Outside::default(), [3; 32]);
    let (mut now_ns, mut told) = (SECOND_NS, false);
    Input(data).actions(|input| {
        let mut server_spoke = false;
        match input.byte() % 5 {
            0 => {
                let question = udp(input, MEMBER.address(), own, (4000, 53));
                egress.receive(now_ns, (&MEMBER, None), &VirtioNetHeader::default(), &question);
            }
            kind @ (1 | 2) => {
                let place = usize::from(input.byte());
                let message = answer(input, &egress, kind == 1);
                server_spoke = true;
                egress.sockets_mut().says(place, &message);
            }
            3 => {
                let port = 0xc000 | input.u16();
                let packet = udp(input, PublicKey([9; 32]).address(), own, (53, port));
                if egress.is_answer(&packet) {
                    egress.receive_answer(now_ns, &packet);
                }
                egress.receive_stranger(now_ns, &packet);
            }
            _ => now_ns += u64::from(input.u16()) * SECOND_NS / 1000,
        }
        egress.handle_deadline(now_ns);
        egress.flush(now_ns, &mut |member, header, bytes| {
            assert_eq!((*member, *header), (MEMBER, VirtioNetHeader::default()));
            check_packet(bytes);
            told |= server_spoke;
        });
        while let Some(question) = egress.poll_packet() {
            check_packet(&question);
        }
        assert!(egress.sockets().open.len() <= 512, "too many sockets");
    });
    told
}

fn check_packet(bytes: &[u8]) {
    assert!(bytes.len() <= MTU && has_right_checksums(bytes));
    let Ok(Packet { transport: Transport::Udp(_), .. }) = Packet::parse(bytes) else {
        panic!("no datagram")
    };
}

/// A datagram with a message of the input's.
fn udp(
    input: &mut Input<'_>,
    from: Ipv6Addr,
    to: Ipv6Addr,
    (source, destination): (u16, u16),
) -> Vec<u8> {
    let len = usize::from(input.u16() % 1300);
    let message = input.bytes(len);
    let len = 8 + message.len() as u16;
    let mut transport = Vec::new();
    for word in [source, destination, len, 0] {
        transport.extend_from_slice(&word.to_be_bytes());
    }
    transport.extend_from_slice(message);
    packet(from.into(), to.into(), 17, &transport)
}

/// What a server says: the input's bytes, behind a header of two answers and the question that was
/// asked last if `fits`.
fn answer(input: &mut Input<'_>, egress: &Egress<Outside>, fits: bool) -> Vec<u8> {
    let asked = egress.sockets().sent.last().filter(|_| fits);
    let len = usize::from(input.u16() % 1300);
    let bytes = input.bytes(len);
    let Some((_, asked)) = asked else { return bytes.to_vec() };
    // Without the OPT record at the end.
    let question = asked.get(12..asked.len().saturating_sub(11)).unwrap_or_default();
    let id = asked.first_chunk::<2>().copied().unwrap_or_default();
    let flags = bytes.first_chunk::<2>().copied().unwrap_or([0x81, 0x80]);
    let counts = [0, 1, 0, 1, 0, 0, 0, 0];
    let rest = bytes.get(2..).unwrap_or_default();
    [&id[..], &flags, &counts, question, rest].concat()
}
