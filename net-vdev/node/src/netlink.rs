//! Messages of rtnetlink(7), written and read.
//!
//! ```text
//! nlmsghdr    len u32, type u16, flags u16, sequence u32, port u32
//! ifinfomsg   family u8, pad u8, type u16, index u32, flags u32, change u32   (RTM_*LINK)
//! ifaddrmsg   family u8, prefix u8, flags u8, scope u8, index u32             (RTM_*ADDR)
//! rtmsg       family u8, prefix u8, four of no meaning, table u8, protocol u8, scope u8, kind u8,
//!             flags u32                                                       (RTM_*ROUTE)
//! rtattr …    len u16, type u16, value, to a multiple of 4 bytes
//! ```
//! All in the machine's byte order.

use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, sendto, socket_with,
};

pub(crate) const NLMSG_ERROR: u16 = 2;
pub(crate) const NLM_F_REQUEST: u16 = 1;

const HEADER_BYTES: usize = 16;

/// A socket for questions and, if `groups` is not 0, for news of these multicast groups.
pub(crate) fn socket(groups: u32) -> Result<OwnedFd, Errno> {
    // Protocol 0 of netlink is rtnetlink.
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    if groups != 0 {
        bind(&socket, &SocketAddrNetlink::new(0, groups))?;
    }
    Ok(socket)
}

/// Sends a request to the kernel.
pub(crate) fn send(socket: &OwnedFd, request: &[u8]) -> Result<(), Errno> {
    sendto(socket, request, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
    Ok(())
}

/// The next messages that are there; `None` if there are none now.
pub(crate) fn receive<'a>(
    socket: &OwnedFd,
    buffer: &'a mut [u8],
) -> Result<Option<Messages<'a>>, Errno> {
    match recv(socket, &mut *buffer, RecvFlags::DONTWAIT) {
        Ok((_, len)) => Ok(Some(Messages(buffer.get(..len).unwrap_or_default()))),
        Err(Errno::AGAIN | Errno::INTR) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Messages one after the other: their types and bodies.
pub(crate) struct Messages<'a>(pub(crate) &'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let len = usize::try_from(word(self.0, 0)?).ok()?;
        let kind = half(self.0, 4)?;
        let body = self.0.get(HEADER_BYTES..len)?;
        self.0 = self.0.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, body))
    }
}

/// The value of an attribute behind the first `skip` bytes of a body.
pub(crate) fn attribute(body: &[u8], skip: usize, wanted: u16) -> Option<&[u8]> {
    let mut rest = body.get(skip..)?;
    loop {
        let len = usize::from(half(rest, 0)?);
        let value = rest.get(4..len)?;
        if half(rest, 2)? == wanted {
            return Some(value);
        }
        rest = rest.get(len.next_multiple_of(4)..)?;
    }
}

/// The 32 bits at an offset.
pub(crate) fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// Appends an attribute whose value is a multiple of 4 bytes, at most 16.
pub(crate) fn push_attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let len = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    body.extend(len.to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend_from_slice(value);
}

/// A message of this type.
pub(crate) fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(HEADER_BYTES + body.len()).unwrap_or(u32::MAX);
    let mut bytes = len.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    // Sequence and port.
    bytes.extend([0; 8]);
    bytes.extend_from_slice(body);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_and_attributes_are_found_again_and_what_is_cut_is_not() {
        let mut body = vec![7; 12];
        push_attribute(&mut body, 4, &5u32.to_ne_bytes());
        push_attribute(&mut body, 9, &[1; 16]);
        let two = [message(24, 0, &body), message(16, 0, &[1, 2])].concat();
        let found: Vec<_> = Messages(&two).collect();
        assert_eq!(found, [(24, body.as_slice()), (16, &[1, 2])]);
        assert_eq!(attribute(&body, 12, 4), Some(5u32.to_ne_bytes().as_slice()));
        assert_eq!(attribute(&body, 12, 9), Some([1; 16].as_slice()));
        assert_eq!(attribute(&body, 12, 10), None);
        for len in 0..two.len() {
            assert!(Messages(&two[..len]).count() < 2);
        }
        for len in 0..body.len() {
            assert_eq!(attribute(&body[..len], 12, 10), None);
        }
    }

    #[test]
    fn an_attribute_of_no_length_ends_the_search() {
        assert_eq!(attribute(&[0; 64], 0, 1), None);
        assert_eq!(Messages(&[0; 64]).next(), None);
    }
}
