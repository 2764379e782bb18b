//! DNS over TCP for members (RFC 7766): connections whose far end is the resolver instead of a socket
//! of the host. To NAT64, which has the TCP, they are sockets like any.

use std::collections::{BTreeMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddr};

use crate::sockets::{Kind, Ready, SocketError, Sockets, Token};

/// How many connections there are, how many questions of one wait at a time, and how long one is.
const STREAMS_MAX: usize = 256;
const WAITING_MAX: usize = 16;
const QUERY_BYTES_MAX: usize = 1500;
/// Whoever does not read so many bytes of answers is asked for no more questions until it does.
const UNREAD_BYTES_MAX: usize = 128 * 1024;
/// How long a connection may be silent before it is reset.
const SILENCE_NS: u64 = 30_000_000_000;

/// Stands for the resolver where the address of a server is expected: nobody has it, and no member
/// reaches it by name.
pub(crate) const RESOLVER: Ipv4Addr = Ipv4Addr::UNSPECIFIED;

/// The connections.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    open: BTreeMap<Token, Stream>,
    ready: Vec<Ready>,
    queries: VecDeque<(Token, Vec<u8>)>,
    now_ns: u64,
}

#[derive(Debug, Default)]
struct Stream {
    received: Vec<u8>,
    to_send: VecDeque<u8>,
    waiting: usize,
    /// The member has no more to ask.
    is_finished: bool,
    is_overdue: bool,
    moved_ns: u64,
}

impl Streams {
    /// It is this late.
    pub(crate) fn set_now(&mut self, now_ns: u64) {
        self.now_ns = now_ns;
    }

    /// Whether there are questions to take, or connections that can go on.
    pub(crate) fn has_queries(&self) -> bool {
        !self.queries.is_empty() || !self.ready.is_empty()
    }

    /// The next question, and whose it is.
    pub(crate) fn poll_query(&mut self) -> Option<(Token, Vec<u8>)> {
        self.queries.pop_front()
    }

    /// Answers a question of a connection, if that is still there.
    pub(crate) fn answer(&mut self, token: Token, message: &[u8]) {
        let (now_ns, len) = (self.now_ns, u16::try_from(message.len()));
        let Some(stream) = self.open.get_mut(&token) else { return };
        stream.waiting = stream.waiting.saturating_sub(1);
        stream.moved_ns = now_ns;
        if let Ok(len) = len {
            stream.to_send.extend(len.to_be_bytes());
            stream.to_send.extend(message);
        }
        // What waited for its turn is read on.
        self.ready.push(Ready { token, readable: true, writable: true });
    }

    pub(crate) fn next_deadline(&self) -> Option<u64> {
        let patient = self.open.values().filter(|stream| !stream.is_overdue);
        patient.map(|stream| stream.moved_ns.saturating_add(SILENCE_NS)).min()
    }

    /// Resets connections that were silent for too long.
    pub(crate) fn handle_deadline(&mut self) {
        for (token, stream) in &mut self.open {
            if self.now_ns >= stream.moved_ns.saturating_add(SILENCE_NS) && !stream.is_overdue {
                stream.is_overdue = true;
                self.ready.push(Ready { token: *token, readable: true, writable: true });
            }
        }
    }
}

impl Stream {
    /// Takes bytes of a member, as many as belong to questions that may wait.
    fn take(&mut self, bytes: &[u8], asked: &mut Vec<Vec<u8>>) -> Result<usize, SocketError> {
        let mut taken = 0;
        for byte in bytes {
            if self.waiting >= WAITING_MAX || self.to_send.len() >= UNREAD_BYTES_MAX {
                break;
            }
            self.received.push(*byte);
            taken += 1;
            if let Some((len, message)) = self.received.split_first_chunk::<2>() {
                let len = usize::from(u16::from_be_bytes(*len));
                if len == 0 || len > QUERY_BYTES_MAX {
                    return Err(SocketError::Broken);
                }
                if message.len() == len {
                    asked.push(message.to_vec());
                    self.received.clear();
                    self.waiting += 1;
                }
            }
        }
        if taken == 0 && !bytes.is_empty() { Err(SocketError::WouldBlock) } else { Ok(taken) }
    }
}

/// The host's sockets, and the resolver's connections among them.
pub(crate) struct WithStreams<'a, S> {
    pub(crate) sockets: &'a mut S,
    pub(crate) streams: &'a mut Streams,
}

impl<S: Sockets> Sockets for WithStreams<'_, S> {
    fn is_own(&mut self, address: Ipv4Addr) -> bool {
        self.sockets.is_own(address)
    }

    fn open(&mut self, token: Token, kind: Kind, to: SocketAddr) -> Result<(), SocketError> {
        if kind != Kind::Tcp || to.ip() != RESOLVER {
            return self.sockets.open(token, kind, to);
        }
        if self.streams.open.len() >= STREAMS_MAX {
            return Err(SocketError::Exhausted);
        }
        let stream = Stream { moved_ns: self.streams.now_ns, ..Stream::default() };
        self.streams.open.insert(token, stream);
        self.streams.ready.push(Ready { token, readable: false, writable: true });
        Ok(())
    }

    fn port(&mut self, token: Token) -> Option<u16> {
        self.sockets.port(token)
    }

    fn outcome(&mut self, token: Token) -> Result<(), SocketError> {
        if self.streams.open.contains_key(&token) {
            return Ok(());
        }
        self.sockets.outcome(token)
    }

    fn send(&mut self, token: Token, bytes: &[u8]) -> Result<usize, SocketError> {
        let now_ns = self.streams.now_ns;
        let Some(stream) = self.streams.open.get_mut(&token) else {
            return self.sockets.send(token, bytes);
        };
        if stream.is_overdue {
            return Err(SocketError::Broken);
        }
        let mut asked = Vec::new();
        let outcome = stream.take(bytes, &mut asked);
        if !asked.is_empty() {
            stream.moved_ns = now_ns;
        }
        self.streams.queries.extend(asked.into_iter().map(|message| (token, message)));
        outcome
    }

    fn receive(&mut self, token: Token, into: &mut [u8]) -> Result<usize, SocketError> {
        let Some(stream) = self.streams.open.get_mut(&token) else {
            return self.sockets.receive(token, into);
        };
        if stream.is_overdue {
            return Err(SocketError::Broken);
        }
        let unread = stream.to_send.len();
        let len = unread.min(into.len());
        into.iter_mut().zip(stream.to_send.drain(..len)).for_each(|(to, from)| *to = from);
        if unread >= UNREAD_BYTES_MAX && unread - len < UNREAD_BYTES_MAX {
            // What waited for its turn is read on.
            self.streams.ready.push(Ready { token, readable: true, writable: true });
        }
        match len {
            0 if stream.is_finished && stream.waiting == 0 => Ok(0),
            0 => Err(SocketError::WouldBlock),
            len => Ok(len),
        }
    }

    fn finish(&mut self, token: Token) {
        match self.streams.open.get_mut(&token) {
            Some(stream) => {
                stream.is_finished = true;
                self.streams.ready.push(Ready { token, readable: true, writable: false });
            }
            None => self.sockets.finish(token),
        }
    }

    fn close(&mut self, token: Token) {
        if self.streams.open.remove(&token).is_none() {
            self.sockets.close(token);
        }
    }

    fn ready(&mut self, into: &mut Vec<Ready>) {
        self.sockets.ready(into);
        into.append(&mut self.streams.ready);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::HostSockets;

    const TOKEN: Token = Token(1);

    fn question(id: u8) -> Vec<u8> {
        vec![0, 3, 7, 7, id]
    }

    /// A connection to the resolver, and what is done with it.
    fn with<T>(
        streams: &mut Streams,
        act: impl FnOnce(&mut WithStreams<'_, HostSockets>) -> T,
    ) -> T {
        let mut sockets = HostSockets::new().unwrap();
        act(&mut WithStreams { sockets: &mut sockets, streams })
    }

    fn opened() -> Streams {
        let mut streams = Streams::default();
        let to = SocketAddr::from((RESOLVER, 53));
        with(&mut streams, |all| all.open(TOKEN, Kind::Tcp, to)).unwrap();
        streams
    }

    #[test]
    fn questions_wait_within_bounds_and_are_answered_in_pieces_of_any_size() {
        let mut streams = opened();
        let many: Vec<u8> = (0..40).flat_map(question).collect();
        let mut taken = 0;
        for part in many.chunks(7) {
            match with(&mut streams, |all| all.send(TOKEN, part)) {
                Ok(count) => taken += count,
                Err(error) => assert_eq!(error, SocketError::WouldBlock),
            }
        }
        assert_eq!(taken, 5 * WAITING_MAX);
        let asked = std::iter::from_fn(|| streams.poll_query()).count();
        assert_eq!(asked, WAITING_MAX);
        streams.answer(TOKEN, b"answer");
        let mut bytes = [0; 5];
        assert_eq!(with(&mut streams, |all| all.receive(TOKEN, &mut bytes)), Ok(5));
        assert_eq!(bytes, *b"\0\x06ans");
        assert_eq!(with(&mut streams, |all| all.send(TOKEN, &question(9))), Ok(5), "room again");
        // The end comes when all is answered.
        with(&mut streams, |all| all.finish(TOKEN));
        assert_eq!(with(&mut streams, |all| all.receive(TOKEN, &mut bytes)), Ok(3));
        let nothing = with(&mut streams, |all| all.receive(TOKEN, &mut bytes));
        assert_eq!(nothing, Err(SocketError::WouldBlock));
        (0..WAITING_MAX).for_each(|_| streams.answer(TOKEN, b""));
        let mut rest = [0; 99];
        assert_eq!(with(&mut streams, |all| all.receive(TOKEN, &mut rest)), Ok(2 * WAITING_MAX));
        assert_eq!(with(&mut streams, |all| all.receive(TOKEN, &mut rest)), Ok(0));
    }

    #[test]
    fn whoever_asks_and_never_reads_the_answers_is_not_heard_until_it_does() {
        let mut streams = opened();
        let long = [7; 16 * 1024];
        let asked = (0..10_000).take_while(|_| {
            let sent = with(&mut streams, |all| all.send(TOKEN, &question(1)));
            while streams.poll_query().is_some() {
                streams.answer(TOKEN, &long);
            }
            sent.is_ok()
        });
        let asked = asked.count();
        assert!(asked * long.len() <= UNREAD_BYTES_MAX, "{asked} questions");
        streams.ready.clear();
        let mut bytes = vec![0; long.len()];
        assert_eq!(with(&mut streams, |all| all.receive(TOKEN, &mut bytes)), Ok(long.len()));
        let is_told = streams.ready.iter().any(|ready| ready.token == TOKEN && ready.writable);
        assert!(is_told && streams.has_queries(), "it goes on at once");
        assert_eq!(with(&mut streams, |all| all.send(TOKEN, &question(1))), Ok(5));
    }

    #[test]
    fn nonsense_and_silence_end_a_connection_and_there_are_only_so_many() {
        for nonsense in [[0, 0], [0xff, 0xff]] {
            let sent = with(&mut opened(), |all| all.send(TOKEN, &nonsense));
            assert_eq!(sent, Err(SocketError::Broken));
        }
        let mut streams = opened();
        assert_eq!(streams.next_deadline(), Some(SILENCE_NS));
        // Parts of a question are no sign of life.
        streams.set_now(SILENCE_NS - 1);
        assert_eq!(with(&mut streams, |all| all.send(TOKEN, &[0])), Ok(1));
        streams.set_now(SILENCE_NS);
        streams.handle_deadline();
        assert_eq!(streams.next_deadline(), None);
        assert_eq!(
            with(&mut streams, |all| all.receive(TOKEN, &mut [0])),
            Err(SocketError::Broken)
        );
        let to = SocketAddr::from((RESOLVER, 53));
        for number in 2..=STREAMS_MAX as u64 {
            assert_eq!(with(&mut streams, |all| all.open(Token(number), Kind::Tcp, to)), Ok(()));
        }
        let more = with(&mut streams, |all| all.open(Token(9999), Kind::Tcp, to));
        assert_eq!(more, Err(SocketError::Exhausted));
        with(&mut streams, |all| all.close(TOKEN));
        assert_eq!(with(&mut streams, |all| all.open(Token(9999), Kind::Tcp, to)), Ok(()));
    }
}
