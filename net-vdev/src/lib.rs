//! A virtio network card that is a member of an end-to-end encrypted mesh
#![forbid(unsafe_code)]
