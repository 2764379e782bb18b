//! A clone and its base, in the same directories, by processes of their own.

use crate::place::{Place, content, stderr};

const MIB: usize = 1 << 20;

#[test]
fn a_clone_and_its_base_are_open_at_once_and_apart() {
    let place = Place::new();
    place.done("volume create db --size 64MiB --code 2+1");
    let base = place.serve("db", "");
    let old = content(1, 4 * MIB);
    base.client().keep(0, &old);
    base.stop();
    place.done("volume clone db staging");
    let clone = place.serve("staging", "");
    let base = place.serve("db", "");
    let new = content(2, MIB);
    base.client().keep(0, &new);
    assert_eq!(clone.client().read(0, 4 * MIB), old, "the clone is what the base was");
    let other = content(3, MIB);
    clone.client().keep(MIB as u64, &other);
    assert_eq!(base.client().read(MIB as u64, MIB), old[MIB..2 * MIB]);
    // Whoever has the directories may go: the other one takes them over.
    clone.stop();
    assert_eq!(base.client().read(0, MIB), new);
    base.client().keep(2 * MIB as u64, &other);
    let clone = place.serve("staging", "");
    assert_eq!(clone.client().read(MIB as u64, MIB), other);
    base.kill();
    assert_eq!(clone.client().read(0, MIB), old[..MIB]);
    clone.client().keep(3 * MIB as u64, &new);
    let base = place.serve("db", "");
    assert_eq!(base.client().read(2 * MIB as u64, MIB), other);
    base.stop();
    clone.stop();
}

#[test]
fn a_volume_in_shared_directories_still_has_one_user() {
    let place = Place::new();
    place.done("volume create db --size 64MiB --code 2+1");
    place.done("volume clone db staging");
    let clone = place.serve("staging", "");
    // Another state with the same volume: its own lock is free, that of the directories isn't.
    let key = place.path("state/volumes/staging/key");
    let nodes = (0..3).map(|n| place.path(&format!("state/volumes/db/shard-{n}")));
    let nodes: Vec<String> = nodes.map(|path| path.display().to_string()).collect();
    let manifest = std::fs::read_to_string(place.path("state/volumes/staging/volume.json"));
    let manifest: serde_json::Value = serde_json::from_str(&manifest.unwrap()).unwrap();
    let line = format!(
        "volume recover thief --state {} --uuid {} --key {} --nodes {}",
        place.path("other").display(),
        manifest["uuid"].as_str().unwrap(),
        key.display(),
        nodes.join(" ")
    );
    let refused = place.hypha(&line);
    assert_eq!(refused.status.code(), Some(2), "{}", stderr(&refused));
    assert!(stderr(&refused).contains("in use"), "{}", stderr(&refused));
    clone.stop();
}

#[test]
fn a_base_outlives_its_clones_and_is_free_of_them() {
    let place = Place::new();
    place.done("volume create db --size 64MiB --code 2+1");
    place.done("volume snapshot db golden");
    place.done("volume clone db one --snapshot golden");
    place.done("volume clone db two --snapshot golden");
    let pinned = place.hypha("volume snapshot db golden --delete");
    assert_eq!(pinned.status.code(), Some(4), "{}", stderr(&pinned));
    let refused = place.hypha("volume rm db --yes");
    assert_eq!(refused.status.code(), Some(2), "{}", stderr(&refused));
    assert!(stderr(&refused).contains("one is a clone"), "{}", stderr(&refused));
    place.done("volume rm one --yes");
    let pinned = place.hypha("volume snapshot db golden --delete");
    assert_eq!(pinned.status.code(), Some(4), "two is left: {}", stderr(&pinned));
    let base = place.serve("db", "");
    place.done("volume rm two --yes");
    place.done("volume snapshot db golden --delete");
    base.stop();
    place.done("volume rm db --yes");
}
