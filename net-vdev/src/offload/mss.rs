//! TCP's maximum segment size, lowered in passing.

use super::checksum::updated;
use super::headers::{Headers, SYN, put, word};

const OPTION_END: u8 = 0;
const OPTION_NOTHING: u8 = 1;
const OPTION_MSS: u8 = 2;

/// Lowers the maximum segment size that a SYN asks for, so that the answering side sends packets of
/// at most `packet_bytes_max` bytes (without IP and TCP options, RFC 6691). Returns whether it did.
///
/// The packet's checksum must be complete: a field that still waits for an offload covers the
/// pseudo-header only. A SYN without the option is left alone: its sender takes 536 bytes, or 1,220.
pub fn clamp_mss(packet: &mut [u8], packet_bytes_max: usize) -> bool {
    clamp(packet, packet_bytes_max).is_some()
}

fn clamp(packet: &mut [u8], packet_bytes_max: usize) -> Option<()> {
    let headers = Headers::parse(packet)?;
    let transport_at = headers.ip_bytes;
    if !headers.is_tcp || word(packet, transport_at + 12) & u16::from(SYN) == 0 {
        return None;
    }
    let at = transport_at + 20 + mss_option(packet.get(transport_at + 20..headers.headers_bytes)?)?;
    let mss_max = u16::try_from(packet_bytes_max.saturating_sub(transport_at + 20)).ok()?;
    let old = word(packet, at);
    if old <= mss_max {
        return None;
    }
    let field = word(packet, transport_at + 16).to_be_bytes();
    // Behind an odd number of bytes the value's two bytes belong to two words of the sum, which is
    // the same as one word with its bytes swapped.
    let place = |value: u16| {
        let [high, low] = value.to_be_bytes();
        if (at - transport_at) % 2 == 0 { [high, low] } else { [low, high] }
    };
    let field = updated(field, place(old), place(mss_max));
    put(packet, at, &mss_max.to_be_bytes());
    put(packet, transport_at + 16, &field);
    Some(())
}

/// Where the value of the MSS option is among the options, if it is there (RFC 9293 §3.2).
fn mss_option(options: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        match *options.get(at)? {
            OPTION_END => return None,
            OPTION_NOTHING => at += 1,
            kind => {
                let len = usize::from(*options.get(at + 1)?);
                let is_mss = kind == OPTION_MSS && len == 4 && at + 4 <= options.len();
                if is_mss {
                    return Some(at + 2);
                }
                if len < 2 {
                    return None;
                }
                at += len;
            }
        }
    }
}
