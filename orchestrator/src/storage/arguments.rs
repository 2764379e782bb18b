//! The verbs of `hypha storage` and their options.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Subcommand};
use spec::node::{Endpoint, checked_name};

use crate::volume::arguments::Size;

/// What can be done with this host's stores.
#[derive(Debug, Subcommand)]
pub enum StorageVerb {
    /// Serves stores of this host to volumes elsewhere, until SIGINT or SIGTERM.
    #[command(after_help = "Examples:\n  \
        hypha storage serve --store a=/srv/disk1 --store b=/srv/disk2 --listen tcp:0.0.0.0:9700\n  \
        hypha storage serve --store cache=redis://127.0.0.1:6379/0\n  \
        AWS_ACCESS_KEY_ID=… AWS_SECRET_ACCESS_KEY=… hypha storage serve \\\n    \
        --store cloud=s3://bucket?region=eu-west-1 --capacity 1TiB\n  \
        hypha storage serve --store a=/srv/disk1 --heal db.heal")]
    Serve(Box<Serve>),
    /// Lists the stores that were served here, as `hypha volume create --nodes` takes them.
    #[command(after_help = "Example:\n  \
        hypha volume create db --size 10GiB --code 2+1 --nodes $(hypha storage ls)")]
    Ls {
        /// Print one JSON array.
        #[arg(long)]
        json: bool,
        /// Where the state is [default: $HYPHA_STATE or ~/.local/share/hypha].
        #[arg(long, value_name = "DIR")]
        state: Option<PathBuf>,
    },
}

/// `hypha storage serve`.
#[derive(Debug, Args)]
pub struct Serve {
    /// A store: NAME=PLACE, where PLACE is a directory, redis://HOST:PORT or
    /// redis://:PASSWORD@HOST:PORT/DB (also for 0-db, with its namespace as DB),
    /// redis+unix:///PATH, file:///DIRECTORY or s3://BUCKET?region=R[&endpoint=URL]
    /// [default: default=$HYPHA_STATE/storage/default].
    #[arg(long = "store", value_name = "NAME=PLACE")]
    pub stores: Vec<StoreArgument>,
    /// Where to listen: tcp:ADDRESS:PORT or unix:PATH [default: unix:$HYPHA_STATE/storage/socket].
    #[arg(long, value_name = "ADDRESS", value_parser = parse_endpoint)]
    pub listen: Vec<Endpoint>,
    /// The most bytes of shards per store [default: the disk's size].
    #[arg(long, value_name = "BYTES")]
    pub capacity: Option<Size>,
    /// The most bytes of one tenant per store.
    #[arg(long, value_name = "BYTES")]
    pub quota: Option<Size>,
    /// Keep the registers of volumes in etcd (http://HOST:PORT) instead of in the first store.
    #[arg(long, value_name = "URL")]
    pub etcd: Vec<String>,
    /// Heal the volume of this file, made by `hypha volume delegate`, now and then.
    #[arg(long, value_name = "FILE")]
    pub heal: Vec<PathBuf>,
    /// Seconds between two passes of healing.
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    pub heal_every: u64,
    /// Let spares take the place of a node that was silent for so many seconds [default: never].
    #[arg(long, value_name = "SECONDS")]
    pub heal_give_up: Option<u64>,
    /// The most bytes per second of healing, like 50MiB.
    #[arg(long, value_name = "BYTES")]
    pub heal_limit: Option<Size>,
    /// Serve Prometheus metrics over HTTP here.
    #[arg(long, value_name = "ADDRESS")]
    pub metrics: Option<SocketAddr>,
    /// Print one JSON object per event.
    #[arg(long)]
    pub json: bool,
    /// Where the node's key and its stores' journals lie [default: $HYPHA_STATE or
    /// ~/.local/share/hypha].
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
}

/// A store by its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreArgument {
    /// Its name.
    pub name: String,
    /// Where its objects are.
    pub place: StorePlace,
}

/// Where a store's objects are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StorePlace {
    /// Our own store in a directory.
    Disk(PathBuf),
    /// A Redis or a 0-db.
    Redis {
        /// `host:port`, or the path of a unix socket.
        address: Result<String, PathBuf>,
        /// The password.
        password: Option<String>,
        /// The database or namespace.
        database: Option<String>,
    },
    /// Files of an object store in a directory.
    Files(PathBuf),
    /// A bucket.
    S3 {
        /// Its name.
        bucket: String,
        /// The region.
        region: String,
        /// The server, if not Amazon's.
        endpoint: Option<String>,
    },
}

impl FromStr for StoreArgument {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, place) =
            text.split_once('=').ok_or("expected NAME=PLACE, like a=/srv/disk1".to_owned())?;
        let name = checked_name(name).map_err(|error| error.to_string())?;
        Ok(Self { name, place: place.parse()? })
    }
}

impl FromStr for StorePlace {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("file://") {
            return absolute(path).map(Self::Files);
        }
        if let Some(path) = text.strip_prefix("redis+unix://") {
            let address = Err(absolute(path)?);
            return Ok(Self::Redis { address, password: None, database: None });
        }
        if let Some(rest) = text.strip_prefix("redis://") {
            return redis(rest);
        }
        if let Some(rest) = text.strip_prefix("s3://") {
            return s3(rest);
        }
        if text.is_empty() || text.contains("://") {
            return Err(format!(
                "{text:?}: expected a directory, redis://, redis+unix://, file:// or s3://"
            ));
        }
        Ok(Self::Disk(text.into()))
    }
}

fn absolute(path: &str) -> Result<PathBuf, String> {
    if path.starts_with('/') {
        Ok(path.into())
    } else {
        Err(format!("{path:?}: expected an absolute path"))
    }
}

fn redis(rest: &str) -> Result<StorePlace, String> {
    let (login, rest) = rest.rsplit_once('@').map_or((None, rest), |(login, rest)| {
        (Some(login.rsplit_once(':').map_or(login, |pair| pair.1).to_owned()), rest)
    });
    let (address, database) =
        rest.split_once('/').map_or((rest, None), |(address, name)| (address, Some(name)));
    if !address.contains(':') {
        return Err(format!("{address:?}: expected HOST:PORT"));
    }
    let database = database.filter(|name| !name.is_empty()).map(str::to_owned);
    Ok(StorePlace::Redis { address: Ok(address.to_owned()), password: login, database })
}

fn s3(rest: &str) -> Result<StorePlace, String> {
    let (bucket, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (mut region, mut endpoint) = ("us-east-1".to_owned(), None);
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=') {
            Some(("region", value)) => region = value.to_owned(),
            Some(("endpoint", value)) => endpoint = Some(value.to_owned()),
            _ => return Err(format!("{pair:?}: expected region=… or endpoint=…")),
        }
    }
    if bucket.is_empty() {
        return Err("expected s3://BUCKET".to_owned());
    }
    Ok(StorePlace::S3 { bucket: bucket.to_owned(), region, endpoint })
}

fn parse_endpoint(text: &str) -> Result<Endpoint, String> {
    let wrong = || format!("{text:?}: expected tcp:ADDRESS:PORT or unix:PATH");
    match text.split_once(':') {
        Some(("tcp", address)) => Ok(Endpoint::Tcp(address.parse().map_err(|_| wrong())?)),
        Some(("unix", path)) if !path.is_empty() => Ok(Endpoint::Unix(path.into())),
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(text: &str) -> StorePlace {
        text.parse().expect(text)
    }

    #[test]
    fn stores_are_told_by_their_places() {
        assert_eq!(place("/srv/a"), StorePlace::Disk("/srv/a".into()));
        assert_eq!(place("file:///srv/b"), StorePlace::Files("/srv/b".into()));
        let StorePlace::Redis { address, password, database } =
            place("redis://:secret@localhost:6379/3")
        else {
            panic!("a Redis");
        };
        assert_eq!(address, Ok("localhost:6379".to_owned()));
        assert_eq!((password.as_deref(), database.as_deref()), (Some("secret"), Some("3")));
        let StorePlace::S3 { bucket, region, endpoint } =
            place("s3://b?region=eu&endpoint=http://127.0.0.1:9000")
        else {
            panic!("a bucket");
        };
        assert_eq!((bucket.as_str(), region.as_str()), ("b", "eu"));
        assert_eq!(endpoint.as_deref(), Some("http://127.0.0.1:9000"));
    }

    #[test]
    fn a_place_that_is_none_is_refused() {
        for text in ["", "ftp://x", "file://relative", "redis://nohost", "s3://?x=y", "s3://b?x"] {
            assert!(text.parse::<StorePlace>().is_err(), "{text}");
        }
        assert!("a".parse::<StoreArgument>().is_err());
        assert!("../a=/b".parse::<StoreArgument>().is_err());
    }
}
