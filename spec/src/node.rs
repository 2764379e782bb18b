//! How a person names a node of a volume: `/srv/disk1`, `tcp:10.0.0.7:9700,key=…,store=a`.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::secret::Public32;
use serde::{Deserialize, Serialize};

/// The most characters of a store's or a domain's name.
const NAME_CHARS_MAX: usize = 64;

/// Where a node is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Place {
    /// A directory of this host.
    Directory(PathBuf),
    /// A shard server.
    Server {
        /// Where it listens.
        endpoint: Endpoint,
        /// Its static X25519 key, by which it is known.
        key: Public32,
        /// Which of its stores.
        store: String,
    },
}

impl Place {
    /// Whether it is a directory of this host.
    #[must_use]
    pub fn is_directory(&self) -> bool {
        matches!(self, Self::Directory(_))
    }
}

/// Where a shard server listens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Endpoint {
    /// A TCP address.
    Tcp(SocketAddr),
    /// A socket in the file system.
    Unix(PathBuf),
}

/// A node of a volume, as the command line and the manifest have it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeSpec {
    /// Where it is.
    pub place: Place,
    /// Its failure domain, if somebody named it; else the disk (for a directory) or the endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
}

/// Why a node's text is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NodeSpecError {
    /// Nothing before the options.
    #[error("a node is a directory, or tcp:ADDRESS:PORT or unix:PATH with key=HEX, not {0:?}")]
    Place(String),
    /// An address that is none.
    #[error("{0:?} is no address with a port, like 10.0.0.7:9700 or [fd00::7]:9700")]
    Address(String),
    /// An option that there is not.
    #[error("{0:?} is no option of a node; there are key=HEX, store=NAME and domain=NAME")]
    Option(String),
    /// A key that is none.
    #[error("key: {0:?} has not 64 hexadecimal digits")]
    Key(String),
    /// A server without its key.
    #[error("a shard server needs key=HEX, which `hypha storage ls` prints on its host")]
    NoKey,
    /// A directory with an option of servers.
    #[error("a directory has no {0}")]
    NotADirectorysOption(&'static str),
    /// A name that can't be one.
    #[error("{0:?}: a name has 1 to {NAME_CHARS_MAX} letters, digits, dots, dashes or underscores")]
    Name(String),
}

impl NodeSpec {
    /// Its failure domain: as it was named, or a server's host, or what `disk` says of a directory:
    /// only its host knows what that shares with others.
    #[must_use]
    pub fn domain(&self, disk: impl FnOnce(&Path) -> String) -> String {
        match (&self.domain, &self.place) {
            (Some(domain), _) => domain.clone(),
            (None, Place::Directory(path)) => disk(path),
            (None, Place::Server { endpoint: Endpoint::Tcp(address), .. }) => {
                address.ip().to_string()
            }
            (None, Place::Server { endpoint: Endpoint::Unix(_), .. }) => "this-host".to_owned(),
        }
    }
}

impl FromStr for NodeSpec {
    type Err = NodeSpecError;

    fn from_str(text: &str) -> Result<Self, NodeSpecError> {
        let mut parts = text.split(',');
        let place = parts.next().unwrap_or_default();
        let (mut key, mut store, mut domain) = (None, None, None);
        for option in parts {
            match option.split_once('=') {
                Some(("key", hex)) => {
                    let parsed = Public32::from_hex(hex);
                    key = Some(parsed.ok_or_else(|| NodeSpecError::Key(hex.to_owned()))?);
                }
                Some(("store", name)) => store = Some(checked_name(name)?),
                Some(("domain", name)) => domain = Some(checked_name(name)?),
                _ => return Err(NodeSpecError::Option(option.to_owned())),
            }
        }
        let endpoint = match place.split_once(':') {
            Some(("tcp", address)) => {
                let parsed = address.parse();
                let address = parsed.map_err(|_| NodeSpecError::Address(address.to_owned()))?;
                Some(Endpoint::Tcp(address))
            }
            Some(("unix", path)) if !path.is_empty() => Some(Endpoint::Unix(path.into())),
            _ => None,
        };
        let place = match (endpoint, key, store) {
            (Some(endpoint), Some(key), store) => {
                let store = store.unwrap_or_else(|| "default".to_owned());
                Place::Server { endpoint, key, store }
            }
            (Some(_), None, _) => return Err(NodeSpecError::NoKey),
            (None, Some(_), _) => return Err(NodeSpecError::NotADirectorysOption("key")),
            (None, _, Some(_)) => return Err(NodeSpecError::NotADirectorysOption("store")),
            (None, None, None) => {
                let path = place.strip_prefix("dir:").unwrap_or(place);
                if path.is_empty() || place.starts_with("tcp:") || place.starts_with("unix:") {
                    return Err(NodeSpecError::Place(place.to_owned()));
                }
                Place::Directory(path.into())
            }
        };
        Ok(Self { place, domain })
    }
}

/// A name that is safe in files, messages and metrics.
///
/// # Errors
/// [`NodeSpecError::Name`] otherwise.
pub fn checked_name(name: &str) -> Result<String, NodeSpecError> {
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let length_fits = (1..=NAME_CHARS_MAX).contains(&name.chars().count());
    if length_fits && name.chars().all(fine) && !name.starts_with('.') {
        Ok(name.to_owned())
    } else {
        Err(NodeSpecError::Name(name.to_owned()))
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "tcp:{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl NodeSpec {
    /// The text that [`NodeSpec::from_str`] reads: with the key, unlike `Display`.
    #[must_use]
    pub fn to_argument(&self) -> String {
        let mut text = self.to_string();
        if let Place::Server { key, .. } = &self.place {
            text += &format!(",key={key}");
        }
        if let Some(domain) = &self.domain {
            text += &format!(",domain={domain}");
        }
        text
    }
}

impl fmt::Display for NodeSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Directory(path) => write!(f, "{}", path.display()),
            Place::Server { endpoint, store, .. } => write!(f, "{endpoint},store={store}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "4242424242424242424242424242424242424242424242424242424242424242";

    fn refusal(text: &str) -> NodeSpecError {
        text.parse::<NodeSpec>().expect_err(text)
    }

    #[test]
    fn a_path_is_a_directory_and_an_address_a_server() {
        let directory: NodeSpec = "/srv/a,domain=rack-1".parse().expect("a directory");
        assert_eq!(directory.place, Place::Directory("/srv/a".into()));
        assert_eq!(directory.domain.as_deref(), Some("rack-1"));
        let server: NodeSpec = format!("tcp:[::1]:9700,key={KEY}").parse().expect("a server");
        let Place::Server { endpoint, store, .. } = server.place else {
            panic!("a server");
        };
        assert_eq!(endpoint, Endpoint::Tcp("[::1]:9700".parse().expect("an address")));
        assert_eq!(store, "default");
    }

    #[test]
    fn every_slip_has_its_own_message() {
        assert!(matches!(refusal(""), NodeSpecError::Place(_)));
        assert!(matches!(refusal("unix:"), NodeSpecError::Place(_)));
        assert!(matches!(refusal("tcp:localhost"), NodeSpecError::Address(_)));
        assert_eq!(refusal("tcp:127.0.0.1:1"), NodeSpecError::NoKey);
        assert!(matches!(refusal("tcp:127.0.0.1:1,key=42"), NodeSpecError::Key(_)));
        assert!(matches!(refusal("/a,colour=red"), NodeSpecError::Option(_)));
        assert!(matches!(refusal("/a,domain=../x"), NodeSpecError::Name(_)));
        assert!(matches!(refusal("/a,store=b"), NodeSpecError::NotADirectorysOption("store")));
    }
}
