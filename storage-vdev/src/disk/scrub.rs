//! Reading everything again before somebody needs it.

use std::ops::Bound;

use super::slot::{SLOT_BYTES, Slot};
use super::{DiskStore, Entry, long, short, slot_at};
use crate::files::NodeFile;
use crate::node::{NodeError, ObjectKey};

/// What a step of a scrub found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scrubbed {
    /// Objects that were read.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Those whose bytes can't be read or don't fit their checksum. Whoever can rebuild them puts
    /// them again; the damaged bytes give way.
    pub damaged: Vec<ObjectKey>,
    /// Slots that no longer said what they should, and were written again.
    pub mended_slots: u64,
    /// Where the next step goes on; `None` when all has been read.
    pub next: Option<ObjectKey>,
}

impl<F: NodeFile> DiskStore<F> {
    /// Reads and checks the objects behind `after` (from the first one if `None`) in the order of
    /// their keys, until about `bytes` of them have been read. What it mends is durable after the
    /// next sync.
    ///
    /// # Errors
    /// [`NodeError::Failed`] if the store can't be written any more.
    pub fn scrub(&mut self, after: Option<ObjectKey>, bytes: u64) -> Result<Scrubbed, NodeError> {
        let mut done = Scrubbed { next: after, ..Scrubbed::default() };
        while let Some((key, entry)) = self.next_behind(done.next.as_ref()) {
            if done.bytes >= bytes {
                return Ok(done);
            }
            let len = entry.place.len;
            done.objects += 1;
            done.bytes += u64::from(len).max(1);
            done.next = Some(key);
            match self.read(&entry.place, 0, len) {
                Ok(content) if crc32c::crc32c(&content) == entry.place.crc => {}
                Ok(_) | Err(_) => done.damaged.push(key),
            }
            done.mended_slots += u64::from(self.mend_slot(&key, &entry)?);
        }
        done.next = None;
        Ok(done)
    }

    fn next_behind(&self, after: Option<&ObjectKey>) -> Option<(ObjectKey, Entry)> {
        let rest = match after {
            None => Bound::Unbounded,
            Some(after) => {
                let objects = self.volumes.get(&after.volume);
                let behind = (Bound::Excluded(short(after)), Bound::Unbounded);
                if let Some((key, entry)) =
                    objects.and_then(|objects| objects.entries.range(behind).next())
                {
                    return Some((long(&after.volume, key), *entry));
                }
                Bound::Excluded(after.volume)
            }
        };
        let (volume, objects) = self.volumes.range((rest, Bound::Unbounded)).next()?;
        let (key, entry) = objects.entries.first_key_value()?;
        Some((long(volume, key), *entry))
    }

    /// Writes an object's slot again if the disk has another one.
    fn mend_slot(&mut self, key: &ObjectKey, entry: &Entry) -> Result<bool, NodeError> {
        let mut bytes = [0; SLOT_BYTES];
        let on_disk = match self.file.read_at(slot_at(entry.slot), &mut bytes) {
            Ok(()) => Slot::decode(&bytes, &self.node, entry.slot),
            Err(_) => Slot::Damaged,
        };
        match on_disk {
            Slot::Object { key: named, place, .. } if named == *key && place == entry.place => {
                return Ok(false);
            }
            _ => {}
        }
        self.usable()?;
        let slot = Slot::Object { key: *key, place: entry.place, batch: self.batch };
        self.write_slot(entry.slot, &slot)?;
        self.mended = true;
        Ok(true)
    }
}
