//! A client with a subset of NBD, written from the protocol's text alone and for tests only: what
//! it sends is what a test wants, right or wrong.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

pub(crate) const READ: u16 = 0;
pub(crate) const WRITE: u16 = 1;
pub(crate) const FLUSH: u16 = 3;
pub(crate) const TRIM: u16 = 4;
pub(crate) const WRITE_ZEROES: u16 = 6;
pub(crate) const BLOCK_STATUS: u16 = 7;

pub(crate) const FUA: u16 = 1;
pub(crate) const NO_HOLE: u16 = 2;
pub(crate) const FAST_ZERO: u16 = 16;

pub(crate) const EXPORT_NAME: u32 = 1;
pub(crate) const LIST: u32 = 3;
pub(crate) const GO: u32 = 7;

/// A connection.
pub(crate) struct Client {
    pub(crate) stream: UnixStream,
    cookie: u64,
}

impl Client {
    /// Connects, and reads the greeting.
    pub(crate) fn greeted(socket: &Path) -> Self {
        let mut stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting).unwrap();
        assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
        assert_eq!(greeting[17] & 3, 3, "fixed newstyle, and no zeroes");
        Self { stream, cookie: 0 }
    }

    /// Connects to the export "" with simple replies.
    pub(crate) fn connected(socket: &Path) -> Self {
        let mut client = Self::greeted(socket);
        client.send(&3u32.to_be_bytes());
        client.option(EXPORT_NAME, b"");
        let mut export = [0; 10];
        client.stream.read_exact(&mut export).unwrap();
        client
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    pub(crate) fn option(&mut self, option: u32, data: &[u8]) {
        let len = (data.len() as u32).to_be_bytes();
        self.send(&[b"IHAVEOPT", &option.to_be_bytes()[..], &len, data].concat());
    }

    /// The type and the data of the next reply to an option.
    pub(crate) fn option_reply(&mut self) -> io::Result<(u32, Vec<u8>)> {
        let mut head = [0; 20];
        self.stream.read_exact(&mut head)?;
        assert_eq!(head[..8], 0x0003_e889_0455_65a9_u64.to_be_bytes());
        let word = |at: usize| u32::from_be_bytes(head[at..at + 4].try_into().unwrap());
        let mut data = vec![0; word(16) as usize];
        self.stream.read_exact(&mut data)?;
        Ok((word(12), data))
    }

    /// Sends a request. Its cookie.
    pub(crate) fn request(
        &mut self,
        (command, flags): (u16, u16),
        offset: u64,
        len: u32,
        data: &[u8],
    ) -> io::Result<u64> {
        self.cookie += 1;
        let head = request(command, flags, self.cookie, offset, len);
        self.stream.write_all(&[&head[..], data].concat())?;
        Ok(self.cookie)
    }

    /// The cookie and the error of the next simple reply; a read's data follows it.
    pub(crate) fn reply(&mut self) -> io::Result<(u64, u32)> {
        let mut head = [0; 16];
        self.stream.read_exact(&mut head)?;
        assert_eq!(head[..4], 0x6744_6698_u32.to_be_bytes());
        let error = u32::from_be_bytes(head[4..8].try_into().unwrap());
        Ok((u64::from_be_bytes(head[8..].try_into().unwrap()), error))
    }

    /// Sends a request and waits for its reply: the error.
    pub(crate) fn ask(&mut self, command: (u16, u16), offset: u64, len: u32, data: &[u8]) -> u32 {
        let cookie = self.request(command, offset, len, data).unwrap();
        let (answered, error) = self.reply().unwrap();
        assert_eq!(answered, cookie);
        error
    }

    pub(crate) fn read(&mut self, offset: u64, len: u32) -> Vec<u8> {
        assert_eq!(self.ask((READ, 0), offset, len, &[]), 0);
        let mut data = vec![0; len as usize];
        self.stream.read_exact(&mut data).unwrap();
        data
    }

    /// Whether the server has closed the connection, after whatever it still says.
    pub(crate) fn is_closed(&mut self) -> bool {
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest) {
            Ok(_) => true,
            Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
        }
    }
}

/// A request's header.
pub(crate) fn request(command: u16, flags: u16, cookie: u64, offset: u64, len: u32) -> [u8; 28] {
    let parts = [
        &0x2560_9513_u32.to_be_bytes()[..],
        &flags.to_be_bytes(),
        &command.to_be_bytes(),
        &cookie.to_be_bytes(),
        &offset.to_be_bytes(),
        &len.to_be_bytes(),
    ];
    parts.concat().try_into().unwrap()
}
