//! An NBD server: volumes for every program that speaks the network block device protocol.
//!
//! ```text
//! Listener ── unix socket 0600, TLS over TCP, plain TCP on loopback
//!    │
//! Server ──── one thread: waits for all sockets and volumes, owns the volumes
//!    │
//! Negotiation, Transmission ── the protocol, without I/O
//! ```
//!
//! Fixed newstyle only, with structured replies, `base:allocation`, FUA, TRIM, WRITE_ZEROES, CACHE
//! and multi-conn. `docs/faces.md` shows how common tools use it.

mod carrier;
mod connection;
mod export;
mod listen;
mod negotiation;
mod output;
mod server;
mod tls;
mod transmission;
mod wire;

pub use export::{Export, NAME_BYTES_MAX};
pub use listen::{ListenError, Listener};
pub use negotiation::{Agreed, Negotiation, Next, TlsPolicy, Violation};
pub use negotiation::{OPTION_BYTES_MAX, OPTION_SKIPPED_MAX, OPTIONS_MAX};
pub use output::Output;
pub use server::{ServeError, Server};
pub use tls::{TlsError, tls_config};
pub use transmission::{Parsed, Ticket, Transmission};
