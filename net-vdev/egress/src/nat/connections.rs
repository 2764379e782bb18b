//! TCP: a member's segments, a connection of the host, and what goes from one to the other.

use std::net::{IpAddr, SocketAddr};

use net_vdev::firewall::Ports;
use net_vdev::wire::MTU;

use super::flows::Carried;
use super::{Deliver, Nat, Outbound, consequence};
use crate::counters::{Counters, DropReason};
use crate::packet::{self, Trouble};
use crate::sockets::{Kind, SocketError, Sockets, Token};
use crate::tcp::{
    BUFFER_BYTES_MIN, Broken, Segment, State, Stream, WINDOW_BYTES_MIN, opens, refusal,
};

/// What a connection may fill of the buffers from its start.
const BUDGET_BYTES: usize = BUFFER_BYTES_MIN + WINDOW_BYTES_MIN as usize;
const TCP_BYTES: usize = 20;

impl Nat {
    /// A segment of a member's.
    pub(super) fn take_segment(
        &mut self,
        now_ns: u64,
        sockets: &mut impl Sockets,
        outbound: &Outbound<'_>,
        ports: Ports,
    ) -> Result<(), DropReason> {
        outbound.check(packet::TCP)?;
        let segment = Segment::parse(outbound.transport()).ok_or(DropReason::Malformed)?;
        let ends = outbound.ends(packet::TCP, ports.source, ports.destination);
        if let Some(place) = self.table.find(&ends) {
            let Some(flow) = self.table.get_mut(place) else { return Ok(()) };
            let Carried::Tcp(stream) = &mut flow.carried else { return Ok(()) };
            let is_anew = stream.state() == State::TimeWait && opens(&segment);
            if !is_anew {
                let (token, is_writable) = (flow.token, &mut flow.is_writable);
                let counters = &mut self.counters;
                let sink = &mut |bytes: &[u8]| write(sockets, token, is_writable, counters, bytes);
                stream.take(now_ns, &segment, sink);
                self.table.mark(place);
                return Ok(());
            }
            self.remove(sockets, place);
        }
        if opens(&segment) {
            return self.open(now_ns, sockets, outbound, (&segment, ports));
        }
        if let Some(refusal) = refusal(&segment) {
            let mut frame = Vec::new();
            let written = refusal.write(&mut frame, ends.outer, ends.inner);
            self.notify(outbound.member, written.map(|_| frame));
        }
        Err(DropReason::NoFlow)
    }

    /// A member opens a connection: the host's is made first.
    fn open(
        &mut self,
        now_ns: u64,
        sockets: &mut impl Sockets,
        outbound: &Outbound<'_>,
        (syn, ports): (&Segment<'_>, Ports),
    ) -> Result<(), DropReason> {
        let ends = outbound.ends(packet::TCP, ports.source, ports.destination);
        self.admit(now_ns, sockets, outbound, &ends, BUDGET_BYTES)?;
        let token = self.table.next_token();
        let to = SocketAddr::new(IpAddr::V4(outbound.to), ports.destination);
        if let Err(error) = sockets.open(token, Kind::Tcp, to) {
            let (reason, trouble) = consequence(error);
            if let Some(trouble) = trouble {
                self.tell_trouble(trouble, outbound);
            }
            return Err(reason);
        }
        let stream = Stream::accept(now_ns, syn, self.random.u32(), mss_max(ends.inner.ip()));
        let place = self.table.insert(now_ns, ends, token, Carried::Tcp(Box::new(stream)));
        self.counters.flows += 1;
        self.table.mark(place);
        Ok(())
    }

    /// The host's connection may stand now.
    pub(super) fn host_connected(&mut self, sockets: &mut impl Sockets, place: usize) {
        let Some(flow) = self.table.get_mut(place) else { return };
        let Carried::Tcp(stream) = &mut flow.carried else { return };
        if stream.state() != State::Opening || !flow.is_writable {
            return;
        }
        let ends = flow.ends;
        match sockets.outcome(flow.token) {
            Ok(()) => stream.host_connected(),
            Err(SocketError::WouldBlock) => flow.is_writable = false,
            Err(SocketError::Unreachable) => {
                stream.forget();
                self.counters.drop(DropReason::Refused);
                let about = opening_segment(ends.inner, ends.outer);
                let notice = about.and_then(|about| {
                    let (outer, inner) = (ends.outer.ip(), ends.inner.ip());
                    packet::trouble(Trouble::Address, outer, inner, &about)
                });
                self.notify(ends.member, notice);
            }
            Err(_) => {
                stream.host_broke();
                self.counters.drop(DropReason::Refused);
            }
        }
    }

    /// Moves what can be moved between a connection's two ends.
    pub(super) fn flush_stream(
        &mut self,
        now_ns: u64,
        sockets: &mut impl Sockets,
        place: usize,
        deliver: &mut Deliver<'_>,
    ) {
        let Some(flow) = self.table.get_mut(place) else { return };
        let Carried::Tcp(stream) = &mut flow.carried else { return };
        let token = flow.token;
        if flow.is_writable {
            let (is_writable, counters) = (&mut flow.is_writable, &mut self.counters);
            let sink = &mut |bytes: &[u8]| write(sockets, token, is_writable, counters, bytes);
            stream.writable(now_ns, sink);
        }
        read(now_ns, sockets, token, stream, &mut flow.is_readable);
        if stream.take_host_end() {
            sockets.finish(token);
        }
        let growth_bytes = stream.growth_bytes();
        if growth_bytes > 0 && self.table.affords(place, growth_bytes) {
            self.grow(now_ns, sockets, place);
        }
        self.emit(now_ns, place, deliver);
        let Some(flow) = self.table.get_mut(place) else { return };
        let Carried::Tcp(stream) = &mut flow.carried else { return };
        match stream.state() {
            State::Closed => self.remove(sockets, place),
            State::TimeWait => {
                sockets.close(token);
                let due_ns = stream.deadline_ns();
                self.table.charge(place);
                self.table.arm(place, due_ns);
            }
            _ => {
                let due_ns = stream.deadline_ns();
                self.table.arm(place, due_ns);
            }
        }
    }

    fn grow(&mut self, now_ns: u64, sockets: &mut impl Sockets, place: usize) {
        let Some(flow) = self.table.get_mut(place) else { return };
        let Carried::Tcp(stream) = &mut flow.carried else { return };
        stream.grow();
        read(now_ns, sockets, flow.token, stream, &mut flow.is_readable);
        self.table.charge(place);
    }

    /// Sends the member what a connection has for it.
    fn emit(&mut self, now_ns: u64, place: usize, deliver: &mut Deliver<'_>) {
        let Some(flow) = self.table.get_mut(place) else { return };
        let Carried::Tcp(_) = &flow.carried else { return };
        let ends = flow.ends;
        // The stream is lent out so that the member's caps can be asked meanwhile.
        let Carried::Tcp(mut stream) = std::mem::replace(&mut flow.carried, Carried::Udp) else {
            return;
        };
        let (frame, counters) = (&mut self.frame, &mut self.counters);
        if let Some(member) = self.table.member(ends.member) {
            stream.emit(now_ns, &mut |segment| {
                let Some(header) = segment.write(frame, ends.outer, ends.inner) else {
                    counters.drop(DropReason::Malformed);
                    return;
                };
                let payload_bytes = segment.payload.0.len() + segment.payload.1.len();
                let packets = payload_bytes.div_ceil(usize::from(segment.mss).max(1)).max(1);
                if !member.into.take(now_ns, frame.len(), packets) {
                    counters.drop(DropReason::OverCap);
                    return;
                }
                counters.packets_in += 1;
                counters.bytes_in += frame.len() as u64;
                deliver(&member.key, &header, frame);
            });
        }
        if let Some(flow) = self.table.get_mut(place) {
            flow.carried = Carried::Tcp(stream);
        }
    }
}

/// Gives a socket bytes of a member's; says how many it took.
fn write(
    sockets: &mut impl Sockets,
    token: Token,
    is_writable: &mut bool,
    counters: &mut Counters,
    bytes: &[u8],
) -> Result<usize, Broken> {
    if !*is_writable {
        return Ok(0);
    }
    match sockets.send(token, bytes) {
        Ok(taken) => {
            *is_writable = taken == bytes.len();
            counters.bytes_out += taken as u64;
            Ok(taken)
        }
        Err(SocketError::WouldBlock) => {
            *is_writable = false;
            Ok(0)
        }
        Err(_) => Err(Broken),
    }
}

/// Reads ahead what a socket has for a member.
fn read(
    now_ns: u64,
    sockets: &mut impl Sockets,
    token: Token,
    stream: &mut Stream,
    is_readable: &mut bool,
) {
    while *is_readable && !stream.has_host_ended() {
        let room = stream.room();
        if room.is_empty() {
            return;
        }
        match sockets.receive(token, room) {
            Ok(0) => stream.host_ended(),
            Ok(len) => stream.filled(now_ns, len),
            Err(SocketError::WouldBlock) => *is_readable = false,
            Err(_) => {
                *is_readable = false;
                stream.host_broke();
            }
        }
    }
}

/// The payload of the largest segment to and from a member.
fn mss_max(address: IpAddr) -> u16 {
    u16::try_from(MTU - packet::ip_bytes(address) - TCP_BYTES).unwrap_or(1220)
}

/// As much of a member's SYN as an ICMP error has to quote.
fn opening_segment(inner: SocketAddr, outer: SocketAddr) -> Option<Vec<u8>> {
    let mut frame = Vec::new();
    let none = Segment::parse(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 2, 0, 0, 0, 0, 0, 0])?;
    refusal(&none)?.write(&mut frame, inner, outer).map(|_| frame)
}
