//! Datagrams on a connection: each behind its length (2 bytes, big-endian), at least one byte and at
//! most a frame.

use net_vdev::wire::FRAME_BYTES_MAX;

/// How much may wait to be taken before nothing more is to be read of the connection.
pub(crate) const WAITING_BYTES_MAX: usize = 64 * 1024;
const PREFIX_BYTES: usize = 2;

/// What came in on a connection is no datagram behind its length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a datagram of {0} bytes is announced")]
pub struct Malformed(usize);

/// What came in on a connection and was not taken yet.
#[derive(Debug, Default)]
pub struct Framing {
    bytes: Vec<u8>,
    /// Where the first datagram starts that was not taken yet.
    taken: usize,
}

impl Framing {
    /// Whether more may be read: not if much waits to be taken.
    pub fn has_room(&mut self) -> bool {
        self.bytes.drain(..self.taken);
        self.taken = 0;
        self.bytes.len() < WAITING_BYTES_MAX
    }

    /// Adds what was read.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next datagrams that are of one length (the last may be shorter), into the start of
    /// `buffer`, which has room for a frame at least: their bytes, and that length.
    ///
    /// # Errors
    /// What came in is not of the format.
    pub fn next_batch(&mut self, buffer: &mut [u8]) -> Result<Option<(usize, usize)>, Malformed> {
        let (mut len, mut stride) = (0, 0);
        loop {
            let datagram = match self.first() {
                Ok(Some(datagram)) => datagram,
                Err(malformed) if len == 0 => return Err(malformed),
                // What came before counts, however the connection ends.
                Ok(None) | Err(_) => break,
            };
            let size = datagram.len();
            let fits = stride == 0 || size <= stride;
            let Some(place) = buffer.get_mut(len..len + size).filter(|_| fits) else { break };
            place.copy_from_slice(datagram);
            stride = stride.max(size);
            len += size;
            self.taken += PREFIX_BYTES + size;
            if size < stride {
                break;
            }
        }
        Ok((len > 0).then_some((len, stride)))
    }

    /// The first datagram that was not taken yet, if all of it is here.
    fn first(&self) -> Result<Option<&[u8]>, Malformed> {
        let rest = self.bytes.get(self.taken..).unwrap_or_default();
        let Some((prefix, rest)) = rest.split_first_chunk::<PREFIX_BYTES>() else {
            return Ok(None);
        };
        let len = usize::from(u16::from_be_bytes(*prefix));
        if len == 0 || len > FRAME_BYTES_MAX {
            return Err(Malformed(len));
        }
        Ok(rest.get(..len))
    }
}

/// Appends datagrams of `stride` bytes each, the last perhaps shorter, as they go on a connection.
/// False if one is longer than any may be: then only those before it were appended.
pub fn write(output: &mut Vec<u8>, datagrams: &[u8], stride: usize) -> bool {
    for datagram in datagrams.chunks(stride.max(1)) {
        let Some(len) = u16::try_from(datagram.len()).ok() else { return false };
        output.extend_from_slice(&len.to_be_bytes());
        output.extend_from_slice(datagram);
    }
    true
}
