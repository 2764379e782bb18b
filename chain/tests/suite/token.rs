//! GridToken: transfers, allowances, permits, and who may mint.

use hypha_chain::contracts::GridToken;
use hypha_chain::message::{Permit, Reader, sign};
use hypha_chain::{Address, U256};

use crate::grid::{CHAIN_ID, Grid, SUPPLY, holder, key, tokens};

#[test]
fn nobody_spends_more_than_they_have_or_were_allowed() {
    let mut grid = Grid::new();
    let token = grid.suite.token;
    let (a, b) = (key(1), key(2));
    grid.must(&holder(), token, GridToken::transferCall { to: a.address(), amount: tokens(5) });
    let too_much = GridToken::transferCall { to: b.address(), amount: tokens(6) };
    grid.refuses(&a, token, too_much, "InsufficientBalance");
    let call = GridToken::approveCall { spender: b.address(), amount: tokens(3) };
    grid.must(&a, token, call);
    let take = |amount| GridToken::transferFromCall {
        from: a.address(),
        to: b.address(),
        amount: tokens(amount),
    };
    grid.must(&b, token, take(2));
    grid.refuses(&b, token, take(2), "InsufficientAllowance");
    grid.must(&b, token, take(1));
    assert_eq!(grid.balance(b.address()), tokens(3));
    let nobody = GridToken::transferCall { to: Address::ZERO, amount: U256::from(1) };
    grid.refuses(&a, token, nobody, "ToNobody");
}

#[test]
fn only_rewards_mints_and_anyone_burns_their_own() {
    let mut grid = Grid::new();
    let token = grid.suite.token;
    let mint = GridToken::mintCall { to: holder().address(), amount: U256::from(1) };
    grid.refuses(&holder(), token, mint, "NotMinter");
    assert_eq!(grid.view(token, GridToken::minterCall {}), grid.suite.rewards);
    grid.must(&holder(), token, GridToken::burnCall { amount: tokens(7) });
    assert_eq!(grid.supply(), U256::from(SUPPLY) - tokens(7));
    let call = GridToken::burnCall { amount: U256::from(1) };
    grid.refuses(&key(1), token, call, "InsufficientBalance");
}

#[test]
fn a_permit_works_once_before_its_deadline_for_its_owner() {
    let mut grid = Grid::new();
    let token = grid.suite.token;
    let owner = key(1);
    let spender = key(2).address();
    let deadline = U256::from(grid.now + 100);
    let permit = |owner: Address, signer: u8, nonce: u64| {
        let nonce = U256::from(nonce);
        let message = Permit { owner, spender, value: tokens(1), nonce, deadline };
        let domain = Reader::Token.domain(CHAIN_ID, token);
        let signature = sign(&message, &domain, &key(signer));
        GridToken::permitCall {
            owner,
            spender,
            value: tokens(1),
            deadline,
            v: 27 + u8::from(signature.y_is_odd),
            r: signature.r,
            s: signature.s,
        }
    };
    let of_another = permit(owner.address(), 3, 0);
    grid.refuses(&key(2), token, of_another, "PermitNotBySigner");
    grid.must(&key(2), token, permit(owner.address(), 1, 0));
    let allowance = GridToken::allowanceCall { _0: owner.address(), _1: spender };
    assert_eq!(grid.view(token, allowance), tokens(1));
    let again = permit(owner.address(), 1, 0);
    grid.refuses(&key(2), token, again, "PermitNotBySigner");
    grid.advance(200);
    let late = permit(owner.address(), 1, 1);
    grid.refuses(&key(2), token, late, "PermitExpired");
}
