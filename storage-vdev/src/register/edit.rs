//! The changes that a register knows, as pure functions from record to record.

use super::{ACCEPTORS_MAX, Holder, Members, SuperblockRef, VolumeRecord};
use crate::keys::Uuid;
use crate::node::{AcceptorId, Ballot, NodeIndex};

/// A change of a volume's record. Each raises the version by one, except [`Edit::Read`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Edit {
    /// Changes nothing; the answer is the newest record.
    Read,
    /// Makes the record, with epoch 1. All of `acceptors` must answer.
    Create {
        /// Who holds it.
        holder: Holder,
        /// How long without a renewal.
        lease_ns: u64,
        /// The first superblock, or the default.
        superblock: SuperblockRef,
        /// The nodes whose acceptors make up the first set.
        acceptors: Vec<NodeIndex>,
    },
    /// Takes the volume over, with the next epoch.
    TakeOver {
        /// The version that was watched ([`Watch`](super::Watch)); another one is a refusal.
        expected_version: u64,
        /// Who takes it.
        holder: Holder,
        /// How long without a renewal.
        lease_ns: u64,
    },
    /// Shows that the holder is alive. For the holder only, like the next two.
    Renew {
        /// The holder's epoch.
        epoch: u64,
    },
    /// Names a new superblock.
    Superblock {
        /// The holder's epoch.
        epoch: u64,
        /// It; its version must be higher than the last one's.
        superblock: SuperblockRef,
    },
    /// Gives the volume up. With the last superblock, if that is new too.
    Release {
        /// The holder's epoch.
        epoch: u64,
        /// The last superblock, if it is new.
        superblock: Option<SuperblockRef>,
    },
    /// Starts to replace the acceptors; from now on both sets must agree. All of `acceptors` must
    /// answer. To be followed by [`Edit::SettleAcceptors`].
    BeginAcceptors {
        /// The nodes whose acceptors make up the next set.
        acceptors: Vec<NodeIndex>,
    },
    /// Ends what [`Edit::BeginAcceptors`] began: the next set is the set.
    SettleAcceptors {
        /// A record with two sets that *was committed*: by [`Edit::BeginAcceptors`], or by the
        /// [`Edit::Read`] of somebody who found it half done. Another record is a refusal.
        committed: Box<VolumeRecord>,
    },
}

/// Who asks for an edit, and under which name.
#[derive(Debug, Clone, Copy)]
pub struct Applicant<'a> {
    /// The volume.
    pub register: Uuid,
    /// The proposer: fresh for each opening.
    pub proposer: [u8; 16],
    /// The name of this change, never used before.
    pub change: Ballot,
    /// The acceptors that have answered, with their nodes.
    pub acceptors: &'a [(NodeIndex, AcceptorId)],
}

/// What an edit makes of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// It is fine as it is.
    Keep,
    /// This is the new one.
    Write(Box<VolumeRecord>),
}

/// Why an edit was refused. Nothing was changed by it, with certainty.
#[derive(Debug, Clone, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refusal {
    /// There is a record already.
    #[error("the volume has a register already")]
    Exists,
    /// There is none.
    #[error("the volume has no register")]
    NotFound,
    /// The record isn't the expected one.
    #[error("the register has changed: version {}, epoch {}, held by {}", .0.version, .0.epoch, .0.holder.name)]
    Changed(Box<VolumeRecord>),
    /// Somebody else has the epoch.
    #[error("EPOCH_STALE: {} has taken the volume over with epoch {}", .0.holder.name, .0.epoch)]
    NotHolder(Box<VolumeRecord>),
    /// A superblock that isn't newer than the one that the register names.
    #[error("superblock {offered} is not newer than superblock {newest}")]
    OldSuperblock {
        /// The version that was offered.
        offered: u64,
        /// The newest.
        newest: u64,
    },
    /// The set of acceptors is being changed already.
    #[error("the register's acceptors are being changed already")]
    Moving(Box<VolumeRecord>),
    /// Not a set of acceptors.
    #[error("a register needs 1 to {ACCEPTORS_MAX} different acceptors")]
    Acceptors,
    /// The version or the epoch can't grow any more.
    #[error("the register has used up its versions")]
    Exhausted,
}

impl Edit {
    /// The nodes that must have answered before the edit can be applied.
    pub(super) fn needs(&self) -> &[NodeIndex] {
        match self {
            Self::Create { acceptors, .. } | Self::BeginAcceptors { acceptors } => acceptors,
            _ => &[],
        }
    }

    /// What the edit makes of `current`.
    ///
    /// # Errors
    ///
    /// Why it may not be done.
    pub fn apply(
        &self,
        current: Option<&VolumeRecord>,
        by: &Applicant<'_>,
    ) -> Result<Decision, Refusal> {
        let Some(current) = current else {
            return self.create(by);
        };
        if current.change == by.change {
            return Ok(Decision::Keep);
        }
        let next = match self {
            Self::Read => return Ok(Decision::Keep),
            Self::Create { .. } => return Err(Refusal::Exists),
            Self::TakeOver { .. } => match self.take_over(current, by)? {
                Some(next) => next,
                None => return Ok(Decision::Keep),
            },
            Self::Renew { epoch } => held(current, *epoch, by)?,
            Self::Superblock { epoch, superblock } => {
                let mut next = held(current, *epoch, by)?;
                if next.superblock == *superblock {
                    return Ok(Decision::Keep);
                }
                next.superblock = newer(*superblock, current)?;
                next
            }
            Self::Release { epoch, superblock } => {
                let mut next = held(current, *epoch, by)?;
                next.released = true;
                if let Some(last) = superblock.filter(|last| *last != current.superblock) {
                    next.superblock = newer(last, current)?;
                }
                next
            }
            Self::BeginAcceptors { acceptors } => {
                let set = identities(acceptors, by)?;
                if current.members == (Members { current: set.clone(), next: vec![] }) {
                    return Ok(Decision::Keep);
                }
                if !current.members.next.is_empty() {
                    return Err(Refusal::Moving(Box::new(current.clone())));
                }
                let mut next = current.clone();
                next.members.next = set;
                next
            }
            Self::SettleAcceptors { committed } => {
                if current != &**committed || current.members.next.is_empty() {
                    return Err(Refusal::Changed(Box::new(current.clone())));
                }
                let mut next = current.clone();
                next.members.current = std::mem::take(&mut next.members.next);
                next
            }
        };
        let version = current.version.checked_add(1).ok_or(Refusal::Exhausted)?;
        Ok(Decision::Write(Box::new(VolumeRecord { version, change: by.change, ..next })))
    }

    fn create(&self, by: &Applicant<'_>) -> Result<Decision, Refusal> {
        let Self::Create { holder, lease_ns, superblock, acceptors } = self else {
            return Err(Refusal::NotFound);
        };
        Ok(Decision::Write(Box::new(VolumeRecord {
            register: by.register,
            version: 1,
            epoch: 1,
            change: by.change,
            opener: by.proposer,
            holder: holder.clone(),
            lease_ns: *lease_ns,
            released: false,
            superblock: *superblock,
            members: Members { current: identities(acceptors, by)?, next: vec![] },
        })))
    }

    /// The record after a take-over; `None` if the very same opening has it already.
    fn take_over(
        &self,
        current: &VolumeRecord,
        by: &Applicant<'_>,
    ) -> Result<Option<VolumeRecord>, Refusal> {
        let Self::TakeOver { expected_version, holder, lease_ns } = self else {
            return Ok(None);
        };
        if current.opener == by.proposer && current.version > *expected_version {
            return Ok(None);
        }
        if current.version != *expected_version {
            return Err(Refusal::Changed(Box::new(current.clone())));
        }
        Ok(Some(VolumeRecord {
            epoch: current.epoch.checked_add(1).ok_or(Refusal::Exhausted)?,
            opener: by.proposer,
            holder: holder.clone(),
            lease_ns: *lease_ns,
            released: false,
            ..current.clone()
        }))
    }
}

/// A copy of `current`, if the applicant holds it with `epoch`.
fn held(current: &VolumeRecord, epoch: u64, by: &Applicant<'_>) -> Result<VolumeRecord, Refusal> {
    if current.epoch != epoch || current.opener != by.proposer || current.released {
        return Err(Refusal::NotHolder(Box::new(current.clone())));
    }
    Ok(current.clone())
}

fn newer(superblock: SuperblockRef, current: &VolumeRecord) -> Result<SuperblockRef, Refusal> {
    let newest = current.superblock.version;
    if superblock.version <= newest {
        return Err(Refusal::OldSuperblock { offered: superblock.version, newest });
    }
    Ok(superblock)
}

/// The acceptors behind `nodes`.
fn identities(nodes: &[NodeIndex], by: &Applicant<'_>) -> Result<Vec<AcceptorId>, Refusal> {
    let of = |node: &NodeIndex| by.acceptors.iter().find(|(at, _)| at == node).map(|(_, id)| *id);
    let set: Vec<AcceptorId> =
        nodes.iter().map(of).collect::<Option<_>>().ok_or(Refusal::Acceptors)?;
    let distinct =
        set.iter().enumerate().all(|(index, id)| !set.iter().take(index).any(|x| x == id));
    if set.is_empty() || set.len() > ACCEPTORS_MAX || !distinct {
        return Err(Refusal::Acceptors);
    }
    Ok(set)
}
