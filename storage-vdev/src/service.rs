//! What a node does with a request: who may, which epoch may, and where it is kept.

mod grants;

pub use grants::{Grant, Grants, Rights, WriterKey};

/// A node's name for a request that waits for the next sync.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// What became of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Handled {
    /// It is answered.
    Done(Result<crate::node::Response, crate::node::NodeError>),
    /// It will be answered by the next sync.
    AfterSync(Ticket),
}
