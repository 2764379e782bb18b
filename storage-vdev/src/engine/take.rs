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
const WATCH_NS: u64 = 500_000_000;

/// The right to write.
pub(super) struct Tenure {
    pub(super) epoch: u64,
    pub(super) proposer: Option<Proposer>,
    pub(super) lease: Option<Lease>,
    evidence: Vec<Bytes>,
    /// The nodes that were not told of it.
    pub(super) deaf: Vec<(NodeIndex, NodeError)>,
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
    let epoch = found.superblock.map_or(0, |superblock| superblock.opening.epoch) + 1;
    let epoch = unfenced_epoch(engine, options, epoch).await?;
    let (evidence, deaf) = (Vec::new(), Vec::new());
    Ok(Tenure { epoch, proposer: None, lease: None, evidence, deaf, named: None })
}

/// An epoch above all that an opening which left nothing else has fenced with.
async fn unfenced_epoch(
    engine: &Rc<Engine>,
    options: &OpenOptions,
    at_least: u64,
) -> Result<u64, OpenError> {
    let mut epoch = at_least;
    loop {
        let fences = fence_all(engine, options, (epoch, &[])).await;
        let higher = fences.iter().filter_map(|fence| match fence {
            Ok(Response::Fenced { previous }) if *previous >= epoch => previous.checked_add(1),
            Err(NodeError::EpochStale { current }) => current.checked_add(1),
            _ => None,
        });
        match higher.max() {
            Some(higher) => epoch = higher,
            None => return Ok(epoch),
        }
    }
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
            (Err(ChangeError::Refused(Refusal::NotFound)), Some(create)) => {
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
        ChangeError::Unreachable { answered, asked, .. } => {
            too_few(answered, asked, (asked / 2 + 1, None))
        }
        error => OpenError::Register(error.to_string()),
    }
}

async fn fence_all(
    engine: &Rc<Engine>,
    options: &OpenOptions,
    (epoch, evidence): (u64, &[Bytes]),
) -> Vec<Result<Response, NodeError>> {
    let nodes = (0..options.nodes.len()).filter_map(|node| NodeIndex::try_from(node).ok());
    let fences = nodes.map(|node| {
        let evidence = evidence.to_vec();
        let request = Request::Fence { volume: options.uuid, epoch, evidence };
        ask(&engine.runtime, node, request)
    });
    join_all(fences).await
}

/// Shuts earlier openings out. Says which nodes have not heard of it.
pub(super) async fn fence(
    engine: &Rc<Engine>,
    options: &OpenOptions,
    tenure: &Tenure,
) -> Result<Vec<(NodeIndex, NodeError)>, OpenError> {
    let fences = fence_all(engine, options, (tenure.epoch, &tenure.evidence)).await;
    let mut deaf = Vec::new();
    for (node, fence) in (0..).zip(fences) {
        match fence {
            Ok(_) => {}
            Err(NodeError::EpochStale { current }) => {
                return Err(OpenError::Stale { epoch: current });
            }
            Err(error) => deaf.push((node, error)),
        }
    }
    Ok(deaf)
}
