//! One connection: who is at the other end, and frames.
//!
//! ```text
//!   both     "hypha peer 1\n\0\0\0" (16) ‖ chain id (8) ‖ Registry (20) ‖ node (4) ‖ nonce (32)
//!   both     signature (65) over keccak-256 of
//!            "hypha peer 1" ‖ chain id ‖ Registry ‖ own node ‖ other node ‖ own nonce ‖ other nonce
//!   then     frames: length (4) ‖ a message
//! ```
//!
//! That says where answers go and whom a message costs; what a message claims it proves by itself.
//! Somebody in the middle can pass everything on, and learns nothing that is not public.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use hypha_chain::key::{Key, Signature};
use hypha_chain::{Address, B256, keccak256};
use hypha_proofs::network::message::MESSAGE_BYTES_MAX;

use crate::clock::{monotonic_ns, random32};

const MAGIC: &[u8; 16] = b"hypha peer 1\n\0\0\0";
/// Bytes of a greeting.
pub const HELLO_BYTES: usize = 16 + 8 + 20 + 4 + 32;
/// How long a greeting may take.
pub(super) const GREETING_TIME: Duration = Duration::from_secs(5);

/// Who this node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// The chain's id.
    pub chain_id: u64,
    /// The contract Registry.
    pub registry: Address,
    /// The node's number.
    pub node: u32,
}

/// Why a connection is not used.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The line.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Something else speaks there, or of another network.
    #[error("no node of this network answers there")]
    Stranger,
    /// It is another node than was called, or says that it is this one.
    #[error("node {0} answers there")]
    Other(u32),
    /// It has not the node's key, or the node is not known.
    #[error("whoever answers there is not node {0}")]
    Forged(u32),
    /// Too long.
    #[error("a message of {0} bytes is too long")]
    Length(usize),
    /// The system has no randomness.
    #[error("the system gives no randomness")]
    Random,
}

impl Identity {
    /// This node's greeting.
    #[must_use]
    pub fn hello(&self, nonce: &[u8; 32]) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(self.chain_id.to_be_bytes());
        bytes.extend(self.registry);
        bytes.extend(self.node.to_be_bytes());
        bytes.extend(nonce);
        bytes
    }

    /// Node and nonce of a greeting, if it is of this network.
    #[must_use]
    pub fn read(&self, hello: &[u8; HELLO_BYTES]) -> Option<(u32, [u8; 32])> {
        let (rest, nonce) = hello.split_last_chunk::<32>()?;
        let (network, node) = rest.split_last_chunk::<4>()?;
        let ours = self.hello(&[0; 32]);
        (ours.get(..network.len())? == network).then_some((u32::from_be_bytes(*node), *nonce))
    }

    fn signed(&self, own: (u32, &[u8; 32]), other: (u32, &[u8; 32])) -> B256 {
        let mut bytes = b"hypha peer 1".to_vec();
        bytes.extend(self.chain_id.to_be_bytes());
        bytes.extend(self.registry);
        bytes.extend(own.0.to_be_bytes());
        bytes.extend(other.0.to_be_bytes());
        bytes.extend(own.1);
        bytes.extend(other.1);
        keccak256(bytes)
    }
}

/// Greets, and returns who is there. `called` is who should be; `signer` tells the key of a node.
pub(super) fn greet(
    stream: &mut TcpStream,
    identity: &Identity,
    key: &Key,
    called: Option<u32>,
    signer: impl Fn(u32) -> Option<Address>,
) -> Result<u32, LinkError> {
    let deadline_ns = monotonic_ns().saturating_add(GREETING_TIME.as_nanos() as u64);
    stream.set_write_timeout(Some(GREETING_TIME))?;
    stream.set_nodelay(true)?;
    let mine = random32().ok_or(LinkError::Random)?;
    stream.write_all(&identity.hello(&mine))?;
    let mut hello = [0; HELLO_BYTES];
    read_by(stream, &mut hello, deadline_ns)?;
    let (node, theirs) = identity.read(&hello).ok_or(LinkError::Stranger)?;
    if node == identity.node || called.is_some_and(|called| called != node) {
        return Err(LinkError::Other(node));
    }
    let signer = signer(node).ok_or(LinkError::Forged(node))?;
    let (own, other) = ((identity.node, &mine), (node, &theirs));
    stream.write_all(&key.sign(&identity.signed(own, other)).to_bytes())?;
    let mut signature = [0; 65];
    read_by(stream, &mut signature, deadline_ns)?;
    let digest = identity.signed(other, own);
    let found = parse(&signature).and_then(|signature| signature.recover(&digest));
    if found != Some(signer) {
        return Err(LinkError::Forged(node));
    }
    Ok(node)
}

/// Fills a buffer until a time of the monotonic clock: a line's own limit begins anew with each byte.
fn read_by(stream: &mut TcpStream, bytes: &mut [u8], deadline_ns: u64) -> io::Result<()> {
    let mut left = bytes;
    while !left.is_empty() {
        let time = Duration::from_nanos(deadline_ns.saturating_sub(monotonic_ns()));
        if time.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(time))?;
        match stream.read(left) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(length) => left = left.get_mut(length..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn parse(bytes: &[u8; 65]) -> Option<Signature> {
    let (v, rs) = bytes.split_last()?;
    let (r, s) = rs.split_at_checked(32)?;
    let (r, s) = (B256::try_from(r).ok()?, B256::try_from(s).ok()?);
    matches!(v, 27 | 28).then_some(Signature { r, s, y_is_odd: *v == 28 })
}

/// Reads one message.
///
/// # Errors
/// The line, its end, or [`LinkError::Length`].
pub fn read(stream: &mut impl Read) -> Result<Vec<u8>, LinkError> {
    let mut len = [0; 4];
    stream.read_exact(&mut len)?;
    let len = u32::from_be_bytes(len) as usize;
    if len > MESSAGE_BYTES_MAX {
        return Err(LinkError::Length(len));
    }
    // Memory is taken for what has come, not for what was announced.
    let mut bytes = Vec::new();
    stream.take(len as u64).read_to_end(&mut bytes)?;
    if bytes.len() < len {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    Ok(bytes)
}

/// Writes one message.
///
/// # Errors
/// The line.
pub fn write(stream: &mut impl Write, bytes: &[u8]) -> Result<(), LinkError> {
    let len = u32::try_from(bytes.len()).map_err(|_| LinkError::Length(bytes.len()))?;
    let mut frame = len.to_be_bytes().to_vec();
    frame.extend(bytes);
    Ok(stream.write_all(&frame)?)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    fn identity(node: u32) -> Identity {
        Identity { chain_id: 7, registry: Address::repeat_byte(3), node }
    }

    fn key(node: u32) -> Key {
        Key::from_bytes(&[node as u8; 32]).unwrap()
    }

    fn signer(node: u32) -> Option<Address> {
        (node < 10).then(|| key(node).address())
    }

    /// What both ends say, of a node 1 that calls `called` and a node that answers with these.
    fn meet(called: u32, other: Identity, with: Key) -> (Option<u32>, Option<u32>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let answers = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            greet(&mut stream, &other, &with, None, signer).ok()
        });
        let mut stream = TcpStream::connect(at).unwrap();
        let found = greet(&mut stream, &identity(1), &key(1), Some(called), signer).ok();
        drop(stream);
        (found, answers.join().unwrap())
    }

    #[test]
    fn nodes_know_each_other_by_their_keys() {
        assert_eq!(meet(2, identity(2), key(2)), (Some(2), Some(1)));
        let wrong_key = meet(2, identity(2), key(3));
        assert_eq!(wrong_key.0, None);
        assert_eq!(meet(2, identity(3), key(3)).0, None, "another node than was called");
        assert_eq!(meet(1, identity(1), key(1)), (None, None), "itself");
        assert_eq!(meet(11, identity(11), key(11)), (None, None), "an unknown node");
        let elsewhere = Identity { chain_id: 8, ..identity(2) };
        assert_eq!(meet(2, elsewhere, key(2)), (None, None), "another network");
    }

    #[test]
    fn frames_have_a_largest_size_and_their_whole_length() {
        let mut line = Vec::new();
        write(&mut line, b"one").unwrap();
        write(&mut line, b"").unwrap();
        let mut input = line.as_slice();
        assert_eq!(read(&mut input).unwrap(), b"one");
        assert_eq!(read(&mut input).unwrap(), b"");
        assert!(read(&mut input).is_err());
        assert!(matches!(read(&mut [255; 4].as_slice()), Err(LinkError::Length(_))));
        assert!(read(&mut [0, 0, 0, 5, 1, 2].as_slice()).is_err());
    }
}
