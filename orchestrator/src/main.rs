//! The command `hypha`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    let code = orchestrator::cli::main();
    u8::try_from(code).map_or(ExitCode::FAILURE, ExitCode::from)
}
