//! The spec parser against any file at all.
//!
//! Whatever is wrong must be told with a place that lies inside the text, and a spec that parses
//! must parse to the same thing again.

use spec::deployment;

/// Parses a spec. True for one that is right.
///
/// # Panics
/// A promise is broken.
pub fn check(data: &[u8]) -> bool {
    let lines = data.split(|byte| *byte == b'\n').count();
    match deployment::parse_bytes(data) {
        Ok(parsed) => {
            assert_eq!(deployment::parse_bytes(data), Ok(parsed));
            true
        }
        Err(problems) => {
            assert!(!problems.list().is_empty());
            for problem in problems.list() {
                assert!((1..=lines).contains(&problem.line), "{problem:?} in {lines} lines");
                assert!((1..=data.len() + 1).contains(&problem.column), "{problem:?}");
            }
            assert!(problems.render("spec.json").starts_with("spec.json:"));
            false
        }
    }
}
