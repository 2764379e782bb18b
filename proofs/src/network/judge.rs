//! All posted epochs, judged one after the other by this node itself, and what the next one goes on from.
//!
//! ```text
//!   epoch ends ─► settle: what is known now may not be left out ─► close: one's own data
//!   posted ─► one's own?  ── yes ─────────────────────────────────────────► true
//!                 └─ no ─► fetch data ─► fetch numbers ─► show statements ─► objections?
//! ```
//!
//! What stands on the chain is one line: each epoch goes on from the last one below it that was posted
//! before it, and hours between them are such as nobody said anything in. So all who see the chain and
//! the statements have the same ledger, and who sees an epoch late knows what it goes on from. Whoever
//! comes too late for the statements takes over what can't be disputed any more, as the chain does;
//! until then it has no judgement.

use std::collections::BTreeMap;
use std::sync::Arc;

use hypha_chain::{B256, keccak256};

use super::audit::{Known, Objection, Posted};
use super::epoch::EpochData;
use super::ledger::{CloseError, Closing, Ledger, Terms};
use super::participant::Participant;
use super::pool::{Pool, Range};
use super::schedule::Schedule;

/// Epochs that are remembered: those that can be claimed from, and some more.
pub const KEPT: usize = 48;

/// What is the same for all epochs.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// What epochs are closed by.
    pub terms: Terms,
    /// When they end.
    pub schedule: Schedule,
    /// How long a posted epoch can be disputed (`Capacity.window`), in seconds.
    pub window_secs: u64,
    /// How long data and statements that nobody serves are waited for, in nanoseconds.
    pub patience_ns: u64,
    /// How many statements an epoch has at most.
    pub statements_max: usize,
}

/// An epoch's data, and what they were made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Closed {
    /// The hash of the data that it goes on from; 0 if it is the first.
    pub before: B256,
    /// The data.
    pub data: EpochData,
    /// The numbers of its statements, ascending; none if they are not known here.
    pub numbers: Vec<u128>,
}

/// What is thought of a posted epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Judgement {
    /// Nothing yet.
    Open,
    /// It is what follows from its statements, and nothing was left out.
    True,
    /// It can't be disputed any more, whatever it is.
    Settled,
    /// What is wrong with it.
    False(Vec<Objection>),
}

/// Something was found out about a posted epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judged {
    /// Which.
    pub epoch: u32,
    /// What.
    pub judgement: Judgement,
    /// Its data, if the ledger goes on from them now.
    pub closed: Option<Arc<Closed>>,
}

struct Ended {
    counts: (u32, u32),
    /// When what is known may not be left out any more, if that was seen; and when it is closed.
    settles_ns: Option<u64>,
    closes_ns: u64,
}

struct Entry {
    posted: Posted,
    posted_at: u64,
    seen_ns: u64,
    is_demanded: bool,
    judgement: Judgement,
    data: Option<EpochData>,
    /// What was posted is the hash of something else than this epoch's data.
    is_garbage: bool,
    numbers: Option<Vec<u128>>,
    /// What the ledger goes on from, if it is true or settled.
    closed: Option<Arc<Closed>>,
}

/// What an epoch goes on from.
enum Base {
    Ledger(B256, Ledger),
    /// An epoch that was objected to, and stands.
    False(u32),
    Unknown,
}

/// Judges posted epochs.
pub struct Judge {
    settings: Settings,
    counts: (u32, u32),
    ended: BTreeMap<u32, Ended>,
    /// What was known in time.
    known: BTreeMap<u32, Known>,
    /// The epochs of which that was found since it was asked for.
    settled: Vec<u32>,
    posted: BTreeMap<u32, Entry>,
    own: BTreeMap<u32, Arc<Closed>>,
    /// What was closed since it was asked for.
    closed: Vec<Arc<Closed>>,
    /// There were more epochs than are remembered.
    is_cut: bool,
}

impl Judge {
    /// Nothing was posted yet.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            counts: (0, 0),
            ended: BTreeMap::new(),
            known: BTreeMap::new(),
            settled: Vec::new(),
            posted: BTreeMap::new(),
            own: BTreeMap::new(),
            closed: Vec::new(),
            is_cut: false,
        }
    }

    /// Data that were made or found true here before a restart.
    pub fn restore(&mut self, closed: Closed, participant: &mut Participant) {
        participant.serve(closed.data.epoch, closed.blobs());
        self.own.insert(closed.data.epoch, Arc::new(closed));
    }

    /// What was known in time before a restart. The statements themselves come from peers again.
    pub fn remember(&mut self, epoch: u32, known: Known) {
        self.known.insert(epoch, known);
        while self.known.len() > KEPT {
            self.known.pop_first();
        }
    }

    /// An epoch is over, with so many nodes and farms. It is closed at `closes_ns`. With `settles_ns`
    /// what is known then may not be left out; without, its end was not seen in time to say.
    pub fn on_ended(
        &mut self,
        epoch: u32,
        counts: (u32, u32),
        settles_ns: Option<u64>,
        closes_ns: u64,
    ) {
        self.counts = counts;
        let ended = Ended { counts, settles_ns, closes_ns };
        self.ended.entry(epoch).or_insert(ended);
        while self.ended.len() > KEPT {
            self.ended.pop_first();
        }
    }

    /// The end of an epoch that was not seen when it happened is not long ago: what is known at `settles_ns`
    /// may not be left out after all.
    pub fn settles(&mut self, epoch: u32, settles_ns: u64) {
        if let Some(ended) = self.ended.get_mut(&epoch) {
            ended.settles_ns = Some(settles_ns);
        }
    }

    /// An epoch was posted, in a block of the time `posted_at`; in the order of the chain.
    pub fn on_posted(&mut self, epoch: u32, posted: Posted, posted_at: u64, now_ns: u64) {
        if self.posted.get(&epoch).is_some_and(|it| it.posted == posted) {
            return;
        }
        let entry = Entry {
            posted,
            posted_at,
            seen_ns: now_ns,
            is_demanded: false,
            judgement: Judgement::Open,
            data: None,
            is_garbage: false,
            numbers: None,
            closed: None,
        };
        self.posted.insert(epoch, entry);
        while self.posted.len() > KEPT {
            self.posted.pop_first();
            self.is_cut = true;
        }
    }

    /// Whether somebody demands something of a posted epoch, or appeals: then it can't be final.
    pub fn on_demands(&mut self, epoch: u32, is_demanded: bool) {
        if let Some(entry) = self.posted.get_mut(&epoch) {
            entry.is_demanded = is_demanded;
        }
    }

    /// An epoch does not stand any more. What was posted after it may go on from another now.
    pub fn on_voided(&mut self, epoch: u32, participant: &mut Participant, now_ns: u64) {
        self.posted.remove(&epoch);
        participant.forget_shown(epoch);
        self.judge_again(epoch, now_ns);
    }

    /// The chain is read anew: what was posted comes again, or does not stand any more. What was found true
    /// is true again without asking anybody, if it is posted again.
    pub fn begin_again(&mut self, participant: &mut Participant) {
        for (epoch, entry) in std::mem::take(&mut self.posted) {
            participant.forget_shown(epoch);
            let closed = entry.closed.filter(|_| entry.judgement == Judgement::True);
            if let Some(closed) = closed {
                self.own.insert(epoch, closed);
            }
        }
        while self.own.len() > KEPT {
            self.own.pop_first();
        }
        self.is_cut = false;
    }

    /// Whether nothing was posted yet that is not judged: no ledger is lacking then.
    #[must_use]
    pub fn has_ledger(&self) -> bool {
        self.newest().is_some() || self.posted.is_empty() && !self.is_cut
    }

    /// The epochs that stand and were found false, with their time.
    pub fn objected(&self) -> impl Iterator<Item = (u32, u64, &[Objection])> {
        self.posted.iter().filter_map(|(epoch, it)| match &it.judgement {
            Judgement::False(found) => Some((*epoch, it.posted_at, found.as_slice())),
            _ => None,
        })
    }

    /// What is thought of an epoch as it stands.
    #[must_use]
    pub fn judgement(&self, epoch: u32) -> Option<&Judgement> {
        self.posted.get(&epoch).map(|it| &it.judgement)
    }

    /// The data that this node has made of an epoch, or found true.
    #[must_use]
    pub fn data(&self, epoch: u32) -> Option<&EpochData> {
        let found = self.posted.get(&epoch).and_then(|it| it.closed.as_ref());
        found.or_else(|| self.own.get(&epoch)).map(|closed| &closed.data)
    }

    /// The last epoch that the ledger goes on from; `None` if there is no ledger.
    #[must_use]
    pub fn newest(&self) -> Option<u32> {
        let mut known = self.posted.iter().rev();
        known.find(|(_, it)| it.closed.is_some()).map(|(epoch, _)| *epoch)
    }

    /// Something that was wanted of peers has come ([`super::participant::Action::Fetched`]).
    pub fn on_fetched(&mut self, hash: &B256, bytes: Vec<u8>, participant: &mut Participant) {
        for (epoch, entry) in &mut self.posted {
            if entry.posted.data == *hash {
                let data = EpochData::decode(&bytes).ok().filter(|data| data.epoch == *epoch);
                (entry.is_garbage, entry.data) = (data.is_none(), data);
            } else if entry.data.as_ref().is_some_and(|it| it.statements == *hash) {
                entry.numbers = Some(numbers_of(&bytes));
            } else {
                continue;
            }
            return participant.serve(*epoch, vec![bytes]);
        }
    }

    /// Does what is due, and says what peers are to be asked for. `now_secs` is the chain's time.
    pub fn tend(
        &mut self,
        participant: &mut Participant,
        now_ns: u64,
        now_secs: u64,
    ) -> Vec<Judged> {
        let mut settled = Vec::new();
        for (epoch, ended) in &mut self.ended {
            if ended.settles_ns.take_if(|at| *at <= now_ns).is_some() {
                settled.push(*epoch);
            }
            if ended.closes_ns <= now_ns {
                participant.settle(*epoch);
            }
        }
        settled.retain(|epoch| !self.known.contains_key(epoch));
        for epoch in settled {
            let Some(pool) = participant.pool(epoch) else { continue };
            self.remember(epoch, Known::at(pool));
            self.settled.push(epoch);
        }
        let (mut out, mut wanted) = (Vec::new(), None);
        out.extend(self.adopt(now_ns, now_secs, &mut wanted));
        let open: Vec<u32> = self
            .posted
            .iter()
            .filter(|(_, it)| it.judgement == Judgement::Open)
            .map(|(epoch, _)| *epoch)
            .collect();
        for epoch in open {
            let Some((judgement, closed)) = self.judge(epoch, participant, now_ns, &mut wanted)
            else {
                continue;
            };
            participant.forget_shown(epoch);
            if let Some(closed) = &closed {
                participant.serve(epoch, closed.blobs());
            }
            if let Some(entry) = self.posted.get_mut(&epoch) {
                (entry.judgement, entry.closed) = (judgement.clone(), closed.clone());
            }
            out.push(Judged { epoch, judgement, closed });
        }
        participant.fetch(wanted);
        out
    }

    /// What was closed here since this was asked.
    pub fn closed(&mut self) -> Vec<Arc<Closed>> {
        std::mem::take(&mut self.closed)
    }

    /// What was known in time of epochs, as far as that was found since this was asked.
    pub fn settled(&mut self) -> Vec<(u32, &Known)> {
        let settled = std::mem::take(&mut self.settled).into_iter();
        settled.filter_map(|epoch| Some((epoch, self.known.get(&epoch)?))).collect()
    }

    /// The epoch that is to be posted next, if there is one: closes what is due from `oldest` on, up to
    /// the first that has something to say. What was posted before it must have been found true.
    pub fn next(
        &mut self,
        oldest: u32,
        participant: &mut Participant,
        now_ns: u64,
    ) -> Option<Arc<Closed>> {
        let from = match self.posted.last_key_value() {
            Some((_, last)) if last.closed.is_none() => return None,
            Some((epoch, _)) => epoch + 1,
            None => 0,
        };
        let from = from.max(oldest);
        let due: Vec<u32> = self
            .ended
            .range(from..)
            .filter(|(_, it)| it.closes_ns <= now_ns)
            .map(|(epoch, _)| *epoch)
            .collect();
        for epoch in due {
            let Base::Ledger(before, ledger) = self.base(epoch, u64::MAX) else { return None };
            let Ok(closed) = self.close(epoch, (before, &ledger), participant) else { continue };
            if closed.data.has_pulses() {
                return Some(closed);
            }
        }
        None
    }

    /// Takes over the newest epoch that is final, if it was not found true here.
    fn adopt(
        &mut self,
        now_ns: u64,
        now_secs: u64,
        wanted: &mut Option<(B256, usize)>,
    ) -> Option<Judged> {
        let window = self.settings.window_secs;
        let is_final =
            |it: &Entry| !it.is_demanded && it.posted_at.saturating_add(window) <= now_secs;
        let (epoch, entry) = self.posted.iter_mut().rev().find(|(_, it)| is_final(it))?;
        if entry.closed.is_some() || entry.is_garbage {
            return None;
        }
        let epoch = *epoch;
        let own = self.own.get(&epoch).filter(|it| Posted::of(&it.data) == Some(entry.posted));
        let (judgement, closed) = match (own, entry.data.take()) {
            (Some(own), _) => (Judgement::True, Arc::clone(own)),
            (None, Some(data)) => {
                let numbers = entry.numbers.take().unwrap_or_default();
                let closed = Closed { before: B256::ZERO, data, numbers };
                (Judgement::Settled, Arc::new(closed))
            }
            (None, None) => {
                let (nodes, farms) = self.counts;
                *wanted = Some((entry.posted.data, EpochData::bytes_max(nodes, farms)));
                return None;
            }
        };
        (entry.judgement, entry.closed) = (judgement.clone(), Some(Arc::clone(&closed)));
        self.judge_again(epoch, now_ns);
        Some(Judged { epoch, judgement, closed: Some(closed) })
    }

    /// An epoch is another now, or none: those that went on from it go on from something else, and those
    /// that it came too late or too early for may be in order.
    fn judge_again(&mut self, changed: u32, now_ns: u64) {
        for (epoch, entry) in &mut self.posted {
            let is_false = matches!(entry.judgement, Judgement::False(_));
            if is_false || *epoch > changed && entry.judgement == Judgement::True {
                (entry.judgement, entry.closed) = (Judgement::Open, None);
                entry.seen_ns = now_ns;
            }
        }
    }

    /// What an epoch goes on from that was posted then.
    fn base(&self, epoch: u32, posted_at: u64) -> Base {
        let mut below = self.posted.range(..epoch).rev();
        let terms = &self.settings.terms;
        match below.find(|(_, it)| it.posted_at <= posted_at) {
            None if self.is_cut => Base::Unknown,
            None => Base::Ledger(B256::ZERO, Ledger::default().skip(terms, epoch)),
            Some((before, it)) => match (&it.closed, &it.judgement) {
                (Some(it), _) => {
                    let ledger = it.data.ledger.skip(terms, epoch);
                    Base::Ledger(it.data.hash(), ledger)
                }
                (None, Judgement::False(_)) => Base::False(*before),
                (None, _) => Base::Unknown,
            },
        }
    }

    /// One's own data of an epoch.
    ///
    /// # Errors
    /// It can't be closed; or `None`: its statements are not kept.
    fn close(
        &mut self,
        epoch: u32,
        (before, ledger): (B256, &Ledger),
        participant: &mut Participant,
    ) -> Result<Arc<Closed>, Option<CloseError>> {
        if let Some(own) = self.own.get(&epoch).filter(|own| own.before == before) {
            return Ok(Arc::clone(own));
        }
        let pool = participant.pool(epoch).ok_or(None)?;
        let closing = self.closing(epoch, participant, pool).ok_or(None)?;
        let data = ledger.close(&self.settings.terms, &closing)?;
        let numbers = pool.ids(Range::ALL).collect();
        let closed = Arc::new(Closed { before, data, numbers });
        if closed.data.has_pulses() {
            participant.serve(epoch, closed.blobs());
        }
        self.own.insert(epoch, Arc::clone(&closed));
        self.closed.push(Arc::clone(&closed));
        while self.own.len() > KEPT {
            self.own.pop_first();
        }
        Ok(closed)
    }

    fn closing<'a>(
        &self,
        epoch: u32,
        participant: &'a Participant,
        pool: &'a Pool,
    ) -> Option<Closing<'a>> {
        Some(Closing {
            epoch,
            ends_secs: self.settings.schedule.epoch_end(epoch),
            counts: self.ended.get(&epoch)?.counts,
            roster: participant.roster(epoch)?,
            pulses: participant.pulses(epoch),
            pool,
        })
    }

    /// Judges an epoch, as soon as all that it takes is there.
    fn judge(
        &mut self,
        epoch: u32,
        participant: &mut Participant,
        now_ns: u64,
        wanted: &mut Option<(B256, usize)>,
    ) -> Option<(Judgement, Option<Arc<Closed>>)> {
        let entry = self.posted.get(&epoch)?;
        let (posted, posted_at, seen_ns) = (entry.posted, entry.posted_at, entry.seen_ns);
        let mut later = self.posted.range(epoch.saturating_add(1)..);
        if let Some((later, _)) = later.find(|(_, it)| it.posted_at < posted_at) {
            return Some(objected(Objection::TooLate(*later)));
        }
        if entry.is_garbage {
            return Some(objected(Objection::OtherData));
        }
        let (before, ledger) = match self.base(epoch, posted_at) {
            Base::Ledger(before, ledger) => (before, ledger),
            Base::False(before) => return Some(objected(Objection::After(before))),
            Base::Unknown => return None,
        };
        let is_own =
            |own: &&Arc<Closed>| own.before == before && Posted::of(&own.data) == Some(posted);
        if let Some(own) = self.own.get(&epoch).filter(is_own) {
            return Some((Judgement::True, Some(Arc::clone(own))));
        }
        let closes_ns = self.ended.get(&epoch)?.closes_ns;
        if now_ns < closes_ns {
            return None;
        }
        let own = match self.close(epoch, (before, &ledger), participant) {
            Ok(own) if Posted::of(&own.data) == Some(posted) => {
                return Some((Judgement::True, Some(own)));
            }
            Ok(own) => own,
            Err(error) => return error.map(|it| objected(Objection::Unclosed(it))),
        };
        let ends_ns = seen_ns.max(closes_ns).saturating_add(self.settings.patience_ns);
        let is_over = now_ns >= ends_ns;
        let (data, numbers) = match self.gathered(epoch, &own) {
            Ok(found) => found,
            Err(_) if is_over => return Some(objected(Objection::Withheld)),
            Err(missing) => {
                *wanted = wanted.or(missing);
                return None;
            }
        };
        participant.show(epoch, &numbers);
        let pool = match participant.shown(epoch) {
            Ok(pool) => pool,
            Err(missing) if is_over => return Some(objected(Objection::Unshown(missing))),
            Err(_) => return None,
        };
        let ours = participant.pool(epoch)?;
        let closing = self.closing(epoch, participant, pool)?;
        let nothing = Known::default();
        let known = self.known.get(&epoch).unwrap_or(&nothing);
        let terms = &self.settings.terms;
        let found = ledger.objections(terms, &closing, (&posted, &data), (ours, known));
        if found.is_empty() {
            return Some((Judgement::True, Some(Arc::new(Closed { before, data, numbers }))));
        }
        Some((Judgement::False(found), None))
    }

    /// A posted epoch's data and the numbers of its statements, or what must be fetched for that.
    #[expect(clippy::type_complexity, reason = "two things that are used at once")]
    fn gathered(
        &self,
        epoch: u32,
        own: &Closed,
    ) -> Result<(EpochData, Vec<u128>), Option<(B256, usize)>> {
        let entry = self.posted.get(&epoch).ok_or(None)?;
        let hash = entry.posted.data;
        let own_data = (own.data.hash() == hash).then_some(&own.data);
        let Some(data) = entry.data.as_ref().or(own_data) else {
            let (nodes, farms) = self.counts;
            return Err(Some((hash, EpochData::bytes_max(nodes, farms))));
        };
        let own_numbers = (data.statements == own.data.statements).then_some(&own.numbers);
        let nothing = Vec::new();
        let none = (data.statements == keccak256([])).then_some(&nothing);
        let Some(numbers) = entry.numbers.as_ref().or(own_numbers).or(none) else {
            return Err(Some((data.statements, 16 * self.settings.statements_max)));
        };
        Ok((data.clone(), numbers.clone()))
    }
}

fn objected(it: Objection) -> (Judgement, Option<Arc<Closed>>) {
    (Judgement::False(vec![it]), None)
}

impl Closed {
    /// What is served of it: the data, and the numbers of their statements.
    #[must_use]
    pub fn blobs(&self) -> Vec<Vec<u8>> {
        let numbers: Vec<u8> = self.numbers.iter().flat_map(|it| it.to_be_bytes()).collect();
        let has_numbers = keccak256(&numbers) == self.data.statements;
        [Some(self.data.encode()), has_numbers.then_some(numbers)].into_iter().flatten().collect()
    }
}

fn numbers_of(bytes: &[u8]) -> Vec<u128> {
    let (numbers, _) = bytes.as_chunks::<16>();
    numbers.iter().map(|it| u128::from_be_bytes(*it)).collect()
}
