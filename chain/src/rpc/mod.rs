//! The `eth_*` methods of the embedded chain, for common EVM tools: JSON-RPC 2.0 over HTTP.

pub(crate) mod json;
pub mod server;

mod methods;
mod turns;

pub use methods::answer;
pub use turns::Turns;
