//! "The link between these two does not work": what a router that lost a link tells those around it,
//! so that the other end, and all others who have a link to a node that may have died, look at once
//! instead of at their next probe.
//!
//! It is a hint and proves nothing. Whoever spreads false ones costs a link four probes a second at
//! most, and makes its packets take the second choice for a round trip.

use crate::link::LinkId;
use crate::message;
use crate::router::Router;

/// How far a doubt goes.
const HOPS: u8 = 4;
/// What was passed on is not passed on again within this time.
const AGAIN_NS: u64 = 1_000_000_000;
/// How many are remembered.
const RECENT_MAX: usize = 256;

/// A link that somebody lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Doubt {
    /// The address of the router that lost it.
    pub teller: u128,
    /// The address of the one at its other end.
    pub silent: u128,
    /// How many further routers may pass this on.
    pub hops: u8,
}

/// The doubts of the last second: until when, and about which link.
#[derive(Debug, Default)]
pub(crate) struct Recent(Vec<(u64, u128, u128)>);

impl Recent {
    /// Notes a doubt; false if it was noted already, or if there are too many.
    fn note(&mut self, now_ns: u64, doubt: &Doubt) -> bool {
        self.0.retain(|(until_ns, ..)| now_ns < *until_ns);
        let same = |it: &&(u64, u128, u128)| (it.1, it.2) == (doubt.teller, doubt.silent);
        if self.0.iter().any(|it| same(&it)) || self.0.len() >= RECENT_MAX {
            return false;
        }
        self.0.push((now_ns.saturating_add(AGAIN_NS), doubt.teller, doubt.silent));
        true
    }
}

impl Router {
    /// A link to this neighbour was lost: others are to look whether theirs work.
    pub(crate) fn spread_loss(&mut self, now_ns: u64, lost: LinkId) {
        let Some(link) = self.link(lost) else { return };
        let silent = u128::from(link.neighbour.address());
        let doubt = Doubt { teller: self.address(), silent, hops: HOPS };
        if self.doubts.note(now_ns, &doubt) {
            self.pass_doubt_on(doubt, lost.slot);
        }
    }

    /// A neighbour says that a link does not work.
    pub(crate) fn doubted(&mut self, now_ns: u64, slot: u16, doubt: Doubt) {
        let allowed = self.link_at_mut(slot).is_some_and(|link| link.requests.take(now_ns, 1));
        if !allowed {
            self.counters.too_many += 1;
            return;
        }
        let own = self.address();
        if doubt.teller == own || !self.doubts.note(now_ns, &doubt) {
            return;
        }
        // If it is this router that is not heard any more, the teller is not heard here, either.
        let meant = if doubt.silent == own { doubt.teller } else { doubt.silent };
        let links = self.links.iter().flatten();
        let doubted: Vec<LinkId> = links
            .filter(|link| link.id.slot != slot && u128::from(link.neighbour.address()) == meant)
            .map(|link| link.id)
            .collect();
        for link in doubted {
            self.suspect(now_ns, link);
        }
        if let Some(hops) = doubt.hops.checked_sub(1) {
            self.pass_doubt_on(Doubt { hops: hops.min(HOPS), ..doubt }, slot);
        }
    }

    fn pass_doubt_on(&mut self, doubt: Doubt, except: u16) {
        let zone = self.config.zone;
        let usable = self.links.iter().flatten().filter(|link| link.is_usable());
        let usable = usable.filter(|link| link.id.slot != except);
        let messages: Vec<_> =
            usable.map(|link| (link.id, message::doubt(link.header(zone), doubt))).collect();
        messages.into_iter().for_each(|(id, bytes)| self.send(id, bytes));
    }

    fn address(&self) -> u128 {
        u128::from(self.config.key.address())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_doubt_is_passed_on_once_a_second_and_a_flood_of_them_is_bounded() {
        let mut recent = Recent::default();
        let doubt = Doubt { teller: 1, silent: 2, hops: 3 };
        assert!(recent.note(5, &doubt));
        assert!(!recent.note(6, &Doubt { hops: 9, ..doubt }));
        assert!(recent.note(6, &Doubt { teller: 2, silent: 1, hops: 3 }));
        for silent in 0..1000 {
            recent.note(7, &Doubt { silent: 10 + silent, ..doubt });
        }
        assert_eq!(recent.0.len(), RECENT_MAX);
        assert!(recent.note(7 + AGAIN_NS, &doubt));
        assert_eq!(recent.0.len(), 1);
    }
}
