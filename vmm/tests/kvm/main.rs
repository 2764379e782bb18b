//! Real guests on real KVM. `cargo xtask svm` runs the same tests on an emulated SVM.
#![expect(clippy::expect_used, reason = "a test that lacks its tools fails")]

mod calls;
mod devices;
mod guest;
mod hostile;
mod pair;
mod servers;
mod support;
