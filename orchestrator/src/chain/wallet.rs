//! Transactions of one account, one after the other.
//!
//! Whoever is killed between a transaction and its receipt leaves it waiting. So a wallet opens only when
//! nothing of its account waits any more: then what the chain says is what was done, and a verb that
//! looks at the chain first does nothing twice. A lock in the state keeps two processes from sending for
//! one account at once.
//!
//! What the chain's state does not show (one payment more of the same amount) is noted in the state
//! before it is sent (`Note`), and the note is taken away when its verb has said that it is done.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use hypha_chain::client::{ClientError, Receipt};
use hypha_chain::contracts::GridToken;
use hypha_chain::embedded::Call;
use hypha_chain::key::Signature;
use hypha_chain::message::{Permit, Reader, digest};
use hypha_chain::remote::RemoteError;
use hypha_chain::transaction::{Signed, Transaction, TransactionError};
use hypha_chain::{Address, B256, Bytes, SolCall, U256, keccak256};
use serde::{Deserialize, Serialize};

use super::failure::Failure;
use super::reach::{ChainArguments, Reach};
use super::refusal::Refusal;
use crate::clock::Clock;
use crate::keys::arguments::KeyArguments;
use crate::keys::signer::Signer;
use crate::keys::{self, KeysError};
use crate::state;

const NOTE_VERSION: u32 = 1;
/// How often the chain is asked whether it has made a block.
const POLL: Duration = Duration::from_millis(200);

/// Who sends, and on which chain.
#[derive(Debug, Args)]
pub struct SendArguments {
    /// Whose account.
    #[command(flatten)]
    pub key: KeyArguments,
    /// Which chain.
    #[command(flatten)]
    pub chain: ChainArguments,
}

/// An account that sends.
pub struct Wallet<'a> {
    reach: &'a Reach,
    signer: Signer,
    /// Where the account's lock and note lie.
    folder: PathBuf,
    _lock: File,
}

/// What a run wants to be done once: a contract and a call of it, without what differs from run to run
/// (signatures, deadlines, amounts that grow with time).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted(B256);

impl Wanted {
    /// A call of a contract.
    #[must_use]
    pub fn new(to: Address, call: &impl SolCall) -> Self {
        Self(keccak256([to.as_slice(), &call.abi_encode()].concat()))
    }
}

/// A transaction that was about to be sent. A run that was killed after that finds it again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Note {
    version: u32,
    /// [`Wanted`].
    wanted: B256,
    /// The same in words.
    what: String,
    transaction: B256,
    nonce: u64,
}

impl<'a> Wallet<'a> {
    /// The account of a key, once nothing of it waits.
    ///
    /// # Errors
    /// A [`Failure`].
    pub fn open(reach: &'a Reach, arguments: &SendArguments) -> Result<Self, Failure> {
        let directory = arguments.chain.directory()?;
        let signer = keys::signer(&arguments.key, &directory)?;
        let folder = directory.join("chain/senders");
        let _lock = lock(&folder, signer.address())?;
        reach.tick()?;
        reach.check_clock()?;
        let wallet = Self { reach, signer, folder, _lock };
        wallet.settle()?;
        Ok(wallet)
    }

    /// Whose account it is.
    #[must_use]
    pub fn address(&self) -> Address {
        self.signer.address()
    }

    /// The tokens that it has, in units.
    ///
    /// # Errors
    /// A [`Failure`].
    pub fn tokens(&self) -> Result<U256, Failure> {
        self.reach.view(self.reach.suite.token, &GridToken::balanceOfCall(self.address()))
    }

    /// Refuses what the account can't pay, before anything is sent.
    ///
    /// # Errors
    /// [`Failure::Funds`] and others.
    pub fn require(&self, needs: U256) -> Result<(), Failure> {
        let (account, has) = (self.address(), self.tokens()?);
        if has < needs { Err(Failure::Funds { account, has, needs }) } else { Ok(()) }
    }

    /// Sends a call, and returns when it has done what it was to do. Only for what a verb has looked
    /// for on the chain before.
    ///
    /// # Errors
    /// [`Failure::Refused`] if the contract would refuse it: then nothing was sent. And others.
    pub fn send(
        &mut self,
        what: &str,
        to: Address,
        call: &impl SolCall,
    ) -> Result<Receipt, Failure> {
        let transaction = self.prepare(to, call)?;
        let signature = self.sign(&transaction.digest())?;
        let signed = sealed(transaction, &signature)?;
        self.reach.client.send(signed.raw())?;
        self.conclude(what, &signed)
    }

    /// Sends a call that the chain's state would not show to be done, with a note of it. What was wanted
    /// is looked for with [`Wallet::sent`] before.
    ///
    /// # Errors
    /// As [`Wallet::send`].
    pub fn send_noted(
        &mut self,
        what: &str,
        to: Address,
        call: &impl SolCall,
        wanted: Wanted,
    ) -> Result<Receipt, Failure> {
        let transaction = self.prepare(to, call)?;
        let signature = self.sign(&transaction.digest())?;
        let (nonce, signed) = (transaction.nonce, sealed(transaction, &signature)?);
        let (version, transaction, words) = (NOTE_VERSION, signed.hash(), what.to_owned());
        let wanted = wanted.0;
        self.write_note(&Note { version, wanted, what: words, transaction, nonce })?;
        match self.reach.client.send(signed.raw()) {
            Ok(_) => self.conclude(what, &signed),
            Err(error) => {
                let refused = matches!(
                    error,
                    ClientError::Submit(_) | ClientError::Remote(RemoteError::Refused { .. })
                );
                // Nobody took it, and its nonce may become another's. Without an answer, somebody may have.
                if refused {
                    self.finish()?;
                }
                Err(error.into())
            }
        }
    }

    /// What became of the transaction of an earlier run that wanted the same and was killed before
    /// [`Wallet::finish`].
    ///
    /// # Errors
    /// A [`Failure`].
    pub fn sent(&self, wanted: Wanted) -> Result<Option<Receipt>, Failure> {
        let Some(note) = self.read_note()? else { return Ok(None) };
        let Note { what, transaction, nonce, .. } = &note;
        let next = self.reach.client.settled_nonce(self.address())?;
        // Whoever told that nonce has the signature too, and can send it when its time comes.
        if next < *nonce && note.wanted == wanted.0 {
            let (what, transaction, nonce) = (what.clone(), *transaction, *nonce);
            let note = self.note_path();
            return Err(Failure::Ahead { what, transaction, nonce, next, note });
        }
        // Nothing of the account waits: a transaction whose nonce is not used up is in no block, and the
        // next one that is sent takes its place for good.
        if next <= *nonce {
            return Ok(None);
        }
        if note.wanted != wanted.0 {
            say(&format!("before that, an interrupted run has sent: {what} ({transaction:#x})"));
            return Ok(None);
        }
        let receipt = self.wait(what, transaction)?;
        if receipt.succeeded {
            say(&format!("{what}: an interrupted run has done it in block {}", receipt.block));
        }
        Ok(receipt.succeeded.then_some(receipt))
    }

    /// Forgets what was sent, for whoever asked for it was told so.
    ///
    /// # Errors
    /// A [`Failure`].
    pub fn finish(&self) -> Result<(), Failure> {
        match std::fs::remove_file(self.note_path()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }

    fn note_path(&self) -> PathBuf {
        self.folder.join(format!("{:#x}.{}.sent", self.address(), self.reach.chain_id))
    }

    fn read_note(&self) -> Result<Option<Note>, Failure> {
        let path = self.note_path();
        let bad = |reason: String| Failure::File {
            path: path.clone(),
            reason: format!("{reason}; see `hypha balance`, then delete it"),
        };
        let text = match std::fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            text => text?,
        };
        let note: Note = serde_json::from_slice(&text).map_err(|error| bad(error.to_string()))?;
        if note.version != NOTE_VERSION {
            return Err(bad(format!("version {}", note.version)));
        }
        Ok(Some(note))
    }

    fn write_note(&self, note: &Note) -> Result<(), Failure> {
        let text = serde_json::to_vec(note).map_err(io::Error::from)?;
        Ok(state::write_whole(&self.note_path(), &text)?)
    }

    fn prepare(&self, to: Address, call: &impl SolCall) -> Result<Transaction, Failure> {
        let data: Bytes = call.abi_encode().into();
        Ok(self.reach.client.prepare(self.address(), Some(to), data)?)
    }

    /// Waits until a transaction has done what it was to do.
    fn conclude(&self, what: &str, signed: &Signed) -> Result<Receipt, Failure> {
        let hash = signed.hash();
        say(&format!("{what}: transaction {hash:#x}"));
        let receipt = self.wait(what, &hash)?;
        if receipt.succeeded {
            say(&format!("{what}: done in block {}", receipt.block));
            return Ok(receipt);
        }
        let transaction = signed.transaction();
        let (from, data) = (self.address(), transaction.data.clone());
        let call = Call { from, to: transaction.to.to().copied(), data, ..Call::default() };
        match self.reach.client.call(&call) {
            Err(ClientError::Reverted(output)) => Err(Refusal::read(&output).into()),
            Err(error) => Err(error.into()),
            Ok(_) => Err(Failure::Failed { what: what.to_owned(), hash }),
        }
    }

    /// Lets a contract take tokens of the account, unless it may take as many already.
    ///
    /// # Errors
    /// A [`Failure`].
    pub fn allow(&mut self, spender: Address, amount: U256) -> Result<(), Failure> {
        let token = self.reach.suite.token;
        let allowed = GridToken::allowanceCall { _0: self.address(), _1: spender };
        if self.reach.view(token, &allowed)? < amount {
            let call = GridToken::approveCall { spender, amount };
            self.send("allow the tokens to be taken", token, &call)?;
        }
        Ok(())
    }

    /// Lets a contract take tokens of the account, by signature.
    ///
    /// # Errors
    /// A [`Failure`].
    pub fn permit(
        &mut self,
        spender: Address,
        value: U256,
        deadline: u64,
    ) -> Result<Signature, Failure> {
        let (owner, token) = (self.address(), self.reach.suite.token);
        let nonce = self.reach.view(token, &GridToken::noncesCall(owner))?;
        let permit = Permit { owner, spender, value, nonce, deadline: U256::from(deadline) };
        let domain = Reader::Token.domain(self.reach.chain_id, token);
        self.sign(&digest(&permit, &domain))
    }

    fn sign(&mut self, digest: &B256) -> Result<Signature, Failure> {
        Ok(self.signer.sign(digest).map_err(KeysError::from)?)
    }

    fn wait(&self, what: &str, hash: &B256) -> Result<Receipt, Failure> {
        let found = self.patiently(|| Ok(self.reach.client.receipt(hash)?))?;
        found.ok_or_else(|| Failure::Waiting {
            what: what.to_owned(),
            hash: *hash,
            secs: self.reach.timeout().as_secs(),
        })
    }

    /// Waits until the blocks have all that the account has sent.
    fn settle(&self) -> Result<(), Failure> {
        let account = self.address();
        let waiting = || -> Result<u64, Failure> {
            let settled = self.reach.client.settled_nonce(account)?;
            Ok(self.reach.client.nonce(account)?.saturating_sub(settled))
        };
        if waiting()? == 0 {
            return Ok(());
        }
        say(&format!("transactions of {account} wait for a block"));
        if self.patiently(|| Ok((waiting()? == 0).then_some(())))?.is_some() {
            return Ok(());
        }
        Err(Failure::Pending { account, count: waiting()?, secs: self.reach.timeout().as_secs() })
    }

    /// Asks until there is an answer, or it has taken too long. A node that is away for a moment is
    /// asked again: what was sent may be done meanwhile.
    fn patiently<T>(
        &self,
        mut ask: impl FnMut() -> Result<Option<T>, Failure>,
    ) -> Result<Option<T>, Failure> {
        let clock = Clock::start();
        let limit_ns = u64::try_from(self.reach.timeout().as_nanos()).unwrap_or(u64::MAX);
        loop {
            self.reach.tick()?;
            let is_over = clock.now_ns() >= limit_ns;
            match ask() {
                Ok(Some(answer)) => return Ok(Some(answer)),
                Ok(None) if is_over => return Ok(None),
                Err(Failure::Client(ClientError::Remote(_))) if !is_over => {}
                Err(error) => return Err(error),
                Ok(None) => {}
            }
            std::thread::sleep(POLL);
        }
    }
}

fn sealed(transaction: Transaction, signature: &Signature) -> Result<Signed, Failure> {
    let bad = |error: TransactionError| Failure::Client(ClientError::Submit(error.into()));
    transaction.signed(signature).map_err(bad)
}

/// One process at a time sends for an account.
fn lock(folder: &Path, account: Address) -> Result<File, Failure> {
    state::create_directory(folder)?;
    let held = state::lock(&folder.join(format!("{account:#x}")))?;
    held.ok_or(Failure::Busy(account))
}

/// Progress is for people and goes to standard error. Whoever does not listen misses nothing that is
/// needed, and what was sent is not to be left alone for that.
pub(crate) fn say(line: &str) {
    let _gone = writeln!(io::stderr().lock(), "{line}");
}
