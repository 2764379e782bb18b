//! The first bytes of a TLS client, from anybody.

use mesh_egress::sni::{HELLO_BYTES_MAX, HelloError, ServerName, server_name};

/// The input is what the client says. True if it names a server.
///
/// # Panics
/// A promise is broken.
pub fn check(data: &[u8]) -> bool {
    let name = server_name(data);
    if name == Err(HelloError::Incomplete) {
        assert!(data.len() < HELLO_BYTES_MAX, "a hello that never ends");
    }
    // What was decided stays so, whatever comes behind; until then it is undecided.
    let mut decided = false;
    for len in (0..=data.len().min(HELLO_BYTES_MAX)).step_by(1 + data.len() / 64) {
        let said = data.get(..len).unwrap_or_default();
        let part = server_name(said);
        assert!(!decided || part != Err(HelloError::Incomplete), "undecided again");
        if part.is_ok() {
            assert_eq!(part, name, "another name with more bytes");
        }
        decided = part != Err(HelloError::Incomplete);
    }
    let Ok(Some(name)) = name else { return false };
    assert_eq!(ServerName::parse(name.as_str().as_bytes()).as_ref(), Some(&name));
    true
}
