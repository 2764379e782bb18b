//! Members that are attached to this node: the VMs of its host. They hold their own keys and
//! sessions; the node announces them, gives them frames, and finds out keys for them.

use std::collections::BTreeMap;
use std::net::Ipv6Addr;

use mesh_router::OriginateError;
use net_vdev::PublicKey;
use net_vdev::announcement::SignedAnnouncement;

use super::searches::SEARCHES_MAX;
use super::{Core, Outside, Whose};

/// How many members may be attached.
pub const ATTACHED_MAX: usize = 4096;
/// How many pairs of them may know that they are attached to the same node.
const INTRODUCED_MAX: usize = 1 << 16;

/// Why a member is not attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AttachError {
    /// The router refuses its announcement.
    #[error(transparent)]
    Announcement(#[from] OriginateError),
    /// There are too many.
    #[error("{ATTACHED_MAX} members are attached already")]
    TooMany,
    /// What it signed is not what it was asked to sign.
    #[error("it does not prove that it has this key")]
    Proof,
}

impl Core {
    /// Takes a member on, or takes its newer announcement.
    ///
    /// # Errors
    /// An [`AttachError`].
    pub fn attach(
        &mut self,
        now_ns: u64,
        signed: &SignedAnnouncement,
    ) -> Result<PublicKey, AttachError> {
        let key = signed.announcement.key;
        let is_new = !self.attached.contains_key(&key.address());
        if is_new && self.attached.len() >= ATTACHED_MAX {
            return Err(AttachError::TooMany);
        }
        self.router.originate(now_ns, *signed)?;
        if self.attached.insert(key.address(), key).is_none() {
            self.give_alias(now_ns, &key);
        }
        Ok(key)
    }

    /// The members that are attached, by address.
    #[must_use]
    pub fn attached(&self) -> &BTreeMap<Ipv6Addr, PublicKey> {
        &self.attached
    }

    /// Lets a member go.
    pub fn detach(&mut self, now_ns: u64, key: &PublicKey, outside: &mut impl Outside) {
        self.forget_here(key, outside);
        if self.attached.remove(&key.address()).is_some() {
            self.router.withdraw(now_ns, key);
            self.take_alias(key, outside);
        }
        self.asked.retain(|_, members| {
            members.remove(key);
            !members.is_empty()
        });
    }

    /// Two attached members speak with each other: both are told so, once.
    pub(super) fn introduce(
        &mut self,
        one: &PublicKey,
        other: &PublicKey,
        outside: &mut impl Outside,
    ) {
        let pair = (*one.min(other), *one.max(other));
        if self.introduced.len() < INTRODUCED_MAX && self.introduced.insert(pair) {
            outside.here(one, other, true);
            outside.here(other, one, true);
        }
    }

    /// Those who were told that a member is here are told that it is not, or that another process
    /// has its key now.
    pub fn forget_here(&mut self, key: &PublicKey, outside: &mut impl Outside) {
        self.introduced.retain(|(one, other)| {
            let partner = match (one == key, other == key) {
                (true, _) => other,
                (_, true) => one,
                _ => return true,
            };
            outside.here(partner, key, false);
            false
        });
    }

    /// A member asks whose address this is. It is told now, or when the router knows.
    pub fn resolve_for(
        &mut self,
        now_ns: u64,
        member: &PublicKey,
        address: &Ipv6Addr,
        outside: &mut impl Outside,
    ) {
        let is_crowded = self.asked.len() >= ATTACHED_MAX && !self.asked.contains_key(address);
        let may_ask = !is_crowded
            && (!self.has_to_ask(now_ns, address)
                || self.searches.take(now_ns, member, SEARCHES_MAX));
        let whose = if may_ask { self.whose(now_ns, address) } else { Whose::Nobody };
        if matches!(whose, Whose::Sought) {
            self.asked.entry(*address).or_default().insert(*member);
        }
        self.tell_whose(member, address, &whose, outside);
    }
}
