//! The two requests of the TUN driver that have no safe wrapper.
#![expect(unsafe_code, reason = "ioctl: the kernel reads and writes what it is pointed to")]

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::ioctl::{IntegerSetter, Opcode, Updater, ioctl};

use super::NAME_BYTES_MAX;

/// `_IOW('T', 202, int)` and `_IOW('T', 208, unsigned int)` of `linux/if_tun.h`.
const TUNSETIFF: Opcode = 0x4004_54ca;
const TUNSETOFFLOAD: Opcode = 0x4004_54d0;

/// A TUN of packets without a link header, with `virtio_net_hdr` in front of each.
const IFF_TUN: u16 = 0x0001;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;

/// Checksums and TCP over IPv4 and IPv6.
const TUN_F_CSUM_AND_TSO: usize = 0x01 | 0x02 | 0x04;
/// UDP datagrams of one size over IPv4 and IPv6, from Linux 6.2 on.
const TUN_F_USO: usize = 0x20 | 0x40;

/// `struct ifreq` as TUNSETIFF reads it: name and flags, to its full size.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; NAME_BYTES_MAX + 1],
    flags: u16,
    rest: [u8; 22],
}

const _: () = assert!(size_of::<InterfaceRequest>() == 40, "struct ifreq has 40 bytes");

/// Opens the driver at `path` and makes the interface `name`, which must be at most
/// [`NAME_BYTES_MAX`] bytes. Reads and writes of it never block.
pub(super) fn open(path: &str, name: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let device = rustix::fs::open(path, flags, Mode::empty())?;
    let mut request = InterfaceRequest {
        name: [0; NAME_BYTES_MAX + 1],
        flags: IFF_TUN | IFF_NO_PI | IFF_VNET_HDR,
        rest: [0; 22],
    };
    let place = request.name.get_mut(..name.len().min(NAME_BYTES_MAX)).ok_or(Errno::INVAL)?;
    place.copy_from_slice(name.as_bytes().get(..place.len()).ok_or(Errno::INVAL)?);
    // SAFETY: TUNSETIFF reads and writes one `struct ifreq`, whose size and first fields `request`
    // has; every bit pattern is valid for it.
    unsafe { ioctl(&device, Updater::<TUNSETIFF, _>::new(&mut request)) }?;
    Ok(device)
}

/// Asks for super-frames; returns whether the kernel knows those of UDP.
pub(super) fn set_offloads(device: impl AsFd) -> Result<bool, Errno> {
    let set = |offloads: usize| {
        // SAFETY: TUNSETOFFLOAD takes a number by value and touches no memory of ours.
        unsafe { ioctl(&device, IntegerSetter::<TUNSETOFFLOAD>::new_usize(offloads)) }
    };
    set(TUN_F_CSUM_AND_TSO)?;
    Ok(set(TUN_F_CSUM_AND_TSO | TUN_F_USO).is_ok())
}
