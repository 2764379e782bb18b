//! The command `hypha`.
fn main() {}
