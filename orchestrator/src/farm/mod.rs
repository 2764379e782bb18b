//! `hypha farm`: what owns nodes and is paid for them.

pub mod arguments;
mod claim;
mod income;
mod status;

use std::collections::BTreeSet;

use hypha_chain::contracts::Registry;
use hypha_chain::sol_types::SolEvent;
use hypha_chain::{Address, B256, U256, keccak256};
use serde_json::json;

use crate::chain::failure::Failure;
use crate::chain::print;
use crate::chain::reach::Reach;
use crate::chain::wallet::Wallet;
use crate::files::read_regular;
use arguments::{CreateArguments, FarmVerb};

/// The longest description, in bytes.
const DESCRIPTION_LEN_MAX: u64 = 1 << 20;

/// Carries out a verb.
///
/// # Errors
/// A [`Failure`].
pub fn run(verb: &FarmVerb) -> Result<i32, Failure> {
    match verb {
        FarmVerb::Create(arguments) => create(arguments),
        FarmVerb::Status { farm, account, chain } => status::run(*farm, account, chain),
        FarmVerb::Withdraw(arguments) => income::withdraw(arguments),
        FarmVerb::Claim(arguments) => claim::run(arguments),
    }
}

/// Makes a farm, unless the account has one with the same payout address and description.
fn create(arguments: &CreateArguments) -> Result<i32, Failure> {
    let chain = &arguments.send.chain;
    let meta = match &arguments.description {
        Some(path) => described(path)?,
        None => B256::ZERO,
    };
    let reach = Reach::open(chain)?;
    let mut wallet = Wallet::open(&reach, &arguments.send)?;
    let payout = arguments.payout.unwrap_or(wallet.address());
    let mut same = None;
    for farm in of_owner(&reach, wallet.address())? {
        let it = reach.view(reach.suite.registry, &Registry::farmOfCall { farm })?;
        same = same.or((it.payout == payout && it.meta == meta).then_some(farm));
    }
    let farm = match same {
        Some(farm) => farm,
        None => {
            let call = Registry::addFarmCall { payout, meta };
            let receipt = wallet.send("make the farm", reach.suite.registry, &call)?;
            let made =
                receipt.logs.iter().find_map(|log| Registry::FarmAdded::decode_log(log).ok());
            let none = || Failure::NotNow("the chain does not say which farm was made".to_owned());
            made.ok_or_else(none)?.data.farm
        }
    };
    if chain.json {
        let object = json!({"farm": farm, "owner": wallet.address(), "payout": payout});
        return print(&format!("{object}\n"));
    }
    print(&format!("farm {farm} of {}, paid to {payout}\n", wallet.address()))
}

/// The hash of a description.
fn described(path: &std::path::Path) -> Result<B256, Failure> {
    Ok(keccak256(read_regular(path, DESCRIPTION_LEN_MAX).map_err(Failure::file(path))?))
}

/// The farms that an account owns now, by number. The Registry keeps no list: events have them.
///
/// # Errors
/// A [`Failure`].
pub fn of_owner(reach: &Reach, owner: Address) -> Result<Vec<u32>, Failure> {
    let registry = reach.suite.registry;
    let kinds = vec![Registry::FarmAdded::SIGNATURE_HASH, Registry::FarmChanged::SIGNATURE_HASH];
    let logs = reach.logs(registry, &[kinds, Vec::new(), vec![owner.into_word()]])?;
    let numbers: BTreeSet<u32> =
        logs.iter().filter_map(|found| indexed(found.log.topics(), 1)).collect();
    let mut owned = Vec::new();
    for farm in numbers {
        let owner_now = reach.view(registry, &Registry::ownerOfCall { farm })?;
        owned.extend((owner_now == owner).then_some(farm));
    }
    Ok(owned)
}

/// The farm that is meant: the one that is named, which must be the account's, or its only one.
///
/// # Errors
/// A [`Failure`].
pub fn which(reach: &Reach, account: Address, named: Option<u32>) -> Result<u32, Failure> {
    if let Some(farm) = named {
        let owner = owner(reach, farm)?;
        if owner != account {
            let text =
                format!("farm {farm} is {owner}'s, not {account}'s: give that account's --key");
            return Err(Failure::Input(text));
        }
        return Ok(farm);
    }
    match of_owner(reach, account)?.as_slice() {
        [farm] => Ok(*farm),
        [] => Err(Failure::NotFound(format!(
            "{account} has no farm: make one with `hypha farm create`"
        ))),
        several => {
            let list: Vec<String> = several.iter().map(u32::to_string).collect();
            let text = format!("{account} has the farms {}: give --farm", list.join(", "));
            Err(Failure::Input(text))
        }
    }
}

/// Whose farm it is.
fn owner(reach: &Reach, farm: u32) -> Result<Address, Failure> {
    let owner = reach.view(reach.suite.registry, &Registry::ownerOfCall { farm })?;
    match owner {
        Address::ZERO => Err(Failure::NotFound(format!("there is no farm {farm} on this chain"))),
        owner => Ok(owner),
    }
}

/// The nodes that were added to a farm, by number; a node stays with its farm.
fn nodes(reach: &Reach, farm: u32) -> Result<Vec<u32>, Failure> {
    let topics =
        [vec![Registry::NodeAdded::SIGNATURE_HASH], Vec::new(), vec![B256::from(U256::from(farm))]];
    let logs = reach.logs(reach.suite.registry, &topics)?;
    let numbers: BTreeSet<u32> =
        logs.iter().filter_map(|found| indexed(found.log.topics(), 1)).collect();
    Ok(numbers.into_iter().collect())
}

/// A number among the topics of a log.
pub(crate) fn indexed<T: TryFrom<U256>>(topics: &[B256], index: usize) -> Option<T> {
    let topic = topics.get(index)?;
    T::try_from(U256::from_be_bytes(topic.0)).ok()
}
