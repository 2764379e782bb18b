//! Numbers and bytes as JSON-RPC writes them.

use alloy_primitives::{Address, B256, Bytes, U256, hex};
use serde_json::Value;

/// A number: no leading zeros.
pub(crate) fn quantity(number: u64) -> Value {
    Value::String(format!("{number:#x}"))
}

/// A number of up to 256 bits.
pub(crate) fn quantity_wide(number: &U256) -> Value {
    Value::String(format!("{number:#x}"))
}

/// Bytes, two digits each.
pub(crate) fn data(bytes: &[u8]) -> Value {
    Value::String(hex::encode_prefixed(bytes))
}

/// A number, of at most 64 bits. Leading zeros are let pass: some nodes write them.
pub(crate) fn read_quantity(value: &Value) -> Option<u64> {
    let digits = value.as_str()?.strip_prefix("0x")?;
    is_hex(digits, 64).then(|| u64::from_str_radix(digits, 16).ok()).flatten()
}

/// A number of at most 256 bits.
pub(crate) fn read_quantity_wide(value: &Value) -> Option<U256> {
    let digits = value.as_str()?.strip_prefix("0x")?;
    is_hex(digits, 64).then(|| U256::from_str_radix(digits, 16).ok()).flatten()
}

/// Bytes.
pub(crate) fn read_data(value: &Value) -> Option<Bytes> {
    let digits = value.as_str()?.strip_prefix("0x")?;
    hex::decode(digits).ok().map(Bytes::from)
}

/// A hash.
pub(crate) fn read_hash(value: &Value) -> Option<B256> {
    let bytes = read_data(value)?;
    B256::try_from(bytes.as_ref()).ok()
}

/// An address.
pub(crate) fn read_address(value: &Value) -> Option<Address> {
    let bytes = read_data(value)?;
    Address::try_from(bytes.as_ref()).ok()
}

/// `from_str_radix` takes a sign and underscores, JSON-RPC does not.
fn is_hex(digits: &str, len_max: usize) -> bool {
    (1..=len_max).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Value {
        Value::String(text.to_owned())
    }

    #[test]
    fn numbers_have_no_leading_zeros_and_bytes_have_all() {
        assert_eq!(quantity(0), "0x0");
        assert_eq!(quantity(255), "0xff");
        assert_eq!(quantity_wide(&U256::MAX), text(&format!("0x{}", "f".repeat(64))));
        assert_eq!(data(&[0, 1]), "0x0001");
    }

    #[test]
    fn what_is_no_number_is_refused() {
        for wrong in ["", "0x", "1", "0x+1", "0x1_0", "0xg", "0x10000000000000000", "x1"] {
            assert_eq!(read_quantity(&text(wrong)), None, "{wrong}");
        }
        assert_eq!(read_quantity(&Value::from(1)), None);
        assert_eq!(read_quantity(&text("0x00ff")), Some(255));
        let long = format!("0x{}", "1".repeat(65));
        assert_eq!(read_quantity_wide(&text(&long)), None);
    }

    #[test]
    fn bytes_of_another_length_are_no_address() {
        assert_eq!(read_address(&data(&[1; 19])), None);
        assert_eq!(read_address(&data(&[1; 20])), Some(Address::repeat_byte(1)));
        assert_eq!(read_hash(&text("0x123")), None);
    }
}
