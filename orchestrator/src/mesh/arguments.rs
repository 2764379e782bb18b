//! The verbs of `hypha mesh` and their options.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Subcommand};
use mesh_egress::address::Block;
use mesh_node::acl::{AclEntry, AclError, AclFrom, Transport};
use net_vdev::PublicKey;
use net_vdev::certificate::{HostName, LabelName};
use spec::secret::Public32;

use crate::state::Common;

/// The UDP port of a node if nothing else is said.
pub const PORT: u16 = 7400;

/// What can be done with this host's node of the mesh.
#[derive(Debug, Subcommand)]
pub enum MeshVerb {
    /// Runs this host's node until SIGINT or SIGTERM.
    ///
    /// With a network interface (the default, which takes CAP_NET_ADMIN) this host and its users
    /// reach the mesh at 400::/7. Nobody reaches this host until `hypha mesh acl add` lets them.
    #[command(after_help = "Examples:\n  \
        hypha mesh up --peer 4c9f…e1@203.0.113.7:7400\n  \
        hypha mesh up --no-tun --listen 0.0.0.0:7400    # a router only\n  \
        hypha mesh up --tun mesh1 --state /tmp/second --listen 127.0.0.1:7401")]
    Up(Box<Up>),
    /// Prints this node's key and address; makes the key if there is none.
    #[command(
        after_help = "Example:\n  hypha mesh up --peer $(ssh other hypha mesh key -q)@203.0.113.7:7400"
    )]
    Key {
        /// Print the key alone.
        #[arg(short, long)]
        quiet: bool,
        /// That of this node's gateway instead.
        #[arg(long)]
        gateway: bool,
        /// What all verbs take.
        #[command(flatten)]
        common: Common,
    },
    /// Says how the node is: its addresses, sessions and counters.
    Status(Common),
    /// Lists the members that it has sessions with, and the ways to them.
    Peers(Common),
    /// Lists neighbours and routes.
    Routes(Common),
    /// Draws the mesh as this node sees it: neighbours, and who is reached through which of them.
    #[command(after_help = "Example:\n  hypha mesh map --svg > mesh.svg")]
    Map {
        /// Draw a picture, for a browser.
        #[arg(long, conflicts_with = "json")]
        svg: bool,
        /// What all verbs take.
        #[command(flatten)]
        common: Common,
    },
    /// Links this host to a node of mycelium until SIGINT or SIGTERM: insecure by our measure.
    ///
    /// A process of its own with a key and an interface of its own. What goes over it is encrypted
    /// without forward secrecy, and whoever is on the way may replay or swallow it
    /// (docs/mesh-mycelium.md). It reaches the listed members of mycelium's network alone, nobody
    /// gets in that no --allow lets, and nothing of the native mesh goes through it.
    #[command(after_help = "Example:\n  \
        hypha mesh edge --peer 203.0.113.7:9651 --allow 4c9f…e1,tcp,22 --route 4f5:db79:…:88e1")]
    Edge(Box<Edge>),
    /// Asks a member whether it is there, and how long that takes.
    #[command(
        after_help = "Example:\n  hypha mesh ping 5f5:db79:2573:eebf:15e3:4ae0:bb2f:88e1 -c 3"
    )]
    Ping {
        /// The member's address or key.
        to: Member,
        /// How often.
        #[arg(short, long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1000))]
        count: u32,
        /// What all verbs take.
        #[command(flatten)]
        common: Common,
    },
    /// Lists the routers on the way to a member.
    Trace {
        /// The member's address or key.
        to: Member,
        /// What all verbs take.
        #[command(flatten)]
        common: Common,
    },
    /// Says who may open flows to this host, and changes it.
    #[command(subcommand)]
    Acl(AclVerb),
    /// Keeps groups: keys that give labels to members, which rules may name instead of keys.
    #[command(subcommand)]
    Group(GroupVerb),
    /// Keeps the certificates of labels that this host shows to others.
    #[command(subcommand)]
    Certificate(CertificateVerb),
}

/// `hypha mesh up`.
#[derive(Debug, Args)]
pub struct Up {
    /// Where to listen for datagrams [default: port 7400 of all addresses].
    #[arg(long, value_name = "ADDRESS")]
    pub listen: Vec<SocketAddr>,
    /// Take TCP connections here, from neighbours whose UDP a firewall drops: 0.0.0.0:443.
    #[arg(long, value_name = "ADDRESS")]
    pub listen_tcp: Vec<SocketAddr>,
    /// Neither look for nodes on local networks nor let them find this one.
    #[arg(long)]
    pub no_discovery: bool,
    /// A neighbour: KEY@ADDRESS:PORT, or KEY alone if it calls us.
    #[arg(long = "peer", value_name = "KEY@ADDRESS")]
    pub peers: Vec<Neighbour>,
    /// The network interface for this host.
    #[arg(long, value_name = "NAME", default_value = "hypha0")]
    pub tun: String,
    /// Have no network interface: route for others only.
    #[arg(long, conflicts_with = "tun")]
    pub no_tun: bool,
    /// The zone: all nodes of one zone know each other, others are looked up.
    #[arg(long, default_value_t = 0)]
    pub zone: u16,
    /// How many members that are no neighbours may have sessions at a time.
    #[arg(long, value_name = "NUMBER", default_value_t = 1024)]
    pub sessions: u16,
    /// Serve Prometheus metrics over HTTP here.
    #[arg(long, value_name = "ADDRESS")]
    pub metrics: Option<SocketAddr>,
    /// Let this host and the members attached to it reach IPv4 outside, at 64:ff9b::a.b.c.d.
    #[arg(long)]
    pub nat64: bool,
    /// Let them reach these addresses too, which are no public ones: like 10.1.0.0/16.
    #[arg(long = "allow-destination", value_name = "BLOCK", requires = "nat64")]
    pub allow_destinations: Vec<Block>,
    /// Reach IPv4 outside through this member, which has --nat64 and lets this node out: its key.
    #[arg(long, value_name = "KEY", value_parser = parse_key, conflicts_with = "nat64")]
    pub exit: Option<Public32>,
    /// Let this member out as well, wherever it is: its key.
    #[arg(long, value_name = "KEY", value_parser = parse_key)]
    pub exit_for: Vec<Public32>,
    /// Resolve names for them, at this node's address and at ::53 of its /64.
    #[arg(long)]
    pub dns: bool,
    /// Give a workload a name on this node: NAME=KEY makes it `NAME.NODE.mesh` for everybody.
    #[arg(long = "name", value_name = "NAME=KEY", value_parser = parse_name)]
    pub names: Vec<(HostName, Public32)>,
    /// Give the machines of this host no names of their own. Without this, a machine of `hypha run`
    /// that is attached here is `NAME.NODE.mesh` for everybody.
    #[arg(long)]
    pub no_names: bool,
    /// Call another node by a name of this host's own: NAME=KEY makes it NAME.mesh here.
    #[arg(long = "nickname", value_name = "NAME=KEY", value_parser = parse_name, requires = "dns")]
    pub nicknames: Vec<(HostName, Public32)>,
    /// Ask this server for names outside of the mesh [default: those of /etc/resolv.conf].
    #[arg(long = "resolver", value_name = "ADDRESS", requires = "dns")]
    pub resolvers: Vec<IpAddr>,
    /// Lead ports of this host to workloads in the mesh, as this file says; SIGHUP reads it anew.
    ///
    /// A JSON list of routes: {"listen": "0.0.0.0:443", "names": ["shop.example.org"], "key": KEY of
    /// the workload, "port": 8443}. Without "names" all connections go there, with them those of TLS
    /// clients that mean one of these servers; "protocol": "udp" for datagrams; "proxy_protocol":
    /// true tells the workload who the client is. The gateway is a member with a key of its own
    /// (`hypha mesh key --gateway`), which the workload has to let in.
    #[arg(long, value_name = "FILE")]
    pub gateway: Option<PathBuf>,
    /// What all verbs take.
    #[command(flatten)]
    pub common: Common,
}

/// `hypha mesh edge`.
#[derive(Debug, Args)]
pub struct Edge {
    /// The mycelium node to connect to, over TCP.
    #[arg(long, value_name = "HOST:PORT", value_parser = parse_peer)]
    pub peer: String,
    /// The network interface for this host.
    #[arg(long, value_name = "NAME", default_value = "hyphaedge0")]
    pub tun: String,
    /// Let a member of mycelium's network open flows to this host, and answer it: KEY,PROTOCOL or
    /// KEY,PROTOCOL,PORT.
    #[arg(long = "allow", value_name = "RULE", value_parser = parse_allow)]
    pub allow: Vec<AclEntry>,
    /// Reach this address by mycelium instead of the native mesh.
    #[arg(long = "route", value_name = "ADDRESS")]
    pub routes: Vec<Member>,
    /// What all verbs take.
    #[command(flatten)]
    pub common: Common,
}

/// `hypha mesh acl`.
#[derive(Debug, Subcommand)]
pub enum AclVerb {
    /// Lists who may.
    List(Common),
    /// Lets a member open flows to this host.
    #[command(after_help = "Examples:\n  \
        hypha mesh acl add 4c9f…e1 tcp 22\n  \
        hypha mesh acl add 4c9f…e1 icmp")]
    Add {
        /// The rule.
        #[command(flatten)]
        rule: RuleArguments,
        /// What all verbs take.
        #[command(flatten)]
        common: Common,
    },
    /// Takes a rule away. Flows that it let in go on.
    Remove {
        /// The rule.
        #[command(flatten)]
        rule: RuleArguments,
        /// What all verbs take.
        #[command(flatten)]
        common: Common,
    },
}

/// `hypha mesh group`.
#[derive(Debug, Subcommand)]
pub enum GroupVerb {
    /// Makes a group: a key that stays here, and signs.
    #[command(after_help = "Example:\n  \
        hypha mesh group new team\n  \
        hypha mesh acl add $(hypha mesh group show team -q)/admin tcp 22")]
    New {
        /// Its name, which only this host knows it by.
        #[arg(value_parser = parse_group)]
        name: HostName,
        /// What all verbs take.
        #[command(flatten)]
        common: Common,
    },
    /// Prints a group's key, or all groups.
    Show {
        /// Its name.
        #[arg(value_parser = parse_group)]
        name: Option<HostName>,
        /// Print the key alone.
        #[arg(short, long, requires = "name")]
        quiet: bool,
        /// What all verbs take.
        #[command(flatten)]
        common: Common,
    },
    /// Gives a member a label of a group for a time: prints a certificate, which the member shows.
    #[command(after_help = "Example:\n  \
        hypha mesh group give team admin 4c9f…e1 --days 7")]
    Give {
        /// The group's name.
        #[arg(value_parser = parse_group)]
        name: HostName,
        /// The label: a-z 0-9 - . _ = with a letter or digit at both ends.
        #[arg(value_parser = parse_label)]
        label: LabelName,
        /// The member: its whole key.
        #[arg(value_parser = parse_key)]
        member: Public32,
        /// For how many days.
        #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u16).range(1..=3660))]
        days: u16,
        /// What all verbs take.
        #[command(flatten)]
        common: Common,
    },
}

/// `hypha mesh certificate`.
#[derive(Debug, Subcommand)]
pub enum CertificateVerb {
    /// Lists the certificates that this host shows, and when they end.
    List(Common),
    /// Shows one from now on.
    Add {
        /// As `hypha mesh group give` printed it.
        certificate: String,
        /// What all verbs take.
        #[command(flatten)]
        common: Common,
    },
    /// Does not show those of a label any more.
    Remove {
        /// The label: GROUP/LABEL, as the list has it.
        label: String,
        /// What all verbs take.
        #[command(flatten)]
        common: Common,
    },
}

fn parse_group(text: &str) -> Result<HostName, String> {
    text.parse().map_err(|error| format!("{text:?} is no name: {error}"))
}

fn parse_label(text: &str) -> Result<LabelName, String> {
    text.parse().map_err(|error| format!("{text:?} is no label: {error}"))
}

/// A rule, word by word.
#[derive(Debug, Args)]
pub struct RuleArguments {
    /// Whose flows: a member's whole key, or GROUP/LABEL for all who show a certificate of a label.
    pub from: AclFrom,
    /// tcp, udp or icmp.
    #[arg(value_parser = parse_protocol)]
    pub protocol: Transport,
    /// The port; all if it is left out.
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    pub port: Option<u16>,
}

impl RuleArguments {
    pub(super) fn entry(&self) -> Result<AclEntry, AclError> {
        AclEntry::new(self.from, self.protocol, self.port)
    }
}

fn parse_key(text: &str) -> Result<Public32, String> {
    Public32::from_hex(text)
        .ok_or_else(|| format!("{text:?} is no key: expected 64 hexadecimal digits"))
}

fn parse_name(text: &str) -> Result<(HostName, Public32), String> {
    let (name, key) = text.split_once('=').ok_or_else(|| format!("{text:?}: expected NAME=KEY"))?;
    let name = name.parse().map_err(|error| format!("{name:?} is no name: {error}"))?;
    Ok((name, parse_key(key)?))
}

fn parse_peer(text: &str) -> Result<String, String> {
    let is_place = text.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port != 0)
    });
    if is_place { Ok(text.to_owned()) } else { Err("expected HOST:PORT".to_owned()) }
}

fn parse_allow(text: &str) -> Result<AclEntry, String> {
    let mut words = text.splitn(3, ',');
    let (Some(key), Some(protocol)) = (words.next(), words.next()) else {
        return Err("expected KEY,PROTOCOL or KEY,PROTOCOL,PORT".to_owned());
    };
    let port = words.next().map(|port| match port.parse() {
        Ok(port) if port != 0 => Ok(port),
        _ => Err(format!("{port:?} is no port")),
    });
    let (from, protocol) = (AclFrom::Key(parse_key(key)?), parse_protocol(protocol)?);
    AclEntry::new(from, protocol, port.transpose()?).map_err(|error| error.to_string())
}

fn parse_protocol(text: &str) -> Result<Transport, String> {
    match text {
        "tcp" => Ok(Transport::Tcp),
        "udp" => Ok(Transport::Udp),
        "icmp" => Ok(Transport::Icmp),
        _ => Err("expected tcp, udp or icmp".to_owned()),
    }
}

/// A neighbour as people write it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Neighbour {
    /// Its key.
    pub key: PublicKey,
    /// Where it is.
    pub at: Option<SocketAddr>,
}

impl FromStr for Neighbour {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (key, at) = match text.split_once('@') {
            Some((key, at)) => {
                let at = at.parse().map_err(|_| {
                    format!("{at:?} is no address: expected ADDRESS:PORT, like 203.0.113.7:{PORT}")
                })?;
                (key, Some(at))
            }
            None => (text, None),
        };
        Ok(Self { key: PublicKey(parse_key(key)?.0), at })
    }
}

/// A member by its address, or by its key, from which the address follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member(pub Ipv6Addr);

impl FromStr for Member {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(key) = Public32::from_hex(text) {
            return Ok(Self(PublicKey(key.0).address()));
        }
        let address: Ipv6Addr =
            text.parse().map_err(|_| "expected an address in 400::/7 or a key".to_owned())?;
        let [first, ..] = address.octets();
        if first & 0xfe != 0x04 {
            return Err("is not in the mesh: its addresses lie in 400::/7".to_owned());
        }
        Ok(Self(address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "fd3384e132ad02a56c78f45547ee40038dc79002b90d29ed90e08eee762ae715";

    #[test]
    fn a_neighbour_is_a_key_and_perhaps_a_place() {
        let both: Neighbour = format!("{KEY}@[2001:db8::1]:7400").parse().unwrap();
        assert_eq!(both.at, Some("[2001:db8::1]:7400".parse().unwrap()));
        assert_eq!(both.key.to_string(), KEY);
        assert_eq!(KEY.parse::<Neighbour>().unwrap().at, None);
        for (text, wrong) in [
            (format!("{KEY}@example.org"), "\"example.org\" is no address"),
            (format!("{}@10.0.0.1:7", &KEY[1..]), &KEY[1..]),
        ] {
            let error = text.parse::<Neighbour>().unwrap_err();
            assert!(error.contains(wrong), "{error}");
        }
    }

    #[test]
    fn who_an_edge_lets_in_is_a_whole_key_with_a_protocol_and_perhaps_a_port() {
        let rule = |port| AclEntry::new(KEY.parse().unwrap(), Transport::Tcp, port).unwrap();
        assert_eq!(parse_allow(&format!("{KEY},tcp")), Ok(rule(None)));
        assert_eq!(parse_allow(&format!("{KEY},tcp,22")), Ok(rule(Some(22))));
        for (text, wrong) in [
            (KEY.to_owned(), "expected KEY,PROTOCOL"),
            ("5f5:db79::1,tcp".to_owned(), "is no key"),
            (format!("{KEY}/label,tcp"), "is no key"),
            (format!("{KEY},sctp"), "expected tcp, udp or icmp"),
            (format!("{KEY},tcp,0"), "is no port"),
            (format!("{KEY},icmp,22"), "icmp has no ports"),
            (format!("{KEY},tcp,22,23"), "is no port"),
        ] {
            let error = parse_allow(&text).unwrap_err();
            assert!(error.contains(wrong), "{text}: {error}");
        }
        assert_eq!(parse_peer("[2001:db8::1]:9651").as_deref(), Ok("[2001:db8::1]:9651"));
        for text in ["host", "host:", ":9651", "host:0", "host:70000"] {
            assert!(parse_peer(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_member_is_an_address_of_the_mesh_or_a_key() {
        let address: Ipv6Addr = "5f5:db79:2573:eebf:15e3:4ae0:bb2f:88e1".parse().unwrap();
        assert_eq!(KEY.parse(), Ok(Member(address)));
        assert_eq!(address.to_string().parse(), Ok(Member(address)));
        assert!("2001:db8::1".parse::<Member>().unwrap_err().contains("400::/7"));
        assert!("host".parse::<Member>().unwrap_err().contains("expected"));
    }
}
