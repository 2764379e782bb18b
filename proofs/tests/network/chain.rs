//! From pulses in a network to tokens: an epoch is closed, posted, shown and claimed on the contracts.

use std::sync::{Arc, Mutex};

use alloy_sol_types::{SolCall, SolEvent};
use hypha_chain::client::{Client, Receipt};
use hypha_chain::contracts::{Capacity, GridToken, Registry, Rewards};
use hypha_chain::deploy::{BeaconKind, Suite, Terms as ChainTerms, creations};
use hypha_chain::embedded::{Chain, Parameters};
use hypha_chain::key::Key;
use hypha_chain::message::{NodeKey, Reader, sign};
use hypha_chain::transaction::Transaction;
use hypha_chain::{Address, B256, Bytes, TxKind, U256, keccak256};
use hypha_proofs::network::audit::{JURY, Jury, Known, Objection, Posted};
use hypha_proofs::network::epoch::{Difference, EpochData};
use hypha_proofs::network::ledger::{Closing, Ledger, Terms, Weights};
use hypha_proofs::network::pool::Pool;
use hypha_proofs::network::roster::{Caps, Member, Roster};
use hypha_proofs::network::schedule::{Pulse, Pulses, Round, Schedule};
use hypha_proofs::network::statement::{Content, Statement};
use hypha_proofs::network::witness::{Duty, drawn};
use hypha_proofs::verifier::PulseVerdict;

use crate::world::{START, TOKEN, binding, key};

const CHAIN_ID: u64 = 31337;
const WINDOW: u64 = 6 * 3600;
const EMISSION: u128 = 1000 * TOKEN;

/// The contracts on a chain in memory. Time moves when the test moves it.
struct Grid {
    chain: Arc<Mutex<Chain>>,
    client: Client,
    suite: Suite,
    now: u64,
}

fn holder() -> Key {
    Key::from_bytes(&[0x21; 32]).unwrap()
}

impl Grid {
    fn new() -> Self {
        let parameters = Parameters {
            chain_id: CHAIN_ID,
            timestamp: START,
            cadence_secs: 1,
            balances: Vec::new(),
        };
        let chain = Arc::new(Mutex::new(Chain::in_memory(parameters, [3; 32]).unwrap()));
        let client = Client::Embedded(Arc::clone(&chain));
        let suite = Suite::at(holder().address(), 0);
        let mut grid = Self { chain, client, suite, now: START };
        let terms = ChainTerms {
            governor: holder().address(),
            holder: holder().address(),
            genesis_supply: 1_000_000 * TOKEN,
            emission_per_hour: U256::from(EMISSION),
            emission_cap: U256::from(1_000_000 * TOKEN),
            dispute_window_secs: WINDOW,
            beacon: BeaconKind::Prevrandao,
        };
        for init in creations(&suite, &terms) {
            assert!(grid.execute(&holder(), TxKind::Create, init).contract.is_some());
        }
        grid
    }

    fn execute(&mut self, key: &Key, to: TxKind, data: Bytes) -> Receipt {
        let transaction = Transaction {
            chain_id: CHAIN_ID,
            nonce: self.client.nonce(key.address()).unwrap(),
            max_priority_fee: 0,
            max_fee: 0,
            gas_limit: 16_000_000,
            to,
            value: U256::ZERO,
            data,
            access_list: Default::default(),
        };
        let hash = self.client.send(transaction.sign(key).raw()).unwrap();
        self.advance(1);
        let receipt = self.client.receipt(&hash).unwrap().unwrap();
        assert!(receipt.succeeded);
        receipt
    }

    fn must<C: SolCall>(&mut self, key: &Key, to: Address, call: &C) -> Receipt {
        self.execute(key, TxKind::Call(to), call.abi_encode().into())
    }

    fn view<C: SolCall>(&self, to: Address, call: &C) -> C::Return {
        self.client.view(to, call).unwrap()
    }

    fn advance(&mut self, secs: u64) {
        self.now += secs;
        self.chain.lock().unwrap().tick(self.now).unwrap();
    }

    /// Somebody with tokens that the contracts may take.
    fn fund(&mut self, key: &Key, amount: U256) {
        let token = self.suite.token;
        self.must(&holder(), token, &GridToken::transferCall { to: key.address(), amount });
        for spender in [self.suite.registry, self.suite.capacity] {
            self.must(key, token, &GridToken::approveCall { spender, amount: U256::MAX });
        }
    }

    /// A farm with a node whose number is its own.
    fn farm(&mut self, number: u32) {
        let owner = owner(number);
        self.fund(&owner, U256::from(200 * TOKEN));
        let registry = self.suite.registry;
        let call = Registry::addFarmCall { payout: owner.address(), meta: B256::ZERO };
        self.must(&owner, registry, &call);
        let mesh_key = B256::repeat_byte(9);
        let domain = Reader::Registry.domain(CHAIN_ID, registry);
        let signature = sign(&NodeKey { farm: number, meshKey: mesh_key }, &domain, &key(number));
        let call = Registry::addNodeCall {
            farm: number,
            caps: Registry::Caps { cores: 2, memMiB: 1, ssdMiB: 0, hddMiB: 2, mbps: 100 },
            stake: U256::from(100 * TOKEN),
            mesh: Registry::MeshKey {
                key: mesh_key,
                signatureR: B256::ZERO,
                signatureS: B256::ZERO,
            },
            signature: signature.to_bytes().into(),
        };
        let receipt = self.must(&owner, registry, &call);
        assert_eq!(event::<Registry::NodeAdded>(&receipt).node, number);
    }

    /// The nodes, as the contracts tell them.
    fn roster(&self, at_secs: u64) -> Roster {
        let registry = self.suite.registry;
        let count = self.view(registry, &Registry::nodeCountCall {});
        let members = (1..=count).map(|node| {
            let it = self.view(registry, &Registry::nodeAtCall { node });
            Member {
                node,
                farm: it.farm,
                signer: it.signer,
                stake: U256::from((it.stake - it.leaving).to::<u128>()),
                since_secs: it.since.to(),
                claimed: Caps {
                    cores: it.caps.cores,
                    mem_mib: it.caps.memMiB,
                    ssd_mib: it.caps.ssdMiB,
                    hdd_mib: it.caps.hddMiB,
                    mbps: it.caps.mbps,
                },
                reserved: Caps::default(),
                plot: None,
                salt: None,
                place: None,
            }
        });
        Roster::new(members.collect(), at_secs).unwrap()
    }

    /// The pulses of an epoch, drawn by the blocks of the chain.
    fn pulses(&mut self, schedule: &Schedule, epoch: u32) -> Vec<Pulse> {
        let mut pulses = Pulses::new(*schedule);
        let mut found = Vec::new();
        while self.now < schedule.epoch_end(epoch) {
            self.advance(1);
            let chain = self.chain.lock().unwrap();
            let head = chain.head();
            let round =
                Round { number: head.number, timestamp: head.timestamp, entropy: head.prevrandao };
            found.extend(pulses.on_round(&round).filter(|pulse| pulse.epoch == epoch));
        }
        found
    }
}

fn owner(farm: u32) -> Key {
    Key::from_bytes(&keccak256([b"owner".as_slice(), &farm.to_be_bytes()].concat()).0).unwrap()
}

#[track_caller]
fn event<E: SolEvent>(receipt: &Receipt) -> E {
    let found = receipt.logs.iter().find_map(|log| E::decode_log(log).ok());
    found.unwrap_or_else(|| panic!("no {}", E::SIGNATURE)).data
}

fn terms() -> Terms {
    Terms {
        emission: EMISSION,
        cap: 1_000_000 * TOKEN,
        disk_draws: 64,
        measured_per_mille: 0,
        weights: Weights::STANDARD,
    }
}

/// What all witnesses say of all nodes but those that are silent.
fn pool(grid: &Grid, roster: &Roster, pulses: &[Pulse], silent: &[u32]) -> Pool {
    let mut pool = Pool::new(10_000);
    let binding = hypha_proofs::binding::Binding {
        registry: grid.suite.registry,
        capacity: grid.suite.capacity,
        disputes: grid.suite.disputes,
        ..binding(1)
    };
    for pulse in pulses {
        for member in roster.members().iter().filter(|it| !silent.contains(&it.node)) {
            for witness in drawn(roster, &pulse.challenge, Duty::Witness, member.node) {
                let verdict = PulseVerdict {
                    node: member.node,
                    pulse: pulse.challenge.pulse,
                    threads: 2,
                    memMiB: 1,
                    diskMiB: 2,
                    fillerDraws: 64,
                };
                let content = Content::Verdict(verdict);
                pool.add(Statement::new(witness, content, &binding, &key(witness)));
            }
        }
    }
    pool
}

/// Seven farms with a node each, an aggregator, and when their pulses are.
fn seven_farms() -> (Grid, Key, Schedule) {
    let mut grid = Grid::new();
    (1..=7).for_each(|farm| grid.farm(farm));
    let (poster, capacity) = (key(100), grid.suite.capacity);
    grid.fund(&poster, U256::from(2000 * TOKEN));
    grid.must(&poster, capacity, &Capacity::joinCall {});
    let start_secs = grid.view(capacity, &Capacity::startCall {});
    let (chain_id, round_secs, mean_secs, quiet_secs) = (CHAIN_ID, 1, 600, 30);
    let schedule = Schedule { chain_id, capacity, start_secs, round_secs, mean_secs, quiet_secs };
    (grid, poster, schedule)
}

#[test]
fn an_epoch_is_posted_shown_and_claimed_to_the_last_unit() {
    let (mut grid, poster, schedule) = seven_farms();
    let (capacity, rewards) = (grid.suite.capacity, grid.suite.rewards);
    let mut ledger = Ledger::default();
    let pulses = [0, 1, 2].map(|epoch| grid.pulses(&schedule, epoch));
    for (epoch, pulses) in (0..).zip(pulses) {
        // Who takes part is read when an epoch begins; here nobody comes later.
        let roster = grid.roster(schedule.start_secs + u64::from(epoch) * 3600);
        assert!(!pulses.is_empty(), "the chain's seed has one");
        let pool = pool(&grid, &roster, &pulses, &[5]);
        let ends_secs = schedule.epoch_end(epoch);
        assert_eq!(U256::from(ends_secs), grid.view(capacity, &Capacity::epochEndCall { epoch }));
        let counts = (
            grid.view(grid.suite.registry, &Registry::nodeCountCall {}),
            grid.view(grid.suite.registry, &Registry::farmCountCall {}),
        );
        let closing =
            Closing { epoch, ends_secs, counts, roster: &roster, pulses: &pulses, pool: &pool };
        let data = ledger.close(&terms(), &closing).unwrap();
        settle(&mut grid, &poster, &data, epoch);
        ledger = data.ledger;
    }
    let minted = grid.view(grid.suite.token, &GridToken::totalMintedCall {});
    assert_eq!(minted, U256::from(ledger.issued()));
    assert_eq!(ledger.issued() + ledger.carry, 3 * EMISSION);
    let budget = grid.view(rewards, &Rewards::budgetCall {});
    assert!(budget >= minted);
}

#[test]
fn an_epoch_that_pays_its_poster_is_found_false_and_voted_down() {
    let (mut grid, poster, schedule) = seven_farms();
    let (capacity, appellant) = (grid.suite.capacity, key(101));
    grid.fund(&appellant, U256::from(200 * TOKEN));
    let roster = grid.roster(schedule.start_secs + 60);
    let pulses = grid.pulses(&schedule, 0);
    let pool = pool(&grid, &roster, &pulses, &[]);
    let ends_secs = schedule.epoch_end(0);
    let closing = Closing {
        epoch: 0,
        ends_secs,
        counts: (7, 7),
        roster: &roster,
        pulses: &pulses,
        pool: &pool,
    };
    let mut data = Ledger::default().close(&terms(), &closing).unwrap();
    data.rewards[6].cumulative += TOKEN;
    let receipt = grid.must(&poster, capacity, &data.post().unwrap());
    let event_posted = event::<Capacity::EpochPosted>(&receipt);
    // Each node finds out by itself, from the data that it was served.
    let posted = Posted {
        verdict_root: event_posted.posted.verdictRoot,
        reward_root: event_posted.posted.rewardRoot,
        data: event_posted.data,
    };
    let known = Known::at(&pool);
    let found = Ledger::default().objections(&terms(), &closing, (&posted, &data), (&pool, &known));
    assert!(matches!(found[..], [Objection::Differs(Difference::Reward { .. })]), "{found:?}");
    let call = Capacity::appealCall { posted: event_posted.posted };
    let appeal = event::<Capacity::Demanded>(&grid.must(&appellant, capacity, &call));
    let jury = seated(&mut grid, &appellant, &appeal);
    let mut cast = 0;
    for member in roster.members() {
        let seats = jury.seats_of(member.node, member.juror_weight(ends_secs));
        let call = Capacity::seatsOfCall { it: appeal.demand.clone(), node: member.node };
        assert_eq!(U256::from(seats), grid.view(capacity, &call));
        assert!(seats > 0, "each of seven has a seventh of 256");
        let call = Capacity::voteCall {
            it: appeal.demand.clone(),
            postedAt: appeal.posted.postedAt,
            aggregator: appeal.posted.aggregator,
            node: member.node,
            isTrue: found.is_empty(),
        };
        grid.must(&key(member.node), capacity, &call);
        cast += seats;
    }
    let votes = grid.view(capacity, &Capacity::votesCall(jury.id));
    assert_eq!((votes.upheld, votes.rejected), (0, cast));
    assert!(cast.abs_diff(JURY.into()) <= 7, "at most one for each of seven");
    grid.advance(3601);
    let call = Capacity::decideCall { it: appeal.demand, posted: appeal.posted };
    let receipt = grid.must(&appellant, capacity, &call);
    assert_eq!(event::<Capacity::EpochVoided>(&receipt).epoch, 0);
}

#[test]
fn the_seats_that_a_node_counts_are_those_that_the_contract_counts() {
    let mut grid = Grid::new();
    (1..=7).for_each(|farm| grid.farm(farm));
    let (poster, appellant) = (key(100), key(101));
    grid.fund(&poster, U256::from(2000 * TOKEN));
    grid.fund(&appellant, U256::from(1000 * TOKEN));
    let (registry, capacity) = (grid.suite.registry, grid.suite.capacity);
    for node in 1..=7 {
        let amount = U256::from(u128::from(node) * 13 * TOKEN + 1);
        grid.must(&owner(node), registry, &Registry::addStakeCall { node, amount });
    }
    grid.must(&poster, capacity, &Capacity::joinCall {});
    let ends_secs = grid.view(capacity, &Capacity::startCall {}) + 3600;
    grid.advance(ends_secs - grid.now);
    let call = Capacity::postEpochCall {
        epoch: 0,
        verdictRoot: B256::ZERO,
        rewardRoot: B256::ZERO,
        data: B256::ZERO,
    };
    let mut posted = event::<Capacity::EpochPosted>(&grid.must(&poster, capacity, &call)).posted;
    let roster = grid.roster(ends_secs);
    let mut odd = 0;
    for _ in 0..8 {
        let call = Capacity::appealCall { posted };
        let appeal = event::<Capacity::Demanded>(&grid.must(&appellant, capacity, &call));
        let jury = seated(&mut grid, &appellant, &appeal);
        for member in roster.members() {
            let weight = member.juror_weight(ends_secs);
            let instant = U256::from(ends_secs);
            let call = Registry::weightOfCall { node: member.node, instant };
            assert_eq!(grid.view(registry, &call), U256::from(weight));
            let seats = jury.seats_of(member.node, weight);
            let call = Capacity::seatsOfCall { it: appeal.demand.clone(), node: member.node };
            assert_eq!(grid.view(capacity, &call), U256::from(seats));
            odd += u32::from(seats > u128::from(JURY) * weight / jury.weight);
        }
        let sum: u128 = roster.members().iter().map(|it| it.juror_weight(ends_secs)).sum();
        assert_eq!(jury.weight, sum);
        posted = appeal.posted;
    }
    assert!(0 < odd && odd < 56, "of 56 broken seats, {odd} were drawn");
}

/// Seats the jury of an appeal.
fn seated(grid: &mut Grid, by: &Key, appeal: &Capacity::Demanded) -> Jury {
    let call = Capacity::seatCall {
        it: appeal.demand.clone(),
        postedAt: appeal.posted.postedAt,
        aggregator: appeal.posted.aggregator,
    };
    Jury::from(&event::<Capacity::Seated>(&grid.must(by, grid.suite.capacity, &call)))
}

/// Posts an epoch, answers a demand for a leaf of it, and has farms and nodes use it.
fn settle(grid: &mut Grid, poster: &Key, data: &EpochData, epoch: u32) {
    let (capacity, rewards) = (grid.suite.capacity, grid.suite.rewards);
    let receipt = grid.must(poster, capacity, &data.post().unwrap());
    let event_posted = event::<Capacity::EpochPosted>(&receipt);
    assert_eq!(event_posted.data, data.hash());
    assert_eq!(data.demanded(2, 0), None, "an appeal");
    for (tree, index) in [(0, 3), (1, 2), (1, 99)] {
        let call = Capacity::demandCall { posted: event_posted.posted.clone(), tree, index };
        let demanded = event::<Capacity::Demanded>(&grid.must(poster, capacity, &call));
        let (count, leaf, path) = data.demanded(tree, index).unwrap();
        let call = Capacity::answerDemandCall {
            it: demanded.demand,
            posted: demanded.posted,
            count,
            leaf: leaf.into(),
            path,
        };
        grid.must(poster, capacity, &call);
    }
    // The record that the chain keeps is the posted one again: no demand is open.
    let posted = event_posted.posted;
    grid.advance(WINDOW);
    for leaf in &data.verdicts {
        let proof = data.proof(leaf.node, &posted).unwrap();
        assert_eq!(leaf.answered == 0, leaf.node == 5);
        if leaf.answered > 0 {
            grid.must(poster, capacity, &Capacity::proveCall { proof });
            let until = grid.view(capacity, &Capacity::provenUntilCall(leaf.node));
            assert_eq!(until, leaf.proven_until);
        }
    }
    for leaf in &data.rewards {
        let before = grid.view(rewards, &Rewards::claimedCall(leaf.farm));
        if U256::from(leaf.cumulative) > before {
            let call = data.claim(leaf.farm, &posted).unwrap();
            grid.must(&owner(leaf.farm), rewards, &call);
        }
        let claimed = grid.view(rewards, &Rewards::claimedCall(leaf.farm));
        assert_eq!(claimed, U256::from(leaf.cumulative), "epoch {epoch}, farm {}", leaf.farm);
    }
}
