//! What a firewall is told: who may open flows to a member, to whom it may, and how much may pass.

use std::collections::BTreeSet;
use std::num::NonZeroU64;

use super::packet::Protocol;
use crate::certificate::Label;
use crate::identity::PublicKey;

/// Whom a rule is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Who {
    /// The member with this key, all 32 bytes of it.
    Key(PublicKey),
    /// Every member that shows a certificate of this label that counts now.
    Label(Label),
}

impl From<PublicKey> for Who {
    fn from(key: PublicKey) -> Self {
        Self::Key(key)
    }
}

impl From<Label> for Who {
    fn from(label: Label) -> Self {
        Self::Label(label)
    }
}

/// Lets flows be opened: inbound by `who`, outbound to `who`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    /// The other member.
    pub who: Who,
    /// The protocol.
    pub protocol: Protocol,
    /// The destination port, or `None` for all of them; of no meaning for ICMP.
    pub port: Option<u16>,
}

/// How much of a member's traffic passes, in each direction for itself: what is above is dropped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Caps {
    /// IP packets per second.
    pub packets_per_s: Option<NonZeroU64>,
    /// Their bytes per second, IP headers counted.
    pub bytes_per_s: Option<NonZeroU64>,
}

/// All that a firewall is told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy {
    /// Who may open flows to the member; nobody else may.
    pub ingress: Vec<Rule>,
    /// To whom the member may open flows; to anybody without a list.
    pub egress: Option<Vec<Rule>>,
    /// How much passes.
    pub caps: Caps,
}

/// The peer that a packet comes from or goes to.
#[derive(Debug, Clone, Copy)]
pub struct Party<'a> {
    /// Its key, which the session has proven.
    pub key: &'a PublicKey,
    /// The labels that it has now: shown, verified for this key, and not expired.
    pub labels: &'a [Label],
}

/// Rules in the order in which they are looked up.
pub(super) struct RuleSet {
    rules: BTreeSet<Rule>,
    has_labels: bool,
}

impl RuleSet {
    pub(super) fn new(rules: &[Rule]) -> Self {
        let normal = |rule: &Rule| match rule.protocol {
            Protocol::Icmp => Rule { port: None, ..*rule },
            Protocol::Tcp | Protocol::Udp => *rule,
        };
        let has_labels = rules.iter().any(|rule| matches!(rule.who, Who::Label(_)));
        Self { rules: rules.iter().map(normal).collect(), has_labels }
    }

    /// Whether a rule lets this flow be opened; ICMP has no port.
    pub(super) fn allow(&self, party: Party<'_>, protocol: Protocol, port: Option<u16>) -> bool {
        let has = |who| {
            let rule = |port| Rule { who, protocol, port };
            self.rules.contains(&rule(None)) || self.rules.contains(&rule(port))
        };
        has(Who::Key(*party.key))
            || self.has_labels && party.labels.iter().any(|label| has(Who::Label(*label)))
    }

    pub(super) fn has_labels(&self) -> bool {
        self.has_labels
    }
}
