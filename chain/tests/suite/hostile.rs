//! Reservations in a token that lies, refuses, takes a fee, calls back or never ends: it harms nobody but
//! who is paid in it, and no reservation or room in any other.

use alloy_sol_types::{SolCall, SolConstructor};
use hypha_chain::contracts::{Capacity, GridToken, Reservations};
use hypha_chain::{Address, Bytes, U256};

use crate::grid::{
    BOND, Grid, RATE, STORAGE_RATE, event, holder, key, no_permit, reserve_call, tokens,
};

alloy_sol_types::sol!(
    #[derive(Debug, PartialEq, Eq)]
    HostileToken,
    "../contracts/out/HostileToken.json"
);

const HONEST: u8 = 0;
const TAKES_A_FEE: u8 = 1;
const RETURNS_FALSE: u8 = 2;
const RETURNS_NOTHING: u8 = 3;
const REVERTS: u8 = 4;
const RETURNS_TWO: u8 = 5;
const RETURNS_MUCH: u8 = 6;
const CALLS_BACK: u8 = 7;
const NEVER_ENDS: u8 = 8;
const PAYS_AND_RETURNS_FALSE: u8 = 9;

/// Who rents.
const USER: u8 = 4;

/// A chain with Reservations of three tokens: GridToken, and two of no good.
struct Market {
    grid: Grid,
    contract: Address,
    tokens: [Address; 2],
    /// Offers in GridToken and in each of the two, half of the node's room in all.
    offers: [u32; 3],
}

impl Market {
    fn new() -> Self {
        let mut grid = Grid::new();
        grid.farm(&key(1));
        grid.node(&key(1), 1, &key(10));
        grid.aggregator(&key(2));
        grid.fund(&key(USER), tokens(10_000));
        let supply = tokens(1_000_000);
        let bad = [0; 2].map(|_| {
            let call = HostileToken::constructorCall { holder: key(USER).address(), supply };
            grid.deploy(&holder(), &HostileToken::BYTECODE, &call.abi_encode())
        });
        let listed = |(token, burnable)| Reservations::Token { token, burnable };
        let call = Reservations::constructorCall {
            registry_: grid.suite.registry,
            capacity_: grid.suite.capacity,
            tokens_: [(grid.suite.token, true), (bad[0], false), (bad[1], false)]
                .map(listed)
                .to_vec(),
        };
        let contract = grid.deploy(&holder(), &Reservations::BYTECODE, &call.abi_encode());
        let amount = U256::MAX;
        grid.must(
            &key(USER),
            grid.suite.token,
            GridToken::approveCall { spender: contract, amount },
        );
        for token in bad {
            let call = HostileToken::approveCall { spender: contract, amount };
            grid.must(&key(USER), token, call);
        }
        let caps = Reservations::Caps { cores: 1, memMiB: 1, ssdMiB: 1, hddMiB: 0, mbps: 1 };
        let offers = [0, 1, 2].map(|token| {
            let terms = Reservations::Offer {
                node: 1,
                rate: RATE.to_string().parse().unwrap(),
                storageRate: STORAGE_RATE.to_string().parse().unwrap(),
                minSeconds: 0,
                token,
                open: true,
                caps: caps.clone(),
            };
            let receipt = grid.must(&key(1), contract, Reservations::offerCall { terms });
            event::<Reservations::Offered>(&receipt).offer
        });
        Self { grid, contract, tokens: bad, offers }
    }

    fn behave(&mut self, which: usize, conduct: u8) {
        self.call_back(which, conduct, Address::ZERO, Bytes::new());
    }

    fn call_back(&mut self, which: usize, conduct: u8, target: Address, data: Bytes) {
        let call = HostileToken::behaveCall { conduct_: conduct, target_: target, data_: data };
        self.grid.must(&key(9), self.tokens[which], call);
    }

    fn try_reserve(&mut self, token: usize) -> Result<u64, String> {
        let amount = U256::from(BOND + RATE * 7200);
        let call = reserve_call(self.offers[token], amount);
        let receipt = self.grid.send(&key(USER), self.contract, call)?;
        Ok(event::<Reservations::Reserved>(&receipt).id)
    }

    fn used_cores(&self) -> u16 {
        self.grid.view(self.contract, Reservations::usedOfCall { node: 1 }).cores
    }

    fn held(&self, token: usize) -> U256 {
        let account = self.contract;
        match token {
            0 => self.grid.balance(account),
            other => {
                let call = HostileToken::balanceOfCall(account);
                self.grid.view(self.tokens[other - 1], call)
            }
        }
    }

    fn unpaid(&self, to: Address, token: u8) -> U256 {
        self.grid.view(self.contract, Reservations::unpaidCall { _0: to, _1: token })
    }

    /// What reservations, farms and those who were not paid have in a token.
    fn owed(&self, token: usize) -> U256 {
        let count = self.grid.view(self.contract, Reservations::reservationCountCall {});
        let mut sum = U256::ZERO;
        for id in 1..=count {
            let it = self.grid.view(self.contract, Reservations::reservationAtCall { id });
            if it.offer == self.offers[token] {
                sum += U256::from(it.balance.to::<u128>()) + U256::from(it.bond.to::<u128>());
            }
        }
        let token = token as u8;
        let sink: Address = "0x000000000000000000000000000000000000dEaD".parse().unwrap();
        sum += self.grid.view(self.contract, Reservations::earnedCall { _0: 1, _1: token });
        sum + self.unpaid(key(USER).address(), token) + self.unpaid(sink, token)
    }

    fn is_solvent(&self, token: usize) {
        assert_eq!(self.held(token), self.owed(token), "token {token}");
    }
}

#[test]
fn a_token_that_does_not_hand_over_what_was_asked_for_reserves_nothing() {
    let mut market = Market::new();
    for conduct in
        [TAKES_A_FEE, RETURNS_FALSE, REVERTS, RETURNS_TWO, NEVER_ENDS, PAYS_AND_RETURNS_FALSE]
    {
        market.behave(0, conduct);
        let said = market.try_reserve(1).unwrap_err();
        assert!(!said.is_empty(), "conduct {conduct}");
        assert_eq!((market.used_cores(), market.held(1)), (0, U256::ZERO), "conduct {conduct}");
    }
    for conduct in [HONEST, RETURNS_NOTHING, RETURNS_MUCH] {
        market.behave(0, conduct);
        market.try_reserve(1).unwrap();
        market.is_solvent(1);
    }
    assert_eq!(market.used_cores(), 3);
}

#[test]
fn a_token_that_does_not_pay_out_keeps_no_reservation_from_ending_and_no_room_taken() {
    let refusals =
        [RETURNS_FALSE, REVERTS, RETURNS_TWO, NEVER_ENDS, CALLS_BACK, PAYS_AND_RETURNS_FALSE];
    for conduct in refusals {
        let mut market = Market::new();
        market.behave(0, HONEST);
        let ids = [0, 1, 1, 2].map(|token| market.try_reserve(token).unwrap());
        let proven = ((market.grid.now - market.grid.start()) / 3600) as u32;
        market.grid.prove(&key(2), proven, 1);
        // It calls back to be paid out once more, while it is being paid out.
        let again = Reservations::reclaimCall { id: ids[1] }.abi_encode().into();
        let contract = market.contract;
        market.call_back(0, conduct, contract, again);
        // One batch settles those in all tokens.
        let settle = Reservations::settleManyCall { ids: ids.to_vec() };
        market.grid.must(&key(9), contract, settle);
        market.grid.must(&key(USER), contract, Reservations::closeCall { id: ids[1] });
        market.grid.advance(60 * 3600);
        for id in ids {
            market.grid.must(&key(9), contract, Reservations::reclaimCall { id });
        }
        assert_eq!(market.used_cores(), 0, "conduct {conduct}");
        assert_eq!(market.owed(0), market.held(0), "conduct {conduct}");
        assert_eq!(market.owed(2), market.held(2), "conduct {conduct}");
        let user = key(USER).address();
        let waits = market.unpaid(user, 1);
        if conduct == CALLS_BACK {
            let call = HostileToken::reenteredCall {};
            assert_eq!(market.grid.view(market.tokens[0], call), U256::ZERO);
            market.is_solvent(1);
            continue;
        }
        assert!(waits > U256::ZERO, "conduct {conduct}");
        let collect = Reservations::collectCall { to: user, token: 1 };
        market.grid.refuses(&key(9), contract, collect.clone(), "");
        market.behave(0, HONEST);
        if matches!(conduct, PAYS_AND_RETURNS_FALSE | RETURNS_TWO) {
            // It has paid already, and says that it has not: there is less of it than is owed.
            assert!(market.held(1) < market.owed(1), "conduct {conduct}");
            continue;
        }
        market.is_solvent(1);
        let before = market.grid.view(market.tokens[0], HostileToken::balanceOfCall(user));
        market.grid.must(&key(9), contract, collect.clone());
        let has = market.grid.view(market.tokens[0], HostileToken::balanceOfCall(user));
        assert_eq!(has - before, waits, "conduct {conduct}");
        market.grid.refuses(&key(9), contract, collect, "NothingToWithdraw");
        market.is_solvent(1);
    }
}

#[test]
fn a_token_that_calls_back_while_it_is_taken_or_paid_gains_nothing() {
    let mut market = Market::new();
    let (contract, user) = (market.contract, key(USER));
    let id = market.try_reserve(1).unwrap();
    let proven = ((market.grid.now - market.grid.start()) / 3600) as u32;
    market.grid.prove(&key(2), proven, 1);
    // Each call of the contract that pays or settles, from within each that takes or pays.
    let inner: Vec<Vec<u8>> = vec![
        Reservations::settleCall { id }.abi_encode(),
        Reservations::withdrawCall { farm: 1, token: 1 }.abi_encode(),
        Reservations::reclaimCall { id }.abi_encode(),
        Reservations::collectCall { to: user.address(), token: 1 }.abi_encode(),
        reserve_call(market.offers[0], U256::from(BOND + RATE * 7200)).abi_encode(),
    ];
    for data in inner {
        market.call_back(0, CALLS_BACK, contract, data.into());
        // Whatever was done within is done once: what there is, is what is owed.
        let amount = U256::from(RATE * 5);
        let top_up = Reservations::topUpCall { id, amount, permit: no_permit() };
        market.grid.send(&user, contract, top_up).ok();
        market.is_solvent(1);
        market.grid.send(&key(9), contract, Reservations::settleCall { id }).ok();
        market.is_solvent(1);
        let withdraw = Reservations::withdrawCall { farm: 1, token: 1 };
        market.grid.send(&key(9), contract, withdraw).ok();
        market.is_solvent(1);
        market.is_solvent(0);
    }
    let call = Capacity::provenUntilCall(1);
    assert!(market.grid.view(market.grid.suite.capacity, call) > 0);
    market.grid.must(&user, contract, Reservations::closeCall { id });
    market.is_solvent(1);
}
