//! Two guests: `kv` on a dispersed disk, `load` on the other end of the mesh. No `hypha`: the
//! VMM's own interface is what is tested.

use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;

use net_vdev::PrivateKey;
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Pid, Signal, kill_process};
use spec::secret::{Public32, Secret32};
use spec::vm::{AllowFrom, AllowRule, NetConfig, PeerConfig, Protocol, VmConfig};

use crate::support::{Folder, config, have_kvm, run_with, vmm_with, volume};

/// One end of a mesh of two.
pub(crate) struct Member {
    key: [u8; 32],
    socket: UdpSocket,
}

impl Member {
    pub(crate) fn new(byte: u8) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a port is free");
        fcntl_setfd(&socket, FdFlags::empty()).expect("a descriptor can be inherited");
        Self { key: [byte; 32], socket }
    }

    fn public(&self) -> net_vdev::PublicKey {
        PrivateKey::new(self.key).public()
    }

    fn endpoint(&self) -> SocketAddr {
        self.socket.local_addr().expect("a bound socket has an address")
    }

    fn card(&self, peer: &Member, allow: Vec<AllowRule>) -> NetConfig {
        NetConfig {
            private_key: Secret32::new(self.key),
            socket_fd: self.socket.as_raw_fd(),
            uplink_fd: None,
            exit: None,
            ipv4: Vec::new(),
            peers: vec![PeerConfig {
                public_key: Public32(peer.public().0),
                endpoint: Some(peer.endpoint()),
                addresses: Vec::new(),
            }],
            allow,
            egress: None,
            packets_per_second: None,
            bytes_per_second: None,
            requires_post_quantum: false,
            certificates: Vec::new(),
        }
    }
}

/// The configurations of `kv` and `load` with these arguments, with `port` of `kv` open to `load`.
pub(crate) fn pair(
    folder: &Folder,
    members: &[Member; 2],
    load_args: &[&str],
    port: u16,
) -> [VmConfig; 2] {
    let [kv_member, load_member] = members;
    let mut kv = config("kv", &[]);
    kv.memory_bytes = 32 << 20;
    kv.block = vec![volume(folder)];
    let from = Public32(load_member.public().0);
    let rule = AllowRule { from: AllowFrom::Key(from), protocol: Protocol::Tcp, port: Some(port) };
    kv.net = vec![kv_member.card(load_member, vec![rule])];
    let args = [&["--target", "kv:8080"], load_args].concat();
    let mut load = config("load", &args);
    load.memory_bytes = 32 << 20;
    let address = kv_member.public().address();
    load.env = vec![("HYPHA_PEERS".to_owned(), format!("kv={address}"))];
    load.net = vec![load_member.card(kv_member, Vec::new())];
    [kv, load]
}

#[test]
fn load_fills_and_checks_kv_over_the_mesh() {
    if !have_kvm() {
        return;
    }
    let folder = Folder::new();
    let members = [Member::new(1), Member::new(2)];
    let [kv, load] = pair(&folder, &members, &["--count", "50"], 8080);
    let (mut command, _file) = vmm_with(&kv, &folder);
    let mut server = command.spawn().expect("vmm starts");
    let ended = run_with(&load, &folder);
    kill_process(Pid::from_child(&server), Signal::TERM).expect("kv runs");
    let status = server.wait().expect("kv ends");
    assert_eq!(ended.code, 0, "{} {}", ended.log, ended.messages);
    let result = ended.log.lines().find_map(|line| line.strip_prefix("load: result "));
    let result: serde_json::Value =
        serde_json::from_str(result.expect("a result")).expect("the result is JSON");
    for (field, value) in [("acknowledged", 50), ("lost", 0), ("wrong", 0)] {
        assert_eq!(result[field], value, "{result}");
    }
    // Counted, not timed: these hold on any machine.
    for (field, limit) in [("kv_exits_per_get", 2.0), ("kv_exits_per_put", 2.0)] {
        assert!(result[field].as_f64().is_some_and(|n| n <= limit), "{field}: {result}");
    }
    assert_eq!(status.code(), Some(0), "SIGTERM stops kv in good order");
}

#[test]
fn the_firewall_denies_what_no_rule_opens() {
    if !have_kvm() {
        return;
    }
    let folder = Folder::new();
    let members = [Member::new(3), Member::new(4)];
    // Another port than the one that `load` asks for.
    let [kv, load] = pair(&folder, &members, &["--count", "1"], 8081);
    let (mut command, _file) = vmm_with(&kv, &folder);
    let mut server = command.spawn().expect("vmm starts");
    let (mut command, _load_file) = vmm_with(&load, &folder);
    let mut client = command.spawn().expect("vmm starts");
    std::thread::sleep(std::time::Duration::from_secs(3));
    let waiting = client.try_wait().expect("load can be asked").is_none();
    for child in [&mut client, &mut server] {
        child.kill().expect("it runs");
        child.wait().expect("it ends");
    }
    assert!(waiting, "load got an answer through a closed port");
}
