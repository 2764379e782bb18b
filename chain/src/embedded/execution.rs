//! What the EVM does with a transaction or a call.

use alloy_primitives::{Address, Bytes, Log, TxKind, U256};
use revm::context::result::{EVMError, ExecutionResult, InvalidTransaction, Output};
use revm::context::{BlockEnv, CfgEnv, Context, TxEnv};
use revm::context_interface::block::BlobExcessGasAndPrice;
use revm::primitives::hardfork::SpecId;
use revm::{DatabaseCommit, ExecuteEvm, MainBuilder, MainContext};

use super::block::{BlockHeader, StoredReceipt};
use super::state::State;
use super::{Chain, ChainError, TRANSACTION_GAS_MAX};
use crate::transaction::Signed;

/// The rules, pinned: later ones would change what contracts cost.
const RULES: SpecId = SpecId::OSAKA;
/// What a receipt keeps of the output.
const OUTPUT_MAX: usize = 4096;

/// A call that changes nothing.
#[derive(Debug, Clone, Default)]
pub struct Call {
    /// Who calls.
    pub from: Address,
    /// Who is called; nobody for a creation.
    pub to: Option<Address>,
    /// Call data.
    pub data: Bytes,
    /// Wei that go along.
    pub value: U256,
    /// The most gas; none for as much as a transaction may use.
    pub gas: Option<u64>,
}

/// What a call came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Whether it did what was asked.
    pub succeeded: bool,
    /// What it returned, or why it reverted, as contracts encode it.
    pub output: Bytes,
    /// The gas that it used.
    pub gas_used: u64,
    /// What it logged.
    pub logs: Vec<Log>,
    /// The contract that it made.
    pub contract: Option<Address>,
}

/// What happens to a waiting transaction.
pub(super) enum Verdict {
    Executed(StoredReceipt),
    /// Its nonce is not due, or the block is full.
    Later,
    /// It can never be executed any more.
    Never,
}

impl Chain {
    /// Executes a call on the newest block's state; nothing of it stays.
    ///
    /// # Errors
    /// [`ChainError`] if the EVM itself failed.
    pub fn call(&mut self, call: &Call) -> Result<Result<Outcome, String>, ChainError> {
        let gas_limit = call.gas.unwrap_or(TRANSACTION_GAS_MAX).min(TRANSACTION_GAS_MAX);
        let env = TxEnv {
            caller: call.from,
            gas_limit,
            kind: call.to.map_or(TxKind::Create, TxKind::Call),
            value: call.value,
            data: call.data.clone(),
            chain_id: Some(self.genesis.chain_id),
            ..TxEnv::default()
        };
        let block = block_env(&self.head, self.genesis.gas_limit, 0);
        let mut config = config(self.genesis.chain_id);
        config.disable_nonce_check = true;
        match transact(&mut self.state, config, block, env) {
            Ok((result, _)) => Ok(Ok(outcome(result))),
            Err(EVMError::Transaction(error)) => Ok(Err(error.to_string())),
            Err(error) => Err(failed(error)),
        }
    }

    pub(super) fn execute(
        &mut self,
        signed: &Signed,
        header: &BlockHeader,
        gas_left: u64,
    ) -> Result<Verdict, ChainError> {
        let transaction = signed.transaction();
        if transaction.gas_limit > gas_left {
            return Ok(Verdict::Later);
        }
        let env = TxEnv {
            tx_type: 2,
            caller: signed.sender(),
            gas_limit: transaction.gas_limit,
            gas_price: transaction.max_fee,
            kind: transaction.to,
            value: transaction.value,
            data: transaction.data.clone(),
            nonce: transaction.nonce,
            chain_id: Some(transaction.chain_id),
            access_list: transaction.access_list.clone(),
            gas_priority_fee: Some(transaction.max_priority_fee),
            ..TxEnv::default()
        };
        let block = block_env(header, self.genesis.gas_limit, self.genesis.base_fee);
        match transact(&mut self.state, config(self.genesis.chain_id), block, env) {
            Ok((result, changes)) => {
                self.state.commit(changes);
                Ok(Verdict::Executed(receipt(signed.sender(), outcome(result))))
            }
            Err(EVMError::Transaction(InvalidTransaction::NonceTooHigh { .. })) => {
                Ok(Verdict::Later)
            }
            Err(EVMError::Transaction(_)) => Ok(Verdict::Never),
            Err(error) => Err(failed(error)),
        }
    }
}

type Failed = EVMError<super::state::StateError>;
type Done = (ExecutionResult, revm::state::EvmState);

fn transact(
    state: &mut State,
    config: CfgEnv,
    block: BlockEnv,
    env: TxEnv,
) -> Result<Done, Failed> {
    let context = Context::mainnet().with_db(state).with_cfg(config).with_block(block);
    let done = context.build_mainnet().transact(env)?;
    Ok((done.result, done.state))
}

fn config(chain_id: u64) -> CfgEnv {
    CfgEnv::new_with_spec(RULES).with_chain_id(chain_id)
}

fn block_env(header: &BlockHeader, gas_limit: u64, base_fee: u64) -> BlockEnv {
    BlockEnv {
        number: U256::from(header.number),
        beneficiary: Address::ZERO,
        timestamp: U256::from(header.timestamp),
        gas_limit,
        basefee: base_fee,
        difficulty: U256::ZERO,
        prevrandao: Some(header.prevrandao),
        blob_excess_gas_and_price: Some(BlobExcessGasAndPrice::new(0, 1)),
        slot_num: 0,
    }
}

fn outcome(result: ExecutionResult) -> Outcome {
    let (succeeded, gas_used) = (result.is_success(), result.tx_gas_used());
    match result {
        ExecutionResult::Success { logs, output, .. } => {
            let (output, contract) = match output {
                Output::Call(bytes) => (bytes, None),
                Output::Create(bytes, contract) => (bytes, contract),
            };
            Outcome { succeeded, output, gas_used, logs, contract }
        }
        ExecutionResult::Revert { output, .. } => {
            Outcome { succeeded, output, gas_used, logs: Vec::new(), contract: None }
        }
        ExecutionResult::Halt { .. } => {
            Outcome { succeeded, output: Bytes::new(), gas_used, logs: Vec::new(), contract: None }
        }
    }
}

fn receipt(sender: Address, outcome: Outcome) -> StoredReceipt {
    // A new contract's code is in the state; nobody needs it twice.
    let kept = if outcome.contract.is_some() { 0 } else { outcome.output.len().min(OUTPUT_MAX) };
    StoredReceipt {
        succeeded: outcome.succeeded,
        gas_used: outcome.gas_used,
        sender,
        contract: outcome.contract.unwrap_or_default(),
        output: outcome.output.slice(..kept),
        logs: outcome.logs,
    }
}

fn failed(error: Failed) -> ChainError {
    match error {
        EVMError::Database(error) => ChainError::Store(error.0),
        other => ChainError::Evm(other.to_string()),
    }
}
