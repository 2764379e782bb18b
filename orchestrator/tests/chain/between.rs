//! What stands between `hypha` and a chain: a node that lies, and TLS.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::Value;

use crate::world::{World, stderr, tokens, units};

/// A node that passes all on but one method, which it answers like this. It ends with the test.
pub(crate) fn liar(url: &str, method: &str, answer: Value) -> String {
    let (at, listener) = listen("http");
    let (url, method) = (url.to_owned(), method.to_owned());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            serve(stream.unwrap(), &url, |asked| (asked == method).then(|| answer.clone()));
        }
    });
    at
}

fn listen(scheme: &str) -> (String, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    (format!("{scheme}://{}/", listener.local_addr().unwrap()), listener)
}

/// Answers one request: as the lie says, if there is one for its method, and as the chain does otherwise.
fn serve(stream: impl Read + Write, url: &str, lie: impl Fn(&str) -> Option<Value>) {
    let mut stream = BufReader::new(stream);
    let mut length = 0;
    let mut line = String::new();
    // Whoever does not trust the certificate goes before the first line.
    while stream.read_line(&mut line).is_ok_and(|length| length > 2) {
        if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        line.clear();
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).unwrap();
    let Ok(question) = serde_json::from_slice::<Value>(&body) else { return };
    let text = match lie(question["method"].as_str().unwrap()) {
        Some(mut answer) => {
            answer["id"] = question["id"].clone();
            answer.to_string()
        }
        None => {
            let asked = ureq::post(url).content_type("application/json").send(&body);
            asked.unwrap().body_mut().read_to_string().unwrap()
        }
    };
    let head = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: application/json";
    let reply = format!("{head}\r\nContent-Length: {}\r\n\r\n{text}", text.len());
    stream.get_mut().write_all(reply.as_bytes()).unwrap();
    stream.get_mut().flush().unwrap();
}

/// An authority, and a certificate of it for 127.0.0.1, by openssl.
fn certificates(folder: &Path) -> ServerConfig {
    let script = r#"
        set -e
        cd "$1"
        new() { openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes "$@"; }
        new -x509 -days 2 -subj /CN=authority -keyout ca-key.pem -out ca.pem
        new -subj /CN=node -keyout key.pem -out node.csr
        printf 'subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth\n' > node.ext
        openssl x509 -req -days 2 -in node.csr -CA ca.pem -CAkey ca-key.pem -CAcreateserial \
            -extfile node.ext -out node.pem"#;
    let made = Command::new("sh").args(["-c", script, "certificates"]).arg(folder).output();
    let made = made.unwrap();
    assert!(made.status.success(), "{}", stderr(&made));
    let chain = vec![CertificateDer::from_pem_file(folder.join("node.pem")).unwrap()];
    let key = PrivateKeyDer::from_pem_file(folder.join("key.pem")).unwrap();
    ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap()
}

#[test]
fn a_far_node_is_spoken_to_by_tls_and_a_strangers_certificate_is_refused() {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    if !std::env::split_paths(&paths).any(|path| path.join("openssl").is_file()) {
        println!("SKIPPED: openssl is not installed (cargo xtask check installs it)");
        return;
    }
    let world = World::new();
    world.account("tenant", "5");
    let config = Arc::new(certificates(world.folder.path()));
    let (at, listener) = listen("https");
    let url = world.url.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let stream: TcpStream = stream.unwrap();
            let connection = ServerConnection::new(Arc::clone(&config)).unwrap();
            serve(StreamOwned::new(connection, stream), &url, |_| None);
        }
    });
    let ask = |authorities: &Path| {
        let mut command = world.command(&["balance", "--key", "tenant", "--json", "--at", &at]);
        command.arg("--contracts").arg(world.path("contracts.json"));
        command.env("SSL_CERT_FILE", authorities).output().unwrap()
    };
    let known = ask(&world.path("ca.pem"));
    assert!(known.status.success(), "{}", stderr(&known));
    let balance: Value = serde_json::from_slice(&known.stdout).unwrap();
    assert_eq!(units(&balance["tokens"]), tokens("5"));
    // The node's own certificate is no authority.
    let unknown = ask(&world.path("node.pem"));
    assert_eq!(unknown.status.code(), Some(5), "{}", stderr(&unknown));
    assert!(stderr(&unknown).contains("certificate"), "{}", stderr(&unknown));
}
