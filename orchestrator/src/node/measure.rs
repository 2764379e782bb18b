//! `hypha node measure`: what this machine has and can prove, before anything is claimed.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;

use clap::Args;
use hypha_proofs::Rules;
use proof_node::machine::{Machine, Sources};

use crate::chain::failure::Failure;
use crate::chain::print;
use crate::state::{self, Common};

/// Options of `hypha node measure`.
#[derive(Debug, Args)]
pub struct MeasureArguments {
    /// Folders whose disks are to be looked at [default: the state].
    #[arg(value_name = "FOLDER")]
    pub folders: Vec<PathBuf>,
    /// Only look: measure no speeds.
    #[arg(long)]
    pub look: bool,
    /// What all verbs take.
    #[command(flatten)]
    pub common: Common,
}

pub(super) fn run(arguments: &MeasureArguments) -> Result<i32, Failure> {
    let folders = if arguments.folders.is_empty() {
        let directory = state::directory(arguments.common.state.as_deref())?;
        state::prepare(&directory)?;
        vec![directory]
    } else {
        arguments.folders.clone()
    };
    let failed = |error: proof_node::machine::MeasureError| Failure::Input(error.to_string());
    let mut machine = Machine::look(&Sources::of_this_machine(), &folders).map_err(failed)?;
    if !arguments.look {
        let tells = io::stderr().is_terminal();
        let progress = |what: &str| {
            if tells {
                // Nobody sees it: then it is not needed either.
                _ = writeln!(io::stderr().lock(), "measuring {what} …");
            }
        };
        machine.measure(progress).map_err(failed)?;
    }
    let rules = Rules::STANDARD;
    if arguments.common.json {
        return print(&format!("{}\n", machine.to_json(&rules)));
    }
    print(&machine.to_text(&rules))
}
