//! TCP connections and listeners.
//!
//! Nagle's algorithm is off: a task writes whole responses, and the stack sends once per turn
//! anyway. Acknowledgements are delayed by 20 ms: a request's is carried by its response,
//! a response's by the next request, so neither costs an exit. A bulk transfer doesn't wait for
//! it, as smoltcp acknowledges at once what exceeds one segment.

use alloc::vec::Vec;
use core::future::poll_fn;
use core::task::{Context, Poll};

use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::{ConnectError, RecvError, Socket, SocketBuffer, State};
use smoltcp::time::Duration;
use smoltcp::wire::{IpEndpoint, IpListenEndpoint};

use super::{Net, NetError};

/// Below Linux's 40 ms and the least retransmission time-out in use (200 ms), above the time that a
/// durable write takes.
const ACK_DELAY: Duration = Duration::from_millis(20);
/// How long a dropped connection may take to say goodbye to a silent peer.
const GOODBYE: Duration = Duration::from_secs(10);
/// How long a handshake may hang in a listener's backlog.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// The bytes that one connection buffers in each direction.
#[derive(Debug, Clone, Copy)]
pub struct BufferSizes {
    /// What may arrive before it's read: the receive window.
    pub receive_bytes: usize,
    /// What may be written before it's acknowledged.
    pub transmit_bytes: usize,
}

impl BufferSizes {
    fn socket(self) -> Socket<'static> {
        let receive = SocketBuffer::new(alloc::vec![0; self.receive_bytes]);
        let transmit = SocketBuffer::new(alloc::vec![0; self.transmit_bytes]);
        let mut socket = Socket::new(receive, transmit);
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(Some(ACK_DELAY));
        socket
    }
}

/// A port on which connections are accepted. Dropping it refuses those in the backlog.
pub struct TcpListener {
    net: Net,
    port: u16,
    sizes: BufferSizes,
    backlog: Vec<SocketHandle>,
}

impl TcpListener {
    /// Listens on `port` of every address, with room for `backlog` connections that are not
    /// accepted yet; each has its buffers from the start.
    ///
    /// # Errors
    /// [`NetError::PortInUse`]; [`NetError::Unaddressable`] for port 0.
    pub fn bind(
        net: &Net,
        port: u16,
        backlog: usize,
        sizes: BufferSizes,
    ) -> Result<Self, NetError> {
        let mut inner = net.inner.borrow_mut();
        let taken = inner.sockets.iter().any(|(_, socket)| match socket {
            smoltcp::socket::Socket::Tcp(socket) => socket.listen_endpoint().port == port,
            _ => false,
        });
        if taken && port != 0 {
            return Err(NetError::PortInUse);
        }
        let mut handles = Vec::with_capacity(backlog);
        for _ in 0..backlog.max(1) {
            let handle = inner.sockets.add(sizes.socket());
            handles.push(handle);
            listen(inner.tcp(handle), port)?;
        }
        drop(inner);
        Ok(Self { net: net.clone(), port, sizes, backlog: handles })
    }

    /// The next connection. Cancelling loses none.
    pub async fn accept(&mut self) -> TcpStream {
        poll_fn(|context| self.poll_accept(context)).await
    }

    fn poll_accept(&mut self, context: &Context<'_>) -> Poll<TcpStream> {
        let mut inner = self.net.inner.borrow_mut();
        for slot in &mut self.backlog {
            let socket = inner.tcp(*slot);
            match socket.state() {
                State::Listen | State::SynReceived => {}
                // A handshake that failed for good leaves the socket closed.
                State::Closed => {
                    // Port 0 was refused by `bind`, and a closed socket can listen.
                    let listening = listen(socket, self.port);
                    debug_assert!(listening.is_ok());
                }
                // Established, or already closed by the peer with data still to be read.
                _ => {
                    socket.set_timeout(None);
                    let accepted = *slot;
                    *slot = inner.sockets.add(self.sizes.socket());
                    let listening = listen(inner.tcp(*slot), self.port);
                    debug_assert!(listening.is_ok());
                    drop(inner);
                    return Poll::Ready(TcpStream { net: self.net.clone(), handle: accepted });
                }
            }
            inner.tcp(*slot).register_recv_waker(context.waker());
        }
        Poll::Pending
    }
}

fn listen(socket: &mut Socket<'static>, port: u16) -> Result<(), NetError> {
    socket.set_timeout(Some(HANDSHAKE));
    socket.listen(IpListenEndpoint::from(port)).map_err(|_| NetError::Unaddressable)
}

impl Drop for TcpListener {
    fn drop(&mut self) {
        let mut inner = self.net.inner.borrow_mut();
        for handle in self.backlog.drain(..) {
            inner.tcp(handle).abort();
            inner.closing.push_back(handle);
        }
    }
}

/// A connection. Dropping it closes it in good order in the background.
pub struct TcpStream {
    net: Net,
    handle: SocketHandle,
}

impl TcpStream {
    /// Opens a connection to `remote`. There is no time-out but the caller's: dropping the future
    /// gives up.
    ///
    /// # Errors
    /// [`NetError::Unaddressable`]; [`NetError::Reset`] if the peer refuses.
    pub async fn connect(
        net: &Net,
        remote: IpEndpoint,
        sizes: BufferSizes,
    ) -> Result<Self, NetError> {
        let stream = Self::start_connect(net, remote, sizes)?;
        poll_fn(|context| {
            stream.with(|socket| match socket.state() {
                State::SynSent | State::SynReceived => {
                    socket.register_send_waker(context.waker());
                    Poll::Pending
                }
                State::Closed => Poll::Ready(Err(NetError::Reset)),
                _ => Poll::Ready(Ok(())),
            })
        })
        .await?;
        Ok(stream)
    }

    fn start_connect(net: &Net, remote: IpEndpoint, sizes: BufferSizes) -> Result<Self, NetError> {
        let inner = &mut *net.inner.borrow_mut();
        if super::is_local(inner.interface.ip_addrs(), &remote.addr) {
            // The card doesn't loop back, and waiting for an answer would hide that.
            return Err(NetError::Unaddressable);
        }
        let port = inner.ephemeral_port();
        let mut socket = sizes.socket();
        socket.connect(inner.interface.context(), remote, port).map_err(|error| match error {
            ConnectError::Unaddressable => NetError::Unaddressable,
            ConnectError::InvalidState => NetError::PortInUse,
        })?;
        let handle = inner.sockets.add(socket);
        Ok(Self { net: net.clone(), handle })
    }

    /// Appends what has arrived to `buffer`, at least one byte and at most `bytes_max`. Returns how
    /// many; 0 means that the peer has closed its side.
    ///
    /// # Errors
    /// [`NetError::Reset`].
    pub async fn read(
        &mut self,
        buffer: &mut Vec<u8>,
        bytes_max: usize,
    ) -> Result<usize, NetError> {
        poll_fn(|context| {
            self.with(|socket| {
                if socket.can_recv() {
                    return Poll::Ready(receive(socket, buffer, bytes_max));
                }
                if socket.may_recv() {
                    socket.register_recv_waker(context.waker());
                    return Poll::Pending;
                }
                Poll::Ready(receive(socket, buffer, 0))
            })
        })
        .await
    }

    /// Queues all of `bytes`, waiting while the send buffer is full. It goes out with the next
    /// wait.
    ///
    /// # Errors
    /// [`NetError::Reset`]; [`NetError::Closed`] after [`TcpStream::close`].
    pub async fn write_all(&mut self, mut bytes: &[u8]) -> Result<(), NetError> {
        poll_fn(|context| {
            self.with(|socket| {
                while !bytes.is_empty() {
                    if !socket.may_send() {
                        let closed = socket.state() != State::Closed;
                        let error = if closed { NetError::Closed } else { NetError::Reset };
                        return Poll::Ready(Err(error));
                    }
                    let sent = socket.send_slice(bytes).unwrap_or(0);
                    bytes = bytes.get(sent..).unwrap_or(&[]);
                    if sent == 0 {
                        socket.register_send_waker(context.waker());
                        return Poll::Pending;
                    }
                }
                Poll::Ready(Ok(()))
            })
        })
        .await
    }

    /// Says that nothing more will be written. What the peer sends can still be read.
    pub fn close(&mut self) {
        self.with(Socket::close);
    }

    /// Ends the connection at once with a reset, and drops what is queued.
    pub fn abort(self) {
        self.with(Socket::abort);
    }

    /// The peer's end, while there is one.
    #[must_use]
    pub fn remote(&self) -> Option<IpEndpoint> {
        self.with(|socket| socket.remote_endpoint())
    }

    fn with<R>(&self, f: impl FnOnce(&mut Socket<'static>) -> R) -> R {
        f(self.net.inner.borrow_mut().tcp(self.handle))
    }
}

fn receive(
    socket: &mut Socket<'_>,
    buffer: &mut Vec<u8>,
    bytes_max: usize,
) -> Result<usize, NetError> {
    let mut total = 0;
    // The receive buffer is a ring: what has arrived lies in at most two pieces.
    for _ in 0..2 {
        let left = bytes_max - total;
        let taken = socket.recv(|bytes| {
            let bytes = bytes.get(..left.min(bytes.len())).unwrap_or(&[]);
            buffer.extend_from_slice(bytes);
            (bytes.len(), bytes.len())
        });
        match taken {
            Ok(0) => break,
            Ok(taken) => total += taken,
            Err(RecvError::Finished) => break,
            Err(RecvError::InvalidState) if total == 0 => return Err(NetError::Reset),
            Err(RecvError::InvalidState) => break,
        }
    }
    Ok(total)
}

impl Drop for TcpStream {
    fn drop(&mut self) {
        let mut inner = self.net.inner.borrow_mut();
        let socket = inner.tcp(self.handle);
        socket.close();
        socket.set_timeout(Some(GOODBYE));
        inner.closing.push_back(self.handle);
    }
}
