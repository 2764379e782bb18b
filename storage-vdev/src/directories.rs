//! A volume over directories of this host, opened in one call: what a VMM uses.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ring::hkdf;
use zeroize::Zeroizing;

use crate::dir_nodes::{DirNodes, DirNodesError};
use crate::engine::{
    Create, Holder, Limits, NodeInfo, OpenError, OpenOptions, Policy, Randomness, TakeOver, Volume,
};
use crate::geometry::Geometry;
use crate::keys::{Uuid, VolumeKey};
use crate::node::{NodeIndex, Nodes};
use crate::service::{NodeIdentity, NodeOptions};

/// How often opening waits for something before it is given up: directories answer at once.
const WAITS_MAX: u32 = 1000;
/// The file by which a directory of the first form of the format is known.
const FIRST_FORM_FILE: &str = "shard";

/// What volume is to be opened.
#[derive(Debug, Clone)]
pub struct Options {
    /// Its shape.
    pub geometry: Geometry,
    /// Its key.
    pub key: VolumeKey,
    /// Whether it is made if none of the directories holds anything.
    pub create: bool,
    /// When a flush is answered, if it is made.
    pub policy: Policy,
    /// What it may use.
    pub limits: Limits,
}

/// Why directories can't be opened as a volume. No volume in them was changed.
#[derive(Debug, thiserror::Error)]
pub enum DirectoriesError {
    /// The directories are refused.
    #[error(transparent)]
    Nodes(#[from] DirNodesError),
    /// The number of directories isn't k + m.
    #[error("{found} directories were given and the volume has {wanted} shards")]
    Count {
        /// How many were given.
        found: usize,
        /// How many shards there are.
        wanted: usize,
    },
    /// A directory was written by the first form of Hypha's storage.
    #[error("{}: made by an earlier Hypha, whose format (version 1) this one doesn't read", path.display())]
    FirstForm {
        /// The directory.
        path: PathBuf,
    },
    /// A directory belongs to another volume.
    #[error("{name} belongs to another volume")]
    Foreign {
        /// The directory.
        name: String,
    },
    /// Too many directories are gone.
    #[error("{lost} of {all} directories are gone or can't be used, and {spare} may be")]
    TooManyLost {
        /// How many are lost.
        lost: usize,
        /// Of how many.
        all: usize,
        /// How many may be (*m*).
        spare: usize,
    },
    /// The volume can't be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
}

/// Opens the volume in `directories` (one for each shard, in any order), or makes it. Each is locked
/// as long as the volume lives. A directory that is gone is made anew and rebuilt while the volume
/// serves, if no more than m are. `seed` is fresh random bytes, used for this call only; `now_ns`
/// is the clock that [`Volume::poll`] will be given.
///
/// # Errors
/// [`DirectoriesError`].
pub fn open_directories(
    directories: &[PathBuf],
    options: &Options,
    seed: &[u8; 32],
    now_ns: u64,
) -> Result<Volume<DirNodes>, DirectoriesError> {
    let random = Random::new(seed);
    let wanted = options.geometry.shards();
    if directories.len() != wanted {
        return Err(DirectoriesError::Count { found: directories.len(), wanted });
    }
    if let Some(path) = directories.iter().find(|path| is_first_form(path)) {
        return Err(DirectoriesError::FirstForm { path: path.clone() });
    }
    let (nodes, uuid) = open_nodes(directories, options, &random)?;
    let opening = OpenOptions {
        uuid: uuid.unwrap_or_else(|| random.bytes(b"volume")),
        key: options.key.clone(),
        nodes: infos(&nodes, &random),
        create: Some(create(options)).filter(|_| options.create || uuid.is_some()),
        base: None,
        must_be_new: false,
        holder: Holder { id: random.bytes(b"holder"), name: "this host".to_owned() },
        register: false,
        take_over: TakeOver::Refuse,
        accept_loss: false,
        limits: options.limits,
    };
    let drawn = Randomness { salt: random.bytes(b"salt"), proposer: random.bytes(b"proposer") };
    let mut opening = Volume::open(nodes, opening, drawn);
    let mut now_ns = now_ns;
    for _ in 0..WAITS_MAX {
        if let Some(result) = opening.poll(now_ns) {
            return Ok(result?);
        }
        // Nothing answers later: whatever waits, waits for a time.
        now_ns = opening.deadline_ns().unwrap_or(now_ns).max(now_ns + 1);
    }
    Err(OpenError::NoSpace.into())
}

fn is_first_form(directory: &Path) -> bool {
    directory.join(FIRST_FORM_FILE).exists()
}

fn create(options: &Options) -> Create {
    let Options { geometry, policy, .. } = options;
    Create {
        data_shards: geometry.data_shards(),
        parity_shards: geometry.parity_shards(),
        size_bytes: geometry.size_bytes(),
        policy: *policy,
        allow_degraded: false,
        shared_domains: false,
        journal_bytes: geometry.journal_bytes(),
        lease_ns: 0,
    }
}

/// Opens the directories, and says which volume they hold. Makes those that are missing, if they
/// are few enough, or if nothing is there at all and a volume is to be made.
fn open_nodes(
    directories: &[PathBuf],
    options: &Options,
    random: &Random,
) -> Result<(DirNodes, Option<Uuid>), DirectoriesError> {
    let capacity_bytes = node_capacity(&options.geometry);
    let mut nodes = DirNodes::open(directories, |_| NodeOptions { capacity_bytes, create: None })?;
    let lost = nodes.unavailable().count();
    let held = held_volume(&mut nodes)?;
    let (all, spare) = (directories.len(), usize::from(options.geometry.parity_shards()));
    if held.is_some() && lost > spare {
        return Err(DirectoriesError::TooManyLost { lost, all, spare });
    }
    if lost == 0 || (held.is_none() && !options.create) {
        return Ok((nodes, held));
    }
    drop(nodes);
    let nodes = DirNodes::open(directories, |index| {
        let label = [b'n', index as u8];
        let node = random.bytes(&label);
        let acceptor_seed = Zeroizing::new(random.bytes(&[b's', index as u8]));
        NodeOptions { capacity_bytes, create: Some(NodeIdentity { node, acceptor_seed }) }
    })?;
    Ok((nodes, held))
}

/// The volume that most of the directories hold.
fn held_volume(nodes: &mut DirNodes) -> Result<Option<Uuid>, DirectoriesError> {
    let mut held: Vec<(NodeIndex, Vec<Uuid>)> = Vec::new();
    for index in 0..nodes.count() {
        let index = NodeIndex::try_from(index).unwrap_or(NodeIndex::MAX);
        if let Some(service) = nodes.node(index).and_then(|node| node.service()) {
            held.push((index, service.volumes().collect()));
        }
    }
    let mut votes: BTreeMap<Uuid, usize> = BTreeMap::new();
    held.iter().flat_map(|(_, volumes)| volumes).for_each(|uuid| {
        *votes.entry(*uuid).or_default() += 1;
    });
    let Some((uuid, _)) = votes.into_iter().max_by_key(|(_, votes)| *votes) else {
        return Ok(None);
    };
    let is_foreign = |volumes: &[Uuid]| !volumes.is_empty() && !volumes.contains(&uuid);
    match held.iter().find(|(_, volumes)| is_foreign(volumes)) {
        Some((index, _)) => Err(DirectoriesError::Foreign { name: nodes.name(*index) }),
        None => Ok(Some(uuid)),
    }
}

/// The bytes that a directory may hold: its part of the volume, half as much again for what garbage
/// collection has not reached, and room for heads, tables and the map.
#[must_use]
pub fn node_capacity(geometry: &Geometry) -> u64 {
    let share = geometry.size_bytes() / u64::from(geometry.data_shards());
    share + share / 2 + (128 << 20)
}

fn infos(nodes: &DirNodes, random: &Random) -> Vec<NodeInfo> {
    let indexes = (0..nodes.count()).map_while(|index| NodeIndex::try_from(index).ok());
    let info = |index: NodeIndex| {
        let name = nodes.name(index);
        NodeInfo {
            // One that can't be used is known by its name.
            id: nodes.identity(index).unwrap_or_else(|| random.bytes(&[b'x', index])),
            domain: name.clone(),
            name,
            objects: true,
            journal: true,
            register: false,
            local: true,
        }
    };
    indexes.map(info).collect()
}

/// Everything random that one opening needs, from one seed.
struct Random(hkdf::Prk);

impl Random {
    fn new(seed: &[u8; 32]) -> Self {
        Self(hkdf::Salt::new(hkdf::HKDF_SHA256, b"hypha directories").extract(seed))
    }

    fn bytes<const N: usize>(&self, purpose: &[u8]) -> [u8; N] {
        let mut bytes = [0; N];
        let purpose = [purpose];
        let Ok(output) = self.0.expand(&purpose, Len(N)) else {
            unreachable!("HKDF-SHA256 gives up to 8160 bytes");
        };
        let Ok(()) = output.fill(&mut bytes) else {
            unreachable!("it was asked for as many bytes as it fills");
        };
        bytes
    }
}

struct Len(usize);

impl hkdf::KeyType for Len {
    fn len(&self) -> usize {
        self.0
    }
}
