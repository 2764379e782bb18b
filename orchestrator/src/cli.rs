//! The verbs of `hypha` and their options. Here, and only here, errors become text and exit codes.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use spec::deployment::{Deployment, TEXT_BYTES_MAX, parse_bytes};

use crate::chain::arguments::ChainVerb;
use crate::farm::arguments::FarmVerb;
use crate::keys::arguments::KeyVerb;
use crate::market::arguments::MarketVerb;
use crate::mesh::arguments::MeshVerb;
use crate::node::arguments::NodeVerb;
use crate::output::Output;
use crate::storage::arguments::StorageVerb;
use crate::volume::arguments::VolumeVerb;
use crate::{
    chain, doctor, exit_code, farm, keys, market, mesh, node, run, state, storage, volume,
};

/// Runs unikernel workloads described by a JSON spec.
#[derive(Debug, Parser)]
#[command(name = "hypha", version, arg_required_else_help = true)]
#[command(after_help = "Examples:\n  \
    hypha run examples/hello.json\n  \
    hypha validate my.json && hypha run my.json --json | jq .\n  \
    hypha doctor")]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
    /// Tell more on standard error; twice for everything.
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    verbose: u8,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Starts the workloads of a spec in the foreground.
    ///
    /// Ends when all machines have ended or on Ctrl-C; a second Ctrl-C kills. The exit code is the
    /// first one in the spec's order that is not 0.
    #[command(after_help = "Examples:\n  \
        hypha run examples/hello.json\n  \
        hypha run examples/kv.json --json > events.ndjson\n  \
        hypha run my.json --state /tmp/try")]
    Run {
        /// The spec.
        file: PathBuf,
        /// Print one JSON object per event on standard output.
        #[arg(long)]
        json: bool,
        /// Where keys and volumes lie [default: $HYPHA_STATE or ~/.local/share/hypha].
        #[arg(long, value_name = "DIR")]
        state: Option<PathBuf>,
    },
    /// Checks a spec and starts nothing.
    #[command(after_help = "Examples:\n  \
        hypha validate my.json\n  \
        hypha validate - < my.json")]
    Validate {
        /// The spec; - for standard input.
        file: PathBuf,
    },
    /// Prints the JSON Schema of specs.
    #[command(after_help = "Example:\n  hypha schema > deployment.v1.json")]
    Schema,
    /// Says what this host can run, and what is missing.
    #[command(after_help = "Examples:\n  hypha doctor\n  hypha doctor --json | jq .kvm")]
    Doctor {
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Volumes: encrypted, erasure-coded disks over many nodes.
    #[command(subcommand)]
    Volume(VolumeVerb),
    /// This host's node of the mesh: sessions, routes, and who may reach this host.
    #[command(subcommand)]
    Mesh(MeshVerb),
    /// The chain of capacity: contracts and blocks in this state.
    #[command(subcommand)]
    Chain(ChainVerb),
    /// Keys for the chain: whose transactions and answers are whose.
    #[command(subcommand)]
    Key(KeyVerb),
    /// A farm: what owns nodes and is paid for them.
    #[command(subcommand)]
    Farm(FarmVerb),
    /// A node of the network: registered, proven, offered, maintained.
    #[command(subcommand)]
    Node(NodeVerb),
    /// Capacity of others: offers, reservations, tokens.
    #[command(flatten)]
    Market(MarketVerb),
    /// The stores of this host, served to volumes elsewhere.
    #[command(subcommand)]
    Storage(StorageVerb),
    /// Prints completions for a shell.
    #[command(after_help = "Example:\n  hypha completions bash > ~/.local/share/bash-completion/\
        completions/hypha")]
    Completions {
        /// The shell.
        shell: Shell,
    },
}

/// Runs the command line of this process and returns its exit code.
#[must_use]
pub fn main() -> i32 {
    let arguments = Arguments::parse();
    log_to_stderr(arguments.verbose);
    match arguments.verb {
        Verb::Run { file, json, state } => run_file(&file, json, state.as_deref()),
        Verb::Validate { file } => match load(&file) {
            Ok(_) => 0,
            Err(code) => code,
        },
        Verb::Schema => print(&pretty(&spec::deployment::schema())),
        Verb::Doctor { json } => {
            let report = doctor::examine();
            let text = if json { pretty(&report.to_json()) } else { report.to_text() };
            match print(&text) {
                0 => report.exit_code(),
                code => code,
            }
        }
        Verb::Volume(verb) => volume::verbs::run(verb).unwrap_or_else(|error| {
            complain(&error);
            error.exit_code()
        }),
        Verb::Storage(verb) => storage::run(verb).unwrap_or_else(|error| {
            complain(&error);
            error.exit_code()
        }),
        Verb::Chain(verb) => chain::run(&verb).unwrap_or_else(|error| {
            complain(&error);
            error.exit_code()
        }),
        Verb::Key(verb) => keys::run(&verb).unwrap_or_else(|error| {
            complain(&error);
            error.exit_code()
        }),
        Verb::Farm(verb) => farm::run(&verb).unwrap_or_else(|error| {
            complain(&error);
            error.exit_code()
        }),
        Verb::Market(verb) => market::run(&verb).unwrap_or_else(|error| {
            complain(&error);
            error.exit_code()
        }),
        Verb::Node(verb) => node::run(&verb).unwrap_or_else(|error| {
            complain(&error);
            error.exit_code()
        }),
        Verb::Mesh(verb) => mesh::run(verb).unwrap_or_else(|error| {
            complain(&error);
            error.exit_code()
        }),
        Verb::Completions { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "hypha", &mut text);
            print(&String::from_utf8_lossy(&text))
        }
    }
}

fn log_to_stderr(verbose: u8) {
    let level = match verbose {
        0 => tracing::Level::WARN,
        1 => tracing::Level::DEBUG,
        _ => tracing::Level::TRACE,
    };
    // Colours are for terminals, not for files.
    let colours = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let format = tracing_subscriber::fmt().with_max_level(level).with_writer(io::stderr);
    format.with_ansi(colours).init();
}

fn pretty(value: &serde_json::Value) -> String {
    format!("{value:#}\n")
}

fn print(text: &str) -> i32 {
    match io::stdout().lock().write_all(text.as_bytes()) {
        Ok(()) => 0,
        Err(_) => exit_code::FAILURE,
    }
}

fn run_file(file: &Path, json: bool, state: Option<&Path>) -> i32 {
    let deployment = match load(file) {
        Ok(deployment) => deployment,
        Err(code) => return code,
    };
    let names = deployment.machines.iter().map(|machine| machine.name.as_str());
    let output = if json { Output::json() } else { Output::text(names) };
    let folder = file.parent().unwrap_or(Path::new(""));
    let started = state::directory(state)
        .map_err(|error| run::RunError::Launch(error.into()))
        .and_then(|state| run::run(&deployment, &absolute(folder), &state, &output));
    started.unwrap_or_else(|error| {
        complain(&error);
        error.exit_code()
    })
}

/// The machines' processes need not have our working directory.
fn absolute(folder: &Path) -> PathBuf {
    std::env::current_dir().map_or_else(|_| folder.to_owned(), |here| here.join(folder))
}

fn complain(message: &dyn std::fmt::Display) {
    // There is nowhere else to say it.
    let _gone = writeln!(io::stderr(), "hypha: {message}");
}

/// Reads and checks a spec, or says what is wrong with it.
fn load(file: &Path) -> Result<Deployment, i32> {
    let (name, bytes) = if file == Path::new("-") {
        ("standard input".to_owned(), read(io::stdin().lock()))
    } else {
        (file.display().to_string(), File::open(file).and_then(read))
    };
    let bytes = bytes.map_err(|error| {
        complain(&format!("{name}: {error}"));
        exit_code::BAD_SPEC
    })?;
    parse_bytes(&bytes).map_err(|problems| {
        // There is nowhere else to say it.
        let _gone = write!(io::stderr(), "{}", problems.render(&name));
        exit_code::BAD_SPEC
    })
}

/// Reads a spec, and not much more than one may have.
fn read(from: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(TEXT_BYTES_MAX as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}
