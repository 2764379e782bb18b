use rustix::net::socketpair;

use super::super::*;
use super::receive;

fn pair() -> (OwnedFd, OwnedFd) {
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap()
}

fn uplinks(folder: &tempfile::TempDir) -> Uplinks {
    Uplinks::open(&folder.path().join("uplink"), PublicKey([1; 32])).unwrap()
}

/// A card that proved to be this member's.
fn attach(uplinks: &mut Uplinks, name: Option<&str>, member: u8) -> u64 {
    let (_, socket) = pair();
    uplinks.add(0, socket, name.map(|name| name.parse().unwrap()));
    let (id, card) = uplinks.cards.last_key_value().unwrap();
    let id = *id;
    assert_eq!(card.member, None);
    uplinks.cards.get_mut(&id).unwrap().member = Some(PublicKey([member; 32]));
    uplinks.name_members();
    id
}

fn named(uplinks: &Uplinks) -> Vec<(&str, u8)> {
    uplinks.named().iter().map(|(name, key)| (name.as_str(), key.0[0])).collect()
}

#[test]
fn a_card_comes_with_the_name_of_its_machine() {
    let folder = tempfile::tempdir().unwrap();
    let mut uplinks = uplinks(&folder);
    let mut handover = Handover::new(folder.path().join("uplink"));
    let long = "m".repeat(HostName::BYTES_MAX);
    let cards = [None, Some("kv"), Some(long.as_str())];
    let cards = cards.map(|name| CardEnds::new(name.map(|name| name.parse().unwrap())).unwrap());
    assert!(handover.serve(0, cards.iter()));
    uplinks.accept();
    let client = *uplinks.clients.first_key_value().unwrap().0;
    uplinks.take_cards(0, client);
    let names = uplinks.cards.values().map(|card| card.name.map(|name| name.to_string()));
    assert_eq!(names.collect::<Vec<_>>(), [None, Some("kv".to_owned()), Some(long)]);
    assert_eq!(named(&uplinks), [], "nobody of them has proved anything yet");
}

#[test]
fn what_is_no_name_and_what_is_of_another_version_ends_the_connection() {
    let too_long = [&[2][..], &[b'm'; 64]].concat();
    let cases: [(&[u8], &str); 7] = [
        (&[1], "a message of another version"),
        (b"\x01kv", "a message of another version"),
        (b"\x02KV", "a name that is none"),
        (b"\x02k.v", "a name that is none"),
        (b"\x02-kv", "a name that is none"),
        (b"\x02\xff", "a name that is none"),
        (&too_long, "a name that is none"),
    ];
    for (message, reason) in cases {
        let (ours, theirs) = pair();
        send(&ours, message, SendFlags::empty()).unwrap();
        assert_eq!(receive(theirs.as_fd()).unwrap_err(), reason, "{message:?}");
    }
    let (ours, theirs) = pair();
    send(&ours, b"\x02kv", SendFlags::empty()).unwrap();
    assert_eq!(receive(theirs.as_fd()).unwrap_err(), "a message without a descriptor");
}

#[test]
fn of_two_machines_with_one_name_the_first_has_it_until_it_leaves() {
    let folder = tempfile::tempdir().unwrap();
    let mut uplinks = uplinks(&folder);
    let first = attach(&mut uplinks, Some("kv"), 1);
    attach(&mut uplinks, Some("kv"), 2);
    attach(&mut uplinks, None, 3);
    attach(&mut uplinks, Some("db"), 4);
    assert_eq!(named(&uplinks), [("db", 4), ("kv", 1)]);
    uplinks.cards.remove(&first);
    uplinks.name_members();
    assert_eq!(named(&uplinks), [("db", 4), ("kv", 2)]);
}
