//! What a server offers.

/// The most bytes of an export's name or description.
pub const NAME_BYTES_MAX: usize = 4096;

/// The smallest block: requests are whole sectors.
pub(crate) const BLOCK_BYTES_MIN: u32 = crate::served::SECTOR_BYTES as u32;
/// The volume's own block: smaller writes make it read first.
pub(crate) const BLOCK_BYTES_PREFERRED: u32 = 4096;
/// The most bytes of one read or write.
pub(crate) const BLOCK_BYTES_MAX: u32 = 32 << 20;

/// A volume, as it is offered under a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Export {
    /// Its name; the empty one is what a client gets that asks for none.
    pub name: String,
    /// A line for people.
    pub description: String,
    /// Which of the server's volumes it is.
    pub volume: usize,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Whether it can't be written to.
    pub read_only: bool,
}
