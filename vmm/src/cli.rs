//! The command line of `vmm`: parsed whole before anything is done.

use std::ffi::OsString;
use std::path::PathBuf;

use lexopt::prelude::{Long, Short, Value};
use spec::size::Size;

/// The text of `--help`.
pub const HELP: &str = "\
One virtual machine: runs a guest image to its end.

Usage: vmm [OPTIONS] IMAGE [ARGUMENTS...]
       vmm --config-fd N [OPTIONS]
       vmm --probe

  IMAGE              a guest ELF, with the arguments that it is given
  --memory SIZE      guest memory (default 64MiB)
  --env NAME=VALUE   an environment variable of the guest; may be repeated
  --config-fd N      the whole configuration as JSON from an inherited descriptor
  --cache FILE       where the answer of the host probe is kept ('none' for nowhere;
                     default $HYPHA_STATE/cache/host-v1)
  --keeper-fd N      an inherited unix socket: descriptors of the VM go there, so that tearing
                     it down isn't part of this process's exit
  --stats            at the end, one JSON line of figures on standard error
  --probe            what kind of KVM this host has, as one JSON line
  --version, --help

Exit codes: the guest's own 0 to 123; 2 wrong use, nothing was started; 125 this host cannot;
126 the guest crashed; 127 the guest broke the device contract.

Example: vmm --memory 8MiB images/hello";

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Print help.
    Help,
    /// Print the version.
    Version,
    /// Probe the host.
    Probe,
    /// Run a VM.
    Run(Run),
}

/// How to run a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// What to run.
    pub source: Source,
    /// Where the answer of the host probe is kept.
    pub cache: Cache,
    /// Whether to print figures at the end.
    pub stats: bool,
    /// The inherited socket of a keeper of the VM's descriptors.
    pub keeper_fd: Option<i32>,
}

/// Where the VM's configuration comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// An inherited descriptor with JSON.
    Descriptor(i32),
    /// The command line: image, guest arguments, environment, memory.
    Image {
        /// The guest ELF.
        image: PathBuf,
        /// The guest's arguments.
        args: Vec<String>,
        /// The guest's environment.
        env: Vec<(String, String)>,
        /// Guest memory.
        memory: Size,
    },
}

/// Where the answer of the host probe is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cache {
    /// In Hypha's state.
    Default,
    /// Nowhere: every start probes.
    None,
    /// In this file.
    File(PathBuf),
}

/// Parses the arguments behind the program's name.
///
/// # Errors
/// One line that names the argument and what was expected.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Command, String> {
    let mut parser = lexopt::Parser::from_args(arguments);
    parse_with(&mut parser).map_err(|error| error.to_string())
}

fn parse_with(parser: &mut lexopt::Parser) -> Result<Command, lexopt::Error> {
    let mut memory = Size(64 << 20);
    let (mut env, mut cache, mut stats) = (Vec::new(), Cache::Default, false);
    let (mut source, mut keeper_fd) = (None, None);
    while let Some(argument) = parser.next()? {
        match argument {
            Long("help") | Short('h') => return Ok(Command::Help),
            Long("version") => return Ok(Command::Version),
            Long("probe") => return Ok(Command::Probe),
            Long("stats") => stats = true,
            Long("memory") => memory = parse_value(parser, "--memory")?,
            Long("config-fd") => {
                source = Some(Source::Descriptor(parse_value(parser, "--config-fd")?));
            }
            Long("keeper-fd") => keeper_fd = Some(parse_value(parser, "--keeper-fd")?),
            Long("cache") => {
                let path = parser.value()?;
                cache = if path == "none" { Cache::None } else { Cache::File(PathBuf::from(path)) };
            }
            Long("env") => {
                let pair = utf8(parser.value()?, "--env")?;
                let (name, value) = pair.split_once('=').ok_or("--env: expected NAME=VALUE")?;
                env.push((name.to_owned(), value.to_owned()));
            }
            Value(image) => {
                // What follows the image is the guest's, options and all.
                let args = parser
                    .raw_args()?
                    .map(|argument| utf8(argument, "an argument of the guest"))
                    .collect::<Result<Vec<_>, _>>()?;
                let image = PathBuf::from(image);
                source = Some(Source::Image { image, args, env: Vec::new(), memory });
                break;
            }
            other => return Err(other.unexpected()),
        }
    }
    let source = match source {
        None => return Err("no image and no --config-fd given; see --help".into()),
        Some(Source::Image { image, args, .. }) => Source::Image { image, args, env, memory },
        Some(source) => source,
    };
    Ok(Command::Run(Run { source, cache, stats, keeper_fd }))
}

fn parse_value<T: std::str::FromStr<Err: std::fmt::Display>>(
    parser: &mut lexopt::Parser,
    option: &str,
) -> Result<T, lexopt::Error> {
    let text = utf8(parser.value()?, option)?;
    text.parse().map_err(|error| format!("{option} {text}: {error}").into())
}

fn utf8(text: OsString, what: &str) -> Result<String, lexopt::Error> {
    text.into_string().map_err(|text| format!("{what} {} is not UTF-8", text.display()).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Command, String> {
        parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn options_behind_the_image_are_the_guests() {
        let Ok(Command::Run(run)) = parsed("--memory 8MiB --env A=b=c kv --memory 1 --probe")
        else {
            panic!("refused")
        };
        let args = ["--memory", "1", "--probe"].map(str::to_owned).to_vec();
        let env = vec![("A".to_owned(), "b=c".to_owned())];
        let image = PathBuf::from("kv");
        assert_eq!(run.source, Source::Image { image, args, env, memory: Size(8 << 20) });
    }

    #[test]
    fn a_wrong_line_names_the_argument() {
        for (line, message) in [
            ("", "no image and no --config-fd given; see --help"),
            (
                "--memory 8MB kv",
                "--memory 8MB: expected a number of bytes, or a number with one of B, KiB, MiB, GiB, TiB",
            ),
            ("--mem 1 kv", "invalid option '--mem'"),
            ("--config-fd x", "--config-fd x: invalid digit found in string"),
            ("--env A kv", "--env: expected NAME=VALUE"),
        ] {
            assert_eq!(parsed(line), Err(message.to_owned()), "{line}");
        }
    }
}
