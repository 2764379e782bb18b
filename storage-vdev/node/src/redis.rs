//! Objects in a Redis or in a 0-db: one string per object, named as [`ObjectKey`] prints.
//!
//! A Redis is not waited for after each object: what it says of those that were set is read before
//! anything else is asked of it, at the next sync at the latest.
//!
//! Neither can fence, so an old writer's objects may arrive late. That does no harm: the epoch is
//! in the key, and fences are kept by the node in front of this store.
//!
//! | | Redis | 0-db |
//! |---|---|---|
//! | which database | `SELECT number` | `SELECT namespace`, with its password `SELECT namespace SECURE sha1(challenge:password)` |
//! | a key is used once | `SET … NX` | `EXISTS`, then `SET`: this store is the only writer |
//! | a range | `GETRANGE` | all of it by `GET`; capabilities say so |
//! | names | `SCAN … MATCH` | `SCANX`, which walks the namespace |
//! | durable if | `appendonly yes`, `appendfsync always`, no rewrite without fsync, nothing evicted | it was started with `--sync`, which it doesn't tell: never believed |

mod resp;
mod server;

use std::collections::{BTreeSet, HashSet};
use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use storage_vdev::Uuid;
use storage_vdev::node::{NodeError, OBJECT_BYTES_MAX, ObjectKey};
use storage_vdev::service::{Capabilities, Capacity, ShardStore};
use zeroize::Zeroizing;

use crate::names::Names;

pub use resp::Address;
use resp::{Argument, Connection, Reply};
use server::{Server, field};

/// The largest value that 0-db takes.
const ZERO_DB_VALUE_BYTES_MAX: usize = 8 << 20;
const _: () = assert!(OBJECT_BYTES_MAX < ZERO_DB_VALUE_BYTES_MAX);

/// The most pages of one walk over the names: an end for a server that has none.
const SCAN_PAGES_MAX: u32 = 1 << 24;

/// How many objects may be set before their replies are read.
const UNREAD_MAX: usize = 256;

/// Which server, and how to get in.
#[derive(Debug, Clone)]
pub struct RedisOptions {
    /// Where it listens.
    pub address: Address,
    /// The password, if it wants one: of the server for Redis, of the namespace for 0-db.
    pub password: Option<Zeroizing<String>>,
    /// The database's number (Redis) or the namespace (0-db), if not the default one.
    pub database: Option<String>,
    /// How long to wait for the server before it counts as gone.
    pub timeout: Duration,
}

/// Why a server can't be used.
#[derive(Debug, thiserror::Error)]
pub enum RedisError {
    /// It can't be reached, or broke off.
    #[error("the Redis server can't be reached: {0}")]
    Io(#[from] std::io::Error),
    /// It refused a command.
    #[error("the Redis server refused {command}: {message}")]
    Refused {
        /// The command.
        command: &'static str,
        /// What it said.
        message: String,
    },
    /// A 0-db that chooses the keys itself.
    #[error("the 0-db namespace is in {mode} mode; volumes need user mode (zdb --mode user)")]
    Mode {
        /// The mode that it is in.
        mode: String,
    },
    /// It is something else.
    #[error("the server at this address is neither a Redis nor a 0-db")]
    Unknown,
}

/// A [`ShardStore`] over a Redis or a 0-db.
pub struct RedisStore {
    options: RedisOptions,
    connection: Option<Connection>,
    server: Server,
    names: Names,
    /// Something was acknowledged since the last sync.
    unsynced: bool,
    /// A server that isn't durable started again in between.
    restarted: bool,
    /// How many objects were set whose replies are still to be read.
    unread: usize,
    /// What came of the first of those that failed: the next sync says so.
    failed: Option<NodeError>,
}

impl RedisStore {
    /// Connects and finds out what the server is.
    ///
    /// # Errors
    /// If it can't be reached, lets us not in, or is not what a volume can use.
    pub fn connect(options: RedisOptions) -> Result<Self, RedisError> {
        let mut connection = Connection::open(&options.address, options.timeout)?;
        let server = Server::greet(&mut connection, &options)?;
        let connection = Some(connection);
        Ok(Self {
            options,
            connection,
            server,
            names: Names::default(),
            unsynced: false,
            restarted: false,
            unread: 0,
            failed: None,
        })
    }

    /// What to tell the operator about this server: why it is not durable.
    #[must_use]
    pub fn warning(&self) -> Option<&str> {
        self.server.warning.as_deref()
    }

    /// The connection, without replies that are still to be read, or a new one.
    fn connection(&mut self) -> Result<Connection, NodeError> {
        if let Some(mut connection) = self.connection.take() {
            return match self.read_unread(&mut connection) {
                Ok(()) => Ok(connection),
                Err(error) => Err(self.lost(&error)),
            };
        }
        self.reconnect().map_err(|error| {
            tracing::warn!(%error, "a Redis store");
            NodeError::Unavailable
        })
    }

    /// Sends commands at once. After an error the connection is given up; the next call makes a
    /// new one.
    fn call(&mut self, commands: &[&[Argument<'_>]]) -> Result<Vec<Reply>, NodeError> {
        let mut connection = self.connection()?;
        let replies = connection.call(commands).map_err(|error| self.lost(&error))?;
        self.connection = Some(connection);
        Ok(replies)
    }

    /// Reads what the server says of the objects that were set.
    fn read_unread(&mut self, connection: &mut Connection) -> io::Result<()> {
        while self.unread > 0 {
            let reply = connection.receive()?;
            self.unread -= 1;
            let error = match reply {
                Reply::Text(_) => continue,
                // Somebody else has put it there. The names are asked for again, and whoever puts
                // it again is told what it is.
                Reply::Bulk(None) => NodeError::Failed,
                other => refusal("SET", &other),
            };
            self.failed.get_or_insert(error);
            self.names.forget();
        }
        Ok(())
    }

    /// The connection broke: what became of the objects that were set is not known.
    fn lost(&mut self, error: &io::Error) -> NodeError {
        tracing::warn!(%error, "a Redis store");
        if std::mem::take(&mut self.unread) > 0 {
            self.failed.get_or_insert(NodeError::Unavailable);
        }
        NodeError::Unavailable
    }

    /// Sets an object whose name the server doesn't have, and doesn't wait for the reply.
    fn put_behind(&mut self, name: &str, parts: &[Bytes]) -> Result<(), NodeError> {
        let mut connection = match self.connection.take() {
            Some(connection) if self.unread < UNREAD_MAX => connection,
            taken => {
                self.connection = taken;
                self.connection()?
            }
        };
        let set = ["SET".into(), name.into(), Argument::Parts(parts), "NX".into()];
        connection.send(&set).map_err(|error| self.lost(&error))?;
        self.connection = Some(connection);
        self.unread += 1;
        Ok(())
    }

    fn reconnect(&mut self) -> Result<Connection, RedisError> {
        let mut connection = Connection::open(&self.options.address, self.options.timeout)?;
        let server = Server::greet(&mut connection, &self.options)?;
        if server.run_id != self.server.run_id && !(server.durable && self.server.durable) {
            self.restarted |= self.unsynced;
        }
        self.server = server;
        self.names.forget();
        Ok(connection)
    }

    fn one(&mut self, command: &[Argument<'_>]) -> Result<Reply, NodeError> {
        self.call(&[command])?.pop().ok_or(NodeError::Failed)
    }

    fn whole(&mut self, name: &str) -> Result<Bytes, NodeError> {
        match self.one(&["GET".into(), name.into()])? {
            Reply::Bulk(Some(bytes)) => Ok(bytes),
            Reply::Bulk(None) => Err(NodeError::NotFound),
            Reply::Error(message) if message.contains("not found") => Err(NodeError::NotFound),
            other => Err(refusal("GET", &other)),
        }
    }

    /// Whether what is stored under `name` is the same.
    fn compare(&mut self, name: &str, parts: &[Bytes]) -> Result<(), NodeError> {
        let stored = self.whole(name)?;
        if stored == join(parts) { Ok(()) } else { Err(NodeError::Exists) }
    }

    fn get_range(&mut self, name: &str, offset: u32, len: u32) -> Result<Bytes, NodeError> {
        let end = match len {
            u32::MAX => -1,
            len => i64::from(offset) + i64::from(len) - 1,
        };
        let (start, end) = (offset.to_string(), end.to_string());
        // Nothing is asked for by a range that ends before it starts.
        let range = if len == 0 { ["1", "0"] } else { [&start[..], &end[..]] };
        let get = ["GETRANGE".into(), name.into(), range[0].into(), range[1].into()];
        if len != 0 && len != u32::MAX {
            // All that was asked for is there: no more to ask.
            match self.one(&get)? {
                Reply::Bulk(Some(bytes)) if bytes.len() == len as usize => return Ok(bytes),
                Reply::Bulk(Some(_)) => {}
                other => return Err(refusal("GETRANGE", &other)),
            }
        }
        let replies =
            self.call(&[&["EXISTS".into(), name.into()], &["STRLEN".into(), name.into()], &get])?;
        let [exists, Reply::Integer(size), Reply::Bulk(Some(bytes))] = &replies[..] else {
            let error = replies.iter().find(|reply| matches!(reply, Reply::Error(_)));
            return Err(error.map_or(NodeError::Failed, |error| refusal("GETRANGE", error)));
        };
        if *exists != Reply::Integer(1) {
            return Err(NodeError::NotFound);
        }
        let rest = size.checked_sub(offset.into()).filter(|rest| *rest >= 0);
        let rest = rest.ok_or(NodeError::Range)?;
        let count = if len == u32::MAX { rest } else { len.into() };
        if count > rest {
            return Err(NodeError::Range);
        }
        // The object went away in between, or the server lies.
        if bytes.len() as i64 != count { Err(NodeError::Failed) } else { Ok(bytes.clone()) }
    }

    /// All names of a volume, from the server.
    fn scan(&mut self, volume: &Uuid) -> Result<BTreeSet<ObjectKey>, NodeError> {
        let zero = ObjectKey { volume: *volume, epoch: 0, sequence: 0, shard: 0 }.to_string();
        let pattern = format!("{}*", zero.get(..35).unwrap_or_default());
        let is_redis = self.server.is_redis;
        let mut names = BTreeSet::new();
        let mut cursors = HashSet::new();
        let mut cursor = is_redis.then(|| Bytes::from_static(b"0"));
        for _ in 0..SCAN_PAGES_MAX {
            let reply = match &cursor {
                Some(cursor) if is_redis => self.one(&[
                    "SCAN".into(),
                    Argument::Whole(cursor),
                    "MATCH".into(),
                    pattern.as_str().into(),
                    "COUNT".into(),
                    "1000".into(),
                ])?,
                Some(cursor) => self.one(&["SCANX".into(), Argument::Whole(cursor)])?,
                None => self.one(&["SCANX".into()])?,
            };
            let Some((next, page)) = page(reply)? else { return Ok(names) };
            let keys = page.iter().filter_map(|name| ObjectKey::parse(str::from_utf8(name).ok()?));
            names.extend(keys.filter(|key| key.volume == *volume));
            if is_redis && next[..] == *b"0" {
                return Ok(names);
            }
            // A server that walks in circles would never end.
            if !cursors.insert(next.clone()) {
                return Err(NodeError::Failed);
            }
            cursor = Some(next);
        }
        Err(NodeError::Failed)
    }
}

impl ShardStore for RedisStore {
    fn put(&mut self, key: &ObjectKey, parts: &[Bytes]) -> Result<(), NodeError> {
        if parts.iter().map(Bytes::len).sum::<usize>() > OBJECT_BYTES_MAX {
            return Err(NodeError::Unsupported);
        }
        let name = key.to_string();
        if self.server.is_redis && self.names.lack(key) {
            self.put_behind(&name, parts)?;
            self.unsynced = true;
            self.names.insert(key);
            return Ok(());
        }
        let set = ["SET".into(), name.as_str().into(), Argument::Parts(parts), "NX".into()];
        let reply = if self.server.is_redis {
            self.one(&set)?
        } else if self.one(&["EXISTS".into(), name.as_str().into()])? == Reply::Integer(1) {
            Reply::Bulk(None)
        } else {
            self.one(set.get(..3).unwrap_or_default())?
        };
        match reply {
            Reply::Text(_) | Reply::Bulk(Some(_)) => {}
            // It was there already; or a 0-db failed to write it, and then it isn't there now.
            Reply::Bulk(None) => self.compare(&name, parts).map_err(|error| match error {
                NodeError::NotFound => NodeError::Failed,
                other => other,
            })?,
            other => return Err(refusal("SET", &other)),
        }
        self.unsynced = true;
        self.names.insert(key);
        Ok(())
    }

    fn get(&mut self, key: &ObjectKey, offset: u32, len: u32) -> Result<Bytes, NodeError> {
        let name = key.to_string();
        if self.server.is_redis {
            return self.get_range(&name, offset, len);
        }
        let whole = self.whole(&name)?;
        let rest = whole.len().checked_sub(offset as usize).ok_or(NodeError::Range)?;
        let count = if len == u32::MAX { rest } else { len as usize };
        if count > rest {
            return Err(NodeError::Range);
        }
        Ok(whole.slice(offset as usize..offset as usize + count))
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
        let names = self.scan(volume)?;
        Ok(self.names.learn(volume, names, (after, limit)))
    }

    fn delete(&mut self, key: &ObjectKey) -> Result<(), NodeError> {
        let name = key.to_string();
        match self.one(&["DEL".into(), name.as_str().into()])? {
            Reply::Integer(_) | Reply::Text(_) => {}
            Reply::Error(message) if message.contains("not found") => {}
            other => return Err(refusal("DEL", &other)),
        }
        self.unsynced = true;
        self.names.remove(key);
        Ok(())
    }

    fn sync(&mut self) -> Result<(), NodeError> {
        if self.unread > 0 {
            self.connection = self.connection().ok();
        }
        let failed = self.failed.take();
        // A durable server has synced before it answered. One that isn't has at least not
        // started again since.
        if self.unsynced && !self.server.durable {
            let ping = self.one(&["PING".into()])?;
            if matches!(ping, Reply::Error(_)) {
                return Err(refusal("PING", &ping));
            }
        }
        self.unsynced = false;
        let restarted = std::mem::take(&mut self.restarted).then_some(NodeError::Failed);
        match failed.or(restarted) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    fn capacity(&mut self) -> Result<Capacity, NodeError> {
        let reply = if self.server.is_redis {
            self.one(&["INFO".into(), "memory".into()])?
        } else {
            let namespace = self.options.database.clone().unwrap_or_else(|| "default".to_owned());
            self.one(&["NSINFO".into(), namespace.as_str().into()])?
        };
        let text = reply.bytes().and_then(|bytes| str::from_utf8(bytes).ok());
        let text = text.ok_or_else(|| refusal("INFO", &reply))?;
        let number = |name| field(text, name).and_then(|value| value.parse::<u64>().ok());
        let (used, limit, fallback) = if self.server.is_redis {
            (number("used_memory"), number("maxmemory"), number("total_system_memory"))
        } else {
            let free = number("data_disk_freespace_bytes");
            let used = number("data_size_bytes");
            let all = used.zip(free).map(|(used, free)| used.saturating_add(free));
            (used, number("data_limits_bytes"), all)
        };
        let total_bytes = limit.filter(|limit| *limit > 0).or(fallback).ok_or(NodeError::Failed)?;
        let free_bytes = total_bytes.saturating_sub(used.ok_or(NodeError::Failed)?);
        Ok(Capacity { total_bytes, free_bytes })
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { durable: self.server.durable, ranged: self.server.is_redis }
    }

    fn used_bytes(&self, _volume: &Uuid) -> u64 {
        0
    }
}

/// The next cursor and the names of a page; `None` behind the last one.
fn page(reply: Reply) -> Result<Option<(Bytes, Vec<Bytes>)>, NodeError> {
    match reply {
        Reply::Error(message) if message.starts_with("No more data") => Ok(None),
        Reply::Array(mut parts) if parts.len() == 2 => {
            let (Some(Reply::Array(items)), Some(Reply::Bulk(Some(next)))) =
                (parts.pop(), parts.pop())
            else {
                return Err(NodeError::Failed);
            };
            // 0-db puts each name in an array, with its size and its time.
            let name = |item: Reply| match item {
                Reply::Bulk(Some(name)) => Some(name),
                Reply::Array(fields) => match fields.into_iter().next() {
                    Some(Reply::Bulk(Some(name))) => Some(name),
                    _ => None,
                },
                _ => None,
            };
            Ok(Some((next, items.into_iter().filter_map(name).collect())))
        }
        other => Err(refusal("SCAN", &other)),
    }
}

/// What an error of the server means. The server's words go to the log.
fn refusal(command: &str, reply: &Reply) -> NodeError {
    let Reply::Error(message) = reply else {
        tracing::warn!(command, "a Redis store gave an answer that makes no sense");
        return NodeError::Failed;
    };
    tracing::warn!(command, message, "a Redis store refused");
    match message {
        message if message.starts_with("OOM") || message.starts_with("No space") => {
            NodeError::NoSpace
        }
        message if message.starts_with("LOADING") || message.starts_with("MASTERDOWN") => {
            NodeError::Unavailable
        }
        _ => NodeError::Failed,
    }
}

fn join(parts: &[Bytes]) -> Bytes {
    let mut all = BytesMut::with_capacity(parts.iter().map(Bytes::len).sum());
    parts.iter().for_each(|part| all.extend_from_slice(part));
    all.freeze()
}
