//! Frames for members that the router is looking for: a first answer must not get lost because the
//! way back was not needed before.

use std::collections::{BTreeMap, VecDeque};
use std::net::Ipv6Addr;

use super::{Core, Outside, Run};

/// How many members frames wait for, and how many for each.
const MEMBERS_MAX: usize = 64;
const FRAMES_MAX: usize = 4;

/// What waits: per member, frames and the hop limits that they go on with.
#[derive(Default)]
pub(super) struct WaitingFrames {
    frames: BTreeMap<Ipv6Addr, VecDeque<(u8, Vec<u8>)>>,
}

impl WaitingFrames {
    /// Keeps a frame; the oldest of its member gives way, and nothing is kept for more members than
    /// there is room for.
    pub(super) fn keep(&mut self, member: &Ipv6Addr, hop_limit: u8, frame: &[u8]) {
        if self.frames.len() >= MEMBERS_MAX && !self.frames.contains_key(member) {
            return;
        }
        let queue = self.frames.entry(*member).or_default();
        if queue.len() >= FRAMES_MAX {
            queue.pop_front();
        }
        queue.push_back((hop_limit, frame.to_vec()));
    }

    fn take(&mut self, member: &Ipv6Addr) -> VecDeque<(u8, Vec<u8>)> {
        self.frames.remove(member).unwrap_or_default()
    }
}

impl Core {
    /// The router found the way to a member, or that there is none.
    pub(super) fn release(&mut self, now_ns: u64, member: &Ipv6Addr, outside: &mut impl Outside) {
        for (hop_limit, mut frame) in self.waiting.take(member) {
            if let Some(way) = self.forward(now_ns, member, false, hop_limit, &mut frame) {
                let run = Run { start: 0, end: frame.len(), way };
                self.pass_on(now_ns, &frame, &run, frame.len(), outside);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_is_bounded() {
        let mut waiting = WaitingFrames::default();
        for number in 0..1000u16 {
            let member = Ipv6Addr::new(0x400, 0, 0, 0, 0, 0, 0, number % 100);
            waiting.keep(&member, 9, &number.to_be_bytes());
        }
        assert_eq!(waiting.frames.len(), MEMBERS_MAX);
        let first = waiting.take(&Ipv6Addr::new(0x400, 0, 0, 0, 0, 0, 0, 0));
        let numbers: Vec<_> = first.iter().map(|(_, frame)| [frame[0], frame[1]]).collect();
        assert_eq!(numbers, [600u16, 700, 800, 900].map(u16::to_be_bytes), "the newest");
    }
}
