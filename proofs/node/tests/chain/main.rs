//! Followers of an embedded chain: what they tell is the same whenever they begin, and what their book
//! has is what the contracts say.
#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod daemon;
mod epochs;
mod flood;
mod gone;
mod known;
mod proof;

use std::sync::{Arc, Mutex};

use hypha_chain::client::Client;
use hypha_chain::contracts::{Capacity, GridToken, Registry, Reservations};
use hypha_chain::deploy::{BeaconKind, Suite, Terms, creations};
use hypha_chain::embedded::{Chain, Parameters};
use hypha_chain::key::Key;
use hypha_chain::message::{NodeKey, Reader, sign};
use hypha_chain::{Address, B256, Bytes, SolCall, U256};
use hypha_proofs::network::schedule::{Pulse, Schedule};
use proof_node::chain::book::Change;
use proof_node::chain::follower::{FollowError, Follower, Horizon, News, cadence_of, start_of};

pub(crate) const GENESIS: u64 = 1_800_000_000;
pub(crate) const CADENCE: u64 = 60;
pub(crate) const CHAIN_ID: u64 = 77;

pub(crate) fn key(byte: u8) -> Key {
    Key::from_bytes(&[byte; 32]).unwrap()
}

pub(crate) fn tokens(count: u64) -> U256 {
    U256::from(count) * U256::from(10).pow(U256::from(18))
}

pub(crate) struct World {
    chain: Arc<Mutex<Chain>>,
    pub(crate) client: Client,
    pub(crate) suite: Suite,
    pub(crate) now: u64,
}

impl World {
    pub(crate) fn new(seed: u8) -> Self {
        let parameters = Parameters {
            chain_id: CHAIN_ID,
            timestamp: GENESIS,
            cadence_secs: CADENCE,
            balances: Vec::new(),
        };
        let chain = Arc::new(Mutex::new(Chain::in_memory(parameters, [seed; 32]).unwrap()));
        let holder = key(1).address();
        let suite = Suite::at(holder, 0);
        let terms = Terms {
            governor: holder,
            holder,
            genesis_supply: 1_000_000_000_000_000_000_000_000,
            emission_per_hour: tokens(1),
            emission_cap: tokens(1000),
            dispute_window_secs: 3600,
            beacon: BeaconKind::Prevrandao,
        };
        let client = Client::Embedded(Arc::clone(&chain));
        let mut world = Self { chain, client, suite, now: GENESIS };
        for init in creations(&suite, &terms) {
            world.transact(1, None, init);
        }
        world
    }

    pub(crate) fn block(&mut self) {
        self.now += CADENCE;
        self.chain.lock().unwrap().tick(self.now).unwrap();
    }

    pub(crate) fn transact(&mut self, by: u8, to: Option<Address>, data: Bytes) {
        let hash = self.client.transact(&key(by), to, data).unwrap();
        self.block();
        assert!(self.client.receipt(&hash).unwrap().unwrap().succeeded);
    }

    pub(crate) fn send(&mut self, by: u8, to: Address, call: &impl SolCall) {
        self.transact(by, Some(to), call.abi_encode().into());
    }

    pub(crate) fn add_node(&mut self, farm: u32, signer: u8, stake: u64) {
        let (registry, token) = (self.suite.registry, self.suite.token);
        let approve = GridToken::approveCall { spender: registry, amount: tokens(stake) };
        self.send(1, token, &approve);
        let mesh_key = B256::repeat_byte(signer);
        let domain = Reader::Registry.domain(CHAIN_ID, registry);
        let signature = sign(&NodeKey { farm, meshKey: mesh_key }, &domain, &key(signer));
        let caps = Registry::Caps { cores: 4, memMiB: 2048, ssdMiB: 1000, hddMiB: 24, mbps: 100 };
        let zero = B256::ZERO;
        let mesh = Registry::MeshKey { key: mesh_key, signatureR: zero, signatureS: zero };
        let signature = signature.to_bytes().into();
        let call = Registry::addNodeCall { farm, caps, stake: tokens(stake), mesh, signature };
        self.send(1, registry, &call);
    }

    /// Two farms with a node each, of which one is changed in all ways, and reservations.
    fn live(&mut self) {
        let Suite { token, registry, capacity, reservations, .. } = self.suite;
        for _ in 0..2 {
            let payout = key(1).address();
            self.send(1, registry, &Registry::addFarmCall { payout, meta: B256::ZERO });
        }
        self.add_node(1, 11, 100);
        self.add_node(2, 12, 200);
        let amount = tokens(500);
        self.send(1, token, &GridToken::approveCall { spender: registry, amount });
        self.send(1, registry, &Registry::addStakeCall { node: 1, amount: tokens(7) });
        self.send(1, registry, &Registry::unstakeCall { node: 2, amount: tokens(50) });
        let less = Registry::Caps { cores: 3, memMiB: 1024, ssdMiB: 1000, hddMiB: 0, mbps: 50 };
        self.send(1, registry, &Registry::setCapsCall { node: 2, caps: less });
        self.send(11, capacity, &Capacity::drawSaltCall { node: 1 });
        let root = B256::repeat_byte(5);
        self.send(11, capacity, &Capacity::commitPlotCall { node: 1, root, bytesLen: 4096 });
        self.offer();
        (0..2).for_each(|_| self.reserve());
        self.send(1, reservations, &Reservations::closeCall { id: 1 });
    }

    /// A part of node 1 is for hire, as offer 1.
    pub(crate) fn offer(&mut self) {
        let caps = Reservations::Caps { cores: 1, memMiB: 100, ssdMiB: 10, hddMiB: 0, mbps: 1 };
        let terms = Reservations::Offer {
            node: 1,
            rate: 1000_u64.try_into().unwrap(),
            storageRate: 10_u64.try_into().unwrap(),
            minSeconds: 3600,
            token: 0,
            open: true,
            caps,
        };
        self.send(1, self.suite.reservations, &Reservations::offerCall { terms });
    }

    /// Somebody hires it.
    pub(crate) fn reserve(&mut self) {
        let Suite { token, reservations, .. } = self.suite;
        let approve = GridToken::approveCall { spender: reservations, amount: tokens(1) };
        self.send(1, token, &approve);
        let zero = B256::ZERO;
        let permit = Reservations::Permit { deadline: U256::ZERO, v: 0, r: zero, s: zero };
        let call = Reservations::reserveCall { offerId: 1, spec: zero, deposit: tokens(1), permit };
        self.send(1, reservations, &call);
    }

    pub(crate) fn schedule(&self) -> Schedule {
        Schedule {
            chain_id: CHAIN_ID,
            capacity: self.suite.capacity,
            start_secs: start_of(&self.client, &self.suite).unwrap(),
            round_secs: cadence_of(&self.client, 0).unwrap(),
            mean_secs: 600,
            quiet_secs: 120,
        }
    }

    fn follower(&self, epochs: u32) -> Follower {
        let horizon = Horizon { epochs, first_block: 0, confirmations: 0 };
        Follower::new(self.client.clone(), self.suite, self.schedule(), horizon)
    }
}

fn catch_up(follower: &mut Follower) -> Vec<News> {
    let mut all = Vec::new();
    loop {
        let news = follower.poll().unwrap();
        if news.is_empty() {
            return all;
        }
        all.extend(news);
    }
}

fn pulses(news: &[News]) -> Vec<Pulse> {
    let pulse = |news: &News| match news {
        News::Pulse(pulse) => Some(*pulse),
        _ => None,
    };
    news.iter().filter_map(pulse).collect()
}

fn rosters(news: &[News]) -> Vec<(u32, B256, usize)> {
    let roster = |news: &News| match news {
        News::Epoch { epoch, roster } => Some((*epoch, roster.digest(), roster.members().len())),
        _ => None,
    };
    news.iter().filter_map(roster).collect()
}

#[test]
fn the_book_has_what_the_contracts_say() {
    let mut world = World::new(3);
    world.live();
    let mut follower = world.follower(8);
    let news = catch_up(&mut follower);
    let book = follower.book();
    assert_eq!(book.counts(), (2, 2));
    let roster = book.roster(world.now).unwrap();
    for node in [1, 2] {
        let member = roster.member(node).unwrap();
        let view = world.client.view(world.suite.registry, &Registry::nodeAtCall { node }).unwrap();
        assert_eq!(member.stake, U256::from(view.stake) - U256::from(view.leaving), "node {node}");
        assert_eq!((member.signer, member.farm), (view.signer, view.farm));
        assert_eq!(member.since_secs, view.since.to::<u64>());
        assert_eq!(
            (member.claimed.cores, member.claimed.mem_mib),
            (view.caps.cores, view.caps.memMiB)
        );
        let call = Reservations::usedOfCall { node };
        let used = world.client.view(world.suite.reservations, &call).unwrap();
        let mine = (member.reserved.cores, member.reserved.mem_mib, member.reserved.ssd_mib);
        assert_eq!(mine, (used.cores, used.memMiB, used.ssdMiB), "node {node}");
        let salt = world.client.view(world.suite.capacity, &Capacity::plotSaltCall(node)).unwrap();
        assert_eq!(member.salt.unwrap_or_default(), salt);
        let plot = world.client.view(world.suite.capacity, &Capacity::plotsCall(node)).unwrap();
        assert_eq!(member.plot.map_or(0, |plot| plot.bytes_len), plot.bytesLen);
    }
    assert_eq!(book.node(1).unwrap().idle().cores, 3, "one of two reservations is left");
    let told = |wanted: fn(&Change) -> bool| {
        let found = news
            .iter()
            .filter(|news| matches!(news, News::Change { change, .. } if wanted(change)));
        found.count()
    };
    assert_eq!(told(|change| matches!(change, Change::Plot(1, _))), 1);
    // Two reservations, one end, one smaller claim.
    assert_eq!(told(|change| matches!(change, Change::Reserved(_))), 4);
}

#[test]
fn whoever_begins_later_hears_of_the_same_pulses_and_the_same_rosters() {
    let mut world = World::new(4);
    let mut early = world.follower(8);
    let mut heard = catch_up(&mut early);
    world.live();
    for _ in 0..40 {
        for _ in 0..7 {
            world.block();
        }
        heard.extend(catch_up(&mut early));
    }
    let mut late = world.follower(3);
    let later = catch_up(&mut late);
    let (all, some) = (rosters(&heard), rosters(&later));
    assert_eq!(some.len(), 3, "{some:?}");
    assert_eq!(all[all.len() - 3..], some[..]);
    assert_eq!(some.iter().map(|it| it.2).collect::<Vec<_>>(), [2, 2, 2]);
    let first = some[0].0;
    let all: Vec<Pulse> = pulses(&heard).into_iter().filter(|it| it.epoch >= first).collect();
    let some: Vec<Pulse> = pulses(&later).into_iter().filter(|it| it.epoch >= first).collect();
    assert!(!all.is_empty());
    assert_eq!(all, some);
    let days = |news: &[News]| {
        let days = news.iter().filter(|news| matches!(news, News::Day { .. })).count();
        assert_eq!(days, 1);
    };
    days(&later);
    // An epoch that nobody took part in has a roster too.
    assert_eq!(rosters(&heard)[0].2, 0);
    let ended = |news: &News| matches!(news, News::Ended { counts: (2, 2), .. });
    assert!(later.iter().any(ended));
}

#[test]
fn blocks_that_are_replaced_are_noticed() {
    let mut world = World::new(5);
    let mut follower = world.follower(8);
    catch_up(&mut follower);
    // Another producer's chain of the same age, with the same contracts: no block of it is the same.
    let other = World::new(6);
    std::mem::swap(&mut *world.chain.lock().unwrap(), &mut *other.chain.lock().unwrap());
    world.block();
    assert!(matches!(follower.poll(), Err(FollowError::Reorganised(_))));
}
