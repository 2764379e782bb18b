//! `eth_*` over loopback, asked by hand, by our own client for remote nodes, and by nobody's client.
#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hypha_chain::client::{Client, ClientError};
use hypha_chain::contracts::GridToken;
use hypha_chain::deploy::{BeaconKind, Suite, Terms, creations};
use hypha_chain::embedded::{Chain, Filter, Parameters};
use hypha_chain::key::Key;
use hypha_chain::remote::{Endpoints, Remote, RemoteError};
use hypha_chain::rpc::server::{Server, ServerError};
use hypha_chain::rpc::{Turns, answer};
use hypha_chain::sol_types::SolEvent;
use hypha_chain::{Address, B256, SolCall, U256};
use serde_json::{Value, json};

const CHAIN_ID: u64 = 5;
const GENESIS: u64 = 1000;

fn key(number: u8) -> Key {
    Key::from_bytes(&[number; 32]).unwrap()
}

/// A chain with the suite, as two clients see it: from inside, and over HTTP.
struct Served {
    chain: Arc<Mutex<Chain>>,
    inside: Client,
    outside: Client,
    suite: Suite,
    server: Server,
    now: u64,
}

fn endpoints(urls: &[String], agreement: usize, confirmations: u64) -> Endpoints {
    Endpoints { urls: urls.to_vec(), agreement, confirmations }
}

fn url(address: SocketAddr) -> String {
    format!("http://{address}/")
}

impl Served {
    fn new() -> Self {
        let parameters = Parameters {
            chain_id: CHAIN_ID,
            timestamp: GENESIS,
            cadence_secs: 1,
            balances: Vec::new(),
        };
        let chain = Arc::new(Mutex::new(Chain::in_memory(parameters, [1; 32]).unwrap()));
        let server = Server::start(Arc::clone(&chain), "127.0.0.1:0".parse().unwrap()).unwrap();
        let remote = Remote::connect(endpoints(&[url(server.address())], 1, 0), CHAIN_ID).unwrap();
        let outside = Client::Remote(Arc::new(remote));
        let inside = Client::Embedded(Arc::clone(&chain));
        let holder = key(1).address();
        let suite = Suite::at(holder, 0);
        let mut served = Self { chain, inside, outside, suite, server, now: GENESIS };
        let terms = Terms {
            governor: holder,
            holder,
            genesis_supply: 1000,
            emission_per_hour: U256::from(1),
            emission_cap: U256::from(1),
            dispute_window_secs: 3600,
            beacon: BeaconKind::Prevrandao,
        };
        for init in creations(&suite, &terms) {
            let hash = served.outside.transact(&key(1), None, init).unwrap();
            served.tick();
            assert!(served.outside.receipt(&hash).unwrap().unwrap().succeeded);
        }
        served
    }

    fn tick(&mut self) {
        self.now += 1;
        self.chain.lock().unwrap().tick(self.now).unwrap();
    }

    fn transfer(&mut self, amount: u64) -> Result<B256, ClientError> {
        let to = key(2).address();
        let call = GridToken::transferCall { to, amount: U256::from(amount) };
        let hash =
            self.outside.transact(&key(1), Some(self.suite.token), call.abi_encode().into())?;
        self.tick();
        Ok(hash)
    }
}

#[test]
fn both_clients_see_the_same() {
    let mut served = Served::new();
    let hash = served.transfer(7).unwrap();
    let (inside, outside) = (&served.inside, &served.outside);
    assert_eq!(inside.receipt(&hash).unwrap(), outside.receipt(&hash).unwrap());
    assert_eq!(inside.head().unwrap(), outside.head().unwrap());
    assert_eq!(inside.chain_id().unwrap(), outside.chain_id().unwrap());
    let account = key(1).address();
    assert_eq!(inside.nonce(account).unwrap(), outside.nonce(account).unwrap());
    assert_eq!(inside.balance(account).unwrap(), outside.balance(account).unwrap());
    let balance = GridToken::balanceOfCall(key(2).address());
    for client in [inside, outside] {
        assert_eq!(client.view(served.suite.token, &balance).unwrap(), U256::from(7));
    }
    for addresses in [vec![], vec![served.suite.token], vec![served.suite.names]] {
        for topics in [vec![], vec![vec![], vec![account.into_word()]]] {
            let filter = Filter { from: 0, to: 100, addresses: addresses.clone(), topics };
            assert_eq!(
                inside.logs(&filter, || false).unwrap(),
                outside.logs(&filter, || false).unwrap()
            );
        }
    }
    assert_eq!(outside.receipt(&B256::ZERO).unwrap(), None);
}

#[test]
fn a_contracts_refusal_comes_through_in_its_words_and_nothing_is_sent() {
    let mut served = Served::new();
    let before = served.outside.nonce(key(1).address()).unwrap();
    let refused = served.transfer(5000).unwrap_err();
    assert!(matches!(refused, ClientError::Reverted(_)), "{refused}");
    assert!(refused.to_string().contains("InsufficientBalance"), "{refused}");
    assert_eq!(served.outside.nonce(key(1).address()).unwrap(), before);
}

#[test]
fn a_node_of_another_chain_or_none_is_said_so() {
    let served = Served::new();
    let here = url(served.server.address());
    let other = Remote::connect(endpoints(std::slice::from_ref(&here), 1, 0), 6);
    assert!(matches!(other, Err(RemoteError::OtherChain { theirs: 5, ours: 6, .. })));
    let few = Remote::connect(endpoints(std::slice::from_ref(&here), 2, 0), CHAIN_ID);
    assert!(matches!(few, Err(RemoteError::TooFew { given: 1, needed: 2 })));
    let bare = here.trim_end_matches('/').to_owned();
    for again in [here.clone(), bare.clone(), bare.replace("http", "HTTP")] {
        let twice = Remote::connect(endpoints(&[here.clone(), again], 2, 0), CHAIN_ID);
        assert!(matches!(twice, Err(RemoteError::TooFew { given: 1, needed: 2 })));
    }
    for wrong in
        ["", "127.0.0.1:8545", "ftp://127.0.0.1", "http://", "file:///etc/passwd", "http://[::1"]
    {
        let none = Remote::connect(endpoints(&[wrong.to_owned()], 1, 0), CHAIN_ID);
        assert!(matches!(none, Err(RemoteError::NoUrl { .. })), "{wrong}");
    }
    // A port that nobody listens on.
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let gone = Remote::connect(endpoints(&[url(free)], 1, 0), CHAIN_ID);
    assert!(matches!(gone, Err(RemoteError::Unreachable { .. })));
    // One of two is enough if one is enough.
    let remote = Remote::connect(endpoints(&[url(free), here], 1, 0), CHAIN_ID).unwrap();
    let client = Client::Remote(Arc::new(remote));
    assert_eq!(client.head().unwrap(), served.inside.head().unwrap());
}

/// A node that lies: it passes questions on and changes the answers.
fn liar(to: SocketAddr, change: impl Fn(&mut Value) + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let mut stream = stream;
            let Some(question) = read_request(&mut stream) else { continue };
            let mut answer: Value = serde_json::from_slice(&post(to, &question)).unwrap();
            change(&mut answer);
            let body = answer.to_string();
            let head = format!(
                "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
                body.len()
            );
            // The client may have gone.
            stream.write_all((head + &body).as_bytes()).ok();
        }
    });
    address
}

fn read_request(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&bytes).to_lowercase();
        if let Some((head, _)) = text.split_once("\r\n\r\n") {
            let length = head.split_once("content-length: ")?.1.lines().next()?.trim().parse().ok();
            let start = head.len() + 4;
            if bytes.len() >= start + length.unwrap_or(0) {
                return Some(bytes.split_off(start));
            }
        }
        let mut chunk = [0; 4096];
        let len = stream.read(&mut chunk).ok().filter(|len| *len > 0)?;
        bytes.extend_from_slice(&chunk[..len]);
    }
}

fn exchange(to: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(to).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    stream.write_all(bytes).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = Vec::new();
    // A connection that is reset has said what it had to.
    stream.read_to_end(&mut answer).ok();
    answer
}

fn post(to: SocketAddr, body: &[u8]) -> Vec<u8> {
    let head = format!("POST / HTTP/1.1\r\ncontent-length: {}\r\n\r\n", body.len());
    let answer = exchange(to, &[head.as_bytes(), body].concat());
    let at = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
    answer[at + 4..].to_vec()
}

#[test]
fn a_lie_is_found_where_two_must_agree_and_outvoted_by_a_third() {
    let mut served = Served::new();
    let hash = served.transfer(7).unwrap();
    let honest = served.server.address();
    let lies = liar(honest, |answer| {
        if answer["result"]["status"] == "0x1" {
            answer["result"]["status"] = json!("0x0");
        }
    });
    let connect = |urls: &[String], agreement| {
        let remote = Remote::connect(endpoints(urls, agreement, 0), CHAIN_ID).unwrap();
        Client::Remote(Arc::new(remote))
    };
    let believed = connect(&[url(lies)], 1);
    assert!(!believed.receipt(&hash).unwrap().unwrap().succeeded);
    let two = connect(&[url(lies), url(honest)], 2);
    let found = two.receipt(&hash).unwrap_err();
    assert!(found.to_string().contains("differently"), "{found}");
    let third = another(&served);
    let three = connect(&[url(lies), url(honest), url(third.address())], 2);
    assert!(three.receipt(&hash).unwrap().unwrap().succeeded);
}

/// One more server of the same chain.
fn another(served: &Served) -> Server {
    Server::start(Arc::clone(&served.chain), "127.0.0.1:0".parse().unwrap()).unwrap()
}

#[test]
fn nonces_heads_and_refusals_are_outvoted_like_everything_else() {
    let mut served = Served::new();
    served.transfer(7).unwrap();
    let (honest, third) = (served.server.address(), another(&served));
    let connect = |urls: &[String]| {
        let remote = Remote::connect(endpoints(urls, 2, 0), CHAIN_ID).unwrap();
        Client::Remote(Arc::new(remote))
    };
    let account = key(1).address();
    let nonce = served.inside.nonce(account).unwrap();
    let later = format!("{:#x}", nonce + 9);
    let true_nonce = format!("{nonce:#x}");
    let (head, words) = (served.inside.head().unwrap(), json!("0x08c379a0"));
    let lies = liar(honest, move |answer| {
        if answer["result"] == json!(true_nonce) {
            answer["result"] = json!(later);
        } else if answer["result"]["parentHash"].is_string() {
            answer["result"]["number"] = json!("0xffffff");
        } else if answer["result"].as_str().is_some_and(|it| it.len() == 66) {
            let refusal = json!({"code": 3, "message": "execution reverted", "data": words});
            *answer = json!({"jsonrpc": "2.0", "id": answer["id"], "error": refusal});
        }
    });
    let three = connect(&[url(lies), url(honest), url(third.address())]);
    assert_eq!(three.nonce(account).unwrap(), nonce);
    assert_eq!(three.settled_nonce(account).unwrap(), nonce);
    assert_eq!(three.head().unwrap(), head);
    let balance = GridToken::balanceOfCall(key(2).address());
    assert_eq!(three.view(served.suite.token, &balance).unwrap(), U256::from(7));
    let two = connect(&[url(lies), url(honest)]);
    for error in
        [two.nonce(account).map(|_| ()), two.view(served.suite.token, &balance).map(|_| ())]
    {
        let error = error.unwrap_err();
        assert!(matches!(error, ClientError::Remote(RemoteError::Disagree { .. })), "{error}");
    }
    // What all refuse alike is refused.
    let agreed = connect(&[url(honest), url(third.address())]);
    let call = GridToken::transferCall { to: account, amount: U256::MAX };
    let refused = agreed.view(served.suite.token, &call).unwrap_err();
    assert!(matches!(refused, ClientError::Reverted(_)), "{refused}");
}

#[test]
fn a_receipt_of_a_block_that_was_reorganised_away_or_is_too_new_does_not_count() {
    let mut served = Served::new();
    let hash = served.transfer(7).unwrap();
    let honest = served.server.address();
    let reorganised = liar(honest, |answer| {
        if answer["result"]["parentHash"].is_string() {
            answer["result"]["hash"] = json!(B256::repeat_byte(1).to_string());
        }
    });
    let remote = Remote::connect(endpoints(&[url(reorganised)], 1, 0), CHAIN_ID).unwrap();
    assert_eq!(Client::Remote(Arc::new(remote)).receipt(&hash).unwrap(), None);
    let remote = Remote::connect(endpoints(&[url(honest)], 1, 2), CHAIN_ID).unwrap();
    let deep = Client::Remote(Arc::new(remote));
    assert_eq!(deep.receipt(&hash).unwrap(), None);
    served.tick();
    assert_eq!(deep.receipt(&hash).unwrap(), None);
    served.tick();
    assert!(deep.receipt(&hash).unwrap().unwrap().succeeded);
}

#[test]
fn answers_of_any_other_shape_are_errors_and_never_a_panic() {
    let mut served = Served::new();
    let hash = served.transfer(7).unwrap();
    let honest = served.server.address();
    let changes: [fn(&mut Value); 6] = [
        |answer| answer["result"] = json!(7),
        |answer| answer["result"] = json!({ "number": "0x", "hash": [] }),
        |answer| answer["id"] = json!("x"),
        |answer| answer["error"] = json!({ "message": "no" }),
        |answer| {
            if let Some(object) = answer.as_object_mut() {
                object.remove("result");
            }
        },
        |answer| *answer = json!([1, 2]),
    ];
    for (at, change) in changes.into_iter().enumerate() {
        let bad = liar(honest, change);
        // It is honest about its chain while it is asked that alone: the good one is named first.
        let urls = [url(honest), url(bad)];
        let Ok(remote) = Remote::connect(endpoints(&urls, 1, 0), CHAIN_ID) else { continue };
        drop(remote);
        let Ok(remote) = Remote::connect(endpoints(&[url(bad)], 1, 0), CHAIN_ID) else { continue };
        let client = Client::Remote(Arc::new(remote));
        assert!(client.receipt(&hash).is_err(), "change {at}");
        assert!(client.head().is_err(), "change {at}");
    }
}

#[test]
fn logs_that_were_not_asked_for_are_an_error() {
    let mut served = Served::new();
    served.transfer(7).unwrap();
    let honest = served.server.address();
    let changes: [fn(&mut Value); 4] = [
        |_| {},
        |log| log["address"] = json!(Address::repeat_byte(1).to_string()),
        |log| log["blockNumber"] = json!("0xffffff"),
        |log| log["topics"] = json!([B256::ZERO.to_string()]),
    ];
    let client = |lies| {
        let remote = Remote::connect(endpoints(&[url(lies)], 1, 0), CHAIN_ID).unwrap();
        Client::Remote(Arc::new(remote))
    };
    let filter = Filter {
        from: 0,
        to: 100,
        addresses: vec![served.suite.token],
        topics: vec![vec![GridToken::Transfer::SIGNATURE_HASH], Vec::new()],
    };
    for (at, change) in changes.into_iter().enumerate() {
        let lies = liar(honest, move |answer| {
            if let Some(logs) = answer["result"].as_array_mut() {
                logs.iter_mut().for_each(change);
            }
        });
        let found = client(lies).logs(&filter, || false);
        if at == 0 {
            assert_eq!(found.unwrap(), served.inside.logs(&filter, || false).unwrap());
        } else {
            let error = found.unwrap_err();
            assert!(matches!(error, ClientError::Remote(RemoteError::Malformed { .. })), "{error}");
            assert!(error.to_string().contains(&url(lies)), "{error}");
        }
    }
}

/// A node that refuses each search, and would so have its client ask 4096 times, each time for as long as
/// it likes.
#[test]
fn a_search_that_is_always_refused_ends_when_its_time_is_over() {
    let served = Served::new();
    let honest = served.server.address();
    let asked = Arc::new(AtomicUsize::new(0));
    let counts = Arc::clone(&asked);
    let lies = liar(honest, move |answer| {
        if answer["result"].is_array() {
            counts.fetch_add(1, Ordering::SeqCst);
            let refusal = json!({"code": -32005, "message": "more than 10000 results"});
            *answer = json!({"jsonrpc": "2.0", "id": answer["id"], "error": refusal});
        }
    });
    let good = url(honest);
    let remote = Remote::connect(endpoints(&[good, url(lies)], 2, 0), CHAIN_ID).unwrap();
    let client = Client::Remote(Arc::new(remote));
    let filter = Filter { from: 0, to: u64::MAX, ..Filter::default() };
    let left = AtomicUsize::new(20);
    let stops = || left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |it| it.checked_sub(1));
    let error = client.logs(&filter, || stops().is_err()).unwrap_err();
    assert!(matches!(error, ClientError::GivenUp { searches: 20 }), "{error}");
    // Two rounds of each search.
    assert_eq!(asked.load(Ordering::SeqCst), 40);
    let gone = client.logs(&filter, || true).unwrap_err();
    assert!(matches!(gone, ClientError::GivenUp { searches: 0 }), "{gone}");
}

#[test]
fn only_loopback_is_served() {
    let chain = Served::new().chain;
    let refused = Server::start(chain, "0.0.0.0:0".parse().unwrap());
    assert!(matches!(refused, Err(ServerError::NotLoopback(_))));
}

#[test]
fn what_is_no_request_gets_an_error_and_the_next_one_is_served() {
    let served = Served::new();
    let to = served.server.address();
    let seed = 4;
    let mut random = fastrand::Rng::with_seed(seed);
    for _ in 0..50 {
        let len = random.usize(0..3000);
        let bytes: Vec<u8> = (0..len).map(|_| random.u8(..)).collect();
        exchange(to, &bytes);
    }
    let status = |bytes: &[u8]| {
        String::from_utf8_lossy(&exchange(to, bytes)).split(' ').nth(1).map(str::to_owned)
    };
    let page = b"POST / HTTP/1.1\r\nOrigin: http://evil\r\ncontent-length: 2\r\n\r\n{}";
    assert_eq!(status(page).as_deref(), Some("403"));
    assert_eq!(status(b"GET / HTTP/1.1\r\n\r\n").as_deref(), Some("405"));
    let question = json!({ "jsonrpc": "2.0", "id": 1, "method": "eth_chainId" }).to_string();
    let answer: Value = serde_json::from_slice(&post(to, question.as_bytes())).unwrap();
    assert_eq!(answer["result"], "0x5", "seed {seed}");
}

#[test]
fn who_is_slow_keeps_nobody_out() {
    let served = Served::new();
    let to = served.server.address();
    let question = json!({ "jsonrpc": "2.0", "id": 1, "method": "eth_chainId" }).to_string();
    let whole = format!("POST / HTTP/1.1\r\ncontent-length: {}\r\n\r\n{question}", question.len());
    // A head that never ends, a body that never comes, and an answer that nobody reads.
    let begun =
        ["POST / HTTP/1.1\r\n", "POST / HTTP/1.1\r\ncontent-length: 1000000\r\n\r\n{", &whole];
    let mut slow = Vec::new();
    for _ in 0..4 {
        for begun in begun.iter().cycle().take(40) {
            let mut stream = TcpStream::connect(to).unwrap();
            // One that was turned away already may say so.
            stream.write_all(begun.as_bytes()).ok();
            slow.push(stream);
        }
        let answer: Value = serde_json::from_slice(&post(to, question.as_bytes())).unwrap();
        assert_eq!(answer["result"], "0x5");
    }
}

#[test]
fn a_batch_of_long_answers_is_cut_short() {
    let mut served = Served::new();
    for _ in 0..4 {
        let data = vec![0; 100_000].into();
        served.inside.transact(&key(1), Some(key(2).address()), data).unwrap();
    }
    served.tick();
    let number = json!(format!("{:#x}", served.inside.head().unwrap().number));
    let question =
        |id: u64| json!({ "id": id, "method": "eth_getBlockByNumber", "params": [number, true] });
    let batch = Value::Array((0..100).map(question).collect()).to_string();
    let answers = answer(&served.chain, &Turns::default(), batch.as_bytes()).unwrap();
    let answers = answers.as_array().unwrap();
    let count = answers.iter().filter(|it| it["result"].is_object()).count();
    assert!((2..50).contains(&count), "{count}");
    assert_eq!(answers.len(), 100);
    assert_eq!((&answers[99]["id"], &answers[99]["error"]["code"]), (&json!(99), &json!(-32005)));
}

#[test]
fn nested_as_deep_as_it_goes_is_no_json() {
    let served = Served::new();
    let deep = [vec![b'['; 500_000], vec![b']'; 500_000]].concat();
    let to = served.server.address();
    let reply: Value = serde_json::from_slice(&post(to, &deep)).unwrap();
    assert_eq!(reply["error"]["code"], -32700);
}

#[test]
fn questions_of_any_shape_have_an_answer() {
    let served = Served::new();
    let ask = |text: &str| answer(&served.chain, &Turns::default(), text.as_bytes());
    let code = |text: &str| ask(text).unwrap()["error"]["code"].clone();
    assert_eq!(code("{"), -32700);
    assert_eq!(code("[]"), -32600);
    assert_eq!(code("7"), -32600);
    assert_eq!(code(r#"{"id":1,"method":"eth_nothing"}"#), -32601);
    assert_eq!(code(r#"{"id":1,"method":"eth_call","params":{}}"#), -32602);
    assert_eq!(ask(r#"{"method":"eth_chainId"}"#), None);
    let batch = ask(r#"[{"id":1,"method":"eth_chainId"},{"id":2,"method":"net_version"}]"#);
    assert_eq!(batch.unwrap()[1]["result"], "5");
    let methods = [
        "eth_chainId",
        "eth_blockNumber",
        "eth_syncing",
        "eth_accounts",
        "eth_gasPrice",
        "eth_maxPriorityFeePerGas",
        "eth_feeHistory",
        "eth_getBalance",
        "eth_getTransactionCount",
        "eth_getCode",
        "eth_getStorageAt",
        "eth_call",
        "eth_estimateGas",
        "eth_sendRawTransaction",
        "eth_getTransactionReceipt",
        "eth_getTransactionByHash",
        "eth_getBlockByNumber",
        "eth_getBlockByHash",
        "eth_getLogs",
        "net_version",
        "web3_clientVersion",
    ];
    let address = key(1).address().to_string();
    let values = [
        json!(null),
        json!("latest"),
        json!("0x1"),
        json!("0xffffffffffffffff"),
        json!(address),
        json!(B256::ZERO.to_string()),
        json!([]),
        json!({}),
        json!(-1),
        json!(true),
        json!({ "to": address, "data": "0x01", "gas": "0xffffffffffffffff" }),
        json!({ "fromBlock": "0x0", "toBlock": "0xffffffffffffffff", "topics": [[], null] }),
    ];
    let seed = 5;
    let mut random = fastrand::Rng::with_seed(seed);
    for method in methods {
        let mut known = false;
        for _ in 0..300 {
            let parameters: Vec<&Value> =
                (0..random.usize(0..4)).map(|_| random.choice(&values).unwrap()).collect();
            let question = json!({ "id": 1, "method": method, "params": parameters });
            let answer = ask(&question.to_string()).unwrap();
            assert_ne!(answer["error"]["code"], -32601, "{method}, seed {seed}");
            known |= answer.get("result").is_some();
        }
        // Random parameters are a valid transaction by no chance.
        assert!(known || method == "eth_sendRawTransaction", "{method} has no answer, seed {seed}");
    }
}
