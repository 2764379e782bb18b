//! Transactions from anybody.
//!
//! The first byte says what the rest is: 0 an encoding as it travels; otherwise the fields of a
//! transaction, which is signed. What is read is what was sent.

use hypha_chain::key::Key;
use hypha_chain::transaction::{Signed, Transaction};
use hypha_chain::{Address, Bytes, TxKind, U256};

use crate::bytes::Input;

/// True if a transaction was taken.
///
/// # Panics
/// A promise is broken.
pub fn check(data: &[u8]) -> bool {
    let Ok(key) = Key::from_bytes(&[5; 32]) else { panic!("a key that is in range") };
    let mut input = Input(data);
    if input.byte() != 0 {
        let sent = transaction(&mut input).sign(&key);
        let Ok(read) = Signed::decode(sent.raw()) else { panic!("what was signed is refused") };
        assert_eq!(read, sent);
        assert_eq!(read.sender(), key.address());
        return true;
    }
    let Ok(read) = Signed::decode(input.0) else { return false };
    assert_eq!(read.raw().as_ref(), input.0);
    assert!(read.signature().is_some());
    // Each field has one encoding: signed anew, all but the signature is the same.
    let again = read.transaction().clone().sign(&key);
    assert_eq!(again.transaction(), read.transaction());
    let Ok(reread) = Signed::decode(again.raw()) else { panic!("what was read is refused") };
    assert_eq!(reread.transaction(), read.transaction());
    true
}

fn transaction(input: &mut Input<'_>) -> Transaction {
    let to = match input.byte() {
        0 => TxKind::Create,
        byte => TxKind::Call(Address::repeat_byte(byte)),
    };
    Transaction {
        chain_id: u64::from(input.u16()),
        nonce: u64::from(input.u16()),
        max_priority_fee: u128::from(input.u16()),
        max_fee: u128::from(input.u16()) << 64,
        gas_limit: u64::from(input.u16()) << 32,
        to,
        value: U256::from(input.u16()) << 200,
        data: Bytes::copy_from_slice(input.0),
        access_list: Default::default(),
    }
}
