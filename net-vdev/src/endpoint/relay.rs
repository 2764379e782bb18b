//! Frames on their way through this member, which is a router: the tag of the hop that they came
//! on is checked, and the tag of the next is put on. What is inside is for others and stays sealed.

use super::paths::Path;
use super::{DropReason, Endpoint};
use crate::identity::PublicKey;
use crate::wire::{RELAY_HEADER_BYTES, RelayHeader};

/// A relayed frame that came from a neighbour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hop {
    /// The neighbour.
    pub neighbour: PublicKey,
    /// Where the frame goes, and from whom.
    pub header: RelayHeader,
}

impl Endpoint {
    /// Checks a relayed frame that came straight from the network: the sender is a neighbour with a
    /// session, and the frame was not seen before. A frame that fails is counted.
    pub fn open_frame(&mut self, now_ns: u64, frame: &[u8]) -> Option<Hop> {
        let opened = self.try_open_frame(now_ns, frame);
        self.counters.frames_relayed += u64::from(opened.is_ok());
        opened.map_err(|reason| self.counters.drop(reason)).ok()
    }

    fn try_open_frame(&mut self, now_ns: u64, frame: &[u8]) -> Result<Hop, DropReason> {
        let header = RelayHeader::parse(frame).map_err(|_| DropReason::Wire)?;
        let index = self.indices.get(&header.receiver).ok_or(DropReason::HopUnexpected)?;
        let peer = self.peers.get_mut(*index).ok_or(DropReason::HopUnexpected)?;
        let neighbour = peer.key;
        let session = peer.session(header.receiver).filter(|session| session.is_alive(now_ns));
        let session = session.ok_or(DropReason::HopUnexpected)?;
        let bytes = frame.first_chunk::<RELAY_HEADER_BYTES>().ok_or(DropReason::Wire)?;
        session.open_hop(bytes).map_err(|_| DropReason::HopForged)?;
        peer.heard_ns = now_ns;
        Ok(Hop { neighbour, header })
    }

    /// Makes a frame ready for a neighbour: writes the link's fields and tag into its header.
    /// Returns the way to send it, or `None` (counted) if there is no session or no way that needs
    /// no router itself.
    pub fn seal_frame(&mut self, to: &PublicKey, frame: &mut [u8]) -> Option<Path> {
        let index = self.by_key.get(to).copied();
        let peer = index.and_then(|index| self.peers.get_mut(index));
        let sealed = peer.and_then(|peer| {
            let path = peer.paths.direct()?;
            let header = frame.first_chunk_mut::<RELAY_HEADER_BYTES>()?;
            peer.current.as_mut()?.seal_hop(header).then_some(path)
        });
        if sealed.is_none() {
            self.counters.drop(DropReason::HopUnexpected);
        }
        sealed
    }
}
