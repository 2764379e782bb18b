//! A virtio disk whose blocks are encrypted and erasure-coded over many stores
#![forbid(unsafe_code)]
