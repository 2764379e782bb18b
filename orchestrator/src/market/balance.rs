//! `hypha balance` and `hypha transfer`: what an account has, and how it gets to another.

use hypha_chain::U256;
use hypha_chain::contracts::GridToken;
use serde_json::json;

use super::arguments::TransferArguments;
use super::reservations;
use crate::chain::amount::tokens;
use crate::chain::failure::Failure;
use crate::chain::print;
use crate::chain::reach::{ChainArguments, Reach};
use crate::chain::wallet::{Wallet, Wanted};
use crate::keys;
use crate::keys::arguments::AccountArguments;

pub(super) fn run(account: &AccountArguments, chain: &ChainArguments) -> Result<i32, Failure> {
    let reach = Reach::open(chain)?;
    let account = keys::account(account, &chain.directory()?)?;
    let held = reach.view(reach.suite.token, &GridToken::balanceOfCall(account))?;
    let mut deposits = U256::ZERO;
    for made in reservations::of_user(&reach, account)? {
        let there = reservations::look(&reach, made.id)?;
        deposits = deposits.saturating_add(there.map(|it| it.deposit()).unwrap_or_default());
    }
    let wei = reach.client.balance(account)?;
    if chain.json {
        let object = json!({"account": account, "tokens": held.to_string(),
            "in_reservations": deposits.to_string(), "wei": wei.to_string()});
        return print(&format!("{object}\n"));
    }
    let mut text = format!("account       {account}\ntokens        {}\n", tokens(held));
    text += &format!("reservations  {} tokens in deposits, as last settled\n", tokens(deposits));
    if !wei.is_zero() {
        text += &format!("for gas       {} ether\n", tokens(wei));
    }
    print(&text)
}

pub(super) fn transfer(arguments: &TransferArguments) -> Result<i32, Failure> {
    let (chain, to, amount) = (&arguments.send.chain, arguments.to, arguments.amount);
    if amount.is_zero() {
        return Err(Failure::Input("nothing is to be sent: give more than 0 tokens".to_owned()));
    }
    let reach = Reach::open(chain)?;
    let mut wallet = Wallet::open(&reach, &arguments.send)?;
    let (token, call) = (reach.suite.token, GridToken::transferCall { to, amount });
    let wanted = Wanted::new(token, &call);
    let receipt = match wallet.sent(wanted)? {
        Some(receipt) => receipt,
        None => {
            wallet.require(amount)?;
            let what = format!("send {} tokens to {to}", tokens(amount));
            wallet.send_noted(&what, token, &call, wanted)?
        }
    };
    if chain.json {
        let object = json!({"from": wallet.address(), "to": to, "amount": amount.to_string(),
            "transaction": receipt.transaction});
        print::<Failure>(&format!("{object}\n"))?;
    } else {
        print::<Failure>(&format!("{} tokens sent to {to}\n", tokens(amount)))?;
    }
    wallet.finish().map(|()| 0)
}
