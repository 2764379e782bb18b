//! What a session may do.

use std::collections::BTreeMap;

use crate::keys::Uuid;
use crate::node::NodeError;

/// The public half of a volume's writer key (Ed25519): who owns a volume on a node, and the tenant
/// whose quota it counts against.
pub type WriterKey = [u8; 32];

/// What may be done to one volume.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rights {
    /// Get, list, read the journal.
    pub read: bool,
    /// Put, open, append to and trim the journal.
    pub write: bool,
    /// Delete objects.
    pub delete: bool,
    /// Fence, and talk to the register's acceptor.
    pub fence: bool,
    /// Restore objects of earlier openings.
    pub heal: bool,
    /// Open leaves of audit trees.
    pub audit: bool,
}

impl Rights {
    /// Everything.
    pub const ALL: Self =
        Self { read: true, write: true, delete: true, fence: true, heal: true, audit: true };
}

/// A session's rights to one volume, as a capability proved them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grant {
    /// The writer key that signed the capability. It must be the one that the node pinned.
    pub writer: WriterKey,
    /// What it allows.
    pub rights: Rights,
}

/// What a session may do: nothing, until a capability proves more.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Grants {
    owner: bool,
    volumes: BTreeMap<Uuid, Grant>,
}

impl Grants {
    /// No rights at all, except to ask how full the node is.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// Every right to every volume: a node inside the process that holds its directory's lock.
    #[must_use]
    pub fn all() -> Self {
        Self { owner: true, volumes: BTreeMap::new() }
    }

    /// Whether this is the node's owner, who may do everything.
    pub(crate) fn is_owner(&self) -> bool {
        self.owner
    }

    /// Adds the rights to one volume, or replaces them.
    pub fn set(&mut self, volume: Uuid, grant: Grant) {
        self.volumes.insert(volume, grant);
    }

    /// Takes the rights to a volume away.
    pub fn remove(&mut self, volume: &Uuid) {
        self.volumes.remove(volume);
    }

    /// The writer key under which `volume` is used (`None`: by the node's owner).
    ///
    /// # Errors
    /// [`NodeError::Denied`] unless `wanted` picks a right that the session has.
    pub fn check(
        &self,
        volume: &Uuid,
        wanted: impl FnOnce(&Rights) -> bool,
    ) -> Result<Option<WriterKey>, NodeError> {
        if self.owner {
            return Ok(None);
        }
        let grant = self.volumes.get(volume).ok_or(NodeError::Denied)?;
        if wanted(&grant.rights) { Ok(Some(grant.writer)) } else { Err(NodeError::Denied) }
    }
}
