//! What a remote node answers, and what contracts say when they refuse.

use hypha_chain::contracts::explain;
use hypha_chain::remote::{read_block, read_head, read_log, read_receipt};
use serde_json::Value;

/// The input is the result of an answer, or what a contract returned. True if it can be read.
///
/// # Panics
/// A promise is broken.
pub fn check(data: &[u8]) -> bool {
    let said = explain(data);
    let Ok(value) = serde_json::from_slice::<Value>(data) else {
        return !said.starts_with("0x");
    };
    let receipt = read_receipt(&value);
    if let Some(receipt) = &receipt {
        assert_eq!(receipt.logs.len(), value["logs"].as_array().map_or(0, Vec::len));
    }
    receipt.is_some()
        || read_head(&value).is_some()
        || read_block(&value).is_some()
        || read_log(&value).is_some()
}
