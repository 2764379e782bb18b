//! UDP sockets.

use alloc::vec::Vec;
use core::future::poll_fn;
use core::task::Poll;

use smoltcp::iface::SocketHandle;
use smoltcp::socket::udp::{PacketBuffer, PacketMetadata, SendError, Socket};
use smoltcp::wire::IpEndpoint;

use super::{Net, NetError};

/// How many datagrams a socket holds in each direction.
const DATAGRAMS: usize = 32;
/// How many bytes of datagrams a socket holds in each direction.
const BUFFER_BYTES: usize = 64 << 10;

/// A UDP socket on one port of every address.
pub struct UdpSocket {
    net: Net,
    handle: SocketHandle,
}

impl UdpSocket {
    /// Binds `port`, or one of the stack's choice if it is 0.
    ///
    /// # Errors
    /// [`NetError::PortInUse`].
    pub fn bind(net: &Net, port: u16) -> Result<Self, NetError> {
        let mut inner = net.inner.borrow_mut();
        let port = if port == 0 { inner.ephemeral_port() } else { port };
        let taken = inner.sockets.iter().any(|(_, socket)| match socket {
            smoltcp::socket::Socket::Udp(socket) => socket.endpoint().port == port,
            _ => false,
        });
        if taken {
            return Err(NetError::PortInUse);
        }
        let buffer = || {
            let slots = alloc::vec![PacketMetadata::EMPTY; DATAGRAMS];
            PacketBuffer::new(slots, alloc::vec![0; BUFFER_BYTES])
        };
        let mut socket = Socket::new(buffer(), buffer());
        socket.bind(port).map_err(|_| NetError::PortInUse)?;
        let handle = inner.sockets.add(socket);
        drop(inner);
        Ok(Self { net: net.clone(), handle })
    }

    /// Queues a datagram to `remote`; it goes out with the next wait. Waits while the send buffer
    /// is full.
    ///
    /// # Errors
    /// [`NetError::Unaddressable`]: also a datagram longer than the socket's buffer.
    pub async fn send_to(&self, datagram: &[u8], remote: IpEndpoint) -> Result<(), NetError> {
        if datagram.len() > BUFFER_BYTES {
            return Err(NetError::Unaddressable);
        }
        poll_fn(|context| {
            self.with(|socket| match socket.send_slice(datagram, remote) {
                Ok(()) => Poll::Ready(Ok(())),
                Err(SendError::Unaddressable) => Poll::Ready(Err(NetError::Unaddressable)),
                Err(SendError::BufferFull) => {
                    socket.register_send_waker(context.waker());
                    Poll::Pending
                }
            })
        })
        .await
    }

    /// The next datagram, and who sent it.
    pub async fn receive_from(&self) -> (Vec<u8>, IpEndpoint) {
        poll_fn(|context| {
            self.with(|socket| match socket.recv() {
                Ok((bytes, meta)) => Poll::Ready((bytes.to_vec(), meta.endpoint)),
                Err(_) => {
                    socket.register_recv_waker(context.waker());
                    Poll::Pending
                }
            })
        })
        .await
    }

    fn with<R>(&self, f: impl FnOnce(&mut Socket<'static>) -> R) -> R {
        f(self.net.inner.borrow_mut().sockets.get_mut(self.handle))
    }
}

impl Drop for UdpSocket {
    fn drop(&mut self) {
        self.net.inner.borrow_mut().sockets.remove(self.handle);
    }
}
