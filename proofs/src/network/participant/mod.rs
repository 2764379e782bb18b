//! One node among others: it answers pulses, watches whom it is drawn for, measures lines, and passes
//! on what is said. Messages and time go in, actions come out.
//!
//! ```text
//!   on_epoch ─► roster        on_pulse ─► Work ─► on_commitment ─► Send commitment to 7 witnesses
//!                                                                     │ Draw
//!                             Open ◄──────────────────────────────────┘
//!                              └─► on_opened ─► Send opening ─► (there) verdict, signed, gossiped
//! ```
//!
//! What peers can make it keep is limited: openings are judged as they come and not kept, only those
//! who are drawn are listened to, each once, and pools have a size.

mod answering;
mod fetching;
mod inspecting;
mod measuring;
mod watching;

use std::collections::BTreeMap;
use std::sync::Arc;

use hypha_chain::key::{Key, Signature};
use hypha_chain::message::RunClaim;
use hypha_chain::{B256, keccak256};

use self::answering::Answering;
use self::fetching::Fetching;
use self::inspecting::Inspecting;
use self::measuring::Measuring;
use self::watching::Watched;
use super::gossip::{CHECK_COST, Gossip};
use super::message::Message;
use super::pool::{Pool, Term};
use super::roster::Roster;
use super::schedule::{Pulse, Schedule, day_at};
use super::statement::{Content, Statement, TableRecord};
use super::witness::{Duty, drawn};
use crate::binding::Binding;
use crate::regenerate::Regeneration;
use crate::store::PlotRecord;
use crate::verifier::Claim;
use crate::wire::SignedCommitment;
use crate::{Challenge, Rules, draw};

/// To how many peers a new statement is passed on.
pub const FANOUT: usize = 4;
/// How long new statements are collected before they are passed on, in nanoseconds.
const COLLECT_NS: u64 = 50_000_000;
/// How often a message that is not answered is sent again, in nanoseconds.
const RESEND_NS: u64 = 500_000_000;
/// How long after its deadlines a pulse is kept for measuring, in nanoseconds.
const AFTER_NS: u64 = 2 * super::bandwidth::BURST_NS;
/// What a statement costs its sender that no one can have said.
const FALSE_COST: u64 = 64 * 1024;

/// What is the same for all who take part, and how much this node keeps.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// The work of a pulse.
    pub rules: Rules,
    /// When pulses are.
    pub schedule: Schedule,
    /// Of how many nodes in 1000 a pulse measures the bandwidth.
    pub measured_per_mille: u32,
    /// How many epochs' statements are kept.
    pub keep_epochs: u32,
    /// How many statements of each epoch or day are kept.
    pub statements_max: usize,
    /// How often pools are compared with a peer's, in nanoseconds.
    pub compare_ns: u64,
    /// How often an extent or a block of a table is made again, in nanoseconds.
    pub regenerate_ns: u64,
}

impl Settings {
    /// What a node does that keeps all statements of a large network.
    #[must_use]
    pub fn standard(schedule: Schedule) -> Self {
        Self {
            rules: Rules::STANDARD,
            schedule,
            measured_per_mille: super::bandwidth::MEASURED_PER_MILLE,
            keep_epochs: 8,
            statements_max: 4 << 20,
            compare_ns: 1_000_000_000,
            regenerate_ns: 86_400_000_000_000,
        }
    }
}

/// An instant, with randomness for what happens at it.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// On a clock that only goes forward, in nanoseconds.
    pub now_ns: u64,
    /// 32 fresh random bytes: a witness's draw is made of them, so nobody may know them before.
    pub random: B256,
}

impl Moment {
    /// Another random value of this moment.
    fn fresh(&self, purpose: &str, number: u64) -> B256 {
        let number = number.to_be_bytes();
        keccak256([&self.random[..], purpose.as_bytes(), &number].concat())
    }
}

/// What is to be done.
pub enum Action {
    /// Send a message to a node. It may be lost; what matters is sent again.
    Send {
        /// To whom.
        to: u32,
        /// `Message::encode`'s bytes.
        bytes: Vec<u8>,
    },
    /// Do the work of a pulse, then call [`Participant::on_commitment`].
    Work {
        /// What is asked.
        challenge: Challenge,
        /// What witnesses will take as claimed: its table and plot, and so many threads or more (more
        /// than are claimed must be proven before the Registry lets a claim go up).
        claim: Claim,
    },
    /// Open what a witness has drawn (`Answer::open`), then call [`Participant::on_opened`].
    Open {
        /// Of which pulse.
        pulse: u64,
        /// For whom.
        witness: u32,
        /// What is drawn.
        draw: B256,
    },
    /// A statement of one's own was made; it is in the pool and passed on already.
    Said(Statement),
    /// Make an extent again, in the background, then call [`Participant::on_regenerated`].
    Regenerate {
        /// Whose.
        node: u32,
        /// Of a table; otherwise of a plot.
        is_table: bool,
        /// The work.
        job: Box<Regeneration>,
    },
    /// Something that its author will not like.
    Evidence(Box<Evidence>),
    /// What was wanted by its hash ([`Participant::fetch`]) is here, and is that.
    Fetched {
        /// Its keccak-256.
        hash: B256,
        /// Who gave it.
        from: u32,
        /// All of it.
        bytes: Vec<u8>,
    },
}

/// What shows that somebody has lied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Evidence {
    /// A false segment: `Disputes.falseSegment` takes all the node's stake for it.
    Segment {
        /// What the node claims.
        claim: RunClaim,
        /// Its signature.
        signature: Signature,
    },
    /// Two answers to one pulse: `Capacity.equivocation` takes all the node's stake for it.
    Answers(Box<[SignedCommitment; 2]>),
    /// Two statements about one thing: neither counts. No contract takes this yet.
    Statements(Box<[Statement; 2]>),
}

/// A pulse that is going on.
struct Ongoing {
    pulse: Pulse,
    began_ns: u64,
    roster: Arc<Roster>,
    answering: Answering,
    watched: BTreeMap<u32, Watched>,
    measuring: Measuring,
}

/// A plot since a round.
type PlotSince = (u64, Option<PlotRecord>);

/// One node among others.
pub struct Participant {
    binding: Binding,
    key: Arc<Key>,
    settings: Settings,
    rosters: BTreeMap<u32, Arc<Roster>>,
    /// The pulses of each epoch, and each pulse's epoch.
    pulses: BTreeMap<u32, Vec<Pulse>>,
    epochs: BTreeMap<u64, u32>,
    /// The newest plots, and those before.
    plots: BTreeMap<u32, [PlotSince; 2]>,
    /// Tables by day and node, with the time at which they became known here.
    tables: BTreeMap<(u32, u32), (PlotRecord, u64)>,
    /// Salts of the days' tables.
    salts: BTreeMap<u32, B256>,
    ongoing: BTreeMap<u64, Ongoing>,
    gossip: Gossip,
    /// Until when whose disk or table counts nothing here, since it was found false.
    distrusted: BTreeMap<(u32, bool), u64>,
    inspecting: Inspecting,
    fetching: Fetching,
    next_pass_ns: u64,
    next_compare_ns: u64,
    next_regeneration_ns: u64,
    ignored: u64,
    /// Pulses up to this one only count as known.
    past_until: u64,
}

impl Participant {
    /// A node that has its chain key. `binding` is its own.
    #[must_use]
    pub fn new(binding: Binding, key: Arc<Key>, settings: Settings) -> Self {
        Self {
            binding,
            key,
            gossip: Gossip::new(settings.statements_max),
            settings,
            rosters: BTreeMap::new(),
            pulses: BTreeMap::new(),
            epochs: BTreeMap::new(),
            plots: BTreeMap::new(),
            tables: BTreeMap::new(),
            salts: BTreeMap::new(),
            ongoing: BTreeMap::new(),
            distrusted: BTreeMap::new(),
            inspecting: Inspecting::default(),
            fetching: Fetching::default(),
            next_pass_ns: 0,
            next_compare_ns: 0,
            next_regeneration_ns: 0,
            ignored: 0,
            past_until: 0,
        }
    }

    /// An epoch begins: who takes part in it. Its pulses can only be answered once this is known.
    pub fn on_epoch(&mut self, epoch: u32, roster: Arc<Roster>) {
        for member in roster.members() {
            self.plots.entry(member.node).or_insert([(0, member.plot), (0, member.plot)]);
        }
        self.rosters.insert(epoch, roster);
        let newest = self.rosters.keys().next_back().copied().unwrap_or(epoch);
        let oldest = newest.saturating_sub(self.settings.keep_epochs.saturating_sub(1));
        self.rosters.retain(|epoch, _| *epoch >= oldest);
        self.pulses.retain(|epoch, _| *epoch >= oldest);
        self.epochs.retain(|_, epoch| *epoch >= oldest);
        let first = self.epochs.first_key_value().map_or(0, |(pulse, _)| *pulse);
        self.inspecting.keep_from(first);
        self.fetching.keep_from(oldest);
        let (first_day, last_day) = self.days(newest);
        for day in first_day..=last_day {
            self.gossip.open(Term::Day(day));
        }
        if epoch >= oldest {
            self.gossip.open(Term::Epoch(epoch));
        }
        self.gossip.keep(|term| match term {
            Term::Epoch(epoch) => epoch >= oldest,
            Term::Day(day) => day >= first_day,
        });
        self.tables.retain(|(day, _), _| *day >= first_day);
        self.salts.retain(|day, _| *day >= first_day);
    }

    /// The days whose tables matter in an epoch: those that it touches, and the next, since a table
    /// must be known before it is used.
    fn days(&self, epoch: u32) -> (u32, u32) {
        let end = self.settings.schedule.epoch_end(epoch);
        let start = end.saturating_sub(super::schedule::EPOCH_SECS);
        (day_at(start), day_at(end) + 1)
    }

    /// A node has committed to a plot in a round (`Capacity.PlotCommitted`). Pulses of earlier rounds
    /// are still judged by the one before.
    pub fn on_plot(&mut self, node: u32, round: u64, plot: PlotRecord) {
        let since = (round, Some(plot));
        let kept = self.plots.entry(node).or_insert([(0, None), (0, None)]);
        let [_, newest] = *kept;
        *kept = if newest.0 == round { [kept[0], since] } else { [newest, since] };
    }

    /// The salt of a day's tables: the seed of the first round of that day.
    pub fn on_day(&mut self, day: u32, salt: B256) {
        self.salts.insert(day, salt);
    }

    /// This node's table of a day, as soon as it is made. Once for each day: two are a contradiction.
    pub fn on_table(&mut self, day: u32, table: PlotRecord, moment: &Moment) -> Vec<Action> {
        let (node, root, bytes_len) = (self.binding.node, table.root, table.bytes_len);
        let record = TableRecord { node, day, root, bytesLen: bytes_len };
        let mut out = Vec::new();
        self.say(Content::Table(record), moment, &mut out);
        out
    }

    /// The chain is read anew: pulses, rosters and plots come again, and may be others. Statements stay. In
    /// pulses of numbers that there were nothing is done any more: whoever spoke twice of one would have
    /// contradicted itself.
    pub fn begin_again(&mut self) {
        let newest = self.epochs.last_key_value().map_or(0, |(pulse, _)| *pulse);
        self.past_until = self.past_until.max(newest);
        self.pulses.clear();
        self.epochs.clear();
        self.plots.clear();
        self.ongoing.clear();
    }

    /// A pulse, as soon as its round is known; older ones than are kept, and ones told twice, change
    /// nothing.
    pub fn on_pulse(&mut self, pulse: &Pulse, moment: &Moment) -> Vec<Action> {
        let number = pulse.challenge.pulse;
        if number <= self.past_until {
            self.on_past_pulse(pulse);
            return Vec::new();
        }
        let Some(roster) = self.rosters.get(&pulse.epoch).cloned() else { return Vec::new() };
        if self.epochs.insert(number, pulse.epoch).is_some() {
            return Vec::new();
        }
        self.pulses.entry(pulse.epoch).or_default().push(*pulse);
        self.draw_inspectors(pulse, moment);
        let mut out = Vec::new();
        let me = self.binding.node;
        let witnesses = drawn(&roster, &pulse.challenge, Duty::Witness, me);
        if let Some(claim) = self.claim_of(&roster, pulse, me, moment.now_ns) {
            out.push(Action::Work { challenge: pulse.challenge, claim });
        }
        let measuring = Measuring::new(&self.settings, &roster, pulse, me);
        let ends_ns = moment.now_ns + self.settings.rules.commit_ns + RESEND_NS;
        let ongoing = Ongoing {
            pulse: *pulse,
            began_ns: moment.now_ns,
            roster,
            answering: Answering::new(witnesses, ends_ns),
            watched: BTreeMap::new(),
            measuring,
        };
        self.ongoing.insert(number, ongoing);
        out
    }

    /// A pulse that was over before this node could take part: its statements are taken and passed
    /// on, nothing else.
    pub fn on_past_pulse(&mut self, pulse: &Pulse) {
        let known = self.rosters.contains_key(&pulse.epoch);
        if known && self.epochs.insert(pulse.challenge.pulse, pulse.epoch).is_none() {
            self.pulses.entry(pulse.epoch).or_default().push(*pulse);
        }
    }

    /// A message. `from` is the node that the connection is to; it is believed for nothing but where
    /// answers go and what it costs. What one peer costs is limited: if anybody could pose as `from`,
    /// anybody could have it not listened to, so connections should show whose they are.
    pub fn on_message(&mut self, from: u32, bytes: &[u8], moment: &Moment) -> Vec<Action> {
        let message = Message::decode(bytes);
        let unreadable = CHECK_COST + bytes.len() as u64 / 64;
        let cost = message.as_ref().map_or(unreadable, |message| message.cost(bytes.len()));
        let mut out = Vec::new();
        let (true, Ok(message)) = (self.gossip.may_cost(from, cost, moment.now_ns), message) else {
            self.ignored += 1;
            return out;
        };
        match message {
            Message::Commitment(bytes) => self.on_their_commitment(&bytes, moment, &mut out),
            Message::Draw { .. } => self.on_draw(from, &message, moment, &mut out),
            Message::Opening { .. } => self.on_their_opening(&message, moment, &mut out),
            Message::Statements(statements) => {
                self.on_statements(from, statements, moment, &mut out);
            }
            Message::Summary(term, range, sums) => {
                let answers = self.gossip.on_summary(term, range, &sums);
                self.answer(from, &answers, moment, &mut out);
            }
            Message::List(term, range, ids) => {
                let answers = self.gossip.on_list(term, range, &ids);
                self.answer(from, &answers, moment, &mut out);
            }
            Message::Want(term, ids) => {
                let mut answers = self.gossip.on_want(term, &ids);
                answers.extend(self.fetching.statements(term, &ids, self.gossip.pool(term)));
                self.answer(from, &answers, moment, &mut out);
            }
            Message::Ready { .. } => self.on_ready(&message, moment, &mut out),
            Message::Head { .. } => self.on_head(&message),
            Message::Chunk { pulse, challenger, index, bytes } => {
                self.on_chunk(pulse, (challenger, index), &bytes, moment, &mut out);
            }
            Message::Receipt(receipt) => self.on_receipt(&receipt, moment, &mut out),
            Message::WantPiece { hash, offset } => {
                let answers: Vec<Message> =
                    self.fetching.piece(&hash, offset).into_iter().collect();
                self.answer(from, &answers, moment, &mut out);
            }
            Message::Piece { .. } => self.on_piece(from, message, moment, &mut out),
        }
        out
    }

    /// How many messages were not looked at: they can't be read, or their sender costs too much.
    #[must_use]
    pub fn ignored(&self) -> u64 {
        self.ignored
    }

    /// Time goes on. To be called at [`Self::wakes_ns`], or oftener.
    pub fn on_tick(&mut self, moment: &Moment) -> Vec<Action> {
        let mut out = Vec::new();
        let pulses: Vec<u64> = self.ongoing.keys().copied().collect();
        for pulse in pulses {
            self.tick_answering(pulse, moment.now_ns, &mut out);
            self.tick_measuring(pulse, moment, &mut out);
        }
        let rules = self.settings.rules;
        self.ongoing.retain(|_, ongoing| moment.now_ns < ongoing.ends_ns(&rules));
        self.distrusted.retain(|_, until| moment.now_ns < *until);
        self.tick_inspecting(moment, &mut out);
        self.tick_fetching(moment, &mut out);
        if moment.now_ns >= self.next_pass_ns {
            self.next_pass_ns = moment.now_ns + COLLECT_NS;
            let peers = self.peers("pass", FANOUT, moment);
            for (to, message) in self.gossip.pass_on(&peers) {
                out.push(Action::Send { to, bytes: message.encode() });
            }
        }
        if moment.now_ns >= self.next_compare_ns {
            self.next_compare_ns = moment.now_ns + self.settings.compare_ns;
            self.compare(moment, &mut out);
        }
        out
    }

    /// When [`Self::on_tick`] has something to do next, on the clock of [`Moment::now_ns`].
    #[must_use]
    pub fn wakes_ns(&self) -> u64 {
        let rules = &self.settings.rules;
        let pulses = self.ongoing.values().flat_map(|it| {
            let measuring = it.measuring.due_ns(it.began_ns, rules);
            [Some(it.ends_ns(rules)), it.answering.due_ns(), measuring]
        });
        let pass = self.gossip.has_fresh().then_some(self.next_pass_ns);
        let inspect = self.inspecting.has_work().then_some(self.next_pass_ns);
        let rest = [pass, inspect, self.fetching.due_ns(), Some(self.next_compare_ns)];
        pulses.chain(rest).flatten().min().unwrap_or(self.next_compare_ns)
    }

    /// The statements of an epoch, if it is kept: what `Ledger::close` takes.
    #[must_use]
    pub fn pool(&self, epoch: u32) -> Option<&Pool> {
        self.gossip.pool(Term::Epoch(epoch))
    }

    /// From now on, of an author that has contradicted itself in an epoch the same two statements are
    /// kept, whatever comes later: the epoch is closed with them, and they may be asked for.
    pub fn settle(&mut self, epoch: u32) {
        self.gossip.settle(Term::Epoch(epoch));
    }

    /// The pulses of an epoch that are known, in their order.
    #[must_use]
    pub fn pulses(&self, epoch: u32) -> &[Pulse] {
        self.pulses.get(&epoch).map(Vec::as_slice).unwrap_or_default()
    }

    /// Who takes part in an epoch, if it is kept.
    #[must_use]
    pub fn roster(&self, epoch: u32) -> Option<&Arc<Roster>> {
        self.rosters.get(&epoch)
    }

    /// What ties work to another node.
    fn binding_of(&self, node: u32) -> Binding {
        Binding { node, ..self.binding }
    }

    /// What is asked of a node in a pulse, by what was known when it began.
    fn claim_of(&self, roster: &Roster, pulse: &Pulse, node: u32, began: u64) -> Option<Claim> {
        let mut member = *roster.member(node)?;
        let round = pulse.challenge.pulse;
        if let Some([before, newest]) = self.plots.get(&node) {
            member.plot = if newest.0 <= round { newest.1 } else { before.1 };
        }
        let table = self.tables.get(&(day_at(pulse.timestamp), node));
        let table = table.filter(|(_, known)| *known <= began).map(|(table, _)| *table);
        Some(member.claim(&self.binding, table))
    }

    /// Says something: signs it, keeps it, passes it on.
    fn say(&mut self, content: Content, moment: &Moment, out: &mut Vec<Action>) {
        let me = self.binding.node;
        let statement = Statement::new(me, content, &self.binding, &self.key);
        if let Some(term) = self.term_of(&statement) {
            self.learn(me, term, statement.clone(), moment, out);
            out.push(Action::Said(statement));
        }
    }

    fn term_of(&self, statement: &Statement) -> Option<Term> {
        match &statement.content {
            Content::Table(it) => Some(Term::Day(it.day)),
            content => {
                let epoch = content.pulse().and_then(|pulse| self.epochs.get(&pulse));
                epoch.map(|epoch| Term::Epoch(*epoch))
            }
        }
    }

    fn on_statements(
        &mut self,
        from: u32,
        statements: Vec<Statement>,
        moment: &Moment,
        out: &mut Vec<Action>,
    ) {
        for statement in statements {
            let Some(term) = self.term_of(&statement) else { continue };
            let is_wanted = self.gossip.wants(term, &statement);
            if !is_wanted && !self.fetching.misses(term, &statement) {
                continue;
            }
            if !self.gossip.may_cost(from, CHECK_COST, moment.now_ns) {
                return;
            }
            if self.is_true(term, &statement) {
                self.fetching.take(term, &statement);
                if is_wanted {
                    self.learn(from, term, statement, moment, out);
                }
            } else if !self.gossip.may_cost(from, FALSE_COST, moment.now_ns) {
                return;
            }
        }
    }

    /// Whether its author could say that, and has.
    fn is_true(&self, term: Term, statement: &Statement) -> bool {
        let author = statement.author;
        let (roster, may) = match (term, &statement.content) {
            (Term::Day(_), Content::Table(it)) => {
                (self.rosters.values().next_back(), it.node == author)
            }
            (Term::Epoch(epoch), content) => {
                let duty = match content {
                    Content::Bandwidth(_) => Duty::Challenger,
                    Content::Inspected(_) => Duty::Inspector,
                    _ => Duty::Witness,
                };
                let pulses = self.pulses.get(&epoch).map(Vec::as_slice).unwrap_or_default();
                let pulse = pulses.iter().find(|it| Some(it.challenge.pulse) == content.pulse());
                let roster = self.rosters.get(&epoch);
                let may = pulse.zip(roster).is_some_and(|(pulse, roster)| {
                    drawn(roster, &pulse.challenge, duty, content.node()).contains(&author)
                });
                (roster, may)
            }
            _ => (None, false),
        };
        let signer = roster.and_then(|roster| roster.member(author)).map(|it| it.signer);
        may && signer.is_some_and(|signer| statement.is_signed_by(signer, &self.binding))
    }

    /// Keeps a checked statement.
    fn learn(
        &mut self,
        from: u32,
        term: Term,
        statement: Statement,
        moment: &Moment,
        out: &mut Vec<Action>,
    ) {
        let table = match &statement.content {
            Content::Table(it) => statement.table().map(|table| ((it.day, it.node), table)),
            _ => None,
        };
        match (self.gossip.add(from, term, statement.clone()), table) {
            (None, None) => {
                if let Content::False(finding) = &statement.content {
                    self.on_finding(statement.author, finding, moment);
                }
            }
            (None, Some((place, table))) => {
                self.tables.entry(place).or_insert((table, moment.now_ns));
            }
            (Some(before), table) => {
                if let Some((place, _)) = table {
                    self.tables.remove(&place);
                }
                let both = Box::new([before, statement]);
                out.push(Action::Evidence(Box::new(Evidence::Statements(both))));
            }
        }
    }

    /// Sends answers, if the peer has not had too many.
    fn answer(&mut self, to: u32, answers: &[Message], moment: &Moment, out: &mut Vec<Action>) {
        for message in answers {
            let bytes = message.encode();
            if !self.gossip.may_cost(to, bytes.len() as u64, moment.now_ns) {
                return;
            }
            out.push(Action::Send { to, bytes });
        }
    }

    /// Asks a peer about the newest epoch, and about one other term.
    fn compare(&mut self, moment: &Moment, out: &mut Vec<Action>) {
        let terms: Vec<Term> = self.gossip.terms().collect();
        let newest = self.rosters.keys().next_back().map(|epoch| Term::Epoch(*epoch));
        let at = draw(&moment.fresh("term", 0), 0, 0, terms.len() as u64) as usize;
        let other = terms.get(at).copied().filter(|term| Some(*term) != newest);
        for to in self.peers("compare", 1, moment) {
            for term in [newest, other].into_iter().flatten() {
                if let Some(message) = self.gossip.compare(term) {
                    out.push(Action::Send { to, bytes: message.encode() });
                }
            }
        }
    }

    /// So many others of the newest roster, or all if there are no more.
    fn peers(&self, purpose: &str, count: usize, moment: &Moment) -> Vec<u32> {
        let Some(roster) = self.rosters.values().next_back() else { return Vec::new() };
        let (members, me) = (roster.members(), self.binding.node);
        if members.len() <= count + 1 {
            return members.iter().map(|it| it.node).filter(|node| *node != me).collect();
        }
        let mut peers = Vec::with_capacity(count);
        for number in 0..4 * count as u32 {
            let at = draw(&moment.fresh(purpose, 0), 0, number, members.len() as u64);
            let found = members.get(at as usize).map(|member| member.node);
            if let Some(node) = found.filter(|node| *node != me && !peers.contains(node)) {
                peers.push(node);
            }
            if peers.len() == count {
                break;
            }
        }
        peers
    }
}

impl Ongoing {
    fn ends_ns(&self, rules: &Rules) -> u64 {
        self.began_ns + rules.commit_ns + rules.open_ns + AFTER_NS
    }
}
