// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {EpochTree} from "./EpochTree.sol";
import {Epoch, ICapacity, IGridToken, IRegistry} from "./Interfaces.sol";
import {Merkle} from "./Merkle.sol";

/// @title Rewards for proven idle capacity: a fixed emission per hour, shared pro rata.
/// @notice The root of the shares is the reward root of each epoch in Capacity: disputed, and void if
/// its data is withheld, together with the verdicts. Leaves say what a farm earned since the start,
/// so any later epoch serves. Whatever a root says, no more is minted than the hours so far allow.
contract Rewards {
    IGridToken public immutable token;
    IRegistry public immutable registry;
    ICapacity public immutable capacity;
    /// @notice Tokens per hour for the whole network.
    uint256 public immutable emission;
    /// @notice All that will ever be minted.
    uint256 public immutable cap;
    uint256 public immutable start;

    mapping(uint32 => uint256) public claimed;

    event Claimed(uint32 indexed farm, address indexed to, uint256 amount, uint32 epoch);

    error NotInEpoch();
    error NothingNew(uint256 claimed);
    error EmissionExceeded(uint256 minted, uint256 budget);

    constructor(
        IGridToken token_,
        IRegistry registry_,
        ICapacity capacity_,
        uint256 emission_,
        uint256 cap_
    ) {
        (token, registry, capacity) = (token_, registry_, capacity_);
        (emission, cap, start) = (emission_, cap_, block.timestamp);
    }

    /// @notice Mints to a farm's payout address what its leaf adds to earlier claims; anyone may.
    /// @param count Leaves of the reward tree. @param path Of leaf `farm - 1`.
    function claim(
        uint32 farm,
        uint128 cumulative,
        Epoch calldata posted,
        uint64 count,
        bytes32[] calldata path
    ) external {
        capacity.requireFinal(posted);
        bytes32 leaf = EpochTree.rewardLeaf(farm, cumulative);
        bytes32 top = Merkle.keccakTop(leaf, uint256(farm) - 1, count, path);
        require(Merkle.keccakRoot(count, top) == posted.rewardRoot, NotInEpoch());
        uint256 before = claimed[farm];
        require(cumulative > before, NothingNew(before));
        claimed[farm] = cumulative;
        address to = registry.payoutOf(farm);
        emit Claimed(farm, to, cumulative - before, posted.epoch);
        uint256 minted = token.mint(to, cumulative - before);
        uint256 limit = budget();
        require(minted <= limit, EmissionExceeded(minted, limit));
    }

    /// @notice All that may have been minted by now: whole hours only.
    function budget() public view returns (uint256) {
        uint256 sum = (block.timestamp - start) / 1 hours * emission;
        return sum < cap ? sum : cap;
    }
}
