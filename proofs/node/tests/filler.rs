//! Filler on a real disk: killed while it is made, damaged, given up.
#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use hypha_chain::{Address, B256};
use hypha_proofs::binding::Binding;
use hypha_proofs::label::{FILLER_LAYERS, fill};
use proof_node::filler::plotter::{Event, Pace, Plotter, sample};
use proof_node::filler::shelf::{Rotten, ShelfError};
use proof_node::filler::{Filler, FillerError, Place};

const EXTENT: u64 = 256 * 1024;
const FOLDER: &str = "HYPHA_TEST_FILLER";
const PACE: Pace = Pace { threads: 2, compare_ns: u64::MAX };

type Opened = (Filler, Vec<(std::path::PathBuf, Rotten)>);

fn open(folder: &Path) -> Result<Opened, FillerError> {
    let address = Address::repeat_byte(7);
    let binding =
        Binding { chain_id: 1, registry: address, capacity: address, disputes: address, node: 3 };
    let places =
        vec![Place { folder: folder.to_owned(), bytes_max: u64::MAX / 4, keep_free: 1 << 20 }];
    Filler::open(places, (&binding, &B256::repeat_byte(9)), EXTENT, || 77)
}

/// Not a test of its own: what the next one kills.
#[test]
#[ignore = "it runs until it is killed"]
fn plots_until_it_is_killed() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let (filler, _) = open(Path::new(&folder)).unwrap();
    let plotter = Plotter::start(filler, PACE, |_| {}).unwrap();
    // Up and down, so that it is killed while it removes, too.
    for round in 0.. {
        plotter.want(if round % 2 == 0 { 40 * EXTENT } else { 10 * EXTENT }, &|_| {});
        thread::sleep(Duration::from_millis(120));
    }
}

#[test]
fn whatever_a_kill_interrupts_whole_extents_are_left() {
    let folder = tempfile::tempdir().unwrap();
    let shelf = folder.path().join("filler");
    let seed = fastrand::u64(..);
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut most = 0;
    for round in 0..12 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["plots_until_it_is_killed", "--exact", "--ignored"])
            .env(FOLDER, &shelf)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        thread::sleep(Duration::from_millis(rng.u64(100..900)));
        child.kill().unwrap();
        child.wait().unwrap();
        let (filler, rotten) = open(&shelf).unwrap();
        assert!(rotten.is_empty(), "seed {seed}, round {round}: {rotten:?}");
        let slots: Vec<_> = filler.slots().collect();
        most = most.max(slots.len());
        assert!(filler.bytes_len() <= 40 * EXTENT, "seed {seed}, round {round}");
        for (slot, kept) in &slots {
            let files = filler.files(*slot).unwrap();
            let whole = files.is_whole(slot.1, kept, None).unwrap();
            assert!(whole, "seed {seed}, round {round}, {slot:?}");
        }
        let left = fs::read_dir(&shelf).unwrap();
        let left =
            left.filter(|it| it.as_ref().unwrap().path().extension() == Some("part".as_ref()));
        assert_eq!(left.count(), 0, "seed {seed}, round {round}");
    }
    assert!(most > 3, "seed {seed}: no process got as far as {most} extents");
    let (filler, _) = open(&shelf).unwrap();
    let (slot, _) = filler.slots().next().unwrap();
    let files = filler.files(slot).unwrap();
    let labels = fill(files.context(slot.1), FILLER_LAYERS, EXTENT / 32).unwrap();
    assert_eq!(files.read(slot.1, 0..EXTENT).unwrap(), labels);
}

/// Makes so many extents, and stops.
fn plot(folder: &Path, count: u64) {
    let (filler, _) = open(folder).unwrap();
    let (tell, events) = mpsc::channel();
    let tell = move |event| _ = tell.send(event);
    let plotter = Plotter::start(filler, PACE, tell.clone()).unwrap();
    plotter.want(count * EXTENT, &tell);
    while plotter.progress().kept < count * EXTENT {
        assert!(matches!(events.recv().unwrap(), Event::Grown));
    }
    assert!(plotter.progress().made >= count * EXTENT);
}

#[test]
fn what_is_not_wanted_any_more_is_gone_when_that_is_said() {
    let folder = tempfile::tempdir().unwrap();
    plot(folder.path(), 3);
    let (filler, _) = open(folder.path()).unwrap();
    let (tell, events) = mpsc::channel();
    let tell = move |event| _ = tell.send(event);
    let plotter = Plotter::start(filler, PACE, tell.clone()).unwrap();
    plotter.want(EXTENT + 5, &tell);
    assert!(matches!(events.recv().unwrap(), Event::Shrunk));
    assert_eq!(plotter.filler().listed().len(), 1);
    let left = fs::read_dir(folder.path()).unwrap();
    // The device's number, an extent and its hashes.
    assert_eq!(left.count(), 3);
}

#[test]
fn damage_is_found_and_made_good() {
    let folder = tempfile::tempdir().unwrap();
    plot(folder.path(), 4);
    let at = |name: &str| folder.path().join(name);
    let flip = |name: &str, place: usize| {
        let mut bytes = fs::read(at(name)).unwrap();
        bytes[place] ^= 1;
        fs::write(at(name), bytes).unwrap();
    };
    flip("0000000000.tree", 70);
    fs::OpenOptions::new().write(true).open(at("0000000001")).unwrap().set_len(EXTENT - 1).unwrap();
    // Each of the four groups of the third is damaged, so that any sample finds it.
    for group in 0..4 {
        flip("0000000002", group * 65_536 + 9);
    }
    let (mut filler, rotten) = open(folder.path()).unwrap();
    assert_eq!(rotten.iter().map(|(_, it)| it.number).collect::<Vec<_>>(), [0, 1]);
    assert_eq!(sample(&mut filler).unwrap(), [at("0000000002")]);
    assert_eq!(filler.listed().len(), 1);
    drop(filler);
    plot(folder.path(), 4);
    assert_eq!(open(folder.path()).unwrap().0.listed().len(), 4);
}

#[test]
fn one_changed_bit_anywhere_is_found_by_comparing_all() {
    let folder = tempfile::tempdir().unwrap();
    plot(folder.path(), 1);
    let seed = fastrand::u64(..);
    let path = folder.path().join("0000000000");
    let mut bytes = fs::read(&path).unwrap();
    bytes[fastrand::Rng::with_seed(seed).usize(..EXTENT as usize)] ^= 4;
    fs::write(&path, bytes).unwrap();
    let (filler, _) = open(folder.path()).unwrap();
    let (tell, events) = mpsc::channel();
    let tell = move |event| _ = tell.send(event);
    let _plotter = Plotter::start(filler, Pace { threads: 1, compare_ns: 1 }, tell).unwrap();
    let first = events.recv().unwrap();
    assert!(matches!(&first, Event::Rotten { path: found } if *found == path), "seed {seed}");
    assert!(matches!(events.recv().unwrap(), Event::Shrunk), "seed {seed}");
    // What is wanted is as much as before: it is made again.
    assert!(matches!(events.recv().unwrap(), Event::Grown), "seed {seed}");
}

#[test]
fn a_folder_is_used_by_one_process_and_says_which_device_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let first = open(folder.path()).unwrap();
    let busy = open(folder.path()).unwrap_err();
    assert!(matches!(busy, FillerError::Shelf(ShelfError::Busy(_))), "{busy}");
    drop(first);
    for text in ["", "hypha filler 1\n", "hypha filler 2\n77\n", "hypha filler 1\n-1\n"] {
        fs::write(folder.path().join("device"), text).unwrap();
        let error = open(folder.path()).unwrap_err();
        assert!(matches!(error, FillerError::Shelf(ShelfError::Device(_))), "{text:?}: {error}");
    }
}
