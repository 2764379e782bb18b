//! All nodes, farms and reservations, from the contracts' events alone.
//!
//! A view call says what is so now; whoever asks a block later may hear something else. Events say what
//! was so when an epoch began, and all who have read them up to there have the same roster.

use std::collections::BTreeMap;

use hypha_chain::contracts::{Capacity, GridToken, Registry, Reservations};
use hypha_chain::deploy::Suite;
use hypha_chain::embedded::FoundLog;
use hypha_chain::sol_types::SolEvent;
use hypha_chain::{Address, B256, U256};
use hypha_proofs::network::audit::Jury;
use hypha_proofs::network::roster::{Caps, Member, Roster, RosterError};
use hypha_proofs::store::PlotRecord;

/// The Registry's number for a node in service.
const ACTIVE: u8 = 1;
/// How many posted epochs are remembered.
const POSTED_MAX: usize = 64;

/// A node, as far as the events have told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its farm.
    pub farm: u32,
    /// The address of its chain key.
    pub signer: Address,
    /// Its key in the mesh.
    pub mesh_key: B256,
    /// What it claims.
    pub claimed: Caps,
    /// What of that is reserved.
    pub reserved: Caps,
    /// Whether it is in service.
    pub active: bool,
    /// Its plot.
    pub plot: Option<PlotRecord>,
    /// The salt of its filler.
    pub salt: Option<B256>,
    /// Until when it is proven, as Capacity keeps it, in seconds since 1970; 0 for never.
    pub proven_until: u64,
    /// When the last of its reservations that have ended did, in seconds since 1970.
    pub released_until: u64,
    since_secs: u64,
    stake: U256,
    leaving: U256,
}

/// What an event means for others.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// Something that only the book keeps.
    Kept,
    /// A node has committed to a plot.
    Plot(u32, PlotRecord),
    /// A node's free capacity is another.
    Reserved(u32),
    /// A node must show a byte of its plot.
    Challenged(Capacity::Challenge),
    /// A challenge is over, answered or not.
    ChallengeOver(u64),
    /// An epoch was posted; `data` is the hash of what it was made of.
    Posted(Capacity::Epoch, B256),
    /// It does not stand any more.
    Voided(u32),
    /// Somebody wants to see a leaf, or appeals.
    Demanded(Capacity::Demand, Capacity::Epoch),
    /// It was shown; the epoch's record is another.
    DemandAnswered(u64, Capacity::Epoch),
    /// An appeal's jury is drawn.
    Seated(Jury),
    /// A node has voted on an appeal: whether for the epoch.
    Voted(u64, u32, bool),
}

/// All that the events have told.
#[derive(Debug, Clone, Default)]
pub struct Book {
    nodes: BTreeMap<u32, Node>,
    farms: u32,
    offers: BTreeMap<u32, (u32, Caps)>,
    reservations: BTreeMap<u64, u32>,
    /// The newest epochs that stand, as they are now, with the hash of their data.
    posted: BTreeMap<u32, (Capacity::Epoch, B256)>,
    /// A node whose stake comes with the next transfer of this transaction.
    awaits_stake: Option<(B256, u32)>,
}

impl Book {
    /// A node.
    #[must_use]
    pub fn node(&self, node: u32) -> Option<&Node> {
        self.nodes.get(&node)
    }

    /// All nodes, by number.
    #[must_use]
    pub fn nodes(&self) -> &BTreeMap<u32, Node> {
        &self.nodes
    }

    /// The newest epochs that stand, in the order in which they were posted: their records as they are
    /// now, and the hashes of their data.
    #[must_use]
    pub fn posted(&self) -> Vec<(Capacity::Epoch, B256)> {
        let mut posted: Vec<_> = self.posted.values().cloned().collect();
        posted.sort_by_key(|(posted, _)| (posted.postedAt, posted.epoch));
        posted
    }

    /// How many nodes and farms the Registry has.
    #[must_use]
    pub fn counts(&self) -> (u32, u32) {
        (self.nodes.keys().next_back().copied().unwrap_or(0), self.farms)
    }

    /// Who takes part in an epoch that begins now, at `at_secs` since 1970.
    ///
    /// # Errors
    /// [`RosterError`].
    pub fn roster(&self, at_secs: u64) -> Result<Roster, RosterError> {
        let active = self.nodes.iter().filter(|(_, node)| node.active);
        let members = active.map(|(number, node)| node.member(*number));
        Roster::new(members.collect(), at_secs)
    }

    /// Takes an event of a block of that time; those of other contracts, and ones that can't be read,
    /// change nothing. They must come in their order.
    pub fn on_log(&mut self, suite: &Suite, found: &FoundLog, timestamp: u64) -> Change {
        let at = found.log.address;
        let change = if at == suite.registry {
            self.on_registry(found, timestamp)
        } else if at == suite.capacity {
            self.on_capacity(found)
        } else if at == suite.reservations {
            self.on_reservations(found)
        } else if at == suite.token {
            self.on_transfer(suite, found)
        } else {
            None
        };
        change.unwrap_or(Change::Kept)
    }

    fn on_registry(&mut self, found: &FoundLog, timestamp: u64) -> Option<Change> {
        let log = &found.log;
        let topic = log.topics().first()?;
        match *topic {
            Registry::FarmAdded::SIGNATURE_HASH => {
                let event = Registry::FarmAdded::decode_log(log).ok()?;
                self.farms = self.farms.max(event.farm);
            }
            Registry::NodeAdded::SIGNATURE_HASH => {
                let event = Registry::NodeAdded::decode_log(log).ok()?;
                let node = Node {
                    farm: event.farm,
                    signer: event.signer,
                    mesh_key: event.mesh.key,
                    claimed: caps(&event.caps),
                    reserved: Caps::default(),
                    active: true,
                    plot: None,
                    salt: None,
                    proven_until: 0,
                    released_until: 0,
                    since_secs: timestamp,
                    stake: U256::ZERO,
                    leaving: U256::ZERO,
                };
                self.nodes.insert(event.node, node);
                self.awaits_stake = Some((found.transaction, event.node));
            }
            Registry::KeyRotated::SIGNATURE_HASH => {
                let event = Registry::KeyRotated::decode_log(log).ok()?;
                let node = self.nodes.get_mut(&event.node)?;
                (node.signer, node.mesh_key) = (event.signer, event.mesh.key);
            }
            Registry::CapsChanged::SIGNATURE_HASH => {
                let event = Registry::CapsChanged::decode_log(log).ok()?;
                self.nodes.get_mut(&event.node)?.claimed = caps(&event.caps);
                return Some(Change::Reserved(event.node));
            }
            Registry::StateChanged::SIGNATURE_HASH => {
                let event = Registry::StateChanged::decode_log(log).ok()?;
                let node = self.nodes.get_mut(&event.node)?;
                node.active = event.state == ACTIVE;
                if node.active {
                    node.since_secs = timestamp;
                }
            }
            _ => return self.on_stake(found, timestamp),
        }
        Some(Change::Kept)
    }

    fn on_stake(&mut self, found: &FoundLog, timestamp: u64) -> Option<Change> {
        let log = &found.log;
        match *log.topics().first()? {
            Registry::StakeAdded::SIGNATURE_HASH => {
                let event = Registry::StakeAdded::decode_log(log).ok()?;
                let node = self.nodes.get_mut(&event.node)?;
                let sum = node.stake.saturating_add(event.amount);
                // What is added has no age: the node gets younger, as in the Registry.
                let age = U256::from(timestamp.saturating_sub(node.since_secs));
                let age = age.saturating_mul(node.stake).checked_div(sum.max(U256::ONE));
                let age = age.and_then(|age| u64::try_from(age).ok()).unwrap_or(0);
                node.since_secs = timestamp.saturating_sub(age);
                node.stake = sum;
            }
            Registry::StakeLeaving::SIGNATURE_HASH => {
                let event = Registry::StakeLeaving::decode_log(log).ok()?;
                self.nodes.get_mut(&event.node)?.leaving = event.amount;
            }
            Registry::StakeWithdrawn::SIGNATURE_HASH => {
                let event = Registry::StakeWithdrawn::decode_log(log).ok()?;
                let node = self.nodes.get_mut(&event.node)?;
                node.stake = node.stake.saturating_sub(event.amount);
                node.leaving = U256::ZERO;
            }
            Registry::Slashed::SIGNATURE_HASH => {
                let event = Registry::Slashed::decode_log(log).ok()?;
                let node = self.nodes.get_mut(&event.node)?;
                node.stake = node.stake.saturating_sub(event.amount);
                node.leaving = node.leaving.min(node.stake);
            }
            _ => return None,
        }
        Some(Change::Kept)
    }

    /// `NodeAdded` does not tell the stake; the transfer that follows it in the transaction does.
    fn on_transfer(&mut self, suite: &Suite, found: &FoundLog) -> Option<Change> {
        let event = GridToken::Transfer::decode_log(&found.log).ok()?;
        let (_, number) = self.awaits_stake.filter(|(transaction, _)| {
            *transaction == found.transaction && event.to == suite.registry
        })?;
        self.awaits_stake = None;
        self.nodes.get_mut(&number)?.stake = event.value;
        Some(Change::Kept)
    }

    fn on_capacity(&mut self, found: &FoundLog) -> Option<Change> {
        let log = &found.log;
        match *log.topics().first()? {
            Capacity::SaltDrawn::SIGNATURE_HASH => {
                let event = Capacity::SaltDrawn::decode_log(log).ok()?;
                self.nodes.get_mut(&event.node)?.salt = Some(event.salt);
                Some(Change::Kept)
            }
            Capacity::PlotCommitted::SIGNATURE_HASH => {
                let event = Capacity::PlotCommitted::decode_log(log).ok()?;
                let plot = PlotRecord { root: event.root, bytes_len: event.bytesLen };
                self.nodes.get_mut(&event.node)?.plot = Some(plot);
                Some(Change::Plot(event.node, plot))
            }
            Capacity::NodeProven::SIGNATURE_HASH => {
                let event = Capacity::NodeProven::decode_log(log).ok()?;
                self.nodes.get_mut(&event.node)?.proven_until = event.until;
                Some(Change::Kept)
            }
            Capacity::Challenged::SIGNATURE_HASH => {
                let event = Capacity::Challenged::decode_log(log).ok()?;
                Some(Change::Challenged(event.data.challenge))
            }
            Capacity::Answered::SIGNATURE_HASH => {
                let event = Capacity::Answered::decode_log(log).ok()?;
                Some(Change::ChallengeOver(event.id))
            }
            Capacity::Released::SIGNATURE_HASH => {
                let event = Capacity::Released::decode_log(log).ok()?;
                Some(Change::ChallengeOver(event.id))
            }
            Capacity::Failed::SIGNATURE_HASH => {
                let event = Capacity::Failed::decode_log(log).ok()?;
                Some(Change::ChallengeOver(event.id))
            }
            Capacity::EpochPosted::SIGNATURE_HASH => {
                let event = Capacity::EpochPosted::decode_log(log).ok()?.data;
                self.posted.insert(event.epoch, (event.posted.clone(), event.data));
                while self.posted.len() > POSTED_MAX {
                    self.posted.pop_first();
                }
                Some(Change::Posted(event.posted, event.data))
            }
            Capacity::EpochVoided::SIGNATURE_HASH => {
                let event = Capacity::EpochVoided::decode_log(log).ok()?;
                self.posted.remove(&event.epoch);
                Some(Change::Voided(event.epoch))
            }
            Capacity::Demanded::SIGNATURE_HASH => {
                let event = Capacity::Demanded::decode_log(log).ok()?.data;
                self.record(&event.posted);
                Some(Change::Demanded(event.demand, event.posted))
            }
            Capacity::DemandAnswered::SIGNATURE_HASH => {
                let event = Capacity::DemandAnswered::decode_log(log).ok()?.data;
                self.record(&event.posted);
                Some(Change::DemandAnswered(event.id, event.posted))
            }
            Capacity::Seated::SIGNATURE_HASH => {
                let event = Capacity::Seated::decode_log(log).ok()?.data;
                Some(Change::Seated(Jury::from(&event)))
            }
            Capacity::Voted::SIGNATURE_HASH => {
                let event = Capacity::Voted::decode_log(log).ok()?;
                Some(Change::Voted(event.id, event.node, event.isTrue))
            }
            _ => None,
        }
    }

    /// A demand has changed an epoch's record.
    fn record(&mut self, posted: &Capacity::Epoch) {
        if let Some((known, _)) = self.posted.get_mut(&posted.epoch) {
            *known = posted.clone();
        }
    }

    fn on_reservations(&mut self, found: &FoundLog) -> Option<Change> {
        let log = &found.log;
        match *log.topics().first()? {
            Reservations::Offered::SIGNATURE_HASH => {
                let event = Reservations::Offered::decode_log(log).ok()?;
                let it = &event.terms.caps;
                let caps = Caps {
                    cores: it.cores,
                    mem_mib: it.memMiB,
                    ssd_mib: it.ssdMiB,
                    hdd_mib: it.hddMiB,
                    mbps: it.mbps,
                };
                self.offers.insert(event.offer, (event.node, caps));
                Some(Change::Kept)
            }
            Reservations::Reserved::SIGNATURE_HASH => {
                let event = Reservations::Reserved::decode_log(log).ok()?;
                self.reservations.insert(event.id, event.offer);
                self.reserve(event.offer, |used, more| used.saturating_add(more))
            }
            Reservations::Closed::SIGNATURE_HASH => {
                let event = Reservations::Closed::decode_log(log).ok()?;
                self.release(event.id, event.end)
            }
            Reservations::Depleted::SIGNATURE_HASH => {
                let event = Reservations::Depleted::decode_log(log).ok()?;
                self.release(event.id, event.end)
            }
            _ => None,
        }
    }

    fn release(&mut self, reservation: u64, end: U256) -> Option<Change> {
        let offer = self.reservations.remove(&reservation)?;
        let (number, _) = *self.offers.get(&offer)?;
        let node = self.nodes.get_mut(&number)?;
        node.released_until = node.released_until.max(end.saturating_to());
        self.reserve(offer, |used, less| used.saturating_sub(less))
    }

    fn reserve(&mut self, offer: u32, apply: impl Fn(u64, u64) -> u64) -> Option<Change> {
        let (number, caps) = *self.offers.get(&offer)?;
        let used = &mut self.nodes.get_mut(&number)?.reserved;
        // Each fits its field: what is reserved is a part of what is claimed.
        let small = |used: u64| u32::try_from(used).unwrap_or(u32::MAX);
        let cores = small(apply(used.cores.into(), caps.cores.into()));
        used.cores = u16::try_from(cores).unwrap_or(u16::MAX);
        used.mem_mib = small(apply(used.mem_mib.into(), caps.mem_mib.into()));
        used.ssd_mib = apply(used.ssd_mib, caps.ssd_mib);
        used.hdd_mib = apply(used.hdd_mib, caps.hdd_mib);
        used.mbps = small(apply(used.mbps.into(), caps.mbps.into()));
        Some(Change::Reserved(number))
    }
}

impl Node {
    /// As it takes part in an epoch that begins now, by its number.
    #[must_use]
    pub fn member(&self, number: u32) -> Member {
        Member {
            node: number,
            farm: self.farm,
            signer: self.signer,
            stake: self.stake.saturating_sub(self.leaving),
            since_secs: self.since_secs,
            claimed: self.claimed,
            reserved: self.reserved,
            plot: self.plot,
            salt: self.salt,
            // What is public of it can't be told from the chain.
            place: None,
        }
    }

    /// Since when it is silent: a week later anyone can park it (`Registry.park`).
    #[must_use]
    pub fn silent_since(&self) -> u64 {
        self.proven_until.max(self.since_secs)
    }

    /// What it claims and nobody has reserved.
    #[must_use]
    pub fn idle(&self) -> Caps {
        let (all, used) = (&self.claimed, &self.reserved);
        Caps {
            cores: all.cores.saturating_sub(used.cores),
            mem_mib: all.mem_mib.saturating_sub(used.mem_mib),
            ssd_mib: all.ssd_mib.saturating_sub(used.ssd_mib),
            hdd_mib: all.hdd_mib.saturating_sub(used.hdd_mib),
            mbps: all.mbps.saturating_sub(used.mbps),
        }
    }
}

fn caps(it: &Registry::Caps) -> Caps {
    Caps {
        cores: it.cores,
        mem_mib: it.memMiB,
        ssd_mib: it.ssdMiB,
        hdd_mib: it.hddMiB,
        mbps: it.mbps,
    }
}
