//! Nodes that keep what they are told in memory, so that a test can change it behind their backs.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::BorrowedFd;

use bytes::Bytes;
use storage_vdev::node::{
    NodeCompletion, NodeError, NodeIndex, Nodes, ObjectKey, Request, Response, Tag,
};

/// What one node keeps of the one volume.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Image {
    pub(super) objects: BTreeMap<ObjectKey, Vec<u8>>,
    /// The journal's bytes, and its first position; `None`: it was never opened.
    pub(super) journal: Option<(u64, Vec<u8>)>,
    fence: u64,
}

/// All nodes.
#[derive(Debug, Clone, Default)]
pub(super) struct Host {
    pub(super) images: Vec<Image>,
    done: VecDeque<NodeCompletion>,
}

impl Host {
    pub(super) fn new(images: Vec<Image>) -> Self {
        Self { images, done: VecDeque::new() }
    }
}

impl Image {
    fn put(&mut self, key: ObjectKey, parts: &[Bytes]) -> Result<Response, NodeError> {
        let bytes: Vec<u8> = parts.iter().flatten().copied().collect();
        match self.objects.get(&key) {
            Some(other) if *other != bytes => Err(NodeError::Exists),
            _ => {
                self.objects.insert(key, bytes);
                Ok(Response::Done)
            }
        }
    }

    fn check(&self, epoch: u64) -> Result<(), NodeError> {
        let current = self.fence;
        if epoch < current { Err(NodeError::EpochStale { current }) } else { Ok(()) }
    }

    fn answer(&mut self, request: Request) -> Result<Response, NodeError> {
        match request {
            Request::Put { key, parts } => {
                self.check(key.epoch).and_then(|()| self.put(key, &parts))
            }
            Request::Restore { epoch, key, parts } => {
                self.check(epoch).and_then(|()| self.put(key, &parts))
            }
            Request::Get { key, offset, len } => {
                let bytes = self.objects.get(&key).ok_or(NodeError::NotFound)?;
                let rest = bytes.get(offset as usize..).ok_or(NodeError::Range)?;
                let part = if len == u32::MAX { Some(rest) } else { rest.get(..len as usize) };
                part.map(|part| Response::Bytes(Bytes::copy_from_slice(part)))
                    .ok_or(NodeError::Range)
            }
            Request::List { after, limit, .. } => {
                let keys = self.objects.keys().filter(|key| after.is_none_or(|last| **key > last));
                Ok(Response::Keys(keys.take(limit.into()).copied().collect()))
            }
            Request::Delete { epoch, keys } => {
                self.check(epoch)?;
                keys.iter().for_each(|key| drop(self.objects.remove(key)));
                Ok(Response::Done)
            }
            Request::Fence { epoch, .. } => {
                self.check(epoch)?;
                Ok(Response::Fenced { previous: std::mem::replace(&mut self.fence, epoch) })
            }
            Request::Capacity => {
                Ok(Response::Capacity { total_bytes: 1 << 40, free_bytes: 1 << 40 })
            }
            Request::Register { .. } | Request::Audit { .. } => Err(NodeError::Unsupported),
            journal => self.journal(journal),
        }
    }

    fn journal(&mut self, request: Request) -> Result<Response, NodeError> {
        let fence = self.fence;
        let state = |(start, bytes): &(u64, Vec<u8>)| Response::Journal {
            start: *start,
            end: start.saturating_add(bytes.len() as u64),
            epoch: fence,
        };
        match request {
            Request::JournalOpen { .. } => Ok(state(self.journal.get_or_insert_default())),
            Request::JournalState { .. } => {
                self.journal.as_ref().map(state).ok_or(NodeError::NotFound)
            }
            Request::JournalAppend { position, parts, .. } => {
                let (start, bytes) = self.journal.as_mut().ok_or(NodeError::NotFound)?;
                let end = start.saturating_add(bytes.len() as u64);
                if position != end {
                    return Err(NodeError::Conflict { end });
                }
                parts.iter().for_each(|part| bytes.extend_from_slice(part));
                Ok(Response::Done)
            }
            Request::JournalRead { position, len, .. } => {
                let (start, bytes) = self.journal.as_ref().ok_or(NodeError::NotFound)?;
                let from = position.checked_sub(*start).ok_or(NodeError::Range)?;
                let rest = bytes.get(from as usize..).ok_or(NodeError::Range)?;
                let part = rest.get(..len as usize).unwrap_or(rest);
                Ok(Response::Bytes(Bytes::copy_from_slice(part)))
            }
            Request::JournalTrim { start: to, .. } => {
                let (start, bytes) = self.journal.as_mut().ok_or(NodeError::NotFound)?;
                let gone = to.saturating_sub(*start);
                bytes.drain(..bytes.len().min(gone as usize));
                *start = (*start).max(to);
                Ok(Response::Done)
            }
            _ => Err(NodeError::Unsupported),
        }
    }
}

impl Nodes for Host {
    fn count(&self) -> usize {
        self.images.len()
    }

    fn name(&self, node: NodeIndex) -> String {
        format!("node {node}")
    }

    fn submit(&mut self, node: NodeIndex, tag: Tag, request: Request) {
        let result = match self.images.get_mut(usize::from(node)) {
            Some(image) => image.answer(request),
            None => Err(NodeError::Unavailable),
        };
        self.done.push_back(NodeCompletion { tag, result });
    }

    fn poll(&mut self, _now_ns: u64) -> Option<NodeCompletion> {
        self.done.pop_front()
    }

    fn ready_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn deadline_ns(&self) -> Option<u64> {
        None
    }
}
