//! The register in a real etcd, of one member and of three.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use storage_node::etcd::{EtcdAcceptor, EtcdOptions};
use storage_vdev::VolumeKey;
use storage_vdev::node::{Ballot, NodeError, RegisterRequest};
use storage_vdev::register::{
    ChangeError, Committed, Edit, Holder, Proposer, Refusal, Step, SuperblockRef, Timing,
};

const REGISTER: [u8; 16] = [7; 16];

struct Cluster {
    members: Vec<(Child, String)>,
    _folder: tempfile::TempDir,
}

impl Cluster {
    /// A cluster that answers, or `None` with a loud word if etcd is not installed.
    fn start(count: usize) -> Option<Self> {
        if Command::new("etcd").arg("--version").stdout(Stdio::null()).status().is_err() {
            eprintln!("SKIPPED: etcd is not installed, so this test shows nothing");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let ports: Vec<(u16, u16)> = (0..count).map(|_| (free_port(), free_port())).collect();
        let peers: Vec<String> = ports
            .iter()
            .enumerate()
            .map(|(index, (_, peer))| format!("m{index}=http://127.0.0.1:{peer}"))
            .collect();
        let members = ports.iter().enumerate().map(|(index, (client, peer))| {
            let url = format!("http://127.0.0.1:{client}");
            let child = spawn(folder.path(), index, (&url, *peer), &peers.join(","));
            (child, url)
        });
        let cluster = Self { members: members.collect(), _folder: folder };
        for _ in 0..600 {
            let asked = cluster.acceptor().handle(&[0; 16], &prepare());
            if asked.is_ok() {
                return Some(cluster);
            }
            sleep(Duration::from_millis(50));
        }
        panic!("etcd doesn't come up");
    }

    fn acceptor(&self) -> EtcdAcceptor {
        EtcdAcceptor::new(EtcdOptions {
            endpoints: self.members.iter().map(|(_, url)| url.clone()).collect(),
            prefix: "/hypha/register/".to_owned(),
            timeout: Duration::from_secs(10),
            fresh_id: [9; 32],
        })
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for (child, _) in &mut self.members {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

fn spawn(folder: &Path, index: usize, (url, peer): (&str, u16), cluster: &str) -> Child {
    let peer = format!("http://127.0.0.1:{peer}");
    Command::new("etcd")
        .args(["--name", &format!("m{index}"), "--logger", "zap", "--log-level", "error"])
        .args(["--listen-client-urls", url, "--advertise-client-urls", url])
        .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
        .args(["--initial-cluster", cluster, "--initial-cluster-state", "new"])
        .arg("--data-dir")
        .arg(folder.join(index.to_string()))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// A port that was free a moment ago.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn prepare() -> RegisterRequest {
    RegisterRequest::Prepare { ballot: Ballot { counter: 1, proposer: [1; 16] } }
}

fn proposer(number: u8) -> Proposer {
    let timing = Timing { answer_ns: 1_000, backoff_ns: 10, attempts: 50 };
    Proposer::new(REGISTER, &VolumeKey::new(&[3; 32]), vec![0], [number; 24], timing)
}

fn run(
    acceptor: &EtcdAcceptor,
    proposer: &mut Proposer,
    edit: Edit,
) -> Result<Committed, ChangeError> {
    let mut now_ns = 0;
    proposer.start(edit, now_ns).unwrap();
    loop {
        match proposer.poll(now_ns) {
            Step::Send { message, request, .. } => {
                proposer.answer(message, acceptor.handle(&REGISTER, &request), now_ns);
            }
            Step::Wait { until_ns } => now_ns = until_ns,
            Step::Done(result) => return *result,
            Step::Idle => panic!("an edit went missing"),
        }
    }
}

fn create(acceptor: &EtcdAcceptor, proposer: &mut Proposer) -> Committed {
    let holder = Holder { id: [1; 16], name: "host 1".to_owned() };
    let superblock = SuperblockRef::default();
    let edit = Edit::Create { holder, lease_ns: 1_000, superblock, acceptors: vec![0] };
    run(acceptor, proposer, edit).unwrap()
}

fn take_over(number: u8, expected_version: u64) -> Edit {
    let holder = Holder { id: [number; 16], name: format!("host {number}") };
    Edit::TakeOver { expected_version, holder, lease_ns: 1_000 }
}

#[test]
fn a_register_lives_in_etcd() {
    let Some(cluster) = Cluster::start(1) else { return };
    let acceptor = cluster.acceptor();
    let mut holder = proposer(1);
    let created = create(&acceptor, &mut holder);
    assert_eq!(created.record.members.current, [[9; 32]]);
    let renewed = run(&acceptor, &mut holder, Edit::Renew { epoch: 1 }).unwrap();
    assert_eq!(renewed.record.version, 2);
    // Another process, with another idea of a fresh identity, meets the same acceptor.
    let other = cluster.acceptor();
    let taken = run(&other, &mut proposer(2), take_over(2, 2)).unwrap();
    assert_eq!((taken.record.epoch, taken.record.members), (2, created.record.members));
    let late = run(&acceptor, &mut holder, Edit::Renew { epoch: 1 });
    assert!(matches!(late, Err(ChangeError::Refused(Refusal::NotHolder(_)))), "{late:?}");
}

#[test]
fn of_openers_that_race_in_etcd_one_wins() {
    let Some(cluster) = Cluster::start(1) else { return };
    create(&cluster.acceptor(), &mut proposer(1));
    let results: Vec<_> = std::thread::scope(|scope| {
        let open = |number: u8| {
            let acceptor = cluster.acceptor();
            scope.spawn(move || run(&acceptor, &mut proposer(number), take_over(number, 1)))
        };
        let threads: Vec<_> = (2..8).map(open).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let won = results.iter().filter(|result| result.is_ok()).count();
    assert_eq!(won, 1, "{results:?}");
    for result in results.iter().filter_map(|result| result.as_ref().err()) {
        assert!(
            matches!(
                result,
                ChangeError::Refused(Refusal::Changed(_)) | ChangeError::Contended { .. }
            ),
            "{result}"
        );
    }
}

#[test]
fn one_member_of_three_may_die() {
    let Some(mut cluster) = Cluster::start(3) else { return };
    let acceptor = cluster.acceptor();
    let mut holder = proposer(1);
    create(&acceptor, &mut holder);
    let (dead, _) = &mut cluster.members[0];
    dead.kill().unwrap();
    dead.wait().unwrap();
    let mut last = None;
    // If the leader died, a new one must be found first.
    for _ in 0..100 {
        last = Some(run(&acceptor, &mut holder, Edit::Renew { epoch: 1 }));
        if matches!(&last, Some(Ok(_))) {
            break;
        }
        sleep(Duration::from_millis(100));
    }
    assert!(matches!(last, Some(Ok(_))), "{last:?}");
    drop(cluster);
    let gone = acceptor.handle(&REGISTER, &prepare());
    assert_eq!(gone, Err(NodeError::Unavailable));
}

#[test]
fn what_is_no_state_is_not_taken_for_one() {
    let Some(cluster) = Cluster::start(1) else { return };
    let (_, url) = &cluster.members[0];
    let body = r#"{"key":"L2h5cGhhL3JlZ2lzdGVyLzA3MDcwNzA3MDcwNzA3MDcwNzA3MDcwNzA3MDcwNzA3","value":"AAAA"}"#;
    ureq::post(&format!("{url}/v3/kv/put")).send(body).unwrap();
    assert_eq!(cluster.acceptor().handle(&REGISTER, &prepare()), Err(NodeError::Corrupt));
}
