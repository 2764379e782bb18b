//! From the configuration's network cards and volumes to devices.

use std::net::UdpSocket;
use std::num::NonZeroU64;
use std::os::fd::OwnedFd;

use net_vdev::certificate::{self, Label, TextError};
use net_vdev::endpoint::{Exits, Strangers};
use net_vdev::{Caps, NetDevice, Peer, PostQuantum, PrivateKey, PublicKey, Rule, Who};
use spec::vm::{AllowFrom, AllowRule, BlockConfig, NetConfig, Protocol};

use crate::devices::NamedDevice;
use crate::launch::LaunchError;
use crate::output::message;
use crate::vm::now_ns;
use crate::volumes::{DiskSockets, open_disk};

/// The environment variable that tells the guest its card's addresses.
const ADDRESSES_VARIABLE: &str = "HYPHA_ADDRESSES";
/// Every address of the mesh is on the link: 400::/7.
const MESH_PREFIX_LEN: u8 = 7;

/// How many peers that show a label, and that nobody listed, have a session at once.
const LABELLED_PEERS_MAX: usize = 256;

/// The sockets that a network card inherited.
#[derive(Debug)]
pub struct CardSockets {
    /// Where its sessions run, bound.
    pub datagrams: UdpSocket,
    /// To the router of the host's node, connected.
    pub uplink: Option<OwnedFd>,
}

/// How many members that nobody listed, and whom the router finds, have a session at once.
const FOUND_PEERS_MAX: usize = 1024;

/// What a network card needs besides its configuration.
#[derive(Debug, Clone, Copy)]
pub struct NetFacts {
    /// Fresh random bytes, for this card only.
    pub seed: [u8; 32],
    /// CLOCK_REALTIME minus CLOCK_BOOTTIME, nanoseconds.
    pub unix_time_at_zero_ns: u64,
}

/// Makes card `number` on its sockets.
///
/// # Errors
/// The configuration contradicts itself or a socket refuses.
pub fn open_net(
    number: usize,
    card: &NetConfig,
    sockets: CardSockets,
    facts: NetFacts,
) -> Result<NamedDevice, LaunchError> {
    let peers = card.peers.iter().map(|peer| Peer {
        key: PublicKey(peer.public_key.0),
        endpoint: peer.endpoint,
        addresses: peer.addresses.clone(),
    });
    let refused = |name: &str, reason: String| {
        let field = format!("net[{number}].{name}");
        LaunchError::Config { field, reason }
    };
    let rules = |name: &str, rules: &[AllowRule]| {
        let rules = rules.iter().map(rule).collect::<Result<Vec<Rule>, _>>();
        rules.map_err(|error| refused(name, error.to_string()))
    };
    let egress = card.egress.as_ref().map(|list| rules("egress", list)).transpose()?;
    let rules = rules("allow", &card.allow)?;
    let certificates = card.certificates.iter().map(|text| certificate::from_hex(text));
    let certificates = certificates
        .collect::<Option<Vec<_>>>()
        .ok_or_else(|| refused("certificates", "not hexadecimal digits".to_owned()))?;
    // Who has a label need not be listed.
    let has_labels =
        rules.iter().chain(egress.iter().flatten()).any(|rule| matches!(rule.who, Who::Label(_)));
    let is_routed = sockets.uplink.is_some();
    let strangers = match (is_routed, has_labels) {
        (true, _) => Strangers::Welcome { at_most: FOUND_PEERS_MAX },
        (false, true) => Strangers::Welcome { at_most: LABELLED_PEERS_MAX },
        (false, false) => Strangers::Refused,
    };
    let post_quantum =
        if card.requires_post_quantum { PostQuantum::Required } else { PostQuantum::Upgrade };
    let through = card.exit.map(|key| PublicKey(key.0));
    let key = PrivateKey::new(*card.private_key.expose());
    let config = net_vdev::Config {
        addresses: card.ipv4.iter().map(|(address, _)| (*address).into()).collect(),
        peers: peers.collect(),
        rules,
        egress,
        caps: Caps {
            packets_per_s: card.packets_per_second.and_then(NonZeroU64::new),
            bytes_per_s: card.bytes_per_second.and_then(NonZeroU64::new),
        },
        post_quantum,
        strangers,
        is_routed,
        exits: Exits { through, ..Exits::default() },
        ..net_vdev::Config::new(key, facts.unix_time_at_zero_ns)
    };
    let CardSockets { datagrams, uplink } = sockets;
    let mut device = NetDevice::new(config, datagrams, uplink, facts.seed).map_err(|error| {
        LaunchError::Config { field: format!("net[{number}]"), reason: error.to_string() }
    })?;
    if device.set_certificates(now_ns(), &certificates) < certificates.len() {
        message(&format!(
            "warning: a certificate of network card {number} is not this machine's, or has ended"
        ));
    }
    Ok(NamedDevice { name: format!("network card {number}"), device: Box::new(device) })
}

fn rule(rule: &AllowRule) -> Result<Rule, TextError> {
    let who = match &rule.from {
        AllowFrom::Key(key) => Who::Key(PublicKey(key.0)),
        AllowFrom::Label { group, name } => {
            Who::Label(Label { group: PublicKey(group.0), name: name.parse()? })
        }
    };
    let protocol = match rule.protocol {
        Protocol::Tcp => net_vdev::Protocol::Tcp,
        Protocol::Udp => net_vdev::Protocol::Udp,
        Protocol::Icmp => net_vdev::Protocol::Icmp,
    };
    Ok(Rule { who, protocol, port: rule.port })
}

/// Opens the volume of block device `number`, makes it if it may, and puts the device in front.
///
/// # Errors
/// The volume is described wrongly, in use, lost, or can't be read.
pub fn open_block(
    number: usize,
    disk: &BlockConfig,
    sockets: DiskSockets,
) -> Result<NamedDevice, LaunchError> {
    let device = open_disk(disk, sockets).map_err(|source| LaunchError::Volume {
        field: format!("volume {:?} (block[{number}])", disk.name),
        source: Box::new(source),
    })?;
    Ok(NamedDevice { name: format!("disk {:?}", disk.name), device })
}

/// The variable that tells the guest the addresses of its first card, if it has one.
#[must_use]
pub fn addresses_variable(cards: &[NetConfig]) -> Option<(String, String)> {
    let card = cards.first()?;
    let public = PrivateKey::new(*card.private_key.expose()).public();
    let mut addresses = vec![format!("{}/{MESH_PREFIX_LEN}", public.address())];
    addresses.extend(card.ipv4.iter().map(|(address, len)| format!("{address}/{len}")));
    Some((ADDRESSES_VARIABLE.to_owned(), addresses.join(",")))
}
