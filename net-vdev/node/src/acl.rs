//! A rule about who may open flows to a node's host, as files and orders have it.

use std::str::FromStr;

use net_vdev::certificate::Label;
use net_vdev::{Protocol, PublicKey, Rule, Who};
use serde::{Deserialize, Serialize};
use spec::secret::Public32;

/// A protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP and ICMPv6 echoes.
    Icmp,
}

/// Whose flows a rule lets in: `KEY` or `GROUP/LABEL`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum AclFrom {
    /// A member's, by its whole key.
    Key(Public32),
    /// Those of everybody who shows a certificate of a label.
    Label(Label),
}

impl FromStr for AclFrom {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let key = |text: &str| {
            let wrong = || format!("{text:?} is no key: expected 64 hexadecimal digits");
            Public32::from_hex(text).ok_or_else(wrong)
        };
        let Some((group, name)) = text.split_once('/') else { return key(text).map(Self::Key) };
        let name = name.parse().map_err(|error| format!("{name:?} is no label: {error}"))?;
        Ok(Self::Label(Label { group: PublicKey(key(group)?.0), name }))
    }
}

impl TryFrom<String> for AclFrom {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<AclFrom> for String {
    fn from(from: AclFrom) -> Self {
        from.to_string()
    }
}

impl std::fmt::Display for AclFrom {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Key(key) => write!(f, "{key}"),
            Self::Label(label) => write!(f, "{}/{}", label.group, label.name.as_str()),
        }
    }
}

/// A rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Fields")]
pub struct AclEntry {
    from: AclFrom,
    protocol: Transport,
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
}

/// A rule as it is written; whether it is one is not known yet.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    from: AclFrom,
    protocol: Transport,
    #[serde(default)]
    port: Option<u16>,
}

impl TryFrom<Fields> for AclEntry {
    type Error = AclError;

    fn try_from(Fields { from, protocol, port }: Fields) -> Result<Self, AclError> {
        Self::new(from, protocol, port)
    }
}

/// Why something is no rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AclError {
    /// A port of a protocol that has none: whoever wrote it means less than it would let in.
    #[error("port {0}: icmp has no ports, leave it out")]
    IcmpPort(u16),
    /// The port that nobody has.
    #[error("port 0: expected 1 to 65535, or none for all")]
    PortZero,
}

impl AclEntry {
    /// A rule about flows of somebody, of a protocol, to a port or to all.
    ///
    /// # Errors
    /// An [`AclError`].
    pub fn new(from: AclFrom, protocol: Transport, port: Option<u16>) -> Result<Self, AclError> {
        match (protocol, port) {
            (_, Some(0)) => Err(AclError::PortZero),
            (Transport::Icmp, Some(port)) => Err(AclError::IcmpPort(port)),
            _ => Ok(Self { from, protocol, port }),
        }
    }

    /// Whose flows it lets in.
    #[must_use]
    pub fn from(&self) -> AclFrom {
        self.from
    }

    /// The rule as a firewall has it.
    #[must_use]
    pub fn rule(&self) -> Rule {
        let protocol = match self.protocol {
            Transport::Tcp => Protocol::Tcp,
            Transport::Udp => Protocol::Udp,
            Transport::Icmp => Protocol::Icmp,
        };
        let who = match self.from {
            AclFrom::Key(key) => Who::Key(PublicKey(key.0)),
            AclFrom::Label(label) => Who::Label(label),
        };
        Rule { who, protocol, port: self.port }
    }
}

impl std::fmt::Display for AclEntry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let protocol = match self.protocol {
            Transport::Tcp => "tcp",
            Transport::Udp => "udp",
            Transport::Icmp => "icmp",
        };
        write!(f, "{} {protocol}", self.from)?;
        self.port.map_or(Ok(()), |port| write!(f, " {port}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_is_about_a_key_or_a_label_and_is_written_as_it_is_read() {
        let key = "ab".repeat(32);
        for text in [key.clone(), format!("{key}/team=web")] {
            let json = format!(r#"{{"from":"{text}","protocol":"tcp","port":80}}"#);
            let entry: AclEntry = serde_json::from_str(&json).unwrap();
            assert_eq!(serde_json::to_string(&entry).unwrap(), json);
            assert_eq!(entry.to_string(), format!("{text} tcp 80"));
        }
        for (fields, wrong) in [
            (r#""protocol":"icmp","port":22"#, "icmp has no ports"),
            (r#""protocol":"udp","port":0"#, "expected 1 to 65535"),
            (r#""protocol":"tcp","ports":22"#, "unknown field `ports`"),
            (r#""protocol":"sctp""#, "unknown variant `sctp`"),
        ] {
            let json = format!(r#"{{"from":"{key}",{fields}}}"#);
            let error = serde_json::from_str::<AclEntry>(&json).unwrap_err().to_string();
            assert!(error.contains(wrong), "{error}");
        }
        for (text, wrong) in [
            (&key[1..], "is no key"),
            (&format!("{key}/Team"), "\"Team\" is no label"),
            ("/label", "\"\" is no key"),
        ] {
            let error = text.parse::<AclFrom>().unwrap_err();
            assert!(error.contains(wrong), "{error}");
        }
    }
}
