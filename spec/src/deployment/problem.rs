//! What is wrong with a spec, and where.

use std::fmt::{self, Write as _};

use jsonc_parser::ast::Value;

/// How many problems are kept; one mistake early in a file can cause many.
pub(crate) const PROBLEMS_MAX: usize = 20;

/// How many characters of a value a message shows.
const SHOWN_CHARS: usize = 48;

/// Everything that is wrong with a spec, in the order of the text. Never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems {
    list: Vec<Problem>,
}

impl Problems {
    pub(crate) fn one(problem: Problem) -> Self {
        Self { list: vec![problem] }
    }

    /// The problems, in the order of the text.
    #[must_use]
    pub fn list(&self) -> &[Problem] {
        &self.list
    }

    /// One line per problem, each beginning with `file:line:column`.
    #[must_use]
    pub fn render(&self, file: &str) -> String {
        let mut text = String::new();
        for problem in &self.list {
            // Writing to a String can't fail.
            let _ignored = writeln!(text, "{file}:{problem}");
        }
        text
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.list.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(f, "{separator}{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// One thing that is wrong, and where. Shown as `line:column: pointer: reason`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The line, from 1.
    pub line: usize,
    /// The column in characters, from 1.
    pub column: usize,
    /// The JSON pointer (RFC 6901) of the value; empty for the whole text.
    pub pointer: String,
    /// What is wrong.
    pub reason: Reason,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: ", self.line, self.column)?;
        if !self.pointer.is_empty() {
            write!(f, "{}: ", self.pointer.escape_debug())?;
        }
        write!(f, "{}", self.reason)
    }
}

/// Why a value is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// Not JSON (RFC 8259), or nested too deeply.
    #[error("this is not JSON: {0}")]
    Syntax(String),
    /// Not UTF-8.
    #[error("this is not UTF-8 text")]
    NotUtf8,
    /// Larger than [`super::TEXT_BYTES_MAX`].
    #[error("the spec has {bytes} bytes, expected at most {}", super::TEXT_BYTES_MAX)]
    TooLarge {
        /// How large it is.
        bytes: usize,
    },
    /// A field that this object does not have.
    #[error("unknown field {found:?}{}", Hint(.nearest, .known))]
    UnknownField {
        /// The name in the text.
        found: String,
        /// The valid name that looks most like it.
        nearest: Option<&'static str>,
        /// All valid names.
        known: Vec<&'static str>,
    },
    /// A name that is not one of a fixed set.
    #[error("unknown {what} {found:?}{}", Hint(.nearest, .known))]
    UnknownName {
        /// What is named.
        what: &'static str,
        /// The name in the text.
        found: String,
        /// The valid name that looks most like it.
        nearest: Option<&'static str>,
        /// All valid names.
        known: Vec<&'static str>,
    },
    /// A field without which the object means nothing.
    #[error("missing field {0:?}")]
    MissingField(&'static str),
    /// The same field twice in one object.
    #[error("the field {0:?} is given twice")]
    DuplicateField(String),
    /// A value of the wrong type, form or range.
    #[error("found {found}, expected {expected}")]
    WrongValue {
        /// The value as in the text, cut short.
        found: String,
        /// What is valid here.
        expected: String,
    },
    /// Something of the format that this version can't do.
    #[error("{what} is not supported yet{}{instead}", if .instead.is_empty() { "" } else { "; " })]
    NotYet {
        /// The field, type or kind.
        what: String,
        /// What to use instead; may be empty.
        instead: &'static str,
    },
    /// Two workloads of one name.
    #[error("there is another workload named {name:?}, in line {first_line}")]
    DuplicateName {
        /// The name.
        name: String,
        /// Where the first one is.
        first_line: usize,
    },
    /// A reference to a workload that does not exist or has another type.
    #[error("{}", Unresolved { wanted, name, is, nearest })]
    Reference {
        /// The type that is needed here.
        wanted: &'static str,
        /// The name in the text.
        name: String,
        /// The type of the workload of that name, if there is one.
        is: Option<&'static str>,
        /// The name of a fitting workload that looks most like it.
        nearest: Option<String>,
    },
    /// A rule between two values is broken.
    #[error("{0}")]
    Conflict(Conflict),
}

/// A rule between values that a spec breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Conflict {
    /// An address that is not one of its network.
    #[error("{ip} is not a host address of the network's subnet {subnet}")]
    OutsideSubnet {
        /// The address.
        ip: std::net::Ipv4Addr,
        /// The subnet.
        subnet: super::Subnet,
    },
    /// An address on a network that has no subnet.
    #[error("the network {network:?} has no subnet, so its members have no IPv4 address")]
    NoSubnet {
        /// The network.
        network: String,
    },
    /// An address that another machine has.
    #[error("{ip} is also the address of {other:?}")]
    AddressTaken {
        /// The address.
        ip: std::net::Ipv4Addr,
        /// The machine that has it.
        other: String,
    },
    /// More members than addresses.
    #[error("the subnet {0} has no address left for this machine")]
    SubnetFull(super::Subnet),
    /// A port that is published twice.
    #[error("port {port} is also published by {other:?}")]
    PortTaken {
        /// The port on the host.
        port: u16,
        /// The machine that publishes it.
        other: String,
    },
    /// A UDP port of the mesh that two cards claim.
    #[error("UDP port {port} is also the mesh port of {other:?}")]
    MeshPortTaken {
        /// The port on the host.
        port: u16,
        /// The machine that has it.
        other: String,
    },
    /// A node that is described wrongly.
    #[error("{0}")]
    Node(crate::node::NodeSpecError),
    /// Not as many nodes as the shards need.
    #[error("{found} nodes for {wanted} shards; {rule}")]
    NodeCount {
        /// How many there are.
        found: usize,
        /// How many shards there are.
        wanted: usize,
        /// What is possible.
        rule: &'static str,
    },
    /// A node in another's failure domain, with too few domains for the shards.
    #[error(
        "another node is in the failure domain {domain:?} too, and {wanted} shards need as many \
         domains; name them with domain=NAME if one can be lost without the other"
    )]
    SharedDomain {
        /// The domain of both.
        domain: String,
        /// How many shards there are.
        wanted: usize,
    },
    /// A node that is listed twice, or a directory that another volume has.
    #[error("this is also a node of {volume:?}; shards there would be lost together")]
    NodeTaken {
        /// The volume that has it.
        volume: String,
    },
    /// A volume that two machines mount.
    #[error("the volume {volume:?} is also mounted by {other:?}; a volume has one machine")]
    VolumeTaken {
        /// The volume.
        volume: String,
        /// The machine that mounts it.
        other: String,
    },
    /// Two volumes at one place.
    #[error("{0:?} is the mountpoint of another volume of this machine")]
    MountpointTaken(String),
    /// Ports without a network.
    #[error("a published port needs a network interface; add \"network\": {{\"interfaces\": ...}}")]
    PortWithoutInterface,
    /// A rule about a machine that can't be reached.
    #[error("{name:?} has no interface on the network {network:?}")]
    NotOnNetwork {
        /// The machine.
        name: String,
        /// The network.
        network: String,
    },
    /// A label that no machine of the network has.
    #[error("no machine on the network {network:?} has the label {label:?}")]
    LabelUnused {
        /// The label as `name=value`.
        label: String,
        /// The network.
        network: String,
    },
    /// A peer that is listed twice.
    #[error("the peer {0} is listed twice")]
    PeerTwice(crate::secret::Public32),
    /// A port for a protocol without ports, or none for one that needs it.
    #[error("ICMP has no ports; remove \"port\"")]
    IcmpPort,
    /// The longest back-off is shorter than the first.
    #[error("backoff_max is shorter than backoff_initial")]
    BackoffOrder,
    /// Arguments and environment that no boot page has room for.
    #[error("args and env have {bytes} bytes together, expected at most {limit}")]
    StringsTooLong {
        /// How many there are, with a terminator each.
        bytes: usize,
        /// How many fit.
        limit: usize,
    },
}

/// The end of a message about an unknown name.
struct Hint<'a>(&'a Option<&'static str>, &'a [&'static str]);

impl fmt::Display for Hint<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(nearest) => write!(f, "; did you mean {nearest:?}?"),
            None => write!(f, "; expected one of {}", self.1.join(", ")),
        }
    }
}

/// The message about a reference that leads nowhere.
struct Unresolved<'a> {
    wanted: &'a str,
    name: &'a str,
    is: &'a Option<&'static str>,
    nearest: &'a Option<String>,
}

impl fmt::Display for Unresolved<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.is {
            Some(is) => write!(f, "{:?} is a {is}, expected a {}", self.name, self.wanted)?,
            None => write!(f, "there is no {} named {:?}", self.wanted, self.name)?,
        }
        match self.nearest {
            Some(nearest) => write!(f, "; did you mean {nearest:?}?"),
            None => Ok(()),
        }
    }
}

/// The text of a spec, and the problems found in it so far.
pub(crate) struct Report<'a> {
    text: &'a str,
    line_starts: Vec<usize>,
    problems: Vec<(usize, Problem)>,
}

impl<'a> Report<'a> {
    pub(crate) fn new(text: &'a str) -> Self {
        let after_newlines = text.match_indices('\n').map(|(offset, _)| offset + 1);
        let line_starts = std::iter::once(0).chain(after_newlines).collect();
        Self { text, line_starts, problems: Vec::new() }
    }

    /// The line and column (from 1, in characters) of a byte offset.
    pub(crate) fn position(&self, offset: usize) -> (usize, usize) {
        let line = self.line_starts.partition_point(|start| *start <= offset);
        let start = line.checked_sub(1).and_then(|index| self.line_starts.get(index)).copied();
        let before = self.text.get(start.unwrap_or(0)..offset).unwrap_or("");
        (line, before.chars().count() + 1)
    }

    /// Notes a problem at the byte `offset`.
    pub(crate) fn add(&mut self, offset: usize, pointer: &str, reason: Reason) {
        if self.problems.len() < PROBLEMS_MAX {
            let (line, column) = self.position(offset);
            let problem = Problem { line, column, pointer: pointer.to_owned(), reason };
            self.problems.push((offset, problem));
        }
    }

    /// `value` if nothing was wrong.
    pub(crate) fn finish<T>(mut self, value: Option<T>) -> Result<T, Problems> {
        match value {
            Some(value) if self.problems.is_empty() => Ok(value),
            _ => {
                self.problems.sort_by_key(|(offset, _)| *offset);
                let list = self.problems.into_iter().map(|(_, problem)| problem).collect();
                Err(Problems { list })
            }
        }
    }

    pub(crate) fn is_clean(&self) -> bool {
        self.problems.is_empty()
    }
}

/// A value as a message shows it.
pub(crate) fn shown(value: &Value<'_>) -> String {
    match value {
        Value::StringLit(text) => format!("{:?}", cut(&text.value)),
        Value::NumberLit(number) => cut(number.value),
        Value::BooleanLit(boolean) => boolean.value.to_string(),
        Value::NullKeyword(_) => "null".to_owned(),
        Value::Object(_) => "an object".to_owned(),
        Value::Array(array) => format!("a list of {}", array.elements.len()),
    }
}

/// `text`, cut to what a message shows.
pub(crate) fn cut(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARS) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or("")),
        None => text.to_owned(),
    }
}

/// The name that looks most like `found`, if one is near enough to be meant.
pub(crate) fn nearest<N: AsRef<str>>(found: &str, names: impl Iterator<Item = N>) -> Option<N> {
    // Long names can't be near any of ours, and the distance costs their product.
    if found.len() > 64 {
        return None;
    }
    let lower = found.to_ascii_lowercase();
    let distance = |name: &N| strsim::damerau_levenshtein(&lower, &name.as_ref().to_lowercase());
    let (distance, name) =
        names.map(|name| (distance(&name), name)).min_by_key(|(distance, _)| *distance)?;
    (distance <= 1 + found.chars().count() / 4).then_some(name)
}
