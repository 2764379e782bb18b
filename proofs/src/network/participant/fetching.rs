//! What nodes serve each other of epochs that are over: blobs by their hash (an epoch's data, the
//! numbers of its statements), piece by piece; and statements by their numbers, for whoever judges an
//! epoch by exactly those that it was made of.
//!
//! One blob is fetched at a time, from one peer at a time: a few are asked for its beginning, and who
//! answers first gives the rest. A whole of another hash, a piece of another size, an answer that does
//! not come or a peer that is slow all end alike: another is asked, and this one not again for this
//! blob, until all others have failed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hypha_chain::{B256, keccak256};

use super::{Action, FANOUT, Moment, Participant};
use crate::network::message::{CHUNK_BYTES, IDS_MAX, Message, STATEMENTS_MAX};
use crate::network::pool::{Pool, Term};
use crate::network::statement::Statement;

/// Epochs whose blobs are served: the newest ones that were given.
pub(super) const SERVED_EPOCHS: usize = 12;
/// How long a peer may take for a piece, in nanoseconds.
const ANSWER_NS: u64 = 2_000_000_000;
/// How often a piece is asked for.
const ASKED_MAX: u8 = 3;
/// How long a peer may take for a whole, in nanoseconds, beside a second for each 128 KiB.
const WHOLE_NS: u64 = 30_000_000_000;
const WHOLE_BYTES_PER_SEC: u64 = 128 << 10;
/// Peers that have failed and are remembered.
const REFUSED_MAX: usize = 1024;
/// How often statements that are lacking are asked for, in nanoseconds.
const SHOW_NS: u64 = 1_000_000_000;

/// Bytes with their keccak-256.
type Blob = (B256, Arc<[u8]>);

/// What is served, and what is fetched.
#[derive(Default)]
pub(super) struct Fetching {
    served: BTreeMap<u32, Vec<Blob>>,
    wanted: Option<Wanted>,
    shown: BTreeMap<u32, Shown>,
}

/// A blob that is being fetched.
struct Wanted {
    hash: B256,
    bytes_max: usize,
    /// Who was asked for the beginning.
    asked: Vec<u32>,
    source: Option<Source>,
    refused: BTreeSet<u32>,
    due_ns: u64,
}

/// Who gives it.
struct Source {
    node: u32,
    total: usize,
    bytes: Vec<u8>,
    asked: u8,
    ends_ns: u64,
}

/// Statements that an epoch was made of.
struct Shown {
    pool: Pool,
    missing: BTreeSet<u128>,
    due_ns: u64,
}

impl Fetching {
    pub(super) fn due_ns(&self) -> Option<u64> {
        let wanted = self.wanted.as_ref().map(|it| it.due_ns);
        let lacking = self.shown.values().filter(|it| !it.missing.is_empty()).map(|it| it.due_ns);
        wanted.into_iter().chain(lacking).min()
    }

    /// Whether an epoch that is judged was made of this statement, and it is not here.
    pub(super) fn misses(&self, term: Term, statement: &Statement) -> bool {
        let Term::Epoch(epoch) = term else { return false };
        self.shown.get(&epoch).is_some_and(|it| it.missing.contains(&statement.id()))
    }

    /// Takes such a statement, whose author and signature were checked.
    pub(super) fn take(&mut self, term: Term, statement: &Statement) {
        let Term::Epoch(epoch) = term else { return };
        if let Some(it) = self.shown.get_mut(&epoch)
            && it.missing.remove(&statement.id())
        {
            it.pool.add(statement.clone());
        }
    }

    /// Of the numbers that a peer wants, the statements that only a judged epoch has.
    pub(super) fn statements(&self, term: Term, ids: &[u128], pool: Option<&Pool>) -> Vec<Message> {
        let Term::Epoch(epoch) = term else { return Vec::new() };
        let Some(shown) = self.shown.get(&epoch) else { return Vec::new() };
        let lacks = ids.iter().filter(|id| pool.is_none_or(|pool| pool.get(**id).is_none()));
        let found: Vec<Statement> =
            lacks.filter_map(|id| shown.pool.get(*id).cloned()).take(IDS_MAX).collect();
        found.chunks(STATEMENTS_MAX).map(|part| Message::Statements(part.to_vec())).collect()
    }

    /// A piece of something that is served.
    pub(super) fn piece(&self, hash: &B256, offset: u32) -> Option<Message> {
        let mut all = self.served.values().flatten();
        let bytes = all.find(|(it, _)| it == hash).map(|(_, bytes)| bytes)?;
        let rest = bytes.get(offset as usize..).filter(|rest| !rest.is_empty())?;
        let piece = rest.get(..CHUNK_BYTES).unwrap_or(rest).to_vec();
        let total = u32::try_from(bytes.len()).ok()?;
        Some(Message::Piece { hash: *hash, offset, total, bytes: piece })
    }

    pub(super) fn keep_from(&mut self, epoch: u32) {
        self.shown.retain(|it, _| *it >= epoch);
    }
}

impl Wanted {
    /// Nothing more of this peer, for now.
    fn refuse(&mut self, node: u32) {
        if self.refused.len() < REFUSED_MAX {
            self.refused.insert(node);
        }
        self.source = None;
        self.due_ns = 0;
    }

    /// Takes a piece; the whole when it is whole and of that hash.
    fn on_piece(
        &mut self,
        from: u32,
        (offset, total): (u32, u32),
        piece: &[u8],
        now_ns: u64,
    ) -> Option<Vec<u8>> {
        let (offset, total) = (offset as usize, total as usize);
        match &self.source {
            Some(source) if source.node != from => return None,
            // A piece that was asked for twice.
            Some(source) if offset < source.bytes.len() => return None,
            Some(_) => {}
            None if !self.asked.contains(&from) || self.refused.contains(&from) => return None,
            None => {
                let takes_ns = total as u64 * 1_000_000_000 / WHOLE_BYTES_PER_SEC;
                let ends_ns = now_ns.saturating_add(WHOLE_NS + takes_ns);
                let (node, bytes) = (from, Vec::new());
                self.source = Some(Source { node, total, bytes, asked: 0, ends_ns });
            }
        }
        let source = self.source.as_mut()?;
        let left = total.saturating_sub(offset);
        let is_right = source.total == total
            && total <= self.bytes_max
            && offset == source.bytes.len()
            && left > 0
            && piece.len() == left.min(CHUNK_BYTES);
        if !is_right {
            self.refuse(from);
            return None;
        }
        source.bytes.extend(piece);
        source.asked = 0;
        self.due_ns = 0;
        if source.bytes.len() < total {
            return None;
        }
        let bytes = std::mem::take(&mut source.bytes);
        if keccak256(&bytes) == self.hash {
            return Some(bytes);
        }
        self.refuse(from);
        None
    }

    /// What is to be asked now, and of whom: the next piece of who gives it, or the beginning of
    /// `peers`.
    fn ask(&mut self, peers: &[u32], now_ns: u64) -> Vec<(u32, Message)> {
        let failed = |source: &Source| source.asked >= ASKED_MAX || now_ns >= source.ends_ns;
        if let Some(source) = self.source.take_if(|source| failed(source)) {
            self.refuse(source.node);
        }
        self.due_ns = now_ns.saturating_add(ANSWER_NS);
        let hash = self.hash;
        if let Some(source) = &mut self.source {
            source.asked += 1;
            let offset = u32::try_from(source.bytes.len()).unwrap_or(u32::MAX);
            return vec![(source.node, Message::WantPiece { hash, offset })];
        }
        self.asked = peers.iter().copied().filter(|it| !self.refused.contains(it)).collect();
        if self.asked.is_empty() {
            // They may have it by now, or be better than they were.
            self.refused.clear();
        }
        let ask = |node: &u32| (*node, Message::WantPiece { hash, offset: 0 });
        self.asked.iter().map(ask).collect()
    }
}

impl Participant {
    /// Serves what an epoch's hash and its digest of statements stand for to whoever asks; of the newest
    /// twelve epochs.
    pub fn serve(&mut self, epoch: u32, blobs: Vec<Vec<u8>>) {
        let blobs = blobs.into_iter().map(|bytes| (keccak256(&bytes), bytes.into()));
        let served = self.fetching.served.entry(epoch).or_default();
        for (hash, bytes) in blobs {
            if served.iter().all(|(it, _)| *it != hash) {
                served.push((hash, bytes));
            }
        }
        // What was posted, voided and posted again.
        let more = served.len().saturating_sub(4);
        served.drain(..more);
        while self.fetching.served.len() > SERVED_EPOCHS {
            self.fetching.served.pop_first();
        }
    }

    /// Something of this hash is wanted, of so many bytes at most: peers are asked for it until it comes
    /// ([`Action::Fetched`]) or something else, or nothing, is wanted.
    pub fn fetch(&mut self, wanted: Option<(B256, usize)>) {
        let Some((hash, bytes_max)) = wanted else { return self.fetching.wanted = None };
        if self.fetching.wanted.as_ref().is_some_and(|it| it.hash == hash) {
            return;
        }
        self.fetching.wanted = Some(Wanted {
            hash,
            bytes_max,
            asked: Vec::new(),
            source: None,
            refused: BTreeSet::new(),
            due_ns: 0,
        });
    }

    /// The statements of these numbers, and no others, are wanted of an epoch; what is lacking is asked
    /// for. Told twice, it changes nothing: [`Self::forget_shown`] comes before other numbers.
    pub fn show(&mut self, epoch: u32, numbers: &[u128]) {
        let limit = self.settings.statements_max;
        let ours = self.gossip.pool(Term::Epoch(epoch));
        self.fetching.shown.entry(epoch).or_insert_with(|| {
            let mut shown = Shown { pool: Pool::new(limit), missing: BTreeSet::new(), due_ns: 0 };
            for id in numbers.iter().take(limit) {
                match ours.and_then(|ours| ours.get(*id)) {
                    Some(statement) => _ = shown.pool.add(statement.clone()),
                    None => _ = shown.missing.insert(*id),
                }
            }
            shown
        });
    }

    /// What [`Self::show`] was asked for, when all of it is here.
    ///
    /// # Errors
    /// The number of a statement that is not here yet; 0 if nothing was asked for.
    pub fn shown(&self, epoch: u32) -> Result<&Pool, u128> {
        let shown = self.fetching.shown.get(&epoch).ok_or(0_u128)?;
        shown.missing.first().map_or(Ok(&shown.pool), |missing| Err(*missing))
    }

    /// Forgets what [`Self::shown`] has gathered of an epoch.
    pub fn forget_shown(&mut self, epoch: u32) {
        self.fetching.shown.remove(&epoch);
    }

    pub(super) fn on_piece(
        &mut self,
        from: u32,
        message: Message,
        moment: &Moment,
        out: &mut Vec<Action>,
    ) {
        let Message::Piece { hash, offset, total, bytes } = message else { return };
        let Some(wanted) = self.fetching.wanted.as_mut().filter(|it| it.hash == hash) else {
            return;
        };
        if let Some(bytes) = wanted.on_piece(from, (offset, total), &bytes, moment.now_ns) {
            self.fetching.wanted = None;
            out.push(Action::Fetched { hash, from, bytes });
        }
        self.tick_fetching(moment, out);
    }

    pub(super) fn tick_fetching(&mut self, moment: &Moment, out: &mut Vec<Action>) {
        let now_ns = moment.now_ns;
        if self.fetching.wanted.as_ref().is_some_and(|it| it.due_ns <= now_ns) {
            let peers = self.peers("fetch", FANOUT, moment);
            let asked = self.fetching.wanted.as_mut().map(|it| it.ask(&peers, now_ns));
            for (to, message) in asked.into_iter().flatten() {
                out.push(Action::Send { to, bytes: message.encode() });
            }
        }
        let peers = self.peers("show", 2, moment);
        for (epoch, shown) in &mut self.fetching.shown {
            if shown.missing.is_empty() || shown.due_ns > now_ns {
                continue;
            }
            shown.due_ns = now_ns.saturating_add(SHOW_NS);
            let ids: Vec<u128> = shown.missing.iter().copied().take(IDS_MAX).collect();
            let message = Message::Want(Term::Epoch(*epoch), ids).encode();
            out.extend(peers.iter().map(|to| Action::Send { to: *to, bytes: message.clone() }));
        }
    }
}
