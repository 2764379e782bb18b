//! The verbs that a volume carries out wherever it is open: here, or in the process that serves it.

use serde_json::json;
use storage_vdev::engine::{Limits, Status};

use super::arguments::{Size, Which};
use super::control::{self, Order, Outcome};
use super::error::VolumeError;
use super::meter::Meter;
use super::open::{New, Reached, reach_as};
use super::show::{self, Health, VolumeStatus, print, tell};
use crate::exit_code;

/// Says how a volume is.
pub(super) fn status(which: &Which, metrics: bool) -> Result<i32, VolumeError> {
    let outcome = carry_out(which, &Order::Status, Limits::SMALL)?;
    let Some(status) = outcome.status else {
        return Err(VolumeError::Serve("the serving process sent no status".to_owned()));
    };
    if metrics {
        print(&status.to_metrics())?;
    } else {
        tell(&which.form, &json!(status), || status.to_text())?;
    }
    Ok(match status.health {
        Health::Healthy => 0,
        Health::Degraded => exit_code::DEGRADED,
        Health::Lost | Health::Stopped => exit_code::FAILURE,
    })
}

/// Lists snapshots.
pub(super) fn snapshots(which: &Which) -> Result<i32, VolumeError> {
    let outcome = carry_out(which, &Order::ListSnapshots, Limits::SMALL)?;
    let snapshots = outcome.snapshots.unwrap_or_default();
    tell(&which.form, &json!(snapshots), || {
        let width = snapshots.iter().map(|snapshot| snapshot.name.len()).max().unwrap_or(0);
        let mut text = String::new();
        for snapshot in &snapshots {
            let clone = if snapshot.has_clone { "  base of a clone" } else { "" };
            text += &format!(
                "{:width$}  {}  {}{clone}\n",
                snapshot.name,
                show::bytes(snapshot.size_bytes),
                show::utc(snapshot.unix_time)
            );
        }
        text
    })?;
    Ok(0)
}

/// An order that gives nothing back.
pub(super) fn simple(which: &Which, order: &Order) -> Result<i32, VolumeError> {
    carry_out(which, order, Limits::SMALL)?;
    tell(&which.form, &json!({"done": order}), String::new)?;
    Ok(0)
}

/// Repair and scrub: with progress, and an exit code that says whether all is well now.
pub(super) fn work(which: &Which, order: &Order, limit: Option<Size>) -> Result<i32, VolumeError> {
    let repair_bytes_per_second = limit.map_or(0, |size| size.0);
    let limits = Limits { repair_bytes_per_second, ..Limits::LARGE };
    let outcome = carry_out(which, order, limits)?;
    let Some(report) = outcome.report else {
        return Err(VolumeError::Serve("the serving process sent no report".to_owned()));
    };
    tell(&which.form, &json!(report), || {
        format!(
            "{} segments looked at, {} shards missing or damaged, {} made again, {} segments \
            lost\n",
            report.segments, report.shards_bad, report.shards_rebuilt, report.segments_lost
        )
    })?;
    Ok(match (report.segments_lost, report.shards_bad > report.shards_rebuilt) {
        (0, false) => 0,
        (0, true) => exit_code::DEGRADED,
        _ => exit_code::FAILURE,
    })
}

/// Carries an order out, here or in the process that has the volume open.
pub(super) fn carry_out(
    which: &Which,
    order: &Order,
    limits: Limits,
) -> Result<Outcome, VolumeError> {
    let new = if *order == Order::Repair { New::Mended } else { New::No };
    let (_, _, reached) = reach_as(which, limits, new)?;
    let name = which.name.clone();
    let mut meter = Meter::new(which.form.json);
    match reached {
        Reached::There(path) => {
            let answer = control::give(&path, order, |status| meter.show(status))
                .map_err(|source| VolumeError::Busy { name: name.clone(), path, source })?;
            meter.end();
            answer.map_err(|message| VolumeError::Remote { name, message })
        }
        Reached::Here(mut session, _lock) => {
            let failed = |source| VolumeError::Request { name: name.clone(), source };
            let outcome = match order.command() {
                None => {
                    let status = session.volume().status();
                    let status = VolumeStatus::new(&name, &status);
                    Outcome { status: Some(Box::new(status)), ..Outcome::default() }
                }
                Some(command) => {
                    let shown = |status: &Status| {
                        meter.show(&VolumeStatus::new(&name, status));
                    };
                    session.command(command, shown).map_err(failed)?.into()
                }
            };
            meter.end();
            session.close().map_err(failed)?;
            Ok(outcome)
        }
    }
}
