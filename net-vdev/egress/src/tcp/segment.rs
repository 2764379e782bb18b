//! A TCP segment (RFC 9293 §3.1), read and written.

use std::net::SocketAddr;

use net_vdev::offload::VirtioNetHeader;

use crate::packet;

pub(crate) const FIN: u8 = 0x01;
pub(crate) const SYN: u8 = 0x02;
pub(crate) const RST: u8 = 0x04;
pub(crate) const PSH: u8 = 0x08;
pub(crate) const ACK: u8 = 0x10;

/// How many ranges a segment acknowledges selectively at most (RFC 2018 §3).
pub(crate) const SACKS_MAX: usize = 4;

/// Whether `a` comes behind `b` in sequence space (RFC 9293 §3.4).
pub(crate) fn is_after(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) > 0
}

/// What the options say that are read here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) mss: Option<u16>,
    pub(crate) window_shift: Option<u8>,
    pub(crate) may_sack: bool,
    pub(crate) sacks: [Option<(u32, u32)>; SACKS_MAX],
}

/// A segment as it came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Segment<'a> {
    pub(crate) sequence: u32,
    pub(crate) acknowledgement: u32,
    pub(crate) flags: u8,
    pub(crate) window: u16,
    pub(crate) options: Options,
    pub(crate) payload: &'a [u8],
}

impl<'a> Segment<'a> {
    /// Reads the bytes behind an IP header; `None` if they end before the TCP header does.
    pub(crate) fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (header, rest) = bytes.split_first_chunk::<20>()?;
        let &[_, _, _, _, s0, s1, s2, s3, a0, a1, a2, a3, offset, flags, w0, w1, ..] = header;
        let options_bytes = (usize::from(offset >> 4) * 4).checked_sub(20)?;
        let (options, payload) = rest.split_at_checked(options_bytes)?;
        Some(Self {
            sequence: u32::from_be_bytes([s0, s1, s2, s3]),
            acknowledgement: u32::from_be_bytes([a0, a1, a2, a3]),
            flags,
            window: u16::from_be_bytes([w0, w1]),
            options: Options::parse(options),
            payload,
        })
    }

    pub(crate) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// How much of sequence space it takes.
    pub(crate) fn len(&self) -> u32 {
        let marks = u32::from(self.has(SYN)) + u32::from(self.has(FIN));
        u32::try_from(self.payload.len()).unwrap_or(u32::MAX).saturating_add(marks)
    }
}

impl Options {
    /// Reads options up to the first that makes no sense: what is before it counts.
    fn parse(mut bytes: &[u8]) -> Self {
        let mut options = Self::default();
        while let Some((kind, rest)) = bytes.split_first() {
            match kind {
                0 => break,
                1 => {
                    bytes = rest;
                    continue;
                }
                _ => {}
            }
            let Some(len) = rest.first().map(|len| usize::from(*len)).filter(|len| *len >= 2)
            else {
                break;
            };
            let Some((option, rest)) = bytes.split_at_checked(len) else { break };
            options.take(option);
            bytes = rest;
        }
        options
    }

    fn take(&mut self, option: &[u8]) {
        match *option {
            [2, 4, high, low] => self.mss = Some(u16::from_be_bytes([high, low])),
            // RFC 7323 §2.3: a larger shift counts as 14.
            [3, 3, shift] => self.window_shift = Some(shift.min(14)),
            [4, 2] => self.may_sack = true,
            [5, _, ref ranges @ ..] => {
                let (ranges, _) = ranges.as_chunks::<8>();
                for (place, range) in self.sacks.iter_mut().zip(ranges) {
                    let [a, b, c, d, e, f, g, h] = *range;
                    let ends = (u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h]));
                    *place = Some(ends);
                }
            }
            _ => {}
        }
    }
}

/// A segment on its way out. The payload is in two parts, as a ring has it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Outgoing<'a> {
    pub(crate) sequence: u32,
    pub(crate) acknowledgement: u32,
    pub(crate) flags: u8,
    pub(crate) window: u16,
    pub(crate) options: Options,
    pub(crate) payload: (&'a [u8], &'a [u8]),
    /// What one segment carries; a longer payload leaves as a super-frame.
    pub(crate) mss: u16,
}

impl Outgoing<'_> {
    /// Writes the packet into `frame`; the header says how it is to be cut.
    pub(crate) fn write(
        &self,
        frame: &mut Vec<u8>,
        source: SocketAddr,
        destination: SocketAddr,
    ) -> Option<VirtioNetHeader> {
        packet::begin(frame, source.ip(), destination.ip(), packet::TCP);
        let ip_bytes = frame.len();
        frame.extend_from_slice(&source.port().to_be_bytes());
        frame.extend_from_slice(&destination.port().to_be_bytes());
        frame.extend_from_slice(&self.sequence.to_be_bytes());
        frame.extend_from_slice(&self.acknowledgement.to_be_bytes());
        frame.extend_from_slice(&[0, self.flags]);
        frame.extend_from_slice(&self.window.to_be_bytes());
        frame.extend_from_slice(&[0; 4]);
        self.options.write(frame);
        let headers_bytes = frame.len();
        let words = u8::try_from((headers_bytes - ip_bytes) / 4).ok()?;
        packet::put(frame, ip_bytes + 12, &[words << 4]);
        frame.extend_from_slice(self.payload.0);
        frame.extend_from_slice(self.payload.1);
        if frame.len() - headers_bytes > usize::from(self.mss) {
            packet::seal_super_frame(frame, headers_bytes, self.mss)
        } else {
            packet::seal(frame)?;
            Some(VirtioNetHeader::default())
        }
    }
}

impl Options {
    /// Writes the options, padded to whole words; 36 bytes at most, of four ranges and padding.
    fn write(&self, frame: &mut Vec<u8>) {
        if let Some(mss) = self.mss {
            let [high, low] = mss.to_be_bytes();
            frame.extend_from_slice(&[2, 4, high, low]);
        }
        if self.may_sack {
            frame.extend_from_slice(&[1, 1, 4, 2]);
        }
        if let Some(shift) = self.window_shift {
            frame.extend_from_slice(&[1, 3, 3, shift]);
        }
        let count = self.sacks.iter().flatten().count();
        if count > 0 {
            frame.extend_from_slice(&[1, 1, 5, 2 + 8 * count as u8]);
            for (start, end) in self.sacks.iter().flatten() {
                frame.extend_from_slice(&start.to_be_bytes());
                frame.extend_from_slice(&end.to_be_bytes());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_written_is_read(
            numbers in any::<(u32, u32, u8, u16)>(),
            mss in any::<Option<u16>>(),
            shift in prop::option::of(0_u8..=14),
            may_sack in any::<bool>(),
            sacks in prop::collection::vec(any::<(u32, u32)>(), 0..=2),
            payload in prop::collection::vec(any::<u8>(), 0..100),
        ) {
            let mut options = Options { mss, window_shift: shift, may_sack, ..Options::default() };
            options.sacks.iter_mut().zip(&sacks).for_each(|(to, from)| *to = Some(*from));
            let (sequence, acknowledgement, flags, window) = numbers;
            let (first, second) = payload.split_at(payload.len() / 3);
            let outgoing = Outgoing {
                sequence, acknowledgement, flags, window, options,
                payload: (first, second), mss: 1000,
            };
            let mut frame = Vec::new();
            let ends = ("[64:ff9b::1]:80".parse().unwrap(), "[400::1]:4000".parse().unwrap());
            prop_assert!(outgoing.write(&mut frame, ends.0, ends.1).is_some());
            prop_assert!(packet::has_right_checksum(&frame, 40, packet::TCP));
            let read = Segment::parse(&frame[40..]).unwrap();
            prop_assert_eq!(
                read,
                Segment { sequence, acknowledgement, flags, window, options, payload: &payload }
            );
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            if let Some(segment) = Segment::parse(&bytes) {
                prop_assert!(segment.payload.len() <= bytes.len() - 20);
            }
        }
    }
}
