//! The volume on real directories: locks, names, lost and foreign directories, and kill -9.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use storage_vdev::dir_nodes::{DirNodes, DirNodesError};
use storage_vdev::engine::{Command, Completion, Limits, NodeState, OpenError, Policy, Volume};
use storage_vdev::files::DirectoryError;
use storage_vdev::files::sim::Rng;
use storage_vdev::{DirectoriesError, Geometry, Options, VolumeKey, open_directories};
use tempfile::TempDir;

fn geometry() -> Geometry {
    Geometry::new(2, 1, 256 * 4096).unwrap().with_journal_bytes(256 << 10).unwrap()
}

fn options() -> Options {
    Options {
        geometry: geometry(),
        key: VolumeKey::new(&[7; 32]),
        create: true,
        policy: Policy::Quorum,
        limits: Limits::SMALL,
    }
}

fn directories(parent: &Path) -> Vec<PathBuf> {
    (0..3).map(|shard| parent.join(shard.to_string())).collect()
}

fn open_once(directories: &[PathBuf], salt: u8) -> Result<Volume<DirNodes>, DirectoriesError> {
    open_directories(directories, &options(), &[salt; 32], 0)
}

/// As [`open_once`], but waits for a lock: the process that another test of this program starts has a
/// copy of every open file, and so of dropped locks, until it executes its own program.
fn open(directories: &[PathBuf], salt: u8) -> Result<Volume<DirNodes>, DirectoriesError> {
    for _ in 0..1000 {
        match open_once(directories, salt) {
            Err(error) if in_use(&error) => std::thread::sleep(Duration::from_millis(10)),
            opened => return opened,
        }
    }
    open_once(directories, salt)
}

fn in_use(error: &DirectoriesError) -> bool {
    matches!(error, DirectoriesError::Nodes(DirNodesError::Directory(DirectoryError::InUse { .. })))
}

/// Polls until request `id` is done; directories never keep anybody waiting.
fn finish(volume: &mut Volume<DirNodes>, id: u64) -> Completion {
    let mut now_ns = 0;
    for _ in 0..1000 {
        while let Some(done) = volume.poll(now_ns) {
            if done.id == id {
                return done;
            }
            done.result.unwrap();
        }
        now_ns = volume.deadline_ns().unwrap_or(now_ns);
    }
    panic!("request {id} never ends");
}

fn read(volume: &mut Volume<DirNodes>, offset: u64, len: usize) -> Vec<u8> {
    volume.submit_read(0, offset, vec![0; len]);
    let done = finish(volume, 0);
    done.result.unwrap();
    done.buffer
}

fn write(volume: &mut Volume<DirNodes>, offset: u64, data: &[u8]) {
    volume.submit_write(0, offset, data);
    volume.submit_flush(1);
    finish(volume, 1).result.unwrap();
}

fn repair(volume: &mut Volume<DirNodes>) {
    volume.submit_command(2, Command::Repair);
    finish(volume, 2).result.unwrap();
}

fn close(mut volume: Volume<DirNodes>) {
    volume.submit_close(3);
    finish(&mut volume, 3).result.unwrap();
}

#[test]
fn an_open_volume_is_refused_by_name_until_it_is_dropped() {
    let parent = TempDir::new().unwrap();
    let directories = directories(parent.path());
    let volume = open(&directories, 1).unwrap();
    let error = open_once(&directories, 2).err().unwrap();
    assert!(in_use(&error), "{error}");
    assert!(error.to_string().contains(&directories[0].display().to_string()), "{error}");
    drop(volume);
    open(&directories, 3).unwrap();
}

#[test]
fn the_same_directory_twice_is_refused_and_nothing_is_made() {
    let parent = TempDir::new().unwrap();
    let mut given = directories(parent.path());
    given[2] = parent.path().join("x/../0");
    fs::create_dir(parent.path().join("x")).unwrap();
    let error = open(&given, 1).err().unwrap();
    assert!(matches!(error, DirectoriesError::Nodes(DirNodesError::Same { .. })), "{error}");
    assert!(!parent.path().join("0").exists());
    fs::create_dir(parent.path().join("0")).unwrap();
    given[2] = parent.path().join("link");
    symlink(parent.path().join("0"), &given[2]).unwrap();
    let error = open(&given, 1).err().unwrap();
    assert!(matches!(error, DirectoriesError::Nodes(DirNodesError::Same { .. })), "{error}");
    assert_eq!(fs::read_dir(parent.path().join("0")).unwrap().count(), 0);
}

#[test]
fn a_lost_directory_is_made_again_and_rebuilt() {
    let parent = TempDir::new().unwrap();
    let directories = directories(parent.path());
    let mut volume = open(&directories, 1).unwrap();
    write(&mut volume, 8192, &[9; 65536]);
    close(volume);
    for (salt, lost) in [(2, 1), (3, 0), (4, 2)] {
        fs::remove_dir_all(&directories[lost]).unwrap();
        let mut volume = open(&directories, salt).unwrap();
        assert_eq!(volume.status().redundancy, Some(0));
        assert!(volume.status().nodes[lost].shards_missing > 0);
        assert_eq!(read(&mut volume, 8192, 65536), vec![9; 65536]);
        repair(&mut volume);
        assert_eq!(volume.status().redundancy, Some(1));
        close(volume);
    }
    fs::remove_dir_all(&directories[0]).unwrap();
    fs::remove_dir_all(&directories[1]).unwrap();
    let error = open(&directories, 5).err().unwrap();
    assert!(matches!(error, DirectoriesError::TooManyLost { .. }), "{error}");
    assert!(!directories[0].exists(), "a refused open makes nothing");
}

#[test]
fn a_directory_that_cannot_be_used_costs_redundancy_only() {
    let parent = TempDir::new().unwrap();
    let directories = directories(parent.path());
    let mut volume = open(&directories, 1).unwrap();
    write(&mut volume, 0, &[3; 4096]);
    drop(volume);
    fs::remove_dir_all(&directories[0]).unwrap();
    fs::write(&directories[0], "not a directory").unwrap();
    let mut volume = open(&directories, 2).unwrap();
    assert_eq!(read(&mut volume, 0, 4096), vec![3; 4096]);
    write(&mut volume, 4096, &[4; 4096]);
    repair(&mut volume);
    let status = volume.status();
    assert_eq!(status.redundancy, Some(0), "{status:?}");
    assert!(matches!(status.nodes[0].state, NodeState::Down(_)), "{status:?}");
    close(volume);
    fs::remove_file(&directories[0]).unwrap();
    let mut volume = open(&directories, 3).unwrap();
    repair(&mut volume);
    assert_eq!(volume.status().redundancy, Some(1));
    assert_eq!(read(&mut volume, 4096, 4096), vec![4; 4096]);
}

#[test]
fn a_directory_of_another_volume_is_refused_and_stays_as_it_is() {
    let parent = TempDir::new().unwrap();
    let one = directories(&parent.path().join("one"));
    let other = directories(&parent.path().join("other"));
    drop(open(&one, 1).unwrap());
    drop(open(&other, 2).unwrap());
    let foreign = fs::read(other[2].join("objects")).unwrap();
    let mut mixed = one.clone();
    mixed[2].clone_from(&other[2]);
    let error = open(&mixed, 3).err().unwrap();
    assert!(matches!(error, DirectoriesError::Foreign { .. }), "{error}");
    assert!(fs::read(other[2].join("objects")).unwrap() == foreign);
}

#[test]
fn the_wrong_key_is_told_and_changes_nothing() {
    let parent = TempDir::new().unwrap();
    let directories = directories(parent.path());
    drop(open(&directories, 1).unwrap());
    let before = fs::read(directories[0].join("objects")).unwrap();
    let wrong = Options { key: VolumeKey::new(&[8; 32]), ..options() };
    let error = open_directories(&directories, &wrong, &[2; 32], 0).err().unwrap();
    assert!(matches!(error, DirectoriesError::Open(OpenError::WrongKey)), "{error}");
    assert!(fs::read(directories[0].join("objects")).unwrap() == before);
}

#[test]
fn a_volume_of_the_first_form_is_refused_in_words() {
    let parent = TempDir::new().unwrap();
    let directories = directories(parent.path());
    fs::create_dir(&directories[1]).unwrap();
    fs::write(directories[1].join("shard"), [0; 4096]).unwrap();
    let error = open(&directories, 1).err().unwrap();
    assert!(error.to_string().contains("made by an earlier Hypha"), "{error}");
    assert!(!directories[0].exists(), "a refused open makes nothing");
}

/// Starts the stamping writer, kills it at a random moment, and returns the last promise it made.
fn kill_at_random(binary: &Path, parent: &Path, rng: &mut Rng, seed: u64) -> u64 {
    let mut child = std::process::Command::new(binary)
        .arg(parent)
        .arg(seed.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the stamp example starts");
    let out = BufReader::new(child.stdout.take().unwrap());
    let lines = 1 + rng.below(300);
    let pause = Duration::from_micros(rng.below(3000));
    let mut promised = 0;
    for (number, line) in out.lines().map_while(Result::ok).enumerate() {
        if let Some(stamp) = line.strip_prefix("flushed ") {
            promised = stamp.parse().unwrap();
        }
        if number as u64 == lines {
            std::thread::sleep(pause);
            child.kill().unwrap();
        }
    }
    child.wait().unwrap();
    promised
}

/// Cargo builds examples before it runs tests and puts them beside the tests' folder.
fn stamp_example() -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    tests.parent().unwrap().parent().unwrap().join("examples/stamp")
}

#[test]
fn a_killed_process_loses_no_flushed_write() {
    let binary = stamp_example();
    let parent = TempDir::new().unwrap();
    let directories = directories(parent.path());
    let kills = std::env::var("HYPHA_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(10);
    let mut rng = Rng::new(99);
    for kill in 0..kills {
        let promised = kill_at_random(&binary, parent.path(), &mut rng, kill);
        if kill % 3 == 1 {
            let lost = rng.below(3) as usize;
            fs::remove_dir_all(&directories[lost]).unwrap();
        }
        let mut volume = open(&directories, 100 + kill as u8).unwrap();
        let state = read(&mut volume, 0, 256 * 4096);
        for (number, block) in (0u64..).zip(state.chunks(4096)) {
            let stamp = u64::from_le_bytes(block[8..16].try_into().unwrap());
            let whole = [number.to_le_bytes(), stamp.to_le_bytes()].concat().repeat(256);
            let zero = stamp == 0 && block.iter().all(|byte| *byte == 0);
            assert!(zero || block == whole, "kill {kill}: block {number} is torn");
            // The newest promised stamp of this block, if it was ever written.
            let back = (promised + 256 - number) % 256;
            let due = promised.saturating_sub(back);
            assert!(stamp >= due, "kill {kill}: block {number} has {stamp}, {due} was flushed");
        }
        repair(&mut volume);
        assert_eq!(volume.status().redundancy, Some(1), "kill {kill}");
    }
}
