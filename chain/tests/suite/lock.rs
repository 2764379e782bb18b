//! The bytecode is of these sources: `contracts/LOCK`, without a compiler.

use std::path::Path;

use ring::digest::{SHA256, digest};

#[test]
fn sources_settings_and_bytecode_are_the_locked_ones() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("contracts");
    let lock = std::fs::read_to_string(folder.join("LOCK")).unwrap();
    let mut locked = Vec::new();
    for line in lock.lines().filter(|line| !line.starts_with('#')) {
        let (sum, file) = line.split_once("  ").unwrap();
        let bytes = std::fs::read(folder.join(file)).unwrap();
        let found = alloy_primitives::hex::encode(digest(&SHA256, &bytes));
        assert_eq!(found, sum, "{file} has changed: run `cargo xtask contracts --write`");
        locked.push(file.to_owned());
    }
    for part in ["src", "test", "out"] {
        for entry in std::fs::read_dir(folder.join(part)).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            assert!(locked.contains(&format!("{part}/{name}")), "{part}/{name} is not in LOCK");
        }
    }
}
