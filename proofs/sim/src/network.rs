//! A network over days: the real schedule draws pulses, the real roster draws witnesses, the real ledger
//! makes rewards of their verdicts. What the witnesses see of a node is drawn, a whole pulse at a time,
//! from what seven real verifiers saw of its strategy in the [`crate::arena`]; only signatures are left
//! out, since nobody here forges them.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use fastrand::Rng;
use hypha_chain::key::Signature;
use hypha_chain::{Address, B256, keccak256};
use hypha_proofs::Rules;
use hypha_proofs::network::ledger::{CloseError, Closing, Ledger, Terms, Weights};
use hypha_proofs::network::pool::Pool;
use hypha_proofs::network::roster::{Caps, Member, Place, Roster, RosterError};
use hypha_proofs::network::schedule::{EPOCH_SECS, Pulse, Pulses, Round, Schedule};
use hypha_proofs::network::statement::{Content, Inspection, Statement};
use hypha_proofs::network::witness::{Duty, WITNESSES, drawn};
use hypha_proofs::verifier::PulseVerdict;

use crate::arena::{self, Record, Seen};
use crate::machine::{Claims, RULES};
use crate::strategy::Strategy;

/// The first second of epoch 0.
const START_SECS: u64 = 1_800_000_000;
/// A token in its smallest unit.
pub const TOKEN: u128 = 1_000_000_000_000_000_000;
/// What `hypha chain init` gives out in an hour, of a thousand million tokens.
pub const EMISSION: u128 = 10_000 * TOKEN;
/// What a node of the simulation claims of memory and disks.
const MEM_MIB: u32 = 64 << 10;
const HDD_MIB: u64 = 4 << 20;
/// Threads that make statements; more change nothing but time.
const WORKERS: usize = 2;

/// How the nodes of a group behave.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Conduct<'a> {
    /// As was seen in the arena.
    Seen(&'a Record),
    /// They have nothing, and swear for each other; of others they tell the truth.
    Colluding,
    /// The same, and of others they say nothing.
    Denying,
}

/// Nodes of one kind.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Group<'a> {
    /// What they do.
    pub conduct: Conduct<'a>,
    /// How many boxes; each has as many nodes as its strategy has identities.
    pub boxes: u32,
}

/// A network and how long it is watched.
#[derive(Debug, Clone, PartialEq)]
pub struct Network<'a> {
    /// Decides everything.
    pub seed: u64,
    /// Who takes part.
    pub groups: Vec<Group<'a>>,
    /// Hours.
    pub epochs: u32,
    /// Of these, the last so many are counted.
    pub counted: u32,
}

/// What came of a group in the counted hours.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Income {
    /// Its boxes.
    pub boxes: u32,
    /// Earned by a box in a day, in tokens.
    pub earned: f64,
    /// Stake that a box lost, from the first hour on, in tokens.
    pub lost: f64,
    /// What a box has at stake, in tokens.
    pub stake: f64,
    /// Of the pulses that counted, those of which anything was proven.
    pub answered: f64,
}

/// What came of a network.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// For each group.
    pub incomes: Vec<Income>,
    /// Pulses that were drawn, and those that counted.
    pub pulses: (u32, u32),
    /// Nodes.
    pub nodes: u32,
    /// Over all epochs' data: the same seed has the same.
    pub trace: B256,
    /// Bytes of an epoch's data, in the mean.
    pub epoch_bytes: u64,
}

/// Why a network can't be simulated: it is none.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The roster.
    #[error(transparent)]
    Roster(#[from] RosterError),
    /// The ledger.
    #[error(transparent)]
    Close(#[from] CloseError),
}

/// A node.
#[derive(Debug, Clone, Copy)]
struct Node {
    group: usize,
    box_number: u32,
    identity: u32,
    slashed: bool,
    claimed: Caps,
}

struct Running<'a> {
    network: &'a Network<'a>,
    nodes: Vec<Node>,
    members: Vec<Member>,
    lost: Vec<f64>,
    answered: Vec<(u64, u64)>,
    /// From which epoch on each node makes an extent or a block again of somebody that it watches.
    makes_again: Vec<u32>,
    /// Whose filler a witness has found false since the last pulse: the next one draws inspectors.
    found_false: BTreeSet<u32>,
}

impl Network<'_> {
    /// Runs it.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub fn run(&self) -> Result<Outcome, NetworkError> {
        let mut running = Running::new(self);
        let schedule = schedule();
        let mut pulses = Pulses::new(schedule);
        let mut ledger = Ledger::default();
        let farms = running.members.last().map_or(0, |member| member.farm);
        let terms = Terms {
            emission: EMISSION,
            cap: u128::MAX / 2,
            disk_draws: Rules::STANDARD.disk_draws,
            measured_per_mille: 0,
            weights: Weights::STANDARD,
        };
        let (mut trace, mut bytes, mut counts) = (B256::ZERO, 0, (0, 0));
        let mut before = vec![0; farms as usize];
        for epoch in 0..self.epochs {
            if epoch + self.counted == self.epochs {
                before = (1..=farms).map(|farm| ledger.earned(farm)).collect();
                running.answered.fill((0, 0));
            }
            let starts = START_SECS + u64::from(epoch) * EPOCH_SECS;
            let of_epoch: Vec<Pulse> =
                rounds(self.seed, epoch).filter_map(|it| pulses.on_round(&it)).collect();
            let roster = Roster::new(running.standing(), starts)?;
            let mut pool = Pool::new(usize::MAX);
            for pulse in &of_epoch {
                running.pulse(&roster, pulse, &mut pool);
            }
            let closing = Closing {
                epoch,
                ends_secs: schedule.epoch_end(epoch),
                counts: (running.nodes.len() as u32, farms),
                roster: &roster,
                pulses: &of_epoch,
                pool: &pool,
            };
            let data = ledger.close(&terms, &closing)?;
            counts.0 += of_epoch.len() as u32;
            counts.1 += running.count(&data.verdicts);
            let encoded = data.encode();
            bytes += encoded.len() as u64;
            trace = keccak256([trace, keccak256(encoded)].concat());
            ledger = data.ledger;
        }
        let earned =
            |farm: u32| ledger.earned(farm) - before.get(farm as usize - 1).copied().unwrap_or(0);
        let incomes = running.incomes(earned);
        let nodes = running.nodes.len() as u32;
        let epoch_bytes = bytes / u64::from(self.epochs.max(1));
        Ok(Outcome { incomes, pulses: counts, nodes, trace, epoch_bytes })
    }
}

impl<'a> Running<'a> {
    fn new(network: &'a Network<'a>) -> Self {
        let (mut nodes, mut members) = (Vec::new(), Vec::new());
        let mut farm = 0;
        for (index, group) in network.groups.iter().enumerate() {
            let (strategy, identities) = match group.conduct {
                Conduct::Seen(record) => (record.strategy, record.strategy.identities()),
                _ => (Strategy::Honest(Claims::ALL), 1),
            };
            let claimed = claimed(&strategy);
            for box_number in 0..group.boxes {
                // A farm for each box: what a box earns is its farm's.
                farm += 1;
                for identity in 0..identities {
                    let node = nodes.len() as u32 + 1;
                    members.push(member(node, farm, claimed));
                    let group = index;
                    nodes.push(Node { group, box_number, identity, slashed: false, claimed });
                }
            }
        }
        let groups = network.groups.len();
        Self {
            network,
            makes_again: vec![0; nodes.len()],
            nodes,
            members,
            lost: vec![0.0; groups],
            answered: vec![(0, 0); groups],
            found_false: BTreeSet::new(),
        }
    }

    /// All who have a stake.
    fn standing(&self) -> Vec<Member> {
        let all = self.members.iter().zip(&self.nodes);
        all.filter(|(_, node)| !node.slashed).map(|(member, _)| *member).collect()
    }

    /// A pulse: what all witnesses say, and who has signed evidence against itself.
    fn pulse(&mut self, roster: &Roster, pulse: &Pulse, pool: &mut Pool) {
        let mut rng = Rng::with_seed(self.network.seed ^ pulse.challenge.pulse);
        self.inspect(roster, pulse, pool);
        // One box has one fate in a pulse: crashes and late blocks hit all its identities.
        let fates: Vec<u64> = self.network.groups.iter().map(|_| rng.u64(..)).collect();
        let members = roster.members();
        let part = members.len().div_ceil(WORKERS).max(1);
        let this = &*self;
        let fates = &fates;
        let said: Vec<(Vec<Statement>, Vec<u32>)> = std::thread::scope(|scope| {
            let parts: Vec<_> = members
                .chunks(part)
                .map(|members| scope.spawn(move || this.verdicts(roster, pulse, members, fates)))
                .collect();
            parts.into_iter().filter_map(|part| part.join().ok()).collect()
        });
        for (statements, convicted) in said {
            for statement in statements {
                self.make_again(&statement, pulse.epoch, &mut rng);
                pool.add(statement);
            }
            for node in convicted {
                self.slash(node);
            }
        }
    }

    fn verdicts(
        &self,
        roster: &Roster,
        pulse: &Pulse,
        members: &[Member],
        fates: &[u64],
    ) -> (Vec<Statement>, Vec<u32>) {
        let (mut said, mut convicted) = (Vec::with_capacity(members.len() * WITNESSES), Vec::new());
        for member in members {
            let Some((node, group)) = self.node(member.node) else { continue };
            let colludes = !matches!(group.conduct, Conduct::Seen(_));
            let fate = fates.get(node.group).copied().unwrap_or_default();
            let seen = match group.conduct {
                Conduct::Seen(record) => drawn_of(record, node, fate),
                _ => None,
            };
            let seen = seen.unwrap_or_default();
            if seen.evidence > 0 {
                convicted.push(member.node);
            }
            let witnesses = drawn(roster, &pulse.challenge, Duty::Witness, member.node);
            for (witness, seen) in witnesses.into_iter().zip(seen.seen) {
                let conduct = self.node(witness).map(|(_, group)| group.conduct);
                let seen = match conduct {
                    Some(Conduct::Colluding | Conduct::Denying) if colludes => ALL_OF_IT,
                    Some(Conduct::Denying) => Seen::default(),
                    _ => seen,
                };
                if seen.spoke {
                    said.push(statement(witness, member, pulse, &seen));
                }
            }
        }
        (said, convicted)
    }

    /// A witness makes a part again of a node that it has just judged, once a day: filler or a table,
    /// by chance.
    fn make_again(&mut self, statement: &Statement, epoch: u32, rng: &mut Rng) {
        let (witness, node) = (statement.author, statement.content.node());
        let Some(due) = self.makes_again.get_mut(witness.wrapping_sub(1) as usize) else { return };
        // One of the seven that it watches.
        if epoch < *due || rng.usize(..WITNESSES) > 0 {
            return;
        }
        let is_filler = rng.bool();
        let claimed = members_claim(&self.nodes, node);
        let is_there = if is_filler { claimed.hdd_mib > 0 } else { claimed.mem_mib > 0 };
        // Otherwise another time, or another node.
        if !is_there {
            return;
        }
        *due = epoch + 24;
        if is_filler && self.node(node).is_some_and(|(node, group)| has_false_filler(node, group)) {
            self.found_false.insert(node);
        }
    }

    /// The pulse behind a finding draws inspectors, who make the extent again and say what it is.
    fn inspect(&mut self, roster: &Roster, pulse: &Pulse, pool: &mut Pool) {
        for node in std::mem::take(&mut self.found_false) {
            for inspector in drawn(roster, &pulse.challenge, Duty::Inspector, node) {
                let conduct = self.node(inspector).map(|(_, group)| group.conduct);
                if matches!(conduct, Some(Conduct::Seen(_))) {
                    let pulse = pulse.challenge.pulse;
                    let said = Inspection { node, pulse, isTable: false, isTrue: false };
                    let content = Content::Inspected(said);
                    pool.add(Statement { author: inspector, content, signature: UNSIGNED });
                }
            }
        }
    }

    fn node(&self, number: u32) -> Option<(&Node, &Group<'a>)> {
        let node = self.nodes.get(number.wrapping_sub(1) as usize)?;
        Some((node, self.network.groups.get(node.group)?))
    }

    /// A dispute over a false segment that the node has signed: all its stake.
    fn slash(&mut self, number: u32) {
        let Some(node) = self.nodes.get_mut(number.wrapping_sub(1) as usize) else { return };
        node.slashed = true;
        if let Some(lost) = self.lost.get_mut(node.group) {
            *lost += stake(&node.claimed);
        }
    }

    /// Counts answered pulses by group. Returns how many pulses counted at all.
    fn count(&mut self, leaves: &[hypha_proofs::network::epoch::VerdictLeaf]) -> u32 {
        for (leaf, node) in leaves.iter().zip(&self.nodes) {
            if let Some((answered, all)) =
                self.answered.get_mut(node.group).filter(|_| !node.slashed)
            {
                *answered += u64::from(leaf.answered);
                *all += u64::from(leaf.pulses);
            }
        }
        leaves.iter().map(|leaf| leaf.pulses.into()).max().unwrap_or(0)
    }

    fn incomes(&self, earned: impl Fn(u32) -> u128) -> Vec<Income> {
        let days = f64::from(self.network.counted) / 24.0;
        let mut farm = 0;
        let groups = self.network.groups.iter().enumerate();
        groups
            .map(|(index, group)| {
                let sum: u128 = (farm + 1..=farm + group.boxes).map(&earned).sum();
                farm += group.boxes;
                let boxes = f64::from(group.boxes.max(1));
                let (answered, all) = self.answered.get(index).copied().unwrap_or_default();
                let of_group = self.nodes.iter().filter(|node| node.group == index);
                Income {
                    boxes: group.boxes,
                    earned: sum as f64 / TOKEN as f64 / boxes / days,
                    lost: self.lost.get(index).copied().unwrap_or_default() / boxes,
                    stake: of_group.map(|node| stake(&node.claimed)).sum::<f64>() / boxes,
                    answered: answered as f64 / all.max(1) as f64,
                }
            })
            .collect()
    }
}

/// Nobody here forges signatures, so nobody makes any.
const UNSIGNED: Signature = Signature { r: B256::ZERO, s: B256::ZERO, y_is_odd: false };
const ALL_OF_IT: Seen =
    Seen { spoke: true, took_ns: 0, cpu: true, mem: true, disk: true, filler: 64 };

/// One of the pulses that were seen of a strategy, for all identities of a box the same one.
fn drawn_of(record: &Record, node: &Node, fate: u64) -> Option<arena::Pulse> {
    let pulses = record.pulses.get(node.identity as usize)?;
    let number =
        Rng::with_seed(fate ^ u64::from(node.box_number) << 20).usize(..pulses.len().max(1));
    pulses.get(number).copied()
}

/// Whether what a node says is filler is something else.
fn has_false_filler(node: &Node, group: &Group<'_>) -> bool {
    let Conduct::Seen(record) = group.conduct else { return false };
    match record.strategy {
        Strategy::CheapFiller => true,
        Strategy::SharedDisk => node.identity > 0,
        _ => false,
    }
}

fn statement(witness: u32, member: &Member, pulse: &Pulse, seen: &Seen) -> Statement {
    let caps = &member.claimed;
    // What a verifier says of a machine that is as large as what is claimed.
    let timely = |amount: u32| RULES.timely(seen.took_ns, amount.into()) as u32;
    let verdict = PulseVerdict {
        node: member.node,
        pulse: pulse.challenge.pulse,
        threads: if seen.cpu { timely(caps.cores.into()) as u16 } else { 0 },
        memMiB: if seen.mem { timely(caps.mem_mib) } else { 0 },
        diskMiB: if seen.disk { caps.hdd_mib } else { 0 },
        fillerDraws: if seen.disk { seen.filler } else { 0 },
    };
    Statement { author: witness, content: Content::Verdict(verdict), signature: UNSIGNED }
}

fn schedule() -> Schedule {
    Schedule {
        chain_id: 31337,
        capacity: Address::repeat_byte(2),
        start_secs: START_SECS,
        round_secs: 6,
        mean_secs: Schedule::MEAN_SECS,
        quiet_secs: Schedule::QUIET_SECS,
    }
}

/// The rounds of an epoch.
fn rounds(seed: u64, epoch: u32) -> impl Iterator<Item = Round> {
    let first = u64::from(epoch) * EPOCH_SECS / 6;
    (first..first + EPOCH_SECS / 6).map(move |number| Round {
        number: number + 1,
        timestamp: START_SECS + number * 6,
        entropy: keccak256([seed.to_be_bytes(), number.to_be_bytes()].concat()),
    })
}

fn claimed(strategy: &Strategy) -> Caps {
    let claims = strategy.claims();
    Caps {
        cores: strategy.units(),
        mem_mib: if claims.mem { MEM_MIB } else { 0 },
        hdd_mib: if claims.disk { HDD_MIB } else { 0 },
        ..Caps::default()
    }
}

fn members_claim(nodes: &[Node], number: u32) -> Caps {
    nodes.get(number.wrapping_sub(1) as usize).map(|node| node.claimed).unwrap_or_default()
}

/// The default stake of a node with such claims, in tokens.
fn stake(claimed: &Caps) -> f64 {
    u128::try_from(claimed.stake()).unwrap_or(u128::MAX) as f64 / TOKEN as f64
}

fn member(node: u32, farm: u32, claimed: Caps) -> Member {
    let [_, a, b, c] = farm.to_be_bytes();
    Member {
        node,
        farm,
        signer: Address::from_word(keccak256(node.to_be_bytes())),
        stake: claimed.stake(),
        since_secs: START_SECS,
        claimed,
        reserved: Caps::default(),
        plot: None,
        salt: None,
        // A network of its own for each farm.
        place: Some(Place { address: IpAddr::V4(Ipv4Addr::new(a | 0x10, b, c, 1)), asn: None }),
    }
}
