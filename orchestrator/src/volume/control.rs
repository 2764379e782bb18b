//! The control socket of a process that has a volume open: one JSON object per line, a request and
//! then events until the last, which is `done` or `failed`.
//!
//! The socket is in the volume's folder (0700), so only the owner of the state can connect.

use std::io::{self, BufRead, BufReader, Read as _, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde::{Deserialize, Serialize};
use storage_vdev::engine::{Command, Output, Report, SnapshotInfo};

use super::show::VolumeStatus;

/// The most bytes of a line.
const LINE_BYTES_MAX: u64 = 1 << 20;

/// What a process that serves a volume is asked to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
pub enum Order {
    /// Say how the volume is.
    Status,
    /// Keep the content under a name.
    Snapshot {
        /// The name.
        name: String,
        /// Seconds since 1970.
        unix_time: u64,
    },
    /// Forget a snapshot.
    DeleteSnapshot {
        /// The name.
        name: String,
    },
    /// Mark a snapshot as the base of a clone.
    PinSnapshot {
        /// The name.
        name: String,
        /// Whether a clone stands on it.
        has_clone: bool,
    },
    /// List snapshots.
    ListSnapshots,
    /// Go back to a snapshot.
    Rollback {
        /// The name.
        name: String,
    },
    /// Grow the volume.
    Grow {
        /// The new size.
        size_bytes: u64,
    },
    /// Repair now.
    Repair,
    /// Verify everything.
    Scrub,
}

impl Order {
    /// The volume's command; `None` for a status.
    #[must_use]
    pub fn command(&self) -> Option<Command> {
        Some(match self.clone() {
            Self::Status => return None,
            Self::Snapshot { name, unix_time } => Command::Snapshot { name, unix_time },
            Self::DeleteSnapshot { name } => Command::DeleteSnapshot { name },
            Self::PinSnapshot { name, has_clone } => Command::PinSnapshot { name, has_clone },
            Self::ListSnapshots => Command::ListSnapshots,
            Self::Rollback { name } => Command::Rollback { name },
            Self::Grow { size_bytes } => Command::Grow { size_bytes },
            Self::Repair => Command::Repair,
            Self::Scrub => Command::Scrub,
        })
    }
}

/// What comes back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case", deny_unknown_fields)]
pub enum Event {
    /// The order goes on.
    Progress {
        /// How the volume is.
        status: Box<VolumeStatus>,
    },
    /// The order is carried out.
    Done {
        /// What it gave.
        #[serde(flatten)]
        outcome: Outcome,
    },
    /// It is not.
    Failed {
        /// Why.
        message: String,
    },
}

/// What an order gave.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Of [`Order::Status`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<Box<VolumeStatus>>,
    /// Of [`Order::ListSnapshots`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshots: Option<Vec<SnapshotLine>>,
    /// Of [`Order::Repair`] and [`Order::Scrub`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report: Option<ReportLine>,
}

/// A snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotLine {
    /// Its name.
    pub name: String,
    /// The volume's size then.
    pub size_bytes: u64,
    /// Seconds since 1970.
    pub unix_time: u64,
    /// Whether a clone stands on it.
    pub has_clone: bool,
}

/// What repair or scrub did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportLine {
    /// Segments looked at.
    pub segments: u64,
    /// Shards missing or damaged.
    pub shards_bad: u64,
    /// Shards made again.
    pub shards_rebuilt: u64,
    /// Segments beyond repair.
    pub segments_lost: u64,
}

impl From<SnapshotInfo> for SnapshotLine {
    fn from(info: SnapshotInfo) -> Self {
        let SnapshotInfo { name, size_bytes, unix_time, has_clone } = info;
        Self { name, size_bytes, unix_time, has_clone }
    }
}

impl From<Report> for ReportLine {
    fn from(report: Report) -> Self {
        let Report { segments, shards_bad, shards_rebuilt, segments_lost } = report;
        Self { segments, shards_bad, shards_rebuilt, segments_lost }
    }
}

impl From<Output> for Outcome {
    fn from(output: Output) -> Self {
        match output {
            Output::Snapshots(snapshots) => {
                let snapshots = Some(snapshots.into_iter().map(SnapshotLine::from).collect());
                Self { snapshots, ..Self::default() }
            }
            Output::Report(report) => Self { report: Some(report.into()), ..Self::default() },
            Output::Done | Output::Extents(_) => Self::default(),
        }
    }
}

/// Gives an order to the process that listens at `socket` and waits until it is carried out.
/// `progress` sees how the volume is meanwhile.
///
/// # Errors
/// Nobody listens, the connection broke, or (`Ok(Err)`) the order failed, in the other's words.
pub fn give(
    socket: &Path,
    order: &Order,
    mut progress: impl FnMut(&VolumeStatus),
) -> io::Result<Result<Outcome, String>> {
    let mut stream = UnixStream::connect(socket)?;
    write_line(&mut stream, order)?;
    let mut lines = BufReader::new(stream);
    loop {
        match read_line(&mut lines)? {
            Some(Event::Progress { status }) => progress(&status),
            Some(Event::Done { outcome }) => return Ok(Ok(outcome)),
            Some(Event::Failed { message }) => return Ok(Err(message)),
            None => return Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

/// Writes one object as a line.
///
/// # Errors
/// The connection is gone.
pub fn write_line(stream: &mut impl Write, object: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(object)?;
    line.push(b'\n');
    stream.write_all(&line)
}

/// Reads one object; `None` at the end.
///
/// # Errors
/// The line is too long or no such object, or the connection broke.
pub fn read_line<T: serde::de::DeserializeOwned>(
    lines: &mut impl BufRead,
) -> io::Result<Option<T>> {
    let mut line = Vec::new();
    lines.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line)?;
    if line.is_empty() {
        return Ok(None);
    }
    Ok(Some(serde_json::from_slice(&line)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_and_events_survive_a_round_trip() {
        let order = Order::Snapshot { name: "a".to_owned(), unix_time: 7 };
        let mut bytes = Vec::new();
        write_line(&mut bytes, &order).expect("written");
        let read: Option<Order> = read_line(&mut bytes.as_slice()).expect("read");
        assert_eq!(read, Some(order));
        let report = ReportLine { segments: 1, shards_bad: 2, shards_rebuilt: 2, segments_lost: 0 };
        let outcome = Outcome { report: Some(report), ..Outcome::default() };
        let event = Event::Done { outcome };
        let mut bytes = Vec::new();
        write_line(&mut bytes, &event).expect("written");
        let read: Option<Event> = read_line(&mut bytes.as_slice()).expect("read");
        assert_eq!(read, Some(event));
    }

    #[test]
    fn nonsense_is_an_error_and_no_order() {
        for line in ["{}\n", "{\"do\":\"explode\"}\n", "\n", "{\"do\":\"grow\"}\n"] {
            assert!(read_line::<Order>(&mut line.as_bytes()).is_err(), "{line}");
        }
    }
}
