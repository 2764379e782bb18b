//! Names of members: which key a name stands for. The address follows from the key.
//!
//! * `<key>.mesh`: the member whose key is written in 52 characters of base32 (RFC 4648 §6, no
//!   padding, either case). Nobody has to be asked or believed: the name is the key.
//! * `<nickname>.mesh`: a node that the operator gave a nickname.
//! * `<workload>.<node>.mesh`: a workload, by the name that its node gives it under its signature.
//!   The node is named by its key or its nickname.

use std::collections::BTreeMap;

use net_vdev::PublicKey;
use net_vdev::certificate::HostName;

const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
/// The characters of a key: 5 bits each, of which the last four bits of all are zero.
pub const KEY_CHARACTERS: usize = 52;

/// Writes a key as a label of a name.
#[must_use]
pub fn key_label(key: &PublicKey) -> String {
    let mut label = String::with_capacity(KEY_CHARACTERS);
    let (mut bits, mut count) = (0_u32, 0);
    for byte in key.0.iter().copied().chain([0]) {
        bits = bits << 8 | u32::from(byte);
        count += 8;
        while count >= 5 && label.len() < KEY_CHARACTERS {
            count -= 5;
            let at = (bits >> count & 31) as usize;
            label.push(char::from(ALPHABET.get(at).copied().unwrap_or(b'a')));
        }
        bits &= (1 << count) - 1;
    }
    label
}

/// Reads a key from a label; `None` if it is not one, or not in the only spelling that it has.
#[must_use]
pub fn parse_key_label(label: &[u8]) -> Option<PublicKey> {
    if label.len() != KEY_CHARACTERS {
        return None;
    }
    let mut key = Vec::with_capacity(33);
    let (mut bits, mut count) = (0_u32, 0);
    for character in label {
        let value = match character.to_ascii_lowercase() {
            letter @ b'a'..=b'z' => letter - b'a',
            digit @ b'2'..=b'7' => digit - b'2' + 26,
            _ => return None,
        };
        bits = bits << 5 | u32::from(value);
        count += 5;
        if count >= 8 {
            count -= 8;
            key.push((bits >> count) as u8);
            bits &= (1 << count) - 1;
        }
    }
    let is_only_spelling = bits == 0;
    key.try_into().ok().filter(|_| is_only_spelling).map(PublicKey)
}

/// The names that are known here.
#[derive(Debug, Clone, Default)]
pub struct Names {
    nicknames: BTreeMap<String, PublicKey>,
    /// The node that this is, and the workloads that it names: key and certificate.
    own: Option<PublicKey>,
    workloads: BTreeMap<HostName, (PublicKey, Vec<u8>)>,
}

/// Whose name one is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose<'a> {
    /// This member's.
    Member(PublicKey),
    /// This workload's, which has its name from this node; the certificate says so.
    Own(PublicKey, &'a [u8]),
    /// That of a workload that another node has a name for, or not.
    Elsewhere(PublicKey, HostName),
    /// Nobody's.
    Nobody,
}

impl Names {
    /// Nobody's names but keys.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Gives a node a nickname, in lower case.
    pub fn nickname(&mut self, name: &str, node: PublicKey) {
        self.nicknames.insert(name.to_ascii_lowercase(), node);
    }

    /// Which node this is: it alone says who the workloads below its name are.
    pub fn set_own(&mut self, own: PublicKey) {
        self.own = Some(own);
    }

    /// Gives a workload a name on this node; the certificate says so, which the node signed. A name
    /// has one workload, the last that it was given to.
    pub fn name_workload(&mut self, name: HostName, workload: PublicKey, certificate: Vec<u8>) {
        self.workloads.insert(name, (workload, certificate));
    }

    /// Takes away the names on this node that are not to be kept.
    pub fn retain_workloads(&mut self, keep: impl Fn(&HostName, &PublicKey) -> bool) {
        self.workloads.retain(|name, (workload, _)| keep(name, workload));
    }

    /// Whose name this is: its labels without the last, `mesh`.
    #[must_use]
    pub fn resolve(&self, labels: &[&[u8]]) -> Whose<'_> {
        match labels {
            [one] => self.node(one).map_or(Whose::Nobody, Whose::Member),
            [workload, node] => self.workload(workload, node).unwrap_or(Whose::Nobody),
            _ => Whose::Nobody,
        }
    }

    fn workload(&self, workload: &[u8], node: &[u8]) -> Option<Whose<'_>> {
        let node = self.node(node)?;
        let name = std::str::from_utf8(workload).ok()?.to_ascii_lowercase();
        let name = name.parse::<HostName>().ok()?;
        if self.own != Some(node) {
            return Some(Whose::Elsewhere(node, name));
        }
        self.workloads.get(&name).map(|(key, signed)| Whose::Own(*key, signed))
    }

    /// The node of a label: a key, or a nickname.
    fn node(&self, label: &[u8]) -> Option<PublicKey> {
        parse_key_label(label).or_else(|| {
            let text = std::str::from_utf8(label).ok()?;
            self.nicknames.get(&text.to_ascii_lowercase()).copied()
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_key_has_one_spelling() {
        let key = PublicKey([0xff; 32]);
        let label = key_label(&key);
        assert_eq!(label, format!("{}q", "7".repeat(51)));
        assert_eq!(parse_key_label(label.to_uppercase().as_bytes()), Some(key));
        // The last character's surplus bits are zero.
        assert_eq!(parse_key_label(format!("{}r", "7".repeat(51)).as_bytes()), None);
        assert_eq!(parse_key_label(&label.as_bytes()[1..]), None);
        assert_eq!(parse_key_label("1".repeat(52).as_bytes()), None);
    }

    #[test]
    fn a_name_is_a_key_or_a_nickname() {
        let (key, node) = (PublicKey([3; 32]), PublicKey([4; 32]));
        let mut names = Names::new();
        names.nickname("Berlin", node);
        assert_eq!(names.resolve(&[key_label(&key).as_bytes()]), Whose::Member(key));
        assert_eq!(names.resolve(&[b"bErlin"]), Whose::Member(node));
        assert_eq!(names.resolve(&[b"paris"]), Whose::Nobody);
        assert_eq!(names.resolve(&[]), Whose::Nobody);
        let web: HostName = "web".parse().unwrap();
        assert_eq!(names.resolve(&[b"Web", b"berlin"]), Whose::Elsewhere(node, web));
        assert_eq!(names.resolve(&[b"web", b"paris"]), Whose::Nobody);
        names.set_own(node);
        names.name_workload(web, key, vec![1]);
        assert_eq!(names.resolve(&[b"Web", b"berlin"]), Whose::Own(key, &[1]));
        assert_eq!(names.resolve(&[b"db", b"berlin"]), Whose::Nobody);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(key in any::<[u8; 32]>()) {
            prop_assert_eq!(parse_key_label(key_label(&PublicKey(key)).as_bytes()), Some(PublicKey(key)));
        }
    }
}
