//! Disks on shard servers: the VMM's end, with servers of one session each that live in this test.

use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::Child;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{Pid, Signal, kill_process};
use spec::secret::Public32;
use spec::vm::{BlockConfig, NodeConfig, NodePlace, RemoteConfig};
use storage_vdev::disk::DiskStore;
use storage_vdev::files::{RealFile, open_directory};
use storage_vdev::service::{Handled, NodeIdentity, NodeOptions, NodeService};
use storage_vdev::wire::courier::{Question, answer, next_question};
use storage_vdev::wire::handshake::{self, HelloReader};
use storage_vdev::wire::server::Event;
use storage_vdev::wire::{NodeKey, ServerSession};
use zeroize::Zeroizing;

use crate::support::{Folder, config, have_kvm, run_with, vmm_with, volume};

type Service = NodeService<DiskStore<RealFile>, RealFile>;

/// Six shard servers, and the courier that a VMM asks for new sockets to them.
pub(crate) struct Servers {
    services: Vec<Arc<Mutex<Service>>>,
    /// How many requests each has answered.
    answered: Vec<Arc<AtomicUsize>>,
    /// How many sessions the VMM has begun, over all nodes.
    begun: Arc<AtomicUsize>,
    /// Our ends of the sockets that are connected, by node.
    lines: Vec<UnixStream>,
    courier: OwnedFd,
    /// What the VMM inherits; closed here once it has been started.
    inherited: Vec<OwnedFd>,
}

fn courier_pair() -> (OwnedFd, OwnedFd) {
    let (kind, flags) = (SocketType::SEQPACKET, SocketFlags::CLOEXEC);
    socketpair(AddressFamily::UNIX, kind, flags, None).expect("a socket pair")
}

fn key(node: u8) -> NodeKey {
    NodeKey::new([node + 1; 32])
}

impl Servers {
    /// Six servers that keep their nodes in `folder`, with a socket each for one VMM.
    pub(crate) fn start(folder: &Folder) -> Self {
        let service = |node: u8| {
            let acceptor_seed = Zeroizing::new([node; 32]);
            let identity = NodeIdentity { node: [node; 16], acceptor_seed };
            let options = NodeOptions { capacity_bytes: 256 << 20, create: Some(identity) };
            let path = folder.path().join(format!("server-{node}"));
            let files = open_directory(&path, true).expect("a directory");
            Arc::new(Mutex::new(NodeService::open(files, &options).expect("a node").0))
        };
        let services = (0..6).map(service).collect();
        let answered = (0..6).map(|_| Arc::default()).collect();
        let (courier, theirs) = courier_pair();
        let mut this = Self {
            services,
            answered,
            begun: Arc::default(),
            lines: Vec::new(),
            courier,
            inherited: vec![theirs],
        };
        this.lay_lines();
        this
    }

    /// Sockets for the next VMM, when the last one is gone.
    pub(crate) fn renew(&mut self) {
        let (courier, theirs) = courier_pair();
        (self.courier, self.inherited) = (courier, vec![theirs]);
        self.lay_lines();
    }

    fn lay_lines(&mut self) {
        for node in 0..6 {
            let theirs = self.connect(node);
            self.inherited.push(theirs);
        }
        for fd in &self.inherited {
            fcntl_setfd(fd, FdFlags::empty()).expect("a descriptor can be inherited");
        }
    }

    /// The other end of a new session with `node`.
    fn connect(&mut self, node: u8) -> OwnedFd {
        let (ours, theirs) = UnixStream::pair().expect("a socket pair");
        theirs.set_nonblocking(true).expect("set");
        let line = ours.try_clone().expect("a descriptor");
        match self.lines.get_mut(usize::from(node)) {
            Some(old) => *old = line,
            None => self.lines.push(line),
        }
        let service = Arc::clone(&self.services[usize::from(node)]);
        let answered = Arc::clone(&self.answered[usize::from(node)]);
        let begun = Arc::clone(&self.begun);
        thread::spawn(move || serve(&service, (&answered, &begun), (node, ours)));
        theirs.into()
    }

    /// The 4+2 disk on these servers.
    pub(crate) fn disk(&self, folder: &Folder) -> BlockConfig {
        let fds: Vec<i32> = self.inherited.iter().map(AsRawFd::as_raw_fd).collect();
        let node = |node: u8| NodeConfig {
            place: NodePlace::Server {
                key: Public32(key(node).public().0),
                store: "disk0".to_owned(),
                fd: Some(fds[usize::from(node) + 1]),
            },
            id: [node; 16],
            name: format!("server {node}"),
            domain: format!("domain {node}"),
            acceptor: node < 5,
        };
        let remote = RemoteConfig {
            uuid: [9; 16],
            holder: [8; 16],
            holder_name: "a test".to_owned(),
            lease_ns: 3_000_000_000,
            courier_fd: Some(fds[0]),
        };
        BlockConfig { nodes: (0..6).map(node).collect(), remote: Some(remote), ..volume(folder) }
    }

    /// The VMM runs: its descriptors are its own.
    pub(crate) fn let_go(&mut self) {
        self.inherited.clear();
    }

    /// Ends the session with `node`.
    pub(crate) fn cut(&self, node: u8) {
        self.lines[usize::from(node)].shutdown(std::net::Shutdown::Both).expect("it is connected");
    }

    /// Waits until the VMM wants a socket to `node`, gives it one, and waits until it is in use.
    pub(crate) fn reconnect(&mut self, node: u8) {
        let begun = self.begun.load(Ordering::Relaxed);
        self.hand_over(node);
        wait_until(|| self.begun.load(Ordering::Relaxed) > begun, "the new socket is not used");
    }

    fn hand_over(&mut self, node: u8) {
        for _ in 0..3000 {
            match next_question(self.courier.as_fd()) {
                Question::Node(wanted) => {
                    assert_eq!(wanted, node);
                    let theirs = self.connect(node);
                    answer(self.courier.as_fd(), node, theirs.as_fd()).expect("it is taken");
                    return;
                }
                Question::None => thread::sleep(Duration::from_millis(10)),
                Question::Ended => panic!("the VMM is gone"),
            }
        }
        panic!("nobody asked for node {node}");
    }

    /// Waits until `node` has answered `count` more requests.
    pub(crate) fn await_requests(&self, node: u8, count: usize) {
        let answered = || self.answered[usize::from(node)].load(Ordering::Relaxed);
        let wanted = answered() + count;
        wait_until(|| answered() >= wanted, "the node is not asked");
    }
}

/// Waits until the VMM is behind its filter: its disk is open by then.
pub(crate) fn await_confined(child: &Child) {
    let status = format!("/proc/{}/status", child.id());
    let confined = || std::fs::read_to_string(&status).is_ok_and(|s| s.contains("Seccomp:\t2"));
    wait_until(confined, "the VMM is not confined");
}

fn wait_until(done: impl Fn() -> bool, otherwise: &str) {
    for _ in 0..3000 {
        if done() {
            return;
        }
        thread::sleep(Duration::from_millis(10));
    }
    panic!("{otherwise}");
}

/// Serves one session to its end.
fn serve(
    service: &Mutex<Service>,
    (answered, begun): (&AtomicUsize, &AtomicUsize),
    (node, mut stream): (u8, UnixStream),
) {
    let mut reader = HelloReader::default();
    let mut buffer = [0; 64 << 10];
    let received = loop {
        let Ok(count @ 1..) = stream.read(&mut buffer) else { return };
        reader.push(&buffer[..count]);
        if let Some(message) = reader.message().expect("a hello") {
            break handshake::receive(&key(node), message, [node; 32]).expect("a handshake");
        }
    };
    let (mut session, hello) = ServerSession::welcome(received).expect("a session");
    if stream.write_all(&hello).is_err() {
        return;
    }
    begun.fetch_add(1, Ordering::Relaxed);
    // Nothing here expires, so that any time will do.
    let now = 1_800_000_000;
    loop {
        let Ok(count @ 1..) = stream.read(&mut buffer) else { return };
        session.read_buffer().extend_from_slice(&buffer[..count]);
        let mut events = Vec::new();
        session.receive(now, |event| events.push(event)).expect("a session of ours");
        let mut service = service.lock().expect("whole");
        let mut waiting = Vec::new();
        for event in events {
            let Event::Request { id, request } = event else { continue };
            answered.fetch_add(1, Ordering::Relaxed);
            match service.handle(session.grants(now), request) {
                Handled::Done(result) => session.answer(id, result).expect("it fits"),
                Handled::AfterSync(ticket) => waiting.push((ticket, id)),
            }
        }
        for (ticket, result) in service.sync() {
            let asked = waiting.iter().find(|(asked, _)| *asked == ticket);
            session.answer(asked.expect("asked for").1, result).expect("it fits");
        }
        drop(service);
        while !session.outgoing().is_empty() {
            let Ok(count) = stream.write(session.outgoing()) else { return };
            session.sent(count);
        }
    }
}

fn stop(mut child: Child) {
    kill_process(Pid::from_child(&child), Signal::TERM).expect("it runs");
    let status = child.wait().expect("it ends");
    assert!(status.success(), "{status:?}");
}

#[test]
fn a_disk_on_servers_is_attended_to_while_the_guest_computes() {
    if !have_kvm() {
        return;
    }
    let folder = Folder::new();
    let mut servers = Servers::start(&folder);
    let mut spin = config("hostile", &["spin"]);
    spin.block = vec![servers.disk(&folder)];
    let (mut command, _file) = vmm_with(&spin, &folder);
    let child = command.spawn().expect("vmm starts");
    servers.let_go();
    await_confined(&child);
    servers.cut(0);
    servers.reconnect(0);
    servers.await_requests(0, 4);
    stop(child);
    // Released in good order: the next one takes the volume at once.
    servers.renew();
    let mut again = config("hello", &[]);
    again.block = vec![servers.disk(&folder)];
    again.block[0].create = false;
    let ended = run_with(&again, &folder);
    servers.let_go();
    assert_eq!(ended.code, 0, "{}", ended.messages);
}
