//! A node's router: neighbours, liveness, announcements and loop-free routes, without I/O.
#![forbid(unsafe_code)]
