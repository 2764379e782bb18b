//! What goes wrong: one line that says what to do, the exit code for whose fault it is, and an account that
//! has sent nothing.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Output;

use hypha_chain::Address;
use serde_json::{Value, json};

use crate::between::liar;
use crate::world::{CHAIN_ID, World, holder, stderr};

/// Refuses with this code and these words, and nothing is sent for the account.
fn refused(world: &World, account: Address, arguments: &[&str], (code, words): (i32, &str)) {
    let at = world.at();
    // What an option says the second time would be another error: the last table entries give their own.
    let has_own = |name: &str| arguments.contains(&name);
    let pairs: Vec<_> = at.chunks(2).filter(|pair| !has_own(pair[0].to_str().unwrap())).collect();
    let before = world.client.nonce(account).unwrap();
    let output = world.command(arguments).args(pairs.concat()).output().unwrap();
    is_refusal(arguments, &output, (code, words));
    assert_eq!(world.client.nonce(account).unwrap(), before, "{arguments:?} sends something");
}

fn is_refusal(arguments: &[&str], output: &Output, (code, words): (i32, &str)) {
    let text = stderr(output);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
    let last = text.lines().last().unwrap_or_default();
    assert!(last.starts_with("hypha: "), "{arguments:?}: {text}");
    assert!(last.contains(words), "{arguments:?} says {last:?}, not {words:?}");
    assert!(output.stdout.is_empty(), "{arguments:?} says that it did something");
}

/// A farmer with a node that has room for one of its offers, a withdrawn offer, and a poor tenant.
fn world() -> (World, Address, Address) {
    let world = World::new();
    let (farmer, tenant) = (world.account("farmer", "10000"), world.account("tenant", "2"));
    world.json(&["farm", "create", "--key", "farmer"]);
    let claims = ["--cores", "1", "--memory", "1GiB", "--key", "farmer"];
    world.json(&[["node", "register"].as_slice(), &claims].concat());
    for price in ["0.36", "0.72"] {
        let price = ["--price", price, "--min-hours", "2"];
        world.json(&[["node", "offer", "1"].as_slice(), &claims, &price].concat());
    }
    world.json(&["node", "offer", "--end", "2", "--key", "farmer"]);
    (world, farmer, tenant)
}

#[test]
fn what_a_contract_or_an_empty_purse_refuses_is_one_line_and_nothing_is_sent() {
    let (world, farmer, tenant) = world();
    let yes = |words: &[&'static str]| [words, &["--yes", "--key", "tenant"]].concat();
    let someone = "0x00000000000000000000000000000000000000aa";
    for (arguments, code, words) in [
        (yes(&["reserve", "1", "--hours", "10"]), 2, "has 2 tokens, and this takes 3.6"),
        (yes(&["reserve", "2", "--hours", "2"]), 2, "offer 2 was withdrawn"),
        (yes(&["reserve", "9", "--hours", "2"]), 3, "no offer 9"),
        (yes(&["reserve", "1", "--hours", "1"]), 2, "takes 0.72 tokens at least"),
        (yes(&["reserve", "1", "--deposit", "0.5"]), 2, "takes 0.72 tokens at least"),
        (vec!["reserve", "1", "--hours", "2", "--key", "tenant"], 2, "give --yes"),
        (yes(&["top-up", "7", "--hours", "1"]), 3, "no reservation 7"),
        (vec!["release", "7", "--key", "tenant"], 3, "has no reservation 7"),
        (vec!["transfer", someone, "3", "--key", "tenant"], 2, "has 2 tokens"),
        (vec!["transfer", someone, "0", "--key", "tenant"], 2, "more than 0 tokens"),
        (vec!["node", "offer", "--end", "1", "--key", "tenant"], 2, "farm 1 is another account's"),
        (vec!["node", "unstake", "1", "--retire", "--key", "tenant"], 2, "farm 1 is another"),
        (vec!["node", "maintenance", "5", "--hours", "1", "--key", "tenant"], 3, "no node 5"),
        (vec!["farm", "withdraw", "--key", "tenant"], 3, "has no farm"),
        (vec!["farm", "withdraw", "--farm", "4", "--key", "tenant"], 3, "no farm 4"),
    ] {
        refused(&world, tenant, &arguments, (code, words));
    }
    let past = ["node", "maintenance", "1", "--hours", "1", "--from", "1000", "--key", "farmer"];
    refused(&world, farmer, &past, (2, "begins an hour or more from now"));
    let too_much = ["node", "unstake", "1", "--amount", "1000000", "--key", "farmer"];
    refused(&world, farmer, &too_much, (2, "tokens at stake, not 1000000"));
    let vast = ["node", "offer", "1", "--cores", "999", "--price", "1", "--key", "farmer"];
    refused(&world, farmer, &vast, (2, "no more can be offered of it"));
    world.json(&yes(&["reserve", "1", "--hours", "2"]));
    refused(&world, tenant, &yes(&["reserve", "1", "--hours", "2", "--another"]), (5, "no room"));
    let output = world.hypha(&yes(&["release", "1"])[..2]);
    // Without --key it is the default account, of which there is none here.
    is_refusal(&["release"], &output, (3, "hypha key create"));
}

#[test]
fn a_chain_that_is_another_or_away_or_not_agreed_on_is_said_so() {
    let (world, _, tenant) = world();
    let other = World::bare();
    other.advance(1);
    let both = format!("{},{}", world.url, other.url);
    let write = |name: &str, value: &Value| {
        fs::write(world.path(name), value.to_string()).unwrap();
        world.path(name).display().to_string()
    };
    let wrong_id = write(
        "wrong-id.json",
        &json!({"version": 1, "chain_id": CHAIN_ID + 1, "deployer": holder().address()}),
    );
    let nobody = write(
        "nobody.json",
        &json!({"version": 1, "chain_id": CHAIN_ID, "deployer": Address::repeat_byte(9)}),
    );
    let neither = write("neither.json", &json!({"version": 1, "chain_id": CHAIN_ID}));
    let later = write("later.json", &json!({"version": 2, "chain_id": CHAIN_ID}));
    let gone = world.path("gone.json").display().to_string();
    for (options, code, words) in [
        (vec!["--contracts", &wrong_id], 2, "is on chain 31007, not on chain 31008"),
        (vec!["--contracts", &nobody], 2, "is it the right file"),
        (vec!["--contracts", &neither], 2, "either a deployer or a directory"),
        (vec!["--contracts", &later], 2, "version 2; this hypha reads version 1"),
        (vec!["--contracts", &gone], 2, "gone.json"),
        (vec!["--at", "http://127.0.0.1:1/"], 5, "no endpoint answered"),
        (vec!["--at", &both, "--agreement", "2"], 5, "answer eth_call differently"),
        (vec!["--agreement", "2"], 2, "1 endpoints are given, and 2 must agree"),
        (vec!["--at", "127.0.0.1:8545"], 2, "is no endpoint: write http://HOST:PORT"),
    ] {
        let verb = ["transfer", "0x00000000000000000000000000000000000000aa", "1"];
        let arguments = [verb.as_slice(), &["--key", "tenant"], &options].concat();
        refused(&world, tenant, &arguments, (code, words));
    }
    // With one that agrees with itself, the other is not needed.
    let away = format!("http://127.0.0.1:1/,{}", world.url);
    let output = world.command(&["balance", "--key", "tenant", "--at", &away]);
    let mut output = output;
    let contracts = world.path("contracts.json");
    assert!(output.arg("--contracts").arg(contracts).status().unwrap().success());
}

#[test]
fn a_clock_that_is_far_from_the_newest_block_stops_what_sends_and_not_what_looks() {
    let (world, _, tenant) = world();
    world.advance(10_000);
    let verb = ["transfer", "0x00000000000000000000000000000000000000aa", "1", "--key", "tenant"];
    let skewed = [verb.as_slice(), &["--max-skew", "120"]].concat();
    refused(&world, tenant, &skewed, (5, "set the clock"));
    world.json(&["balance", "--key", "tenant"]);
}

#[test]
fn a_key_that_cannot_be_used_is_said_so() {
    let (world, _, tenant) = world();
    let keys = world.path("state/keys");
    let secret = world.path("secret");
    fs::write(&secret, "correct horse\n").unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    let secret = secret.display().to_string();
    let sealed = ["key", "create", "sealed", "--passphrase-file", &secret];
    assert!(world.command(&sealed).status().unwrap().success());
    let wrong = world.path("wrong");
    fs::write(&wrong, "battery staple\n").unwrap();
    fs::set_permissions(&wrong, fs::Permissions::from_mode(0o600)).unwrap();
    let wrong = wrong.display().to_string();
    fs::copy(keys.join("tenant"), keys.join("open")).unwrap();
    fs::set_permissions(keys.join("open"), fs::Permissions::from_mode(0o640)).unwrap();
    let mut bytes = fs::read(keys.join("tenant")).unwrap();
    bytes[40] ^= 1;
    fs::write(keys.join("rotten"), &bytes).unwrap();
    fs::set_permissions(keys.join("rotten"), fs::Permissions::from_mode(0o600)).unwrap();
    for (options, code, words) in [
        (vec!["--key", "sealed", "--passphrase-file", &wrong], 2, "not the passphrase"),
        (vec!["--key", "sealed", "--passphrase-fd", "77"], 2, "needs its passphrase"),
        (vec!["--key", "open"], 2, "chmod 600"),
        (vec!["--key", "rotten"], 2, "damaged"),
        (vec!["--key", "nobody"], 3, "hypha key create"),
        (vec!["--key", "../x/"], 3, "no key ../x/"),
        (vec!["--key", "Tenant"], 2, "no name for a key"),
        (vec!["--signer", "/nonexistent/signer"], 5, "/nonexistent/signer"),
        (vec!["--signer", "/bin/false"], 5, "/bin/false"),
        (vec!["--signer", "/bin/cat"], 2, "docs/keys.md"),
    ] {
        let verb = ["transfer", "0x00000000000000000000000000000000000000aa", "1"];
        refused(&world, tenant, &[verb.as_slice(), &options].concat(), (code, words));
    }
    let right = ["balance", "--key", "sealed"];
    assert_eq!(world.json(&right)["tokens"], "0", "to look takes no passphrase");
}

#[test]
fn a_node_that_refuses_or_lies_is_shown_in_one_line() {
    let (world, farmer, _) = world();
    for (method, answer, code, words) in [
        ("eth_getTransactionCount", json!({"result": "0x0"}), 5, "another program has sent"),
        ("eth_sendRawTransaction", refusal("insufficient funds for gas"), 2, "can't pay for gas"),
        ("eth_sendRawTransaction", refusal("\u{1b}[2J\u{202e}\nboo"), 5, "Transaction: [2Jboo"),
        ("eth_call", json!({"result": 7}), 5, "cannot be read"),
        ("eth_getBlockByNumber", json!({"result": null}), 5, "cannot be read"),
    ] {
        let url = liar(&world.url, method, answer);
        let to = "0x00000000000000000000000000000000000000aa";
        let verb = ["transfer", to, "1", "--key", "farmer", "--timeout", "5", "--at", &url];
        refused(&world, farmer, &verb, (code, words));
    }
}

fn refusal(message: &str) -> Value {
    json!({"error": {"code": -32000, "message": message}})
}
