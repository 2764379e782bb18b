//! Against the real mycelium, where its program is installed.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use mesh_edge::wire::{Control, Packet, Stream};

use crate::link;

/// Ends the process that the test started.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Err(error) = self.0.kill().and_then(|()| self.0.wait()) {
            println!("mycelium does not end: {error}");
        }
    }
}

fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

fn connect(port: u16) -> TcpStream {
    let attempt = |_| {
        std::thread::sleep(Duration::from_millis(100));
        TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok()
    };
    (0..100).find_map(attempt).unwrap()
}

#[test]
fn the_real_daemon_announces_itself_and_hears_us() {
    let is_there = Command::new("mycelium").arg("--version").stdout(Stdio::null()).status();
    if is_there.is_err() {
        println!("SKIPPED: no mycelium on PATH");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (port, api) = (free_port(), free_port());
    let child = Command::new("mycelium")
        .args(["--no-tun", "--disable-peer-discovery", "--disable-quic"])
        .args(["--tcp-listen-port", &port.to_string()])
        .args(["--api-addr", &format!("127.0.0.1:{api}")])
        .arg("--key-file")
        .arg(folder.path().join("key"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let _daemon = Daemon(child);
    let mut connection = connect(port);
    connection.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let (mut edge, mut seen) = (link(1), Stream::default());
    let (mut was_heard, mut buffer) = (false, [0; 4096]);
    // The daemon announces itself at once and answers a Hello; its own come every 20 seconds.
    for _ in 0..20 {
        while let Some(bytes) = edge.poll_transmit() {
            connection.write_all(&bytes).unwrap();
        }
        let length = connection.read(&mut buffer).unwrap();
        assert_ne!(length, 0, "the daemon closed the connection");
        edge.receive(0, &buffer[..length]).unwrap();
        seen.push(&buffer[..length]);
        while let Some(packet) = seen.next_packet().unwrap() {
            was_heard |= matches!(packet, Packet::Control(Control::Ihu { .. }));
        }
        if was_heard && edge.routes() == 1 {
            break;
        }
    }
    assert!(was_heard, "the daemon answers no Hello");
    assert_eq!(edge.routes(), 1, "the daemon announces itself");
    assert_eq!(edge.counters().unreadable, 0, "it says something that we don't read");
}
