//! When a node needs a TCP connection to a configured neighbour, and when it does no more.

use std::net::SocketAddr;

use net_vdev::PublicKey;
use net_vdev::endpoint::{Path, PathView, PeerView};

use super::{Core, Redial};

/// A neighbour that was not reached for so long is called over TCP, too.
const PATIENCE_NS: u64 = 3_000_000_000;
/// How often it is looked whether UDP works again, and how long that must last.
const LOOK_NS: u64 = 5_000_000_000;
const TRUST_NS: u64 = 3_000_000_000;

impl Core {
    /// The owner called this neighbour, and it answers.
    pub fn stream_up(&mut self, now_ns: u64, key: &PublicKey, number: u32) {
        self.endpoint.stream_up(now_ns, key, number);
    }

    /// A stream is no more.
    pub fn stream_down(&mut self, now_ns: u64, number: u32) {
        for key in self.endpoint.stream_down(number) {
            let Some(link) = self.links.get(&key).copied() else { continue };
            if self.endpoint.direct_path(&key).is_some() {
                self.router.suspect(now_ns, link);
            } else {
                self.links.remove(&key);
                self.router.link_down(now_ns, link);
            }
        }
    }

    /// The configured neighbours that no link leads to, and where they should be. To be called about
    /// once a second.
    pub fn unreached(&mut self, now_ns: u64) -> Vec<(PublicKey, SocketAddr)> {
        let usable: Vec<PublicKey> = self.usable_neighbours();
        let mut unreached = Vec::new();
        for (key, redial) in &mut self.configured {
            if usable.contains(key) {
                redial.reached_ns = now_ns;
            } else if now_ns.saturating_sub(redial.reached_ns) >= PATIENCE_NS {
                unreached.extend(redial.at.filter(|_| !redial.is_found).map(|at| (*key, at)));
            }
        }
        unreached
    }

    /// Which of these streams, made for these neighbours, nobody needs: UDP works. Where it does
    /// not, it is tried again. To be called about once a second.
    pub fn spare_streams(&mut self, now_ns: u64, called: &[(u32, PublicKey)]) -> Vec<u32> {
        let mut spare = Vec::new();
        for (number, key) in called {
            let works = self.peer(key).is_some_and(|peer| answers(&peer, is_udp));
            let Some(redial) = self.configured.get_mut(key) else { continue };
            if works {
                let since_ns = *redial.udp_since_ns.get_or_insert(now_ns);
                if now_ns.saturating_sub(since_ns) >= TRUST_NS {
                    spare.push(*number);
                }
            } else {
                redial.udp_since_ns = None;
            }
            if now_ns.saturating_sub(redial.looked_ns) >= LOOK_NS {
                redial.looked_ns = now_ns;
                self.endpoint.look_again(now_ns, key);
            }
        }
        spare
    }

    /// What keeps a configured neighbour from being reached as it should be, and what to do.
    #[must_use]
    pub fn advice(&self, now_ns: u64, peer: &PeerView) -> Option<String> {
        let Redial { at, reached_ns, is_found, .. } = *self.configured.get(&peer.key)?;
        let at = at.filter(|_| !is_found)?;
        let port = at.port();
        if answers(peer, is_stream) && !answers(peer, is_udp) {
            return Some(format!(
                "UDP to {at} gets no answer and TCP does: a firewall drops UDP. It works, slower; let \
                 UDP port {port} through at both ends"
            ));
        }
        let is_silent = now_ns.saturating_sub(reached_ns) >= 2 * PATIENCE_NS;
        (is_silent && !peer.paths.iter().any(|view| view.path.is_direct() && view.is_alive)).then(
            || {
                format!(
                    "{at} answers neither over UDP nor over TCP (ports {port} and 443): check that \
                     the node runs there and has this key. If a firewall drops UDP, start it with \
                     --listen-tcp 0.0.0.0:443"
                )
            },
        )
    }

    /// Why this node reaches nobody, and what to do; `None` if a neighbour answers.
    pub(crate) fn why_alone(&self, now_ns: u64) -> Option<String> {
        if !self.usable_neighbours().is_empty() {
            return None;
        }
        let advice = self.endpoint.peers().find_map(|peer| self.advice(now_ns, &peer));
        Some(advice.unwrap_or_else(|| {
            let said = if self.configured.is_empty() {
                "this node has no neighbour; name one with --peer, and see that UDP reaches it"
            } else {
                "no neighbour answers, over UDP or TCP; `hypha mesh peers` shows them"
            };
            said.to_owned()
        }))
    }

    fn peer(&self, key: &PublicKey) -> Option<PeerView> {
        self.endpoint.peers().find(|peer| peer.key == *key)
    }

    pub(super) fn usable_neighbours(&self) -> Vec<PublicKey> {
        let usable = self.router.neighbours().filter(|neighbour| neighbour.is_usable);
        usable.map(|neighbour| neighbour.key).collect()
    }
}

fn answers(peer: &PeerView, is_kind: fn(&Path) -> bool) -> bool {
    peer.paths.iter().any(|view: &PathView| view.is_alive && is_kind(&view.path))
}

fn is_udp(path: &Path) -> bool {
    matches!(path, Path::Direct(_))
}

fn is_stream(path: &Path) -> bool {
    matches!(path, Path::Stream(_))
}
