//! Links between namespaces, and what is done to them.

use crate::{Lab, LabError};

/// A veth pair between two namespaces.
#[derive(Debug, Clone)]
pub struct Wire {
    /// The namespaces at its ends.
    pub ends: [String; 2],
    /// The devices, by end.
    pub devices: [String; 2],
    /// The IPv4 addresses, by end.
    pub addresses: [String; 2],
}

/// Which datagrams a cut takes: those that leave end 0, those that leave end 1, or both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// What end 0 sends.
    Forth,
    /// What end 1 sends.
    Back,
    /// Both.
    Both,
}

impl Direction {
    /// The ends at which that arrives.
    fn readers(self) -> &'static [usize] {
        match self {
            Self::Forth => &[1],
            Self::Back => &[0],
            Self::Both => &[0, 1],
        }
    }
}

impl Lab {
    /// Connects two namespaces by a network of its own, `10.77.N.1` and `10.77.N.2`.
    ///
    /// # Errors
    /// `ip` said no.
    pub fn wire(&mut self, one: &str, two: &str) -> Result<Wire, LabError> {
        self.wires += 1;
        let number = self.wires;
        let devices = ["a", "b"].map(|end| format!("w{number}{end}"));
        let addresses = [1, 2].map(|host| format!("10.77.{number}.{host}"));
        let two_full = self.full(two);
        let add =
            ["link", "add", &devices[0], "type", "veth", "peer", "name", &devices[1], "netns"];
        self.run(one, "ip", &[add.as_slice(), &[&two_full]].concat())?;
        let ends = [one, two];
        for ((end, device), address) in ends.iter().zip(&devices).zip(&addresses) {
            self.run(end, "ip", &["addr", "add", &format!("{address}/24"), "dev", device])?;
            self.run(end, "ip", &["link", "set", device, "up"])?;
        }
        Ok(Wire { ends: ends.map(str::to_owned), devices, addresses })
    }

    /// Loses everything on a wire in this direction, without a word to anybody: where it arrives,
    /// because a sender's own kernel would tell it that a filter of its took the datagram.
    ///
    /// # Errors
    /// `nft` said no.
    pub fn cut(&self, wire: &Wire, direction: Direction) -> Result<(), LabError> {
        for end in direction.readers() {
            let (Some(namespace), Some(device)) = (wire.ends.get(*end), wire.devices.get(*end))
            else {
                continue;
            };
            let table = format!("cut_{device}");
            let rules = format!(
                "table inet {table} {{ chain in {{ type filter hook prerouting priority -300; \
                 iifname \"{device}\" drop; }}; }}"
            );
            self.run(namespace, "nft", &[&rules])?;
        }
        Ok(())
    }

    /// Undoes a cut.
    ///
    /// # Errors
    /// `nft` said no.
    pub fn mend(&self, wire: &Wire, direction: Direction) -> Result<(), LabError> {
        for end in direction.readers() {
            if let (Some(namespace), Some(device)) = (wire.ends.get(*end), wire.devices.get(*end)) {
                self.run(namespace, "nft", &["delete", "table", "inet", &format!("cut_{device}")])?;
            }
        }
        Ok(())
    }

    /// Sets the largest packet of a wire, at both ends.
    ///
    /// # Errors
    /// `ip` said no.
    pub fn set_mtu(&self, wire: &Wire, bytes: u32) -> Result<(), LabError> {
        for (namespace, device) in wire.ends.iter().zip(&wire.devices) {
            self.run(namespace, "ip", &["link", "set", device, "mtu", &bytes.to_string()])?;
        }
        Ok(())
    }

    /// Lets a wire carry so many Mbit/s, both ways.
    ///
    /// # Errors
    /// `tc` said no.
    pub fn limit(&self, wire: &Wire, mbit_per_s: u32) -> Result<(), LabError> {
        let rate = format!("{mbit_per_s}mbit");
        for (namespace, device) in wire.ends.iter().zip(&wire.devices) {
            let tbf = ["tbf", "rate", &rate, "burst", "64kb", "latency", "20ms"];
            let add = ["qdisc", "add", "dev", device, "root"];
            self.run(namespace, "tc", &[add.as_slice(), &tbf].concat())?;
        }
        Ok(())
    }
}
