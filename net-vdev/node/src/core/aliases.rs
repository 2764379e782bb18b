//! Aliases: the addresses that attached members have in this node's /64, and what other nodes say about
//! those in theirs. `docs/mesh.md` tells who asks whom.
//!
//! * Of its own a node holds a certificate that is at most two thirds of its life old. Whoever asked is
//!   told when the member leaves.
//! * Of another node's a certificate counts if that node answered with it, and signed it: the answer
//!   has to come through the session of the key that the address's /64 is routed for.
//! * Who asks, who is asked, and what is remembered is bounded; to an attached member a question counts
//!   as much as a search by the router.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv6Addr;

use mesh_router::NextHop;
use net_vdev::PublicKey;
use net_vdev::certificate::{ALIAS_BYTES, Alias};
use net_vdev::endpoint::{ALIAS_ASK_BEFORE_S, ALIAS_LIFE_S, SignedAlias};

use super::searches::Searches;
use super::{Core, Outside, Resolved};

/// How many aliases of other nodes are looked for or known at a time.
const OTHERS_MAX: usize = 1024;
/// How many questions of a peer are answered in a second: it asks for all members of its host.
const ANSWERS_MAX: u32 = 512;
/// How many are told that an alias ended; others find out by its end.
const TOLD_MAX: usize = 64;
/// When an own certificate is signed anew, and how many are in one turn.
const RENEW_NS: u64 = ALIAS_LIFE_S / 3 * SECOND_NS;
const SIGNED_PER_TURN: usize = 16;
/// How often a node is asked, at which pause, and how long it is not asked again.
const TRIES: u8 = 6;
const TRY_PAUSE_NS: u64 = SECOND_NS / 2;
const REST_NS: u64 = 2 * SECOND_NS;

const SECOND_NS: u64 = 1_000_000_000;

/// All that a node knows of aliases.
#[derive(Default)]
pub(super) struct Aliases {
    own: BTreeMap<Ipv6Addr, Own>,
    /// When the first of the own ones is signed anew.
    sign_ns: u64,
    others: BTreeMap<Ipv6Addr, Other>,
    /// When the first node is asked (again).
    ask_ns: Option<u64>,
    /// How many questions of each peer were answered of late.
    answers: Searches,
}

/// An alias of an attached member.
struct Own {
    signed: SignedAlias,
    sign_ns: u64,
    /// Who was told of it.
    told: BTreeSet<PublicKey>,
}

/// An address in the /64 of another node.
struct Other {
    node: PublicKey,
    signed: Option<SignedAlias>,
    question: Option<Question>,
    /// Until when the node is not asked (again): what it said last holds, or that it said nothing.
    rest_ns: u64,
    /// The attached members that were told of it.
    told: BTreeSet<PublicKey>,
}

/// A question under way.
struct Question {
    tries: u8,
    at_ns: u64,
}

/// Whose an address is.
pub(super) enum Whose {
    /// A member's own.
    Member(PublicKey),
    /// A workload's alias.
    Alias(Box<SignedAlias>),
    /// That is being found out.
    Sought,
    /// Nobody's.
    Nobody,
}

impl Other {
    fn new(node: PublicKey) -> Self {
        Self { node, signed: None, question: None, rest_ns: 0, told: BTreeSet::new() }
    }

    /// Its certificate, if it counts still.
    fn held(&self, unix_s: u64) -> Option<&SignedAlias> {
        self.signed.as_ref().filter(|signed| unix_s < signed.alias.counts_until_unix_s())
    }

    fn is_of_use(&self, now_ns: u64, unix_s: u64) -> bool {
        self.held(unix_s).is_some() || self.question.is_some() || now_ns < self.rest_ns
    }
}

impl Aliases {
    /// When there is something to do by itself.
    pub(super) fn deadline_ns(&self) -> Option<u64> {
        let sign_ns = (!self.own.is_empty()).then_some(self.sign_ns);
        [sign_ns, self.ask_ns].into_iter().flatten().min()
    }

    fn ask_at(&mut self, at_ns: u64) {
        self.ask_ns = Some(self.ask_ns.map_or(at_ns, |first_ns| first_ns.min(at_ns)));
    }

    /// There is a session with a node: what it is to be asked is asked now.
    pub(super) fn hurry(&mut self, now_ns: u64, node: &PublicKey) {
        let of_node = self.others.values_mut().filter(|other| other.node == *node);
        let mut is_any = false;
        for question in of_node.filter_map(|other| other.question.as_mut()) {
            question.at_ns = now_ns;
            is_any = true;
        }
        if is_any {
            self.ask_at(now_ns);
        }
    }

    /// The entry of an address in the /64 of `node`, if there is room for one.
    fn other(
        &mut self,
        now_ns: u64,
        unix_s: u64,
        (node, address): (&PublicKey, &Ipv6Addr),
    ) -> Option<&mut Other> {
        if self.others.get(address).is_some_and(|other| other.node != *node) {
            self.others.remove(address);
        }
        if !self.others.contains_key(address) && self.others.len() >= OTHERS_MAX {
            self.others.retain(|_, other| other.is_of_use(now_ns, unix_s));
        }
        if !self.others.contains_key(address) && self.others.len() >= OTHERS_MAX {
            return None;
        }
        Some(self.others.entry(*address).or_insert_with(|| Other::new(*node)))
    }

    /// What is known of an address in the /64 of another node; the node is asked if need be.
    fn look(
        &mut self,
        now_ns: u64,
        unix_s: u64,
        (node, address): (&PublicKey, &Ipv6Addr),
    ) -> Whose {
        let Some(other) = self.other(now_ns, unix_s, (node, address)) else { return Whose::Nobody };
        let held = other.held(unix_s).cloned();
        let is_fresh = held
            .as_ref()
            .is_some_and(|it| unix_s.saturating_add(ALIAS_ASK_BEFORE_S) < it.alias.expires_unix_s);
        if !is_fresh && other.question.is_none() && now_ns >= other.rest_ns {
            other.question = Some(Question { tries: 0, at_ns: now_ns });
            self.ask_at(now_ns);
        } else if held.is_none() && other.question.is_none() {
            return Whose::Nobody;
        }
        held.map_or(Whose::Sought, |held| Whose::Alias(Box::new(held)))
    }
}

impl Core {
    /// The aliases of the attached members that count now.
    pub fn own_aliases(&self) -> impl Iterator<Item = &Alias> {
        self.aliases.own.values().map(|own| &own.signed.alias)
    }

    /// Those of other nodes that count at `now_ns`, as far as this one was told.
    pub fn known_aliases(&self, now_ns: u64) -> impl Iterator<Item = &Alias> {
        let unix_s = self.endpoint.unix_s(now_ns);
        let held = self.aliases.others.values().filter_map(move |other| other.held(unix_s));
        held.map(|signed| &signed.alias)
    }

    /// Whose an address is. If that is not known here, it is being found out, and an event or
    /// [`Core::settle`] follows.
    pub(super) fn whose(&mut self, now_ns: u64, address: &Ipv6Addr) -> Whose {
        match self.router.resolve(address) {
            Some(key) if key.address() == *address => Whose::Member(key),
            Some(node) if node == self.endpoint.key() => {
                let own = self.aliases.own.get(address);
                own.map_or(Whose::Nobody, |own| Whose::Alias(Box::new(own.signed.clone())))
            }
            Some(node) => {
                let unix_s = self.endpoint.unix_s(now_ns);
                self.aliases.look(now_ns, unix_s, (&node, address))
            }
            None if self.router.next_hop(now_ns, address, false) == NextHop::Pending => {
                Whose::Sought
            }
            None => Whose::Nobody,
        }
    }

    /// Whether to find out whose an address is needs others to be asked.
    pub(super) fn has_to_ask(&self, now_ns: u64, address: &Ipv6Addr) -> bool {
        let unix_s = self.endpoint.unix_s(now_ns);
        match self.router.resolve(address) {
            None => self.router.would_search(address),
            Some(key) if key.address() == *address || key == self.endpoint.key() => false,
            Some(node) => {
                let other = self.aliases.others.get(address).filter(|other| other.node == node);
                other.is_none_or(|other| !other.is_of_use(now_ns, unix_s))
            }
        }
    }

    /// A member that is attached now gets its alias.
    pub(super) fn give_alias(&mut self, now_ns: u64, workload: &PublicKey) {
        let Some(signed) = self.endpoint.sign_alias(now_ns, workload) else { return };
        let sign_ns = now_ns.saturating_add(RENEW_NS);
        // Of two with the same 48 bits, the first keeps the address.
        let own = self.aliases.own.entry(signed.alias.address);
        own.or_insert(Own { signed, sign_ns, told: BTreeSet::new() });
        self.set_sign_ns();
    }

    /// A member leaves: its alias is nobody's, and those who were told of it are told so.
    pub(super) fn take_alias(&mut self, workload: &PublicKey, outside: &mut impl Outside) {
        let address = Alias::address_of(&self.endpoint.key(), workload);
        let is_its = |own: &Own| own.signed.alias.workload == *workload;
        if !self.aliases.own.get(&address).is_some_and(is_its) {
            return;
        }
        let Some(own) = self.aliases.own.remove(&address) else { return };
        self.endpoint.give_up(&address);
        for member in own.told {
            if self.attached.contains_key(&member.address()) {
                outside.resolved(&member, &address, Resolved::Nobody);
            } else {
                self.endpoint.tell_alias(&member, address, None);
            }
        }
        self.set_sign_ns();
    }

    fn set_sign_ns(&mut self) {
        let due = self.aliases.own.values().map(|own| own.sign_ns);
        self.aliases.sign_ns = due.min().unwrap_or(u64::MAX);
    }

    /// Signs what is to be signed anew, and asks whom it is time to ask.
    pub(super) fn keep_aliases(&mut self, now_ns: u64, outside: &mut impl Outside) {
        if !self.aliases.own.is_empty() && now_ns >= self.aliases.sign_ns {
            let due = self.aliases.own.values_mut().filter(|own| now_ns >= own.sign_ns);
            for own in due.take(SIGNED_PER_TURN) {
                if let Some(signed) = self.endpoint.sign_alias(now_ns, &own.signed.alias.workload) {
                    own.signed = signed;
                }
                own.sign_ns = now_ns.saturating_add(RENEW_NS);
            }
            self.set_sign_ns();
        }
        if self.aliases.ask_ns.is_some_and(|at_ns| now_ns >= at_ns) {
            self.ask_nodes(now_ns, outside);
        }
    }

    fn ask_nodes(&mut self, now_ns: u64, outside: &mut impl Outside) {
        let mut unanswered = Vec::new();
        for (address, other) in &mut self.aliases.others {
            let Some(question) = &mut other.question else { continue };
            if now_ns < question.at_ns {
                continue;
            }
            if question.tries >= TRIES {
                other.question = None;
                other.rest_ns = now_ns.saturating_add(REST_NS);
                unanswered.push(*address);
                continue;
            }
            question.tries += 1;
            question.at_ns = now_ns.saturating_add(TRY_PAUSE_NS);
            if !self.endpoint.ask_alias(&other.node, *address) {
                // It is asked as soon as there is a session.
                self.endpoint.learn(now_ns, &other.node, &[]);
                self.endpoint.connect(now_ns, &other.node);
            }
        }
        let questions = self.aliases.others.values().filter_map(|other| other.question.as_ref());
        self.aliases.ask_ns = questions.map(|question| question.at_ns).min();
        for address in unanswered {
            let whose = self.whose(now_ns, &address);
            self.settle(now_ns, &address, &whose, outside);
        }
    }

    /// A peer asks whose alias an address of this node's is.
    pub(super) fn answer_alias(&mut self, now_ns: u64, from: &PublicKey, address: Ipv6Addr) {
        if !self.aliases.answers.take(now_ns, from, ANSWERS_MAX) {
            return;
        }
        let own = self.aliases.own.get_mut(&address);
        if let Some(own) = own {
            self.endpoint.tell_alias(from, address, Some(&own.signed.certificate));
            remember(&mut own.told, from);
        } else {
            self.endpoint.tell_alias(from, address, None);
        }
    }

    /// A peer says whose alias an address is, or that it is nobody's. It counts if it is the node that
    /// the address is routed to; a certificate moreover if that was asked.
    pub(super) fn hear_alias(
        &mut self,
        now_ns: u64,
        (from, address): (&PublicKey, Ipv6Addr),
        certificate: Option<&[u8; ALIAS_BYTES]>,
        outside: &mut impl Outside,
    ) {
        let other = self.aliases.others.get_mut(&address).filter(|other| other.node == *from);
        let Some(other) = other.filter(|it| it.question.is_some() || certificate.is_none()) else {
            self.counters.aliases_refused += 1;
            return;
        };
        let was_asked = other.question.take().is_some();
        let alias = certificate.map(|bytes| Alias::verify(bytes, self.endpoint.unix_s(now_ns)));
        match (alias, certificate) {
            (Some(Ok(alias)), Some(bytes)) if alias.address == address && alias.node == *from => {
                other.signed = Some(SignedAlias { alias, certificate: *bytes });
                // By a clock that is ahead it would be asked for again at once.
                other.rest_ns = now_ns.saturating_add(REST_NS);
                let whose = self.whose(now_ns, &address);
                self.settle(now_ns, &address, &whose, outside);
                return;
            }
            (None, _) => {
                other.signed = None;
                other.rest_ns = 0;
            }
            (outcome, _) => {
                tracing::debug!(node = %from, %address, ?outcome, "a certificate that is none");
                self.counters.aliases_refused += 1;
            }
        }
        if was_asked {
            other.rest_ns = now_ns.saturating_add(REST_NS);
        }
        if other.held(self.endpoint.unix_s(now_ns)).is_none() {
            self.settle(now_ns, &address, &Whose::Nobody, outside);
        }
    }

    /// What is known now of an address is said to the node's own member and the attached ones that
    /// asked; that it is nobody's also to those that were told otherwise.
    pub(super) fn settle(
        &mut self,
        now_ns: u64,
        address: &Ipv6Addr,
        whose: &Whose,
        outside: &mut impl Outside,
    ) {
        match whose {
            Whose::Member(key) => {
                self.endpoint.learn(now_ns, key, &[]);
            }
            Whose::Alias(signed) => self.endpoint.learn_alias(now_ns, &signed.alias),
            Whose::Nobody => self.endpoint.give_up(address),
            Whose::Sought => return,
        }
        let mut members = self.asked.remove(address).unwrap_or_default();
        if matches!(whose, Whose::Nobody)
            && let Some(other) = self.aliases.others.get_mut(address)
        {
            members.append(&mut other.told);
        }
        for member in members {
            self.tell_whose(&member, address, whose, outside);
        }
    }

    /// Tells an attached member whose an address is, if that is known.
    pub(super) fn tell_whose(
        &mut self,
        member: &PublicKey,
        address: &Ipv6Addr,
        whose: &Whose,
        outside: &mut impl Outside,
    ) {
        match whose {
            Whose::Member(key) => outside.resolved(member, address, Resolved::Key(key)),
            Whose::Alias(signed) => {
                outside.resolved(member, address, Resolved::Alias(&signed.certificate));
                let own = self.aliases.own.get_mut(address).map(|own| &mut own.told);
                let others = self.aliases.others.get_mut(address).map(|other| &mut other.told);
                own.or(others).into_iter().for_each(|told| remember(told, member));
            }
            Whose::Nobody => outside.resolved(member, address, Resolved::Nobody),
            Whose::Sought => {}
        }
    }
}

fn remember(told: &mut BTreeSet<PublicKey>, who: &PublicKey) {
    if told.len() < TOLD_MAX {
        told.insert(*who);
    }
}
