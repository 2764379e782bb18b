//! A volume: its requests in, their completions out.

use std::cell::Cell;
use std::os::fd::BorrowedFd;
use std::rc::Rc;

use super::executor::Executor;
use super::open::open;
use super::options::{OpenError, OpenOptions, Randomness};
use super::request::{Command, Completion, RequestId};
use super::state::Engine;
use super::status::Status;
use crate::keys::Uuid;
use crate::node::Nodes;

/// How many completions are taken between two looks at the nodes.
const TAKEN_MAX: u32 = 64;

/// A volume over nodes `N`, open for reading and writing.
///
/// Requests are submitted and their completions polled, in any order. All work is done inside
/// [`Volume::poll`] (and where it costs no I/O, in the submission), on the caller's thread; what
/// waits for a node waits without blocking. Dropping a volume is a crash: nothing that was flushed
/// is lost.
pub struct Volume<N> {
    driver: Driver<N>,
    taken: u32,
}

/// The engine with its tasks and its nodes.
pub(super) struct Driver<N> {
    nodes: N,
    executor: Executor,
    engine: Rc<Engine>,
}

impl<N: Nodes> Driver<N> {
    /// Runs whatever can run at `now_ns`, until everything waits for a node or for a time.
    pub(super) fn run(&mut self, now_ns: u64) {
        let runtime = &self.engine.runtime;
        runtime.set_now(now_ns);
        loop {
            // Answers first: what has come in time is in time, however late we are.
            while let Some(completion) = self.nodes.poll(now_ns) {
                runtime.complete(completion);
            }
            self.engine.note_finished();
            self.executor.run(runtime);
            if !runtime.has_outgoing() {
                break;
            }
            while let Some(outgoing) = runtime.next_outgoing() {
                self.nodes.submit(outgoing.node, outgoing.tag, outgoing.request);
            }
        }
    }

    fn deadline_ns(&self) -> Option<u64> {
        if self.engine.runtime.has_work() {
            return Some(self.engine.runtime.now_ns());
        }
        let deadlines = [self.engine.runtime.next_timer_ns(), self.nodes.deadline_ns()];
        deadlines.into_iter().flatten().min()
    }
}

impl<N: Nodes> Volume<N> {
    /// Begins to open (or make) the volume on `nodes`.
    pub fn open(nodes: N, options: OpenOptions, random: Randomness) -> Opening<N> {
        let engine: Rc<Engine> = Rc::default();
        let outcome = Rc::new(Cell::new(None));
        let (task_engine, task_outcome) = (Rc::clone(&engine), Rc::clone(&outcome));
        engine.runtime.spawn(async move {
            task_outcome.set(Some(open(&task_engine, options, random).await));
        });
        Opening { driver: Some(Driver { nodes, executor: Executor::default(), engine }), outcome }
    }

    /// Whether a write of `len` bytes would be taken at once. While it would not be, each
    /// submission costs a copy of its data that waits.
    #[must_use]
    pub fn takes_write(&self, len: u64) -> bool {
        self.driver.engine.takes_write(len)
    }

    /// Reads into `buffer` (whole sectors) from byte `offset`; the completion gives it back.
    pub fn submit_read(&mut self, id: RequestId, offset: u64, buffer: Vec<u8>) {
        self.driver.engine.submit_read(id, offset, buffer);
    }

    /// Writes `data` (whole sectors) at byte `offset`. The volume copies it. The completion means
    /// that reads see the data; only a flush makes it durable.
    pub fn submit_write(&mut self, id: RequestId, offset: u64, data: &[u8]) {
        self.driver.engine.submit_write(id, offset, data, false);
    }

    /// As [`Volume::submit_write`]; the completion means that it is durable under the policy.
    pub fn submit_write_fua(&mut self, id: RequestId, offset: u64, data: &[u8]) {
        self.driver.engine.submit_write(id, offset, data, true);
    }

    /// Makes every write, discard and zeroing that was submitted before it durable under the
    /// policy, completed by now or not.
    pub fn submit_flush(&mut self, id: RequestId) {
        self.driver.engine.submit_flush(id);
    }

    /// Frees a range (whole sectors), which then reads as zeroes.
    pub fn submit_discard(&mut self, id: RequestId, offset: u64, len: u64) {
        self.driver.engine.submit_zero(id, offset, len);
    }

    /// Zeroes a range (whole sectors) and frees what space it can.
    pub fn submit_write_zeroes(&mut self, id: RequestId, offset: u64, len: u64) {
        self.driver.engine.submit_zero(id, offset, len);
    }

    /// Asks which parts of a range (whole sectors) are stored; see [`super::Output::Extents`].
    pub fn submit_block_status(&mut self, id: RequestId, offset: u64, len: u64) {
        self.driver.engine.submit_block_status(id, offset, len);
    }

    /// Gives the volume a command.
    pub fn submit_command(&mut self, id: RequestId, command: Command) {
        self.driver.engine.submit_command(id, command);
    }

    /// Makes everything durable, writes what makes the next open quick, and gives the volume up.
    /// Requests that are submitted later fail.
    pub fn submit_close(&mut self, id: RequestId) {
        self.driver.engine.submit_close(id);
    }

    /// The next finished request, if there is one by now (`now_ns`: nanoseconds of one clock that
    /// never goes back and counts while the host sleeps).
    pub fn poll(&mut self, now_ns: u64) -> Option<Completion> {
        self.driver.engine.runtime.set_now(now_ns);
        if self.taken >= TAKEN_MAX || self.driver.engine.completions_are_empty() {
            self.taken = 0;
            self.driver.run(now_ns);
        }
        self.taken += 1;
        self.driver.engine.next_completion()
    }

    /// Goes on with everything, as [`Volume::poll`] does; completions stay until they are polled for.
    pub fn advance(&mut self, now_ns: u64) {
        self.driver.run(now_ns);
    }

    /// A descriptor that is readable when [`Volume::poll`] may have something to do.
    #[must_use]
    pub fn ready_fd(&self) -> Option<BorrowedFd<'_>> {
        self.driver.nodes.ready_fd()
    }

    /// When [`Volume::poll`] wants to be called even if nothing happens.
    #[must_use]
    pub fn deadline_ns(&self) -> Option<u64> {
        self.driver.deadline_ns()
    }

    /// The volume's size in bytes; only [`Command::Grow`] changes it.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.driver.engine.size_bytes()
    }

    /// The volume's uuid.
    #[must_use]
    pub fn uuid(&self) -> Uuid {
        self.driver.engine.uuid()
    }

    /// How the volume is. No I/O, but a walk over all segments.
    #[must_use]
    pub fn status(&self) -> Status {
        let indexes = (0..self.driver.nodes.count()).map_while(|node| u8::try_from(node).ok());
        let names: Vec<String> = indexes.map(|node| self.driver.nodes.name(node)).collect();
        self.driver.engine.status(&names)
    }

    /// The nodes.
    #[must_use]
    pub fn nodes(&self) -> &N {
        &self.driver.nodes
    }

    /// Gives up the volume as a crash would, and gives the nodes back.
    #[must_use]
    pub fn into_nodes(self) -> N {
        self.driver.nodes
    }
}

/// A volume that is being opened.
#[must_use = "an opening does nothing until it is polled"]
pub struct Opening<N> {
    driver: Option<Driver<N>>,
    outcome: Rc<Cell<Option<Result<(), OpenError>>>>,
}

impl<N: Nodes> Opening<N> {
    /// Goes on with opening: the volume, or why not, once that is known. It is `None` for ever
    /// after that.
    pub fn poll(&mut self, now_ns: u64) -> Option<Result<Volume<N>, OpenError>> {
        self.driver.as_mut()?.run(now_ns);
        match self.outcome.take()? {
            Ok(()) => self.driver.take().map(|driver| Ok(Volume { driver, taken: 0 })),
            Err(error) => Some(Err(error)),
        }
    }

    /// A descriptor that is readable when [`Opening::poll`] may have something to do.
    #[must_use]
    pub fn ready_fd(&self) -> Option<BorrowedFd<'_>> {
        self.driver.as_ref()?.nodes.ready_fd()
    }

    /// When [`Opening::poll`] wants to be called even if nothing happens.
    #[must_use]
    pub fn deadline_ns(&self) -> Option<u64> {
        self.driver.as_ref()?.deadline_ns()
    }

    /// Gives up, and gives the nodes back.
    #[must_use]
    pub fn into_nodes(self) -> Option<N> {
        self.driver.map(|driver| driver.nodes)
    }
}
