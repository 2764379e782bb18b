//! The command hypha: specs to running workloads
#![forbid(unsafe_code)]
