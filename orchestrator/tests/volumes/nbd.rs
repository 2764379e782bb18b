//! As much of an NBD client as the tests need: simple replies, one request at a time.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

const READ: u16 = 0;
const WRITE: u16 = 1;
const FLUSH: u16 = 3;

/// A connection to the export "".
pub(crate) struct Nbd {
    stream: UnixStream,
    pub(crate) size_bytes: u64,
}

impl Nbd {
    pub(crate) fn connect(socket: &Path) -> Self {
        let mut stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting).unwrap();
        assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
        // Fixed newstyle, no zeroes; then EXPORT_NAME with an empty name.
        let option = [&3u32.to_be_bytes()[..], b"IHAVEOPT", &1u32.to_be_bytes(), &[0; 4]].concat();
        stream.write_all(&option).unwrap();
        let mut export = [0; 10];
        stream.read_exact(&mut export).unwrap();
        Self { stream, size_bytes: u64::from_be_bytes(export[..8].try_into().unwrap()) }
    }

    /// The error of the reply.
    fn ask(&mut self, command: u16, offset: u64, len: usize, data: &[u8]) -> u32 {
        let len = u32::try_from(len).unwrap().to_be_bytes();
        let head = [
            &0x2560_9513_u32.to_be_bytes()[..],
            &[0; 2],
            &command.to_be_bytes(),
            &[7; 8],
            &offset.to_be_bytes(),
            &len,
            data,
        ];
        self.stream.write_all(&head.concat()).unwrap();
        let mut reply = [0; 16];
        self.stream.read_exact(&mut reply).unwrap();
        assert_eq!(reply[..4], 0x6744_6698_u32.to_be_bytes());
        u32::from_be_bytes(reply[4..8].try_into().unwrap())
    }

    pub(crate) fn read(&mut self, offset: u64, len: usize) -> Vec<u8> {
        assert_eq!(self.ask(READ, offset, len, &[]), 0, "the read of {len} bytes at {offset}");
        let mut data = vec![0; len];
        self.stream.read_exact(&mut data).unwrap();
        data
    }

    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) {
        assert_eq!(self.ask(WRITE, offset, data.len(), data), 0, "the write at {offset}");
    }

    pub(crate) fn flush(&mut self) {
        assert_eq!(self.ask(FLUSH, 0, 0, &[]), 0, "the flush");
    }

    /// Writes and flushes.
    pub(crate) fn keep(&mut self, offset: u64, data: &[u8]) {
        self.write(offset, data);
        self.flush();
    }
}
