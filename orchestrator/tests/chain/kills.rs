//! Every verb that sends is killed after each of its transactions, and run again: what was begun is finished,
//! and nothing is done twice.

use std::io::{BufRead, BufReader};
use std::time::Duration;

use hypha_chain::U256;
use hypha_chain::contracts::{Registry, Reservations};
use serde_json::{Value, json};

use crate::between::liar;
use crate::world::{TOKEN, World, stderr, tokens, units};

const RATE: u128 = TOKEN / 10_000;

/// Runs a verb until it has sent its next transaction, which is in no block then, and kills it. What it had
/// sent for is returned.
fn killed(world: &World, arguments: &[&str]) -> String {
    world.make_blocks(false);
    let mut child = world.command(arguments).args(world.at()).spawn().unwrap();
    let mut sent = None;
    for line in BufReader::new(child.stderr.take().unwrap()).lines() {
        let line = line.unwrap();
        if let Some((what, _)) = line.split_once(": transaction 0x") {
            sent = Some(what.to_owned());
            break;
        }
    }
    child.kill().unwrap();
    child.wait().unwrap();
    world.advance(1);
    world.make_blocks(true);
    sent.unwrap_or_else(|| panic!("{arguments:?} sends nothing"))
}

/// Kills a verb once for each of these transactions, and then lets it end.
fn finished(world: &World, arguments: &[&str], transactions: &[&str]) -> Value {
    for expected in transactions {
        let sent = killed(world, arguments);
        assert!(sent.starts_with(expected), "{arguments:?} sends for {sent:?}, not {expected:?}");
    }
    world.json(arguments)
}

/// A farmer with a node and an offer at [`RATE`], and a tenant, by verbs that were all killed.
fn deal(world: &World) {
    let farm = finished(world, &["farm", "create", "--key", "farmer"], &["make the farm"]);
    assert_eq!(farm["farm"], 1);
    let registry = world.suite.registry;
    assert_eq!(world.view(registry, &Registry::farmCountCall {}), 1);
    let claims = ["--cores", "2", "--memory", "2GiB", "--key", "farmer"];
    let register = [["node", "register"].as_slice(), &claims].concat();
    let node = finished(world, &register, &["allow the tokens", "add the node"]);
    assert_eq!(node["node"], 1);
    assert_eq!(world.view(registry, &Registry::nodeCountCall {}), 1);
    let half = ["--cores", "1", "--memory", "1GiB", "--key", "farmer", "--price", "0.36"];
    let offer = [["node", "offer", "1"].as_slice(), &half].concat();
    assert_eq!(finished(world, &offer, &["offer"])["offer"], 1);
    assert_eq!(world.view(world.suite.reservations, &Reservations::offerCountCall {}), 1);
}

#[test]
fn payments_that_the_chain_cannot_tell_apart_are_made_once() {
    let world = World::new();
    let (farmer, tenant) = (world.account("farmer", "10000"), world.account("tenant", "100"));
    deal(&world);
    let reservations = world.suite.reservations;
    let count = || world.view(reservations, &Reservations::reservationCountCall {});

    let reserve = ["reserve", "1", "--hours", "2", "--yes", "--key", "tenant"];
    assert_eq!(finished(&world, &reserve, &["reserve offer 1"])["is_new"], false);
    assert_eq!(count(), 1);
    let another = [reserve.as_slice(), &["--another"]].concat();
    assert_eq!(finished(&world, &another, &["reserve offer 1"])["reservation"], 2);
    assert_eq!(count(), 2);
    assert_eq!(world.balance(tenant), tokens("98.56"));

    for (number, amount) in [("--hours", "1"), ("--amount", "0.36")] {
        let before = world.balance(tenant);
        let top_up = ["top-up", "1", number, amount, "--yes", "--key", "tenant"];
        let topped = finished(&world, &top_up, &["top up reservation 1"]);
        assert_eq!(units(&topped["added"]), tokens("0.36"));
        assert_eq!(before - world.balance(tenant), tokens("0.36"));
        // Asked for once more, it is done once more.
        world.json(&top_up);
        assert_eq!(before - world.balance(tenant), tokens("0.72"));
    }

    let (has, to) = (world.balance(farmer), farmer.to_string());
    let transfer = ["transfer", &to, "5", "--key", "tenant"];
    finished(&world, &transfer, &["send 5 tokens"]);
    assert_eq!(world.balance(farmer) - has, tokens("5"));
    // A note of something else is no obstacle.
    killed(&world, &transfer);
    world.json(&["transfer", &to, "6", "--key", "tenant"]);
    assert_eq!(world.balance(farmer) - has, tokens("16"));
}

#[test]
fn income_and_stake_are_paid_out_once_and_a_reservation_ends_once() {
    let world = World::new();
    let farmer = world.account("farmer", "10000");
    let tenant = world.account("tenant", "100");
    deal(&world);
    let more = ["node", "unstake", "1", "--amount", "0", "--key", "farmer"];
    assert_eq!(units(&world.json(&more)["leaving"]), U256::ZERO);
    world.json(&["reserve", "1", "--hours", "20", "--yes", "--key", "tenant"]);
    let since = world.json(&["reservations", "--key", "tenant"])["credit_from"].as_u64().unwrap();
    world.advance(2 * 3600);
    let proven = world.post_epoch("data", 1, 3 * TOKEN);
    let data = world.path("data").display().to_string();

    let before = world.balance(farmer);
    let withdraw = ["farm", "withdraw", "--data", &data, "--key", "farmer"];
    let steps = ["keep the proof of node 1", "settle 1 reservations", "pay the income out"];
    finished(&world, &withdraw, &steps);
    let gross = U256::from(u128::from(proven - since) * RATE);
    let net = gross - gross.div_ceil(U256::from(10));
    assert_eq!(world.balance(farmer) - before, net);
    let claim = ["farm", "claim", &data, "--key", "farmer"];
    finished(&world, &claim, &["claim the rewards"]);
    assert_eq!(world.balance(farmer) - before, net + tokens("3"));

    let release = ["release", "1", "--key", "tenant"];
    let ended = finished(&world, &release, &["end the reservation"]);
    assert!(ended["refunded"].is_null(), "{ended}");
    world.advance(48 * 3600);
    let back = finished(&world, &release, &["take the rest back"]);
    assert_eq!(units(&back["refunded"]), tokens("7.2") - gross);
    assert_eq!(world.balance(tenant), tokens("100") - gross);

    finished(&world, &["node", "unstake", "1", "--retire", "--key", "farmer"], &["retire"]);
    world.advance(14 * 24 * 3600);
    finished(&world, &["node", "unstake", "1", "--key", "farmer"], &["pay the stake out"]);
    assert_eq!(world.balance(farmer), tokens("10003") + net);
}

#[test]
fn keys_names_claims_and_credits_are_changed_once() {
    let world = World::new();
    world.account("farmer", "10000");
    world.account("tenant", "100");
    deal(&world);
    let rotate = ["node", "rotate-key", "1", "--node-key", "node-2", "--key", "farmer"];
    let changed = finished(&world, &rotate, &["change the node's key"]);
    let status = world.json(&["node", "status", "1"]);
    assert_eq!((&changed["changed"], &changed["chain_key"]), (&json!(false), &status["chain_key"]));
    let maintenance = ["node", "maintenance", "1", "--hours", "1", "--key", "farmer"];
    let announced = finished(&world, &maintenance, &["announce maintenance"]);
    assert_eq!(world.json(&maintenance), announced);
    world.json(&["reserve", "1", "--hours", "20", "--yes", "--key", "tenant"]);
    let register = ["name", "register", "shop", "1", "--key", "tenant"];
    assert_eq!(finished(&world, &register, &["register the name"])["reservation"], 1);
    let release = ["name", "release", "shop", "--key", "tenant"];
    assert!(finished(&world, &release, &["release the name"])["reservation"].is_null());
    // Later than what is announced: an hour within it is no outage.
    world.advance(5 * 3600);
    world.post_verdicts("epoch", 1, 0, |leaf| {
        (leaf.answered, leaf.caps.cores, leaf.caps.mem_mib) = (0, 4, 4096);
    });
    let data = world.path("epoch").display().to_string();
    let raise = ["node", "raise", "1", "--data", &data, "--key", "farmer"];
    let stake = ["node", "register", "--node-key", "node-2", "--stake", "100", "--key", "farmer"];
    let transactions = ["allow the tokens", "add to the stake"];
    assert_eq!(units(&finished(&world, &stake, &transactions)["stake"]), tokens("100"));
    assert_eq!(finished(&world, &raise, &["raise the claim"])["cores"], 4);
    let before = units(&world.json(&["balance", "--key", "tenant"])["tokens"]);
    let credit = ["credit", "1", "--data", &data, "--key", "tenant"];
    assert_eq!(units(&finished(&world, &credit, &["take the credit"])["credited"]), tokens("0.72"));
    let after = units(&world.json(&["balance", "--key", "tenant"])["tokens"]);
    assert_eq!(after - before, tokens("0.72"));
}

#[test]
fn what_was_signed_for_later_is_not_done_twice() {
    let world = World::new();
    let tenant = world.account("tenant", "10");
    let transfer =
        ["transfer", "0x00000000000000000000000000000000000000aa", "5", "--key", "tenant"];
    // The endpoint tells a nonce that is far ahead, and keeps what is sent to itself.
    let counts = liar(&world.url, "eth_getTransactionCount", json!({"result": "0x7"}));
    let keeps = liar(&counts, "eth_sendRawTransaction", json!({"result": null}));
    let contracts = world.path("contracts.json");
    let mut through = world.command(&transfer);
    through.args(["--max-skew", "4000000000", "--timeout", "5", "--at", &keeps, "--contracts"]);
    let output = through.arg(&contracts).output().unwrap();
    assert_eq!(output.status.code(), Some(5), "{}", stderr(&output));
    let again = world.hypha(&transfer);
    assert_eq!(again.status.code(), Some(2), "{}", stderr(&again));
    let text = stderr(&again);
    assert!(text.contains("with the nonce 7") && text.contains("next one is 0"), "{text}");
    assert_eq!(world.balance(tenant), tokens("10"));
    let note = text.split_once("delete ").unwrap().1.split_once(" to go on").unwrap().0;
    std::fs::remove_file(note).unwrap();
    world.json(&transfer);
    assert_eq!(world.balance(tenant), tokens("5"));
}

#[test]
fn a_run_waits_for_what_an_earlier_one_has_sent() {
    let world = World::new();
    let account = world.account("farmer", "10");
    let create = ["farm", "create", "--key", "farmer"];
    world.make_blocks(false);
    let mut first = world.command(&create).args(world.at()).spawn().unwrap();
    let mut lines = BufReader::new(first.stderr.take().unwrap()).lines();
    lines.find(|line| line.as_ref().unwrap().contains("transaction 0x")).unwrap().unwrap();
    first.kill().unwrap();
    first.wait().unwrap();
    let mut second = world.command(&create).args(world.at()).spawn().unwrap();
    let mut lines = BufReader::new(second.stderr.take().unwrap()).lines();
    let line = lines.next().unwrap().unwrap();
    assert_eq!(line, format!("transactions of {account} wait for a block"));
    std::thread::sleep(Duration::from_millis(100));
    world.make_blocks(true);
    assert!(second.wait().unwrap().success());
    assert_eq!(world.view(world.suite.registry, &Registry::farmCountCall {}), 1);
}
