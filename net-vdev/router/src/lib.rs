//! A node's router: neighbours, liveness, announcements and loop-free routes, without I/O.
//!
//! A [`Router`] is a state machine. Messages, time and randomness are arguments; what it has to say
//! is taken from it: [`Router::poll_transmit`], [`Router::poll_event`], [`Router::next_deadline`].
//! `docs/mesh-routing.md` has the messages byte by byte and the rules; the simulation in `sim/`
//! runs this code on thousands of nodes.
//!
//! * `liveness`: whether a neighbour can still be reached, and what the way costs.
//! * `link`: one neighbour and the reliable stream of updates to and from it.
//! * `destination`: one destination, and why there are no loops.
//! * `table`: all destinations, found in constant time.
//! * `updates`: what neighbours say and are told.
//! * `requests`: looking for what nobody told.
//! * `upkeep`: expiry, room for others, forgetting.
//! * [`message`]: the bytes.
#![forbid(unsafe_code)]

mod bucket;
mod config;
mod destination;
mod doubts;
mod hash;
mod link;
mod liveness;
pub mod message;
mod requests;
mod router;
mod table;
mod updates;
mod upkeep;
mod view;

pub use config::{Config, Counters, Event, LinkError, NextHop, OriginateError};
pub use doubts::Doubt;
pub use link::LinkId;
pub use liveness::State;
pub use router::Router;
pub use view::{NeighbourView, Occupancy, RouteView};
