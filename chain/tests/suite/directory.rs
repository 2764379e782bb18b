//! Names of contracts, and names of reservations.

use hypha_chain::contracts::{Directory, Names, Reservations};
use hypha_chain::deploy::name32;
use hypha_chain::{Address, B256, U256};

use crate::grid::{BOND, Grid, RATE, holder, key, tokens};

#[test]
fn all_contracts_are_listed_from_the_start() {
    let grid = Grid::new();
    let suite = grid.suite;
    for (name, target) in [
        ("token", suite.token),
        ("registry", suite.registry),
        ("capacity", suite.capacity),
        ("names", suite.names),
    ] {
        let call = Directory::latestCall { name: name32(name) };
        let latest = grid.view(suite.directory, call);
        assert_eq!((latest.target, latest.version), (target, U256::from(1)));
    }
}

#[test]
fn a_new_version_waits_a_week_and_replaces_nothing() {
    let mut grid = Grid::new();
    let (directory, token, names) = (grid.suite.directory, grid.suite.token, grid.suite.names);
    let name = name32("names");
    let propose = |target| Directory::proposeCall { name, target };
    grid.refuses(&key(1), directory, propose(token), "NotGovernor");
    grid.refuses(&holder(), directory, propose(Address::repeat_byte(1)), "NotAContract");
    let activate = Directory::activateCall { name };
    grid.refuses(&key(1), directory, activate.clone(), "NothingProposed");
    grid.must(&holder(), directory, propose(token));
    grid.advance(7 * 24 * 3600 - 60);
    grid.refuses(&key(1), directory, activate.clone(), "TooEarly");
    grid.advance(60);
    grid.must(&key(1), directory, activate.clone());
    let latest = grid.view(directory, Directory::latestCall { name });
    assert_eq!((latest.target, latest.version), (token, U256::from(2)));
    let first = Directory::versionAtCall { name, version: U256::from(1) };
    assert_eq!(grid.view(directory, first), names);
    grid.must(&holder(), directory, propose(token));
    grid.advance(40 * 24 * 3600);
    grid.refuses(&key(1), directory, activate.clone(), "Lapsed");
    grid.must(&holder(), directory, Directory::withdrawCall { name });
    grid.refuses(&key(1), directory, activate, "NothingProposed");
}

#[test]
fn the_governor_hands_over_to_one_who_accepts() {
    let mut grid = Grid::new();
    let directory = grid.suite.directory;
    let offer = Directory::offerGovernorCall { next: key(5).address() };
    grid.must(&holder(), directory, offer);
    grid.refuses(&key(6), directory, Directory::acceptGovernorCall {}, "NotGovernor");
    grid.must(&key(5), directory, Directory::acceptGovernorCall {});
    let propose = Directory::proposeCall { name: B256::ZERO, target: grid.suite.token };
    grid.refuses(&holder(), directory, propose.clone(), "NotGovernor");
    grid.must(&key(5), directory, propose);
}

#[test]
fn a_name_belongs_to_a_reservation_and_is_free_when_that_ends() {
    let mut grid = Grid::new();
    grid.farm(&key(1));
    grid.node(&key(1), 1, &key(10));
    let offer = grid.offer(&key(1), 1);
    for user in [4, 5] {
        grid.fund(&key(user), tokens(1000));
        grid.reserve(&key(user), offer, U256::from(BOND + RATE * 7200));
    }
    let names = grid.suite.names;
    let register =
        |name: &str, reservation| Names::registerCall { name: name32(name), reservation };
    grid.refuses(&key(4), names, register("shop", 2), "NotTheUser");
    grid.must(&key(4), names, register("shop", 1));
    grid.refuses(&key(5), names, register("shop", 2), "Taken");
    let release = Names::releaseCall { name: name32("shop") };
    grid.refuses(&key(5), names, release.clone(), "NotTheUser");
    let resolve = Names::resolveCall { name: name32("shop") };
    assert_eq!(grid.view(names, resolve.clone()), 1);
    grid.must(&key(4), grid.suite.reservations, Reservations::closeCall { id: 1 });
    assert_eq!(grid.view(names, resolve.clone()), 0);
    grid.must(&key(5), names, register("shop", 2));
    assert_eq!(grid.view(names, resolve), 2);
    grid.must(&key(5), names, release.clone());
    grid.refuses(&key(5), names, release, "NotRegistered");
    for wrong in ["ab", "Shop", "-shop", "shop-", "a_b", "", "sh op"] {
        grid.refuses(&key(5), names, register(wrong, 2), "BadName");
    }
    let mut hidden = name32("shop");
    hidden[20] = b'x';
    let call = Names::registerCall { name: hidden, reservation: 2 };
    grid.refuses(&key(5), names, call, "BadName");
    grid.must(&key(5), names, register("a-name-of-thirty-two-characters0", 2));
}
