//! A lease's two sides.

use storage_vdev::register::{Edit, Lease, Watch};

use crate::cluster::{LEASE_NS, create, nodes, proposer, run};

#[test]
fn a_holder_stops_one_lease_after_it_sent_its_last_renewal() {
    let mut lease = Lease::new(900, 1_000);
    assert!(lease.holds(1_899) && !lease.holds(1_900));
    assert_eq!(lease.renew_at_ns(), 1_300);
    lease.renewed(1_300);
    assert!(lease.holds(2_199) && !lease.holds(2_200));
    // An answer that comes late doesn't shorten what a later one gave.
    lease.renewed(1_200);
    assert_eq!(lease.ends_ns(), 2_200);
}

#[test]
fn a_lease_near_the_end_of_time_does_not_wrap() {
    let lease = Lease::new(u64::MAX, 5);
    assert!(lease.holds(u64::MAX - 1));
}

#[test]
fn a_watcher_waits_longer_than_the_holder_may_serve() {
    let mut nodes = nodes(3);
    let created = run(&mut nodes, &mut proposer(1, &[0, 1, 2]), create(&[0, 1, 2])).unwrap();
    let watch = Watch::new(&created.record, 5_000, None);
    assert!(watch.take_at_ns() > 5_000 + LEASE_NS);
    assert_eq!(watch.version(), 1);
}

#[test]
fn a_renewal_makes_the_watcher_start_again_and_a_read_does_not() {
    let mut nodes = nodes(3);
    let mut holder = proposer(1, &[0, 1, 2]);
    let created = run(&mut nodes, &mut holder, create(&[0, 1, 2])).unwrap();
    let mut watch = Watch::new(&created.record, 0, None);
    let read = run(&mut nodes, &mut proposer(2, &[0, 1, 2]), Edit::Read).unwrap();
    assert!(!watch.observe(&read.record, 500, None));
    assert_eq!(watch, Watch::new(&created.record, 0, None));
    let renewed = run(&mut nodes, &mut holder, Edit::Renew { epoch: 1 }).unwrap();
    assert!(renewed.changed_ns.is_some());
    assert!(watch.observe(&renewed.record, 700, None));
    assert_eq!(watch, Watch::new(&renewed.record, 700, None));
}

#[test]
fn a_released_volume_and_ones_own_can_be_had_at_once() {
    let mut nodes = nodes(3);
    let mut holder = proposer(1, &[0, 1, 2]);
    let created = run(&mut nodes, &mut holder, create(&[0, 1, 2])).unwrap();
    assert_eq!(Watch::new(&created.record, 40, Some([1; 16])).take_at_ns(), 40);
    assert!(Watch::new(&created.record, 40, Some([2; 16])).take_at_ns() > 40);
    let release = Edit::Release { epoch: 1, superblock: None };
    let released = run(&mut nodes, &mut holder, release).unwrap();
    assert_eq!(Watch::new(&released.record, 50, None).take_at_ns(), 50);
}
