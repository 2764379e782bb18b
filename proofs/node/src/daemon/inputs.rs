//! What reaches the core, and the thread that reads the chain for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;
use std::thread;
use std::time::Duration;

use hypha_chain::client::Client;
use hypha_chain::deploy::Suite;
use hypha_chain::{Address, B256};
use hypha_proofs::network::schedule::Schedule;
use hypha_proofs::ram::Table;

use crate::chain::book::Node;
use crate::chain::follower::{FollowError, Follower, Horizon, News};
use crate::clock::monotonic_ns;
use crate::filler::plotter;
use crate::peers::Incoming;
use crate::shards;
use crate::work::Outcome;

use super::sending::Sent;
use super::showing::Shown;

/// Blocks that were read so long after the answer before are not news, in nanoseconds: whatever they ask
/// may be over.
const FRESH_NS: u64 = 3_000_000_000;
/// How long it sleeps at once.
const PORTION: Duration = Duration::from_millis(500);
/// The longest time between two questions to a chain that does not answer.
const RETRY_MAX: Duration = Duration::from_secs(15);

/// Something for the core to look at.
pub(super) enum Input {
    /// A peer's message.
    Peer(Incoming),
    /// What is new on the chain.
    Chain(Box<Read>),
    /// The chain does not answer.
    ChainDown(String),
    /// Blocks that were read are not on it any more: it is read anew.
    Reorganised(String),
    /// What comes of a pulse's work.
    Pulse(u64, Outcome),
    /// Filler.
    Filler(plotter::Event),
    /// Users' shards.
    Shards(shards::Event),
    /// A table is made, or can't be.
    Table(u32, Option<Arc<Table>>),
    /// An extent of another node was made again.
    Regenerated { node: u32, is_table: bool, is_true: bool },
    /// A challenged byte, or why it can't be shown.
    Shown(u64, Result<Shown, String>),
    /// A transaction is done, or not.
    Sent(Sent),
}

/// What one look at the chain has brought.
pub(super) struct Read {
    /// In its order.
    pub(super) news: Vec<News>,
    /// Whether it has just happened: only then a pulse can be answered.
    pub(super) is_fresh: bool,
    /// This node, as of the last block.
    pub(super) mine: Option<Node>,
    /// All nodes' keys of the chain and of the mesh, if they may have changed.
    pub(super) nodes: Option<Vec<(u32, Address, B256)>>,
}

/// The thread that reads the chain.
pub(super) struct Reader {
    pub(super) client: Client,
    pub(super) suite: Suite,
    pub(super) schedule: Schedule,
    pub(super) horizon: Horizon,
    pub(super) node: u32,
    pub(super) poll: Duration,
    pub(super) stop: Arc<AtomicBool>,
    pub(super) core: SyncSender<Input>,
}

impl Reader {
    fn follower(&self) -> Follower {
        Follower::new(self.client.clone(), self.suite, self.schedule, self.horizon)
    }

    /// Reads until it is stopped.
    pub(super) fn run(self) {
        let mut follower = self.follower();
        let (mut last_ns, mut wait) = (None::<u64>, self.poll);
        let mut known = usize::MAX;
        // Whether it did when it was asked last.
        let mut answered = false;
        while !self.stop.load(Ordering::Acquire) {
            let before_ns = monotonic_ns();
            match follower.poll() {
                Ok(news) => {
                    let is_fresh = last_ns.is_some_and(|last| before_ns - last < FRESH_NS);
                    let is_caught_up = news.iter().rev().find_map(|news| match news {
                        News::Block { is_newest, .. } => Some(*is_newest),
                        _ => None,
                    });
                    let is_caught_up = is_caught_up.unwrap_or(true);
                    last_ns = is_caught_up.then_some(before_ns);
                    wait = if is_caught_up { self.poll } else { Duration::ZERO };
                    let is_news = !news.is_empty() || !answered;
                    answered = true;
                    if is_news && !self.tell(&follower, news, is_fresh, &mut known) {
                        return;
                    }
                }
                Err(error) => {
                    let text = error.to_string();
                    let input = if matches!(error, FollowError::Reorganised(_)) {
                        follower = self.follower();
                        known = usize::MAX;
                        Input::Reorganised(text)
                    } else {
                        Input::ChainDown(text)
                    };
                    (last_ns, answered) = (None, false);
                    wait = (wait.max(self.poll) * 2).min(RETRY_MAX);
                    if self.core.send(input).is_err() {
                        return;
                    }
                }
            }
            self.sleep(wait);
        }
    }

    fn tell(
        &self,
        follower: &Follower,
        news: Vec<News>,
        is_fresh: bool,
        known: &mut usize,
    ) -> bool {
        let book = follower.book();
        // Keys change seldom, and nodes are added seldom: at an epoch's beginning at the latest.
        let begins = news.iter().any(|news| matches!(news, News::Epoch { .. }));
        let nodes = (begins || *known != book.nodes().len()).then(|| {
            let nodes = book.nodes().iter();
            nodes.map(|(number, node)| (*number, node.signer, node.mesh_key)).collect()
        });
        *known = book.nodes().len();
        let mine = book.node(self.node).cloned();
        self.core.send(Input::Chain(Box::new(Read { news, is_fresh, mine, nodes }))).is_ok()
    }

    /// Sleeps in portions, so that a stop is seen.
    fn sleep(&self, time: Duration) {
        let until = monotonic_ns().saturating_add(time.as_nanos() as u64);
        while !self.stop.load(Ordering::Acquire) {
            let left = until.saturating_sub(monotonic_ns());
            if left == 0 {
                return;
            }
            thread::sleep(Duration::from_nanos(left).min(PORTION));
        }
    }
}
