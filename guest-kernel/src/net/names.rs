//! What the VMM says about the network, and how a program names a peer.

use alloc::vec::Vec;
use core::str::FromStr;

use smoltcp::wire::{IpAddress, IpCidr, IpEndpoint};

/// The environment variable with the card's own addresses: CIDRs, comma-separated.
pub const ENV_ADDRESSES: &str = "HYPHA_ADDRESSES";
/// The environment variable with the names of peers: `name=address`, comma-separated.
pub const ENV_PEERS: &str = "HYPHA_PEERS";

/// Why a target or an address list is not understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameError<'a> {
    /// Not `host:port`.
    Port(&'a str),
    /// Neither a literal address nor the name of a peer.
    Unknown(&'a str),
    /// Not an address with a prefix length.
    Cidr(&'a str),
}

impl core::fmt::Display for NameError<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Port(text) => write!(f, "`{text}` is not HOST:PORT"),
            Self::Unknown(host) => write!(f, "`{host}` is neither an address nor a known peer"),
            Self::Cidr(text) => write!(f, "`{text}` is not ADDRESS/PREFIX"),
        }
    }
}

impl core::error::Error for NameError<'_> {}

/// Parses [`ENV_ADDRESSES`].
///
/// # Errors
/// [`NameError::Cidr`] with the entry that is wrong.
pub fn parse_addresses(list: &str) -> Result<Vec<IpCidr>, NameError<'_>> {
    let entries = list.split(',').map(str::trim).filter(|entry| !entry.is_empty());
    entries.map(|entry| IpCidr::from_str(entry).map_err(|()| NameError::Cidr(entry))).collect()
}

/// The endpoint that `target` means: `name:port`, `[v6]:port` or `v4:port`. `peers` is
/// [`ENV_PEERS`]; of several addresses of one name the first counts.
///
/// # Errors
/// See [`NameError`].
pub fn resolve<'a>(target: &'a str, peers: &str) -> Result<IpEndpoint, NameError<'a>> {
    let (host, port) = target.rsplit_once(':').ok_or(NameError::Port(target))?;
    let port = port.parse().ok().filter(|port| *port != 0).ok_or(NameError::Port(target))?;
    let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let address = match bracketed {
        Some(literal) => IpAddress::from_str(literal).ok(),
        // A v6 literal without brackets is ambiguous, so it isn't one.
        None if host.contains(':') => return Err(NameError::Port(target)),
        None => IpAddress::from_str(host).ok().or_else(|| peer(host, peers)),
    };
    Ok(IpEndpoint { addr: address.ok_or(NameError::Unknown(host))?, port })
}

fn peer(name: &str, peers: &str) -> Option<IpAddress> {
    peers.split(',').find_map(|entry| {
        let (key, address) = entry.trim().split_once('=')?;
        if key == name { IpAddress::from_str(address).ok() } else { None }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEERS: &str = "kv=400:1::2,load=400:1::3, v4only=10.1.1.5,broken=nonsense";

    #[test]
    fn names_and_literals_resolve() {
        for (target, address, port) in [
            ("kv:8080", "400:1::2", 8080),
            ("v4only:80", "10.1.1.5", 80),
            ("[400::7]:1", "400::7", 1),
            ("10.0.0.9:65535", "10.0.0.9", 65535),
        ] {
            let endpoint = resolve(target, PEERS).unwrap();
            assert_eq!((endpoint.addr, endpoint.port), (address.parse().unwrap(), port));
        }
    }

    #[test]
    fn nonsense_is_refused_with_the_part_that_is_wrong() {
        assert_eq!(resolve("kv", PEERS), Err(NameError::Port("kv")));
        assert_eq!(resolve("kv:0", PEERS), Err(NameError::Port("kv:0")));
        assert_eq!(resolve("kv:99999", PEERS), Err(NameError::Port("kv:99999")));
        assert_eq!(resolve("400::7:80", PEERS), Err(NameError::Port("400::7:80")));
        assert_eq!(resolve("nobody:80", PEERS), Err(NameError::Unknown("nobody")));
        assert_eq!(resolve("broken:80", PEERS), Err(NameError::Unknown("broken")));
        assert_eq!(resolve("[10.0.0]:80", PEERS), Err(NameError::Unknown("[10.0.0]")));
    }

    #[test]
    fn an_address_list_may_hold_both_families() {
        let addresses = parse_addresses("400:1::2/7, 10.1.1.5/24").unwrap();
        assert_eq!(addresses.len(), 2);
        assert_eq!(addresses.first().unwrap().prefix_len(), 7);
        assert_eq!(parse_addresses(""), Ok(Vec::new()));
        assert_eq!(parse_addresses("400::1/7,10.1.1.5"), Err(NameError::Cidr("10.1.1.5")));
    }
}
