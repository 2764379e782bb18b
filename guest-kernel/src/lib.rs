//! The unikernel library: a whole guest in ring 3
#![forbid(unsafe_code)]
