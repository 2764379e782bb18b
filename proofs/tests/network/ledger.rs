//! What epochs come to: quorums, pulses that count for nobody, ramps, and that no unit is made or lost.

use fastrand::Rng;
use hypha_chain::U256;
use hypha_proofs::network::epoch::{Difference, EpochData};
use hypha_proofs::network::ledger::{
    CloseError, Closing, FALSE_EPOCHS, Ledger, RAMP_EPOCHS, Terms, Weights,
};
use hypha_proofs::network::pool::Pool;
use hypha_proofs::network::roster::{Caps, Member, Roster};
use hypha_proofs::network::schedule::Pulse;
use hypha_proofs::network::statement::{BandwidthVerdict, Content, Inspection, Statement};
use hypha_proofs::network::witness::{Duty, drawn, quorum};
use hypha_proofs::verifier::PulseVerdict;

use crate::world::{START, TOKEN, binding, key, member, pulse};

const EMISSION: u128 = 1000 * TOKEN + 7;

pub(crate) fn terms() -> Terms {
    Terms {
        emission: EMISSION,
        cap: 1_000_000 * TOKEN,
        disk_draws: 64,
        measured_per_mille: 0,
        weights: Weights::STANDARD,
    }
}

/// Statements, of which the signatures don't matter here: pools take what was checked.
pub(crate) struct Sayings {
    pub(crate) pool: Pool,
    signature: hypha_chain::key::Signature,
}

impl Sayings {
    pub(crate) fn new() -> Self {
        let content = Content::Verdict(found(1, &pulse(0, 0), 0));
        let signature = Statement::new(1, content, &binding(1), &key(1)).signature;
        Self { pool: Pool::new(100_000), signature }
    }

    pub(crate) fn say(&mut self, author: u32, content: Content) {
        self.pool.add(Statement { author, content, signature: self.signature });
    }

    /// So many witnesses of a node say the same.
    pub(crate) fn verdicts(
        &mut self,
        roster: &Roster,
        pulse: &Pulse,
        verdict: &PulseVerdict,
        count: usize,
    ) {
        let witnesses = drawn(roster, &pulse.challenge, Duty::Witness, verdict.node);
        for witness in witnesses.into_iter().take(count) {
            self.say(witness, Content::Verdict(verdict.clone()));
        }
    }
}

/// What `member` claims, found by a witness; all its disk is filler.
pub(crate) fn found(node: u32, pulse: &Pulse, threads: u16) -> PulseVerdict {
    let pulse = pulse.challenge.pulse;
    PulseVerdict { node, pulse, threads, memMiB: 1, diskMiB: 2, fillerDraws: 64 }
}

pub(crate) fn roster(members: Vec<Member>) -> Roster {
    Roster::new(members, START).unwrap()
}

pub(crate) fn members(count: u32) -> Vec<Member> {
    (1..=count).map(|node| member(node, node, None)).collect()
}

pub(crate) fn closing<'a>(
    epoch: u32,
    roster: &'a Roster,
    pulses: &'a [Pulse],
    pool: &'a Pool,
) -> Closing<'a> {
    let count = roster.members().len() as u32;
    let ends_secs = START + (u64::from(epoch) + 1) * 3600;
    Closing { epoch, ends_secs, counts: (count, count), roster, pulses, pool }
}

/// An epoch of one pulse that all nodes but some answered.
fn hour(ledger: &Ledger, roster: &Roster, epoch: u32, silent: &[u32]) -> EpochData {
    let verdict = |node, pulse: &Pulse| (!silent.contains(&node)).then(|| found(node, pulse, 2));
    hour_of(ledger, roster, epoch, verdict)
}

/// An epoch of one pulse: what all witnesses of a node say.
fn hour_of(
    ledger: &Ledger,
    roster: &Roster,
    epoch: u32,
    verdict: impl Fn(u32, &Pulse) -> Option<PulseVerdict>,
) -> EpochData {
    let pulses = [pulse(epoch, 0)];
    let mut sayings = Sayings::new();
    for it in roster.members() {
        if let Some(verdict) = verdict(it.node, &pulses[0]) {
            sayings.verdicts(roster, &pulses[0], &verdict, 7);
        }
    }
    ledger.close(&terms(), &closing(epoch, roster, &pulses, &sayings.pool)).unwrap()
}

/// What a farm has earned since.
fn earned(before: &Ledger, data: &EpochData, farm: u32) -> u128 {
    data.ledger.earned(farm) - before.earned(farm)
}

#[test]
fn five_of_seven_witnesses_are_enough_and_four_are_not() {
    let roster = roster(members(12));
    let pulses = [pulse(0, 0)];
    for (count, answered) in [(7, 1), (5, 1), (4, 0), (0, 0)] {
        let mut sayings = Sayings::new();
        for node in 1..=11 {
            sayings.verdicts(&roster, &pulses[0], &found(node, &pulses[0], 2), 7);
        }
        sayings.verdicts(&roster, &pulses[0], &found(12, &pulses[0], 2), count);
        let closing = closing(0, &roster, &pulses, &sayings.pool);
        let data = Ledger::default().close(&terms(), &closing).unwrap();
        assert_eq!((data.verdicts[11].pulses, data.verdicts[11].answered), (1, answered));
        let until = if answered == 1 { START + 3600 } else { 0 };
        assert_eq!(data.verdicts[11].proven_until, until);
        assert_eq!(data.rewards[11].cumulative > 0, answered == 1);
    }
}

#[test]
fn two_liars_of_seven_change_nothing_whichever_way_they_lie() {
    let roster = roster(members(12));
    let pulses = [pulse(0, 0)];
    let honest = hour(&Ledger::default(), &roster, 0, &[]);
    for lie in [0, 1, 60_000] {
        let mut sayings = Sayings::new();
        for node in 1..=12 {
            let witnesses = drawn(&roster, &pulses[0].challenge, Duty::Witness, node);
            for (at, witness) in witnesses.into_iter().enumerate() {
                let mut verdict = found(node, &pulses[0], if at < 2 { lie } else { 2 });
                verdict.diskMiB = if at < 2 { u64::from(lie) << 40 } else { 2 };
                sayings.say(witness, Content::Verdict(verdict));
            }
        }
        let closing = closing(0, &roster, &pulses, &sayings.pool);
        let data = Ledger::default().close(&terms(), &closing).unwrap();
        assert_eq!(data.verdicts, honest.verdicts, "lie {lie}");
        assert_eq!(data.rewards, honest.rewards, "lie {lie}");
    }
}

#[test]
fn who_was_not_drawn_or_contradicts_itself_does_not_count() {
    let roster = roster(members(30));
    let pulses = [pulse(0, 0)];
    let witnesses = drawn(&roster, &pulses[0].challenge, Duty::Witness, 30);
    let mut sayings = Sayings::new();
    for author in (1..=29).filter(|node| !witnesses.contains(node)) {
        sayings.say(author, Content::Verdict(found(30, &pulses[0], 2)));
    }
    for (at, author) in witnesses.iter().enumerate() {
        sayings.say(*author, Content::Verdict(found(30, &pulses[0], 2)));
        if at < 3 {
            sayings.say(*author, Content::Verdict(found(30, &pulses[0], 1)));
        }
    }
    assert_eq!(sayings.pool.contradictions().count(), 3);
    let closing = closing(0, &roster, &pulses, &sayings.pool);
    let data = Ledger::default().close(&terms(), &closing).unwrap();
    assert_eq!(data.verdicts[29].answered, 0, "four of seven are left");
}

#[test]
fn a_pulse_that_a_third_does_not_answer_counts_for_nobody() {
    let roster = roster(members(12));
    let first = hour(&Ledger::default(), &roster, 0, &[]);
    let enough = hour(&first.ledger, &roster, 1, &[1, 2, 3, 4]);
    assert_eq!((enough.verdicts[0].pulses, enough.verdicts[0].answered), (1, 0));
    assert_eq!((enough.verdicts[4].pulses, enough.verdicts[4].answered), (1, 1));
    let void = hour(&first.ledger, &roster, 1, &[1, 2, 3, 4, 5]);
    assert!(void.verdicts.iter().all(|leaf| (leaf.pulses, leaf.answered) == (0, 0)));
    assert_eq!(void.rewards, first.rewards, "nobody earns");
    assert!(void.ledger.carry >= EMISSION, "the hour's emission waits");
    // Who was silent for more than a day is not waited for.
    let mut ledger = first.ledger;
    for epoch in 1..=25 {
        ledger = hour(&ledger, &roster, epoch, &[1, 2, 3, 4]).ledger;
    }
    let later = hour(&ledger, &roster, 26, &[1, 2, 3, 4, 5, 6]);
    assert_eq!(later.verdicts[11].answered, 1, "six of eight answered");
}

#[test]
fn new_capacity_comes_to_count_over_seven_days_and_goes_as_fast() {
    let roster = roster(members(10));
    // Processors and memory.
    let hour = |ledger: &Ledger, roster: &Roster, silent: &[u32]| {
        let verdict = |node, pulse: &Pulse| PulseVerdict { diskMiB: 0, ..found(node, pulse, 2) };
        let verdict = |node, pulse: &Pulse| (!silent.contains(&node)).then(|| verdict(node, pulse));
        hour_of(ledger, roster, ledger.next, verdict)
    };
    let mut ledger = Ledger::default();
    for _ in 0..RAMP_EPOCHS {
        ledger = hour(&ledger, &roster, &[]).ledger;
    }
    // Farm 11 comes with what the others have.
    let grown = Roster::new(members(11), START).unwrap();
    for age in 1..=RAMP_EPOCHS {
        let data = hour(&ledger, &grown, &[]);
        let (old, new) = (earned(&ledger, &data, 1), earned(&ledger, &data, 11));
        let expected = old * u128::from(age) / u128::from(RAMP_EPOCHS);
        assert!(new.abs_diff(expected) <= 200, "{age}: {new}, not {expected}");
        ledger = data.ledger;
    }
    // A day of silence costs a seventh of what it counts.
    for _ in 0..24 {
        ledger = hour(&ledger, &grown, &[11]).ledger;
    }
    let data = hour(&ledger, &grown, &[]);
    let (old, new) = (earned(&ledger, &data, 1), earned(&ledger, &data, 11));
    let expected = old * u128::from(RAMP_EPOCHS - 24 + 1) / u128::from(RAMP_EPOCHS);
    assert!(new.abs_diff(expected) <= 200, "{new}, not {expected}");
}

/// Hours in which nodes have nothing but a disk: how much of it, and how many of 64 draws are filler. Returns
/// what node 12 earns in each, in thousandths of what node 1 does, which has had filler for long.
fn disks(hours: &[(u64, u16)]) -> Vec<u128> {
    let disk = |(disk, draws): (u64, u16)| {
        move |node, pulse: &Pulse| {
            let mut verdict = PulseVerdict { memMiB: 0, ..found(node, pulse, 0) };
            (verdict.diskMiB, verdict.fillerDraws) =
                if node == 12 { (disk, draws) } else { (1 << 20, 64) };
            (verdict.diskMiB > 0).then_some(verdict)
        }
    };
    let claimed = |mut it: Member| {
        it.claimed.hdd_mib = 1 << 20;
        it
    };
    let roster = roster(members(12).into_iter().map(claimed).collect());
    let mut ledger = Ledger::default();
    for _ in 0..2 * RAMP_EPOCHS {
        ledger = hour_of(&ledger, &roster, ledger.next, disk((0, 0))).ledger;
    }
    let mut hour = |now: &(u64, u16)| {
        let data = hour_of(&ledger, &roster, ledger.next, disk(*now));
        let share = earned(&ledger, &data, 12) * 1000 / earned(&ledger, &data, 1);
        ledger = data.ledger;
        share
    };
    hours.iter().map(&mut hour).collect()
}

#[test]
fn filler_is_there_for_a_week_before_it_begins_to_count() {
    let whole = (1 << 20, 64);
    let (waits, ramps) = (RAMP_EPOCHS as usize * 7 / 8, RAMP_EPOCHS as usize);
    let earned = disks(&vec![whole; waits + ramps]);
    assert!(earned[..waits - 1].iter().all(|it| *it == 0), "{earned:?}");
    for age in 1..=ramps {
        let expected = (age * 1000 / ramps) as u128;
        assert!(earned[waits + age - 2].abs_diff(expected) <= 1, "{age}: {earned:?}");
    }
    // An hour of silence costs no more than itself; and what comes in addition waits as well, while what was
    // there counts on.
    let half = (1 << 19, 64);
    let mut hours = vec![half; 2 * ramps];
    hours.push((0, 0));
    hours.extend(vec![half; 8]);
    hours.extend(vec![whole; waits - ramps / 2 - 1]);
    hours.extend(vec![whole; ramps]);
    let earned = disks(&hours);
    let counts = |it: &u128| (499..=500).contains(it);
    assert!(counts(&earned[2 * ramps - 1]) && earned[2 * ramps] == 0);
    let grows = 2 * ramps + 9;
    let until = grows + waits - ramps / 2 - 1;
    assert!(earned[grows - 1..until].iter().all(counts), "{:?}", &earned[grows..]);
    assert!(earned[until + 10] > 500, "{:?}", &earned[grows..]);
    assert_eq!(earned.last(), Some(&1000));
}

#[test]
fn a_users_data_that_becomes_filler_waits_like_any_filler() {
    let mut hours = vec![(1 << 20, 0); 2 * RAMP_EPOCHS as usize];
    hours.extend(vec![(1 << 20, 64); RAMP_EPOCHS as usize * 7 / 8 - 1]);
    hours.push((1 << 20, 64));
    let earned = disks(&hours);
    let (last, before) = earned.split_last().unwrap();
    assert!(before.iter().all(|it| *it == 0), "{before:?}");
    assert!(*last > 0);
}

#[test]
fn a_disk_that_users_share_with_filler_counts_with_what_filler_there_is() {
    let mut rng = Rng::with_seed(7);
    // Half of the disk is filler: of 64 draws about 32.
    let draws = |_| (0..64).filter(|_| rng.bool()).count() as u16;
    let hours: Vec<(u64, u16)> = (0..600).map(draws).map(|draws| (1 << 20, draws)).collect();
    let earned = disks(&hours);
    let of_last = earned[400..].iter().sum::<u128>() / 200;
    assert!((450..=510).contains(&of_last), "{of_last}");
}

#[test]
fn what_is_reserved_or_not_staked_for_earns_nothing() {
    let mut all = members(4);
    all[0].reserved = all[0].claimed;
    all[1].stake = U256::from(TOKEN);
    let roster = roster(all);
    let pulses = [pulse(0, 0)];
    let mut sayings = Sayings::new();
    for node in 1..=4 {
        let mut verdict = found(node, &pulses[0], if node == 1 { 0 } else { 2 });
        if node == 1 {
            (verdict.memMiB, verdict.diskMiB, verdict.fillerDraws) = (0, 0, 0);
        }
        sayings.verdicts(&roster, &pulses[0], &verdict, 3);
    }
    let closing = closing(0, &roster, &pulses, &sayings.pool);
    let data = Ledger::default().close(&terms(), &closing).unwrap();
    let sums: Vec<u128> = data.rewards.iter().map(|leaf| leaf.cumulative).collect();
    assert_eq!((sums[0], sums[1]), (0, 0));
    assert!(0 < sums[2] && sums[2] == sums[3], "{sums:?}");
    let leaf = &data.verdicts[0];
    assert_eq!((leaf.answered, leaf.caps.cores, leaf.caps.mem_mib), (1, 2, 1), "it serves");
}

#[test]
fn lines_count_once_they_are_measured_and_halve_when_they_fail() {
    let terms = Terms { measured_per_mille: 1000, ..terms() };
    let roster = roster(members(12));
    let mut ledger = Ledger::default();
    let mut seen = Vec::new();
    for (epoch, confirm) in [(0, 10), (1, 5), (2, 6), (3, 0)] {
        let pulses = [pulse(epoch, 0)];
        let mut sayings = Sayings::new();
        for node in 1..=12 {
            sayings.verdicts(&roster, &pulses[0], &found(node, &pulses[0], 2), 7);
            let challengers = drawn(&roster, &pulses[0].challenge, Duty::Challenger, node);
            assert_eq!(challengers.len(), 10);
            for challenger in challengers.into_iter().take(confirm) {
                // Of 100 Mbit/s for half a second, a tenth each.
                let pulse = pulses[0].challenge.pulse;
                let receipt = hypha_chain::B256::repeat_byte(1);
                let line =
                    BandwidthVerdict { node, pulse, receipt, bytesLen: 625_000, micros: 500_000 };
                sayings.say(challenger, Content::Bandwidth(line));
            }
        }
        let closing = closing(epoch, &roster, &pulses, &sayings.pool);
        let data = ledger.close(&terms, &closing).unwrap();
        seen.push(data.verdicts[3].caps.mbps);
        ledger = data.ledger;
    }
    assert_eq!(seen, [100, 50, 42, 21]);
}

/// Large or small.
fn any_size(rng: &mut Rng, bits: u32) -> u64 {
    let bits = rng.u32(1..bits);
    rng.u64(..1 << bits)
}

#[test]
fn what_fifteen_of_21_inspectors_found_false_counts_nothing_for_a_month_and_begins_anew() {
    let roster = roster(members(30));
    let mut ledger = Ledger::default();
    for epoch in 0..RAMP_EPOCHS as u32 {
        ledger = hour(&ledger, &roster, epoch, &[]).ledger;
    }
    let epoch = ledger.next;
    let pulses = [pulse(epoch, 0)];
    let inspectors = drawn(&roster, &pulses[0].challenge, Duty::Inspector, 3);
    assert_eq!((inspectors.len(), quorum(21)), (21, Some(15)));
    let outsiders = (1..=30).filter(|node| !inspectors.contains(node));
    let close = |agree: usize, is_table: bool| {
        let mut sayings = Sayings::new();
        for it in roster.members() {
            sayings.verdicts(&roster, &pulses[0], &found(it.node, &pulses[0], 2), 7);
        }
        let authors = inspectors.iter().copied().take(agree).chain(outsiders.clone());
        for (author, rest) in authors.map(|it| (it, false)).chain([(inspectors[20], true)]) {
            let pulse = pulses[0].challenge.pulse;
            let (is_true, node) = (rest, 3);
            let said = Inspection { node, pulse, isTable: is_table, isTrue: is_true };
            sayings.say(author, Content::Inspected(said));
        }
        ledger.close(&terms(), &closing(epoch, &roster, &pulses, &sayings.pool)).unwrap()
    };
    let caps = |data: &EpochData| (data.verdicts[2].caps.hdd_mib, data.verdicts[2].caps.mem_mib);
    assert_eq!(caps(&close(14, false)), (2, 1));
    assert_eq!(caps(&close(15, true)), (2, 0));
    let data = close(15, false);
    assert_eq!((caps(&data), data.verdicts[2].answered), ((0, 1), 1));
    assert_eq!(data.verdicts[3].caps.hdd_mib, 2, "nobody else");
    assert!(earned(&ledger, &data, 3) < earned(&ledger, &data, 4));
    let mut later = data.ledger.clone();
    for _ in 1..FALSE_EPOCHS {
        let data = hour(&later, &roster, later.next, &[]);
        assert_eq!(caps(&data), (0, 1), "epoch {}", data.epoch);
        later = data.ledger;
    }
    let data = hour(&later, &roster, later.next, &[]);
    assert_eq!(caps(&data), (2, 1), "a month later");
    assert!(earned(&later, &data, 3) < earned(&later, &data, 4), "it ramps again");
}

/// Everything that can be different, drawn.
fn any_epoch(rng: &mut Rng, ledger: &Ledger, farms: u32) -> EpochData {
    let epoch = ledger.next;
    let count = ledger_nodes(ledger).max(rng.u32(1..25));
    let some: Vec<u32> = (1..=count).filter(|_| rng.u8(..10) > 0).collect();
    let members: Vec<Member> = some
        .into_iter()
        .map(|node| {
            let mut it = member(node, 1 + node % farms, None);
            it.stake = U256::from(u128::from(rng.u32(..2000)) * TOKEN);
            it.claimed = Caps {
                cores: rng.u16(..300),
                mem_mib: rng.u32(..),
                ssd_mib: any_size(rng, 50),
                hdd_mib: any_size(rng, 50),
                mbps: rng.u32(..100_000),
            };
            it.reserved.cores = rng.u16(..300);
            it
        })
        .collect();
    let roster = roster(members);
    let pulses: Vec<Pulse> = (0..rng.u64(..4)).map(|number| pulse(epoch, number)).collect();
    let mut sayings = Sayings::new();
    for pulse in &pulses {
        for it in roster.members() {
            let mut verdict = found(it.node, pulse, rng.u16(..300));
            verdict.memMiB = rng.u32(..);
            verdict.diskMiB = any_size(rng, 60);
            verdict.fillerDraws = rng.u16(..100);
            sayings.verdicts(&roster, pulse, &verdict, rng.usize(..9));
        }
    }
    let terms = Terms { emission: rng.u128(..EMISSION), cap: 3000 * TOKEN, ..terms() };
    let ends_secs = START + (u64::from(epoch) + 1) * 3600;
    let pool = &sayings.pool;
    let counts = (count, farms);
    let closing = Closing { epoch, ends_secs, counts, roster: &roster, pulses: &pulses, pool };
    let data = ledger.close(&terms, &closing).unwrap();
    let room = terms.cap - (ledger.issued() + ledger.carry);
    let pot = ledger.carry + terms.emission.min(room);
    assert_eq!(data.ledger.issued() + data.ledger.carry, ledger.issued() + pot);
    data
}

fn ledger_nodes(ledger: &Ledger) -> u32 {
    let data = EpochData {
        epoch: 0,
        verdicts: Vec::new(),
        rewards: Vec::new(),
        statements: hypha_chain::B256::ZERO,
        ledger: ledger.clone(),
    };
    // Version, epoch, digest, two counts, next, carry: then the nodes' count.
    let bytes = data.encode();
    u32::from_be_bytes(bytes[65..69].try_into().unwrap())
}

#[test]
fn no_unit_of_emission_is_made_or_lost_whatever_is_said() {
    for seed in 0..200 {
        let mut rng = Rng::with_seed(seed);
        let farms = rng.u32(1..8);
        let mut ledger = Ledger::default();
        let outcome = std::panic::catch_unwind(move || {
            for _ in 0..6 {
                let data = any_epoch(&mut rng, &ledger, farms);
                for (leaf, farm) in data.rewards.iter().zip(1..) {
                    assert_eq!((leaf.farm, leaf.cumulative), (farm, data.ledger.earned(farm)));
                    assert!(leaf.cumulative >= ledger.earned(farm), "sums never go down");
                }
                for leaf in &data.verdicts {
                    assert!(leaf.answered <= leaf.pulses, "Disputes.malformedVerdict would void");
                    assert!(leaf.proven_until <= START + (u64::from(data.epoch) + 1) * 3600);
                }
                assert_eq!(EpochData::decode(&data.encode()), Ok(data.clone()));
                ledger = data.ledger;
            }
        });
        assert!(outcome.is_ok(), "seed {seed}");
    }
}

#[test]
fn what_was_said_in_another_order_comes_to_the_same() {
    let roster = roster(members(15));
    let pulses = [pulse(0, 0), pulse(0, 1)];
    let mut rng = Rng::with_seed(5);
    let mut statements = Vec::new();
    for pulse in &pulses {
        for node in 1..=15 {
            for witness in drawn(&roster, &pulse.challenge, Duty::Witness, node) {
                let verdict = found(node, pulse, rng.u16(1..4));
                statements.push((witness, Content::Verdict(verdict)));
            }
        }
    }
    let close = |statements: &[(u32, Content)]| {
        let mut sayings = Sayings::new();
        for (author, content) in statements {
            sayings.say(*author, content.clone());
        }
        Ledger::default().close(&terms(), &closing(0, &roster, &pulses, &sayings.pool)).unwrap()
    };
    let first = close(&statements);
    for _ in 0..5 {
        rng.shuffle(&mut statements);
        assert_eq!(close(&statements), first);
    }
}

#[test]
fn a_posted_epoch_is_compared_leaf_by_leaf() {
    let roster = roster(members(12));
    let ours = hour(&Ledger::default(), &roster, 0, &[]);
    assert_eq!(ours.differences(&ours.clone()).count(), 0);
    let mut theirs = ours.clone();
    theirs.verdicts[4].answered = 0;
    theirs.rewards[6].cumulative += 1;
    let found: Vec<Difference> = ours.differences(&theirs).collect();
    assert_eq!(
        found,
        [
            Difference::Verdict { ours: ours.verdicts[4], theirs: theirs.verdicts[4] },
            Difference::Reward { ours: ours.rewards[6], theirs: theirs.rewards[6] },
        ]
    );
    theirs = hour(&Ledger::default(), &roster, 0, &[3]);
    let verdicts =
        |it: &Difference| matches!(it, Difference::Verdict { ours, .. } if ours.node == 3);
    assert!(ours.differences(&theirs).any(|it| verdicts(&it)));
    assert!(ours.differences(&theirs).any(|it| it == Difference::Statements));
    theirs.verdicts.pop();
    assert_eq!(ours.differences(&theirs).next(), Some(Difference::Shape));
}

#[test]
fn epochs_are_closed_one_after_the_other_and_forget_nobody() {
    let large = roster(members(12));
    let first = hour(&Ledger::default(), &large, 0, &[]);
    let pool = Pool::new(1);
    let again = first.ledger.close(&terms(), &closing(0, &large, &[], &pool));
    assert_eq!(again, Err(CloseError::Order { next: 1, given: 0 }));
    let small = roster(members(3));
    let fewer = first.ledger.close(&terms(), &closing(1, &small, &[], &pool));
    assert_eq!(fewer, Err(CloseError::Counts));
    assert_eq!(quorum(7), Some(5));
}
