// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IReservations} from "./Interfaces.sol";

/// @title Names of running reservations.
/// @notice A name is 3 to 32 of a-z, 0-9 and hyphens, not at its ends. It belongs to a reservation
/// and is free again when that ends.
contract Names {
    IReservations public immutable reservations;
    mapping(bytes32 => uint64) private holders;

    event Registered(bytes32 indexed name, uint64 indexed reservation);
    event Released(bytes32 indexed name, uint64 indexed reservation);

    error BadName();
    error Taken(uint64 reservation);
    error NotTheUser(uint64 reservation);
    error NotRegistered();

    constructor(IReservations reservations_) {
        reservations = reservations_;
    }

    /// @param name ASCII, padded with zero bytes.
    function register(bytes32 name, uint64 reservation) external {
        check(name);
        (address user, bool open) = reservations.holderOf(reservation);
        require(open && user == msg.sender, NotTheUser(reservation));
        uint64 old = holders[name];
        if (old != 0) {
            (, bool taken) = reservations.holderOf(old);
            require(!taken, Taken(old));
        }
        holders[name] = reservation;
        emit Registered(name, reservation);
    }

    /// @notice Frees a name: its user, or anyone once its reservation has ended.
    function release(bytes32 name) external {
        uint64 reservation = holders[name];
        require(reservation != 0, NotRegistered());
        (address user, bool open) = reservations.holderOf(reservation);
        require(!open || user == msg.sender, NotTheUser(reservation));
        delete holders[name];
        emit Released(name, reservation);
    }

    /// @return reservation 0 if nobody has the name now.
    function resolve(bytes32 name) external view returns (uint64 reservation) {
        reservation = holders[name];
        if (reservation == 0) return 0;
        (, bool open) = reservations.holderOf(reservation);
        if (!open) return 0;
    }

    function check(bytes32 name) private pure {
        uint256 length;
        while (length < 32 && name[length] != 0) {
            bytes1 c = name[length];
            bool letter = (c >= "a" && c <= "z") || (c >= "0" && c <= "9");
            require(letter || c == "-", BadName());
            length++;
        }
        require(length >= 3 && name[0] != "-" && name[length - 1] != "-", BadName());
        require(uint256(name) << (8 * length) == 0, BadName());
    }
}
