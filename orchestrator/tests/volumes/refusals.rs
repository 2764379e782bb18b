//! What is wrong is said in one line, with exit code 2, and nothing is changed by it.

use std::fs;

use crate::place::{Place, directories, stderr};

/// Runs a command that must be refused: its one line.
fn refused(place: &Place, line: &str) -> String {
    let before = place.listing();
    let output = place.hypha(line);
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "hypha {line}: {text}");
    assert_eq!(place.listing(), before, "hypha {line} changed something");
    text
}

fn one_line(place: &Place, line: &str, wanted: &[&str]) {
    let text = refused(place, line);
    assert_eq!(text.lines().count(), 1, "hypha {line}: {text}");
    for part in wanted {
        assert!(text.contains(part), "hypha {line}: {part:?} is not in {text:?}");
    }
}

#[test]
fn a_volume_that_can_not_be_is_not_made() {
    let place = Place::new();
    let two = directories(&place.path("disks"), 2);
    let create = "volume create db --size 64MiB";
    one_line(&place, &format!("{create} --nodes {two}"), &["2 nodes", "at least 6"]);
    one_line(&place, &format!("{create} --code 0+2"), &["0+2"]);
    one_line(&place, &format!("{create} --code 30+3"), &["30+3", "32"]);
    one_line(&place, "volume create db --size 10000", &["10000 bytes", "multiple of 4096"]);
    one_line(&place, "volume create db --size 0", &["multiple of 4096"]);
    let twice = format!("{0} {0} {1}", place.path("a").display(), place.path("b").display());
    one_line(&place, &format!("{create} --code 2+1 --nodes {twice}"), &["same"]);
    let strict = format!("{create} --code 1+1 --strict-domains --nodes {two}");
    one_line(&place, &strict, &["failure domain", "--strict-domains"]);
    let named = two.replace(' ', ",domain=rack1 ") + ",domain=rack1";
    let strict = format!("{create} --code 1+1 --strict-domains --nodes {named}");
    one_line(&place, &strict, &["rack1"]);
    assert!(!place.path("disks").exists() && !place.path("state").exists());
}

#[test]
fn two_stores_on_one_disk_are_warned_of() {
    let place = Place::new();
    let two = directories(&place.path("disks"), 2);
    let output = place.hypha(&format!("volume create db --size 64MiB --code 1+1 --nodes {two}"));
    assert_eq!(output.status.code(), Some(0));
    assert!(stderr(&output).contains("share a failure domain"), "{}", stderr(&output));
    assert!(!stderr(&output).contains('\x1b'), "no colours into a pipe");
}

#[test]
fn what_is_there_is_not_made_again() {
    let place = Place::new();
    let nodes = directories(&place.path("disks"), 3);
    let create = format!("volume create db --size 64MiB --code 2+1 --nodes {nodes}");
    place.done(&create);
    one_line(&place, &create, &["exists already"]);
    one_line(&place, "volume clone db db", &["exists already"]);
    one_line(&place, "volume clone db new --snapshot none", &["no such snapshot"]);
    one_line(&place, "volume grow db 1MiB", &["db"]);
    one_line(&place, "volume grow db 100000001", &["4096"]);
}

#[test]
fn a_wrong_key_opens_nothing() {
    let place = Place::new();
    place.done("volume create db --size 64MiB --code 2+1");
    let key = place.path("state/volumes/db/key");
    let right = fs::read(&key).unwrap();
    fs::write(&key, [0x5a; 32]).unwrap();
    let text = refused(&place, "volume status db");
    assert!(text.contains("volume db: the volume key is wrong"), "{text}");
    fs::write(&key, right).unwrap();
    place.done("volume status db");
}

#[test]
fn a_manifest_of_another_version_or_policy_is_not_guessed_at() {
    let place = Place::new();
    place.done("volume create db --size 64MiB --code 2+1");
    let path = place.path("state/volumes/db/volume.json");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("\"version\": 1", "\"version\": 9")).unwrap();
    one_line(&place, "volume status db", &["version 9", "reads version 1"]);
    fs::write(&path, text.replace("\"quorum\"", "\"majority\"")).unwrap();
    one_line(&place, "volume status db", &["majority", "quorum"]);
}

#[test]
fn a_volume_in_use_names_its_holder_and_epoch() {
    let place = Place::new();
    place.done("volume create db --size 64MiB --code 2+1");
    let serving = place.serve("db", "");
    let (_, status) = place.status("db");
    let holder = format!("process {}", serving.id());
    let epoch = format!("epoch {}", status["epoch"]);
    for verb in ["rm db --yes", "serve db --nbd unix:/nowhere/socket"] {
        one_line(&place, &format!("volume {verb}"), &["in use", &holder, &epoch]);
    }
    serving.stop();
}
