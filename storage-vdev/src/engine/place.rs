//! Which nodes get the slots and the journal heads.

use super::nodes::NodeTable;
use super::options::{NodeInfo, OpenError, Policy};
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
) -> Vec<NodeIndex> {
    let all = (0..nodes.len()).filter_map(|node| NodeIndex::try_from(node).ok());
    let mut heads: Vec<NodeIndex> = Vec::new();
    for node in now.iter().copied().chain(all) {
        let Some(entry) = nodes.get(node).filter(|entry| entry.info.journal) else { continue };
        let local = policy != Policy::Local || entry.info.local;
        let domain = |head: &NodeIndex| nodes.get(*head).map(|head| &head.info.domain);
        let doubled = heads.iter().any(|head| domain(head) == Some(&entry.info.domain));
        if local && !doubled && nodes.is_usable(node) && heads.len() < wanted {
            heads.push(node);
        }
    }
    heads
}
