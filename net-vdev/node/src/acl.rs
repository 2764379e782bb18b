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
#[serde(deny_unknown_fields)]
pub struct AclEntry {
    /// Whose flows.
    pub from: AclFrom,
    /// Of which protocol.
    pub protocol: Transport,
    /// To which port; all if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
}

impl AclEntry {
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
