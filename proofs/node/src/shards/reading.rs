//! Drawn bytes of shards, while the server that owns them may be doing anything.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hypha_chain::B256;
use hypha_chain::tree::Extent;
use hypha_proofs::store::ExtentTree;
use storage_vdev::disk::Look;

use super::format::Bundle;
use super::stock::read_bundle;
use crate::direct::DirectReader;

/// So many bundles that were not what they should be are looked at first.
const DOUBTS_MAX: usize = 64;

/// Where a bundle is kept.
#[derive(Debug, Clone)]
pub(super) struct Place {
    /// The server's folder.
    pub(super) folder: Arc<Path>,
    /// The file with its hashes.
    pub(super) file: PathBuf,
}

/// What pulses and challenges are answered with.
#[derive(Debug, Default)]
pub(super) struct Shared {
    /// Bundles as plots list them.
    pub(super) listed: Vec<Extent>,
    /// Of all bundles that may be asked for, where they are.
    pub(super) places: BTreeMap<B256, Place>,
    /// Bundles that a drawn byte was not found in.
    pub(super) doubts: Vec<B256>,
    /// Bytes of all objects of the servers.
    pub(super) stored_bytes: u64,
    /// Whether all folders were looked through once.
    pub(super) is_ready: bool,
}

/// Where bundles can be read.
#[derive(Debug, Clone, Default)]
pub struct Reading(Arc<Mutex<Shared>>);

impl Reading {
    pub(super) fn lock(&self) -> MutexGuard<'_, Shared> {
        // Each change of it is one step: whoever panicked has left it whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn bundle(&self, root: &B256) -> io::Result<(Place, Bundle)> {
        let none = || io::Error::new(io::ErrorKind::NotFound, "no bundle of shards is this one");
        let place = self.lock().places.get(root).cloned().ok_or_else(none)?;
        let bundle = read_bundle(&place.file)?;
        Ok((place, bundle))
    }

    /// The hashes of a bundle.
    ///
    /// # Errors
    /// It is not there, or the disk has lost them.
    pub fn tree(&self, root: &B256) -> io::Result<ExtentTree> {
        self.bundle(root).map(|(_, bundle)| bundle.tree)
    }

    /// A range of a bundle's bytes, as they are on the disk now: whoever has the hashes compares them.
    ///
    /// # Errors
    /// The bundle or the server's folder is not there, or the disk can't read it.
    pub fn read(&self, root: &B256, range: &Range<u64>) -> io::Result<Vec<u8>> {
        let (place, bundle) = self.bundle(root)?;
        let look = Look::open(&place.folder).map_err(io::Error::other)?;
        if look.node() != bundle.store {
            return Err(io::Error::other("the folder has another store"));
        }
        let mut reader = DirectReader::new(look.file());
        let mut bytes = Vec::new();
        for part in bundle.places(range) {
            reader.append(part, &mut bytes)?;
        }
        Ok(bytes)
    }

    /// A byte of this bundle could not be shown: it is compared next.
    pub fn doubt(&self, root: &B256) {
        let mut shared = self.lock();
        if shared.doubts.len() < DOUBTS_MAX && !shared.doubts.contains(root) {
            shared.doubts.push(*root);
        }
    }
}
