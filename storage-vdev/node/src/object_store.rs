//! Objects in an object store: S3 and what speaks like it, or a directory of plain files.
//!
//! A put is conditional ([`PutMode::Create`]: `If-None-Match: *` over HTTP, a hard link in a
//! directory), so a key is used once even if two writers try. The crate `object_store` is
//! asynchronous; this store is called by one thread and waits.

use std::collections::{BTreeSet, HashSet};
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ::object_store::aws::AmazonS3Builder;
use ::object_store::local::LocalFileSystem;
use ::object_store::memory::InMemory;
use ::object_store::path::Path;
use ::object_store::{
    BackoffConfig, ClientOptions, Error, GetOptions, GetRange, ObjectStore, ObjectStoreExt,
    PutMode, PutOptions, PutPayload, RetryConfig,
};
use bytes::{Bytes, BytesMut};
use futures_util::TryStreamExt;
use storage_vdev::Uuid;
use storage_vdev::node::{NodeError, OBJECT_BYTES_MAX, ObjectKey};
use storage_vdev::service::{Capabilities, Capacity, ShardStore};
use tokio::runtime::Runtime;
use zeroize::Zeroizing;

use crate::names::Names;

/// The most names of one volume that a listing may bring: 2^24 shards of 1 MiB are 16 TiB.
const NAMES_MAX: usize = 1 << 24;

/// A bucket and the way into it.
#[derive(Debug, Clone)]
pub struct S3Options {
    /// `https://host` or `http://host:port`; `None` for Amazon's own.
    pub endpoint: Option<String>,
    /// The region, such as `us-east-1`.
    pub region: String,
    /// The bucket.
    pub bucket: String,
    /// The access key's name.
    pub access_key: String,
    /// The secret access key.
    pub secret_key: Zeroizing<String>,
    /// How many bytes the operator gives: S3 has no end of its own.
    pub capacity_bytes: u64,
    /// How long one request may take.
    pub timeout: Duration,
}

/// Why a store can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ObjectStoreError {
    /// Its options make no sense, or its directory isn't there.
    #[error("the object store can't be used: {0}")]
    Store(#[from] Error),
    /// The thread that it needs can't be started.
    #[error("the object store's thread can't be started: {0}")]
    Thread(#[from] std::io::Error),
}

/// A [`ShardStore`] over an object store.
#[derive(Debug)]
pub struct ObjectShards {
    store: Arc<dyn ObjectStore>,
    runtime: Runtime,
    place: Place,
    names: Names,
    /// Folders whose deletions are not yet durable.
    dirty: HashSet<PathBuf>,
}

#[derive(Debug)]
enum Place {
    Memory,
    Directory(PathBuf),
    Bucket { capacity_bytes: u64 },
}

impl ObjectShards {
    /// Files below `directory`, each written to a temporary file, synced, and linked to its name.
    ///
    /// # Errors
    /// If the directory isn't there.
    pub fn directory(directory: &FilePath) -> Result<Self, ObjectStoreError> {
        let store = LocalFileSystem::new_with_prefix(directory)?.with_fsync(true);
        Self::new(Arc::new(store), Place::Directory(directory.to_owned()))
    }

    /// Objects of an S3 bucket.
    ///
    /// # Errors
    /// If the options make no sense. The bucket is not asked yet.
    pub fn s3(options: &S3Options) -> Result<Self, ObjectStoreError> {
        // Another part of the process may have chosen already: that one is as good.
        if rustls::crypto::ring::default_provider().install_default().is_err() {
            tracing::debug!("the process has a provider of cryptography already");
        }
        let is_plain = options.endpoint.as_ref().is_some_and(|url| url.starts_with("http://"));
        let retry = RetryConfig {
            backoff: BackoffConfig::default(),
            max_retries: 2,
            retry_timeout: options.timeout,
        };
        let mut builder = AmazonS3Builder::new()
            .with_region(&options.region)
            .with_bucket_name(&options.bucket)
            .with_access_key_id(&options.access_key)
            .with_secret_access_key(options.secret_key.as_str())
            .with_allow_http(is_plain)
            .with_client_options(
                ClientOptions::new().with_allow_http(is_plain).with_timeout(options.timeout),
            )
            .with_retry(retry);
        if let Some(endpoint) = &options.endpoint {
            builder = builder.with_endpoint(endpoint);
        }
        let place = Place::Bucket { capacity_bytes: options.capacity_bytes };
        Self::new(Arc::new(builder.build()?), place)
    }

    /// Memory, for tests of what is above.
    ///
    /// # Errors
    /// If the thread can't be started.
    pub fn memory() -> Result<Self, ObjectStoreError> {
        Self::new(Arc::new(InMemory::new()), Place::Memory)
    }

    fn new(store: Arc<dyn ObjectStore>, place: Place) -> Result<Self, ObjectStoreError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .max_blocking_threads(1)
            .thread_name("object-store")
            .enable_all()
            .build()?;
        Ok(Self { store, runtime, place, names: Names::default(), dirty: HashSet::new() })
    }

    fn read(&self, path: &Path, range: Option<GetRange>) -> Result<Bytes, Error> {
        let options = GetOptions { range, ..GetOptions::default() };
        self.runtime.block_on(async {
            let mut stream = self.store.get_opts(path, options).await?.into_stream();
            let mut bytes = BytesMut::new();
            while let Some(piece) = stream.try_next().await? {
                bytes.extend_from_slice(&piece);
                if bytes.len() > OBJECT_BYTES_MAX {
                    let source = "the object is larger than any that was stored".into();
                    return Err(Error::Generic { store: "shards", source });
                }
            }
            Ok(bytes.freeze())
        })
    }

    fn size(&self, path: &Path) -> Result<u64, NodeError> {
        let meta = self.runtime.block_on(self.store.head(path));
        meta.map(|meta| meta.size).map_err(|error| failure("head", &error))
    }
}

impl ShardStore for ObjectShards {
    fn put(&mut self, key: &ObjectKey, parts: &[Bytes]) -> Result<(), NodeError> {
        let len: usize = parts.iter().map(Bytes::len).sum();
        if len > OBJECT_BYTES_MAX {
            return Err(NodeError::Unsupported);
        }
        let path = path(key)?;
        let payload: PutPayload = parts.iter().cloned().collect();
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        match self.runtime.block_on(self.store.put_opts(&path, payload, options)) {
            Ok(_) => {}
            // It is there. A request that was repeated has met itself.
            Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => {
                let stored = self.read(&path, None).map_err(|error| failure("get", &error))?;
                let same = stored.len() == len && parts.concat() == stored;
                if !same {
                    return Err(NodeError::Exists);
                }
            }
            Err(error) => return Err(failure("put", &error)),
        }
        self.names.insert(key);
        Ok(())
    }

    fn get(&mut self, key: &ObjectKey, offset: u32, len: u32) -> Result<Bytes, NodeError> {
        let path = path(key)?;
        let (start, count) = (u64::from(offset), u64::from(len));
        let range = match (offset, len) {
            (0, u32::MAX) => None,
            (_, u32::MAX) => Some(GetRange::Offset(start)),
            _ => Some(GetRange::Bounded(start..start + count)),
        };
        let error = match (len > 0).then(|| self.read(&path, range)) {
            Some(Ok(bytes)) if len == u32::MAX || bytes.len() as u64 == count => return Ok(bytes),
            // How a store words a range behind the end, each in its own way.
            Some(Err(error @ Error::Generic { .. })) => Some(error),
            Some(Err(error)) => return Err(failure("get", &error)),
            Some(Ok(_)) | None => None,
        };
        // Not all of it was there, or nothing was asked for: the size tells which.
        let size = self.size(&path)?;
        match size.checked_sub(start) {
            None => Err(NodeError::Range),
            Some(0) if len == u32::MAX => Ok(Bytes::new()),
            Some(rest) if len != u32::MAX && count > rest => Err(NodeError::Range),
            Some(_) if len == 0 => Ok(Bytes::new()),
            Some(_) => Err(error.map_or(NodeError::Failed, |error| failure("get", &error))),
        }
    }

    fn list(
        &mut self,
        volume: &Uuid,
        after: Option<&ObjectKey>,
        limit: u16,
    ) -> Result<Vec<ObjectKey>, NodeError> {
        if let Some(page) = self.names.page(volume, after, limit) {
            return Ok(page);
        }
        let any = ObjectKey { volume: *volume, epoch: 0, sequence: 0, shard: 0 }.to_string();
        let prefix = Path::from(any.get(..34).unwrap_or_default());
        let names: BTreeSet<ObjectKey> = self.runtime.block_on(async {
            let mut stream = self.store.list(Some(&prefix));
            let mut names = BTreeSet::new();
            while let Some(meta) =
                stream.try_next().await.map_err(|error| failure("list", &error))?
            {
                let key = ObjectKey::parse(meta.location.as_ref());
                names.extend(key.filter(|key| key.volume == *volume));
                if names.len() > NAMES_MAX {
                    return Err(NodeError::Failed);
                }
            }
            Ok(names)
        })?;
        Ok(self.names.learn(volume, names, (after, limit)))
    }

    fn delete(&mut self, key: &ObjectKey) -> Result<(), NodeError> {
        let path = path(key)?;
        match self.runtime.block_on(self.store.delete(&path)) {
            Ok(()) | Err(Error::NotFound { .. }) => {}
            Err(error) => return Err(failure("delete", &error)),
        }
        if let Place::Directory(root) = &self.place {
            self.dirty.extend(root.join(path.as_ref()).parent().map(FilePath::to_owned));
        }
        self.names.remove(key);
        Ok(())
    }

    fn sync(&mut self) -> Result<(), NodeError> {
        // Puts are durable when they are answered; in a directory, deletions are not.
        for folder in std::mem::take(&mut self.dirty) {
            let synced = std::fs::File::open(&folder).and_then(|folder| folder.sync_all());
            if let Err(error) = synced {
                tracing::warn!(%error, folder = %folder.display(), "a deletion is not durable");
                self.dirty.insert(folder);
                return Err(NodeError::Failed);
            }
        }
        Ok(())
    }

    fn capacity(&mut self) -> Result<Capacity, NodeError> {
        match &self.place {
            Place::Memory => Ok(Capacity { total_bytes: u64::MAX, free_bytes: u64::MAX }),
            Place::Bucket { capacity_bytes } => {
                Ok(Capacity { total_bytes: *capacity_bytes, free_bytes: *capacity_bytes })
            }
            Place::Directory(root) => {
                let stat = rustix::fs::statvfs(root).map_err(|error| {
                    tracing::warn!(%error, "an object store's directory");
                    NodeError::Failed
                })?;
                let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
                Ok(Capacity { total_bytes: bytes(stat.f_blocks), free_bytes: bytes(stat.f_bavail) })
            }
        }
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { durable: !matches!(self.place, Place::Memory), ranged: true }
    }

    fn used_bytes(&self, _volume: &Uuid) -> u64 {
        0
    }
}

fn path(key: &ObjectKey) -> Result<Path, NodeError> {
    Path::parse(key.to_string()).map_err(|_| NodeError::Unsupported)
}

/// What an error of the store means; its words go to the log.
fn failure(operation: &str, error: &Error) -> NodeError {
    if matches!(error, Error::NotFound { .. }) {
        return NodeError::NotFound;
    }
    tracing::warn!(operation, %error, "an object store");
    match error {
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => NodeError::Denied,
        Error::NotImplemented { .. } | Error::NotSupported { .. } => NodeError::Unsupported,
        _ if is_full(error) => NodeError::NoSpace,
        _ => NodeError::Unavailable,
    }
}

/// Whether the disk below has no room, anywhere in the chain of causes.
fn is_full(error: &Error) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        let io = error.downcast_ref::<std::io::Error>();
        if io.is_some_and(|io| io.kind() == std::io::ErrorKind::StorageFull) {
            return true;
        }
        cause = error.source();
    }
    false
}
