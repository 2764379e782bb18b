//! Streams: connections of the owner's that take the place of UDP where that is blocked.

use super::Endpoint;
use super::paths::Path;
use crate::identity::PublicKey;

impl Endpoint {
    /// The owner has a stream to a peer: probes find out whether it is of use. If there is no
    /// session, one is asked for there.
    pub fn stream_up(&mut self, now_ns: u64, key: &PublicKey, number: u32) {
        let Some(index) = self.by_key.get(key).copied() else { return };
        let Some(peer) = self.peers.get_mut(index) else { return };
        let path = Path::Stream(number);
        peer.paths.add(now_ns, path);
        if peer.current.is_some() {
            self.look_again(now_ns, key);
        } else {
            peer.paths.prefer(path);
            // What is under way goes by a way that was not answered.
            self.forget_initiation(index);
            if let Some(peer) = self.peers.get_mut(index) {
                peer.attempt = None;
            }
            self.begin_handshake(now_ns, index);
        }
    }

    /// A stream is no more. Returns the peers that it was a way to.
    pub fn stream_down(&mut self, number: u32) -> Vec<PublicKey> {
        let path = Path::Stream(number);
        let lost = |(_, peer): (usize, &mut super::PeerState)| {
            peer.paths.remove(&path).then_some(peer.key)
        };
        self.peers.iter_mut().filter_map(lost).collect()
    }

    /// Whether a stream is a way to a peer.
    #[must_use]
    pub fn is_stream_used(&self, number: u32) -> bool {
        self.peers.iter().any(|(_, peer)| peer.paths.has(&Path::Stream(number)))
    }

    /// Probes all ways to a peer now, and for two seconds from now on.
    pub fn look_again(&mut self, now_ns: u64, key: &PublicKey) {
        let Some(index) = self.by_key.get(key).copied() else { return };
        let Some(peer) = self.peers.get_mut(index) else { return };
        peer.sent_ns = now_ns;
        peer.paths.wake(now_ns);
        self.rearm(index);
    }
}
