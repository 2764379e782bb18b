//! A volume that programs outside a VMM use: what every face (NBD, vhost-user) needs of it, with
//! the face's own context kept for each request until its answer.
//!
//! The volume knows reads, writes, flushes and zeroing. What protocols have besides (a write that
//! is durable when it is answered, zeroes that keep their space, prefetching) is put together here,
//! so this is the only file of the faces that calls the volume.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::mpsc::Sender;

use rustix::event::{PollFd, PollFlags};
pub use storage_vdev::engine::Extent;
use storage_vdev::engine::{
    Completion, OpenError, Opening, Output, RequestError, RequestId, Volume,
};
use storage_vdev::node::Nodes;

use crate::latency::{Kind, Latencies};
use crate::orders::{Inbox, Order};
use crate::wait::{now_ns, wait};

/// The granularity of all requests.
pub const SECTOR_BYTES: u64 = storage_vdev::SECTOR_BYTES;

/// How many zeroes that keep their space are written at a time.
const ZEROES_BYTES: u64 = 256 << 10;

/// The most bytes of used buffers that are kept for later reads.
const SPARE_BYTES_MAX: usize = 8 << 20;

/// What a face asks of a volume. Offsets and lengths are in bytes, whole sectors inside the volume;
/// anything else fails with [`Failure::Range`].
#[derive(Debug, Clone, Copy)]
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

/// Why a volume didn't do what it was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// Not whole sectors inside the volume.
    #[error("not whole sectors inside the volume")]
    Range,
    /// The volume's nodes are full. Nothing is lost.
    #[error("no space left on the volume's nodes")]
    NoSpace,
    /// The volume is open for reading only.
    #[error("the volume is open for reading only")]
    ReadOnly,
    /// The bytes are lost, or too few nodes can be reached.
    #[error("the volume's nodes failed")]
    Io,
    /// The volume was closed or taken over.
    #[error("the volume has stopped")]
    Stopped,
}

impl From<&RequestError> for Failure {
    fn from(error: &RequestError) -> Self {
        match error {
            RequestError::Range { .. } => Self::Range,
            RequestError::NoSpace => Self::NoSpace,
            RequestError::ReadOnly => Self::ReadOnly,
            RequestError::Stale { .. } | RequestError::LeaseExpired | RequestError::Closed => {
                Self::Stopped
            }
            _ => Self::Io,
        }
    }
}

/// An operation that is not answered yet.
#[derive(Debug)]
struct Pending<T> {
    context: Option<T>,
    then: Then,
    kind: Kind,
    since_ns: u64,
}

/// What is left to do when the volume has answered.
#[derive(Debug)]
enum Then {
    Answer,
    AnswerBytes,
    AnswerHint,
    Close,
    Obey(Sender<Result<Output, RequestError>>),
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

/// How long closing may wait for nodes.
const CLOSE_NS: u64 = 30_000_000_000;

/// Waits until a volume is open.
///
/// # Errors
/// The system's, if it can't even wait; and why the volume can't be opened.
pub fn open<N: Nodes>(mut opening: Opening<N>) -> io::Result<Result<Volume<N>, OpenError>> {
    loop {
        if let Some(outcome) = opening.poll(now_ns()) {
            return Ok(outcome);
        }
        let ready = opening.ready_fd();
        let mut sources: Vec<_> = ready.into_iter().map(readable).collect();
        wait(&mut sources, opening.deadline_ns())?;
    }
}

fn readable(fd: BorrowedFd<'_>) -> PollFd<'_> {
    PollFd::from_borrowed_fd(fd, PollFlags::IN)
}

/// A volume in use by a face that keeps a `T` for each request.
pub struct Served<N, T> {
    volume: Volume<N>,
    next_id: RequestId,
    pending: HashMap<RequestId, Pending<T>>,
    finished: VecDeque<Finished<T>>,
    /// How closing ended.
    closed: Option<Result<(), Failure>>,
    spare: Vec<Vec<u8>>,
    spare_bytes: usize,
    zeroes: Vec<u8>,
    orders: Option<Inbox>,
    latencies: Latencies,
}

impl<N, T> std::fmt::Debug for Served<N, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Served").field("pending", &self.pending.len()).finish_non_exhaustive()
    }
}

impl<N: Nodes, T> Served<N, T> {
    /// Serves `volume`, which nothing else uses from now on.
    #[must_use]
    pub fn new(volume: Volume<N>) -> Self {
        Self {
            volume,
            next_id: 0,
            pending: HashMap::new(),
            finished: VecDeque::new(),
            closed: None,
            spare: Vec::new(),
            spare_bytes: 0,
            zeroes: Vec::new(),
            orders: None,
            latencies: Latencies::default(),
        }
    }

    /// Takes orders from `inbox` from now on.
    pub fn take_orders(&mut self, inbox: Inbox) {
        self.orders = Some(inbox);
    }

    /// The volume's size, a multiple of 4096. It may grow.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.volume.size_bytes()
    }

    /// The volume, for its status.
    #[must_use]
    pub fn volume(&self) -> &Volume<N> {
        &self.volume
    }

    /// Starts an operation; [`Served::poll`] gives `context` back with its result.
    pub fn submit(&mut self, context: T, operation: Operation<'_>) {
        match operation {
            Operation::Read { offset, len } => {
                let id = self.enter(Some(context), Then::AnswerBytes, Kind::Read);
                let buffer = self.buffer(len as usize);
                self.volume.submit_read(id, offset, buffer);
            }
            Operation::Prefetch { offset, len } => {
                let id = self.enter(Some(context), Then::AnswerHint, Kind::Read);
                let buffer = self.buffer(len as usize);
                self.volume.submit_read(id, offset, buffer);
            }
            Operation::Write { offset, data, durable } => {
                let kind = if durable { Kind::WriteFua } else { Kind::Write };
                let id = self.enter(Some(context), Then::Answer, kind);
                if durable {
                    self.volume.submit_write_fua(id, offset, data);
                } else {
                    self.volume.submit_write(id, offset, data);
                }
            }
            Operation::Flush => {
                let id = self.enter(Some(context), Then::Answer, Kind::Flush);
                self.volume.submit_flush(id);
            }
            Operation::Discard { offset, len, durable } => {
                let id = self.enter(Some(context), Then::after(durable), Kind::Zero);
                self.volume.submit_discard(id, offset, len);
            }
            Operation::Zero { offset, len, durable, allocate: false } => {
                let id = self.enter(Some(context), Then::after(durable), Kind::Zero);
                self.volume.submit_write_zeroes(id, offset, len);
            }
            Operation::Zero { offset, len, durable, allocate: true } => {
                let inside = offset.checked_add(len).is_some_and(|end| end <= self.size_bytes());
                if inside {
                    self.write_zeroes(Some(context), offset, len, durable);
                } else {
                    self.finished.push_back(Finished { context, result: Err(Failure::Range) });
                }
            }
            Operation::Extents { offset, len } => {
                let id = self.enter(Some(context), Then::Answer, Kind::BlockStatus);
                self.volume.submit_block_status(id, offset, len);
            }
        }
    }

    /// The next finished operation, if there is one by now (`now_ns`: CLOCK_BOOTTIME).
    pub fn poll(&mut self, now_ns: u64) -> Option<Finished<T>> {
        self.obey();
        loop {
            if let Some(finished) = self.finished.pop_front() {
                return Some(finished);
            }
            let completion = self.volume.poll(now_ns)?;
            self.complete(completion);
        }
    }

    /// A descriptor that is readable when [`Served::poll`] may have something.
    #[must_use]
    pub fn ready_fd(&self) -> Option<BorrowedFd<'_>> {
        self.volume.ready_fd()
    }

    /// When [`Served::poll`] wants to be called even if nothing happens (CLOCK_BOOTTIME).
    #[must_use]
    pub fn deadline_ns(&self) -> Option<u64> {
        self.volume.deadline_ns()
    }

    /// Takes back a buffer from [`Answer::Bytes`].
    pub fn recycle(&mut self, buffer: Vec<u8>) {
        if self.spare_bytes + buffer.capacity() <= SPARE_BYTES_MAX {
            self.spare_bytes += buffer.capacity();
            self.spare.push(buffer);
        }
    }

    /// Makes everything durable and gives the volume up. Waits for it; operations that are not
    /// answered yet never will be.
    ///
    /// # Errors
    /// What was not flushed before may be lost.
    pub fn close(&mut self) -> Result<(), Failure> {
        let id = self.enter(None, Then::Close, Kind::Command);
        self.volume.submit_close(id);
        let limit_ns = now_ns() + CLOSE_NS;
        loop {
            while self.poll(now_ns()).is_some() {}
            if let Some(closed) = self.closed {
                return closed;
            }
            if now_ns() > limit_ns {
                return Err(Failure::Io);
            }
            let wake_ns = self.deadline_ns().unwrap_or(u64::MAX).min(limit_ns);
            let mut sources: Vec<_> = self.ready_fd().into_iter().map(readable).collect();
            if wait(&mut sources, Some(wake_ns)).is_err() {
                return Err(Failure::Io);
            }
        }
    }

    /// Starts what was ordered since the last time.
    fn obey(&mut self) {
        let orders = self.orders.as_ref();
        let orders: Vec<Order> = orders.into_iter().flat_map(|inbox| inbox.0.try_iter()).collect();
        for order in orders {
            match order {
                // Who asked may be gone.
                Order::Status(reply) => {
                    let latencies = self.latencies.render();
                    _ = reply.send((Box::new(self.volume.status()), latencies));
                }
                Order::Command(command, reply) => {
                    let id = self.enter(None, Then::Obey(reply), Kind::Command);
                    self.volume.submit_command(id, command);
                }
            }
        }
    }

    fn enter(&mut self, context: Option<T>, then: Then, kind: Kind) -> RequestId {
        let id = self.next_id;
        self.next_id += 1;
        self.pending.insert(id, Pending { context, then, kind, since_ns: now_ns() });
        id
    }

    fn buffer(&mut self, len: usize) -> Vec<u8> {
        let mut buffer = self.spare.pop().unwrap_or_default();
        self.spare_bytes -= buffer.capacity();
        buffer.resize(len, 0);
        buffer
    }

    fn write_zeroes(&mut self, context: Option<T>, offset: u64, len: u64, durable: bool) {
        let now = len.min(ZEROES_BYTES);
        let then = match len - now {
            0 => Then::after(durable),
            left => Then::Zeroes { offset: offset + now, len: left, durable },
        };
        let id = self.enter(context, then, Kind::Zero);
        self.zeroes.resize(ZEROES_BYTES as usize, 0);
        let zeroes = self.zeroes.get(..now as usize).unwrap_or_default();
        self.volume.submit_write(id, offset, zeroes);
    }

    fn complete(&mut self, completion: Completion) {
        let Completion { id, result, buffer } = completion;
        let Some(pending) = self.pending.remove(&id) else { return };
        let Pending { context, then, kind, since_ns } = pending;
        self.latencies.add(kind, now_ns().saturating_sub(since_ns));
        let answer = match (result, then) {
            (result, Then::Obey(reply)) => {
                // Who asked may be gone; the order is carried out all the same.
                _ = reply.send(result);
                return;
            }
            (Err(error), then) => {
                tracing::debug!(%error, "a request failed");
                self.recycle(buffer);
                let failure = Failure::from(&error);
                if matches!(then, Then::Close) {
                    self.closed = Some(Err(failure));
                }
                Err(failure)
            }
            (Ok(Output::Extents(extents)), _) => Ok(Answer::Extents(extents)),
            (Ok(_), Then::Answer) => Ok(Answer::Done),
            (Ok(_), Then::AnswerBytes) => Ok(Answer::Bytes(buffer)),
            (Ok(_), Then::AnswerHint) => {
                self.recycle(buffer);
                Ok(Answer::Done)
            }
            (Ok(_), Then::Close) => {
                self.closed = Some(Ok(()));
                Ok(Answer::Done)
            }
            (Ok(_), Then::Flush) => {
                let id = self.enter(context, Then::Answer, Kind::Flush);
                self.volume.submit_flush(id);
                return;
            }
            (Ok(_), Then::Zeroes { offset, len, durable }) => {
                self.write_zeroes(context, offset, len, durable);
                return;
            }
        };
        // Closing has no context: nobody else waits for it.
        let finished = context.map(|context| Finished { context, result: answer });
        self.finished.extend(finished);
    }
}

impl Then {
    fn after(durable: bool) -> Self {
        if durable { Self::Flush } else { Self::Answer }
    }
}
