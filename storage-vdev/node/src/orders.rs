//! Orders to a volume that a face serves, from other threads: a command's connection, a scraper.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use storage_vdev::engine::{Command, Output, RequestError, Status};

/// What a volume's thread is asked.
#[derive(Debug)]
pub(crate) enum Order {
    /// How the volume is, and the latencies of its requests as Prometheus text.
    Status(Sender<(Box<Status>, String)>),
    /// To carry a command out.
    Command(Command, Sender<Result<Output, RequestError>>),
}

/// Gives orders. The volume's nodes must wake its thread when the descriptor is signalled.
#[derive(Debug, Clone)]
pub struct Orders {
    sender: Sender<Order>,
    wake: Arc<OwnedFd>,
}

/// Where a face takes orders from.
#[derive(Debug)]
pub struct Inbox(pub(crate) Receiver<Order>);

/// The face has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the volume is served no longer")]
pub struct Gone;

impl Orders {
    /// Orders, and where they arrive. `wake` is an eventfd that the volume's `ready_fd` covers, as
    /// [`crate::thread_nodes::ThreadNodes::waker`] gives it.
    #[must_use]
    pub fn new(wake: Arc<OwnedFd>) -> (Self, Inbox) {
        let (sender, receiver) = channel();
        (Self { sender, wake }, Inbox(receiver))
    }

    /// How the volume is, with the latencies of its requests as Prometheus text.
    ///
    /// # Errors
    /// [`Gone`].
    pub fn status(&self) -> Result<(Box<Status>, String), Gone> {
        let (sender, receiver) = channel();
        self.send(Order::Status(sender))?;
        receiver.recv().map_err(|_| Gone)
    }

    /// Carries `command` out. `waiting` is called every `tick` until it is done, and ends the wait
    /// by an error of its own; the command goes on then.
    ///
    /// # Errors
    /// [`Gone`], or the caller's.
    pub fn command<E: From<Gone>>(
        &self,
        command: Command,
        tick: Duration,
        mut waiting: impl FnMut() -> Result<(), E>,
    ) -> Result<Result<Output, RequestError>, E> {
        let (sender, receiver) = channel();
        self.send(Order::Command(command, sender))?;
        loop {
            match receiver.recv_timeout(tick) {
                Ok(result) => return Ok(result),
                Err(std::sync::mpsc::RecvTimeoutError::Timeout) => waiting()?,
                Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => return Err(Gone.into()),
            }
        }
    }

    fn send(&self, order: Order) -> Result<(), Gone> {
        self.sender.send(order).map_err(|_| Gone)?;
        match rustix::io::write(&*self.wake, &1u64.to_ne_bytes()) {
            // Full: it is awake.
            Ok(_) | Err(rustix::io::Errno::AGAIN) => Ok(()),
            Err(_) => Err(Gone),
        }
    }
}
