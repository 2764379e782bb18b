//! `hypha volume` and `hypha storage` as their users see them: the command itself, real processes,
//! real sockets.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that panics has failed, which is what it is for"
)]

mod clones;
mod lifecycle;
mod nbd;
mod place;
mod refusals;
mod servers;
