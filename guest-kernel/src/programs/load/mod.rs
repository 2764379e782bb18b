//! `load`: fills a `kv`, checks it and times it.
//!
//! It keeps a ledger of what was acknowledged in its own memory, outside the VM that it tests: when
//! that VM is killed and comes back, the ledger says what it must still have.

pub mod client;
mod timing;

use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::fmt;

use smoltcp::wire::IpEndpoint;

use crate::net::Net;
use crate::task::Executor;
use client::{Client, GaveUp, Response};
pub use timing::Timing;

/// What to do.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// The server.
    pub target: IpEndpoint,
    /// How many values are stored.
    pub count: usize,
    /// How long each is.
    pub value_bytes: usize,
    /// How many connections fill and verify at once.
    pub connections: usize,
    /// Tells the keys and values of one run from those of another.
    pub seed: u64,
    /// How many requests of each kind are timed.
    pub timed: usize,
    /// How long the server may be away.
    pub patience_ns: u64,
}

/// What came out.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Report {
    /// How many puts were acknowledged.
    pub acknowledged: usize,
    /// How many acknowledged values are gone.
    pub lost: usize,
    /// How many come back with other bytes, or were answered with nonsense.
    pub wrong: usize,
    /// How often a connection had to be opened again.
    pub reconnects: u64,
    /// How long filling took, interruptions included.
    pub fill_ms: u64,
    /// The figures of the undisturbed part.
    pub timing: Timing,
}

impl Report {
    /// Whether every value was stored and came back.
    #[must_use]
    pub fn is_good(&self, settings: &Settings) -> bool {
        self.acknowledged == settings.count && self.lost == 0 && self.wrong == 0
    }
}

/// The JSON of the result line.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{{\"acknowledged\":{},\"lost\":{},\"wrong\":{},\"reconnects\":{},\"fill_ms\":{},{}}}",
            self.acknowledged, self.lost, self.wrong, self.reconnects, self.fill_ms, self.timing
        )
    }
}

/// Writes a line of progress.
pub type Log = fn(fmt::Arguments<'_>);

/// What the tasks of one run share.
struct Run {
    executor: Executor,
    net: Net,
    settings: Settings,
    log: Log,
    exits: fn() -> u64,
    next: Cell<usize>,
    /// By index, whether the put was acknowledged.
    ledger: RefCell<Vec<bool>>,
    acknowledged: Cell<usize>,
    lost: Cell<usize>,
    wrong: Cell<usize>,
    reconnects: Cell<u64>,
}

/// Fills, verifies and times. `exits` tells how often this vCPU has left its guest.
pub async fn run(
    executor: Executor,
    net: Net,
    settings: Settings,
    exits: fn() -> u64,
    log: Log,
) -> Report {
    let run = Rc::new(Run {
        executor: executor.clone(),
        net,
        settings,
        log,
        exits,
        next: Cell::new(0),
        ledger: RefCell::new(alloc::vec![false; settings.count]),
        acknowledged: Cell::new(0),
        lost: Cell::new(0),
        wrong: Cell::new(0),
        reconnects: Cell::new(0),
    });
    let started_ns = executor.now_ns();
    run.on_all_connections(Run::fill).await;
    let fill_ms = (executor.now_ns() - started_ns) / 1_000_000;
    run.on_all_connections(Run::verify).await;
    let missing = settings.count - run.acknowledged.get();
    (log)(format_args!(
        "load: verified {} values, {} lost, {} wrong, {missing} never acknowledged\n",
        run.acknowledged.get(),
        run.lost.get(),
        run.wrong.get(),
    ));
    let mut client = run.client();
    let timing = timing::measure(&run, &mut client).await.unwrap_or_default();
    run.retire(&client);
    Report {
        acknowledged: run.acknowledged.get(),
        lost: run.lost.get(),
        wrong: run.wrong.get(),
        reconnects: run.reconnects.get(),
        fill_ms,
        timing,
    }
}

impl Run {
    async fn on_all_connections<F>(self: &Rc<Self>, phase: impl Fn(Rc<Self>) -> F)
    where
        F: Future<Output = ()> + 'static,
    {
        self.next.set(0);
        let connections = self.settings.connections.clamp(1, self.settings.count.max(1));
        let tasks: Vec<_> =
            (0..connections).map(|_| self.executor.spawn(phase(Rc::clone(self)))).collect();
        for task in tasks {
            task.await;
        }
    }

    async fn fill(self: Rc<Self>) {
        let mut client = self.client();
        while let Some(index) = self.take() {
            match client.request(&self.put_request(index)).await {
                Ok(Response { status: 201 | 204, .. }) => self.acknowledge(index),
                Ok(response) => {
                    self.wrong.set(self.wrong.get() + 1);
                    let status = response.status;
                    (self.log)(format_args!("load: put {index} was answered with {status}\n"));
                }
                Err(GaveUp) => {
                    (self.log)(format_args!("load: put {index}: the server does not answer\n"));
                    break;
                }
            }
        }
        self.retire(&client);
    }

    async fn verify(self: Rc<Self>) {
        let mut client = self.client();
        while let Some(index) = self.take() {
            if !self.ledger.borrow().get(index).copied().unwrap_or(false) {
                continue;
            }
            let counter = match client.request(&self.get_request(index)).await {
                Ok(response) if response.status == 200 => {
                    if response.body == self.value(index) {
                        continue;
                    }
                    &self.wrong
                }
                Ok(response) if response.status == 404 => &self.lost,
                Ok(_) => &self.wrong,
                // What can't be read back counts as lost.
                Err(GaveUp) => &self.lost,
            };
            counter.set(counter.get() + 1);
            (self.log)(format_args!("load: value {index} did not come back\n"));
        }
        self.retire(&client);
    }

    fn client(&self) -> Client {
        let Settings { target, patience_ns, .. } = self.settings;
        Client::new(self.executor.clone(), self.net.clone(), target, patience_ns)
    }

    fn retire(&self, client: &Client) {
        self.reconnects.set(self.reconnects.get() + client.connects.saturating_sub(1));
    }

    fn take(&self) -> Option<usize> {
        let index = self.next.get();
        self.next.set(index + 1);
        (index < self.settings.count).then_some(index)
    }

    fn acknowledge(&self, index: usize) {
        if let Some(entry) = self.ledger.borrow_mut().get_mut(index) {
            *entry = true;
        }
        let (done, count) = (self.acknowledged.get() + 1, self.settings.count);
        self.acknowledged.set(done);
        if done.is_multiple_of(count.div_ceil(10)) || done == count {
            (self.log)(format_args!("load: {done}/{count} acknowledged\n"));
        }
    }

    fn put_request(&self, index: usize) -> Vec<u8> {
        let (seed, len) = (self.settings.seed, self.settings.value_bytes);
        let head = alloc::format!(
            "PUT /kv/load-{seed}-{index} HTTP/1.1\r\nHost: kv\r\nContent-Length: {len}\r\n\r\n"
        );
        let mut request = head.into_bytes();
        request.extend_from_slice(&self.value(index));
        request
    }

    fn get_request(&self, index: usize) -> Vec<u8> {
        let seed = self.settings.seed;
        alloc::format!("GET /kv/load-{seed}-{index} HTTP/1.1\r\nHost: kv\r\n\r\n").into_bytes()
    }

    fn value(&self, index: usize) -> Vec<u8> {
        value(self.settings.seed, index, self.settings.value_bytes)
    }
}

/// Value `index` of a run: the same bytes whenever it's asked for (SplitMix64).
#[must_use]
pub fn value(seed: u64, index: usize, len: usize) -> Vec<u8> {
    let mut state = seed ^ (index as u64).wrapping_mul(0xd134_2543_de82_ef95);
    let mut bytes = Vec::with_capacity(len.next_multiple_of(8));
    while bytes.len() < len {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = state;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bytes.extend_from_slice(&(word ^ (word >> 31)).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_reproducible_and_differ_by_index_and_seed() {
        assert_eq!(value(1, 2, 1000), value(1, 2, 1000));
        assert_ne!(value(1, 2, 16), value(1, 3, 16));
        assert_ne!(value(1, 2, 16), value(2, 2, 16));
        assert_eq!(value(1, 2, 13).len(), 13);
        assert!(value(1, 2, 0).is_empty());
    }
}
