//! Who can be reached through the peer, and with which key one speaks to it.
//!
//! mycelium files routes under a /64, of which only 57 bits are a hash: whoever computes long
//! enough finds a key for somebody else's. Here a route is filed under the whole address of its
//! originator's key, so such a key gets a route to itself and nothing else.
//!
//! There is one peer, and the edge tells nobody of a route: no loop can go through it, so there is
//! nothing for Babel's feasibility condition to prevent, and the newest update counts.

use std::collections::BTreeMap;
use std::net::Ipv6Addr;

use net_vdev::PublicKey;

use crate::packet::{EdgeKey, SealError, SharedSecret};
use crate::wire::{INFINITY, Prefix};

/// The most routes that are kept.
pub(crate) const ROUTES_MAX: usize = 1024;
/// A hundredth of a second, the unit of intervals.
const CENTISECOND_NS: u64 = 10_000_000;

/// A route as an update tells it.
pub(super) struct Told {
    pub(super) key: PublicKey,
    pub(super) prefix: Prefix,
    pub(super) metric: u16,
    pub(super) interval: u16,
}

/// What became of an update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It is a route to this address.
    Reachable(Ipv6Addr),
    /// A route is gone, or there was none.
    Retracted,
    /// It breaks a rule of mycelium's, or the table is full and nobody waits for it.
    Refused,
}

#[derive(Debug)]
struct Route {
    key: PublicKey,
    expires_ns: u64,
    /// When somebody here last asked for it or sent over it; 0 if never.
    used_ns: u64,
    /// Computed at the first packet.
    secret: Option<SharedSecret>,
}

#[derive(Debug, Default)]
pub(super) struct Routes(BTreeMap<Ipv6Addr, Route>);

impl Routes {
    /// Takes an update; `wanted` if somebody here waits for it.
    pub(super) fn learn(&mut self, now_ns: u64, told: &Told, wanted: bool) -> Outcome {
        let address = told.key.address();
        let overlay = Prefix::of(Ipv6Addr::new(0x400, 0, 0, 0, 0, 0, 0, 0), 7);
        let is_sane = told.prefix.length() >= 64
            && overlay.contains(&told.prefix.address())
            && told.prefix.contains(&address);
        let known = self.0.get(&address);
        // All 32 bytes decide: a second key of the same address is none.
        if !is_sane || known.is_some_and(|route| route.key != told.key) {
            return Outcome::Refused;
        }
        if told.metric == INFINITY {
            self.0.remove(&address);
            return Outcome::Retracted;
        }
        if told.interval == 0 {
            return Outcome::Refused;
        }
        // Three and a half intervals, as mycelium keeps them.
        let expires_ns = now_ns.saturating_add(u64::from(told.interval) * CENTISECOND_NS * 7 / 2);
        if let Some(route) = self.0.get_mut(&address) {
            route.expires_ns = expires_ns;
            return Outcome::Reachable(address);
        }
        if self.0.len() >= ROUTES_MAX && !self.make_room(now_ns, wanted) {
            return Outcome::Refused;
        }
        let used_ns = if wanted { now_ns } else { 0 };
        self.0.insert(address, Route { key: told.key, expires_ns, used_ns, secret: None });
        Outcome::Reachable(address)
    }

    /// Expired routes go first. Then only a route that is wanted displaces another: the one that
    /// was used longest ago, so a flood of keys that nobody asked for displaces nothing.
    fn make_room(&mut self, now_ns: u64, wanted: bool) -> bool {
        self.expire(now_ns);
        if self.0.len() < ROUTES_MAX {
            return true;
        }
        let oldest = self.0.iter().min_by_key(|(_, route)| (route.used_ns, route.expires_ns));
        let victim = oldest.map(|(address, _)| *address);
        wanted && victim.is_some_and(|address| self.0.remove(&address).is_some())
    }

    pub(super) fn expire(&mut self, now_ns: u64) {
        self.0.retain(|_, route| route.expires_ns > now_ns);
    }

    /// Notes that somebody here uses the route. False if there is none.
    pub(super) fn note_use(&mut self, now_ns: u64, address: &Ipv6Addr) -> bool {
        let live = self.0.get_mut(address).filter(|route| route.expires_ns > now_ns);
        live.map(|route| route.used_ns = now_ns).is_some()
    }

    /// The secret shared with the key of an address.
    ///
    /// # Errors
    /// The key is unusable.
    pub(super) fn secret(
        &mut self,
        now_ns: u64,
        address: &Ipv6Addr,
        own: &EdgeKey,
    ) -> Result<Option<(PublicKey, &SharedSecret)>, SealError> {
        let Some(route) = self.0.get_mut(address).filter(|route| route.expires_ns > now_ns) else {
            return Ok(None);
        };
        let secret = match route.secret.take() {
            Some(secret) => secret,
            None => own.agree(&route.key)?,
        };
        Ok(Some((route.key, route.secret.insert(secret))))
    }

    pub(super) fn key_of(&self, now_ns: u64, address: &Ipv6Addr) -> Option<PublicKey> {
        self.0.get(address).filter(|route| route.expires_ns > now_ns).map(|route| route.key)
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}
