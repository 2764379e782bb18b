//! `hypha storage serve`.

use std::io::{self, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use spec::node::{Endpoint, NodeSpec, Place};
use spec::secret::Public32;
use storage_node::server::{Limits, ListenAddress, Server, ServerConfig, load_key};

use super::arguments::{Serve, StoreArgument, StorePlace};
use super::{Served, StorageError, folder, heal, stores};
use crate::{scrape, state};

/// Serves stores until SIGINT or SIGTERM.
pub(super) fn serve(serve: &Serve) -> Result<i32, StorageError> {
    let folder = folder(serve.state.as_deref())?;
    let key = load_key(&folder.join("key"))?;
    let fallback = [StoreArgument {
        name: "default".to_owned(),
        place: StorePlace::Disk(folder.join("default")),
    }];
    let wanted = if serve.stores.is_empty() { &fallback } else { serve.stores.as_slice() };
    let mut open = Vec::new();
    let mut durable = Vec::new();
    for store in wanted {
        let opened = stores::open(store, serve, &folder.join(&store.name))?;
        open.push((store.name.clone(), opened.service));
        durable.push(opened.durable);
    }
    let fallback = [Endpoint::Unix(folder.join("socket"))];
    let listen = if serve.listen.is_empty() { &fallback } else { serve.listen.as_slice() };
    let address = |endpoint: &Endpoint| match endpoint {
        Endpoint::Tcp(address) => ListenAddress::Tcp(*address),
        Endpoint::Unix(path) => ListenAddress::Unix(path.clone()),
    };
    let listen = listen.iter().map(address).collect();
    let config = ServerConfig { key: key.clone(), listen, limits: Limits::default() };
    let server = Arc::new(Server::start(config, open)?);
    // From the first line on, a signal ends the daemon in good order.
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    let public = Public32(key.public().0);
    let told = tell(&server, public, wanted.iter().zip(&durable), serve)?;
    let text = serde_json::to_string_pretty(&told).map_err(io::Error::from)?;
    state::write_whole(&folder.join("stores.json"), text.as_bytes())?;
    let stopping = Arc::new(AtomicBool::new(false));
    let healing = heal::Told::new(serve.json);
    let mut threads = Vec::new();
    if let Some(address) = serve.metrics {
        // Held here alone, so that the end below is one.
        let (server, healing) = (Arc::downgrade(&server), healing.clone());
        let metrics = move || {
            let server = server.upgrade().ok_or("the daemon stops")?;
            Ok::<_, &str>(server.metrics() + &healing.metrics())
        };
        scrape::serve(TcpListener::bind(address)?, metrics)?;
    }
    threads.extend(heal::start(serve, &key, (&healing, &stopping))?);
    // The first signal is all that is waited for.
    _ = signals.forever().next();
    stopping.store(true, Ordering::Release);
    for thread in threads {
        if thread.join().is_err() {
            tracing::error!("a thread of the daemon panicked");
        }
    }
    // Dropping the server ends it in good order.
    drop(server);
    Ok(0)
}

/// Says where each store is, as `hypha volume create --nodes` takes it.
fn tell<'a>(
    server: &Server,
    key: Public32,
    stores: impl Iterator<Item = (&'a StoreArgument, &'a bool)>,
    serve: &Serve,
) -> Result<Vec<Served>, StorageError> {
    let mut told = Vec::new();
    for (store, durable) in stores {
        let node = |address: &ListenAddress| {
            let endpoint = match address {
                ListenAddress::Tcp(address) => Endpoint::Tcp(*address),
                ListenAddress::Unix(path) => Endpoint::Unix(path.clone()),
            };
            let place = Place::Server { endpoint, key, store: store.name.clone() };
            NodeSpec { place, domain: None }
        };
        let nodes: Vec<NodeSpec> = server.addresses().iter().map(node).collect();
        let place = match &store.place {
            StorePlace::Disk(path) => path.display().to_string(),
            StorePlace::Redis { address: Ok(address), .. } => format!("redis {address}"),
            StorePlace::Redis { address: Err(path), .. } => format!("redis {}", path.display()),
            StorePlace::Files(path) => format!("files in {}", path.display()),
            StorePlace::S3 { bucket, .. } => format!("bucket {bucket}"),
        };
        let mut line = String::new();
        for node in &nodes {
            let argument = node.to_argument();
            line += &if serve.json {
                json!({"event": "serving", "store": store.name, "place": place,
                    "durable": durable, "node": argument})
                .to_string()
            } else {
                format!("store {} ({place}) is node {argument}", store.name)
            };
            line.push('\n');
        }
        io::stdout().lock().write_all(line.as_bytes())?;
        told.push(Served { name: store.name.clone(), place, durable: *durable, nodes });
    }
    io::stdout().lock().flush()?;
    Ok(told)
}
