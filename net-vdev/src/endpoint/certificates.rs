//! Labels: this member shows the certificates of its own to peers, and reads theirs.
//!
//! Nothing tells the sender whether its certificates came through, so it shows them when a session
//! comes up and, while packets go to the peer, two times more. A peer has the labels of the newest
//! message of its that verified; one that has expired is taken away before the next packet is judged.

use super::control::Control;
use super::limit::Bucket;
use super::{DropReason, Endpoint};
use crate::certificate::{CERTIFICATE_BYTES_MAX, Label, LabelCertificate};
use crate::firewall::{Packet, Party, Verdict};

/// How many labels of a member count. Their certificates fit the narrowest way in one message.
pub const LABELS_MAX: usize = 5;

/// When the certificates are shown again to a peer that packets go to, after the first time.
const SHOW_AGAIN_NS: [u64; 2] = [500_000_000, 5_000_000_000];

const _: () = assert!(LABELS_MAX * (2 + CERTIFICATE_BYTES_MAX) < 1100);

/// The labels of a peer, and when this member's were shown to it.
pub(super) struct Labels {
    labels: Vec<Label>,
    held: Vec<LabelCertificate>,
    /// A hash of the message that they came in: the same message again costs no signatures.
    digest: [u8; 32],
    /// Limits the messages whose signatures are checked.
    messages: Bucket,
    /// How often this member's were shown in this session, and when next.
    shown: usize,
    show_at_ns: u64,
}

impl Default for Labels {
    fn default() -> Self {
        Self {
            labels: Vec::new(),
            held: Vec::new(),
            digest: [0; 32],
            messages: Bucket::new(2_000_000_000, 4),
            shown: usize::MAX,
            show_at_ns: u64::MAX,
        }
    }
}

impl Labels {
    /// The labels that the peer has now, if [`Endpoint::drop_ended_labels`] was called before.
    pub(super) fn current(&self) -> &[Label] {
        &self.labels
    }

    fn hold(&mut self, held: Vec<LabelCertificate>) {
        self.labels = held.iter().map(|certificate| certificate.label).collect();
        self.held = held;
    }

    fn has_ended(&self, unix_s: u64) -> bool {
        self.held.iter().any(|certificate| certificate.expires_unix_s <= unix_s)
    }
}

impl Endpoint {
    /// The label certificates of this member, which it shows to its peers from now on: the first
    /// [`LABELS_MAX`] that count for its key at this time. Returns how many do.
    pub fn set_certificates(&mut self, now_ns: u64, certificates: &[Vec<u8>]) -> usize {
        let unix_s = self.unix_s(now_ns);
        let count_for = |it: &&Vec<u8>| LabelCertificate::verify(it, &self.key, unix_s).is_ok();
        let mut message = Vec::new();
        let mut count = 0;
        for certificate in certificates.iter().filter(count_for).take(LABELS_MAX) {
            // A certificate that counts is shorter than 2^16 bytes.
            message.extend_from_slice(&(certificate.len() as u16).to_be_bytes());
            message.extend_from_slice(certificate);
            count += 1;
        }
        self.certificates = message;
        let connected = self.peers.iter().filter(|(_, peer)| peer.current.is_some());
        for index in connected.map(|(index, _)| index).collect::<Vec<_>>() {
            self.show_certificates(now_ns, index);
        }
        count
    }

    /// The labels that a peer has now.
    #[must_use]
    pub fn labels(&self, now_ns: u64, peer: &crate::PublicKey) -> Vec<Label> {
        let unix_s = self.unix_s(now_ns);
        let peer = self.by_key.get(peer).and_then(|index| self.peers.get(*index));
        let held = peer.into_iter().flat_map(|peer| &peer.labels.held);
        held.filter(|it| it.expires_unix_s > unix_s).map(|it| it.label).collect()
    }

    /// Shows this member's certificates to a peer with which a session has come up.
    pub(super) fn show_certificates(&mut self, now_ns: u64, index: usize) {
        if let Some(peer) = self.peers.get_mut(index) {
            peer.labels.shown = 0;
            peer.labels.show_at_ns = now_ns;
        }
        self.show_again(now_ns, index);
    }

    /// A packet goes to the peer: shows it the certificates if that is due.
    pub(super) fn show_again(&mut self, now_ns: u64, index: usize) {
        let Some(peer) = self.peers.get_mut(index) else { return };
        if self.certificates.is_empty() || now_ns < peer.labels.show_at_ns {
            return;
        }
        let pause_ns = SHOW_AGAIN_NS.get(peer.labels.shown);
        peer.labels.show_at_ns =
            pause_ns.map_or(u64::MAX, |pause_ns| now_ns.saturating_add(*pause_ns));
        peer.labels.shown += 1;
        let Some(path) = peer.paths.current() else { return };
        let certificates = self.certificates.clone();
        let sent = self.seal_control(index, path, &Control::Certificates(&certificates));
        if let Err(reason) = sent {
            self.counters.drop(reason);
        }
    }

    /// Reads the certificates that a peer shows; they take the place of those before.
    pub(super) fn receive_certificates(
        &mut self,
        now_ns: u64,
        index: usize,
        message: &[u8],
    ) -> Result<(), DropReason> {
        let unix_s = self.unix_s(now_ns);
        let Some(peer) = self.peers.get_mut(index) else { return Ok(()) };
        let digest = *blake3::hash(message).as_bytes();
        if peer.labels.digest == digest && !peer.labels.has_ended(unix_s) {
            return Ok(());
        }
        if !peer.labels.messages.take(now_ns) {
            return Err(DropReason::InboundControl);
        }
        let certificates = split(message).ok_or(DropReason::InboundControl)?;
        let read = certificates
            .into_iter()
            .filter_map(|bytes| LabelCertificate::verify(bytes, &peer.key, unix_s).ok());
        let held = read.collect();
        peer.labels.digest = digest;
        peer.labels.hold(held);
        let party = Party { key: &peer.key, labels: peer.labels.current() };
        self.firewall.relabel(party);
        Ok(())
    }

    /// Takes labels away from a peer whose time has come, and stops what only they allowed.
    pub(super) fn drop_ended_labels(&mut self, now_ns: u64, index: usize) {
        let unix_s = self.unix_s(now_ns);
        let Some(peer) = self.peers.get_mut(index) else { return };
        if !peer.labels.has_ended(unix_s) {
            return;
        }
        let mut held = std::mem::take(&mut peer.labels.held);
        held.retain(|certificate| certificate.expires_unix_s > unix_s);
        peer.labels.hold(held);
        let party = Party { key: &peer.key, labels: peer.labels.current() };
        self.firewall.relabel(party);
    }

    /// Asks the firewall whether a packet, or a super-frame of so many, may go to peer `index`.
    pub(super) fn ask_to_send(
        &mut self,
        now_ns: u64,
        index: usize,
        packet: &Packet,
        packets: usize,
    ) -> Result<(), DropReason> {
        if self.is_of_exit(packet) {
            return Ok(());
        }
        self.drop_ended_labels(now_ns, index);
        let peer = self.peers.get(index).ok_or(DropReason::OutboundNoRoute)?;
        let party = Party { key: &peer.key, labels: peer.labels.current() };
        match self.firewall.outbound_frame(now_ns, party, packet, packets) {
            Verdict::Pass => Ok(()),
            Verdict::Cap => Err(DropReason::OutboundCap),
            Verdict::Deny => {
                // A label that would let it pass may come with a session.
                if peer.current.is_none() && self.firewall.needs_labels_to_send() {
                    self.begin_handshake(now_ns, index);
                }
                Err(DropReason::OutboundDenied)
            }
        }
    }

    /// Asks the firewall whether a packet that the session of peer `index` opened may come in, or a
    /// super-frame that stands for so many.
    pub(super) fn ask_to_admit(
        &mut self,
        now_ns: u64,
        index: usize,
        packet: &Packet,
        packets: usize,
    ) -> Result<(), DropReason> {
        if self.is_of_exit(packet) {
            return Ok(());
        }
        self.drop_ended_labels(now_ns, index);
        let peer = self.peers.get(index).ok_or(DropReason::InboundSource)?;
        let party = Party { key: &peer.key, labels: peer.labels.current() };
        match self.firewall.inbound_frame(now_ns, party, packet, packets) {
            Verdict::Pass => Ok(()),
            Verdict::Cap => Err(DropReason::InboundCap),
            Verdict::Deny => Err(DropReason::InboundDenied),
        }
    }

    /// The seconds since 1970, by which certificates begin and end.
    #[must_use]
    pub fn unix_s(&self, now_ns: u64) -> u64 {
        self.unix_time_at_zero_ns.saturating_add(now_ns) / 1_000_000_000
    }
}

/// The certificates of a message: length (u16) and bytes, at most [`LABELS_MAX`].
fn split(mut message: &[u8]) -> Option<Vec<&[u8]>> {
    let mut certificates = Vec::new();
    while !message.is_empty() {
        let (length, rest) = message.split_first_chunk()?;
        let (bytes, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
        certificates.push(bytes);
        message = rest;
    }
    (certificates.len() <= LABELS_MAX).then_some(certificates)
}
