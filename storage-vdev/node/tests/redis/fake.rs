//! A server with a script: what it is told, and what it answers. For 0-db's dialect, and for
//! answers that no honest server gives.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use storage_node::redis::{Address, RedisError, RedisOptions, RedisStore};
use storage_vdev::node::{NodeError, ObjectKey};
use storage_vdev::service::ShardStore;
use zeroize::Zeroizing;

const KEY: ObjectKey = ObjectKey { volume: [0xa5; 16], epoch: 1, sequence: 2, shard: 3 };
const NAME: &str = "v/a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5/0000000000000001/0000000000000002/03";
const NSINFO: &str = "# namespace\nname: default\ndata_size_bytes: 100\ndata_limits_bytes: 1000\n\
                      mode: userkey\n";

fn bulk(text: &str) -> String {
    format!("${}\r\n{text}\r\n", text.len())
}

fn read_command(reader: &mut BufReader<UnixStream>) -> Option<String> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
    let count: usize = line.trim().strip_prefix('*')?.parse().ok()?;
    let mut words = vec![];
    for _ in 0..count {
        line.clear();
        reader.read_line(&mut line).ok()?;
        let mut bytes = vec![0; line.trim().strip_prefix('$')?.parse::<usize>().ok()? + 2];
        reader.read_exact(&mut bytes).ok()?;
        bytes.truncate(bytes.len() - 2);
        words.push(String::from_utf8_lossy(&bytes).into_owned());
    }
    Some(words.join(" "))
}

/// Answers one connection: each command must be the expected one.
fn serve(script: Vec<(String, String)>) -> (tempfile::TempDir, PathBuf, JoinHandle<()>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let thread = std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let mut writer = stream.try_clone().unwrap();
        let mut reader = BufReader::new(stream);
        for (expected, answer) in script {
            assert_eq!(read_command(&mut reader), Some(expected));
            writer.write_all(answer.as_bytes()).unwrap();
        }
    });
    (folder, path, thread)
}

fn options(path: PathBuf, password: Option<&str>) -> RedisOptions {
    RedisOptions {
        address: Address::Unix(path),
        password: password.map(|password| Zeroizing::new(password.to_owned())),
        database: None,
        timeout: Duration::from_secs(10),
    }
}

fn greeting() -> Vec<(String, String)> {
    let info = bulk("# server\nserver_name: 0-db (zdb)\nboot_time: 7\n");
    [
        ("INFO", info.clone()),
        ("SELECT default", "+OK\r\n".to_owned()),
        ("NSINFO default", bulk(NSINFO)),
        ("INFO", info),
    ]
    .map(|(command, answer)| (command.to_owned(), answer))
    .to_vec()
}

/// Runs `test` against a 0-db that follows `script` after the greeting.
fn with_zero_db(script: &[(String, String)], test: impl FnOnce(&mut RedisStore)) {
    let (_folder, path, thread) = serve([greeting(), script.to_vec()].concat());
    let mut store = RedisStore::connect(options(path, None)).unwrap();
    test(&mut store);
    drop(store);
    thread.join().unwrap();
}

fn line(command: &str, answer: &str) -> (String, String) {
    (command.to_owned(), answer.to_owned())
}

#[test]
fn a_zero_db_is_never_believed_to_be_durable() {
    with_zero_db(&[], |store| {
        let capabilities = store.capabilities();
        assert!(!capabilities.durable && !capabilities.ranged);
        assert!(store.warning().unwrap().contains("--sync"));
    });
}

#[test]
fn a_zero_db_is_asked_before_a_key_is_set() {
    let script = [
        line(&format!("EXISTS {NAME}"), ":0\r\n"),
        line(&format!("SET {NAME} abc"), &bulk(NAME)),
        line(&format!("EXISTS {NAME}"), ":1\r\n"),
        line(&format!("GET {NAME}"), &bulk("abc")),
        line(&format!("EXISTS {NAME}"), ":1\r\n"),
        line(&format!("GET {NAME}"), &bulk("abc")),
        line(&format!("GET {NAME}"), &bulk("abc")),
    ];
    with_zero_db(&script, |store| {
        store.put(&KEY, &[Bytes::from_static(b"abc")]).unwrap();
        store.put(&KEY, &[Bytes::from_static(b"abc")]).unwrap();
        assert_eq!(store.put(&KEY, &[Bytes::from_static(b"abd")]), Err(NodeError::Exists));
        assert_eq!(&store.get(&KEY, 1, 1).unwrap()[..], b"b");
    });
}

#[test]
fn a_zero_db_that_failed_to_write_or_is_full_is_understood() {
    let script = [
        line(&format!("EXISTS {NAME}"), ":0\r\n"),
        line(&format!("SET {NAME} abc"), "$-1\r\n"),
        line(&format!("GET {NAME}"), "$-1\r\n"),
        line(&format!("EXISTS {NAME}"), ":0\r\n"),
        line(&format!("SET {NAME} abc"), "-No space left on this namespace\r\n"),
        line(&format!("DEL {NAME}"), "-Key not found\r\n"),
    ];
    with_zero_db(&script, |store| {
        let part = [Bytes::from_static(b"abc")];
        assert_eq!(store.put(&KEY, &part), Err(NodeError::Failed));
        assert_eq!(store.put(&KEY, &part), Err(NodeError::NoSpace));
        assert_eq!(store.delete(&KEY), Ok(()));
    });
}

#[test]
fn a_zero_dbs_names_are_walked_to_the_end() {
    let entry = |name: &str| format!("*3\r\n{}:3\r\n:1535361488\r\n", bulk(name));
    let second = NAME.replace("/03", "/04");
    let first_page =
        format!("*2\r\n$2\r\n\u{1}\u{2}\r\n*2\r\n{}{}", entry(&second), entry("other"));
    let second_page = format!("*2\r\n$2\r\n\u{3}\u{4}\r\n*1\r\n{}", entry(NAME));
    let script = [
        line("SCANX", &first_page),
        line("SCANX \u{1}\u{2}", &second_page),
        line("SCANX \u{3}\u{4}", "-No more data\r\n"),
    ];
    with_zero_db(&script, |store| {
        let listed = store.list(&KEY.volume, None, 10).unwrap();
        assert_eq!(listed, [KEY, ObjectKey { shard: 4, ..KEY }]);
    });
}

#[test]
fn a_walk_in_circles_ends_with_an_error() {
    let page = "*2\r\n$1\r\nx\r\n*0\r\n";
    let script = [line("SCANX", page), line("SCANX x", page)];
    with_zero_db(&script, |store| {
        assert_eq!(store.list(&KEY.volume, None, 10), Err(NodeError::Failed));
    });
}

#[test]
fn a_password_is_proven_and_not_sent() {
    let info = bulk("0-db server (rev)");
    let script = [
        line("INFO", &info),
        line("AUTH SECURE CHALLENGE", "+abc\r\n"),
        line("SELECT default SECURE 0ce84d8d01f2c7b6e0882b784429c54d280ea2d9", "+OK\r\n"),
        line("NSINFO default", &bulk(NSINFO)),
        line("INFO", &info),
        line("NSINFO default", &bulk(NSINFO)),
    ];
    let (_folder, path, thread) = serve(script.to_vec());
    let mut store = RedisStore::connect(options(path, Some("def"))).unwrap();
    let capacity = store.capacity().unwrap();
    assert_eq!((capacity.total_bytes, capacity.free_bytes), (1000, 900));
    thread.join().unwrap();
}

#[test]
fn a_zero_db_that_chooses_its_keys_is_refused() {
    let script = [
        line("INFO", &bulk("0-db server (rev)")),
        line("SELECT default", "+OK\r\n"),
        line("NSINFO default", &bulk("mode: sequential\n")),
    ];
    let (_folder, path, thread) = serve(script.to_vec());
    let error = RedisStore::connect(options(path, None)).err().unwrap();
    assert!(matches!(&error, RedisError::Mode { mode } if mode == "sequential"), "{error}");
    thread.join().unwrap();
}

#[test]
fn a_server_that_is_something_else_is_refused() {
    let (_folder, path, thread) = serve(vec![line("INFO", "+HTTP\r\n")]);
    let error = RedisStore::connect(options(path, None)).err().unwrap();
    assert!(matches!(error, RedisError::Unknown), "{error}");
    thread.join().unwrap();
}

#[test]
fn nonsense_ends_the_connection_and_is_no_success() {
    let script = [line(&format!("EXISTS {NAME}"), "$99999999999\r\n")];
    with_zero_db(&script, |store| {
        let part = [Bytes::from_static(b"abc")];
        assert_eq!(store.put(&KEY, &part), Err(NodeError::Unavailable));
    });
}
