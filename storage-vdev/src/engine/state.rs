//! What the tasks of a volume share.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use super::executor::Runtime;
use super::options::OpenOptions;
use super::request::{Command, Completion, RequestError, RequestId, check_range};
use super::status::Status;
use crate::keys::Uuid;

/// A volume without its nodes and its tasks.
pub(super) struct Engine {
    pub(super) runtime: Rc<Runtime>,
    uuid: Uuid,
    state: RefCell<State>,
}

/// What changes.
pub(super) struct State {
    pub(super) size_bytes: u64,
    completions: VecDeque<Completion>,
}

impl Engine {
    pub(super) fn new(options: &OpenOptions) -> Rc<Self> {
        let state = State { size_bytes: 0, completions: VecDeque::new() };
        Rc::new(Self { runtime: Rc::default(), uuid: options.uuid, state: RefCell::new(state) })
    }

    /// The state, for as long as `f` runs: no task can hold it while it waits.
    pub(super) fn with<R>(&self, f: impl FnOnce(&mut State) -> R) -> R {
        f(&mut self.state.borrow_mut())
    }

    pub(super) fn note_finished(&self) {
        self.runtime.take_finished();
    }

    pub(super) fn completions_are_empty(&self) -> bool {
        self.with(|state| state.completions.is_empty())
    }

    pub(super) fn next_completion(&self) -> Option<Completion> {
        self.with(|state| state.completions.pop_front())
    }

    pub(super) fn size_bytes(&self) -> u64 {
        self.with(|state| state.size_bytes)
    }

    pub(super) fn uuid(&self) -> Uuid {
        self.uuid
    }

    fn fail(&self, id: RequestId, error: RequestError, buffer: Vec<u8>) {
        let completion = Completion { id, result: Err(error), buffer };
        self.with(|state| state.completions.push_back(completion));
    }

    pub(super) fn submit_read(&self, id: RequestId, offset: u64, buffer: Vec<u8>) {
        let checked = check_range(offset, buffer.len() as u64, self.size_bytes());
        self.fail(id, checked.err().unwrap_or(RequestError::Unavailable), buffer);
    }

    pub(super) fn submit_write(&self, id: RequestId, offset: u64, data: &[u8], _durable: bool) {
        let checked = check_range(offset, data.len() as u64, self.size_bytes());
        self.fail(id, checked.err().unwrap_or(RequestError::Unavailable), Vec::new());
    }

    pub(super) fn submit_flush(&self, id: RequestId) {
        self.fail(id, RequestError::Unavailable, Vec::new());
    }

    pub(super) fn submit_zero(&self, id: RequestId, offset: u64, len: u64) {
        let checked = check_range(offset, len, self.size_bytes());
        self.fail(id, checked.err().unwrap_or(RequestError::Unavailable), Vec::new());
    }

    pub(super) fn submit_block_status(&self, id: RequestId, offset: u64, len: u64) {
        self.submit_zero(id, offset, len);
    }

    pub(super) fn submit_command(&self, id: RequestId, _command: Command) {
        self.fail(id, RequestError::Unavailable, Vec::new());
    }

    pub(super) fn submit_close(&self, id: RequestId) {
        self.fail(id, RequestError::Unavailable, Vec::new());
    }

    pub(super) fn status(&self, _names: Vec<String>) -> Status {
        use super::options::Policy;
        Status {
            uuid: self.uuid,
            size_bytes: self.size_bytes(),
            data_shards: 0,
            parity_shards: 0,
            epoch: 0,
            policy: Policy::Quorum,
            policy_degraded: false,
            redundancy: None,
            redundancy_wanted: 0,
            nodes: Vec::new(),
            unflushed_bytes: 0,
            journal_bytes: 0,
            unsealed_bytes: 0,
            segments: 0,
            segments_degraded: 0,
            segments_lost: 0,
            shards_to_repair: 0,
            live_bytes: 0,
            stored_bytes: 0,
            free_bytes: None,
            repair: None,
            scrub: None,
            stopped: None,
            counters: super::status::Counters::default(),
        }
    }
}
