//! `hypha node register`: a node with its two keys, its claims and its stake, on the chain.
//!
//! The chain key is what names the node: if it is bound already, the registration is done, and what is
//! missing is made up: stake, or a parked node's return. Before that there is at most an allowance for
//! the stake, and a second run finds it.

use std::path::PathBuf;

use hypha_chain::client::Receipt;
use hypha_chain::contracts::Registry;
use hypha_chain::key::Key;
use hypha_chain::message::{NodeKey, Reader, sign};
use hypha_chain::sol_types::SolEvent;
use hypha_chain::{B256, U256};
use hypha_proofs::Rules;
use net_vdev::PrivateKey;
use proof_node::machine::{Machine, MeasureError, Provable, Sources};
use serde_json::json;

use super::arguments::RegisterArguments;
use super::status::caps_text;
use super::{binding, number_of};
use crate::chain::amount::tokens;
use crate::chain::failure::Failure;
use crate::chain::print;
use crate::chain::reach::Reach;
use crate::chain::wallet::{Wallet, say};
use crate::{farm, keys, state};

const PARKED: u8 = 2;

pub(super) fn run(arguments: &RegisterArguments) -> Result<i32, Failure> {
    let chain = &arguments.send.chain;
    let reach = Reach::open(chain)?;
    let mut wallet = Wallet::open(&reach, &arguments.send)?;
    let directory = chain.directory()?;
    let name = arguments.node_key.name();
    let key = keys::named_or_new(&directory, name, &arguments.node_key.passphrase())?;
    let node = match number_of(&reach, &key)? {
        Some(node) => node,
        None => {
            let farm = farm::which(&reach, wallet.address(), arguments.farm)?;
            let mesh = state::key(&directory.join("mesh"))?;
            let mesh = PrivateKey::new(*mesh.expose());
            add(&reach, &mut wallet, (farm, &key, &mesh), arguments)?
        }
    };
    let record = reach.view(reach.suite.registry, &Registry::nodeAtCall { node })?;
    refuse_others(&reach, &wallet, (node, &record), arguments)?;
    make_up(&reach, &mut wallet, (node, &record), arguments)?;
    let record = reach.view(reach.suite.registry, &Registry::nodeAtCall { node })?;
    if chain.json {
        let object = json!({"node": node, "farm": record.farm, "chain_key": record.signer,
            "stake": record.stake.to_string()});
        return print(&format!("{object}\n"));
    }
    let stake = tokens(record.stake.to());
    print(&format!("node {node} of farm {}, with a stake of {stake} tokens\n", record.farm))
}

/// Refuses a node of another account, and claims that are not those of the node.
fn refuse_others(
    reach: &Reach,
    wallet: &Wallet<'_>,
    (node, record): (u32, &Registry::Node),
    arguments: &RegisterArguments,
) -> Result<(), Failure> {
    let (signer, farm) = (record.signer, record.farm);
    let owner = reach.view(reach.suite.registry, &Registry::ownerOfCall { farm })?;
    if owner != wallet.address() {
        return Err(Failure::Input(format!(
            "the node key {signer} is node {node}'s, of farm {farm}, which is {owner}'s: give another \
             --node-key, or that account's --key"
        )));
    }
    if arguments.farm.is_some_and(|named| named != farm) {
        let text =
            format!("the node key {signer} is node {node}'s, of farm {farm}: it stays there");
        return Err(Failure::Input(text));
    }
    let is_named = arguments.measured.is_none() && arguments.claims_something();
    if is_named && arguments.caps()? != record.caps {
        let caps = &record.caps;
        let caps = caps_text((caps.cores, caps.memMiB, caps.ssdMiB, caps.hddMiB, caps.mbps));
        let text =
            format!("node {node} claims {caps}, and this does not change it: leave claims out");
        return Err(Failure::Input(text));
    }
    Ok(())
}

/// Adds what is missing of the stake that is asked for, and takes a parked node back into service.
fn make_up(
    reach: &Reach,
    wallet: &mut Wallet<'_>,
    (node, record): (u32, &Registry::Node),
    arguments: &RegisterArguments,
) -> Result<(), Failure> {
    let registry = reach.suite.registry;
    let has: U256 = record.stake.to();
    let missing = arguments.stake.map(|stake| stake.saturating_sub(has)).unwrap_or_default();
    if !missing.is_zero() {
        wallet.require(missing)?;
        wallet.allow(registry, missing)?;
        let call = Registry::addStakeCall { node, amount: missing };
        wallet.send("add to the stake", registry, &call)?;
    }
    if record.state == PARKED {
        let call = Registry::unparkCall { node };
        wallet.send("take the node back into service", registry, &call)?;
    }
    Ok(())
}

fn add(
    reach: &Reach,
    wallet: &mut Wallet<'_>,
    (farm, key, mesh): (u32, &Key, &PrivateKey),
    arguments: &RegisterArguments,
) -> Result<u32, Failure> {
    let registry = reach.suite.registry;
    let caps = match &arguments.measured {
        Some(folders) => arguments.caps_within(&provable(folders, arguments)?)?,
        None => arguments.caps()?,
    };
    let needed = reach.view(registry, &Registry::stakeForCall { caps: caps.clone() })?;
    let stake = arguments.stake.unwrap_or(needed);
    if stake < needed {
        let (has, needs) = (tokens(stake), tokens(needed));
        return Err(Failure::Input(format!(
            "a stake of {has} tokens is too small for these capacities, they take {needs}"
        )));
    }
    wallet.require(stake)?;
    let mesh_key = B256::from(mesh.public().0);
    let domain = Reader::Registry.domain(reach.chain_id, registry);
    let signature = sign(&NodeKey { farm, meshKey: mesh_key }, &domain, key);
    let (r, s) = binding::vouch(mesh, reach.chain_id, registry, key.address())?;
    let call = Registry::addNodeCall {
        farm,
        caps,
        stake,
        mesh: Registry::MeshKey { key: mesh_key, signatureR: r, signatureS: s },
        signature: signature.to_bytes().into(),
    };
    let claims = caps_text((
        call.caps.cores,
        call.caps.memMiB,
        call.caps.ssdMiB,
        call.caps.hddMiB,
        call.caps.mbps,
    ));
    say(&format!("claims {claims}, with a stake of {} tokens", tokens(stake)));
    wallet.allow(registry, stake)?;
    let receipt = wallet.send("add the node", registry, &call)?;
    number(&receipt)
}

/// What this machine can prove with what is free now.
fn provable(folders: &[PathBuf], arguments: &RegisterArguments) -> Result<Provable, Failure> {
    let folders = match folders {
        [] => vec![arguments.send.chain.directory()?],
        folders => folders.to_vec(),
    };
    let failed = |error: MeasureError| Failure::Input(error.to_string());
    let mut machine = Machine::look(&Sources::of_this_machine(), &folders).map_err(failed)?;
    let progress = |what: &str| say(&format!("measuring {what} …"));
    machine.measure(progress).map_err(failed)?;
    Ok(machine.provable(&Rules::STANDARD))
}

/// The node that was added.
fn number(receipt: &Receipt) -> Result<u32, Failure> {
    let added = receipt.logs.iter().find_map(|log| Registry::NodeAdded::decode_log(log).ok());
    let none = || Failure::NotNow("the chain does not say which node was added".to_owned());
    added.map(|event| event.data.node).ok_or_else(none)
}
