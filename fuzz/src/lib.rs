//! Fuzz targets: each check is a function here, run by cargo-fuzz and by the tests
#![forbid(unsafe_code)]
