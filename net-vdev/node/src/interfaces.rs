//! What the kernel says about this host's interfaces and routes: a place that no interface leads to
//! any more can't be reached as of now, which nobody needs to find out by probes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::AddressFamily;

use crate::netlink::{self, NLM_F_REQUEST, attribute, message, push_attribute, word};

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;

const NLM_F_DUMP: u16 = 0x300;
/// Links; addresses and routes of both families.
const GROUPS: u32 = 0x1 | 0x10 | 0x40 | 0x100 | 0x400;

const IFF_UP: u32 = 1;
const IFF_LOOPBACK: u32 = 8;
const IFF_POINTOPOINT: u32 = 0x10;
const IFF_MULTICAST: u32 = 0x1000;
const IFF_RUNNING: u32 = 0x40;
const IFF_LOWER_UP: u32 = 0x10000;
const RTMSG_BYTES: usize = 12;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;

/// How many messages are read at a time before others have their turn.
const READS_MAX: usize = 256;

/// What became of a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// No interface that works leads there.
    Lost,
    /// Another interface leads there than before.
    Elsewhere,
}

/// The interfaces of this network namespace.
pub(crate) struct Interfaces {
    news: OwnedFd,
    questions: OwnedFd,
    /// Which interfaces there are, and whether they carry anything.
    carry: BTreeMap<u32, bool>,
    /// Those of them that are networks with neighbours.
    networks: BTreeSet<u32>,
    /// Which interface leads to a place.
    via: BTreeMap<IpAddr, u32>,
    buffer: Vec<u8>,
}

impl Interfaces {
    /// Listens to the kernel.
    pub(crate) fn open() -> Result<Self, Errno> {
        let interfaces = Self {
            news: netlink::socket(GROUPS)?,
            questions: netlink::socket(0)?,
            carry: BTreeMap::new(),
            networks: BTreeSet::new(),
            via: BTreeMap::new(),
            buffer: vec![0; 32 * 1024],
        };
        interfaces.list()?;
        Ok(interfaces)
    }

    /// Asks for all interfaces: the answers come among the news.
    fn list(&self) -> Result<(), Errno> {
        netlink::send(&self.news, &message(RTM_GETLINK, NLM_F_REQUEST | NLM_F_DUMP, &[0; 16]))
    }

    /// Takes what the kernel said; whether a place may have become unreachable by it.
    pub(crate) fn take(&mut self) -> bool {
        let mut changed = false;
        for _ in 0..READS_MAX {
            match netlink::receive(&self.news, &mut self.buffer) {
                Ok(Some(messages)) => {
                    for (kind, body) in messages {
                        changed |= heed(&mut self.carry, kind, body);
                        note_network(&mut self.networks, kind, body);
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    // Too much at once (ENOBUFS): some news are lost.
                    tracing::debug!(%error, "listening to the kernel about interfaces");
                    changed = true;
                    if self.list().is_err() {
                        break;
                    }
                }
            }
        }
        changed
    }

    /// Looks up how places are reached that were not known yet, and forgets all others.
    pub(crate) fn watch(&mut self, places: &BTreeSet<SocketAddr>) {
        let known: BTreeSet<IpAddr> = places.iter().map(SocketAddr::ip).collect();
        self.via.retain(|place, _| known.contains(place));
        for place in places {
            if !self.via.contains_key(&place.ip())
                && let Ok(interface) = self.leads_to(*place)
            {
                self.via.insert(place.ip(), interface);
            }
        }
    }

    /// Looks up how all places are reached now; returns those that can't be as before.
    pub(crate) fn check(&mut self, places: &BTreeSet<SocketAddr>) -> Vec<(SocketAddr, Trouble)> {
        let mut troubles = Vec::new();
        for place in places {
            let interface = self.leads_to(*place).ok();
            // One that is not known yet is one that was just made.
            let carries = |interface| self.carry.get(&interface).copied().unwrap_or(true);
            let Some(interface) = interface.filter(|interface| carries(*interface)) else {
                troubles.push((*place, Trouble::Lost));
                continue;
            };
            let before = self.via.insert(place.ip(), interface);
            if before.is_some_and(|before| before != interface) {
                troubles.push((*place, Trouble::Elsewhere));
            }
        }
        troubles
    }

    /// The interfaces that are networks with neighbours, and work.
    pub(crate) fn networks(&self) -> impl Iterator<Item = u32> {
        self.networks.iter().copied().filter(|index| self.carry.get(index) == Some(&true))
    }

    /// The interface that datagrams to this place leave by.
    fn leads_to(&mut self, place: SocketAddr) -> Result<u32, Errno> {
        if let SocketAddr::V6(v6) = place
            && v6.scope_id() != 0
        {
            return Ok(v6.scope_id());
        }
        // An answer to an earlier question that was not read is none to this one.
        while netlink::receive(&self.questions, &mut self.buffer)?.is_some() {}
        netlink::send(&self.questions, &route_question(place.ip()))?;
        let answers = netlink::receive(&self.questions, &mut self.buffer)?;
        let mut answers = answers.ok_or(Errno::AGAIN)?;
        let (kind, body) = answers.next().ok_or(Errno::PROTO)?;
        let interface = attribute(body, RTMSG_BYTES, RTA_OIF).and_then(|value| word(value, 0));
        interface.filter(|_| kind == RTM_NEWROUTE).ok_or(Errno::NETUNREACH)
    }
}

impl AsFd for Interfaces {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.news.as_fd()
    }
}

/// Takes one message in; whether a place may have become unreachable by it.
fn heed(carry: &mut BTreeMap<u32, bool>, kind: u16, body: &[u8]) -> bool {
    match kind {
        RTM_NEWLINK => {
            let (Some(index), Some(flags)) = (word(body, 4), word(body, 8)) else { return false };
            const WORKS: u32 = IFF_UP | IFF_RUNNING | IFF_LOWER_UP;
            let carries = flags & WORKS == WORKS;
            carry.insert(index, carries) == Some(true) && !carries
        }
        RTM_DELLINK => word(body, 4).is_some_and(|index| carry.remove(&index).is_some()),
        RTM_NEWADDR | RTM_DELADDR | RTM_NEWROUTE | RTM_DELROUTE => true,
        _ => false,
    }
}

/// Keeps track of which interfaces are networks: neither loopback nor tunnels.
fn note_network(networks: &mut BTreeSet<u32>, kind: u16, body: &[u8]) {
    let (Some(index), Some(flags)) = (word(body, 4), word(body, 8)) else { return };
    const KINDS: u32 = IFF_LOOPBACK | IFF_POINTOPOINT | IFF_MULTICAST;
    match kind {
        RTM_NEWLINK if flags & KINDS == IFF_MULTICAST => _ = networks.insert(index),
        RTM_NEWLINK | RTM_DELLINK => _ = networks.remove(&index),
        _ => {}
    }
}

fn route_question(place: IpAddr) -> Vec<u8> {
    let (family, bits, address) = match place {
        IpAddr::V4(ip) => (AddressFamily::INET, 32, ip.octets().to_vec()),
        IpAddr::V6(ip) => (AddressFamily::INET6, 128, ip.octets().to_vec()),
    };
    let mut body = vec![0; RTMSG_BYTES];
    if let Some([to_family, to_bits]) = body.first_chunk_mut() {
        *to_family = u8::try_from(family.as_raw()).unwrap_or(0);
        *to_bits = bits;
    }
    push_attribute(&mut body, RTA_DST, &address);
    message(RTM_GETROUTE, NLM_F_REQUEST, &body)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, flags: u32) -> Vec<u8> {
        [[0; 4], index.to_ne_bytes(), flags.to_ne_bytes(), [0; 4]].concat()
    }

    #[test]
    fn only_an_interface_that_carried_something_can_be_lost() {
        let mut carry = BTreeMap::new();
        let works = IFF_UP | IFF_RUNNING | IFF_LOWER_UP;
        assert!(!heed(&mut carry, RTM_NEWLINK, &link(3, IFF_UP)));
        assert!(!heed(&mut carry, RTM_NEWLINK, &link(3, works)));
        assert!(!heed(&mut carry, RTM_NEWLINK, &link(3, works)));
        assert!(heed(&mut carry, RTM_NEWLINK, &link(3, works & !IFF_LOWER_UP)));
        assert!(heed(&mut carry, RTM_DELLINK, &link(3, 0)));
        assert!(!heed(&mut carry, RTM_DELLINK, &link(3, 0)));
        assert!(!heed(&mut carry, RTM_NEWLINK, &[0; 7]));
        assert!(carry.is_empty());
    }

    #[test]
    fn a_loopback_and_a_tunnel_are_no_networks() {
        let mut networks = BTreeSet::new();
        for (index, flags) in [
            (1, IFF_LOOPBACK | IFF_MULTICAST),
            (2, IFF_MULTICAST | IFF_UP),
            (3, IFF_POINTOPOINT | IFF_MULTICAST),
            (4, IFF_UP),
        ] {
            note_network(&mut networks, RTM_NEWLINK, &link(index, flags));
        }
        assert_eq!(networks, BTreeSet::from([2]));
        note_network(&mut networks, RTM_DELLINK, &link(2, 0));
        assert_eq!(networks, BTreeSet::new());
    }

    #[test]
    fn the_kernel_knows_the_way_to_this_host_and_a_place_keeps_it() {
        let Ok(mut interfaces) = Interfaces::open() else {
            println!("SKIPPED: no rtnetlink here");
            return;
        };
        interfaces.take();
        assert!(interfaces.carry.values().any(|carries| *carries), "{:?}", interfaces.carry);
        let places = BTreeSet::from([SocketAddr::from(([127, 0, 0, 1], 9))]);
        interfaces.watch(&places);
        assert_eq!(interfaces.via.len(), 1);
        assert_eq!(interfaces.check(&places), []);
        interfaces.watch(&BTreeSet::new());
        assert!(interfaces.via.is_empty());
    }
}
