//! How fast the data path's pieces are together: `cargo run --release -p mesh-node --example
//! data_path` (as root; needs `ip` and `iperf3`).
//!
//! Two network namespaces with a veth between them; in each a process with one thread: TUN →
//! segment → AES-256-GCM → UDP_SEGMENT, and back. No routing, no firewall, fixed keys: an upper bound
//! for the daemon, which uses the same pieces. Printed are the rate that iperf3's receiver saw and
//! the CPU time (user + system) of both processes per GB.
//!
//! `data_path both SECONDS [-P N]`: what iperf3 gets is passed on; `data_path forward …` is one of the
//! two processes.

mod bench;
mod forward;
mod seal;

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["forward", side] => forward::run(side.parse()?),
        rest => bench::run(rest),
    }
}
