//! A farmer's and a tenant's story, from their keys to their money back, each amount exact.

use hypha_chain::SolCall;
use hypha_chain::U256;
use hypha_chain::contracts::{GridToken, Registry};
use serde_json::{Value, json};

use crate::world::{SUPPLY, TOKEN, World, holder, stderr, tokens, units};

/// 0.36 and 0.036 tokens an hour, in units a second.
const RATE: u128 = TOKEN / 10_000;
const STORAGE_RATE: u128 = TOKEN / 100_000;
const DAY: u64 = 24 * 3600;

fn burned(paid: U256) -> U256 {
    paid.div_ceil(U256::from(10))
}

/// A farm, a node, an offer; each verb twice, and the second time nothing is done. The stake is returned.
fn a_farmer_comes(world: &World) -> U256 {
    for _ in 0..2 {
        assert_eq!(world.json(&["farm", "create", "--key", "farmer"])["farm"], 1);
    }
    let register = ["node", "register", "--cores", "4", "--memory", "8GiB", "--ssd", "100GiB"];
    let register = [register.as_slice(), &["--key", "farmer"]].concat();
    let registered = world.json(&register);
    assert_eq!(registered["node"], 1);
    assert_eq!(world.json(&register), registered);
    let status = world.json(&["node", "status"]);
    assert_eq!(status["keys_vouch_for_each_other"], true, "{status}");
    assert_eq!(status["claims"]["memory_mib"], 8192);
    let offer = ["node", "offer", "1", "--cores", "2", "--memory", "4GiB", "--ssd", "10GiB"];
    let price = ["--price", "0.36", "--storage-price", "0.036", "--key", "farmer"];
    let offer = [offer.as_slice(), price.as_slice()].concat();
    for _ in 0..2 {
        assert_eq!(world.json(&offer)["offer"], 1);
    }
    units(&registered["stake"])
}

/// The offer is found, reserved once for ten hours, and two more are added. Its first second is returned.
fn a_tenant_comes(world: &World) -> u64 {
    assert!(world.lines(&["offers", "--cores", "3"]).is_empty());
    assert!(world.lines(&["offers", "--max-price", "0.35"]).is_empty());
    let offers = world.lines(&["offers", "--cores", "2", "--max-price", "0.36"]);
    assert_eq!(offers.len(), 1, "{offers:?}");
    assert_eq!(units(&offers[0]["rate"]), U256::from(RATE));
    let reserve = ["reserve", "1", "--hours", "10", "--yes", "--key", "tenant"];
    let reserved = world.json(&reserve);
    assert_eq!((&reserved["reservation"], &reserved["is_new"]), (&json!(1), &json!(true)));
    assert_eq!(units(&reserved["deposit"]), tokens("4.464"));
    assert_eq!(world.json(&reserve)["is_new"], false);
    let topped = world.json(&["top-up", "1", "--hours", "2", "--yes", "--key", "tenant"]);
    assert_eq!(units(&topped["added"]), tokens("0.72"));
    let held = world.json(&["reservations", "--key", "tenant"]);
    let since = held["credit_from"].as_u64().unwrap();
    assert_eq!(held["runs_until"].as_u64().unwrap(), since + 12 * 3600);
    assert_eq!(held["kept_until"].as_u64().unwrap(), since + 12 * 3600 + DAY);
    let balance = world.json(&["balance", "--key", "tenant"]);
    assert_eq!(units(&balance["in_reservations"]), tokens("5.184"));
    since
}

/// The offer ends, and the stake comes back two weeks later.
fn a_farmer_goes(world: &World, stake: U256) {
    world.json(&["node", "maintenance", "1", "--hours", "2", "--key", "farmer"]);
    for _ in 0..2 {
        assert_eq!(world.json(&["node", "offer", "--end", "1", "--key", "farmer"])["open"], false);
    }
    assert!(world.lines(&["offers", "--all"]).is_empty());
    let retired = world.json(&["node", "unstake", "1", "--retire", "--key", "farmer"]);
    assert_eq!(units(&retired["leaving"]), stake);
    world.advance(14 * DAY);
    let paid = world.json(&["node", "unstake", "1", "--key", "farmer"]);
    assert_eq!(units(&paid["paid"]), stake);
}

#[test]
fn a_farmer_and_a_tenant_deal_and_every_unit_is_accounted_for() {
    let world = World::new();
    let (farmer, tenant) = (world.account("farmer", "10000"), world.account("tenant", "100"));
    let stake = a_farmer_comes(&world);
    assert_eq!(world.balance(farmer), tokens("10000") - stake);
    let since = a_tenant_comes(&world);
    assert_eq!(world.balance(tenant), tokens("94.816"));

    // Three hours go by, an epoch is posted and final: the farm is paid for what is proven, and no more.
    world.advance(3 * 3600);
    let proven = world.post_epoch("first", 1, 7 * TOKEN);
    let first = world.path("first").display().to_string();
    let withdraw = ["farm", "withdraw", "--key", "farmer"];
    assert_eq!(units(&world.json(&withdraw)["paid"]), U256::ZERO, "nothing is proven yet");
    let withdraw = ["farm", "withdraw", "--data", &first, "--key", "farmer"];
    let gross = U256::from(u128::from(proven - since) * RATE);
    let net = gross - burned(gross);
    assert_eq!(units(&world.json(&withdraw)["paid"]), net);
    assert_eq!(units(&world.json(&withdraw)["paid"]), U256::ZERO);
    assert_eq!(world.balance(farmer), tokens("10000") - stake + net);
    let status = world.json(&["node", "status"]);
    assert_eq!((&status["proven_until"], &status["state"]), (&json!(proven), &json!("active")));
    assert_eq!(status["parkable_from"], proven + 7 * DAY);
    assert_eq!((&status["reserved"]["cores"], &status["plot_bytes"]), (&json!(2), &json!(0)));
    let text = String::from_utf8(world.hypha(&["node", "status"]).stdout).unwrap();
    let line = text.lines().find(|line| line.starts_with("proven ")).unwrap();
    assert!(line.contains("  until 20") && line.contains("; anyone can park it from 20"), "{text}");
    assert!(text.contains("reserved     2 cores, 4 GiB memory, 10 GiB SSD\n"), "{text}");
    let claim = ["farm", "claim", &first, "--key", "farmer"];
    assert_eq!(units(&world.json(&claim)["claimed"]), tokens("7"));
    assert_eq!(units(&world.json(&claim)["claimed"]), U256::ZERO);

    // The tenant goes; what was not used comes back when the rest is proven.
    let release = ["release", "1", "--key", "tenant"];
    let ended = world.json(&release);
    assert!(ended["refunded"].is_null(), "{ended}");
    let end = ended["ended_at"].as_u64().unwrap();
    assert!(world.json(&release)["refunded"].is_null(), "it waits for proofs");
    world.advance(3600);
    assert!(world.post_epoch("second", 1, 7 * TOKEN) >= end);
    let second = world.path("second").display().to_string();
    let used = U256::from(u128::from(end - since) * RATE);
    for _ in 0..2 {
        let release = ["release", "1", "--data", &second, "--key", "tenant"];
        assert_eq!(units(&world.json(&release)["refunded"]), tokens("5.184") - used);
    }
    assert_eq!(world.balance(tenant), tokens("100") - used);
    let rest = used - gross;
    assert_eq!(units(&world.json(&withdraw)["paid"]), rest - burned(rest));

    a_farmer_goes(&world, stake);
    let income = used - burned(gross) - burned(rest);
    assert_eq!(world.balance(farmer), tokens("10007") + income);

    // No unit was made or lost but what was minted and burned.
    let supply = world.view(world.suite.token, &GridToken::totalSupplyCall {});
    assert_eq!(supply, U256::from(SUPPLY) + tokens("7") - burned(gross) - burned(rest));
    let bond = tokens("1000");
    let all = world.balance(holder().address()) + world.balance(farmer) + world.balance(tenant);
    assert_eq!(all + bond, supply);
}

#[test]
fn a_paused_machine_is_resumed_with_a_bond_that_is_whole_again() {
    let world = World::new();
    world.account("farmer", "10000");
    world.account("tenant", "100");
    world.json(&["farm", "create", "--key", "farmer"]);
    let claims = ["--cores", "1", "--memory", "1GiB", "--key", "farmer"];
    world.json(&[["node", "register"].as_slice(), &claims].concat());
    let price = ["--price", "0.36", "--storage-price", "0.036"];
    world.json(&[["node", "offer", "1"].as_slice(), &claims, &price].concat());
    world.json(&["reserve", "1", "--hours", "1", "--yes", "--key", "tenant"]);
    world.advance(3 * 3600);
    assert_eq!(world.json(&["reservations", "--key", "tenant"])["state"], "paused");
    world.json(&["top-up", "1", "--hours", "5", "--yes", "--key", "tenant"]);
    let held = world.json(&["reservations", "--key", "tenant"]);
    assert_eq!(held["state"], "running");
    assert_eq!(units(&held["bond"]), U256::from(u128::from(DAY) * STORAGE_RATE));
    let balance = units(&held["balance"]);
    assert!(balance >= U256::from(5 * 3600 * RATE), "{balance} pays for five hours");
    world.advance(40 * 3600);
    assert_eq!(world.json(&["reservations", "--key", "tenant"])["state"], "run-out");
    let income = world.json(&["farm", "status", "--key", "farmer"]);
    assert_eq!(income["nodes"], json!([1]));
    // The farmer ends what has run out, and so has room again.
    assert!(world.lines(&["offers"]).is_empty());
    world.json(&["farm", "withdraw", "--key", "farmer"]);
    assert_eq!(world.lines(&["offers"]).len(), 1);
}

#[test]
fn a_parked_node_comes_back_and_a_stake_is_added_to_by_registering_again() {
    let world = World::new();
    let farmer = world.account("farmer", "10000");
    world.json(&["farm", "create", "--key", "farmer"]);
    let register = ["node", "register", "--key", "farmer"];
    let claims = ["--cores", "1", "--memory", "1GiB"];
    let stake = units(&world.json(&[register.as_slice(), &claims].concat())["stake"]);
    // A week of silence, and anyone may park it.
    let status = world.json(&["node", "status"]);
    let since = status["since"].as_u64().unwrap();
    assert_eq!(status["parkable_from"], since + 7 * DAY);
    assert_eq!(status["chain_key_lacks_gas"], false, "gas costs nothing here");
    let text = || String::from_utf8(world.hypha(&["node", "status"]).stdout).unwrap();
    assert!(text().contains("never; anyone can park it from"), "{}", text());
    world.advance(8 * DAY);
    assert!(text().contains("ANYONE CAN PARK IT NOW"), "{}", text());
    world.execute(Some(world.suite.registry), Registry::parkCall { node: 1 }.abi_encode().into());
    let status = world.json(&["node", "status"]);
    assert_eq!((&status["state"], &status["parkable_from"]), (&"parked".into(), &Value::Null));
    let more = [register.as_slice(), &["--stake", "5000"]].concat();
    for _ in 0..2 {
        assert_eq!(units(&world.json(&more)["stake"]), tokens("5000"));
        assert_eq!(world.balance(farmer), tokens("5000"));
    }
    assert!(stake < tokens("5000"));
    assert_eq!(world.json(&["node", "status"])["state"], "active");
    // What is claimed is not changed on the way.
    let other = ["node", "register", "--cores", "2", "--memory", "1GiB", "--key", "farmer"];
    let output = world.hypha(&other);
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(stderr(&output).contains("claims 1 core, 1 GiB memory"), "{}", stderr(&output));
}

#[test]
fn what_is_measured_is_claimed_and_never_more_than_is_named() {
    let world = World::new();
    world.account("farmer", "10000");
    world.json(&["farm", "create", "--key", "farmer"]);
    let named = ["--cores", "1", "--memory", "64MiB", "--ssd", "1GiB", "--hdd", "1GiB"];
    let register = [["node", "register", "--key", "farmer"].as_slice(), &named].concat();
    let folder = world.folder.path().display().to_string();
    let output = world.hypha(&[register.as_slice(), &["--measured", &folder]].concat());
    if output.status.code() == Some(2) {
        // A machine that is busy with other tests may prove nothing in time, and then claims nothing.
        assert!(stderr(&output).contains("hypha node measure"), "{}", stderr(&output));
        assert_eq!(world.view(world.suite.registry, &Registry::nodeCountCall {}), 0);
        return;
    }
    assert!(output.status.success(), "{}", stderr(&output));
    let claims = &world.json(&["node", "status"])["claims"];
    assert_eq!((&claims["cores"], &claims["memory_mib"]), (&json!(1), &json!(64)));
    let disks = [&claims["ssd_mib"], &claims["hdd_mib"]].map(|count| count.as_u64().unwrap());
    assert!(disks.iter().all(|count| *count <= 1024) && disks.contains(&0), "{disks:?}: one disk");
    // Measured again, it would differ; what is claimed stays.
    let again = [register.as_slice(), &["--measured", &folder]].concat();
    assert_eq!(world.json(&again)["node"], 1);
}
