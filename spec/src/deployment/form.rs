//! The forms of strings in a spec.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::Subnet;
use super::shape::Form;
use crate::secret::Public32;

/// A deployment's name: a DNS label.
pub(crate) static DEPLOYMENT_NAME: Form = Form {
    expected: "a name of 1 to 63 of a-z, 0-9 and \"-\", not at either end",
    pattern: "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$",
    accepts: |text| {
        let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        (1..=63).contains(&text.len())
            && text.bytes().all(inner)
            && !text.starts_with('-')
            && !text.ends_with('-')
    },
};

/// A workload's name.
pub(crate) static WORKLOAD_NAME: Form = Form {
    expected: "a name of 1 to 36 of A-Z, a-z, 0-9, \"_\" and \"-\"",
    pattern: "^[A-Za-z0-9_-]{1,36}$",
    accepts: |text| (1..=36).contains(&text.len()) && text.bytes().all(is_name_byte),
};

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-'
}

/// Any text without NUL.
pub(crate) static TEXT: Form = Form {
    expected: "a string without NUL",
    pattern: "^[^\\u0000]*$",
    accepts: |text| !text.contains('\0'),
};

/// The name or the value of a label.
pub(crate) static LABEL: Form = Form {
    expected: "a label of 1 to 63 of A-Z, a-z, 0-9, \".\", \"_\", \"-\" and \"/\"",
    pattern: "^[A-Za-z0-9._/-]{1,63}$",
    accepts: is_label,
};

fn is_label(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text.bytes().all(|byte| is_name_byte(byte) || byte == b'.' || byte == b'/')
}

/// The name of an environment variable.
pub(crate) static ENV_NAME: Form = Form {
    expected: "a name of A-Z, a-z, 0-9 and \"_\", not a digit first, not HYPHA_ (reserved)",
    pattern: "^(?!HYPHA_)[A-Za-z_][A-Za-z0-9_]{0,127}$",
    accepts: |text| {
        let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        (1..=128).contains(&text.len())
            && text.bytes().all(word)
            && !text.starts_with(|first: char| first.is_ascii_digit())
            && !text.starts_with("HYPHA_")
    },
};

/// An image: a bare name, or a path.
pub(crate) static IMAGE: Form = Form {
    expected: "the name of a shipped image, or a path with a \"/\" from the spec's folder",
    pattern: "^([A-Za-z0-9_-][A-Za-z0-9._-]{0,63}|(?![A-Za-z]+://)[^\\u0000]*/[^\\u0000]*)$",
    accepts: |text| match text.split_once("://") {
        Some((scheme, _)) if is_scheme(scheme) => false,
        _ if text.contains('/') => !text.contains('\0'),
        _ => {
            (1..=64).contains(&text.len())
                && !text.starts_with('.')
                && text.bytes().all(|byte| is_name_byte(byte) || byte == b'.')
        }
    },
};

fn is_scheme(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphabetic())
}

/// Where a volume appears in the guest.
pub(crate) static MOUNTPOINT: Form = Form {
    expected: "an absolute path without \",\", \"..\" and NUL, such as \"/data\"",
    pattern: "^/(?!.*(^|/)\\.\\.(/|$))[^\\u0000,]{0,254}$",
    accepts: |text| {
        text.starts_with('/')
            && text.chars().count() <= 255
            && !text.contains(['\0', ','])
            && !text.contains(['\n', '\r', '\u{2028}', '\u{2029}'])
            && text.split('/').all(|part| part != "..")
    },
};

/// A public key.
pub(crate) static KEY: Form = Form {
    expected: "a public key of 64 hexadecimal digits",
    pattern: "^[0-9a-fA-F]{64}$",
    accepts: |text| Public32::from_hex(text).is_some(),
};

/// A certificate as `hypha mesh group give` prints it.
pub(crate) static CERTIFICATE: Form = Form {
    expected: "a certificate of 200 to 600 hexadecimal digits, as \"hypha mesh group give\" prints it",
    pattern: "^([0-9a-fA-F]{2}){100,300}$",
    accepts: |text| {
        let digits = text.bytes().all(|byte| byte.is_ascii_hexdigit());
        digits && text.len().is_multiple_of(2) && (200..=600).contains(&text.len())
    },
};

/// An address with a port.
pub(crate) static ENDPOINT: Form = Form {
    expected: "an address with a port, such as \"192.0.2.7:51820\" or \"[2001:db8::7]:51820\"",
    pattern: "^(\\[[0-9a-fA-F:.]+\\]|[0-9.]+):[0-9]+$",
    accepts: |text| text.parse::<SocketAddr>().is_ok_and(|at| at.port() != 0),
};

/// An IP address.
pub(crate) static IP: Form = Form {
    expected: "an IP address",
    pattern: "^[0-9a-fA-F:.]+$",
    accepts: |text| text.parse::<IpAddr>().is_ok(),
};

/// An IPv4 address.
pub(crate) static IPV4: Form = Form {
    expected: "an IPv4 address",
    pattern: "^[0-9.]+$",
    accepts: |text| text.parse::<Ipv4Addr>().is_ok(),
};

/// An IPv4 subnet.
pub(crate) static SUBNET: Form = Form {
    expected: "an IPv4 subnet from /8 to /30 without host bits, such as \"10.1.1.0/24\"",
    pattern: "^[0-9.]+/[0-9]+$",
    accepts: |text| Subnet::parse(text).is_some(),
};

/// A node of a volume: its beginning; the rest has messages of its own.
pub(crate) static NODE: Form = Form {
    expected: "an absolute directory, or \"tcp:ADDRESS:PORT\" or \"unix:/PATH\" with \",key=HEX\"",
    pattern: "^(dir:/|/|tcp:|unix:/)[^\\u0000]*$",
    accepts: |text| {
        let begins = |start: &&str| text.starts_with(start);
        ["dir:/", "/", "tcp:", "unix:/"].iter().any(begins) && !text.contains('\0')
    },
};

/// A duration.
pub(crate) static DURATION: Form = Form {
    expected: "a duration up to 24h, such as \"500ms\", \"2s\", \"10m\" or \"1h\"",
    pattern: "^[0-9]+(ms|s|m|h)$",
    accepts: |text| crate::duration::parse(text).is_some(),
};

/// Whom a firewall rule is about.
pub(crate) static FROM: Form = Form {
    expected: "a workload's name, a label \"name=value\", a key of 64 hexadecimal digits, or a \
               group's label \"<key of 64 hexadecimal digits>/<label>\" with a label of 1 to 64 \
               characters a-z 0-9 - . _ = that begins and ends with a letter or a digit",
    pattern: "^([A-Za-z0-9_-]{1,36}|[A-Za-z0-9._/-]{1,63}=[A-Za-z0-9._/-]{1,63}|[0-9a-fA-F]{64}\
              |[0-9a-fA-F]{64}/[a-z0-9]([a-z0-9._=-]{0,62}[a-z0-9])?)$",
    accepts: |text| {
        let is_pair = |(name, value)| is_label(name) && is_label(value);
        (KEY.accepts)(text)
            || (WORKLOAD_NAME.accepts)(text)
            || group_label(text).is_some()
            || text.split_once('=').is_some_and(is_pair)
    },
};

/// The group's key and the label of `<key>/<label>`. A label `name=value` of the same file is never
/// one: its name is shorter than a key.
pub(crate) fn group_label(text: &str) -> Option<(Public32, &str)> {
    let (group, label) = text.split_once('/')?;
    let is_end = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = label.as_bytes();
    let is_label = bytes.len() <= 64
        && bytes.iter().all(|byte| is_end(byte) || b"-._=".contains(byte))
        && bytes.first().is_some_and(is_end)
        && bytes.last().is_some_and(is_end);
    Public32::from_hex(group).filter(|_| is_label).map(|group| (group, label))
}
