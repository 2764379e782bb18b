//! `hypha offers`: what nodes offer. The contract keeps no list: events have them.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use hypha_chain::contracts::{Capacity, Registry, Reservations};
use hypha_chain::sol_types::SolEvent;
use hypha_chain::{B256, U256};
use serde_json::{Value, json};

use super::arguments::OffersArguments;
use crate::chain::amount::{hourly, instant};
use crate::chain::failure::Failure;
use crate::chain::print;
use crate::chain::reach::Reach;
use crate::farm::indexed;
use crate::node::status::caps_text;

const ACTIVE: u8 = 1;
/// The token that Hypha pays with; contracts can be set up with others.
pub const GRID_TOKEN: u8 = 0;

/// How many nodes' offers are searched for at once.
const NODES_AT_ONCE: usize = 64;

/// An offer.
#[derive(Debug, Clone)]
pub struct Offer {
    /// Its number.
    pub id: u32,
    /// What, and for how much.
    pub terms: Reservations::Offer,
}

/// A node, as far as it matters to who wants its capacity.
struct Host {
    state: u8,
    claims: Registry::Caps,
    used: Reservations::Caps,
    proven_until: u64,
}

/// The offer with this number, open or not.
///
/// # Errors
/// A [`Failure`]; [`Failure::NotFound`] if there never was one.
pub fn one(reach: &Reach, id: u32) -> Result<Offer, Failure> {
    let terms = reach.view(reach.suite.reservations, &Reservations::offerAtCall { id })?;
    if terms.node == 0 {
        return Err(Failure::NotFound(format!(
            "there is no offer {id}: `hypha offers` lists those that stand"
        )));
    }
    Ok(Offer { id, terms })
}

/// The open offers of a node.
///
/// # Errors
/// A [`Failure`].
pub fn of_node(reach: &Reach, node: u32) -> Result<Vec<Offer>, Failure> {
    standing(reach, Some(node))
}

/// Refuses an offer of more than its node claims: nobody could ever reserve it.
///
/// # Errors
/// A [`Failure`]; [`Failure::Input`] if it is one.
pub fn check_claims(reach: &Reach, terms: &Reservations::Offer) -> Result<(), Failure> {
    let node = terms.node;
    let room = reach.view(reach.suite.registry, &Registry::roomCall { node })?;
    let claims = &room.caps;
    let text = caps_text((claims.cores, claims.memMiB, claims.ssdMiB, claims.hddMiB, claims.mbps));
    let none = Reservations::Caps { cores: 0, memMiB: 0, ssdMiB: 0, hddMiB: 0, mbps: 0 };
    let empty = Host { state: ACTIVE, claims: room.caps, used: none, proven_until: 0 };
    // What else is wrong with it, the contract says.
    if room.state != ACTIVE || empty.can_take(terms) {
        return Ok(());
    }
    Err(Failure::Input(format!("node {node} claims {text}: no more can be offered of it")))
}

/// The numbers of all offers that nodes have made, open or not.
///
/// # Errors
/// A [`Failure`].
pub fn made_by(reach: &Reach, nodes: &[u32]) -> Result<Vec<u32>, Failure> {
    let mut numbers = Vec::new();
    for some in nodes.chunks(NODES_AT_ONCE) {
        let some = some.iter().map(|node| B256::from(U256::from(*node))).collect();
        let topics = [vec![Reservations::Offered::SIGNATURE_HASH], Vec::new(), some];
        let logs = reach.logs(reach.suite.reservations, &topics)?;
        numbers.extend(logs.iter().filter_map(|found| indexed::<u32>(found.log.topics(), 1)));
    }
    Ok(numbers)
}

/// Offers that were made and not withdrawn, by number.
fn standing(reach: &Reach, node: Option<u32>) -> Result<Vec<Offer>, Failure> {
    let contract = reach.suite.reservations;
    let nodes = node.map(|node| B256::from(U256::from(node))).into_iter().collect();
    let topics = [vec![Reservations::Offered::SIGNATURE_HASH], Vec::new(), nodes];
    let mut offers = BTreeMap::new();
    for found in reach.logs(contract, &topics)? {
        let Ok(event) = Reservations::Offered::decode_log(&found.log) else { continue };
        // The contract opens it, whatever its maker has written there.
        let terms = Reservations::Offer { open: true, ..event.data.terms };
        offers.insert(event.data.offer, terms);
    }
    if !offers.is_empty() {
        for found in reach.logs(contract, &[vec![Reservations::OfferEnded::SIGNATURE_HASH]])? {
            let ended: Option<u32> = indexed(found.log.topics(), 1);
            ended.and_then(|id| offers.remove(&id));
        }
    }
    Ok(offers.into_iter().map(|(id, terms)| Offer { id, terms }).collect())
}

/// Prints the offers that fit, the cheapest first.
pub(super) fn list(arguments: &OffersArguments) -> Result<i32, Failure> {
    let reach = Reach::open(&arguments.chain)?;
    let mut offers = standing(&reach, arguments.node)?;
    offers.retain(|offer| arguments.fits(&offer.terms));
    offers.sort_by_key(|offer| (offer.terms.rate, offer.terms.storageRate, offer.id));
    let mut hosts = BTreeMap::new();
    let (mut text, mut shown) = (String::new(), 0);
    for offer in &offers {
        let node = offer.terms.node;
        if let Entry::Vacant(place) = hosts.entry(node) {
            place.insert(host(&reach, node)?);
        }
        let Some(host) = hosts.get(&node) else { continue };
        if !arguments.all && !host.can_take(&offer.terms) {
            continue;
        }
        if shown == arguments.limit {
            break;
        }
        shown += 1;
        text += &if arguments.chain.json {
            format!("{}\n", offer.to_json(host))
        } else {
            offer.to_text(host)
        };
    }
    if text.is_empty() && !arguments.chain.json {
        text = "no offer fits\n".to_owned();
    }
    print(&text)
}

fn host(reach: &Reach, node: u32) -> Result<Host, Failure> {
    let suite = &reach.suite;
    let room = reach.view(suite.registry, &Registry::roomCall { node })?;
    Ok(Host {
        state: room.state,
        claims: room.caps,
        used: reach.view(suite.reservations, &Reservations::usedOfCall { node })?,
        proven_until: reach.view(suite.capacity, &Capacity::provenUntilCall(node))?,
    })
}

impl Host {
    /// Whether the contract would let this be reserved now.
    fn can_take(&self, terms: &Reservations::Offer) -> bool {
        let (all, used, more) = (&self.claims, &self.used, &terms.caps);
        let sums = [
            (u64::from(used.cores), u64::from(more.cores), u64::from(all.cores)),
            (u64::from(used.memMiB), u64::from(more.memMiB), u64::from(all.memMiB)),
            (used.ssdMiB, more.ssdMiB, all.ssdMiB),
            (used.hddMiB, more.hddMiB, all.hddMiB),
            (u64::from(used.mbps), u64::from(more.mbps), u64::from(all.mbps)),
        ];
        let fits = |(used, more, all): &(u64, u64, u64)| used.saturating_add(*more) <= *all;
        self.state == ACTIVE && sums.iter().all(fits)
    }
}

impl OffersArguments {
    fn fits(&self, terms: &Reservations::Offer) -> bool {
        let caps = &terms.caps;
        let is_cheap = self.max_price.is_none_or(|most| terms.rate.to::<u128>() <= most);
        caps.cores >= self.cores
            && u64::from(caps.memMiB) >= self.memory
            && caps.ssdMiB >= self.ssd
            && caps.hddMiB >= self.hdd
            && caps.mbps >= self.mbps
            && terms.token == GRID_TOKEN
            && is_cheap
    }
}

impl Offer {
    /// What is offered, for people.
    #[must_use]
    pub fn caps(&self) -> String {
        let caps = &self.terms.caps;
        caps_text((caps.cores, caps.memMiB, caps.ssdMiB, caps.hddMiB, caps.mbps))
    }

    /// What it costs, for people.
    #[must_use]
    pub fn price(&self) -> String {
        let storage = self.terms.storageRate.to::<u128>();
        let kept =
            if storage == 0 { String::new() } else { format!(", {} paused", hourly(storage)) };
        format!("{} tokens/h{kept}", hourly(self.terms.rate.to()))
    }

    fn to_json(&self, host: &Host) -> Value {
        let (terms, caps) = (&self.terms, &self.terms.caps);
        json!({
            "offer": self.id,
            "node": terms.node,
            "cores": caps.cores,
            "memory_mib": caps.memMiB,
            "ssd_mib": caps.ssdMiB,
            "hdd_mib": caps.hddMiB,
            "mbps": caps.mbps,
            "rate": terms.rate.to_string(),
            "storage_rate": terms.storageRate.to_string(),
            "min_seconds": terms.minSeconds,
            "has_room": host.can_take(terms),
            "proven_until": host.proven_until,
        })
    }

    fn to_text(&self, host: &Host) -> String {
        let proven = match host.proven_until {
            0 => "never proven".to_owned(),
            until => format!("proven until {}", instant(until)),
        };
        let room = if host.can_take(&self.terms) { "" } else { ", no room now" };
        let (id, node) = (self.id, self.terms.node);
        format!("offer {id}  {}  {}  (node {node}, {proven}{room})\n", self.price(), self.caps())
    }
}
