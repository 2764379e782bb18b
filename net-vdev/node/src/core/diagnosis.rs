//! What people ask a node to find out: whether a member is there, and who is on the way.

use std::net::Ipv6Addr;

use net_vdev::PublicKey;
use net_vdev::certificate::Alias;
use net_vdev::endpoint::Path;
use net_vdev::wire::{self, RELAY_HEADER_BYTES, RelayHeader, TAG_BYTES};

use super::{ANSWERS_MAX, Core, NOTICES_PER_S, Outside, Run, Whose};

/// Whom a ping or trace is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Target {
    /// The member.
    pub(crate) key: PublicKey,
    /// The alias that led to it.
    pub(crate) alias: Option<Alias>,
}

impl Core {
    /// Whose an address is; `None` while that is looked for.
    ///
    /// # Errors
    /// Why nobody's.
    pub(crate) fn target(&mut self, now_ns: u64, to: &Ipv6Addr) -> Result<Option<Target>, String> {
        let known = self.endpoint.peers().map(|peer| peer.key).find(|key| key.address() == *to);
        if let Some(key) = known {
            return Ok(Some(Target { key, alias: None }));
        }
        match self.whose(now_ns, to) {
            Whose::Member(key) => Ok(Some(Target { key, alias: None })),
            Whose::Alias(signed) => {
                let alias = signed.alias;
                Ok(Some(Target { key: alias.workload, alias: Some(alias) }))
            }
            Whose::Sought => Ok(None),
            Whose::Nobody => match self.router.resolve(to) {
                Some(node) => Err(format!(
                    "{to} is no member's address, nor the alias of a workload that runs on node \
                     {node}, in whose /64 it is"
                )),
                None => Ok(None),
            },
        }
    }

    /// Asks a member whether it is there; `None` until there is a session with it.
    ///
    /// # Errors
    /// Why there will be none.
    pub(crate) fn ping(&mut self, now_ns: u64, key: &PublicKey) -> Result<Option<u64>, String> {
        if *key == self.endpoint.key() {
            return Err(format!("{} is this node itself", key.address()));
        }
        let is_known = self.endpoint.peers().any(|peer| peer.key == *key);
        if !is_known && !self.endpoint.learn(now_ns, key, &[]) {
            return Err("there are as many sessions as are allowed".to_owned());
        }
        self.endpoint.connect(now_ns, key);
        Ok(self.endpoint.ping(now_ns, key))
    }

    /// Sends a frame that ends after `hop_limit` routers, or is answered by `to` itself: `token`
    /// comes back.
    pub(crate) fn send_trace(
        &mut self,
        now_ns: u64,
        to: &Ipv6Addr,
        hop_limit: u8,
        token: u32,
        outside: &mut impl Outside,
    ) {
        let header = RelayHeader {
            hop_limit,
            is_alternate: false,
            receiver: 0,
            counter: 0,
            destination: *to,
            source: self.endpoint.address(),
        };
        let mut frame = header.to_bytes().to_vec();
        // Data of a session that nobody has: a member that gets it says so.
        frame.extend_from_slice(&wire::data_header(token, 0));
        frame.extend_from_slice(&[0; TAG_BYTES]);
        if let Some(way) = self.forward(now_ns, to, false, hop_limit, &mut frame) {
            let run = Run { start: 0, end: frame.len(), way };
            self.pass_on(now_ns, &frame, &run, frame.len(), outside);
        }
    }

    /// The answers to pings that came since this was last called.
    pub(crate) fn take_pongs(&mut self) -> Vec<(u64, PublicKey, Path)> {
        std::mem::take(&mut self.pongs)
    }

    /// The answers to traces that came since this was last called.
    pub(crate) fn take_traces(&mut self) -> Vec<(u32, Ipv6Addr)> {
        std::mem::take(&mut self.traces)
    }

    /// Tells the sender of a frame that it went through too many routers: for `trace`.
    pub(super) fn notify_expired(
        &mut self,
        now_ns: u64,
        header: &RelayHeader,
        frame: &[u8],
        outside: &mut impl Outside,
    ) {
        let second = now_ns / 1_000_000_000;
        let (at, count) = self.notices;
        self.notices = if at == second { (at, count + 1) } else { (second, 1) };
        let inside = frame.get(RELAY_HEADER_BYTES..).and_then(<[u8]>::first_chunk);
        let Some(inside) = inside.filter(|_| self.notices.1 <= NOTICES_PER_S) else { return };
        let own = self.endpoint.address();
        let back = RelayHeader {
            hop_limit: wire::HOP_LIMIT,
            is_alternate: false,
            receiver: 0,
            counter: 0,
            destination: header.source,
            source: own,
        };
        let mut notice = back.to_bytes().to_vec();
        wire::write_expired(&mut notice, inside, &own);
        let way = self.forward(now_ns, &header.source, false, wire::HOP_LIMIT, &mut notice);
        if let Some(way) = way {
            let run = Run { start: 0, end: notice.len(), way };
            self.pass_on(now_ns, &notice, &run, notice.len(), outside);
        }
    }

    pub(super) fn keep_trace(&mut self, token: u32, router: Ipv6Addr) {
        if self.traces.len() < ANSWERS_MAX {
            self.traces.push((token, router));
        }
    }
}
