//! What lies outside the mesh: NAT64, DNS64, and names. IP packets of members go in, sockets of the
//! host come out; it takes neither root nor a TUN.
//!
//! * [`address`]: which IPv4 addresses members reach, and how they are written in IPv6.
//! * [`nat`]: from a member's packets to sockets and back.
//! * [`dns`]: a resolver with DNS64, and [`names`] of members.
//! * [`Egress`]: all of it in one.
//! * [`sni`]: which server a TLS client means.
//! * [`sockets`]: the narrow seam to the host's sockets; [`host`] is the kernel's side of it.
//! * [`limits`]: what each member may take; [`counters`]: what was done and dropped.
//!
//! Everything of a member is hostile: checked, bounded and counted. There is no clock in here and no
//! randomness but the seed that is given. `docs/mesh-egress.md` says what maps to what.
#![forbid(unsafe_code)]

pub mod address;
pub mod counters;
pub mod dns;
mod egress;
pub mod host;
pub mod limits;
pub mod names;
pub mod nat;
mod packet;
pub mod sni;
pub mod sockets;
mod tcp;

pub use egress::{Egress, EgressConfig};
pub use packet::udp as udp_packet;
