//! Sealed frames over a byte stream, without I/O: bytes read from a socket go in, messages come
//! out; messages go in, bytes to write come out.
//!
//! A frame is its length (4 bytes, little-endian, authenticated) and the sealed message with its
//! 16-byte tag. Nonces are counters, one per direction, never sent: a frame that is lost, repeated
//! or moved makes the next one fail, and after one failure nothing more is read. After
//! [`REKEY_FRAMES`] frames or [`REKEY_BYTES`] bytes under one key, both ends replace it by Noise's
//! one-way rekey function (§11.3), each direction for itself.
//!
//! What arrives is decrypted where it was read to, and messages are slices of that buffer.

use std::collections::VecDeque;

use bytes::Bytes;
use noise_ring::aes_gcm_nonce;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, UnboundKey};
use zeroize::Zeroizing;

use super::handshake::Keys;
use super::message::MESSAGE_BYTES_MAX;

/// The bytes in front of a sealed message.
pub const LENGTH_BYTES: usize = 4;
/// The bytes of a frame that are not its message.
pub const FRAME_OVERHEAD: usize = LENGTH_BYTES + TAG_BYTES;
/// The most bytes of a frame.
pub const FRAME_BYTES_MAX: usize = MESSAGE_BYTES_MAX + FRAME_OVERHEAD;
/// After so many frames a direction's key is replaced.
pub const REKEY_FRAMES: u64 = 1 << 20;
/// After so many bytes a direction's key is replaced: 2^32 blocks of AES, which leaves an attacker
/// an advantage of 2^-65.
pub const REKEY_BYTES: u64 = 1 << 36;

const TAG_BYTES: usize = 16;
/// Noise reserves the highest counter for the rekey function.
const REKEY_COUNTER: u64 = u64::MAX;
/// What is read at once when small messages are expected.
const READ_BYTES: usize = 64 << 10;
/// Messages below it share a buffer on their way out.
const COALESCE_BYTES: usize = 16 << 10;
/// The most bytes of such a buffer.
const SEND_BYTES: usize = 64 << 10;

/// Why a channel is at its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChannelError {
    /// A frame is longer than it may be, or too short for its tag.
    #[error("a frame of {0} bytes")]
    Length(usize),
    /// A frame is damaged, forged, repeated or out of order.
    #[error("a frame does not verify")]
    Forged,
    /// The channel is used up, or failed before.
    #[error("the channel has ended")]
    Ended,
}

/// The key and the counter of one direction.
struct Direction {
    key: LessSafeKey,
    counter: u64,
    frames_left: u64,
    bytes_left: u64,
}

impl Direction {
    fn new(key: &[u8; 32]) -> Option<Self> {
        let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).ok()?);
        Some(Self { key, counter: 0, frames_left: REKEY_FRAMES, bytes_left: REKEY_BYTES })
    }

    /// The counter of the next frame, of `len` bytes, under a key that is not worn out by it. Both
    /// ends count the same frames, so that they replace the key at the same one.
    fn next(&mut self, len: usize) -> Result<u64, ChannelError> {
        let len = len as u64;
        if self.frames_left == 0 || self.bytes_left < len {
            self.rekey()?;
        }
        self.frames_left -= 1;
        self.bytes_left = self.bytes_left.saturating_sub(len);
        let counter = self.counter;
        if counter >= REKEY_COUNTER - 1 {
            return Err(ChannelError::Ended);
        }
        // Burnt before the key is used: whatever happens next, no nonce recurs.
        self.counter = counter + 1;
        Ok(counter)
    }

    fn rekey(&mut self) -> Result<(), ChannelError> {
        let mut fresh = Zeroizing::new([0; 32]);
        let zeros = fresh.as_mut_slice();
        // Of the sealed zeros only the ciphertext is the key; the tag is not used.
        self.key
            .seal_in_place_separate_tag(aes_gcm_nonce(REKEY_COUNTER), Aad::empty(), zeros)
            .map(drop)
            .map_err(|_| ChannelError::Ended)?;
        let key = UnboundKey::new(&AES_256_GCM, fresh.as_slice());
        self.key = LessSafeKey::new(key.map_err(|_| ChannelError::Ended)?);
        self.frames_left = REKEY_FRAMES;
        self.bytes_left = REKEY_BYTES;
        Ok(())
    }
}

/// Both directions of a session.
pub struct Channel {
    sealing: Direction,
    opening: Direction,
    incoming: Incoming,
    outgoing: Outgoing,
    failed: bool,
}

impl Channel {
    /// A channel under the keys of a handshake; `None` if `ring` refuses a key of 32 bytes, which
    /// it does not.
    #[must_use]
    pub fn new(keys: &Keys) -> Option<Self> {
        Some(Self {
            sealing: Direction::new(&keys.send)?,
            opening: Direction::new(&keys.receive)?,
            incoming: Incoming { buffer: Vec::new(), expected: READ_BYTES, opened: Bytes::new() },
            outgoing: Outgoing::default(),
            failed: false,
        })
    }

    /// Seals the message that `write` appends to the buffer it is given, and queues it.
    ///
    /// # Errors
    /// What `write` says (nothing is queued then), or [`ChannelError::Ended`].
    pub fn send<E: From<ChannelError>>(
        &mut self,
        size_hint: usize,
        write: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
    ) -> Result<(), E> {
        if self.failed {
            return Err(ChannelError::Ended.into());
        }
        let buffer = self.outgoing.buffer_for(size_hint.saturating_add(FRAME_OVERHEAD));
        let start = buffer.len();
        buffer.extend_from_slice(&[0; LENGTH_BYTES]);
        let written = write(buffer).and_then(|()| {
            seal(&mut self.sealing, buffer, start).map_err(|error| {
                self.failed = true;
                error.into()
            })
        });
        if written.is_err() {
            buffer.truncate(start);
        }
        let added = buffer.len() - start;
        self.outgoing.bytes += added;
        self.outgoing.drop_empty();
        written
    }

    /// The bytes to write next; empty if there are none.
    #[must_use]
    pub fn outgoing(&self) -> &[u8] {
        let front = self.outgoing.queue.front().map(Vec::as_slice).unwrap_or_default();
        front.get(self.outgoing.sent..).unwrap_or_default()
    }

    /// How many bytes wait to be written.
    #[must_use]
    pub fn outgoing_bytes(&self) -> usize {
        self.outgoing.bytes
    }

    /// So many bytes of [`Channel::outgoing`] were written.
    pub fn sent(&mut self, count: usize) {
        self.outgoing.advance(count);
    }

    /// The buffer to append read bytes to; it has room.
    pub fn read_buffer(&mut self) -> &mut Vec<u8> {
        self.incoming.room()
    }

    /// Gives memory back that is only kept to be used again: for a session that is idle.
    pub fn shrink(&mut self) {
        self.outgoing.spare = Vec::new();
        self.incoming.opened = Bytes::new();
        if self.incoming.buffer.is_empty() {
            self.incoming.buffer = Vec::new();
        }
    }

    /// Opens the complete frames in the read buffer and gives their messages to `take`. No frame may
    /// hold a message of more than `message_bytes_max`.
    ///
    /// # Errors
    /// [`ChannelError`]; the messages in front of the bad frame were given. Nothing follows it, but
    /// one that was only too long may be asked for again with a higher limit.
    pub fn receive(
        &mut self,
        message_bytes_max: usize,
        mut take: impl FnMut(Bytes),
    ) -> Result<(), ChannelError> {
        if self.failed {
            return Err(ChannelError::Ended);
        }
        let (buffer, opened) = self.incoming.open(&mut self.opening, message_bytes_max);
        for range in &opened.messages {
            take(buffer.slice(range.clone()));
        }
        self.failed = !matches!(opened.error, None | Some(ChannelError::Length(_)));
        opened.error.map_or(Ok(()), Err)
    }
}

/// Seals the message behind a length field at `start`, in place.
fn seal(key: &mut Direction, buffer: &mut Vec<u8>, start: usize) -> Result<(), ChannelError> {
    let frame = buffer.get_mut(start..).unwrap_or_default();
    let (length, message) =
        frame.split_first_chunk_mut::<LENGTH_BYTES>().ok_or(ChannelError::Ended)?;
    let sealed_bytes = message.len() + TAG_BYTES;
    *length = u32::try_from(sealed_bytes).map_err(|_| ChannelError::Ended)?.to_le_bytes();
    let counter = key.next(sealed_bytes)?;
    let tag =
        key.key.seal_in_place_separate_tag(aes_gcm_nonce(counter), Aad::from(*length), message);
    buffer.extend_from_slice(tag.map_err(|_| ChannelError::Ended)?.as_ref());
    Ok(())
}

/// What is to be written: small messages share buffers, large ones have their own.
#[derive(Default)]
struct Outgoing {
    queue: VecDeque<Vec<u8>>,
    /// How much of the first buffer is written.
    sent: usize,
    bytes: usize,
    /// An empty buffer to use again: fresh memory costs more than sealing what goes into it.
    spare: Vec<u8>,
}

impl Outgoing {
    fn buffer_for(&mut self, frame_bytes: usize) -> &mut Vec<u8> {
        let shares = frame_bytes <= COALESCE_BYTES
            && self.queue.back().is_some_and(|last| last.len() + frame_bytes <= SEND_BYTES);
        if !shares {
            let mut fresh = std::mem::take(&mut self.spare);
            fresh.reserve_exact(frame_bytes.max(COALESCE_BYTES));
            self.queue.push_back(fresh);
        }
        let last = self.queue.len().saturating_sub(1);
        self.queue.get_mut(last).unwrap_or(&mut self.spare)
    }

    /// A buffer that nothing was written to would hide those behind it.
    fn drop_empty(&mut self) {
        if self.queue.back().is_some_and(Vec::is_empty) {
            self.spare = self.queue.pop_back().unwrap_or_default();
        }
    }

    fn advance(&mut self, count: usize) {
        self.bytes = self.bytes.saturating_sub(count);
        self.sent += count;
        while let Some(front) = self.queue.front() {
            if self.sent < front.len() {
                break;
            }
            self.sent -= front.len();
            if let Some(mut written) = self.queue.pop_front() {
                written.clear();
                if written.capacity() > self.spare.capacity() {
                    self.spare = written;
                }
            }
            if self.queue.is_empty() {
                break;
            }
        }
    }
}

/// What was read. The buffer always begins with a frame's first byte.
struct Incoming {
    buffer: Vec<u8>,
    /// The length of the last large frame: frames of one size mostly follow each other, and one
    /// that is read into a buffer of its own size need not be moved.
    expected: usize,
    /// The buffer of the messages that were given last: used again once they are gone.
    opened: Bytes,
}

#[derive(Default)]
struct Opened {
    messages: Vec<std::ops::Range<usize>>,
    error: Option<ChannelError>,
}

impl Incoming {
    /// The bytes of the frame at the buffer's start, if its length is known by now.
    fn wanted(&self) -> Option<usize> {
        let length = self.buffer.first_chunk::<LENGTH_BYTES>()?;
        (u32::from_le_bytes(*length) as usize).checked_add(LENGTH_BYTES)
    }

    /// A buffer with room for what is expected, and no more room than for that.
    fn room(&mut self) -> &mut Vec<u8> {
        let wanted = self.wanted().unwrap_or(0).min(FRAME_BYTES_MAX);
        let capacity = if self.buffer.len() < wanted { wanted } else { self.expected };
        if self.buffer.capacity() < capacity || self.buffer.len() == self.buffer.capacity() {
            let mut fresh = self.used_again();
            fresh.reserve_exact(capacity.max(self.buffer.len() + READ_BYTES / 4));
            fresh.extend_from_slice(&self.buffer);
            self.buffer = fresh;
        }
        &mut self.buffer
    }

    /// The last buffer, emptied, if nobody holds a message in it any more; else a new one.
    fn used_again(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.opened).try_into_mut().map_or_else(
            |_| Vec::new(),
            |mut buffer| {
                buffer.clear();
                Vec::from(buffer)
            },
        )
    }

    fn open(&mut self, key: &mut Direction, message_bytes_max: usize) -> (Bytes, Opened) {
        let mut opened = Opened::default();
        let mut at = 0;
        while opened.error.is_none() {
            let rest = self.buffer.get_mut(at..).unwrap_or_default();
            let Some((length, sealed)) = rest.split_first_chunk_mut::<LENGTH_BYTES>() else {
                break;
            };
            let sealed_bytes = u32::from_le_bytes(*length) as usize;
            if !(TAG_BYTES..=message_bytes_max + TAG_BYTES).contains(&sealed_bytes) {
                opened.error = Some(ChannelError::Length(sealed_bytes));
                break;
            }
            let Some(sealed) = sealed.get_mut(..sealed_bytes) else { break };
            match open_frame(key, *length, sealed) {
                Ok(message_bytes) => {
                    let start = at + LENGTH_BYTES;
                    opened.messages.push(start..start + message_bytes);
                }
                Err(error) => opened.error = Some(error),
            }
            at += LENGTH_BYTES + sealed_bytes;
            self.expected = (LENGTH_BYTES + sealed_bytes).max(READ_BYTES);
        }
        if opened.messages.is_empty() {
            return (Bytes::new(), opened);
        }
        let rest = self.buffer.get(at..).unwrap_or_default().to_vec();
        self.opened = Bytes::from(std::mem::replace(&mut self.buffer, rest));
        (self.opened.clone(), opened)
    }
}

fn open_frame(
    key: &mut Direction,
    length: [u8; LENGTH_BYTES],
    sealed: &mut [u8],
) -> Result<usize, ChannelError> {
    let counter = key.next(sealed.len())?;
    let message = key.key.open_in_place(aes_gcm_nonce(counter), Aad::from(length), sealed);
    message.map(|message| message.len()).map_err(|_| ChannelError::Forged)
}
