//! The verbs of `hypha volume` and their options.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Subcommand};

use spec::node::{NodeSpec, checked_name};

use super::manifest::PolicyName;

/// What can be done with volumes.
#[derive(Debug, Subcommand)]
pub enum VolumeVerb {
    /// Makes a volume over k + m nodes.
    #[command(after_help = "Examples:\n  \
        hypha volume create db --size 10GiB\n  \
        hypha volume create db --size 1TiB --code 10+4 --nodes /srv/disk{0..13}\n  \
        hypha volume create db --size 10GiB --code 2+1 --nodes \\\n    \
        tcp:10.0.0.1:9700,key=$K1 tcp:10.0.0.2:9700,key=$K2 tcp:10.0.0.3:9700,key=$K3")]
    Create(Create),
    /// Lists the volumes of this host.
    Ls {
        /// Where the state is, and how to answer.
        #[command(flatten)]
        form: Form,
    },
    /// Says how a volume is: redundancy now and wanted, what a crash could lose, repair.
    ///
    /// Exit code 0 if it is whole, 6 if it is degraded, 5 if too few nodes answer.
    Status {
        /// The volume.
        #[command(flatten)]
        which: Which,
        /// Print Prometheus metrics.
        #[arg(long, conflicts_with = "json")]
        metrics: bool,
    },
    /// Keeps the present content under a name; costs nothing until it is overwritten.
    #[command(after_help = "Examples:\n  \
        hypha volume snapshot db before-upgrade\n  \
        hypha volume snapshot db                      lists them\n  \
        hypha volume snapshot db before-upgrade --delete")]
    Snapshot {
        /// The volume.
        #[command(flatten)]
        which: Which,
        /// The snapshot's name; without one, snapshots are listed.
        #[arg(value_parser = parse_name)]
        snapshot: Option<String>,
        /// Forget the snapshot, and free what only it held.
        #[arg(long, requires = "snapshot")]
        delete: bool,
    },
    /// Makes a new volume that starts with the content of a snapshot.
    #[command(after_help = "Example:\n  hypha volume clone db staging --snapshot before-upgrade")]
    Clone {
        /// The volume.
        #[command(flatten)]
        which: Which,
        /// The new volume's name.
        #[arg(value_parser = parse_name)]
        new: String,
        /// The snapshot; without one, one is made now, named after the clone.
        #[arg(long, value_name = "NAME", value_parser = parse_name)]
        snapshot: Option<String>,
    },
    /// Puts the content back to what it was at a snapshot. What came after it is gone.
    Rollback {
        /// The volume.
        #[command(flatten)]
        which: Which,
        /// The snapshot.
        #[arg(value_parser = parse_name)]
        snapshot: String,
    },
    /// Makes a volume larger, while it is in use.
    Grow {
        /// The volume.
        #[command(flatten)]
        which: Which,
        /// The new size, like 20GiB.
        size: Size,
    },
    /// Brings lost shards back at once instead of by the lazy policy.
    Repair {
        /// The volume.
        #[command(flatten)]
        which: Which,
        /// The most bytes per second, like 100MiB.
        #[arg(long, value_name = "BYTES")]
        limit: Option<Size>,
    },
    /// Reads and verifies every shard of a volume, and mends what is damaged.
    Scrub {
        /// The volume.
        #[command(flatten)]
        which: Which,
    },
    /// Finds a volume again from its shards and its key alone.
    #[command(after_help = "Example:\n  \
        hypha volume recover db --key db.key --nodes /srv/disk{0..5}")]
    Recover(Recover),
    /// Serves a volume to other programs until SIGINT or SIGTERM.
    #[command(after_help = "Examples:\n  \
        hypha volume serve db --nbd unix:/run/db.sock\n    \
        nbdinfo nbd+unix:///db?socket=/run/db.sock\n  \
        hypha volume serve db --vhost-user /run/db.vhost\n  \
        hypha volume serve db --nbd tcp:127.0.0.1:10809 --metrics 127.0.0.1:9100")]
    Serve(Serve),
    /// Lets a storage daemon mend the volume's shards without its key: prints the file for
    /// `hypha storage serve --heal`.
    #[command(after_help = "Example:\n  \
        hypha volume delegate db --holder $KEY > db.heal")]
    Delegate {
        /// The volume.
        #[command(flatten)]
        which: Which,
        /// The daemon's public key, 64 hexadecimal digits.
        #[arg(long, value_name = "HEX")]
        holder: String,
        /// For how many days.
        #[arg(long, default_value_t = 365)]
        days: u32,
    },
    /// Destroys a volume's key, which nobody can undo, and removes its shards.
    Rm {
        /// The volume.
        #[command(flatten)]
        which: Which,
        /// Don't ask.
        #[arg(long)]
        yes: bool,
        /// Destroy the key although nodes don't answer; their shards stay as noise.
        #[arg(long)]
        abandon: bool,
    },
}

/// Where the state is, and how to answer.
#[derive(Debug, Clone, Args)]
pub struct Form {
    /// Print JSON: one object, or one per event while something goes on.
    #[arg(long)]
    pub json: bool,
    /// Where volumes' manifests and keys lie [default: $HYPHA_STATE or ~/.local/share/hypha].
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
}

/// Which volume.
#[derive(Debug, Clone, Args)]
pub struct Which {
    /// The volume's name.
    #[arg(value_parser = parse_name)]
    pub name: String,
    /// Where the state is, and how to answer.
    #[command(flatten)]
    pub form: Form,
    /// What is allowed at opening.
    #[command(flatten)]
    pub opening: OpeningArguments,
}

/// What is allowed at opening.
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct OpeningArguments {
    /// Take the volume over from a host that still holds it: waits until its lease has run out.
    #[arg(long)]
    pub force: bool,
    /// Open although flushed writes may be gone: with the journal's only copy, or with more nodes
    /// than may be lost.
    #[arg(long)]
    pub accept_loss: bool,
}

/// `hypha volume create`.
#[derive(Debug, Args)]
pub struct Create {
    /// The volume's name.
    #[arg(value_parser = parse_name)]
    pub name: String,
    /// Its size, a multiple of 4096, like 10GiB.
    #[arg(long)]
    pub size: Size,
    /// Data and parity shards: any m of the k + m nodes may be lost.
    #[arg(long, value_name = "K+M", default_value = "4+2")]
    pub code: Code,
    /// One node per shard, then spares: a directory, tcp:ADDRESS:PORT,key=HEX or
    /// unix:PATH,key=HEX; store=NAME and domain=NAME may follow [default: directories in the
    /// state].
    #[arg(long, value_name = "NODE", num_args = 1..)]
    pub nodes: Vec<NodeSpec>,
    /// When a FLUSH is answered.
    #[arg(long, value_enum, default_value_t)]
    pub policy: PolicyName,
    /// A directory of this host for the local copy of the journal.
    #[arg(long, value_name = "DIR")]
    pub journal: Option<PathBuf>,
    /// Refuse nodes that share a failure domain (a disk, a server), instead of warning.
    #[arg(long)]
    pub strict_domains: bool,
    /// Where the state is, and how to answer.
    #[command(flatten)]
    pub form: Form,
}

/// `hypha volume recover`.
#[derive(Debug, Args)]
pub struct Recover {
    /// The name it shall have here.
    #[arg(value_parser = parse_name)]
    pub name: String,
    /// The file with the volume key.
    #[arg(long, value_name = "FILE")]
    pub key: PathBuf,
    /// The nodes where its shards may be, in any order.
    #[arg(long, value_name = "NODE", num_args = 1.., required = true)]
    pub nodes: Vec<NodeSpec>,
    /// The volume's uuid, if the nodes hold several that the key fits.
    #[arg(long)]
    pub uuid: Option<String>,
    /// What is allowed at opening.
    #[command(flatten)]
    pub opening: OpeningArguments,
    /// Where the state is, and how to answer.
    #[command(flatten)]
    pub form: Form,
}

/// `hypha volume serve`.
#[derive(Debug, Args)]
#[group(id = "face", required = true, multiple = false, args = ["nbd", "vhost_user"])]
pub struct Serve {
    /// The volume.
    #[command(flatten)]
    pub which: Which,
    /// Serve NBD: unix:PATH, or tcp:ADDRESS:PORT on loopback or with --tls.
    #[arg(long, value_name = "ADDRESS")]
    pub nbd: Option<String>,
    /// A directory with server-cert.pem, server-key.pem and ca-cert.pem: NBD clients must use TLS
    /// and show a certificate that the authority of ca-cert.pem signed.
    #[arg(long, value_name = "DIR", requires = "nbd")]
    pub tls: Option<PathBuf>,
    /// Serve vhost-user-blk on this unix socket.
    #[arg(long, value_name = "PATH")]
    pub vhost_user: Option<PathBuf>,
    /// Refuse writes.
    #[arg(long)]
    pub read_only: bool,
    /// Serve Prometheus metrics over HTTP here.
    #[arg(long, value_name = "ADDRESS")]
    pub metrics: Option<SocketAddr>,
    /// The read cache, like 256MiB.
    #[arg(long, value_name = "BYTES", default_value = "64MiB")]
    pub cache: Size,
}

/// A number of bytes: digits and perhaps KiB, MiB, GiB or TiB (also K, M, G, T, which mean the
/// same).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(pub u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits_end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (digits, unit) = text.split_at(digits_end);
        let shift = match unit.trim() {
            "" | "B" => 0,
            "K" | "KiB" => 10,
            "M" | "MiB" => 20,
            "G" | "GiB" => 30,
            "T" | "TiB" => 40,
            _ => return Err(format!("{unit:?} is no unit; there are KiB, MiB, GiB and TiB")),
        };
        let number: u64 = digits.parse().map_err(|_| "expected a number like 10GiB".to_owned())?;
        let bytes = number.checked_mul(1 << shift).ok_or("that is too large".to_owned())?;
        Ok(Self(bytes))
    }
}

/// Data and parity shards, like 4+2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Code {
    /// Data shards.
    pub data_shards: u8,
    /// Parity shards.
    pub parity_shards: u8,
}

impl FromStr for Code {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let pair = text.split_once('+').and_then(|(data, parity)| {
            Some(Self { data_shards: data.parse().ok()?, parity_shards: parity.parse().ok()? })
        });
        pair.ok_or_else(|| "expected data + parity shards, like 4+2".to_owned())
    }
}

fn parse_name(text: &str) -> Result<String, String> {
    checked_name(text).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_binary_units() {
        assert_eq!("4096".parse(), Ok(Size(4096)));
        assert_eq!("10GiB".parse(), Ok(Size(10 << 30)));
        assert_eq!("3T".parse(), Ok(Size(3 << 40)));
        assert!("10GB".parse::<Size>().is_err());
        assert!("GiB".parse::<Size>().is_err());
        assert!("99999999999TiB".parse::<Size>().is_err());
    }

    #[test]
    fn a_code_is_two_numbers() {
        assert_eq!("4+2".parse(), Ok(Code { data_shards: 4, parity_shards: 2 }));
        assert!("4".parse::<Code>().is_err());
        assert!("4+256".parse::<Code>().is_err());
    }
}
