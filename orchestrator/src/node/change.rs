//! `hypha node raise` and `hypha node rotate-key`: a node claims more, or has another chain key.

use hypha_chain::B256;
use hypha_chain::contracts::Registry;
use hypha_chain::message::{Reader, RotateKey, sign};
use net_vdev::PrivateKey;
use serde_json::json;

use super::arguments::{RaiseArguments, RotateArguments};
use super::binding;
use super::stake::record;
use super::status::caps_text;
use crate::chain::amount::tokens;
use crate::chain::failure::Failure;
use crate::chain::reach::Reach;
use crate::chain::wallet::Wallet;
use crate::chain::{epochs, print};
use crate::{keys, state};

/// Claims what an epoch shows as proven, if it is more; nothing if that is claimed already.
pub(super) fn raise(arguments: &RaiseArguments) -> Result<i32, Failure> {
    let (chain, node) = (&arguments.send.chain, arguments.node);
    let data = epochs::read(&arguments.data)?;
    let reach = Reach::open(chain)?;
    let mut wallet = Wallet::open(&reach, &arguments.send)?;
    let registry = reach.suite.registry;
    let before = record(&reach, node)?.caps;
    let posted = epochs::posted(&reach, &data, &arguments.data)?;
    let proof: Registry::VerdictPath = epochs::shown(&data, &posted, node)?;
    let proven = &proof.verdict.caps;
    let wanted = most(&before, proven);
    if wanted != *proven {
        return Err(Failure::Input(format!(
            "node {node} claims {}, of which epoch {} shows {}: a claim is raised when all of it is proven",
            text(&before),
            data.epoch,
            text(proven)
        )));
    }
    if wanted != before {
        let call = Registry::raiseCapsCall { node, caps: wanted.clone(), proof };
        wallet.send("raise the claim", registry, &call)?;
    }
    let needs = reach.view(registry, &Registry::stakeForCall { caps: wanted.clone() })?;
    if chain.json {
        let object = json!({"node": node, "raised": wanted != before, "cores": wanted.cores,
            "memory_mib": wanted.memMiB, "ssd_mib": wanted.ssdMiB, "hdd_mib": wanted.hddMiB,
            "mbps": wanted.mbps, "stake_needed": needs.to_string()});
        return print(&format!("{object}\n"));
    }
    let needs = tokens(needs);
    print(&format!("node {node} claims {}, which takes a stake of {needs} tokens\n", text(&wanted)))
}

/// Binds another chain key to a node; nothing if it is bound already. The old one stays bound for evidence.
pub(super) fn rotate(arguments: &RotateArguments) -> Result<i32, Failure> {
    let (chain, node) = (&arguments.send.chain, arguments.node);
    let Some(name) = &arguments.node_key.node_key else {
        return Err(Failure::Input(format!(
            "node {node} is to have another key: name it with --node-key, as in --node-key node-2; it is \
             made if there is none"
        )));
    };
    let reach = Reach::open(chain)?;
    let mut wallet = Wallet::open(&reach, &arguments.send)?;
    let registry = reach.suite.registry;
    let before = record(&reach, node)?.signer;
    let directory = chain.directory()?;
    let key = keys::named_or_new(&directory, name, &arguments.node_key.passphrase())?;
    if key.address() != before {
        let mesh = state::key(&directory.join("mesh"))?;
        let mesh = PrivateKey::new(*mesh.expose());
        let mesh_key = B256::from(mesh.public().0);
        let domain = Reader::Registry.domain(reach.chain_id, registry);
        let signature = sign(&RotateKey { node, meshKey: mesh_key }, &domain, &key);
        let (r, s) = binding::vouch(&mesh, reach.chain_id, registry, key.address())?;
        let mesh = Registry::MeshKey { key: mesh_key, signatureR: r, signatureS: s };
        let signature = signature.to_bytes().into();
        let call = Registry::rotateKeyCall { node, mesh, signature };
        wallet.send("change the node's key", registry, &call)?;
    }
    let signer = key.address();
    if chain.json {
        let object = json!({"node": node, "chain_key": signer, "changed": signer != before});
        return print(&format!("{object}\n"));
    }
    print(&format!(
        "node {node} has the key {signer}: start `hypha node prove --node-key {name}`\n"
    ))
}

fn most(one: &Registry::Caps, other: &Registry::Caps) -> Registry::Caps {
    Registry::Caps {
        cores: one.cores.max(other.cores),
        memMiB: one.memMiB.max(other.memMiB),
        ssdMiB: one.ssdMiB.max(other.ssdMiB),
        hddMiB: one.hddMiB.max(other.hddMiB),
        mbps: one.mbps.max(other.mbps),
    }
}

fn text(caps: &Registry::Caps) -> String {
    caps_text((caps.cores, caps.memMiB, caps.ssdMiB, caps.hddMiB, caps.mbps))
}
