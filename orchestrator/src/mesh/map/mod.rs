//! The mesh as one node sees it: itself, its neighbours, and behind each of them whoever is reached
//! through it. A node knows its own links and the next hop of every route, and no more: so this is a
//! tree of two levels.
//!
//! What is drawn was said by others. Keys and names come as text here, and whoever writes them into
//! something with a grammar (a terminal, a picture) escapes them ([`plain`], [`svg`]).

pub(super) mod svg;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use mesh_node::orders::Status;
use serde::Serialize;

/// How many digits of a key stand for it in a drawing; they decide nothing.
const DIGITS: usize = 8;
/// How many letters of a name.
const NAME_CHARACTERS: usize = 14;

/// The mesh from one node's point of view.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Map {
    /// This node's key.
    pub key: String,
    /// Its zone.
    pub zone: u16,
    /// The members attached to it: the VMs of its host.
    pub attached: Vec<Attached>,
    /// Its neighbours, by key.
    pub neighbours: Vec<Neighbour>,
    /// Keys of those that no way leads to at the moment.
    pub unreachable: Vec<String>,
}

/// A member attached to this node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(super) struct Attached {
    /// Its name on this node.
    pub name: Option<String>,
    /// Its key.
    pub key: String,
}

impl Attached {
    /// What it is called in few letters.
    fn label(&self) -> String {
        self.name.as_deref().map_or_else(|| short(&self.key), |name| plain(name, NAME_CHARACTERS))
    }
}

/// A neighbour.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Neighbour {
    /// Its key.
    pub key: String,
    /// Its zone.
    pub zone: u16,
    /// Whether the link may be used.
    pub is_usable: bool,
    /// The link's round trip, in microseconds.
    pub round_trip_us: u64,
    /// Who is reached through it: the nearest first.
    pub behind: Vec<Behind>,
}

/// A member behind a neighbour.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(super) struct Behind {
    /// What the way costs, in microseconds.
    pub cost_us: Option<u32>,
    /// Its key.
    pub key: String,
    /// Its zone, if it is a node; none for a workload.
    pub zone: Option<u16>,
}

impl Map {
    /// The map that follows from what a node says about itself.
    pub(super) fn new(status: &Status) -> Self {
        let mut behind: BTreeMap<&str, BTreeSet<Behind>> = BTreeMap::new();
        let mut unreachable = BTreeSet::new();
        let is_here: BTreeSet<&str> = status
            .attached
            .iter()
            .map(|member| &*member.key)
            .chain(status.neighbours.iter().map(|neighbour| &*neighbour.key))
            .chain([&*status.key])
            .collect();
        for route in status.routes.iter().filter(|route| !is_here.contains(&*route.key)) {
            let (cost_us, key, zone) = (route.cost_us, route.key.clone(), route.zone);
            match &route.next {
                Some(next) => {
                    behind.entry(next).or_default().insert(Behind { cost_us, key, zone });
                }
                None => {
                    unreachable.insert(key);
                }
            }
        }
        let attached: BTreeSet<_> = status
            .attached
            .iter()
            .map(|it| Attached { name: it.name.clone(), key: it.key.clone() })
            .collect();
        // Two links to one neighbour are one line here: the one that is used.
        let mut neighbours: BTreeMap<&str, Neighbour> = BTreeMap::new();
        for it in &status.neighbours {
            let neighbour = Neighbour {
                key: it.key.clone(),
                zone: it.zone,
                is_usable: it.is_usable,
                round_trip_us: it.round_trip_us,
                behind: behind.remove(&*it.key).unwrap_or_default().into_iter().collect(),
            };
            let rank = |it: &Neighbour| (!it.is_usable, it.round_trip_us);
            match neighbours.get_mut(&*it.key) {
                Some(before) if rank(before) <= rank(&neighbour) => {}
                Some(before) => {
                    *before = Neighbour { behind: std::mem::take(&mut before.behind), ..neighbour };
                }
                None => {
                    neighbours.insert(&it.key, neighbour);
                }
            }
        }
        Self {
            key: status.key.clone(),
            zone: status.zone,
            attached: attached.into_iter().collect(),
            neighbours: neighbours.into_values().collect(),
            unreachable: unreachable.into_iter().collect(),
        }
    }

    /// The zones that there are.
    fn zones(&self) -> BTreeSet<u16> {
        let behind = self.neighbours.iter().flat_map(|it| &it.behind).filter_map(|it| it.zone);
        let neighbours = self.neighbours.iter().map(|it| it.zone);
        neighbours.chain(behind).chain([self.zone]).collect()
    }

    /// A tree of lines for a terminal.
    pub(super) fn text(&self) -> String {
        let mut text = format!("{}  this node, zone {}\n", short(&self.key), self.zone);
        let lines = self.attached.len() + self.neighbours.len() + self.unreachable.len();
        let mut left = lines;
        let mut branch = || {
            left = left.saturating_sub(1);
            if left == 0 { ("└─", "  ") } else { ("├─", "│ ") }
        };
        for member in &self.attached {
            line(&mut text, format_args!("{} {}  attached here", branch().0, member.label()));
        }
        for neighbour in &self.neighbours {
            let (fork, stem) = branch();
            let key = short(&neighbour.key);
            let time = link_time(neighbour);
            line(&mut text, format_args!("{fork} {key}  zone {}, {time}", neighbour.zone));
            for (at, it) in neighbour.behind.iter().enumerate() {
                let fork = if at + 1 == neighbour.behind.len() { "└─" } else { "├─" };
                let what = kind(it.zone);
                let cost = cost(it.cost_us);
                line(&mut text, format_args!("{stem} {fork} {}  {what}, {cost}", short(&it.key)));
            }
        }
        for key in &self.unreachable {
            line(&mut text, format_args!("{} {}  unreachable", branch().0, short(key)));
        }
        text
    }
}

fn line(text: &mut String, content: std::fmt::Arguments<'_>) {
    // Writing to a string can't fail.
    _ = writeln!(text, "{content}");
}

/// A neighbour's round trip, or that there is none.
fn link_time(neighbour: &Neighbour) -> String {
    if neighbour.is_usable { ms(neighbour.round_trip_us) } else { "not answering".to_owned() }
}

fn cost(cost_us: Option<u32>) -> String {
    cost_us.map_or_else(|| "unreachable".to_owned(), |us| format!("at {}", ms(us.into())))
}

fn kind(zone: Option<u16>) -> String {
    zone.map_or_else(|| "workload".to_owned(), |zone| format!("zone {zone}"))
}

fn ms(us: u64) -> String {
    format!("{}.{} ms", us / 1000, us % 1000 / 100)
}

/// The first digits of a key.
fn short(key: &str) -> String {
    plain(key, DIGITS)
}

/// The first characters of a text by others, without what would steer a terminal.
fn plain(text: &str, characters: usize) -> String {
    let is_plain = |it: char| it.is_ascii_graphic();
    text.chars().take(characters).map(|it| if is_plain(it) { it } else { '?' }).collect()
}
