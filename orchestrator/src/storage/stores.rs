//! From the command line to stores that serve.

use std::path::Path;
use std::time::Duration;

use storage_node::etcd::{EtcdAcceptor, EtcdOptions};
use storage_node::object_store::{ObjectShards, S3Options};
use storage_node::redis::{Address, RedisOptions, RedisStore};
use storage_node::server::Service;
use storage_node::uring::UringFile;
use storage_vdev::Uuid;
use storage_vdev::files::open_directory;
use storage_vdev::node::{AcceptorId, NodeError, Request, Response};
use storage_vdev::service::{
    Grants, Handled, NodeIdentity, NodeOptions, NodeService, ShardStore, Ticket, WriterKey,
};
use zeroize::Zeroizing;

use super::StorageError;
use super::arguments::{Serve, StoreArgument, StorePlace};
use crate::state::StateError;
use crate::volume::host;

/// How long a foreign store may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// A store that is open.
pub(super) struct OpenStore {
    pub(super) service: Box<dyn Service>,
    pub(super) durable: bool,
}

/// Opens a store. `folder` keeps the journals and promises of one whose objects are elsewhere.
pub(super) fn open(
    store: &StoreArgument,
    serve: &Serve,
    folder: &Path,
) -> Result<OpenStore, StorageError> {
    let failed = |reason: &dyn std::fmt::Display| StorageError::Store {
        name: store.name.clone(),
        reason: reason.to_string(),
    };
    match &store.place {
        StorePlace::Disk(path) => {
            let path = std::path::absolute(path)?;
            let create = Some(identity().map_err(|error| failed(&error))?);
            let files = open_directory(&path, true).map_err(|error| failed(&error))?;
            let capacity_bytes =
                serve.capacity.map_or_else(|| host::disk_bytes(&path), |size| size.0);
            let options = NodeOptions { capacity_bytes, create };
            let (service, recovery) = NodeService::open(UringFile::of_node(files), &options)
                .map_err(|error| failed(&error))?;
            if recovery.damaged_slots > 0 {
                tracing::warn!(store = store.name, ?recovery, "some objects are lost");
            }
            finish(service, serve)
        }
        StorePlace::Redis { address, password, database } => {
            let address = match address {
                Ok(address) => Address::Tcp(address.clone()),
                Err(path) => Address::Unix(path.clone()),
            };
            let options = RedisOptions {
                address,
                password: password.clone().map(Zeroizing::new),
                database: database.clone(),
                timeout: PATIENCE,
            };
            let redis = RedisStore::connect(options).map_err(|error| failed(&error))?;
            if let Some(warning) = redis.warning() {
                tracing::warn!(store = store.name, "{warning}");
            }
            elsewhere(redis, serve, folder).map_err(|reason| failed(&reason))
        }
        StorePlace::Files(path) => {
            let objects = ObjectShards::directory(path).map_err(|error| failed(&error))?;
            elsewhere(objects, serve, folder).map_err(|reason| failed(&reason))
        }
        StorePlace::S3 { bucket, region, endpoint } => {
            let secret = |name: &str| {
                std::env::var(name).map_err(|_| failed(&format!("expected {name} to be set")))
            };
            let Some(capacity) = serve.capacity else {
                return Err(failed(&"a bucket has no size of its own: expected --capacity"));
            };
            let options = S3Options {
                endpoint: endpoint.clone(),
                region: region.clone(),
                bucket: bucket.clone(),
                access_key: secret("AWS_ACCESS_KEY_ID")?,
                secret_key: Zeroizing::new(secret("AWS_SECRET_ACCESS_KEY")?),
                capacity_bytes: capacity.0,
                timeout: PATIENCE,
            };
            let objects = ObjectShards::s3(&options).map_err(|error| failed(&error))?;
            elsewhere(objects, serve, folder).map_err(|reason| failed(&reason))
        }
    }
}

/// A store whose objects are elsewhere: its journals and promises are in `folder`.
fn elsewhere<S: ShardStore + Send + 'static>(
    objects: S,
    serve: &Serve,
    folder: &Path,
) -> Result<OpenStore, String> {
    let create = identity().map_err(|error| error.to_string())?;
    let files = open_directory(folder, true).map_err(|error| error.to_string())?;
    let service = NodeService::with_store(objects, files.journal, files.meta, Some(&create));
    finish(service.map_err(|error| error.to_string())?, serve).map_err(|error| error.to_string())
}

fn finish<S, F>(mut service: NodeService<S, F>, serve: &Serve) -> Result<OpenStore, StorageError>
where
    S: ShardStore + Send + 'static,
    F: storage_vdev::files::NodeFile + Send + 'static,
{
    service.set_quotas(std::collections::BTreeMap::new(), serve.quota.map(|quota| quota.0));
    let durable = service.capabilities().durable;
    let service: Box<dyn Service> = if serve.etcd.is_empty() {
        Box::new(service)
    } else {
        let options = EtcdOptions {
            endpoints: serve.etcd.clone(),
            prefix: "/hypha/register/".to_owned(),
            timeout: PATIENCE,
            fresh_id: host::random().map_err(|_| StateError::Random)?,
        };
        Box::new(EtcdService { service, etcd: EtcdAcceptor::new(options) })
    };
    Ok(OpenStore { service, durable })
}

/// A store whose registers are in etcd.
struct EtcdService<S> {
    service: S,
    etcd: EtcdAcceptor,
}

impl<S: Service> Service for EtcdService<S> {
    fn handle(&mut self, grants: &Grants, request: Request) -> Handled {
        match request {
            Request::Register { register, message } => {
                let allowed = grants.check(&register, |rights| rights.fence);
                let answer = allowed.and_then(|_| self.etcd.handle(&register, &message));
                Handled::Done(answer.map(Response::Register))
            }
            other => self.service.handle(grants, other),
        }
    }

    fn sync(&mut self) -> Vec<(Ticket, Result<Response, NodeError>)> {
        self.service.sync()
    }

    fn introduce(
        &mut self,
        volume: &Uuid,
        writer: WriterKey,
        acceptors: &[AcceptorId],
    ) -> Result<(), NodeError> {
        self.service.introduce(volume, writer, acceptors)
    }

    fn tidy(&mut self) -> bool {
        self.service.tidy()
    }
}

fn identity() -> Result<NodeIdentity, StorageError> {
    Ok(NodeIdentity {
        node: host::random().map_err(|_| StateError::Random)?,
        acceptor_seed: Zeroizing::new(host::random().map_err(|_| StateError::Random)?),
    })
}
