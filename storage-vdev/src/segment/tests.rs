//! Tests: see each module.

mod format;
