//! `hypha credit`: what a user gets of a node's stake for an hour without service.

use hypha_chain::contracts::{Capacity, Reservations};
use hypha_chain::sol_types::SolEvent;
use hypha_chain::{B256, U256};
use serde_json::json;

use super::arguments::CreditArguments;
use super::reservations;
use crate::chain::amount::{instant, tokens};
use crate::chain::failure::Failure;
use crate::chain::reach::Reach;
use crate::chain::wallet::Wallet;
use crate::chain::{epochs, print};

/// Shows the chain the epoch in which the node was silent; nothing if it was shown before.
pub(super) fn run(arguments: &CreditArguments) -> Result<i32, Failure> {
    let (chain, id) = (&arguments.send.chain, arguments.reservation);
    let data = epochs::read(&arguments.data)?;
    let reach = Reach::open(chain)?;
    let mut wallet = Wallet::open(&reach, &arguments.send)?;
    let contract = reach.suite.reservations;
    let credited = match credited(&reach, id, data.epoch)? {
        Some(credited) => credited,
        None => {
            let gone =
                || Failure::NotFound(format!("there is no reservation {id}, or it is paid back"));
            let held = reservations::look(&reach, id)?.ok_or_else(gone)?;
            let posted = epochs::posted(&reach, &data, &arguments.data)?;
            let proof = epochs::shown(&data, &posted, held.offer.terms.node)?;
            let call = Reservations::slaCreditCall { id, proof };
            let receipt = wallet.send("take the credit", contract, &call)?;
            let event =
                receipt.logs.iter().find_map(|log| Reservations::Credited::decode_log(log).ok());
            let silent = || Failure::NotNow("the chain does not say what was credited".to_owned());
            event.ok_or_else(silent)?.data.toUser
        }
    };
    let ended = reach.view(reach.suite.capacity, &Capacity::epochEndCall { epoch: data.epoch })?;
    if chain.json {
        let object = json!({"reservation": id, "epoch": data.epoch,
            "credited": credited.to_string()});
        return print(&format!("{object}\n"));
    }
    let (credited, until) = (tokens(credited), instant(ended.saturating_to()));
    print(&format!("reservation {id}: {credited} tokens for the hour until {until}\n"))
}

/// What was credited for an epoch before.
fn credited(reach: &Reach, id: u64, epoch: u32) -> Result<Option<U256>, Failure> {
    let topics = [vec![Reservations::Credited::SIGNATURE_HASH], vec![B256::from(U256::from(id))]];
    let logs = reach.logs(reach.suite.reservations, &topics)?;
    let events = logs.iter().filter_map(|it| Reservations::Credited::decode_log(&it.log).ok());
    Ok(events.map(|event| event.data).find(|it| it.epoch == epoch).map(|it| it.toUser))
}
