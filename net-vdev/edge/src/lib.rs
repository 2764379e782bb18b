//! A link to a mycelium 0.7 node over TCP, for those who ask for it.
//!
//! mycelium's packets have no forward secrecy and no protection against replay, and its routes are
//! signed by nobody. So nothing here touches the native mesh: the edge has a key of its own
//! ([`EdgeKey`], which a node's key is not), announces that key's /64 and nothing else, forwards
//! nothing, and what it delivers is [`link::External`]: a packet that the firewall has to treat as
//! one of a stranger. `docs/mesh-mycelium.md` says what is spoken and what isn't promised.
//!
//! * [`wire`]: the bytes on the TCP connection.
//! * [`packet`]: the encrypted body of a data packet.
//! * [`link`]: one connection to one mycelium node, without sockets, clock or randomness.
#![forbid(unsafe_code)]

pub mod link;
pub mod packet;
pub mod wire;

pub use link::{Counters, Event, External, Link, LinkError, SendError};
pub use packet::{EdgeKey, OpenError, SealError, SharedSecret};
