//! The two kinds of text in certificates, in few bytes and in one spelling only.

use std::fmt;
use std::str::FromStr;

/// Why a text is no label or name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// Empty, or longer than its kind may be.
    #[error("a label has 1 to {label} bytes, a name 1 to {name}", label = LabelName::BYTES_MAX, name = HostName::BYTES_MAX)]
    Length,
    /// A character that its kind does not have.
    #[error("lower-case letters, digits, '-' (a label also '.', '_', '=') and nothing else")]
    Character,
    /// Its first or last character is neither a letter nor a digit.
    #[error("the first and the last character are a letter or a digit")]
    Ends,
}

/// A text of at most 64 bytes, padded with zeros, so that it can be copied and compared as it lies.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Short {
    bytes: [u8; 64],
    len: u8,
}

impl Short {
    fn new(text: &str, len_max: usize, is_other: fn(u8) -> bool) -> Result<Self, TextError> {
        let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let (Some(first), Some(last)) = (text.as_bytes().first(), text.as_bytes().last()) else {
            return Err(TextError::Length);
        };
        if text.len() > len_max {
            return Err(TextError::Length);
        }
        if !text.bytes().all(|byte| is_plain(byte) || is_other(byte)) {
            return Err(TextError::Character);
        }
        if !is_plain(*first) || !is_plain(*last) {
            return Err(TextError::Ends);
        }
        let mut bytes = [0; 64];
        bytes.iter_mut().zip(text.bytes()).for_each(|(to, from)| *to = from);
        Ok(Self { bytes, len: u8::try_from(text.len()).map_err(|_| TextError::Length)? })
    }

    fn as_str(&self) -> &str {
        let text = self.bytes.get(..usize::from(self.len)).unwrap_or_default();
        // The constructor let ASCII in only.
        std::str::from_utf8(text).unwrap_or_default()
    }
}

/// The name of a label: 1 to 64 bytes of `a-z 0-9 - . _ =`, at both ends a letter or a digit.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LabelName(Short);

impl LabelName {
    /// The most bytes.
    pub const BYTES_MAX: usize = 64;

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl FromStr for LabelName {
    type Err = TextError;

    fn from_str(text: &str) -> Result<Self, TextError> {
        Short::new(text, Self::BYTES_MAX, |byte| b"-._=".contains(&byte)).map(Self)
    }
}

impl fmt::Display for LabelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for LabelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.as_str())
    }
}

/// A name as one label of a DNS name (RFC 1123 §2.1), lower case: 1 to 63 bytes of `a-z 0-9 -`, at
/// both ends a letter or a digit.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostName(Short);

impl HostName {
    /// The most bytes.
    pub const BYTES_MAX: usize = 63;

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl FromStr for HostName {
    type Err = TextError;

    fn from_str(text: &str) -> Result<Self, TextError> {
        Short::new(text, Self::BYTES_MAX, |byte| byte == b'-').map(Self)
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.as_str())
    }
}
