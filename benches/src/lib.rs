//! Measurements against the limits that docs/performance.md states.
#![forbid(unsafe_code)]
