//! A node that lies to its neighbours.

use mesh_router::message::{self, Body, Entry};
use net_vdev::PublicKey;
use net_vdev::announcement::{Announcement, Role, SignedAnnouncement};

use crate::rng::Rng;

/// What it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lie {
    /// Says that everything is right beside it.
    Metrics,
    /// Adds announcements that nobody signed, some with the key of another.
    Forge,
    /// Sends updates again that it sent before, under new numbers.
    Replay,
    /// Invents keys, signs for them properly, and asks for addresses without end.
    Flood,
}

/// A liar's state. Its router is an honest one whose messages are changed on their way out.
#[derive(Debug)]
pub struct Liar {
    /// What it does.
    pub lie: Lie,
    kept: Vec<Vec<u8>>,
    /// Keys that it has heard of.
    known: Vec<PublicKey>,
    invented: u64,
    /// Messages that it may still add: enough to exceed every rate many times, and to end.
    budget: u32,
}

/// Messages that a flood has.
const FLOOD: u32 = 6000;

impl Liar {
    /// A liar of this kind.
    #[must_use]
    pub fn new(lie: Lie) -> Self {
        Self { lie, kept: Vec::new(), known: Vec::new(), invented: 0, budget: FLOOD }
    }

    /// The messages that are sent in place of an honest one.
    pub fn twist(&mut self, bytes: Vec<u8>, rng: &mut Rng) -> Vec<Vec<u8>> {
        let Ok((head, body)) = message::parse(&bytes) else { return vec![bytes] };
        let Body::Update { number, mut entries } = body else {
            return self.beside(head, bytes, rng);
        };
        let mut list = Vec::new();
        while let Ok(Some(entry)) = entries.next_entry() {
            if let Entry::News { signed, .. } = entry
                && self.known.len() < 1000
            {
                self.known.push(signed.announcement.key);
            }
            list.push(entry);
        }
        if self.lie == Lie::Replay {
            if self.kept.len() < 100 {
                self.kept.push(bytes.clone());
            }
            let old = self.kept[rng.index(self.kept.len())].clone();
            if let Ok((_, Body::Update { entries: mut old, .. })) = message::parse(&old) {
                list.clear();
                while let Ok(Some(entry)) = old.next_entry() {
                    list.push(entry);
                }
            }
        }
        if self.lie == Lie::Forge {
            list.push(self.forged(rng));
        }
        let mut update = message::update(head, number);
        for entry in list {
            if message::has_room(&update) {
                message::push(&mut update, &self.lie_about(entry));
            }
        }
        vec![update]
    }

    fn lie_about(&self, entry: Entry) -> Entry {
        match entry {
            Entry::News { signed, sequence, .. } if self.lie == Lie::Metrics => {
                Entry::News { signed, sequence, metric: 0 }
            }
            Entry::Route { address, sequence, .. } if self.lie == Lie::Metrics => {
                Entry::Route { address, sequence, metric: 0 }
            }
            honest => honest,
        }
    }

    /// An announcement of somebody else with a larger number, signed by nobody.
    fn forged(&mut self, rng: &mut Rng) -> Entry {
        let victim = self.known.get(rng.index(self.known.len())).copied();
        let announcement = Announcement {
            key: victim.unwrap_or(PublicKey([3; 32])),
            sequence: u64::MAX - rng.range(0, 1000),
            expires_unix_s: u64::MAX,
            role: Role::Node { zone: 1 },
        };
        let mut signature = [0; 64];
        signature.iter_mut().for_each(|byte| *byte = rng.u64() as u8);
        let signed = SignedAnnouncement { announcement, signature };
        Entry::News { signed, sequence: announcement.sequence, metric: 0 }
    }

    /// What goes out beside another message.
    fn beside(&mut self, head: message::Header, bytes: Vec<u8>, rng: &mut Rng) -> Vec<Vec<u8>> {
        let mut all = vec![bytes];
        if self.lie == Lie::Flood && self.budget > 41 {
            self.budget -= 41;
            for _ in 0..20 {
                self.invented += 1;
                let address = u128::from(rng.u64()) << 64 | u128::from(self.invented);
                let request = message::Request {
                    address: address | 4 << 120,
                    sequence: 0,
                    hops: 255,
                    wants_announcement: rng.chance_ppm(500_000),
                    attempt: u8::try_from(rng.range(0, 4)).unwrap_or(0),
                    is_search: rng.chance_ppm(500_000),
                };
                all.push(message::request(head, request));
                let mut garbage = vec![0; rng.index(1300)];
                garbage.iter_mut().for_each(|byte| *byte = rng.u64() as u8);
                all.push(garbage);
            }
            // Numbers far ahead of the honest stream: the reader then drops the honest one.
            let mut update = message::update(head, u64::MAX / 2 + self.invented);
            while message::has_room(&update) {
                self.invented += 1;
                message::push(&mut update, &invented(self.invented));
            }
            all.push(update);
        }
        all
    }
}

/// A properly signed announcement of a key that never was anybody's.
fn invented(number: u64) -> Entry {
    let identity = crate::identity::Identity::new(0xbad, number, false);
    let announcement = Announcement {
        key: identity.key(),
        sequence: 1,
        expires_unix_s: u64::MAX,
        role: Role::Node { zone: 1 },
    };
    Entry::News { signed: identity.sign(announcement), sequence: 1, metric: 0 }
}
