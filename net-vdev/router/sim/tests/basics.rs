//! Small worlds: what must work at all.

use mesh_sim::topology;
use mesh_sim::world::{MS, S, Walk, World};

fn started(build: impl FnOnce(&mut World)) -> World {
    let mut world = World::new(1);
    build(&mut world);
    for node in 0..world.nodes.len() {
        world.start(node);
    }
    world
}

fn arrives(world: &World, from: usize, to: usize) -> bool {
    matches!(world.walk(from, &world.nodes[to].address, false), Walk::Arrived { .. })
}

#[test]
fn nodes_in_a_row_find_each_other_within_some_round_trips() {
    let mut world = started(|world| topology::line(world, 6, 5 * MS));
    let end_ns = world.now_ns + 400 * MS;
    world.run(end_ns, |_| {});
    for (from, to) in [(0, 5), (5, 0), (2, 4)] {
        assert!(
            arrives(&world, from, to),
            "{:?}",
            world.walk(from, &world.nodes[to].address, false)
        );
    }
}

#[test]
fn a_cut_in_one_direction_is_bypassed_within_half_a_second() {
    for direction in [0, 1] {
        let mut world = started(|world| topology::diamond(world, 2 * MS));
        let end_ns = world.now_ns + 3 * S;
        world.run(end_ns, |_| {});
        // Keep the path in use, so that its links are probed closely.
        let address = world.nodes[3].address;
        let first = world.nodes[0].router.as_ref().map(|it| it.route_to(&address, false));
        for _ in 0..20 {
            let now_ns = world.now_ns;
            for node in 0..4 {
                let ports = world.nodes[node].ports.len();
                for port in 0..ports {
                    let link = world.nodes[node].ports[port].link;
                    if let (Some(link), Some(router)) = (link, &mut world.nodes[node].router) {
                        router.sent(now_ns, link);
                    }
                }
                world.after(node);
            }
            world.run(now_ns + 50 * MS, |_| {});
        }
        let wire = match world.walk(0, &address, false) {
            Walk::Arrived { .. } => {
                let through_1 = world.nodes[0].ports[0].link;
                let is_first = first == through_1.map(mesh_router::NextHop::Link);
                if is_first { 0 } else { 2 }
            }
            other => panic!("{other:?}"),
        };
        world.wires[wire].directions[direction].is_cut = true;
        assert_eq!(world.walk(0, &address, false) == Walk::Lost, direction == 0);
        let end_ns = world.now_ns + 500 * MS;
        world.run(end_ns, |_| {});
        assert!(arrives(&world, 0, 3) && arrives(&world, 3, 0), "direction {direction}");
    }
}

#[test]
fn a_workload_is_found_across_zones_and_again_after_it_moved() {
    let mut world = started(|world| topology::zones(world, 3, 5, 3, 2));
    let workload = world.add_workload(14);
    let end_ns = world.now_ns + 3 * S;
    world.run(end_ns, |_| {});
    let address = world.workloads[workload].address;
    let send = |world: &mut World| {
        let now_ns = world.now_ns;
        let hop = world.nodes[0].router.as_mut().map(|it| it.next_hop(now_ns, &address, false));
        world.after(0);
        hop
    };
    assert_eq!(send(&mut world), Some(mesh_router::NextHop::Pending));
    let end_ns = world.now_ns + S;
    world.run(end_ns, |_| {});
    assert!(matches!(world.walk(0, &address, false), Walk::Arrived { .. }));
    let key = world.workloads[workload].identity.key();
    assert_eq!(world.nodes[0].router.as_ref().and_then(|it| it.resolve(&address)), Some(key));
    world.attach(workload, 6);
    let end_ns = world.now_ns + 2 * S;
    world.run(end_ns, |_| {});
    assert!(matches!(world.walk(0, &address, false), Walk::Arrived { .. }));
}

#[test]
fn an_alias_in_the_prefix_of_another_zones_node_leads_to_that_node() {
    let mut world = started(|world| topology::zones(world, 3, 5, 3, 2));
    let end_ns = world.now_ns + 3 * S;
    world.run(end_ns, |_| {});
    let node = u128::from(world.nodes[13].address);
    let alias = std::net::Ipv6Addr::from(node ^ 0xffff);
    let now_ns = world.now_ns;
    let hop = world.nodes[1].router.as_mut().map(|it| it.next_hop(now_ns, &alias, false));
    assert_eq!(hop, Some(mesh_router::NextHop::Pending));
    world.after(1);
    world.run(now_ns + S, |_| {});
    assert!(matches!(world.walk(1, &alias, false), Walk::Arrived { .. }));
    let key = world.nodes[13].identity.key();
    assert_eq!(world.nodes[1].router.as_ref().and_then(|it| it.resolve(&alias)), Some(key));
}

#[test]
fn an_address_that_nobody_has_is_unreachable_after_a_second_and_forgotten_later() {
    let mut world = started(|world| topology::line(world, 4, MS));
    let end_ns = world.now_ns + 2 * S;
    world.run(end_ns, |_| {});
    let nobody = std::net::Ipv6Addr::from(0x0400_u128 << 112 | 7);
    let now_ns = world.now_ns;
    let ask = |world: &mut World| {
        let now_ns = world.now_ns;
        let hop = world.nodes[0].router.as_mut().map(|it| it.next_hop(now_ns, &nobody, false));
        world.after(0);
        hop
    };
    assert_eq!(ask(&mut world), Some(mesh_router::NextHop::Pending));
    world.run(now_ns + 1500 * MS, |_| {});
    assert_eq!(ask(&mut world), Some(mesh_router::NextHop::Unreachable));
    world.run(now_ns + 10 * S, |_| {});
    for node in &world.nodes {
        assert_eq!(node.router.as_ref().map(|it| it.occupancy().requests), Some(0));
    }
}
