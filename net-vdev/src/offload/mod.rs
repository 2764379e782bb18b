//! Offloads: one frame of up to 64 KiB stands for many packets of a flow until the last moment, and
//! from the first.
//!
//! A system call, a walk through a network stack and a turn of a virtqueue cost the same for 1,400
//! bytes as for 64 KiB. So a guest (virtio-net) or the host (TUN) hands over a *super-frame*: one
//! IP packet of up to 65,535 bytes with a [`VirtioNetHeader`] that says how it is to be cut.
//!
//! * [`Segmenter`] cuts it into packets that fit the mesh, right into a buffer with room for the
//!   mesh's header and tag around each, at a constant stride: they are sealed in place and leave
//!   with one `sendmsg` (UDP_SEGMENT).
//! * [`Coalescer`] does the reverse with what one `recvmsg` (UDP_GRO) brought.
//! * [`clamp_mss`] keeps TCP from sending packets that a path through relays can't carry.
//!
//! # What is trusted about inner checksums
//!
//! Packets reach the [`Coalescer`] out of a session, so nobody on the way has changed them. That
//! says nothing about the sender's guest or about its memory before sealing; TCP's and UDP's
//! checksums do. The super-frame asks for a new checksum (NEEDS_CSUM), which would hide damage, so a
//! packet is only merged if its own is right; any other passes as it is and the receiver's stack
//! judges it.
//!
//! What a [`Segmenter`] cuts from a super-frame had no checksum but the one that its card was asked to
//! compute: it would protect the way from there on, as the AEAD does. So between members that both take
//! that the checksum stays *open*: the packet arrives with a header that asks for it (NEEDS_CSUM), and is
//! merged as it is. For all others the segmenter computes it. Checksums of whole packets are left alone
//! unless somebody asks for them.
//!
//! # Frames are hostile
//!
//! A header is believed only where the packet behind it says the same: the checksum's place, the
//! protocol, the lengths. What is not TCP or UDP straight behind an IP header without options or
//! extensions is never cut or merged.

mod checksum;
mod coalesce;
mod header;
mod headers;
mod mss;
mod segment;

pub(crate) use checksum::updated;
pub use checksum::{Sum, pseudo_header};
pub use coalesce::{Accepts, Coalescer, FLOWS_MAX};
pub use header::{
    ChecksumField, HeaderError, Segmentation, SegmentationKind, TUN_HEADER_BYTES,
    VIRTIO_HEADER_BYTES, VirtioNetHeader,
};
pub(crate) use headers::put;
pub use mss::clamp_mss;
pub use segment::{Batch, Layout, SEGMENTS_MAX, SegmentError, Segmenter, each_packet};

/// The largest IP packet, super-frames included.
pub const PACKET_BYTES_MAX: usize = 65_535;
