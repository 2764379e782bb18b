//! `hypha name`: names of running reservations.

use std::str::FromStr;

use hypha_chain::B256;
use hypha_chain::contracts::Names;
use hypha_chain::deploy::name32;
use serde_json::json;

use super::arguments::NameVerb;
use crate::chain::failure::Failure;
use crate::chain::print;
use crate::chain::reach::Reach;
use crate::chain::wallet::Wallet;

/// A name as the contract takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name(String);

/// What is no name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a name is 3 to 32 of a-z, 0-9 and hyphens, and no hyphen is at its ends")]
pub struct NoName;

impl FromStr for Name {
    type Err = NoName;

    fn from_str(text: &str) -> Result<Self, NoName> {
        let is_known = |it: u8| it.is_ascii_lowercase() || it.is_ascii_digit() || it == b'-';
        let is_whole = (3..=32).contains(&text.len()) && text.bytes().all(is_known);
        let has_ends = !text.starts_with('-') && !text.ends_with('-');
        (is_whole && has_ends).then(|| Self(text.to_owned())).ok_or(NoName)
    }
}

pub(super) fn run(verb: &NameVerb) -> Result<i32, Failure> {
    match verb {
        NameVerb::Register { name, reservation, send } => {
            let reach = Reach::open(&send.chain)?;
            let mut wallet = Wallet::open(&reach, send)?;
            if resolve(&reach, name)? != Some(*reservation) {
                let call = Names::registerCall { name: word(name), reservation: *reservation };
                wallet.send("register the name", reach.suite.names, &call)?;
            }
            tell(&reach, name, send.chain.json)
        }
        NameVerb::Release { name, send } => {
            let reach = Reach::open(&send.chain)?;
            let mut wallet = Wallet::open(&reach, send)?;
            if resolve(&reach, name)?.is_some() {
                let call = Names::releaseCall { name: word(name) };
                wallet.send("release the name", reach.suite.names, &call)?;
            }
            tell(&reach, name, send.chain.json)
        }
        NameVerb::Show { name, chain } => tell(&Reach::open(chain)?, name, chain.json),
    }
}

fn word(name: &Name) -> B256 {
    name32(&name.0)
}

/// The running reservation that has a name.
fn resolve(reach: &Reach, name: &Name) -> Result<Option<u64>, Failure> {
    let call = Names::resolveCall { name: word(name) };
    Ok(Some(reach.view(reach.suite.names, &call)?).filter(|it| *it != 0))
}

fn tell(reach: &Reach, name: &Name, json: bool) -> Result<i32, Failure> {
    let (holder, name) = (resolve(reach, name)?, &name.0);
    if json {
        return print(&format!("{}\n", json!({"name": name, "reservation": holder})));
    }
    print(&match holder {
        Some(id) => format!("{name} is reservation {id}\n"),
        None => format!("nobody has {name}\n"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_contract_takes_is_a_name() {
        for right in ["abc", "a-1", "0123456789abcdef0123456789abcdef"] {
            assert_eq!(right.parse(), Ok(Name(right.to_owned())));
        }
        let long = "a".repeat(33);
        for wrong in ["", "ab", "-ab", "ab-", "aBc", "a.b", "äöü", "a\0b", &long] {
            assert_eq!(wrong.parse::<Name>(), Err(NoName), "{wrong:?}");
        }
    }
}
