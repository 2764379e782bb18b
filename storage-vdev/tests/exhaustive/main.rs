//! All sequences of a few operations on a small volume, a crash at every operation of every disk,
//! and the outcomes that the disks may then choose from.
//!
//! The volume is 2+1 over nodes of this process, as a VMM has them, with segments of two blocks. A
//! crash in the first operations of a sequence is the crash of a shorter one, so only crashes from
//! the start of the last operation on are tried. What was not synced is decided page by page: none
//! kept, all kept, each one dropped, each one kept alone.
//!
//! `HYPHA_OPERATIONS` (usually 3) is the longest sequence; `HYPHA_PAGES` (usually 3) the longest one
//! whose pages are decided one by one; beyond it, none or all.
#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod machine;
#[path = "../dst/oracle.rs"]
#[expect(dead_code, reason = "shared with the simulation, which uses all of it")]
mod oracle;
mod sequences;
