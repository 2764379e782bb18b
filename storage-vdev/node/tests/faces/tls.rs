//! TLS over TCP, with certificates that openssl makes.

use std::path::Path;

use crate::server::{Server, folder, has, output, run};

/// An authority, a server's certificate and a client's, under the names that QEMU uses.
fn certificates(folder: &Path) {
    let script = r#"
        set -e
        cd "$1"
        new() { openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes "$@" 2>&1; }
        new -x509 -days 2 -subj /CN=authority -keyout ca-key.pem -out ca-cert.pem
        for who in server client; do
            new -subj /CN=localhost -keyout $who-key.pem -out $who.csr
            printf 'subjectAltName=IP:127.0.0.1,DNS:localhost\nextendedKeyUsage=%sAuth\n' $who > $who.ext
            openssl x509 -req -days 2 -in $who.csr -CA ca-cert.pem -CAkey ca-key.pem \
                -CAcreateserial -extfile $who.ext -out $who-cert.pem 2>&1
        done"#;
    run("sh", &["-c", script, "certificates", &folder.to_string_lossy()]);
}

/// A port that was free a moment ago.
fn port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[test]
fn only_clients_with_a_certificate_get_through_tls() {
    if !has("openssl") || !has("nbdinfo") {
        return;
    }
    let (keys, strangers, volume) = (folder(), folder(), folder());
    certificates(keys.path());
    certificates(strangers.path());
    let port = port();
    let address = format!("127.0.0.1:{port}");
    let server = Server::nbd(volume.path(), &["--tls", &keys.path().to_string_lossy(), &address]);
    let uri = |scheme: &str, folder: &Path| {
        format!("{scheme}://localhost:{port}/?tls-certificates={}", folder.display())
    };
    let info = run("nbdinfo", &["--json", &uri("nbds", keys.path())]);
    assert!(info.contains(r#""TLS": true"#), "{info}");
    // Somebody else's authority; and no TLS at all.
    assert!(!output("nbdinfo", &[&uri("nbds", strangers.path())]).status.success());
    let plain = output("nbdinfo", &[&format!("nbd://localhost:{port}")]);
    assert!(!plain.status.success());
    if has("nbdcopy") {
        let (from, to) = (volume.path().join("from"), volume.path().join("to"));
        let bytes: Vec<u8> =
            (0..8u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        std::fs::write(&from, &bytes).unwrap();
        run("nbdcopy", &["--flush", &from.to_string_lossy(), &uri("nbds", keys.path())]);
        run("nbdcopy", &[&uri("nbds", keys.path()), &to.to_string_lossy()]);
        assert!(std::fs::read(&to).unwrap()[..bytes.len()] == bytes, "TLS changed something");
    }
    if has("qemu-img") {
        let credentials = format!(
            "tls-creds-x509,id=tls0,endpoint=client,dir={},verify-peer=yes",
            keys.path().display()
        );
        let options = format!(
            "driver=nbd,server.type=inet,server.host=127.0.0.1,server.port={port},tls-creds=tls0"
        );
        run("qemu-img", &["info", "--object", &credentials, "--image-opts", &options]);
    }
    server.end();
}
