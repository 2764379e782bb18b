//! The node as a way out of the mesh: NAT64 and the resolver, for its host, for the members that are
//! attached to it, and for those that its operator lists.

use std::collections::BTreeMap;
use std::net::{Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};

use mesh_egress::address::{Destinations, NAT64_PREFIX};
use mesh_egress::counters::DropReason;
use mesh_egress::host::HostSockets;
use mesh_egress::limits::{Limits, NatConfig};
use mesh_egress::names::Names;
use mesh_egress::nat::Deliver;
use mesh_egress::{Egress, EgressConfig};
use net_vdev::certificate::{HostName, NameRecord};
use net_vdev::endpoint::Exits;
use net_vdev::offload::VirtioNetHeader;
use net_vdev::signature::RANDOM_BYTES;
use net_vdev::{PrivateKey, PublicKey};

/// How long a workload's name holds, in seconds, and when it is signed anew.
const NAMES_S: u64 = 3600;
const NAMES_RENEW_NS: u64 = 1_200_000_000_000;
/// How many names are signed in one turn, and when it is tried again if that failed.
const NAMES_PER_TURN: usize = 16;
const NAMES_RETRY_NS: u64 = 10_000_000_000;

/// What lies outside of the mesh as far as this node lets anybody get there.
#[derive(Debug, Clone, Default)]
pub struct ExitConfig {
    /// The member through which this node's host reaches the outside, if it does not by itself.
    pub through: Option<PublicKey>,
    /// Whether packets go out, and where to.
    pub nat64: Option<Destinations>,
    /// What each member may take.
    pub limits: Limits,
    /// Whether names are resolved, and by whom in the end.
    pub resolvers: Option<Vec<SocketAddr>>,
    /// Nicknames of nodes, as in `<nickname>.mesh`.
    pub nicknames: Vec<(String, PublicKey)>,
    /// Names of workloads on this node, as in `<name>.<node>.mesh`.
    pub names: Vec<(HostName, PublicKey)>,
    /// Whether the machines that are attached here have their own names on this node, too.
    pub names_machines: bool,
    /// Who may besides the host and the members attached here.
    pub members: Vec<PublicKey>,
}

impl ExitConfig {
    /// Whether there is anything to offer.
    #[must_use]
    pub fn is_needed(&self) -> bool {
        self.nat64.is_some() || self.resolves()
    }

    /// Whether anything is to be resolved: names of the outside, or this node's own.
    fn resolves(&self) -> bool {
        self.resolvers.is_some() || !self.names.is_empty() || self.names_machines
    }

    /// What the node's member is to others.
    #[must_use]
    pub fn exits(&self) -> Exits {
        let (is_exit, is_resolver) = (self.nat64.is_some(), self.resolves());
        Exits { through: self.through.filter(|_| !is_exit), is_exit, is_resolver }
    }

    /// What a host routes to its node for it, besides the mesh.
    #[must_use]
    pub fn routes(&self) -> Vec<(Ipv6Addr, u8)> {
        let leads_out = self.nat64.is_some() || self.through.is_some();
        leads_out.then_some(NAT64_PREFIX).into_iter().collect()
    }
}

/// The way out of a running node.
pub(crate) struct Exit {
    egress: Egress<HostSockets>,
    own: PublicKey,
    key: PrivateKey,
    /// Whether machines have names, those that have one, and those of the operator.
    names_machines: bool,
    machines: BTreeMap<HostName, PublicKey>,
    configured: BTreeMap<HostName, PublicKey>,
    /// Who has which name, and when that is to be signed (anew); and when the first of them is.
    due: BTreeMap<HostName, (PublicKey, u64)>,
    next_due_ns: u64,
    unix_time_at_zero_ns: u64,
    listed: BTreeMap<Ipv6Addr, PublicKey>,
    attached: BTreeMap<Ipv6Addr, PublicKey>,
    /// Packets of members that may not.
    strangers: u64,
    /// Whether it was given anything since it was last asked for what it has.
    is_touched: bool,
}

impl Exit {
    pub(crate) fn open(
        config: ExitConfig,
        key: PrivateKey,
        unix_time_at_zero_ns: u64,
        seed: [u8; 32],
    ) -> std::io::Result<Self> {
        let own = key.public();
        let mut names = Names::new();
        names.set_own(own);
        for (nickname, key) in &config.nicknames {
            names.nickname(nickname, *key);
        }
        let has_resolver = config.resolves();
        let limits = config.limits;
        let config_of_egress = EgressConfig {
            nat: config.nat64.map(|destinations| NatConfig { destinations, limits }),
            resolver_addresses: if has_resolver { resolver_addresses(&own) } else { Vec::new() },
            upstreams: config.resolvers.unwrap_or_default(),
            names,
            own: has_resolver.then(|| own.address()),
            unix_time_at_zero_ns,
        };
        Ok(Self {
            egress: Egress::new(config_of_egress, HostSockets::new()?, seed),
            own,
            key,
            names_machines: config.names_machines,
            machines: BTreeMap::new(),
            due: config.names.iter().map(|(name, key)| (*name, (*key, 0))).collect(),
            next_due_ns: 0,
            configured: config.names.into_iter().collect(),
            unix_time_at_zero_ns,
            listed: config.members.iter().map(|key| (key.address(), *key)).collect(),
            attached: BTreeMap::new(),
            strangers: 0,
            is_touched: false,
        })
    }

    /// Whether a packet for the node's own member is really for here.
    pub(crate) fn takes(&self, packet: &[u8]) -> bool {
        self.egress.takes(packet)
    }

    /// A packet of a member's, whose source its session vouches for.
    pub(crate) fn receive(&mut self, now_ns: u64, header: &VirtioNetHeader, packet: &[u8]) {
        self.is_touched = true;
        if self.egress.is_answer(packet) {
            return self.egress.receive_answer(now_ns, packet);
        }
        let source = packet.get(8..).and_then(<[u8]>::first_chunk::<16>).copied();
        let source = source.map(Ipv6Addr::from);
        let member = source.and_then(|source| {
            self.attached.get(&source).or_else(|| self.listed.get(&source)).copied()
        });
        match member {
            Some(member) => self.egress.receive(now_ns, (&member, None), header, packet),
            None if self.egress.receive_stranger(now_ns, packet) => {}
            None => self.strangers += 1,
        }
    }

    /// A packet of the node's host.
    pub(crate) fn receive_own(&mut self, now_ns: u64, header: &VirtioNetHeader, packet: &[u8]) {
        let own = self.own;
        self.is_touched = true;
        self.egress.receive(now_ns, (&own, None), header, packet);
    }

    /// These members are attached now; the flows of others that were end.
    pub(crate) fn set_attached(&mut self, attached: &BTreeMap<Ipv6Addr, PublicKey>) {
        if self.attached == *attached {
            return;
        }
        let gone = self.attached.iter().filter(|(address, _)| !attached.contains_key(*address));
        for (address, key) in gone {
            if !self.listed.contains_key(address) {
                self.egress.forget(key);
            }
        }
        self.attached.clone_from(attached);
    }

    /// These machines are attached now, by their names. A name that the operator gave to somebody
    /// is that one's.
    pub(crate) fn set_machines(&mut self, machines: &BTreeMap<HostName, PublicKey>) {
        if !self.names_machines || self.machines == *machines {
            return;
        }
        self.machines.clone_from(machines);
        let wanted = self.wanted();
        self.egress.names_mut().retain_workloads(|name, key| wanted.get(name) == Some(key));
        self.due.retain(|name, (key, _)| wanted.get(name) == Some(key));
        for (name, key) in wanted {
            self.due.entry(name).or_insert((key, 0));
        }
        self.next_due_ns = 0;
    }

    /// The names that this node gives.
    fn wanted(&self) -> BTreeMap<HostName, PublicKey> {
        let machines = self.machines.iter().chain(&self.configured);
        machines.map(|(name, key)| (*name, *key)).collect()
    }

    /// Signs the names of this node's workloads that are due; `random` gives fresh bytes.
    pub(crate) fn sign_names(
        &mut self,
        now_ns: u64,
        random: impl Fn() -> Option<[u8; RANDOM_BYTES]>,
    ) {
        if now_ns < self.next_due_ns {
            return;
        }
        let unix_ns = self.unix_time_at_zero_ns.saturating_add(now_ns);
        let is_due = |(_, (_, due_ns)): &(&HostName, &mut (PublicKey, u64))| *due_ns <= now_ns;
        for (name, (workload, due_ns)) in self.due.iter_mut().filter(is_due).take(NAMES_PER_TURN) {
            let record = NameRecord {
                node: self.own,
                workload: *workload,
                name: *name,
                sequence: unix_ns,
                expires_unix_s: unix_ns / 1_000_000_000 + NAMES_S,
            };
            let signed = random().and_then(|random| record.sign(&self.key, &random).ok());
            let pause_ns = if signed.is_some() { NAMES_RENEW_NS } else { NAMES_RETRY_NS };
            *due_ns = now_ns.saturating_add(pause_ns);
            match signed {
                Some(it) => self.egress.names_mut().name_workload(*name, *workload, it),
                None => tracing::error!(%name, "a name could not be signed"),
            }
        }
        let next_due_ns = self.due.values().map(|(_, due_ns)| *due_ns).min();
        self.next_due_ns = next_due_ns.unwrap_or(u64::MAX);
    }

    /// The next packet of the node's own member for the mesh.
    pub(crate) fn poll_packet(&mut self) -> Option<Vec<u8>> {
        self.egress.poll_packet()
    }

    /// Hands over what is for members.
    pub(crate) fn flush(&mut self, now_ns: u64, deliver: &mut Deliver<'_>) {
        self.is_touched = false;
        if self.egress.next_deadline(now_ns).is_some_and(|due_ns| due_ns <= now_ns) {
            self.egress.handle_deadline(now_ns);
        }
        self.egress.flush(now_ns, deliver);
    }

    /// Whether it may have something without a socket that is ready.
    pub(crate) fn has_work(&self, now_ns: u64) -> bool {
        self.is_touched || self.next_deadline(now_ns).is_some_and(|due_ns| due_ns <= now_ns)
    }

    pub(crate) fn next_deadline(&self, now_ns: u64) -> Option<u64> {
        self.egress.next_deadline(now_ns)
    }

    /// Its counters, by the names that metrics give them.
    pub(crate) fn counters(&self) -> Vec<(String, u64)> {
        let (flows, buffer_bytes) = self.egress.occupancy();
        let dns = self.egress.resolver_counters();
        let mut named = vec![
            ("exit_strangers", self.strangers),
            ("exit_flows", flows as u64),
            ("exit_buffer_bytes", buffer_bytes as u64),
            ("dns_queries", dns.queries),
            ("dns_refused", dns.refused),
            ("dns_cached", dns.cached),
            ("dns_local", dns.local),
            ("dns_asked", dns.asked),
            ("dns_asked_over_tcp", dns.asked_over_tcp),
            ("dns_odd", dns.odd),
            ("dns_unanswered", dns.unanswered),
            ("dns_too_many", dns.too_many),
        ];
        let mut drops = Vec::new();
        if let Some(nat) = self.egress.counters() {
            named.extend([
                ("exit_packets_out", nat.packets_out),
                ("exit_bytes_out", nat.bytes_out),
                ("exit_packets_in", nat.packets_in),
                ("exit_bytes_in", nat.bytes_in),
                ("exit_flows_opened", nat.flows),
            ]);
            let reasons = DropReason::ALL.into_iter().filter(|reason| nat.dropped(*reason) > 0);
            drops
                .extend(reasons.map(|it| (format!("exit_dropped_{}", it.name()), nat.dropped(it))));
        }
        named.into_iter().map(|(name, count)| (name.to_owned(), count)).chain(drops).collect()
    }
}

impl AsFd for Exit {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.egress.sockets().as_fd()
    }
}

/// Where the resolver answers: at the node's address, and for the node's host, which would ask
/// itself there, at `::53` of the node's /64.
pub(crate) fn resolver_addresses(node: &PublicKey) -> Vec<Ipv6Addr> {
    let own = node.address();
    let of_host = Ipv6Addr::from_bits(own.to_bits() & !u128::from(u64::MAX) | 0x53);
    vec![own, of_host]
}
