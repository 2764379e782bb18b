//! `hypha node status`: what the chain knows of a node.

use hypha_chain::contracts::{Capacity, Registry, Reservations};
use hypha_chain::sol_types::SolEvent;
use hypha_chain::{B256, U256};
use serde_json::{Value, json};

use super::arguments::NodeKeyArguments;
use super::binding;
use crate::chain::amount::{instant, mib, tokens};
use crate::chain::failure::Failure;
use crate::chain::print;
use crate::chain::reach::{ChainArguments, Reach};
use crate::keys;
use crate::keys::arguments::AccountArguments;

/// The state of a node in service.
const ACTIVE: u8 = 1;

/// What a node's state is called.
pub(super) fn state_name(state: u8) -> &'static str {
    match state {
        ACTIVE => "active",
        2 => "parked",
        3 => "retired",
        _ => "unknown",
    }
}

pub(super) fn run(
    node: Option<u32>,
    key_arguments: &NodeKeyArguments,
    chain: &ChainArguments,
) -> Result<i32, Failure> {
    let reach = Reach::open(chain)?;
    let node = match node {
        Some(node) => node,
        None => own(&reach, key_arguments, chain)?,
    };
    let found = look(&reach, node)?;
    if chain.json {
        return print(&format!("{}\n", found.to_json()));
    }
    print(&found.to_text())
}

/// The node of this host's key.
fn own(
    reach: &Reach,
    arguments: &NodeKeyArguments,
    chain: &ChainArguments,
) -> Result<u32, Failure> {
    let key = AccountArguments { key: Some(arguments.name().to_owned()), ..Default::default() };
    let address = keys::account(&key, &chain.directory()?)?;
    let none = || {
        let text =
            format!("the key {address} is no node's yet: `hypha node register` makes it one");
        Failure::NotFound(text)
    };
    match reach.view(reach.suite.registry, &Registry::nodeOfCall(address))? {
        0 => Err(none()),
        node => Ok(node),
    }
}

/// A node, as the chain knows it.
struct Found {
    node: u32,
    record: Registry::Node,
    used: Reservations::Caps,
    proven_until: u64,
    plot: Capacity::plotsReturn,
    maintenance: Registry::maintenanceReturn,
    mesh_key: Option<B256>,
    is_bound: bool,
    /// The newest block's time.
    now: u64,
    /// For how long a node may be silent before anyone can park it, in seconds.
    silence: u64,
    /// What the chain key has to pay for gas with, and what a proof costs at most, in wei.
    gas: (U256, U256),
}

/// Gas of `Capacity.prove` among 100,000 nodes, at most.
const PROVE_GAS: u64 = 200_000;

fn look(reach: &Reach, node: u32) -> Result<Found, Failure> {
    let suite = &reach.suite;
    let record = reach.view(suite.registry, &Registry::nodeAtCall { node })?;
    if record.farm == 0 {
        return Err(Failure::NotFound(format!("there is no node {node} on this chain")));
    }
    let mesh = mesh_key(reach, node)?;
    let is_bound = mesh.as_ref().is_some_and(|mesh| {
        let signature = (mesh.signatureR, mesh.signatureS);
        binding::is_vouched_for(mesh.key, signature, reach.chain_id, suite.registry, record.signer)
    });
    Ok(Found {
        node,
        used: reach.view(suite.reservations, &Reservations::usedOfCall { node })?,
        proven_until: reach.view(suite.capacity, &Capacity::provenUntilCall(node))?,
        plot: reach.view(suite.capacity, &Capacity::plotsCall(node))?,
        maintenance: reach.view(suite.registry, &Registry::maintenanceCall(node))?,
        mesh_key: mesh.map(|mesh| mesh.key),
        is_bound,
        now: reach.client.head()?.timestamp,
        silence: reach.view(suite.registry, &Registry::SILENCECall {})?.saturating_to(),
        gas: (
            reach.client.balance(record.signer)?,
            U256::from(reach.client.fees()?.0).saturating_mul(U256::from(PROVE_GAS)),
        ),
        record,
    })
}

/// The mesh key that was last named for a node: in a log, where no contract needs it.
fn mesh_key(reach: &Reach, node: u32) -> Result<Option<Registry::MeshKey>, Failure> {
    let kinds = vec![Registry::NodeAdded::SIGNATURE_HASH, Registry::KeyRotated::SIGNATURE_HASH];
    let topics = [kinds, vec![B256::from(U256::from(node))]];
    let logs = reach.logs(reach.suite.registry, &topics)?;
    let newest = logs.iter().max_by_key(|log| (log.block, log.index));
    Ok(newest.and_then(|found| {
        let data = &found.log;
        let added = Registry::NodeAdded::decode_log(data).ok().map(|event| event.data.mesh);
        added.or_else(|| Registry::KeyRotated::decode_log(data).ok().map(|event| event.data.mesh))
    }))
}

impl Found {
    /// From when on anyone can park it because it was not proven: the chain has to be shown that it was.
    fn parkable_from(&self) -> Option<u64> {
        let since = self.proven_until.max(self.record.since.to());
        (self.record.state == ACTIVE).then(|| since.saturating_add(self.silence))
    }

    /// Whether its chain key can't pay for showing that it is proven.
    fn lacks_gas(&self) -> bool {
        self.gas.0 < self.gas.1
    }

    fn to_json(&self) -> Value {
        let (it, caps, used) = (&self.record, &self.record.caps, &self.used);
        json!({
            "node": self.node,
            "farm": it.farm,
            "state": state_name(it.state),
            "since": it.since.to::<u64>(),
            "chain_key": it.signer,
            "mesh_key": self.mesh_key,
            "keys_vouch_for_each_other": self.is_bound,
            "claims": {"cores": caps.cores, "memory_mib": caps.memMiB, "ssd_mib": caps.ssdMiB,
                "hdd_mib": caps.hddMiB, "mbps": caps.mbps},
            "reserved": {"cores": used.cores, "memory_mib": used.memMiB, "ssd_mib": used.ssdMiB,
                "hdd_mib": used.hddMiB, "mbps": used.mbps},
            "stake": it.stake.to_string(),
            "stake_leaving": it.leaving.to_string(),
            "stake_leaves_at": it.leavesAt,
            "proven_until": self.proven_until,
            "parkable_from": self.parkable_from(),
            "chain_key_wei": self.gas.0.to_string(),
            "chain_key_lacks_gas": self.lacks_gas(),
            "plot_bytes": self.plot.bytesLen,
            "maintenance": {"from": self.maintenance.from, "to": self.maintenance.to},
        })
    }

    fn to_text(&self) -> String {
        let it = &self.record;
        let mesh = match (self.mesh_key, self.is_bound) {
            (Some(key), true) => format!("{key:#x}, which vouches for the chain key"),
            (Some(key), false) => format!("{key:#x}, which does NOT vouch for the chain key"),
            (None, _) => "unknown".to_owned(),
        };
        let caps = &it.caps;
        let claims = caps_text((caps.cores, caps.memMiB, caps.ssdMiB, caps.hddMiB, caps.mbps));
        let used = &self.used;
        let used = caps_text((used.cores, used.memMiB, used.ssdMiB, used.hddMiB, used.mbps));
        let mut proven = match self.proven_until {
            0 => "never".to_owned(),
            until => format!("until {}", instant(until)),
        };
        match self.parkable_from() {
            Some(from) if from < self.now => proven += "; ANYONE CAN PARK IT NOW",
            Some(from) => proven += &format!("; anyone can park it from {} on", instant(from)),
            None => {}
        }
        let mut text = format!(
            "node         {} of farm {}, {}\nchain key    {}\nmesh key     {mesh}\n\
             claims       {claims}\nreserved     {used}\nproven       {proven}\n\
             plot         {}\nstake        {}\n",
            self.node,
            it.farm,
            state_name(it.state),
            it.signer,
            mib(self.plot.bytesLen >> 20),
            tokens(it.stake.to()),
        );
        if self.lacks_gas() {
            text += "gas          the chain key CAN'T PAY for a proof: send it some ether\n";
        }
        if !it.leaving.is_zero() {
            let when = instant(it.leavesAt.into());
            text += &format!("leaving      {} at {when}\n", tokens(it.leaving.to()));
        }
        if self.maintenance.to > 0 {
            let (from, to) = (instant(self.maintenance.from), instant(self.maintenance.to));
            text += &format!("maintenance  {from} to {to}\n");
        }
        text
    }
}

/// Capacities for people: cores, memory, SSD, HDD, bandwidth.
pub(crate) fn caps_text((cores, mem, ssd, hdd, mbps): (u16, u32, u64, u64, u32)) -> String {
    let plural = if cores == 1 { "" } else { "s" };
    let mut parts = vec![format!("{cores} core{plural}"), format!("{} memory", mib(mem.into()))];
    for (count, name) in [(ssd, "SSD"), (hdd, "HDD")] {
        parts.extend((count > 0).then(|| format!("{} {name}", mib(count))));
    }
    parts.extend((mbps > 0).then(|| format!("{mbps} Mbit/s")));
    parts.join(", ")
}
