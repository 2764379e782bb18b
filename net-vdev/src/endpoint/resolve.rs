//! Packets for members whose key is not known yet. A session needs the whole key; an address is
//! only its hash. The owner finds the key out, from a router or from its own tables.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};

use super::{DropReason, Endpoint, Event, Strangers};

/// How many addresses are asked for at a time, and how many packets wait for each.
const ADDRESSES_MAX: usize = 64;
const PACKETS_MAX: usize = 4;
/// How long packets wait for an answer.
const WAIT_NS: u64 = 5_000_000_000;

/// What waits.
#[derive(Default)]
pub(super) struct Unresolved {
    waiting: BTreeMap<Ipv6Addr, Waiting>,
}

struct Waiting {
    until_ns: u64,
    packets: VecDeque<Vec<u8>>,
}

impl Unresolved {
    /// How many packets wait.
    pub(super) fn len(&self) -> usize {
        self.waiting.values().map(|waiting| waiting.packets.len()).sum()
    }

    /// When the first of them has waited for too long.
    pub(super) fn deadline_ns(&self) -> Option<u64> {
        self.waiting.values().map(|waiting| waiting.until_ns).min()
    }

    /// Whether packets wait for this address.
    pub(super) fn has(&self, address: &Ipv6Addr) -> bool {
        self.waiting.contains_key(address)
    }

    /// Drops what has waited for too long; returns how many packets that were.
    pub(super) fn expire(&mut self, now_ns: u64) -> usize {
        let before = self.len();
        self.waiting.retain(|_, waiting| now_ns < waiting.until_ns);
        before - self.len()
    }

    /// Takes out what waits for an address.
    pub(super) fn take(&mut self, address: &Ipv6Addr) -> VecDeque<Vec<u8>> {
        self.waiting.remove(address).map(|waiting| waiting.packets).unwrap_or_default()
    }
}

impl Endpoint {
    /// Keeps a packet for an address that no peer has, and asks whose it is.
    pub(super) fn ask_for(
        &mut self,
        now_ns: u64,
        address: IpAddr,
        packet: &[u8],
    ) -> Result<(), DropReason> {
        let IpAddr::V6(address) = address else { return Err(DropReason::OutboundNoRoute) };
        let [first, ..] = address.octets();
        let may_ask = self.is_routed && self.strangers_welcome != Strangers::Refused;
        if !may_ask || first & 0xfe != 0x04 {
            return Err(DropReason::OutboundNoRoute);
        }
        let waiting = &mut self.unresolved.waiting;
        let is_new = !waiting.contains_key(&address);
        if is_new && waiting.len() >= ADDRESSES_MAX {
            return Err(DropReason::OutboundWaiting);
        }
        let until_ns = now_ns.saturating_add(WAIT_NS);
        let entry = waiting
            .entry(address)
            .or_insert_with(|| Waiting { until_ns, packets: VecDeque::new() });
        entry.packets.push_back(packet.to_vec());
        let surplus = entry.packets.len() > PACKETS_MAX;
        if surplus {
            entry.packets.pop_front();
        }
        if is_new {
            self.tell(Event::Resolve(address));
        }
        if surplus { Err(DropReason::OutboundWaiting) } else { Ok(()) }
    }

    /// Asks once more about all that packets wait for: what was asked before may have been lost.
    pub(super) fn ask_again(&mut self) {
        let addresses: Vec<_> = self.unresolved.waiting.keys().copied().collect();
        addresses.into_iter().for_each(|address| self.tell(Event::Resolve(address)));
    }

    /// Nobody has this address, or not any more, as far as the owner can find out: what waits for it is
    /// dropped, and it is nobody's alias.
    pub fn give_up(&mut self, address: &Ipv6Addr) {
        self.aliases.remove(address);
        let dropped = self.unresolved.take(address).len();
        self.counters.drop_many(DropReason::OutboundNoRoute, dropped as u64);
    }
}
