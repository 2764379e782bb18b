//! A rule about who may open flows to a node's host, as files and orders have it.

use net_vdev::{Protocol, PublicKey, Rule};
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

/// A rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AclEntry {
    /// Whose flows: a member's whole key.
    pub from: Public32,
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
        Rule { who: PublicKey(self.from.0).into(), protocol, port: self.port }
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
