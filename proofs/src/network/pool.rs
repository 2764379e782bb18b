//! The statements of an epoch or of a day: each once, and two of one author about one thing as
//! evidence against it.

use std::collections::BTreeMap;

use hypha_chain::{B256, keccak256};

use super::statement::{Statement, Subject};
use crate::wire::{Input, WireError};

/// Bits of a statement's number that choose its bucket.
const BUCKET_BITS: u32 = 12;

/// What statements are kept together for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Term {
    /// An epoch: verdicts and measurements of its pulses.
    Epoch(u32),
    /// A day: tables.
    Day(u32),
}

/// How many statements there are in a part, and a hash over their numbers.
///
/// Not their exclusive or: whoever makes some hundred statements finds two sets of them with one, and
/// pools that hold these would never notice that they differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sum {
    /// How many.
    pub count: u32,
    /// Of their numbers in order, or of the parts' sums; 0 of nothing.
    pub hash: u128,
}

/// Statements whose numbers begin with so many given bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// How many bits: 0, 4, 8 or 12.
    bits: u8,
    /// These bits, as a number.
    prefix: u16,
}

/// What became of a statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Added {
    /// It is new.
    New,
    /// It was there.
    Known,
    /// The author has said something else about this: both are kept.
    Contradicts(Box<Statement>),
    /// There is no room, or the author has contradicted itself more than once already.
    Refused,
}

/// The statements of one term.
#[derive(Debug, Clone)]
pub struct Pool {
    /// At most two statements each; two are a contradiction.
    subjects: BTreeMap<Subject, Vec<Statement>>,
    /// By number.
    ids: BTreeMap<u128, Subject>,
    /// Of each bucket; `None` if it has changed since.
    sums: Vec<Option<Sum>>,
    limit: usize,
    is_settled: bool,
}

impl Pool {
    /// An empty pool for at most so many statements.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        let sums = vec![Some(Sum::default()); 1 << BUCKET_BITS];
        Self { subjects: BTreeMap::new(), ids: BTreeMap::new(), sums, limit, is_settled: false }
    }

    /// From now on nothing that is kept is dropped for something later: an epoch is closed with it.
    pub fn settle(&mut self) {
        self.is_settled = true;
    }

    /// How many statements there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there is room for no more.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.ids.len() >= self.limit
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Whether adding a statement could change anything: cheaper than checking its signature.
    #[must_use]
    pub fn wants(&self, statement: &Statement) -> bool {
        let id = statement.id();
        if self.ids.contains_key(&id) {
            return false;
        }
        match self.subjects.get(&statement.subject()).map(Vec::as_slice) {
            None => self.ids.len() < self.limit,
            // The two with the lowest numbers are kept, so that all pools come to hold the same.
            Some([_]) => self.ids.len() < self.limit,
            Some(kept) => !self.is_settled && kept.iter().any(|it| it.id() > id),
        }
    }

    /// Adds a statement whose author and signature were checked.
    pub fn add(&mut self, statement: Statement) -> Added {
        let (id, subject) = (statement.id(), statement.subject());
        if self.ids.contains_key(&id) {
            return Added::Known;
        }
        if !self.wants(&statement) {
            return Added::Refused;
        }
        let kept = self.subjects.entry(subject).or_default();
        let mut dropped = None;
        if kept.len() > 1 {
            kept.sort_by_key(Statement::id);
            dropped = kept.pop();
        }
        let before = kept.first().cloned();
        kept.push(statement);
        self.ids.insert(id, subject);
        self.forget_sum(id);
        if let Some(dropped) = dropped {
            self.ids.remove(&dropped.id());
            self.forget_sum(dropped.id());
        }
        before.map_or(Added::New, |before| Added::Contradicts(Box::new(before)))
    }

    /// The statement of a number.
    #[must_use]
    pub fn get(&self, id: u128) -> Option<&Statement> {
        let subject = self.ids.get(&id)?;
        self.subjects.get(subject)?.iter().find(|statement| statement.id() == id)
    }

    /// What is said without contradiction, in the order of subjects.
    pub fn clear(&self) -> impl Iterator<Item = &Statement> {
        self.subjects.values().filter_map(|kept| match kept.as_slice() {
            [statement] => Some(statement),
            _ => None,
        })
    }

    /// Over the numbers of all statements: two pools with one digest hold the same.
    #[must_use]
    pub fn digest(&self) -> B256 {
        let ids: Vec<u8> = self.ids.keys().flat_map(|id| id.to_be_bytes()).collect();
        keccak256(ids)
    }

    /// Pairs of statements of one author that can't both be true to it.
    pub fn contradictions(&self) -> impl Iterator<Item = (&Statement, &Statement)> {
        self.subjects.values().filter_map(|kept| match kept.as_slice() {
            [first, second] => Some((first, second)),
            _ => None,
        })
    }

    /// The numbers of all statements in a range, ascending.
    pub fn ids(&self, range: Range) -> impl Iterator<Item = u128> {
        let shift = u128::BITS - u32::from(range.bits);
        let from = u128::from(range.prefix).checked_shl(shift).unwrap_or(0);
        let to = from | u128::MAX.checked_shr(range.bits.into()).unwrap_or(0);
        self.ids.range(from..=to).map(|(id, _)| *id)
    }

    /// Of each of the sixteen parts of a range, or of the range itself if it is a bucket.
    pub(super) fn summary(&mut self, range: Range) -> [Sum; 16] {
        std::array::from_fn(|part| range.part(part as u8).map_or(Sum::default(), |it| self.sum(it)))
    }

    fn sum(&mut self, range: Range) -> Sum {
        let shift = BUCKET_BITS - u32::from(range.bits);
        let first = usize::from(range.prefix) << shift;
        let sums: Vec<Sum> = (first..first + (1 << shift)).map(|it| self.bucket_sum(it)).collect();
        if let [sum] = sums.as_slice() {
            return *sum;
        }
        let count = sums.iter().map(|sum| sum.count).sum();
        Sum::over(count, sums.iter().map(|sum| sum.hash))
    }

    fn bucket_sum(&mut self, bucket: usize) -> Sum {
        if let Some(Some(sum)) = self.sums.get(bucket) {
            return *sum;
        }
        let range = Range { bits: BUCKET_BITS as u8, prefix: bucket as u16 };
        let ids: Vec<u128> = self.ids(range).collect();
        let sum = Sum::over(ids.len() as u32, ids.into_iter());
        if let Some(kept) = self.sums.get_mut(bucket) {
            *kept = Some(sum);
        }
        sum
    }

    fn forget_sum(&mut self, id: u128) {
        if let Some(sum) = self.sums.get_mut((id >> (u128::BITS - BUCKET_BITS)) as usize) {
            *sum = None;
        }
    }
}

impl Sum {
    fn over(count: u32, parts: impl Iterator<Item = u128>) -> Self {
        if count == 0 {
            return Self::default();
        }
        let bytes: Vec<u8> = parts.flat_map(u128::to_be_bytes).collect();
        let hash = keccak256(bytes).first_chunk().copied().map_or(0, u128::from_be_bytes);
        Self { count, hash }
    }
}

impl Range {
    /// All statements.
    pub const ALL: Self = Self { bits: 0, prefix: 0 };

    /// Whether it has no parts.
    #[must_use]
    pub fn is_bucket(&self) -> bool {
        u32::from(self.bits) >= BUCKET_BITS
    }

    /// One of its sixteen parts.
    #[must_use]
    pub fn part(&self, part: u8) -> Option<Self> {
        let fits = !self.is_bucket() && part < 16;
        fits.then(|| Self { bits: self.bits + 4, prefix: self.prefix << 4 | u16::from(part) })
    }

    /// Whether a number is in it.
    #[must_use]
    pub fn contains(&self, id: u128) -> bool {
        let shift = u128::BITS - u32::from(self.bits);
        id.checked_shr(shift).unwrap_or(0) == u128::from(self.prefix)
    }

    pub(super) fn put(self, out: &mut Vec<u8>) {
        out.push(self.bits);
        out.extend(self.prefix.to_be_bytes());
    }

    pub(super) fn read(input: &mut Input<'_>) -> Result<Self, WireError> {
        let (bits, prefix) = (input.byte()?, u16::from_be_bytes(input.array()?));
        if !matches!(bits, 0 | 4 | 8 | 12) || u32::from(prefix) >> bits != 0 {
            return Err(WireError::Value(bits));
        }
        Ok(Self { bits, prefix })
    }
}

impl Term {
    pub(super) fn put(self, out: &mut Vec<u8>) {
        let (kind, number) = match self {
            Self::Epoch(number) => (0, number),
            Self::Day(number) => (1, number),
        };
        out.push(kind);
        out.extend(number.to_be_bytes());
    }

    pub(super) fn read(input: &mut Input<'_>) -> Result<Self, WireError> {
        match (input.byte()?, input.u32()?) {
            (0, number) => Ok(Self::Epoch(number)),
            (1, number) => Ok(Self::Day(number)),
            (other, _) => Err(WireError::Value(other)),
        }
    }
}
