//! One front-end's queues: chains in, requests to the volume, answers back.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::sync::Arc;

use storage_vdev::node::Nodes;
use vhost_user_backend::VringT;
use virtio_bindings::virtio_blk::{VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK};
use virtio_queue::{DescriptorChain, QueueT};
use vm_memory::{GuestAddressSpace, GuestMemoryLoadGuard, GuestMemoryMmap};

use super::frontend::{Frontend, Memory, QUEUES_MAX, Vring};
use super::request::{DATA_BYTES_MAX, Refusal, Request, parse};
use crate::served::{Answer, Finished, Operation, Served};

/// The most bytes of requests that are with the volume; more wait in the rings.
const BYTES_MAX: usize = 4 * DATA_BYTES_MAX;

type Chain = DescriptorChain<GuestMemoryLoadGuard<GuestMemoryMmap>>;

/// Whose part of a request the volume has.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part {
    session: u64,
    request: u64,
}

/// A request that has not been given back to the driver yet.
struct InFlight {
    chain: Chain,
    queue: usize,
    /// How many parts of it are still with the volume.
    parts: usize,
    failed: bool,
    bytes: usize,
}

/// The time that one front-end is connected.
pub(super) struct Session {
    id: u64,
    frontend: Arc<Frontend>,
    memory: Memory,
    name: [u8; VIRTIO_BLK_ID_BYTES as usize],
    read_only: bool,
    in_flight: BTreeMap<u64, InFlight>,
    next_request: u64,
    bytes: usize,
    /// Queues whose requests wait for room.
    waiting: BTreeSet<usize>,
    /// Queues whose driver may want an interrupt.
    answered: BTreeSet<usize>,
}

impl Session {
    pub(super) fn new(
        id: u64,
        frontend: Arc<Frontend>,
        memory: Memory,
        name: [u8; VIRTIO_BLK_ID_BYTES as usize],
        read_only: bool,
    ) -> Self {
        Self {
            id,
            frontend,
            memory,
            name,
            read_only,
            in_flight: BTreeMap::new(),
            next_request: 0,
            bytes: 0,
            waiting: BTreeSet::new(),
            answered: BTreeSet::new(),
        }
    }

    /// Takes what was kicked, and what waited for room.
    pub(super) fn take_kicked<N: Nodes>(&mut self, served: &mut Served<N, Part>) {
        let (kicked, vrings) = {
            let mut state = self.frontend.state();
            (std::mem::take(&mut state.kicked), state.vrings.clone())
        };
        let mut queues = std::mem::take(&mut self.waiting);
        queues.extend((0..QUEUES_MAX).filter(|queue| kicked >> queue & 1 == 1));
        for queue in queues {
            if let Some(vring) = vrings.get(queue) {
                self.take(queue, vring, served);
            }
        }
        self.interrupt(&vrings);
    }

    /// Takes all requests of a queue that there is room for.
    fn take<N: Nodes>(&mut self, queue: usize, vring: &Vring, served: &mut Served<N, Part>) {
        loop {
            let mut chains = Vec::new();
            let more = {
                // Held until each chain is counted: who stops the queue waits for what is counted.
                let mut vring = vring.get_mut();
                if !vring.is_enabled() || !vring.get_queue().ready() {
                    return;
                }
                let told = vring.disable_notification();
                let memory = self.memory.memory();
                let size = usize::from(vring.get_queue().size());
                while chains.len() < size
                    && let Some(chain) = vring.get_queue_mut().pop_descriptor_chain(memory.clone())
                {
                    self.frontend.began(queue);
                    chains.push(chain);
                }
                // True if the driver made more available before it could know of our wish.
                told.is_ok() && vring.enable_notification().unwrap_or(false)
            };
            let any = !chains.is_empty();
            chains.into_iter().for_each(|chain| self.start(queue, chain, vring, served));
            if self.bytes > BYTES_MAX {
                self.waiting.insert(queue);
                return;
            }
            // A broken ring always has more and never gives it.
            if !more || !any {
                return;
            }
        }
    }

    fn start<N: Nodes>(
        &mut self,
        queue: usize,
        chain: Chain,
        vring: &Vring,
        served: &mut Served<N, Part>,
    ) {
        let id = self.next_request;
        self.next_request += 1;
        let entry = InFlight { chain, queue, parts: 1, failed: false, bytes: 0 };
        let part = Part { session: self.id, request: id };
        match self.submit(&entry.chain, part, served) {
            Ok(Submitted::Parts { parts, bytes }) => {
                self.bytes += bytes;
                self.in_flight.insert(id, InFlight { parts, bytes, ..entry });
            }
            Ok(Submitted::Answered(data)) => {
                self.give_back(&entry, VIRTIO_BLK_S_OK as u8, &data, vring);
            }
            Err(refusal) => self.give_back(&entry, refusal.status(), &[], vring),
        }
    }

    /// Reads a request and gives it to the volume.
    fn submit<N: Nodes>(
        &self,
        chain: &Chain,
        part: Part,
        served: &mut Served<N, Part>,
    ) -> Result<Submitted, Refusal> {
        let memory = chain.memory();
        let mut reader = chain.clone().reader(memory).map_err(|_| Refusal::IoError)?;
        let writer = chain.clone().writer(memory).map_err(|_| Refusal::IoError)?;
        let data_len = writer.available_bytes().checked_sub(1).ok_or(Refusal::IoError)?;
        let readable_len = reader.available_bytes();
        let request = parse(&mut reader, readable_len, data_len)?;
        let writes = !matches!(request, Request::Read { .. } | Request::Flush | Request::GetId);
        if writes && self.read_only {
            return Err(Refusal::IoError);
        }
        let one = |bytes| Ok(Submitted::Parts { parts: 1, bytes });
        match request {
            Request::Read { offset, len } => {
                served.submit(part, Operation::Read { offset, len });
                one(len as usize)
            }
            Request::Write { offset, len } => {
                let mut data = vec![0; len];
                reader.read_exact(&mut data).map_err(|_| Refusal::IoError)?;
                served.submit(part, Operation::Write { offset, data: &data, durable: false });
                one(len)
            }
            Request::Flush => {
                served.submit(part, Operation::Flush);
                one(0)
            }
            Request::GetId => Ok(Submitted::Answered(self.name.to_vec())),
            Request::Discard { ranges } => {
                for (offset, len) in &ranges {
                    let (offset, len) = (*offset, *len);
                    served.submit(part, Operation::Discard { offset, len, durable: false });
                }
                Ok(Submitted::Parts { parts: ranges.len(), bytes: 0 })
            }
            Request::Zero { ranges, may_unmap } => {
                for (offset, len) in &ranges {
                    let (offset, len, allocate) = (*offset, *len, !may_unmap);
                    served.submit(part, Operation::Zero { offset, len, durable: false, allocate });
                }
                Ok(Submitted::Parts { parts: ranges.len(), bytes: 0 })
            }
        }
    }

    /// Takes an answer of the volume.
    pub(super) fn finish(&mut self, finished: &Finished<Part>) {
        let Finished { context, result } = finished;
        if context.session != self.id {
            return;
        }
        let Some(entry) = self.in_flight.get_mut(&context.request) else { return };
        entry.failed |= result.is_err();
        entry.parts = entry.parts.saturating_sub(1);
        if entry.parts > 0 {
            return;
        }
        let Some(entry) = self.in_flight.remove(&context.request) else { return };
        self.bytes = self.bytes.saturating_sub(entry.bytes);
        let vring = self.frontend.state().vrings.get(entry.queue).cloned();
        let Some(vring) = vring else { return };
        let (status, data) = match result {
            Ok(Answer::Bytes(data)) => (VIRTIO_BLK_S_OK, data.as_slice()),
            Ok(_) if !entry.failed => (VIRTIO_BLK_S_OK, &[][..]),
            Ok(_) | Err(_) => (VIRTIO_BLK_S_IOERR, &[][..]),
        };
        self.give_back(&entry, status as u8, data, &vring);
    }

    /// Writes data and status into a chain and puts it in the used ring.
    fn give_back(&mut self, entry: &InFlight, status: u8, data: &[u8], vring: &Vring) {
        let written = answer(&entry.chain, status, data);
        let used = vring.add_used(entry.chain.head_index(), written);
        if let Err(error) = used {
            tracing::warn!(%error, "a vhost-user queue is broken");
        }
        self.answered.insert(entry.queue);
        self.frontend.finished(entry.queue);
    }

    /// Interrupts the drivers that want it.
    pub(super) fn interrupt_all(&mut self) {
        let vrings = self.frontend.state().vrings.clone();
        self.interrupt(&vrings);
    }

    fn interrupt(&mut self, vrings: &[Vring]) {
        for queue in std::mem::take(&mut self.answered) {
            let Some(vring) = vrings.get(queue) else { continue };
            // In doubt, one interrupt too many.
            if vring.needs_notification().unwrap_or(true)
                && let Err(error) = vring.signal_used_queue()
            {
                tracing::warn!(%error, "a vhost-user driver can't be interrupted");
            }
        }
    }

    /// Whether requests wait for room that there is now.
    pub(super) fn is_due(&self) -> bool {
        !self.waiting.is_empty() && self.bytes <= BYTES_MAX
    }
}

/// What became of a request.
enum Submitted {
    /// The volume has it.
    Parts { parts: usize, bytes: usize },
    /// It is answered already.
    Answered(Vec<u8>),
}

/// Fills a chain's writable part. How many bytes were written, for the used ring.
fn answer(chain: &Chain, status: u8, data: &[u8]) -> u32 {
    let Ok(mut writer) = chain.clone().writer(chain.memory()) else { return 0 };
    let Some(data_len) = writer.available_bytes().checked_sub(1) else { return 0 };
    let Ok(mut last) = writer.split_at(data_len) else { return 0 };
    let data = data.get(..data.len().min(data_len)).unwrap_or_default();
    let wrote = writer.write_all(data).and_then(|()| last.write_all(&[status]));
    // The length counts from the chain's start on; behind a gap nothing may be counted.
    let whole = wrote.is_ok() && data.len() == data_len;
    if whole { u32::try_from(data_len + 1).unwrap_or(u32::MAX) } else { data.len() as u32 }
}
