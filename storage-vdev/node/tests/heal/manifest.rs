//! The file that a daemon keeps of a volume.

use storage_node::heal::{Manifest, ManifestError};

use crate::world::World;

fn text() -> String {
    World::new((2, 1), 1, 1).manifest().to_text().unwrap()
}

#[test]
fn a_manifest_is_read_as_it_was_written() {
    let manifest = World::new((4, 2), 1, 2).manifest();
    assert_eq!(Manifest::parse(manifest.to_text().unwrap().as_bytes()).unwrap(), manifest);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("volume.json");
    manifest.save(&path).unwrap();
    manifest.save(&path).unwrap();
    assert_eq!(Manifest::load(&path).unwrap(), manifest);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn a_manifest_of_another_version_is_refused_by_its_number() {
    let error = Manifest::parse(text().replace("\"version\": 1", "\"version\": 2").as_bytes());
    assert!(matches!(error, Err(ManifestError::Version { found: 2 })));
}

#[test]
fn a_manifest_that_contradicts_itself_is_refused() {
    let refused = |from: &str, to: &str| {
        let changed = text().replace(from, to);
        assert_ne!(changed, text(), "{from}");
        assert!(Manifest::parse(changed.as_bytes()).is_err(), "{from} -> {to}");
    };
    refused("\"data_shards\": 2", "\"data_shards\": 0");
    refused("\"data_shards\": 2", "\"data_shards\": 3");
    refused("\"parity_shards\": 1", "\"parity_shards\": 99");
    refused("07070707", "0707070");
    refused("07070707", "0707070x");
    refused("010203", "01020");
    refused("\"delegation\"", "\"delegations\"");
    refused("\"address\"", "\"adress\"");
    refused("    2\n", "    9\n");
}

#[test]
fn no_prefix_of_a_manifest_is_one() {
    let text = text();
    for len in 0..text.len() {
        assert!(Manifest::parse(&text.as_bytes()[..len]).is_err(), "{len} bytes");
    }
}
