//! Opening a volume in this process, or finding the one that has it open.

use std::fs::File;
use std::path::PathBuf;

use storage_vdev::VolumeKey;
use storage_vdev::engine::{
    CloneOf, Create as CreateOptions, Holder, Limits, OpenOptions, Randomness, TakeOver,
};
use storage_vdev::service::Rights;

use super::arguments::{Form, OpeningArguments, Which};
use super::control::{self, Order};
use super::error::VolumeError;
use super::host::{self, Access, HostNodes};
use super::manifest::{Folder, Manifest, parse_uuid};
use super::session::Session;
use crate::state;

/// A volume that this command can reach.
pub(super) enum Reached {
    /// It is open in this process, which holds its lock.
    Here(Box<Session<HostNodes>>, File),
    /// Another process has it open and listens at this socket.
    There(PathBuf),
}

/// Opens a volume, or finds the process that has it open.
pub(super) fn reach(
    which: &Which,
    limits: Limits,
) -> Result<(Folder, Manifest, Reached), VolumeError> {
    reach_as(which, limits, New::No)
}

/// The same, for a volume that is perhaps to be mended.
pub(super) fn reach_as(
    which: &Which,
    limits: Limits,
    new: New,
) -> Result<(Folder, Manifest, Reached), VolumeError> {
    let folder = folder(&which.form, &which.name)?;
    let manifest = folder.read()?;
    let Some(lock) = folder.lock()? else {
        let socket = folder.control();
        return Ok((folder, manifest, Reached::There(socket)));
    };
    let session = open(&folder, &manifest, (which.opening, limits), new)?;
    Ok((folder, manifest, Reached::Here(Box::new(session), lock)))
}

/// That another process of this host has the volume open: who, and since which epoch.
pub(super) fn in_use(folder: &Folder) -> VolumeError {
    let status = control::give(&folder.control(), &Order::Status, |_| {});
    let status = status.ok().and_then(Result::ok).and_then(|outcome| outcome.status);
    let epoch = status.map_or_else(|| "unknown".to_owned(), |status| status.epoch.to_string());
    VolumeError::InUse { name: folder.name().to_owned(), user: folder.user(), epoch }
}

/// The folder of a volume in the state.
pub(super) fn folder(form: &Form, name: &str) -> Result<Folder, VolumeError> {
    let directory = state::directory(form.state.as_deref())?;
    state::prepare(&directory)?;
    Ok(Folder::new(&directory, name))
}

/// Whether a volume is to be made, and as what.
pub(super) enum New {
    /// It is there.
    No,
    /// It is there; directories that are missing are made, as empty nodes.
    Mended,
    /// It begins as zeroes.
    Empty(CreateOptions),
    /// It begins as a snapshot of another one.
    Clone(CreateOptions, CloneOf),
}

/// Opens a volume in this process, which holds its lock.
pub(super) fn open(
    folder: &Folder,
    manifest: &Manifest,
    (arguments, limits): (OpeningArguments, Limits),
    new: New,
) -> Result<Session<HostNodes>, VolumeError> {
    let mends = matches!(new, New::Mended);
    let (create, base) = match new {
        New::No | New::Mended => (None, None),
        New::Empty(create) => (Some(create), None),
        New::Clone(create, base) => (Some(create), Some(base)),
    };
    let key = VolumeKey::new(folder.key()?.expose());
    let uuid = uuid_of(manifest)?;
    let mut bases = Vec::new();
    for text in &manifest.bases {
        let base = parse_uuid(text).ok_or_else(|| VolumeError::Argument {
            field: "volume.json, bases",
            reason: format!("{text:?} has not 32 hexadecimal digits"),
        })?;
        bases.push((base, VolumeKey::new(folder.base_key(text)?.expose())));
    }
    let access = Access { create: create.is_some() || mends, rights: Rights::ALL, bases };
    let (nodes, infos) = host::connect(manifest, (&key, uuid), &access)?;
    // Directories alone need none: the lock on each keeps openings apart.
    let register = manifest.has_servers();
    let options = OpenOptions {
        uuid,
        key,
        nodes: infos,
        must_be_new: create.is_some(),
        create,
        base,
        holder: holder(folder)?,
        register,
        take_over: if arguments.force { TakeOver::Wait } else { TakeOver::Refuse },
        accept_loss: arguments.accept_loss,
        limits,
    };
    let random = Randomness { salt: host::random()?, proposer: host::random()? };
    let name = folder.name().to_owned();
    Session::open(nodes, options, random, || {})
        .map_err(|source| VolumeError::Open { name, source })
}

/// Who we are to the register: the same for all processes of this host that use this state, since
/// the lock lets only one of them at the volume.
fn holder(folder: &Folder) -> Result<Holder, VolumeError> {
    Ok(Holder { id: folder.holder()?, name: host::holder_name() })
}

/// The uuid that a manifest names.
pub(super) fn uuid_of(manifest: &Manifest) -> Result<[u8; 16], VolumeError> {
    manifest.uuid_bytes().ok_or_else(|| VolumeError::Argument {
        field: "volume.json, uuid",
        reason: format!("{:?} has not 32 hexadecimal digits", manifest.uuid),
    })
}
