//! EIP-1559 transactions: what senders sign, as RLP.

use alloy_primitives::{Address, B256, Bytes, TxKind, U256, keccak256};
use alloy_rlp::{Decodable, Encodable, Header};
use revm::context::transaction::AccessList;

use crate::key::{Key, Signature};

/// The longest encoding that is looked at, in bytes. Ethereum's own nodes have the same limit.
pub const LEN_MAX: usize = 128 * 1024;

/// The type's byte in front of the RLP.
const TYPE: u8 = 2;

/// What a sender wants done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transaction {
    /// The chain that it is for.
    pub chain_id: u64,
    /// How many the sender has sent before.
    pub nonce: u64,
    /// The tip, in wei per gas.
    pub max_priority_fee: u128,
    /// The most that is paid, in wei per gas.
    pub max_fee: u128,
    /// The most gas that it may use.
    pub gas_limit: u64,
    /// Whom it calls; a creation names nobody.
    pub to: TxKind,
    /// Wei that go along.
    pub value: U256,
    /// Call data, or a contract's initialisation.
    pub data: Bytes,
    /// Places that it announces to touch (EIP-2930).
    pub access_list: AccessList,
}

/// A transaction with its signature, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    transaction: Transaction,
    sender: Address,
    hash: B256,
    raw: Bytes,
}

/// Why bytes are no transaction that we take.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TransactionError {
    /// More than [`LEN_MAX`] bytes.
    #[error("the transaction is longer than 131072 bytes")]
    TooLong,
    /// Another type.
    #[error("only EIP-1559 transactions (type 2) are taken")]
    Type,
    /// Not the RLP of ten fields.
    #[error("the transaction is malformed: {0}")]
    Malformed(alloy_rlp::Error),
    /// The signature is nobody's, or the mirror image of one.
    #[error("the transaction's signature is invalid")]
    Signature,
}

impl Transaction {
    /// Signs it.
    #[must_use]
    pub fn sign(self, key: &Key) -> Signed {
        let signature = key.sign(&self.digest());
        self.sealed(&signature, key.address())
    }

    /// Takes a signature over [`Transaction::digest`] that was made elsewhere.
    ///
    /// # Errors
    /// [`TransactionError::Signature`] if it is nobody's.
    pub fn signed(self, signature: &Signature) -> Result<Signed, TransactionError> {
        let sender = signature.recover(&self.digest()).ok_or(TransactionError::Signature)?;
        Ok(self.sealed(signature, sender))
    }

    fn sealed(self, signature: &Signature, sender: Address) -> Signed {
        let mut fields = Vec::new();
        self.encode_fields(&mut fields);
        signature.y_is_odd.encode(&mut fields);
        U256::from_be_bytes(signature.r.0).encode(&mut fields);
        U256::from_be_bytes(signature.s.0).encode(&mut fields);
        let raw = typed_list(&fields);
        Signed { hash: keccak256(&raw), sender, transaction: self, raw: raw.into() }
    }

    /// What is signed.
    #[must_use]
    pub fn digest(&self) -> B256 {
        let mut fields = Vec::new();
        self.encode_fields(&mut fields);
        keccak256(typed_list(&fields))
    }

    fn encode_fields(&self, out: &mut Vec<u8>) {
        self.chain_id.encode(out);
        self.nonce.encode(out);
        self.max_priority_fee.encode(out);
        self.max_fee.encode(out);
        self.gas_limit.encode(out);
        self.to.encode(out);
        self.value.encode(out);
        self.data.encode(out);
        self.access_list.encode(out);
    }

    fn decode_fields(from: &mut &[u8]) -> alloy_rlp::Result<Self> {
        Ok(Self {
            chain_id: Decodable::decode(from)?,
            nonce: Decodable::decode(from)?,
            max_priority_fee: Decodable::decode(from)?,
            max_fee: Decodable::decode(from)?,
            gas_limit: Decodable::decode(from)?,
            to: Decodable::decode(from)?,
            value: Decodable::decode(from)?,
            data: Decodable::decode(from)?,
            access_list: Decodable::decode(from)?,
        })
    }
}

impl Signed {
    /// Reads a transaction as it travels, and finds out who signed it.
    ///
    /// # Errors
    /// [`TransactionError`].
    pub fn decode(raw: &[u8]) -> Result<Self, TransactionError> {
        if raw.len() > LEN_MAX {
            return Err(TransactionError::TooLong);
        }
        let Some((&TYPE, mut rest)) = raw.split_first() else {
            return Err(TransactionError::Type);
        };
        let mut payload =
            Header::decode_bytes(&mut rest, true).map_err(TransactionError::Malformed)?;
        let (transaction, signature) =
            decode_signed(&mut payload).map_err(TransactionError::Malformed)?;
        if !rest.is_empty() || !payload.is_empty() {
            return Err(TransactionError::Malformed(alloy_rlp::Error::UnexpectedLength));
        }
        let sender = signature.recover(&transaction.digest()).ok_or(TransactionError::Signature)?;
        let hash = keccak256(raw);
        Ok(Self { transaction, sender, hash, raw: Bytes::copy_from_slice(raw) })
    }

    /// What the sender wants done.
    #[must_use]
    pub fn transaction(&self) -> &Transaction {
        &self.transaction
    }

    /// Who signed it.
    #[must_use]
    pub fn sender(&self) -> Address {
        self.sender
    }

    /// Its name.
    #[must_use]
    pub fn hash(&self) -> B256 {
        self.hash
    }

    /// Its encoding.
    #[must_use]
    pub fn raw(&self) -> &Bytes {
        &self.raw
    }

    /// The signature, out of the encoding.
    #[must_use]
    pub fn signature(&self) -> Option<Signature> {
        let mut rest = self.raw.get(1..)?;
        let mut payload = Header::decode_bytes(&mut rest, true).ok()?;
        decode_signed(&mut payload).ok().map(|(_, signature)| signature)
    }
}

fn decode_signed(payload: &mut &[u8]) -> alloy_rlp::Result<(Transaction, Signature)> {
    let transaction = Transaction::decode_fields(payload)?;
    let y_is_odd = bool::decode(payload)?;
    let r = B256::from(U256::decode(payload)?);
    let s = B256::from(U256::decode(payload)?);
    Ok((transaction, Signature { r, s, y_is_odd }))
}

fn typed_list(fields: &[u8]) -> Vec<u8> {
    let mut out = vec![TYPE];
    Header { list: true, payload_length: fields.len() }.encode(&mut out);
    out.extend_from_slice(fields);
    out
}

#[cfg(test)]
mod tests {
    use alloy_primitives::{address, hex};

    use super::*;

    fn key() -> Key {
        Key::from_bytes(&[0x46; 32]).unwrap()
    }

    fn transaction() -> Transaction {
        Transaction {
            chain_id: 31337,
            nonce: 7,
            max_priority_fee: 0,
            max_fee: 1_000_000_000,
            gas_limit: 100_000,
            to: TxKind::Call(address!("00000000000000000000000000000000000000aa")),
            value: U256::from(5),
            data: hex!("01020304").into(),
            access_list: AccessList::default(),
        }
    }

    #[test]
    fn what_is_signed_comes_back_with_its_sender() {
        let signed = transaction().sign(&key());
        let read = Signed::decode(signed.raw()).unwrap();
        assert_eq!(read, signed);
        assert_eq!(read.sender(), key().address());
        assert_eq!(read.signature(), signed.signature());
    }

    #[test]
    fn a_signature_made_elsewhere_makes_the_same_transaction() {
        let signature = key().sign(&transaction().digest());
        assert_eq!(transaction().signed(&signature).unwrap(), transaction().sign(&key()));
    }

    #[test]
    fn every_shortened_or_lengthened_encoding_is_refused() {
        let signed = transaction().sign(&key());
        for len in 0..signed.raw().len() {
            assert!(Signed::decode(&signed.raw()[..len]).is_err(), "{len} bytes were taken");
        }
        let mut long = signed.raw().to_vec();
        long.push(0);
        assert!(Signed::decode(&long).is_err());
        assert_eq!(Signed::decode(&vec![2; LEN_MAX + 1]), Err(TransactionError::TooLong));
    }

    #[test]
    fn a_changed_byte_never_keeps_the_sender() {
        let signed = transaction().sign(&key());
        for at in 0..signed.raw().len() {
            let mut bytes = signed.raw().to_vec();
            bytes[at] ^= 1;
            if let Ok(read) = Signed::decode(&bytes) {
                assert_ne!(read.sender(), key().address(), "byte {at}");
            }
        }
    }

    #[test]
    fn other_types_are_named_as_the_reason() {
        assert_eq!(Signed::decode(&[]), Err(TransactionError::Type));
        assert_eq!(Signed::decode(&[0xf8, 0x6b]), Err(TransactionError::Type));
        assert_eq!(Signed::decode(&[3, 0xc0]), Err(TransactionError::Type));
    }
}
