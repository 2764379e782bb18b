//! Deterministic simulation of whole systems: the real engine over real nodes on simulated disks and
//! a simulated network, in virtual time, against an oracle that knows every sector's history.
//!
//! `HYPHA_SEEDS=FIRST..END` chooses the seeds of the campaigns, `HYPHA_SEED=N` one of them, whose
//! faults are printed. `docs/reliability.md` says what each campaign does.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a failed unwrap fails the test")]

mod campaign;
mod faults;
mod host;
mod openers;
mod oracle;
mod run;
mod subsets;
