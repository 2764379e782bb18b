//! Who watches whom: drawn by the pulse's seed, weighted by stake × age. Anybody can compute it.

use hypha_chain::{B256, keccak256};

use super::roster::{Member, Roster};
use crate::{Challenge, draw};

/// How many witnesses a node has in a pulse, if there are so many that are independent.
pub const WITNESSES: usize = 7;
/// How many challengers measure a node's bandwidth.
pub const CHALLENGERS: usize = 10;
/// How many nodes make an extent again that a witness has found false: so many, since their word takes
/// a resource from a node for a month.
pub const INSPECTORS: usize = 21;
/// Draws for each that is wanted, before the search ends.
const DRAWS_EACH: usize = 32;
/// Up to so many nodes, all are looked at if draws did not find enough.
const SWEEP_MAX: usize = 256;

const PURPOSE: u8 = 5;
const SWEEP: u8 = 6;
const MEASURED: u8 = 7;

/// What is drawn for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Duty {
    /// To judge a node's answer.
    Witness,
    /// To measure a node's bandwidth.
    Challenger,
    /// To make an extent of a node again, which a witness of an earlier pulse has found false.
    Inspector,
}

impl Duty {
    fn count(self) -> usize {
        match self {
            Self::Witness => WITNESSES,
            Self::Challenger => CHALLENGERS,
            Self::Inspector => INSPECTORS,
        }
    }

    fn seed(self, challenge: &Challenge, node: u32) -> B256 {
        let name: &[u8] = match self {
            Self::Witness => b"hypha witness 1",
            Self::Challenger => b"hypha challenger 1",
            Self::Inspector => b"hypha inspector 1",
        };
        keccak256([name, &challenge.seed[..], &node.to_be_bytes()].concat())
    }
}

/// The nodes that have a duty towards `node` in a pulse, in the order in which they were drawn; fewer
/// than wanted if there are not so many that are independent, and none if the node is not there.
///
/// None is of the node's farm, network or autonomous system, and no two are of one farm or network:
/// who counts twice must be in two places.
#[must_use]
pub fn drawn(roster: &Roster, challenge: &Challenge, duty: Duty, node: u32) -> Vec<u32> {
    let Some(watched) = roster.member(node) else { return Vec::new() };
    let (total, wanted) = (roster.weight(), duty.count());
    let mut found: Vec<&Member> = Vec::with_capacity(wanted);
    if total == 0 {
        return Vec::new();
    }
    let seed = duty.seed(challenge, node);
    for number in 0..(wanted * DRAWS_EACH) as u32 {
        if found.len() == wanted {
            break;
        }
        let at = roster.at_weight(draw(&seed, PURPOSE, number, total));
        take(roster, at, watched, &mut found);
    }
    let members = roster.members().len();
    if found.len() < wanted && members <= SWEEP_MAX {
        // A few may have nearly all weight: then draws don't find the others.
        let first = roster.at_weight(draw(&seed, SWEEP, 0, total));
        for step in 0..members {
            if found.len() < wanted {
                take(roster, (first + step) % members, watched, &mut found);
            }
        }
    }
    found.iter().map(|member| member.node).collect()
}

fn take<'a>(roster: &'a Roster, at: usize, watched: &Member, found: &mut Vec<&'a Member>) {
    let Some(candidate) = roster.members().get(at).filter(|_| roster.has_weight(at)) else {
        return;
    };
    let apart = |other: &Member| candidate.farm != other.farm && !candidate.shares_network(other);
    if apart(watched) && !candidate.shares_system(watched) && found.iter().all(|it| apart(it)) {
        found.push(candidate);
    }
}

/// How many of so many witnesses must agree: five of seven, and in this proportion of fewer, rounded
/// up. One or two witnesses must all agree; without any, nothing is proven.
#[must_use]
pub fn quorum(witnesses: usize) -> Option<usize> {
    (witnesses > 0).then(|| (witnesses * 5).div_ceil(WITNESSES))
}

/// Whether a node's bandwidth is measured in a pulse: that of `per_mille` of 1000 nodes is.
#[must_use]
pub fn is_measured(challenge: &Challenge, node: u32, per_mille: u32) -> bool {
    draw(&Duty::Challenger.seed(challenge, node), MEASURED, 0, 1000) < u64::from(per_mille)
}
