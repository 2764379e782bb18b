//! `hypha node offer`: what a node offers, and for how much.

use hypha_chain::contracts::Reservations;
use hypha_chain::sol_types::SolEvent;
use serde_json::json;

use super::arguments::OfferArguments;
use super::status::caps_text;
use crate::chain::amount::hourly;
use crate::chain::failure::Failure;
use crate::chain::print;
use crate::chain::reach::Reach;
use crate::chain::wallet::Wallet;
use crate::market::offers::{self, Offer};

/// Makes an offer, if the same one does not stand already; or withdraws one, if it stands.
pub(super) fn run(arguments: &OfferArguments) -> Result<i32, Failure> {
    let chain = &arguments.send.chain;
    let reach = Reach::open(chain)?;
    let mut wallet = Wallet::open(&reach, &arguments.send)?;
    let contract = reach.suite.reservations;
    if let Some(id) = arguments.end {
        let offer = offers::one(&reach, id)?;
        if offer.terms.open {
            let call = Reservations::endOfferCall { id };
            wallet.send("withdraw the offer", contract, &call)?;
        }
        return tell(
            &Offer { id, terms: Reservations::Offer { open: false, ..offer.terms } },
            chain.json,
        );
    }
    let terms = arguments.terms()?;
    let standing = offers::of_node(&reach, terms.node)?;
    if let Some(same) = standing.into_iter().find(|offer| offer.terms == terms) {
        return tell(&same, chain.json);
    }
    offers::check_claims(&reach, &terms)?;
    let call = Reservations::offerCall { terms: terms.clone() };
    let receipt = wallet.send("offer", contract, &call)?;
    let made = receipt.logs.iter().find_map(|log| Reservations::Offered::decode_log(log).ok());
    let none = || Failure::NotNow("the chain does not say which offer was made".to_owned());
    let id = made.ok_or_else(none)?.data.offer;
    tell(&Offer { id, terms }, chain.json)
}

fn tell(offer: &Offer, json: bool) -> Result<i32, Failure> {
    let (id, terms) = (offer.id, &offer.terms);
    if json {
        let object = json!({"offer": id, "node": terms.node, "open": terms.open,
            "rate": terms.rate.to_string(), "storage_rate": terms.storageRate.to_string()});
        return print(&format!("{object}\n"));
    }
    if !terms.open {
        return print(&format!("offer {id} of node {} is withdrawn\n", terms.node));
    }
    let caps = &terms.caps;
    let caps = caps_text((caps.cores, caps.memMiB, caps.ssdMiB, caps.hddMiB, caps.mbps));
    let price = hourly(terms.rate.to());
    print(&format!("offer {id} of node {}: {caps} for {price} tokens an hour\n", terms.node))
}
