//! A chain with the suite on it, and people who use it.

use alloy_sol_types::{SolCall, SolEvent};
use hypha_chain::client::{Client, Receipt};
use hypha_chain::contracts::{Capacity, GridToken, Registry, Reservations};
use hypha_chain::deploy::{BeaconKind, Suite, Terms, creations};
use hypha_chain::embedded::Call;
use hypha_chain::key::Key;
use hypha_chain::message::{NodeKey, Reader, sign};
use hypha_chain::transaction::Transaction;
use hypha_chain::tree::Tree;
use hypha_chain::{Address, B256, Bytes, TxKind, U256};

use crate::backend::{Backend, reason};

pub(crate) const CHAIN_ID: u64 = 7_7777;
pub(crate) const GENESIS: u64 = 1_800_000_000;
pub(crate) const WINDOW: u64 = 6 * 3600;
pub(crate) const TOKEN: u128 = 1_000_000_000_000_000_000;
pub(crate) const EMISSION: u128 = 1000 * TOKEN;
pub(crate) const SUPPLY: u128 = 1_000_000_000 * TOKEN;

/// A chain with the suite on it. Time moves only when a test moves it.
pub(crate) struct Grid {
    backend: Backend,
    pub(crate) client: Client,
    pub(crate) suite: Suite,
    pub(crate) now: u64,
}

/// A key that is only good for tests.
pub(crate) fn key(number: u8) -> Key {
    let mut bytes = [0x11; 32];
    bytes[31] = number;
    Key::from_bytes(&bytes).unwrap()
}

/// Who deploys, and has all tokens.
pub(crate) fn holder() -> Key {
    key(0)
}

pub(crate) fn tokens(count: u128) -> U256 {
    U256::from(count * TOKEN)
}

impl Grid {
    pub(crate) fn new() -> Self {
        Self::with_beacon(BeaconKind::Prevrandao)
    }

    pub(crate) fn with_beacon(beacon: BeaconKind) -> Self {
        let (backend, client) = Backend::start();
        let suite = Suite::at(holder().address(), 0);
        let mut grid = Self { backend, client, suite, now: GENESIS };
        let terms = Terms {
            governor: holder().address(),
            holder: holder().address(),
            genesis_supply: SUPPLY,
            emission_per_hour: U256::from(EMISSION),
            emission_cap: U256::from(1_000_000 * TOKEN),
            dispute_window_secs: WINDOW,
            beacon,
        };
        for init in creations(&suite, &terms) {
            let receipt = grid.execute(&holder(), None, init, None).unwrap();
            assert!(receipt.contract.is_some());
        }
        grid
    }

    /// A block, a second after the last one.
    pub(crate) fn tick(&mut self) {
        self.now += 1;
        self.backend.mine(self.now);
    }

    /// Time goes on, and there is a block then.
    pub(crate) fn advance(&mut self, secs: u64) {
        self.now += secs.max(1) - 1;
        self.tick();
    }

    /// Time goes on to an instant.
    pub(crate) fn advance_to(&mut self, instant: u64) {
        assert!(instant > self.now, "{instant} is not after {}", self.now);
        self.advance(instant - self.now);
    }

    /// Makes a contract, of its bytecode and its constructor's arguments.
    pub(crate) fn deploy(&mut self, key: &Key, bytecode: &[u8], arguments: &[u8]) -> Address {
        let init = [bytecode, arguments].concat();
        self.execute(key, None, init.into(), None).unwrap().contract.unwrap()
    }

    /// Sends a transaction and makes a block of it.
    fn execute(
        &mut self,
        key: &Key,
        to: Option<Address>,
        data: Bytes,
        gas_limit: Option<u64>,
    ) -> Result<Receipt, String> {
        let call = Call { from: key.address(), to, data, ..Call::default() };
        let transaction = Transaction {
            chain_id: CHAIN_ID,
            nonce: self.client.nonce(key.address()).unwrap(),
            max_priority_fee: 0,
            max_fee: 0,
            gas_limit: gas_limit.unwrap_or(16_000_000),
            to: to.map_or(TxKind::Create, TxKind::Call),
            value: U256::ZERO,
            data: call.data.clone(),
            access_list: Default::default(),
        };
        let hash = self.client.send(transaction.sign(key).raw()).map_err(|it| it.to_string())?;
        self.tick();
        let receipt = self.client.receipt(&hash).unwrap().expect("it is in the block");
        if receipt.succeeded {
            return Ok(receipt);
        }
        Err(reason(&self.client, &call))
    }

    /// Calls a function in a transaction; why it was refused if it was.
    #[expect(clippy::needless_pass_by_value, reason = "calls are written where they are made")]
    pub(crate) fn send<C: SolCall>(
        &mut self,
        key: &Key,
        to: Address,
        call: C,
    ) -> Result<Receipt, String> {
        self.execute(key, Some(to), call.abi_encode().into(), None)
    }

    /// The same, which must not be refused.
    #[track_caller]
    pub(crate) fn must<C: SolCall>(&mut self, key: &Key, to: Address, call: C) -> Receipt {
        match self.send(key, to, call) {
            Ok(receipt) => receipt,
            Err(reason) => panic!("{} was refused: {reason}", C::SIGNATURE),
        }
    }

    /// The same, which must be refused for a reason that begins so.
    #[track_caller]
    pub(crate) fn refuses<C: SolCall>(&mut self, key: &Key, to: Address, call: C, reason: &str) {
        match self.send(key, to, call) {
            Ok(_) => panic!("{} was not refused ({reason})", C::SIGNATURE),
            Err(said) => assert!(said.contains(reason), "refused for {said}, not for {reason}"),
        }
    }

    /// Calls a view.
    #[expect(clippy::needless_pass_by_value, reason = "calls are written where they are made")]
    #[track_caller]
    pub(crate) fn view<C: SolCall>(&self, to: Address, call: C) -> C::Return {
        self.client.view(to, &call).unwrap()
    }

    /// Calls a view as somebody; why it was refused if it was.
    pub(crate) fn try_call<C: SolCall>(
        &self,
        from: Address,
        to: Address,
        call: &C,
    ) -> Result<C::Return, String> {
        let data = call.abi_encode().into();
        let call = Call { from, to: Some(to), data, ..Call::default() };
        let output = self.client.call(&call).map_err(|error| error.to_string())?;
        Ok(C::abi_decode_returns(&output).unwrap())
    }

    pub(crate) fn balance(&self, account: Address) -> U256 {
        self.view(self.suite.token, GridToken::balanceOfCall(account))
    }

    pub(crate) fn supply(&self) -> U256 {
        self.view(self.suite.token, GridToken::totalSupplyCall {})
    }

    /// Gives an account tokens, and lets the contracts take them.
    pub(crate) fn fund(&mut self, key: &Key, amount: U256) {
        let token = self.suite.token;
        self.must(&holder(), token, GridToken::transferCall { to: key.address(), amount });
        let suite = self.suite;
        for spender in [suite.registry, suite.capacity, suite.disputes, suite.reservations] {
            self.must(key, token, GridToken::approveCall { spender, amount: U256::MAX });
        }
    }

    /// A farm of an owner who has tokens.
    pub(crate) fn farm(&mut self, owner: &Key) -> u32 {
        self.fund(owner, tokens(1_000_000));
        let call = Registry::addFarmCall { payout: owner.address(), meta: B256::repeat_byte(7) };
        let receipt = self.must(owner, self.suite.registry, call);
        event::<Registry::FarmAdded>(&receipt).farm
    }

    /// A node in a farm, with a stake of 1000 tokens.
    pub(crate) fn node(&mut self, owner: &Key, farm: u32, signer: &Key) -> u32 {
        let call = self.add_node_call(farm, signer);
        let receipt = self.must(owner, self.suite.registry, call);
        event::<Registry::NodeAdded>(&receipt).node
    }

    pub(crate) fn add_node_call(&self, farm: u32, signer: &Key) -> Registry::addNodeCall {
        let mesh_key = B256::repeat_byte(0x4d);
        let domain = Reader::Registry.domain(CHAIN_ID, self.suite.registry);
        let signature = sign(&NodeKey { farm, meshKey: mesh_key }, &domain, signer);
        Registry::addNodeCall {
            farm,
            caps: caps(),
            stake: tokens(1000),
            mesh: Registry::MeshKey {
                key: mesh_key,
                signatureR: B256::repeat_byte(1),
                signatureS: B256::repeat_byte(2),
            },
            signature: signature.to_bytes().into(),
        }
    }

    /// An offer of a quarter of a node at 1e15 per second, a tenth of it for storage.
    pub(crate) fn offer(&mut self, owner: &Key, node: u32) -> u32 {
        let terms = Reservations::Offer {
            node,
            rate: RATE.to_string().parse().unwrap(),
            storageRate: STORAGE_RATE.to_string().parse().unwrap(),
            minSeconds: 0,
            token: 0,
            open: true,
            caps: quarter(),
        };
        let receipt = self.must(owner, self.suite.reservations, Reservations::offerCall { terms });
        event::<Reservations::Offered>(&receipt).offer
    }

    pub(crate) fn reserve(&mut self, user: &Key, offer: u32, deposit: U256) -> u64 {
        let receipt = self.must(user, self.suite.reservations, reserve_call(offer, deposit));
        event::<Reservations::Reserved>(&receipt).id
    }

    /// Somebody who posts epochs.
    pub(crate) fn aggregator(&mut self, key: &Key) {
        self.fund(key, tokens(10_000));
        self.must(key, self.suite.capacity, Capacity::joinCall {});
    }

    /// When epoch 0 began.
    pub(crate) fn start(&self) -> u64 {
        self.view(self.suite.capacity, Capacity::startCall {})
    }

    /// Goes to the end of an epoch and posts it.
    pub(crate) fn post(&mut self, aggregator: &Key, epoch: u32, content: &Content) -> Posted {
        let ended = self.start() + (u64::from(epoch) + 1) * 3600;
        if self.now < ended {
            self.advance_to(ended);
        }
        let call = Capacity::postEpochCall {
            epoch,
            verdictRoot: content.verdicts.root(),
            rewardRoot: content.rewards.root(),
            data: B256::repeat_byte(9),
        };
        let receipt = self.must(aggregator, self.suite.capacity, call);
        event::<Capacity::EpochPosted>(&receipt).posted
    }

    /// Posts an epoch, waits until it is final, and keeps on the chain that these nodes are proven.
    pub(crate) fn prove(&mut self, aggregator: &Key, epoch: u32, nodes: u32) -> (Posted, Content) {
        let end = self.start() + (u64::from(epoch) + 1) * 3600;
        let content = Content::new((1..=nodes).map(|node| verdict(node, end)), &[0]);
        let posted = self.post(aggregator, epoch, &content);
        self.advance(WINDOW + 1);
        for node in 1..=nodes {
            let proof = content.proof(&posted, node);
            self.must(aggregator, self.suite.capacity, Capacity::proveCall { proof });
        }
        (posted, content)
    }
}

pub(crate) type Posted = hypha_chain::contracts::Capacity::Epoch;

pub(crate) const RATE: u128 = 1_000_000_000_000_000;
pub(crate) const STORAGE_RATE: u128 = RATE / 10;
/// What a reservation's bond is.
pub(crate) const BOND: u128 = STORAGE_RATE * 24 * 3600;

pub(crate) fn reserve_call(offer: u32, deposit: U256) -> Reservations::reserveCall {
    Reservations::reserveCall {
        offerId: offer,
        spec: B256::repeat_byte(5),
        deposit,
        permit: no_permit(),
    }
}

pub(crate) fn no_permit() -> Reservations::Permit {
    Reservations::Permit { deadline: U256::ZERO, v: 0, r: B256::ZERO, s: B256::ZERO }
}

/// 16 cores, 64 GiB, 1 TiB of flash, 4 TiB of disk, a gigabit.
pub(crate) fn caps() -> Registry::Caps {
    Registry::Caps { cores: 16, memMiB: 65_536, ssdMiB: 1_048_576, hddMiB: 4_194_304, mbps: 1000 }
}

fn quarter() -> Reservations::Caps {
    Reservations::Caps { cores: 4, memMiB: 16_384, ssdMiB: 262_144, hddMiB: 0, mbps: 100 }
}

/// The leaves of an epoch, and their trees.
pub(crate) struct Content {
    pub(crate) leaves: Vec<Capacity::Verdict>,
    pub(crate) verdicts: Tree,
    pub(crate) rewards: Tree,
}

impl Content {
    /// `rewards`: what each farm has earned, from farm 1 on.
    pub(crate) fn new(
        verdicts: impl IntoIterator<Item = Capacity::Verdict>,
        rewards: &[u128],
    ) -> Self {
        let leaves: Vec<Capacity::Verdict> = verdicts.into_iter().collect();
        let encoded: Vec<Vec<u8>> = leaves.iter().map(verdict_leaf).collect();
        let farms: Vec<Vec<u8>> =
            (1_u32..).zip(rewards).map(|(farm, sum)| reward_leaf(farm, *sum)).collect();
        Self {
            leaves,
            verdicts: Tree::new(encoded.iter().map(Vec::as_slice)).unwrap(),
            rewards: Tree::new(farms.iter().map(Vec::as_slice)).unwrap(),
        }
    }

    pub(crate) fn proof(&self, posted: &Posted, node: u32) -> Capacity::VerdictPath {
        let index = u64::from(node) - 1;
        Capacity::VerdictPath {
            posted: posted.clone(),
            verdict: self.leaves[node as usize - 1].clone(),
            count: self.verdicts.count(),
            path: self.verdicts.path(index).unwrap(),
        }
    }
}

pub(crate) fn verdict(node: u32, proven_until: u64) -> Capacity::Verdict {
    let caps = caps();
    Capacity::Verdict {
        node,
        provenUntil: proven_until,
        pulses: 1,
        answered: 1,
        caps: Capacity::Caps {
            cores: caps.cores,
            memMiB: caps.memMiB,
            ssdMiB: caps.ssdMiB,
            hddMiB: caps.hddMiB,
            mbps: caps.mbps,
        },
    }
}

/// A verdict's bytes in the tree.
pub(crate) fn verdict_leaf(it: &Capacity::Verdict) -> Vec<u8> {
    let mut bytes = it.node.to_be_bytes().to_vec();
    bytes.extend(it.provenUntil.to_be_bytes());
    bytes.extend(it.pulses.to_be_bytes());
    bytes.extend(it.answered.to_be_bytes());
    bytes.extend(it.caps.cores.to_be_bytes());
    bytes.extend(it.caps.memMiB.to_be_bytes());
    bytes.extend(it.caps.ssdMiB.to_be_bytes());
    bytes.extend(it.caps.hddMiB.to_be_bytes());
    bytes.extend(it.caps.mbps.to_be_bytes());
    bytes
}

/// A reward's bytes in the tree.
pub(crate) fn reward_leaf(farm: u32, cumulative: u128) -> Vec<u8> {
    [farm.to_be_bytes().as_slice(), &cumulative.to_be_bytes()].concat()
}

/// The first event of a kind in a receipt.
#[track_caller]
pub(crate) fn event<E: SolEvent>(receipt: &Receipt) -> E {
    let found = receipt.logs.iter().find_map(|log| E::decode_log(log).ok());
    found.unwrap_or_else(|| panic!("no {} in the receipt", E::SIGNATURE)).data
}
