//! One question, one answer: which methods there are and what they say.

use std::sync::Mutex;

use alloy_primitives::{Address, B256, Bytes, U256};
use serde_json::{Map, Value, json};

use super::json::{
    data, quantity, quantity_wide, read_address, read_data, read_hash, read_quantity,
    read_quantity_wide,
};
use super::turns::Turns;
use crate::client::{locked, with_reserve};
use crate::contracts::explain;
use crate::embedded::{BlockHeader, Call, Chain, Filter, FoundLog, Outcome, Receipt};
use crate::transaction::Signed;

/// Questions of one batch.
const BATCH_MAX: usize = 100;
/// All answers of a batch together, in bytes of JSON.
const BATCH_LEN_MAX: usize = 16 * 1024 * 1024;
/// Addresses, or values of a topic, in one filter.
const LIST_MAX: usize = 256;

/// Why a question has no answer: the error's code, its words, and what a contract said.
struct Refusal {
    code: i64,
    message: String,
    data: Option<Bytes>,
}

type Answer = Result<Value, Refusal>;

impl Refusal {
    fn parameters(message: &str) -> Self {
        Self { code: -32602, message: message.to_owned(), data: None }
    }

    fn failed(error: impl std::fmt::Display) -> Self {
        Self { code: -32000, message: error.to_string(), data: None }
    }
}

/// The answer to the body of a request, whatever it is; `None` if it wants none (notifications).
#[must_use]
pub fn answer(chain: &Mutex<Chain>, turns: &Turns, body: &[u8]) -> Option<Value> {
    let Ok(question) = serde_json::from_slice::<Value>(body) else {
        let refusal = Refusal { code: -32700, message: "this is no JSON".to_owned(), data: None };
        return Some(envelope(&Value::Null, Err(refusal)));
    };
    match question {
        Value::Array(batch) if batch.is_empty() || batch.len() > BATCH_MAX => {
            let message = format!("a batch has 1 to {BATCH_MAX} questions");
            Some(envelope(&Value::Null, Err(Refusal { code: -32600, message, data: None })))
        }
        Value::Array(batch) => {
            let answers = several(chain, turns, &batch);
            (!answers.is_empty()).then_some(Value::Array(answers))
        }
        question => one(chain, turns, &question),
    }
}

/// The answers of a batch: a few bytes of question may ask for megabytes each.
fn several(chain: &Mutex<Chain>, turns: &Turns, batch: &[Value]) -> Vec<Value> {
    let (mut answers, mut len) = (Vec::new(), 0_usize);
    for question in batch {
        if len < BATCH_LEN_MAX {
            let answer = one(chain, turns, question);
            len = len.saturating_add(answer.as_ref().map_or(0, |it| it.to_string().len()));
            answers.extend(answer);
        } else if let Some(id) = question.get("id") {
            let message = "the answers of the batch are too long: ask for less".to_owned();
            answers.push(envelope(id, Err(Refusal { code: -32005, message, data: None })));
        }
    }
    answers
}

fn one(chain: &Mutex<Chain>, turns: &Turns, question: &Value) -> Option<Value> {
    let Some(method) = question.get("method").and_then(Value::as_str) else {
        let message = "this is no JSON-RPC request".to_owned();
        return Some(envelope(&Value::Null, Err(Refusal { code: -32600, message, data: None })));
    };
    let id = question.get("id")?;
    let none = Vec::new();
    let parameters = match question.get("params") {
        None | Some(Value::Null) => &none,
        Some(Value::Array(list)) => list,
        Some(_) => {
            let refusal = Refusal::parameters("parameters are a list");
            return Some(envelope(id, Err(refusal)));
        }
    };
    let result = {
        let _turn = turns.wait();
        dispatch(&mut locked(chain), method, parameters)
    };
    Some(envelope(id, result))
}

fn envelope(id: &Value, answer: Answer) -> Value {
    match answer {
        Ok(result) => json!({ "jsonrpc": "2.0", "id": id, "result": result }),
        Err(refusal) => {
            let mut error = json!({ "code": refusal.code, "message": refusal.message });
            if let (Some(object), Some(bytes)) = (error.as_object_mut(), refusal.data) {
                object.insert("data".to_owned(), data(&bytes));
            }
            json!({ "jsonrpc": "2.0", "id": id, "error": error })
        }
    }
}

fn dispatch(chain: &mut Chain, method: &str, parameters: &[Value]) -> Answer {
    let parameter = |at: usize| parameters.get(at).unwrap_or(&Value::Null);
    match method {
        "web3_clientVersion" => Ok(json!(concat!("hypha/", env!("CARGO_PKG_VERSION")))),
        "net_version" => Ok(json!(chain.genesis().chain_id.to_string())),
        "eth_chainId" => Ok(quantity(chain.genesis().chain_id)),
        "eth_syncing" => Ok(json!(false)),
        "eth_accounts" => Ok(json!([])),
        "eth_blockNumber" => Ok(quantity(chain.head().number)),
        "eth_gasPrice" => Ok(quantity(chain.genesis().base_fee)),
        "eth_maxPriorityFeePerGas" => Ok(quantity(0)),
        "eth_feeHistory" => fee_history(chain, parameter(0), parameter(1)),
        "eth_getBalance" => {
            latest(chain, parameter(1))?;
            let (_, balance) = chain.account(address(parameter(0))?).map_err(Refusal::failed)?;
            Ok(quantity_wide(&balance))
        }
        "eth_getTransactionCount" => {
            let account = address(parameter(0))?;
            let nonce = match parameter(1).as_str() {
                Some("pending") => chain.next_nonce(account),
                _ => {
                    latest(chain, parameter(1))?;
                    chain.account(account).map(|(nonce, _)| nonce)
                }
            };
            nonce.map(quantity).map_err(Refusal::failed)
        }
        "eth_getCode" => {
            latest(chain, parameter(1))?;
            let code = chain.code(address(parameter(0))?).map_err(Refusal::failed)?;
            Ok(data(&code))
        }
        "eth_getStorageAt" => {
            latest(chain, parameter(2))?;
            let slot = read_quantity_wide(parameter(1))
                .ok_or_else(|| Refusal::parameters("the slot is a number"))?;
            let value = chain.slot_of(address(parameter(0))?, slot).map_err(Refusal::failed)?;
            Ok(data(&value.to_be_bytes::<32>()))
        }
        "eth_call" => {
            latest(chain, parameter(1))?;
            Ok(data(&executed(chain, parameter(0))?.output))
        }
        "eth_estimateGas" => Ok(quantity(with_reserve(executed(chain, parameter(0))?.gas_used))),
        "eth_sendRawTransaction" => {
            let raw = read_data(parameter(0))
                .ok_or_else(|| Refusal::parameters("a transaction is bytes in hexadecimal"))?;
            chain.submit(&raw).map(|hash| data(hash.as_slice())).map_err(Refusal::failed)
        }
        "eth_getTransactionReceipt" => {
            let receipt = chain.receipt(&hash(parameter(0))?).map_err(Refusal::failed)?;
            receipt.map_or(Ok(Value::Null), |receipt| receipt_object(chain, &receipt))
        }
        "eth_getTransactionByHash" => transaction_by_hash(chain, &hash(parameter(0))?),
        "eth_getBlockByNumber" => {
            block(chain, number(chain, parameter(0))?, parameter(1) == &json!(true))
        }
        "eth_getBlockByHash" => {
            match chain.number_of(&hash(parameter(0))?).map_err(Refusal::failed)? {
                Some(number) => block(chain, number, parameter(1) == &json!(true)),
                None => Ok(Value::Null),
            }
        }
        "eth_getLogs" => logs(chain, parameter(0)),
        _ => Err(Refusal {
            code: -32601,
            message: format!("there is no method {}", method.chars().take(64).collect::<String>()),
            data: None,
        }),
    }
}

fn address(value: &Value) -> Result<Address, Refusal> {
    read_address(value).ok_or_else(|| Refusal::parameters("an address is 20 bytes in hexadecimal"))
}

fn hash(value: &Value) -> Result<B256, Refusal> {
    read_hash(value).ok_or_else(|| Refusal::parameters("a hash is 32 bytes in hexadecimal"))
}

/// A block's number, by itself or by name.
fn number(chain: &Chain, value: &Value) -> Result<u64, Refusal> {
    match value.as_str() {
        None if value.is_null() => Ok(chain.head().number),
        Some("latest" | "pending" | "safe" | "finalized") => Ok(chain.head().number),
        Some("earliest") => Ok(0),
        _ => read_quantity(value)
            .ok_or_else(|| Refusal::parameters("a block is a number, latest or earliest")),
    }
}

/// The state is kept as of the newest block alone.
fn latest(chain: &Chain, value: &Value) -> Result<(), Refusal> {
    let asked = match value.get("blockNumber") {
        Some(inner) => number(chain, inner)?,
        None => number(chain, value)?,
    };
    if asked == chain.head().number {
        return Ok(());
    }
    Err(Refusal::failed("the state is kept for the newest block only"))
}

fn executed(chain: &mut Chain, value: &Value) -> Result<Outcome, Refusal> {
    let object = value.as_object().ok_or_else(|| Refusal::parameters("a call is an object"))?;
    let wrong = |name: &str| Refusal::parameters(&format!("the call's {name} cannot be read"));
    let read = |name: &str| object.get(name).filter(|value| !value.is_null());
    let from = read("from").map(|value| read_address(value).ok_or_else(|| wrong("from")));
    let to = read("to").map(|value| read_address(value).ok_or_else(|| wrong("to")));
    let input = read("input").or_else(|| read("data"));
    let input = input.map(|value| read_data(value).ok_or_else(|| wrong("data")));
    let amount = read("value").map(|value| read_quantity_wide(value).ok_or_else(|| wrong("value")));
    let gas = read("gas").map(|value| read_quantity(value).ok_or_else(|| wrong("gas")));
    let call = Call {
        from: from.transpose()?.unwrap_or_default(),
        to: to.transpose()?,
        data: input.transpose()?.unwrap_or_default(),
        value: amount.transpose()?.unwrap_or_default(),
        gas: gas.transpose()?,
    };
    let outcome = chain.call(&call).map_err(Refusal::failed)?.map_err(Refusal::failed)?;
    if outcome.succeeded {
        return Ok(outcome);
    }
    let message = format!("execution reverted: {}", explain(&outcome.output));
    Err(Refusal { code: 3, message, data: Some(outcome.output) })
}

fn fee_history(chain: &Chain, count: &Value, newest: &Value) -> Answer {
    let newest = number(chain, newest)?.min(chain.head().number);
    let count = read_quantity(count).or_else(|| count.as_u64());
    let count = count.ok_or_else(|| Refusal::parameters("the count of blocks is a number"))?;
    let count = count.clamp(1, 256).min(newest + 1);
    let fees: Vec<Value> = (0..=count).map(|_| quantity(chain.genesis().base_fee)).collect();
    let mut ratios = Vec::new();
    for number in newest + 1 - count..=newest {
        let header = chain.header(number).map_err(Refusal::failed)?;
        let used = header.map_or(0, |header| header.gas_used);
        ratios.push(json!(used as f64 / chain.genesis().gas_limit as f64));
    }
    Ok(json!({
        "oldestBlock": quantity(newest + 1 - count),
        "baseFeePerGas": fees,
        "gasUsedRatio": ratios,
        "reward": [],
    }))
}

fn receipt_object(chain: &Chain, receipt: &Receipt) -> Answer {
    let found = chain.transaction(&receipt.transaction).map_err(Refusal::failed)?;
    let to = found.and_then(|(signed, _)| signed.transaction().to.to().copied());
    let stored = &receipt.stored;
    let logs = (receipt.first_log..).zip(&stored.logs).map(|(index, log)| {
        log_object(&FoundLog {
            log: log.clone(),
            block: receipt.block,
            block_hash: receipt.block_hash,
            transaction: receipt.transaction,
            transaction_index: receipt.index,
            index,
        })
    });
    let contract = Some(stored.contract).filter(|contract| !contract.is_zero());
    Ok(json!({
        "transactionHash": data(receipt.transaction.as_slice()),
        "transactionIndex": quantity(receipt.index),
        "blockNumber": quantity(receipt.block),
        "blockHash": data(receipt.block_hash.as_slice()),
        "from": data(stored.sender.as_slice()),
        "to": to.map(|to| data(to.as_slice())),
        "contractAddress": contract.map(|contract| data(contract.as_slice())),
        "status": quantity(u64::from(stored.succeeded)),
        "gasUsed": quantity(stored.gas_used),
        "cumulativeGasUsed": quantity(receipt.cumulative_gas),
        "effectiveGasPrice": quantity(chain.genesis().base_fee),
        "logs": logs.collect::<Vec<_>>(),
        "logsBloom": data(&[0; 256]),
        "type": "0x2",
    }))
}

fn transaction_by_hash(chain: &Chain, hash: &B256) -> Answer {
    let Some((signed, place)) = chain.transaction(hash).map_err(Refusal::failed)? else {
        return Ok(Value::Null);
    };
    let place = match place {
        None => None,
        Some(place) => {
            chain.header(place.block).map_err(Refusal::failed)?.map(|header| (header, place.index))
        }
    };
    Ok(transaction_object(&signed, place.as_ref().map(|(header, index)| (header, *index))))
}

fn transaction_object(signed: &Signed, place: Option<(&BlockHeader, u64)>) -> Value {
    let it = signed.transaction();
    let mut object = json!({
        "type": "0x2",
        "hash": data(signed.hash().as_slice()),
        "from": data(signed.sender().as_slice()),
        "to": it.to.to().map(|to| data(to.as_slice())),
        "nonce": quantity(it.nonce),
        "chainId": quantity(it.chain_id),
        "gas": quantity(it.gas_limit),
        "value": quantity_wide(&it.value),
        "input": data(&it.data),
        "maxFeePerGas": quantity_wide(&U256::from(it.max_fee)),
        "maxPriorityFeePerGas": quantity_wide(&U256::from(it.max_priority_fee)),
        "gasPrice": quantity_wide(&U256::from(it.max_fee)),
        "accessList": [],
        "blockNumber": place.map(|(header, _)| quantity(header.number)),
        "blockHash": place.map(|(header, _)| data(header.hash().as_slice())),
        "transactionIndex": place.map(|(_, index)| quantity(index)),
    });
    if let (Some(object), Some(signature)) = (object.as_object_mut(), signed.signature()) {
        let parity = quantity(u64::from(signature.y_is_odd));
        object.insert("r".to_owned(), quantity_wide(&U256::from_be_bytes(signature.r.0)));
        object.insert("s".to_owned(), quantity_wide(&U256::from_be_bytes(signature.s.0)));
        object.insert("v".to_owned(), parity.clone());
        object.insert("yParity".to_owned(), parity);
    }
    object
}

fn block(chain: &Chain, number: u64, whole: bool) -> Answer {
    let Some(header) = chain.header(number).map_err(Refusal::failed)? else {
        return Ok(Value::Null);
    };
    let body = chain.body(number).map_err(Refusal::failed)?;
    let transactions: Vec<Value> = (0_u64..)
        .zip(&body)
        .map(|(index, signed)| match whole {
            true => transaction_object(signed, Some((&header, index))),
            false => data(signed.hash().as_slice()),
        })
        .collect();
    let zero = data(B256::ZERO.as_slice());
    Ok(json!({
        "number": quantity(header.number),
        "hash": data(header.hash().as_slice()),
        "parentHash": data(header.parent.as_slice()),
        "timestamp": quantity(header.timestamp),
        "mixHash": data(header.prevrandao.as_slice()),
        "stateRoot": data(header.state.as_slice()),
        "transactionsRoot": data(header.transactions.as_slice()),
        "receiptsRoot": data(header.receipts.as_slice()),
        "gasUsed": quantity(header.gas_used),
        "gasLimit": quantity(chain.genesis().gas_limit),
        "baseFeePerGas": quantity(chain.genesis().base_fee),
        "transactions": transactions,
        "sha3Uncles": zero,
        "uncles": [],
        "miner": data(Address::ZERO.as_slice()),
        "nonce": "0x0000000000000000",
        "difficulty": "0x0",
        "extraData": data(header.next_anchor.as_slice()),
        "logsBloom": data(&[0; 256]),
        "size": "0x0",
    }))
}

fn logs(chain: &Chain, value: &Value) -> Answer {
    let object = value.as_object().ok_or_else(|| Refusal::parameters("a filter is an object"))?;
    let filter = filter(chain, object)?;
    let found = chain.logs(&filter).map_err(Refusal::failed)?;
    Ok(found.iter().map(log_object).collect())
}

fn filter(chain: &Chain, object: &Map<String, Value>) -> Result<Filter, Refusal> {
    let get = |name: &str| object.get(name).unwrap_or(&Value::Null);
    let (from, to) = match get("blockHash") {
        Value::Null => (number(chain, get("fromBlock"))?, number(chain, get("toBlock"))?),
        value => {
            let found = chain.number_of(&hash(value)?).map_err(Refusal::failed)?;
            let number = found.ok_or_else(|| Refusal::failed("there is no such block"))?;
            (number, number)
        }
    };
    let addresses = list(get("address"), address)?;
    let topics = match get("topics") {
        Value::Null => Vec::new(),
        Value::Array(topics) if topics.len() <= 4 => {
            topics.iter().map(|topic| list(topic, hash)).collect::<Result<_, _>>()?
        }
        _ => return Err(Refusal::parameters("topics are a list of at most four")),
    };
    Ok(Filter { from, to, addresses, topics })
}

/// One value, several, or (null) any.
fn list<T>(value: &Value, read: fn(&Value) -> Result<T, Refusal>) -> Result<Vec<T>, Refusal> {
    match value {
        Value::Null => Ok(Vec::new()),
        Value::Array(list) if list.len() > LIST_MAX => {
            Err(Refusal::parameters("the filter's list is too long"))
        }
        Value::Array(list) => list.iter().map(read).collect(),
        one => read(one).map(|one| vec![one]),
    }
}

fn log_object(found: &FoundLog) -> Value {
    let topics: Vec<Value> =
        found.log.data.topics().iter().map(|topic| data(topic.as_slice())).collect();
    json!({
        "address": data(found.log.address.as_slice()),
        "topics": topics,
        "data": data(&found.log.data.data),
        "blockNumber": quantity(found.block),
        "blockHash": data(found.block_hash.as_slice()),
        "transactionHash": data(found.transaction.as_slice()),
        "transactionIndex": quantity(found.transaction_index),
        "logIndex": quantity(found.index),
        "removed": false,
    })
}
