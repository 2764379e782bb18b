//! Network cards, as the kernel lists them.

use super::sources::Sources;

/// The most cards that are listed.
const CARDS_MAX: usize = 64;

/// One network card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Card {
    /// Its name.
    pub name: String,
    /// What its driver says that the line does, in Mbit/s; many virtual ones don't know.
    pub mbps: Option<u32>,
    /// The longest packet, in bytes.
    pub mtu: Option<u32>,
    /// Whether there is a line.
    pub up: bool,
    /// Whether there is a device behind it: bridges, tunnels and loopback have none.
    pub device: bool,
}

/// All cards but loopback.
#[must_use]
pub fn cards(sources: &Sources) -> Vec<Card> {
    let names = sources.names("sys/class/net").into_iter().filter(|name| name != "lo");
    let card = |name: String| {
        let at = |what: &str| format!("sys/class/net/{name}/{what}");
        let number = |what| sources.number(&at(what)).and_then(|value| u32::try_from(value).ok());
        Card {
            // Without a line some drivers say 65535 or -1.
            mbps: number("speed").filter(|mbps| *mbps > 0 && *mbps != 65_535),
            mtu: number("mtu"),
            up: sources.text(&at("operstate")).is_some_and(|state| state == "up"),
            device: sources.has(&at("device")),
            name,
        }
    };
    names.take(CARDS_MAX).map(card).collect()
}
