//! `hypha top-up`: a reservation runs longer.

use std::io::{self, Write};

use hypha_chain::U256;
use hypha_chain::contracts::Reservations;
use hypha_chain::sol_types::SolEvent;
use serde_json::json;

use super::arguments::TopUpArguments;
use super::reservations::{self, Held, Stage};
use super::reserve::{agree, named_amount, none, signed_permit};
use super::{BOND_SECS, HOUR};
use crate::chain::amount::{instant, tokens};
use crate::chain::failure::Failure;
use crate::chain::print;
use crate::chain::reach::Reach;
use crate::chain::wallet::{Wallet, Wanted};

pub(super) fn run(arguments: &TopUpArguments) -> Result<i32, Failure> {
    let (chain, id) = (&arguments.send.chain, arguments.reservation);
    let reach = Reach::open(chain)?;
    let mut wallet = Wallet::open(&reach, &arguments.send)?;
    let contract = reach.suite.reservations;
    let named = named_amount(arguments.amount, arguments.hours);
    let call = Reservations::topUpCall { id, amount: named, permit: none() };
    let wanted = Wanted::new(contract, &call);
    let receipt = match wallet.sent(wanted)? {
        Some(receipt) => receipt,
        None => {
            let amount = propose(&reach, arguments)?;
            wallet.require(amount)?;
            agree(arguments.yes)?;
            let permit = signed_permit(&mut wallet, &reach, amount)?;
            let call = Reservations::topUpCall { id, amount, permit };
            wallet.send_noted(&format!("top up reservation {id}"), contract, &call, wanted)?
        }
    };
    let event = receipt.logs.iter().find_map(|log| Reservations::ToppedUp::decode_log(log).ok());
    let silent = || Failure::NotNow("the chain does not say what was added".to_owned());
    let added = event.ok_or_else(silent)?.data.amount;
    tell(&open(&reach, id)?, added, chain.json).and_then(|code| wallet.finish().map(|()| code))
}

/// Says what will be added.
fn propose(reach: &Reach, arguments: &TopUpArguments) -> Result<U256, Failure> {
    let id = arguments.reservation;
    let held = open(reach, id)?;
    let now = reach.head()?.timestamp;
    let stage = held.stage(now);
    if stage == Stage::RunOut || stage == Stage::Ended {
        let text = format!("reservation {id} is over: `hypha reserve` makes another");
        return Err(Failure::Input(text));
    }
    let hours = arguments.hours.unwrap_or_default();
    let amount = arguments.amount.unwrap_or_else(|| price(&held, now, hours));
    if amount.is_zero() {
        return Err(Failure::Input("nothing is to be added: give more".to_owned()));
    }
    let text = format!("reservation {id}: {} tokens more\n", tokens(amount));
    io::stderr().lock().write_all(text.as_bytes())?;
    Ok(amount)
}

fn open(reach: &Reach, id: u64) -> Result<Held, Failure> {
    let none = || {
        let text = format!("there is no reservation {id}; `hypha reservations` lists yours");
        Failure::NotFound(text)
    };
    reservations::look(reach, id)?.ok_or_else(none)
}

/// What it takes to let it run so much longer: from its pause on, or from now on with a bond that is
/// whole again if it is paused.
fn price(held: &Held, now: u64, hours: u32) -> U256 {
    let terms = &held.offer.terms;
    let rate: U256 = terms.rate.to();
    let running = rate * U256::from(u64::from(hours).saturating_mul(HOUR));
    if now < held.pause {
        return running;
    }
    // The next block is a little later than now: what the bond pays until then is to be put back too.
    let paused = now.saturating_sub(held.pause).saturating_add(60).min(BOND_SECS);
    running + terms.storageRate.to::<U256>() * U256::from(paused)
}

fn tell(held: &Held, amount: U256, json: bool) -> Result<i32, Failure> {
    if json {
        let object = json!({"reservation": held.id, "added": amount.to_string(),
            "runs_until": held.pause, "kept_until": held.over});
        return print(&format!("{object}\n"));
    }
    print(&format!("reservation {} runs until {}\n", held.id, instant(held.pause)))
}
