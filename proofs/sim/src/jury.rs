//! Juries that the real draw makes of nodes of two kinds: honest ones, who are against what was posted, and
//! one cheater's, who are for it; all of them vote.

use hypha_chain::keccak256;
use hypha_proofs::network::audit::Jury;

/// What a stake weighs: tokens times seconds.
const HONEST: u128 = 62 * 30 * 86_400;
/// A new node at the least stake, in the hour before the epoch's end.
const NEW: u128 = 10 * 3600;

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Trial {
    /// Honest nodes, 62 tokens and 30 days each.
    pub honest: u32,
    /// Nodes of the cheater's.
    pub cheaters: u32,
    /// Whether these are new and come beside the honest ones' weight, and don't divide a given one.
    pub are_new: bool,
    /// Of all weight, the cheater's.
    pub of_weight: f64,
    /// Of all seats, the cheater's.
    pub of_seats: f64,
    /// Of the juries, those in which it has at least as many seats as the honest: what was posted stands.
    pub won: f64,
}

/// All trials, of so many juries each.
#[must_use]
pub fn trials(juries: u32, seed: u64) -> Vec<Trial> {
    let mut found = Vec::new();
    for (honest, times) in [(100, 1), (100, 10), (100, 100), (1000, 10)] {
        let cheaters = honest * times;
        let (won, of_seats, of_weight) = play((honest, HONEST), (cheaters, NEW), juries, seed);
        found.push(Trial { honest, cheaters, are_new: true, of_weight, of_seats, won });
    }
    let honest = 1000;
    for per_mille in [200, 333, 400, 450] {
        for cheaters in [1, 10, 1000] {
            let all = u128::from(honest) * HONEST * per_mille / (1000 - per_mille);
            let each = all / u128::from(cheaters);
            let (won, of_seats, of_weight) = play((honest, HONEST), (cheaters, each), juries, seed);
            found.push(Trial { honest, cheaters, are_new: false, of_weight, of_seats, won });
        }
    }
    found
}

/// Juries of so many nodes of so much weight each. Returns of the juries those that the second kind wins,
/// and what it has of all seats and of all weight.
fn play(honest: (u32, u128), cheaters: (u32, u128), juries: u32, seed: u64) -> (f64, f64, f64) {
    let of = |(count, each): (u32, u128)| u128::from(count) * each;
    let weight = of(honest) + of(cheaters);
    let (mut won, mut seats) = (0, [0, 0]);
    for id in 0..u64::from(juries) {
        let hash = keccak256([seed, id].map(u64::to_be_bytes).concat());
        let mut drawn = [0; 20];
        drawn.iter_mut().zip(hash).for_each(|(to, from)| *to = from);
        let jury = Jury { id, seed: drawn, weight };
        let has = |from: u32, (count, each): (u32, u128)| -> u128 {
            (from..from + count).map(|node| jury.seats_of(node, each)).sum()
        };
        let (against, for_it) = (has(1, honest), has(1 + honest.0, cheaters));
        won += u32::from(for_it >= against);
        seats = [seats[0] + against, seats[1] + for_it];
    }
    let all = (seats[0] + seats[1]).max(1);
    (
        f64::from(won) / f64::from(juries.max(1)),
        seats[1] as f64 / all as f64,
        of(cheaters) as f64 / weight as f64,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seats_are_as_weights_whatever_the_number_of_nodes() {
        for trial in trials(20, 1) {
            // 20 juries of 256 seats, drawn one by one at worst.
            assert!((trial.of_seats - trial.of_weight).abs() < 0.03, "{trial:?}");
        }
    }

    #[test]
    fn a_hundred_new_nodes_for_each_honest_one_win_nothing() {
        let swamped = trials(20, 1).into_iter().filter(|it| it.are_new);
        assert!(swamped.clone().any(|it| it.cheaters == 100 * it.honest));
        for trial in swamped {
            assert!(trial.of_weight < 0.03 && trial.won == 0.0, "{trial:?}");
        }
    }
}
