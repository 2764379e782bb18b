//! Where the bytes of a plot are read, without a lock: filler in its folders, shards in those of the servers
//! that keep them.

use std::io;
use std::ops::Range;

use hypha_chain::B256;
use hypha_chain::tree::{Extent, ExtentKind};
use hypha_proofs::store::ExtentTree;

use crate::{filler, shards};

/// Everything that a plot lists.
#[derive(Debug, Clone)]
pub struct Reading {
    /// Filler.
    pub filler: filler::Reading,
    /// Shards.
    pub shards: shards::Reading,
}

impl Reading {
    /// The hashes of an extent.
    ///
    /// # Errors
    /// It is not there, or the disk has lost it.
    pub fn tree(&self, extent: &Extent) -> io::Result<ExtentTree> {
        match extent.kind {
            ExtentKind::Filler => self.filler.tree(extent),
            ExtentKind::User => self.shards.tree(&extent.root),
        }
    }

    /// A range of an extent's bytes.
    ///
    /// # Errors
    /// It is not there, or the disk can't read it.
    pub fn read(&self, extent: &Extent, range: &Range<u64>) -> io::Result<Vec<u8>> {
        match extent.kind {
            ExtentKind::Filler => self.filler.read(extent.id, range.clone()),
            ExtentKind::User => self.shards.read(&extent.root, range),
        }
    }

    /// A byte of this extent could not be shown. Of filler that is found in its turn.
    pub fn doubt(&self, extent: &Extent) {
        if extent.kind == ExtentKind::User {
            self.shards.doubt(&extent.root);
        }
    }

    /// The context of an extent's labels, to make it again; `None` if it is no filler of a folder here.
    #[must_use]
    pub fn context(&self, extent: &Extent) -> Option<B256> {
        let is_filler = extent.kind == ExtentKind::Filler;
        self.filler.context(extent.id).filter(|_| is_filler)
    }
}
