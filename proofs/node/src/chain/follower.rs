//! Blocks, one after the other, and what follows from them: who takes part in an epoch, when pulses are,
//! what was committed, challenged, posted.
//!
//! What is told is the same for all who follow the same chain, whenever they began: the book is read from
//! the first block on, pulses from the oldest epoch that is kept.

use std::collections::BTreeMap;
use std::sync::Arc;

use hypha_chain::B256;
use hypha_chain::client::{Block, Client, ClientError};
use hypha_chain::contracts::{Capacity, GridToken, Registry};
use hypha_chain::deploy::Suite;
use hypha_chain::embedded::{Filter, FoundLog};
use hypha_chain::sol_types::SolEvent;
use hypha_proofs::network::roster::{Roster, RosterError};
use hypha_proofs::network::schedule::{Pulse, Pulses, Round, Schedule, day_at};

use super::book::{Book, Change};
use crate::clock::monotonic_ns;

/// Blocks that are read between two answers to whoever follows.
const BLOCKS_AT_ONCE: u64 = 256;
/// How long their events are searched for.
const SEARCH_NS: u64 = 120_000_000_000;
/// Of so many blocks the smallest distance is taken for the cadence: as many as deploying takes.
const CADENCE_BLOCKS: u64 = 12;

/// Why the chain can't be followed.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    /// It does not answer.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Blocks that were read are not on the chain any more.
    #[error("block {0} is another than before: the chain was reorganised")]
    Reorganised(u64),
    /// A block that must be there is not.
    #[error("the chain has no block {0}, and has later ones")]
    Missing(u64),
    /// The Registry says something that can't be.
    #[error(transparent)]
    Roster(#[from] RosterError),
}

/// What is new.
#[derive(Debug, Clone)]
pub enum News {
    /// An epoch begins.
    Epoch {
        /// Its number.
        epoch: u32,
        /// Who takes part.
        roster: Arc<Roster>,
    },
    /// An epoch is over.
    Ended {
        /// Its number.
        epoch: u32,
        /// All nodes and farms that the Registry has.
        counts: (u32, u32),
    },
    /// A day begins.
    Day {
        /// Its number.
        day: u32,
        /// The salt of its tables.
        salt: B256,
    },
    /// A pulse.
    Pulse(Pulse),
    /// An event of the contracts. At the beginning, posted epochs of before are told as they are then.
    Change {
        /// Which.
        change: Change,
        /// In which block.
        block: u64,
    },
    /// A block was read to its end.
    Block {
        /// Its number.
        number: u64,
        /// Its time.
        timestamp: u64,
        /// Whether it was the newest when it was read.
        is_newest: bool,
    },
}

/// How far back what was before is told.
#[derive(Debug, Clone, Copy)]
pub struct Horizon {
    /// So many epochs, this one counted.
    pub epochs: u32,
    /// The first block that can have something of the contracts.
    pub first_block: u64,
    /// So many blocks must follow on one before it is read.
    pub confirmations: u64,
}

/// Reads a chain.
pub struct Follower {
    client: Client,
    suite: Suite,
    schedule: Schedule,
    horizon: Horizon,
    book: Book,
    pulses: Pulses,
    /// The last block that was read.
    last: Option<Block>,
    epoch: Option<u32>,
    day: Option<u32>,
}

impl Follower {
    /// Nothing is read yet.
    #[must_use]
    pub fn new(client: Client, suite: Suite, schedule: Schedule, horizon: Horizon) -> Self {
        Self {
            client,
            suite,
            horizon,
            book: Book::default(),
            pulses: Pulses::new(schedule),
            schedule,
            last: None,
            epoch: None,
            day: None,
        }
    }

    /// All nodes and reservations, as of the last block that was read.
    #[must_use]
    pub fn book(&self) -> &Book {
        &self.book
    }

    /// Reads what is new; nothing if there is no new block, a part if there are many.
    ///
    /// # Errors
    /// [`FollowError`]. After a reorganisation a new follower must begin; otherwise it can be called
    /// again.
    pub fn poll(&mut self) -> Result<Vec<News>, FollowError> {
        let head = self.client.head()?;
        let Some(newest) = head.number.checked_sub(self.horizon.confirmations) else {
            return Ok(Vec::new());
        };
        let mut news = Vec::new();
        if self.last.is_none() && !self.begin(newest, &mut news)? {
            return Ok(news);
        }
        let Some(last) = self.last else { return Ok(news) };
        if newest <= last.number {
            return Ok(news);
        }
        let to = newest.min(last.number + BLOCKS_AT_ONCE);
        let mut logs = BTreeMap::<u64, Vec<FoundLog>>::new();
        for log in self.logs(last.number + 1, to)? {
            logs.entry(log.block).or_default().push(log);
        }
        for number in last.number + 1..=to {
            let block = self.block(number)?;
            let before = self.last.map(|last| last.hash);
            if before.is_some_and(|before| before != block.parent) {
                return Err(FollowError::Reorganised(number - 1));
            }
            let logs = logs.remove(&number).unwrap_or_default();
            if logs.iter().any(|log| log.block_hash != block.hash) {
                return Err(FollowError::Reorganised(number));
            }
            self.read(&block, &logs, &mut news)?;
            let (timestamp, is_newest) = (block.timestamp, number == newest);
            news.push(News::Block { number, timestamp, is_newest });
        }
        Ok(news)
    }

    /// Reads the book up to the oldest epoch that is kept. Returns whether there is anything to follow.
    fn begin(&mut self, newest: u64, news: &mut Vec<News>) -> Result<bool, FollowError> {
        let head = self.block(newest)?;
        let Some(epoch) = self.schedule.epoch_at(head.timestamp) else { return Ok(false) };
        let oldest = epoch.saturating_sub(self.horizon.epochs.saturating_sub(1));
        let begins = match oldest.checked_sub(1) {
            Some(before) => self.schedule.epoch_end(before),
            None => self.schedule.start_secs,
        };
        // A pulse may be forbidden by one that was shortly before.
        let from = self.first_at(begins.saturating_sub(self.schedule.quiet_secs), newest)?;
        let day = day_at(head.timestamp);
        let first = self.first_at(u64::from(day) * 86_400, newest)?;
        let first = self.block(first)?;
        if first.number <= from {
            self.on_day(day, &first, news);
        }
        if let Some(until) = from.checked_sub(1) {
            self.read_past(until)?;
            let last = self.block(until)?;
            let posted = self.book.posted().into_iter();
            news.extend(posted.map(|(posted, data)| News::Change {
                change: Change::Posted(posted, data),
                block: until,
            }));
            // Its epoch's beginning was not seen as such: nobody is told who took part in it.
            self.epoch = self.schedule.epoch_at(last.timestamp);
            self.last = Some(last);
        } else {
            self.last = Some(self.block(0)?);
        }
        Ok(true)
    }

    /// The events of all blocks up to this one; only some tell the time.
    fn read_past(&mut self, until: u64) -> Result<(), FollowError> {
        let mut timestamp = (u64::MAX, 0);
        let mut from = self.horizon.first_block;
        while from <= until {
            let to = until.min(from.saturating_add(BLOCKS_AT_ONCE * 64));
            for log in self.logs(from, to)? {
                let topic = log.log.topics().first().copied().unwrap_or_default();
                let timed = [
                    Registry::NodeAdded::SIGNATURE_HASH,
                    Registry::StakeAdded::SIGNATURE_HASH,
                    Registry::StateChanged::SIGNATURE_HASH,
                ];
                if timed.contains(&topic) && timestamp.0 != log.block {
                    timestamp = (log.block, self.block(log.block)?.timestamp);
                }
                self.book.on_log(&self.suite, &log, timestamp.1);
            }
            from = to + 1;
        }
        Ok(())
    }

    fn read(
        &mut self,
        block: &Block,
        logs: &[FoundLog],
        news: &mut Vec<News>,
    ) -> Result<(), FollowError> {
        self.cross(block.timestamp, news)?;
        let day = day_at(block.timestamp);
        if self.day != Some(day) {
            self.on_day(day, block, news);
        }
        for log in logs {
            let change = self.book.on_log(&self.suite, log, block.timestamp);
            if change != Change::Kept {
                news.push(News::Change { change, block: block.number });
            }
        }
        news.extend(self.pulses.on_round(&round(block)).map(News::Pulse));
        self.last = Some(*block);
        Ok(())
    }

    /// Tells the epochs that end and begin before a block of that time.
    fn cross(&mut self, timestamp: u64, news: &mut Vec<News>) -> Result<(), FollowError> {
        let Some(epoch) = self.schedule.epoch_at(timestamp) else { return Ok(()) };
        if self.epoch.is_some_and(|known| known >= epoch) {
            return Ok(());
        }
        // If the chain stood still for long, epochs beyond the horizon are not told one by one.
        let oldest = epoch.saturating_sub(self.horizon.epochs.saturating_sub(1));
        let first = self.epoch.map_or(epoch, |known| (known + 1).max(oldest));
        for number in first..=epoch {
            if let Some(before) = number.checked_sub(1) {
                news.push(News::Ended { epoch: before, counts: self.book.counts() });
            }
            let begins =
                self.schedule.epoch_end(number) - hypha_proofs::network::schedule::EPOCH_SECS;
            let roster = Arc::new(self.book.roster(begins)?);
            news.push(News::Epoch { epoch: number, roster });
        }
        self.epoch = Some(epoch);
        Ok(())
    }

    fn on_day(&mut self, day: u32, first: &Block, news: &mut Vec<News>) {
        self.day = Some(day);
        news.push(News::Day { day, salt: self.schedule.seed(&round(first)) });
    }

    fn block(&self, number: u64) -> Result<Block, FollowError> {
        self.client.block(number)?.ok_or(FollowError::Missing(number))
    }

    /// The first block of that time or later, among those up to `newest`.
    fn first_at(&self, timestamp: u64, newest: u64) -> Result<u64, FollowError> {
        let (mut low, mut high) = (0, newest);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.block(middle)?.timestamp < timestamp {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        Ok(low)
    }

    /// The contracts' events, and the transfers of stakes, in their order.
    fn logs(&self, from: u64, to: u64) -> Result<Vec<FoundLog>, FollowError> {
        let suite = &self.suite;
        let until = monotonic_ns().saturating_add(SEARCH_NS);
        let stops = || monotonic_ns() >= until;
        let addresses = vec![suite.registry, suite.capacity, suite.reservations];
        let filter = Filter { from, to, addresses, topics: Vec::new() };
        let mut found = self.client.logs(&filter, stops)?;
        let topics = vec![
            vec![GridToken::Transfer::SIGNATURE_HASH],
            Vec::new(),
            vec![suite.registry.into_word()],
        ];
        let addresses = vec![suite.token];
        found.extend(self.client.logs(&Filter { from, to, addresses, topics }, stops)?);
        found.sort_by_key(|log| (log.block, log.index));
        Ok(found)
    }
}

fn round(block: &Block) -> Round {
    Round { number: block.number, timestamp: block.timestamp, entropy: block.prevrandao }
}

/// Seconds from block to block, as the first blocks with the contracts have them: all who ask see the
/// same.
///
/// # Errors
/// The chain does not answer.
pub fn cadence_of(client: &Client, first_block: u64) -> Result<u64, ClientError> {
    let mut times = Vec::new();
    for number in first_block..first_block.saturating_add(CADENCE_BLOCKS) {
        let Some(block) = client.block(number)? else { break };
        times.push(block.timestamp);
    }
    let gaps = times.windows(2).filter_map(|two| match two {
        [before, after] => after.checked_sub(*before).filter(|gap| *gap > 0),
        _ => None,
    });
    Ok(gaps.min().unwrap_or(1))
}

/// When epoch 0 of a chain's Capacity began.
///
/// # Errors
/// The chain does not answer.
pub fn start_of(client: &Client, suite: &Suite) -> Result<u64, ClientError> {
    client.view(suite.capacity, &Capacity::startCall {})
}
