//! `hypha farm claim`: the rewards that an epoch's data shows, claimed from what was posted of it.

use hypha_chain::U256;
use hypha_chain::contracts::Rewards;
use serde_json::json;

use super::arguments::ClaimArguments;
use super::{owner, which};
use crate::chain::amount::tokens;
use crate::chain::failure::Failure;
use crate::chain::reach::Reach;
use crate::chain::wallet::Wallet;
use crate::chain::{epochs, print};

/// Claims what the epoch adds to what was claimed before; nothing if it adds nothing.
pub(super) fn run(arguments: &ClaimArguments) -> Result<i32, Failure> {
    let chain = &arguments.send.chain;
    let data = epochs::read(&arguments.data)?;
    let reach = Reach::open(chain)?;
    let mut wallet = Wallet::open(&reach, &arguments.send)?;
    let farm = match arguments.farm {
        Some(farm) => owner(&reach, farm).map(|_| farm)?,
        None => which(&reach, wallet.address(), None)?,
    };
    let posted = epochs::posted(&reach, &data, &arguments.data)?;
    let call = data.claim(farm, &posted).ok_or_else(|| {
        let epoch = data.epoch;
        Failure::NotFound(format!("epoch {epoch} knows no farm {farm}: it was made later"))
    })?;
    let before = reach.view(reach.suite.rewards, &Rewards::claimedCall(farm))?;
    let earned = U256::from(call.cumulative);
    let fresh = earned.saturating_sub(before);
    if !fresh.is_zero() {
        wallet.send("claim the rewards", reach.suite.rewards, &call)?;
    }
    if chain.json {
        let object = json!({"farm": farm, "epoch": data.epoch, "claimed": fresh.to_string(),
            "claimed_in_all": before.max(earned).to_string()});
        return print(&format!("{object}\n"));
    }
    let (fresh, all) = (tokens(fresh), tokens(before.max(earned)));
    print(&format!("farm {farm}: {fresh} tokens claimed, {all} in all\n"))
}
