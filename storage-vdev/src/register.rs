//! The register of a volume: a small record behind a consensus, changed by compare and swap.
//!
//! It says who holds the volume and which superblock is the newest. CASPaxos (Rystsov 2018): a
//! [`Proposer`] changes the record with two rounds over a set of [`AcceptorState`] machines; any
//! majority of them is enough. `docs/register.md` has the rules, why they are safe, what is assumed
//! and what the model check covers.
//!
//! * [`AcceptorState`]: what a node keeps and how it answers; no I/O, the node persists it.
//! * [`Proposer`]: makes one [`Edit`] after the other; no I/O, the volume carries its messages.
//! * [`VolumeRecord`]: the value, with its layout, its MAC and its CRC.
//! * [`Lease`] and [`Watch`]: when a holder must stop, and when a taker may begin.
//! * [`verify_evidence`]: what a node that isn't an acceptor believes of an epoch.

mod acceptor;
mod edit;
mod lease;
mod proposer;
mod receipt;
mod record;

pub use acceptor::{AcceptorFormatError, AcceptorKey, AcceptorState, Transition};
pub use edit::{Applicant, Decision, Edit, Refusal};
pub use lease::{Lease, Watch};
pub use proposer::{Busy, ChangeError, Committed, Proposer, Step, Timing};
pub use receipt::{EvidenceError, Receipt, verify_evidence};
pub use record::{
    ACCEPTORS_MAX, HOLDER_NAME_BYTES_MAX, Holder, Members, RecordError, RegisterKey, SuperblockRef,
    VolumeRecord,
};
