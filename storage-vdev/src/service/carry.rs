//! The requests, one by one.

use bytes::Bytes;

use super::journal::{self, CAPACITY};
use super::meta::{Known, Record, RingPlace};
use super::{After, Capacity, Grants, NodeService, Outcome, Rights, ShardStore};
use crate::audit::{AuditTree, LEAF_BYTES, LeafProof};
use crate::files::NodeFile;
use crate::keys::Uuid;
use crate::node::{
    AUDIT_ROOT, NodeError, ObjectKey, RegisterRequest, Request, Response, TRANSFER_BYTES_MAX,
};
use crate::register::{AcceptorState, Transition, verify_evidence};

impl<S: ShardStore, F: NodeFile> NodeService<S, F> {
    pub(super) fn carry_out(
        &mut self,
        grants: &Grants,
        request: Request,
    ) -> Result<Outcome, NodeError> {
        match request {
            Request::Put { key, parts } => {
                let known = self.admit(grants, &key.volume, |rights| rights.write)?;
                self.put(&known, key.epoch, &key, &parts)
            }
            Request::Restore { epoch, key, parts } => {
                let known =
                    self.admit(grants, &key.volume, |rights| rights.write || rights.heal)?;
                if key.epoch > epoch {
                    return Err(NodeError::Unsupported);
                }
                self.put(&known, epoch, &key, &parts)
            }
            Request::Get { key, offset, len } => {
                self.look(grants, &key.volume, |rights| rights.read || rights.heal)?;
                if len != u32::MAX && len as usize > TRANSFER_BYTES_MAX {
                    return Err(NodeError::Unsupported);
                }
                self.objects
                    .get(&key, offset, len)
                    .map(|bytes| Outcome::Now(Response::Bytes(bytes)))
            }
            Request::List { volume, after, limit } => {
                self.look(grants, &volume, |rights| rights.read || rights.heal)?;
                let keys = self.objects.list(&volume, after.as_ref(), limit)?;
                Ok(Outcome::Now(Response::Keys(keys)))
            }
            Request::Delete { epoch, keys } => self.delete(grants, epoch, &keys),
            Request::JournalOpen { .. }
            | Request::JournalAppend { .. }
            | Request::JournalRead { .. }
            | Request::JournalState { .. }
            | Request::JournalTrim { .. } => self.carry_out_journal(grants, request),
            Request::Fence { volume, epoch, evidence } => {
                self.admit(grants, &volume, |rights| rights.fence)?;
                self.fence(grants, &volume, epoch, &evidence)
            }
            Request::Register { register, message } => {
                self.admit(grants, &register, |rights| rights.fence)?;
                self.register(&register, &message)
            }
            Request::Audit { key, leaf, .. } => {
                self.look(grants, &key.volume, |rights| rights.audit)?;
                self.audit(&key, leaf)
            }
            Request::Capacity => {
                let Capacity { total_bytes, free_bytes } = self.objects.capacity()?;
                Ok(Outcome::Now(Response::Capacity { total_bytes, free_bytes }))
            }
        }
    }

    fn carry_out_journal(
        &mut self,
        grants: &Grants,
        request: Request,
    ) -> Result<Outcome, NodeError> {
        match request {
            Request::JournalOpen { volume, epoch, capacity } => {
                let known = self.admit(grants, &volume, |rights| rights.write)?;
                check_fence(&known, epoch)?;
                self.journal_open(&volume, capacity)
            }
            Request::JournalAppend { volume, epoch, position, parts } => {
                let known = self.admit(grants, &volume, |rights| rights.write)?;
                check_fence(&known, epoch)?;
                let place = known.ring.ok_or(NodeError::NotFound)?;
                self.journals.append(&volume, place, epoch, position, &parts)?;
                Ok(Outcome::Later(After::Journal, Response::Done))
            }
            Request::JournalRead { volume, position, len } => {
                let known = self.look(grants, &volume, |rights| rights.read)?;
                let place = known.ring.ok_or(NodeError::NotFound)?;
                let len = len.min(TRANSFER_BYTES_MAX as u32);
                let bytes = self.journals.read(&volume, place, position, len)?;
                Ok(Outcome::Now(Response::Bytes(bytes)))
            }
            Request::JournalState { volume } => {
                let known = self.look(grants, &volume, |rights| rights.read)?;
                let place = known.ring.ok_or(NodeError::NotFound)?;
                self.journals.state(&volume, place).map(Outcome::Now)
            }
            Request::JournalTrim { volume, epoch, start } => {
                let known = self.admit(grants, &volume, |rights| rights.write)?;
                check_fence(&known, epoch)?;
                let place = known.ring.ok_or(NodeError::NotFound)?;
                Ok(match self.journals.trim(&volume, place, epoch, start)? {
                    true => Outcome::Later(After::Journal, Response::Done),
                    false => Outcome::Now(Response::Done),
                })
            }
            _ => Err(NodeError::Unsupported),
        }
    }

    /// What is known of a volume, if the session has the right that `wanted` picks under the key
    /// that is pinned.
    fn look(
        &self,
        grants: &Grants,
        volume: &Uuid,
        wanted: impl FnOnce(&Rights) -> bool,
    ) -> Result<Known, NodeError> {
        let writer = grants.check(volume, wanted)?;
        let known = self.meta.get(volume)?;
        match (writer, known.writer) {
            (Some(writer), Some(pinned)) if writer != pinned => Err(NodeError::Denied),
            _ => Ok(known),
        }
    }

    /// The same for a request that changes something: pins the writer's key if none is pinned.
    fn admit(
        &mut self,
        grants: &Grants,
        volume: &Uuid,
        wanted: impl FnOnce(&Rights) -> bool + Copy,
    ) -> Result<Known, NodeError> {
        let known = self.look(grants, volume, wanted)?;
        match grants.check(volume, wanted)? {
            Some(writer) if known.writer.is_none() => {
                let record = Record { writer: Some(writer), ..self.meta.load(volume)? };
                self.meta.store(volume, &record)?;
                self.meta.get(volume)
            }
            _ => Ok(known),
        }
    }

    fn put(
        &mut self,
        known: &Known,
        epoch: u64,
        key: &ObjectKey,
        parts: &[Bytes],
    ) -> Result<Outcome, NodeError> {
        check_fence(known, epoch)?;
        let bytes = parts.iter().map(|part| part.len() as u64).sum();
        self.check_quota(known, bytes)?;
        self.objects.put(key, parts)?;
        Ok(Outcome::Later(After::Objects, Response::Done))
    }

    /// Whether a tenant may store so many more bytes.
    fn check_quota(&self, known: &Known, bytes: u64) -> Result<(), NodeError> {
        let Some(writer) = known.writer else { return Ok(()) };
        let Some(quota) = self.quotas.get(&writer).copied().or(self.quota_bytes) else {
            return Ok(());
        };
        let of_tenant = self.meta.volumes().filter(|(_, known)| known.writer == Some(writer));
        let used: u64 = of_tenant
            .map(|(volume, known)| {
                let journal = known.ring.map_or(0, |place| journal::ring_bytes(place.capacity));
                self.objects.used_bytes(volume) + journal
            })
            .sum();
        if used.saturating_add(bytes) > quota { Err(NodeError::Quota) } else { Ok(()) }
    }

    fn delete(
        &mut self,
        grants: &Grants,
        epoch: u64,
        keys: &[ObjectKey],
    ) -> Result<Outcome, NodeError> {
        let Some(first) = keys.first() else { return Ok(Outcome::Now(Response::Done)) };
        if keys.iter().any(|key| key.volume != first.volume) {
            return Err(NodeError::Unsupported);
        }
        let known = self.look(grants, &first.volume, |rights| rights.delete)?;
        check_fence(&known, epoch)?;
        for key in keys {
            self.objects.delete(key)?;
        }
        Ok(Outcome::Later(After::Objects, Response::Done))
    }

    fn journal_open(&mut self, volume: &Uuid, capacity: u64) -> Result<Outcome, NodeError> {
        if capacity > *CAPACITY.end() {
            return Err(NodeError::Unsupported);
        }
        if capacity == 0 {
            return self.journal_close(volume);
        }
        let capacity = capacity.max(*CAPACITY.start()).next_multiple_of(4096);
        let mut record = self.meta.load(volume)?;
        // What a rotten ring held is nowhere on this node; who opens the journal doesn't want it
        // back (recovery reads, and doesn't open), but a head that works.
        let old = match record.ring {
            Some(place) if self.journals.is_lost(volume, place)? => None,
            place => place,
        };
        let place = match old {
            Some(place) if place.capacity >= capacity => place,
            old => {
                let known = self.meta.get(volume)?;
                self.check_quota(&known, journal::ring_bytes(capacity))?;
                let place = self.free_ring(capacity);
                match old {
                    Some(old) => self.journals.enlarge(volume, old, place)?,
                    None => self.journals.create(volume, place)?,
                }
                record.ring = Some(place);
                self.meta.store(volume, &record)?;
                // From here on the old ring's place may be given to another volume.
                self.meta.sync()?;
                place
            }
        };
        let response = self.journals.state(volume, place)?;
        Ok(Outcome::Later(After::Meta, response))
    }

    /// Gives a volume's ring up: its room is for others from here on.
    fn journal_close(&mut self, volume: &Uuid) -> Result<Outcome, NodeError> {
        let mut record = self.meta.load(volume)?;
        if let Some(place) = record.ring.take() {
            self.meta.store(volume, &record)?;
            // No other volume gets the place before nothing durable names it.
            self.meta.sync()?;
            self.journals.release(volume, place);
        }
        let nothing = Response::Journal { start: 0, end: 0, epoch: 0 };
        Ok(Outcome::Later(After::Meta, nothing))
    }

    /// A place in the journals' file that no volume's durable record names.
    fn free_ring(&self, capacity: u64) -> RingPlace {
        let wanted = journal::ring_bytes(capacity);
        let mut taken: Vec<(u64, u64)> = self.meta.places().collect();
        taken.sort_unstable();
        let mut at = journal::RINGS_AT;
        for (start, end) in taken {
            if start >= at && start - at >= wanted {
                break;
            }
            at = at.max(end);
        }
        RingPlace { at, capacity, id: self.meta.next_ring() }
    }

    fn fence(
        &mut self,
        grants: &Grants,
        volume: &Uuid,
        epoch: u64,
        evidence: &[Bytes],
    ) -> Result<Outcome, NodeError> {
        let mut record = self.meta.load(volume)?;
        let previous = record.fence;
        if epoch < previous {
            return Err(NodeError::EpochStale { current: previous });
        }
        if epoch > previous {
            if !grants.is_owner() && !record.members.current.is_empty() {
                record.members = verify_evidence(volume, epoch, &record.members, evidence)
                    .map_err(|_| NodeError::Denied)?;
            }
            record.fence = epoch;
            self.meta.store(volume, &record)?;
        } else if !grants.is_owner() && epoch > 0 && !evidence.is_empty() {
            // A change of acceptors, shown by who holds the epoch.
            let known = &record.members;
            match verify_evidence(volume, epoch, known, evidence) {
                Ok(members) if members != *known => {
                    record.members = members;
                    self.meta.store(volume, &record)?;
                }
                // It is no news, or none that this node can check: the fence stands as it stood.
                _ => {}
            }
        }
        Ok(Outcome::Later(After::All, Response::Fenced { previous }))
    }

    /// The root of the tree over an object as it is stored, or one of its leaves with its path. The
    /// tree is built when it is asked for: an object never changes, writers wait for no hash, and a
    /// tree in memory would cost a sixteenth of what is stored.
    fn audit(&mut self, key: &ObjectKey, leaf: u32) -> Result<Outcome, NodeError> {
        let object = self.objects.get(key, 0, u32::MAX)?;
        if leaf == AUDIT_ROOT {
            let root = AuditTree::of(&object).root();
            let bytes = [&(object.len() as u64).to_le_bytes()[..], &root[..]].concat();
            return Ok(Outcome::Now(Response::Bytes(Bytes::from(bytes))));
        }
        let start = (leaf as usize).saturating_mul(LEAF_BYTES);
        let end = start.saturating_add(LEAF_BYTES).min(object.len());
        let bytes = object.get(start..end).ok_or(NodeError::NotFound)?;
        let proof =
            AuditTree::of(&object).open(u64::from(leaf), bytes).map_err(|_| NodeError::NotFound)?;
        Ok(Outcome::Now(Response::Bytes(encode_proof(object.len() as u64, &proof))))
    }

    fn register(
        &mut self,
        register: &Uuid,
        message: &RegisterRequest,
    ) -> Result<Outcome, NodeError> {
        let mut record = self.meta.load(register)?;
        let state = if record.acceptor.is_empty() {
            AcceptorState::default()
        } else {
            AcceptorState::decode(&record.acceptor).map_err(|_| NodeError::Corrupt)?
        };
        let Transition { next, response } = state.step(&self.acceptor, register, message)?;
        if let Some(next) = next {
            record.acceptor = next.encode();
            self.meta.store(register, &record)?;
        }
        // What it repeats may be young, too.
        let response = Response::Register(response);
        let is_young = self.meta.is_dirty();
        Ok(if is_young { Outcome::Later(After::Meta, response) } else { Outcome::Now(response) })
    }
}

/// An opened leaf as bytes: length of the object (8), of the leaf (4), number of hashes (4), then the
/// leaf and the hashes.
fn encode_proof(object_len: u64, proof: &LeafProof) -> Bytes {
    let mut bytes = Vec::with_capacity(16 + proof.bytes.len() + 32 * proof.path.len());
    bytes.extend_from_slice(&object_len.to_le_bytes());
    bytes.extend_from_slice(&(proof.bytes.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&(proof.path.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&proof.bytes);
    bytes.extend_from_slice(proof.path.as_flattened());
    Bytes::from(bytes)
}

fn check_fence(known: &Known, epoch: u64) -> Result<(), NodeError> {
    if epoch < known.fence {
        return Err(NodeError::EpochStale { current: known.fence });
    }
    Ok(())
}
