//! Who may serve, and until when: arithmetic on CLOCK_BOOTTIME nanoseconds that the caller reads.
//!
//! Two clocks that never meet. The holder counts from when it *sent* the last change that was
//! committed; a watcher from when it *had* an answer that showed this change. The second lies
//! behind the first, so when one lease length has passed for the watcher, it has passed for the
//! holder. That holds if the two clocks run at the same speed to one part in [`DRIFT_DIVISOR`]: the
//! watcher waits that much longer. And the taker swaps against the very version it watched: a
//! renewal that gets in first makes the swap fail.

use super::VolumeRecord;

/// The watcher waits longer by the lease's length divided by this, for clocks of different speed.
const DRIFT_DIVISOR: u64 = 32;

/// The holder renews when this part of the lease is over.
const RENEW_DIVISOR: u64 = 3;

/// A holder's side of a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    length_ns: u64,
    since_ns: u64,
}

impl Lease {
    /// The lease that came with a take-over which was *sent* at `sent_ns` and has been committed.
    #[must_use]
    pub fn new(length_ns: u64, sent_ns: u64) -> Self {
        Self { length_ns, since_ns: sent_ns }
    }

    /// A change of the record that was sent at `sent_ns` has been committed. Any change that the
    /// holder makes renews the lease.
    pub fn renewed(&mut self, sent_ns: u64) {
        self.since_ns = self.since_ns.max(sent_ns);
    }

    /// Whether the holder may still answer a read or a FLUSH: to be asked right before the answer.
    #[must_use]
    pub fn holds(&self, now_ns: u64) -> bool {
        now_ns < self.ends_ns()
    }

    /// When it runs out, if nothing renews it.
    #[must_use]
    pub fn ends_ns(&self) -> u64 {
        self.since_ns.saturating_add(self.length_ns)
    }

    /// When the holder should renew: a third into the lease, so that two attempts may fail.
    #[must_use]
    pub fn renew_at_ns(&self) -> u64 {
        self.since_ns.saturating_add(self.length_ns / RENEW_DIVISOR)
    }
}

/// A taker's side: the record as it was first seen, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watch {
    version: u64,
    lease_ns: u64,
    seen_ns: u64,
    at_once: bool,
}

impl Watch {
    /// Starts to watch `record`, whose reading *ended* at `seen_ns`.
    ///
    /// A released volume can be had at once. So can one whose holder is `exclusive`: an id that the
    /// caller alone can have, because it has the lock that belongs to it (a host's own directories).
    #[must_use]
    pub fn new(record: &VolumeRecord, seen_ns: u64, exclusive: Option<[u8; 16]>) -> Self {
        Self {
            version: record.version,
            lease_ns: record.lease_ns,
            seen_ns,
            at_once: record.released || exclusive == Some(record.holder.id),
        }
    }

    /// The record was read again, and the reading ended at `seen_ns`. A change starts the wait
    /// anew; `true` then.
    pub fn observe(
        &mut self,
        record: &VolumeRecord,
        seen_ns: u64,
        exclusive: Option<[u8; 16]>,
    ) -> bool {
        let changed = record.version != self.version;
        if changed {
            *self = Self::new(record, seen_ns, exclusive);
        }
        changed
    }

    /// When the volume may be taken over with `expected_version` = [`Watch::version`].
    #[must_use]
    pub fn take_at_ns(&self) -> u64 {
        if self.at_once {
            return self.seen_ns;
        }
        let wait = self.lease_ns.saturating_add(self.lease_ns / DRIFT_DIVISOR);
        self.seen_ns.saturating_add(wait)
    }

    /// The version that was watched.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }
}
