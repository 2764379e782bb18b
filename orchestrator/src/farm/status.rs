//! `hypha farm status`: what an account's farms have, earn and may take out.

use hypha_chain::contracts::{Registry, Reservations, Rewards};
use hypha_chain::{Address, U256};
use serde_json::{Value, json};

use super::income::of_farm;
use super::{nodes, of_owner, owner};
use crate::chain::amount::tokens;
use crate::chain::failure::Failure;
use crate::chain::print;
use crate::chain::reach::{ChainArguments, Reach};
use crate::keys;
use crate::keys::arguments::AccountArguments;

struct Found {
    farm: u32,
    owner: Address,
    payout: Address,
    nodes: Vec<u32>,
    /// What `withdraw` would pay out without settling.
    income: U256,
    /// What reservations owe now, before the tenth that is burned.
    owed: U256,
    claimed: U256,
}

pub(super) fn run(
    farm: Option<u32>,
    account: &AccountArguments,
    chain: &ChainArguments,
) -> Result<i32, Failure> {
    let reach = Reach::open(chain)?;
    let farms = match farm {
        Some(farm) => owner(&reach, farm).map(|_| vec![farm])?,
        None => of_owner(&reach, keys::account(account, &chain.directory()?)?)?,
    };
    let mut text = String::new();
    for farm in farms {
        let found = look(&reach, farm)?;
        text += &if chain.json { format!("{}\n", found.to_json()) } else { found.to_text() };
    }
    if text.is_empty() && !chain.json {
        text = "no farms: `hypha farm create` makes one\n".to_owned();
    }
    print(&text)
}

fn look(reach: &Reach, farm: u32) -> Result<Found, Failure> {
    let suite = &reach.suite;
    let it = reach.view(suite.registry, &Registry::farmOfCall { farm })?;
    let mut owed = U256::ZERO;
    for id in of_farm(reach, farm)? {
        owed = owed.saturating_add(reach.view(suite.reservations, &Reservations::owedCall { id })?);
    }
    Ok(Found {
        farm,
        owner: it.owner,
        payout: it.payout,
        nodes: nodes(reach, farm)?,
        income: reach.view(suite.reservations, &Reservations::earnedCall { _0: farm, _1: 0 })?,
        owed,
        claimed: reach.view(suite.rewards, &Rewards::claimedCall(farm))?,
    })
}

impl Found {
    fn to_json(&self) -> Value {
        json!({
            "farm": self.farm,
            "owner": self.owner,
            "payout": self.payout,
            "nodes": self.nodes,
            "income": self.income.to_string(),
            "owed": self.owed.to_string(),
            "rewards_claimed": self.claimed.to_string(),
        })
    }

    fn to_text(&self) -> String {
        let nodes: Vec<String> = self.nodes.iter().map(u32::to_string).collect();
        let nodes = if nodes.is_empty() { "none".to_owned() } else { nodes.join(", ") };
        format!(
            "farm         {} of {}\npayout       {}\nnodes        {nodes}\n\
             income       {} tokens to withdraw, {} more owed (a tenth of it is burned)\n\
             rewards      {} tokens claimed\n",
            self.farm,
            self.owner,
            self.payout,
            tokens(self.income),
            tokens(self.owed),
            tokens(self.claimed),
        )
    }
}
