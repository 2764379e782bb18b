//! Two ends of a session, joined by hand.

use std::sync::Arc;

use storage_vdev::VolumeKey;
use storage_vdev::service::Rights;
use storage_vdev::wire::handshake::{self, HelloReader, Received};
use storage_vdev::wire::server::Event;
use storage_vdev::wire::{Client, ClientConfig, Credential, NodeKey, ServerSession, VolumeSigner};

pub(crate) const VOLUME: [u8; 16] = [7; 16];
pub(crate) const STORE: &str = "disk0";
/// The unix time at the node.
pub(crate) const TODAY: u64 = 1_800_000_000;

pub(crate) fn node_key() -> NodeKey {
    NodeKey::new([1; 32])
}

pub(crate) fn client_key() -> NodeKey {
    NodeKey::new([2; 32])
}

pub(crate) fn signer(volume: [u8; 16]) -> Arc<VolumeSigner> {
    Arc::new(VolumeSigner::derive(&VolumeKey::new(&[9; 32]), volume))
}

pub(crate) fn config(credentials: Vec<Credential>) -> Arc<ClientConfig> {
    Arc::new(ClientConfig {
        node: node_key().public(),
        store: STORE.to_owned(),
        identity: client_key(),
        credentials,
        timeout_ns: 1_000,
        ping_after_ns: 100_000,
    })
}

pub(crate) fn owner() -> Credential {
    Credential::Signer { signer: signer(VOLUME), rights: Rights::ALL }
}

/// A client and a node's session with it, handshake done.
pub(crate) struct Pair {
    pub(crate) client: Client,
    pub(crate) server: ServerSession,
}

pub(crate) fn to_client(client: &mut Client, bytes: &[u8]) {
    client.read_buffer().extend_from_slice(bytes);
    client.receive();
}

pub(crate) fn take_from_client(client: &mut Client) -> Vec<u8> {
    let mut bytes = Vec::new();
    while !client.outgoing().is_empty() {
        let count = client.outgoing().len();
        bytes.extend_from_slice(client.outgoing());
        client.sent(count);
    }
    bytes
}

pub(crate) fn take_from_server(server: &mut ServerSession) -> Vec<u8> {
    let mut bytes = Vec::new();
    while !server.outgoing().is_empty() {
        let count = server.outgoing().len();
        bytes.extend_from_slice(server.outgoing());
        server.sent(count);
    }
    bytes
}

/// Reads a client's hello as a node does.
pub(crate) fn receive_hello(bytes: &[u8]) -> Received {
    let mut reader = HelloReader::default();
    reader.push(bytes);
    handshake::receive(&node_key(), reader.message().unwrap().unwrap(), [4; 32]).unwrap()
}

impl Pair {
    /// A session in which nothing was said yet.
    pub(crate) fn silent(credentials: Vec<Credential>, seed: u8) -> Self {
        let mut client = Client::new(config(credentials), [seed; 32]).unwrap();
        let hello = take_from_client(&mut client);
        let (server, welcome) = ServerSession::welcome(receive_hello(&hello)).unwrap();
        to_client(&mut client, &welcome);
        assert!(client.is_open());
        Self { client, server }
    }

    /// A session whose client may do everything with [`VOLUME`].
    pub(crate) fn open(seed: u8) -> Self {
        let mut pair = Self::silent(vec![owner()], seed);
        let events = pair.carry_up();
        assert!(matches!(events[..], [Event::Authorised { .. }]), "{events:?}");
        pair.carry_down();
        pair
    }

    /// Carries what the client sent; what the node is asked.
    pub(crate) fn carry_up(&mut self) -> Vec<Event> {
        let bytes = take_from_client(&mut self.client);
        let mut events = Vec::new();
        self.server.read_buffer().extend_from_slice(&bytes);
        self.server.receive(TODAY, |event| events.push(event)).unwrap();
        events
    }

    /// Carries what the node sent.
    pub(crate) fn carry_down(&mut self) {
        let bytes = take_from_server(&mut self.server);
        to_client(&mut self.client, &bytes);
    }
}
