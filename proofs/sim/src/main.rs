//! `proof-sim FOLDER`: writes `proofs-simulation.md` and `proofs-simulation.svg` into a folder.
#![forbid(unsafe_code)]

use std::path::PathBuf;

use proof_sim::report::{others, plot, rows, summary, table};
use proof_sim::study::{Scale, StudyError, run};

/// Decides everything.
const SEED: u64 = 20_261_121;

/// Why nothing was written.
#[derive(Debug, thiserror::Error)]
enum MainError {
    #[error(transparent)]
    Study(#[from] StudyError),
    #[error(transparent)]
    File(#[from] std::io::Error),
}

fn main() -> Result<(), MainError> {
    let Some(folder) = std::env::args_os().nth(1).map(PathBuf::from) else {
        println!("usage: proof-sim FOLDER [quick]");
        return Ok(());
    };
    let quick = std::env::args().nth(2).is_some_and(|it| it == "quick");
    let scale = if quick { Scale::QUICK } else { Scale::FULL };
    let study = run(&scale, SEED)?;
    let days = f64::from(scale.hours.1) / 24.0;
    let rows = rows(&study, days);
    let text = format!(
        "# Who earns what\n\nWritten by `cargo run --release -p proof-sim -- docs` (seed {SEED}); \
         [proofs](proofs.md#simulation) says what was simulated.\n\n{}\n{}\n{}",
        table(&rows),
        others(&study),
        summary(&study, days),
    );
    print!("{text}");
    std::fs::write(folder.join("proofs-simulation.md"), text)?;
    Ok(std::fs::write(folder.join("proofs-simulation.svg"), plot(&rows))?)
}
