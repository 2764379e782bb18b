//! Capacity for tokens: `hypha offers`, `reserve`, `top-up`, `release`, `credit`, `reservations`,
//! `balance`, `transfer` and `name`.

pub mod arguments;
mod balance;
mod credit;
mod name;
pub mod offers;
mod release;
pub mod reservations;
mod reserve;
mod top_up;

use crate::chain::failure::Failure;
use arguments::MarketVerb;

/// Seconds of an hour.
const HOUR: u64 = 3600;
/// For so long a bond keeps the storage of a paused machine, at the storage rate.
const BOND_SECS: u64 = 24 * HOUR;
/// For so long after a block a permit can be used.
const PERMIT_SECS: u64 = HOUR;

/// Carries out a verb.
///
/// # Errors
/// A [`Failure`].
pub fn run(verb: &MarketVerb) -> Result<i32, Failure> {
    match verb {
        MarketVerb::Offers(arguments) => offers::list(arguments),
        MarketVerb::Reserve(arguments) => reserve::run(arguments),
        MarketVerb::TopUp(arguments) => top_up::run(arguments),
        MarketVerb::Release(arguments) => release::run(arguments),
        MarketVerb::Credit(arguments) => credit::run(arguments),
        MarketVerb::Reservations { all, account, chain } => {
            reservations::list(*all, account, chain)
        }
        MarketVerb::Balance { account, chain } => balance::run(account, chain),
        MarketVerb::Name(verb) => name::run(verb),
        MarketVerb::Transfer(arguments) => balance::transfer(arguments),
    }
}
