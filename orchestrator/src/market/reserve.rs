//! `hypha reserve`: an offer reserved and paid for in advance, in one transaction with its permit.

use std::io::{self, IsTerminal, Write};
use std::path::Path;

use hypha_chain::client::Receipt;
use hypha_chain::contracts::{Capacity, Reservations};
use hypha_chain::sol_types::SolEvent;
use hypha_chain::{B256, U256, keccak256};
use serde_json::json;

use super::arguments::ReserveArguments;
use super::offers::{self, GRID_TOKEN, Offer};
use super::reservations::{self, Held, Made};
use super::{BOND_SECS, HOUR, PERMIT_SECS};
use crate::chain::amount::{instant, span, tokens};
use crate::chain::failure::Failure;
use crate::chain::print;
use crate::chain::reach::Reach;
use crate::chain::wallet::{Wallet, Wanted};
use crate::files::read_regular;

/// The longest spec, in bytes.
const SPEC_LEN_MAX: u64 = 1 << 20;

/// Proofs come some seven hours late; a node without any for so long is worth a word.
const STALE_SECS: u64 = 24 * HOUR;

/// What a deposit buys.
struct Purchase {
    deposit: U256,
    bond: U256,
    /// For how long it runs.
    secs: u64,
}

pub(super) fn run(arguments: &ReserveArguments) -> Result<i32, Failure> {
    let chain = &arguments.send.chain;
    let spec = match &arguments.spec {
        Some(path) => hash_of(path)?,
        None => B256::ZERO,
    };
    let reach = Reach::open(chain)?;
    let mut wallet = Wallet::open(&reach, &arguments.send)?;
    if !arguments.another
        && let Some(same) = standing(&reach, &wallet, arguments.offer, spec)?
    {
        return tell(&same, true, chain.json).and_then(|code| wallet.finish().map(|()| code));
    }
    let receipt = match wallet.sent(wanted(&reach, arguments, spec))? {
        Some(receipt) => receipt,
        None => buy(&reach, &mut wallet, arguments, spec)?,
    };
    let made = receipt.logs.iter().find_map(|log| Reservations::Reserved::decode_log(log).ok());
    let silent = || Failure::NotNow("the chain does not say which reservation was made".to_owned());
    let id = made.ok_or_else(silent)?.data.id;
    let gone = || Failure::NotNow(format!("reservation {id} is gone already"));
    let held = reservations::look(&reach, id)?.ok_or_else(gone)?;
    tell(&held, false, chain.json).and_then(|code| wallet.finish().map(|()| code))
}

/// Reserves, after saying what it costs.
fn buy(
    reach: &Reach,
    wallet: &mut Wallet<'_>,
    arguments: &ReserveArguments,
    spec: B256,
) -> Result<Receipt, Failure> {
    let offer = offers::one(reach, arguments.offer)?;
    let purchase = purchase(&offer, arguments)?;
    wallet.require(purchase.deposit)?;
    propose(reach, &offer, &purchase)?;
    agree(arguments.yes)?;
    let (offer, deposit) = (offer.id, purchase.deposit);
    let permit = signed_permit(wallet, reach, deposit)?;
    let call = Reservations::reserveCall { offerId: offer, spec, deposit, permit };
    let what = format!("reserve offer {offer}");
    wallet.send_noted(&what, reach.suite.reservations, &call, wanted(reach, arguments, spec))
}

/// What the command line asks for.
fn wanted(reach: &Reach, arguments: &ReserveArguments, spec: B256) -> Wanted {
    let deposit = named_amount(arguments.deposit, arguments.hours);
    let call =
        Reservations::reserveCall { offerId: arguments.offer, spec, deposit, permit: none() };
    Wanted::new(reach.suite.reservations, &call)
}

/// An amount as a command line names it; hours are no amount of tokens that there could be.
pub(super) fn named_amount(amount: Option<U256>, hours: Option<u32>) -> U256 {
    amount.unwrap_or_else(|| U256::MAX - U256::from(hours.unwrap_or_default()))
}

/// A permit that is none.
pub(super) fn none() -> Reservations::Permit {
    let (deadline, v, r, s) = (U256::ZERO, 0, B256::ZERO, B256::ZERO);
    Reservations::Permit { deadline, v, r, s }
}

/// The permit by which Reservations takes an amount.
pub(super) fn signed_permit(
    wallet: &mut Wallet<'_>,
    reach: &Reach,
    amount: U256,
) -> Result<Reservations::Permit, Failure> {
    let deadline = reach.head()?.timestamp.saturating_add(PERMIT_SECS);
    let signature = wallet.permit(reach.suite.reservations, amount, deadline)?;
    let (r, s, v) = (signature.r, signature.s, 27 + u8::from(signature.y_is_odd));
    Ok(Reservations::Permit { deadline: U256::from(deadline), v, r, s })
}

/// An open reservation of the same offer for the same spec.
fn standing(
    reach: &Reach,
    wallet: &Wallet<'_>,
    offer: u32,
    spec: B256,
) -> Result<Option<Held>, Failure> {
    let made = reservations::of_user(reach, wallet.address())?;
    for Made { id, .. } in made.into_iter().filter(|it| (it.offer, it.spec) == (offer, spec)) {
        let held = reservations::look(reach, id)?.filter(|held| held.it.end == 0);
        if held.is_some() {
            return Ok(held);
        }
    }
    Ok(None)
}

fn purchase(offer: &Offer, arguments: &ReserveArguments) -> Result<Purchase, Failure> {
    let terms = &offer.terms;
    if !terms.open {
        let id = offer.id;
        let text = format!("offer {id} was withdrawn; `hypha offers` lists those that stand");
        return Err(Failure::Input(text));
    }
    if terms.token != GRID_TOKEN {
        let text =
            format!("offer {} takes another token than the one that Hypha pays with", offer.id);
        return Err(Failure::Input(text));
    }
    let rate: U256 = terms.rate.to();
    let bond = terms.storageRate.to::<U256>() * U256::from(BOND_SECS);
    let at_least = HOUR.max(terms.minSeconds.into());
    let deposit = match (arguments.hours, arguments.deposit) {
        (_, Some(deposit)) => deposit,
        (hours, None) => {
            bond + rate * U256::from(u64::from(hours.unwrap_or_default()).saturating_mul(HOUR))
        }
    };
    let needs = bond + rate * U256::from(at_least);
    if deposit < needs {
        return Err(Failure::Input(format!(
            "offer {} takes {} tokens at least: {} for {}, and a bond of {}",
            offer.id,
            tokens(needs),
            tokens(needs - bond),
            span(at_least),
            tokens(bond)
        )));
    }
    let secs = (deposit - bond).checked_div(rate).unwrap_or_default().saturating_to();
    Ok(Purchase { deposit, bond, secs })
}

/// Says what it costs and until when it runs, before anything is sent.
fn propose(reach: &Reach, offer: &Offer, purchase: &Purchase) -> Result<(), Failure> {
    let now = reach.head()?.timestamp;
    let node = offer.terms.node;
    let proven = reach.view(reach.suite.capacity, &Capacity::provenUntilCall(node))?;
    let mut text = format!(
        "offer {} of node {node}: {}, {}\n{} tokens: {} for {}, until {}",
        offer.id,
        offer.caps(),
        offer.price(),
        tokens(purchase.deposit),
        tokens(purchase.deposit - purchase.bond),
        span(purchase.secs),
        instant(now.saturating_add(purchase.secs)),
    );
    if !purchase.bond.is_zero() {
        let bond = tokens(purchase.bond);
        text += &format!(", and {bond} that keep its storage for a day after that");
    }
    text += "\nwhat is not used comes back with `hypha release`\n";
    if proven != 0 && now.saturating_sub(proven) > STALE_SECS {
        let when = instant(proven);
        text += &format!("node {node} was last proven until {when}: does it still run?\n");
    } else if proven == 0 {
        text += &format!("node {node} was never proven yet: until it is, nothing is paid to it\n");
    }
    Ok(io::stderr().lock().write_all(text.as_bytes())?)
}

/// Asks at the terminal, if need be.
pub(super) fn agree(yes: bool) -> Result<(), Failure> {
    if yes {
        return Ok(());
    }
    let mut err = io::stderr().lock();
    if !io::stdin().is_terminal() {
        return Err(Failure::Input("nobody is there to be asked: give --yes".to_owned()));
    }
    write!(err, "go on? [y/N] ")?;
    err.flush()?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(Failure::Input("nothing was changed".to_owned())),
    }
}

fn hash_of(path: &Path) -> Result<B256, Failure> {
    Ok(keccak256(read_regular(path, SPEC_LEN_MAX).map_err(Failure::file(path))?))
}

fn tell(held: &Held, stood: bool, json: bool) -> Result<i32, Failure> {
    if json {
        let object = json!({"reservation": held.id, "offer": held.offer.id,
            "node": held.offer.terms.node, "deposit": held.deposit().to_string(),
            "runs_until": held.pause, "kept_until": held.over, "is_new": !stood});
        return print(&format!("{object}\n"));
    }
    let (id, node, until) = (held.id, held.offer.terms.node, instant(held.pause));
    let stood = if stood { " stands already (--another makes one more): it" } else { "" };
    print(&format!("reservation {id}{stood} runs on node {node} until {until}\n"))
}
