//! The study as tables in Markdown and as a plot.

use std::fmt::Write;

use hypha_proofs::Rules;
use hypha_proofs::network::witness::WITNESSES;

use crate::arena::{Record, Share, caught_by_formula};
use crate::graph::{Keeper, Shape};
use crate::network::Income;
use crate::strategy::Strategy;
use crate::study::{Study, convicted, failed, false_faults, honest_like};
use crate::world::Traffic;

/// Pulses of a day, in the mean.
const PULSES: i32 = 24;
/// Bytes of a standard commitment of eight threads, and of an opening (docs/proofs.md, "Figures").
const COMMITMENT_BYTES: u64 = 401;
const OPENING_BYTES: u64 = 178_049;
/// Bytes of a verdict as it travels among statements.
const VERDICT_BYTES: u64 = 126;

/// What became of a strategy, next to an honest node with the same claims.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Who.
    pub strategy: Strategy,
    /// Pulses in which something claimed was not proven.
    pub failed: Share,
    /// Pulses that left a witness with a false segment under the node's signature.
    pub convicted: Share,
    /// Earned with what it really has, against an honest node with as much; `None` if it has nothing.
    pub income: Option<f64>,
    /// Earned against an honest node that has all that it claims.
    pub of_claim: f64,
    /// Stake lost by a box in the counted time, in tokens.
    pub lost: f64,
    /// What it earned in that time, in tokens.
    pub earned: f64,
}

impl Row {
    /// Whether this pays more than to be honest: more than a hundredth, after what is lost.
    #[must_use]
    pub fn pays(&self) -> bool {
        let nets = self.earned > self.lost;
        !self.strategy.is_honest()
            && nets
            && self.income.map_or(self.of_claim > 0.01, |income| income > 1.01)
    }
}

/// A row for each strategy, from the network that was watched for days.
#[must_use]
pub fn rows(study: &Study, days: f64) -> Vec<Row> {
    rows_of(&study.records, &study.days.incomes, days)
}

/// The same from any network's incomes.
#[must_use]
pub fn rows_of(records: &[Record], incomes: &[Income], days: f64) -> Vec<Row> {
    let both = records.iter().zip(incomes);
    both.map(|(record, income)| {
        let strategy = record.strategy;
        let honest = incomes.get(honest_like(records, &strategy)).map_or(0.0, |it| it.earned);
        let share = |(hits, trials)| Share::of(hits, trials);
        let of_claim = income.earned / honest.max(f64::MIN_POSITIVE);
        Row {
            strategy,
            failed: share(failed(record)),
            convicted: share(convicted(record)),
            income: (strategy.has() > 0.0).then(|| of_claim / strategy.has()),
            of_claim,
            lost: income.lost,
            earned: income.earned * days,
        }
    })
    .collect()
}

fn percent(share: f64) -> String {
    let of_100 = share * 100.0;
    match of_100 {
        99.999.. if share < 1.0 => ">99.999".to_owned(),
        99.9.. if share < 1.0 => format!("{of_100:.3}"),
        _ => format!("{of_100:.1}"),
    }
}

/// The strategies' table.
#[must_use]
pub fn table(rows: &[Row]) -> String {
    let mut text = String::from(
        "| who | not proven in a pulse, % | in a day, % | evidence in a pulse, % | income ÷ honest's, for \
         what is there | stake lost | pays |\n|---|---|---|---|---|---|---|\n",
    );
    for row in rows {
        let day = row.failed.once_in(PULSES);
        let income = match row.income {
            Some(income) => format!("{income:.2}"),
            None => format!("{:.2} for nothing", row.of_claim),
        };
        let claims = row.strategy.claims();
        let only = match (claims.cpu, claims.mem, claims.disk) {
            (true, false, false) => " (CPU)",
            (false, true, false) => " (memory)",
            (false, false, true) => " (disk)",
            _ => "",
        };
        let lost = if row.lost > 0.0 { format!("{:.0}", row.lost) } else { "–".to_owned() };
        line(
            &mut text,
            &format!(
                "| {}{only} | {} ({}–{}) | {} | {} | {income} | {lost} | {} |",
                row.strategy.name(),
                percent(row.failed.mean),
                percent(row.failed.low),
                percent(row.failed.high),
                percent(day.mean),
                percent(row.convicted.mean),
                if row.pays() { "**yes**" } else { "no" },
            ),
        );
    }
    text
}

/// Coalitions, the filler's graph, the chain and the traffic.
#[must_use]
pub fn others(study: &Study) -> String {
    let mut text = String::from(
        "| of all stake in a coalition | of others it | one of it earns, of an honest node's | an honest \
         node earns | pulses that count, % |\n|---|---|---|---|---|\n",
    );
    for it in &study.coalitions {
        let says = if it.denies { "says nothing" } else { "tells the truth" };
        let share = f64::from(it.per_mille) / 10.0;
        let counted = percent(it.counted);
        let (income, honest) = (it.income, it.honest);
        line(&mut text, &format!("| {share} % | {says} | {income:.3} | {honest:.2} | {counted} |"));
    }
    text.push('\n');
    text.push_str(&graph(study));
    text.push('\n');
    text.push_str(&juries(study));
    text.push('\n');
    text.push_str(&lines(study));
    text.push('\n');
    text.push_str(&chain(study));
    text
}

fn graph(study: &Study) -> String {
    let mut text = String::from(
        "| kept | of an extent | design, 4 layers | 1 layer | 2 layers | 4 layers |\n|---|---|---|---|---|---|\n",
    );
    let columns = [(Shape::Plain, 4), (Shape::Real, 1), (Shape::Real, 2), (Shape::Real, 4)];
    let mut keepers: Vec<Keeper> = Vec::new();
    for (_, _, keeper, _) in &study.costs {
        if !keepers.contains(keeper) {
            keepers.push(*keeper);
        }
    }
    for keeper in keepers {
        let cost = |shape: Shape, layers: u8| {
            let found = study.costs.iter().find(|it| (it.0, it.1, it.2) == (shape, layers, keeper));
            found.map(|it| it.3)
        };
        let cells = columns.map(|(shape, layers)| {
            cost(shape, layers)
                .map_or(String::new(), |it| format!("{:.3} / {:.3}", it.work, it.depth))
        });
        let kept = cost(Shape::Real, 4).map_or(0.0, |it| it.kept);
        line(
            &mut text,
            &format!("| {} | {kept:.2} | {} |", keeper_name(keeper), cells.join(" | ")),
        );
    }
    text
}

fn keeper_name(keeper: Keeper) -> String {
    let percent = |thousandths: u32| f64::from(thousandths) / 10.0;
    match keeper {
        Keeper::Scattered(part) => format!("{} % of the labels, scattered", percent(part)),
        Keeper::Spread(part) => format!("as much as {} %, spread over all layers", percent(part)),
        Keeper::Front(part) => format!("the first {} %", percent(part)),
        Keeper::Leaves(part) => format!("all leaves but {} %", percent(part)),
        Keeper::Ladder { every, dropped } => {
            format!("all leaves but {} %, each {every}th label below", percent(dropped))
        }
        Keeper::Hubs { part, dropped } => {
            let (part, dropped) = (percent(part), percent(dropped));
            format!("all leaves but {dropped} %, and {part} % below: those drawn most")
        }
    }
}

fn juries(study: &Study) -> String {
    let mut text = String::from(
        "| honest nodes, 62 tokens and 30 days each | nodes of one cheater | of all weight, % | of the seats, % \
         | juries that it wins, % |\n|---|---|---|---|---|\n",
    );
    for it in &study.trials {
        let (honest, cheaters) = (it.honest, it.cheaters);
        let new = if it.are_new { ", new, 10 tokens each" } else { "" };
        let cells = [it.of_weight, it.of_seats, it.won].map(percent).join(" | ");
        line(&mut text, &format!("| {honest} | {cheaters}{new} | {cells} |"));
    }
    text
}

fn lines(study: &Study) -> String {
    let mut text =
        String::from("| whose line of 100 Mbit/s is measured | of it is measured |\n|---|---|\n");
    for (conduct, measured) in &study.lines {
        line(&mut text, &format!("| {} | {measured:.2} |", conduct.name()));
    }
    text
}

fn chain(study: &Study) -> String {
    let court = &study.court;
    let gas = court.gas_of_node_and_day(100_000);
    let bytes = bytes(study, 100_000);
    let mut text = String::from("| what | figure |\n|---|---|\n");
    let rows = [
        ("posting an epoch, gas".to_owned(), court.post.to_string()),
        (
            "a challenge and its answer, gas".to_owned(),
            format!("{} + {}", court.challenge, court.answer),
        ),
        ("a claim of rewards, gas".to_owned(), court.claim.to_string()),
        ("showing a false segment, gas".to_owned(), court.dispute.to_string()),
        ("gas per node and day, 100,000 nodes".to_owned(), format!("{gas:.0}")),
        (
            "lost for a leaf that is not shown, of a stake of 62".to_owned(),
            format!("{:.1}", court.lost_for_leaf),
        ),
        (
            "lost for a false segment; a tenth of it to who showed it".to_owned(),
            format!("{:.0}; {:.1}", court.lost_for_segment, court.reporter),
        ),
        (
            "lost by an aggregator that withholds a leaf".to_owned(),
            format!("{:.0}", court.lost_for_withholding),
        ),
        (
            "taken by an aggregator that posts false rewards for a day, if nobody appeals; its bond is 1000"
                .to_owned(),
            format!("{:.0}", court.stolen),
        ),
        (
            "the same, if somebody appeals and one node of a day votes, against 100 new ones of the thief's"
                .to_owned(),
            format!("{:.0}", court.stolen_after_appeal),
        ),
        (
            "seats in that jury".to_owned(),
            format!("{} against {}", court.seats.0, court.seats.1),
        ),
        ("an appeal with one vote, gas".to_owned(), court.appeal.to_string()),
        (
            "bytes a node sends in a day for its own pulses".to_owned(),
            format!("{:.1} MB", bytes.0 / 1e6),
        ),
        (
            "for statements, if each goes to all of 100,000".to_owned(),
            format!("{:.1} GB", bytes.1 / 1e9),
        ),
        (
            "an epoch's data, large network".to_owned(),
            study
                .large
                .as_ref()
                .map_or("–".to_owned(), |it| format!("{:.1} MB", it.epoch_bytes as f64 / 1e6)),
        ),
    ];
    for (what, figure) in rows {
        line(&mut text, &format!("| {what} | {figure} |"));
    }
    text
}

/// What a node sends in a day, in bytes: for its pulses at the standard size, and for gossip in a network
/// of so many, with as many copies of each statement as the small network of participants sent.
#[must_use]
pub fn bytes(study: &Study, nodes: u32) -> (f64, f64) {
    let story = &study.story;
    let sent = |kind| story.bytes.get(&kind).copied().unwrap_or(0) as f64;
    let (statements, senders) =
        (story.statements.max(1) as f64, f64::from(study.story_nodes.max(1)));
    let witnesses = WITNESSES as u64;
    let pulse = (witnesses * (COMMITMENT_BYTES + OPENING_BYTES)) as f64;
    let of_each = sent(Traffic::Statement) / statements / senders;
    // Never less than each statement once.
    let of_each = of_each.max(VERDICT_BYTES as f64);
    let day = f64::from(PULSES);
    (day * pulse, day * f64::from(nodes) * witnesses as f64 * of_each)
}

/// What must hold, in words with figures.
#[must_use]
pub fn summary(study: &Study, days: f64) -> String {
    let rows = rows(study, days);
    let mut text = String::new();
    let (drawn, counted) = study.days.pulses;
    line(
        &mut text,
        &format!(
            "{} nodes, {days:.0} days counted, {drawn} pulses of which {counted} count.",
            study.days.nodes
        ),
    );
    if let Some(large) = &study.large {
        let (drawn, counted) = large.pulses;
        line(
            &mut text,
            &format!("{} nodes, {drawn} pulses of which {counted} count.", large.nodes),
        );
    }
    let formula = caught_by_formula(0.01, &Rules::STANDARD);
    let missing = rows.iter().find(|row| row.strategy == Strategy::Missing(10));
    if let Some(row) = missing {
        let (mean, low) = (row.failed.mean, row.failed.low);
        let day = 1.0 - row.failed.once_in(PULSES).low;
        line(
            &mut text,
            &format!(
                "1 % of a disk missing: found in a pulse {mean:.3} (at least {low:.3}; formula {formula:.3}), and in a day but for {day:.1e} at most."
            ),
        );
    }
    let honest = study.records.iter().take(4).map(false_faults);
    let honest = honest.fold((0, 0), |sum, it| (sum.0 + it.0, sum.1 + it.1));
    line(
        &mut text,
        &format!("Faults that witnesses saw in honest nodes: {} of {} times.", honest.0, honest.1),
    );
    line(&mut text, &format!("Trace {}.", study.trace));
    text
}

fn line(text: &mut String, line: &str) {
    // Writing to a string does not fail.
    writeln!(text, "{line}").unwrap_or_default();
}

const BAR: (u32, u32) = (16, 420);

/// Income by strategy, with a line where honest ones are.
#[must_use]
pub fn plot(rows: &[Row]) -> String {
    let (height, width) = BAR;
    let all = 60 + height * rows.len() as u32;
    let (left, most) = (380, 3.5);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{}\" height=\"{all}\" font-family=\"sans-serif\" \
         font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n<text x=\"10\" y=\"18\" \
         font-weight=\"bold\">Income for what is really there, against an honest node's</text>\n",
        left + width + 90,
    );
    let long = |income: f64| (income.min(most) / most * f64::from(width)) as u32;
    for (row, y) in rows.iter().zip((30..).step_by(height as usize)) {
        let (income, note) = match row.income {
            Some(income) => (income, String::new()),
            None => (if row.of_claim > 0.01 { most } else { 0.0 }, " for nothing".to_owned()),
        };
        let shown = if row.income.is_some() { income } else { row.of_claim };
        let colour = if row.pays() { "#b5343c" } else { "#2a6f97" };
        let name = row.strategy.name();
        let (text, long) = (y + height - 4, long(income));
        line(
            &mut svg,
            &format!("<text x=\"{}\" y=\"{text}\" text-anchor=\"end\">{name}</text>", left - 6),
        );
        line(
            &mut svg,
            &format!(
                "<rect x=\"{left}\" y=\"{y}\" width=\"{long}\" height=\"{}\" fill=\"{colour}\"/>",
                height - 3
            ),
        );
        line(
            &mut svg,
            &format!("<text x=\"{}\" y=\"{text}\">{shown:.2}{note}</text>", left + long + 4),
        );
    }
    let at = left + long(1.0);
    line(
        &mut svg,
        &format!("<line x1=\"{at}\" y1=\"26\" x2=\"{at}\" y2=\"{}\" stroke=\"black\"/>", all - 28),
    );
    line(
        &mut svg,
        &format!("<text x=\"{at}\" y=\"{}\" text-anchor=\"middle\">honest</text>", all - 12),
    );
    svg.push_str("</svg>\n");
    svg
}
