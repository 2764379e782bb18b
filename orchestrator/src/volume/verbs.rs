//! What `hypha volume` does.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, IsTerminal, Write};
use std::path::PathBuf;

use serde_json::json;
use spec::node::{NodeSpec, Place};
use storage_vdev::VolumeKey;
use storage_vdev::engine::{
    CloneOf, Create as CreateOptions, Holder, Limits, OpenError, OpenOptions, Policy, Randomness,
    RequestError, Status, TakeOver,
};
use storage_vdev::service::Rights;

use super::arguments::{
    Create, Form, OpeningArguments, PolicyName, Recover, Size, VolumeVerb, Which,
};
use super::control::{self, Order, Outcome};
use super::host::{self, Access, HostError, HostNodes};
use super::manifest::{Folder, Manifest, ManifestError, parse_uuid};
use super::session::Session;
use super::show::{self, Health, VolumeStatus};
use crate::state::{self, StateError};
use crate::{clock, exit_code};

/// The journal of a volume: what FLUSH may write before a segment is due.
pub(super) const JOURNAL_BYTES: u64 = 64 << 20;
/// How long an opening holds a volume without renewing.
pub(super) const LEASE_NS: u64 = 10_000_000_000;

/// Why a verb failed.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// The volume's folder.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// Its nodes.
    #[error(transparent)]
    Host(#[from] HostError),
    /// It can't be opened.
    #[error("volume {name}: {source}")]
    Open {
        /// Its name.
        name: String,
        /// Why.
        #[source]
        source: OpenError,
    },
    /// It is open, and refused or failed.
    #[error("volume {name}: {source}")]
    Request {
        /// Its name.
        name: String,
        /// Why.
        #[source]
        source: RequestError,
    },
    /// The process that serves it said so.
    #[error("volume {name}: {message}")]
    Remote {
        /// Its name.
        name: String,
        /// What it said.
        message: String,
    },
    /// Another process has it open and doesn't answer.
    #[error(
        "volume {name} is in use by another process of this host, which doesn't answer ({path}: {source})"
    )]
    Busy {
        /// Its name.
        name: String,
        /// Its control socket.
        path: PathBuf,
        /// Why it doesn't answer.
        #[source]
        source: io::Error,
    },
    /// Another process of this host has it open.
    #[error("volume {name} is in use by {user} of this host (epoch {epoch})")]
    InUse {
        /// Its name.
        name: String,
        /// The process.
        user: String,
        /// The epoch of its opening, if it said so.
        epoch: String,
    },
    /// An argument that can't be.
    #[error("{field}: {reason}")]
    Argument {
        /// Which.
        field: &'static str,
        /// What is wrong, and what was expected.
        reason: String,
    },
    /// Standard output is gone, or the like.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// A face.
    #[error("{0}")]
    Serve(String),
}

impl VolumeError {
    /// The command's exit code.
    #[must_use]
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::Manifest(ManifestError::NotFound { .. }) => exit_code::NOT_FOUND,
            Self::Argument { .. }
            | Self::Busy { .. }
            | Self::InUse { .. }
            | Self::Manifest(ManifestError::Exists { .. } | ManifestError::Damaged { .. }) => {
                exit_code::BAD_SPEC
            }
            Self::Host(HostError::Directories(_)) => exit_code::BAD_SPEC,
            Self::Open { source, .. } => match source {
                OpenError::TooFewNodes { .. }
                | OpenError::Stale { .. }
                | OpenError::Register(_) => exit_code::UNAVAILABLE,
                OpenError::SuperblockLost { .. }
                | OpenError::JournalLost
                | OpenError::MapLost { .. }
                | OpenError::NoSpace => exit_code::FAILURE,
                _ => exit_code::BAD_SPEC,
            },
            Self::Request { source, .. } => match source {
                RequestError::Unavailable | RequestError::LeaseExpired => exit_code::UNAVAILABLE,
                RequestError::NoSnapshot(_) => exit_code::NOT_FOUND,
                RequestError::SnapshotExists(_) | RequestError::SnapshotInUse(_) => {
                    exit_code::CONFLICT
                }
                RequestError::Refused(_) | RequestError::Range { .. } => exit_code::BAD_SPEC,
                _ => exit_code::FAILURE,
            },
            _ => exit_code::FAILURE,
        }
    }
}

/// Does what the command line says; the exit code if it succeeds.
///
/// # Errors
/// [`VolumeError`].
pub fn run(verb: VolumeVerb) -> Result<i32, VolumeError> {
    match verb {
        VolumeVerb::Create(create) => self::create(&create),
        VolumeVerb::Ls { form } => list(&form),
        VolumeVerb::Status { which, metrics } => status(&which, metrics),
        VolumeVerb::Snapshot { which, snapshot: None, .. } => snapshots(&which),
        VolumeVerb::Snapshot { which, snapshot: Some(name), delete } => {
            let unix_time = clock::unix_time_ns() / 1_000_000_000;
            let order = if delete {
                Order::DeleteSnapshot { name }
            } else {
                Order::Snapshot { name, unix_time }
            };
            simple(&which, &order)
        }
        VolumeVerb::Clone { which, new, snapshot } => {
            super::clone::clone(&which, &new, snapshot.as_deref())
        }
        VolumeVerb::Rollback { which, snapshot: name } => simple(&which, &Order::Rollback { name }),
        VolumeVerb::Grow { which, size } => {
            let Size(size_bytes) = size;
            simple(&which, &Order::Grow { size_bytes })
        }
        VolumeVerb::Repair { which, limit } => work(&which, &Order::Repair, limit),
        VolumeVerb::Scrub { which } => work(&which, &Order::Scrub, None),
        VolumeVerb::Recover(recover) => self::recover(&recover),
        VolumeVerb::Serve(serve) => super::serve::serve(&serve),
        VolumeVerb::Delegate { which, holder, days } => {
            super::delegate::delegate(&which, &holder, days)
        }
        VolumeVerb::Rm { which, yes, abandon } => super::remove::remove(&which, yes, abandon),
    }
}

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

fn reach_as(
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

/// Opens a volume in this process.
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
    let register = !nodes.is_local();
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

pub(super) fn uuid_of(manifest: &Manifest) -> Result<[u8; 16], VolumeError> {
    manifest.uuid_bytes().ok_or_else(|| VolumeError::Argument {
        field: "volume.json, uuid",
        reason: format!("{:?} has not 32 hexadecimal digits", manifest.uuid),
    })
}

fn create(create: &Create) -> Result<i32, VolumeError> {
    let folder = folder(&create.form, &create.name)?;
    if folder.read().is_ok() {
        let (name, directory) = (create.name.clone(), folder.path().to_owned());
        return Err(ManifestError::Exists { name, directory }.into());
    }
    let shape = (create.code.data_shards, create.code.parity_shards);
    let wanted = usize::from(shape.0) + usize::from(shape.1);
    let mut nodes = create.nodes.clone();
    if nodes.is_empty() {
        let shard = |index| NodeSpec {
            place: Place::Directory(folder.path().join(format!("shard-{index}"))),
            domain: None,
        };
        nodes = (0..wanted).map(shard).collect();
    }
    check(create, wanted, nodes.len())?;
    absolute(&mut nodes)?;
    settle_domains(&mut nodes, create.strict_domains)?;
    let mut manifest = Manifest::new(host::random()?, shape, create.policy.name(), nodes);
    manifest.journal = create.journal.as_ref().map(std::path::absolute).transpose()?;
    let options = CreateOptions {
        data_shards: shape.0,
        parity_shards: shape.1,
        size_bytes: create.size.0,
        policy: policy(create.policy),
        allow_degraded: false,
        shared_domains: !create.strict_domains,
        journal_bytes: JOURNAL_BYTES,
        lease_ns: LEASE_NS,
    };
    folder.create(None)?;
    let made =
        open(&folder, &manifest, (OpeningArguments::default(), Limits::LARGE), New::Empty(options))
            .and_then(|session| {
                let status = session.volume().status();
                let name = create.name.clone();
                session.close().map_err(|source| VolumeError::Request { name, source })?;
                folder.write(&manifest)?;
                Ok(status)
            });
    match made {
        Ok(status) => {
            let status = VolumeStatus::new(&create.name, &status, create.policy.name());
            tell(&create.form, &json!(status), || {
                format!(
                    "volume {} made ({}, {}+{}), {}\n",
                    status.name,
                    show::bytes(status.size_bytes),
                    shape.0,
                    shape.1,
                    status.policy
                )
            })?;
            Ok(0)
        }
        Err(error) => {
            // Nothing was written under this key that anybody needs.
            folder.destroy()?;
            Err(error)
        }
    }
}

/// What can be said without asking a node.
fn check(create: &Create, wanted: usize, found: usize) -> Result<(), VolumeError> {
    let argument = |field, reason| Err(VolumeError::Argument { field, reason });
    let (data, parity) = (create.code.data_shards, create.code.parity_shards);
    if data == 0 || wanted > usize::from(storage_vdev::SHARDS_MAX) {
        let most = storage_vdev::SHARDS_MAX;
        return argument(
            "--code",
            format!("{data}+{parity}: expected at least 1 data shard and at most {most} in all"),
        );
    }
    if create.size.0 == 0 || !create.size.0.is_multiple_of(storage_vdev::BLOCK_BYTES as u64) {
        return argument(
            "--size",
            format!(
                "{} bytes: expected a multiple of {}",
                create.size.0,
                storage_vdev::BLOCK_BYTES
            ),
        );
    }
    if found < wanted {
        return argument(
            "--nodes",
            format!(
                "{found} nodes: expected at least {wanted}, one for each shard of {data}+{parity}"
            ),
        );
    }
    if found + 1 > storage_vdev::node::NODES_MAX {
        let most = storage_vdev::node::NODES_MAX - 1;
        return argument("--nodes", format!("{found} nodes: expected at most {most}"));
    }
    Ok(())
}

/// Another process need not have our working directory.
fn absolute(nodes: &mut [NodeSpec]) -> Result<(), VolumeError> {
    for node in nodes {
        if let Place::Directory(path) = &mut node.place {
            *path = std::path::absolute(&*path)?;
        }
    }
    Ok(())
}

/// Names each node's failure domain. Two nodes that share one are refused if that was asked for;
/// else they are warned of, and each counts as a domain of its own from then on.
fn settle_domains(nodes: &mut [NodeSpec], strict: bool) -> Result<(), VolumeError> {
    let mut seen: BTreeMap<String, String> = BTreeMap::new();
    let mut shared = Vec::new();
    for (index, node) in nodes.iter_mut().enumerate() {
        let domain = host::domain(node);
        let name = node.to_string();
        match seen.get(&domain) {
            Some(first) if strict => {
                return Err(VolumeError::Argument {
                    field: "--nodes",
                    reason: format!(
                        "{first} and {name} share a failure domain ({domain}): \
                        expected one each, because of --strict-domains"
                    ),
                });
            }
            Some(first) => shared.push((first.clone(), name, domain, index)),
            None => {
                seen.insert(domain.clone(), name);
                node.domain = Some(domain);
            }
        }
    }
    if let Some((first, second, domain, _)) = shared.first() {
        tracing::warn!(
            "{first} and {second} share a failure domain ({domain}): its loss may be \
            more than the code survives"
        );
    }
    for (.., domain, index) in &shared {
        if let Some(node) = nodes.get_mut(*index) {
            node.domain = Some(format!("{domain}-node-{index}"));
        }
    }
    Ok(())
}

fn policy(name: PolicyName) -> Policy {
    match name {
        PolicyName::Local => Policy::Local,
        PolicyName::Quorum => Policy::Quorum,
        PolicyName::Sealed => Policy::Sealed,
    }
}

fn list(form: &Form) -> Result<i32, VolumeError> {
    let directory = state::directory(form.state.as_deref())?;
    let mut rows = Vec::new();
    for folder in Folder::all(&directory)? {
        let manifest = folder.read()?;
        let in_use = folder.lock()?.is_none();
        rows.push((folder.name().to_owned(), manifest, in_use));
    }
    let objects: Vec<_> = rows
        .iter()
        .map(|(name, manifest, in_use)| {
            json!({
                "name": name,
                "uuid": manifest.uuid,
                "code": format!("{}+{}", manifest.data_shards, manifest.parity_shards),
                "policy": manifest.policy,
                "nodes": manifest.nodes.iter().map(ToString::to_string).collect::<Vec<_>>(),
                "in_use": in_use,
            })
        })
        .collect();
    tell(form, &json!(objects), || {
        let width = rows.iter().map(|row| row.0.len()).max().unwrap_or(0);
        let mut text = String::new();
        for (name, manifest, in_use) in &rows {
            let use_ = if *in_use { "in use" } else { "idle" };
            text += &format!(
                "{name:width$}  {}+{}  {:6}  {use_:6}  {} nodes  {}\n",
                manifest.data_shards,
                manifest.parity_shards,
                manifest.policy,
                manifest.nodes.len(),
                manifest.uuid
            );
        }
        text
    })?;
    Ok(0)
}

fn status(which: &Which, metrics: bool) -> Result<i32, VolumeError> {
    let outcome = carry_out(which, &Order::Status, Limits::SMALL)?;
    let Some(status) = outcome.status else {
        return Err(VolumeError::Serve("the serving process sent no status".to_owned()));
    };
    if metrics {
        print(&status.to_metrics())?;
    } else {
        tell(&which.form, &json!(status), || status.to_text())?;
    }
    Ok(match status.health {
        Health::Healthy => 0,
        Health::Degraded => exit_code::DEGRADED,
        Health::Lost | Health::Stopped => exit_code::FAILURE,
    })
}

fn snapshots(which: &Which) -> Result<i32, VolumeError> {
    let outcome = carry_out(which, &Order::ListSnapshots, Limits::SMALL)?;
    let snapshots = outcome.snapshots.unwrap_or_default();
    tell(&which.form, &json!(snapshots), || {
        let width = snapshots.iter().map(|snapshot| snapshot.name.len()).max().unwrap_or(0);
        let mut text = String::new();
        for snapshot in &snapshots {
            let clone = if snapshot.has_clone { "  base of a clone" } else { "" };
            text += &format!(
                "{:width$}  {}  {} s after 1970{clone}\n",
                snapshot.name,
                show::bytes(snapshot.size_bytes),
                snapshot.unix_time
            );
        }
        text
    })?;
    Ok(0)
}

fn simple(which: &Which, order: &Order) -> Result<i32, VolumeError> {
    carry_out(which, order, Limits::SMALL)?;
    tell(&which.form, &json!({"done": order}), String::new)?;
    Ok(0)
}

/// Repair and scrub: with progress, and an exit code that says whether all is well now.
fn work(which: &Which, order: &Order, limit: Option<Size>) -> Result<i32, VolumeError> {
    let repair_bytes_per_second = limit.map_or(0, |size| size.0);
    let limits = Limits { repair_bytes_per_second, ..Limits::LARGE };
    let outcome = carry_out(which, order, limits)?;
    let Some(report) = outcome.report else {
        return Err(VolumeError::Serve("the serving process sent no report".to_owned()));
    };
    tell(&which.form, &json!(report), || {
        format!(
            "{} segments looked at, {} shards missing or damaged, {} made again, {} segments \
            lost\n",
            report.segments, report.shards_bad, report.shards_rebuilt, report.segments_lost
        )
    })?;
    Ok(match (report.segments_lost, report.shards_bad > report.shards_rebuilt) {
        (0, false) => 0,
        (0, true) => exit_code::DEGRADED,
        _ => exit_code::FAILURE,
    })
}

/// Carries an order out, here or in the process that has the volume open.
pub(super) fn carry_out(
    which: &Which,
    order: &Order,
    limits: Limits,
) -> Result<Outcome, VolumeError> {
    let new = if *order == Order::Repair { New::Mended } else { New::No };
    let (_, manifest, reached) = reach_as(which, limits, new)?;
    let name = which.name.clone();
    let mut meter = Meter::new(which.form.json);
    match reached {
        Reached::There(path) => {
            let answer = control::give(&path, order, |status| meter.show(status))
                .map_err(|source| VolumeError::Busy { name: name.clone(), path, source })?;
            meter.end();
            answer.map_err(|message| VolumeError::Remote { name, message })
        }
        Reached::Here(mut session, _lock) => {
            let failed = |source| VolumeError::Request { name: name.clone(), source };
            let outcome = match order.command() {
                None => {
                    let status = session.volume().status();
                    let status = VolumeStatus::new(&name, &status, &manifest.policy);
                    Outcome { status: Some(Box::new(status)), ..Outcome::default() }
                }
                Some(command) => {
                    let shown = |status: &Status| {
                        meter.show(&VolumeStatus::new(&name, status, &manifest.policy));
                    };
                    session.command(command, shown).map_err(failed)?.into()
                }
            };
            meter.end();
            session.close().map_err(failed)?;
            Ok(outcome)
        }
    }
}

/// A line of progress on a terminal, JSON lines for scripts, silence otherwise.
struct Meter {
    json: bool,
    terminal: bool,
    shown: bool,
}

impl Meter {
    fn new(json: bool) -> Self {
        Self { json, terminal: io::stderr().is_terminal(), shown: false }
    }

    fn show(&mut self, status: &VolumeStatus) {
        let Some(work) = status.repair.or(status.scrub) else { return };
        // Whoever stopped listening doesn't stop the work.
        if self.json {
            _ = writeln!(io::stdout(), "{}", json!({"event": "progress", "work": work}));
        } else if self.terminal {
            _ = write!(io::stderr(), "\r{}\x1b[K", work.to_text());
            self.shown = true;
        }
    }

    fn end(&mut self) {
        if self.shown {
            _ = writeln!(io::stderr());
        }
    }
}

fn recover(recover: &Recover) -> Result<i32, VolumeError> {
    let folder = folder(&recover.form, &recover.name)?;
    let key = state::read_key_at(&recover.key)?;
    let uuid = match &recover.uuid {
        Some(text) => parse_uuid(text).ok_or_else(|| VolumeError::Argument {
            field: "--uuid",
            reason: format!("{text:?}: expected 32 hexadecimal digits"),
        })?,
        None => super::recovery::find_volume(&recover.nodes)?,
    };
    let mut nodes = recover.nodes.clone();
    absolute(&mut nodes)?;
    settle_domains(&mut nodes, false)?;
    folder.create(Some(&key))?;
    let found = super::recovery::rebuild(&folder, (uuid, nodes), recover.opening);
    match found {
        Ok((manifest, status)) => {
            folder.write(&manifest)?;
            tell(&recover.form, &json!(status), || status.to_text())?;
            Ok(0)
        }
        Err(error) => {
            // The key came from elsewhere and is still there.
            folder.destroy()?;
            Err(error)
        }
    }
}

/// Answers in the form that was asked for.
pub(super) fn tell(
    form: &Form,
    object: &serde_json::Value,
    text: impl FnOnce() -> String,
) -> Result<(), VolumeError> {
    if form.json { print(&format!("{object}\n")) } else { print(&text()) }
}

pub(super) fn print(text: &str) -> Result<(), VolumeError> {
    Ok(io::stdout().lock().write_all(text.as_bytes())?)
}

/// Asks on the terminal; no terminal, no consent.
pub(super) fn confirm(question: &str) -> io::Result<bool> {
    if !io::stdin().is_terminal() {
        return Ok(false);
    }
    write!(io::stderr(), "{question} [type the volume's name] ")?;
    Ok(true)
}

/// Reads a line from the terminal.
pub(super) fn answer() -> io::Result<String> {
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line)?;
    Ok(line.trim().to_owned())
}
