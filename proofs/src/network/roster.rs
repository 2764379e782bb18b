//! Who takes part in an epoch: what the chain says of each node when the epoch begins. All draw from
//! the same roster, or they draw differently; its digest tells.

use std::net::IpAddr;

use hypha_chain::{Address, B256, U256, keccak256};

use crate::binding::Binding;
use crate::cpu::THREADS_MAX;
use crate::store::PlotRecord;
use crate::verifier::Claim;

/// One token, in its smallest unit.
const TOKEN: u128 = 1_000_000_000_000_000_000;
/// Stake beyond so many tokens doesn't count: sums of weights must fit 64 bits.
const STAKE_MAX: u64 = 1 << 32;
/// Age beyond so many days doesn't count.
pub const AGE_DAYS_MAX: u64 = 365;
/// More nodes than a roster can have.
pub const MEMBERS_MAX: usize = 1 << 22;

/// Capacities, as the contracts count them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Caps {
    /// Logical processors.
    pub cores: u16,
    /// Memory in MiB.
    pub mem_mib: u32,
    /// Flash in MiB.
    pub ssd_mib: u64,
    /// Spinning disks in MiB.
    pub hdd_mib: u64,
    /// Bandwidth in Mbit/s.
    pub mbps: u32,
}

/// Where a node is in the Internet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Its address: a /24 of IPv4 or a /48 of IPv6 is one place.
    pub address: IpAddr,
    /// Its autonomous system, if known.
    pub asn: Option<u32>,
}

/// A node, as the chain knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// Its number.
    pub node: u32,
    /// Its farm's number.
    pub farm: u32,
    /// The address of its chain key.
    pub signer: Address,
    /// Its stake that is not leaving, in the token's smallest unit.
    pub stake: U256,
    /// Since when it takes part, in seconds since 1970: `Registry.nodeAt(…).since`.
    pub since_secs: u64,
    /// What it claims.
    pub claimed: Caps,
    /// What of that is reserved: `Reservations.usedOf`.
    pub reserved: Caps,
    /// Its committed plot.
    pub plot: Option<PlotRecord>,
    /// The salt of its filler.
    pub salt: Option<B256>,
    /// Where it is, if that is public. Unknown places keep nobody apart.
    pub place: Option<Place>,
}

/// What can keep two nodes apart in the Internet.
type Network = [u8; 7];

/// All active nodes at the beginning of an epoch, ready for draws.
#[derive(Debug, Clone)]
pub struct Roster {
    /// In the order of their numbers.
    members: Vec<Member>,
    /// The sums of the weights up to and with each.
    sums: Vec<u64>,
    digest: B256,
}

/// Why a roster can't be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RosterError {
    /// One number twice.
    #[error("node {0} is twice in the roster")]
    Twice(u32),
    /// More than [`MEMBERS_MAX`].
    #[error("{0} nodes are more than a roster can have")]
    Size(usize),
}

impl Roster {
    /// A roster of active nodes, at an instant in seconds since 1970 that all agree on: when the
    /// epoch begins.
    ///
    /// # Errors
    /// [`RosterError`].
    pub fn new(mut members: Vec<Member>, at_secs: u64) -> Result<Self, RosterError> {
        if members.len() > MEMBERS_MAX {
            return Err(RosterError::Size(members.len()));
        }
        members.sort_by_key(|member| member.node);
        for two in members.windows(2) {
            if let [a, b] = two
                && a.node == b.node
            {
                return Err(RosterError::Twice(a.node));
            }
        }
        let mut sum = 0_u64;
        let mut bytes = Vec::with_capacity(members.len() * 40);
        let sums = members
            .iter()
            .map(|member| {
                let weight = member.weight(at_secs);
                sum += weight;
                member.put_drawn(&mut bytes, weight);
                sum
            })
            .collect();
        let digest = keccak256(bytes);
        Ok(Self { members, sums, digest })
    }

    /// All nodes, in the order of their numbers.
    #[must_use]
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// A node.
    #[must_use]
    pub fn member(&self, node: u32) -> Option<&Member> {
        let at = self.members.binary_search_by_key(&node, |member| member.node).ok()?;
        self.members.get(at)
    }

    /// Of all that draws depend on. Who has another one draws other witnesses.
    #[must_use]
    pub fn digest(&self) -> B256 {
        self.digest
    }

    /// The sum of all weights.
    pub(super) fn weight(&self) -> u64 {
        self.sums.last().copied().unwrap_or(0)
    }

    /// The place in [`Self::members`] that a number below [`Self::weight`] falls on.
    pub(super) fn at_weight(&self, number: u64) -> usize {
        self.sums.partition_point(|sum| *sum <= number)
    }

    /// Whether the member at a place can be drawn at all.
    pub(super) fn has_weight(&self, at: usize) -> bool {
        let before = at.checked_sub(1).and_then(|at| self.sums.get(at)).copied().unwrap_or(0);
        self.sums.get(at).is_some_and(|sum| *sum > before)
    }
}

impl Member {
    /// What it weighs in draws of witnesses: stake × age, both in whole units: tokens, and days of which
    /// the first has begun, so that new nodes can be drawn too.
    #[must_use]
    pub fn weight(&self, at_secs: u64) -> u64 {
        let days = at_secs.saturating_sub(self.since_secs) / 86_400 + 1;
        self.tokens().min(STAKE_MAX) * days.min(AGE_DAYS_MAX)
    }

    /// What it weighs in votes, as `Registry.weightOf` of an active node: tokens × seconds. Stake that came
    /// later than the instant has no part in it.
    #[must_use]
    pub fn juror_weight(&self, at_secs: u64) -> u128 {
        let age = at_secs.saturating_sub(self.since_secs).min(AGE_DAYS_MAX * 86_400);
        u128::from(self.tokens()) * u128::from(age)
    }

    /// Its stake in whole tokens.
    fn tokens(&self) -> u64 {
        u64::try_from(self.stake / U256::from(TOKEN)).unwrap_or(u64::MAX)
    }

    /// What is asked of the node in a pulse: what it claims and nobody has reserved. `table` is its
    /// record of the day.
    #[must_use]
    pub fn claim(&self, binding: &Binding, table: Option<PlotRecord>) -> Claim {
        Claim {
            binding: Binding { node: self.node, ..*binding },
            signer: self.signer,
            threads: self.claimed.cores.saturating_sub(self.reserved.cores).min(THREADS_MAX),
            table: table.filter(|_| self.claimed.mem_mib > self.reserved.mem_mib),
            plot: self.plot.filter(|plot| plot.bytes_len > 0),
        }
    }

    /// Whether anything is asked of it at all.
    pub(super) fn is_asked(&self) -> bool {
        self.claimed.cores > self.reserved.cores
            || self.claimed.mem_mib > self.reserved.mem_mib
            || self.plot.is_some_and(|plot| plot.bytes_len > 0)
    }

    /// Whether two nodes are in one network.
    pub(super) fn shares_network(&self, other: &Self) -> bool {
        let network = |member: &Self| member.place.map(|place| place.network());
        network(self).is_some_and(|mine| network(other) == Some(mine))
    }

    /// Whether two nodes are in one autonomous system.
    pub(super) fn shares_system(&self, other: &Self) -> bool {
        let system = |member: &Self| member.place.and_then(|place| place.asn);
        system(self).is_some_and(|mine| system(other) == Some(mine))
    }

    fn put_drawn(&self, out: &mut Vec<u8>, weight: u64) {
        out.extend(self.node.to_be_bytes());
        out.extend(self.farm.to_be_bytes());
        out.extend(self.signer);
        out.extend(weight.to_be_bytes());
        let place = self.place.map(|place| (place.network(), place.asn));
        out.push(u8::from(place.is_some()));
        if let Some((network, asn)) = place {
            out.extend(network);
            out.extend(asn.unwrap_or(0).to_be_bytes());
        }
    }
}

impl Place {
    fn network(&self) -> Network {
        match self.address.to_canonical() {
            IpAddr::V4(address) => {
                let [a, b, c, _] = address.octets();
                [4, a, b, c, 0, 0, 0]
            }
            IpAddr::V6(address) => {
                let [a, b, c, d, e, f, ..] = address.octets();
                [6, a, b, c, d, e, f]
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(node: u32) -> Member {
        Member {
            node,
            farm: node,
            signer: Address::repeat_byte(node as u8),
            stake: U256::from(10 * TOKEN),
            since_secs: 0,
            claimed: Caps::default(),
            reserved: Caps::default(),
            plot: None,
            salt: None,
            place: None,
        }
    }

    #[test]
    fn weights_are_whole_tokens_times_begun_days_up_to_their_limits() {
        let mut it = member(1);
        assert_eq!(it.weight(0), 10);
        assert_eq!(it.weight(86_399), 10);
        assert_eq!(it.weight(86_400), 20);
        assert_eq!(it.weight(u64::MAX), 10 * AGE_DAYS_MAX);
        it.stake += U256::from(TOKEN - 1);
        assert_eq!(it.weight(0), 10);
        it.stake = U256::MAX;
        assert_eq!(it.weight(u64::MAX), STAKE_MAX * AGE_DAYS_MAX);
        assert!(u128::from(it.weight(u64::MAX)) * (MEMBERS_MAX as u128) < 1 << 63);
    }

    #[test]
    fn a_number_falls_on_the_node_whose_part_of_the_sum_it_is_in() {
        let mut members = vec![member(3), member(1), member(2)];
        members[2].stake = U256::ZERO;
        let roster = Roster::new(members, 0).unwrap();
        assert_eq!(roster.weight(), 20);
        let nodes: Vec<u32> =
            (0..20).map(|number| roster.members()[roster.at_weight(number)].node).collect();
        assert_eq!(nodes, [[1; 10], [3; 10]].concat());
        assert!(roster.has_weight(0) && !roster.has_weight(1) && roster.has_weight(2));
        assert!(!roster.has_weight(3));
    }

    #[test]
    fn a_node_that_is_twice_there_is_refused() {
        let twice = Roster::new(vec![member(1), member(2), member(1)], 0);
        assert_eq!(twice.err(), Some(RosterError::Twice(1)));
    }

    #[test]
    fn networks_are_24_bits_of_one_kind_and_48_of_the_other() {
        let at = |address: &str| {
            let place = Some(Place { address: address.parse().unwrap(), asn: None });
            Member { place, ..member(1) }
        };
        assert!(at("192.0.2.1").shares_network(&at("192.0.2.200")));
        assert!(at("192.0.2.1").shares_network(&at("::ffff:192.0.2.9")));
        assert!(!at("192.0.2.1").shares_network(&at("192.0.3.1")));
        assert!(at("2001:db8:1::1").shares_network(&at("2001:db8:1:ffff::2")));
        assert!(!at("2001:db8:1::1").shares_network(&at("2001:db8:2::1")));
        assert!(!member(1).shares_network(&member(1)), "an unknown place is no place");
    }

    #[test]
    fn what_is_reserved_is_not_asked_for() {
        let binding = Binding {
            chain_id: 1,
            registry: Address::ZERO,
            capacity: Address::ZERO,
            disputes: Address::ZERO,
            node: 9,
        };
        let mut it = member(1);
        it.claimed = Caps { cores: 8, mem_mib: 100, ..Caps::default() };
        it.reserved = Caps { cores: 3, mem_mib: 100, ..Caps::default() };
        let table = Some(PlotRecord { root: B256::ZERO, bytes_len: 1 << 20 });
        let claim = it.claim(&binding, table);
        assert_eq!((claim.binding.node, claim.threads, claim.table), (1, 5, None));
        it.claimed.cores = u16::MAX;
        assert_eq!(it.claim(&binding, table).threads, THREADS_MAX);
    }
}
