//! Domain names (RFC 1035 §3.1), in lower case: names that differ in case only are one name.

use std::fmt;

/// The bytes of a name with its lengths.
const NAME_BYTES_MAX: usize = 255;
/// How many pointers one name follows: more than any sender needs.
const JUMPS_MAX: usize = 16;

/// A name as it lies in a message, without compression and with the root's zero at its end.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Name(Vec<u8>);

impl Name {
    /// Reads the name at `at`, and moves `at` behind it. Pointers only lead backwards, so that
    /// following them ends.
    pub(crate) fn parse(message: &[u8], at: &mut usize) -> Option<Self> {
        let (mut bytes, mut place, mut jumps, mut end) = (Vec::new(), *at, 0, None);
        loop {
            let len = *message.get(place)?;
            match len {
                0 => break,
                1..=63 => {
                    let label = message.get(place + 1..place + 1 + usize::from(len))?;
                    if bytes.len() + label.len() + 2 > NAME_BYTES_MAX {
                        return None;
                    }
                    bytes.push(len);
                    bytes.extend(label.iter().map(u8::to_ascii_lowercase));
                    place += 1 + usize::from(len);
                }
                0xc0.. => {
                    let low = *message.get(place + 1)?;
                    let target = usize::from(len & 0x3f) << 8 | usize::from(low);
                    end = end.or(Some(place + 2));
                    jumps += 1;
                    if target >= place || jumps > JUMPS_MAX {
                        return None;
                    }
                    place = target;
                }
                _ => return None,
            }
        }
        bytes.push(0);
        *at = end.unwrap_or(place + 1);
        Some(Self(bytes))
    }

    /// The name of these labels; `None` if no such name can be.
    pub(crate) fn of(labels: &[&[u8]]) -> Option<Self> {
        let mut bytes = Vec::new();
        for label in labels {
            bytes.push(u8::try_from(label.len()).ok().filter(|len| (1..=63).contains(len))?);
            bytes.extend(label.iter().map(u8::to_ascii_lowercase));
        }
        bytes.push(0);
        (bytes.len() <= NAME_BYTES_MAX).then_some(Self(bytes))
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Its labels, the host's first.
    pub(crate) fn labels(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = self.0.as_slice();
        std::iter::from_fn(move || {
            let (len, after) = rest.split_first()?;
            let (label, after) = after.split_at_checked(usize::from(*len))?;
            rest = after;
            (!label.is_empty()).then_some(label)
        })
    }

    /// Whether it is `zone` or lies in it.
    pub(crate) fn is_within(&self, zone: &[&[u8]]) -> bool {
        let count = self.labels().count();
        count >= zone.len() && self.labels().skip(count - zone.len()).eq(zone.iter().copied())
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.labels().try_for_each(|label| write!(f, "{}.", label.escape_ascii()))
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Name({self})")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    impl Name {
        /// The name of a text with dots between its labels; `None` if no such name can be.
        pub(crate) fn from_text(text: &str) -> Option<Self> {
            let mut bytes = Vec::with_capacity(text.len() + 2);
            for label in text.trim_end_matches('.').split('.').filter(|_| !text.is_empty()) {
                let len = u8::try_from(label.len()).ok().filter(|len| *len > 0)?;
                if label.len() > 63 {
                    return None;
                }
                bytes.push(len);
                bytes.extend(label.bytes().map(|byte| byte.to_ascii_lowercase()));
            }
            bytes.push(0);
            (bytes.len() <= NAME_BYTES_MAX).then_some(Self(bytes))
        }
    }

    #[test]
    fn a_pointer_leads_back_and_never_on() {
        let message = b"\x03Foo\x03bar\x00\x03www\xc0\x00\xc0\x0f";
        let mut at = 9;
        assert_eq!(Name::parse(message, &mut at).unwrap().to_string(), "www.foo.bar.");
        assert_eq!(at, 15);
        for forward in [&b"\xc0\x00"[..], b"\xc0\x02\xc0\x00", b"\x01a\xc0\x00\xc0", b"\x40aa"] {
            assert_eq!(Name::parse(forward, &mut 0), None, "{forward:?}");
        }
    }

    #[test]
    fn a_name_lies_in_its_zone() {
        let name = Name::from_text("A.node.Mesh.").unwrap();
        assert!(name.is_within(&[b"mesh"]) && name.is_within(&[b"node", b"mesh"]));
        assert!(!Name::from_text("mesh.org").unwrap().is_within(&[b"mesh"]));
        assert!(!Name::from_text("").unwrap().is_within(&[b"mesh"]));
        assert_eq!(Name::from_text("a..b"), None);
        assert_eq!(Name::from_text(&"a".repeat(64)), None);
    }

    proptest! {
        #[test]
        fn any_bytes_end(bytes in prop::collection::vec(any::<u8>(), 0..300), at in 0_usize..300) {
            let mut place = at;
            if let Some(name) = Name::parse(&bytes, &mut place) {
                prop_assert!(place > at && place <= bytes.len());
                prop_assert!(name.bytes().len() <= NAME_BYTES_MAX);
                prop_assert_eq!(Name::parse(name.bytes(), &mut 0), Some(name.clone()));
            }
        }
    }
}
