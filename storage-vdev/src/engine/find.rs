//! Finding the newest superblock.

use std::collections::BTreeMap;
use std::rc::Rc;

use bytes::Bytes;
use ring::digest;

use super::executor::{Answer, Either, Runtime, either, join_all};
use super::options::OpenError;
use super::superblock::{
    SUPERBLOCK_BYTES_MAX, Superblock, SuperblockError, before_superblocks, superblock_key,
    version_of,
};
use crate::keys::{Uuid, VolumeKey};
use crate::node::{NodeError, NodeIndex, ObjectKey, Request, Response};
use crate::register::SuperblockRef;

/// How long a node may take to answer while a volume is opened.
const ANSWER_NS_MAX: u64 = 5_000_000_000;
/// How many names are asked for at once.
const LIST_MAX: u16 = 256;
/// The most epochs that a node may claim to have objects of.
const EPOCHS_MAX: usize = 1 << 16;

/// Asks a node before there is a volume.
pub(super) async fn ask(runtime: &Rc<Runtime>, node: NodeIndex, request: Request) -> Answer {
    let until_ns = runtime.now_ns().saturating_add(ANSWER_NS_MAX);
    match either(runtime.call(node, request), runtime.sleep_until(until_ns)).await {
        Either::First(answer) => answer,
        Either::Second(()) => Err(NodeError::Unavailable),
    }
}

/// What the nodes have of superblocks.
pub(super) struct Found {
    /// The newest one that is authentic.
    pub(super) superblock: Option<Superblock>,
    /// The names of all, with their nodes.
    pub(super) copies: BTreeMap<(u64, u64), Vec<NodeIndex>>,
    /// The nodes that answered.
    pub(super) answered: Vec<NodeIndex>,
    /// The first error of one that didn't.
    pub(super) error: Option<NodeError>,
}

/// Looks for the newest superblock on all `nodes`.
pub(super) async fn find_newest(
    runtime: &Rc<Runtime>,
    nodes: &[NodeIndex],
    uuid: Uuid,
    key: &VolumeKey,
) -> Result<Found, OpenError> {
    let listed = join_all(nodes.iter().map(|node| list(runtime, *node, uuid))).await;
    let mut found =
        Found { superblock: None, copies: BTreeMap::new(), answered: Vec::new(), error: None };
    for (node, names) in nodes.iter().zip(listed) {
        match names {
            Ok(names) => {
                found.answered.push(*node);
                for name in names {
                    found.copies.entry(name).or_default().push(*node);
                }
            }
            Err(error) => found.error = found.error.or(Some(error)),
        }
    }
    let mut refused = None;
    for ((epoch, version), holders) in found.copies.iter().rev() {
        for node in holders {
            match get(runtime, *node, superblock_key(uuid, *epoch, *version), key).await {
                Ok((superblock, _)) if superblock.version == *version => {
                    found.superblock = Some(superblock);
                    return Ok(found);
                }
                Ok(_) => {}
                Err(Some(error)) if error != SuperblockError::Corrupt => refused = Some(error),
                Err(_) => {}
            }
        }
    }
    match refused {
        Some(error) => Err(open_error(error)),
        None => Ok(found),
    }
}

/// Gets the superblock that the register names.
pub(super) async fn get_named(
    runtime: &Rc<Runtime>,
    nodes: &[NodeIndex],
    uuid: Uuid,
    (key, named): (&VolumeKey, SuperblockRef),
) -> Result<Superblock, OpenError> {
    let name = superblock_key(uuid, named.epoch, named.version);
    for node in nodes {
        match get(runtime, *node, name, key).await {
            Ok((superblock, bytes)) if sha256(&bytes) == named.sha256 => return Ok(superblock),
            Err(Some(SuperblockError::Version(version))) => {
                return Err(open_error(SuperblockError::Version(version)));
            }
            _ => {}
        }
    }
    Err(OpenError::SuperblockLost { version: named.version })
}

/// The hash that the register keeps of a superblock.
pub(super) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let hash = digest::digest(&digest::SHA256, bytes);
    hash.as_ref().first_chunk().copied().unwrap_or_default()
}

pub(super) fn open_error(error: SuperblockError) -> OpenError {
    match error {
        SuperblockError::Forged => OpenError::WrongKey,
        SuperblockError::Version(_) | SuperblockError::Corrupt => {
            OpenError::Version(error.to_string())
        }
    }
}

async fn get(
    runtime: &Rc<Runtime>,
    node: NodeIndex,
    name: ObjectKey,
    key: &VolumeKey,
) -> Result<(Superblock, Bytes), Option<SuperblockError>> {
    let request = Request::Get { key: name, offset: 0, len: u32::MAX };
    match ask(runtime, node, request).await {
        Ok(Response::Bytes(bytes)) if bytes.len() <= SUPERBLOCK_BYTES_MAX => {
            let superblock = Superblock::parse(&bytes, key)?;
            let named = superblock.uuid == name.volume && superblock.opening.epoch == name.epoch;
            if named { Ok((superblock, bytes)) } else { Err(Some(SuperblockError::Corrupt)) }
        }
        _ => Err(None),
    }
}

/// Epoch and version of the superblocks that a node has, epoch by epoch.
async fn list(
    runtime: &Rc<Runtime>,
    node: NodeIndex,
    volume: Uuid,
) -> Result<Vec<(u64, u64)>, NodeError> {
    let mut names = Vec::new();
    let mut after = None;
    let mut epoch = None;
    for _ in 0..EPOCHS_MAX {
        let limit = if after.is_none() { 1 } else { LIST_MAX };
        let list = Request::List { volume, after, limit };
        let Response::Keys(keys) = ask(runtime, node, list).await? else {
            return Err(NodeError::Unsupported);
        };
        let full = keys.len() >= usize::from(limit);
        let of_epoch = keys.iter().filter(|key| Some(key.epoch) == epoch);
        names.extend(of_epoch.filter_map(|key| Some((key.epoch, version_of(key)?))));
        let next = keys.iter().map(|key| key.epoch).find(|next| Some(*next) > epoch);
        match (next, keys.last()) {
            (Some(next), _) => {
                epoch = Some(next);
                after = Some(before_superblocks(volume, next));
            }
            (None, Some(last)) if full => after = Some(*last),
            _ => return Ok(names),
        }
    }
    Err(NodeError::Unsupported)
}
