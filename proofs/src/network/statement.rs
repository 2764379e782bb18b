//! What nodes say about each other, signed, so that anybody may pass it on: verdicts, measurements of
//! bandwidth, the tables of a day, and extents that are not what they are said to be.

use hypha_chain::key::{Key, Signature};
use hypha_chain::message::{Reader, digest, sign};
use hypha_chain::tree::ExtentPath;
use hypha_chain::{Address, B256, keccak256};

use crate::binding::Binding;
use crate::store::PlotRecord;
use crate::verifier::PulseVerdict;
use crate::wire::{Input, WireError, put_way};

mod typed {
    alloy_sol_types::sol! {
        /// What one challenger found of a node's line; signed for Capacity.
        #[derive(Debug, PartialEq, Eq)]
        struct BandwidthVerdict {
            uint32 node; uint64 pulse; bytes32 receipt; uint32 bytesLen; uint32 micros;
        }
        /// A node's memory table of a day; signed for Capacity.
        #[derive(Debug, PartialEq, Eq)]
        struct TableRecord { uint32 node; uint32 day; bytes32 root; uint64 bytesLen; }
        /// An extent of filler, or a block of a table, that a witness has made again and found to be
        /// something else; signed for Capacity. `way` is the keccak-256 of its way, as it travels.
        #[derive(Debug, PartialEq, Eq)]
        struct FalseExtent { uint32 node; uint64 pulse; bool isTable; bytes32 way; }
        /// What an inspector found who made that extent again; `pulse` is the one that drew it.
        #[derive(Debug, PartialEq, Eq)]
        struct Inspection { uint32 node; uint64 pulse; bool isTable; bool isTrue; }
    }
}

pub use typed::{BandwidthVerdict, Inspection, TableRecord};

/// The most bytes of a statement as it travels.
pub const STATEMENT_BYTES_MAX: usize = 1 + 4 + 12 + WAY_BYTES_MAX + 65;
/// The most bytes of an extent's way.
const WAY_BYTES_MAX: usize = 50 + ExtentPath::LEVELS_MAX * 41;

const VERDICT: u8 = 1;
const BANDWIDTH: u8 = 2;
const TABLE: u8 = 3;
const FALSE_FILLER: u8 = 4;
const FALSE_TABLE: u8 = 5;
const FILLER_INSPECTED: u8 = 6;
const TABLE_INSPECTED: u8 = 7;

/// What is said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// A witness's verdict.
    Verdict(PulseVerdict),
    /// A challenger's measurement.
    Bandwidth(BandwidthVerdict),
    /// A node's table.
    Table(TableRecord),
    /// A witness's finding.
    False(Finding),
    /// What an inspector makes of a finding.
    Inspected(Inspection),
}

/// An extent that is not what it is said to be, as a witness has found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Whose.
    pub node: u32,
    /// The pulse that it was shown in.
    pub pulse: u64,
    /// Of a table; otherwise of a plot.
    pub is_table: bool,
    /// Its way to the root that the node has committed to.
    pub way: ExtentPath,
}

impl Finding {
    fn typed(&self) -> typed::FalseExtent {
        let mut way = Vec::new();
        put_way(&mut way, &self.way);
        let (node, pulse) = (self.node, self.pulse);
        typed::FalseExtent { node, pulse, isTable: self.is_table, way: keccak256(way) }
    }
}

/// A statement with its author's signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    /// The node that says it.
    pub author: u32,
    /// What it says.
    pub content: Content,
    /// Under the author's chain key, in Capacity's domain.
    pub signature: Signature,
}

/// What an author can say one thing about, and no two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Subject {
    /// Of what kind.
    kind: u8,
    /// Whom it is about; 0 for findings, of which there is one in a pulse.
    pub node: u32,
    /// The pulse, or the day.
    pub when: u64,
    /// Who says it.
    pub author: u32,
}

impl Content {
    /// The node that it is about.
    #[must_use]
    pub fn node(&self) -> u32 {
        match self {
            Self::Verdict(it) => it.node,
            Self::Bandwidth(it) => it.node,
            Self::Table(it) => it.node,
            Self::False(it) => it.node,
            Self::Inspected(it) => it.node,
        }
    }

    /// The pulse that it is about; `None` for what is about a day.
    #[must_use]
    pub fn pulse(&self) -> Option<u64> {
        match self {
            Self::Verdict(it) => Some(it.pulse),
            Self::Bandwidth(it) => Some(it.pulse),
            Self::Table(_) => None,
            Self::False(it) => Some(it.pulse),
            Self::Inspected(it) => Some(it.pulse),
        }
    }

    /// What is signed. `binding`'s node does not matter.
    #[must_use]
    pub fn digest(&self, binding: &Binding) -> B256 {
        let domain = Reader::Capacity.domain(binding.chain_id, binding.capacity);
        match self {
            Self::Verdict(it) => digest(it, &domain),
            Self::Bandwidth(it) => digest(it, &domain),
            Self::Table(it) => digest(it, &domain),
            Self::False(it) => digest(&it.typed(), &domain),
            Self::Inspected(it) => digest(it, &domain),
        }
    }

    fn kind(&self) -> u8 {
        match self {
            Self::Verdict(_) => VERDICT,
            Self::Bandwidth(_) => BANDWIDTH,
            Self::Table(_) => TABLE,
            Self::False(it) if it.is_table => FALSE_TABLE,
            Self::False(_) => FALSE_FILLER,
            Self::Inspected(it) if it.isTable => TABLE_INSPECTED,
            Self::Inspected(_) => FILLER_INSPECTED,
        }
    }

    fn put(&self, out: &mut Vec<u8>) {
        match self {
            Self::Verdict(it) => {
                out.extend(it.node.to_be_bytes());
                out.extend(it.pulse.to_be_bytes());
                out.extend(it.threads.to_be_bytes());
                out.extend(it.memMiB.to_be_bytes());
                out.extend(it.diskMiB.to_be_bytes());
                out.extend(it.fillerDraws.to_be_bytes());
            }
            Self::Bandwidth(it) => {
                out.extend(it.node.to_be_bytes());
                out.extend(it.pulse.to_be_bytes());
                out.extend(it.receipt);
                out.extend(it.bytesLen.to_be_bytes());
                out.extend(it.micros.to_be_bytes());
            }
            Self::Table(it) => {
                out.extend(it.node.to_be_bytes());
                out.extend(it.day.to_be_bytes());
                out.extend(it.root);
                out.extend(it.bytesLen.to_be_bytes());
            }
            Self::False(it) => {
                out.extend(it.node.to_be_bytes());
                out.extend(it.pulse.to_be_bytes());
                put_way(out, &it.way);
            }
            Self::Inspected(it) => {
                out.extend(it.node.to_be_bytes());
                out.extend(it.pulse.to_be_bytes());
                out.push(u8::from(it.isTrue));
            }
        }
    }

    fn read(kind: u8, input: &mut Input<'_>) -> Result<Self, WireError> {
        let node = input.u32()?;
        Ok(match kind {
            VERDICT => Self::Verdict(PulseVerdict {
                node,
                pulse: input.u64()?,
                threads: u16::from_be_bytes(input.array()?),
                memMiB: input.u32()?,
                diskMiB: input.u64()?,
                fillerDraws: u16::from_be_bytes(input.array()?),
            }),
            BANDWIDTH => Self::Bandwidth(BandwidthVerdict {
                node,
                pulse: input.u64()?,
                receipt: input.hash()?,
                bytesLen: input.u32()?,
                micros: input.u32()?,
            }),
            TABLE => Self::Table(TableRecord {
                node,
                day: input.u32()?,
                root: input.hash()?,
                bytesLen: input.u64()?,
            }),
            FALSE_FILLER | FALSE_TABLE => {
                let (pulse, way) = (input.u64()?, input.way()?);
                Self::False(Finding { node, pulse, is_table: kind == FALSE_TABLE, way })
            }
            FILLER_INSPECTED | TABLE_INSPECTED => {
                let (pulse, is_true) = (input.u64()?, input.byte()?);
                if is_true > 1 {
                    return Err(WireError::Value(is_true));
                }
                let (is_table, is_true) = (kind == TABLE_INSPECTED, is_true == 1);
                Self::Inspected(Inspection { node, pulse, isTable: is_table, isTrue: is_true })
            }
            other => return Err(WireError::Value(other)),
        })
    }
}

impl Statement {
    /// Says something.
    #[must_use]
    pub fn new(author: u32, content: Content, binding: &Binding, key: &Key) -> Self {
        let domain = Reader::Capacity.domain(binding.chain_id, binding.capacity);
        let signature = match &content {
            Content::Verdict(it) => sign(it, &domain, key),
            Content::Bandwidth(it) => sign(it, &domain, key),
            Content::Table(it) => sign(it, &domain, key),
            Content::False(it) => sign(&it.typed(), &domain, key),
            Content::Inspected(it) => sign(it, &domain, key),
        };
        Self { author, content, signature }
    }

    /// Whether an address has signed it.
    #[must_use]
    pub fn is_signed_by(&self, signer: Address, binding: &Binding) -> bool {
        self.signature.recover(&self.content.digest(binding)) == Some(signer)
    }

    /// What it is about, and by whom.
    #[must_use]
    pub fn subject(&self) -> Subject {
        let when = match &self.content {
            Content::Table(it) => it.day.into(),
            Content::Verdict(it) => it.pulse,
            Content::Bandwidth(it) => it.pulse,
            Content::False(it) => it.pulse,
            Content::Inspected(it) => it.pulse,
        };
        let (kind, node) = match &self.content {
            // Of all nodes that it watches in a pulse, a witness makes at most one again.
            Content::False(_) => (FALSE_FILLER, 0),
            content => (content.kind(), content.node()),
        };
        Subject { kind, node, when, author: self.author }
    }

    /// A number for it in gossip: of what is said and by whom, not of the signature, since an author
    /// can sign one thing in many ways. 128 bits, so that no author finds two statements with one
    /// number and tells half of the network the one and half the other.
    #[must_use]
    pub fn id(&self) -> u128 {
        let mut bytes = vec![self.content.kind()];
        bytes.extend(self.author.to_be_bytes());
        self.content.put(&mut bytes);
        let hash = keccak256(bytes);
        hash.first_chunk().copied().map_or(0, u128::from_be_bytes)
    }

    /// The table that it commits to, if it does.
    #[must_use]
    pub fn table(&self) -> Option<PlotRecord> {
        match &self.content {
            Content::Table(it) => Some(PlotRecord { root: it.root, bytes_len: it.bytesLen }),
            _ => None,
        }
    }

    /// As it travels within a message.
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        out.push(self.content.kind());
        out.extend(self.author.to_be_bytes());
        self.content.put(out);
        out.extend(self.signature.to_bytes());
    }

    pub(super) fn read(input: &mut Input<'_>) -> Result<Self, WireError> {
        let (kind, author) = (input.byte()?, input.u32()?);
        let content = Content::read(kind, input)?;
        Ok(Self { author, content, signature: input.signature()? })
    }
}
