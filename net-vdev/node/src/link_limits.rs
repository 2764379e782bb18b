//! The one thing about an interface that only rtnetlink can set: how large its super-frames get.
//!
//! ```text
//! nlmsghdr    len u32, type u16 = RTM_NEWLINK, flags u16, sequence u32, port u32
//! ifinfomsg   family u8, pad u8, type u16, index i32, flags u32, change u32
//! rtattr      len u16, type u16 = IFLA_GSO_MAX_SEGS, value u32
//! ```
//! All in the machine's byte order (rtnetlink(7)).

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netdevice, recv, sendto,
    socket_with,
};

const NLMSG_ERROR: u16 = 2;
const RTM_NEWLINK: u16 = 16;
/// NLM_F_REQUEST and NLM_F_ACK.
const FLAGS: u16 = 1 | 4;
const IFLA_GSO_MAX_SEGS: u16 = 40;
const MESSAGE_BYTES: u32 = 16 + 16 + 8;

/// What an interface is limited to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LinkLimits {
    /// The packets that a super-frame of it stands for at most.
    pub segments: u32,
}

/// Limits the interface `name` of this network namespace.
pub(crate) fn set_link_limits(name: &str, limits: LinkLimits) -> Result<(), Errno> {
    // Protocol 0 of netlink is rtnetlink.
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    let index = netdevice::name_to_index(&socket, name)?;
    let request = request(index, limits);
    sendto(&socket, &request, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
    let mut reply = [0; 1024];
    let (_, len) = recv(&socket, &mut reply, RecvFlags::empty())?;
    match refusal(reply.get(..len).unwrap_or_default()) {
        None => Ok(()),
        Some(errno) => Err(errno),
    }
}

fn request(index: u32, limits: LinkLimits) -> Vec<u8> {
    let mut bytes = MESSAGE_BYTES.to_ne_bytes().to_vec();
    for half in [RTM_NEWLINK, FLAGS] {
        bytes.extend(half.to_ne_bytes());
    }
    // Sequence and port; then family, type, index, flags and change of the interface.
    for word in [1, 0, 0, index, 0, 0] {
        bytes.extend(word.to_ne_bytes());
    }
    for half in [8, IFLA_GSO_MAX_SEGS] {
        bytes.extend(half.to_ne_bytes());
    }
    bytes.extend(limits.segments.to_ne_bytes());
    bytes
}

/// The error that an acknowledgement carries, if it is one and not zero.
fn refusal(reply: &[u8]) -> Option<Errno> {
    let kind = reply.get(4..)?.first_chunk().map(|bytes| u16::from_ne_bytes(*bytes))?;
    let code = reply.get(16..)?.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes))?;
    (kind == NLMSG_ERROR && code != 0).then(|| Errno::from_raw_os_error(code.saturating_neg()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_as_long_as_it_says() {
        let bytes = request(3, LinkLimits { segments: 47 });
        assert_eq!(bytes.len(), MESSAGE_BYTES as usize);
        assert_eq!(bytes[20..24], 3_u32.to_ne_bytes());
        assert_eq!(bytes[36..], 47_u32.to_ne_bytes());
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
        assert_eq!(refusal(&reply(NLMSG_ERROR, 0)), None);
        assert_eq!(refusal(&reply(NLMSG_ERROR, -1)), Some(Errno::PERM));
        assert_eq!(refusal(&[0; 7]), None);
    }
}
