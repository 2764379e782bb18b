// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Caps, Epoch} from "./Interfaces.sol";
import {Merkle} from "./Merkle.sol";

/// @notice What an epoch says about one node. Leaf `node - 1` of the verdict tree.
struct Verdict {
    uint32 node;
    /// End of the last epoch that the node was proven in, in seconds; 0 for never.
    uint64 provenUntil;
    /// Pulses of this epoch that count, and how many of them the node answered.
    uint16 pulses;
    uint16 answered;
    /// What it proved, all at the same instant.
    Caps caps;
}

/// @notice A verdict with its way to a posted epoch.
struct VerdictPath {
    Epoch posted;
    Verdict verdict;
    uint64 count;
    bytes32[] path;
}

/// @notice The two trees of an epoch: one leaf per node, one leaf per farm.
library EpochTree {
    /// @notice The verdict is not in the epoch.
    error NotInEpoch();

    function verdictLeaf(Verdict calldata it) internal pure returns (bytes32) {
        Caps calldata caps = it.caps;
        return keccak256(
            abi.encodePacked(
                uint8(0),
                it.node,
                it.provenUntil,
                it.pulses,
                it.answered,
                caps.cores,
                caps.memMiB,
                caps.ssdMiB,
                caps.hddMiB,
                caps.mbps
            )
        );
    }

    /// @notice Leaf `farm - 1` of the reward tree: all that the farm earned since the start.
    function rewardLeaf(uint32 farm, uint128 cumulative) internal pure returns (bytes32) {
        return keccak256(abi.encodePacked(uint8(0), farm, cumulative));
    }

    /// @notice Reverts unless the verdict is in the epoch's verdict tree.
    function requireVerdict(VerdictPath calldata proof) internal pure {
        bytes32 leaf = verdictLeaf(proof.verdict);
        uint256 index = uint256(proof.verdict.node) - 1;
        bytes32 top = Merkle.keccakTop(leaf, index, proof.count, proof.path);
        require(Merkle.keccakRoot(proof.count, top) == proof.posted.verdictRoot, NotInEpoch());
    }

    /// @notice What the chain keeps of a posted epoch.
    function hashOf(Epoch memory posted) internal pure returns (bytes32) {
        return keccak256(abi.encode(posted));
    }
}
