//! Posted epochs: what this node thinks of each, on the disk before anything follows from it.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use hypha_chain::contracts::{Capacity, Rewards};
use hypha_chain::{B256, SolCall};
use hypha_proofs::network::audit::{Objection, Posted, SETTLE_SECS};
use hypha_proofs::network::epoch::EpochData;
use hypha_proofs::network::judge::{Closed, Judge, Judged, Judgement, KEPT, Settings};
use hypha_proofs::network::ledger::{Terms, Weights};
use hypha_proofs::network::participant::Participant;
use hypha_proofs::network::schedule::Schedule;
use serde_json::json;

use super::aggregator::RING;
use super::core::{KEEP_EPOCHS, STATEMENTS_MAX, Teller};
use super::{Config, DaemonError};
use crate::kept::{self, KeptError};
use crate::metrics::{Metrics, add, set};

/// Objections that are told of one epoch.
const TOLD_MAX: usize = 4;
/// Half of the time until an epoch is closed, what is known may not be left out any more
/// (`audit::SETTLE_SECS` of `audit::POST_SECS`).
const SETTLES: u64 = 2;

/// All posted epochs, and the ledger.
pub(super) struct Judging {
    pub(super) judge: Judge,
    /// The records of the epochs that stand, as they are on the chain now.
    pub(super) records: BTreeMap<u32, Capacity::Epoch>,
    folder: PathBuf,
    known_folder: PathBuf,
    schedule: Schedule,
    window_secs: u64,
    gather_ns: u64,
    /// The last epoch whose end was not seen when it happened.
    late: Option<u32>,
    lacks_ledger: bool,
}

impl Judging {
    /// Reads what was kept, and asks the chain for its terms.
    pub(super) fn open(
        config: &Config,
        schedule: Schedule,
        participant: &mut Participant,
        teller: &mut Teller,
    ) -> Result<Self, DaemonError> {
        let rewards = config.suite.rewards;
        let emission = view(config, rewards, &Rewards::emissionCall {})?;
        let cap = view(config, rewards, &Rewards::capCall {})?;
        let window_secs = view(config, config.suite.capacity, &Capacity::windowCall {})?;
        let terms = Terms {
            emission: u128::try_from(emission).unwrap_or(u128::MAX),
            cap: u128::try_from(cap).unwrap_or(u128::MAX),
            disk_draws: config.network.rules.disk_draws,
            measured_per_mille: config.network.measured_per_mille,
            weights: Weights::STANDARD,
        };
        let mut judge = Judge::new(Settings {
            terms,
            schedule,
            window_secs,
            patience_ns: config.timing.patience_ns,
            statements_max: STATEMENTS_MAX,
        });
        let folder = config.folder.join("epochs");
        let known_folder = config.folder.join("known");
        let lost = "it is fetched again";
        for (_, closed) in whole(&folder, kept::read_all(&folder), lost, teller)? {
            judge.restore(closed, participant);
        }
        let lost = "what was known in time is lost";
        for (epoch, known) in
            whole(&known_folder, kept::read_all_known(&known_folder), lost, teller)?
        {
            judge.remember(epoch, known);
        }
        Ok(Self {
            judge,
            records: BTreeMap::new(),
            folder,
            known_folder,
            schedule,
            window_secs,
            gather_ns: config.timing.gather_ns,
            late: None,
            lacks_ledger: false,
        })
    }

    /// An epoch is over. If that was seen when it happened, what is known some minutes later counts.
    pub(super) fn on_ended(&mut self, epoch: u32, counts: (u32, u32), is_fresh: bool, now_ns: u64) {
        self.late = Some(epoch).filter(|_| !is_fresh);
        let settles_ns = is_fresh.then(|| now_ns.saturating_add(self.gather_ns / SETTLES));
        let closes_ns = now_ns.saturating_add(self.gather_ns);
        self.judge.on_ended(epoch, counts, settles_ns, closes_ns);
    }

    /// The newest block was read. An epoch that was over before, and not for long, settles in what is left
    /// of its time: whoever restarts then hears from its peers what it has heard before.
    pub(super) fn on_newest(&mut self, block_secs: u64, now_ns: u64) {
        let Some(epoch) = self.late.take() else { return };
        let since = block_secs.saturating_sub(self.schedule.epoch_end(epoch));
        if let Some(left) = SETTLE_SECS.checked_sub(since) {
            let left_ns = self.gather_ns / SETTLES / SETTLE_SECS * left;
            self.judge.settles(epoch, now_ns.saturating_add(left_ns));
        }
    }

    /// Somebody has posted an epoch.
    pub(super) fn on_posted(&mut self, record: Capacity::Epoch, data: B256, now_ns: u64) {
        let posted =
            Posted { verdict_root: record.verdictRoot, reward_root: record.rewardRoot, data };
        self.judge.on_posted(record.epoch, posted, record.postedAt, now_ns);
        self.on_record(record);
    }

    /// A posted epoch's record has changed.
    pub(super) fn on_record(&mut self, record: Capacity::Epoch) {
        self.judge.on_demands(record.epoch, record.openDemands > 0);
        self.records.insert(record.epoch, record);
        while self.records.len() > KEPT {
            self.records.pop_first();
        }
    }

    /// The chain is read anew.
    pub(super) fn begin_again(&mut self, participant: &mut Participant) {
        self.judge.begin_again(participant);
        self.records.clear();
    }

    /// An epoch does not stand any more.
    pub(super) fn on_voided(&mut self, epoch: u32, participant: &mut Participant, now_ns: u64) {
        self.judge.on_voided(epoch, participant, now_ns);
        self.records.remove(&epoch);
    }

    /// The newest epoch that contracts take for final, and whose data are here: these, its record, and
    /// when it was over. `now_secs` is the chain's time.
    pub(super) fn newest_final(
        &self,
        now_secs: u64,
    ) -> Option<(&EpochData, &Capacity::Epoch, u64)> {
        let (epoch, record) = self.records.iter().rev().find(|(epoch, record)| {
            let is_final = record.openDemands == 0
                && record.postedAt.saturating_add(self.window_secs) <= now_secs;
            // A later one may have its slot.
            let mut later = self.records.range(epoch.saturating_add(1)..).map(|(later, _)| later);
            let stands = later.all(|later| !u64::from(later - **epoch).is_multiple_of(RING));
            let is_known =
                matches!(self.judge.judgement(**epoch), Some(Judgement::True | Judgement::Settled));
            is_final && stands && is_known
        })?;
        Some((self.judge.data(*epoch)?, record, self.schedule.epoch_end(*epoch)))
    }

    /// Puts an epoch's data on the disk. What can't be kept is told.
    pub(super) fn keep(&self, closed: &Closed, teller: &mut Teller) -> bool {
        let kept =
            kept::write(&self.folder, closed).and_then(|()| kept::keep_newest(&self.folder, KEPT));
        let epoch = closed.data.epoch;
        if let Err(error) = &kept {
            let text = format!("epoch {epoch} can't be kept: {error}");
            teller.tell("epoch-failed", text, json!({"epoch": epoch}));
        }
        kept.is_ok()
    }

    /// Puts on the disk what was known of epochs in time. What can't be kept is told: a restart forgets it.
    fn keep_known(&mut self, teller: &mut Teller) {
        let folder = &self.known_folder;
        for (epoch, known) in self.judge.settled() {
            let kept = kept::write_known(folder, epoch, known)
                .and_then(|()| kept::keep_newest(folder, KEEP_EPOCHS as usize));
            if let Err(error) = kept {
                let text = format!("what was known of epoch {epoch} can't be kept: {error}");
                teller.tell("epoch-failed", text, json!({"epoch": epoch}));
            }
        }
    }

    /// Judges what can be judged now.
    pub(super) fn tend(
        &mut self,
        participant: &mut Participant,
        (now_ns, now_secs): (u64, u64),
        metrics: &Metrics,
        teller: &mut Teller,
    ) {
        let judged = self.judge.tend(participant, now_ns, now_secs);
        self.keep_known(teller);
        for judged in judged {
            if let Some(closed) = &judged.closed {
                self.keep(closed, teller);
            }
            tell_judged(&judged, self.records.get(&judged.epoch), metrics, teller);
        }
        for closed in self.judge.closed() {
            tell_closed(&closed, teller);
        }
        set(&metrics.judged_epoch, self.judge.newest().map_or(0, u64::from));
        let lacks_ledger = !self.judge.has_ledger();
        if std::mem::replace(&mut self.lacks_ledger, lacks_ledger) != lacks_ledger {
            let text = if lacks_ledger {
                "this node has no ledger yet, so it has no opinion on posted epochs"
            } else {
                "this node has a ledger, and judges posted epochs by it"
            };
            let kind = if lacks_ledger { "no-ledger" } else { "ledger" };
            teller.tell(kind, text.to_owned(), json!({"epoch": self.judge.newest()}));
        }
    }
}

fn tell_closed(closed: &Closed, teller: &mut Teller) {
    let (data, epoch) = (&closed.data, closed.data.epoch);
    let pulses = data.verdicts.iter().map(|leaf| leaf.pulses).max().unwrap_or(0);
    let answered = data.verdicts.iter().filter(|leaf| leaf.answered > 0).count();
    let text = format!("epoch {epoch}: {pulses} pulses, {answered} nodes answered");
    let fields = json!({"epoch": epoch, "pulses": pulses, "answered": answered,
        "statements": closed.numbers.len(), "data": data.hash()});
    teller.tell("epoch", text, fields);
}

fn tell_judged(
    judged: &Judged,
    record: Option<&Capacity::Epoch>,
    metrics: &Metrics,
    teller: &mut Teller,
) {
    let epoch = judged.epoch;
    let poster = record.map(|record| record.aggregator).unwrap_or_default();
    match &judged.judgement {
        Judgement::Open => {}
        Judgement::True => {
            add(&metrics.epochs_true, 1);
            let text = format!("epoch {epoch} as {poster} has posted it is what was proven");
            teller.tell("epoch-true", text, json!({"epoch": epoch, "aggregator": poster}));
        }
        Judgement::Settled => {
            let text = format!("epoch {epoch} is final: the ledger goes on from it");
            teller.tell("epoch-settled", text, json!({"epoch": epoch, "aggregator": poster}));
        }
        Judgement::False(found) => {
            add(&metrics.epochs_false, 1);
            let all = found.len();
            let some: Vec<String> = found.iter().take(TOLD_MAX).map(say).collect();
            let text = format!(
                "epoch {epoch} as {poster} has posted it is objected to ({all}): {}",
                some.join("; ")
            );
            let fields = json!({"epoch": epoch, "aggregator": poster, "objections": some});
            teller.tell("epoch-differs", text, fields);
        }
    }
}

fn say(objection: &Objection) -> String {
    match objection {
        Objection::OtherData => "the posted hashes are not those of the data".to_owned(),
        Objection::OtherStatements => "the statements are not those that the data name".to_owned(),
        Objection::LeftOut(id) => format!("statement {id:032x} was left out"),
        Objection::Differs(it) => format!("{it:?}"),
        Objection::Unclosed(error) => error.to_string(),
        Objection::Withheld => "nobody serves its data".to_owned(),
        Objection::Unshown(id) => format!("nobody shows statement {id:032x}"),
        Objection::After(epoch) => format!("it goes on from epoch {epoch}"),
        Objection::TooLate(epoch) => format!("epoch {epoch} was posted before it"),
    }
}

/// The files of a folder that are whole, by epoch. Each that is not is told, with what follows from it.
fn whole<T>(
    folder: &Path,
    found: io::Result<Vec<(u32, Result<T, KeptError>)>>,
    follows: &str,
    teller: &mut Teller,
) -> Result<Vec<(u32, T)>, DaemonError> {
    let found = found.map_err(|source| DaemonError::Io { path: folder.to_owned(), source })?;
    let mut all = Vec::new();
    for (epoch, file) in found {
        match file {
            Ok(it) => all.push((epoch, it)),
            Err(error) => {
                let at = folder.join(epoch.to_string());
                let text = format!("{}: {error}; {follows}", at.display());
                teller.tell("epoch-failed", text, json!({"epoch": epoch}));
            }
        }
    }
    Ok(all)
}

fn view<C: SolCall>(
    config: &Config,
    to: hypha_chain::Address,
    call: &C,
) -> Result<C::Return, DaemonError> {
    Ok(config.client.view(to, call)?)
}
