// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @notice What the suite's contracts ask of an ERC-20 token.
interface IERC20 {
    function transfer(address to, uint256 amount) external returns (bool);
    function transferFrom(address from, address to, uint256 amount) external returns (bool);
    function balanceOf(address account) external view returns (uint256);
}

/// @notice What the suite's contracts ask of GridToken beside that.
interface IGridToken is IERC20 {
    /// @return minted All that was ever minted after the genesis supply, this amount included.
    function mint(address to, uint256 amount) external returns (uint256 minted);
    function burn(uint256 amount) external;
    function permit(
        address owner,
        address spender,
        uint256 value,
        uint256 deadline,
        uint8 v,
        bytes32 r,
        bytes32 s
    ) external;
}

/// @notice Capacities of a node: logical CPUs, memory and disks in MiB, bandwidth in Mbit/s.
struct Caps {
    uint16 cores;
    uint32 memMiB;
    uint64 ssdMiB;
    uint64 hddMiB;
    uint32 mbps;
}

/// @notice What other contracts ask of the Registry.
interface IRegistry {
    function ownerOf(uint32 farm) external view returns (address);
    function payoutOf(uint32 farm) external view returns (address);
    /// @return signer The node's key. @return farm Its farm. @return state 1 active, 2 parked, 3 retired.
    function identity(uint32 node) external view returns (address signer, uint32 farm, uint8 state);
    /// @return state As of `identity`. @return caps What the node claims.
    function room(uint32 node) external view returns (uint8 state, Caps memory caps);
    function stakeOf(uint32 node) external view returns (uint256);
    function nodeCount() external view returns (uint32);
    /// @notice Whole tokens of stake times seconds of its age, at an instant; 0 for who came later.
    function weightOf(uint32 node, uint256 instant) external view returns (uint256);
    /// @notice The same of all nodes.
    function totalWeight(uint256 instant) external view returns (uint256);
    /// @notice The node that a key is or was bound to; 0 for none. Bindings are never forgotten.
    function nodeOf(address signer) external view returns (uint32);
    function inMaintenance(uint32 node, uint256 from, uint256 to) external view returns (bool);
    function slash(uint32 node, uint256 amount, address beneficiary, uint256 shareBps) external
        returns (uint256 taken);
}

/// @notice A source of seeds that nobody knows ahead of time.
interface IBeacon {
    /// @notice The newest seed, and the round that it belongs to.
    function current() external view returns (uint64 round, bytes32 seed);
    /// @notice The seed of a round; reverts if it was not recorded or is no longer kept.
    function seed(uint64 round) external view returns (bytes32);
}

/// @notice What is posted for an epoch; the chain keeps only its hash.
struct Epoch {
    uint32 epoch;
    uint64 postedAt;
    uint32 openDemands;
    address aggregator;
    bytes32 verdictRoot;
    bytes32 rewardRoot;
}

/// @notice What other contracts ask of Capacity.
interface ICapacity {
    /// @notice Reverts unless this epoch stands and can no longer be disputed.
    function requireFinal(Epoch calldata posted) external view;
    /// @notice The end of the last epoch that the node is shown to have been proven in; 0 if none.
    function provenUntil(uint32 node) external view returns (uint64);
    /// @notice When an epoch is over, in seconds.
    function epochEnd(uint32 epoch) external view returns (uint256);
    /// @notice Voids an epoch that was shown to be wrong (Disputes only).
    function voidEpoch(Epoch calldata posted, address beneficiary) external;
}

/// @notice What Names asks of Reservations.
interface IReservations {
    function holderOf(uint64 id) external view returns (address user, bool open);
}

/// @notice Judges one step of a computation, or one statement about a commitment.
interface IVerifier {
    /// @return Whether `proof` shows that `to` follows from `from`.
    function verify(bytes32 from, bytes32 to, bytes calldata proof) external view returns (bool);
}
