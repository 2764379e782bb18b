//! What a node does with a request: who may, which epoch may, and where it is kept.

mod grants;

pub use grants::{Grant, Grants, Rights, WriterKey};
