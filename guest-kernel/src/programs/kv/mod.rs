//! `kv`: a key-value store over HTTP whose answers are durable.

mod commit;
pub mod crc32c;
pub mod format;
pub mod http;
pub mod index;
pub mod recover;
pub mod server;
pub mod store;
