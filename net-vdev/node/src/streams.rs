//! TCP connections in place of UDP, for where a firewall drops UDP: the same datagrams, framed as
//! [`framing`] says.
//!
//! Whoever connects proves nothing by that: what comes in is judged as it would be from UDP. A
//! connection that is no way to a peer after ten seconds is closed, and so is one that breaks the
//! format. Nothing here waits: what a connection can't take now is kept, up to a bound, and lost
//! beyond, as datagrams may be.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;

use net_vdev::PublicKey;
use net_vdev::source::source_of;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with, sockopt};
use rustix::time::Timespec;

use crate::framing::{self, Framing, Malformed};

/// The most connections that others made, that this node made, and from one source. Whoever fills
/// the former leaves the latter alone.
const INCOMING_MAX: usize = 192;
const CALLED_MAX: usize = 64;
const STREAMS_PER_SOURCE: usize = 16;
/// How many connections are taken in a turn.
const ACCEPTS_PER_TURN: usize = 16;
/// How much waits to be sent on a connection at most, before the newest is lost.
const OUTPUT_BYTES_MAX: usize = 256 * 1024;
/// How much is read from a connection at a time.
const INPUT_BYTES: usize = 64 * 1024;
/// How long a connection may take to be made, and then to be of use.
const PATIENCE_NS: u64 = 10_000_000_000;
/// When an acknowledgement is missing for so long, the connection is dead.
const USER_TIMEOUT_MS: u32 = 10_000;
/// The pause between two calls of a neighbour at first, and how often it is doubled: to half a minute.
const REDIAL_NS: u64 = 1_000_000_000;
const REDIAL_DOUBLED_MAX: u32 = 5;
/// The port that most firewalls let through.
const HTTPS: u16 = 443;
/// How long nobody is taken on after one could not be.
const DEAF_NS: u64 = 1_000_000_000;

/// A connection.
struct Stream {
    socket: TcpStream,
    remote: SocketAddr,
    /// Whom this node called.
    called: Option<PublicKey>,
    is_connecting: bool,
    since_ns: u64,
    input: Framing,
    output: Vec<u8>,
    written: usize,
}

/// When a neighbour may be called again, and how often that was done.
#[derive(Clone, Copy)]
struct Calls {
    at_ns: u64,
    count: u32,
}

/// What happened to a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// The neighbour that was called answers.
    Up(u32, PublicKey),
    /// The connection is gone.
    Down(u32),
}

/// The connections of a node, by number.
pub(crate) struct Streams {
    listeners: Vec<TcpListener>,
    open: BTreeMap<u32, Stream>,
    next: u32,
    calls: BTreeMap<PublicKey, Calls>,
    /// Until when nobody is taken on: a listener that has somebody and can't let him in would be
    /// ready all the time.
    deaf_until_ns: u64,
    /// What was just read of one connection.
    buffer: Vec<u8>,
    pub(crate) overflowed: u64,
}

impl Streams {
    /// Takes connections from these, which don't block.
    pub(crate) fn new(listeners: Vec<TcpListener>) -> Self {
        Self {
            listeners,
            open: BTreeMap::new(),
            next: 1,
            calls: BTreeMap::new(),
            deaf_until_ns: 0,
            buffer: vec![0; INPUT_BYTES],
            overflowed: 0,
        }
    }

    /// Where connections are taken.
    pub(crate) fn listening(&self) -> impl Iterator<Item = SocketAddr> {
        self.listeners.iter().filter_map(|listener| listener.local_addr().ok())
    }

    /// Where connections lead, by number.
    pub(crate) fn remotes(&self) -> BTreeMap<u32, SocketAddr> {
        self.open.iter().map(|(number, stream)| (*number, stream.remote)).collect()
    }

    /// The connections that this node called for.
    pub(crate) fn called(&self) -> Vec<(u32, PublicKey)> {
        let called = |(number, stream): (&u32, &Stream)| Some((*number, stream.called?));
        self.open.iter().filter_map(called).collect()
    }

    /// What to wait for.
    pub(crate) fn poll_fds(&self, now_ns: u64) -> impl Iterator<Item = PollFd<'_>> {
        let hears = now_ns >= self.deaf_until_ns;
        let listeners = self.listeners.iter().filter(move |_| hears);
        let listeners = listeners.map(|it| PollFd::new(it, PollFlags::IN));
        let open = self.open.values().map(|stream| {
            let wants_out = stream.is_connecting || stream.written < stream.output.len();
            let out = if wants_out { PollFlags::OUT } else { PollFlags::empty() };
            PollFd::new(&stream.socket, PollFlags::IN | out)
        });
        listeners.chain(open)
    }

    /// Calls a neighbour by the port that it has UDP on and by that of HTTPS in turn, unless a call is
    /// under way or the last one was too short ago.
    pub(crate) fn call(&mut self, now_ns: u64, key: &PublicKey, at: SocketAddr) {
        if self.called().len() >= CALLED_MAX
            || self.open.values().any(|stream| stream.called.as_ref() == Some(key))
        {
            return;
        }
        let calls = self.calls.entry(*key).or_insert(Calls { at_ns: 0, count: 0 });
        if now_ns < calls.at_ns {
            return;
        }
        let pause_ns = REDIAL_NS << (calls.count / 2).min(REDIAL_DOUBLED_MAX);
        let at = if calls.count.is_multiple_of(2) { at } else { (at.ip(), HTTPS).into() };
        calls.at_ns = now_ns.saturating_add(pause_ns);
        calls.count = calls.count.saturating_add(1);
        match begin(at) {
            Ok(socket) => _ = self.insert(now_ns, socket, at, Some(*key)),
            Err(error) => tracing::debug!(%key, %at, %error, "no connection"),
        }
    }

    /// A neighbour needs no connection any more: the next time it is called at once.
    pub(crate) fn hang_up(&mut self, number: u32) {
        if let Some(key) = self.open.remove(&number).and_then(|stream| stream.called) {
            self.calls.remove(&key);
        }
    }

    fn insert(
        &mut self,
        now_ns: u64,
        socket: TcpStream,
        remote: SocketAddr,
        called: Option<PublicKey>,
    ) -> u32 {
        let number = self.next;
        self.next = self.next.wrapping_add(1).max(1);
        let stream = Stream {
            socket,
            remote,
            called,
            is_connecting: called.is_some(),
            since_ns: now_ns,
            input: Framing::default(),
            output: Vec::new(),
            written: 0,
        };
        self.open.insert(number, stream);
        number
    }

    /// Takes new connections, makes those that were called for, and reads; what changed.
    /// [`Streams::next_batch`] has what was read.
    pub(crate) fn turn(&mut self, now_ns: u64) -> Vec<Change> {
        self.accept(now_ns);
        let mut changes = Vec::new();
        for number in self.ready() {
            let Some(stream) = self.open.get_mut(&number) else { continue };
            if stream.is_connecting {
                match stream.connected() {
                    Ok(false) => {}
                    Ok(true) => {
                        stream.is_connecting = false;
                        changes.extend(stream.called.map(|key| Change::Up(number, key)));
                    }
                    Err(error) => {
                        tracing::debug!(remote = %stream.remote, %error, "no connection");
                        changes.push(Change::Down(number));
                    }
                }
            } else if let Err(error) = stream.fill(&mut self.buffer) {
                tracing::debug!(remote = %stream.remote, %error, "a connection ends");
                changes.push(Change::Down(number));
            }
        }
        changes
    }

    /// The connections that have something: others may have hundreds that say nothing, and none of
    /// them is to cost a call each time that a datagram comes in.
    fn ready(&self) -> Vec<u32> {
        if self.open.is_empty() {
            return Vec::new();
        }
        let interest = |stream: &Stream| {
            if stream.is_connecting { PollFlags::OUT } else { PollFlags::IN }
        };
        let entries = self.open.values().map(|it| PollFd::new(&it.socket, interest(it)));
        let mut entries: Vec<PollFd<'_>> = entries.collect();
        if let Err(error) = poll(&mut entries, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) {
            tracing::debug!(%error, "looking at connections");
            return Vec::new();
        }
        let ready = entries.iter().map(|entry| !entry.revents().is_empty());
        self.open.keys().zip(ready).filter_map(|(number, is)| is.then_some(*number)).collect()
    }

    fn accept(&mut self, now_ns: u64) {
        let mut taken = Vec::new();
        for listener in &self.listeners {
            for _ in 0..ACCEPTS_PER_TURN {
                match listener.accept() {
                    Ok(connection) => taken.push(connection),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                    // No descriptor left, most likely.
                    Err(error) => {
                        tracing::debug!(%error, "taking a connection");
                        self.deaf_until_ns = now_ns.saturating_add(DEAF_NS);
                        break;
                    }
                }
            }
        }
        for (socket, remote) in taken {
            // Dropping it closes it.
            if self.has_room_for(remote.ip()) && socket.set_nonblocking(true).is_ok() {
                prepare(&socket);
                self.insert(now_ns, socket, remote, None);
            }
        }
    }

    fn has_room_for(&self, remote: IpAddr) -> bool {
        let is_same = |it: &&Stream| source_of(it.remote.ip()) == source_of(remote);
        let incoming = self.open.values().filter(|it| it.called.is_none()).count();
        incoming < INCOMING_MAX && self.open.values().filter(is_same).count() < STREAMS_PER_SOURCE
    }

    /// The connections that were made and are of no use, which `is_used` tells.
    pub(crate) fn useless(&self, now_ns: u64, is_used: impl Fn(u32) -> bool) -> Vec<u32> {
        let is_old = |stream: &Stream| now_ns >= stream.since_ns.saturating_add(PATIENCE_NS);
        let old = self.open.iter().filter(|(_, stream)| is_old(stream));
        old.map(|(number, _)| *number).filter(|number| !is_used(*number)).collect()
    }

    /// Closes a connection.
    pub(crate) fn close(&mut self, number: u32) {
        self.open.remove(&number);
    }

    /// The numbers of all connections.
    pub(crate) fn numbers(&self) -> Vec<u32> {
        self.open.keys().copied().collect()
    }

    /// The next datagrams of a connection that are of one length (the last may be shorter), into the
    /// start of `buffer`: their bytes, and that length.
    ///
    /// # Errors
    /// What came in is not of the format.
    pub(crate) fn next_batch(
        &mut self,
        number: u32,
        buffer: &mut [u8],
    ) -> Result<Option<(usize, usize)>, Malformed> {
        self.open.get_mut(&number).map_or(Ok(None), |stream| stream.input.next_batch(buffer))
    }

    /// Queues datagrams of `stride` bytes each, the last perhaps shorter. False if they are lost.
    pub(crate) fn send(&mut self, number: u32, datagrams: &[u8], stride: usize) -> bool {
        let Some(stream) = self.open.get_mut(&number) else { return false };
        if stream.output.len() - stream.written + datagrams.len() > OUTPUT_BYTES_MAX {
            self.overflowed += 1;
            return false;
        }
        framing::write(&mut stream.output, datagrams, stride)
    }

    /// Writes what connections take now; returns those that take nothing any more.
    pub(crate) fn flush(&mut self) -> Vec<u32> {
        let open = self.open.iter_mut().filter(|(_, stream)| !stream.is_connecting);
        let failed = open.filter_map(|(number, stream)| stream.flush().is_err().then_some(*number));
        failed.collect()
    }
}

impl Stream {
    fn connected(&self) -> io::Result<bool> {
        sockopt::socket_error(&self.socket)??;
        match self.socket.peer_addr() {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Reads what is there, unless much waits to be taken.
    fn fill(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        if !self.input.has_room() {
            return Ok(());
        }
        match self.socket.read(buffer) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(len) => {
                self.input.push(buffer.get(..len).unwrap_or_default());
                Ok(())
            }
            Err(error) if is_transient(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        while let Some(rest) = self.output.get(self.written..).filter(|rest| !rest.is_empty()) {
            match self.socket.write(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(len) => self.written += len,
                Err(error) if is_transient(&error) => break,
                Err(error) => return Err(error),
            }
        }
        if self.written >= self.output.len() {
            self.output.clear();
            self.written = 0;
        } else if self.written >= OUTPUT_BYTES_MAX {
            self.output.drain(..self.written);
            self.written = 0;
        }
        Ok(())
    }
}

fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// Starts a connection; it is made, or fails, later.
fn begin(at: SocketAddr) -> io::Result<TcpStream> {
    let family = match at.ip() {
        IpAddr::V4(_) => AddressFamily::INET,
        IpAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = TcpStream::from(socket_with(family, SocketType::STREAM, flags, None)?);
    prepare(&socket);
    match connect(socket.as_fd(), &at) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(error) => Err(error.into()),
    }
}

/// Small datagrams go at once, and a dead connection is noticed.
fn prepare(socket: &TcpStream) {
    let outcome = sockopt::set_tcp_nodelay(socket, true)
        .and_then(|()| sockopt::set_tcp_user_timeout(socket, USER_TIMEOUT_MS));
    if let Err(error) = outcome {
        tracing::debug!(%error, "a connection with the kernel's defaults");
    }
}

#[cfg(test)]
mod tests {
    use net_vdev::wire::FRAME_BYTES_MAX;

    use super::*;

    /// Two ends of a connection that stands.
    fn pair() -> (Streams, Streams, u32, u32) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let at = listener.local_addr().unwrap();
        let (mut one, mut two) = (Streams::new(Vec::new()), Streams::new(vec![listener]));
        one.call(1, &PublicKey([7; 32]), at);
        for _ in 0..1000 {
            two.turn(1);
            if let [Change::Up(number, key)] = one.turn(1)[..] {
                assert_eq!(key, PublicKey([7; 32]));
                two.turn(1);
                return (one, two, number, 1);
            }
            std::thread::yield_now();
        }
        panic!("no connection");
    }

    /// Moves bytes until `count` datagrams arrived.
    fn carry(from: &mut Streams, to: &mut Streams, number: u32, count: usize) -> Vec<Vec<u8>> {
        let (mut got, mut buffer) = (Vec::new(), vec![0; 65536]);
        for _ in 0..100_000 {
            assert!(from.flush().is_empty());
            assert_eq!(to.turn(1), []);
            while let Some((len, stride)) = to.next_batch(number, &mut buffer).unwrap() {
                got.extend(buffer[..len].chunks(stride).map(<[u8]>::to_vec));
            }
            if got.len() >= count {
                return got;
            }
        }
        panic!("{} of {count} arrived", got.len());
    }

    #[test]
    fn datagrams_arrive_whole_and_in_order_and_equal_ones_as_one_batch() {
        let (mut one, mut two, number, other) = pair();
        let mut sent = Vec::new();
        for length in [1, 100, FRAME_BYTES_MAX] {
            let batch: Vec<u8> = (0..10 * length).map(|it| it as u8).collect();
            assert!(one.send(number, &batch, length));
            sent.extend(batch.chunks(length).map(<[u8]>::to_vec));
        }
        assert_eq!(carry(&mut one, &mut two, other, sent.len()), sent);
        assert!(two.send(other, &[5; 33], 33));
        assert_eq!(carry(&mut two, &mut one, number, 1), [[5; 33]]);
    }

    #[test]
    fn what_nobody_reads_is_bounded_and_then_lost() {
        let (mut one, _two, number, _) = pair();
        let batch = [0; 40 * 1400];
        let taken = (0..1000).filter(|_| one.send(number, &batch, 1400)).count();
        assert!(taken < 6, "{taken}");
        assert_eq!(one.overflowed, 1000 - taken as u64);
        for _ in 0..1000 {
            assert!(one.flush().is_empty());
            one.send(number, &batch, 1400);
        }
        let held = one.open.values().map(|it| it.output.len()).sum::<usize>();
        assert!(held <= 3 * OUTPUT_BYTES_MAX, "{held}");
    }

    #[test]
    fn a_length_that_no_datagram_has_ends_the_connection_and_half_a_datagram_waits() {
        for (bytes, is_bad) in [
            (vec![0, 0], true),
            (vec![0xff, 0xff], true),
            ((FRAME_BYTES_MAX as u16 + 1).to_be_bytes().to_vec(), true),
            (vec![0, 3, 1, 2], false),
            (vec![0], false),
        ] {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            listener.set_nonblocking(true).unwrap();
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let mut streams = Streams::new(vec![listener]);
            client.write_all(&bytes).unwrap();
            let mut buffer = vec![0; 65536];
            let mut outcome = Ok(None);
            for _ in 0..1000 {
                assert_eq!(streams.turn(1), []);
                outcome = streams.next_batch(1, &mut buffer);
                if outcome.is_err() {
                    break;
                }
            }
            assert_eq!(outcome.is_err(), is_bad, "{bytes:?}");
        }
    }

    #[test]
    fn connections_from_one_address_are_limited_and_useless_ones_are_named() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let at = listener.local_addr().unwrap();
        let mut streams = Streams::new(vec![listener]);
        let clients: Vec<_> = (0..40).map(|_| TcpStream::connect(at).unwrap()).collect();
        for _ in 0..100 {
            streams.turn(1);
        }
        assert_eq!(streams.open.len(), STREAMS_PER_SOURCE);
        assert!(streams.useless(PATIENCE_NS, |_| false).is_empty());
        let useless = streams.useless(1 + PATIENCE_NS, |number| number == 3);
        assert_eq!(useless.len(), STREAMS_PER_SOURCE - 1);
        drop(clients);
        let ended = streams.turn(2);
        assert_eq!(ended.len(), STREAMS_PER_SOURCE);
    }

    #[test]
    fn all_addresses_of_an_ipv6_site_share_its_places() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let mut streams = Streams::new(Vec::new());
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        for host in 1..=STREAMS_PER_SOURCE {
            let remote = ip(&format!("2001:db8::{host:x}"));
            assert!(streams.has_room_for(remote), "host {host}");
            let socket = TcpStream::connect(at).unwrap();
            streams.insert(1, socket, (remote, 9).into(), None);
        }
        assert!(!streams.has_room_for(ip("2001:db8::1:2:3:4")));
        assert!(streams.has_room_for(ip("2001:db8:0:1::1")));
        assert!(streams.has_room_for(ip("::ffff:192.0.2.1")));
    }

    #[test]
    fn whoever_takes_all_connections_does_not_keep_this_node_from_calling() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let at = listener.local_addr().unwrap();
        let mut streams = Streams::new(vec![listener]);
        let mut clients = Vec::new();
        for host in 1..=20 {
            for _ in 0..STREAMS_PER_SOURCE {
                let family = AddressFamily::INET;
                let client = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None);
                let client = client.unwrap();
                let from: SocketAddr = ([127, 0, 1, host], 0).into();
                rustix::net::bind(&client, &from).unwrap();
                connect(&client, &at).unwrap();
                clients.push(client);
                streams.turn(1);
            }
        }
        assert_eq!(streams.open.len(), INCOMING_MAX);
        streams.call(1, &PublicKey([9; 32]), at);
        assert_eq!(streams.called().len(), 1);
    }

    #[test]
    fn a_neighbour_is_called_by_both_ports_in_turn_and_ever_more_rarely() {
        let mut streams = Streams::new(Vec::new());
        let key = PublicKey([9; 32]);
        let at: SocketAddr = "127.0.0.1:9".parse().unwrap();
        let mut calls = Vec::new();
        for second in 0..300u64 {
            let now_ns = 1 + second * 1_000_000_000;
            let before = streams.calls.get(&key).map_or(0, |calls| calls.count);
            streams.call(now_ns, &key, at);
            if streams.calls[&key].count > before {
                calls.push(second);
            }
            for number in streams.numbers() {
                streams.close(number);
            }
        }
        assert_eq!(calls[..6], [0, 1, 2, 4, 6, 10]);
        assert!(calls.len() < 20, "{calls:?}");
    }
}
