//! Command-line options of the form `--name value` or `--name=value`.

use alloc::vec::Vec;
use core::str::FromStr;

/// Why the command line is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OptionError<'a> {
    /// Not an option of this program.
    Unknown(&'a str),
    /// The option has no value.
    NoValue(&'a str),
    /// The value is not of the option's type, or out of its range.
    Value(&'a str, &'a str),
    /// The option must be given.
    Missing(&'a str),
}

impl core::fmt::Display for OptionError<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Unknown(text) => write!(f, "`{text}` is not an option of this program"),
            Self::NoValue(name) => write!(f, "--{name} needs a value"),
            Self::Value(name, value) => write!(f, "`{value}` is not a value for --{name}"),
            Self::Missing(name) => write!(f, "--{name} is missing"),
        }
    }
}

impl core::error::Error for OptionError<'_> {}

/// The options of one command line.
#[derive(Debug)]
pub struct Options<'a> {
    pairs: Vec<(&'a str, &'a str)>,
}

impl<'a> Options<'a> {
    /// Splits `args` into options, each of which must be one of `known`.
    ///
    /// # Errors
    /// See [`OptionError`].
    pub fn parse(
        args: impl IntoIterator<Item = &'a str>,
        known: &[&str],
    ) -> Result<Self, OptionError<'a>> {
        let mut args = args.into_iter();
        let mut pairs = Vec::new();
        while let Some(arg) = args.next() {
            let option = arg.strip_prefix("--").ok_or(OptionError::Unknown(arg))?;
            let (name, inline) = match option.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (option, None),
            };
            if !known.contains(&name) {
                return Err(OptionError::Unknown(arg));
            }
            let value = inline.or_else(|| args.next()).ok_or(OptionError::NoValue(name))?;
            pairs.push((name, value));
        }
        Ok(Self { pairs })
    }

    /// The value of `--name`, the last if there are several.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<&'a str> {
        self.pairs.iter().rev().find(|(key, _)| *key == name).map(|(_, value)| *value)
    }

    /// The value of `--name` as a number (or whatever parses), `default` if it isn't given.
    ///
    /// # Errors
    /// [`OptionError::Value`].
    pub fn value<T: FromStr>(&self, name: &'a str, default: T) -> Result<T, OptionError<'a>> {
        match self.text(name) {
            None => Ok(default),
            Some(text) => text.parse().map_err(|_| OptionError::Value(name, text)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_are_understood_and_the_last_counts() {
        let args = ["--port", "80", "--target=kv:8080", "--port=81"];
        let options = Options::parse(args, &["port", "target"]).unwrap();
        assert_eq!(options.value("port", 1u16), Ok(81));
        assert_eq!(options.text("target"), Some("kv:8080"));
        assert_eq!(options.value("seed", 7u64), Ok(7));
    }

    #[test]
    fn mistakes_are_named() {
        let parse = |args: &[&'static str]| Options::parse(args.iter().copied(), &["port"]);
        assert_eq!(parse(&["80"]).unwrap_err(), OptionError::Unknown("80"));
        assert_eq!(parse(&["--prot", "80"]).unwrap_err(), OptionError::Unknown("--prot"));
        assert_eq!(parse(&["--port"]).unwrap_err(), OptionError::NoValue("port"));
        let options = parse(&["--port", "99999"]).unwrap();
        assert_eq!(options.value("port", 1u16), Err(OptionError::Value("port", "99999")));
    }
}
