//! Neighbours that nobody configured: they say on a local network that they are there.

use std::net::SocketAddr;

use net_vdev::PublicKey;

use super::{Core, REDIAL_NS, Redial};

/// How many are kept at a time, and for how long after they were last heard of.
const FOUND_MAX: usize = 32;
const FORGET_NS: u64 = 120_000_000_000;

impl Core {
    /// A node on a local network says where it is, under its own signature. A session with it is
    /// tried: it becomes a neighbour of the router, and may do what any neighbour may.
    pub fn found(&mut self, now_ns: u64, key: PublicKey, place: SocketAddr) {
        if key == self.endpoint.key() {
            return;
        }
        self.forget_found(now_ns);
        if let Some(known) = self.configured.get_mut(&key) {
            known.heard_ns = now_ns;
            if !self.usable_neighbours().contains(&key) {
                self.endpoint.learn(now_ns, &key, &[place]);
            }
            return;
        }
        let found = self.configured.values().filter(|it| it.is_found).count();
        if found < FOUND_MAX && self.endpoint.learn(now_ns, &key, &[place]) {
            tracing::debug!(%key, %place, "a node on the local network");
            let mut redial = Redial::new(now_ns, Some(place));
            redial.is_found = true;
            self.configured.insert(key, redial);
        }
    }

    /// Forgets those that were not heard of for long and that no link leads to.
    fn forget_found(&mut self, now_ns: u64) {
        let usable = self.usable_neighbours();
        self.configured.retain(|key, it| {
            let is_fresh = now_ns.saturating_sub(it.heard_ns) < FORGET_NS;
            !it.is_found || is_fresh || usable.contains(key)
        });
    }
}

impl Redial {
    pub(super) fn new(now_ns: u64, at: Option<SocketAddr>) -> Self {
        Self {
            at_ns: now_ns,
            pause_ns: *REDIAL_NS.start(),
            at,
            is_found: false,
            heard_ns: now_ns,
            reached_ns: now_ns,
            udp_since_ns: None,
            looked_ns: now_ns,
        }
    }
}
