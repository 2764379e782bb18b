//! What a gateway's file says: a JSON list of routes.
//!
//! ```json
//! [
//!   {"listen": "0.0.0.0:443", "names": ["shop.example.org", "*.example.net"],
//!    "key": "4c9f…e1", "port": 8443, "proxy_protocol": true},
//!   {"listen": "0.0.0.0:25", "key": "81d0…07", "port": 25},
//!   {"listen": "0.0.0.0:53", "protocol": "udp", "key": "81d0…07", "port": 53}
//! ]
//! ```

use std::collections::BTreeMap;
use std::net::{Ipv6Addr, SocketAddr};
use std::path::Path;
use std::{fs, io};

use mesh_egress::sni::ServerName;
use net_vdev::PublicKey;
use serde::Deserialize;
use spec::secret::Public32;

/// The most bytes of the file, and the most routes.
const BYTES_MAX: u64 = 1 << 20;
const ROUTES_MAX: usize = 4096;
const DOORS_MAX: usize = 256;

/// Why a file is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It can't be read.
    #[error("{0}")]
    Read(#[from] io::Error),
    /// It is too long.
    #[error("{0} bytes; at most {BYTES_MAX} are read")]
    Bytes(u64),
    /// It is not a list of routes.
    #[error("no list of routes: {0}")]
    Form(#[from] serde_json::Error),
    /// There are too many.
    #[error("more than {ROUTES_MAX} routes, or {DOORS_MAX} addresses to listen at")]
    TooMany,
    /// A name that no server can have.
    #[error("{0:?} is no server name: expected one like shop.example.org or *.example.org")]
    Name(String),
    /// Two routes for the same.
    #[error("two routes for {what} at {listen}")]
    Twice {
        /// The name, or what stands for those without one.
        what: String,
        /// The address.
        listen: SocketAddr,
    },
    /// UDP has neither server names nor a place for a header.
    #[error("a route of UDP has neither \"names\" nor \"proxy_protocol\" ({0})")]
    Udp(SocketAddr),
    /// Nobody is at port 0.
    #[error("port 0 of a workload or of {0}")]
    Port(SocketAddr),
}

/// The protocol of a route.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Transport {
    /// TCP; with names, TLS over it.
    #[default]
    Tcp,
    /// UDP.
    Udp,
}

/// A route as the file has it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Route {
    listen: SocketAddr,
    #[serde(default)]
    protocol: Transport,
    #[serde(default)]
    names: Vec<String>,
    key: Public32,
    port: u16,
    #[serde(default)]
    proxy_protocol: bool,
}

/// Where connections lead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// The workload's address: it follows from the key.
    pub address: Ipv6Addr,
    /// Its port.
    pub port: u16,
    /// Whether it is told who the client is, ahead of all else (PROXY protocol, version 2).
    pub proxy_protocol: bool,
}

/// What is behind one address of the host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Targets {
    /// By server name; those that begin with `*.` by what is behind that.
    names: BTreeMap<String, Target>,
    wildcards: BTreeMap<String, Target>,
    /// For all else.
    rest: Option<Target>,
}

impl Targets {
    /// Whether clients are to say which server they mean.
    #[must_use]
    pub fn asks_for_names(&self) -> bool {
        !self.names.is_empty() || !self.wildcards.is_empty()
    }

    /// Where a client goes that means this server.
    #[must_use]
    pub fn find(&self, name: Option<&ServerName>) -> Option<Target> {
        let named = name.and_then(|name| {
            let of_parent = || self.wildcards.get(name.parent()?);
            self.names.get(name.as_str()).or_else(of_parent)
        });
        named.copied().or(self.rest)
    }
}

/// All that a gateway listens at.
pub type Doors = BTreeMap<(Transport, SocketAddr), Targets>;

/// Reads a gateway's file.
///
/// # Errors
/// A [`ConfigError`].
pub fn load(path: &Path) -> Result<Doors, ConfigError> {
    let bytes = fs::metadata(path)?.len();
    if bytes > BYTES_MAX {
        return Err(ConfigError::Bytes(bytes));
    }
    parse(&fs::read_to_string(path)?)
}

/// Reads what a gateway's file says.
///
/// # Errors
/// A [`ConfigError`].
pub fn parse(text: &str) -> Result<Doors, ConfigError> {
    let routes: Vec<Route> = serde_json::from_str(text)?;
    if routes.len() > ROUTES_MAX {
        return Err(ConfigError::TooMany);
    }
    let mut doors = Doors::new();
    for route in routes {
        let listen = route.listen;
        if listen.port() == 0 || route.port == 0 {
            return Err(ConfigError::Port(listen));
        }
        let is_plain = route.names.is_empty() && !route.proxy_protocol;
        if route.protocol == Transport::Udp && !is_plain {
            return Err(ConfigError::Udp(listen));
        }
        let target = Target {
            address: PublicKey(route.key.0).address(),
            port: route.port,
            proxy_protocol: route.proxy_protocol,
        };
        let targets = doors.entry((route.protocol, listen)).or_default();
        let twice = |what: &str| ConfigError::Twice { what: what.to_owned(), listen };
        if route.names.is_empty() && targets.rest.replace(target).is_some() {
            return Err(twice("clients without a name"));
        }
        for text in &route.names {
            let (list, name) = match text.strip_prefix("*.") {
                Some(parent) => (&mut targets.wildcards, parent),
                None => (&mut targets.names, text.as_str()),
            };
            let name = ServerName::parse(name.as_bytes());
            let name = name.ok_or_else(|| ConfigError::Name(text.clone()))?;
            if list.insert(name.as_str().to_owned(), target).is_some() {
                return Err(twice(text));
            }
        }
    }
    if doors.len() > DOORS_MAX { Err(ConfigError::TooMany) } else { Ok(doors) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "fd3384e132ad02a56c78f45547ee40038dc79002b90d29ed90e08eee762ae715";

    fn route(rest: &str) -> String {
        format!("{{\"listen\": \"127.0.0.1:443\", \"key\": \"{KEY}\", \"port\": 8443{rest}}}")
    }

    fn name(text: &str) -> ServerName {
        ServerName::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn a_name_goes_before_a_wildcard_and_that_before_the_rest() {
        let text = format!(
            "[{}, {}, {}]",
            route(r#", "names": ["a.Example.org"], "proxy_protocol": true"#),
            route(r#", "names": ["*.example.org"]"#).replace("8443", "2"),
            route("").replace("8443", "3"),
        );
        let doors = parse(&text).unwrap();
        let targets = &doors[&(Transport::Tcp, "127.0.0.1:443".parse().unwrap())];
        assert!(targets.asks_for_names());
        let port = |name: Option<&ServerName>| targets.find(name).map(|target| target.port);
        assert_eq!(port(Some(&name("a.example.org"))), Some(8443));
        assert_eq!(port(Some(&name("b.example.org"))), Some(2));
        assert_eq!(port(Some(&name("a.b.example.org"))), Some(3), "a wildcard is one label");
        assert_eq!((port(Some(&name("example.org"))), port(None)), (Some(3), Some(3)));
        assert!(targets.find(Some(&name("a.example.org"))).unwrap().proxy_protocol);
    }

    #[test]
    fn nonsense_is_refused_with_its_reason() {
        for (text, reason) in [
            (format!("[{0}, {0}]", route("")), "two routes for clients without a name"),
            (format!("[{}]", route(r#", "names": ["a..b"]"#)), "\"a..b\" is no server name"),
            (format!("[{0}, {0}]", route(r#", "names": ["*.a.b"]"#)), "two routes for *.a.b"),
            (format!("[{}]", route(r#", "protocol": "udp", "names": ["a.b"]"#)), "of UDP"),
            (format!("[{}]", route(r#", "tls": true"#)), "unknown field"),
            (format!("[{}]", route("").replace("8443", "0")), "port 0"),
            ("{}".to_owned(), "no list of routes"),
        ] {
            let error = parse(&text).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
        assert_eq!(parse("[]").unwrap(), Doors::new());
    }
}
