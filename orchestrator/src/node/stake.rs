//! `hypha node unstake` and `hypha node maintenance`: what an owner does with a node that is there.

use hypha_chain::U256;
use hypha_chain::contracts::{Capacity, Registry};
use serde_json::json;

use super::arguments::{MaintenanceArguments, UnstakeArguments};
use super::status::state_name;
use crate::chain::amount::{instant, tokens};
use crate::chain::failure::Failure;
use crate::chain::print;
use crate::chain::reach::Reach;
use crate::chain::wallet::Wallet;

const HOUR: u64 = 3600;
const RETIRED: u8 = 3;

/// Begins to take stake out, ends the node, or pays out what has left; each only if it is not so yet.
pub(super) fn unstake(arguments: &UnstakeArguments) -> Result<i32, Failure> {
    let (chain, node) = (&arguments.send.chain, arguments.node);
    let reach = Reach::open(chain)?;
    let mut wallet = Wallet::open(&reach, &arguments.send)?;
    let registry = reach.suite.registry;
    let before = record(&reach, node)?;
    if let Some(amount) = arguments.amount {
        let has = before.stake.to::<U256>();
        if amount > has {
            let (has, amount) = (tokens(has), tokens(amount));
            return Err(Failure::Input(format!(
                "node {node} has {has} tokens at stake, not {amount}"
            )));
        }
        if before.leaving.to::<U256>() != amount {
            let call = Registry::unstakeCall { node, amount };
            wallet.send("take stake out", registry, &call)?;
        }
    } else if arguments.retire {
        if before.state != RETIRED {
            wallet.send("retire the node", registry, &Registry::retireCall { node })?;
        }
    } else if !before.leaving.is_zero() {
        wallet.send("pay the stake out", registry, &Registry::withdrawStakeCall { node })?;
    }
    let after = record(&reach, node)?;
    let paid = before.stake.saturating_sub(after.stake);
    if chain.json {
        let object = json!({"node": node, "state": state_name(after.state),
            "stake": after.stake.to_string(), "leaving": after.leaving.to_string(),
            "leaves_at": after.leavesAt, "paid": paid.to_string()});
        return print(&format!("{object}\n"));
    }
    let mut text = format!("node {node}: {} tokens at stake", tokens(after.stake.to()));
    if !paid.is_zero() {
        text += &format!(", {} paid out", tokens(paid.to()));
    }
    if !after.leaving.is_zero() {
        let when = instant(after.leavesAt.into());
        text +=
            &format!(", of which {} can be paid out from {when} on", tokens(after.leaving.to()));
    }
    print(&(text + "\n"))
}

/// Announces maintenance, if it is not announced like that.
pub(super) fn maintenance(arguments: &MaintenanceArguments) -> Result<i32, Failure> {
    let (chain, node) = (&arguments.send.chain, arguments.node);
    let reach = Reach::open(chain)?;
    let mut wallet = Wallet::open(&reach, &arguments.send)?;
    let registry = reach.suite.registry;
    record(&reach, node)?;
    let now = reach.head()?.timestamp;
    let there = reach.view(registry, &Registry::maintenanceCall(node))?;
    let length = arguments.hours.saturating_mul(HOUR);
    let (from, to) = match arguments.from {
        Some(from) => (from, from.saturating_add(length)),
        // One that lies ahead and is as long is the one that an earlier run has announced.
        None if there.from > now && there.to - there.from == length => (there.from, there.to),
        None => {
            // A minute more than the notice, for the blocks until then; then the next epoch, for each
            // that maintenance touches is counted whole.
            let soonest = now + HOUR + 60;
            let start = reach.view(reach.suite.capacity, &Capacity::startCall {})?;
            let from = start + soonest.saturating_sub(start).div_ceil(HOUR) * HOUR;
            (from, from + length)
        }
    };
    if (there.from, there.to) != (from, to) {
        let call = Registry::announceMaintenanceCall { node, from, to };
        wallet.send("announce maintenance", registry, &call)?;
    }
    if chain.json {
        return print(&format!("{}\n", json!({"node": node, "from": from, "to": to})));
    }
    print(&format!("node {node}: maintenance from {} to {}\n", instant(from), instant(to)))
}

pub(super) fn record(reach: &Reach, node: u32) -> Result<Registry::Node, Failure> {
    let record = reach.view(reach.suite.registry, &Registry::nodeAtCall { node })?;
    if record.farm == 0 {
        return Err(Failure::NotFound(format!("there is no node {node} on this chain")));
    }
    Ok(record)
}
