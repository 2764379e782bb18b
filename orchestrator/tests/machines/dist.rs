//! What real guests need, for all tests that run some.

use std::fs;
use std::path::PathBuf;

/// The folder with `vmm` and `images/`, if guests can run here; otherwise says loudly why not.
pub(crate) fn dist() -> Option<PathBuf> {
    let required = std::env::var_os("HYPHA_REQUIRE_KVM").is_some_and(|value| value == "1");
    let kvm = fs::File::options().read(true).write(true).open("/dev/kvm");
    let refusal = match (kvm, std::env::var_os("HYPHA_DIST")) {
        (Ok(_), Some(dist)) => return Some(dist.into()),
        (Err(error), _) => format!("/dev/kvm: {error}"),
        (_, None) => "HYPHA_DIST is not set; `cargo xtask test` sets it".to_owned(),
    };
    assert!(!required, "{refusal}");
    println!("SKIPPED: {refusal}");
    None
}
