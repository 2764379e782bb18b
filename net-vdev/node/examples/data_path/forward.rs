//! One of the two processes: the loop between TUN and socket.

use std::error::Error;
use std::net::{Ipv6Addr, SocketAddr, UdpSocket};

use mesh_node::tun::{Tun, TunConfig};
use net_vdev::offload::{
    Coalescer, Layout, PACKET_BYTES_MAX, Segmenter, VirtioNetHeader, clamp_mss,
};
use net_vdev::socket::{BATCH_BYTES_MAX, BATCH_COUNT_MAX, RECEIVE_BYTES, SendError, Socket};
use rustix::event::{PollFd, PollFlags, poll};

use crate::seal::{Direction, HEADER_BYTES, TAG_BYTES};

const PORT: u16 = 7000;
/// How many frames or batches are taken before the other side has its turn.
const BUDGET: usize = 8;
/// The largest multiple of 16 within the MTU: AES-GCM takes a tenth longer for a last part of a block.
const PACKET_BYTES: usize = 1392;
const LAYOUT: Layout =
    Layout { headroom: HEADER_BYTES, tailroom: TAG_BYTES, packet_bytes_max: PACKET_BYTES };

/// The address of a side inside the mesh.
pub(crate) fn inner(side: u8) -> Ipv6Addr {
    Ipv6Addr::new(0x400, 0, 0, 0, 0, 0, 0, u16::from(side))
}

/// The address of a side on the veth.
pub(crate) fn outer(side: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, u16::from(side))
}

struct Node {
    tun: Tun,
    out: Out,
    sealing: Direction,
    opening: Direction,
    coalescer: Coalescer,
    frame: Vec<u8>,
    received: Vec<u8>,
    drops: u64,
}

/// Datagrams on their way out: all of `stride` bytes, the last perhaps shorter.
struct Out {
    socket: Socket,
    peer: SocketAddr,
    buffer: Vec<u8>,
    len: usize,
    stride: usize,
    drops: u64,
}

pub(crate) fn run(side: u8) -> Result<(), Box<dyn Error>> {
    let other = 3 - side;
    let segments_max = BATCH_BYTES_MAX / (PACKET_BYTES + HEADER_BYTES + TAG_BYTES);
    let tun = Tun::open(&TunConfig {
        name: format!("hypha{side}"),
        mtu: 1400,
        addresses: vec![(inner(side), 7)],
        routes: Vec::new(),
        segments_max: u16::try_from(segments_max)?,
    })?;
    let mut node = Node {
        coalescer: Coalescer::new(tun.accepts()),
        tun,
        out: Out {
            socket: Socket::new(UdpSocket::bind((outer(side), PORT))?)?,
            peer: SocketAddr::from((outer(other), PORT)),
            buffer: vec![0; BATCH_BYTES_MAX],
            len: 0,
            stride: 0,
            drops: 0,
        },
        sealing: Direction::new(side)?,
        opening: Direction::new(other)?,
        frame: vec![0; PACKET_BYTES_MAX],
        received: vec![0; RECEIVE_BYTES],
        drops: 0,
    };
    loop {
        let mut fds =
            [PollFd::new(&node.tun, PollFlags::IN), PollFd::new(&node.out.socket, PollFlags::IN)];
        poll(&mut fds, None)?;
        let [host, network] = fds.map(|fd| !fd.revents().is_empty());
        if network {
            node.drain_socket()?;
        }
        if host {
            node.drain_tun()?;
        }
    }
}

impl Node {
    fn drain_tun(&mut self) -> Result<(), Box<dyn Error>> {
        for _ in 0..BUDGET {
            let Some((header, len)) = self.tun.read(&mut self.frame)? else { break };
            let frame = self.frame.get(..len).unwrap_or_default();
            match Segmenter::new(&header, frame, LAYOUT) {
                Ok(segmenter) => self.out.push(len, segmenter, &mut self.sealing)?,
                Err(_) => self.drops += 1,
            }
        }
        self.out.send();
        Ok(())
    }

    fn drain_socket(&mut self) -> Result<(), Box<dyn Error>> {
        let (tun, drops) = (&self.tun, &mut self.drops);
        let mut emit = |header: &_, frame: &[u8]| {
            if tun.write(header, frame).is_err() {
                *drops += 1;
            }
        };
        for _ in 0..BUDGET {
            let Some(batch) = self.out.socket.receive_batch(&mut self.received)? else { break };
            let datagrams = self.received.get_mut(..batch.len).unwrap_or_default();
            for datagram in datagrams.chunks_mut(batch.stride) {
                if let Ok(packet) = self.opening.open(datagram) {
                    self.coalescer.push(&VirtioNetHeader::default(), packet, &mut emit);
                }
            }
        }
        self.coalescer.flush(&mut emit);
        Ok(())
    }
}

impl Out {
    /// Small packets of one size share a system call; what is cut has its own.
    fn push(
        &mut self,
        frame_bytes: usize,
        mut segmenter: Segmenter<'_>,
        sealing: &mut Direction,
    ) -> Result<(), Box<dyn Error>> {
        let packet_bytes = segmenter.packet_bytes();
        let is_cut = packet_bytes < frame_bytes;
        let next = packet_bytes + HEADER_BYTES + TAG_BYTES;
        let has_room =
            self.len + next <= self.buffer.len() && self.len < BATCH_COUNT_MAX * self.stride;
        if is_cut || next > self.stride || !has_room {
            self.send();
        }
        loop {
            let room = self.buffer.get_mut(self.len..).unwrap_or_default();
            let Some(filled) = segmenter.fill(room)? else { return Ok(()) };
            for datagram in room.get_mut(..filled.len).unwrap_or_default().chunks_mut(filled.stride)
            {
                let end = datagram.len() - TAG_BYTES;
                clamp_mss(datagram.get_mut(HEADER_BYTES..end).unwrap_or_default(), PACKET_BYTES);
                sealing.seal(datagram).map_err(|_| "sealing failed")?;
            }
            if self.len == 0 {
                self.stride = filled.stride;
            }
            self.len += filled.len;
            // A shorter one can only be the last.
            if is_cut || filled.stride < self.stride {
                self.send();
            }
        }
    }

    fn send(&mut self) {
        let datagrams = self.buffer.get(..self.len).unwrap_or_default();
        if !datagrams.is_empty() {
            match self.socket.send_batch(self.peer, datagrams, self.stride) {
                Ok(()) => {}
                Err(SendError::Full { .. }) => self.drops += 1,
                Err(error) => eprintln!("{error}"),
            }
        }
        self.len = 0;
    }
}
