//! Questions to the embedded chain over JSON-RPC, from anybody.

use std::sync::Mutex;

use hypha_chain::embedded::{Chain, Parameters};
use hypha_chain::rpc::{Turns, answer};

/// The input is the body of a request. True if it is answered with a result.
///
/// # Panics
/// A promise is broken.
pub fn check(data: &[u8]) -> bool {
    let parameters =
        Parameters { chain_id: 5, timestamp: 1000, cadence_secs: 1, balances: Vec::new() };
    let Ok(mut chain) = Chain::in_memory(parameters, [1; 32]) else { panic!("no chain") };
    let Ok(Some(made)) = chain.tick(1001) else { panic!("no block") };
    let chain = Mutex::new(chain);
    let Some(answer) = answer(&chain, &Turns::default(), data) else { return false };
    let head = chain.lock().map(|chain| chain.head().clone());
    assert!(head.is_ok_and(|head| head == made), "a question has made a block");
    let answers = answer.as_array().cloned().unwrap_or_else(|| vec![answer]);
    for answer in &answers {
        let (result, error) = (answer.get("result"), answer.get("error"));
        assert!(result.is_some() != error.is_some(), "neither a result nor an error: {answer}");
    }
    answers.iter().any(|answer| answer.get("result").is_some())
}
