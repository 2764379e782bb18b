//! The clamp of TCP's maximum segment size.

use net_vdev::offload::clamp_mss;
use proptest::prelude::*;

use crate::frames::{ACK, Flow, SYN, verified};

/// A SYN with its MSS option behind so many bytes of NOP.
fn syn(is_ipv6: bool, flags: u8, padding: usize, mss: u16) -> Vec<u8> {
    let mut options = vec![1; padding];
    options.extend([2, 4]);
    options.extend(mss.to_be_bytes());
    options.resize(options.len().next_multiple_of(4), 0);
    Flow { flags, options, ..Flow::tcp(is_ipv6) }.packet(&[])
}

proptest! {
    #[test]
    fn a_larger_segment_size_is_lowered_and_the_checksum_stays_right(
        is_ipv6 in any::<bool>(),
        answers in any::<bool>(),
        padding in 0_usize..8,
        mss in any::<u16>(),
        packet_bytes_max in 100_usize..2000,
    ) {
        let flags = if answers { SYN | ACK } else { SYN };
        let mut packet = syn(is_ipv6, flags, padding, mss);
        let mss_max = (packet_bytes_max - if is_ipv6 { 60 } else { 40 }) as u16;
        prop_assert_eq!(clamp_mss(&mut packet, packet_bytes_max), mss > mss_max);
        prop_assert_eq!(&packet, &syn(is_ipv6, flags, padding, mss.min(mss_max)));
        verified(&packet);
    }

    #[test]
    fn any_options_are_survived(options in prop::collection::vec(any::<u8>(), 0..40), max in 0_usize..2000) {
        let mut options = options;
        options.truncate(options.len() & !3);
        let mut packet = Flow { flags: SYN, options, ..Flow::tcp(true) }.packet(&[]);
        clamp_mss(&mut packet, max);
        verified(&packet);
    }
}

#[test]
fn only_a_syn_is_changed() {
    let mut packet = syn(true, ACK, 0, 9000);
    assert!(!clamp_mss(&mut packet, 1356));
    let mut packet = Flow { flags: SYN, ..Flow::tcp(true) }.packet(&[]);
    assert!(!clamp_mss(&mut packet, 1356), "without the option");
    let mut packet = Flow::udp(true).packet(&[2; 40]);
    assert!(!clamp_mss(&mut packet, 1356));
    assert!(!clamp_mss(&mut [], 1356));
}

#[test]
fn a_path_through_relays_gives_1296_and_1316() {
    for (is_ipv6, mss) in [(true, 1296), (false, 1316)] {
        let mut packet = syn(is_ipv6, SYN, 2, 1460);
        assert!(clamp_mss(&mut packet, 1356));
        assert_eq!(packet, syn(is_ipv6, SYN, 2, mss));
    }
}
