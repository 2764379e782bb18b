//! Which neighbours a node has links to, and what its member and its router tell each other.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use mesh_router::{Event as RouterEvent, LinkError, LinkId, NextHop};
use net_vdev::endpoint::{Event, Path, PathView, PeerView};
use net_vdev::{Peer, PublicKey};

use super::{ANSWERS_MAX, Core, Outside, REDIAL_NS, Redial, Whose};

/// Why a neighbour has a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Invitation {
    /// It called.
    Uninvited,
    /// It said on a local network that it is there.
    Found,
    /// The operator named it.
    Named,
}

impl Core {
    /// The keys that are to announce themselves anew, the node's own or those of attached members,
    /// and under which number at least.
    pub fn take_wanted(&mut self) -> Vec<(PublicKey, u64)> {
        std::mem::take(&mut self.wanted)
    }

    /// This host can't send to a neighbour's place: the way to it is gone. If no other way to the
    /// neighbour needs no router, its link is down as of now.
    pub fn place_refused(&mut self, now_ns: u64, place: SocketAddr) {
        let path = Path::Direct(place);
        for peer in self.peers_at(&path) {
            self.endpoint.path_failed(&peer.key, &path);
            let others = |view: &&PathView| view.path.is_direct() && view.path != path;
            let others_work = peer.paths.iter().filter(others).any(|view| view.is_alive);
            if !others_work && let Some(link) = self.links.remove(&peer.key) {
                tracing::debug!(peer = %peer.key, %place, "the network refuses datagrams");
                self.router.link_down(now_ns, link);
            }
        }
    }

    /// Somebody on the way, or who claims to be, says that these places take no datagrams. That is a
    /// hint, and probes find out. Anybody can say it of any place, and often: so the peers are gone
    /// through once for all of them.
    pub fn places_are_doubtful(&mut self, now_ns: u64, places: &BTreeSet<SocketAddr>) {
        if places.is_empty() {
            return;
        }
        let is_meant = |path: &Path| matches!(path, Path::Direct(at) if places.contains(at));
        let ways = self.endpoint.peers().flat_map(|PeerView { key, paths, .. }| {
            paths.into_iter().map(move |view| (key, view.path)).filter(|(_, path)| is_meant(path))
        });
        for (key, path) in ways.collect::<Vec<_>>() {
            self.endpoint.path_is_doubtful(now_ns, &key, &path);
            // Frames and probes of the router take this one.
            let is_chosen = self.endpoint.direct_path(&key) == Some(path);
            if is_chosen && let Some(link) = self.links.get(&key) {
                self.router.suspect(now_ns, *link);
            }
        }
    }

    fn peers_at(&self, path: &Path) -> Vec<PeerView> {
        let at = |peer: &PeerView| peer.paths.iter().any(|view| view.path == *path);
        self.endpoint.peers().filter(at).collect()
    }

    /// The places that datagrams go to now, and those that they could go to.
    pub fn places(&self) -> BTreeSet<SocketAddr> {
        let paths = self.endpoint.peers().flat_map(|peer| peer.paths);
        let place = |view: PathView| match view.path {
            Path::Direct(place) if view.is_alive || view.is_current => Some(place),
            _ => None,
        };
        paths.filter_map(place).collect()
    }

    /// The network refuses full-sized datagrams to this place.
    pub fn place_is_narrow(&mut self, place: SocketAddr) {
        self.endpoint.path_is_narrow(&Path::Direct(place));
    }

    /// Keeps a session with a neighbour from now on. Says whether it was not one before.
    pub fn add_neighbour(&mut self, now_ns: u64, key: PublicKey, at: Option<SocketAddr>) -> bool {
        if self.configured.contains_key(&key) || key == self.endpoint.key() {
            return false;
        }
        let peer = Peer { key, endpoint: at, addresses: Vec::new() };
        if self.endpoint.list(peer).is_err() {
            self.endpoint.learn(now_ns, &key, at.as_slice());
        }
        self.configured.insert(key, Redial::new(now_ns, at));
        true
    }

    /// Calls configured neighbours that there is no session with.
    pub(super) fn redial(&mut self, now_ns: u64) {
        let mut connected = Vec::new();
        for (key, redial) in &mut self.configured {
            if self.links.contains_key(key) {
                redial.pause_ns = *REDIAL_NS.start();
                redial.at_ns = now_ns.saturating_add(redial.pause_ns);
            } else if redial.at_ns <= now_ns {
                redial.at_ns = now_ns.saturating_add(redial.pause_ns);
                redial.pause_ns = (2 * redial.pause_ns).min(*REDIAL_NS.end());
                self.endpoint.connect(now_ns, key);
                if self.endpoint.is_connected(key) {
                    connected.push(*key);
                }
            }
        }
        // The session outlived the link: the router finds out whether it works again.
        for key in connected {
            self.take_up(now_ns, key);
        }
    }

    pub(super) fn handle_events(&mut self, now_ns: u64, outside: &mut impl Outside) {
        while let Some(event) = self.endpoint.poll_event() {
            self.handle_member_event(now_ns, event, outside);
        }
        while let Some(event) = self.router.poll_event() {
            self.handle_router_event(now_ns, event, outside);
        }
    }

    fn handle_member_event(&mut self, now_ns: u64, event: Event, outside: &mut impl Outside) {
        match event {
            Event::Up(key) => {
                self.aliases.hurry(now_ns, &key);
                if self.configured.contains_key(&key) {
                    self.take_up(now_ns, key);
                }
            }
            Event::Down(key) => {
                if let Some(link) = self.links.remove(&key) {
                    self.router.link_down(now_ns, link);
                }
            }
            // If others have to be asked, the answer comes as an event.
            Event::Resolve(address) => {
                let whose = self.whose(now_ns, &address);
                self.settle(now_ns, &address, &whose, outside);
            }
            Event::AliasAsked { from, address } => self.answer_alias(now_ns, &from, address),
            Event::Alias { from, address, certificate } => {
                self.hear_alias(now_ns, (&from, address), certificate.as_deref(), outside);
            }
            Event::Router { from, path, message } => {
                // A router's word counts on the very link that it is about.
                if path.is_direct()
                    && let Some(link) = self.take_up(now_ns, from)
                {
                    self.router.receive(now_ns, link, &message);
                }
            }
            Event::PathDied { peer, path } => self.avoid(now_ns, &peer, path),
            Event::Expired { index, router } => self.keep_trace(index, router),
            Event::UnknownSession { index, path: Path::Relayed { member, .. } } => {
                self.keep_trace(index, member);
            }
            Event::UnknownSession { .. } => {}
            Event::Pong { from, path, number } => {
                if self.pongs.len() < ANSWERS_MAX {
                    self.pongs.push((number, from, path));
                }
            }
        }
    }

    pub(super) fn handle_router_event(
        &mut self,
        now_ns: u64,
        event: RouterEvent,
        outside: &mut impl Outside,
    ) {
        match event {
            RouterEvent::Resolved(address) => {
                let whose = self.whose(now_ns, &address);
                self.settle(now_ns, &address, &whose, outside);
                self.release(now_ns, &address, outside);
            }
            RouterEvent::Unreachable(address) => {
                self.settle(now_ns, &address, &Whose::Nobody, outside);
                self.release(now_ns, &address, outside);
            }
            RouterEvent::LinkUp(_) => {}
            RouterEvent::LinkDead(link) => {
                if let Some(key) = self.neighbour(link) {
                    self.endpoint.direct_paths_failed(&key);
                }
            }
            // Anybody can ask for any number: it gets the next one.
            RouterEvent::SequenceWanted { key, .. } => self.want(key, 0),
            // This one was signed with the key itself.
            RouterEvent::Superseded { key, sequence } => self.want(key, sequence.saturating_add(1)),
        }
    }

    pub(super) fn want(&mut self, key: PublicKey, number: u64) {
        if self.wanted.len() < ANSWERS_MAX {
            self.wanted.push((key, number));
        }
    }

    /// Whom the router's link leads to.
    pub(super) fn neighbour(&self, link: LinkId) -> Option<PublicKey> {
        self.links.iter().find(|(_, id)| **id == link).map(|(key, _)| *key)
    }

    /// The router's link to a neighbour, made if there is room for one.
    pub(super) fn take_up(&mut self, now_ns: u64, key: PublicKey) -> Option<LinkId> {
        if let Some(link) = self.links.get(&key) {
            return Some(*link);
        }
        let mut outcome = self.router.link_up(now_ns, key, 0);
        if matches!(outcome, Err(LinkError::TooMany(_))) && self.make_room_for(now_ns, &key) {
            outcome = self.router.link_up(now_ns, key, 0);
        }
        match outcome {
            Ok(link) => {
                self.links.insert(key, link);
                Some(link)
            }
            Err(error) => {
                tracing::debug!(%key, %error, "no link");
                self.counters.links_refused += 1;
                None
            }
        }
    }

    /// Ends a link to somebody whom this node looks for less than for `key`; whether there was one.
    /// Anybody with a session takes a link by saying a router's word, under as many keys as there are
    /// links: that keeps no neighbour out that the operator named.
    fn make_room_for(&mut self, now_ns: u64, key: &PublicKey) -> bool {
        let usable = self.usable_neighbours();
        let worth = |other: &PublicKey| (self.invitation(other), usable.contains(other));
        let Some(least) = self.links.keys().min_by_key(|other| worth(other)).copied() else {
            return false;
        };
        if self.invitation(&least) >= self.invitation(key) {
            return false;
        }
        tracing::debug!(peer = %least, for_peer = %key, "its link is for one that was named");
        self.counters.links_refused += 1;
        if let Some(link) = self.links.remove(&least) {
            self.router.link_down(now_ns, link);
        }
        true
    }

    /// How much a neighbour is looked for.
    fn invitation(&self, key: &PublicKey) -> Invitation {
        match self.configured.get(key) {
            None => Invitation::Uninvited,
            Some(redial) if redial.is_found => Invitation::Found,
            Some(_) => Invitation::Named,
        }
    }

    /// A way to a member through routers does not work. The session takes the other of the two; if it
    /// was the second choice that failed, the router looks for a third: to change the first would
    /// turn the two round under the session's feet.
    pub(super) fn avoid(&mut self, now_ns: u64, peer: &PublicKey, path: Path) {
        if let Path::Relayed { member, is_alternate: true } = path
            && let NextHop::Link(link) = self.router.route_to(&member, true)
        {
            tracing::debug!(%peer, "a router on the way drops what it is given");
            self.router.avoid(now_ns, &member, link);
        }
    }
}
