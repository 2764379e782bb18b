//! Puts the suite on a chain. The contracts name each other, and none can be changed afterwards: their
//! addresses follow from the deployer and its nonce, so each is told them before they exist.

use alloy_primitives::{Address, B256, Bytes, U256};
use alloy_sol_types::SolConstructor;

use crate::contracts::{
    Capacity, DagLabel, Directory, Disputes, DrandBeacon, GridToken, HashSegment, MerkleLeaf,
    Names, PrevrandaoBeacon, Registry, Reservations, Rewards,
};

/// What the suite is set up with.
#[derive(Debug, Clone)]
pub struct Terms {
    /// Who may propose new versions.
    pub governor: Address,
    /// Who has all tokens at the start.
    pub holder: Address,
    /// How many, in the token's smallest unit.
    pub genesis_supply: u128,
    /// Emission per hour for the whole network, likewise.
    pub emission_per_hour: U256,
    /// The most that is ever minted, likewise.
    pub emission_cap: U256,
    /// Seconds for which an epoch can be disputed.
    pub dispute_window_secs: u64,
    /// Where seeds come from.
    pub beacon: BeaconKind,
}

/// Where seeds come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BeaconKind {
    /// The chain's own prevrandao.
    Prevrandao,
    /// drand's quicknet, which somebody pushes.
    Drand,
}

/// The suite's addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Suite {
    /// GridToken.
    pub token: Address,
    /// Directory.
    pub directory: Address,
    /// Registry.
    pub registry: Address,
    /// The beacon, of either kind.
    pub beacon: Address,
    /// Capacity.
    pub capacity: Address,
    /// HashSegment, MerkleLeaf, DagLabel.
    pub verifiers: [Address; 3],
    /// Disputes.
    pub disputes: Address,
    /// Reservations.
    pub reservations: Address,
    /// Rewards.
    pub rewards: Address,
    /// Names.
    pub names: Address,
}

/// The names that the Directory has from the start.
pub const NAMES: [&str; 8] =
    ["token", "registry", "beacon", "capacity", "disputes", "reservations", "rewards", "names"];

impl Suite {
    /// Where the suite comes to lie if `deployer` sends [`creations`] from `nonce` on.
    #[must_use]
    pub fn at(deployer: Address, nonce: u64) -> Self {
        let place = |index: u64| deployer.create(nonce + index);
        Self {
            token: place(0),
            registry: place(1),
            beacon: place(2),
            capacity: place(3),
            verifiers: [place(4), place(5), place(6)],
            disputes: place(7),
            reservations: place(8),
            rewards: place(9),
            names: place(10),
            directory: place(11),
        }
    }
}

/// The initialisation code of each contract, in the order in which they are created: each is one
/// transaction to nobody, with consecutive nonces.
#[must_use]
pub fn creations(suite: &Suite, terms: &Terms) -> Vec<Bytes> {
    let token = GridToken::constructorCall {
        minter_: suite.rewards,
        holder: terms.holder,
        genesisSupply: terms.genesis_supply,
    };
    let registry = Registry::constructorCall {
        token_: suite.token,
        slashers: [suite.capacity, suite.disputes, suite.reservations],
    };
    let capacity = Capacity::constructorCall {
        token_: suite.token,
        registry_: suite.registry,
        beacon_: suite.beacon,
        disputes_: suite.disputes,
        window_: terms.dispute_window_secs,
    };
    let disputes = Disputes::constructorCall {
        token_: suite.token,
        registry_: suite.registry,
        capacity_: suite.capacity,
        verifiers: suite.verifiers,
    };
    let grid = Reservations::Token { token: suite.token, burnable: true };
    let reservations = Reservations::constructorCall {
        registry_: suite.registry,
        capacity_: suite.capacity,
        tokens_: vec![grid],
    };
    let rewards = Rewards::constructorCall {
        token_: suite.token,
        registry_: suite.registry,
        capacity_: suite.capacity,
        emission_: terms.emission_per_hour,
        cap_: terms.emission_cap,
    };
    let names = Names::constructorCall { reservations_: suite.reservations };
    vec![
        init(&GridToken::BYTECODE, &token),
        init(&Registry::BYTECODE, &registry),
        beacon(terms.beacon),
        init(&Capacity::BYTECODE, &capacity),
        HashSegment::BYTECODE.clone(),
        MerkleLeaf::BYTECODE.clone(),
        DagLabel::BYTECODE.clone(),
        init(&Disputes::BYTECODE, &disputes),
        init(&Reservations::BYTECODE, &reservations),
        init(&Rewards::BYTECODE, &rewards),
        init(&Names::BYTECODE, &names),
        init(&Directory::BYTECODE, &directory(suite, terms.governor)),
    ]
}

fn directory(suite: &Suite, governor: Address) -> Directory::constructorCall {
    let targets = vec![
        suite.token,
        suite.registry,
        suite.beacon,
        suite.capacity,
        suite.disputes,
        suite.reservations,
        suite.rewards,
        suite.names,
    ];
    let names = NAMES.iter().map(|name| name32(name)).collect();
    Directory::constructorCall { governor_: governor, names, targets }
}

/// A name of at most 32 bytes as contracts take it, padded with zeros.
#[must_use]
pub fn name32(name: &str) -> B256 {
    let mut bytes = [0; 32];
    for (to, from) in bytes.iter_mut().zip(name.bytes()) {
        *to = from;
    }
    B256::new(bytes)
}

fn beacon(kind: BeaconKind) -> Bytes {
    match kind {
        BeaconKind::Prevrandao => PrevrandaoBeacon::BYTECODE.clone(),
        BeaconKind::Drand => init(
            &DrandBeacon::BYTECODE,
            &DrandBeacon::constructorCall {
                key: Bytes::from_static(&QUICKNET_KEY),
                negatedGenerator: Bytes::from_static(&NEGATED_G2),
            },
        ),
    }
}

fn init(bytecode: &Bytes, arguments: &impl SolConstructor) -> Bytes {
    [bytecode.as_ref(), &arguments.abi_encode()].concat().into()
}

/// The public key of drand's quicknet, chain 52db9ba7…: a point of G2 as EIP-2537 encodes it.
const QUICKNET_KEY: [u8; 256] = alloy_primitives::hex!(
    "000000000000000000000000000000000d1fec758c921cc22b0e17e63aaf4bcb5ed66304de9cf809bd274ca73bab4af5"
    "a6e9c76a4bc09e76eae8991ef5ece45a0000000000000000000000000000000003cf0f2896adee7eb8b5f01fcad39122"
    "12c437e0073e911fb90022d3e760183c8c4b450b6a0a6c3ac6a5776a2d10645100000000000000000000000000000000"
    "0e5db2b6bfbb01c867749cadffca88b36c24f3012ba09fc4d3022c5c37dce0f977d3adb5d183c7477c442b1f04515273"
    "0000000000000000000000000000000001a714f2edb74119a2f2b0d5a7c75ba902d163700a61bc224ededd8e63aef7be"
    "1aaf8e93d7a9718b047ccddb3eb5d68b"
);

/// The generator of G2 with y negated, likewise.
const NEGATED_G2: [u8; 256] = alloy_primitives::hex!(
    "00000000000000000000000000000000024aa2b2f08f0a91260805272dc51051c6e47ad4fa403b02b4510b647ae3d177"
    "0bac0326a805bbefd48056c8c121bdb80000000000000000000000000000000013e02b6052719f607dacd3a088274f65"
    "596bd0d09920b61ab5da61bbdc7f5049334cf11213945d57e5ac7d055d042b7e00000000000000000000000000000000"
    "0d1b3cc2c7027888be51d9ef691d77bcb679afda66c73f17f9ee3837a55024f78c71363275a75d75d86bab79f74782aa"
    "0000000000000000000000000000000013fa4d4a0ad8b1ce186ed5061789213d993923066dddaf1040bc3ff59f825c78"
    "df74f2d75467e25e0f55f8a00fa030ed"
);
