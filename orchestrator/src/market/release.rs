//! `hypha release`: a reservation ends, and what is left of its deposit comes back.

use hypha_chain::contracts::{Capacity, Reservations};
use hypha_chain::sol_types::SolEvent;
use hypha_chain::{B256, U256};
use serde_json::json;

use super::arguments::ReleaseArguments;
use super::reservations::{self, Held};
use crate::chain::amount::{instant, tokens};
use crate::chain::failure::Failure;
use crate::chain::reach::Reach;
use crate::chain::wallet::Wallet;
use crate::chain::{epochs, print};

/// So long after its end a reservation waits for proofs.
const PROOF_SECS: u64 = 48 * 3600;

pub(super) fn run(arguments: &ReleaseArguments) -> Result<i32, Failure> {
    let (chain, id) = (&arguments.send.chain, arguments.reservation);
    let reach = Reach::open(chain)?;
    let mut wallet = Wallet::open(&reach, &arguments.send)?;
    let contract = reach.suite.reservations;
    if let Some(held) = reservations::look(&reach, id)? {
        if held.it.user != wallet.address() {
            let user = held.it.user;
            let text = format!("reservation {id} is {user}'s: give that account's --key");
            return Err(Failure::Input(text));
        }
        if let Some(data) = &arguments.data {
            epochs::prove(&reach, &mut wallet, data, &[held.offer.terms.node])?;
        }
        if held.it.end == 0 {
            wallet.send("end the reservation", contract, &Reservations::closeCall { id })?;
        } else if can_be_paid_back(&reach, &held)? {
            wallet.send("take the rest back", contract, &Reservations::reclaimCall { id })?;
        }
    }
    match reservations::look(&reach, id)? {
        Some(held) => tell_waiting(&held, chain.json),
        None => tell_done(id, refunded(&reach, &wallet, id)?, chain.json),
    }
}

/// Whether all time of a reservation that has ended is proven, or no proof is waited for any more.
fn can_be_paid_back(reach: &Reach, held: &Held) -> Result<bool, Failure> {
    let end = u64::from(held.it.end);
    let node = held.offer.terms.node;
    let proven = reach.view(reach.suite.capacity, &Capacity::provenUntilCall(node))?;
    Ok(proven >= end || reach.head()?.timestamp >= end + PROOF_SECS)
}

/// What the account got back when the reservation went.
fn refunded(reach: &Reach, wallet: &Wallet<'_>, id: u64) -> Result<U256, Failure> {
    let topics = [
        vec![Reservations::Refunded::SIGNATURE_HASH],
        vec![B256::from(U256::from(id))],
        vec![wallet.address().into_word()],
    ];
    let logs = reach.logs(reach.suite.reservations, &topics)?;
    let event = logs.iter().find_map(|it| Reservations::Refunded::decode_log(&it.log).ok());
    let none = || {
        let account = wallet.address();
        Failure::NotFound(format!(
            "{account} has no reservation {id}; `hypha reservations` lists those that it has"
        ))
    };
    Ok(event.ok_or_else(none)?.data.amount)
}

fn tell_waiting(held: &Held, json: bool) -> Result<i32, Failure> {
    let (id, end) = (held.id, u64::from(held.it.end));
    let until = end + PROOF_SECS;
    if json {
        let object = json!({"reservation": id, "ended_at": end, "refunded": null,
            "waits_until": until});
        return print(&format!("{object}\n"));
    }
    let left = tokens(held.deposit());
    print(&format!(
        "reservation {id} has ended; what is left of {left} tokens comes back when its time is proven, or \
         after {}: run the command again then\n",
        instant(until)
    ))
}

fn tell_done(id: u64, refunded: U256, json: bool) -> Result<i32, Failure> {
    if json {
        let refunded = refunded.to_string();
        return print(&format!("{}\n", json!({"reservation": id, "refunded": refunded})));
    }
    print(&format!("reservation {id} is over; {} tokens came back\n", tokens(refunded)))
}
