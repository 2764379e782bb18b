//! A node's ways out, with a scripted network instead of the host's.
#![expect(clippy::unwrap_used, reason = "what fails in a test ends it")]

mod connections;
mod datagrams;
mod guest;
mod hostile;
mod names;
mod records;
mod world;
