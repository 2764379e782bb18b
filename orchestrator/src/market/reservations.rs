//! `hypha reservations`: what an account has reserved, and how far each is.

use hypha_chain::contracts::Reservations;
use hypha_chain::sol_types::SolEvent;
use hypha_chain::{Address, B256, U256};
use serde_json::{Value, json};

use super::offers::{self, Offer};
use crate::chain::amount::{instant, tokens};
use crate::chain::failure::Failure;
use crate::chain::print;
use crate::chain::reach::{ChainArguments, Reach};
use crate::farm::indexed;
use crate::keys;
use crate::keys::arguments::AccountArguments;

/// How many offers are searched for at once.
const OFFERS_AT_ONCE: usize = 64;

/// That an account has reserved an offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Made {
    /// The reservation.
    pub id: u64,
    /// Of what.
    pub offer: u32,
    /// The hash of what was to run there.
    pub spec: B256,
}

/// A reservation that the contract still has.
#[derive(Debug, Clone)]
pub struct Held {
    /// Its number.
    pub id: u64,
    /// What the contract keeps of it.
    pub it: Reservations::Reservation,
    /// Of what.
    pub offer: Offer,
    /// When the machine is paused if nothing is added, in seconds since 1970.
    pub pause: u64,
    /// When its storage is freed.
    pub over: u64,
}

/// How far a reservation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The balance pays for it.
    Running,
    /// The bond keeps its storage.
    Paused,
    /// Neither is left; anyone may end it.
    RunOut,
    /// Ended; the rest comes back when all of its time is proven.
    Ended,
}

/// All reservations that an account ever made, by number.
///
/// # Errors
/// A [`Failure`].
pub fn of_user(reach: &Reach, user: Address) -> Result<Vec<Made>, Failure> {
    let kind = vec![Reservations::Reserved::SIGNATURE_HASH];
    let topics = [kind, Vec::new(), Vec::new(), vec![user.into_word()]];
    let logs = reach.logs(reach.suite.reservations, &topics)?;
    let read = |found: &hypha_chain::embedded::FoundLog| {
        let event = Reservations::Reserved::decode_log(&found.log).ok()?.data;
        Some(Made { id: event.id, offer: event.offer, spec: event.spec })
    };
    let mut made: Vec<Made> = logs.iter().filter_map(read).collect();
    made.sort_by_key(|made| made.id);
    Ok(made)
}

/// All reservations that were ever made of these offers, by number.
///
/// # Errors
/// A [`Failure`].
pub fn of_offers(reach: &Reach, offers: &[u32]) -> Result<Vec<u64>, Failure> {
    let mut ids = Vec::new();
    for some in offers.chunks(OFFERS_AT_ONCE) {
        let some = some.iter().map(|offer| B256::from(U256::from(*offer))).collect();
        let topics = [vec![Reservations::Reserved::SIGNATURE_HASH], Vec::new(), some];
        let logs = reach.logs(reach.suite.reservations, &topics)?;
        ids.extend(logs.iter().filter_map(|found| indexed::<u64>(found.log.topics(), 1)));
    }
    ids.sort_unstable();
    Ok(ids)
}

/// A reservation; `None` if there never was one or it is paid back.
///
/// # Errors
/// A [`Failure`].
pub fn look(reach: &Reach, id: u64) -> Result<Option<Held>, Failure> {
    let contract = reach.suite.reservations;
    let it = reach.view(contract, &Reservations::reservationAtCall { id })?;
    if it.user.is_zero() {
        return Ok(None);
    }
    let offer = offers::one(reach, it.offer)?;
    let ends = reach.view(contract, &Reservations::depletesAtCall { id })?;
    let (pause, over) = (ends.pause.saturating_to(), ends.over.saturating_to());
    Ok(Some(Held { id, it, offer, pause, over }))
}

pub(super) fn list(
    all: bool,
    account: &AccountArguments,
    chain: &ChainArguments,
) -> Result<i32, Failure> {
    let reach = Reach::open(chain)?;
    let user = keys::account(account, &chain.directory()?)?;
    let now = reach.head()?.timestamp;
    let mut text = String::new();
    for made in of_user(&reach, user)? {
        let held = look(&reach, made.id)?;
        text += &match held {
            Some(held) if chain.json => format!("{}\n", held.to_json(now)),
            Some(held) => held.to_text(now),
            None if !all => String::new(),
            None if chain.json => {
                let object = json!({"reservation": made.id, "offer": made.offer, "state": "gone"});
                format!("{object}\n")
            }
            None => format!("reservation {}  of offer {}, paid back\n", made.id, made.offer),
        };
    }
    if text.is_empty() && !chain.json {
        text = format!("{user} has no reservations\n");
    }
    print(&text)
}

impl Held {
    /// How far it is at an instant.
    #[must_use]
    pub fn stage(&self, now: u64) -> Stage {
        match (self.it.end, now) {
            (1.., _) => Stage::Ended,
            (0, now) if now < self.pause => Stage::Running,
            (0, now) if now < self.over => Stage::Paused,
            _ => Stage::RunOut,
        }
    }

    /// The tokens that lie in it, in units, as it was last settled.
    #[must_use]
    pub fn deposit(&self) -> U256 {
        self.it.balance.to::<U256>().saturating_add(self.it.bond.to())
    }

    fn to_json(&self, now: u64) -> Value {
        json!({
            "reservation": self.id,
            "offer": self.offer.id,
            "node": self.offer.terms.node,
            "state": self.stage(now).name(),
            "credit_from": self.it.creditFrom,
            "runs_until": self.pause,
            "kept_until": self.over,
            "ended_at": (self.it.end != 0).then_some(self.it.end),
            "settled_to": self.it.paidTo,
            "balance": self.it.balance.to_string(),
            "bond": self.it.bond.to_string(),
            "rate": self.offer.terms.rate.to_string(),
        })
    }

    fn to_text(&self, now: u64) -> String {
        let (id, offer) = (self.id, &self.offer);
        let stage = match self.stage(now) {
            Stage::Running => format!("runs until {}", instant(self.pause)),
            Stage::Paused => format!("paused, kept until {}", instant(self.over)),
            Stage::RunOut => "has run out".to_owned(),
            Stage::Ended => "ended, waits for proofs to be paid back".to_owned(),
        };
        let (caps, node) = (offer.caps(), offer.terms.node);
        let held = tokens(self.deposit());
        format!("reservation {id}  {stage}  {caps} on node {node}, {held} tokens in it\n")
    }
}

impl Stage {
    fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::RunOut => "run-out",
            Self::Ended => "ended",
        }
    }
}
