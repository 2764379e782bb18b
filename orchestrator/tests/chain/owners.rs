//! What owners and users do now and then: a claim that is raised, a key that is changed, a credit for an
//! hour without service; and files that are none.

use rustix::fs::{CWD, Mode, mkfifoat};
use serde_json::json;

use crate::world::{World, stderr, tokens, units};

/// A farmer with a node of two cores and a stake of 100 tokens, and a tenant of it.
fn world() -> World {
    let world = World::new();
    world.account("farmer", "10000");
    world.account("tenant", "100");
    world.json(&["farm", "create", "--key", "farmer"]);
    let register = ["node", "register", "--stake", "100", "--cores", "2", "--memory", "2GiB"];
    world.json(&[register.as_slice(), &["--key", "farmer"]].concat());
    let claims = ["--cores", "1", "--memory", "1GiB", "--key", "farmer"];
    let price = ["--price", "0.36", "--storage-price", "0.036"];
    world.json(&[["node", "offer", "1"].as_slice(), &claims, &price].concat());
    world.json(&["reserve", "1", "--hours", "20", "--yes", "--key", "tenant"]);
    world
}

fn refused(world: &World, arguments: &[&str], words: &str) {
    let output = world.hypha(arguments);
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {text}");
    let last = text.lines().last().unwrap_or_default();
    assert!(last.starts_with("hypha: ") && last.contains(words), "{arguments:?}: {text}");
}

#[test]
fn an_hour_without_service_is_credited_once_however_often_it_is_asked_for() {
    let world = world();
    world.advance(3 * 3600);
    world.post_verdicts("silent", 1, 0, |leaf| leaf.answered = 0);
    let silent = world.path("silent").display().to_string();
    let has = units(&world.json(&["balance", "--key", "tenant"])["tokens"]);
    let credit = ["credit", "1", "--data", &silent, "--key", "tenant"];
    for _ in 0..2 {
        assert_eq!(units(&world.json(&credit)["credited"]), tokens("0.72"));
    }
    let now = units(&world.json(&["balance", "--key", "tenant"])["tokens"]);
    assert_eq!(now - has, tokens("0.72"));
    let stake = units(&world.json(&["node", "status"])["stake"]);
    assert_eq!(stake, tokens("98.56"), "as much again is burned");
    world.advance(3600);
    world.post_epoch("served", 1, 0);
    let served = world.path("served").display().to_string();
    refused(&world, &["credit", "1", "--data", &served, "--key", "tenant"], "shows no outage");
}

#[test]
fn a_claim_is_raised_to_what_is_proven_and_a_key_is_changed_once() {
    let world = world();
    world.advance(3600);
    world.post_verdicts("less", 1, 0, |leaf| leaf.caps.cores = 4);
    let less = world.path("less").display().to_string();
    let raise = ["node", "raise", "1", "--key", "farmer", "--data"];
    let of = [raise.as_slice(), &[less.as_str()]].concat();
    refused(&world, &of, "a claim is raised when all of it is proven");
    world.advance(3600);
    world.post_verdicts("more", 1, 0, |leaf| (leaf.caps.cores, leaf.caps.mem_mib) = (4, 4096));
    let more = world.path("more").display().to_string();
    let of = [raise.as_slice(), &[more.as_str()]].concat();
    for is_raised in [true, false] {
        let raised = world.json(&of);
        assert_eq!((&raised["raised"], &raised["cores"]), (&json!(is_raised), &json!(4)));
        assert_eq!(units(&raised["stake_needed"]), tokens("15"));
    }
    let claims = &world.json(&["node", "status"])["claims"];
    assert_eq!((&claims["cores"], &claims["memory_mib"]), (&json!(4), &json!(4096)));

    let unnamed = ["node", "rotate-key", "1", "--key", "farmer"];
    refused(&world, &unnamed, "name it with --node-key");
    let rotate = ["node", "rotate-key", "1", "--node-key", "second", "--key", "farmer"];
    let first = world.json(&rotate);
    assert_eq!(first["changed"], true);
    let again = world.json(&rotate);
    assert_eq!((&again["changed"], &again["chain_key"]), (&json!(false), &first["chain_key"]));
    let status = world.json(&["node", "status", "1"]);
    assert_eq!(status["chain_key"], first["chain_key"], "{status}");
}

#[test]
fn a_name_is_a_running_reservations_until_it_is_released() {
    let world = world();
    let show = |world: &World| world.json(&["name", "show", "shop"])["reservation"].clone();
    assert!(show(&world).is_null());
    let register = ["name", "register", "shop", "1", "--key", "tenant"];
    refused(&world, &["name", "register", "shop", "1", "--key", "farmer"], "another account's");
    for _ in 0..2 {
        assert_eq!(world.json(&register)["reservation"], 1);
    }
    world.json(&["reserve", "1", "--hours", "2", "--another", "--yes", "--key", "tenant"]);
    let taken = world.hypha(&["name", "register", "shop", "2", "--key", "tenant"]);
    assert_eq!(taken.status.code(), Some(4), "{}", stderr(&taken));
    assert!(stderr(&taken).contains("reservation 1 has that name"), "{}", stderr(&taken));
    for _ in 0..2 {
        let release = ["name", "release", "shop", "--key", "tenant"];
        assert!(world.json(&release)["reservation"].is_null());
    }
    assert!(show(&world).is_null());
    let bad = world.hypha(&["name", "show", "-shop"]);
    assert_eq!(bad.status.code(), Some(2), "{}", stderr(&bad));
}

#[test]
fn a_pipe_is_no_file_and_is_not_waited_for() {
    let world = world();
    let pipe = world.path("pipe");
    mkfifoat(CWD, &pipe, Mode::RUSR | Mode::WUSR).unwrap();
    let pipe = pipe.to_str().unwrap();
    for arguments in [
        ["reserve", "1", "--hours", "2", "--spec", pipe].as_slice(),
        &["release", "1", "--data", pipe, "--key", "tenant"],
        &["credit", "1", "--data", pipe, "--key", "tenant"],
        &["node", "raise", "1", "--data", pipe, "--key", "farmer"],
        &["farm", "claim", pipe, "--key", "farmer"],
    ] {
        refused(&world, arguments, "it is no regular file");
    }
}
