//! This node's own answers to pulses.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::channel;
use std::thread;

use hypha_proofs::Challenge;
use hypha_proofs::network::participant::Moment;
use hypha_proofs::verifier::Claim;
use hypha_proofs::wire::SignedCommitment;
use serde_json::json;

use super::core::Core;
use super::inputs::Input;
use crate::clock::monotonic_ns;
use crate::metrics::{add, set};
use crate::work::{self, Outcome, Task};

impl Core<'_> {
    /// Starts the work of a pulse, unless it was answered before a restart.
    pub(super) fn work(&mut self, challenge: Challenge, claim: Claim) {
        let pulse = challenge.pulse;
        if pulse <= self.memo.answered() {
            return;
        }
        let extents = claim.plot.and_then(|plot| self.plots.extents(&plot.root));
        let task = Task {
            challenge,
            claim,
            rules: self.config.network.rules,
            began_ns: monotonic_ns(),
            table: self.table.as_ref().map(|(_, table)| Arc::clone(table)),
            extents,
            reading: self.reading(),
            key: Arc::clone(&self.config.key),
        };
        self.pause(true);
        let (draws, drawn) = channel();
        self.pulses.insert(pulse, draws);
        let core = self.core.clone();
        let started = thread::Builder::new().name("pulse".to_owned()).spawn(move || {
            work::run(&task, &drawn, |outcome| _ = core.send(Input::Pulse(pulse, outcome)));
        });
        if let Err(error) = started {
            let text = format!("pulse {pulse} is not answered: no thread can be made: {error}");
            self.missed(pulse, text);
        }
    }

    /// Filler, shards and tables stand still while chains are computed.
    fn pause(&self, pause: bool) {
        self.paused.store(pause, Ordering::Release);
        if let Some(plotter) = &self.plotter {
            plotter.pause(pause);
        }
        if let Some(keeper) = &self.keeper {
            keeper.pause(pause);
        }
    }

    pub(super) fn on_outcome(&mut self, pulse: u64, outcome: Outcome, moment: &Moment) {
        match outcome {
            Outcome::Committed { commitment, took_ns, lost } => {
                self.pause(false);
                self.on_committed(&commitment, (took_ns, &lost), moment);
            }
            Outcome::Opened { witness, opening } => {
                let actions = self.participant.on_opened(pulse, witness, &opening);
                self.act(actions);
            }
            Outcome::Over { cpu_ns, error } => {
                self.pause(false);
                self.pulses.remove(&pulse);
                add(&self.metrics.pulse_cpu_micros, cpu_ns / 1000);
                match error {
                    Some(error) => {
                        self.missed(pulse, format!("pulse {pulse} is not answered: {error}"));
                    }
                    None => {
                        let cpu_ms = cpu_ns / 1_000_000;
                        let text = format!("pulse {pulse} is over, {cpu_ms} ms of processor time");
                        let fields = json!({"pulse": pulse, "cpu_ms": cpu_ms});
                        self.teller.tell("pulse-over", text, fields);
                    }
                }
            }
        }
    }

    /// The answer is on the disk before anybody hears of it: after a restart there is no other.
    fn on_committed(
        &mut self,
        commitment: &SignedCommitment,
        (took_ns, lost): (u64, &[String]),
        moment: &Moment,
    ) {
        let pulse = commitment.commitment.pulse;
        match self.memo.answer(pulse, commitment.commitment.answer()) {
            Ok(true) => {}
            Ok(false) => {
                let text = format!("pulse {pulse} was answered before, or a later one");
                return self.missed(pulse, text);
            }
            Err(error) => {
                let text = format!("pulse {pulse} is not answered: it can't be kept: {error}");
                return self.missed(pulse, text);
            }
        }
        let actions = self.participant.on_commitment(commitment, moment);
        self.act(actions);
        add(&self.metrics.answered, 1);
        set(&self.metrics.answer_micros, took_ns / 1000);
        let took_ms = took_ns / 1_000_000;
        let (threads, walk) = (commitment.commitment.threads.len(), commitment.commitment.walk);
        let disk = commitment.commitment.disk;
        let mut text = format!("pulse {pulse} is answered after {took_ms} ms");
        for lost in lost {
            text += "; ";
            text += lost;
        }
        let fields = json!({"pulse": pulse, "took_ms": took_ms, "threads": threads,
            "memory": walk.is_some(), "disk": disk.is_some(), "lost": lost});
        self.teller.tell("answered", text, fields);
    }

    fn missed(&mut self, pulse: u64, text: String) {
        self.pause(false);
        self.pulses.remove(&pulse);
        add(&self.metrics.missed, 1);
        self.teller.tell("missed", text, json!({"pulse": pulse}));
    }
}
