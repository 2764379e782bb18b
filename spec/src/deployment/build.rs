//! From a tree of the right shape to checked types: everything that is between two values.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use jsonc_parser::ast::Value;
use jsonc_parser::common::Ranged;

use super::check::Node;
use super::form;
use super::problem::{Reason, Report, nearest};
use super::tables::WORKLOAD_TYPES;
use super::{
    Allow, Conflict, Deployment, From, Image, Interface, Limits, MEMORY_BYTES_DEFAULT, Machine,
    Mount, Network, Peer, PublishedPort, Restart, RestartPolicy, STRINGS_BYTES_MAX, Subnet, Volume,
};
use crate::node::{NodeSpec, Place};
use crate::secret::Public32;
use crate::vm::{Protocol, VolumePolicy};

/// A workload of the spec before its references are followed.
struct Entry<'v, 't> {
    name: String,
    /// The usual name of its type.
    kind: &'static str,
    node: Node<'v, 't>,
}

impl<'v, 't> Entry<'v, 't> {
    fn data(&self, name: &str) -> Option<Node<'v, 't>> {
        self.node.field("data")?.field(name)
    }

    /// The machine's only interface.
    fn interface(&self) -> Option<Node<'v, 't>> {
        self.data("network")?.field("interfaces")?.items().next()
    }

    /// The name of the network that the machine's interface is on.
    fn network(&self) -> Option<&'v str> {
        self.interface()?.field("network")?.text()
    }

    fn labels(&self) -> BTreeMap<String, String> {
        self.node.field("labels").as_ref().map(entries).unwrap_or_default().into_iter().collect()
    }
}

/// Builds the deployment from a tree that passed all shape checks.
pub(super) fn build(root: &Node<'_, '_>, report: &mut Report<'_>) -> Option<Deployment> {
    let workloads = root.field("workloads")?;
    let list: Vec<_> = workloads.items().filter_map(entry).collect();
    check_names(&list, report);
    let of_kind = |kind: &'static str| list.iter().filter(move |entry| entry.kind == kind);
    let networks: Vec<_> =
        of_kind("network").map(|entry| Arc::new(network(entry, report))).collect();
    let mut taken = Vec::new();
    let volumes = of_kind("volume").filter_map(|entry| volume(entry, &mut taken, report));
    let volumes: Vec<_> = volumes.map(Arc::new).collect();
    let mut builder = Builder {
        list: &list,
        networks: &networks,
        volumes: &volumes,
        report,
        addresses: HashMap::new(),
        listens: HashMap::new(),
        mesh_ports: HashMap::new(),
        mounted: HashMap::new(),
    };
    let machines: Vec<_> = of_kind("zmachine").filter_map(|entry| builder.machine(entry)).collect();
    let machines = builder.assign_addresses(machines);
    let name = root.field("name")?.text()?.to_owned();
    Some(Deployment { name, networks, volumes, machines })
}

fn entry<'v, 't>(node: Node<'v, 't>) -> Option<Entry<'v, 't>> {
    let name = node.field("name")?.text()?.to_owned();
    let type_node = node.field("type")?;
    let type_name = type_node.text()?;
    let known = WORKLOAD_TYPES.iter().find(|known| known.names.contains(&type_name))?;
    Some(Entry { name, kind: known.names.first()?, node })
}

fn check_names(list: &[Entry<'_, '_>], report: &mut Report<'_>) {
    let mut seen = HashMap::new();
    for entry in list {
        let Some(node) = entry.node.field("name") else { continue };
        if let Some(first) = seen.get(&entry.name) {
            let (first_line, _) = report.position(*first);
            let name = entry.name.clone();
            node.refuse(report, Reason::DuplicateName { name, first_line });
        } else {
            seen.insert(entry.name.clone(), node.value.start());
        }
    }
}

fn network(entry: &Entry<'_, '_>, report: &mut Report<'_>) -> Network {
    let mesh = entry.data("mesh");
    let listen = mesh.as_ref().and_then(|mesh| mesh.field("listen")?.text()?.parse().ok());
    let attach = mesh.as_ref().and_then(|mesh| Some(mesh.field("attach")?.is_true()));
    let exit = mesh.as_ref().and_then(|mesh| Public32::from_hex(mesh.field("exit")?.text()?));
    let list = mesh.and_then(|mesh| mesh.field("peers"));
    let mut peers: Vec<Peer> = Vec::new();
    for node in list.iter().flat_map(Node::items) {
        let Some(peer) = peer(&node) else { continue };
        if peers.iter().any(|other| other.key == peer.key) {
            node.refuse(report, Reason::Conflict(Conflict::PeerTwice(peer.key)));
        }
        peers.push(peer);
    }
    Network {
        name: entry.name.clone(),
        subnet: entry.data("subnet").and_then(|node| Subnet::parse(node.text()?)),
        listen: listen.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        peers,
        attach: attach.unwrap_or(true),
        exit,
    }
}

fn peer(node: &Node<'_, '_>) -> Option<Peer> {
    let key = Public32::from_hex(node.field("key")?.text()?)?;
    let endpoint = node.field("endpoint").and_then(|node| node.text()?.parse().ok());
    Some(Peer { key, endpoint })
}

/// Builds a volume; `taken` has the nodes of those before it, and whose they are.
fn volume(
    entry: &Entry<'_, '_>,
    taken: &mut Vec<(Place, String)>,
    report: &mut Report<'_>,
) -> Option<Volume> {
    let size_bytes = entry.data("size")?.size()?.0;
    let shards = |name: &str| u8::try_from(entry.data("redundancy")?.field(name)?.integer()?).ok();
    let (data_shards, parity_shards) = (shards("data").unwrap_or(1), shards("parity").unwrap_or(0));
    let mut nodes: Vec<NodeSpec> = Vec::new();
    let list = entry.data("nodes");
    for item in list.iter().flat_map(Node::items) {
        let node: NodeSpec = match item.text()?.parse() {
            Ok(node) => node,
            Err(error) => {
                item.refuse(report, Reason::Conflict(Conflict::Node(error)));
                continue;
            }
        };
        let same = |(place, volume): &&(Place, String)| {
            *place == node.place && (place.is_directory() || *volume == entry.name)
        };
        if let Some((_, volume)) = taken.iter().find(same) {
            let volume = volume.clone();
            item.refuse(report, Reason::Conflict(Conflict::NodeTaken { volume }));
        }
        taken.push((node.place.clone(), entry.name.clone()));
        nodes.push(node);
    }
    let (found, wanted) = (nodes.len(), usize::from(data_shards) + usize::from(parity_shards));
    let rule = if nodes.iter().all(|node| node.place.is_directory()) {
        Some("each needs a directory, and spares are for shard servers").filter(|_| found != wanted)
    } else {
        Some("each needs a node").filter(|_| found < wanted)
    };
    if let (Some(list), Some(rule), true) = (&list, rule, report.is_clean()) {
        list.refuse(report, Reason::Conflict(Conflict::NodeCount { found, wanted, rule }));
    }
    if let (Some(list), true) = (&list, report.is_clean()) {
        check_domains(list, &nodes, wanted, report);
    }
    let policy = match entry.data("policy").as_ref().and_then(Node::text) {
        Some("local") => VolumePolicy::Local,
        Some("sealed") => VolumePolicy::Sealed,
        _ => VolumePolicy::Quorum,
    };
    let name = entry.name.clone();
    Some(Volume { name, size_bytes, data_shards, parity_shards, nodes, policy })
}

/// Refuses the first node that shares a failure domain, if too few are left without it. What a
/// directory shares is for the host to find.
fn check_domains(list: &Node<'_, '_>, nodes: &[NodeSpec], wanted: usize, report: &mut Report<'_>) {
    if nodes.iter().all(|node| node.place.is_directory()) {
        return;
    }
    let mut known: Vec<String> = Vec::new();
    let mut shared = None;
    for (item, node) in list.items().zip(nodes) {
        // A directory is taken for one of its own: no name and no host has a slash.
        let domain = node.domain(|path| path.display().to_string());
        if known.contains(&domain) {
            shared = shared.or(Some((item, domain)));
        } else {
            known.push(domain);
        }
    }
    if let Some((item, domain)) = shared
        && known.len() < wanted
    {
        item.refuse(report, Reason::Conflict(Conflict::SharedDomain { domain, wanted }));
    }
}

/// Builds machines and remembers what they took.
struct Builder<'b, 'v, 't, 'r> {
    list: &'b [Entry<'v, 't>],
    networks: &'b [Arc<Network>],
    volumes: &'b [Arc<Volume>],
    report: &'b mut Report<'r>,
    /// Who has an address of a network.
    addresses: HashMap<(String, Ipv4Addr), String>,
    /// Who publishes a port of the host.
    listens: HashMap<u16, String>,
    /// Who has a UDP port of the host.
    mesh_ports: HashMap<u16, String>,
    /// Who mounts a volume.
    mounted: HashMap<String, String>,
}

impl Builder<'_, '_, '_, '_> {
    fn machine(&mut self, entry: &Entry<'_, '_>) -> Option<Machine> {
        let interface = entry.interface().and_then(|node| self.interface(entry, &node));
        let memory = entry.data("compute_capacity").and_then(|node| node.field("memory")?.size());
        let machine = Machine {
            name: entry.name.clone(),
            labels: entry.labels(),
            image: image(entry.data("image")?.field("unikernel")?.text()?),
            memory_bytes: memory.map_or(MEMORY_BYTES_DEFAULT, |size| size.0),
            mounts: self.mounts(entry),
            interface,
            ports: self.ports(entry),
            args: texts(entry.data("args").as_ref()),
            env: entry.data("env").as_ref().map(entries).unwrap_or_default(),
            restart: entry.data("restart").and_then(|node| self.restart(&node)),
        };
        self.check_strings(entry, &machine);
        Some(machine)
    }

    fn conflict(&mut self, node: &Node<'_, '_>, conflict: Conflict) {
        node.refuse(self.report, Reason::Conflict(conflict));
    }

    /// Reports that `node` names no workload of the kind that is wanted.
    fn unresolved(&mut self, node: &Node<'_, '_>, wanted: &'static str) {
        let name = node.text().unwrap_or_default().to_owned();
        let is = self.list.iter().find(|entry| entry.name == name).map(|entry| entry.kind);
        let fitting = self.list.iter().filter(|entry| entry.kind == wanted);
        let nearest = nearest(&name, fitting.map(|entry| entry.name.clone()));
        node.refuse(self.report, Reason::Reference { wanted, name, is, nearest });
    }

    fn interface(&mut self, entry: &Entry<'_, '_>, node: &Node<'_, '_>) -> Option<Interface> {
        let network_node = node.field("network")?;
        let name = network_node.text()?;
        let Some(network) = self.networks.iter().find(|network| network.name == name) else {
            self.unresolved(&network_node, "network");
            return None;
        };
        let ipv4 = node.field("ip").and_then(|ip| self.address(entry, &ip, network));
        let mesh_port = node.field("mesh_port").and_then(|port| self.mesh_port(entry, &port));
        let allow = self.rules(node.field("allow").as_ref(), "from", name);
        let egress = node.field("egress");
        let egress = egress.map(|rules| self.rules(Some(&rules), "to", name));
        let limits = node.field("limits");
        let limit = |name| limits.as_ref()?.field(name);
        let limits = Limits {
            packets_per_second: limit("packets_per_second").and_then(|node| node.integer()),
            bytes_per_second: limit("bytes_per_second").and_then(|node| Some(node.size()?.0)),
        };
        let policy = node.field("post_quantum");
        Some(Interface {
            network: Arc::clone(network),
            ipv4,
            mesh_port,
            allow,
            egress,
            limits,
            requires_post_quantum: policy.is_some_and(|node| node.text() == Some("required")),
            certificates: texts(node.field("certificates").as_ref()),
        })
    }

    /// A list of rules that name the other side in the field `whom`.
    fn rules(&mut self, list: Option<&Node<'_, '_>>, whom: &str, network: &str) -> Vec<Allow> {
        let rules = list.into_iter().flat_map(Node::items);
        rules.filter_map(|rule| self.allow(&rule, whom, network)).collect()
    }

    fn address(
        &mut self,
        entry: &Entry<'_, '_>,
        node: &Node<'_, '_>,
        network: &Network,
    ) -> Option<(Ipv4Addr, u8)> {
        let ip: Ipv4Addr = node.text()?.parse().ok()?;
        let Some(subnet) = network.subnet else {
            self.conflict(node, Conflict::NoSubnet { network: network.name.clone() });
            return None;
        };
        if !subnet.has_host(ip) {
            self.conflict(node, Conflict::OutsideSubnet { ip, subnet });
            return None;
        }
        let place = (network.name.clone(), ip);
        if let Some(other) = self.addresses.insert(place, entry.name.clone()) {
            self.conflict(node, Conflict::AddressTaken { ip, other });
        }
        Some((ip, subnet.prefix_len()))
    }

    fn mesh_port(&mut self, entry: &Entry<'_, '_>, node: &Node<'_, '_>) -> Option<u16> {
        let port = port(node)?;
        if let Some(other) = self.mesh_ports.insert(port, entry.name.clone()) {
            self.conflict(node, Conflict::MeshPortTaken { port, other });
        }
        Some(port)
    }

    fn allow(&mut self, rule: &Node<'_, '_>, whom: &str, network: &str) -> Option<Allow> {
        let protocol = match rule.field("protocol")?.text()? {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            _ => Protocol::Icmp,
        };
        let port_node = rule.field("port");
        if let (Protocol::Icmp, Some(node)) = (protocol, &port_node) {
            self.conflict(node, Conflict::IcmpPort);
        }
        let from_node = rule.field(whom)?;
        let from = from_node.text()?;
        let from = if let Some(key) = Public32::from_hex(from) {
            From::Key(key)
        } else if let Some((group, name)) = form::group_label(from) {
            From::Label { group, name: name.to_owned() }
        } else if let Some((name, value)) = from.split_once('=') {
            From::Machines(self.labelled(&from_node, network, (name, value))?)
        } else {
            From::Machines(vec![self.member(&from_node, network)?])
        };
        Some(Allow { from, protocol, port: port_node.as_ref().and_then(port) })
    }

    /// The machine that a rule names.
    fn member(&mut self, node: &Node<'_, '_>, network: &str) -> Option<String> {
        let name = node.text()?;
        let is_it = |entry: &&Entry<'_, '_>| entry.name == name && entry.kind == "zmachine";
        let Some(entry) = self.list.iter().find(is_it) else {
            self.unresolved(node, "zmachine");
            return None;
        };
        if entry.network() != Some(network) {
            let (name, network) = (name.to_owned(), network.to_owned());
            self.conflict(node, Conflict::NotOnNetwork { name, network });
            return None;
        }
        Some(name.to_owned())
    }

    /// The machines that have a label.
    fn labelled(
        &mut self,
        node: &Node<'_, '_>,
        network: &str,
        (name, value): (&str, &str),
    ) -> Option<Vec<String>> {
        let members = self.list.iter().filter(|entry| {
            entry.kind == "zmachine"
                && entry.network() == Some(network)
                && entry.labels().get(name).is_some_and(|found| found == value)
        });
        let members: Vec<_> = members.map(|entry| entry.name.clone()).collect();
        if members.is_empty() {
            let (label, network) = (format!("{name}={value}"), network.to_owned());
            self.conflict(node, Conflict::LabelUnused { label, network });
            return None;
        }
        Some(members)
    }

    fn mounts(&mut self, entry: &Entry<'_, '_>) -> Vec<Mount> {
        let list = entry.data("mounts");
        let mut mounts: Vec<Mount> = Vec::new();
        for node in list.iter().flat_map(Node::items) {
            if let Some(mount) = self.mount(entry, &node) {
                let taken = mounts.iter().any(|other| other.mountpoint == mount.mountpoint);
                if taken && let Some(at) = node.field("mountpoint") {
                    self.conflict(&at, Conflict::MountpointTaken(mount.mountpoint.clone()));
                }
                mounts.push(mount);
            }
        }
        mounts
    }

    fn mount(&mut self, entry: &Entry<'_, '_>, node: &Node<'_, '_>) -> Option<Mount> {
        let name_node = node.field("name")?;
        let name = name_node.text()?;
        let Some(volume) = self.volumes.iter().find(|volume| volume.name == name) else {
            self.unresolved(&name_node, "volume");
            return None;
        };
        if let Some(other) = self.mounted.insert(name.to_owned(), entry.name.clone()) {
            let volume = name.to_owned();
            self.conflict(&name_node, Conflict::VolumeTaken { volume, other });
        }
        Some(Mount {
            volume: Arc::clone(volume),
            mountpoint: node.field("mountpoint")?.text()?.to_owned(),
            read_only: node.field("read_only").is_some_and(|node| node.is_true()),
        })
    }

    fn ports(&mut self, entry: &Entry<'_, '_>) -> Vec<PublishedPort> {
        let list = entry.data("ports");
        let nodes: Vec<_> = list.iter().flat_map(Node::items).collect();
        if let Some(first) = nodes.first()
            && entry.interface().is_none()
        {
            self.conflict(first, Conflict::PortWithoutInterface);
        }
        nodes.iter().filter_map(|node| self.published(entry, node)).collect()
    }

    fn published(&mut self, entry: &Entry<'_, '_>, node: &Node<'_, '_>) -> Option<PublishedPort> {
        let listen_node = node.field("listen")?;
        let listen = port(&listen_node)?;
        if let Some(other) = self.listens.insert(listen, entry.name.clone()) {
            self.conflict(&listen_node, Conflict::PortTaken { port: listen, other });
        }
        let target = port(&node.field("target")?)?;
        let public = node.field("public").is_some_and(|node| node.is_true());
        Some(PublishedPort { listen, target, public })
    }

    fn restart(&mut self, node: &Node<'_, '_>) -> Option<Restart> {
        let policy = match node.field("policy")?.text()? {
            "always" => RestartPolicy::Always,
            "on-failure" => RestartPolicy::OnFailure,
            _ => RestartPolicy::Never,
        };
        let usual = Restart::new(policy);
        let span = |name: &str| crate::duration::parse(node.field(name)?.text()?);
        let max_retries = node.field("max_retries").and_then(|node| node.integer());
        let backoff_initial = span("backoff_initial").unwrap_or(usual.backoff_initial);
        let backoff_max = match span("backoff_max") {
            Some(longest) if longest < backoff_initial => {
                let at = node.field("backoff_max")?;
                self.conflict(&at, Conflict::BackoffOrder);
                longest
            }
            Some(longest) => longest,
            None => usual.backoff_max.max(backoff_initial),
        };
        let reset_after = span("reset_after").unwrap_or(usual.reset_after);
        let max_retries = max_retries.and_then(|count| u32::try_from(count).ok());
        Some(Restart { policy, max_retries, backoff_initial, backoff_max, reset_after })
    }

    fn check_strings(&mut self, entry: &Entry<'_, '_>, machine: &Machine) {
        let args: usize = machine.args.iter().map(|arg| arg.len() + 1).sum();
        let env: usize = machine.env.iter().map(|(name, value)| name.len() + value.len() + 2).sum();
        let bytes = args + env;
        if bytes > STRINGS_BYTES_MAX {
            let limit = STRINGS_BYTES_MAX;
            self.conflict(&entry.node, Conflict::StringsTooLong { bytes, limit });
        }
    }

    /// Gives each card on a network with a subnet that names no address the next free one.
    fn assign_addresses(&mut self, mut machines: Vec<Machine>) -> Vec<Machine> {
        // Each network's addresses are walked once, however many machines there are.
        let mut free: HashMap<String, _> = HashMap::new();
        for machine in &mut machines {
            let Some(interface) = &mut machine.interface else { continue };
            let network = &interface.network;
            let (Some(subnet), None) = (network.subnet, interface.ipv4) else { continue };
            let taken = &self.addresses;
            let hosts = free.entry(network.name.clone()).or_insert_with(|| subnet.hosts());
            let next = hosts.find(|ip| !taken.contains_key(&(network.name.clone(), *ip)));
            interface.ipv4 = next.map(|ip| (ip, subnet.prefix_len()));
            let entry = self.list.iter().find(|entry| entry.name == machine.name);
            if next.is_none()
                && let Some(node) = entry.and_then(Entry::interface)
            {
                self.conflict(&node, Conflict::SubnetFull(subnet));
            }
        }
        machines
    }
}

fn image(text: &str) -> Image {
    if text.contains('/') { Image::File(text.into()) } else { Image::Shipped(text.to_owned()) }
}

fn port(node: &Node<'_, '_>) -> Option<u16> {
    u16::try_from(node.integer()?).ok()
}

fn texts(list: Option<&Node<'_, '_>>) -> Vec<String> {
    let nodes = list.into_iter().flat_map(Node::items);
    nodes.filter_map(|node| Some(node.text()?.to_owned())).collect()
}

/// The entries of an object of strings, sorted by name.
fn entries(node: &Node<'_, '_>) -> Vec<(String, String)> {
    let Value::Object(object) = node.value else { return Vec::new() };
    let pairs = object.properties.iter().filter_map(|property| {
        let value = property.value.as_string_lit()?;
        Some((property.name.as_str().to_owned(), value.value.to_string()))
    });
    let mut pairs: Vec<_> = pairs.collect();
    pairs.sort();
    pairs
}
