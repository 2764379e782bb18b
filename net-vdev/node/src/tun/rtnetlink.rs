//! What the kernel is told about an interface: MTU, queue, size of its super-frames, up, addresses.

use std::net::Ipv6Addr;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, netdevice, recv};

use crate::netlink::{self, NLMSG_ERROR, message, push_attribute};

const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;

const NLM_F_REQUEST_AND_ACK: u16 = 0x1 | 0x4;
const NLM_F_CREATE_AND_EXCL: u16 = 0x400 | 0x200;

const IFF_UP: u32 = 1;
const IFLA_MTU: u16 = 4;
const IFLA_TXQLEN: u16 = 13;
const IFLA_GSO_MAX_SEGS: u16 = 40;

/// Usable at once: nobody else on a TUN could have the address.
const IFA_F_NODAD: u8 = 0x02;
const IFA_ADDRESS: u16 = 1;

const RT_TABLE_MAIN: u8 = 254;
/// Made by hand, as opposed to by the kernel.
const RTPROT_STATIC: u8 = 4;
const RTN_UNICAST: u8 = 1;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_PREFSRC: u16 = 7;

/// What an interface is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LinkSettings {
    /// The largest packet, in bytes.
    pub mtu: u32,
    /// How many frames wait for their reader at most.
    pub queue_frames: u32,
    /// How many packets a super-frame stands for at most.
    pub segments_max: u32,
}

/// An interface of this network namespace.
pub(super) struct Interface {
    socket: OwnedFd,
    index: u32,
}

impl Interface {
    pub(super) fn find(name: &str) -> Result<Self, Errno> {
        let socket = netlink::socket(0)?;
        let index = netdevice::name_to_index(&socket, name)?;
        Ok(Self { socket, index })
    }

    /// Gives the interface its settings and takes it up.
    pub(super) fn take_up(&self, settings: LinkSettings) -> Result<(), Errno> {
        self.request(&link_request(self.index, settings))
    }

    /// Gives it an address, and a route to its prefix.
    pub(super) fn add_address(&self, address: Ipv6Addr, prefix: u8) -> Result<(), Errno> {
        self.request(&address_request(self.index, address, prefix))
    }

    /// Routes a prefix to it, for which the host speaks from `source`.
    pub(super) fn add_route(
        &self,
        (first, prefix): (Ipv6Addr, u8),
        source: Ipv6Addr,
    ) -> Result<(), Errno> {
        self.request(&route_request(self.index, first, prefix, source))
    }

    fn request(&self, request: &[u8]) -> Result<(), Errno> {
        netlink::send(&self.socket, request)?;
        let mut reply = [0; 1024];
        let (_, len) = recv(&self.socket, &mut reply, RecvFlags::empty())?;
        outcome(reply.get(..len).unwrap_or_default())
    }
}

fn link_request(index: u32, settings: LinkSettings) -> Vec<u8> {
    let mut body = vec![0; 4];
    for word in [index, IFF_UP, IFF_UP] {
        body.extend(word.to_ne_bytes());
    }
    for (kind, value) in [
        (IFLA_MTU, settings.mtu),
        (IFLA_TXQLEN, settings.queue_frames),
        (IFLA_GSO_MAX_SEGS, settings.segments_max),
    ] {
        push_attribute(&mut body, kind, &value.to_ne_bytes());
    }
    message(RTM_NEWLINK, NLM_F_REQUEST_AND_ACK, &body)
}

fn address_request(index: u32, address: Ipv6Addr, prefix: u8) -> Vec<u8> {
    let family = u8::try_from(AddressFamily::INET6.as_raw()).unwrap_or(0);
    let mut body = vec![family, prefix, IFA_F_NODAD, 0];
    body.extend(index.to_ne_bytes());
    push_attribute(&mut body, IFA_ADDRESS, &address.octets());
    message(RTM_NEWADDR, NLM_F_REQUEST_AND_ACK | NLM_F_CREATE_AND_EXCL, &body)
}

fn route_request(index: u32, first: Ipv6Addr, prefix: u8, source: Ipv6Addr) -> Vec<u8> {
    let family = u8::try_from(AddressFamily::INET6.as_raw()).unwrap_or(0);
    let mut body = vec![family, prefix, 0, 0, RT_TABLE_MAIN, RTPROT_STATIC, 0, RTN_UNICAST];
    body.extend([0; 4]);
    push_attribute(&mut body, RTA_DST, &first.octets());
    push_attribute(&mut body, RTA_OIF, &index.to_ne_bytes());
    push_attribute(&mut body, RTA_PREFSRC, &source.octets());
    message(RTM_NEWROUTE, NLM_F_REQUEST_AND_ACK | NLM_F_CREATE_AND_EXCL, &body)
}

/// What an acknowledgement says: an error with code 0 is none.
fn outcome(reply: &[u8]) -> Result<(), Errno> {
    let kind = reply.get(4..).and_then(|rest| rest.first_chunk());
    let code = reply.get(16..).and_then(|rest| rest.first_chunk());
    match (kind.map(|bytes| u16::from_ne_bytes(*bytes)), code.map(|it| i32::from_ne_bytes(*it))) {
        (Some(NLMSG_ERROR), Some(0)) => Ok(()),
        (Some(NLMSG_ERROR), Some(code)) => Err(Errno::from_raw_os_error(code.saturating_neg())),
        _ => Err(Errno::PROTO),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_as_long_as_it_says() {
        let settings = LinkSettings { mtu: 1400, queue_frames: 500, segments_max: 45 };
        let v6 = address_request(3, Ipv6Addr::LOCALHOST, 7);
        let link = link_request(3, settings);
        for (request, len) in [(&link, 56), (&v6, 44)] {
            assert_eq!(request.len(), len);
            assert_eq!(request[..4], (len as u32).to_ne_bytes());
        }
        assert_eq!(link[20..24], 3_u32.to_ne_bytes());
        assert_eq!(link[52..], 45_u32.to_ne_bytes());
        assert_eq!(v6[16..20], [10, 7, 2, 0]);
    }

    #[test]
    fn an_acknowledgement_is_told_from_a_refusal() {
        let reply = |kind: u16, code: i32| {
            let mut bytes = vec![36, 0, 0, 0];
            bytes.extend(kind.to_ne_bytes());
            bytes.extend([0; 10]);
            bytes.extend(code.to_ne_bytes());
            bytes
        };
        assert_eq!(outcome(&reply(NLMSG_ERROR, 0)), Ok(()));
        assert_eq!(outcome(&reply(NLMSG_ERROR, -1)), Err(Errno::PERM));
        assert_eq!(outcome(&reply(RTM_NEWLINK, 0)), Err(Errno::PROTO));
        assert_eq!(outcome(&[0; 7]), Err(Errno::PROTO));
    }
}
