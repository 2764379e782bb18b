//! Which nodes get the slots and the journal heads.

use super::nodes::NodeTable;
use super::options::{NodeInfo, OpenError, Policy};
use super::superblock::Superblock;
use crate::node::{NODES_MAX, NodeIndex};
use crate::segment::Shape;

/// Checks the nodes, and gives each slot one of its own.
pub(super) fn place_slots(
    shape: Shape,
    nodes: &[NodeInfo],
    shared_domains: bool,
) -> Result<Vec<NodeIndex>, OpenError> {
    check_nodes(nodes)?;
    let wanted = usize::from(shape.shards());
    let keepers: Vec<(NodeIndex, &NodeInfo)> =
        (0..).zip(nodes).filter(|(_, node)| node.objects).collect();
    let mut slots: Vec<(NodeIndex, &NodeInfo)> = Vec::new();
    let mut doubled = None;
    for keeper in &keepers {
        match slots.iter().find(|slot| slot.1.domain == keeper.1.domain) {
            Some(slot) if !shared_domains => doubled = doubled.or(Some((slot.1, keeper.1))),
            _ => slots.push(*keeper),
        }
    }
    if slots.len() >= wanted {
        return Ok(slots.into_iter().take(wanted).map(|slot| slot.0).collect());
    }
    match doubled {
        Some((first, second)) if keepers.len() >= wanted => Err(OpenError::SameDomain {
            first: first.name.clone(),
            second: second.name.clone(),
            domain: first.domain.clone(),
        }),
        _ => Err(OpenError::NodeCount { found: keepers.len(), wanted }),
    }
}

/// Checks that no node is there twice.
pub(super) fn check_nodes(nodes: &[NodeInfo]) -> Result<(), OpenError> {
    if nodes.len() > NODES_MAX {
        return Err(OpenError::NodeCount { found: nodes.len(), wanted: NODES_MAX });
    }
    for (nth, node) in nodes.iter().enumerate() {
        if let Some(same) = nodes.iter().take(nth).find(|other| other.id == node.id) {
            let (first, second) = (same.name.clone(), node.name.clone());
            return Err(OpenError::SameNode { first, second });
        }
    }
    Ok(())
}

/// How many journal heads a policy wants.
pub(super) fn heads_wanted(policy: Policy, shape: Shape) -> usize {
    match policy {
        Policy::Local => 1,
        Policy::Quorum => usize::from(shape.parity_shards()) + 1,
        Policy::Sealed => 0,
    }
}

/// The nodes for the journal heads, of those that are up: those that have them now first, no two in
/// one failure domain. Fewer than wanted if there are no more.
pub(super) fn choose_heads(
    nodes: &NodeTable,
    policy: Policy,
    (wanted, now): (usize, &[NodeIndex]),
    now_ns: u64,
) -> Vec<NodeIndex> {
    let all = (0..nodes.len()).filter_map(|node| NodeIndex::try_from(node).ok());
    let mut heads: Vec<NodeIndex> = Vec::new();
    for node in now.iter().copied().chain(all) {
        let Some(entry) = nodes.get(node) else { continue };
        let local = policy != Policy::Local || entry.info.local;
        let domain = |head: &NodeIndex| nodes.get(*head).map(|head| &head.info.domain);
        let doubled = heads.iter().any(|head| domain(head) == Some(&entry.info.domain));
        if local && !doubled && nodes.may_be_head(node, now_ns) && heads.len() < wanted {
            heads.push(node);
        }
    }
    heads
}

/// The nodes of a volume that is there, matched with those that were given to open it.
pub(super) struct Matched {
    /// Those that were given, in their order, then those that are only known.
    pub(super) nodes: Vec<NodeInfo>,
    pub(super) slots: Vec<NodeIndex>,
    pub(super) heads: Vec<NodeIndex>,
    /// Slots that a new node has taken over.
    pub(super) fresh: Vec<u8>,
}

/// Finds the nodes that a superblock knows among those that were given: by their ids, or, if one
/// doesn't answer, by its name. A slot whose node is gone goes to a new node that answers under the
/// same name: it lost what it had. If `adopt`, any new node will do.
pub(super) fn match_nodes(
    superblock: &Superblock,
    given: &[NodeInfo],
    deaf: &[NodeIndex],
    adopt: bool,
) -> Matched {
    let mut nodes = given.to_vec();
    let given: Vec<(NodeIndex, &NodeInfo)> = (0..).zip(given).collect();
    let same = |known: &NodeInfo| {
        let by_id = given.iter().find(|(_, node)| node.id == known.id);
        let by_name =
            || given.iter().find(|(at, node)| deaf.contains(at) && node.name == known.name);
        by_id.or_else(by_name).map(|(at, _)| *at)
    };
    let mut places: Vec<Option<NodeIndex>> = superblock.nodes.iter().map(same).collect();
    for (known, place) in superblock.nodes.iter().zip(&places) {
        if let Some(node) = place.and_then(|place| nodes.get_mut(usize::from(place))) {
            node.id = known.id;
        }
    }
    let is_new = |at: &NodeIndex, places: &[Option<NodeIndex>]| {
        !deaf.contains(at) && !places.contains(&Some(*at))
    };
    let mut slots = Vec::new();
    let mut fresh = Vec::new();
    for (slot, holder) in (0..).zip(&superblock.slots) {
        let known = superblock.nodes.get(usize::from(*holder));
        let place = places.get(usize::from(*holder)).copied().flatten();
        let new = given
            .iter()
            .filter(|(at, node)| node.objects && is_new(at, &places) && !slots.contains(at));
        let named = new.clone().find(|(_, node)| known.is_some_and(|one| one.name == node.name));
        let taker = named.or_else(|| new.clone().next().filter(|_| adopt)).map(|(at, _)| *at);
        let node = match (place, taker) {
            (Some(place), _) => place,
            (None, Some(taker)) => {
                fresh.push(slot);
                taker
            }
            (None, None) => keep(&mut nodes, known, &mut places, *holder),
        };
        slots.push(node);
    }
    let heads = superblock.journal.heads.iter().map(|head| {
        let known = superblock.nodes.get(usize::from(*head));
        let place = places.get(usize::from(*head)).copied().flatten();
        place.unwrap_or_else(|| keep(&mut nodes, known, &mut places, *head))
    });
    let heads = heads.collect();
    Matched { nodes, slots, heads, fresh }
}

/// A node that was not given stays in the list: it counts as down.
fn keep(
    nodes: &mut Vec<NodeInfo>,
    known: Option<&NodeInfo>,
    places: &mut [Option<NodeIndex>],
    index: NodeIndex,
) -> NodeIndex {
    let place = NodeIndex::try_from(nodes.len()).unwrap_or(NodeIndex::MAX);
    nodes.extend(known.cloned());
    if let Some(entry) = places.get_mut(usize::from(index)) {
        *entry = Some(place);
    }
    place
}
