//! Who asks whom, when, and what comes of all the answers.
//!
//! ```text
//!   participant   one per node: pulses, answers, draws, verdicts, gossip; messages in, actions out
//!      ├── schedule    which rounds of the beacon are pulses
//!      ├── roster      who takes part in an epoch      witness   who watches whom
//!      ├── bandwidth   bursts of several challengers   message   what is sent
//!      └── gossip      pools that come to hold the same statements   bucket   what a peer may cost
//!   ────────────────────────────────────────────────────────────────────────────────────────────
//!   ledger   from statements to an epoch's leaves      epoch     the leaves, their trees and calls
//!   audit    whether a posted epoch is that, and who votes on it
//!   judge    all posted epochs, one after the other: which the ledger goes on from
//!   ────────────────────────────────────────────────────────────────────────────────────────────
//!   pool     the statements of an epoch or a day       statement   verdicts, signed
//! ```
//!
//! As in the whole crate, time and randomness are arguments. All that draws and aggregates is integer
//! arithmetic over what is public, so that everyone computes it alike.

pub mod audit;
pub mod bandwidth;
pub mod bucket;
pub mod epoch;
pub mod gossip;
pub mod judge;
pub mod ledger;
pub mod message;
pub mod participant;
pub mod pool;
pub mod roster;
pub mod schedule;
pub mod statement;
pub mod witness;
