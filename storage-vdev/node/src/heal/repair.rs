//! One segment: which shards to read, which to believe, which to rebuild.

use bytes::Bytes;
use storage_vdev::Uuid;
use storage_vdev::codec::Codec;
use storage_vdev::node::{NodeError, NodeIndex, Response};
use storage_vdev::segment::{
    RebuildError, RowError, SegmentHeader, Shape, Shard, find_liars, rebuild_shard,
};

use super::report::Verdict;

/// Which segment it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) volume: Uuid,
    pub(super) shape: Shape,
    pub(super) sequence: u64,
    pub(super) epoch: u64,
}

/// What became of a shard that was read.
#[derive(Debug)]
enum Copy {
    /// Not asked for.
    Unread,
    /// Asked for.
    Reading,
    /// All its checksums fit.
    Intact(Shard),
    /// Some chunks are damaged.
    Partial(Shard),
    /// Nothing of it is of use.
    Useless,
    /// The others contradict it.
    Lying,
    /// The node didn't answer: the shard may be there.
    Silent,
}

/// A shard that was rebuilt.
#[derive(Debug, Clone)]
pub(super) struct Rebuilt {
    pub(super) shard: u8,
    pub(super) parts: [Bytes; 3],
}

impl Rebuilt {
    pub(super) fn bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.len() as u64).sum()
    }
}

/// What to do next about a segment.
#[derive(Debug)]
pub(super) enum Step {
    /// Read these shards.
    Read(Vec<(u8, NodeIndex)>),
    /// Wait for what is being read.
    Wait,
    /// Store these; they are all that is missing, or all that can be had.
    Store {
        /// What was rebuilt.
        rebuilt: Vec<Rebuilt>,
        /// Whether the segment is whole with them.
        complete: bool,
    },
    /// Nothing more.
    Done(Verdict),
}

/// A segment that is being looked at.
#[derive(Debug)]
pub(super) struct Repair {
    identity: Identity,
    /// Who says to have which shard, and what came of asking.
    copies: Vec<(u8, NodeIndex, Copy)>,
    /// At most so many shards may be left for it to be repaired.
    threshold: u8,
    /// Whether all copies are read.
    scrub: bool,
    /// How many shards are wanted before it is decided: k, one more to compare, or all.
    wanted: usize,
}

impl Repair {
    pub(super) fn new(
        identity: Identity,
        holders: &[(u8, NodeIndex)],
        threshold: u8,
        scrub: bool,
    ) -> Self {
        let copies = holders.iter().map(|(shard, node)| (*shard, *node, Copy::Unread)).collect();
        let needed = usize::from(identity.shape.data_shards());
        let wanted = if scrub { usize::MAX } else { needed + 1 };
        Self { identity, copies, threshold, scrub, wanted }
    }

    /// The nodes whose copy was of no use, and those whose copy lies.
    pub(super) fn accused(&self) -> (Vec<NodeIndex>, Vec<NodeIndex>) {
        let nodes = |which: fn(&Copy) -> bool| {
            let copies = self.copies.iter().filter(move |(.., copy)| which(copy));
            copies.map(|(_, node, _)| *node).collect()
        };
        let damaged = |copy: &Copy| matches!(copy, Copy::Useless | Copy::Partial(_));
        (nodes(damaged), nodes(|copy| matches!(copy, Copy::Lying)))
    }

    /// A shard that was asked for has come, or not.
    pub(super) fn read(
        &mut self,
        (shard, node): (u8, NodeIndex),
        result: Result<Response, NodeError>,
    ) {
        let copy = match result {
            Ok(Response::Bytes(bytes)) => self.judge(shard, bytes),
            Ok(_) | Err(NodeError::NotFound | NodeError::Corrupt | NodeError::Range) => {
                Copy::Useless
            }
            Err(_) => Copy::Silent,
        };
        let place = self.copies.iter_mut().find(|(s, n, _)| (*s, *n) == (shard, node));
        if let Some((.., place)) = place {
            *place = copy;
        }
    }

    fn judge(&self, shard: u8, bytes: Bytes) -> Copy {
        let Ok(read) = Shard::parse(bytes) else { return Copy::Useless };
        let segment = read.segment();
        let found = Identity {
            volume: segment.uuid,
            shape: segment.shape,
            sequence: segment.sequence,
            epoch: segment.opening.epoch,
        };
        if found != self.identity || read.head().shard != shard {
            return Copy::Useless;
        }
        if read.check().is_ok() { Copy::Intact(read) } else { Copy::Partial(read) }
    }

    /// What to do now.
    pub(super) fn step(&mut self, codec: &Codec) -> Step {
        if self.copies.iter().any(|(.., copy)| matches!(copy, Copy::Reading)) {
            return Step::Wait;
        }
        let more = self.read_more();
        if !more.is_empty() {
            return Step::Read(more);
        }
        match self.decide(codec) {
            Some(step) => step,
            // The shards that were read contradict each other: all of them, then.
            None if self.wanted != usize::MAX => {
                self.wanted = usize::MAX;
                self.step(codec)
            }
            None => Step::Done(Verdict::Contradictory),
        }
    }

    /// Marks as many copies for reading as are still wanted, one of each shard before a second.
    fn read_more(&mut self) -> Vec<(u8, NodeIndex)> {
        let have = |copies: &[(u8, NodeIndex, Copy)]| {
            let good = |copy: &Copy| matches!(copy, Copy::Intact(_) | Copy::Reading);
            let shards = copies.iter().filter(|(.., copy)| good(copy)).map(|(shard, ..)| *shard);
            shards.fold(0u32, |mask, shard| mask | 1 << shard)
        };
        let mut more = Vec::new();
        for at in 0..self.copies.len() {
            let mask = have(&self.copies);
            if mask.count_ones() as usize >= self.wanted {
                break;
            }
            let Some((shard, node, copy)) = self.copies.get_mut(at) else { break };
            // A scrub reads second copies as well.
            let is_second = mask >> *shard & 1 == 1 && !self.scrub;
            if matches!(copy, Copy::Unread) && !is_second {
                *copy = Copy::Reading;
                more.push((*shard, *node));
            }
        }
        more
    }

    /// What follows from what was read; `None` if it contradicts itself.
    fn decide(&mut self, codec: &Codec) -> Option<Step> {
        let shape = self.identity.shape;
        let needed = usize::from(shape.data_shards());
        let header = match self.header() {
            Some(header) => header,
            None if self.readable().next().is_some() => return None,
            None => return Some(Step::Done(self.without_sources())),
        };
        for (.., copy) in &mut self.copies {
            let lies = |shard: &Shard| *shard.segment() != header;
            if matches!(copy, Copy::Intact(shard) | Copy::Partial(shard) if lies(shard)) {
                *copy = Copy::Lying;
            }
        }
        let sources = self.sources();
        match find_liars(codec, &sources) {
            Ok(0) => {}
            Ok(liars) => {
                self.accuse(liars);
                return Some(self.step(codec));
            }
            Err(RowError::Undecided) => return None,
            Err(_) => return Some(Step::Done(Verdict::Contradictory)),
        }
        let missing = self.missing();
        let alive = shape.shards() - missing.count_ones() as u8;
        if missing == 0 {
            return Some(Step::Done(Verdict::Whole));
        }
        if sources.len() >= needed && alive > self.threshold {
            return Some(Step::Done(Verdict::Deferred));
        }
        Some(self.rebuild(codec, &sources, missing))
    }

    fn rebuild(&self, codec: &Codec, sources: &[Shard], missing: u32) -> Step {
        let Identity { shape, sequence, .. } = self.identity;
        let mut rebuilt = Vec::new();
        for shard in (0..shape.shards()).filter(|shard| missing >> shard & 1 == 1) {
            let slot = shape.slot_of(sequence, shard);
            let damaged = sources.iter().find(|source| source.head().shard == shard);
            let generation = damaged.map_or(0, |shard| shard.head().generation);
            let made = rebuild_shard(codec, sources, (shard, slot), generation.saturating_add(1));
            match made {
                Ok(parts) => rebuilt.push(Rebuilt { shard, parts }),
                Err(RebuildError::NoSource | RebuildError::TooFew { .. }) => {}
                Err(error) => {
                    tracing::warn!(sequence, shard, %error, "a shard can't be rebuilt");
                }
            }
        }
        if rebuilt.is_empty() {
            return Step::Done(self.without_sources());
        }
        let complete = rebuilt.len() == missing.count_ones() as usize;
        Step::Store { rebuilt, complete }
    }

    /// What it means that too few shards came: they may be on nodes that didn't answer.
    fn without_sources(&self) -> Verdict {
        let is_silent = |copy: &Copy| matches!(copy, Copy::Silent);
        let silent = self.copies.iter().any(|(.., copy)| is_silent(copy));
        if silent { Verdict::Skipped } else { Verdict::Lost }
    }

    /// The common part that most of the shards have. `None` if there is no shard, or no most.
    fn header(&self) -> Option<SegmentHeader> {
        let headers = || self.readable().map(|shard| *shard.segment());
        let votes = |header: &SegmentHeader| headers().filter(|other| other == header).count();
        let most = headers().max_by_key(votes)?;
        let rival = headers().any(|other| other != most && votes(&other) == votes(&most));
        (!rival).then_some(most)
    }

    fn readable(&self) -> impl Iterator<Item = &Shard> {
        self.copies.iter().filter_map(|(.., copy)| match copy {
            Copy::Intact(shard) | Copy::Partial(shard) => Some(shard),
            _ => None,
        })
    }

    /// One of each shard that was read, an intact one if there is one, in order.
    fn sources(&self) -> Vec<Shard> {
        let mut sources: Vec<Shard> = Vec::new();
        for shard in self.readable() {
            match sources.iter_mut().find(|other| other.head().shard == shard.head().shard) {
                Some(other) if other.check().is_err() => *other = shard.clone(),
                Some(_) => {}
                None => sources.push(shard.clone()),
            }
        }
        sources
    }

    fn accuse(&mut self, liars: u32) {
        for (shard, _, copy) in &mut self.copies {
            if liars >> *shard & 1 == 1 && matches!(copy, Copy::Intact(_) | Copy::Partial(_)) {
                *copy = Copy::Lying;
            }
        }
    }

    /// A bit for each shard of which no good copy is known. What wasn't read is believed to be
    /// there, as its node says.
    fn missing(&self) -> u32 {
        let all = (0..self.identity.shape.shards()).fold(0, |mask, shard| mask | 1 << shard);
        let good = self
            .copies
            .iter()
            .filter(|(.., copy)| matches!(copy, Copy::Intact(_) | Copy::Unread | Copy::Silent));
        good.fold(all, |missing, (shard, ..)| missing & !(1 << shard))
    }

    /// The epoch in its objects' names.
    pub(super) fn epoch(&self) -> u64 {
        self.identity.epoch
    }
}
