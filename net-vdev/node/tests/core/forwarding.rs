//! Frames through other nodes: first packets, ways, batches.

use net_vdev::endpoint::Path;
use net_vdev::offload::{ChecksumField, Segmentation, SegmentationKind, VirtioNetHeader};

use crate::world::{MS, ONE_WAY_NS, SECOND, World, place, udp};

const LINE: [(usize, usize); 2] = [(0, 1), (2, 1)];

#[test]
fn a_first_packet_goes_through_a_node_that_both_know_at_once() {
    let mut world = World::new(3, &LINE, 1);
    world.run(SECOND);
    let payload = world.send(0, 2);
    world.run(100 * MS);
    assert!(world.got_once(2, &payload));
    let payload = world.send(2, 0);
    world.run(3 * ONE_WAY_NS);
    assert!(world.got_once(0, &payload));
    let middle = world.nodes[1].core.endpoint();
    assert_eq!(middle.counters().packets_received, 0, "what it passes on stays sealed");
}

#[test]
fn nodes_that_can_reach_each_other_do_without_the_one_between() {
    let mut world = World::new(3, &LINE, 2);
    for index in 0..3 {
        world.nodes[index].core.set_candidates(vec![place(index)]);
    }
    world.wires.extend([(0, 2), (2, 0)]);
    world.run(SECOND);
    assert!(world.longest_gap_ns(0, 2, 2 * SECOND) <= 100 * MS);
    let key = world.nodes[2].key;
    let peers: Vec<_> = world.nodes[0].core.endpoint().peers().collect();
    let peer = peers.iter().find(|peer| peer.key == key).unwrap();
    let current = peer.paths.iter().find(|path| path.is_current).unwrap();
    assert_eq!(current.path, Path::Direct(place(2)));
    // Without that wire they go back to the node between.
    world.wires.remove(&(0, 2));
    let gap_ns = world.longest_gap_ns(0, 2, 2 * SECOND);
    assert!(gap_ns < 500 * MS, "{gap_ns} ns");
}

/// A TCP super-frame from node 0's host to node 2's, of `len` bytes of payload.
fn superframe(world: &World, len: usize) -> (VirtioNetHeader, Vec<u8>) {
    let mut packet = udp(world.address(0), world.address(2), &[]);
    packet.truncate(40);
    packet[6] = 6;
    packet.extend_from_slice(&[0x30, 0, 0x30, 0, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x10, 1, 0]);
    packet.extend_from_slice(&[0; 4]);
    packet.extend((0..len).map(|index| index as u8));
    let bytes = u16::try_from(20 + len).unwrap().to_be_bytes();
    packet[4..6].copy_from_slice(&bytes);
    let header = VirtioNetHeader {
        checksum: Some(ChecksumField { start: 40, offset: 16 }),
        segmentation: Some(Segmentation {
            kind: SegmentationKind::TcpV6,
            ecn: false,
            payload_bytes: 1300,
            headers_bytes: 60,
        }),
    };
    (header, packet)
}

#[test]
fn a_super_frame_crosses_a_node_as_one_batch_and_arrives_as_one() {
    let mut world = World::new(3, &LINE, 3);
    world.run(SECOND);
    world.send(0, 2);
    world.run(SECOND);
    world.nodes.iter_mut().for_each(|node| node.batches.clear());
    let (header, packet) = superframe(&world, 50_000);
    world.nodes[0].core.send(world.now_ns, &header, &packet);
    world.settle(0);
    world.run(3 * ONE_WAY_NS);
    // 1284 bytes each: less than the host asked for, since the frames carry a router's header,
    // and in whole blocks of AES.
    let segments = 50_000usize.div_ceil(1284);
    for node in [0, 1] {
        let batches = &world.nodes[node].batches;
        let large: Vec<_> = batches.iter().filter(|(count, _)| *count > 1).collect();
        assert_eq!(large.len(), 1, "node {node}: {batches:?}");
        assert_eq!(large[0].0, segments, "node {node}");
    }
    let arrived: Vec<_> = world.nodes[2].wire.delivered.iter().skip(1).collect();
    assert_eq!(arrived.len(), 1);
    let (header, got) = arrived[0];
    assert_eq!(header.segmentation.unwrap().payload_bytes, 1284);
    assert_eq!(got[60..], packet[60..], "the bytes of the stream");
}
