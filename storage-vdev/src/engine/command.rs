//! Commands, one after the other; and closing.

use std::rc::Rc;

use super::request::{Command, Output, RequestError, RequestId};
use super::state::Engine;
use crate::register::Edit;

/// Carries out commands, for ever.
pub(super) async fn commander(engine: Rc<Engine>) {
    loop {
        let next = || match engine.check_running() {
            Err(_) => Some(None),
            Ok(()) => engine.with(|state| state.commands.pop_front()).map(Some),
        };
        let next = engine.events.upkeep.until(&engine.runtime, next).await;
        let Some((id, command)) = next else { return };
        let result = engine.command(command).await;
        engine.complete(id, result);
    }
}

impl Engine {
    pub(super) fn submit_command(&self, id: RequestId, command: Command) {
        if let Err(error) = self.check(0, 0) {
            return self.complete(id, Err(error));
        }
        self.with(|state| state.commands.push_back((id, command)));
        self.events.upkeep.announce(&self.runtime);
    }

    async fn command(self: &Rc<Self>, command: Command) -> Result<Output, RequestError> {
        let done = |()| Output::Done;
        match command {
            Command::Checkpoint => self.checkpoint_and_free(|_, _| {}).await.map(done),
            Command::Collect => self.collect_all().await.map(done),
            Command::Snapshot { name, unix_time } => {
                self.make_snapshot(name, unix_time).await.map(done)
            }
            Command::DeleteSnapshot { name } => self.delete_snapshot(&name).await.map(done),
            Command::PinSnapshot { name, has_clone } => {
                self.pin_snapshot(&name, has_clone).await.map(done)
            }
            Command::Rollback { name } => self.roll_back(&name).await.map(done),
            Command::ListSnapshots => Ok(self.with(|state| state.list_snapshots())),
            Command::Grow { size_bytes } => self.grow(size_bytes).await.map(done),
            Command::Repair => self.repair_now().await,
            Command::Scrub => Ok(Output::Report(self.scrub().await?)),
            Command::Replace { slot, node } => self.replace(slot, node).await.map(done),
        }
    }

    pub(super) fn submit_close(self: &Rc<Self>, id: RequestId) {
        if let Err(error) = self.check(0, 0) {
            return self.complete(id, Err(error));
        }
        self.with(|state| (state.closing, state.closer) = (true, Some(id)));
        let engine = Rc::clone(self);
        self.runtime.spawn(async move {
            let result = engine.close().await;
            engine.complete(id, result.map(|()| Output::Done));
            engine.stop(RequestError::Closed);
        });
    }

    /// Everything into segments, the map into a checkpoint, and the volume given up.
    async fn close(self: &Rc<Self>) -> Result<(), RequestError> {
        self.queue_is_empty().await?;
        self.close_batch();
        let last_write = self.with(|state| state.overlay.last_write());
        self.written_through(last_write).await?;
        self.settle_flushes();
        self.checkpoint(|state, next| {
            next.closed = state.log.frontier_write == state.overlay.last_write();
        })
        .await?;
        // From here on nothing is acknowledged: the release may count though its answer is lost, and
        // the next holder need not wait for us.
        self.with(|state| state.released = true);
        let epoch = self.with(|state| state.epoch());
        let release = Edit::Release { epoch, superblock: None };
        self.change_register(release).await
    }

    async fn queue_is_empty(&self) -> Result<(), RequestError> {
        let empty = || match self.check_running() {
            Err(error) => Some(Err(error)),
            Ok(()) => self.with(|state| state.queue.is_empty()).then_some(Ok(())),
        };
        self.events.queue.until(&self.runtime, empty).await
    }
}
