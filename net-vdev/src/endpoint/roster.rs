//! Who the peers are: listed by the owner, learned from a router, or strangers that came in.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use super::paths::{Path, PathView, Paths};
use super::peer::PeerState;
use super::{ConfigError, DropReason, Endpoint, Peer, Strangers, check_address};
use crate::identity::PublicKey;

/// A stranger that was heard so recently does not give way to another.
const FRESH_NS: u64 = 10_000_000_000;
/// One in so many places of strangers is for those whom this member looks for.
const LOOKED_FOR_SHARE: usize = 4;

/// What an endpoint knows of a peer.
#[derive(Debug, Clone)]
pub struct PeerView {
    /// Its key.
    pub key: PublicKey,
    /// Whether the owner listed it.
    pub is_listed: bool,
    /// Whether there is a session to send on.
    pub is_connected: bool,
    /// When the handshake of that session ended, in the owner's nanoseconds.
    pub since_ns: Option<u64>,
    /// When anything of it last verified; 0 if never.
    pub heard_ns: u64,
    /// The bytes of packets sent to it and received from it.
    pub bytes_sent: u64,
    /// See [`PeerView::bytes_sent`].
    pub bytes_received: u64,
    /// The ways to it.
    pub paths: Vec<PathView>,
}

impl Endpoint {
    /// Adds a peer that is never forgotten.
    ///
    /// # Errors
    /// A [`ConfigError`] if it would be confused with this member or another peer.
    pub fn list(&mut self, peer: Peer) -> Result<(), ConfigError> {
        if peer.key == self.key {
            return Err(ConfigError::OwnKey(peer.key));
        }
        if self.by_key.contains_key(&peer.key) {
            return Err(ConfigError::DuplicatePeer(peer.key));
        }
        let addresses = peer.addresses.into_iter().chain([peer.key.address().into()]);
        let addresses: BTreeSet<_> = addresses.collect();
        for address in &addresses {
            check_address(*address)?;
            if self.addresses.contains(address) || self.routes.contains_key(address) {
                return Err(ConfigError::DuplicateAddress(*address));
            }
        }
        let index = self.insert(peer.key, peer.endpoint, true);
        self.routes.extend(addresses.into_iter().map(|address| (address, index)));
        Ok(())
    }

    fn insert(&mut self, key: PublicKey, at: Option<SocketAddr>, is_listed: bool) -> usize {
        let relayed = self.is_routed.then(|| key.address());
        let state = PeerState::new(key, Paths::new(at, relayed), is_listed);
        let index = self.peers.insert(state);
        self.by_key.insert(key, index);
        index
    }

    /// Makes room for a peer that nobody listed, and adds it. Anybody can come in under as many keys
    /// as there is room for: so those who do (`came_in`) leave a quarter to those whom this member
    /// looks for itself.
    fn insert_stranger(&mut self, now_ns: u64, key: &PublicKey, came_in: bool) -> Option<usize> {
        let Strangers::Welcome { at_most } = self.strangers_welcome else { return None };
        let at_most = if came_in { at_most - at_most / LOOKED_FOR_SHARE } else { at_most };
        let address = key.address().into();
        if *key == self.key || self.routes.contains_key(&address) {
            return None;
        }
        let strangers = || self.peers.iter().filter(|(_, peer)| !peer.is_listed);
        if strangers().count() >= at_most {
            let quiet = |(_, peer): &(usize, &PeerState)| {
                now_ns.saturating_sub(peer.heard_ns.max(peer.sent_ns)) >= FRESH_NS
            };
            let oldest = strangers().filter(quiet).min_by_key(|(_, peer)| peer.heard_ns);
            let (oldest, _) = oldest?;
            self.remove(oldest);
        }
        let index = self.insert(*key, None, false);
        self.routes.insert(address, index);
        if let Some(peer) = self.peers.get_mut(index) {
            peer.heard_ns = now_ns;
        }
        Some(index)
    }

    /// Takes in whoever sent an initiation that verified, if strangers are welcome.
    pub(super) fn welcome(
        &mut self,
        now_ns: u64,
        key: &PublicKey,
        from: Path,
    ) -> Result<usize, DropReason> {
        let index = self.insert_stranger(now_ns, key, true).ok_or(DropReason::HandshakeStranger)?;
        if let Some(peer) = self.peers.get_mut(index) {
            peer.paths.heard(now_ns, from);
        }
        Ok(index)
    }

    /// Says who has an address that [`super::Event::Resolve`] named, and where it may be: what
    /// waits for it is sent. Also of use for peers that are known: more places where one may be.
    /// Returns whether the member is a peer now.
    pub fn learn(&mut self, now_ns: u64, key: &PublicKey, places: &[SocketAddr]) -> bool {
        let known = self.by_key.get(key).copied();
        let Some(index) = known.or_else(|| self.insert_stranger(now_ns, key, false)) else {
            self.give_up(&key.address());
            return false;
        };
        if let Some(peer) = self.peers.get_mut(index) {
            places.iter().for_each(|place| peer.paths.add(now_ns, Path::Direct(*place)));
            // A handshake that goes there first is answered after a round trip; routers may not know it.
            if let Some(place) = places.first().filter(|_| peer.current.is_none()) {
                peer.paths.prefer(Path::Direct(*place));
            }
        }
        for packet in self.unresolved.take(&key.address()) {
            self.send_packet(now_ns, &packet);
        }
        true
    }

    /// Starts a session with a peer, if there is none and none under way.
    pub fn connect(&mut self, now_ns: u64, key: &PublicKey) {
        let Some(index) = self.by_key.get(key).copied() else { return };
        self.drop_dead_sessions(now_ns, index);
        let is_connected = self.peers.get(index).is_some_and(|peer| peer.current.is_some());
        if !is_connected {
            self.begin_handshake(now_ns, index);
        }
    }

    /// The network says that nothing gets through on this path any more.
    pub fn path_failed(&mut self, key: &PublicKey, path: &Path) {
        let index = self.by_key.get(key).copied();
        if let Some(peer) = index.and_then(|index| self.peers.get_mut(index)) {
            peer.paths.fail(path);
        }
    }

    /// Somebody who may be wrong, like an ICMP error, says that nothing gets through on this path.
    /// It is probed at once; meanwhile data takes another path if one works.
    pub fn path_is_doubtful(&mut self, now_ns: u64, key: &PublicKey, path: &Path) {
        let Some(index) = self.by_key.get(key).copied() else { return };
        let Some(peer) = self.peers.get_mut(index) else { return };
        if peer.paths.doubt(now_ns, path) {
            self.rearm(index);
        }
    }

    /// A neighbour does not answer: no path to it that needs no router works, until one answers a
    /// probe.
    pub fn direct_paths_failed(&mut self, key: &PublicKey) {
        let index = self.by_key.get(key).copied();
        let Some(peer) = index.and_then(|index| self.peers.get_mut(index)) else { return };
        let paths = peer.paths.view().into_iter().map(|view| view.path);
        paths.filter(Path::is_direct).for_each(|path| peer.paths.fail(&path));
    }

    /// The network refuses datagrams of full size on this path.
    pub fn path_is_narrow(&mut self, path: &Path) {
        self.peers.iter_mut().for_each(|(_, peer)| peer.paths.narrow(path));
    }

    /// Forgets a peer and its sessions.
    pub fn forget(&mut self, key: &PublicKey) {
        if let Some(index) = self.by_key.get(key).copied() {
            self.remove(index);
        }
    }

    fn remove(&mut self, index: usize) {
        let Some(peer) = self.peers.try_remove(index) else { return };
        self.by_key.remove(&peer.key);
        self.aliases.forget_peer(index);
        self.routes.retain(|_, owner| *owner != index);
        self.indices.retain(|_, owner| *owner != index);
        if let Some(timer_ns) = peer.timer_ns {
            self.timers.remove(&(timer_ns, index));
        }
        if peer.current.is_some() {
            self.tell(super::Event::Down(peer.key));
        }
    }

    /// Whether there is a session with `peer` to send on.
    #[must_use]
    pub fn is_connected(&self, peer: &PublicKey) -> bool {
        let peer = self.by_key.get(peer).and_then(|index| self.peers.get(*index));
        peer.is_some_and(|peer| peer.current.is_some())
    }

    /// The way that frames for other members and messages between routers take to a peer.
    #[must_use]
    pub fn direct_path(&self, peer: &PublicKey) -> Option<Path> {
        let index = self.by_key.get(peer)?;
        self.peers.get(*index)?.paths.direct()
    }

    /// The peers, in no order.
    pub fn peers(&self) -> impl Iterator<Item = PeerView> {
        self.peers.iter().map(|(_, peer)| PeerView {
            key: peer.key,
            is_listed: peer.is_listed,
            is_connected: peer.current.is_some(),
            since_ns: peer.current.as_ref().map(|session| session.created_ns),
            heard_ns: peer.heard_ns,
            bytes_sent: peer.bytes_sent,
            bytes_received: peer.bytes_received,
            paths: peer.paths.view(),
        })
    }
}
