//! Five nodes, one beside a shard server: pulses, witnesses, verdicts, an epoch that is posted and accepted, rewards that are
//! claimed, a node that stops and is not paid, a reservation that displaces filler, a challenge that is
//! answered, and a node that is killed.

use hypha_chain::U256;
use hypha_chain::client::Receipt;
use hypha_chain::contracts::{Capacity, GridToken};
use hypha_chain::sol_types::SolEvent;
use hypha_proofs::network::epoch::EpochData;
use hypha_proofs::network::roster::Caps;
use serde_json::Value;

use crate::cheater::Cheater;
use crate::village::{Process, Village};

const MIB: u64 = 1 << 20;
const WEEK: u64 = 7 * 86_400;

fn is(kind: &'static str) -> impl Fn(&Value) -> bool {
    move |event| event["event"] == kind
}

/// An epoch with a pulse that so many nodes have answered, after the first `from` events.
fn epoch(first: &Process, from: usize, answered: u64) -> u32 {
    let epoch = first.wait(from, "an epoch", |event| {
        event["event"] == "epoch"
            && event["pulses"].as_u64() > Some(0)
            && event["answered"] == answered
    });
    epoch["epoch"].as_u64().unwrap() as u32
}

/// A tenant reserves half a disk: the filler goes, and comes back when the tenant does.
fn a_reservation_displaces_filler(village: &Village, node: &Process) {
    node.wait(0, "all filler", |it| it["event"] == "plotted" && it["kept"] == 4 * MIB);
    let price = ["--price", "0.36", "--storage-price", "0.036", "--key", "farmer"];
    let offer =
        [["node", "offer", "2", "--cores", "0", "--ssd", "2MiB"].as_slice(), &price].concat();
    let offer = village.json("2", &offer)["offer"].as_u64().unwrap().to_string();
    village.account("tenant", "tenant", 1000);
    let from = node.count();
    let reserve = ["reserve", &offer, "--hours", "1000", "--yes", "--key", "tenant"];
    let id = village.json("tenant", &reserve)["reservation"].as_u64().unwrap().to_string();
    let given_up = node.wait(from, "filler given up", is("given-up"));
    assert_eq!(given_up["kept"], 2 * MIB);
    node.wait(from, "a smaller plot", |it| it["event"] == "sent" && it["what"] == "plot");
    let plot = || {
        let call = Capacity::plotsCall(2);
        village.client.view(village.suite.capacity, &call).unwrap()
    };
    assert_eq!(plot().bytesLen, 2 * MIB);
    let from = node.count();
    village.json("tenant", &["release", &id, "--key", "tenant"]);
    node.wait(from, "all filler again", |it| it["event"] == "plotted" && it["kept"] == 4 * MIB);
}

/// Beside a node are shards of a tenant's volume: they are in its plot, and filler made room for them.
/// Returns how many bytes of either.
fn shards_are_in_the_plot(village: &Village, node: &Process) -> (u64, u64) {
    let shards = node
        .wait(0, "shards", |it| it["event"] == "shards" && it["proven"].as_u64() > Some(3 * MIB));
    let shards = shards["proven"].as_u64().unwrap();
    let filler = |bytes: u64| bytes.checked_sub(shards).filter(|filler| *filler < MIB);
    (shards, plot(village, 4, filler))
}

/// What a node has committed to, when it is what is wanted.
fn plot<T>(village: &Village, node: u32, wanted: impl Fn(u64) -> Option<T>) -> T {
    let mut bytes = 0;
    for _ in 0..400 {
        let call = Capacity::plotsCall(node);
        bytes = village.client.view(village.suite.capacity, &call).unwrap().bytesLen;
        if let Some(it) = wanted(bytes) {
            return it;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    panic!("node {node} has committed to {bytes} bytes");
}

/// The tenant removes the volume: what is gone is not in the plot any more, and filler takes its place.
fn deleted_shards_make_room(village: &Village, node: &Process, shards: u64) {
    let from = node.count();
    village.hypha("tenant", &["volume", "rm", "db", "--yes"]);
    let gone = node.wait(from, "deleted shards", |it| {
        it["event"] == "shards" && it["proven"].as_u64() < Some(shards / 2)
    });
    assert!(gone["lost"].as_u64() > Some(0), "{gone}");
    node.wait(from, "more filler", |it| it["event"] == "plotted" && it["kept"] == 4 * MIB);
    node.wait(from, "another plot", |it| it["event"] == "sent" && it["what"] == "plot");
}

/// While a node proves, its status says what it claims and has committed to, and from when on silence costs.
fn the_status_says_how_it_is(village: &Village, node: usize, plot_bytes: u64) {
    let name = node.to_string();
    let status = village.json(&name, &["node", "status"]);
    assert_eq!((&status["node"], &status["state"]), (&node.into(), &"active".into()));
    assert_eq!(
        (&status["claims"]["cores"], &status["claims"]["memory_mib"]),
        (&1.into(), &2.into())
    );
    assert_eq!(
        (&status["plot_bytes"], &status["reserved"]["ssd_mib"]),
        (&plot_bytes.into(), &0.into())
    );
    // Nothing is reserved: the chain is not shown yet what was proven.
    let since = status["since"].as_u64().unwrap();
    assert_eq!(
        (&status["proven_until"], &status["parkable_from"]),
        (&0.into(), &(since + WEEK).into())
    );
    let text = village.text(&name, &["node", "status"]);
    assert!(text.contains(&format!("node         {node} of farm {node}, active\n")), "{text}");
    assert!(text.contains("proven       never; anyone can park it from 20"), "{text}");
    assert!(text.contains(&format!("plot         {} MiB\n", plot_bytes >> 20)), "{text}");
}

/// The tenant of a node takes the rest back by an epoch that shows the node as proven: then the chain has it.
fn the_status_says_until_when_it_is_proven(village: &Village, epoch: u32) {
    let data = village.path(&format!("1/node/epochs/{epoch}"));
    let release = ["release", "1", "--data", data.to_str().unwrap(), "--key", "tenant"];
    assert!(village.json("tenant", &release)["refunded"].is_string());
    let call = Capacity::epochEndCall { epoch };
    let until: u64 = village.client.view(village.suite.capacity, &call).unwrap().to();
    let status = village.json("2", &["node", "status"]);
    let shown = status["proven_until"].as_u64().unwrap();
    assert!(shown >= until, "{status}");
    assert_eq!(status["parkable_from"], shown + WEEK);
    let text = village.text("2", &["node", "status"]);
    let line = text.lines().find(|line| line.starts_with("proven ")).unwrap();
    assert!(line.contains("  until 20") && line.contains("; anyone can park it from 20"), "{text}");
}

/// Somebody challenges a node on the chain, and the node shows the byte.
fn a_challenge_is_answered(village: &Village, node: &Process, number: u32) {
    let capacity = village.suite.capacity;
    let amount = U256::from(10).pow(U256::from(18));
    village.execute(village.suite.token, &GridToken::approveCall { spender: capacity, amount });
    let from = node.count();
    village.execute(capacity, &Capacity::challengeCall { node: number });
    node.wait(from, "an answer", |it| {
        it["event"] == "sent" && it["what"].as_str().is_some_and(|it| it.starts_with("challenge"))
    });
}

/// Somebody appeals against a posted epoch without cause: the aggregator has a jury seated, and nodes vote
/// for the epoch by themselves.
fn appeal(village: &Village, aggregator: &Process, posted: &Value) -> (u64, bool) {
    let (token, capacity) = (village.suite.token, village.suite.capacity);
    let hash = posted["transaction"].as_str().unwrap().parse().unwrap();
    let receipt = village.client.receipt(&hash).unwrap().unwrap();
    let posted = event::<Capacity::EpochPosted>(&receipt).posted;
    let amount = U256::from(100) * U256::from(10).pow(U256::from(18));
    village.execute(token, &GridToken::approveCall { spender: capacity, amount });
    let from = aggregator.count();
    let receipt = village.execute(capacity, &Capacity::appealCall { posted });
    let id = event::<Capacity::Demanded>(&receipt).demand.id;
    // On a busy machine the ten minutes that there are for it may be over before they are seen.
    let (seat, decide) = (format!("seat({id})"), format!("decide({id})"));
    let next = aggregator.wait(from, "a jury, or the end without one", |it| {
        it["event"] == "sent" && (it["what"] == seat || it["what"] == decide)
    });
    let jury = village.client.view(capacity, &Capacity::juryCall(id)).unwrap();
    assert_eq!(jury.weight.is_zero(), next["what"] == decide);
    (id, !jury.weight.is_zero())
}

/// The first event of a kind in a receipt.
fn event<E: SolEvent>(receipt: &Receipt) -> E {
    let found = receipt.logs.iter().find_map(|log| E::decode_log(log).ok());
    found.unwrap().data
}

/// Nobody was against an epoch in an appeal, which is over; and if there was a jury, somebody was for it.
fn appeal_has_failed(village: &Village, appeal: u64, was_seated: bool) {
    let votes = village.client.view(village.suite.capacity, &Capacity::votesCall(appeal)).unwrap();
    assert_eq!((votes.rejected, votes.upheld > 0), (0, was_seated));
}

/// An aggregator has posted an epoch that pays a farm more: nodes find out by themselves, one appeals, all
/// vote, and the epoch is voided.
fn a_false_epoch_is_voted_out(village: &Village, nodes: &[Process], cheater: &Cheater) {
    let from: Vec<usize> = nodes.iter().map(Process::count).collect();
    let epoch = cheater.post(village, 5);
    for (node, from) in nodes.iter().zip(&from) {
        let found = node.wait(*from, "an objection", |it| {
            it["event"] == "epoch-differs" && it["epoch"] == epoch
        });
        // By its data, leaf by leaf, and not since it had none.
        assert!(found["objections"].to_string().contains("theirs"), "{found}");
    }
    nodes[1].wait(from[1], "an appeal", |it| {
        it["event"] == "sent" && it["what"] == format!("appeal({epoch})")
    });
    // If the ten minutes for seating the jury are over too soon, there is another appeal; and who is slow
    // may miss the vote.
    let mut votes = Vec::new();
    for (node, from) in nodes.iter().zip(&from) {
        node.wait(*from, "a voided epoch", |it| {
            it["event"] == "epoch-voided" && it["epoch"] == epoch
        });
        votes.extend(node.all("voted").into_iter().filter(|it| it["epoch"] == epoch));
    }
    assert!(!votes.is_empty() && votes.iter().all(|it| it["true"] == false), "{votes:?}");
    assert_eq!(cheater.bond(village), 0);
}

/// A node has answered a pulse with all that it has.
fn answers_all(node: &Process) {
    let answered = node.wait(0, "a whole answer", |event| {
        event["event"] == "answered" && event["disk"] == true && event["memory"] == true
    });
    assert_eq!(answered["threads"], 1);
    assert!(answered["lost"].as_array().unwrap().is_empty(), "{answered}");
}

/// The chain is away for a while: that is said once, and then that it is back.
fn the_chain_is_away(village: &mut Village, node: &Process) {
    let from = node.count();
    village.interrupt_chain(|| _ = node.wait(from, "no chain", is("chain-down")));
    node.wait(from, "the chain again", is("chain-up"));
    assert_eq!(node.all("chain-down").len(), 1);
}

/// No pulse was answered by both lives of a node that was killed.
fn no_pulse_is_answered_twice(before: &[Value], again: &Process) {
    let pulses = |events: &[Value]| -> Vec<u64> {
        let answered = events.iter().filter(|event| event["event"] == "answered");
        answered.map(|event| event["pulse"].as_u64().unwrap()).collect()
    };
    let after = pulses(&again.all("answered"));
    assert!(!after.is_empty() && pulses(before).iter().all(|pulse| !after.contains(pulse)));
}

#[test]
fn five_nodes_prove_and_are_paid_for_it() {
    let mut village = Village::new(5);
    let data: Vec<u8> = (0..2 * MIB).map(|at| (at / 7 % 251) as u8).collect();
    let server = village.keep_shards(4, &data);
    let mut nodes: Vec<Process> = (1..=5).map(|node| village.prove(node)).collect();
    nodes.iter().for_each(answers_all);
    let all = epoch(&nodes[0], 0, 5);
    let posted = nodes[0].wait(0, "a posted epoch", |it| {
        it["event"] == "sent" && it["what"] == format!("epoch({all})")
    });
    assert!(posted["transaction"].is_string());
    let (appeal, was_seated) = appeal(&village, &nodes[0], &posted);
    a_reservation_displaces_filler(&village, &nodes[1]);
    nodes[0].wait(0, "all filler", |it| it["event"] == "plotted" && it["kept"] == 4 * MIB);
    plot(&village, 1, |bytes| (bytes == 4 * MIB).then_some(()));
    the_status_says_how_it_is(&village, 1, 4 * MIB);
    a_challenge_is_answered(&village, &nodes[2], 3);
    let (shards, filler) = shards_are_in_the_plot(&village, &nodes[3]);
    // Four bytes of five are in shards.
    a_challenge_is_answered(&village, &nodes[3], 4);
    a_challenge_is_answered(&village, &nodes[3], 4);

    the_chain_is_away(&mut village, &nodes[3]);

    // One is killed and comes back, another stops for good.
    let before = nodes.remove(2).kill();
    let again = village.prove(3);
    nodes.insert(2, again);
    nodes.remove(4).stop();
    let from = nodes[0].count();
    // The next to end may have a pulse that the node that stopped has answered.
    nodes[0].wait(from, "an epoch", is("epoch"));
    let cheater = Cheater::instead_of(&village, 5);
    let from = nodes[0].count();
    a_false_epoch_is_voted_out(&village, &nodes, &cheater);
    let without = epoch(&nodes[0], from, 4);
    let posted = format!("epoch({without})");
    nodes[0].wait(from, "a posted epoch", |it| it["event"] == "sent" && it["what"] == posted);

    let decided = format!("decide({appeal})");
    nodes[0].wait(0, "the end of the appeal", |it| it["event"] == "sent" && it["what"] == decided);
    appeal_has_failed(&village, appeal, was_seated);

    no_pulse_is_answered_twice(&before, &nodes[2]);

    let epochs = village.epochs();
    let leaf = |epoch: u32, node: usize| epochs[&epoch].verdicts[node - 1];
    let earned = |epoch: u32, farm: usize| epochs[&epoch].rewards[farm - 1].cumulative;
    let before = *epochs.range(..without).next_back().unwrap().0;
    for node in 1..=5 {
        assert!(leaf(all, node).answered > 0);
        // On a busy machine a walk may come too late once.
        let caps = |data: &EpochData| data.verdicts.get(node - 1).map(|leaf| leaf.caps);
        // The rest of an extent that shards have begun is not proven.
        let disk_mib = if node == 4 { (shards + filler) >> 20 } else { 4 };
        let is_whole = |caps: &Caps| {
            caps.cores == 1 && caps.mem_mib == 2 && caps.ssd_mib + caps.hdd_mib == disk_mib
        };
        let proven: Vec<_> = epochs.values().filter_map(caps).collect();
        assert!(proven.iter().any(is_whole), "node {node}: {proven:?}");
        assert!(earned(all, node) > 0);
    }
    let stopped = leaf(without, 5);
    assert!(stopped.pulses > 0 && stopped.answered == 0, "{stopped:?}");
    assert_eq!(earned(without, 5), earned(before, 5), "nothing for the time that it was away");
    assert!((1..=4).all(|farm| earned(without, farm) > earned(before, farm)));

    deleted_shards_make_room(&village, &nodes[3], shards);
    server.stop();

    // When nobody can dispute it any more, the farms are paid.
    nodes.into_iter().for_each(Process::stop);
    let head = village.client.head().unwrap().timestamp;
    village.hasten(head + 8 * 3600);
    let data = village.path(&format!("1/node/epochs/{without}"));
    let data = data.to_str().unwrap();
    for farm in [2, 5] {
        let claim = ["farm", "claim", data, "--key", "farmer"];
        let claimed = village.json(&farm.to_string(), &claim);
        assert_eq!(claimed["claimed"], earned(without, farm).to_string());
    }
    the_status_says_until_when_it_is_proven(&village, without);
}
