//! The server name in the first message of a TLS client (RFC 8446 §4.1.2, RFC 6066 §3), read without
//! any key: that is all that a gateway has to know to pass a connection on as it is.
//!
//! With encrypted hellos (ECH) it is the outer name, the one that the client's DNS told it to say.

use std::fmt;

/// The most bytes that are looked at: with post-quantum key shares a hello has two thousand.
pub const HELLO_BYTES_MAX: usize = 8 * 1024;

const RECORD_HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const HANDSHAKE_HEADER_BYTES: usize = 4;
const EXTENSION_SERVER_NAME: u16 = 0;
const HOST_NAME: u8 = 0;
/// A name without its last dot (RFC 1035 §3.1).
const NAME_BYTES_MAX: usize = 253;

/// A server's name, in lower case.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServerName(String);

impl ServerName {
    /// Reads a name of letters, digits, hyphens, underscores and dots; `None` for anything else.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let is_name = |label: &[u8]| {
            let known = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
            (1..=63).contains(&label.len()) && label.iter().all(known)
        };
        let fits = bytes.len() <= NAME_BYTES_MAX;
        let is_good = fits && bytes.split(|byte| *byte == b'.').all(is_name);
        let text = std::str::from_utf8(bytes).ok().filter(|_| is_good)?;
        Some(Self(text.to_ascii_lowercase()))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name without its first label, if that leaves one.
    #[must_use]
    pub fn parent(&self) -> Option<&str> {
        self.0.split_once('.').map(|(_, parent)| parent)
    }
}

impl fmt::Display for ServerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why there is no server name in what a client said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HelloError {
    /// So far it may become a hello.
    #[error("the client has not said all of its hello yet")]
    Incomplete,
    /// It will not.
    #[error("not the hello of a TLS client")]
    NotTls,
    /// It is longer than [`HELLO_BYTES_MAX`].
    #[error("a hello of more than {HELLO_BYTES_MAX} bytes")]
    TooLong,
}

/// The server name that a client asks for in its first bytes; `None` if its hello has none.
///
/// # Errors
/// A [`HelloError`]: [`HelloError::Incomplete`] as long as more bytes may help, which ends at
/// [`HELLO_BYTES_MAX`] of them.
pub fn server_name(bytes: &[u8]) -> Result<Option<ServerName>, HelloError> {
    let hello = handshake(bytes)?;
    // All of it is there, so that what does not fit is wrong.
    let name = parse_hello(&hello).ok_or(HelloError::NotTls)?;
    name.map(|name| ServerName::parse(name).ok_or(HelloError::NotTls)).transpose()
}

/// The body of the hello, out of the records that it comes in.
fn handshake(bytes: &[u8]) -> Result<Vec<u8>, HelloError> {
    let (mut rest, mut message, mut wanted) = (bytes, Vec::new(), None);
    loop {
        // What is wrong is told as soon as it is there.
        let is_record = rest.iter().zip([RECORD_HANDSHAKE, 3]).all(|(byte, known)| *byte == known);
        if !is_record {
            return Err(HelloError::NotTls);
        }
        let Some((&[_, _, _, high, low], after)) = rest.split_first_chunk() else {
            return Err(more_or_too_long(bytes.len()));
        };
        let len = usize::from(u16::from_be_bytes([high, low]));
        if len == 0 || len > 1 << 14 {
            return Err(HelloError::NotTls);
        }
        let here = after.get(..len.min(after.len())).unwrap_or_default();
        message.extend_from_slice(here);
        if wanted.is_none() {
            wanted = hello_bytes(&message)?;
        }
        if let Some(wanted) = wanted
            && let Some(body) = message.get(HANDSHAKE_HEADER_BYTES..HANDSHAKE_HEADER_BYTES + wanted)
        {
            return Ok(body.to_vec());
        }
        if here.len() < len {
            return Err(more_or_too_long(bytes.len()));
        }
        rest = after.get(len..).unwrap_or_default();
    }
}

fn more_or_too_long(len: usize) -> HelloError {
    if len < HELLO_BYTES_MAX { HelloError::Incomplete } else { HelloError::TooLong }
}

/// The bytes of a hello's body, once its header is there.
fn hello_bytes(message: &[u8]) -> Result<Option<usize>, HelloError> {
    if message.first().is_some_and(|kind| *kind != CLIENT_HELLO) {
        return Err(HelloError::NotTls);
    }
    let Some(&[_, high, middle, low]) = message.first_chunk::<HANDSHAKE_HEADER_BYTES>() else {
        return Ok(None);
    };
    let len = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
    if len > HELLO_BYTES_MAX { Err(HelloError::TooLong) } else { Ok(Some(len)) }
}

/// The name in a hello's body, if it has one; `None` for what is no hello.
fn parse_hello(body: &[u8]) -> Option<Option<&[u8]>> {
    // Version and random.
    let (_, mut rest) = body.split_first_chunk::<34>()?;
    let session_id = vector::<1>(&mut rest)?;
    let ciphers = vector::<2>(&mut rest)?;
    let compressions = vector::<1>(&mut rest)?;
    let is_hello = session_id.len() <= 32
        && ciphers.len() >= 2
        && ciphers.len().is_multiple_of(2)
        && !compressions.is_empty();
    if !is_hello {
        return None;
    }
    if rest.is_empty() {
        return Some(None);
    }
    let mut extensions = vector::<2>(&mut rest)?;
    if !rest.is_empty() {
        return None;
    }
    let mut name = None;
    while !extensions.is_empty() {
        let (kind, after) = extensions.split_first_chunk::<2>()?;
        extensions = after;
        let data = vector::<2>(&mut extensions)?;
        if u16::from_be_bytes(*kind) == EXTENSION_SERVER_NAME {
            // Twice the same extension is none of TLS's.
            if name.is_some() {
                return None;
            }
            name = Some(parse_names(data)?);
        }
    }
    Some(name)
}

/// The only name of the list that clients send.
fn parse_names(mut data: &[u8]) -> Option<&[u8]> {
    let mut list = vector::<2>(&mut data)?;
    let (kind, rest) = list.split_first()?;
    list = rest;
    let name = vector::<2>(&mut list)?;
    (data.is_empty() && list.is_empty() && *kind == HOST_NAME).then_some(name)
}

/// Takes a vector whose length is in its first `N` bytes.
fn vector<'a, const N: usize>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (len, after) = rest.split_first_chunk::<N>()?;
    let len = len.iter().fold(0_usize, |len, byte| len << 8 | usize::from(*byte));
    let (vector, after) = after.split_at_checked(len)?;
    *rest = after;
    Some(vector)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn counted<const N: usize>(bytes: &[u8]) -> Vec<u8> {
        let len = (bytes.len() as u32).to_be_bytes();
        [&len[4 - N..], bytes].concat()
    }

    /// A hello with these extensions, in records of this many bytes.
    fn hello(extensions: &[(u16, Vec<u8>)], record_bytes: usize) -> Vec<u8> {
        let extensions: Vec<u8> = extensions
            .iter()
            .flat_map(|(kind, data)| [&kind.to_be_bytes()[..], &counted::<2>(data)].concat())
            .collect();
        let body = [
            &[3, 3][..],
            &[9; 32],
            &counted::<1>(&[1; 32]),
            &counted::<2>(&[0x13, 1]),
            &counted::<1>(&[0]),
            &counted::<2>(&extensions),
        ]
        .concat();
        let message = [&[CLIENT_HELLO][..], &counted::<3>(&body)].concat();
        let record = |part: &[u8]| [&[22, 3, 1][..], &counted::<2>(part)].concat();
        message.chunks(record_bytes).flat_map(record).collect()
    }

    fn names(names: &[&[u8]]) -> (u16, Vec<u8>) {
        let list: Vec<u8> =
            names.iter().flat_map(|name| [&[0][..], &counted::<2>(name)].concat()).collect();
        (0, counted::<2>(&list))
    }

    #[test]
    fn the_name_is_found_in_one_record_or_many_and_not_before_it_is_all_there() {
        let extensions = [(43, vec![2, 3, 4]), names(&[b"Www.Example.org"]), (51, vec![7; 1200])];
        for record_bytes in [1, 7, 100, 1 << 14] {
            let bytes = hello(&extensions, record_bytes);
            if bytes.len() > HELLO_BYTES_MAX {
                continue;
            }
            let name = server_name(&bytes).unwrap().unwrap();
            assert_eq!((name.as_str(), name.parent()), ("www.example.org", Some("example.org")));
            for len in 0..bytes.len() {
                assert_eq!(server_name(&bytes[..len]), Err(HelloError::Incomplete), "{len}");
            }
        }
        assert_eq!(server_name(&hello(&[(43, vec![2, 3, 4])], 1 << 14)), Ok(None));
    }

    #[test]
    fn what_is_no_hello_is_told_at_once() {
        for bytes in [&b"GET / HTTP/1.1\r\n"[..], b"SSH-2.0", &[22, 2], &[22, 3, 1, 0, 0], &[21, 3]]
        {
            assert_eq!(server_name(bytes), Err(HelloError::NotTls), "{bytes:?}");
        }
        // Another handshake message; two names; one name twice; one of odd characters.
        assert_eq!(server_name(&[22, 3, 1, 0, 4, 2, 0, 0, 0]), Err(HelloError::NotTls));
        let twice = [names(&[b"a.org"]), names(&[b"a.org"])];
        for extensions in [&[names(&[b"a.org", b"b.org"])][..], &twice, &[names(&[b"a..org"])]] {
            assert_eq!(server_name(&hello(extensions, 1 << 14)), Err(HelloError::NotTls));
        }
        let long = hello(&[(51, vec![0; 9000])], 1 << 14);
        assert_eq!(server_name(&long[..20]), Err(HelloError::TooLong));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_hello_or_not(
            bytes in prop::collection::vec(any::<u8>(), 0..300),
            at in any::<prop::sample::Index>(),
            change in any::<u8>(),
        ) {
            let random = server_name(&bytes);
            prop_assert!(random != Err(HelloError::Incomplete) || bytes.len() < HELLO_BYTES_MAX);
            let mut changed = hello(&[names(&[b"a.example.org"])], 1 << 14);
            let at = at.index(changed.len());
            changed[at] ^= change;
            if let Ok(Some(name)) = server_name(&changed) {
                prop_assert!(ServerName::parse(name.as_str().as_bytes()) == Some(name));
            }
        }
    }
}
