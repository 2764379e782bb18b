//! The host's own network card on the mesh: a Linux TUN that hands over super-frames.
//!
//! With IFF_VNET_HDR and the offloads CSUM, TSO4, TSO6 and, from Linux 6.2 on, USO4 and USO6, each
//! read and write is one frame of up to 64 KiB with a [`VirtioNetHeader`] in front, so that a system
//! call and a walk through the stack are paid once for some fifty packets.
//!
//! The card needs CAP_NET_ADMIN in the network namespace that it is made in. It goes away with the
//! process.

mod device;
mod rtnetlink;

use std::io::{IoSlice, IoSliceMut};
use std::net::Ipv6Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use net_vdev::offload::{
    Accepts, HeaderError, PACKET_BYTES_MAX, TUN_HEADER_BYTES, VirtioNetHeader,
};
use rustix::io::Errno;

use self::rtnetlink::{Interface, LinkSettings};

const DEVICE: &str = "/dev/net/tun";
/// The longest name of an interface, without the final zero.
const NAME_BYTES_MAX: usize = 15;
/// How many frames wait for us at most: of large ones more than TCP ever has in flight, and of small
/// ones a burst.
const QUEUE_FRAMES: u32 = 500;

/// What a card is to be.
#[derive(Debug, Clone)]
pub struct TunConfig {
    /// The interface's name, at most 15 bytes.
    pub name: String,
    /// The largest packet, in bytes; at least 1,280 for IPv6.
    pub mtu: u16,
    /// Its addresses. The prefix says what is routed to it: /7 for the whole mesh.
    pub addresses: Vec<(Ipv6Addr, u8)>,
    /// What else is routed to it; the host speaks from its first address then.
    pub routes: Vec<(Ipv6Addr, u8)>,
    /// How many packets a super-frame stands for at most: as many as one batch of the socket takes.
    pub segments_max: u16,
}

/// Why there is no card.
#[derive(Debug, thiserror::Error)]
pub enum TunError {
    /// The kernel has no TUN driver, or the container no node of it.
    #[error(
        "there is no {DEVICE}: load the driver (modprobe tun), or give the container the device"
    )]
    NoDriver,
    /// No CAP_NET_ADMIN.
    #[error(
        "no permission to make the network interface {name}: it takes CAP_NET_ADMIN (run as root, \
         or `setcap cap_net_admin+ep` on the program)"
    )]
    Permission {
        /// The interface's name.
        name: String,
    },
    /// Another program has an interface of this name.
    #[error("the network interface {name} is in use: choose another name or stop who has it")]
    Busy {
        /// The interface's name.
        name: String,
    },
    /// Not a name for an interface.
    #[error("{name:?} can't be the name of a network interface: 1 to 15 bytes, no slash or space")]
    Name {
        /// What was asked for.
        name: String,
    },
    /// Any other refusal.
    #[error("the network interface {name} can't be made: {source}")]
    Refused {
        /// The interface's name.
        name: String,
        /// What the kernel said.
        #[source]
        source: Errno,
    },
}

/// Why no frame was read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The kernel's error; the card may be gone.
    #[error("reading from the TUN failed: {0}")]
    Io(#[from] Errno),
    /// A frame with offloads that were not asked for: it is lost, the next may be right.
    #[error("a frame that was not offered: {0}")]
    Header(#[from] HeaderError),
    /// A frame without a packet.
    #[error("a frame of {0} bytes")]
    Short(usize),
}

/// An open card.
#[derive(Debug)]
pub struct Tun {
    device: OwnedFd,
    name: String,
    accepts: Accepts,
}

impl Tun {
    /// Makes the card, gives it its addresses, and takes it up.
    ///
    /// # Errors
    /// [`TunError`], which says what to do.
    pub fn open(config: &TunConfig) -> Result<Self, TunError> {
        let name = config.name.clone();
        let is_name = (1..=NAME_BYTES_MAX).contains(&name.len())
            && !name.contains(|c: char| c == '/' || c == '%' || c.is_whitespace() || c == '\0')
            && name != "."
            && name != "..";
        if !is_name {
            return Err(TunError::Name { name });
        }
        if !Path::new(DEVICE).exists() {
            return Err(TunError::NoDriver);
        }
        let refused = |errno| refusal(name.clone(), errno);
        let device = device::open(DEVICE, &name).map_err(|errno| match errno {
            // What has the name is no TUN.
            Errno::INVAL if Interface::find(&name).is_ok() => TunError::Busy { name: name.clone() },
            _ => refused(errno),
        })?;
        let takes_udp = device::set_offloads(&device).map_err(refused)?;
        let interface = Interface::find(&name).map_err(refused)?;
        let settings = LinkSettings {
            mtu: u32::from(config.mtu),
            queue_frames: QUEUE_FRAMES,
            segments_max: u32::from(config.segments_max),
        };
        interface.take_up(settings).map_err(refused)?;
        for (address, prefix) in &config.addresses {
            interface.add_address(*address, *prefix).map_err(refused)?;
        }
        if let Some((source, _)) = config.addresses.first() {
            for route in &config.routes {
                interface.add_route(*route, *source).map_err(refused)?;
            }
        }
        let accepts = Accepts { tcp_v4: true, tcp_v6: true, udp: takes_udp };
        Ok(Self { device, name, accepts })
    }

    /// The interface's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Which super-frames [`Tun::write`] takes.
    #[must_use]
    pub fn accepts(&self) -> Accepts {
        self.accepts
    }

    /// Reads the next frame that the host sends into the start of `packet`, which has room for
    /// [`PACKET_BYTES_MAX`] bytes; returns its header and its length. `None` if there is none now.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn read(&self, packet: &mut [u8]) -> Result<Option<(VirtioNetHeader, usize)>, ReadError> {
        debug_assert!(packet.len() >= PACKET_BYTES_MAX, "a frame would be cut");
        let mut header = [0; TUN_HEADER_BYTES];
        let mut places = [IoSliceMut::new(&mut header), IoSliceMut::new(packet)];
        let len = match rustix::io::readv(&self.device, &mut places) {
            Ok(len) => len,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        match len.checked_sub(TUN_HEADER_BYTES) {
            None | Some(0) => Err(ReadError::Short(len)),
            Some(len) => Ok(Some((VirtioNetHeader::parse(&header)?, len))),
        }
    }

    /// Gives the host a frame.
    ///
    /// # Errors
    /// The kernel's: the frame is malformed (EINVAL), there is no memory, or the card is down (EIO).
    /// The frame is lost, the next may be taken.
    pub fn write(&self, header: &VirtioNetHeader, packet: &[u8]) -> Result<(), Errno> {
        let [header @ .., _, _] = header.bytes(1);
        rustix::io::writev(&self.device, &[IoSlice::new(&header), IoSlice::new(packet)])?;
        Ok(())
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}

fn refusal(name: String, errno: Errno) -> TunError {
    match errno {
        Errno::NOENT | Errno::NODEV | Errno::NXIO => TunError::NoDriver,
        Errno::PERM | Errno::ACCESS => TunError::Permission { name },
        Errno::BUSY | Errno::EXIST => TunError::Busy { name },
        _ => TunError::Refused { name, source: errno },
    }
}
