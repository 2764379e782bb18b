//! Journal heads: appends, trims, rings that wrap and grow.

use storage_vdev::files::sim::{Rng, SimDisk, Which};
use storage_vdev::node::{NodeError, Request, Response};

use super::harness::{
    JOURNAL, VOLUME, append, ask, bytes, journal_open, journal_read, journal_state, open,
};

fn trim(start: u64) -> Request {
    Request::JournalTrim { volume: VOLUME, epoch: u64::MAX, start }
}

#[test]
fn appends_follow_each_other_and_only_at_the_end() {
    let (mut node, _) = open(&SimDisk::new(1)).unwrap();
    assert_eq!(journal_state(&mut node), Err(NodeError::NotFound));
    assert_eq!(ask(&mut node, append(0, b"early")), Err(NodeError::NotFound));
    let new = Response::Journal { start: 0, end: 0, epoch: 0 };
    assert_eq!(ask(&mut node, journal_open(JOURNAL)), Ok(new));
    assert_eq!(ask(&mut node, append(0, b"first")), Ok(Response::Done));
    assert_eq!(ask(&mut node, append(0, b"again")), Err(NodeError::Conflict { end: 5 }));
    assert_eq!(ask(&mut node, append(9, b"a hole")), Err(NodeError::Conflict { end: 5 }));
    assert_eq!(ask(&mut node, append(5, b"second")), Ok(Response::Done));
    let opened = Response::Journal { start: 0, end: 11, epoch: u64::MAX };
    assert_eq!(ask(&mut node, journal_open(JOURNAL)), Ok(opened));
    assert_eq!(journal_read(&mut node, 3, 4).unwrap(), &b"stse"[..]);
    assert_eq!(journal_read(&mut node, 6, 1000).unwrap(), &b"econd"[..]);
    assert_eq!(journal_read(&mut node, 11, 1).unwrap(), &b""[..]);
    assert_eq!(journal_read(&mut node, 12, 1), Err(NodeError::Range));
}

#[test]
fn a_ring_goes_round_many_times_and_is_never_overfilled() {
    let disk = SimDisk::new(1);
    let (mut node, _) = open(&disk).unwrap();
    ask(&mut node, journal_open(JOURNAL)).unwrap();
    let mut rng = Rng::new(1);
    let (mut start, mut content) = (0_u64, Vec::new());
    let mut refused = 0;
    for round in 0..400 {
        let piece = bytes(round, 1 + rng.below(20_000) as usize);
        match ask(&mut node, append(content.len() as u64, &piece)) {
            Ok(_) => content.extend(piece),
            Err(NodeError::NoSpace) => {
                assert!(content.len() as u64 - start + piece.len() as u64 > JOURNAL);
                refused += 1;
                start = content.len() as u64 - rng.below(content.len() as u64 - start + 1);
                assert_eq!(ask(&mut node, trim(start)), Ok(Response::Done));
            }
            Err(error) => panic!("{error}"),
        }
        if round % 50 == 0 {
            disk.crash(&mut rng);
            node = open(&disk).unwrap().0;
        }
        let (found, end) = journal_state(&mut node).unwrap();
        assert!(found <= start, "a trim is never overdone");
        assert_eq!(end, content.len() as u64);
        let live = journal_read(&mut node, found, u32::MAX).unwrap();
        assert_eq!(live, content[found as usize..]);
        start = found;
    }
    assert!(refused > 20 && content.len() as u64 > 20 * JOURNAL);
}

#[test]
fn a_trim_behind_the_end_empties_the_journal_for_good() {
    let disk = SimDisk::new(1);
    let (mut node, _) = open(&disk).unwrap();
    ask(&mut node, journal_open(JOURNAL)).unwrap();
    ask(&mut node, append(0, &bytes(1, 1000))).unwrap();
    assert_eq!(ask(&mut node, trim(1 << 40)), Ok(Response::Done));
    disk.crash(&mut Rng::new(0));
    let (mut node, _) = open(&disk).unwrap();
    assert_eq!(journal_state(&mut node), Ok((1 << 40, 1 << 40)));
    assert_eq!(journal_read(&mut node, 0, 10), Err(NodeError::Range));
    ask(&mut node, append(1 << 40, b"on")).unwrap();
    assert_eq!(journal_read(&mut node, 1 << 40, 10).unwrap(), &b"on"[..]);
    let end = u64::MAX - 1;
    ask(&mut node, trim(end)).unwrap();
    assert_eq!(ask(&mut node, append(end, b"too far")), Err(NodeError::Range));
}

#[test]
fn a_larger_ring_takes_over_what_the_smaller_one_held() {
    let disk = SimDisk::new(1);
    let (mut node, _) = open(&disk).unwrap();
    ask(&mut node, journal_open(JOURNAL)).unwrap();
    let content = bytes(1, 60_000);
    ask(&mut node, append(0, &content)).unwrap();
    ask(&mut node, trim(10_000)).unwrap();
    let more = bytes(2, 12_000);
    ask(&mut node, append(60_000, &more)).unwrap();
    let open_all = journal_open(8 * JOURNAL);
    let grown = Response::Journal { start: 10_000, end: 72_000, epoch: u64::MAX };
    assert_eq!(ask(&mut node, open_all), Ok(grown));
    // Another volume may now lie where the small ring was.
    let other = Request::JournalOpen { volume: [1; 16], epoch: 1, capacity: JOURNAL };
    ask(&mut node, other).unwrap();
    ask(&mut node, append(72_000, &bytes(3, 100_000))).unwrap();
    disk.crash(&mut Rng::new(1));
    let (mut node, _) = open(&disk).unwrap();
    let expected = [&content[10_000..], &more, &bytes(3, 100_000)].concat();
    assert_eq!(journal_read(&mut node, 10_000, u32::MAX).unwrap(), expected);
    assert_eq!(ask(&mut node, journal_open(2 << 30)), Err(NodeError::Unsupported));
}

#[test]
fn the_journals_of_two_volumes_share_a_sync_and_nothing_else() {
    let disk = SimDisk::new(1);
    let (mut node, _) = open(&disk).unwrap();
    let all = storage_vdev::service::Grants::all();
    let volumes = [[1; 16], [2; 16], [3; 16]];
    for volume in volumes {
        ask(&mut node, Request::JournalOpen { volume, epoch: 1, capacity: JOURNAL }).unwrap();
    }
    let before = disk.operations();
    for volume in volumes {
        let parts = vec![bytes(u64::from(volume[0]), 5000).into()];
        node.handle(&all, Request::JournalAppend { volume, epoch: 1, position: 0, parts });
    }
    let answers = node.sync();
    assert!(answers.len() == 3 && answers.iter().all(|(_, answer)| answer.is_ok()));
    assert_eq!(disk.operations() - before, 7, "two writes for each and one sync");
    disk.crash(&mut Rng::new(3));
    let (mut node, _) = open(&disk).unwrap();
    for volume in volumes {
        let found = ask(&mut node, Request::JournalRead { volume, position: 0, len: u32::MAX });
        assert_eq!(found, Ok(Response::Bytes(bytes(u64::from(volume[0]), 5000).into())));
    }
}

#[test]
fn more_appends_than_a_table_holds_may_wait_for_one_sync() {
    let disk = SimDisk::new(1);
    let (mut node, _) = open(&disk).unwrap();
    ask(&mut node, journal_open(JOURNAL)).unwrap();
    let all = storage_vdev::service::Grants::all();
    for position in 0..100 {
        node.handle(&all, append(position, &[position as u8]));
    }
    assert_eq!(node.sync().iter().filter(|(_, answer)| answer.is_ok()).count(), 100);
    disk.crash(&mut Rng::new(3));
    let (mut node, _) = open(&disk).unwrap();
    assert_eq!(journal_read(&mut node, 0, 200).unwrap(), (0..100).collect::<Vec<u8>>());
}

#[test]
fn a_journal_without_any_entry_is_damaged_and_never_empty() {
    let disk = SimDisk::new(1);
    let (mut node, _) = open(&disk).unwrap();
    ask(&mut node, journal_open(JOURNAL)).unwrap();
    ask(&mut node, append(0, b"precious")).unwrap();
    disk.set_bytes(Which::Journal, 4096, &[0; 32 * 4096]);
    let (mut node, _) = open(&disk).unwrap();
    assert_eq!(journal_state(&mut node), Err(NodeError::Corrupt));
    assert_eq!(ask(&mut node, append(0, b"x")), Err(NodeError::Corrupt));
}

#[test]
fn a_ring_whose_table_has_rotted_is_made_anew_when_it_is_opened_and_not_before() {
    let disk = SimDisk::new(1);
    let (mut node, _) = open(&disk).unwrap();
    ask(&mut node, journal_open(JOURNAL)).unwrap();
    ask(&mut node, append(0, &bytes(1, 1000))).unwrap();
    drop(node);
    let len = usize::try_from(disk.len(Which::Journal)).unwrap();
    disk.set_bytes(Which::Journal, 4096, &vec![0x5a; len - 4096]);
    let (mut node, _) = open(&disk).unwrap();
    // Who reads is told that something is lost, as often as it asks.
    for _ in 0..2 {
        assert_eq!(journal_state(&mut node), Err(NodeError::Corrupt));
        assert_eq!(journal_read(&mut node, 0, 10), Err(NodeError::Corrupt));
        assert_eq!(ask(&mut node, append(1000, b"on")), Err(NodeError::Corrupt));
    }
    let new = Response::Journal { start: 0, end: 0, epoch: 0 };
    assert_eq!(ask(&mut node, journal_open(JOURNAL)), Ok(new));
    ask(&mut node, append(0, b"again")).unwrap();
    drop(node);
    disk.crash(&mut Rng::new(3));
    let (mut node, _) = open(&disk).unwrap();
    assert_eq!(journal_state(&mut node), Ok((0, 5)));
    assert_eq!(journal_read(&mut node, 0, 10).unwrap(), &b"again"[..]);
}

#[test]
fn a_journal_that_is_given_up_leaves_its_room_to_the_next_volume() {
    let disk = SimDisk::new(1);
    let (mut node, _) = open(&disk).unwrap();
    let open_for = |volume: u8, capacity| Request::JournalOpen {
        volume: [volume; 16],
        epoch: u64::MAX,
        capacity,
    };
    ask(&mut node, open_for(1, JOURNAL)).unwrap();
    ask(&mut node, open_for(2, JOURNAL)).unwrap();
    let len = disk.len(Which::Journal);
    let gone = Response::Journal { start: 0, end: 0, epoch: 0 };
    for _ in 0..2 {
        assert_eq!(ask(&mut node, open_for(1, 0)), Ok(gone.clone()));
    }
    let state = Request::JournalState { volume: [1; 16] };
    assert_eq!(ask(&mut node, state.clone()), Err(NodeError::NotFound));
    disk.crash(&mut Rng::new(1));
    let (mut node, _) = open(&disk).unwrap();
    assert_eq!(ask(&mut node, state), Err(NodeError::NotFound));
    for volume in 3..20 {
        ask(&mut node, open_for(volume, JOURNAL)).unwrap();
        assert_eq!(ask(&mut node, open_for(volume, 0)), Ok(gone.clone()));
    }
    assert_eq!(disk.len(Which::Journal), len, "no room is taken twice");
    let other = Request::JournalState { volume: [2; 16] };
    assert_eq!(ask(&mut node, other), Ok(gone));
}
