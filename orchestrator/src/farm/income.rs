//! `hypha farm withdraw`: what reservations owe, settled and paid out.

use std::collections::BTreeSet;

use hypha_chain::U256;
use hypha_chain::contracts::{Registry, Reservations};
use hypha_chain::sol_types::SolEvent;
use serde_json::json;

use super::arguments::WithdrawArguments;
use super::{nodes, owner, which};
use crate::chain::amount::tokens;
use crate::chain::failure::Failure;
use crate::chain::reach::Reach;
use crate::chain::wallet::Wallet;
use crate::chain::{epochs, print};
use crate::market::offers;
use crate::market::reservations::{self, Held, Stage};

/// How many reservations one transaction settles: some 45,000 gas each.
const SETTLED_AT_ONCE: usize = 64;

/// Settles what is due, ends what has run out, and pays out; each is looked for first, so that what an
/// earlier run has done is not done again.
pub(super) fn withdraw(arguments: &WithdrawArguments) -> Result<i32, Failure> {
    let chain = &arguments.send.chain;
    let reach = Reach::open(chain)?;
    let mut wallet = Wallet::open(&reach, &arguments.send)?;
    let farm = match arguments.farm {
        Some(farm) => owner(&reach, farm).map(|_| farm)?,
        None => which(&reach, wallet.address(), None)?,
    };
    let held = held(&reach, farm)?;
    if let Some(data) = &arguments.data {
        // Only nodes with reservations: a proof costs gas, and for others nobody pays.
        let nodes: BTreeSet<u32> = held.iter().map(|it| it.offer.terms.node).collect();
        let nodes: Vec<u32> = nodes.into_iter().collect();
        epochs::prove(&reach, &mut wallet, data, &nodes)?;
    }
    settle(&reach, &mut wallet, &held)?;
    let contract = reach.suite.reservations;
    let earned = reach.view(contract, &Reservations::earnedCall { _0: farm, _1: 0 })?;
    let mut paid = U256::ZERO;
    if !earned.is_zero() {
        let call = Reservations::withdrawCall { farm, token: 0 };
        let receipt = wallet.send("pay the income out", contract, &call)?;
        let event =
            receipt.logs.iter().find_map(|log| Reservations::Withdrawn::decode_log(log).ok());
        paid = event.map(|event| event.data.amount).unwrap_or(earned);
    }
    let to = reach.view(reach.suite.registry, &Registry::payoutOfCall { farm })?;
    if chain.json {
        return print(&format!("{}\n", json!({"farm": farm, "paid": paid.to_string(), "to": to})));
    }
    if paid.is_zero() {
        return print(&format!("farm {farm}: nothing was due\n"));
    }
    print(&format!("farm {farm}: {} tokens paid to {to}\n", tokens(paid)))
}

/// The farm's reservations that the contract still has.
fn held(reach: &Reach, farm: u32) -> Result<Vec<Held>, Failure> {
    let mut all = Vec::new();
    for id in of_farm(reach, farm)? {
        all.extend(reservations::look(reach, id)?);
    }
    Ok(all)
}

fn settle(reach: &Reach, wallet: &mut Wallet<'_>, held: &[Held]) -> Result<(), Failure> {
    let contract = reach.suite.reservations;
    let now = reach.head()?.timestamp;
    let (mut due, mut over) = (Vec::new(), Vec::new());
    for it in held {
        if it.stage(now) == Stage::RunOut {
            over.push(it.id);
        } else if !reach.view(contract, &Reservations::owedCall { id: it.id })?.is_zero() {
            due.push(it.id);
        }
    }
    for id in over {
        wallet.send(
            &format!("end reservation {id}"),
            contract,
            &Reservations::reclaimCall { id },
        )?;
    }
    for ids in due.chunks(SETTLED_AT_ONCE) {
        let call = Reservations::settleManyCall { ids: ids.to_vec() };
        wallet.send(&format!("settle {} reservations", ids.len()), contract, &call)?;
    }
    Ok(())
}

/// All reservations of a farm's nodes that there ever were.
pub(super) fn of_farm(reach: &Reach, farm: u32) -> Result<Vec<u64>, Failure> {
    let nodes = nodes(reach, farm)?;
    if nodes.is_empty() {
        return Ok(Vec::new());
    }
    let offers = offers::made_by(reach, &nodes)?;
    if offers.is_empty() {
        return Ok(Vec::new());
    }
    reservations::of_offers(reach, &offers)
}
