//! What a node counts besides its member and its router.

/// Frames of others, by what became of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CoreCounters {
    /// Passed on to a neighbour or an attached member.
    pub frames_forwarded: u64,
    /// Dropped: not from a neighbour that is taken for one now.
    pub frames_unexpected: u64,
    /// Dropped: no frame, or from an attached member under another's address.
    pub frames_odd: u64,
    /// Dropped: no route.
    pub frames_unroutable: u64,
    /// Dropped: went through too many routers.
    pub frames_expired: u64,
    /// What was said about aliases by others than who was asked, or with a certificate that is none.
    pub aliases_refused: u64,
    /// Neighbours that there was no room for, or that gave theirs up for one that the operator named.
    pub links_refused: u64,
}
