//! What lies outside the mesh: NAT64, DNS64, IPv4 for guests, and names.
#![forbid(unsafe_code)]
