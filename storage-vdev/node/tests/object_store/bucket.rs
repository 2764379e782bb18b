//! What goes to an S3 server: it is a scripted one, because Debian has none.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use storage_node::object_store::{ObjectShards, S3Options};
use storage_vdev::node::{NodeError, ObjectKey};
use storage_vdev::service::ShardStore;
use zeroize::Zeroizing;

const KEY: ObjectKey = ObjectKey { volume: [0xa5; 16], epoch: 1, sequence: 2, shard: 3 };
const PATH: &str =
    "/bucket/v/a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5/0000000000000001/0000000000000002/03";

/// What one request must begin with, what one of its headers must be, and the answer.
type Exchange = (String, &'static str, String);

fn serve(script: Vec<Exchange>) -> (ObjectShards, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let thread = std::thread::spawn(move || {
        for (line, header, answer) in script {
            let (stream, _) = listener.accept().unwrap();
            let mut writer = stream.try_clone().unwrap();
            let mut reader = BufReader::new(stream);
            let mut head = vec![];
            loop {
                let mut text = String::new();
                reader.read_line(&mut text).unwrap();
                if text.trim().is_empty() {
                    break;
                }
                head.push(text.trim().to_lowercase());
            }
            assert!(head[0].starts_with(&line), "{head:?}");
            assert!(header.is_empty() || head.iter().any(|text| text == header), "{head:?}");
            assert!(head.iter().any(|text| text.starts_with("authorization: aws4-hmac-sha256")));
            let length = head.iter().find_map(|text| text.strip_prefix("content-length: "));
            let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
            reader.read_exact(&mut body).unwrap();
            writer.write_all(answer.as_bytes()).unwrap();
        }
    });
    let options = S3Options {
        endpoint: Some(endpoint),
        region: "us-east-1".to_owned(),
        bucket: "bucket".to_owned(),
        access_key: "name".to_owned(),
        secret_key: Zeroizing::new("secret".to_owned()),
        capacity_bytes: 1 << 40,
        timeout: Duration::from_secs(20),
    };
    (ObjectShards::s3(&options).unwrap(), thread)
}

fn answer(status: &str, headers: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\nconnection: close\r\netag: \"1\"\r\n\
         last-modified: Fri, 20 Nov 2026 10:00:00 GMT\r\n{headers}content-length: {}\r\n\r\n{body}",
        body.len()
    )
}

#[test]
fn a_put_is_conditional_and_one_that_is_there_is_compared() {
    let put = format!("put {PATH} ");
    let get = format!("get {PATH} ");
    let taken = || answer("412 Precondition Failed", "", "");
    let (mut store, thread) = serve(vec![
        (put.clone(), "if-none-match: *", answer("200 OK", "", "")),
        (put.clone(), "if-none-match: *", taken()),
        (get.clone(), "", answer("200 OK", "", "abc")),
        (put, "if-none-match: *", taken()),
        (get, "", answer("200 OK", "", "abc")),
    ]);
    store.put(&KEY, &[Bytes::from_static(b"abc")]).unwrap();
    store.put(&KEY, &[Bytes::from_static(b"ab"), Bytes::from_static(b"c")]).unwrap();
    assert_eq!(store.put(&KEY, &[Bytes::from_static(b"abd")]), Err(NodeError::Exists));
    thread.join().unwrap();
}

#[test]
fn a_range_is_asked_for_and_not_the_whole() {
    let headers = "content-range: bytes 1-2/4\r\n";
    let (mut store, thread) = serve(vec![(
        format!("get {PATH} "),
        "range: bytes=1-2",
        answer("206 Partial Content", headers, "bc"),
    )]);
    assert_eq!(&store.get(&KEY, 1, 2).unwrap()[..], b"bc");
    thread.join().unwrap();
}

#[test]
fn a_bucket_that_lets_us_not_in_says_so() {
    let denied = answer("403 Forbidden", "", "<Error><Code>AccessDenied</Code></Error>");
    let (mut store, thread) = serve(vec![(format!("get {PATH} "), "", denied)]);
    assert_eq!(store.get(&KEY, 0, u32::MAX), Err(NodeError::Denied));
    thread.join().unwrap();
}

#[test]
fn a_bucket_has_the_capacity_that_its_operator_gives() {
    let (mut store, thread) = serve(vec![]);
    assert_eq!(store.capacity().unwrap().total_bytes, 1 << 40);
    assert!(store.capabilities().durable);
    thread.join().unwrap();
}
