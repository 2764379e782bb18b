use alloc::string::String;
use alloc::vec;
use std::format;

use proptest::prelude::*;

use super::*;

fn request(text: &str) -> Request {
    let (request, head_len) = parse(text.as_bytes()).unwrap().unwrap();
    assert!(text.as_bytes()[..head_len].ends_with(b"\r\n\r\n"));
    request
}

fn refused(text: &str) -> Status {
    parse(text.as_bytes()).unwrap_err()
}

fn key(text: &str) -> Rc<[u8]> {
    Rc::from(text.as_bytes())
}

#[test]
fn the_actions_are_told_apart() {
    let get = request("GET /kv/a%20b/c HTTP/1.1\r\nHost: kv\r\n\r\n");
    assert_eq!(get.action, Action::Get(key("a b/c")));
    assert!(get.keep_alive && !get.head_only && get.body_len == 0);
    let put = request("PUT /kv/k HTTP/1.1\r\nHost: kv\r\ncontent-length: 3\r\n\r\nabc");
    assert_eq!((put.action, put.body_len), (Action::Put(key("k")), 3));
    let head = request("HEAD /kv/k HTTP/1.1\r\nHost: kv\r\n\r\n");
    assert!(head.head_only && head.action == Action::Get(key("k")));
    let delete = request("DELETE http://kv:8080/kv/k HTTP/1.1\r\nHost: kv\r\n\r\n");
    assert_eq!(delete.action, Action::Delete(key("k")));
    let list = request("GET /kv?prefix=a%2F&limit=5&after=a%2Fb HTTP/1.1\r\nHost: kv\r\n\r\n");
    let expected = Action::List { prefix: b"a/".to_vec(), after: Some(b"a/b".to_vec()), limit: 5 };
    assert_eq!(list.action, expected);
    assert_eq!(request("GET /stats HTTP/1.1\r\nHost: kv\r\n\r\n").action, Action::Stats);
}

#[test]
fn well_formed_requests_that_cannot_be_served_keep_the_connection() {
    for (text, status) in [
        ("POST /kv/k HTTP/1.1\r\nHost: kv\r\nContent-Length: 0\r\n\r\n", Status::MethodNotAllowed),
        ("DELETE /kv HTTP/1.1\r\nHost: kv\r\n\r\n", Status::MethodNotAllowed),
        ("GET /nothing HTTP/1.1\r\nHost: kv\r\n\r\n", Status::NotFound),
        ("PUT /kv/k HTTP/1.1\r\nHost: kv\r\n\r\n", Status::LengthRequired),
    ] {
        let request = request(text);
        assert_eq!((request.action, request.keep_alive), (Action::Refuse(status), true), "{text}");
    }
    let long = format!("GET /kv/{} HTTP/1.1\r\nHost: kv\r\n\r\n", "k".repeat(513));
    assert_eq!(request(&long).action, Action::Refuse(Status::UriTooLong));
    let longest = format!("GET /kv/{} HTTP/1.1\r\nHost: kv\r\n\r\n", "%6b".repeat(512));
    assert_eq!(request(&longest).action, Action::Get(key(&"k".repeat(512))));
}

#[test]
fn what_breaks_the_framing_ends_the_connection() {
    let put = |headers: &str| format!("PUT /kv/k HTTP/1.1\r\nHost: kv\r\n{headers}\r\n\r\n");
    for (text, status) in [
        (put("Content-Length: 1\r\nContent-Length: 2"), Status::BadRequest),
        (put("Content-Length: +1"), Status::BadRequest),
        (put("Content-Length: 1,1"), Status::BadRequest),
        (put("Content-Length: -0"), Status::BadRequest),
        (put("Content-Length:"), Status::BadRequest),
        (put("Content-Length : 1"), Status::BadRequest),
        (put("Transfer-Encoding: chunked"), Status::NotImplemented),
        (put("Transfer-Encoding: chunked\r\nContent-Length: 1"), Status::NotImplemented),
        (put("Content-Length: 1048577"), Status::ContentTooLarge),
        (put("Content-Length: 99999999999999999999999999"), Status::ContentTooLarge),
        (put("Expect: payment\r\nContent-Length: 1"), Status::ExpectationFailed),
        (put("Host: again\r\nContent-Length: 1"), Status::BadRequest),
        (put(&format!("A: {}", "x".repeat(9000))), Status::HeaderFieldsTooLarge),
        (put(&"A: b\r\n".repeat(70)), Status::HeaderFieldsTooLarge),
        ("GET /kv/k HTTP/1.1\r\n\r\n".into(), Status::BadRequest),
        ("GET /kv/%zz HTTP/1.1\r\nHost: kv\r\n\r\n".into(), Status::BadRequest),
        ("GET /kv?limit=-1 HTTP/1.1\r\nHost: kv\r\n\r\n".into(), Status::BadRequest),
        ("GET /kv?unknown=1 HTTP/1.1\r\nHost: kv\r\n\r\n".into(), Status::BadRequest),
        ("GET * HTTP/1.1\r\nHost: kv\r\n\r\n".into(), Status::BadRequest),
        ("GET / HTTP/2.0\r\nHost: kv\r\n\r\n".into(), Status::VersionNotSupported),
        ("\x16\x03\x01 hello TLS".into(), Status::BadRequest),
    ] {
        assert_eq!(refused(&text), status, "{text:?}");
    }
}

#[test]
fn a_connection_ends_when_either_version_says_so() {
    for (version, header, keep_alive) in [
        ("1.1", "", true),
        ("1.1", "Connection: close\r\n", false),
        ("1.1", "Connection: upgrade, Close\r\n", false),
        ("1.0", "", false),
        ("1.0", "Connection: Keep-Alive\r\n", true),
    ] {
        let text = format!("GET /stats HTTP/{version}\r\nHost: kv\r\n{header}\r\n");
        assert_eq!(request(&text).keep_alive, keep_alive, "{text}");
    }
}

#[test]
fn a_client_waits_for_100_continue_only_if_it_has_a_body() {
    let put = |len| {
        format!(
            "PUT /kv/k HTTP/1.1\r\nHost: kv\r\nExpect: 100-continue\r\nContent-Length: {len}\r\n\r\n"
        )
    };
    assert!(request(&put(1)).expects_continue);
    assert!(!request(&put(0)).expects_continue);
}

#[test]
fn an_answer_has_a_length_unless_it_has_no_content() {
    let answer = |status, body: &Body, head_only, keep_alive| {
        let mut out = Vec::new();
        respond(&mut out, status, body, head_only, keep_alive);
        String::from_utf8(out).unwrap()
    };
    let value = Body::Value(Rc::from(&b"abc"[..]));
    let head = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Type: application/octet-stream\r\n";
    assert_eq!(answer(Status::Ok, &value, false, true), format!("{head}\r\nabc"));
    assert_eq!(answer(Status::Ok, &value, true, false), format!("{head}Connection: close\r\n\r\n"));
    assert_eq!(
        answer(Status::NoContent, &Body::Empty, false, true),
        "HTTP/1.1 204 No Content\r\n\r\n"
    );
    assert_eq!(
        answer(Status::Created, &Body::Empty, false, true),
        "HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n"
    );
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        drop(parse(&bytes));
    }

    #[test]
    fn a_mutated_request_never_panics(
        at in 0usize..90,
        byte in any::<u8>(),
        cut in 0usize..90,
    ) {
        let mut bytes = vec![0; 0];
        bytes.extend_from_slice(
            b"PUT /kv/k%20?x=1 HTTP/1.1\r\nHost: kv\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n",
        );
        if let Some(target) = bytes.get_mut(at) {
            *target = byte;
        }
        bytes.truncate(cut);
        drop(parse(&bytes));
    }

    /// However the bytes are cut, the request is found when its last byte is there, not before.
    #[test]
    fn a_request_is_found_exactly_when_it_is_whole(
        key in prop::collection::vec(any::<u8>(), 1..40),
        body_len in 0usize..=VALUE_BYTES_MAX,
    ) {
        let mut bytes = b"PUT /kv/".to_vec();
        percent_encode(&key, &mut bytes);
        bytes.extend_from_slice(
            format!(" HTTP/1.1\r\nHost: kv\r\nContent-Length: {body_len}\r\n\r\n").as_bytes(),
        );
        for cut in 0..bytes.len() {
            prop_assert_eq!(parse(&bytes[..cut]), Ok(None));
        }
        let (request, head_len) = parse(&bytes).unwrap().unwrap();
        prop_assert_eq!(head_len, bytes.len());
        prop_assert_eq!(request.action, Action::Put(Rc::from(key)));
        prop_assert_eq!(request.body_len, body_len);
    }

    #[test]
    fn percent_encoding_is_undone_by_decoding(bytes in prop::collection::vec(any::<u8>(), 0..99)) {
        let mut text = Vec::new();
        percent_encode(&bytes, &mut text);
        let text = String::from_utf8(text).unwrap();
        prop_assert_eq!(percent_decode(&text), Some(bytes));
    }
}
