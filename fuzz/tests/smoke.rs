//! Every fuzz target on stable: its seed corpus, and mutations of it from a fixed seed.
#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

use fastrand::Rng;
use fuzz::mutate::mutate;
use fuzz::{TARGETS, Target};

/// The seed of the first mutation; each further one adds 1. `HYPHA_FUZZ_SEED` chooses another, and
/// `HYPHA_FUZZ_RUNS` another number of them.
const SEED: u64 = 20_261_120;

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn corpus(target: &Target) -> Vec<(String, Vec<u8>)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name);
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|_| panic!("no {}", folder.display()));
    let mut files: Vec<(String, Vec<u8>)> = entries
        .map(|entry| entry.unwrap())
        .map(|entry| {
            (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap())
        })
        .collect();
    files.sort();
    assert!(!files.is_empty(), "{} has no corpus", target.name);
    files
}

fn run(target: &Target, input: &[u8], origin: &str) -> bool {
    let Ok(got_through) = catch_unwind(AssertUnwindSafe(|| (target.check)(input))) else {
        panic!("{}: {origin} breaks a promise; the input: {input:02x?}", target.name);
    };
    got_through
}

fn smoke(name: &str) {
    let target = TARGETS.iter().find(|target| target.name == name).unwrap();
    let corpus = corpus(target);
    let through = corpus.iter().filter(|(file, input)| run(target, input, file)).count();
    assert!(through > 0, "no file of the corpus of {name} reaches deep any more");
    let (seed, runs) = (number("HYPHA_FUZZ_SEED", SEED), number("HYPHA_FUZZ_RUNS", target.runs));
    let mut mutants_through = 0;
    for seed in seed..seed + runs {
        let mut rng = Rng::with_seed(seed);
        let (_, input) = rng.choice(&corpus).unwrap();
        let (_, other) = rng.choice(&corpus).unwrap();
        let input = mutate(input, other, &mut rng);
        let origin = format!("HYPHA_FUZZ_SEED={seed} HYPHA_FUZZ_RUNS=1");
        mutants_through += usize::from(run(target, &input, &origin));
    }
    println!(
        "{name}: {through} of {} seed inputs and {mutants_through} of {runs} mutations from seed \
         {seed} got all the way",
        corpus.len()
    );
}

#[test]
fn a_virtqueue_withstands_any_driver() {
    smoke("virtqueue");
}

#[test]
fn the_boot_loader_withstands_any_file() {
    smoke("boot_elf");
}

#[test]
fn the_spec_parser_withstands_any_file() {
    smoke("spec_json");
}

#[test]
fn a_node_that_proves_withstands_any_peer_and_any_disk() {
    smoke("proof_node");
}

#[test]
fn a_node_withstands_any_files() {
    smoke("disk");
}

#[test]
fn a_register_withstands_an_acceptor_that_lies() {
    smoke("register");
}

#[test]
fn a_map_withstands_pages_that_say_anything() {
    smoke("map_pages");
}

#[test]
fn a_segment_withstands_whoever_keeps_its_shards() {
    smoke("segment");
}

#[test]
fn a_volume_withstands_any_stores() {
    smoke("journal");
}

#[test]
fn a_member_of_the_mesh_withstands_any_network() {
    smoke("mesh");
}

#[test]
fn offloads_withstand_any_guest_and_any_peer() {
    smoke("offload");
}

#[test]
fn a_node_withstands_what_strangers_and_cards_say() {
    smoke("mesh_link");
}

#[test]
fn an_edge_withstands_any_mycelium() {
    smoke("mycelium");
}

#[test]
fn a_way_out_withstands_any_packets() {
    smoke("nat");
}

#[test]
fn a_resolver_withstands_any_member_and_any_server() {
    smoke("dns");
}

#[test]
fn a_gateway_withstands_any_first_bytes() {
    smoke("sni");
}

#[test]
fn a_card_withstands_any_dhcp_client() {
    smoke("dhcp");
}

#[test]
fn an_nbd_server_withstands_any_client() {
    smoke("nbd");
}

#[test]
fn every_target_has_a_program_for_cargo_fuzz_and_a_corpus() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz_targets");
    let mut programs: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned())
        .collect();
    programs.sort();
    let mut names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
    names.sort_unstable();
    assert_eq!(programs, names);
    for target in TARGETS {
        corpus(target);
    }
}

#[test]
fn a_shard_server_withstands_any_client() {
    smoke("shard_request");
}

#[test]
fn a_shard_client_withstands_any_node() {
    smoke("shard_response");
}

#[test]
fn a_shard_handshake_withstands_any_change() {
    smoke("shard_handshake");
}

#[test]
fn a_mesh_handshake_withstands_any_network_and_any_peer() {
    smoke("mesh_handshake");
}

#[test]
fn a_reader_of_certificates_withstands_any_bytes() {
    smoke("certificate");
}

#[test]
fn a_node_withstands_a_neighbour_that_says_anything() {
    smoke("mesh_node");
}

#[test]
fn a_router_withstands_any_neighbour() {
    smoke("mesh_router");
}

#[test]
fn the_chain_withstands_any_transaction() {
    smoke("chain_transaction");
}

#[test]
fn the_chain_withstands_any_question() {
    smoke("chain_question");
}

#[test]
fn a_client_withstands_any_answer_of_a_node() {
    smoke("chain_answer");
}

#[test]
fn a_participant_withstands_any_message() {
    smoke("participant");
}

#[test]
fn a_witness_withstands_any_answer() {
    smoke("pulse_answer");
}
