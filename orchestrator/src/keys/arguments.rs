//! The verbs of `hypha key` and their options, and how other verbs are told whose key to use.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use hypha_chain::Address;

use super::passphrase::PassphraseSource;
use crate::state::Common;

/// What can be done with keys for the chain.
#[derive(Debug, Subcommand)]
pub enum KeyVerb {
    /// Makes a key; its address is printed, the key never is.
    #[command(after_help = "Examples:\n  hypha key create\n  \
        hypha key create farm --passphrase\n  \
        hypha key create farm --passphrase-file secret.txt --json | jq -r .address")]
    Create {
        /// Its name in the state.
        #[arg(default_value = super::DEFAULT)]
        name: String,
        /// Ask for a passphrase at the terminal.
        #[arg(long)]
        passphrase: bool,
        /// Where a passphrase is.
        #[command(flatten)]
        source: PassphraseArguments,
        /// What all verbs take.
        #[command(flatten)]
        common: Common,
    },
    /// Says whose keys are here.
    #[command(after_help = "Examples:\n  hypha key show\n  hypha key show farm --json")]
    Show {
        /// A key's name, or its file with a slash; without one, all in the state.
        name: Option<String>,
        /// What all verbs take.
        #[command(flatten)]
        common: Common,
    },
    /// Takes a key of 64 hexadecimal digits, as other tools write them.
    #[command(after_help = "Examples:\n  hypha key import farm digits.txt\n  \
        cast wallet decrypt-keystore farm | grep -o '0x.*' | hypha key import farm - --passphrase")]
    Import {
        /// Its name in the state.
        name: String,
        /// The file with the digits; - for standard input.
        file: PathBuf,
        /// Ask for a passphrase at the terminal.
        #[arg(long)]
        passphrase: bool,
        /// Where a passphrase is.
        #[command(flatten)]
        source: PassphraseArguments,
        /// What all verbs take.
        #[command(flatten)]
        common: Common,
    },
    /// Writes a key as 64 hexadecimal digits to a new file with mode 0600: whoever has that has the key.
    #[command(after_help = "Example:\n  hypha key export farm digits.txt")]
    Export {
        /// A key's name, or its file with a slash.
        name: String,
        /// The file that is to be made.
        file: PathBuf,
        /// Where its passphrase is.
        #[command(flatten)]
        source: PassphraseArguments,
        /// What all verbs take.
        #[command(flatten)]
        common: Common,
    },
}

/// Where a passphrase is.
#[derive(Debug, Clone, Default, Args)]
pub struct PassphraseArguments {
    /// The passphrase is the first line of this file.
    #[arg(long, value_name = "FILE", conflicts_with = "passphrase_fd")]
    pub passphrase_file: Option<PathBuf>,
    /// The passphrase is the first line of what is inherited under this number.
    #[arg(long, value_name = "NUMBER")]
    pub passphrase_fd: Option<u32>,
}

impl PassphraseArguments {
    /// Where it is if nothing is said: at the terminal.
    #[must_use]
    pub fn source(&self) -> PassphraseSource {
        match (&self.passphrase_file, self.passphrase_fd) {
            (Some(path), _) => PassphraseSource::File(path.clone()),
            (None, Some(number)) => PassphraseSource::Descriptor(number),
            (None, None) => PassphraseSource::Terminal,
        }
    }

    /// Whether one is named.
    #[must_use]
    pub fn is_given(&self) -> bool {
        self.passphrase_file.is_some() || self.passphrase_fd.is_some()
    }
}

/// Whose key signs.
#[derive(Debug, Clone, Default, Args)]
pub struct KeyArguments {
    /// The key that signs: its name in the state, or its file with a slash [default: default, or the
    /// account of the chain in this state].
    #[arg(long, value_name = "NAME|FILE", conflicts_with = "signer")]
    pub key: Option<String>,
    /// A program that signs instead (docs/keys.md says how it is asked).
    #[arg(long, value_name = "PROGRAM")]
    pub signer: Option<PathBuf>,
    /// Where the key's passphrase is.
    #[command(flatten)]
    pub passphrase: PassphraseArguments,
}

/// Whose account is looked at. Nothing is signed, so no passphrase is asked for.
#[derive(Debug, Clone, Default, Args)]
pub struct AccountArguments {
    /// The account's address [default: the one of the key].
    #[arg(long, value_name = "ADDRESS", conflicts_with_all = ["key", "signer"], value_parser = parse_address)]
    pub account: Option<Address>,
    /// The key whose account it is: its name in the state, or its file with a slash [default: default,
    /// or the account of the chain in this state].
    #[arg(long, value_name = "NAME|FILE", conflicts_with = "signer")]
    pub key: Option<String>,
    /// A program that has the account's key.
    #[arg(long, value_name = "PROGRAM")]
    pub signer: Option<PathBuf>,
}

/// Reads an address; the capitals of one that has some are its checksum (EIP-55).
///
/// # Errors
/// What is wrong with it.
pub fn parse_address(text: &str) -> Result<Address, String> {
    let bytes = super::signer::hex_bytes::<20>(text)
        .ok_or_else(|| "an address is written as 0x and 40 hexadecimal digits".to_owned())?;
    let address = Address::from(bytes);
    let digits = text.get(2..).unwrap_or_default();
    let has_checksum = digits != digits.to_lowercase() && digits != digits.to_uppercase();
    if has_checksum && address.to_checksum(None) != text {
        return Err("its capitals are not its checksum: a digit is wrong".to_owned());
    }
    Ok(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_with_a_wrong_digit_is_told_by_its_capitals() {
        // Of EIP-55.
        let text = "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed";
        let address = parse_address(text).unwrap();
        assert_eq!(address.to_string(), text);
        assert_eq!(parse_address(&text.to_lowercase()), Ok(address));
        for bad in ["0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAee", "0x5a", &text[2..], "hypha", ""] {
            assert!(parse_address(bad).is_err(), "{bad:?}");
        }
    }
}
