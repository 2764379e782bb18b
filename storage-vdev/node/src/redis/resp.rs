//! A client for RESP2, the protocol of Redis and 0-db: <https://redis.io/docs/latest/develop/reference/protocol-spec/>.
//!
//! The server is not trusted with our memory: lines, bulks, arrays, nesting and a whole reply are
//! bounded, and whatever breaks a bound ends the connection.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use storage_vdev::node::OBJECT_BYTES_MAX;
use storage_vdev::wire::sockets::widen;

/// The most bytes of a line: errors and numbers are shorter.
const LINE_BYTES_MAX: u64 = 4096;
/// The most bytes of a whole reply: an object, or a page of names.
const REPLY_BYTES_MAX: u64 = 16 << 20;
/// The most elements of an array.
const ARRAY_MAX: i64 = 1 << 16;
/// The deepest array in an array.
const DEPTH_MAX: u32 = 4;

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// `host:port`.
    Tcp(String),
    /// A unix socket.
    Unix(PathBuf),
}

/// One argument of a command.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Argument<'a> {
    Whole(&'a [u8]),
    /// Pieces that follow each other.
    Parts(&'a [Bytes]),
}

impl<'a> From<&'a str> for Argument<'a> {
    fn from(text: &'a str) -> Self {
        Self::Whole(text.as_bytes())
    }
}

/// A server's reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reply {
    Text(String),
    Error(String),
    Integer(i64),
    /// `None` is the null bulk.
    Bulk(Option<Bytes>),
    Array(Vec<Reply>),
}

impl Reply {
    /// The bytes of a bulk or a line.
    pub(crate) fn bytes(&self) -> Option<&[u8]> {
        match self {
            Self::Bulk(Some(bytes)) => Some(bytes),
            Self::Text(text) => Some(text.as_bytes()),
            _ => None,
        }
    }
}

enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// A connection. After an error it is of no use: the next reply may belong to the last question.
pub(crate) struct Connection(BufReader<Stream>);

impl Connection {
    pub(crate) fn open(address: &Address, timeout: Duration) -> io::Result<Self> {
        let stream = match address {
            Address::Tcp(name) => Stream::Tcp(connect(name, timeout)?),
            Address::Unix(path) => {
                let stream = UnixStream::connect(path)?;
                widen(&stream);
                stream.set_read_timeout(Some(timeout))?;
                stream.set_write_timeout(Some(timeout))?;
                Stream::Unix(stream)
            }
        };
        Ok(Self(BufReader::with_capacity(64 << 10, stream)))
    }

    /// Sends `commands` at once and reads as many replies.
    pub(crate) fn call(&mut self, commands: &[&[Argument<'_>]]) -> io::Result<Vec<Reply>> {
        commands.iter().try_for_each(|command| self.send(command))?;
        commands.iter().map(|_| self.receive()).collect()
    }

    /// Sends a command whose reply is read later.
    pub(crate) fn send(&mut self, command: &[Argument<'_>]) -> io::Result<()> {
        write_command(self.0.get_mut(), command)
    }

    /// Reads the next reply.
    pub(crate) fn receive(&mut self) -> io::Result<Reply> {
        read_reply(&mut self.0)
    }
}

fn connect(name: &str, timeout: Duration) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in name.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, timeout) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(timeout))?;
                stream.set_write_timeout(Some(timeout))?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buffer),
            Self::Unix(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(bytes),
            Self::Unix(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes a command. Small pieces are gathered, so that a command without a payload is one write.
fn write_command(stream: &mut impl Write, command: &[Argument<'_>]) -> io::Result<()> {
    const GATHER_BYTES: usize = 16 << 10;
    let mut head = format!("*{}\r\n", command.len()).into_bytes();
    for argument in command {
        let whole;
        let parts: &[&[u8]] = match argument {
            Argument::Whole(bytes) => &[*bytes],
            Argument::Parts(parts) => {
                whole = parts.iter().map(|part| &part[..]).collect::<Vec<_>>();
                &whole
            }
        };
        let len: usize = parts.iter().map(|part| part.len()).sum();
        write!(head, "${len}\r\n")?;
        for part in parts {
            if part.len() < GATHER_BYTES {
                head.extend_from_slice(part);
            } else {
                stream.write_all(&head)?;
                head.clear();
                stream.write_all(part)?;
            }
        }
        head.extend_from_slice(b"\r\n");
    }
    stream.write_all(&head)
}

/// Reads one reply.
pub(crate) fn read_reply(reader: &mut impl BufRead) -> io::Result<Reply> {
    let mut budget = REPLY_BYTES_MAX;
    read_nested(reader, &mut budget, DEPTH_MAX)
}

fn read_nested(reader: &mut impl BufRead, budget: &mut u64, depth: u32) -> io::Result<Reply> {
    let line = read_line(reader, budget)?;
    let (kind, rest) = line.split_at_checked(1).ok_or_else(malformed)?;
    let number = || rest.parse::<i64>().map_err(|_| malformed());
    match kind {
        "+" => Ok(Reply::Text(rest.to_owned())),
        "-" => Ok(Reply::Error(rest.to_owned())),
        ":" => Ok(Reply::Integer(number()?)),
        "$" => match number()? {
            -1 => Ok(Reply::Bulk(None)),
            len => {
                let len = u64::try_from(len).map_err(|_| malformed())?;
                Ok(Reply::Bulk(Some(read_bulk(reader, budget, len)?)))
            }
        },
        "*" => match number()? {
            -1 => Ok(Reply::Array(vec![])),
            len if (0..=ARRAY_MAX).contains(&len) && depth > 0 => {
                (0..len).map(|_| read_nested(reader, budget, depth - 1)).collect::<Result<_, _>>()
            }
            .map(Reply::Array),
            _ => Err(malformed()),
        },
        _ => Err(malformed()),
    }
}

fn read_line(reader: &mut impl BufRead, budget: &mut u64) -> io::Result<String> {
    let mut line = Vec::new();
    let read = reader.by_ref().take(LINE_BYTES_MAX.min(*budget)).read_until(b'\n', &mut line)?;
    *budget = budget.saturating_sub(read as u64);
    let Some(text) = line.strip_suffix(b"\r\n") else {
        let ended = read == 0;
        return Err(if ended { io::ErrorKind::UnexpectedEof.into() } else { malformed() });
    };
    String::from_utf8(text.to_vec()).map_err(|_| malformed())
}

fn read_bulk(reader: &mut impl BufRead, budget: &mut u64, len: u64) -> io::Result<Bytes> {
    *budget = budget.checked_sub(len).ok_or_else(malformed)?;
    // Grows with what arrives, not with what was announced, where that is more than an object.
    let mut bytes = Vec::with_capacity(len.min(OBJECT_BYTES_MAX as u64) as usize);
    reader.by_ref().take(len).read_to_end(&mut bytes)?;
    let mut end = [0; 2];
    reader.read_exact(&mut end)?;
    if bytes.len() as u64 != len || end != *b"\r\n" {
        return Err(malformed());
    }
    Ok(Bytes::from(bytes))
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the server doesn't keep to RESP2 or to its bounds")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> io::Result<Reply> {
        read_reply(&mut &bytes[..])
    }

    #[test]
    fn replies_of_all_kinds_are_read() {
        assert_eq!(read(b"+OK\r\n").unwrap(), Reply::Text("OK".to_owned()));
        assert_eq!(read(b"-ERR no\r\n").unwrap(), Reply::Error("ERR no".to_owned()));
        assert_eq!(read(b":-42\r\n").unwrap(), Reply::Integer(-42));
        assert_eq!(read(b"$-1\r\n").unwrap(), Reply::Bulk(None));
        assert_eq!(read(b"$4\r\n\r\nab\r\n").unwrap().bytes(), Some(&b"\r\nab"[..]));
        let nested = read(b"*2\r\n$1\r\n7\r\n*1\r\n:1\r\n").unwrap();
        let Reply::Array(items) = nested else { panic!("{nested:?}") };
        assert_eq!(items[1], Reply::Array(vec![Reply::Integer(1)]));
    }

    #[test]
    fn every_truncated_reply_is_an_error() {
        let whole = b"*3\r\n$5\r\nhello\r\n:12\r\n+fine\r\n";
        assert!(read(whole).is_ok());
        for len in 0..whole.len() {
            assert!(read(&whole[..len]).is_err(), "{len} bytes");
        }
    }

    #[test]
    fn what_breaks_a_bound_is_an_error_before_it_takes_memory() {
        assert!(read(b"$9223372036854775807\r\nx\r\n").is_err());
        assert!(read(b"$-2\r\n").is_err());
        assert!(read(b"*99999999\r\n").is_err());
        assert!(read(&b"*1\r\n".repeat(50)).is_err());
        assert!(read(&[b'+'; 100_000]).is_err());
        assert!(read(b"$3\r\nabcd\r\n").is_err());
        assert!(read(b"?what\r\n").is_err());
        assert!(read(b"\r\n").is_err());
        assert!(read(b"+\xff\xfe\r\n").is_err());
        // Many small elements in one reply run into the bound of the whole.
        let mut many = b"*60000\r\n".to_vec();
        many.extend(b"$1000\r\n".iter().chain(&[7; 1000]).chain(b"\r\n").cycle().take(20 << 20));
        assert!(read(&many).is_err());
    }

    #[test]
    fn a_command_is_written_as_an_array_of_bulks() {
        let mut bytes = vec![];
        let big = vec![Bytes::from(vec![1; 20_000]), Bytes::from_static(b"tail")];
        let command = ["SET".into(), Argument::Whole(b"k"), Argument::Parts(&big)];
        write_command(&mut bytes, &command).unwrap();
        assert!(bytes.starts_with(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$20004\r\n\x01"));
        assert!(bytes.ends_with(b"\x01tail\r\n"));
    }
}
