//! Taking a volume over: an epoch that nobody else has, and a fence against all before it.

use std::rc::Rc;

use bytes::Bytes;

use super::executor::join_all;
use super::find::{ask, find_newest};
use super::holder::change;
use super::open::{check_shape, keepers, too_few};
use super::options::{OpenError, OpenOptions, Randomness, TakeOver};
use super::state::Engine;
use crate::node::{NodeError, NodeIndex, Request, Response};
use crate::register::{
    self, ChangeError, Edit, Lease, Proposer, Refusal, SuperblockRef, Timing, VolumeRecord, Watch,
};

/// How often a record that is being watched is read.
const WATCH_NS: u64 = 250_000_000;

/// The right to write.
pub(super) struct Tenure {
    pub(super) epoch: u64,
    pub(super) proposer: Option<Proposer>,
    pub(super) lease: Option<Lease>,
    /// What shows nodes that are no acceptors that the epoch is ours.
    pub(super) evidence: Vec<Bytes>,
    /// The nodes that were not told of it.
    pub(super) deaf: Vec<(NodeIndex, NodeError)>,
    /// The nodes that don't remember the opening that wrote the newest superblock, and are not told
    /// of this one before its own superblock is durable: what they say of themselves is how the
    /// next opening knows, too, if this one gets no further.
    pub(super) blank: Vec<NodeIndex>,
    /// The epoch of the opening that wrote the newest superblock; 0 if there is none.
    last_epoch: u64,
    /// What the register says of superblocks; `None` if there is no register.
    pub(super) named: Option<SuperblockRef>,
}

/// Gets an epoch that nobody else has.
pub(super) async fn take_volume(
    engine: &Rc<Engine>,
    options: &OpenOptions,
    random: &Randomness,
) -> Result<Tenure, OpenError> {
    if options.register {
        return take_register(engine, options, random).await;
    }
    let nodes = keepers(options);
    let found = find_newest(&engine.runtime, &nodes, options.uuid, &options.key).await?;
    match (&found.superblock, &options.create) {
        (None, None) if found.answered.is_empty() => {
            return Err(too_few(0, nodes.len(), (1, found.error)));
        }
        (None, None) if found.copies.is_empty() => return Err(OpenError::NotFound),
        (None, _) if !found.copies.is_empty() => {
            let version = found.copies.keys().next_back().map_or(0, |newest| newest.1);
            return Err(OpenError::SuperblockLost { version });
        }
        (None, Some(_)) if found.answered.len() < nodes.len() => {
            return Err(too_few(found.answered.len(), nodes.len(), (nodes.len(), found.error)));
        }
        (Some(_), Some(_)) if options.must_be_new => return Err(OpenError::Exists),
        (Some(superblock), create) => check_shape(superblock, create.as_ref())?,
        (None, _) => {}
    }
    let last_epoch = found.superblock.map_or(0, |superblock| superblock.opening.epoch);
    // Above all that an opening which left nothing else has fenced with, too.
    let standing = standing_fences(engine, options).await;
    let highest = standing.iter().flatten().copied().max().unwrap_or(0).max(last_epoch);
    let epoch = highest.checked_add(1).ok_or(OpenError::Stale { epoch: highest })?;
    let (evidence, deaf, blank) = (Vec::new(), Vec::new(), Vec::new());
    let (proposer, lease, named) = (None, None, None);
    Ok(Tenure { epoch, proposer, lease, evidence, deaf, blank, last_epoch, named })
}

/// The fence that stands on each node now; 0 if none does. Nothing is changed by asking.
async fn standing_fences(
    engine: &Rc<Engine>,
    options: &OpenOptions,
) -> Vec<Result<u64, NodeError>> {
    let all: Vec<NodeIndex> = (0..).zip(&options.nodes).map(|(node, _)| node).collect();
    let fences = fence_nodes(engine, options, (0, &[]), &all).await;
    let standing = fences.into_iter().map(|fence| match fence {
        Ok(Response::Fenced { previous }) => Ok(previous),
        Err(NodeError::EpochStale { current }) => Ok(current),
        Ok(_) => Err(NodeError::Unsupported),
        Err(error) => Err(error),
    });
    standing.collect()
}

async fn take_register(
    engine: &Rc<Engine>,
    options: &OpenOptions,
    random: &Randomness,
) -> Result<Tenure, OpenError> {
    let uuid = options.uuid;
    let acceptors = (0..).zip(&options.nodes).filter(|(_, node)| node.register);
    let acceptors: Vec<NodeIndex> = acceptors.map(|(node, _)| node).collect();
    let seed = random.proposer;
    let mut proposer =
        Proposer::new(uuid, &options.key, acceptors.clone(), seed, Timing::default());
    let holder = register::Holder { id: options.holder.id, name: options.holder.name.clone() };
    let mut watch: Option<Watch> = None;
    let mut lease_ns = options.create.as_ref().map_or(0, |create| create.lease_ns);
    loop {
        let now_ns = engine.runtime.now_ns();
        let edit = match &watch {
            Some(watch) if watch.take_at_ns() <= now_ns => {
                let expected_version = watch.version();
                Edit::TakeOver { expected_version, holder: holder.clone(), lease_ns }
            }
            _ => Edit::Read,
        };
        let is_read = edit == Edit::Read;
        let result = change(&engine.runtime, uuid, &mut proposer, edit).await;
        let seen_ns = engine.runtime.now_ns();
        let record = match (result, &options.create) {
            (Ok(committed), _) if !is_read => return Ok(tenure(committed, proposer)),
            (Ok(committed), _) => committed.record,
            (Err(ChangeError::Refused(Refusal::Changed(record))), _) => *record,
            (Err(ChangeError::Refused(Refusal::NotFound)), create) => {
                // A fence is put up by who holds the register: there has been one.
                let standing = standing_fences(engine, options).await;
                let fence = standing.iter().flatten().copied().max().unwrap_or(0);
                if fence > 0 {
                    return Err(OpenError::RegisterLost { fence });
                }
                let Some(create) = create else { return Err(OpenError::NotFound) };
                let edit = Edit::Create {
                    holder: holder.clone(),
                    lease_ns: create.lease_ns,
                    superblock: SuperblockRef::default(),
                    acceptors: acceptors.clone(),
                };
                let committed = change(&engine.runtime, uuid, &mut proposer, edit).await;
                return committed.map(|done| tenure(done, proposer)).map_err(register_error);
            }
            (Err(error), _) => return Err(register_error(error)),
        };
        if options.must_be_new && record.superblock.version > 0 {
            return Err(OpenError::Exists);
        }
        lease_ns = record.lease_ns;
        let exclusive = Some(options.holder.id);
        let watch = match &mut watch {
            Some(watch) => {
                watch.observe(&record, seen_ns, exclusive);
                watch
            }
            None => watch.insert(Watch::new(&record, seen_ns, exclusive)),
        };
        if watch.take_at_ns() > seen_ns {
            if options.take_over == TakeOver::Refuse {
                return Err(in_use(record));
            }
            let until_ns = watch.take_at_ns().min(seen_ns.saturating_add(WATCH_NS));
            engine.runtime.sleep_until(until_ns).await;
        }
    }
}

fn tenure(committed: register::Committed, proposer: Proposer) -> Tenure {
    let register::Committed { record, changed_ns, evidence } = committed;
    Tenure {
        epoch: record.epoch,
        proposer: Some(proposer),
        lease: Some(Lease::new(record.lease_ns, changed_ns.unwrap_or(0))),
        evidence,
        deaf: Vec::new(),
        blank: Vec::new(),
        last_epoch: record.superblock.epoch,
        named: Some(record.superblock),
    }
}

fn in_use(record: VolumeRecord) -> OpenError {
    OpenError::InUse { holder: record.holder.name, epoch: record.epoch }
}

fn register_error(error: ChangeError) -> OpenError {
    match error {
        ChangeError::Refused(Refusal::NotFound) => OpenError::NotFound,
        ChangeError::Refused(Refusal::Exists) => OpenError::Exists,
        ChangeError::Refused(Refusal::NotHolder(record)) => in_use(*record),
        ChangeError::Record(register::RecordError::Forged) => OpenError::WrongKey,
        ChangeError::Record(error) => OpenError::Version(error.to_string()),
        // They answer, and are not those: nodes were replaced that had a part of the register.
        ChangeError::Unreachable { answered, asked, .. } if answered > asked / 2 => {
            OpenError::RegisterReplaced { answered, asked }
        }
        ChangeError::Unreachable { answered, asked, .. } => {
            too_few(answered, asked, (asked / 2 + 1, None))
        }
        error => OpenError::Register(error.to_string()),
    }
}

async fn fence_nodes(
    engine: &Rc<Engine>,
    options: &OpenOptions,
    (epoch, evidence): (u64, &[Bytes]),
    nodes: &[NodeIndex],
) -> Vec<Result<Response, NodeError>> {
    let fences = nodes.iter().map(|node| {
        let evidence = evidence.to_vec();
        let request = Request::Fence { volume: options.uuid, epoch, evidence };
        ask(&engine.runtime, *node, request)
    });
    join_all(fences).await
}

/// Shuts earlier openings out. Finds out which nodes have not heard of it, and which have forgotten
/// what they had promised.
pub(super) async fn fence(
    engine: &Rc<Engine>,
    options: &OpenOptions,
    tenure: &mut Tenure,
) -> Result<(), OpenError> {
    let standing = standing_fences(engine, options).await;
    check_register(engine, options, tenure, &standing).await?;
    let mut reached = Vec::new();
    for (node, fence) in (0..).zip(standing) {
        match fence {
            Err(error) => tenure.deaf.push((node, error)),
            Ok(fence) if fence < tenure.last_epoch && !options.accept_loss => {
                tenure.blank.push(node);
            }
            Ok(_) => reached.push(node),
        }
    }
    let ours = (tenure.epoch, tenure.evidence.as_slice());
    let fences = fence_nodes(engine, options, ours, &reached).await;
    for (node, fence) in reached.into_iter().zip(fences) {
        match fence {
            Ok(_) => {}
            Err(NodeError::EpochStale { current }) => {
                return Err(OpenError::Stale { epoch: current });
            }
            Err(error) => tenure.deaf.push((node, error)),
        }
    }
    Ok(())
}

/// Compares what the register says with what the nodes remember. Nobody else can have our epoch,
/// and a higher one is in the register before it is on any node: if it isn't, then the register has
/// gone back to an earlier state, and may have given our epoch to somebody before.
async fn check_register(
    engine: &Rc<Engine>,
    options: &OpenOptions,
    tenure: &mut Tenure,
    standing: &[Result<u64, NodeError>],
) -> Result<(), OpenError> {
    let Some(named) = tenure.named else { return Ok(()) };
    let fence = standing.iter().flatten().copied().max().unwrap_or(0);
    if fence < tenure.epoch {
        let nodes = keepers(options);
        let found = find_newest(&engine.runtime, &nodes, options.uuid, &options.key).await?;
        let newest = found.superblock;
        let beyond = newest.filter(|newest| {
            // One that was stored before the register named it is all that may be newer.
            newest.version > named.version.saturating_add(1) || newest.opening.epoch >= tenure.epoch
        });
        return match beyond {
            None => Ok(()),
            Some(newest) => {
                Err(OpenError::RegisterForgot { version: named.version, found: newest.version })
            }
        };
    }
    let mut reached = 0;
    if let Some(proposer) = &mut tenure.proposer {
        let read = change(&engine.runtime, options.uuid, proposer, Edit::Read).await;
        reached = read.map_err(register_error)?.record.epoch;
    }
    if reached > tenure.epoch && reached >= fence {
        return Err(OpenError::Stale { epoch: reached });
    }
    Err(OpenError::RegisterRolledBack { epoch: tenure.epoch, fence })
}

/// Tells the nodes that had forgotten it of the opening, now that its superblock is durable.
pub(super) async fn fence_blank(engine: &Rc<Engine>, blank: &[NodeIndex]) {
    let fences = blank.iter().map(|node| engine.fence_again(*node));
    for (node, fence) in blank.iter().zip(join_all(fences).await) {
        if let Err(error) = fence {
            engine.node_down(*node, error);
        }
    }
}
