//! A volume that programs outside a VMM use: what every face (NBD, vhost-user) needs of it, with
//! the face's own context kept for each request until its answer.
//!
//! The volume knows reads, writes, flushes and zeroing. What protocols have besides (a write that
//! is durable when it is answered, zeroes that keep their space, prefetching) is put together here,
//! so this is the only file of the faces that calls the volume.

use std::collections::{HashMap, VecDeque};
use std::os::fd::BorrowedFd;

use storage_vdev::{Completion, RequestError, RequestId, Store, Volume};

/// The granularity of all requests.
pub const SECTOR_BYTES: u64 = storage_vdev::SECTOR_BYTES;

/// How many zeroes that keep their space are written at a time.
const ZEROES_BYTES: u64 = 256 << 10;

/// The most bytes of used buffers that are kept for later reads.
const SPARE_BYTES_MAX: usize = 8 << 20;

/// What a face asks of a volume. Offsets and lengths are in bytes, whole sectors inside the volume;
/// anything else fails with [`Failure::Range`].
#[derive(Debug)]
pub enum Operation<'a> {
    /// Read. Answer: [`Answer::Bytes`].
    Read {
        /// The first byte.
        offset: u64,
        /// How many.
        len: u32,
    },
    /// Write.
    Write {
        /// The first byte.
        offset: u64,
        /// What.
        data: &'a [u8],
        /// Whether the answer means that it is durable.
        durable: bool,
    },
    /// Make everything that was submitted before durable.
    Flush,
    /// Free a range, which then reads as zeroes.
    Discard {
        /// The first byte.
        offset: u64,
        /// How many.
        len: u64,
        /// Whether the answer means that it is durable.
        durable: bool,
    },
    /// Make a range read as zeroes.
    Zero {
        /// The first byte.
        offset: u64,
        /// How many.
        len: u64,
        /// Whether the answer means that it is durable.
        durable: bool,
        /// Whether the range must take up space afterwards: then zeroes are written like any data.
        allocate: bool,
    },
    /// Read into the volume's cache, as a hint.
    Prefetch {
        /// The first byte.
        offset: u64,
        /// How many.
        len: u32,
    },
    /// What takes up space and what is a hole. Answer: [`Answer::Extents`].
    Extents {
        /// The first byte.
        offset: u64,
        /// How many.
        len: u64,
    },
}

/// What a volume answers.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is done.
    Done,
    /// What was read. Give it back with [`Served::recycle`] when it is sent.
    Bytes(Vec<u8>),
    /// The extents of the range, in order, from its first byte on; they may end before the range.
    Extents(Vec<Extent>),
}

/// A stretch of a volume that is of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Its bytes.
    pub len: u64,
    /// Whether it is a hole: takes up no space and reads as zeroes.
    pub hole: bool,
}

/// Why a volume didn't do what it was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// Not whole sectors inside the volume.
    #[error("not whole sectors inside the volume")]
    Range,
    /// The bytes are lost, or the volume can't promise durability any more.
    #[error("the volume failed")]
    Io,
    /// The volume has stopped.
    #[error("the volume has stopped")]
    Stopped,
}

impl From<RequestError> for Failure {
    fn from(error: RequestError) -> Self {
        match error {
            RequestError::Range { .. } => Self::Range,
            RequestError::Lost { .. } => Self::Io,
            RequestError::Stopped => Self::Stopped,
        }
    }
}

/// An operation that is not answered yet.
#[derive(Debug)]
struct Pending<T> {
    context: T,
    then: Then,
}

/// What is left to do when the volume has answered.
#[derive(Debug, Clone, Copy)]
enum Then {
    Answer,
    AnswerBytes,
    AnswerHint,
    /// A flush makes it durable.
    Flush,
    /// More zeroes follow.
    Zeroes {
        offset: u64,
        len: u64,
        durable: bool,
    },
}

/// A finished operation.
#[derive(Debug)]
pub struct Finished<T> {
    /// What it was submitted with.
    pub context: T,
    /// How it ended.
    pub result: Result<Answer, Failure>,
}

/// A volume in use by a face that keeps a `T` for each request.
#[derive(Debug)]
pub struct Served<S, T> {
    volume: Volume<S>,
    next_id: RequestId,
    pending: HashMap<RequestId, Pending<T>>,
    finished: VecDeque<Finished<T>>,
    spare: Vec<Vec<u8>>,
    spare_bytes: usize,
    zeroes: Vec<u8>,
}

impl<S: Store, T> Served<S, T> {
    /// Serves `volume`, which nothing else uses from now on.
    #[must_use]
    pub fn new(volume: Volume<S>) -> Self {
        Self {
            volume,
            next_id: 0,
            pending: HashMap::new(),
            finished: VecDeque::new(),
            spare: Vec::new(),
            spare_bytes: 0,
            zeroes: Vec::new(),
        }
    }

    /// The volume's size, a multiple of 4096.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.volume.geometry().size_bytes()
    }

    /// The volume, for its status.
    #[must_use]
    pub fn volume(&self) -> &Volume<S> {
        &self.volume
    }

    /// How many operations are not answered yet.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        self.pending.len() + self.finished.len()
    }

    /// Starts an operation; [`Served::poll`] gives `context` back with its result.
    pub fn submit(&mut self, context: T, operation: Operation<'_>) {
        match operation {
            Operation::Read { offset, len } => {
                let id = self.enter(context, Then::AnswerBytes);
                let buffer = self.buffer(len as usize);
                self.volume.submit_read(id, offset, buffer);
            }
            Operation::Prefetch { offset, len } => {
                let id = self.enter(context, Then::AnswerHint);
                let buffer = self.buffer(len as usize);
                self.volume.submit_read(id, offset, buffer);
            }
            Operation::Write { offset, data, durable } => {
                let id = self.enter(context, Then::after(durable));
                self.volume.submit_write(id, offset, data);
            }
            Operation::Flush => {
                let id = self.enter(context, Then::Answer);
                self.volume.submit_flush(id);
            }
            Operation::Discard { offset, len, durable } => {
                let id = self.enter(context, Then::after(durable));
                self.volume.submit_discard(id, offset, len);
            }
            Operation::Zero { offset, len, durable, allocate: false } => {
                let id = self.enter(context, Then::after(durable));
                self.volume.submit_write_zeroes(id, offset, len);
            }
            Operation::Zero { offset, len, durable, allocate: true } => {
                let inside = offset.checked_add(len).is_some_and(|end| end <= self.size_bytes());
                if inside {
                    self.write_zeroes(context, offset, len, durable);
                } else {
                    self.finished.push_back(Finished { context, result: Err(Failure::Range) });
                }
            }
            Operation::Extents { len, .. } => {
                let answer = Answer::Extents(vec![Extent { len, hole: false }]);
                self.finished.push_back(Finished { context, result: Ok(answer) });
            }
        }
    }

    /// The next finished operation, if there is one by now.
    pub fn poll(&mut self, _now_ns: u64) -> Option<Finished<T>> {
        loop {
            if let Some(finished) = self.finished.pop_front() {
                return Some(finished);
            }
            let completion = self.volume.poll()?;
            self.complete(completion);
        }
    }

    /// A descriptor that is readable when [`Served::poll`] may have something.
    #[must_use]
    pub fn ready_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// When [`Served::poll`] wants to be called even if nothing happens (CLOCK_BOOTTIME).
    #[must_use]
    pub fn deadline_ns(&self) -> Option<u64> {
        None
    }

    /// Takes back a buffer from [`Answer::Bytes`].
    pub fn recycle(&mut self, buffer: Vec<u8>) {
        if self.spare_bytes + buffer.capacity() <= SPARE_BYTES_MAX {
            self.spare_bytes += buffer.capacity();
            self.spare.push(buffer);
        }
    }

    /// Makes everything durable and stops the volume.
    ///
    /// # Errors
    /// What was not flushed before may be lost.
    pub fn close(&mut self) -> Result<(), Failure> {
        Ok(self.volume.close()?)
    }

    fn enter(&mut self, context: T, then: Then) -> RequestId {
        let id = self.next_id;
        self.next_id += 1;
        self.pending.insert(id, Pending { context, then });
        id
    }

    fn buffer(&mut self, len: usize) -> Vec<u8> {
        let mut buffer = self.spare.pop().unwrap_or_default();
        self.spare_bytes -= buffer.capacity();
        buffer.resize(len, 0);
        buffer
    }

    fn write_zeroes(&mut self, context: T, offset: u64, len: u64, durable: bool) {
        let now = len.min(ZEROES_BYTES);
        let then = match len - now {
            0 => Then::after(durable),
            left => Then::Zeroes { offset: offset + now, len: left, durable },
        };
        let id = self.enter(context, then);
        self.zeroes.resize(ZEROES_BYTES as usize, 0);
        let zeroes = self.zeroes.get(..now as usize).unwrap_or_default();
        self.volume.submit_write(id, offset, zeroes);
    }

    fn complete(&mut self, completion: Completion) {
        let Completion { id, result, buffer } = completion;
        let Some(Pending { context, then }) = self.pending.remove(&id) else { return };
        let answer = match (result, then) {
            (Err(error), _) => Err(error.into()),
            (Ok(()), Then::Answer) => Ok(Answer::Done),
            (Ok(()), Then::AnswerBytes) => Ok(Answer::Bytes(buffer)),
            (Ok(()), Then::AnswerHint) => {
                self.recycle(buffer);
                Ok(Answer::Done)
            }
            (Ok(()), Then::Flush) => {
                let id = self.enter(context, Then::Answer);
                self.volume.submit_flush(id);
                return;
            }
            (Ok(()), Then::Zeroes { offset, len, durable }) => {
                self.write_zeroes(context, offset, len, durable);
                return;
            }
        };
        self.finished.push_back(Finished { context, result: answer });
    }
}

impl Then {
    fn after(durable: bool) -> Self {
        if durable { Self::Flush } else { Self::Answer }
    }
}
