//! How many searches for addresses a neighbour or an attached member may cause. The router has room for
//! a number of them, and tells all others of each: whoever sends to addresses that nobody has must not
//! keep others from finding anybody.

use std::collections::BTreeMap;
use std::net::Ipv6Addr;

use net_vdev::PublicKey;

use super::Core;

/// How many searches one may start in so long. Each is remembered for about two of these, so that one
/// takes an eighth of the router's room, as one neighbour's own searches do.
pub(super) const SEARCHES_MAX: u32 = 64;
const PERIOD_NS: u64 = 1_000_000_000;
/// From how many on those are forgotten that started none of late.
const KEPT: usize = 256;

/// Since when the searches, or questions, of each are counted, and how many there were.
#[derive(Default)]
pub(super) struct Searches(BTreeMap<PublicKey, (u64, u32)>);

impl Searches {
    /// Whether one more of `from` is among the `at_most` that are allowed.
    pub(super) fn take(&mut self, now_ns: u64, from: &PublicKey, at_most: u32) -> bool {
        let is_past = |since_ns: u64| now_ns >= since_ns.saturating_add(PERIOD_NS);
        if self.0.len() >= KEPT && !self.0.contains_key(from) {
            self.0.retain(|_, (since_ns, _)| !is_past(*since_ns));
        }
        let (since_ns, count) = self.0.entry(*from).or_insert((now_ns, 0));
        if is_past(*since_ns) {
            (*since_ns, *count) = (now_ns, 0);
        }
        *count = count.saturating_add(1);
        *count <= at_most
    }
}

impl Core {
    /// Whether a packet or question of `from` may go on to the router: it needs no search, or one more
    /// is allowed.
    pub(super) fn may_search(&mut self, now_ns: u64, from: &PublicKey, address: &Ipv6Addr) -> bool {
        !self.router.would_search(address) || self.searches.take(now_ns, from, SEARCHES_MAX)
    }
}
