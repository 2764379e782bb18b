//! A node's end of a session, without I/O: requests come out with the rights of whoever asks,
//! answers go in.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::authorise::{Authorise, CapabilityError, VolumeCard};
use super::channel::{Channel, ChannelError};
use super::handshake::{HandshakeError, NodePublicKey, Received, Verdict};
use super::message::{
    self, ClientMessage, HEAD_BYTES, MESSAGE_BYTES_MAX, MessageError, ServerMessage,
};
use crate::keys::Uuid;
use crate::node::{NodeError, Request, Response};
use crate::service::{Grant, Grants, WriterKey};

/// The most bytes of a message before the first capability was shown.
pub const STRANGER_MESSAGE_BYTES_MAX: usize = 8192;
/// The most volumes of one session.
pub const VOLUMES_MAX: usize = 256;

/// Why a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// The stream is damaged.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// What arrived whole makes no sense.
    #[error(transparent)]
    Message(#[from] MessageError),
}

/// What a client asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A request: to be handled under [`ServerSession::grants`], and answered under `id`.
    Request {
        /// The client's number for it.
        id: u64,
        /// The request.
        request: Request,
    },
    /// The client showed a capability that counts; it was answered.
    Authorised {
        /// The volume.
        volume: Uuid,
        /// The writer key that signed; not compared with the pinned one yet.
        writer: WriterKey,
        /// The volume's card, if it came along: genuine under that key.
        card: Option<VolumeCard>,
    },
    /// The client showed a capability that doesn't count; it was answered.
    Refused(CapabilityError),
}

/// A session with one client.
pub struct ServerSession {
    channel: Channel,
    peer: NodePublicKey,
    binding: [u8; 32],
    grants: Grants,
    /// When grants end, in seconds since 1970.
    ends: BTreeMap<Uuid, u64>,
    authorised: bool,
}

impl ServerSession {
    /// Welcomes a client; returns the session and the bytes to send first.
    ///
    /// # Errors
    /// [`HandshakeError`] if the client's keys are of small order.
    pub fn welcome(received: Received) -> Result<(Self, Vec<u8>), HandshakeError> {
        let peer = received.peer;
        let (hello, keys) = received.answer(Verdict::Welcome)?;
        let channel = Channel::new(&keys).ok_or(HandshakeError::Forged)?;
        let session = Self {
            channel,
            peer,
            binding: keys.binding,
            grants: Grants::none(),
            ends: BTreeMap::new(),
            authorised: false,
        };
        Ok((session, hello))
    }

    /// The client's static key.
    #[must_use]
    pub fn peer(&self) -> NodePublicKey {
        self.peer
    }

    /// What the client may do at `unix_seconds`.
    pub fn grants(&mut self, unix_seconds: u64) -> &Grants {
        let grants = &mut self.grants;
        self.ends.retain(|volume, not_after| {
            let lives = unix_seconds <= *not_after;
            if !lives {
                grants.remove(volume);
            }
            lives
        });
        &self.grants
    }

    /// The buffer to append read bytes to; it has room.
    pub fn read_buffer(&mut self) -> &mut Vec<u8> {
        self.channel.read_buffer()
    }

    /// Takes what was appended to the read buffer; gives what the client asks for to `take`, in its
    /// order. Pings and capabilities are answered at once.
    ///
    /// # Errors
    /// [`SessionError`]: the session is over; what `take` was given before still counts.
    pub fn receive(
        &mut self,
        unix_seconds: u64,
        mut take: impl FnMut(Event),
    ) -> Result<(), SessionError> {
        loop {
            let stranger = !self.authorised;
            let limit = if stranger { STRANGER_MESSAGE_BYTES_MAX } else { MESSAGE_BYTES_MAX };
            let mut messages: Vec<Bytes> = Vec::new();
            let received = self.channel.receive(limit, |message| messages.push(message));
            for message in &messages {
                let (id, message) = message::decode_client(message)?;
                match message {
                    ClientMessage::Request(request) => take(Event::Request { id, request }),
                    ClientMessage::Ping => self.send(id, &ServerMessage::Pong)?,
                    ClientMessage::Authorise(authorise) => {
                        take(self.authorise(id, *authorise, unix_seconds)?);
                    }
                }
            }
            match received {
                // A large frame right behind the first capability: too large for a stranger, it may
                // fit now.
                Err(ChannelError::Length(_)) if stranger && self.authorised => {}
                other => return Ok(other?),
            }
        }
    }

    fn authorise(
        &mut self,
        id: u64,
        authorise: Authorise,
        unix_seconds: u64,
    ) -> Result<Event, SessionError> {
        if let Err(error) = authorise.verify(&self.binding, &self.peer, unix_seconds) {
            self.answer(id, Err(NodeError::Denied))?;
            return Ok(Event::Refused(error));
        }
        let not_after = authorise.not_after();
        let Authorise { volume, writer, rights, card, .. } = authorise;
        self.grants.set(volume, Grant { writer, rights });
        self.ends.remove(&volume);
        if let Some(not_after) = not_after {
            self.ends.insert(volume, not_after);
        }
        self.authorised = true;
        self.answer(id, Ok(Response::Done))?;
        Ok(Event::Authorised { volume, writer, card })
    }

    /// Queues the answer to request `id`.
    ///
    /// # Errors
    /// [`SessionError`]: the session is over.
    pub fn answer(
        &mut self,
        id: u64,
        result: Result<Response, NodeError>,
    ) -> Result<(), SessionError> {
        self.send(id, &ServerMessage::Answer(result))
    }

    fn send(&mut self, id: u64, message: &ServerMessage) -> Result<(), SessionError> {
        let size = HEAD_BYTES + message.payload_bytes() + 64;
        self.channel.send(size, |out| Ok(message::encode_server(id, message, out)?))
    }

    /// Gives memory back that is only kept to be used again: for a session that is idle.
    pub fn shrink(&mut self) {
        self.channel.shrink();
    }

    /// The bytes to write next; empty if there are none.
    #[must_use]
    pub fn outgoing(&self) -> &[u8] {
        self.channel.outgoing()
    }

    /// How many bytes wait to be written.
    #[must_use]
    pub fn outgoing_bytes(&self) -> usize {
        self.channel.outgoing_bytes()
    }

    /// So many bytes of [`ServerSession::outgoing`] were written.
    pub fn sent(&mut self, count: usize) {
        self.channel.sent(count);
    }
}
