//! Pools that come to hold the same statements: each new one is passed on at once to a few peers, and
//! peers compare what they have, so that whatever was lost on the way comes later.
//!
//! Comparing sends sums of a range; where they differ, sums of its parts; in small ones, all numbers.
//! No question is remembered, so none can be left open; what a peer may cost is limited.

use std::collections::{BTreeMap, HashMap};

use super::bucket::{Bucket, Rate};
use super::message::{IDS_MAX, Message, STATEMENTS_MAX};
use super::pool::{Added, Pool, Range, Sum, Term};
use super::statement::Statement;

/// A range with so few statements is told by numbers, not by sums.
const LIST_MAX: u32 = 64;
/// What a peer may cost per second, and at once: bytes of answers, and `CHECK_COST` for a signature.
const COST: Rate = Rate { at_once: 4 << 20, per_sec: 1 << 20 };
/// What checking a statement counts as: 150 µs, a third of a core for the fastest peer.
pub(super) const CHECK_COST: u64 = 512;
/// Peers whose costs are counted; one more is not listened to until another was quiet.
const PEERS_MAX: usize = 4096;

/// The pools of all terms that are kept.
pub(super) struct Gossip {
    pools: BTreeMap<Term, Pool>,
    limit: usize,
    /// Statements to pass on, with the peer that they came from.
    fresh: Vec<(u32, Term, Statement)>,
    costs: HashMap<u32, Bucket>,
}

impl Gossip {
    /// Pools of at most so many statements each.
    pub(super) fn new(limit: usize) -> Self {
        Self { pools: BTreeMap::new(), limit, fresh: Vec::new(), costs: HashMap::new() }
    }

    /// Begins to keep a term.
    pub(super) fn open(&mut self, term: Term) {
        let limit = self.limit;
        self.pools.entry(term).or_insert_with(|| Pool::new(limit));
    }

    /// Forgets all terms but those wanted.
    pub(super) fn keep(&mut self, wanted: impl Fn(Term) -> bool) {
        self.pools.retain(|term, _| wanted(*term));
    }

    pub(super) fn pool(&self, term: Term) -> Option<&Pool> {
        self.pools.get(&term)
    }

    /// [`Pool::settle`], of a term that is kept.
    pub(super) fn settle(&mut self, term: Term) {
        if let Some(pool) = self.pools.get_mut(&term) {
            pool.settle();
        }
    }

    pub(super) fn terms(&self) -> impl Iterator<Item = Term> {
        self.pools.keys().copied()
    }

    /// Whether a statement is worth checking.
    pub(super) fn wants(&self, term: Term, statement: &Statement) -> bool {
        self.pools.get(&term).is_some_and(|pool| pool.wants(statement))
    }

    /// Adds a checked statement that came from a peer (or from here: then it is one's own number).
    /// Returns an earlier statement that it contradicts.
    pub(super) fn add(&mut self, from: u32, term: Term, statement: Statement) -> Option<Statement> {
        let pool = self.pools.get_mut(&term)?;
        match pool.add(statement.clone()) {
            Added::Known | Added::Refused => None,
            Added::New => {
                self.fresh.push((from, term, statement));
                None
            }
            Added::Contradicts(before) => {
                self.fresh.push((from, term, statement));
                Some(*before)
            }
        }
    }

    /// What is to be passed on to some peers, in messages; none goes back to where it came from.
    pub(super) fn pass_on(&mut self, peers: &[u32]) -> Vec<(u32, Message)> {
        let fresh = std::mem::take(&mut self.fresh);
        let mut out = Vec::new();
        for peer in peers {
            let for_peer = fresh.iter().filter(|(from, ..)| from != peer);
            let statements: Vec<Statement> = for_peer.map(|(_, _, it)| it.clone()).collect();
            let messages = statements.chunks(STATEMENTS_MAX);
            out.extend(messages.map(|part| (*peer, Message::Statements(part.to_vec()))));
        }
        out
    }

    /// Whether something is to be passed on.
    pub(super) fn has_fresh(&self) -> bool {
        !self.fresh.is_empty()
    }

    /// A question to a peer: what it has of a term.
    pub(super) fn compare(&mut self, term: Term) -> Option<Message> {
        let pool = self.pools.get_mut(&term)?;
        Some(Message::Summary(term, Range::ALL, Box::new(pool.summary(Range::ALL))))
    }

    /// Answers to a peer's sums: where they differ, one's own sums or numbers.
    pub(super) fn on_summary(
        &mut self,
        term: Term,
        range: Range,
        theirs: &[Sum; 16],
    ) -> Vec<Message> {
        let Some(pool) = self.pools.get_mut(&term) else { return Vec::new() };
        let ours = pool.summary(range);
        let mut out = Vec::new();
        for ((part, ours), theirs) in (0..).zip(&ours).zip(theirs) {
            let Some(part) = range.part(part).filter(|_| ours != theirs) else { continue };
            let few = ours.count.max(theirs.count) <= LIST_MAX;
            out.push(if few || part.is_bucket() {
                Message::List(term, part, pool.ids(part).take(IDS_MAX).collect())
            } else {
                Message::Summary(term, part, Box::new(pool.summary(part)))
            });
        }
        out
    }

    /// Answers to a peer's numbers: what it lacks, and which are wanted of it.
    pub(super) fn on_list(&self, term: Term, range: Range, theirs: &[u128]) -> Vec<Message> {
        let Some(pool) = self.pools.get(&term) else { return Vec::new() };
        let mut theirs: Vec<u128> = theirs.to_vec();
        theirs.sort_unstable();
        let lacks = pool.ids(range).filter(|id| theirs.binary_search(id).is_err());
        let mut out = Self::statements(pool, lacks);
        let wanted = theirs.iter().filter(|id| range.contains(**id) && pool.get(**id).is_none());
        let wanted: Vec<u128> = wanted.copied().collect();
        if !wanted.is_empty() && !pool.is_full() {
            out.push(Message::Want(term, wanted));
        }
        out
    }

    /// Answers to what a peer wants.
    pub(super) fn on_want(&self, term: Term, ids: &[u128]) -> Vec<Message> {
        let Some(pool) = self.pools.get(&term) else { return Vec::new() };
        Self::statements(pool, ids.iter().copied())
    }

    fn statements(pool: &Pool, ids: impl Iterator<Item = u128>) -> Vec<Message> {
        let found: Vec<Statement> =
            ids.take(IDS_MAX).filter_map(|id| pool.get(id).cloned()).collect();
        found.chunks(STATEMENTS_MAX).map(|part| Message::Statements(part.to_vec())).collect()
    }

    /// Takes a cost from what a peer may still cost; false if that is too much.
    pub(super) fn may_cost(&mut self, peer: u32, cost: u64, now_ns: u64) -> bool {
        if !self.costs.contains_key(&peer) && self.costs.len() >= PEERS_MAX {
            self.costs.retain(|_, cost| !cost.is_full(now_ns));
            if self.costs.len() >= PEERS_MAX {
                return false;
            }
        }
        let account = self.costs.entry(peer).or_insert_with(|| Bucket::full(COST, now_ns));
        account.take(cost, now_ns)
    }
}
