//! Snapshots, roll-back and growth.
//!
//! A snapshot is a root that the superblock keeps: making one costs a checkpoint, whatever the
//! volume's size. What only it needs is not deleted ([`super::free`]).

use std::rc::Rc;

use super::request::{Output, RequestError, SnapshotInfo};
use super::state::{Engine, State};
use super::superblock::Snapshot;
use crate::extent_map::{BLOCKS_MAX, Map, MapError};
use crate::geometry::BLOCK_BYTES;

/// The most snapshots of a volume.
const SNAPSHOTS_MAX: usize = 1024;
/// The most bytes of a snapshot's name.
const NAME_BYTES_MAX: usize = 64;

impl State {
    fn snapshot(&self, name: &str) -> Result<&Snapshot, RequestError> {
        let mut all = self.superblock.snapshots.iter();
        let found = all.find(|snapshot| snapshot.name == name);
        found.ok_or_else(|| RequestError::NoSnapshot(name.to_owned()))
    }

    pub(super) fn list_snapshots(&self) -> Output {
        let info = |snapshot: &Snapshot| SnapshotInfo {
            name: snapshot.name.clone(),
            size_bytes: snapshot.size_bytes,
            unix_time: snapshot.unix_time,
            has_clone: snapshot.has_clone,
        };
        Output::Snapshots(self.superblock.snapshots.iter().map(info).collect())
    }

    fn check_new(&self, name: &str) -> Result<(), RequestError> {
        let plain = !name.is_empty()
            && name.len() <= NAME_BYTES_MAX
            && !name.chars().any(|c| c.is_control() || c == '/' || c == '@');
        if !plain {
            return Err(RequestError::Refused(
                "a snapshot's name has 1 to 64 bytes, none of them '/', '@' or a control character",
            ));
        }
        if self.snapshot(name).is_ok() {
            return Err(RequestError::SnapshotExists(name.to_owned()));
        }
        if self.superblock.snapshots.len() >= SNAPSHOTS_MAX {
            return Err(RequestError::Refused("a volume has at most 1024 snapshots"));
        }
        Ok(())
    }
}

impl Engine {
    /// Keeps the volume as it is: all writes that were completed by now.
    pub(super) async fn make_snapshot(
        self: &Rc<Self>,
        name: String,
        unix_time: u64,
    ) -> Result<(), RequestError> {
        self.with(|state| state.check_new(&name))?;
        self.seal_all().await?;
        self.checkpoint_and_free(|state, next| {
            next.snapshots.push(Snapshot {
                name,
                root: next.root,
                size_bytes: state.size_bytes,
                // Its map's pages lie behind the segments that are in the map.
                frontier: state.log.last_sealed(),
                unix_time,
                has_clone: false,
            });
        })
        .await
    }

    /// Forgets a snapshot, and frees what only it needed.
    pub(super) async fn delete_snapshot(self: &Rc<Self>, name: &str) -> Result<(), RequestError> {
        if self.with(|state| state.snapshot(name).map(|snapshot| snapshot.has_clone))? {
            return Err(RequestError::SnapshotInUse(name.to_owned()));
        }
        self.checkpoint_and_free(|_, next| next.snapshots.retain(|one| one.name != name)).await?;
        self.with(|state| state.gc_rests_until = 0);
        self.events.upkeep.announce(&self.runtime);
        Ok(())
    }

    /// Says whether a clone stands on a snapshot.
    pub(super) async fn pin_snapshot(
        self: &Rc<Self>,
        name: &str,
        has_clone: bool,
    ) -> Result<(), RequestError> {
        self.with(|state| state.snapshot(name).map(|_| ()))?;
        self.update_superblock(|_, next| {
            let snapshot = next.snapshots.iter_mut().find(|one| one.name == name);
            snapshot.into_iter().for_each(|snapshot| snapshot.has_clone = has_clone);
        })
        .await
    }

    /// Makes the volume what it was. Writes that are submitted meanwhile wait and come after.
    pub(super) async fn roll_back(self: &Rc<Self>, name: &str) -> Result<(), RequestError> {
        let snapshot = self.with(|state| state.snapshot(name).cloned())?;
        self.with(|state| state.held = true);
        let result = self.roll_back_held(&snapshot).await;
        self.with(|state| state.held = false);
        self.events.queue.announce(&self.runtime);
        result
    }

    async fn roll_back_held(self: &Rc<Self>, snapshot: &Snapshot) -> Result<(), RequestError> {
        self.first_is_done().await?;
        self.seal_all().await?;
        let mut map = self.with(|state| {
            let blocks = state.blocks();
            Map::from_root(&snapshot.root, blocks, state.limits.map_bytes)
                .map_err(|_| RequestError::Refused("the snapshot is larger than the volume"))
        })?;
        loop {
            match map.load_usage() {
                Ok(()) => break,
                Err(MapError::Missing(pages)) => {
                    for (address, location) in pages {
                        let page = self.read_page(address, location).await?;
                        let inserted = map.insert_page(address, location, &page);
                        inserted.map_err(|_| RequestError::Refused("the snapshot is damaged"))?;
                    }
                }
                Err(_) => return Err(RequestError::Refused("the snapshot is damaged")),
            }
        }
        // Nothing may come between the other map and the superblock that says so: what a crash
        // finds behind the old superblock belongs to the old map.
        let mut next = Some(map);
        let stored = self.checkpoint_from(move |state| {
            if let Some(mut map) = next.take()
                && map.roll_back(&state.map).is_ok()
            {
                state.map = map;
            }
        });
        match stored.await {
            Ok(dead) => self.free(dead).await,
            Err(error) => {
                // The map in memory is not the one that an opening finds.
                self.stop(error.clone());
                Err(error)
            }
        }
    }

    /// Everything that was taken is in committed segments.
    pub(super) async fn seal_all(self: &Rc<Self>) -> Result<(), RequestError> {
        self.close_batch();
        let last_write = self.with(|state| state.overlay.last_write());
        self.written_through(last_write).await
    }

    /// Waits until the request that is being carried out is done; the next one waits.
    async fn first_is_done(&self) -> Result<(), RequestError> {
        let done = || match self.check_running() {
            Err(error) => Some(Err(error)),
            Ok(()) => self.with(|state| !state.queue_busy).then_some(Ok(())),
        };
        self.events.queue.until(&self.runtime, done).await
    }

    /// Makes the volume larger.
    pub(super) async fn grow(self: &Rc<Self>, size_bytes: u64) -> Result<(), RequestError> {
        let block = BLOCK_BYTES as u64;
        let blocks = size_bytes / block;
        if !size_bytes.is_multiple_of(block) || blocks > BLOCKS_MAX {
            return Err(RequestError::Refused("the size must be a multiple of 4096"));
        }
        if size_bytes < self.size_bytes() {
            return Err(RequestError::Refused("a volume can't be made smaller"));
        }
        // Durable first: a write beyond the old end must not be found by an opening that does not
        // know of the new one.
        self.update_superblock(|_, next| next.size_bytes = size_bytes).await?;
        self.with(|state| {
            state.size_bytes = size_bytes;
            state.map.grow(blocks)
        })
        .map_err(|_| RequestError::Refused("the volume can't be so large"))
    }
}
