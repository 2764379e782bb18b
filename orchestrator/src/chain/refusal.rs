//! What a contract means by refusing, as a sentence that says what to do.

use hypha_chain::U256;
use hypha_chain::contracts::{
    Capacity::CapacityErrors, GridToken::GridTokenErrors, Names::NamesErrors,
    Registry::RegistryErrors, Reservations::ReservationsErrors, Rewards::RewardsErrors, explain,
};
use hypha_chain::sol_types::SolInterface;

use super::amount::{instant, span, tokens};
use crate::exit_code;
use crate::lines::visible;

/// A contract's refusal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{words}; nothing was changed")]
pub struct Refusal {
    words: String,
    code: i32,
}

/// The request is wrong, or its account is not the one that may.
fn wrong(words: String) -> Refusal {
    Refusal { words, code: exit_code::BAD_SPEC }
}

/// There is none of that number.
fn missing(words: String) -> Refusal {
    Refusal { words, code: exit_code::NOT_FOUND }
}

/// It can't be now.
fn later(words: String) -> Refusal {
    Refusal { words, code: exit_code::UNAVAILABLE }
}

fn at(secs: U256) -> String {
    instant(secs.saturating_to())
}

impl Refusal {
    /// Reads what a contract returned.
    #[must_use]
    pub fn read(output: &[u8]) -> Self {
        if output.is_empty() {
            return later("the contract refuses without a word".to_owned());
        }
        if let Ok(error) = ReservationsErrors::abi_decode(output) {
            return of_reservations(&error);
        }
        if let Ok(error) = RegistryErrors::abi_decode(output) {
            return of_registry(&error);
        }
        if let Ok(error) = GridTokenErrors::abi_decode(output) {
            return of_token(&error);
        }
        if let Ok(error) = RewardsErrors::abi_decode(output) {
            return of_rewards(&error);
        }
        if let Ok(error) = CapacityErrors::abi_decode(output) {
            return of_capacity(&error);
        }
        if let Ok(error) = NamesErrors::abi_decode(output) {
            return of_names(&error);
        }
        later(format!("the contract refuses: {}", visible(explain(output).as_bytes())))
    }

    /// The command's exit code.
    #[must_use]
    pub fn exit_code(&self) -> i32 {
        self.code
    }
}

fn of_reservations(error: &ReservationsErrors) -> Refusal {
    use ReservationsErrors as E;
    match error {
        E::NotFarmOwner(it) if it.farm == 0 => missing("there is no such node or offer".to_owned()),
        E::NotFarmOwner(it) => {
            wrong(format!("farm {} is another account's; give its --key", it.farm))
        }
        E::NotTheUser(it) => {
            wrong(format!("reservation {} is another account's, or gone; give its --key", it.id))
        }
        E::NodeNotActive(it) => later(format!(
            "node {} is parked or retired; see `hypha node status {}`",
            it.node, it.node
        )),
        E::NoSuchToken(it) => wrong(format!("there is no token {}", it.token)),
        E::RateOutOfRange(_) => wrong(
            "the price is 0, or too large, or lower than that of the storage alone".to_owned(),
        ),
        E::NoOffer(it) => wrong(format!(
            "offer {} was withdrawn, or never made; `hypha offers` lists those that stand",
            it.offer
        )),
        E::NoRoom(it) => {
            later(format!("node {} has no room left for it; `hypha offers` lists others", it.node))
        }
        E::DepositTooSmall(it) => wrong(format!(
            "a deposit of {} tokens is too small, it takes {}",
            tokens(it.has),
            tokens(it.needs)
        )),
        E::AmountTooLarge(_) => wrong("the amount is more than the contract counts".to_owned()),
        E::NotOpen(it) => wrong(format!(
            "reservation {} has ended, or never was; `hypha reservations` lists yours",
            it.id
        )),
        E::StillOpen(it) => wrong(format!("reservation {} is still open", it.id)),
        E::NotDepleted(it) => later(format!("it runs until {}", at(it.when))),
        E::AwaitsProof(it) => later(format!(
            "it waits for proofs until {} at the latest; run the command again then",
            at(it.until)
        )),
        E::NoOutage(_) => wrong("the epoch shows no outage of this reservation".to_owned()),
        E::CreditsUsedUp(it) => later(format!(
            "credits have taken a tenth of the node's stake, more of it can be from {} on",
            at(it.until)
        )),
        E::NothingToWithdraw(_) => later("there is nothing to withdraw".to_owned()),
        E::TransferFailed(it) => wrong(format!("token {} refuses the transfer", it.token)),
        E::NotInEpoch(_) | E::BadPath(_) => wrong("the proof is not of that epoch".to_owned()),
    }
}

fn of_registry(error: &RegistryErrors) -> Refusal {
    use RegistryErrors as E;
    match error {
        E::NotFarmOwner(it) if it.farm == 0 => missing("there is no such node".to_owned()),
        E::NotFarmOwner(it) => {
            wrong(format!("farm {} is another account's; give its --key", it.farm))
        }
        E::NoPayout(_) => wrong("a farm needs an address to pay to".to_owned()),
        E::KeyInUse(it) => wrong(format!(
            "the node key {} is or was node {}'s; give another --node-key",
            it.signer, it.node
        )),
        E::NotSignedByKey(it) => wrong(format!("{} did not sign for it", it.signer)),
        E::BadSignature(_) => wrong("the node key's signature is nobody's".to_owned()),
        E::StakeTooSmall(it) => wrong(format!(
            "a stake of {} tokens is too small for these capacities, they take {}",
            tokens(it.has),
            tokens(it.needs)
        )),
        E::NotActive(it) => wrong(format!("node {} is not in the state for this", it.node)),
        E::ClaimsMore(_) => wrong("a claim goes up only as far as it is proven".to_owned()),
        E::NotProven(_) => wrong("the epoch does not show that much as proven".to_owned()),
        E::BadPeriod(_) => {
            wrong("maintenance begins an hour or more from now, and ends after that".to_owned())
        }
        E::MaintenanceUsedUp(it) => wrong(format!(
            "of this month's maintenance {} are left, and each hour of an epoch that it touches \
                 counts whole",
            span(it.left.saturating_to())
        )),
        E::NotLeaving(it) => wrong(format!(
            "no stake of node {} is on its way out; begin with --amount or --retire",
            it.node
        )),
        E::TooEarly(it) => later(format!("it can be done from {} on", at(it.when))),
        E::NotSilent(it) => later(format!("the node was proven until {}", at(it.provenUntil))),
        E::NotSlasher(_) => wrong("only the contracts of the suite may".to_owned()),
        E::AmountTooLarge(_) => wrong("the amount is more than the contract counts".to_owned()),
        E::TransferFailed(_) => wrong("the token refuses the transfer".to_owned()),
        E::NotInEpoch(_) | E::BadPath(_) => wrong("the proof is not of that epoch".to_owned()),
    }
}

fn of_token(error: &GridTokenErrors) -> Refusal {
    use GridTokenErrors as E;
    match error {
        E::InsufficientBalance(it) => wrong(format!(
            "{} has {} tokens, and this takes {}",
            it.account,
            tokens(it.has),
            tokens(it.needs)
        )),
        E::InsufficientAllowance(it) => wrong(format!(
            "{} may take {} tokens, and this takes {}: the permit was not accepted, or was used",
            it.spender,
            tokens(it.has),
            tokens(it.needs)
        )),
        E::PermitExpired(it) => later(format!("the permit ended at {}", at(it.deadline))),
        E::PermitNotBySigner(it) => wrong(format!("the permit is signed by {}", it.signer)),
        E::NotMinter(_) => wrong("only Rewards mints tokens".to_owned()),
        E::ToNobody(_) => wrong("tokens can't be sent to nobody".to_owned()),
        E::SupplyTooLarge(_) => wrong("that is more than all tokens".to_owned()),
        E::BadSignature(_) => wrong("the permit's signature is nobody's".to_owned()),
    }
}

fn of_rewards(error: &RewardsErrors) -> Refusal {
    use RewardsErrors as E;
    match error {
        E::NotInEpoch(_) | E::BadPath(_) => {
            wrong("the file's leaf is not of the epoch that was posted".to_owned())
        }
        E::NothingNew(it) => {
            later(format!("the farm has claimed all of {} tokens", tokens(it.claimed)))
        }
        E::EmissionExceeded(it) => later(format!(
            "{} tokens would be minted in all, and by now {} may be",
            tokens(it.minted),
            tokens(it.budget)
        )),
    }
}

fn of_names(error: &NamesErrors) -> Refusal {
    use NamesErrors as E;
    match error {
        E::BadName(_) => wrong("the contract takes no such name".to_owned()),
        E::Taken(it) => Refusal {
            words: format!("reservation {} has that name", it.reservation),
            code: exit_code::CONFLICT,
        },
        E::NotTheUser(it) => {
            wrong(format!("reservation {} is another account's, or has ended", it.reservation))
        }
        E::NotRegistered(_) => missing("nobody has that name".to_owned()),
    }
}

fn of_capacity(error: &CapacityErrors) -> Refusal {
    use CapacityErrors as E;
    match error {
        E::NotFinal(it) => {
            later(format!("epoch {} can still be disputed; run the command again later", it.epoch))
        }
        E::UnknownEpoch(it) => wrong(format!(
            "epoch {} was not posted like that, was voided, or is no longer kept",
            it.epoch
        )),
        E::TooEarly(it) => later(format!("it can be done from {} on", at(it.when))),
        E::NotProvenLater(it) => {
            later(format!("it is proven until {} already", instant(it.provenUntil)))
        }
        other => later(format!("the contract refuses: {other:?}")),
    }
}

#[cfg(test)]
mod tests {
    use hypha_chain::contracts::{Registry, Reservations};
    use hypha_chain::sol_types::SolError;

    use super::*;

    #[test]
    fn a_refusal_says_what_to_do_and_whose_fault_it_is() {
        let (has, needs) = (U256::from(1), U256::from(super::super::amount::UNIT));
        for (output, words, code) in [
            (Reservations::NoOffer { offer: 7 }.abi_encode(), "offer 7 was withdrawn", 2),
            (Reservations::NoRoom { node: 3 }.abi_encode(), "no room left", 5),
            (Reservations::DepositTooSmall { has, needs }.abi_encode(), "it takes 1;", 2),
            (Registry::NotFarmOwner { farm: 0 }.abi_encode(), "no such node", 3),
            (Registry::NotFarmOwner { farm: 2 }.abi_encode(), "farm 2 is another", 2),
            (
                Reservations::AwaitsProof { until: U256::from(1_800_000_000) }.abi_encode(),
                "2027-01-15 08:00:00 UTC",
                5,
            ),
            (Vec::new(), "without a word", 5),
            (vec![1, 2, 3, 4], "0x01020304", 5),
        ] {
            let refusal = Refusal::read(&output);
            assert!(refusal.to_string().contains(words), "{refusal}");
            assert_eq!(refusal.exit_code(), code, "{refusal}");
        }
    }
}
