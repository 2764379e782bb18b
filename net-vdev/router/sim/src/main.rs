//! `mesh-sim FOLDER`: writes `mesh-convergence.svg` and `mesh-convergence.md` into a folder.
#![forbid(unsafe_code)]

use std::path::PathBuf;

use mesh_sim::convergence::{measure, plot, table};

/// Failures of each kind, and the seed of the worlds.
const COUNT: usize = 500;
const SEED: u64 = 20_261_120;

fn main() -> std::io::Result<()> {
    let Some(folder) = std::env::args_os().nth(1).map(PathBuf::from) else {
        println!("usage: mesh-sim FOLDER");
        return Ok(());
    };
    let outages = measure(SEED, COUNT);
    let table = table(&outages);
    print!("{table}");
    let text = format!(
        "# How long packets are lost\n\nWritten by `cargo run --release -p mesh-sim -- docs` (seed \
         {SEED}); [mesh](mesh.md#routing-and-its-simulation) says what was measured.\n\n{table}"
    );
    std::fs::write(folder.join("mesh-convergence.md"), text)?;
    std::fs::write(folder.join("mesh-convergence.svg"), plot(&outages))
}
