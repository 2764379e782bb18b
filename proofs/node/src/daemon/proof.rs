//! Until when this node is proven, as the chain keeps it. The node itself shows that from time to time:
//! without it anyone could park it after a week, and nobody would pay for what is reserved.
//!
//! Nothing of this is on the disk: what was shown is an event of the chain, and who asks again for what it
//! has is refused before anything is sent.

use hypha_chain::contracts::Capacity;
use serde_json::json;

use super::core::Core;
use super::sending::Ticket;
use crate::chain::book::Node;
use crate::metrics::set;

/// A node with nothing reserved shows itself as proven so long after the last time. Four and a half days
/// of the week after which it can be parked (`Registry.SILENCE`) are left for whatever fails.
const IDLE_SECS: u64 = 60 * 3600;
/// How much more of the time of a node with reservations is shown at once: until then nobody pays for it.
const RESERVED_SECS: u64 = 12 * 3600;
/// After so long a silence it is told: the node can be parked two days later.
const TOLD_SECS: u64 = 5 * 86_400;
const PARKED_AFTER_SECS: u64 = 7 * 86_400;

/// Whether it is worth a transaction to show that a node is proven until `provable_secs`.
fn is_due(mine: &Node, provable_secs: u64, now_secs: u64) -> bool {
    let kept = mine.proven_until;
    if provable_secs <= kept {
        return false;
    }
    let is_reserved = mine.idle() != mine.claimed;
    // What is left of a deposit is paid back when the end of its reservation is proven.
    let ends_one = (kept + 1..=provable_secs).contains(&mine.released_until);
    let is_silent = mine.active && now_secs.saturating_sub(mine.silent_since()) >= IDLE_SECS;
    is_silent || ends_one || is_reserved && provable_secs - kept >= RESERVED_SECS
}

impl Core<'_> {
    /// Shows that this node is proven, if that is due. Times are the monotonic clock's and the chain's.
    pub(super) fn tend_proof(&mut self, (now_ns, now_secs): (u64, u64)) {
        self.tell_silence(now_secs);
        let Some(mine) = &self.mine else { return };
        if self.time.is_down || !self.sending.is_free(Ticket::Prove, now_ns) {
            return;
        }
        let Some((data, posted, ended)) = self.judging.newest_final(now_secs) else { return };
        let node = self.config.node;
        let leaf = node.checked_sub(1).and_then(|index| data.verdicts.get(index as usize));
        let Some(leaf) = leaf else { return };
        // The contract keeps no time after the epoch's end, whatever the leaf says.
        if !is_due(mine, leaf.proven_until.min(ended), now_secs) {
            return;
        }
        let Some(proof) = data.proof(node, posted) else { return };
        let call = Capacity::proveCall { proof };
        self.sending.send(Ticket::Prove, self.config.suite.capacity, &call, now_ns);
    }

    /// Says once that the node can soon be parked.
    fn tell_silence(&mut self, now_secs: u64) {
        let Some(mine) = &self.mine else { return };
        set(&self.metrics.proven_until, mine.proven_until);
        let since = mine.silent_since();
        let is_silent = mine.active && now_secs.saturating_sub(since) >= TOLD_SECS;
        if is_silent && !self.is_silence_told {
            let until = since.saturating_add(PARKED_AFTER_SECS);
            let text = format!(
                "the chain has not been shown that this node is proven since {since}: anyone can park it \
                 from {until} on"
            );
            self.teller.tell("unproven", text, json!({"since": since, "parked_from": until}));
        }
        self.is_silence_told = is_silent;
    }
}
