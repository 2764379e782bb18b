//! What the vhost-user protocol asks of the device: features, configuration space, and to be told
//! of kicks. Its calls come on threads of `vhost-user-backend`; the volume is on another one, which
//! is woken for each kick and asked to finish before a queue stops.

use std::io;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost_user_backend::{VhostUserBackend, VringMutex};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ,
    VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{
    EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier,
};

use super::request::{ZERO_SECTORS_MAX, ZERO_SEGMENTS_MAX};
use crate::served::SECTOR_BYTES;
use crate::wait::Wake;

/// Guest memory, which the front-end may exchange at any time.
pub(super) type Memory = GuestMemoryAtomic<GuestMemoryMmap>;
pub(super) type Vring = VringMutex<Memory>;

/// The most queues. One thread serves them all: more than one spares a guest of several CPUs the
/// lock around its queue.
pub(super) const QUEUES_MAX: usize = 8;

const QUEUE_SIZE: usize = 256;
/// Header and status take two descriptors of a chain.
const SEGMENTS_MAX: u32 = QUEUE_SIZE as u32 - 2;
const CONFIG_BYTES: usize = 60;
/// The volume's block of 4096 bytes is 2^3 sectors.
const BLOCK_EXPONENT: u8 = 3;

/// How long a queue may take to finish what it has accepted before it is stopped anyway: the
/// requests are then lost to the guest, as in a crash.
const STOP_LIMIT: Duration = Duration::from_secs(60);

/// `VHOST_USER_F_PROTOCOL_FEATURES`: a bit of the virtio features that only the protocol uses.
const PROTOCOL_FEATURES: u64 = 1 << 30;

/// The device as the front-end sees it.
#[derive(Debug)]
pub(super) struct Frontend {
    size_bytes: u64,
    read_only: bool,
    wake: Wake,
    state: Mutex<State>,
    idle: Condvar,
}

#[derive(Default)]
pub(super) struct State {
    /// The queues, once one of them was kicked.
    pub(super) vrings: Vec<Vring>,
    /// One bit for each queue that was kicked since the device looked.
    pub(super) kicked: u64,
    /// Whether the front-end is gone.
    pub(super) ended: bool,
    /// How many requests each queue has under way.
    pub(super) outstanding: [usize; QUEUES_MAX],
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { kicked, ended, outstanding, .. } = self;
        write!(f, "State {{ kicked: {kicked:#b}, ended: {ended}, {outstanding:?}, .. }}")
    }
}

impl Frontend {
    pub(super) fn new(size_bytes: u64, read_only: bool, wake: Wake) -> Self {
        Self { size_bytes, read_only, wake, state: Mutex::default(), idle: Condvar::new() }
    }

    /// The shared state. Nobody panics while holding it; if somebody did, it is still whole.
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that the front-end is gone.
    pub(super) fn end(&self) {
        self.state().ended = true;
        if let Err(error) = self.wake.wake() {
            tracing::error!(%error, "the end of a vhost-user front-end can't be told");
        }
    }

    /// Notes that a request of a queue is under way.
    pub(super) fn began(&self, queue: usize) {
        if let Some(count) = self.state().outstanding.get_mut(queue) {
            *count += 1;
        }
    }

    /// Notes that a request of a queue is finished.
    pub(super) fn finished(&self, queue: usize) {
        if let Some(count) = self.state().outstanding.get_mut(queue) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.idle.notify_all();
            }
        }
    }

    fn config(&self) -> [u8; CONFIG_BYTES] {
        let mut config = [0; CONFIG_BYTES];
        let mut put = |at: usize, bytes: &[u8]| {
            config.iter_mut().skip(at).zip(bytes).for_each(|(to, from)| *to = *from);
        };
        put(0, &(self.size_bytes / SECTOR_BYTES).to_le_bytes());
        put(12, &SEGMENTS_MAX.to_le_bytes());
        put(20, &(SECTOR_BYTES as u32).to_le_bytes());
        // Topology: physical block, its alignment, the least and the best size of a request.
        put(24, &[BLOCK_EXPONENT, 0]);
        put(26, &(1u16 << BLOCK_EXPONENT).to_le_bytes());
        put(28, &0u32.to_le_bytes());
        put(34, &(QUEUES_MAX as u16).to_le_bytes());
        put(36, &ZERO_SECTORS_MAX.to_le_bytes());
        put(40, &ZERO_SEGMENTS_MAX.to_le_bytes());
        put(44, &(1u32 << BLOCK_EXPONENT).to_le_bytes());
        put(48, &ZERO_SECTORS_MAX.to_le_bytes());
        put(52, &ZERO_SEGMENTS_MAX.to_le_bytes());
        put(56, &[1]);
        config
    }
}

impl VhostUserBackend for Frontend {
    type Bitmap = ();
    type Vring = Vring;

    fn num_queues(&self) -> usize {
        QUEUES_MAX
    }

    fn max_queue_size(&self) -> usize {
        QUEUE_SIZE
    }

    fn features(&self) -> u64 {
        let features = [
            VIRTIO_F_VERSION_1,
            VIRTIO_RING_F_EVENT_IDX,
            VIRTIO_RING_F_INDIRECT_DESC,
            VIRTIO_BLK_F_SEG_MAX,
            VIRTIO_BLK_F_BLK_SIZE,
            VIRTIO_BLK_F_TOPOLOGY,
            VIRTIO_BLK_F_FLUSH,
            VIRTIO_BLK_F_MQ,
        ];
        let writable = [VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES];
        let more: &[u32] = if self.read_only { &[VIRTIO_BLK_F_RO] } else { &writable };
        features.iter().chain(more).fold(PROTOCOL_FEATURES, |bits, feature| bits | 1 << feature)
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
    }

    fn set_event_idx(&self, _enabled: bool) {
        // The queues know it.
    }

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let (offset, size) = (offset as usize, size as usize);
        let config = self.config();
        let range = offset..offset.saturating_add(size);
        config.get(range).unwrap_or_default().to_vec()
    }

    fn update_memory(&self, _memory: Memory) -> io::Result<()> {
        // The device holds the very same memory, and looks at it anew for each chain.
        Ok(())
    }

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        match new_event_consumer_and_notifier(EventFlag::NONBLOCK | EventFlag::CLOEXEC) {
            Ok(pair) => Some(pair),
            Err(error) => {
                tracing::warn!(%error, "a thread for a vhost-user device can't be ended later");
                None
            }
        }
    }

    fn stop_vring(&self, queue: u32) -> io::Result<()> {
        let index = queue as usize;
        // The queue isn't ready any more, so nothing is taken from it: see `Session::take`.
        let (state, waited) = self
            .idle
            .wait_timeout_while(self.state(), STOP_LIMIT, |state| {
                state.outstanding.get(index).is_some_and(|count| *count > 0)
            })
            .unwrap_or_else(PoisonError::into_inner);
        drop(state);
        if waited.timed_out() {
            tracing::warn!(queue, "a queue was stopped with requests under way");
        }
        Ok(())
    }

    fn handle_event(
        &self,
        event: u16,
        _events: EventSet,
        vrings: &[Vring],
        _thread: usize,
    ) -> io::Result<()> {
        let mut state = self.state();
        if state.vrings.is_empty() {
            state.vrings = vrings.to_vec();
        }
        state.kicked |= 1u64.checked_shl(event.into()).unwrap_or(0);
        drop(state);
        self.wake.wake()
    }
}
