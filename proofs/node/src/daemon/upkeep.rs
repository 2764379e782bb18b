//! What is not urgent: filler, the plot, the day's table, challenges of the chain.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use hypha_chain::B256;
use hypha_chain::contracts::Capacity;
use hypha_chain::tree::Plot;
use hypha_proofs::label::LABEL_BYTES;
use hypha_proofs::network::participant::Moment;
use hypha_proofs::network::roster::Caps;
use hypha_proofs::ram::Table;
use serde_json::json;

use super::core::{Asked, Core};
use super::inputs::Input;
use super::sending::Ticket;
use super::showing::{self, Shown};
use crate::clock::random32;
use crate::filler::Filler;
use crate::filler::plotter::{Event, Pace, Plotter, sample};
use crate::machine::{Limits, Memory, Sources};
use crate::metrics::{add, set};
use crate::shards::Keeper;
use crate::table::Recipe;

/// How often an extent is compared with its hashes.
const COMPARE_NS: u64 = 600_000_000_000;
/// How long after a failure a challenged leaf is looked for again.
const SHOW_AGAIN_NS: u64 = 30_000_000_000;
/// Of the memory that is free, a table takes four fifths at most.
const MEMORY_SHARE: (u64, u64) = (4, 5);

impl Core<'_> {
    pub(super) fn tend(&mut self, now_ns: u64) {
        if self.mine.is_some() && self.time.block >= self.time.awaits_block {
            self.tend_shards();
            self.tend_filler(now_ns);
            self.tend_plot(now_ns);
            self.tend_table();
        }
        self.tend_challenges(now_ns);
        let now_secs = self.time.secs;
        self.tend_epochs((now_ns, now_secs));
        set(&self.metrics.peers, self.peers.links() as u64);
        let (counters, metrics) = (self.peers.counters(), &self.metrics);
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        set(&metrics.messages_dropped, read(&counters.dropped));
        set(&metrics.messages_ignored, read(&counters.flooded) + self.participant.ignored());
        set(&metrics.peers_cut_off, read(&counters.cut_off));
    }

    /// Bytes of filler that there should be: what is claimed as disk and nobody has reserved, and no more
    /// than shards leave of it. Of a parked node too: it may come back, and its filler took days to make.
    fn wanted(&self) -> u64 {
        let bytes = |it: &Caps| it.ssd_mib.saturating_add(it.hdd_mib).saturating_mul(1 << 20);
        let Some(mine) = &self.mine else { return 0 };
        bytes(&mine.idle()).min(self.room_beside_shards(bytes(&mine.claimed)))
    }

    fn tend_filler(&mut self, now_ns: u64) {
        if self.config.places.is_empty() && self.config.shards.is_empty() {
            return;
        }
        let salt = self.mine.as_ref().and_then(|mine| mine.salt);
        let Some(salt) = salt else {
            // It takes the node's own key. Without it there is nothing to make filler of, and no plot.
            let call = Capacity::drawSaltCall { node: self.config.node };
            self.sending.send(Ticket::Salt, self.config.suite.capacity, &call, now_ns);
            return;
        };
        if self.config.places.is_empty() || (self.plotter.is_none() && !self.open_filler(&salt)) {
            return;
        }
        let wanted = self.wanted();
        let mut events = Vec::new();
        if let Some(plotter) = &self.plotter {
            let progress = plotter.progress();
            if progress.wanted != wanted {
                // The core itself listens to what this tells: it must not wait for its own queue.
                let told = std::cell::RefCell::new(&mut events);
                plotter.want(wanted, &|event| told.borrow_mut().push(event));
                let (kept, text) = (progress.kept, "bytes of filler are wanted");
                let fields = json!({"wanted": wanted, "kept": kept});
                self.teller.tell(
                    "filler-wanted",
                    format!("{wanted} {text}, {kept} are there"),
                    fields,
                );
            }
            set(&self.metrics.filler_bytes, progress.kept);
            set(&self.metrics.filler_wanted_bytes, wanted);
            set(&self.metrics.filler_made_bytes, progress.made);
        }
        for event in events {
            self.on_filler(&event);
        }
    }

    /// Opens the folders. What fails is told, and tried again.
    fn open_filler(&mut self, salt: &B256) -> bool {
        let random = || {
            let word = random32().and_then(|bytes| bytes.first_chunk::<4>().copied());
            word.map_or(0, u32::from_be_bytes)
        };
        let (places, binding) = (self.config.places.clone(), self.config.binding());
        let opened = Filler::open(places, (&binding, salt), self.config.extent_bytes, random);
        let (mut filler, rotten) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                let text = format!("no filler is kept: {error}");
                self.teller.tell("filler-failed", text, json!({"error": error.to_string()}));
                // Not at once, and not silently: whoever mends it starts again.
                self.config.places.clear();
                return false;
            }
        };
        for (folder, it) in rotten {
            self.tell_rotten(&folder.join(format!("{:010}", it.number)));
        }
        match sample(&mut filler) {
            Ok(rotten) => rotten.iter().for_each(|path| self.tell_rotten(path)),
            Err(error) => {
                let text = format!("damaged filler can't be removed: {error}");
                self.teller.tell("disk-failed", text, json!({}));
            }
        }
        let pace = Pace { threads: self.config.plot_threads, compare_ns: COMPARE_NS };
        let core = self.core.clone();
        let tell = move |event| _ = core.send(Input::Filler(event));
        // What is on the disk may be other than what was committed to.
        (self.is_shrunk, self.is_grown) = (true, true);
        match Plotter::start(filler, pace, tell) {
            Ok(plotter) => self.plotter = Some(plotter),
            Err(error) => {
                let text = format!("no filler is made: no thread can be made: {error}");
                self.teller.tell("filler-failed", text, json!({}));
            }
        }
        self.plotter.is_some()
    }

    fn tell_rotten(&mut self, path: &std::path::Path) {
        add(&self.metrics.rotten, 1);
        let text = format!("{} was damaged; it is made again", path.display());
        self.teller.tell("rotten", text, json!({"path": path}));
    }

    pub(super) fn on_filler(&mut self, event: &Event) {
        match event {
            Event::Grown => {
                self.is_grown = true;
                let Some(plotter) = &self.plotter else { return };
                let progress = plotter.progress();
                let (kept, wanted) = (progress.kept, progress.wanted);
                let text = format!("{kept} of {wanted} bytes of filler");
                self.teller.tell("plotted", text, json!({"kept": kept, "wanted": wanted}));
            }
            Event::Shrunk => {
                self.is_shrunk = true;
                let kept = self.plotter.as_ref().map_or(0, |plotter| plotter.progress().kept);
                let text = format!("filler was given up, {kept} bytes are left");
                self.teller.tell("given-up", text, json!({"kept": kept}));
            }
            Event::Rotten { path } => self.tell_rotten(path),
            Event::Failed { folder, error } => {
                let text = format!("{}: {error}; it is tried again", folder.display());
                self.teller.tell("disk-failed", text, json!({"folder": folder}));
            }
        }
    }

    /// Commits to what is there: at once if it is less than what is committed to, and otherwise now and
    /// then.
    fn tend_plot(&mut self, now_ns: u64) {
        let is_changed = self.is_shrunk || self.is_grown;
        if !is_changed || !self.sending.is_free(Ticket::Plot, now_ns) {
            return;
        }
        // What is not known yet would be missing from the plot.
        let is_known = self.plotter.is_some() || self.config.places.is_empty();
        if !(is_known && self.knows_shards()) {
            return;
        }
        let committed = self.mine.as_ref().and_then(|mine| mine.plot);
        let mut extents = self.plotter.as_ref().map_or_else(Vec::new, |it| it.filler().listed());
        extents.extend(self.keeper.iter().flat_map(Keeper::listed));
        let bytes_len: u64 = extents.iter().map(|extent| extent.bytes_len).sum();
        let committed_len = committed.map_or(0, |plot| plot.bytes_len);
        let since_ns = self.committed_ns.map(|at| now_ns - at);
        let recent = since_ns.is_some_and(|since| since < self.config.timing.commit_ns);
        let is_first = committed_len == 0 && bytes_len > 0;
        let urgent = self.is_shrunk || is_first || self.is_loss_urgent(committed_len, since_ns);
        if recent && !urgent {
            return;
        }
        let root = Plot::new(extents.clone()).map(|plot| plot.root()).unwrap_or_default();
        let is_same = committed
            .map_or(bytes_len == 0, |plot| (plot.root, plot.bytes_len) == (root, bytes_len));
        if is_same {
            (self.is_shrunk, self.is_grown) = (false, false);
            self.shards.lost = 0;
            return;
        }
        if let Err(error) = self.plots.keep(&extents) {
            let text = format!("a plot can't be kept, so it is not committed to: {error}");
            self.teller.tell("disk-failed", text, json!({}));
            return;
        }
        let call = Capacity::commitPlotCall { node: self.config.node, root, bytesLen: bytes_len };
        self.committed_ns = Some(now_ns);
        self.sending.send(Ticket::Plot, self.config.suite.capacity, &call, now_ns);
    }

    /// Makes the table of the day, and gives it up if its memory is reserved.
    fn tend_table(&mut self) {
        let idle_mib = self.mine.as_ref().map_or(0, |mine| u64::from(mine.idle().mem_mib));
        if let Some((day, table)) = &self.table
            && table.record().bytes_len > idle_mib << 20
        {
            let text = "the memory table is given up: its memory is reserved".to_owned();
            self.teller.tell("table-given-up", text, json!({"day": *day}));
            self.table = None;
            set(&self.metrics.table_bytes, 0);
        }
        let Some((day, salt)) = self.day else { return };
        if self.making.as_ref().is_some_and(|(made, _)| *made == day) {
            return;
        }
        let labels = self.config.network.rules.block_bytes / LABEL_BYTES as u64;
        let sources = Sources::of_this_machine();
        let free = Memory::read(&sources, &Limits::read(&sources)).usable();
        // The table of the day before is free when this one is made.
        let before = self.table.take().map_or(0, |(_, table)| table.record().bytes_len);
        let (part, whole) = MEMORY_SHARE;
        let fits_mib = (free.saturating_add(before) / whole * part) >> 20;
        let mib = idle_mib.min(self.config.memory_mib_max).min(fits_mib);
        let wanted = Recipe::blocks_of(mib, labels);
        let blocks = match self.memo.table(day, wanted) {
            Ok(blocks) => blocks,
            Err(error) => {
                let text = format!("no memory table is made: it can't be kept: {error}");
                return self.teller.tell("disk-failed", text, json!({}));
            }
        };
        let stop = Arc::new(AtomicBool::new(false));
        if let Some((_, before)) = self.making.replace((day, Arc::clone(&stop))) {
            before.store(true, Ordering::Release);
        }
        if blocks == 0 || u64::from(blocks) * labels * LABEL_BYTES as u64 > idle_mib << 20 {
            return;
        }
        let recipe =
            Recipe { binding: self.config.binding(), day, salt, blocks, block_labels: labels };
        let (core, pause, threads) =
            (self.core.clone(), Arc::clone(&self.paused), self.config.plot_threads);
        thread::spawn(move || {
            let table = recipe.make(threads, &stop, &pause).map(Arc::new);
            _ = core.send(Input::Table(day, table));
        });
    }

    pub(super) fn on_table(&mut self, day: u32, table: Option<Arc<Table>>, moment: &Moment) {
        let is_wanted = self.making.as_ref().is_some_and(|(made, _)| *made == day);
        let Some(table) = table.filter(|_| is_wanted) else { return };
        let record = table.record();
        let mib = record.bytes_len >> 20;
        set(&self.metrics.table_bytes, record.bytes_len);
        let text = format!("the memory table of day {day} is made, {mib} MiB");
        self.teller.tell("table", text, json!({"day": day, "bytes": record.bytes_len}));
        self.table = Some((day, table));
        let actions = self.participant.on_table(day, record, moment);
        self.act(actions);
    }

    fn tend_challenges(&mut self, now_ns: u64) {
        let now_secs = self.time.secs;
        let (mut over, reading) = (Vec::new(), self.reading());
        let committed = self.mine.as_ref().and_then(|mine| mine.plot).map(|plot| plot.root);
        for (id, (challenge, asked)) in &mut self.challenges {
            if challenge.deadline < now_secs {
                over.push(*id);
                continue;
            }
            if matches!(asked, Asked::Found(Shown::Gone(_)))
                && committed == Some(challenge.plotRoot)
            {
                // The very plot again: a folder that was away is back, and the byte can be shown.
                *asked = Asked::Waiting(now_ns);
            }
            match asked {
                Asked::Waiting(at) if *at <= now_ns => {
                    *asked = Asked::Looking;
                    let extents = self.plots.extents(&challenge.plotRoot);
                    let reading = reading.clone();
                    let (id, challenge, core) = (*id, challenge.clone(), self.core.clone());
                    thread::spawn(move || {
                        let shown = showing::show(&challenge, extents, &reading);
                        let shown = shown.map_err(|error| error.to_string());
                        _ = core.send(Input::Shown(id, shown));
                    });
                }
                Asked::Found(shown) => {
                    let (it, ticket) = (challenge.clone(), Ticket::Challenge(*id));
                    let to = self.config.suite.capacity;
                    match shown {
                        Shown::Leaf(answer) => {
                            let call = Capacity::answerCall { it, shown: answer.as_ref().clone() };
                            self.sending.send(ticket, to, &call, now_ns);
                        }
                        Shown::Gone(way) => {
                            let call = Capacity::releaseCall { it, way: way.as_ref().clone() };
                            self.sending.send(ticket, to, &call, now_ns);
                        }
                    }
                }
                Asked::Waiting(_) | Asked::Looking => {}
            }
        }
        for id in over {
            self.challenges.remove(&id);
            let text = format!("challenge {id} was not answered in time");
            self.teller.tell("challenge-lost", text, json!({"challenge": id}));
        }
    }

    /// Another plot is committed to: what waits for that, waits no longer.
    pub(super) fn look_again(&mut self) {
        for (_, asked) in self.challenges.values_mut() {
            if let Asked::Waiting(at) = asked {
                *at = 0;
            }
        }
    }

    pub(super) fn on_shown(&mut self, id: u64, shown: Result<Shown, String>, now_ns: u64) {
        let committed = self.mine.as_ref().and_then(|mine| mine.plot);
        let Some((challenge, state)) = self.challenges.get_mut(&id) else { return };
        let is_committed = committed.is_some_and(|plot| plot.root == challenge.plotRoot);
        match shown {
            Ok(Shown::Gone(_)) if is_committed => {
                // The plot without it is due now, not in ten minutes.
                *state = Asked::Waiting(now_ns + SHOW_AGAIN_NS);
                self.is_shrunk = true;
                let text =
                    format!("challenge {id} waits for a plot without the shard that is gone");
                self.teller.tell("challenge-waits", text, json!({"challenge": id}));
            }
            Ok(shown) => {
                *state = Asked::Found(shown);
                self.tend_challenges(now_ns);
            }
            Err(error) => {
                *state = Asked::Waiting(now_ns + SHOW_AGAIN_NS);
                let text = format!("challenge {id} can't be answered yet: {error}");
                self.teller.tell("challenge-failed", text, json!({"challenge": id}));
            }
        }
    }
}
