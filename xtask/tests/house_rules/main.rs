//! The house rules, as tests. Each failure says what to do instead; CONTRIBUTING.md says why.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a failed unwrap fails the test")]

mod dependencies;
mod documents;
mod files;
mod rust;
mod source;

/// Fails with one line for each broken rule.
#[track_caller]
fn assert_none(broken: &[String], instead: &str) {
    assert!(broken.is_empty(), "\n{}\nInstead: {instead}\n", broken.join("\n"));
}
